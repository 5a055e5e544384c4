"""Several gateways by configuration, and what is said of one that cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Settings, load_settings
from pipeline.errors import UserError
from pipeline.gateways.configured import (
    adapters,
    build_gateways,
    gateways_of,
    profiles_of,
    read_gateways,
)
from pipeline.gateways.http_adapter import HttpGateway
from pipeline.gateways.simulator.personality import PERSONALITIES
from pipeline.local import simulated
from tests.unit.test_config import _elsewhere  # noqa: F401 - nothing is set

FOUR = """
[gateways]
acme = "http://127.0.0.1:1"

[gateways.northbank]
adapter = "northbank"
url = "http://127.0.0.1:2/"
currencies = ["GBP", "EUR"]
merchants = ["shop-a"]
priority = 10
grace_ms = 5000
fees = { GBP = { basis_points = 95, fixed_minor = 10 } }
notice_secrets = ["a-secret-of-northbank"]

[gateways.pacific]
adapter = "pacific"
url = "http://127.0.0.1:3"
key_retention_ms = 3600000

[gateways.old]
adapter = "legacy"
url = "http://127.0.0.1:4"
"""


def options(settings: Settings) -> dict[str, Any]:
    return settings.worker_options()


def test_one_gateway_is_the_default_as_ever() -> None:
    """Without the table, gateway_name and gateway_url are the one gateway."""
    settings = load_settings(gateway_name="acme", gateway_url="http://127.0.0.1:9")
    (profile,) = profiles_of(options(settings))
    assert (profile.name, profile.grace_ms, profile.idempotent) == ("acme", 30_000, True)
    assert list(build_gateways(options(settings))) == ["acme"]
    assert settings.gateway_urls() == ("http://127.0.0.1:9",)


def test_a_table_of_gateways_becomes_profiles_and_adapters() -> None:
    """Each has its adapter and what the decisions must know; what is left out has its default."""
    Path("paystream.toml").write_text(FOUR)
    settings = load_settings(gateway_grace_ms=7_000)
    by_name = {profile.name: profile for profile in profiles_of(options(settings))}
    assert list(by_name) == ["acme", "northbank", "pacific", "old"]
    northbank = by_name["northbank"]
    assert northbank.currencies == {"GBP", "EUR"}
    assert northbank.merchants == {"shop-a"}
    assert (northbank.priority, northbank.grace_ms) == (10, 5_000)
    assert (by_name["pacific"].key_retention_ms, by_name["pacific"].grace_ms) == (3_600_000, 7_000)
    assert [p.idempotent for p in by_name.values()] == [True, True, True, False]
    adapters = {
        name: gateway.adapter.name
        for name, gateway in build_gateways(options(settings)).items()
        if isinstance(gateway, HttpGateway)
    }
    assert adapters == {
        "acme": "simulator",
        "northbank": "northbank",
        "pacific": "pacific",
        "old": "legacy",
    }
    assert settings.gateway_urls()[1] == "http://127.0.0.1:2/"


def test_the_environment_gives_them_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has no file to mount for it."""
    monkeypatch.setenv("PAYSTREAM_GATEWAYS", json.dumps({"a": {"url": "http://127.0.0.1:1"}}))
    assert list(gateways_of(options(load_settings()))) == ["a"]
    # What a worker is told goes through JSON.
    told = json.loads(json.dumps(options(load_settings()), default=str))
    assert list(gateways_of(told)) == ["a"]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"adapter": "simulator"}, "gateway g: Object missing required field `url`"),
        ({"url": "127.0.0.1:80"}, "gateway g needs a url like"),
        ({"url": "http://u:p@h"}, "has a password in its url"),
        ({"adapter": "stripe"}, "no adapter 'stripe'; choose simulator, northbank, "),
        ({"curency": ["GBP"]}, "no setting 'curency'; did you mean currencies?"),
        ({"currencies": []}, "serves no currencies; leave currencies out to serve all"),
        ({"currencies": ["GPB"]}, "'GPB' is not an active ISO 4217 currency"),
        ({"currencies": "GBP"}, "gateway g: Expected `array"),
        ({"merchants": []}, "serves no merchants"),
        ({"fees": {"GBP": {"basis_points": 20_000}}}, "the fee in GBP"),
        ({"fees": {"GBP": {"percent": 1}}}, "unknown field `percent`"),
        ({"priority": -1}, "priority is -1; give 0 or more"),
        ({"key_retention_ms": 5}, "key_retention_ms is 5; give 60000 or more"),
        ({"grace_ms": 90_000, "key_retention_ms": 60_000}, "could ever prove anything"),
        ({"rate_per_s": 0}, "rate_per_s is not above 0"),
        ({"concurrency_max": 0}, "concurrency_max is 0"),
        ({"adapter": "legacy", "idempotent": True}, "what is sent twice is done twice"),
    ],
)
def test_what_cannot_be_meant_is_named(entry: dict[str, Any], says: str) -> None:
    """The sentence names the gateway and what to do."""
    whole = entry if says.endswith("`url`") else {"url": "http://127.0.0.1:1", **entry}
    with pytest.raises(UserError) as caught:
        load_settings(gateways={"g": whole})
    assert says in str(caught.value)
    assert "PAYSTREAM_GATEWAYS" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"a:b": "http://h"}, "cannot be a gateway's name"),
        ({"A": "http://h"}, "cannot be a gateway's name"),
        ({"a": "http://h/", "b": "http://h"}, "gateways a and b have the same address"),
        ({"a": 5}, "gateway a must be a table"),
        ({f"g{n}": f"http://h{n}" for n in range(17)}, "17 gateways are more than the 16"),
    ],
)
def test_a_table_that_cannot_be_meant_is_named(raw: dict[str, Any], says: str) -> None:
    """A colon in a name would tear our reference apart; one address is one gateway."""
    with pytest.raises(ValueError, match=says):
        read_gateways(raw)


def test_a_secret_is_not_repeated_in_the_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong is said without what was given."""
    wrong = {"g": {"url": "http://h", "api_key": "hush", "notice_secrets": ["hush"], "x": 1}}
    for given in (json.dumps(wrong), '{"api_key": "hush"', '["hush"]'):
        monkeypatch.setenv("PAYSTREAM_GATEWAYS", given)
        with pytest.raises(UserError) as caught:
            load_settings()
        assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("adapter", "secrets", "says"),
    [
        ("simulator", ["not-a-whsec-secret"], "begins with whsec_"),
        ("northbank", ["short"], "at least 16 characters"),
        ("legacy", ["x" * 20], "sends no notices"),
        ("pacific", ["x" * 20] * 3, "has 3 notice_secrets"),
    ],
)
def test_a_secret_of_the_wrong_form_is_named_at_start(
    adapter: str, secrets: list[str], says: str
) -> None:
    """Each adapter knows what its gateway signs with."""
    entry = {"url": "http://h", "adapter": adapter, "notice_secrets": secrets}
    with pytest.raises(UserError, match=says):
        load_settings(gateways={"g": entry})


def test_the_simulated_gateways_are_a_configuration_that_can_be_meant() -> None:
    """What `up` tells its workers passes the same checks."""

    class Handle:
        def __init__(self, port: int) -> None:
            self.url = f"http://127.0.0.1:{port}"

    names = ("simulator", "northbank", "pacific", "legacy")
    settings = load_settings(gateways=simulated({n: Handle(i + 1) for i, n in enumerate(names)}))
    profiles = profiles_of(options(settings))
    assert [profile.name for profile in profiles] == list(names)
    assert [profile.idempotent for profile in profiles] == [True, True, True, False]
    assert profiles[0].currencies is None


def test_local_gateways_that_send_notices_are_those_whose_adapter_reads_them() -> None:
    """A secret for a gateway that sends nothing would be refused by every worker."""
    for name in PERSONALITIES:
        try:
            adapters()[name]().check_secret("whsec_" + "A" * 32)
        except ValueError:
            assert not adapters()[name].sends_notices
        else:
            assert adapters()[name].sends_notices

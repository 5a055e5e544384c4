"""Routing rules as data: what is taken, and what is refused with everything wrong in it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.route_rules import RoutesRefused, read_routes, routed
from pipeline.domain.routes import Fee
from pipeline.errors import UserError
from pipeline.runtime.policy_options import read_routes_file

POLICY = Policy(
    gateways=(
        GatewayProfile(name="north", currencies=frozenset({"GBP", "EUR"}), grace_ms=7),
        GatewayProfile(name="south", currencies=frozenset({"GBP"})),
    )
)

TOML = """
order_by = ["priority", "cost"]
must_serve = ["GBP", "EUR"]

[gateways.north]
priority = 10
weight = 3
rate_per_s = 50
fees.GBP = { basis_points = 140, fixed_minor = 20 }
breaker = { calls_min = 5, slow_ms = 500, usual_ms = 200 }

[gateways.south]
priority = 20

[merchants.shop-a]
prefer = ["south"]

[[rules]]
name = "small"
currencies = ["GBP"]
amounts.GBP = { max_minor = 500 }
gateways = ["south"]
"""


def refused(document: dict[str, Any], policy: Policy = POLICY) -> tuple[str, ...]:
    with pytest.raises(RoutesRefused) as error:
        routed(policy, read_routes(json.dumps(document)))
    return error.value.problems


def test_a_document_is_laid_over_the_configured_gateways() -> None:
    """What it says counts, what it leaves out stays; TOML and JSON say the same."""
    toml = tomllib.loads(TOML)
    policy = routed(POLICY, read_routes(toml), version=4)
    assert policy == routed(POLICY, read_routes(json.dumps(toml)), version=4)
    north, south = policy.gateways
    assert (north.priority, north.weight, north.rate_per_s) == (10, 3, 50)
    assert north.fees == {"GBP": Fee(basis_points=140, fixed_minor=20)}
    assert (north.grace_ms, north.currencies) == (7, frozenset({"GBP", "EUR"}))
    assert (north.breaker.calls_min, north.breaker.slow_ms, north.breaker.probes) == (5, 500, 3)
    assert (north.breaker.usual_ms, south.breaker.usual_ms) == (200, None)
    assert south.breaker == POLICY.gateways[1].breaker
    assert policy.routes.version == 4
    assert [rule.name for rule in policy.routes.rules] == ["small"]


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"gateways": {"nrth": {}}}, "gateways.nrth: there is no such gateway"),
        ({"rules": [{"name": "r", "gateways": ["west"]}]}, "there is no gateway west"),
        ({"rules": [{"name": "r", "weights": {"west": 1}}]}, "there is no gateway west"),
        ({"merchants": {"m": {"prefer": ["west"]}}}, "merchants.m: there is no gateway west"),
        ({"merchants": {"m": {"never": ["north", "south"]}}}, "no gateway is left for it"),
        ({"gateways": {"north": {"weight": -1}}}, "a weight is 0 to 1,000,000, not -1"),
        ({"rules": [{"name": "r", "weights": {"north": 0}}]}, "nobody has a share"),
        (
            {"gateways": {"north": {"weight": 0}, "south": {"weight": 0}}},
            "gateways: nobody has a share, since the weight of north, south is 0",
        ),
        (
            {"gateways": {"north": {"weight": 0}}},
            "gateways: nobody has a share, since the weight of north is 0",
        ),
        ({"rules": [{"name": "r", "currencies": []}]}, "it can never match"),
        ({"rules": [{"name": "r", "currencies": ["XXY"]}]}, "XXY is no ISO 4217 currency"),
        (
            {"rules": [{"name": "r", "currencies": ["EUR"], "gateways": ["south"]}]},
            "rules[0] (r): none of its gateways takes EUR",
        ),
        (
            {"rules": [{"name": "all"}, {"name": "r", "currencies": ["EUR"]}]},
            "rules[1] (r) can never match: all takes everything before it",
        ),
        (
            {"rules": [{"name": "r", "amounts": {"GBP": {"min_minor": 5, "max_minor": 4}}}]},
            "can never match: max is below min",
        ),
        ({"rules": [{"name": "r"}, {"name": "r"}]}, "there is an earlier rule of that name"),
        ({"must_serve": ["USD"]}, "must_serve: no gateway takes USD"),
        ({"order_by": ["luck"]}, "'luck' is none of priority"),
        ({"order_by": ["cost", "cost"]}, "a criterion stands there twice"),
        ({"gateways": {"north": {"rate_per_s": 0}}}, "rate_per_s must be above 0"),
        ({"gateways": {"north": {"concurrency_max": 0}}}, "concurrency_max must be 1 or more"),
        ({"gateways": {"north": {"breaker": {"probes": 0}}}}, "breaker.probes must be 1 to 10,000"),
        (
            {"gateways": {"north": {"breaker": {"usual_ms": 0}}}},
            "breaker.usual_ms must be 1 to 86,400,000",
        ),
        (
            {"gateways": {"north": {"breaker": {"calls_min": 10**20}}}},
            "breaker.calls_min must be 1 to 10,000",
        ),
        (
            {"gateways": {"north": {"breaker": {"wait_ms_max": 10**9}}}},
            "breaker.wait_ms_max must be 1 to 86,400,000",
        ),
        ({"must_serve": ["XYZ"]}, "must_serve: XYZ is no ISO 4217 currency"),
        ({"gateways": {"north": {"countries": ["gb"]}}}, "gb is no country, such as GB"),
        (
            {"rules": [{"name": "r", "gateways": ["north"], "weights": {"south": 1}}]},
            "rules[0] (r).weights: south is none of its gateways",
        ),
        (
            {"rules": [{"name": "r", "amounts": {"GBP": {"min_minor": -5, "max_minor": -1}}}]},
            "can never match: amounts begin with 1",
        ),
        ({"gateways": {"north": {"breaker": {"prbes": 1}}}}, "breaker: there is no prbes"),
        ({"gateways": {"north": {"fees": {"GBP": {"fixed_minor": -1}}}}}, "must not be negative"),
        ({"gatways": {}}, "it cannot be read"),
        ({"gateways": {"north": {"weight": "3"}}}, "it cannot be read"),
    ],
)
def test_what_is_wrong_is_said(document: dict[str, Any], problem: str) -> None:
    """Each kind of mistake has a sentence that names the place."""
    assert any(problem in each for each in refused(document)), refused(document)


def test_everything_wrong_is_said_at_once() -> None:
    """Nobody has to come back for the second mistake."""
    wrong = refused({"gateways": {"nrth": {}, "north": {"weight": -1}}, "must_serve": ["USD"]})
    assert len(wrong) == 3


def test_no_document_at_all_is_refused() -> None:
    """Text that is no JSON, or JSON that is no document, is named and not raised through."""
    for text in ("", "{", "[]", "null", '"x"'):
        with pytest.raises(RoutesRefused, match="cannot be read"):
            read_routes(text)


def test_a_file_nested_beyond_reading_is_refused(tmp_path: Path) -> None:
    """By a sentence, as any other that is no document."""
    for name, text in (("r.toml", "a = " + "[" * 100_000), ("r.json", "[" * 100_000)):
        file = tmp_path / name
        file.write_text(text)
        with pytest.raises((UserError, RoutesRefused), match="cannot be read"):
            read_routes(read_routes_file(file))

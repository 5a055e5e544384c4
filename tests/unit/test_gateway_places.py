"""What has to be there for each adapter: whoever adds one is told by name what is missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from pipeline.commands.flow import simulator_command
from pipeline.config import load_settings
from pipeline.domain.normalisation import GATEWAY_CODES
from pipeline.domain.policy import GatewayProfile
from pipeline.errors import UserError
from pipeline.gateways import document
from pipeline.gateways.adapters import known
from pipeline.gateways.adapters.base import Adapter
from pipeline.gateways.adapters.known import ADAPTERS
from pipeline.gateways.adapters.legacy import LegacyAdapter
from pipeline.gateways.adapters.pacific import PacificAdapter
from pipeline.gateways.configured import profiles_of
from pipeline.gateways.reports import base as reports
from pipeline.gateways.reports import terms
from pipeline.gateways.simulator.personality import PERSONALITIES
from pipeline.gateways.simulator.report_formats import WRITERS
from tests.house import TOP
from tests.unit.test_config import _elsewhere  # noqa: F401 - nothing is set

# By what the document calls the place.
PLACES: Mapping[str, Collection[str]] = {
    "`GATEWAY_CODES` in `pipeline/domain/normalisation.py`": GATEWAY_CODES,
    "`_readers` in `pipeline/gateways/reports/base.py`": reports._readers(),
    "`_BY_ADAPTER` in `pipeline/gateways/reports/terms.py`": terms._BY_ADAPTER,
    "`PERSONALITIES` in `pipeline/gateways/simulator/personality.py`": PERSONALITIES,
    "`WRITERS` in `pipeline/gateways/simulator/report_formats.py`": WRITERS,
}
SAID_OF_ITSELF = ("idempotent", "sends_notices", "notices_by_own_id")


def test_every_adapter_is_in_every_place() -> None:
    """Nothing about a gateway is found missing when its first report comes, or its first no."""
    wrong = [
        f"{name}: not in {place}"
        for place, names in PLACES.items()
        for name in ADAPTERS
        if name not in names
    ]
    wrong += [
        f"{name}: in {place} and not in `ADAPTERS`"
        for place, names in PLACES.items()
        for name in names
        if name not in ADAPTERS
    ]
    assert not wrong, "\n".join(wrong)


def test_the_document_tells_of_every_place() -> None:
    """Whoever follows it has forgotten none."""
    told = document.render()
    assert [place for place in (*PLACES, *SAID_OF_ITSELF) if place not in told] == []


def test_whoever_chooses_a_simulated_gateway_is_told_of_each() -> None:
    """The command and the simulator's document name them all."""
    help_of_gateway = simulator_command.__annotations__["gateway"]
    listed = (TOP / "docs" / "simulator.md").read_text(encoding="utf-8")
    option = next(line for line in listed.splitlines() if line.startswith("| `--gateway NAME`"))
    for name in PERSONALITIES:
        assert name in help_of_gateway
        assert f"`{name}`" in option


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_has_its_own_name_and_says_what_must_not_be_guessed(name: str) -> None:
    """A copy that kept the old name would read the old one's codes."""
    assert ADAPTERS[name].name == name
    for what in SAID_OF_ITSELF:
        assert isinstance(getattr(ADAPTERS[name], what, None), bool), what


def profile_under(
    monkeypatch: pytest.MonkeyPatch, adapter: type[Adapter], **entry: object
) -> GatewayProfile:
    """What the decisions know of a gateway whose adapter has just been written."""
    monkeypatch.setattr(known, "ADAPTERS", {**ADAPTERS, adapter.name: adapter})
    settings = load_settings(
        gateways={"g": {"url": "http://127.0.0.1:1", "adapter": adapter.name, **entry}}
    )
    (profile,) = profiles_of(settings.worker_options())
    return profile


def test_a_new_adapter_is_taken_for_what_its_class_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without keys is never taken for one with keys: what is sent to it twice is done twice."""

    class Acme(LegacyAdapter):
        name = "acme"

    class Atlantic(PacificAdapter):
        name = "atlantic"

    acme = profile_under(monkeypatch, Acme)
    assert (acme.idempotent, acme.notices_by_own_id) == (False, False)
    atlantic = profile_under(monkeypatch, Atlantic)
    assert (atlantic.idempotent, atlantic.notices_by_own_id) == (True, True)
    assert profile_under(monkeypatch, Atlantic, idempotent=False).idempotent is False
    with pytest.raises(UserError, match="its adapter acme knows no keys"):
        profile_under(monkeypatch, Acme, idempotent=True)


@pytest.mark.parametrize("left_out", ["idempotent", "notices_by_own_id"])
def test_an_adapter_that_does_not_say_is_not_started(
    monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    """There is no default that could be wrong."""
    said = {what: True for what in SAID_OF_ITSELF if what != left_out}
    silent = type("Silent", (), {"name": "silent", **said})
    with pytest.raises(AttributeError, match=left_out):
        profile_under(monkeypatch, silent)

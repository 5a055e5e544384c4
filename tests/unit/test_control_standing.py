"""What `paystream control show` says stands, judged as the workers judge it."""

from __future__ import annotations

from pipeline.commands.control import standing_lines
from pipeline.domain.model import ControlEntry
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.runtime.control_standing import Told, standing
from pipeline.runtime.live_policy import LivePolicy

POLICY = Policy(gateways=(GatewayProfile(name="north"), GatewayProfile(name="south")))
GOOD = '{"gateways": {"south": {"priority": 1}}}'
WRONG = '{"gateways": {"nroth": {"priority": 0}}}'


def entry(value: str, version: int, key: str = "routing") -> Told:
    return Told(
        key,
        ControlEntry(
            key=key,
            value=value,
            version=version,
            changed_by="ann",
            reason=f"reason {version}",
            changed_at_ms=0,
        ),
    )


def shown(*told: Told) -> str:
    return "\n".join(
        line for each in standing(POLICY, told).values() for line in standing_lines(each)
    )


def test_a_good_entry_is_in_force() -> None:
    """One line about it, then the document."""
    said = shown(entry(WRONG, 1), entry(GOOD, 2))
    first = "routing version 2, by ann at 1970-01-01 00:00:00 UTC: reason 2 (in force)"
    assert said.splitlines()[0] == first
    assert '"south"' in said
    assert "refused" not in said


def test_a_refused_entry_is_not_called_in_force() -> None:
    """Why it is refused, and the earlier entry that workers keep, with its document."""
    refused, instead = shown(entry(GOOD, 1), entry(WRONG, 2)).split("in force instead: ")
    assert refused.splitlines()[:2] == [
        "routing version 2, by ann at 1970-01-01 00:00:00 UTC: reason 2 (refused by workers)",
        "  gateways.nroth: there is no such gateway; configured are north, south",
    ]
    assert "nroth" in refused
    assert instead.startswith("routing version 1, by ann at ")
    assert '"south"' in instead


def test_without_an_earlier_good_entry_the_configuration_is_in_force() -> None:
    """A deletion takes the earlier ones with it; one that cannot be read replaces nothing."""
    said = shown(entry(GOOD, 1), Told("routing", None), entry(WRONG, 2))
    assert "in force instead: the configuration's own rules" in said
    said = shown(entry(GOOD, 1), Told("routing", None, "it cannot be read: x"))
    assert said.startswith(
        "the newest record of routing (refused by workers)\n  it cannot be read: x\n"
        "in force instead: routing version 1, "
    )
    assert shown(entry(GOOD, 1), Told("routing", None)) == ""


def test_a_key_that_nobody_follows_is_refused() -> None:
    """It changes nothing anywhere."""
    assert "no worker follows this key; known is routing" in shown(entry("{}", 1, "weather"))


def test_what_is_shown_is_what_a_worker_goes_by() -> None:
    """The same records, told to a worker, leave the same version in force."""
    records = [entry(GOOD, 1), entry(WRONG, 2), entry("{", 3)]
    worker = LivePolicy(POLICY)
    for told in records:
        worker.take(told.key, told.entry)
    stands = standing(POLICY, records)["routing"]
    assert stands.in_force is not None
    assert stands.in_force.version == worker.in_force.routes.version == 1

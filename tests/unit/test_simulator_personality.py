"""The four simulated gateways differ in what a router and an adapter can notice."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.errors import UserError
from pipeline.gateways.simulator import faults
from pipeline.gateways.simulator.faults import FaultPlan
from pipeline.gateways.simulator.personality import PERSONALITIES, personality
from tests.house import TOP


def test_no_two_are_alike() -> None:
    """Fees, times, mixes of declines and wire formats are each gateway's own."""
    fees = {(each.fee_bps, each.fee_fixed_minor) for each in PERSONALITIES.values()}
    mixes = {tuple(each.decline_weights.items()) for each in PERSONALITIES.values()}
    wires = {each.wire("http://x").content_type for each in PERSONALITIES.values()}
    assert len(fees) == len(mixes) == len(PERSONALITIES)
    assert len(wires) == 2


def test_fees_are_rounded_half_up_and_never_more_than_all() -> None:
    """1.4 % of 12.50 and 20 more is 37.5, shown as 38; of 0.10 nothing is left."""
    simulator = personality("simulator")
    assert simulator.fee_minor(1_250) == 38
    assert simulator.fee_minor(10) == 10


def test_declines_follow_the_gateways_own_mix_unless_a_plan_names_one() -> None:
    """A bank's customers are short of money; nobody there reports stolen cards."""
    plan = FaultPlan(rates={"decline": 1.0})
    own = personality("northbank").plan(plan)
    drawn = Counter(faults.decline_code(own, 7, f"k{n}") for n in range(500))
    assert drawn.most_common(1)[0][0] == "insufficient_funds"
    assert "lost_card" not in drawn
    named = FaultPlan(rates={"decline": 1.0}, decline_weights={"expired_card": 1})
    assert personality("northbank").plan(named).decline_weights == {"expired_card": 1}


def test_an_unknown_gateway_is_refused_with_the_choices() -> None:
    """A misspelt name is no default."""
    with pytest.raises(UserError, match=", ".join(PERSONALITIES)):
        personality("northbnak")


def test_the_document_describes_each() -> None:
    """Currencies and times in the contract are those of the program."""
    document = (TOP / "docs" / "simulator.md").read_text(encoding="utf-8")
    for name, each in PERSONALITIES.items():
        row = next(line for line in document.splitlines() if line.startswith("|") and
                   f"`{name}`" in line.split("|")[1])  # fmt: skip
        for currency in each.currencies or ():
            assert currency in row, name
        assert f"{each.grace_ms / 1000:g}" in row

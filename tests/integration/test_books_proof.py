"""The proof of the books in short: some hundred orders whole, then damaged in every way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.books.agreement import Agreement
from benchmarks.books.damaged_decisions import DECIDED_KINDS
from benchmarks.books.damaged_gateway import KINDS
from benchmarks.books.damaged_ledger import DISPUTE_KINDS, ENTRY_KINDS, OTHER_KINDS
from benchmarks.books.damaged_payouts import PAYOUT_KINDS
from benchmarks.books.damaged_reports import DISPUTE_ROW_KINDS, LINE_KINDS, ROW_KINDS
from benchmarks.books.findings import CHECKS
from benchmarks.books.proof import Proof, as_markdown, prove
from benchmarks.machine import describe_machine

pytestmark = pytest.mark.integration

# Faults that are over in a moment: hanging calls and an open breaker alone take a minute.
QUICK_FAULTS = {"rates": {"decline": 0.05, "slow": 0.02, "500_before": 0.02, "reset_after": 0.02}}


@pytest.mark.long
def test_whole_books_agree_and_every_damage_is_found_by_name(tmp_path: Path) -> None:
    """The sample and 60 more orders with quick faults, in fewer reports, and in fewer partitions:
    each look at a topic takes a consumer for each of them."""
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps(QUICK_FAULTS))
    proof = prove(
        60, said, seed=3, each=1, folder=tmp_path, faults=str(faults), parts=3, partitions=2
    )
    require_whole(proof)


# Two minutes by itself: each wait of the default faults once, and ten days of reports.
@pytest.mark.acceptance
@pytest.mark.timeout(420)
def test_the_books_of_orders_with_the_default_faults_agree_as_well(tmp_path: Path) -> None:
    """The sample and 200 more orders, payments that hang and gateways that are avoided included."""
    require_whole(prove(200, said, seed=3, each=1, folder=tmp_path, faults="default"))


def said(line: str) -> None:
    print(line)


def require_whole(proof: Proof) -> None:
    """Every sum is the same wherever it stands, and each kind of damage is found by the checks
    that should, at its place, and nothing else is: else there is no proof. Here: all were asked."""
    agreement: Agreement = proof.agreement
    assert agreement.entries > proof.orders
    assert {what for what, _ in agreement.sums} >= {
        "moved to us, fees not taken off", "the gateway's fees", "paid out by the gateway",
        "paid out to merchants",
    }  # fmt: skip
    kinds = {damage.kind for damage in proof.damages}
    assert kinds > {
        *ENTRY_KINDS, *DISPUTE_KINDS, *OTHER_KINDS, *DECIDED_KINDS, *ROW_KINDS, *DISPUTE_ROW_KINDS,
        *LINE_KINDS, *PAYOUT_KINDS, *KINDS,
    }  # fmt: skip
    assert len(kinds) >= 20
    assert all(damage.found for damage in proof.damages)
    assert {check for damage in proof.damages for check in damage.found} == set(CHECKS)
    table = as_markdown(proof, "command", describe_machine())
    assert all(f"| {kind} | " in table for kind in kinds)

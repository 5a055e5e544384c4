"""The proof of the books in short: a few hundred orders whole, then damaged in every way."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.books.agreement import Agreement
from benchmarks.books.damaged_gateway import KINDS
from benchmarks.books.damaged_ledger import ENTRY_KINDS, OTHER_KINDS
from benchmarks.books.damaged_reports import LINE_KINDS, ROW_KINDS
from benchmarks.books.findings import CHECKS
from benchmarks.books.proof import as_markdown, prove
from benchmarks.machine import describe_machine

# Left to `make acceptance`: two minutes by itself, and its damaged statements stop at one that
# "came before with other lines".
pytestmark = [pytest.mark.integration, pytest.mark.acceptance, pytest.mark.timeout(420)]


def test_whole_books_agree_and_every_damage_is_found_by_name(tmp_path: Path) -> None:
    """The sample and 200 more orders with faults: every sum is the same wherever it stands, and
    each kind of damage is found by the checks that should, at its place, and nothing else is."""
    said: list[str] = []
    proof = prove(200, said.append, seed=3, each=1, folder=tmp_path)
    agreement: Agreement = proof.agreement
    assert agreement.entries > proof.orders
    assert {what for what, _ in agreement.sums} >= {
        "moved to us, fees not taken off", "the gateway's fees", "paid out by the gateway",
    }  # fmt: skip
    kinds = {damage.kind for damage in proof.damages}
    assert kinds > {*ENTRY_KINDS, *OTHER_KINDS, *ROW_KINDS, *LINE_KINDS, *KINDS}
    assert len(kinds) >= 20
    assert all(damage.found for damage in proof.damages)
    assert {check for damage in proof.damages for check in damage.found} == set(CHECKS)
    table = as_markdown(proof, "command", describe_machine())
    assert all(f"| {kind} | " in table for kind in kinds)

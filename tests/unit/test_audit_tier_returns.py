"""What refunds took back of tiers, judged when retention has deleted the settlements it is of."""

from __future__ import annotations

import pytest

from pipeline.audit.checks import check
from pipeline.audit.cut import Cut
from pipeline.audit.evidence import Evidence
from pipeline.audit.ledger_copy import LedgerCopy, LedgerReader
from pipeline.audit.log_copy import LogRecord
from pipeline.domain.keys import record_key
from pipeline.domain.model import LedgerEvent, Settlement
from pipeline.domain.posting import JournalEntry, journal_entry
from pipeline.domain.records import to_record
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.decisions import all_decisions
from pipeline.ledger.entries import Item
from pipeline.ledger.journal import Progress
from tests.support.audit_story import CATALOGUE, CODEC
from tests.support.ledger import journal_at, settlement
from tests.support.ledger_rules import announce, book_all, close

# Of a month of 250.00 what is above 100.00 costs 1 % instead of 2 %.
PLAN = {
    "name": "p", "currency": "GBP", "percentage": "2", "returned": "all",
    "tiers": [{"above_minor": 100_00, "percentage": "1"}],
}  # fmt: skip


@pytest.fixture
def books(books_url: str) -> tuple[list[Settlement], list[LedgerEvent], LedgerCopy]:
    """Three sales of December, the third's second capture of January and booked first; then 70.00
    of the first, the whole second and 25.00 of the third go back, what was captured first first:
    175.00 of 250.00, of whose 1.50 they take 1.05."""
    engine = open_ledger(books_url)
    announce(engine, {"plans": [PLAN]})
    sold = [
        settlement(7, amount_minor=50_00, operation_id="second", business_date="2011-01-03"),
        settlement(1, amount_minor=120_00), settlement(4, amount_minor=80_00),
        settlement(7, amount_minor=50_00),
    ]  # fmt: skip
    back = [
        settlement(of, kind="refund", amount_minor=minor, operation_id=f"r{of}",
                   business_date="2011-01-05")
        for of, minor in ((1, -70_00), (4, -80_00), (7, -25_00))
    ]  # fmt: skip
    journal = journal_at(engine)
    at = 0
    for settled, through in ((sold, "2010-12-31"), (back, "2011-01-31")):
        items = []
        for n, each in enumerate(settled, at):
            entry = journal_entry(each)
            assert isinstance(entry, JournalEntry)
            items.append(Item(0, n, entry))
        journal.post(items, {0: Progress(at, at + len(items))})
        at += len(items)
        close(engine, through)
        book_all(engine)
    with reading(engine) as connection:
        decided = list(all_decisions(connection))
    reader = LedgerReader(books_url)
    copy = reader.read()
    reader.close()
    engine.dispose()
    return [*sold, *back], decided, copy


def tiers_found(
    settled: list[Settlement], decided: list[LedgerEvent], ledger: LedgerCopy, low: int
) -> list[str]:
    """What the audit says of tiers where the settlements below ``low`` are deleted."""
    evidence = Evidence(CATALOGUE, CODEC)
    kept = [("settlements", "settlement", n, each, record_key(each.merchant_id, each.order_id))
            for n, each in enumerate(settled) if n >= low]  # fmt: skip
    said = [("ledger-events", "ledger-event", e.sequence, e, b"ledger") for e in decided]
    for role, schema, offset, value, key in (*said, *kept):
        encoded = CODEC.encoder(schema)(to_record(value))
        evidence.take(role, LogRecord(0, offset, 1, key, encoded))
    ends = dict.fromkeys(((role, 0) for role in CATALOGUE.topics), 100)
    cut = Cut(
        partitions=dict.fromkeys(CATALOGUE.topics, 1), ends=ends,
        committed={"payments": ends, "gateway": ends}, lows={("settlements", 0): low},
    )  # fmt: skip
    return [
        each.example.detail
        for each in check(evidence, cut, ledger, None)
        if each.name == "tier_correction_wrong"
    ]


@pytest.mark.parametrize("low", [0, 2, 4, 7])
def test_undamaged_books_stay_so_whatever_retention_deletes(
    books: tuple[list[Settlement], list[LedgerEvent], LedgerCopy], low: int
) -> None:
    """The sales are deleted, one or all, then their refunds: the journal says whose they are."""
    settled, decided, ledger = books
    assert "fee_true_up_returned" in {entry.kind for entry in ledger.entries}
    assert tiers_found(settled, decided, ledger, low) == []


def test_a_wrong_return_is_found_though_the_sales_are_deleted(
    books: tuple[list[Settlement], list[LedgerEvent], LedgerCopy],
) -> None:
    settled, decided, ledger = books
    ledger.entries[:] = [e for e in ledger.entries if e.kind != "fee_true_up_returned"]
    (found,) = tiers_found(settled, decided, ledger, 4)
    assert found == "2010-12 1/p/ returned: booked GBP 0.00, should be GBP 1.05"

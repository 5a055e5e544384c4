"""What makes funds available: the row of a gateway's report, not the money at the bank."""

from __future__ import annotations

from pathlib import Path

from pipeline.ledger.database import open_ledger
from tests.support import payouts
from tests.support.ledger import settlement
from tests.support.reconciliation import Books, row_of


def test_a_cleared_row_is_paid_out_before_the_bank_has_its_batch(tmp_path: Path) -> None:
    """12.50 that a report lists are paid out with the day's payout; that the bank never pays the
    batch of 12.38 is told by a break, and stops no payout."""
    books = Books(open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}"))
    payouts.announce(books.engine, payouts.row(), since="2023-01-01")
    for n in (1, 2):
        sale = settlement(n, merchant_id="shop")
        books.settle(sale)
        books.report(row_of(n, sale, batch_id=f"po_{n}"))
        books.run()
        day = f"2023-11-{15 + n}"
        payouts.create(books.engine, day, f"{day}T18:00")
        assert payouts.payouts(books.engine)[day].amount_minor == 1250
        if n == 1:
            books.run("2023-11-24")
            assert books.kinds() == [("batch_unpaid", "po_1:GBP", 1238)]
    assert "bank:acct" not in books.balances()
    books.engine.dispose()

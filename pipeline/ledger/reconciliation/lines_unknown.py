"""Lines of bank statements that are nobody's: no payout of a gateway, and none of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection, text

from pipeline.domain.breaks import BANK_LINE_UNKNOWN, ReconciliationBreak, break_id
from pipeline.domain.money import decimal, format_amount
from pipeline.domain.payouts import PayoutBook
from pipeline.domain.reconciliation_decisions import statement_of
from pipeline.ledger.decisions import decisions_at
from pipeline.ledger.payouts import payout_book
from pipeline.ledger.reconciliation.payouts_by_bank import is_paid_from

_UNKNOWN: Final = text(
    "SELECT * FROM bank_lines WHERE (gateway = '' OR batch_id = '') AND payout = 0 "
    "ORDER BY account, file_id"
)


def unknown_lines(connection: Connection) -> Iterator[ReconciliationBreak]:
    """One break for each; where it names a payout that another account of ours pays, with that."""
    lines = connection.execute(_UNKNOWN).all()
    named = any(line.batch_id and not line.gateway for line in lines)
    book = payout_book(connection) if named else PayoutBook()
    # By the decision: what the bank calls the account that its statement is of.
    numbers: dict[int, str] = {}
    for line in lines:
        detail = f"{format_amount(line.amount_minor, line.currency)}: "
        detail += line.text or "without a text"
        if not line.gateway and line.batch_id in book.payouts:
            if line.sequence not in numbers:
                (event,) = decisions_at(connection, [line.sequence])
                numbers[line.sequence] = statement_of(event).number
            if not is_paid_from(book, line.batch_id, line.account, numbers[line.sequence]):
                detail += f"; {_elsewhere(book, line)}"
        subject = f"{line.account}:{line.file_id}:{line.line_id}"
        yield ReconciliationBreak(
            break_id=break_id(BANK_LINE_UNKNOWN, line.account, subject),
            kind=BANK_LINE_UNKNOWN,
            gateway=line.gateway or line.account,
            subject=subject,
            currency=line.currency,
            at_risk_minor=abs(line.amount_minor),
            since=line.value_date,
            detail=detail,
            gateway_reference=line.batch_id,
        )


def _elsewhere(book: PayoutBook, line: Any) -> str:
    """Why it is not the payout's, and what to do. The same whatever becomes of the payout: with
    other words a break that is resolved opens again."""
    payout = book.payouts[line.batch_id]
    said = (
        f"payout {payout.payout_id} is paid from {payout.bank} and this is on {line.account}, so "
        "it is not taken for the payout's"
    )
    if (abs(line.amount_minor), line.currency) != (payout.amount_minor, payout.currency):
        asked = format_amount(payout.amount_minor, payout.currency)
        return f"{said}, which is of {asked}: ask the bank what it is"
    act = "paid" if line.amount_minor < 0 else "returned"
    here, there = (decimal(sign * line.amount_minor, line.currency) for sign in (1, -1))
    return (
        f"{said}. If it is: `paystream payouts {act} {payout.payout_id}`, then `paystream ledger "
        f"post bank:{line.account}={here}:{line.currency} bank:{payout.bank}={there}:"
        f"{line.currency}` unless both are one account (then name it in `[bank_accounts]`), and "
        "resolve this as corrected"
    )

"""Lines of bank statements that are nobody's: no payout of a gateway, and none of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, text

from pipeline.domain.breaks import BANK_LINE_UNKNOWN, ReconciliationBreak, break_id
from pipeline.domain.money import decimal, format_amount
from pipeline.domain.payouts import RETURNED, PayoutBook
from pipeline.domain.reconciliation_decisions import statement_of
from pipeline.ledger.decisions import decisions_at
from pipeline.ledger.payouts import payout_book
from pipeline.ledger.reconciliation.payouts_by_bank import is_paid_from

# Account, statement and line.
LineId = tuple[str, str, str]

_UNKNOWN: Final = text(
    "SELECT * FROM bank_lines WHERE (gateway = '' OR batch_id = '') AND payout = 0 "
    "ORDER BY account, file_id"
)
_TAKEN: Final = text(
    "SELECT DISTINCT batch_id FROM bank_lines WHERE payout = 1 AND batch_id IN :payout_ids"
).bindparams(bindparam("payout_ids", expanding=True))
# In one query, which looks at the whole table.
_IN_LIST_MAX: Final = 500


def unknown_lines(connection: Connection) -> Iterator[ReconciliationBreak]:
    """One break for each; where it names a payout that another account of ours pays, with that."""
    lines = connection.execute(_UNKNOWN).all()
    named = any(line.batch_id and not line.gateway for line in lines)
    book = payout_book(connection) if named else PayoutBook()
    # By the decision: what the bank calls the account that its statement is of.
    numbers: dict[int, str] = {}
    own: list[Any] = []
    elsewhere: set[LineId] = set()
    for line in lines:
        if line.gateway or line.batch_id not in book.payouts:
            continue
        if line.sequence not in numbers:
            (event,) = decisions_at(connection, [line.sequence])
            numbers[line.sequence] = statement_of(event).number
        if is_paid_from(book, line.batch_id, line.account, numbers[line.sequence]):
            own.append(line)
        else:
            elsewhere.add(_id(line))
    nothing = _cancelled(connection, own, book)
    for line in lines:
        if _id(line) in nothing:
            continue
        detail = f"{format_amount(line.amount_minor, line.currency)}: "
        detail += line.text or "without a text"
        if _id(line) in elsewhere:
            detail += f"; {_elsewhere(book, line)}"
        subject = ":".join(_id(line))
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


def _id(line: Any) -> LineId:
    return line.account, line.file_id, line.line_id


def _cancelled(connection: Connection, own: Sequence[Any], book: PayoutBook) -> set[LineId]:
    """Debits and credits, each with one of the other, that are nothing together and that the books
    have neither of: of payouts that a person called returned before the bank had told of them."""
    moves: dict[str, tuple[list[Any], list[Any]]] = {}
    for line in sorted(own, key=lambda each: (each.value_date, each.sequence, _id(each))):
        payout = book.payouts[line.batch_id]
        asked = payout.amount_minor, payout.currency
        if (abs(line.amount_minor), line.currency) == asked:
            debits, credits = moves.setdefault(line.batch_id, ([], []))
            (credits if line.amount_minor > 0 else debits).append(line)
    both = (payout_id for payout_id, (debits, credits) in moves.items() if debits and credits)
    return {
        _id(line)
        for payout_id in _untold(connection, sorted(both), book)
        for pair in zip(*moves[payout_id], strict=False)
        for line in pair
    }


def _untold(connection: Connection, payout_ids: Iterable[str], book: PayoutBook) -> list[str]:
    """Those that the bank was asked for and that came back by a person's word alone: no line was
    taken for their own, so the books have nothing of them at the bank."""
    asked = [
        payout_id
        for payout_id in payout_ids
        if book.payouts[payout_id].state == RETURNED and book.payouts[payout_id].message_id
    ]
    taken = {
        row.batch_id
        for start in range(0, len(asked), _IN_LIST_MAX)
        for row in connection.execute(_TAKEN, {"payout_ids": asked[start : start + _IN_LIST_MAX]})
    }
    return [payout_id for payout_id in asked if payout_id not in taken]


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

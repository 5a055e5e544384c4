"""Lines of a bank statement that are payouts to merchants: paid, or come back.

What moved is posted by the payout's own decision, which stands for one debit of the bank and one
credit at most. Every further line is money that the books have not.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace
from sqlalchemy import Connection, text

from pipeline.domain.clearing import BankLine
from pipeline.domain.payouts import PayoutBook
from pipeline.domain.reconciliation_decisions import BankStatement
from pipeline.errors import UserError
from pipeline.ledger.decisions import lock_decisions
from pipeline.ledger.payouts import payout_book, settle_by_bank

_TAKEN: Final = text(
    "SELECT DISTINCT batch_id, amount_minor > 0 AS credit FROM bank_lines WHERE payout = 1"
)


def with_payouts(
    connection: Connection, statement: BankStatement, actor: str, now_ms: int
) -> BankStatement:
    """Confirm or return the payouts that the lines name, and mark the lines that are theirs.

    A line that no payout fits (another amount, never submitted, debited or credited once already,
    on another account of ours than it is paid from) stays a line that nobody knows: a break, which
    a person looks at.
    """
    candidates = [line for line in statement.lines if line.batch_id and not line.gateway]
    if not candidates:
        return statement
    lock_decisions(connection)
    book = payout_book(connection)
    # Payouts that have a line, as (id, whether it is a credit).
    taken = {(row.batch_id, bool(row.credit)) for row in connection.execute(_TAKEN)}
    made: dict[str, BankLine] = {}
    for line in candidates:
        which = line.batch_id, line.amount_minor > 0
        if line.batch_id not in book.payouts or which in taken:
            continue
        if not is_paid_from(book, line.batch_id, statement.account, statement.number):
            continue
        try:
            event = settle_by_bank(
                connection,
                line.batch_id,
                # What was debited was paid; what is credited with its id has come back.
                returned=line.amount_minor > 0,
                amount_minor=abs(line.amount_minor),
                currency=line.currency,
                booking_date=line.value_date,
                reference=f"{statement.file_id} {line.line_id}",
                actor=actor,
                now_ms=now_ms,
                reason=line.text if line.amount_minor > 0 else "",
                book=book,
            )
        except UserError:
            continue
        if event is None and not _is_awaited(line, book, taken):
            continue
        taken.add(which)
        made[line.line_id] = replace(line, payout=True)
    lines = tuple(made.get(line.line_id, line) for line in statement.lines)
    return replace(statement, lines=lines)


def is_paid_from(book: PayoutBook, payout_id: str, account: str, number: str) -> bool:
    """Whether a statement's account is the one that the payout posts to: by what the books call it,
    or, where the rules call it otherwise or not at all, by the bank's own ``number`` of it."""
    if account == book.payouts[payout_id].bank:
        return True
    paid_from = book.created[payout_id]["paid_from"]
    number = _plain(number)
    return bool(number) and number == _plain(paid_from["iban"] or paid_from["number"])


def _plain(number: str) -> str:
    """Banks group the characters of an account's number as they like."""
    return "".join(filter(str.isalnum, number)).upper()


def _is_awaited(line: BankLine, book: PayoutBook, taken: set[tuple[str, bool]]) -> bool:
    """Whether the books have this line's movement already: a person was faster than the bank, or
    the payment of what came back is told late, so that the two lines cancel out."""
    other = line.batch_id, line.amount_minor < 0
    return line.batch_id in book.paid or other in taken

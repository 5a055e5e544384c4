"""Lines of a bank statement that are payouts to merchants: paid, or come back."""

from __future__ import annotations

from msgspec.structs import replace
from sqlalchemy import Connection

from pipeline.domain.clearing import BankLine
from pipeline.domain.reconciliation_decisions import BankStatement
from pipeline.errors import UserError
from pipeline.ledger.decisions import lock_decisions
from pipeline.ledger.payouts import payout_book, settle_by_bank


def with_payouts(
    connection: Connection, statement: BankStatement, actor: str, now_ms: int
) -> BankStatement:
    """Confirm or return the payouts that the lines name, once however often they are read; the
    statement with the lines that are theirs marked so.

    A line that no payout fits (another amount, never submitted) stays a line that nobody knows:
    a break, which a person looks at.
    """
    candidates = [line for line in statement.lines if line.batch_id and not line.gateway]
    if not candidates:
        return statement
    lock_decisions(connection)
    book = payout_book(connection)
    made: dict[str, BankLine] = {}
    for line in candidates:
        if line.batch_id not in book.payouts:
            continue
        try:
            settle_by_bank(
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
        made[line.line_id] = replace(line, payout=True)
    lines = tuple(made.get(line.line_id, line) for line in statement.lines)
    return replace(statement, lines=lines)

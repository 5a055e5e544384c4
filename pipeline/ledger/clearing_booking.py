"""The entries that decisions of reconciliation post: of a report's rows, of a bank's lines, of what
waits for neither.

An entry of a row is worked out from the row and the entry of the settlement that it clears, which
never changes: so it is the same whenever it is booked, here or in a rebuild.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from pipeline.domain.accounts import GATEWAY_COST, MERCHANT_PAYABLE
from pipeline.domain.clearing import (
    BANK_RECEIPT,
    CLEARING_ENTRY,
    RELEASE_ENTRY,
    BankLine,
    BookedEntry,
    ClearedRow,
    bank_lines,
    clearing_key,
    clearing_lines,
    release_lines,
)
from pipeline.domain.model import LedgerEvent
from pipeline.domain.periods import day_after
from pipeline.domain.posting import NO_GATEWAY, JournalEntry, balanced, entry_id
from pipeline.domain.reconciliation_decisions import (
    CLEARING,
    RELEASE,
    BankStatement,
    clearing_of,
    release_of,
    statement_of,
)
from pipeline.errors import UserError
from pipeline.ledger.statements import AMONG_TEXTS


def _sum_of(kind: str) -> str:
    """What lines post to accounts of one kind. The kind is asked of an entry's own lines, and is
    no condition: PostgreSQL would look for it among all accounts, once for each entry."""
    its_own = f"substr(a.name, 1, {len(kind) + 1}) = '{kind}:'"
    return f"CAST(coalesce(sum(CASE WHEN {its_own} THEN q.amount_minor END), 0) AS BIGINT)"


def _sum_in_entry(kind: str) -> str:
    return (
        f"(SELECT {_sum_of(kind)} FROM postings q JOIN accounts a ON a.account_id = q.account_id "
        "WHERE q.entry_number = e.entry_number)"
    )


# Half a million may be cleared of a day: one look-up for each entry, and no line comes to Python.
_HEAD: Final = (
    "e.entry_id, e.merchant_id, e.order_id, e.payment_id, e.operation_id, e.gateway, "
    "e.gateway_reference"
)
BOOKED_BY_ID: Final[Mapping[str, str]] = {
    # CROSS JOIN keeps the planner from scanning the entries instead of looking each up.
    "sqlite": f"SELECT {_HEAD}, p.currency, p.amount_minor, {_sum_in_entry(GATEWAY_COST)}, "
    f"-{_sum_in_entry(MERCHANT_PAYABLE)} "
    "FROM json_each(?) w CROSS JOIN journal_entries e ON e.entry_id = w.value "
    "CROSS JOIN postings p ON p.entry_number = e.entry_number AND p.line = 1",
    # The lines of each are read once.
    "postgresql": f"SELECT {_HEAD}, l.* FROM journal_entries e CROSS JOIN LATERAL ("
    "SELECT max(q.currency) FILTER (WHERE q.line = 1), "
    f"max(q.amount_minor) FILTER (WHERE q.line = 1), {_sum_of(GATEWAY_COST)}, "
    f"-{_sum_of(MERCHANT_PAYABLE)} "
    "FROM postings q JOIN accounts a ON a.account_id = q.account_id "
    f"WHERE q.entry_number = e.entry_number) l WHERE e.entry_id {AMONG_TEXTS.format('%s')}",
}


def reconciliation_entries(
    connection: Connection, event: LedgerEvent, closed_through: str
) -> list[JournalEntry]:
    """The entries of a decision of ``POSTING_KINDS``; what counts under a day that was closed
    before counts under the first one after it."""
    if event.kind == CLEARING:
        made = _of_rows(connection, event, closed_through)
    elif event.kind == RELEASE:
        made = _of_released(connection, event, closed_through)
    else:
        made = _of_lines(event, closed_through)
    return [balanced(entry) for entry in made]


def reconciliation_ids(connection: Connection, event: LedgerEvent) -> set[str]:
    """The ids of what a decision of ``POSTING_KINDS`` posts, also where what it clears is not there
    any more."""
    if event.kind == CLEARING:
        decided = clearing_of(event)
        booked = _booked(connection, [entry_id(row.settlement_id) for row in decided.rows])
        return {
            _id_of_row(decided.gateway, row)
            for row in decided.rows
            if (settled := _whole(booked, entry_id(row.settlement_id))) is None
            or clearing_lines(settled, row, decided.currency)
        }
    if event.kind == RELEASE:
        entries = release_of(event).entries
        booked = _booked(connection, entries)
        return {
            _id_of_released(known)
            for known in entries
            if (released := _whole(booked, known)) is None or release_lines(released)
        }
    statement = statement_of(event)
    return {_id_of_line(statement, line) for line in statement.lines if is_booked(line)}


def _whole(booked: Mapping[str, BookedEntry], known: str) -> BookedEntry | None:
    """An entry that has its first line: PostgreSQL gives nulls for one that has lost it."""
    found = booked.get(known)
    return found if found is not None and found.currency else None


def _id_of_row(gateway: str, row: ClearedRow) -> str:
    return f"clearing:{clearing_key(gateway, row.file_id, row.row_number)}"


def _id_of_released(known: str) -> str:
    return f"release:{known}"


def _id_of_line(statement: BankStatement, line: BankLine) -> str:
    return f"bank:{statement.account}:{statement.file_id}:{line.line_id}"


def _of_rows(connection: Connection, event: LedgerEvent, closed: str) -> Sequence[JournalEntry]:
    decided = clearing_of(event)
    wanted = [entry_id(row.settlement_id) for row in decided.rows]
    booked = _booked(connection, wanted)
    made = []
    for row, known in zip(decided.rows, wanted, strict=True):
        settled = booked.get(known)
        if settled is None:
            raise UserError(
                f"row {row.row_number} of {row.file_id} clears settlement {row.settlement_id}, "
                "which is not booked here yet: let the ledger catch up, then run "
                "`paystream ledger publish`."
            )
        entry = _of_row(event, settled, row, decided.currency, closed)
        if entry is not None:
            made.append(entry)
    return made


def _booked(connection: Connection, entry_ids: Sequence[str]) -> dict[str, BookedEntry]:
    """Booked entries by their ids; those that are not booked are left out."""
    dialect = connection.dialect.name
    found = connection.exec_driver_sql(BOOKED_BY_ID[dialect], (json.dumps(list(entry_ids)),))
    # The driver's tuples, since they are many.
    cursor: Any = found.cursor
    return {row[0]: BookedEntry(*row) for row in cursor.fetchall()}


def _of_row(
    event: LedgerEvent, settled: BookedEntry, row: ClearedRow, settled_in: str, closed: str
) -> JournalEntry | None:
    lines = clearing_lines(settled, row, settled_in)
    if not lines:
        # It confirms what stands, and moves nothing.
        return None
    return JournalEntry(
        entry_id=_id_of_row(settled.gateway, row),
        settlement_id="",
        kind=CLEARING_ENTRY,
        merchant_id=settled.merchant_id,
        order_id=settled.order_id,
        payment_id=settled.payment_id,
        operation_id=settled.operation_id,
        gateway=settled.gateway,
        gateway_reference=settled.gateway_reference,
        business_date=row.report_date,
        settled_at_ms=event.decided_at_ms,
        postings=lines,
        booked_date=_later(row.report_date, closed),
    )


def _of_released(connection: Connection, event: LedgerEvent, closed: str) -> Sequence[JournalEntry]:
    decided = release_of(event)
    booked = _booked(connection, decided.entries)
    made = []
    for known in decided.entries:
        released = booked.get(known)
        if released is None:
            raise UserError(
                f"entry {known} is to become available and is not booked here yet: let the ledger "
                "catch up, then run `paystream ledger publish`."
            )
        lines = release_lines(released)
        if lines:
            made.append(
                JournalEntry(
                    entry_id=_id_of_released(known),
                    settlement_id="",
                    kind=RELEASE_ENTRY,
                    merchant_id=released.merchant_id,
                    order_id=released.order_id,
                    payment_id=released.payment_id,
                    operation_id=released.operation_id,
                    gateway=NO_GATEWAY,
                    gateway_reference=released.gateway_reference,
                    business_date=decided.date,
                    settled_at_ms=event.decided_at_ms,
                    postings=lines,
                    booked_date=_later(decided.date, closed),
                )
            )
    return made


def _of_lines(event: LedgerEvent, closed: str) -> Sequence[JournalEntry]:
    statement = statement_of(event)
    return [
        JournalEntry(
            entry_id=_id_of_line(statement, line),
            settlement_id="",
            kind=BANK_RECEIPT,
            merchant_id="",
            order_id="",
            payment_id="",
            operation_id=event.event_id,
            gateway=line.gateway or NO_GATEWAY,
            gateway_reference=line.batch_id,
            business_date=line.value_date,
            settled_at_ms=event.decided_at_ms,
            postings=bank_lines(statement.account, line),
            booked_date=_later(line.value_date, closed),
        )
        for line in statement.lines
        if is_booked(line)
    ]


def is_booked(line: BankLine) -> bool:
    """A line that is no gateway's payout to us is looked at by a person first; one of nothing, as
    older statements may have, moves nothing."""
    return bool(line.gateway and line.batch_id and line.amount_minor)


def _later(day: str, closed: str) -> str:
    return day_after(closed) if day <= closed else ""

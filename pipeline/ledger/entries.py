"""Entries as rows: written in bulk, and read back as what they were made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import (
    JSON,
    Connection,
    Select,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects import postgresql

from pipeline.domain.posting import JournalEntry, Posting
from pipeline.ledger.statements import Row, statements_for
from pipeline.ledger.tables import OF_SETTLEMENT, accounts, journal_entries, postings

# Accounts whose number is kept in memory: about 20 MB.
_ACCOUNTS_CACHED_MAX: Final = 200_000

_HEAD: Final = tuple(
    journal_entries.c[name]
    for name in (
        "entry_number", "entry_id", "settlement_id", "kind", "merchant_id", "order_id",
        "payment_id", "operation_id", "gateway", "gateway_reference", "business_date",
        "settled_at_ms", "terms", "booked_date",
    )
)  # fmt: skip

# Debits and credits by account number and currency.
Sums = dict[tuple[int, str], list[int]]


class Item(Struct, frozen=True, gc=False):
    """An entry to book and where its event lies; ``part`` counts the entries of one event."""

    partition: int
    offset: int
    entry: JournalEntry
    part: int = 0


class EntryWriter:
    """Inserts entries, postings and what they add to balances; remembers accounts' numbers."""

    def __init__(self, dialect_name: str, now_ms: Callable[[], int]) -> None:
        self._statements = statements_for(dialect_name)
        self._now_ms = now_ms
        self._accounts: dict[str, int] = {}
        # Opened in a transaction that has not ended yet.
        self._opened: dict[str, int] = {}

    def known(self, connection: Connection, entry_ids: Sequence[str]) -> set[str]:
        """Which of these entries are booked."""
        return self._statements.known(connection, entry_ids) if entry_ids else set()

    def insert(self, connection: Connection, topic: str, items: Sequence[Item]) -> Sums:
        """Write the entries of one topic, in the connection's transaction; what ``add_balances``
        has to add."""
        account_ids = self._account_ids(connection, items)
        numbers = self._statements.entry_numbers(connection, len(items))
        posted_at_ms = self._now_ms()
        posting_rows: list[Row] = []
        entry_rows: list[Row] = []
        sums: Sums = {}
        for number, item in zip(numbers, items, strict=True):
            e = item.entry
            for line, posting in enumerate(e.postings, 1):
                account_id = account_ids[posting.account]
                currency = posting.currency
                amount_minor = posting.amount_minor
                posting_rows.append((number, line, account_id, currency, amount_minor))
                total = sums.get((account_id, currency))
                if total is None:
                    total = sums[account_id, currency] = [0, 0]
                if amount_minor > 0:
                    total[0] += amount_minor
                else:
                    total[1] -= amount_minor
            entry_rows.append(
                (
                    number,
                    e.entry_id,
                    e.settlement_id,
                    e.kind,
                    e.merchant_id,
                    e.order_id,
                    e.payment_id,
                    e.operation_id,
                    e.gateway,
                    e.gateway_reference,
                    e.business_date,
                    topic,
                    item.partition,
                    item.offset,
                    e.settled_at_ms,
                    posted_at_ms,
                    len(e.postings),
                    item.part,
                    e.booked_date,
                    e.terms,
                )
            )
        self._statements.insert(connection, posting_rows, entry_rows)
        return sums

    def add_balances(self, connection: Connection, sums: Sums) -> None:
        """Last in a transaction, once a batch and in one order: an account that many share is
        locked from here to the commit, and no longer."""
        self._statements.add_balances(
            connection, [(*key, debits, credits) for key, (debits, credits) in sorted(sums.items())]
        )

    def committed(self) -> None:
        """The accounts opened since are there to stay."""
        if len(self._accounts) + len(self._opened) > _ACCOUNTS_CACHED_MAX:
            self._accounts.clear()
        self._accounts.update(self._opened)
        self._opened.clear()

    def rolled_back(self) -> None:
        self._opened.clear()

    def _account_ids(self, connection: Connection, items: Sequence[Item]) -> Mapping[str, int]:
        cached = self._accounts
        names = {posting.account for item in items for posting in item.entry.postings}
        missing = sorted(names - cached.keys())
        if not missing:
            return cached
        opened = self._opened
        opened.update(_account_ids_of(connection, missing))
        new = [name for name in missing if name not in opened]
        if new:
            if connection.dialect.name == "postgresql":
                statement: Any = postgresql.insert(accounts).on_conflict_do_nothing()
            else:
                statement = insert(accounts)
            connection.execute(statement, [{"name": name} for name in new])
            opened.update(_account_ids_of(connection, new))
        return {**cached, **opened}


def entries_by_id(connection: Connection, entry_ids: Sequence[str]) -> dict[str, JournalEntry]:
    """Booked entries by their ids; those that are not booked are left out."""
    return {
        entry.entry_id: entry
        for entry in _entries(connection, journal_entries.c.entry_id, entry_ids)
    }


def entries_of_payments(
    connection: Connection, payment_ids: Sequence[str]
) -> dict[str, list[JournalEntry]]:
    """All settlements that are booked of each payment, in the order of the log."""
    found: dict[str, list[JournalEntry]] = {}
    # In the index's own words, or no planner would take it.
    settled = text(OF_SETTLEMENT.format("journal_entries."))
    for entry in _entries(connection, journal_entries.c.payment_id, payment_ids, settled):
        found.setdefault(entry.payment_id, []).append(entry)
    return found


def _entries(
    connection: Connection, column: Any, values: Sequence[str], *those: Any
) -> list[JournalEntry]:
    e, p = journal_entries.c, postings.c
    dialect = connection.dialect.name
    wanted, given = and_(_among(dialect, column), *those), _values(values)
    heads = connection.execute(
        select(*_HEAD).where(wanted).order_by(e.source_offset, e.source_part, e.entry_number), given
    ).all()
    rows = connection.execute(
        select(p.entry_number, accounts.c.name, p.currency, p.amount_minor)
        .join(journal_entries, e.entry_number == p.entry_number)
        .join(accounts, accounts.c.account_id == p.account_id)
        .where(wanted)
        .order_by(p.entry_number, p.line),
        given,
    ).all()
    lines: dict[int, list[Posting]] = {}
    for number, *posting in rows:
        lines.setdefault(number, []).append(Posting(*posting))
    return [_entry(row, tuple(lines[row.entry_number])) for row in heads]


def _entry(row: Any, lines: tuple[Posting, ...]) -> JournalEntry:
    return JournalEntry(
        entry_id=row.entry_id,
        settlement_id=row.settlement_id,
        kind=row.kind,
        merchant_id=row.merchant_id,
        order_id=row.order_id,
        payment_id=row.payment_id,
        operation_id=row.operation_id,
        gateway=row.gateway,
        gateway_reference=row.gateway_reference,
        business_date=row.business_date,
        settled_at_ms=row.settled_at_ms,
        postings=lines,
        payment_method=row.terms.rpartition("/")[2],
        terms=row.terms,
        booked_date=row.booked_date,
    )


def _account_ids_of(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    dialect = connection.dialect.name
    rows = connection.execute(_accounts_named(dialect), _values(names))
    return {row.name: row.account_id for row in rows}


@cache
def _accounts_named(dialect_name: str) -> Select[Any]:
    among = _among(dialect_name, accounts.c.name)
    return select(accounts.c.name, accounts.c.account_id).where(among)


def _among(dialect_name: str, column: Any) -> Any:
    """The condition that the column has one of the values given with the execution."""
    # One value however many they are, so one plan for all; the planner looks each up in the
    # column's index.
    if dialect_name == "postgresql":
        given = func.json_array_elements_text(cast(bindparam("values", type_=Text), JSON))
        return column == any_(func.array(select(given).scalar_subquery()))
    wanted = func.json_each(bindparam("values")).table_valued("value")
    return column.in_(select(wanted.c.value))


def _values(values: Sequence[str]) -> dict[str, str]:
    """The values of ``_among``, as its statement is given them."""
    return {"values": json.dumps(list(values))}

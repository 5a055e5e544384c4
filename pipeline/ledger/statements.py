"""The statements that run for every settlement, in the form each database does fastest.

SQLite: ``executemany`` with plain tuples. PostgreSQL: COPY. Everything else is written once, in
SQLAlchemy's own language, in ``journal``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from sqlalchemy import Connection

from pipeline.ledger.tables import journal_entries, postings

# One tuple for each row, in the order of the table's columns.
Row = tuple[Any, ...]

# The condition that a column of PostgreSQL has one of the texts that are given as a JSON list. The
# driver makes an array of a list value by value, at more than what looking one up costs.
AMONG_TEXTS: Final = "= ANY(ARRAY(SELECT json_array_elements_text(CAST({0} AS json))))"

_ENTRY_COLUMNS: Final = ", ".join(column.name for column in journal_entries.columns)
_POSTING_COLUMNS: Final = ", ".join(column.name for column in postings.columns)


class Statements(Protocol):
    """What posting a batch asks of a database; all within the connection's transaction."""

    def known(self, connection: Connection, entry_ids: Sequence[str]) -> set[str]:
        """Which of these entries are booked."""
        ...

    def entry_numbers(self, connection: Connection, count: int) -> Sequence[int]:
        """Numbers that no entry and no posting has."""
        ...

    def insert(
        self, connection: Connection, posting_rows: Sequence[Row], entry_rows: Sequence[Row]
    ) -> None:
        """Insert postings, then the entries that seal them."""
        ...

    def add_balances(self, connection: Connection, rows: Iterable[Row]) -> None:
        """Add (account_id, currency, debits_minor, credits_minor), in the order given."""
        ...


def statements_for(dialect_name: str) -> Statements:
    return SqliteStatements() if dialect_name == "sqlite" else PostgresStatements()


class SqliteStatements:
    """One writer at a time, so the next number is the highest plus one."""

    _INSERT_POSTING: Final = f"INSERT INTO postings ({_POSTING_COLUMNS}) VALUES (?, ?, ?, ?, ?)"
    _INSERT_ENTRY: Final = (
        f"INSERT INTO journal_entries ({_ENTRY_COLUMNS}) "
        f"VALUES ({', '.join('?' * len(journal_entries.columns))})"
    )

    def known(self, connection: Connection, entry_ids: Sequence[str]) -> set[str]:
        # CROSS JOIN keeps the planner from scanning the entries instead of looking each up.
        found = connection.exec_driver_sql(
            "SELECT e.entry_id FROM json_each(?) wanted CROSS JOIN journal_entries e "
            "ON e.entry_id = wanted.value",
            (json.dumps(entry_ids),),
        )
        return set(found.scalars())

    def entry_numbers(self, connection: Connection, count: int) -> Sequence[int]:
        # Postings too: lines without an entry, left by a connection that does not check foreign
        # keys, must not end up in somebody's entry.
        highest = connection.exec_driver_sql(
            "SELECT max((SELECT coalesce(max(entry_number), 0) FROM journal_entries), "
            "(SELECT coalesce(max(entry_number), 0) FROM postings))"
        ).scalar_one()
        return range(highest + 1, highest + 1 + count)

    def insert(
        self, connection: Connection, posting_rows: Sequence[Row], entry_rows: Sequence[Row]
    ) -> None:
        connection.exec_driver_sql(self._INSERT_POSTING, list(posting_rows))
        connection.exec_driver_sql(self._INSERT_ENTRY, list(entry_rows))

    def add_balances(self, connection: Connection, rows: Iterable[Row]) -> None:
        connection.exec_driver_sql(
            "INSERT INTO balances (account_id, currency, debits_minor, credits_minor) "
            "VALUES (?, ?, ?, ?) ON CONFLICT (account_id, currency) DO UPDATE SET "
            "debits_minor = debits_minor + excluded.debits_minor, "
            "credits_minor = credits_minor + excluded.credits_minor",
            list(rows),
        )


class PostgresStatements:
    """Several writers at once; numbers come from a sequence."""

    def known(self, connection: Connection, entry_ids: Sequence[str]) -> set[str]:
        found = connection.exec_driver_sql(
            f"SELECT entry_id FROM journal_entries WHERE entry_id {AMONG_TEXTS.format('%s')}",
            (json.dumps(entry_ids),),
        )
        return set(found.scalars())

    def entry_numbers(self, connection: Connection, count: int) -> Sequence[int]:
        found: list[int] = connection.exec_driver_sql(
            "SELECT array_agg(nextval('journal_entry_numbers')) FROM generate_series(1, %s)",
            (count,),
        ).scalar_one()
        return found

    def insert(
        self, connection: Connection, posting_rows: Sequence[Row], entry_rows: Sequence[Row]
    ) -> None:
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor:
            for table, columns, rows in (
                (postings.name, _POSTING_COLUMNS, posting_rows),
                (journal_entries.name, _ENTRY_COLUMNS, entry_rows),
            ):
                with cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)
        # What is checked at the commit is checked now: the balances are locked after it, and a
        # commit that still had to look at every line would keep other writers from them.
        connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")

    def add_balances(self, connection: Connection, rows: Iterable[Row]) -> None:
        # One statement for all of them, which takes their locks in the order of the arrays.
        columns = [list(column) for column in zip(*rows, strict=True)]
        connection.exec_driver_sql(
            "INSERT INTO balances (account_id, currency, debits_minor, credits_minor) "
            "SELECT * FROM unnest(%s::int[], %s::text[], %s::bigint[], %s::bigint[]) "
            "ON CONFLICT (account_id, currency) DO UPDATE SET "
            "debits_minor = balances.debits_minor + excluded.debits_minor, "
            "credits_minor = balances.credits_minor + excluded.credits_minor",
            tuple(columns),
        )

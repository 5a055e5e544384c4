"""Booking settlements: entries, balances and the topic's offsets in one database transaction.

A batch is booked whole or not at all. The stored offset of each partition is compared and set, so
of two writers that read the same records one books them and the other is told ``OffsetMoved``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pipeline.domain.invariant import invariant
from pipeline.domain.posting import JournalEntry, Posting
from pipeline.ledger.database import reading
from pipeline.ledger.errors import (
    Conflict,
    LedgerUnavailable,
    OffsetMoved,
    SettlementConflicts,
    SourceChanged,
)
from pipeline.ledger.statements import Row, statements_for
from pipeline.ledger.tables import accounts, consumer_offsets, journal_entries, postings

# Two writers may book the same settlement from two partitions at once (an error upstream); one of
# them meets the other's key only at the insert, and sees it at the next try.
_RACES_MAX = 3
# Merchants whose account number is kept in memory: about 20 MB.
_ACCOUNTS_CACHED_MAX = 200_000
# Values in one IN list: below SQLite's limit of variables in every build.
_IN_LIST_MAX = 500


class Source(Struct, frozen=True):
    """Which topic of which cluster is booked; the ids tell a recreated one from the old."""

    cluster_id: str
    topic: str
    topic_id: str


class Item(Struct, frozen=True, gc=False):
    """An entry to book and where its settlement lies."""

    partition: int
    offset: int
    entry: JournalEntry


class Progress(Struct, frozen=True, gc=False):
    """A partition's stored offset as this writer knows it, and what it becomes."""

    expected: int
    next_offset: int


class Posted(Struct, frozen=True):
    """What a batch did. ``duplicates`` are the items that were booked before; none is twice."""

    posted: int
    duplicates: tuple[Item, ...]


class Journal:
    """The writer of the books. Used by one thread; others have journals of their own.

    ``on_step`` is told the name of each step taken within the transaction, for tests that end the
    process there.
    """

    def __init__(
        self,
        engine: Engine,
        source: Source,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        on_step: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._engine = engine
        self._source = source
        self._now_ms = now_ms
        self._on_step = on_step
        self._statements = statements_for(engine.dialect.name)
        self._driver: Any = engine.dialect.loaded_dbapi
        self._accounts: dict[str, int] = {}

    # Offsets ------------------------------------------------------------------------------------

    def stored_offset(self, partition: int) -> int | None:
        """The next offset to book, or None for a partition never booked.

        SourceChanged when the stored one is of another cluster or topic: its numbers would mean
        other records. LedgerUnavailable when the database is away.
        """
        with self._available(), reading(self._engine) as connection:
            row = connection.execute(
                select(consumer_offsets).where(
                    consumer_offsets.c.topic == self._source.topic,
                    consumer_offsets.c.partition == partition,
                )
            ).one_or_none()
        if row is None:
            return None
        here = self._source
        for what, stored, found in (
            ("cluster", row.cluster_id, here.cluster_id),
            ("topic id", row.topic_id, here.topic_id),
        ):
            if stored != found:
                raise SourceChanged(
                    f"the ledger has booked {here.topic}[{partition}] of {what} {stored}, but "
                    f"{what} {found} is connected: offset {row.next_offset} means other records "
                    "there. Connect the cluster this ledger belongs to, or use a new ledger; see "
                    "docs/ledger.md."
                )
        return int(row.next_offset)

    def begin_partition(self, partition: int, next_offset: int) -> None:
        """Store the first offset of a partition never booked; one that is stored stays."""
        with self._available():
            try:
                with self._engine.begin() as connection:
                    connection.execute(
                        insert(consumer_offsets).values(
                            topic=self._source.topic,
                            partition=partition,
                            cluster_id=self._source.cluster_id,
                            topic_id=self._source.topic_id,
                            next_offset=next_offset,
                            updated_at_ms=self._now_ms(),
                        )
                    )
            except DBAPIError as error:
                # Another writer was first: its offset counts.
                if not self._is_refusal(error):
                    raise

    # Booking ------------------------------------------------------------------------------------

    def post(self, items: Sequence[Item], progress: Mapping[int, Progress]) -> Posted:
        """Book the items that are new and move the offsets, in one transaction.

        An entry that is booked with the same content is a duplicate: skipped and reported. With
        other content: SettlementConflicts, nothing is booked, and the caller takes it out of the
        batch. OffsetMoved, LedgerUnavailable: nothing is booked either (see ``errors``).
        """
        for item in items:
            moved = progress.get(item.partition)
            invariant(
                moved is not None and moved.expected <= item.offset < moved.next_offset,
                "every item lies between its partition's old and new offset",
            )
        for _ in range(_RACES_MAX - 1):
            try:
                return self._post_once(items, progress)
            except (DBAPIError, self._driver.Error) as error:
                if not self._is_refusal(error):
                    raise
        return self._post_once(items, progress)

    def _post_once(self, items: Sequence[Item], progress: Mapping[int, Progress]) -> Posted:
        opened: dict[str, int] = {}
        with self._available(), self._engine.begin() as connection:
            self._move_offsets(connection, progress)
            self._on_step("ledger.offsets_set")
            fresh, duplicates = self._sort_out(connection, items)
            if fresh:
                self._insert(connection, fresh, opened)
            self._on_step("ledger.entries_inserted")
        # Known only now that they are committed.
        if len(self._accounts) + len(opened) > _ACCOUNTS_CACHED_MAX:
            self._accounts.clear()
        self._accounts.update(opened)
        return Posted(len(fresh), tuple(duplicates))

    def _move_offsets(self, connection: Connection, progress: Mapping[int, Progress]) -> None:
        """Compare and set. First, since a writer that lost its partitions should stop at once."""
        source = self._source
        now_ms = self._now_ms()
        # In one order everywhere: two writers that wait for each other's rows would deadlock.
        for partition in sorted(progress):
            moved = progress[partition]
            changed = connection.execute(
                update(consumer_offsets)
                .where(
                    consumer_offsets.c.topic == source.topic,
                    consumer_offsets.c.partition == partition,
                    consumer_offsets.c.cluster_id == source.cluster_id,
                    consumer_offsets.c.topic_id == source.topic_id,
                    consumer_offsets.c.next_offset == moved.expected,
                )
                .values(next_offset=moved.next_offset, updated_at_ms=now_ms)
            ).rowcount
            if changed != 1:
                raise OffsetMoved(partition, moved.expected)

    def _sort_out(
        self, connection: Connection, items: Sequence[Item]
    ) -> tuple[list[Item], list[Item]]:
        """New items and duplicates; SettlementConflicts if an item is neither."""
        by_id: dict[str, Item] = {}
        again: list[Item] = []
        for item in items:
            if by_id.setdefault(item.entry.entry_id, item) is not item:
                again.append(item)
        known = self._statements.known(connection, list(by_id)) if by_id else set()
        if not known and not again:
            return list(items), []
        booked = _booked_entries(connection, sorted(known))
        fresh: list[Item] = []
        duplicates: list[Item] = []
        conflicts: list[Conflict] = []
        for item in items:
            first = by_id[item.entry.entry_id]
            standing = booked.get(item.entry.entry_id)
            if standing is None:
                if first is item:
                    fresh.append(item)
                    continue
                standing = first.entry
            differing = _differing_fields(standing, item.entry)
            if differing:
                conflicts.append(
                    Conflict(
                        item.partition,
                        item.offset,
                        item.entry.settlement_id,
                        f"booked with other content: {', '.join(differing)}",
                    )
                )
            else:
                duplicates.append(item)
        if conflicts:
            raise SettlementConflicts(conflicts)
        return fresh, duplicates

    def _insert(
        self, connection: Connection, items: Sequence[Item], opened: dict[str, int]
    ) -> None:
        account_ids = self._account_ids(connection, items, opened)
        numbers = self._statements.entry_numbers(connection, len(items))
        posted_at_ms = self._now_ms()
        topic = self._source.topic
        posting_rows: list[Row] = []
        entry_rows: list[Row] = []
        sums: dict[tuple[int, str], list[int]] = {}
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
                )
            )
        self._statements.insert(connection, posting_rows, entry_rows)
        # Last and in one order: a gateway's account is shared by every writer, and its row stays
        # locked from here to the commit.
        self._statements.add_balances(
            connection, [(*key, debits, credits) for key, (debits, credits) in sorted(sums.items())]
        )

    def _account_ids(
        self, connection: Connection, items: Sequence[Item], opened: dict[str, int]
    ) -> Mapping[str, int]:
        cached = self._accounts
        names = {posting.account for item in items for posting in item.entry.postings}
        missing = sorted(names - cached.keys())
        if not missing:
            return cached
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

    def _is_refusal(self, error: Exception) -> bool:
        """Whether the database is there and refuses the rows: a key exists, a guard objects."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        return isinstance(cause, self._driver.IntegrityError)

    @contextmanager
    def _available(self) -> Iterator[None]:
        """Turn what may pass by itself into LedgerUnavailable; let everything else through."""
        try:
            yield
        except PoolTimeout as error:
            raise LedgerUnavailable(str(error)) from error
        except (DBAPIError, self._driver.Error) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            lost = isinstance(error, DBAPIError) and error.connection_invalidated
            if not lost and not isinstance(
                cause, (self._driver.OperationalError, self._driver.InterfaceError)
            ):
                raise
            # Connections of a server that went away are of no use any more.
            self._engine.dispose()
            raise LedgerUnavailable(str(cause).strip()) from error


# Equal in every copy of one settlement. Its times may differ: the same movement can be proven
# twice, by the answer to a charge and by the answer to an inquiry.
_COMPARED: Final = (
    "kind", "merchant_id", "order_id", "payment_id", "operation_id", "gateway",
    "gateway_reference", "business_date", "postings",
)  # fmt: skip


def _differing_fields(booked: JournalEntry, entry: JournalEntry) -> list[str]:
    return [name for name in _COMPARED if getattr(booked, name) != getattr(entry, name)]


def _booked_entries(connection: Connection, entry_ids: Sequence[str]) -> dict[str, JournalEntry]:
    found: dict[str, JournalEntry] = {}
    for start in range(0, len(entry_ids), _IN_LIST_MAX):
        rows = connection.execute(
            select(
                journal_entries,
                accounts.c.name,
                postings.c.currency,
                postings.c.amount_minor,
            )
            .join(postings, postings.c.entry_number == journal_entries.c.entry_number)
            .join(accounts, accounts.c.account_id == postings.c.account_id)
            .where(journal_entries.c.entry_id.in_(entry_ids[start : start + _IN_LIST_MAX]))
            .order_by(journal_entries.c.entry_number, postings.c.line)
        )
        lines: dict[str, list[Posting]] = {}
        heads: dict[str, Any] = {}
        for row in rows:
            heads[row.entry_id] = row
            lines.setdefault(row.entry_id, []).append(
                Posting(row.name, row.currency, row.amount_minor)
            )
        for entry_id, row in heads.items():
            found[entry_id] = JournalEntry(
                entry_id=entry_id,
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
                postings=tuple(lines[entry_id]),
            )
    return found


def _account_ids_of(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for start in range(0, len(names), _IN_LIST_MAX):
        rows = connection.execute(
            select(accounts.c.name, accounts.c.account_id).where(
                accounts.c.name.in_(names[start : start + _IN_LIST_MAX])
            )
        )
        found.update({row.name: row.account_id for row in rows})
    return found

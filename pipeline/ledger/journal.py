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
from msgspec.structs import replace
from sqlalchemy import Connection, Engine, bindparam, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pipeline.domain.decisions import Rules
from pipeline.domain.fees import UNKNOWN_PAYMENT, after, books_of, priced
from pipeline.domain.invariant import invariant
from pipeline.domain.model import LedgerEvent
from pipeline.domain.periods import booked_date
from pipeline.domain.posting import JournalEntry
from pipeline.ledger.checksums import held_offsets, offset_row, require_unchanged
from pipeline.ledger.database import reading
from pipeline.ledger.decisions import adopt, current_rules, lock_decisions
from pipeline.ledger.entries import EntryWriter, Item, entries_by_id, entries_of_payments
from pipeline.ledger.errors import (
    Conflict,
    LedgerUnavailable,
    OffsetMoved,
    SettlementConflicts,
    SourceChanged,
)
from pipeline.ledger.tables import consumer_offsets

# Two writers may book the same settlement from two partitions at once (an error upstream); one of
# them meets the other's key only at the insert, and sees it at the next try.
_RACES_MAX = 3
# Made once, since every partition that is given to a writer is asked for.
_OFFSET_OF_PARTITION: Final = select(consumer_offsets).where(
    consumer_offsets.c.topic == bindparam("of_topic"),
    consumer_offsets.c.partition == bindparam("of_partition"),
)
# Made once, since each batch moves each of its partitions: the offset as this writer knows it, of
# this topic and no other that had its name. What it becomes is given with the execution.
_MOVE_OFFSET: Final = update(consumer_offsets).where(
    consumer_offsets.c.topic == bindparam("of_topic"),
    consumer_offsets.c.partition == bindparam("of_partition"),
    consumer_offsets.c.cluster_id == bindparam("of_cluster_id"),
    consumer_offsets.c.topic_id == bindparam("of_topic_id"),
    consumer_offsets.c.next_offset == bindparam("expected"),
)


class Source(Struct, frozen=True):
    """Which topic of which cluster is booked; the ids tell a recreated one from the old."""

    cluster_id: str
    topic: str
    topic_id: str


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
        self._writer = EntryWriter(engine.dialect.name, now_ms)
        self._driver: Any = engine.dialect.loaded_dbapi
        self._rules = Rules()

    # Offsets ------------------------------------------------------------------------------------

    def stored_offset(self, partition: int) -> int | None:
        """The next offset to book, or None for a partition never booked.

        SourceChanged when the stored one is of another cluster or topic: its numbers would mean
        other records. OffsetChanged when the row does not fit its checksum, LedgerUnavailable when
        the database is away.
        """
        with self._available(), reading(self._engine) as connection:
            asked = {"of_topic": self._source.topic, "of_partition": partition}
            row = connection.execute(_OFFSET_OF_PARTITION, asked).one_or_none()
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
        require_unchanged(row)
        return int(row.next_offset)

    def begin_partition(self, partition: int, next_offset: int) -> None:
        """Store the first offset of a partition never booked; one that is stored stays.

        Waits for a decision that is being made: it counts partitions that are not there as booked
        up to nothing, so what is booked of this one comes after it.
        """
        with self._available():
            try:
                with self._engine.begin() as connection:
                    lock_decisions(connection)
                    connection.execute(
                        insert(consumer_offsets).values(
                            self._offset_row(partition, next_offset, self._now_ms(), 0)
                        )
                    )
            except DBAPIError as error:
                # Another writer was first: its offset counts.
                if not self._is_refusal(error):
                    raise

    def adopt(self, events: Sequence[LedgerEvent]) -> int:
        """Take over the decisions that this ledger does not know yet; how many. LedgerUnavailable
        when the database is away, UserError when the two contradict each other."""
        with self._available(), self._engine.begin() as connection:
            return adopt(connection, events)

    # Booking ------------------------------------------------------------------------------------

    def post(self, items: Sequence[Item], progress: Mapping[int, Progress]) -> Posted:
        """Book the items that are new and move the offsets, in one transaction.

        An entry that is booked with the same content is a duplicate: skipped and reported. With
        other content: SettlementConflicts, nothing is booked, and the caller takes it out of the
        batch. OffsetMoved, OffsetChanged, LedgerUnavailable: nothing is booked either (see
        ``errors`` and ``checksums``).
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
        try:
            with self._available(), self._engine.begin() as connection:
                self._move_offsets(connection, progress, items)
                self._on_step("ledger.offsets_set")
                fresh, duplicates = self._sort_out(connection, items)
                if fresh:
                    made = self._made(connection, fresh)
                    sums = self._writer.insert(connection, self._source.topic, made)
                    # Everything is checked, and nothing is locked that another writer wants.
                    self._on_step("ledger.entries_checked")
                    self._writer.add_balances(connection, sums)
                self._on_step("ledger.entries_inserted")
        except BaseException:
            self._writer.rolled_back()
            raise
        self._writer.committed()
        return Posted(len(fresh), tuple(duplicates))

    def _made(self, connection: Connection, items: Sequence[Item]) -> Sequence[Item]:
        """The entries as the rules in force make them: fees, costs, the day they count under.

        The rules are read after the offsets were set: a decision that counts for these records was
        committed before, and one that is being made waits for this batch.
        """
        self._rules = rules = current_rules(connection, self._rules)
        if rules.terms.schedules:
            items = self._priced(connection, items, rules)
        if rules.closings:
            items = [
                replace(item, entry=replace(item.entry, booked_date=later))
                if (
                    later := booked_date(
                        item.entry.business_date, item.partition, item.offset, rules.closings
                    )
                )
                else item
                for item in items
            ]
        return items

    def _priced(
        self, connection: Connection, items: Sequence[Item], rules: Rules
    ) -> Sequence[Item]:
        payments = list({item.entry.payment_id for item in items})
        books = {
            payment_id: books_of(entries)
            for payment_id, entries in entries_of_payments(connection, payments).items()
        }
        made = []
        for item in items:
            payment = item.entry.payment_id
            before = books.get(payment, UNKNOWN_PAYMENT)
            entry = priced(item.entry, before, rules.terms)
            books[payment] = after(before, entry)
            made.append(replace(item, entry=entry))
        return made

    def _move_offsets(
        self, connection: Connection, progress: Mapping[int, Progress], items: Sequence[Item]
    ) -> None:
        """Compare and set. First, since a writer that lost its partitions should stop at once."""
        source = self._source
        now_ms = self._now_ms()
        latest_ms: dict[int, int] = {}
        for item in items:
            settled_ms = item.entry.settled_at_ms
            if settled_ms > latest_ms.get(item.partition, 0):
                latest_ms[item.partition] = settled_ms
        before = held_offsets(connection, source.topic, *progress)
        for partition in sorted(progress):
            moved = progress[partition]
            row = before.get(partition)
            through_ms = max(row.settled_through_ms if row else 0, latest_ms.get(partition, 0))
            changed = connection.execute(
                _MOVE_OFFSET,
                {
                    "of_topic": source.topic,
                    "of_partition": partition,
                    "of_cluster_id": source.cluster_id,
                    "of_topic_id": source.topic_id,
                    "expected": moved.expected,
                    **self._offset_row(partition, moved.next_offset, now_ms, through_ms),
                },
            ).rowcount
            if changed != 1:
                raise OffsetMoved(partition, moved.expected)

    def _offset_row(
        self, partition: int, next_offset: int, now_ms: int, settled_through_ms: int
    ) -> dict[str, Any]:
        source = self._source
        return offset_row(
            source.topic,
            partition,
            source.cluster_id,
            source.topic_id,
            next_offset=next_offset,
            updated_at_ms=now_ms,
            settled_through_ms=settled_through_ms,
        )

    def _sort_out(
        self, connection: Connection, items: Sequence[Item]
    ) -> tuple[list[Item], list[Item]]:
        """New items and duplicates; SettlementConflicts if an item is neither."""
        by_id: dict[str, Item] = {}
        again: list[Item] = []
        for item in items:
            if by_id.setdefault(item.entry.entry_id, item) is not item:
                again.append(item)
        known = self._writer.known(connection, list(by_id))
        if not known and not again:
            return list(items), []
        booked = entries_by_id(connection, sorted(known))
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
    "gateway_reference", "business_date",
)  # fmt: skip
# The movement itself; what follows it was worked out when it was booked.
_MOVEMENT: Final = slice(2)


def _differing_fields(booked: JournalEntry, entry: JournalEntry) -> list[str]:
    found = [name for name in _COMPARED if getattr(booked, name) != getattr(entry, name)]
    if booked.postings[_MOVEMENT] != entry.postings[_MOVEMENT]:
        found.append("postings")
    return found

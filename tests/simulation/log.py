"""A Kafka cluster in memory: partitions, transactions and their markers, and the offsets topic.

What is kept of Kafka: a producer id's epoch fences what is older; the records of a transaction are
in the log before its end is known, and a read_committed reader stops at the first of them (the last
stable offset); the end of a transaction is one decision, but its markers reach each partition, and
the offsets of each group, at times of their own; an EndTxn that arrives late ends whatever
transaction its epoch has open (transaction version 1: the epoch is not raised by each commit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from msgspec import Struct

from tests.simulation.world import World

OPEN, VISIBLE, ABORTED, CONTROL = range(4)

# How long the marker of a transaction takes to reach a partition.
MARKER_S_MAX = 0.03
# What a call takes at most; what has been written arrives after this at most, with what was
# written meanwhile.
CALL_S_MAX = 0.06
FETCH_S_MAX = 0.3
# By how much the clock of a process differs from the brokers' at most.
SKEW_S_MAX = 2.5

# The coordinator's states.
EMPTY, ONGOING, PREPARE_COMMIT, PREPARE_ABORT, COMMITTED, TAKEN_BACK = (
    "empty",
    "ongoing",
    "prepare commit",
    "prepare abort",
    "complete commit",
    "complete abort",
)

TransactionId = str
GroupPartition = tuple[str, str, int]


class Refused(Exception):
    """The broker's answer is an error; ``name`` is Kafka's."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Intent:
    """What a client believes to be one transaction: begun, written to, and ended by it.

    ``fates`` collects what became of its parts in the log. For the auditor, who compares.
    """

    __slots__ = ("believed", "fates", "number", "offsets", "owner", "written")

    def __init__(self, owner: str, number: int) -> None:
        self.owner = owner
        self.number = number
        self.believed: str | None = None
        self.fates: set[bool] = set()
        self.offsets: dict[GroupPartition, int] = {}
        self.written = 0

    def __str__(self) -> str:
        return f"transaction {self.number} of {self.owner}"


class Record(Struct, eq=False):
    """A record of one partition; ``headers`` are as the client was given them."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Any
    state: int
    intent: Intent | None


class Partition:
    """One log. ``stable``: the last stable offset."""

    __slots__ = ("cluster", "delay_s", "number", "open", "readers", "records", "stable", "topic")

    def __init__(self, cluster: Cluster, topic: str, number: int, delay_s: float) -> None:
        self.cluster = cluster
        self.topic = topic
        self.number = number
        self.records: list[Record] = []
        # The open records of each producer id.
        self.open: dict[int, list[Record]] = {}
        self.stable = 0
        # Clients that read here: told when there is more.
        self.readers: dict[Any, None] = {}
        # A tier's: its readers are told when a record is due as well.
        self.delay_s = delay_s

    @property
    def end(self) -> int:
        return len(self.records)

    def append(
        self, key: bytes | None, value: bytes | None, headers: Any, state: int, intent: Any
    ) -> Record:
        records = self.records
        now_ms = int(self.cluster.world.now_s * 1000)
        record = Record(len(records), now_ms, key, value, headers, state, intent)
        records.append(record)
        return record

    def settle(self, pid: int, commit: bool) -> None:
        """A marker: what this producer has open here gets its end."""
        told = None
        state = VISIBLE if commit else ABORTED
        for record in self.open.pop(pid, ()):
            record.state = state
            intent = record.intent
            if intent is not told and intent is not None:
                told = intent
                self.cluster.on_fate(intent, commit)
        self.append(None, None, None, CONTROL, None)
        self.advance()

    def advance(self) -> None:
        """Move the last stable offset, and tell those who wait for it."""
        before = self.stable
        records = self.records
        after = len(records)
        if self.open:
            for opened in self.open.values():
                first = opened[0].offset
                if first < after:
                    after = first
        if after == before:
            return
        self.stable = after
        cluster = self.cluster
        seen = cluster.on_visible
        if seen is not None:
            for at in range(before, after):
                record = records[at]
                if record.state == VISIBLE:
                    seen(self, record)
        for reader in self.readers:
            reader.told(self)
        if self.delay_s:
            # Due, by a clock that is right and by the slowest one.
            cluster.world.after(self.delay_s, self._ring)
            cluster.world.after(self.delay_s + SKEW_S_MAX, self._ring)

    def _ring(self) -> None:
        for reader in self.readers:
            reader.told(self)


class Transaction:
    """What the coordinator knows of one transactional id."""

    __slots__ = (
        "epoch",
        "id",
        "intents",
        "markers",
        "offsets",
        "partitions",
        "pid",
        "result",
        "serial",
        "state",
        "timeout_s",
        "waiting",
    )

    def __init__(self, transactional_id: str, pid: int) -> None:
        self.id = transactional_id
        self.pid = pid
        self.epoch = -1
        self.state = EMPTY
        self.partitions: dict[Partition, None] = {}
        self.offsets: dict[str, dict[tuple[str, int], int]] = {}
        self.intents: dict[Intent, None] = {}
        self.markers = 0
        self.serial = 0
        self.timeout_s = 10.0
        self.waiting: list[Any] = []


class Cluster:
    """``on_visible(partition, record)`` is told of every record in the order in which a
    read_committed reader may see it; ``on_offsets(group, offsets, intents)`` of every commit of
    offsets."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.topics: dict[str, list[Partition]] = {}
        self._described: dict[str, Any] = {}
        self.transactions: dict[TransactionId, Transaction] = {}
        # Stable offsets, and those of transactions whose end is not written to the offsets topic.
        self.offsets: dict[GroupPartition, int] = {}
        self.pending: dict[GroupPartition, set[int]] = {}
        self.waiting_for_offsets: list[Any] = []
        self.groups: dict[str, Any] = {}
        self.on_visible: Callable[[Partition, Record], None] | None = None
        self.on_offsets: Callable[[str, dict[tuple[str, int], int], list[Intent]], None] | None = (
            None
        )
        self.on_fate: Callable[[Intent, bool], None] = lambda intent, fate: intent.fates.add(fate)
        # How long a marker takes at most; raised for a while by a fault.
        self.marker_s_max = MARKER_S_MAX
        self.call_s_max = CALL_S_MAX
        self.fetch_s_max = FETCH_S_MAX
        self.late_end_txns = 0

    def create(self, topic: str, partitions: int, delay_s: float = 0.0) -> None:
        self.topics[topic] = [Partition(self, topic, n, delay_s) for n in range(partitions)]

    def described(self) -> dict[str, Any]:
        """The topics, as a client is told of them."""
        if len(self._described) != len(self.topics):
            self._described = {
                name: SimpleNamespace(partitions=dict.fromkeys(range(len(partitions))))
                for name, partitions in self.topics.items()
            }
        return self._described

    def close(self) -> None:
        """Let go of the records, which are most of what a run has made."""
        for partitions in self.topics.values():
            for partition in partitions:
                partition.records.clear()
                partition.open.clear()
                partition.readers.clear()

    def partition(self, topic: str, number: int) -> Partition:
        return self.topics[topic][number]

    def write(
        self, topic: str, number: int, key: bytes | None, value: bytes | None, headers: Any = None
    ) -> Record:
        """Append a record outside of any transaction."""
        partition = self.topics[topic][number]
        record = partition.append(key, value, headers, VISIBLE, None)
        partition.advance()
        return record

    # The transaction coordinator ----------------------------------------------------------------

    def init_producer_id(self, transactional_id: str, timeout_s: float) -> tuple[int, int]:
        """A new epoch. ``CONCURRENT_TRANSACTIONS`` while an older transaction is being ended."""
        found = self.transactions.get(transactional_id)
        if found is None:
            found = self.transactions[transactional_id] = Transaction(
                transactional_id, len(self.transactions) + 1
            )
        if found.state == ONGOING:
            # Fenced first, so that nobody can add to it while it is taken back.
            found.epoch += 1
            self._decide(found, commit=False)
        if found.state in (PREPARE_COMMIT, PREPARE_ABORT):
            raise Refused("CONCURRENT_TRANSACTIONS")
        found.epoch += 1
        found.state = EMPTY
        found.timeout_s = timeout_s
        return found.pid, found.epoch

    def join_transaction(
        self, transactional_id: str, epoch: int, partition: Partition, intent: Intent
    ) -> None:
        """AddPartitionsToTxn."""
        found = self._current(transactional_id, epoch)
        self._begun(found, intent)
        found.partitions[partition] = None

    def produce(
        self,
        transactional_id: str,
        epoch: int,
        partition: Partition,
        key: bytes | None,
        value: bytes | None,
        headers: Any,
        intent: Intent,
    ) -> Record:
        """One record of a transaction that the partition is part of."""
        found = self.transactions[transactional_id]
        if epoch != found.epoch or found.state != ONGOING or partition not in found.partitions:
            self._current(transactional_id, epoch)
            raise Refused("INVALID_TXN_STATE")
        # Readers see no more of it, but the end of the log has moved.
        record = partition.append(key, value, headers, OPEN, intent)
        opened = partition.open.get(found.pid)
        if opened is None:
            partition.open[found.pid] = [record]
        else:
            opened.append(record)
        intent.written += 1
        return record

    def commit_offsets(
        self,
        transactional_id: str,
        epoch: int,
        group: str,
        offsets: dict[tuple[str, int], int],
        metadata: Any,
        intent: Intent,
    ) -> None:
        """TxnOffsetCommit: the group's coordinator looks at who commits."""
        found = self._current(transactional_id, epoch)
        self._begun(found, intent)
        known = self.groups.get(group)
        if known is not None:
            known.require_current(metadata)
        held = found.offsets.setdefault(group, {})
        for (topic, number), offset in offsets.items():
            held[(topic, number)] = offset
            place = (group, topic, number)
            self.pending.setdefault(place, set()).add(found.pid)
            intent.offsets[place] = offset

    def end(self, transactional_id: str, epoch: int, commit: bool) -> None:
        """EndTxn, from whoever sends it and however late."""
        found = self.transactions[transactional_id]
        if epoch != found.epoch:
            raise Refused("INVALID_PRODUCER_EPOCH")
        if found.state == ONGOING:
            self._decide(found, commit=commit)
            return
        if found.state in (PREPARE_COMMIT, PREPARE_ABORT):
            if (found.state == PREPARE_COMMIT) != commit:
                raise Refused("INVALID_TXN_STATE")
            raise Refused("CONCURRENT_TRANSACTIONS")
        if found.state == (COMMITTED if commit else TAKEN_BACK):
            return  # told again what it was told before
        raise Refused("INVALID_TXN_STATE")

    def is_ending(self, transactional_id: str) -> bool:
        return self.transactions[transactional_id].state in (PREPARE_COMMIT, PREPARE_ABORT)

    def _current(self, transactional_id: str, epoch: int) -> Transaction:
        found = self.transactions[transactional_id]
        if epoch != found.epoch:
            raise Refused("INVALID_PRODUCER_EPOCH")
        if found.state in (PREPARE_COMMIT, PREPARE_ABORT):
            raise Refused("CONCURRENT_TRANSACTIONS")
        return found

    def _begun(self, found: Transaction, intent: Intent) -> None:
        if found.state != ONGOING:
            found.state = ONGOING
            found.serial += 1
            found.partitions = {}
            found.offsets = {}
            found.intents = {}
            serial = found.serial
            self.world.after(found.timeout_s, lambda: self._timed_out(found, serial))
        found.intents[intent] = None

    def _timed_out(self, found: Transaction, serial: int) -> None:
        if found.state == ONGOING and found.serial == serial:
            found.epoch += 1
            self._decide(found, commit=False)

    def _decide(self, found: Transaction, *, commit: bool) -> None:
        """The decision is logged; the markers are on their way."""
        found.state = PREPARE_COMMIT if commit else PREPARE_ABORT
        found.markers = len(found.partitions) + len(found.offsets)
        if not found.markers:
            self._complete(found, commit)
            return
        world = self.world
        most_s = self.marker_s_max
        for partition in found.partitions:
            world.after(
                world.jitter(most_s),
                lambda p=partition: self._settle(found, p, commit),  # type: ignore[misc]
            )
        for group in found.offsets:
            world.after(
                world.jitter(most_s),
                lambda g=group: self._settle_offsets(found, g, commit),  # type: ignore[misc]
            )

    def _settle(self, found: Transaction, partition: Partition, commit: bool) -> None:
        partition.settle(found.pid, commit)
        self._arrived(found, commit)

    def _settle_offsets(self, found: Transaction, group: str, commit: bool) -> None:
        offsets = found.offsets[group]
        for (topic, number), offset in offsets.items():
            place = (group, topic, number)
            holders = self.pending.get(place)
            if holders is not None:
                holders.discard(found.pid)
                if not holders:
                    del self.pending[place]
            if commit:
                self.offsets[place] = offset
        for intent in found.intents:
            if intent.offsets:
                self.on_fate(intent, commit)
        if commit and self.on_offsets is not None:
            self.on_offsets(group, offsets, [each for each in found.intents if each.offsets])
        waiting, self.waiting_for_offsets = self.waiting_for_offsets, []
        for fibre in waiting:
            fibre.wake()
        self._arrived(found, commit)

    def _arrived(self, found: Transaction, commit: bool) -> None:
        found.markers -= 1
        if not found.markers:
            self._complete(found, commit)

    def _complete(self, found: Transaction, commit: bool) -> None:
        found.state = COMMITTED if commit else TAKEN_BACK
        waiting, found.waiting = found.waiting, []
        for fibre in waiting:
            fibre.wake()

    # Offsets ------------------------------------------------------------------------------------

    def is_stable(self, group: str, partitions: Iterable[tuple[str, int]]) -> bool:
        return not any((group, topic, number) in self.pending for topic, number in partitions)

    def open_transactions(self) -> list[str]:
        return [
            found.id
            for found in self.transactions.values()
            if found.state in (ONGOING, PREPARE_COMMIT, PREPARE_ABORT)
        ]

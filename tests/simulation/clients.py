"""What stands for confluent_kafka's clients in a simulated process: as much as the workers use.

Every call is a step of its process, where a fault may strike, and takes some simulated time. The
faults of a client are set on its process by the plan (see ``ClientFaults``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from pipeline.domain.keys import partition_of
from tests.simulation.groups import Group, GroupMetadata, Member
from tests.simulation.log import VISIBLE, Cluster, Intent, Partition, Record, Refused
from tests.simulation.world import Killed, Process

# How much of a partition comes at a time.
FETCH_MAX = 400
BACKOFF_S = 0.005
# Who waits for so long has nothing of its own to do.
PATIENCE_S = 0.1
# How often it may ask at one instant: a turn of a loop is two questions.
ASKED_AT_ONCE = 4
TURN_S = 0.002

_LATEST = type(OffsetSpec.latest())
# The same few orders are written again and again.
_partition_of = lru_cache(4_096)(partition_of)


@dataclass
class ClientFaults:
    """Strike once each, at the next occasion. ``end_txn``: what happens to the next EndTxn."""

    # With how long the one that is late is under way.
    end_txn: list[tuple[str, float]] = field(default_factory=list)
    # By the name of a call: abortable, retriable.
    refusals: list[str] = field(default_factory=list)
    # Until when nothing is fetched.
    deaf_until_s: float = 0.0
    # How long what was written is on its way at most, where not as the cluster says.
    fetch_s_max: float | None = None
    on_fired: Callable[[str], None] = lambda _name: None


class Message:
    """A record as the client hands it out."""

    __slots__ = ("_error", "_partition", "_record", "_topic")

    def __init__(self, topic: str, partition: int, record: Any, error: Any = None) -> None:
        self._topic = topic
        self._partition = partition
        self._record = record
        self._error = error

    def error(self) -> Any:
        return self._error

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        offset: int = self._record.offset
        return offset

    def timestamp(self) -> tuple[int, int]:
        return (2, self._record.timestamp_ms)

    def key(self) -> bytes | None:
        key: bytes | None = self._record.key
        return key

    def value(self) -> bytes | None:
        value: bytes | None = self._record.value
        return value

    def headers(self) -> Any:
        return self._record.headers


class SimConsumer:
    """``on_delivered(process, partition, record)`` is told of every record that it hands out."""

    def __init__(
        self,
        cluster: Cluster,
        process: Process,
        faults: ClientFaults,
        config: dict[str, Any],
        **_more: Any,
    ) -> None:
        self._cluster = cluster
        self.process = process
        self._faults = faults
        self._group_id = config["group.id"]
        self._instance_id = config.get("group.instance.id")
        self._strategy = config.get("partition.assignment.strategy", "range")
        self._committed_only = config.get("isolation.level", "read_committed") == "read_committed"
        self._tells_eof = config.get("enable.partition.eof", False)
        self._positions: dict[Partition, int] = {}
        # Partitions in which there may be something to read.
        self._news: dict[Partition, None] = {}
        self._told_eof: dict[Partition, int] = {}
        self._paused: set[tuple[str, int]] = set()
        self._member: Member | None = None
        self._group: Group | None = None
        self._topics: list[str] = []
        self._callbacks: Any = None
        self._asked_s = 0.0
        self._asked = 0
        self._arriving = False
        self._lost = False
        self._closed = False
        self._sharing_back: list[Any] = []

    def ring(self) -> None:
        self.process.ring()

    def told(self, partition: Partition) -> None:
        """There is more to read, or something became due; it arrives a little later."""
        self._news[partition] = None
        if not self._arriving:
            self._arriving = True
            world = self.process.world
            drawn = world.draw()
            most_s = self._faults.fetch_s_max
            if most_s is None:
                most_s = self._cluster.fetch_s_max
            world.after(most_s * drawn * drawn, self._arrived)

    def _arrived(self) -> None:
        self._arriving = False
        self.process.ring()

    # Reading ------------------------------------------------------------------------------------

    def consume(self, limit: int = 1, timeout: float = 0.0) -> list[Message]:
        process = self.process
        if process.armed or process.dead or process.paused:
            process.step("fetch")
        world = process.world
        if self._asked_s != world.now_s:
            self._asked_s, self._asked = world.now_s, 1
        else:
            self._asked += 1
            if self._asked > ASKED_AT_ONCE:
                # A loop that turns takes time all the same.
                world.current.park(TURN_S)
        # What was fetched before a rebalance that the same call runs is returned all the same.
        found = self._fetched(limit) if self._news or self._lost else []
        member, group = self._member, self._group
        if member is None or member.given is not None or group.sharing or not member.current:
            self._serve_group()
        if not found and timeout > 0:
            if self._paused:
                world.current.park(timeout)
            else:
                process.idle(timeout, long=timeout >= PATIENCE_S)
            if self._news or self._lost:
                found = self._fetched(limit)
            member = self._member
            if member is None or member.given is not None or group.sharing or not member.current:
                self._serve_group()
        return found

    def poll(self, timeout: float = 0.0) -> Message | None:
        found = self.consume(1, timeout)
        return found[0] if found else None

    def _fetched(self, limit: int) -> list[Message]:
        found: list[Message] = []
        if self._lost:
            self._lost = False
            error = KafkaError(KafkaError.FENCED_INSTANCE_ID, "fenced", fatal=True)
            return [Message("", -1, SimpleNamespace(offset=-1001), error)]
        news = self._news
        world = self.process.world
        if not news or self._faults.deaf_until_s > world.now_s:
            return found
        partitions = list(news)
        if len(partitions) > 1:
            # Partitions come in any order, and a part of one before a part of another.
            start = int(world.draw() * len(partitions))
            if start:
                partitions = partitions[start:] + partitions[:start]
        paused = self._paused
        for partition in partitions:
            if paused and (partition.topic, partition.number) in paused:
                continue
            if self._read(partition, limit, found):
                del news[partition]
            if len(found) >= limit:
                break
        return found

    def _read(self, partition: Partition, limit: int, found: list[Message]) -> bool:
        """Take what is there; True when nothing is left."""
        position = self._positions[partition]
        end = partition.stable if self._committed_only else partition.end
        topic, number = partition.topic, partition.number
        if position >= end:
            if self._tells_eof and self._told_eof.get(partition) != position:
                self._told_eof[partition] = position
                error = KafkaError(KafkaError._PARTITION_EOF)
                found.append(Message(topic, number, SimpleNamespace(offset=position), error))
            return True
        records, committed_only, room = partition.records, self._committed_only, limit - len(found)
        last = end if end < position + FETCH_MAX else position + FETCH_MAX
        while position < last and room > 0:
            record = records[position]
            position += 1
            if record.state == VISIBLE or (not committed_only and record.key is not None):
                found.append(Message(topic, number, record))
                room -= 1
        self._positions[partition] = position
        return position >= end and not self._tells_eof

    # Positions ----------------------------------------------------------------------------------

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        self._alive()
        wanted = {self._cluster.partition(tp.topic, tp.partition): tp.offset for tp in partitions}
        for partition in [each for each in self._positions if each not in wanted]:
            self._drop(partition)
        for partition, offset in wanted.items():
            self._take(partition, offset)

    def unassign(self) -> None:
        self._alive()
        for partition in list(self._positions):
            self._drop(partition)

    def incremental_assign(self, partitions: Iterable[TopicPartition]) -> None:
        self._alive()
        for tp in partitions:
            self._take(self._cluster.partition(tp.topic, tp.partition), tp.offset)

    def incremental_unassign(self, partitions: Iterable[TopicPartition]) -> None:
        self._alive()
        for tp in partitions:
            self._drop(self._cluster.partition(tp.topic, tp.partition))

    def seek(self, tp: TopicPartition) -> None:
        self._alive()
        self._take(self._cluster.partition(tp.topic, tp.partition), tp.offset)

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        self._alive()
        self._paused.update((tp.topic, tp.partition) for tp in partitions)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        self._alive()
        for tp in partitions:
            self._paused.discard((tp.topic, tp.partition))
        self.process.rung = True

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(p.topic, p.number) for p in self._positions]

    def _take(self, partition: Partition, offset: int) -> None:
        self._positions[partition] = offset
        self._told_eof.pop(partition, None)
        self._news[partition] = None
        partition.readers[self] = None
        self.process.rung = True

    def _drop(self, partition: Partition) -> None:
        self._positions.pop(partition, None)
        self._news.pop(partition, None)
        self._told_eof.pop(partition, None)
        # A pause outlives an assignment of the same partition, not its loss.
        self._paused.discard((partition.topic, partition.number))
        partition.readers.pop(self, None)

    def get_watermark_offsets(
        self, tp: TopicPartition, timeout: float = 0, cached: bool = False
    ) -> tuple[int, int]:
        self._alive()
        partition = self._cluster.partition(tp.topic, tp.partition)
        return 0, partition.stable if self._committed_only else partition.end

    def committed(
        self, partitions: list[TopicPartition], timeout: float = 0
    ) -> list[TopicPartition]:
        self.process.step("committed")
        world, cluster = self.process.world, self._cluster
        world.current.doze(cluster.call_s_max)
        asked = [(tp.topic, tp.partition) for tp in partitions]
        while self._committed_only and not cluster.is_stable(self._group_id, asked):
            cluster.waiting_for_offsets.append(world.current)
            world.current.park(None)
        return [
            TopicPartition(t, p, cluster.offsets.get((self._group_id, t, p), -1001))
            for t, p in asked
        ]

    def commit(self, offsets: Iterable[TopicPartition], asynchronous: bool = True) -> None:
        self._alive()
        for tp in offsets:
            self._cluster.offsets[(self._group_id, tp.topic, tp.partition)] = tp.offset

    # The group ----------------------------------------------------------------------------------

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self._alive()
        self._topics = topics
        self._callbacks = (on_assign, on_revoke, on_lost)
        group = self._cluster.groups.get(self._group_id)
        if group is None:
            group = Group(self._cluster, self._group_id, self._strategy)
            self._cluster.groups[self._group_id] = group
        self._group = group

    def consumer_group_metadata(self) -> GroupMetadata:
        self._alive()
        member = self._member
        if member is None:
            return GroupMetadata(self._group_id, "", -1, self._instance_id)
        return GroupMetadata(self._group_id, member.member_id, member.generation, self._instance_id)

    @property
    def member(self) -> Member | None:
        return self._member

    @property
    def group(self) -> Group | None:
        return self._group

    def _serve_group(self) -> None:
        """Whatever the group asks of this member now; the callbacks run here."""
        group = self._group
        if group is None or self._closed:
            return
        if self._member is None:
            self._member = group.join(self, self._instance_id or self.process.name, self._topics)
            self.process.on_death.append(self._missed)
            self.process.on_pause.append(self._missed)
        member = self._member
        if not member.current:
            self._expelled(group, member)
            return
        if group.sharing and not member.joined:
            if not group.cooperative:
                self._give_back_all(member)
            if member.current:
                group.rejoin(member)
        if member.given is not None and member.current:
            self._take_share(group, member, member.given)

    def _missed(self) -> None:
        """Dead or frozen, it sends no heartbeats."""
        if self._group is not None and self._member is not None:
            self._group.missed(self._member)

    def _give_back_all(self, member: Member) -> None:
        if self._positions or member.owned:
            _, on_revoke, _ = self._callbacks
            on_revoke(self, self._named(member.owned))
            member.owned = frozenset()

    def _take_share(self, group: Group, member: Member, given: Any) -> None:
        member.given = None
        on_assign, on_revoke, _ = self._callbacks
        if not group.cooperative:
            member.owned = given
            on_assign(self, self._named(given))
            return
        revoked, added = member.owned - given, given - member.owned
        if revoked:
            on_revoke(self, self._named(revoked))
            member.owned = member.owned - revoked
        member.owned = member.owned | added
        on_assign(self, self._named(added))
        if revoked and member.current:
            group.share()

    def _expelled(self, group: Group, member: Member) -> None:
        fenced = member.instance_id in group.members
        self._member = None
        if fenced:
            self._lost = True
            self._closed = True
            return
        if self._positions:
            _, _, on_lost = self._callbacks
            on_lost(self, self._named((p.topic, p.number) for p in self._positions))
        self.process.rung = True

    @staticmethod
    def _named(partitions: Iterable[tuple[str, int]]) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for topic, number in sorted(partitions)]

    def close(self) -> None:
        if self.process.dead:
            raise Killed
        group, member = self._group, self._member
        if group is not None and member is not None and not self._closed:
            self._closed = True
            if self._positions and member.current:
                _, on_revoke, _ = self._callbacks
                on_revoke(self, self.assignment())
            group.leave(member)
        for partition in list(self._positions):
            self._drop(partition)

    def _alive(self) -> None:
        if self.process.dead:
            raise Killed


_FATAL = ("INVALID_PRODUCER_EPOCH", "INVALID_TXN_STATE")


def _raised(refused: Refused) -> KafkaException:
    """The broker's answer as the client gives it on: fenced is fatal, the group's word aborts."""
    if refused.name in _FATAL:
        code = (
            KafkaError._FENCED
            if refused.name == "INVALID_PRODUCER_EPOCH"
            else KafkaError.INVALID_TXN_STATE
        )
        return KafkaException(KafkaError(code, refused.name, fatal=True))
    return KafkaException(
        KafkaError(getattr(KafkaError, refused.name), refused.name, txn_requires_abort=True)
    )


class SimProducer:
    """A transactional producer; without a transactional id it appends at once."""

    def __init__(
        self,
        cluster: Cluster,
        process: Process,
        faults: ClientFaults,
        config: dict[str, Any],
        logger: Any = None,
        **_more: Any,
    ) -> None:
        self._cluster = cluster
        self.process = process
        self._faults = faults
        self._id: str = config.get("transactional.id", "")
        self._timeout_s = config.get("transaction.timeout.ms", 60_000) / 1000
        self._watched = "eos" in config.get("debug", "")
        self._logger = logger
        self._logged: list[str] = []
        self._epoch = -1
        self._partitions: set[Partition] = set()
        self._intent: Intent | None = None
        self._intents = 0
        self._reports: list[tuple[Any, str, int, Record]] = []
        self._used = False

    # Calls --------------------------------------------------------------------------------------

    def init_transactions(self, timeout: float = 0) -> None:
        while True:
            self._call("init")
            try:
                _, self._epoch = self._cluster.init_producer_id(self._id, self._timeout_s)
                return
            except Refused:
                self.process.world.current.park(BACKOFF_S)

    def begin_transaction(self) -> None:
        self._alive()
        self._intents += 1
        self._intent = Intent(f"{self.process.name} (epoch {self._epoch})", self._intents)
        self.process.intents.append(self._intent)
        self._partitions = set()
        self._used = False

    def produce(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int = -1,
        headers: Any = None,
        on_delivery: Any = None,
    ) -> None:
        if self.process.dead:
            raise Killed
        cluster, intent = self._cluster, self._intent
        if partition < 0:
            partition = _partition_of(key or b"", len(cluster.topics[topic]))
        if intent is None:
            record = cluster.write(topic, partition, key, value, headers)
        else:
            where = cluster.topics[topic][partition]
            try:
                if where not in self._partitions:
                    if len(self._partitions) < 2:
                        # Before its first record, and again while the first are in the log.
                        self.process.world.current.doze(2 * cluster.call_s_max)
                    self._retried(cluster.join_transaction, self._id, self._epoch, where, intent)
                    self._partitions.add(where)
                    self._used = True
                record = cluster.produce(self._id, self._epoch, where, key, value, headers, intent)
            except Refused as refused:
                raise _raised(refused) from None
        if on_delivery is not None:
            self._reports.append((on_delivery, topic, partition, record))

    def send_offsets_to_transaction(
        self, offsets: list[TopicPartition], metadata: GroupMetadata, timeout: float = 0
    ) -> None:
        self._call("send_offsets")
        intent = self._intent
        assert intent is not None
        if not offsets:
            return
        by_place = {(tp.topic, tp.partition): tp.offset for tp in offsets}
        try:
            self._retried(
                self._cluster.commit_offsets,
                self._id, self._epoch, metadata.group, by_place, metadata, intent,
            )  # fmt: skip
        except Refused as refused:
            raise _raised(refused) from None
        self._used = True

    def commit_transaction(self, timeout: float = 0) -> None:
        self._call("commit", at_once=True)
        self._deliver()
        intent = self._intent
        assert intent is not None
        self._end(commit=True)
        # Only what is told to the caller counts as believed; see the auditor.
        self._intent = None

    def abort_transaction(self, timeout: float = 0) -> None:
        self._call("abort", at_once=True)
        self._reports.clear()
        if self._used:
            self._end(commit=False)
        self._intent = None

    def poll(self, timeout: float = 0) -> int:
        self._alive()
        logged, self._logged = self._logged, []
        if self._logger is not None and self._watched:
            for text in logged:
                self._logger.log(10, "%s %s %s", "ENDTXN", self.process.name, text)
        if timeout:
            self.process.world.current.park(timeout)
        return len(logged)

    def flush(self, timeout: float = 0) -> int:
        self._call("flush")
        self._deliver()
        return 0

    # EndTxn and its retries ---------------------------------------------------------------------

    def _end(self, *, commit: bool) -> None:
        """One EndTxn, as often as the client sends it.

        What may happen to it: its answer is lost and the client asks again (``answer_lost``); it is
        on its way for so long that the client sends another one, and arrives later (``late``,
        or ``late_then_refused``, where the transaction that it may meet is refused);
        none arrives until the transaction has timed out (``lost``); the broker refuses it
        (``refused``); the client gives up waiting and its caller calls again (``slow``).
        """
        faults = self._faults
        fault, late_s = faults.end_txn.pop(0) if faults.end_txn else (None, 0.0)
        world, cluster = self.process.world, self._cluster
        if fault is not None:
            faults.on_fired(f"end_txn {fault} ({'commit' if commit else 'abort'})")
        if fault == "answer_lost":
            self._arrive(commit)
            self._log("_TRANSPORT")
            world.current.doze(0.3)
        elif fault in ("late", "late_then_refused"):
            if fault == "late_then_refused":
                # The next transaction is taken back, whatever the late one has done to it.
                faults.refusals.append("abortable")
            epoch = self._epoch
            world.after(late_s, lambda: self._late(epoch, commit))
            self._log("_TIMED_OUT" if world.random.random() < 0.5 else "_TRANSPORT")
        elif fault == "lost":
            for _ in range(3):
                self._log("_TIMED_OUT")
                world.current.park(self._timeout_s / 2)
        elif fault == "slow":
            self._log("_TIMED_OUT")
            world.current.park(0.5)
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "slow", retriable=True))
        elif fault == "refused" and commit:
            self._log("COORDINATOR_NOT_AVAILABLE")
            raise KafkaException(
                KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE, "refused", txn_requires_abort=True)
            )
        process = self.process
        if process.armed or process.dead or process.paused:
            process.step("end_txn")
        world.current.doze(cluster.call_s_max)
        try:
            self._retried(cluster.end, self._id, self._epoch, commit)
        except Refused as refused:
            self._log(refused.name)
            raise _raised(refused) from None
        self._log("NO_ERROR")

    def _arrive(self, commit: bool) -> None:
        with contextlib.suppress(Refused):
            self._cluster.end(self._id, self._epoch, commit)

    def _late(self, epoch: int, commit: bool) -> None:
        try:
            self._cluster.end(self._id, epoch, commit)
            self._cluster.late_end_txns += 1
        except Refused:
            pass

    def _log(self, answer: str) -> None:
        retried = answer != "NO_ERROR"
        self._logged.append(f"EndTxn returned {answer} in state (may_retry={retried})")

    # Small parts --------------------------------------------------------------------------------

    def _call(self, name: str, *, at_once: bool = False) -> None:
        """``at_once``: what it sends takes its time, it does not."""
        process = self.process
        if process.armed or process.dead or process.paused:
            process.step(name)
        if not at_once:
            process.world.current.doze(self._cluster.call_s_max)
        refusals = self._faults.refusals
        if refusals and name in ("send_offsets", "commit") and self._intent is not None:
            fault = refusals.pop(0)
            self._faults.on_fired(f"{name} refused ({fault})")
            code = KafkaError.NOT_COORDINATOR
            raise KafkaException(
                KafkaError(code, fault, retriable=fault == "retriable")
                if fault == "retriable"
                else KafkaError(code, fault, txn_requires_abort=True)
            )

    def _retried(self, call: Callable[..., None], *args: Any) -> None:
        """Again and again while the transaction before is being ended."""
        while True:
            try:
                call(*args)
                return
            except Refused as refused:
                if refused.name != "CONCURRENT_TRANSACTIONS":
                    raise
            self._cluster.transactions[self._id].waiting.append(self.process.world.current)
            self.process.world.current.park(0.5)
            self._alive()

    def _deliver(self) -> None:
        reports, self._reports = self._reports, []
        for report, topic, partition, record in reports:
            report(None, Message(topic, partition, record))

    def _alive(self) -> None:
        if self.process.dead:
            raise Killed


class SimAdmin:
    def __init__(self, cluster: Cluster, process: Process, config: Any, **_more: Any) -> None:
        self._cluster = cluster
        self._process = process

    def list_topics(self, timeout: float = 0) -> Any:
        return SimpleNamespace(topics=self._cluster.described())

    def describe_cluster(self, request_timeout: float = 0) -> Future[Any]:
        return _done(SimpleNamespace(cluster_id="simulated"))

    def describe_topics(self, topics: Any, request_timeout: float = 0) -> dict[str, Future[Any]]:
        return {name: _done(SimpleNamespace(topic_id=f"id-{name}")) for name in topics.topic_names}

    def list_offsets(
        self,
        asked: dict[TopicPartition, Any],
        isolation_level: Any = IsolationLevel.READ_UNCOMMITTED,
        request_timeout: float = 0,
    ) -> dict[TopicPartition, Future[Any]]:
        self._process.step("list_offsets")
        world = self._process.world
        world.current.doze(self._cluster.call_s_max)
        found = {}
        for tp, spec in asked.items():
            partition = self._cluster.partition(tp.topic, tp.partition)
            offset = 0
            if isinstance(spec, _LATEST):
                committed = isolation_level == IsolationLevel.READ_COMMITTED
                offset = partition.stable if committed else partition.end
            found[tp] = _done(SimpleNamespace(offset=offset))
        return found


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future

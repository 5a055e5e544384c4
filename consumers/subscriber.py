"""What following settlements and following events have in common.

Records of one kind from one topic, each at least once, in order for each order, none missed in
silence.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, get_args

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline.batches.record_batch import RecordBatch
from pipeline.batches.unreadable import (
    UNFOLDED_BYTES_MAX,
    CannotStepOver,
    UnreadableBatches,
    is_unreadable,
)
from pipeline.domain.model import PaymentEvent, Settlement
from pipeline.errors import UserError
from pipeline.kafka_access import access_of, reaching
from pipeline.kafka_names import check_group, check_servers, check_topic_name
from pipeline.kafka_refusal import why_away
from pipeline.runtime.group_consumer import close_within
from pipeline.runtime.partition_offsets import watermarks
from pipeline.runtime.standstill import Standstill
from schemas.codec import Codec, default_codec
from schemas.errors import DecodeError

Start = Literal["earliest", "latest"]
STARTS = get_args(Start)

# A metadata or offset answer takes milliseconds; 10 s allow for a broker that is just starting.
CHECK_TIMEOUT_S = 10.0
# Of the group's coordinator, before a commit that leaving waits for: with one that has gone silent
# that would be a minute.
LEAVING_S = 2.0
# Long waits in one call return late (confluent-kafka-python issue 2205) and keep Ctrl-C waiting.
POLL_SLICE_S = 0.2

# Refusals of a commit that end by themselves: a rebalance, or a coordinator that is moving.
_COMMIT_LATER = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._ASSIGNMENT_LOST,
        KafkaError._WAIT_COORD,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
    }
)

_log = logging.getLogger(__name__)

NounT = TypeVar("NounT", Settlement, PaymentEvent)


class SubscriptionError(Exception):
    """A topic cannot be followed any further; the message says why and what to do."""


class PositionLost(SubscriptionError):
    """The next record of this group is no longer in the topic: retention was faster.

    Nothing is skipped silently. The message says where what was missed is found; afterwards follow
    on under a new group id, or reset the group's offsets.
    """


@dataclass(frozen=True, slots=True)
class Position:
    """Where a record stands in the topic, and when it was appended (epoch ms)."""

    partition: int
    offset: int
    appended_at_ms: int


@dataclass(frozen=True, slots=True)
class Poison:
    """A record that is not of the topic's kind. ``value`` is its bytes as they came."""

    position: Position
    kind: str
    detail: str
    value: bytes


class Subscriber(Generic[NounT]):
    """The consumer behind ``SettlementSubscriber`` and ``EventSubscriber``.

    ``commit`` says that everything handed out so far is done; what was not committed comes again
    after a crash, or when the group is reshuffled. Only committed transactions are shown.

    A group that is new has no position: ``start`` says where it begins and is ignored afterwards.
    Any other word raises UserError, and so does a new group without one; leave it out once the
    group has begun, since a group that is away for longer than the cluster keeps its offsets (7
    days by default) looks new. If retention deleted what the group had still to read, PositionLost
    is raised. A record of another kind is logged, counted in ``poison_count``,
    handed to ``on_poison`` and passed over: it never stops the flow of the others.

    Several processes with one group id share the partitions. Not for several threads at once.
    """

    noun: ClassVar[str]
    # Where its records are if nothing else is said: the role, which is the topic without a prefix.
    role: ClassVar[str]
    schema: ClassVar[str]
    # Where what retention was faster with is found.
    missed: ClassVar[str]

    def __init__(
        self,
        bootstrap_servers: str,
        group_id: str,
        *,
        topic: str | None = None,
        codec: Codec | None = None,
        start: Start | None = None,
        on_poison: Callable[[Poison], None] | None = None,
        client_id: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if start not in (None, *STARTS):
            # Any other word would begin somewhere, and what lies before is never seen again.
            raise UserError(f'start is "{start}"; give "earliest" or "latest", or leave it out.')
        self.topic = self.role if topic is None else topic
        self.poison_count = 0
        self._bootstrap_servers = bootstrap_servers
        self._group_id = group_id
        self._start = start
        self._on_poison = on_poison
        self._decode = (codec or default_codec()).decoder(self.schema)
        self._done: dict[int, int] = {}  # partition -> offset after the last one handed out
        self._next: dict[int, int] = {}  # of all partitions that are ours, what comes next
        self._failed: SubscriptionError | None = None
        self._consumer: Consumer | None = None
        self._config: dict[str, Any] = {
            **reaching(bootstrap_servers),
            "group.id": group_id,
            "client.id": client_id or f"paystream-{self.noun}-subscriber",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # Neither skip (latest) nor hide a loss (earliest): where to begin is decided once, when
            # the partition is assigned for the first time.
            "auto.offset.reset": "error",
            "partition.assignment.strategy": "cooperative-sticky",
            # What zstd may unfold to; and damage on the way is no unreadable batch.
            "receive.message.max.bytes": UNFOLDED_BYTES_MAX,
            "check.crcs": True,
            **(config or {}),
        }
        check_servers(self._config["bootstrap.servers"])
        check_group(self._config["group.id"])
        check_topic_name(self.topic)
        access = access_of(self._config)
        self._unreadable = UnreadableBatches(access=access)
        self._standstill = Standstill(access=access)

    def _noun(self, fields: dict[str, Any]) -> NounT:
        """What a decoded record is."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Join the group. Raises UserError when no broker answers or the topic is not there."""
        if self._consumer is not None:
            return
        consumer = Consumer(self._config)
        try:
            _check_topic(consumer, self._bootstrap_servers, self.topic, self._config)
            consumer.subscribe([self.topic], on_assign=self._on_assign, on_revoke=self._on_revoke)
        except BaseException:
            consumer.close()
            raise
        self._consumer = consumer
        self._standstill.open(self._bootstrap_servers)

    def close(self) -> None:
        """Leave the group; commits nothing that was handed out."""
        consumer, self._consumer = self._consumer, None
        self._standstill.close()
        if consumer is None:
            return
        try:
            committed = {
                p: offset for p, offset in self._positions().items() if p[1] not in self._done
            }
            ends = self._standstill.empty_now(committed)
            if ends and self._has_coordinator(consumer):
                self._pass_empty(consumer, ends)
        finally:
            # Waits for what is being committed.
            if not close_within(consumer.close):
                _log.warning(
                    "the client does not come back from its close; the group takes this member "
                    "for gone after session.timeout.ms"
                )

    def __iter__(self) -> Iterator[tuple[NounT, Position]]:
        """All of them for ever; waits for new ones."""
        while True:
            found = self.poll(POLL_SLICE_S)
            if found is not None:
                yield found

    def poll(self, timeout_s: float) -> tuple[NounT, Position] | None:
        """The next one, or None when there is none within ``timeout_s``.

        Raises PositionLost, UserError (a new group without ``start``) or SubscriptionError.
        """
        consumer = self._joined()
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_s = deadline_s - time.monotonic()
            message = consumer.poll(max(0.0, min(left_s, POLL_SLICE_S)))
            if self._failed is not None:
                raise self._failed
            if message is not None:
                found = self._taken(message)
                if found is not None:
                    return found
                continue
            # Nothing is in the client's hands either.
            self._pass_over_silent()
            if left_s <= 0:
                return None

    def commit(self) -> bool:
        """Everything handed out so far is done and need not come again.

        False when the group is just being reshuffled or its coordinator is away: what is done is
        kept for the next commit, and if its partition went to another member, that one gets it
        again. Raises SubscriptionError for anything that does not mend itself.
        """
        if not self._done:
            return True
        offsets = [TopicPartition(self.topic, p, offset) for p, offset in self._done.items()]
        try:
            results = self._joined().commit(offsets=offsets, asynchronous=False)
            refused = next((r.error for r in results or () if r.error is not None), None)
        except KafkaException as error:
            refused = error.args[0]
        if refused is None:
            self._done.clear()
            return True
        if refused.code() in _COMMIT_LATER:
            _log.info("group %s: commit put off (%s)", self._group_id, refused.str())
            return False
        raise SubscriptionError(
            f"The position of group {self._group_id} was not committed ({refused.str()}); "
            f"its last {self.noun}s will come again."
        )

    def _taken(self, message: Message) -> tuple[NounT, Position] | None:
        error = message.error()
        partition, offset = message.partition(), message.offset()
        if is_unreadable(error) and partition is not None and offset is not None:
            self._step_over(partition, offset)
            return None
        if error is not None:
            self._judge(error, message)
            return None
        if partition is None or offset is None:
            return None
        position = Position(partition, offset, message.timestamp()[1])
        value = message.value()
        try:
            # None without a value was ever written: decode names it.
            noun = self._noun(self._decode(value if value is not None else b""))
        except DecodeError as bad:
            self._pass_over(Poison(position, bad.kind, bad.detail, value or b""))
            self._done[partition] = self._next[partition] = offset + 1
            return None
        self._done[partition] = self._next[partition] = offset + 1
        return noun, position

    def _pass_over(self, poison: Poison) -> None:
        self.poison_count += 1
        position = poison.position
        _log.error(
            "passed over a record of %s that is no %s: partition %d, offset %d, %s (%s)",
            self.topic,
            self.noun,
            position.partition,
            position.offset,
            poison.kind,
            poison.detail,
        )
        if self._on_poison is not None:
            self._on_poison(poison)

    def _step_over(self, partition: int, offset: int) -> None:
        """A batch that cannot be decompressed is passed over as one poison, once it is known where
        it ends; the client's error comes again until then."""
        try:
            batch = self._unreadable.step_over(self._joined(), self.topic, partition, offset)
        except CannotStepOver as error:
            self._failed = SubscriptionError(
                f"The batch at {self.topic}[{partition}]@{offset} cannot be decompressed, and "
                f"where it ends could not be asked for ({error})."
            )
            raise self._failed from error
        if batch is not None:
            self._pass_over_batch(partition, offset, batch)

    def _pass_over_batch(self, partition: int, offset: int, batch: RecordBatch) -> None:
        detail = f"{batch.records} records up to offset {batch.last_offset}"
        self._pass_over(Poison(Position(partition, offset, 0), "unreadable_batch", detail, b""))
        self._done[partition] = self._next[partition] = batch.last_offset + 1

    def _pass_over_silent(self) -> None:
        """Batches of which the client brings nothing."""
        if not self._standstill.is_due:
            return
        positions = self._positions()
        for found in self._standstill.take(positions, lambda _tp: True):
            partition, behind = found.partition(), found.offset() + 1
            self._joined().seek(TopicPartition(self.topic, partition, behind))
            self._pass_over_batch(partition, self._next[partition], found.batch)
        self._pass_empty(self._joined(), self._standstill.take_empty(positions))

    def _positions(self) -> dict[tuple[str, int], int]:
        return {(self.topic, p): offset for p, offset in self._next.items()}

    def _has_coordinator(self, consumer: Consumer) -> bool:
        """Whether the group's coordinator answers now."""
        try:
            ours = [TopicPartition(self.topic, partition) for partition in self._next]
            consumer.committed(ours, timeout=LEAVING_S)
        except KafkaException as error:
            _log.debug("group %s: no position behind markers: %s", self._group_id, error)
            return False
        return True

    def _pass_empty(self, consumer: Consumer, ends: Mapping[tuple[str, int], int]) -> None:
        """Up to there lies nothing that anybody is handed, such as a transaction's marker. Where
        all before it is committed, so is this: a quiet group would else be told that it has missed
        something once that is deleted."""
        committed = []
        for (topic, partition), end in ends.items():
            self._next[partition] = end
            if partition in self._done:
                self._done[partition] = end
            else:
                committed.append(TopicPartition(topic, partition, end))
        if not committed:
            return
        try:
            consumer.commit(offsets=committed, asynchronous=True)
        except KafkaException as error:
            _log.debug("group %s: no position behind markers: %s", self._group_id, error)

    def _judge(self, error: KafkaError, message: Message) -> None:
        """Raise for what does not mend itself; the client goes on by itself after the rest."""
        code = error.code()
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._failed = PositionLost(
                f"Group {self._group_id} had not yet read all of partition {message.partition()} "
                f"of {self.topic} when retention deleted it; {self.noun}s were missed. "
                f"{self.missed}, then follow on under a new group id."
            )
            raise self._failed
        if error.fatal() or code in (
            KafkaError.UNKNOWN_TOPIC_OR_PART,
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError.GROUP_AUTHORIZATION_FAILED,
        ):
            self._failed = SubscriptionError(
                f"The {self.noun}s of {self.topic} cannot be followed: {error.str()}."
            )
            raise self._failed
        _log.warning("the Kafka client reports: %s", error.str())

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Place every partition: where the group left off, or where a new group begins.

        Runs inside ``poll``; exceptions cannot leave a callback, so they wait for it.
        """
        try:
            self._place(consumer, partitions)
        except (KafkaException, UserError) as error:
            consumer.incremental_assign([])
            self._failed = _NotPlaced(str(error))

    def _place(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        committed = consumer.committed(partitions, timeout=CHECK_TIMEOUT_S)
        placed: list[TopicPartition] = []
        begun: list[TopicPartition] = []
        for found in committed:
            if found.error is not None:
                raise KafkaException(found.error)
            if found.offset >= 0:
                placed.append(found)
                continue
            if self._start is None:
                raise UserError(
                    f"Group {self._group_id} is new to partition {found.partition} of "
                    f"{self.topic}; say where to begin: start='earliest' or start='latest'."
                )
            # A new topic's leader may still be on its way.
            low, end = watermarks(consumer, found, timeout_s=CHECK_TIMEOUT_S)
            begin = low if self._start == "earliest" else end
            begun.append(TopicPartition(self.topic, found.partition, begin))
        if begun:
            # Kept at once: a group that dies before its first commit must not begin "latest" anew.
            consumer.commit(offsets=begun, asynchronous=False)
        consumer.incremental_assign(placed + begun)
        self._next.update({each.partition: each.offset for each in placed + begun})

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Another member goes on from the last commit, so these are no longer ours to commit."""
        for partition in partitions:
            self._done.pop(partition.partition, None)
            self._next.pop(partition.partition, None)

    def _joined(self) -> Consumer:
        if self._consumer is None:
            raise SubscriptionError("Open the subscriber first: use it in a with block.")
        return self._consumer


class _NotPlaced(SubscriptionError, UserError):
    """A group that cannot begin: a UserError for the caller."""


def _check_topic(
    consumer: Consumer, bootstrap_servers: str, topic: str, config: Mapping[str, Any]
) -> None:
    try:
        metadata = consumer.list_topics(topic, timeout=CHECK_TIMEOUT_S)
    except KafkaException as error:
        raise UserError(
            f"No Kafka broker answers at {bootstrap_servers}"
            f"{why_away(bootstrap_servers, error, config)}; "
            "start it, or give another address."
        ) from error
    if metadata.topics[topic].error is not None:
        raise UserError(
            f"The cluster at {bootstrap_servers} has no topic {topic!r}; "
            "create the topics with `paystream topics apply`."
        )

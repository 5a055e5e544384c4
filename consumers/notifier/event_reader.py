"""Reads payment-events and keeps a callback for each endpoint that wants one.

The offsets are in the callbacks' database, in their transaction; the group only shares partitions
out, and its own offsets are for those who watch its lag. An event that cannot be read goes to the
dead letters first and the offset moves on afterwards.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final, Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from consumers.notifier.callback import Callback, CannotBeTold, callback_of
from consumers.notifier.endpoints import EndpointFile
from consumers.notifier.store import CallbackStore, StoreAway
from consumers.notifier.watch import NotifierMetrics, Unwatched
from pipeline.batches.unreadable import UnreadableBatches, is_unreadable
from pipeline.domain.keys import record_key
from pipeline.domain.model import PaymentEvent
from pipeline.domain.records import event_from_record
from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.runtime import failpoints
from pipeline.runtime.cluster import cluster_and_topic_id, consumer_config, require_reachable
from pipeline.runtime.dead_letters import dead_letter
from pipeline.runtime.group_consumer import GroupConsumer
from pipeline.runtime.input_record import input_record
from pipeline.runtime.partition_offsets import watermarks
from pipeline.runtime.standstill import Standstill
from pipeline.runtime.unreadable_batch import CAUSE as UNREADABLE
from pipeline.runtime.unreadable_batch import UnreadableBatch, require_undamaged, step_over
from schemas.codec import Codec
from schemas.errors import DecodeError, RegistryUnavailable
from topics.catalogue import DEAD_LETTER_MAX_MESSAGE_BYTES, Catalogue

_log = logging.getLogger(__name__)

STAGE: Final = "notifications"
EVENTS: Final = "payment-events"
KEY_MISMATCH: Final = "key_mismatch"
CANNOT_BE_TOLD: Final = "cannot_be_told"

Start = Literal["earliest", "latest"]

# A batch of 500 events holds the database for some hundredths of a second.
BATCH_RECORDS_MAX = 500
# consume() with a long time-out returns late.
BATCH_AGE_S = 0.05
RETRY_S = 1.0
BROKER_TIMEOUT_S = 10.0
DELIVERY_TIMEOUT_S = 30.0


class _Stopped(Exception):
    """Asked to stop while waiting for a server."""


class _Undelivered(Exception):
    """A dead letter did not arrive; nothing may be kept beyond it."""


class EventReader:
    """Call ``run`` in one thread. ``on_new`` hears which endpoints have new callbacks.

    ``instance_id`` is the static member id in the group: unique, and the same after a restart.
    ``start``: where a partition begins that this database has never read.
    """

    def __init__(
        self,
        store: CallbackStore,
        endpoints: EndpointFile,
        *,
        bootstrap_servers: str,
        catalogue: Catalogue,
        codec: Codec,
        instance_id: str,
        start: Start = "earliest",
        on_new: Callable[[Iterable[str]], None] = lambda names: None,
        metrics: NotifierMetrics | None = None,
        consumer_overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self._store = store
        self._endpoints = endpoints
        self._bootstrap_servers = bootstrap_servers
        self._catalogue = catalogue
        self._topic = catalogue.name(EVENTS)
        self._decode = codec.decoder("payment-event")
        self._instance_id = instance_id
        self._start: Start = start
        self._on_new = on_new
        self._metrics: NotifierMetrics = metrics if metrics is not None else Unwatched()
        self._consumer_overrides = dict(consumer_overrides or {})
        self._producer: Producer | None = None
        self._unreadable = UnreadableBatches()
        self._standstill = Standstill()
        # The next offset of every partition that is this reader's.
        self._next: dict[int, int] = {}
        self._held: list[Any] = []
        self._closing = False
        self._failed: UserError | None = None

    @property
    def lanes(self) -> Collection[int]:
        """The partitions whose callbacks this worker delivers."""
        return tuple(self._next)

    def run(self, stop: threading.Event) -> None:
        """Read until ``stop``. UserError when something outside has to be put right first."""
        self._stop = stop
        admin = AdminClient({**reaching(self._bootstrap_servers), "log_level": 2})
        if self._topic not in require_reachable(admin, self._bootstrap_servers).topics:
            raise UserError(
                f"topic {self._topic} is missing on the cluster. Create it with "
                "`paystream topics apply`."
            )
        self._cluster_id, self._topic_id = cluster_and_topic_id(admin, self._topic)
        self._consumer = GroupConsumer(
            {
                **consumer_config(
                    self._bootstrap_servers,
                    group_id=self._catalogue.group(STAGE),
                    instance_id=self._instance_id,
                ),
                "on_commit": _on_commit,
                "logger": _log,
                **self._consumer_overrides,
            }
        )
        self._consumer.subscribe(
            [self._topic],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_revoke,
        )
        self._standstill.open(self._bootstrap_servers)
        try:
            while not stop.is_set():
                self._turn()
            self._pass_empty(self._standstill.empty_now(self._positions()))
        except _Stopped:
            pass
        finally:
            self._closing = True
            self._standstill.close()
            self._consumer.close()

    def _turn(self) -> None:
        messages, self._held = self._held, []
        if not messages:
            messages = self._consumer.consume(BATCH_RECORDS_MAX, timeout=BATCH_AGE_S)
        if self._failed is not None:
            raise self._failed
        batch = list(self._mine([*messages, *self._pass_over_silent(messages)]))
        if not batch:
            return
        new: list[Callback] = []
        for message in batch:
            event = self._event(message)
            if event is not None:
                new += self._callbacks(message, event)
        self._take(new, {m.partition(): m.offset() + 1 for m in batch})

    def _take(self, new: list[Callback], offsets: dict[int, int]) -> None:
        self._keep(new, offsets)
        self._next.update(offsets)
        failpoints.hit("notifications.taken")
        self._on_new({callback.endpoint for callback in new})
        try:
            self._consumer.commit(
                offsets=[TopicPartition(self._topic, p, o) for p, o in offsets.items()],
                asynchronous=True,
            )
        except KafkaException as error:
            _log.debug("the group's offsets were not committed: %s", error)

    def _pass_over_silent(self, messages: Iterable[Any]) -> list[UnreadableBatch]:
        """What stands for batches of which the client brings nothing, with it put behind them."""
        if not self._standstill.is_due:
            return []
        came = {message.partition() for message in messages}
        positions = self._positions()
        found = self._standstill.take(positions, lambda tp: tp[1] not in came)
        for each in found:
            self._consumer.seek(TopicPartition(self._topic, each.partition(), each.offset() + 1))
        self._pass_empty(self._standstill.take_empty(positions))
        return found

    def _positions(self) -> dict[tuple[str, int], int]:
        return {(self._topic, p): offset for p, offset in self._next.items()}

    def _pass_empty(self, ends: Mapping[tuple[str, int], int]) -> None:
        """Up to there lies nothing that anybody is handed, such as a transaction's marker; else a
        quiet partition would count as lost once that is deleted."""
        if ends:
            self._take([], {partition: end for (_, partition), end in ends.items()})

    def _mine(self, messages: Iterable[Any]) -> Iterator[Any]:
        """The records to be told of; one stands for a batch that cannot be unfolded."""
        for message in messages:
            partition = message.partition()
            read: Any = message
            if is_unreadable(message.error()):
                if partition not in self._next:
                    continue
                read = step_over(self._unreadable, self._consumer, message)
            elif message.error() is not None:
                _raise_unless_passing(message, self._topic)
                continue
            # Given back meanwhile, or read again after it came back.
            expected = self._next.get(partition)
            if read is not None and expected is not None and read.offset() >= expected:
                yield read

    def _event(self, message: Any) -> PaymentEvent | None:
        """The event of a record; None when it was put to the dead letters."""
        if type(message) is UnreadableBatch:
            self._bury(message, UNREADABLE, message.detail)
            return None
        while True:
            try:
                event = event_from_record(self._decode(message.value() or b""))
            except RegistryUnavailable as error:
                self._wait_for("the schema registry", error)
            except DecodeError as error:
                self._bury(message, error.kind, error.detail)
                return None
            else:
                break
        if message.key() != record_key(event.merchant_id, event.order_id):
            why = "the key is not the payload's merchant and order"
            self._bury(message, KEY_MISMATCH, why)
            return None
        return event

    def _callbacks(self, message: Any, event: PaymentEvent) -> list[Callback]:
        """One for each endpoint; none when the event was put to the dead letters."""
        lane = message.partition()
        endpoints = self._endpoints.in_force.of(event)
        try:
            return [callback_of(event, endpoint.name, lane) for endpoint in endpoints]
        except CannotBeTold as error:
            self._bury(message, CANNOT_BE_TOLD, str(error))
            return []

    def _keep(self, new: list[Callback], offsets: Mapping[int, int]) -> None:
        while True:
            try:
                self._store.take(
                    new, self._cluster_id, self._topic_id, offsets, int(time.time() * 1000)
                )
            except StoreAway as error:
                self._wait_for("the callbacks' database", error)
            else:
                return

    # Dead letters -------------------------------------------------------------------------------

    def _bury(self, message: Any, cause: str, detail: str) -> None:
        letters = dead_letter(
            input_record(message),
            topic=self._catalogue.name("dead-letters"),
            stage=STAGE,
            cause=cause,
            detail=detail,
        )
        while True:
            try:
                self._send(letters)
            except _Undelivered as error:
                self._wait_for("the dead-letter topic", error)
            else:
                break
        self._metrics.dead_lettered(cause)
        _log.warning(
            "dead letter: %s[%d]@%d: %s: %s",
            self._topic, message.partition(), message.offset(), cause, detail,
        )  # fmt: skip

    def _send(self, letters: Iterable[Any]) -> None:
        if self._producer is None:
            self._producer = Producer(_letter_producer_config(self._bootstrap_servers))
        failures: list[str] = []

        def delivered(error: KafkaError | None, _message: object) -> None:
            if error is not None:
                failures.append(str(error))

        for topic, partition, key, value, headers in letters:
            try:
                self._producer.produce(
                    topic,
                    key=key,
                    value=value,
                    partition=partition,
                    headers=list(headers or ()),
                    on_delivery=delivered,
                )
            except (BufferError, KafkaException) as error:
                failures.append(str(error))
        left = self._producer.flush(DELIVERY_TIMEOUT_S + 5)
        if failures or left:
            # Sent again as a whole: a letter may be there twice, but none is missing.
            self._producer = None
            raise _Undelivered(failures[0] if failures else f"{left} not confirmed")

    # Waiting ------------------------------------------------------------------------------------

    def _wait_for(self, what: str, error: Exception) -> None:
        """Wait before the next try, staying a member of the group, with nothing read meanwhile."""
        _log.warning("%s is away, next try in %.0f s: %s", what, RETRY_S, error)
        self._consumer.pause(self._consumer.assignment())
        deadline_s = time.monotonic() + RETRY_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            if self._stop.is_set():
                raise _Stopped
            message = self._consumer.poll(min(left_s, 0.1))
            if message is not None:
                self._held.append(message)
        self._consumer.resume(self._consumer.assignment())

    # Partitions that come and go ----------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._closing:
            return
        starts: list[TopicPartition] = []
        try:
            starts = [
                TopicPartition(tp.topic, tp.partition, self._start_of(consumer, tp.partition))
                for tp in partitions
            ]
        except _Stopped:
            pass  # the loop ends next
        except UserError as error:
            # An exception cannot leave a callback.
            self._failed = error
        consumer.assign(starts)
        self._unreadable.clear()
        self._next = {tp.partition: tp.offset for tp in starts}
        _log.info("assigned %s", ", ".join(f"{tp.topic}[{tp.partition}]@{tp.offset}"
                                           for tp in starts) or "nothing")  # fmt: skip

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Nothing is half kept here. What is under way may be delivered by the next one as well."""
        for tp in partitions:
            self._next.pop(tp.partition, None)

    def _start_of(self, consumer: Consumer, partition: int) -> int:
        """Where the database says to go on, or where to begin."""
        while True:
            try:
                stored = self._store.next_offset(self._cluster_id, self._topic_id, partition)
                low, end = watermarks(
                    consumer,
                    TopicPartition(self._topic, partition),
                    timeout_s=BROKER_TIMEOUT_S,
                )
                if stored is not None and stored >= low:
                    return stored
                if stored is not None:
                    # Waiting would lose more. What is gone is in the payments' own snapshots.
                    self._metrics.lost(low - stored)
                    _log.error(
                        "%s[%d]: offsets %d to %d were deleted by retention before they were read; "
                        "no merchant was told of them",
                        self._topic, partition, stored, low - 1,
                    )  # fmt: skip
                begin = low if stored is not None or self._start == "earliest" else end
                self._store.take([], self._cluster_id, self._topic_id, {partition: begin}, 0)
                return begin
            except (StoreAway, KafkaException) as error:
                _log.warning("%s[%d] cannot start yet: %s", self._topic, partition, error)
                if self._stop.wait(RETRY_S):
                    raise _Stopped from error


def _raise_unless_passing(message: Any, topic: str) -> None:
    """Errors that pass by themselves are left to the client; the rest end the reader, named."""
    error = message.error()
    require_undamaged(message)
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        raise UserError(
            f"an offset of {topic} is not in the log ({error.str()}): the topic was made anew, or "
            "its records were deleted while they were read. Start the worker again: it says what "
            "was missed and goes on behind it."
        )
    if error.fatal() or error.code() in (
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
    ):
        raise KafkaException(error)
    _log.warning("consumer: %s", error)


def _on_commit(error: KafkaError | None, _partitions: object) -> None:
    if error is not None:
        _log.debug("the group's offsets were not committed: %s", error)


def _letter_producer_config(bootstrap_servers: str) -> dict[str, Any]:
    return {
        **reaching(bootstrap_servers),
        "client.id": "paystream.notifications.dead-letters",
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        "message.max.bytes": DEAD_LETTER_MAX_MESSAGE_BYTES,
        "delivery.timeout.ms": int(DELIVERY_TIMEOUT_S * 1000),
        # What is not delivered is said by who waits for it; not each connection that fails.
        "log_level": 2,
        "logger": _log,
    }

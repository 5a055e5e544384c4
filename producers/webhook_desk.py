"""Takes verified notices to their payments: published before the gateway is answered.

At least once, in no order: a notice may be written twice (a gateway repeats it, or this process
dies between two steps), and the payments table suppresses what it has seen. What belongs to no
known operation yet is parked and goes on as soon as its reference is known.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from msgspec.structs import replace

from pipeline.batches.unreadable import UNFOLDED_BYTES_MAX, UnreadableBatches, is_unreadable
from pipeline.domain.keys import record_key, reference_key
from pipeline.domain.model import GatewayNotification, GatewayReference
from pipeline.domain.records import (
    notification_from_record,
    reference_from_record,
    to_record,
)
from pipeline.domain.unasked_charges import NO_MERCHANT
from pipeline.kafka_access import reaching
from pipeline.runtime.cluster import cluster_and_topic_id
from pipeline.runtime.dead_letters import unreadable_letter
from pipeline.runtime.input_record import input_record
from pipeline.runtime.unreadable_batch import UnreadableBatch, require_undamaged, step_over
from pipeline.runtime.work import Headers
from producers.notice_book import NoticeBook, parked_key
from producers.order_publisher import producer_config
from schemas.codec import Codec
from schemas.errors import DecodeError, EncodeError
from topics.catalogue import Catalogue

_log = logging.getLogger(__name__)

NOTIFICATIONS = "gateway-notifications"
REFERENCES = "gateway-references"
PARKED = "parked-notices"

# A gateway gives up on an answer after 10 s or more and sends the notice again.
DELIVERY_TIMEOUT_MS = 8_000
# One wait for records; a stop is noticed after it.
POLL_S = 0.1
# One look at the followed topics takes this many at most, so that it ends.
TAKE_MAX = 1_000


T = TypeVar("T")


class Taken(StrEnum):
    """What became of a notice."""

    PUBLISHED = "published"
    PARKED = "parked"


class NoticeUnstorable(Exception):
    """A notice holds what no record can, as half of a character; the text says what."""


def notice_producer_config(bootstrap_servers: str, delivery_timeout_s: float) -> dict[str, Any]:
    """The settings of what publishes and parks notices; a notice that is late is told by its own
    answer, so the client's lines about each failed connection are left out."""
    return {
        **producer_config(bootstrap_servers, "paystream-webhooks"),
        "delivery.timeout.ms": int(delivery_timeout_s * 1000),
        "delivery.report.only.error": False,
        "log_level": 2,
    }


def follower_config(bootstrap_servers: str, prefix: str) -> dict[str, Any]:
    """The settings of what reads references and parked notices."""
    return {
        **reaching(bootstrap_servers),
        "group.id": f"{prefix}webhooks-unused",
        "client.id": "paystream-webhooks",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        # A compacted topic: what was compacted away was replaced by something newer.
        "auto.offset.reset": "earliest",
        "receive.message.max.bytes": UNFOLDED_BYTES_MAX,
        "check.crcs": True,
        "log_level": 2,
    }


class WebhookDesk:
    """``take`` may be called from any thread; ``open`` and ``close`` from one.

    ``on_parked(count, oldest_ms)`` hears how many notices wait whenever that may have changed,
    ``on_unreadable()`` of each batch of what is followed that went to the dead letters whole.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        catalogue: Catalogue,
        codec: Codec,
        state_dir: Path,
        delivery_timeout_ms: int = DELIVERY_TIMEOUT_MS,
        on_parked: Callable[[int, int | None], None] = lambda count, oldest_ms: None,
        on_unreadable: Callable[[], None] = lambda: None,
    ) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._catalogue = catalogue
        self._state_dir = state_dir
        self.delivery_timeout_s = delivery_timeout_ms / 1000
        self._on_parked = on_parked
        self._on_unreadable = on_unreadable
        self._encode = codec.encoder("gateway-notification")
        self._decode = codec.decoder("gateway-notification")
        self._decode_reference = codec.decoder("gateway-reference")
        self._lock = threading.Lock()
        # Records that were told of: (role, key).
        self._unread: set[tuple[str, bytes]] = set()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._follow, name="references", daemon=True)

    def open(self) -> None:
        """Get ready; references that were written before may still be on their way."""
        admin = AdminClient({**reaching(self._bootstrap_servers), "log_level": 0})
        identity = [
            "/".join(cluster_and_topic_id(admin, self._catalogue.name(role)))
            for role in (REFERENCES, PARKED)
        ]
        self._book = NoticeBook(self._state_dir / "notices.sqlite", "\n".join(identity))
        self._producer = Producer(
            notice_producer_config(self._bootstrap_servers, self.delivery_timeout_s)
        )
        self._thread.start()

    def close(self) -> None:
        """Wait for what was taken and stop following."""
        self._stop.set()
        self._thread.join(10.0)
        self._producer.flush(self.delivery_timeout_s)
        self._book.close()

    @property
    def failure(self) -> BaseException | None:
        """Why references are not followed any more, if they are not."""
        return self._failure

    def take(self, notice: GatewayNotification) -> Future[Taken]:
        """Publish a notice, or park it; done when the brokers have it (KafkaException if not).

        A notice whose ``merchant_id`` is empty carries only the gateway's own id. By that goes also
        what is about a charge nobody asked for: it names nobody else's payment truly. Raises
        NoticeUnstorable for what no record can hold.
        """
        try:
            key = reference_key(notice.gateway, notice.gateway_reference or "")
            with self._lock:
                known = self._book.reference(key)
            addressed = None if known is None else self._addressed(notice, key, known)
            if notice.merchant_id and (addressed is None or addressed.merchant_id != NO_MERCHANT):
                return self._published(notice)
            if addressed is not None:
                return self._published(addressed)
            # The reference may come in between: it is looked for again when the parked record is
            # read.
            return self._write(
                PARKED,
                parked_key(key, notice.notification_id),
                self._encode(to_record(notice)),
                Taken.PARKED,
            )
        except (EncodeError, UnicodeEncodeError) as error:
            raise NoticeUnstorable(str(error)) from error

    def poll(self, timeout_s: float) -> None:
        """Serve delivery reports; called by one thread over and over."""
        self._producer.poll(timeout_s)

    # References ---------------------------------------------------------------------------------

    def _follow(self) -> None:
        try:
            self._follow_until_stopped()
        except BaseException as error:
            self._failure = error
            _log.exception("references are not followed any more")

    def _follow_until_stopped(self) -> None:
        consumer = Consumer(
            follower_config(self._bootstrap_servers, self._catalogue.settings.prefix)
        )
        unreadable = UnreadableBatches()
        try:
            consumer.assign(self._begin())
            # References that came while this process was away may answer what was parked.
            self._forward_known()
            while not self._stop.is_set():
                messages = consumer.consume(TAKE_MAX, POLL_S)
                self._take([m for m in messages if not self._is_error(m)])
                for message in messages:
                    if is_unreadable(message.error()):
                        stepped = step_over(unreadable, consumer, message)
                        if stepped is not None:
                            self._bury(stepped)
        finally:
            consumer.close()

    def _begin(self) -> list[TopicPartition]:
        starts = []
        for role in (REFERENCES, PARKED):
            spec = self._catalogue[role]
            positions = self._book.positions(spec.name)
            starts += [
                TopicPartition(spec.name, p, positions.get(p, 0)) for p in range(spec.partitions)
            ]
        return starts

    def _is_error(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return False
        if error.fatal():
            raise KafkaException(error)
        require_undamaged(message)
        if not is_unreadable(error):
            _log.warning("references: %s", error)
        return True

    def _bury(self, stepped: UnreadableBatch) -> None:
        """References that are missing leave their notices parked, where the alert on their age
        finds them; what was parked its gateway sends again, or is asked for."""
        letters = unreadable_letter(
            input_record(stepped), topic=self._catalogue.name("dead-letters"), stage="webhooks"
        )
        written = [self._produced(*letter, done=None) for letter in letters]
        for each in written:
            each.result(self.delivery_timeout_s + 2)
        self._on_unreadable()
        with self._lock:
            self._book.passed(stepped.topic(), stepped.partition(), stepped.offset())

    def _take(self, messages: list[Message]) -> None:
        if not messages:
            return
        references, parked = self._catalogue.name(REFERENCES), self._catalogue.name(PARKED)
        with self._lock:
            self._book.take_references(
                references,
                [_read(m) for m in messages if m.topic() == references],
                self._is_another_payments,
            )
            self._book.take_parked(
                parked,
                [(*_read(m), int(m.timestamp()[1])) for m in messages if m.topic() == parked],
            )
        self._forward_known()

    def _forward_known(self) -> None:
        """Publish what was parked and is addressed by now, and end its wait."""
        with self._lock:
            ready = [
                (key, reference, value, self._book.reference(reference))
                for reference in self._book.parked_references()
                for key, value in self._book.waiting_for(reference)
            ]
            count, oldest_ms = self._book.parked()
        forwarded = [
            (key, notice)
            for key, reference, value, known in ready
            if known is not None
            and (notice := self._forwardable(key, reference, value, known)) is not None
        ]
        self._on_parked(count - len(forwarded), oldest_ms)
        for key, notice in forwarded:
            self._published(notice).result(self.delivery_timeout_s + 2)
            # Only now: a crash in between publishes it twice, which has no effect.
            self._write(PARKED, key, None, Taken.PARKED).result(self.delivery_timeout_s + 2)

    def _forwardable(
        self, key: bytes, reference: bytes, value: bytes, known: bytes
    ) -> GatewayNotification | None:
        try:
            notice = notification_from_record(self._decode(value))
        except DecodeError as error:
            self._cannot_read(PARKED, key, error)
            return None
        return self._addressed(notice, reference, known)

    def _is_another_payments(self, key: bytes, known: bytes, told: bytes) -> bool:
        """Whether a reference names another payment than the one that it was first told to be of,
        which no gateway that keeps its contract brings about. Nothing says which of the two is
        true: the first goes on having its notices, and an operator hears of both."""
        try:
            first: GatewayReference = reference_from_record(self._decode_reference(known))
            other: GatewayReference = reference_from_record(self._decode_reference(told))
        except DecodeError:
            return False  # whichever can be read is the better one
        if first.payment_id == other.payment_id:
            return False
        _log.error(
            "%s is said to be of %s:%s and is of %s:%s: its notices stay with that one; ask the "
            "gateway whose it is",
            key.decode(errors="replace"),
            other.merchant_id,
            other.order_id,
            first.merchant_id,
            first.order_id,
        )
        return True

    def _cannot_read(self, role: str, key: bytes, error: Exception) -> None:
        """Nobody else is held up by it: the notice stays parked, where the alert on its age finds
        it, and goes on once the record is replaced or this program knows its schema."""
        if (role, key) not in self._unread:
            self._unread.add((role, key))
            _log.error("%s: the record %r cannot be read: %s", role, key, error)

    def _addressed(
        self, notice: GatewayNotification, key: bytes, known: bytes
    ) -> GatewayNotification | None:
        """None where the reference's record cannot be read: then it is as good as not known."""
        try:
            reference: GatewayReference = reference_from_record(self._decode_reference(known))
        except DecodeError as error:
            self._cannot_read(REFERENCES, key, error)
            return None
        return replace(
            notice,
            merchant_id=reference.merchant_id,
            order_id=reference.order_id,
            payment_id=reference.payment_id,
            operation_id=reference.operation_id,
            attempt=reference.attempt,
            kind=notice.kind or reference.kind,
        )

    # Writing ------------------------------------------------------------------------------------

    def _published(self, notice: GatewayNotification) -> Future[Taken]:
        return self._write(
            NOTIFICATIONS,
            record_key(notice.merchant_id, notice.order_id),
            self._encode(to_record(notice)),
            Taken.PUBLISHED,
        )

    def _write(self, role: str, key: bytes, value: bytes | None, taken: Taken) -> Future[Taken]:
        return self._produced(self._catalogue.name(role), None, key, value, None, done=taken)

    def _produced(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        *,
        done: T,
    ) -> Future[T]:
        future: Future[T] = Future()

        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is None:
                future.set_result(done)
            else:
                future.set_exception(KafkaException(error))

        try:
            self._producer.produce(
                topic, value, key, partition if partition is not None else -1,
                headers=None if headers is None else [*headers], on_delivery=delivered,
            )  # fmt: skip
        except (BufferError, KafkaException) as error:
            future.set_exception(error)
        return future


def _read(message: Message) -> tuple[int, int, bytes, bytes | None]:
    key: Any = message.key() or b""
    value: Any = message.value()
    return int(message.partition() or 0), int(message.offset() or 0), key, value


def wall_clock_ms() -> int:
    """Epoch milliseconds."""
    return int(time.time() * 1000)

"""What publishing orders and publishing commands have in common.

Records of one kind, keyed ``merchant:order``, to one topic, each at least once, none lost silently.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline.domain.keys import ID_PATTERN, record_key, split_key, valid_id
from pipeline.domain.model import Order, PaymentCommand
from pipeline.domain.records import SCHEMA_OF, to_record
from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.kafka_names import check_servers, check_topic_name
from pipeline.kafka_refusal import why_away
from pipeline.runtime.fetching import BATCH_BYTES
from schemas.codec import RECORD_BYTES_MAX, Codec, default_codec
from schemas.errors import EncodeError

# The Java producer's default: outlives a broker's restart and a leader election.
DELIVERY_TIMEOUT_S = 120.0
# The client counts it in milliseconds of 31 bits.
DELIVERY_TIMEOUT_S_MAX = 2_147_483
# A metadata answer takes milliseconds; 10 s allow for a broker that is just starting.
CHECK_TIMEOUT_S = 10.0
# Behind that, for a connection and an answer.
LOOK_S = 3.0
# How long one wait for room in the queue may last before it looks at the failures again.
ROOM_SLICE_S = 0.1
# Reports about what was given up come at once; a machine that is very busy may take seconds.
PURGE_TIMEOUT_S = 30.0
# What was not delivered is named one by one up to this many, the rest is counted.
NAMED_MAX = 10_000
# At a queue in which the client's own words come and go.
LOOKS = 20

NounT = TypeVar("NounT", Order, PaymentCommand)


class InvalidRecord(ValueError):
    """It cannot become a record: its ids, a field's type, or its size. Nothing was sent."""


class PublishError(Exception):
    """Some were not, or not certainly, delivered.

    ``undelivered`` names them by their orders as ``(merchant_id, order_id)``, at most
    ``NAMED_MAX``; ``count`` is how many there are. Publishing them again is safe: what did arrive
    has no second effect.
    """

    def __init__(
        self,
        undelivered: tuple[tuple[str, str], ...],
        count: int,
        reason: str,
        nouns: str = "orders",
    ) -> None:
        shown = ", ".join(f"{merchant}:{order}" for merchant, order in undelivered[:5])
        more = f" and {count - 5} more" if count > 5 else ""
        super().__init__(
            f"{count} {nouns} were not certainly delivered ({reason}): {shown}{more}; "
            "publish them again, which is safe."
        )
        self.undelivered = undelivered
        self.count = count
        self.reason = reason


class Publisher(Generic[NounT]):
    """The producer behind ``OrderPublisher`` and ``CommandPublisher``.

    The client's producer is idempotent, so its own retries neither double nor reorder. ``publish``
    returns before the record is on the broker; what failed is raised as PublishError by the next
    ``publish`` or by ``flush``, once. Leaving the block flushes. Not for use by several threads at
    once.
    """

    noun: ClassVar[str]
    # Where its records go if nothing else is said: the role, which is the topic without a prefix.
    role: ClassVar[str]
    kind: ClassVar[type]
    invalid: ClassVar[type[InvalidRecord]]

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        topic: str | None = None,
        codec: Codec | None = None,
        client_id: str | None = None,
        delivery_timeout_s: float = DELIVERY_TIMEOUT_S,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.topic = self.role if topic is None else topic
        if not _is_timeout(delivery_timeout_s):
            raise UserError(
                f"delivery_timeout_s is {delivery_timeout_s!r}; give seconds, from 0 to "
                f"{DELIVERY_TIMEOUT_S_MAX:,}."
            )
        self._bootstrap_servers = bootstrap_servers
        self._delivery_timeout_s = delivery_timeout_s
        self._encode = (codec or default_codec()).encoder(SCHEMA_OF[self.kind])
        self._failed: list[tuple[str, str]] = []
        self._failed_count = 0
        self._failed_reason = ""
        self._config = {
            **producer_config(bootstrap_servers, client_id or f"paystream-{self.noun}-publisher"),
            "delivery.timeout.ms": int(delivery_timeout_s * 1000),
            "on_delivery": self._on_failure,
            **(config or {}),
        }
        check_servers(self._config["bootstrap.servers"])
        check_topic_name(self.topic)
        self._producer = Producer(self._config)
        # Whether a broker has ever answered, as far as somebody has asked; and of what this client
        # was given, how many there are, and how many of them it said that they failed.
        self._reached = False
        self._queued = self._reported = 0
        self._has_left = False

    def publish(self, noun: NounT) -> None:
        """Queue one; waits while the queue is full.

        Checks only what the record needs: what becomes of it is decided by the flow, which answers
        with a named rejection. Raises InvalidRecord (nothing was sent) and, for what was published
        *earlier*, PublishError; this one was then not taken. RuntimeError once the block was left:
        nobody would wait for it or hear that it failed.
        """
        if self._has_left:
            raise RuntimeError(
                f"this publisher's block was left; publish {self.noun}s within it, or call flush() "
                "yourself and use no block."
            )
        self._raise_failed()
        if type(noun) is not self.kind:
            raise self.invalid(f"{type(noun).__name__} is no {self.kind.__name__}")
        for name, given in self._ids(noun):
            # Whatever its annotation says: it comes from elsewhere.
            if not isinstance(given, str) or not valid_id(given):
                raise self.invalid(f"{name} {given!r} does not match {ID_PATTERN}")
        key = record_key(noun.merchant_id, noun.order_id)
        try:
            value = self._encode(to_record(noun))
        except (EncodeError, TypeError) as error:
            # TypeError: of lines that are none.
            raise self.invalid(
                f"{self.noun} {key.decode()} does not fit its schema: {error}"
            ) from error
        if len(value) > RECORD_BYTES_MAX:
            raise self._too_large(key, value)
        self._refuse(noun)
        # Everything queued is delivered or given up within the delivery timeout, so room comes.
        deadline = time.monotonic() + self._delivery_timeout_s + 10
        mine = ((noun.merchant_id, noun.order_id),)
        while True:
            try:
                self._producer.produce(self.topic, value=value, key=key)
                self._queued += 1
                break
            except BufferError:
                self._producer.poll(ROOM_SLICE_S)
                self._raise_failed()
                if time.monotonic() > deadline:
                    raise self._error(mine, 1, "the queue stayed full") from None
            except KafkaException as error:
                if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    raise self._too_large(key, value) from error
                raise self._error(mine, 1, error.args[0].str()) from error
        self._producer.poll(0)

    def _ids(self, noun: NounT) -> tuple[tuple[str, str], ...]:
        """The ids that have to be well-formed, with their fields' names."""
        return ("merchant_id", noun.merchant_id), ("order_id", noun.order_id)

    def _too_large(self, key: bytes, value: bytes) -> InvalidRecord:
        return self.invalid(f"{self.noun} {key.decode()} is too large: {len(value)} bytes")

    def _refuse(self, noun: NounT) -> None:
        """Raise InvalidRecord for what must not be sent although it is a record."""

    def _error(
        self, undelivered: tuple[tuple[str, str], ...], count: int, reason: str
    ) -> PublishError:
        return PublishError(undelivered, count, reason, f"{self.noun}s")

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything is on the broker.

        Raises PublishError naming what is not: those that failed, and those still
        under way after ``timeout_s`` (default: the delivery timeout), which are given up. Where no
        broker has ever answered, as at a wrong address, they are given up within twenty seconds.
        """
        timeout_s = self._delivery_timeout_s + 10 if timeout_s is None else timeout_s
        soon_s = min(timeout_s, CHECK_TIMEOUT_S)
        away = ""
        left = self._producer.flush(soon_s)
        if left and soon_s < timeout_s:
            away = self._nobody_answers()
            left = left if away else self._producer.flush(timeout_s - soon_s)
        if left:
            self._give_up()
        if away and self._failed_count:
            self._failed_reason = away
        self._raise_failed()

    def _nobody_answers(self) -> str:
        """That no broker has ever answered, in words; "" if one has.

        The client itself looks for one until the delivery timeout, of minutes: an outage ends, a
        wrong address does not.
        """
        if not self._reached and self._queued - self._reported <= self._left():
            try:
                self._producer.list_topics(self.topic, timeout=LOOK_S)
            except KafkaException as error:
                why = why_away(self._bootstrap_servers, error, self._config)
                return f"no Kafka broker answers at {self._bootstrap_servers}{why}"
        self._reached = True
        return ""

    def _give_up(self) -> None:
        """Report whatever is queued or in flight as failed, and go on with a new client.

        A purge may reach a queue late, on a busy machine after what is published next: the old
        client must not have that.
        """
        deadline = time.monotonic() + PURGE_TIMEOUT_S
        left = 1
        while left and time.monotonic() < deadline:
            # Its report, and so its name, comes by the purge; more than once, since a record on
            # its way between two queues is passed by.
            self._producer.purge()
            left = self._producer.flush(1)
        if left:
            self._failed_count += left
            self._failed_reason = f"{left} of them without a report from the client"
        self._producer = Producer(self._config)
        self._queued = self._reported = 0

    def _left(self) -> int:
        """Records queued or on their way.

        The client counts with them what it has to say, as that no broker is there; that is heard
        first, and what comes meanwhile is not there at every look.
        """
        looks = []
        for _ in range(LOOKS):
            self._producer.poll(0)
            looks.append(len(self._producer))
        return min(looks)

    def check(self, timeout_s: float = CHECK_TIMEOUT_S) -> None:
        """Raise UserError when no broker answers or the topic is not there."""
        check_topic(
            self._producer, self._bootstrap_servers, self.topic, timeout_s, config=self._config
        )
        self._reached = True

    def __enter__(self) -> Self:
        self._has_left = False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._has_left = True
        try:
            self.flush()
        except PublishError as failed:
            if error is None:
                raise
            # The block's own error goes on; what was lost besides it is said with it.
            error.add_note(str(failed))
        except KeyboardInterrupt as stopped:
            # Whoever waits no longer is told how much may be missing.
            waiting = self._left() + self._failed_count
            stopped.add_note(
                f"{waiting} {self.noun}s were not certainly delivered; publish them again, which "
                "is safe."
            )
            raise

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            return
        self._failed_count += 1
        self._reported += 1
        self._failed_reason = error.str()
        ids = split_key(message.key())
        if ids is not None and len(self._failed) < NAMED_MAX:
            self._failed.append(ids)

    def _raise_failed(self) -> None:
        if not self._failed_count:
            return
        failed, count = tuple(self._failed), self._failed_count
        self._failed, self._failed_count = [], 0
        raise self._error(failed, count, self._failed_reason)


def _is_timeout(given: object) -> bool:
    return isinstance(given, int | float) and 0 <= given <= DELIVERY_TIMEOUT_S_MAX


def producer_config(bootstrap_servers: str, client_id: str) -> dict[str, Any]:
    """Settings of every producer of orders and commands."""
    return {
        **reaching(bootstrap_servers),
        "client.id": client_id,
        "enable.idempotence": True,
        "acks": "all",
        # librdkafka's own default puts the same key elsewhere than Java does: the payment of the
        # order would be looked for in another lane.
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        # 5 ms of waiting fill batches at any rate that matters.
        "linger.ms": 5,
        # So that a worker gets the orders of all partitions in turn, however many wait.
        "batch.size": BATCH_BYTES,
        # A callback for each record costs as much as the record.
        "delivery.report.only.error": True,
    }


def check_topic(
    producer: Producer,
    bootstrap_servers: str,
    topic: str,
    timeout_s: float,
    *,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Raise UserError when no broker answers or the topic is not there."""
    try:
        metadata = producer.list_topics(topic, timeout=timeout_s)
    except KafkaException as error:
        raise UserError(
            f"No Kafka broker answers at {bootstrap_servers}"
            f"{why_away(bootstrap_servers, error, config)}; "
            "start it, or name another with --bootstrap-servers."
        ) from error
    found = metadata.topics[topic]
    if found.error is not None:
        raise UserError(
            f"The cluster at {bootstrap_servers} has no topic {topic!r}; "
            "create the topics with `paystream topics apply`."
        )

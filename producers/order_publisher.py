"""Publish orders, for upstream systems written in Python."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline.domain.card_numbers import fields_with_card_numbers
from pipeline.domain.keys import ID_PATTERN, record_key, split_key, valid_id
from pipeline.domain.model import Order
from pipeline.domain.records import order_to_record
from pipeline.errors import UserError
from schemas.codec import Codec, default_codec
from schemas.errors import EncodeError

# The Java producer's default: outlives a broker's restart and a leader election.
DELIVERY_TIMEOUT_S = 120.0
# A metadata answer takes milliseconds; 10 s allow for a broker that is just starting.
CHECK_TIMEOUT_S = 10.0
# How long one wait for room in the queue may last before it looks at the failures again.
ROOM_SLICE_S = 0.1
# Reports about what was given up come at once; a machine that is very busy may take seconds.
PURGE_TIMEOUT_S = 30.0
# Undelivered orders are named one by one up to this many, the rest are counted.
NAMED_MAX = 10_000


class InvalidOrder(ValueError):
    """The order cannot become a record: its ids, a field's type, or its size. Nothing was sent."""


class CardNumberInField(InvalidOrder):
    """A text of the order holds a card number; ``fields`` names them, nothing repeats the number.

    Orders carry tokens: the flow would put such an order among the dead letters.
    """

    def __init__(self, order: str, fields: tuple[str, ...]) -> None:
        super().__init__(
            f"order {order} holds a card number in {', '.join(fields)}; give a token for the card, "
            "and leave card numbers out of texts"
        )
        self.fields = fields


class PublishError(Exception):
    """Some orders were not, or not certainly, delivered.

    ``undelivered`` names them as ``(merchant_id, order_id)``, at most ``NAMED_MAX``; ``count``
    is how many there are. Publishing them again is safe: an order that did arrive is one payment.
    """

    def __init__(self, undelivered: tuple[tuple[str, str], ...], count: int, reason: str) -> None:
        shown = ", ".join(f"{merchant}:{order}" for merchant, order in undelivered[:5])
        more = f" and {count - 5} more" if count > 5 else ""
        super().__init__(
            f"{count} orders were not certainly delivered ({reason}): {shown}{more}; "
            "publish them again, which is safe."
        )
        self.undelivered = undelivered
        self.count = count
        self.reason = reason


class OrderPublisher:
    """Writes orders to the orders topic, each at least once, and never loses one silently.

    ::

        with OrderPublisher("127.0.0.1:9092") as publisher:
            for order in orders:
                publisher.publish(order)

    Leaving the block flushes. Orders may be published again, by this or another process: the flow
    takes the same order for one payment. The producer is idempotent, so its own retries neither
    double nor reorder. ``publish`` returns before the order is on the broker; what failed is
    raised as PublishError by the next ``publish`` or by ``flush``, once.

    Not for use by several threads at once. ``config`` overrides settings of the Kafka client, for
    security settings above all.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        topic: str = "orders",
        codec: Codec | None = None,
        client_id: str = "paystream-order-publisher",
        delivery_timeout_s: float = DELIVERY_TIMEOUT_S,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.topic = topic
        self._bootstrap_servers = bootstrap_servers
        self._delivery_timeout_s = delivery_timeout_s
        self._encode = (codec or default_codec()).encoder("order")
        self._failed: list[tuple[str, str]] = []
        self._failed_count = 0
        self._failed_reason = ""
        self._producer = Producer(
            {
                **producer_config(bootstrap_servers, client_id),
                "delivery.timeout.ms": int(delivery_timeout_s * 1000),
                "on_delivery": self._on_failure,
                **(config or {}),
            }
        )

    def publish(self, order: Order) -> None:
        """Queue one order; waits while the queue is full.

        Checks only what the record needs: whether the order may be paid is decided by the flow,
        which answers with a named rejection. An order that holds a card number is not let out of
        the process (CardNumberInField). Raises InvalidOrder (nothing was sent) and, for
        orders published *earlier*, PublishError; this order was then not taken.
        """
        self._raise_failed()
        for name, given in (("merchant_id", order.merchant_id), ("order_id", order.order_id)):
            if not valid_id(given):
                raise InvalidOrder(f"{name} {given!r} does not match {ID_PATTERN}")
        key = record_key(order.merchant_id, order.order_id)
        fields = fields_with_card_numbers(order)
        if fields:
            raise CardNumberInField(key.decode(), fields)
        try:
            value = self._encode(order_to_record(order))
        except EncodeError as error:
            raise InvalidOrder(f"order {key.decode()} does not fit its schema: {error}") from error
        # Every queued order is delivered or given up within the delivery timeout, so room comes.
        deadline = time.monotonic() + self._delivery_timeout_s + 10
        while True:
            try:
                self._producer.produce(self.topic, value=value, key=key)
                break
            except BufferError:
                self._producer.poll(ROOM_SLICE_S)
                self._raise_failed()
                if time.monotonic() > deadline:
                    raise PublishError(
                        ((order.merchant_id, order.order_id),), 1, "the queue stayed full"
                    ) from None
            except KafkaException as error:
                if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    raise InvalidOrder(
                        f"order {key.decode()} is too large: {len(value)} bytes"
                    ) from error
                raise PublishError(
                    ((order.merchant_id, order.order_id),), 1, error.args[0].str()
                ) from error
        self._producer.poll(0)

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until every order is on the broker.

        Raises PublishError naming the orders that are not: those that failed, and those still
        under way after ``timeout_s`` (default: the delivery timeout), which are given up.
        """
        timeout_s = self._delivery_timeout_s + 10 if timeout_s is None else timeout_s
        left = self._producer.flush(timeout_s)
        deadline = time.monotonic() + PURGE_TIMEOUT_S
        while left and time.monotonic() < deadline:
            # What is still queued or in flight gets its report, and so its name, by the purge;
            # more than once, since a record on its way between two queues is passed by.
            self._producer.purge()
            left = self._producer.flush(1)
        if left:
            self._failed_count += left
            self._failed_reason = f"{left} of them without a report from the client"
        self._raise_failed()

    def check(self, timeout_s: float = CHECK_TIMEOUT_S) -> None:
        """Raise UserError when no broker answers or the topic is not there."""
        check_topic(self._producer, self._bootstrap_servers, self.topic, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.flush()
        except PublishError as failed:
            if error is None:
                raise
            # The block's own error goes on; what was lost besides it is said with it.
            error.add_note(str(failed))

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            return
        self._failed_count += 1
        self._failed_reason = error.str()
        ids = split_key(message.key())
        if ids is not None and len(self._failed) < NAMED_MAX:
            self._failed.append(ids)

    def _raise_failed(self) -> None:
        if not self._failed_count:
            return
        failed, count = tuple(self._failed), self._failed_count
        self._failed, self._failed_count = [], 0
        raise PublishError(failed, count, self._failed_reason)


def producer_config(bootstrap_servers: str, client_id: str) -> dict[str, Any]:
    """Settings of every producer of orders."""
    return {
        "bootstrap.servers": bootstrap_servers,
        "client.id": client_id,
        "enable.idempotence": True,
        "acks": "all",
        # librdkafka's own default puts the same key elsewhere than Java does: the payment of the
        # order would be looked for in another lane.
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        # 5 ms of waiting fill batches at any rate that matters.
        "linger.ms": 5,
        # A callback for each record costs as much as the record.
        "delivery.report.only.error": True,
    }


def check_topic(producer: Producer, bootstrap_servers: str, topic: str, timeout_s: float) -> None:
    """Raise UserError when no broker answers or the topic is not there."""
    try:
        metadata = producer.list_topics(topic, timeout=timeout_s)
    except KafkaException as error:
        raise UserError(
            f"No Kafka broker answers at {bootstrap_servers} ({error.args[0].str()}); "
            "start it, or name another with --bootstrap-servers."
        ) from error
    found = metadata.topics[topic]
    if found.error is not None:
        raise UserError(
            f"The cluster at {bootstrap_servers} has no topic {topic!r}; "
            "create the topics with `paystream topics apply`."
        )

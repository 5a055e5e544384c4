"""The load of a run: orders at a steady rate, and a few refunds of what was ordered before.

What the brokers acknowledged is remembered: each of these must have an outcome in the end. What
was given up (the client tries for two minutes) may be there or not.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from pipeline.chaos.flow.cluster import KEYLESS_MERCHANT
from pipeline.config import Settings
from pipeline.domain.keys import record_key
from pipeline.domain.model import PaymentCommand
from pipeline.domain.records import order_to_record, to_record
from producers.load_generator import LoadPlan, order_at
from producers.order_publisher import producer_config
from schemas.codec import default_codec

# One of ten orders is the keyless gateway's.
MERCHANTS = ("shop-a", "shop-b", "shop-c", "shop-d", "shop-e", "shop-a", "shop-b", "shop-c",
             "shop-d", KEYLESS_MERCHANT)  # fmt: skip
# Every so manieth order comes twice, and is refunded in part this long after it was published.
REPEATED_EVERY = 50
REFUNDED_EVERY = 20
REFUND_AFTER_S = 6.0
SLICE_S = 0.01
FLUSH_S = 130.0


class Load:
    """A thread of its own; ``finish`` returns when all that it took is acknowledged or given up."""

    def __init__(self, settings: Settings, *, rate_per_s: float, seconds: float, seed: int) -> None:
        catalogue = settings.catalogue()
        self._orders = catalogue.name("orders")
        self._commands = catalogue.name("payment-commands")
        self._rate_per_s = rate_per_s
        self.seconds = seconds
        now_s = time.time()
        self._plan = LoadPlan(
            count=int(rate_per_s * seconds),
            submitted_at_ms=int(now_s * 1000),
            business_date=time.strftime("%Y-%m-%d", time.gmtime(now_s)),
            seed=seed,
            merchants=MERCHANTS,
        )
        self._producer = Producer(
            {
                **producer_config(settings.bootstrap_servers, "paystream-chaos-load"),
                "queue.buffering.max.messages": 200_000,
                "delivery.report.only.error": False,
                "on_delivery": self._delivered,
                "log_level": 0,
            }
        )
        codec = default_codec()
        self._encode_order = codec.encoder("order")
        self._encode_command = codec.encoder("payment-command")
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="chaos-load", daemon=True)
        self.published = 0
        self.given_up = 0
        # The keys of orders that the brokers have acknowledged.
        self.acknowledged: set[bytes] = set()

    def start(self) -> None:
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Publish no more."""
        self._stop.set()

    def finish(self) -> None:
        self.stop()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def amount_of(self, key: str) -> int:
        """Of the order with this key, ``merchant:order``."""
        return order_at(self._plan, int(key.rpartition("-")[2])).amount_minor

    def _run(self) -> None:
        try:
            self._publish()
            self.given_up += self._producer.flush(FLUSH_S)
        except BaseException as error:  # told by finish()
            self._failure = error

    def _publish(self) -> None:
        begun_s = time.monotonic()
        refunds: deque[tuple[float, PaymentCommand]] = deque()
        index = 0
        while index < self._plan.count and not self._stop.is_set():
            now_s = time.monotonic()
            due = min(int((now_s - begun_s) * self._rate_per_s) + 1, self._plan.count)
            while index < due:
                self._publish_order(index, now_s, refunds)
                index += 1
            while refunds and refunds[0][0] <= now_s:
                self._send_command(refunds.popleft()[1])
            self._producer.poll(SLICE_S)

    def _publish_order(
        self, index: int, now_s: float, refunds: deque[tuple[float, PaymentCommand]]
    ) -> None:
        order = order_at(self._plan, index)
        key = record_key(order.merchant_id, order.order_id)
        value = self._encode_order(order_to_record(order))
        for _ in range(2 if index % REPEATED_EVERY == 1 else 1):
            self._send(self._orders, key, value)
        self.published += 1
        if index % REFUNDED_EVERY == 3:
            refund = PaymentCommand(
                merchant_id=order.merchant_id,
                order_id=order.order_id,
                command_id=f"refund-{index}",
                type="refund",
                submitted_at_ms=self._plan.submitted_at_ms,
                amount_minor=max(1, order.amount_minor // 3),
                currency=order.currency,
            )
            refunds.append((now_s + REFUND_AFTER_S, refund))

    def _send_command(self, command: PaymentCommand) -> None:
        key = record_key(command.merchant_id, command.order_id)
        self._send(self._commands, key, self._encode_command(to_record(command)))

    def _send(self, topic: str, key: bytes, value: bytes) -> None:
        while not self._stop.is_set():
            try:
                self._producer.produce(topic, value=value, key=key)
                return
            except BufferError:
                self._producer.poll(0.05)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.given_up += 1
        elif message.topic() == self._orders:
            key: Any = message.key()
            self.acknowledged.add(key)

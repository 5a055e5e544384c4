"""Make orders by the thousand, for benchmarks and chaos tests.

Order ``index`` of a ``seed`` is the same on every machine and in every run, so several processes
can each make a share and a checker can work out what must have arrived. Records are encoded before
the clock starts: while it runs, the generator only hands bytes to the client.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError, Message, Producer

from pipeline.domain.keys import record_key
from pipeline.domain.model import Order, OrderLine
from pipeline.domain.records import order_to_record
from producers.order_publisher import producer_config
from schemas.codec import Codec, default_codec

MERCHANTS = ("shop-a", "shop-b", "shop-c", "shop-d")
# A slice of the pace: short beside any latency that is measured, long beside the cost of a wake-up.
SLICE_S = 0.002
# After this many records in a row at full speed, let the client report and take in answers.
BURST = 1_000
# Nothing can wait longer: the client gives a record up after its delivery timeout (120 s).
DRAIN_TIMEOUT_S = 130.0

KeyValue = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Which orders to make.

    ``count`` orders from index ``first`` on; ``worker`` of ``workers`` makes every so manieth, so
    that processes with the same plan and another ``worker`` never make the same order.
    ``submitted_at_ms`` and ``business_date`` are the same for all. ``instrument_tokens`` are drawn
    by ``seed`` and index, for a share of declines or of forced faults.
    """

    count: int
    submitted_at_ms: int
    business_date: str
    seed: int = 7
    first: int = 0
    worker: int = 0
    workers: int = 1
    merchants: Sequence[str] = MERCHANTS
    currency: str = "GBP"
    instrument_tokens: Sequence[str] = ("tok_card_load",)

    def indices(self) -> range:
        """The indices this worker makes."""
        return range(self.first + self.worker, self.first + self.count, self.workers)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a run came to. ``started_s`` and ``handed_over_s`` are ``time.monotonic`` values:
    before the first record, and when the last was taken by the client; ``seconds`` ends when the
    broker had confirmed the last one. ``late_s_max`` is how far a paced run fell behind."""

    count: int
    failed: int
    started_s: float
    handed_over_s: float
    seconds: float
    late_s_max: float


def order_at(plan: LoadPlan, index: int) -> Order:
    """The order of this index: two lines, GBP 2.00 to 998.00 by default."""
    draw = random.Random(plan.seed << 40 | index)
    lines = tuple(
        OrderLine(
            line_number=number,
            sku=f"SKU-{draw.randrange(1000):03d}",
            quantity=draw.randint(1, 5),
            unit_amount_minor=draw.randint(100, 9_980),
            description="LOAD",
        )
        for number in (1, 2)
    )
    return Order(
        merchant_id=plan.merchants[index % len(plan.merchants)],
        order_id=f"load-{plan.seed}-{index}",
        amount_minor=sum(line.quantity * line.unit_amount_minor for line in lines),
        currency=plan.currency,
        instrument_token=draw.choice(plan.instrument_tokens),
        business_date=plan.business_date,
        submitted_at_ms=plan.submitted_at_ms,
        customer_id=f"customer-{index % 10_000}",
        country="United Kingdom",
        lines=lines,
    )


def orders(plan: LoadPlan) -> Iterator[Order]:
    """The orders of the plan's worker, in order of their index."""
    return (order_at(plan, index) for index in plan.indices())


def prepare(plan: LoadPlan, codec: Codec | None = None) -> list[KeyValue]:
    """Keys and encoded values of the plan's orders; about 300 bytes and 40 µs each."""
    encode = (codec or default_codec()).encoder("order")
    return [
        (record_key(order.merchant_id, order.order_id), encode(order_to_record(order)))
        for order in orders(plan)
    ]


def run_load(
    bootstrap_servers: str,
    pool: Sequence[KeyValue],
    *,
    topic: str = "orders",
    rate_per_s: float | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    client_id: str = "paystream-load-generator",
) -> LoadReport:
    """Produce the pool once, at ``rate_per_s`` or as fast as it goes, and wait until it is there.

    A paced run keeps to the schedule from its start: what it falls behind it catches up, so a
    latency that counts from the schedule hides nothing. ``should_stop`` is asked every slice.
    ``failed`` in the report is 0 unless records were given up by the client.
    """
    if rate_per_s is not None and rate_per_s <= 0:
        raise ValueError(f"rate_per_s must be above 0, not {rate_per_s}")
    failed = 0

    def on_failure(error: KafkaError | None, _message: Message) -> None:
        nonlocal failed
        failed += error is not None

    producer = Producer(
        {
            **producer_config(bootstrap_servers, client_id),
            "queue.buffering.max.messages": 200_000,
            "on_delivery": on_failure,
        }
    )
    producer.list_topics(topic, timeout=10)  # connects, so that the first record does not
    started_s = time.monotonic()
    sent = 0
    late_s_max = 0.0
    total = len(pool)
    while sent < total and not should_stop():
        if rate_per_s is None:
            due = min(sent + BURST, total)
        else:
            elapsed_s = time.monotonic() - started_s
            due = min(int(elapsed_s * rate_per_s) + 1, total)
            if due > sent:
                late_s_max = max(late_s_max, elapsed_s - sent / rate_per_s)
        for key, value in pool[sent:due]:
            _produce(producer, topic, key, value)
        sent = max(sent, due)
        producer.poll(0 if rate_per_s is None else SLICE_S)
    handed_over_s = time.monotonic()
    left = producer.flush(DRAIN_TIMEOUT_S)
    return LoadReport(
        count=sent,
        failed=failed + left,
        started_s=started_s,
        handed_over_s=handed_over_s,
        seconds=time.monotonic() - started_s,
        late_s_max=late_s_max,
    )


def _produce(producer: Producer, topic: str, key: bytes, value: bytes) -> None:
    deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
    while True:
        try:
            producer.produce(topic, value=value, key=key)
            return
        except BufferError:
            # The queue empties within the delivery timeout, by success or by failure.
            if time.monotonic() > deadline_s:
                raise
            producer.poll(0.05)

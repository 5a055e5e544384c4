"""A table of millions of payments, and a worker that starts with nothing and has to restore it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

from confluent_kafka import Producer

from pipeline.chaos.overload.scenario import MIB, Options, Outcome, Say
from pipeline.chaos.overload.stand import Stand, committed, orders
from pipeline.domain.ids import payment_id
from pipeline.domain.keys import record_key
from pipeline.errors import UserError
from producers.load_generator import KeyValue
from producers.order_publisher import producer_config
from schemas.codec import default_codec

NAME = "restored-table"
# Payments as the flow makes them, of which the millions are copies under other names.
SAMPLES = 200
# Of the millions, so many orders come once more: who has their payments does nothing.
REPEATED_MAX = 1_000
# New ones, for every partition some: when they are settled, the worker serves.
NEW = 100
WORKER_MIB_MAX = 1_024.0
STAGES = {"payments": 1, "gateway": 1}
SAY_EVERY = 200_000


def run(options: Options, say: Say) -> Outcome:
    count = options.payments
    repeated = min(count, REPEATED_MAX)
    outcome = Outcome(NAME, f"a payments worker without a cache before {count:,} payments")
    with Stand(options.place / NAME, say, options.partitions, workers=STAGES) as stand:
        stand.wait_until_joined()
        made = orders(SAMPLES)
        stand.publish(made, None)
        stand.keep_until(lambda: len(stand.outcomes) == len(made), "samples")
        stand.stop_workers()
        begun_s = time.monotonic()
        size = _write(stand, count, say)
        outcome.figure("written in", f"{time.monotonic() - begun_s:,.0f} s, {size / MIB:,.0f} MiB")
        for cache in stand.folder.glob("payments-*"):
            shutil.rmtree(cache)
        cold_s = _serve(stand, SAMPLES)
        cold_mib = max(stand.memory.between("payments", begun_s, time.monotonic()), default=0.0)
        stand.stop_workers()
        warm_s = _serve(stand, SAMPLES + NEW)
        asked = _requests(stand)
        unread = stand.lag("payments", "orders")
        stand.publish(list(_repeats(made, count, repeated)), None).join()
        stand.keep_until(lambda: unread() == 0, "repeated orders", progress=unread)
        again = _requests(stand) - asked
        letters = sum(
            1 for _ in committed(stand.settings.bootstrap_servers, stand.catalogue["dead-letters"])
        )
    outcome.figure("serves after, from the topic", f"{cold_s:,.1f} s, its start included")
    outcome.figure("restored", f"{count / cold_s:,.0f} payments/s")
    outcome.figure("serves after, with its cache", f"{warm_s:,.1f} s")
    outcome.claim(
        f"the worker holds at most {WORKER_MIB_MAX:,.0f} MiB",
        f"{cold_mib:,.0f} MiB",
        held=0 < cold_mib <= WORKER_MIB_MAX,
    )
    outcome.claim(
        f"{repeated:,} orders of these payments come once more, and each is known",
        f"{again:,} requests, {letters:,} dead letters",
        held=again == letters == 0,
    )
    return outcome


def _name(index: int) -> str:
    return f"copy-{index}"


def _write(stand: Stand, count: int, say: Say) -> int:
    """Copies of what the flow has made, each under its own name; the bytes of their values."""
    codec = default_codec()
    decode, encode = codec.decoder("payment"), codec.encoder("payment")
    spec = stand.catalogue["payments"]
    last = {m.key(): m.value() for m in committed(stand.settings.bootstrap_servers, spec)}
    samples: list[dict[str, Any]] = [dict(decode(value)) for _, value in sorted(last.items())]
    producer = Producer(
        {
            **producer_config(stand.settings.bootstrap_servers, "paystream-overload-table"),
            "queue.buffering.max.messages": 200_000,
        }
    )
    size = 0
    for index in range(count):
        fields = samples[index % len(samples)]
        merchant, order = fields["merchant_id"], _name(index)
        fields["order_id"], fields["payment_id"] = order, payment_id(merchant, order)
        value = encode(fields)
        size += len(value)
        _produce(producer, spec.name, record_key(merchant, order), value)
        if index % SAY_EVERY == SAY_EVERY - 1:
            say(f"  {index + 1:,} payments written")
    if producer.flush(120.0):
        raise UserError("the payments were not written")
    return size


def _produce(producer: Producer, topic: str, key: bytes, value: bytes) -> None:
    while True:
        try:
            producer.produce(topic, value=value, key=key)
            producer.poll(0)
            return
        except BufferError:
            producer.poll(0.05)


def _repeats(made: Sequence[KeyValue], count: int, repeated: int) -> Iterator[KeyValue]:
    """The orders that these copies would be of, evenly from all of them."""
    codec = default_codec()
    decode, encode = codec.decoder("order"), codec.encoder("order")
    samples = [dict(decode(value)) for _, value in sorted(made)]
    for number in range(repeated):
        index = number * count // repeated
        fields = samples[index % len(samples)]
        fields["order_id"] = _name(index)
        yield record_key(fields["merchant_id"], fields["order_id"]), encode(fields)


def _serve(stand: Stand, first: int) -> float:
    """Seconds from the workers' start until new orders in every partition are settled."""
    before = len(stand.outcomes)
    begun_s = time.monotonic()
    stand.start_workers()
    stand.publish(orders(NEW, first=first), None)
    stand.keep_until(
        lambda: len(stand.outcomes) == before + NEW, "restoring", progress=stand.worker_cpu_s
    )
    return time.monotonic() - begun_s


def _requests(stand: Stand) -> int:
    spec = stand.catalogue["payment-requests"]
    return sum(1 for _ in committed(stand.settings.bootstrap_servers, spec))

"""Records as large as the topics take, and some that are many times that once decompressed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable

from confluent_kafka import Producer

from pipeline.chaos.overload.scenario import MIB, Options, Outcome, Say
from pipeline.chaos.overload.stand import Stand, claim_flat, orders
from pipeline.domain.keys import record_key
from pipeline.errors import UserError
from pipeline.record_codec import record_codec
from pipeline.runtime.redrive.letter_log import LetterLog
from producers.load_generator import KeyValue
from producers.order_publisher import producer_config
from topics.catalogue import MAX_MESSAGE_BYTES

NAME = "large-records"
# Room for the batch's own bytes and the key.
DENSE_BYTES = MAX_MESSAGE_BYTES - 1_000
# 8 MiB is what one letter holds: this one is split.
LONG_BYTES = 12 * MIB
LONG_EVERY = 5
WORKER_MIB_MAX = 768.0


def run(options: Options, say: Say) -> Outcome:
    count = options.large_records
    outcome = Outcome(
        NAME,
        f"{count:,} records in `orders` that are as large as it takes, every fifth "
        f"{LONG_BYTES // MIB} MiB once decompressed, none of them an order, among good orders",
    )
    large = [_large(number) for number in range(count)]
    expected = sorted(hashlib.sha256(value).hexdigest() for _, value in large)
    good = orders(int(options.rate_per_s * 10))
    with Stand(options.place / NAME, say, options.partitions) as stand:
        stand.wait_until_joined()
        unread = stand.lag("payments", "orders")
        begun_s = time.monotonic()
        half = count // 2
        load = stand.publish(good, options.rate_per_s)
        _bury(stand, large[:half], unread)
        middle_s = time.monotonic()
        _bury(stand, large[half:], unread)
        ended_s = time.monotonic()
        stand.keep_until(lambda: not load.is_alive(), "good orders")
        stand.settle(len(good), "good orders")
        outcome.figure("all of it handled in", f"{time.monotonic() - begun_s:,.0f} s")
        codec = record_codec(stand.catalogue, "")
        with LetterLog(stand.settings.bootstrap_servers, stand.catalogue, codec) as log:
            letters = log.letters()
            found = sorted(
                hashlib.sha256(whole.value or b"").hexdigest() for whole in log.wholes(letters)
            )
        outcome.claim(
            "each is a letter, whole, byte by byte", f"{len(found):,}", held=found == expected
        )
        most = max(stand.memory.between("payments", begun_s, ended_s), default=0.0)
        outcome.claim(
            f"the payments worker holds at most {WORKER_MIB_MAX:.0f} MiB",
            f"{most:,.0f} MiB",
            held=0 < most <= WORKER_MIB_MAX,
        )
        claim_flat(outcome, stand, (begun_s, middle_s), (middle_s, ended_s))
        stand.claim_whole(outcome)
    return outcome


def _bury(stand: Stand, large: list[KeyValue], unread: Callable[[], int]) -> None:
    topic = stand.catalogue.name("orders")
    producer = Producer(
        {
            **producer_config(stand.settings.bootstrap_servers, "paystream-overload-large"),
            # What counts for the broker is what is left after compression.
            "message.max.bytes": 2 * LONG_BYTES,
        }
    )
    for key, value in large:
        producer.produce(topic, value=value, key=key)
        # One by one: the client's queue would hold them all.
        if producer.flush(60.0):
            raise UserError("a large record was not taken.")
        stand.keep_for(0.0)
    stand.keep_until(lambda: unread() == 0, "large records", progress=unread)


def _large(number: int) -> KeyValue:
    key = record_key("shop-a", f"large-{number}")
    if number % LONG_EVERY == 0:
        return key, b"long %d " % number * (LONG_BYTES // 8)
    # No digits: what looks like a card number would be masked.
    return key, os.urandom(DENSE_BYTES).translate(bytes.maketrans(b"0123456789", b"abcdefghij"))

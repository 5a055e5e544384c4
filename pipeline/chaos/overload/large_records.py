"""Records as large as the topics take, and some that are many times that once decompressed.

Orders at the size limit are paid like any other; what is no order, or larger, is a letter.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

from confluent_kafka import KafkaError, Message, Producer

from pipeline.chaos.overload.large_orders import (
    DECLINED,
    MERCHANT,
    LargeOrders,
    as_record,
    beyond_the_publisher,
    large_orders,
    lines_alike,
)
from pipeline.chaos.overload.scenario import MIB, Options, Outcome, Say
from pipeline.chaos.overload.stand import Stand, claim_flat, committed, orders
from pipeline.domain.keys import record_key
from pipeline.domain.model import Order, PaymentCommand
from pipeline.errors import UserError
from pipeline.record_codec import record_codec
from pipeline.runtime.redrive.letter_log import LetterLog
from producers.command_publisher import CommandPublisher
from producers.load_generator import KeyValue
from producers.order_publisher import InvalidOrder, OrderPublisher, producer_config
from schemas.codec import RECORD_BYTES_MAX, default_codec
from topics.catalogue import MAX_MESSAGE_BYTES

NAME = "large-records"
# Room for the batch's own bytes and the key.
DENSE_BYTES = MAX_MESSAGE_BYTES - 1_000
# 8 MiB is what one letter holds: this one is split.
LONG_BYTES = 12 * MIB
LONG_EVERY = 5
WORKER_MIB_MAX = 768.0
# Of the large orders every so manieth is given back, once it is paid.
REFUNDED_EVERY = 5
TOO_LARGE = "record_too_large"
# They outlive the broker by a moment, and would say that it is gone.
QUIET = {"log_level": 0}


def run(options: Options, say: Say) -> Outcome:
    count = options.large_records
    paid = max(4, count // 2)
    outcome = Outcome(
        NAME,
        f"{count:,} records in `orders` that are as large as it takes, every fifth "
        f"{LONG_BYTES // MIB} MiB once decompressed, none of them an order, and {paid:,} orders at "
        "the size limit, among good orders",
    )
    garbage = [_large(number) for number in range(count)]
    large = large_orders(paid, max(2, count // 10), options.partitions)
    # One of lines alike for both halves: of 12 MiB, it would be 700 once it is read.
    beyond = [*large.beyond, *(lines_alike(number, LONG_BYTES) for number in range(2))]
    expected = sorted(map(_digest, (*garbage, *beyond)))
    good = orders(int(options.rate_per_s * 10))
    with Stand(options.place / NAME, say, options.partitions) as stand:
        stand.wait_until_joined()
        unread = stand.lag("payments", "orders")
        begun_s = time.monotonic()
        load = stand.publish(good, options.rate_per_s)
        _feed(stand, garbage[::2], beyond[::2], large.published[::2], large.unfolded[::2], unread)
        middle_s = time.monotonic()
        _feed(
            stand, garbage[1::2], beyond[1::2], large.published[1::2], large.unfolded[1::2], unread
        )
        ended_s = time.monotonic()
        stand.keep_until(lambda: not load.is_alive(), "good orders")
        declined = [order for order in large.paid if order.instrument_token == DECLINED]
        stand.settle(len(good) + paid - len(declined), "orders")
        given_back = large.paid[::REFUNDED_EVERY]
        _command(stand, "retry", declined, instrument_token="tok_ok")
        stand.settle(len(good) + paid, "orders that were declined once")
        _command(stand, "refund", given_back)
        outcome.figure("all of it handled in", f"{time.monotonic() - begun_s:,.0f} s")
        _claim_refused(outcome, stand)
        stand.claim_whole(outcome)
        _claim_settled(outcome, stand, large, given_back)
        _claim_letters(outcome, stand, expected, len(beyond))
        most = max(stand.memory.between("payments", begun_s, ended_s), default=0.0)
        outcome.claim(
            f"the payments worker holds at most {WORKER_MIB_MAX:.0f} MiB",
            f"{most:,.0f} MiB",
            held=0 < most <= WORKER_MIB_MAX,
        )
        claim_flat(outcome, stand, (begun_s, middle_s), (middle_s, ended_s))
    return outcome


def _feed(
    stand: Stand,
    garbage: Sequence[KeyValue],
    beyond: Sequence[KeyValue],
    published: Sequence[Order],
    unfolded: Sequence[Order],
    unread: Callable[[], int],
) -> None:
    """All of these, in turn; and until they are read."""
    producer = _unbounded_producer(stand)
    with OrderPublisher(stand.settings.bootstrap_servers, config=QUIET) as publisher:
        for bad, longer, small, big in zip_longest(garbage, beyond, published, unfolded):
            records = [bad, longer, None if big is None else as_record(big)]
            for key, value in filter(None, records):
                producer.produce(stand.catalogue.name("orders"), value=value, key=key)
                # One by one: the client's queue would hold them all.
                if producer.flush(60.0):
                    raise UserError("a large record was not taken.")
            if small is not None:
                publisher.publish(small)
                publisher.flush()
            stand.keep_for(0.0)
    stand.keep_until(lambda: unread() == 0, "large records", progress=unread)


def _unbounded_producer(stand: Stand) -> Producer:
    return Producer(
        {
            **producer_config(stand.settings.bootstrap_servers, "paystream-overload-large"),
            **QUIET,
            # What counts for the broker is what is left after compression.
            "message.max.bytes": 2 * LONG_BYTES,
        }
    )


def _command(
    stand: Stand, kind: str, of: Iterable[Order], *, instrument_token: str | None = None
) -> None:
    with CommandPublisher(stand.settings.bootstrap_servers, config=QUIET) as publisher:
        for order in of:
            publisher.publish(
                PaymentCommand(
                    merchant_id=order.merchant_id,
                    order_id=order.order_id,
                    command_id=f"{kind}-{order.order_id}",
                    type=kind,
                    submitted_at_ms=int(time.time() * 1000),
                    instrument_token=instrument_token,
                )
            )


# What is claimed -------------------------------------------------------------------------------


def _claim_settled(
    outcome: Outcome, stand: Stand, large: LargeOrders, given_back: Iterable[Order]
) -> None:
    decode = default_codec().decoder("settlement")
    found: Counter[tuple[str, str, int]] = Counter()
    for message in committed(stand.settings.bootstrap_servers, stand.catalogue["settlements"]):
        fields = decode(message.value())
        if fields["merchant_id"] == MERCHANT:
            found[fields["order_id"], fields["kind"], fields["amount_minor"]] += 1
    for limit, paid in (
        ("its publisher lets out", large.published),
        ("a record may be", large.unfolded),
    ):
        once = [
            order for order in paid if found[order.order_id, "capture", order.amount_minor] == 1
        ]
        outcome.claim(
            f"each order of {len(paid[0].lines):,} lines, as large as {limit}, is settled once, "
            "for its amount: taken at once, after a decline and a retry, or not answered at first",
            f"{len(once):,} of {len(paid):,}",
            held=len(once) == len(paid),
        )
    refunds = Counter({(o.order_id, "refund", -o.amount_minor): 1 for o in given_back})
    captures = Counter({(o.order_id, "capture", o.amount_minor): 1 for o in large.paid})
    outcome.claim(
        "every fifth of them is refunded once, whole, and nothing else of them is settled",
        f"{(found & refunds).total():,} of {refunds.total():,}",
        held=found == captures + refunds,
    )


def _claim_letters(outcome: Outcome, stand: Stand, expected: Sequence[str], beyond: int) -> None:
    codec = record_codec(stand.catalogue, "")
    with LetterLog(stand.settings.bootstrap_servers, stand.catalogue, codec) as log:
        letters = log.letters()
        found = sorted(
            hashlib.sha256(whole.value or b"").hexdigest() for whole in log.wholes(letters)
        )
    outcome.claim(
        "each record that is no order, or larger, is a letter, whole, byte by byte, and no other",
        f"{len(found):,}",
        held=found == expected,
    )
    named = sum(letter.cause == TOO_LARGE for letter in letters)
    outcome.claim(
        f"each order beyond {RECORD_BYTES_MAX // MIB} MiB is a letter that says so",
        f"{named:,} `{TOO_LARGE}`",
        held=named == beyond,
    )


def _claim_refused(outcome: Outcome, stand: Stand) -> None:
    """What is not even published: a byte more than a publisher's client lets out, and what the
    topic does not take."""
    said = ""
    with OrderPublisher(stand.settings.bootstrap_servers, config=QUIET) as publisher:
        try:
            publisher.publish(beyond_the_publisher())
        except InvalidOrder as error:
            said = str(error)
    outcome.claim(
        "an order of a byte more than that is refused by its publisher",
        said or "published",
        held="too large" in said,
    )
    codes: list[int | None] = []

    def heard(error: KafkaError | None, _message: Message) -> None:
        codes.append(None if error is None else error.code())

    producer = _unbounded_producer(stand)
    key, value = record_key(MERCHANT, "dense"), os.urandom(MAX_MESSAGE_BYTES)
    producer.produce(stand.catalogue.name("orders"), value=value, key=key, on_delivery=heard)
    producer.flush(60.0)
    outcome.claim(
        f"what does not compress to {MAX_MESSAGE_BYTES // MIB} MiB is refused by the broker",
        ", ".join("taken" if code is None else KafkaError(code).name() for code in codes),
        held=codes == [KafkaError.MSG_SIZE_TOO_LARGE],
    )


def _digest(record: KeyValue) -> str:
    return hashlib.sha256(record[1]).hexdigest()


def _large(number: int) -> KeyValue:
    key = record_key("shop-a", f"large-{number}")
    if number % LONG_EVERY == 0:
        return key, b"long %d " % number * (LONG_BYTES // 8)
    # No digits: what looks like a card number would be masked.
    return key, os.urandom(DENSE_BYTES).translate(bytes.maketrans(b"0123456789", b"abcdefghij"))

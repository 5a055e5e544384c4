"""Orders as large as the flow takes, of which each has to be paid, and some that are larger."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from msgspec.structs import replace

from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.model import Order, OrderLine
from pipeline.domain.records import order_to_record
from producers.load_generator import KeyValue
from schemas.codec import RECORD_BYTES_MAX, default_codec

MERCHANT = "shop-large"
# Key and value of what the client of an ``OrderPublisher`` lets out, before it is compressed: its
# message.max.bytes, less 36 for the record's own (librdkafka 2.16).
PUBLISHED_BYTES_MAX = 1_000_000 - 36
# What an order's own numbers may come to more than those of its template.
SLACK_BYTES = 16
LANES = 2
# One after the other: what is sent again, what is asked about, and what a person has to retry.
DECLINED = "tok_decline_insufficient_funds"
TOKENS = ("tok_ok", "tok_reset_before", DECLINED, "tok_reset_after")
# Names that goods have; the same in every line, else 4 MiB would not go through a topic of one.
_DESCRIPTION = "WHITE HANGING HEART T-LIGHT HOLDER, SET OF THREE"
_LINE = OrderLine(
    line_number=1, sku="85123A", quantity=6, unit_amount_minor=255, description=_DESCRIPTION
)
# Ids of one length, so that all orders are as large as their template.
_NO_ID = "large-none"
_KEY_BYTES = len(record_key(MERCHANT, _NO_ID))
# Number 1, no stock code, no description, one unit, of one penny.
_SHORTEST_LINE = bytes((2, 0, 0, 2, 2))


@dataclass(frozen=True)
class LargeOrders:
    """What is published, and what it has to come to."""

    # As ``OrderPublisher`` takes them, and as records of clients that let more out.
    published: list[Order]
    unfolded: list[Order]
    # Beyond what a record may have, but small enough for the topic.
    beyond: list[KeyValue]

    @property
    def paid(self) -> list[Order]:
        return [*self.published, *self.unfolded]


def large_orders(number: int, beyond: int, partitions: int) -> LargeOrders:
    """Half of ``number`` at each limit, all in few partitions."""
    ids = _ids(partitions)
    half = number // 2
    published = _template(PUBLISHED_BYTES_MAX - _KEY_BYTES)
    unfolded = _template(RECORD_BYTES_MAX)
    longer = _template(RECORD_BYTES_MAX + 4 * SLACK_BYTES)
    return LargeOrders(
        [_order(published, next(ids), n) for n in range(half)],
        [_order(unfolded, next(ids), n) for n in range(half, number)],
        [as_record(_order(longer, next(ids), 0)) for _ in range(beyond)],
    )


def as_record(order: Order) -> KeyValue:
    encode = default_codec().encoder("order", checked=False)
    return record_key(order.merchant_id, order.order_id), encode(order_to_record(order))


def grown(order: Order, more_bytes: int) -> Order:
    """The same order with a longer description."""
    *lines, last = order.lines
    longer = replace(last, description=last.description + "x" * more_bytes)
    return replace(order, lines=(*lines, longer))


def beyond_the_publisher() -> Order:
    """A byte more than its client lets out."""
    order = _template(PUBLISHED_BYTES_MAX - _KEY_BYTES)
    key, value = as_record(order)
    return grown(order, PUBLISHED_BYTES_MAX + 1 - len(key) - len(value))


def lines_alike(number: int, size_bytes: int) -> KeyValue:
    """A record of nothing but the shortest lines, all the same: it compresses to nearly nothing,
    and takes sixty times its bytes once it is read."""
    order = replace(_template(0), order_id=f"alike-{number:04d}", lines=(), amount_minor=0)
    key, value = as_record(order)
    lines = (size_bytes - len(value)) // len(_SHORTEST_LINE)
    return key, value[:-1] + _avro_long(lines) + _SHORTEST_LINE * lines + value[-1:]


def _order(template: Order, order_id: str, number: int) -> Order:
    """Each of another amount, so that one cannot be taken for another."""
    first, *lines = template.lines
    dearer = replace(first, unit_amount_minor=first.unit_amount_minor + number)
    return replace(
        template,
        order_id=order_id,
        amount_minor=template.amount_minor + number * first.quantity,
        instrument_token=TOKENS[number % len(TOKENS)],
        lines=(dearer, *lines),
    )


def _template(size_bytes: int) -> Order:
    """An order of so many bytes, less the slack for its amount, and with the longest token."""
    now_s = time.time()
    # No line has more bytes than the last one, whose number is the longest.
    lines = size_bytes // (len(_DESCRIPTION) + 20)
    order = Order(
        merchant_id=MERCHANT,
        order_id=_NO_ID,
        amount_minor=lines * _LINE.quantity * _LINE.unit_amount_minor,
        currency="GBP",
        instrument_token=max(TOKENS, key=len),
        business_date=time.strftime("%Y-%m-%d", time.gmtime(now_s)),
        submitted_at_ms=int(now_s * 1000),
        lines=tuple(replace(_LINE, line_number=n + 1) for n in range(lines)),
    )
    wanted = size_bytes - SLACK_BYTES
    while (missing := wanted - len(as_record(order)[1])) > 0:
        # What the description's own length takes more of is missing less.
        order = grown(order, max(1, missing - 2))
    return order


def _ids(partitions: int) -> Iterator[str]:
    for number in count():
        order_id = f"large-{number:04d}"
        if partition_of(record_key(MERCHANT, order_id), partitions) < LANES:
            yield order_id


def _avro_long(number: int) -> bytes:
    """A number that is not below 0, as Avro writes a long."""
    rest, encoded = number << 1, bytearray()
    while rest > 127:
        encoded.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*encoded, rest])

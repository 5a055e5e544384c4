"""The orders that every measurement of one run uses, and what must come of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.domain.ids import payment_id, settlement_id
from pipeline.domain.keys import record_key
from pipeline.domain.records import order_to_record
from producers.load_generator import KeyValue, LoadPlan, orders
from schemas.codec import default_codec

# Fixed, so that two runs push the same bytes through; any day does.
BUSINESS_DATE = "2026-01-01"


@dataclass(frozen=True)
class OrderPool:
    """Encoded orders, and for each the settlement that proves it: its id and amount (minor)."""

    records: Sequence[KeyValue]
    expected: dict[str, int]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def bytes_each(self) -> float:
        return sum(len(k) + len(v) for k, v in self.records) / max(1, len(self.records))


def make_pool(count: int, *, first: int = 0) -> OrderPool:
    """``count`` two-line orders from index ``first`` on; about 70 µs and 700 bytes each."""
    plan = LoadPlan(
        count=count,
        first=first,
        submitted_at_ms=int(time.time() * 1000),
        business_date=BUSINESS_DATE,
    )
    encode = default_codec().encoder("order")
    records: list[KeyValue] = []
    expected: dict[str, int] = {}
    for order in orders(plan):
        merchant, number = order.merchant_id, order.order_id
        records.append((record_key(merchant, number), encode(order_to_record(order))))
        expected[settlement_id(payment_id(merchant, number), number, "capture")] = (
            order.amount_minor
        )
    return OrderPool(records, expected)

"""What no book can hold of a clearing is told before a database refuses it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.domain.clearing import cannot_be_kept
from pipeline.domain.posting import AMOUNT_MINOR_MAX
from tests.support.ledger import settlement
from tests.support.reconciliation import row_of

TEXTS = (
    "gateway", "file_id", "kind", "operation_kind", "gateway_reference", "currency", "batch_id",
    "payment_id", "operation_id", "merchant_id", "order_id",
)  # fmt: skip


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        *(({name: "a\0b"}, "a text of it holds a NUL") for name in TEXTS),
        ({"amount_minor": -(2**63)}, "it moves more than"),
        ({"fee_minor": AMOUNT_MINOR_MAX + 1}, "it moves more than"),
        ({"report_date": "yesterday"}, "'yesterday' is no date"),
        ({"amount_minor": AMOUNT_MINOR_MAX, "order_id": "\\\\N'\"\\u0000"}, ""),
    ],
)
def test_what_cannot_be_kept_is_told(odd: dict[str, Any], why: str) -> None:
    assert cannot_be_kept(row_of(1, settlement(1), **odd))[: len(why) or None] == why

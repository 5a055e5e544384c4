"""``simulator``: comma, header, minor units, UTC; the report's day is in its id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pipeline.gateways.reports.base import (
    CAPTURE_RETURNED,
    CAPTURED,
    CHARGE_RETURNED,
    CHARGED,
    DISPUTE_CHARGED,
    DISPUTE_GIVEN_BACK,
    DISPUTED,
    REFUND_RETURNED,
    REFUNDED,
    NotAReport,
    Row,
    meaning_of,
    one_file_id,
    table,
    time_ms,
    whole,
)

_COLUMNS: Final = (
    "report", "row", "type", "id", "charge_id", "reference", "merchant_id", "order_id",
    "gross_minor", "fee_minor", "net_minor", "currency", "created_at", "payout",
)  # fmt: skip
_WORDS: Final = {
    "charge": CHARGED,
    "capture": CAPTURED,
    "refund": REFUNDED,
    "refund_failed": REFUND_RETURNED,
    "charge_failed": CHARGE_RETURNED,
    "capture_failed": CAPTURE_RETURNED,
    "dispute": DISPUTED,
    "dispute_fee": DISPUTE_CHARGED,
    "dispute_won": DISPUTE_GIVEN_BACK,
}


def read(text: str) -> tuple[str, str, Sequence[Row]]:
    rows = table(text, _COLUMNS)
    file_id = one_file_id(row["report"] for row in rows)
    return file_id, file_id[-10:], [_row(row) for row in rows]


def _row(row: dict[str, str]) -> Row:
    amount, fee = whole(row["gross_minor"]), whole(row["fee_minor"])
    if amount - fee != whole(row["net_minor"]):
        raise NotAReport(f"row {row['row']}: gross less fee is not its net")
    return Row(
        number=whole(row["row"]),
        meaning=meaning_of(row["type"], _WORDS),
        gateway_reference=row["id"],
        reference=row["reference"],
        merchant_id=row["merchant_id"],
        order_id=row["order_id"],
        amount_minor=amount,
        fee_minor=fee,
        currency=row["currency"],
        occurred_at_ms=time_ms(row["created_at"], "%Y-%m-%dT%H:%M:%SZ", "UTC"),
        batch_id=row["payout"],
    )

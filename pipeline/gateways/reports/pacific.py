"""``pacific``: quoted fields, major units, Pacific time; a chargeback goes by its case's id."""

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
    major,
    meaning_of,
    one_file_id,
    table,
    time_ms,
)

ZONE: Final = "America/Los_Angeles"
_COLUMNS: Final = (
    "Report ID", "Txn ID", "Type", "Case ID", "Client Ref", "Merchant", "Order", "Currency",
    "Gross", "Fee", "Net", "Local Time", "Deposit ID",
)  # fmt: skip
_WORDS: Final = {
    "Sale": CHARGED,
    "Settle": CAPTURED,
    "Refund": REFUNDED,
    "Refund Return": REFUND_RETURNED,
    "Sale Return": CHARGE_RETURNED,
    "Settle Return": CAPTURE_RETURNED,
    "Chargeback": DISPUTED,
    "Chargeback Fee": DISPUTE_CHARGED,
    "Chargeback Won": DISPUTE_GIVEN_BACK,
}


def read(text: str) -> tuple[str, str, Sequence[Row]]:
    rows = table(text, _COLUMNS)
    file_id = one_file_id(row["Report ID"] for row in rows)
    # Its rows have no numbers: they are counted.
    return file_id, file_id[-10:], [_row(number, row) for number, row in enumerate(rows, 1)]


def _row(number: int, row: dict[str, str]) -> Row:
    currency = row["Currency"]
    amount, fee = major(row["Gross"], currency), major(row["Fee"], currency)
    if amount - fee != major(row["Net"], currency):
        raise NotAReport(f"row {number}: gross less fee is not its net")
    return Row(
        number=number,
        meaning=meaning_of(row["Type"], _WORDS),
        gateway_reference=row["Case ID"] or row["Txn ID"],
        reference=row["Client Ref"],
        merchant_id=row["Merchant"],
        order_id=row["Order"],
        amount_minor=amount,
        fee_minor=fee,
        currency=currency,
        occurred_at_ms=time_ms(row["Local Time"], "%m/%d/%Y %I:%M:%S %p", ZONE),
        batch_id=row["Deposit ID"],
    )

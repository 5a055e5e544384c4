"""``northbank``: semicolons, records H, D and T with a count, decimal commas, London time."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import datetime
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
    counted,
    major,
    meaning_of,
    time_ms,
    whole,
)

ZONE: Final = "Europe/London"
_FIELDS: Final = 13
_WORDS: Final = {
    "PAYMENT": CHARGED,
    "CAPTURE": CAPTURED,
    "REFUND": REFUNDED,
    "REFUND_RETURNED": REFUND_RETURNED,
    "PAYMENT_RETURNED": CHARGE_RETURNED,
    "CAPTURE_RETURNED": CAPTURE_RETURNED,
    "CHARGEBACK": DISPUTED,
    "CHARGEBACK_FEE": DISPUTE_CHARGED,
    "CHARGEBACK_REVERSED": DISPUTE_GIVEN_BACK,
}


def read(text: str) -> tuple[str, str, Sequence[Row]]:
    lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=";", strict=True))
    if len(lines) < 2 or lines[0][:2] != ["H", "NORTHBANK"] or lines[-1][:1] != ["T"]:
        raise NotAReport("it has no H record of NORTHBANK, or no T record")
    _, _, file_id, day = counted(lines[0], 4)
    if whole(counted(lines[-1], 2)[1]) != len(lines) - 2:
        raise NotAReport("it has not as many D records as its T record says")
    try:
        report_date = datetime.strptime(day, "%d/%m/%Y").date().isoformat()
    except ValueError:
        raise NotAReport(f"{day!r} is no date") from None
    return file_id, report_date, [_row(line) for line in lines[1:-1]]


def _row(line: Sequence[str]) -> Row:
    (
        record, number, word, own_id, _payment, reference, shop, order, gross, fee, currency, at,
        batch,
    ) = counted(line, _FIELDS)  # fmt: skip
    if record != "D":
        raise NotAReport(f"{record!r} is no record of a row")
    return Row(
        number=whole(number),
        meaning=meaning_of(word, _WORDS),
        gateway_reference=own_id,
        reference=reference,
        merchant_id=shop,
        order_id=order,
        amount_minor=major(gross.replace(",", "."), currency),
        fee_minor=major(fee.replace(",", "."), currency),
        currency=currency,
        occurred_at_ms=time_ms(at, "%d/%m/%Y %H:%M:%S", ZONE),
        batch_id=batch,
    )

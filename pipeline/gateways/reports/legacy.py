"""``legacy``: pipes without a header, unsigned digits with C or D, Eastern time."""

from __future__ import annotations

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
    meaning_of,
    time_ms,
    whole,
)

ZONE: Final = "America/New_York"
_FIELDS: Final = 12
_SIGN: Final = {"C": 1, "D": -1}
_WORDS: Final = {
    "SALE": CHARGED,
    "CAPTURE": CAPTURED,
    "REFUND": REFUNDED,
    "RFDBACK": REFUND_RETURNED,
    "SALEBACK": CHARGE_RETURNED,
    "CAPBACK": CAPTURE_RETURNED,
    "CHGBK": DISPUTED,
    "CHGFEE": DISPUTE_CHARGED,
    "CHGWON": DISPUTE_GIVEN_BACK,
}


def read(text: str) -> tuple[str, str, Sequence[Row]]:
    lines = [line.split("|") for line in text.splitlines()]
    if not lines or lines[0][0] != "LEGACY":
        raise NotAReport("its first line is not LEGACY|date|count")
    _, day, count = counted(lines[0], 3)
    if whole(count) != len(lines) - 1:
        raise NotAReport("it has not as many rows as its first line says")
    try:
        report_date = datetime.strptime(day, "%Y%m%d").date().isoformat()
    except ValueError:
        raise NotAReport(f"{day!r} is no date") from None
    return f"LG{day}", report_date, [_row(line) for line in lines[1:]]


def _row(line: list[str]) -> Row:
    number, own_id, word, reference, merchant, order, side, amount, fee, currency, at, batch = (
        counted(line, _FIELDS)
    )
    if side not in _SIGN:
        raise NotAReport(f"{side!r} is neither C nor D")
    return Row(
        number=whole(number),
        meaning=meaning_of(word, _WORDS),
        gateway_reference=own_id,
        reference=reference,
        merchant_id=merchant,
        order_id=order,
        amount_minor=_SIGN[side] * whole(amount),
        fee_minor=whole(fee),
        currency=currency,
        occurred_at_ms=time_ms(at, "%Y%m%d%H%M%S", ZONE),
        batch_id=batch,
    )

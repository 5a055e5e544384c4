"""What a person is told a payment's status is: its own status, and what its amounts add to it.

How much was captured, refunded or disputed are amounts; several of these words can hold at once.
"""

from __future__ import annotations

from typing import Final

from pipeline.domain.lifecycle import (
    BUSY_STATES,
    CAPTURED,
    INQUIRY_EXHAUSTED,
    MAIN_KINDS,
    PENDING,
    REFUND,
)
from pipeline.domain.model import Payment

PARTIALLY_CAPTURED: Final = "partially_captured"
PARTIALLY_REFUNDED: Final = "partially_refunded"
REFUNDED: Final = "refunded"
REFUND_PENDING: Final = "refund_pending"
OPERATION_UNKNOWN: Final = "operation_unknown"
CANCEL_REQUESTED: Final = "cancel_requested"
DISPUTED: Final = "disputed"
CHARGED_BACK: Final = "charged_back"


def shown_statuses(payment: Payment) -> tuple[str, ...]:
    """The words that hold for a payment, its status (or what stands in for it) first.

    ``captured`` becomes partially_captured while less than the payment's amount was captured, and
    gives way to refunded once all of it went back.
    """
    captured, refunded = payment.captured_minor, payment.refunded_minor
    first = payment.status
    if first == CAPTURED:
        if refunded >= captured > 0:
            first = REFUNDED
        elif captured < payment.amount_minor:
            first = PARTIALLY_CAPTURED
    shown = [first]
    if 0 < refunded < captured:
        shown.append(PARTIALLY_REFUNDED)
    elif refunded >= captured > 0 and first != REFUNDED:
        shown.append(REFUNDED)
    later = [each for each in payment.attempts if each.kind not in MAIN_KINDS]
    if any(each.kind == REFUND and each.state in {*BUSY_STATES, PENDING} for each in later):
        shown.append(REFUND_PENDING)
    if any(each.uncertain_since_ms or each.state == INQUIRY_EXHAUSTED for each in later):
        shown.append(OPERATION_UNKNOWN)
    if payment.cancel_requested_by is not None and payment.status != "cancelled":
        shown.append(CANCEL_REQUESTED)
    if payment.disputed_minor:
        shown.append(DISPUTED)
    if payment.charged_back_minor:
        shown.append(CHARGED_BACK)
    return tuple(shown)

"""What ``paystream verify`` finds of a payment that stays true whatever is done now, and that a
person may acknowledge: with the figures that were looked at, and no others.

The auditor words the same figures from its own reading, so both have to be kept alike.
"""

from __future__ import annotations

from typing import Final

from pipeline.domain.charges import captured_of_minor, refunded_of_minor
from pipeline.domain.lifecycle import MAIN_KINDS
from pipeline.domain.model import Acknowledgement, Payment

AMOUNTS_OUT_OF_ORDER: Final = "amounts_out_of_order"
ACKNOWLEDGEABLE: Final = frozenset({AMOUNTS_OUT_OF_ORDER})


def amounts_out_of_order(payment: Payment) -> str | None:
    """The amounts, where not refunded <= captured <= authorized, or more was refunded of a charge
    than it captured; None where they are in order."""
    refunded, captured = payment.refunded_minor, payment.captured_minor
    authorized = payment.authorized_minor
    if not 0 <= refunded <= captured <= authorized:
        return f"refunded {refunded}, captured {captured}, authorized {authorized}"
    told: list[str] = []
    for charge in payment.attempts:
        if charge.kind in MAIN_KINDS:
            back_minor = refunded_of_minor(payment, charge)
            taken_minor = captured_of_minor(payment, charge)
            if back_minor > taken_minor:
                told.append(
                    f"refunded {back_minor} of the {taken_minor} captured by "
                    f"{charge.operation_id}, attempt {charge.attempt}"
                )
    return "; ".join(told) or None


def is_acknowledged(payment: Payment, finding: str, figures: str) -> bool:
    """Whether somebody has acknowledged this finding with these figures."""
    return any((each.finding, each.figures) == (finding, figures) for each in payment.acknowledged)


def acknowledging(payment: Payment, word: Acknowledgement) -> tuple[Acknowledgement, ...]:
    """The payment's acknowledgements with one more: of each finding the latest is kept."""
    others = (each for each in payment.acknowledged if each.finding != word.finding)
    return (*others, word)

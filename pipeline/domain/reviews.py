"""What a payment in review is reviewed for, and whether a person's word is about that.

An order may be in review more than once: when no word came about the permit that its approval
asked for. A retry has a review of its own. A word that names one is about no other, however late it
comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pipeline.domain.model import Payment, PaymentCommand

REVIEW_MUST_BE_OF_WHAT_IS_IN_REVIEW: Final = "review_must_be_of_what_is_in_review"


def reviewed(payment: Payment) -> tuple[str, int]:
    """The operation that a payment in review would begin with, and which attempt of it."""
    if payment.assessed_retry is not None:
        return payment.assessed_retry, 1
    made = sum(each.operation_id == payment.order_id for each in payment.attempts)
    return payment.order_id, made + 1


def by_urgency(payments: Iterable[Payment]) -> list[Payment]:
    """Payments in review, the one whose review ends first before the others. When a review began is
    not kept, and what was last written to a payment may be about something else."""
    return sorted(
        payments, key=lambda p: (p.expires_at_ms is None, p.expires_at_ms or 0, p.ordered_at_ms)
    )


def is_first_review(payment: Payment) -> bool:
    """Whether nobody can have decided about a review of this payment before."""
    return reviewed(payment) == (payment.order_id, 1)


def is_about(payment: Payment, command: PaymentCommand) -> bool:
    """Whether a word is about what is in review; one that names nothing is about whatever is."""
    operation_id, attempt = reviewed(payment)
    return command.operation_id in (None, operation_id) and command.attempt in (None, attempt)


def review_name(payment: Payment) -> str:
    """As people name it: the operation, and the attempt where it is not the first."""
    operation_id, attempt = reviewed(payment)
    return operation_id if attempt == 1 else f"{operation_id}:{attempt}"

"""Operations that the pipeline begins by itself, told by their ids: what each gives back or ends.

Where such an id would have been the order's own, it is another one by now
(``ids.reversal_operation_id``). Operations of before keep theirs: they are voids and refunds, and
what the order's id names is its first charge.
"""

from __future__ import annotations

from pipeline.domain.ids import expiry_operation_id, reversal_operation_id
from pipeline.domain.lifecycle import MAIN_KINDS, REFUND, VOID
from pipeline.domain.model import Attempt, Payment


def is_reversal_of(payment: Payment, operation: Attempt, taken: Attempt) -> bool:
    """Whether an operation gives back what an attempt took too late."""
    return operation.kind in (VOID, REFUND) and operation.operation_id in (
        reversal_operation_id(payment.order_id, taken.operation_id, taken.attempt),
        f"late-{taken.operation_id}-{taken.attempt}",
    )


def is_expiry_of(payment: Payment, operation: Attempt, authorization: Attempt) -> bool:
    """Whether an operation voids an authorization at its end."""
    return operation.kind == VOID and operation.operation_id in (
        expiry_operation_id(payment.order_id, authorization.operation_id),
        f"expiry-{authorization.operation_id}",
    )


def is_expiry(payment: Payment, attempt: Attempt) -> bool:
    """Whether this void ends an authorization at its time."""
    return any(
        each.kind in MAIN_KINDS and is_expiry_of(payment, attempt, each)
        for each in payment.attempts
    )


def gives_back(payment: Payment, attempt: Attempt) -> bool:
    """Whether this operation gives back what came too late."""
    return any(is_reversal_of(payment, attempt, each) for each in payment.attempts)

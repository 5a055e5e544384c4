"""What is lost: more was given back, by refunds and by banks, than was ever captured."""

from __future__ import annotations

from pipeline.domain.decision import Decision
from pipeline.domain.lifecycle import (
    LOSS_POSTED,
)
from pipeline.domain.model import Payment
from pipeline.domain.payment import (
    decision,
    followed,
    told,
)


def with_loss(before: Payment, made: Decision, now_ms: int) -> Decision:
    """The decision, and the event of what it loses: more given back than was ever captured."""
    after = made.payment
    if after is None or not after.charged_back_minor:
        return made
    loss_minor = _loss(after)
    if loss_minor <= max(0, _loss(before)):
        return made
    detail = (
        f"{after.refunded_minor} refunded and {after.charged_back_minor} charged back of "
        f"{after.captured_minor} captured"
    )
    changed, event = told(after, LOSS_POSTED, now_ms, operation_minor=loss_minor, detail=detail)
    return followed(made, decision(changed, event))


def _loss(payment: Payment) -> int:
    return payment.refunded_minor + payment.charged_back_minor - payment.captured_minor

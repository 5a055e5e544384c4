"""How a capture, a void or a refund begins."""

from __future__ import annotations

from pipeline.domain.decision import Decision
from pipeline.domain.model import Attempt, Payment
from pipeline.domain.payment import begun, decision, first_try, request_of
from pipeline.domain.policy import Policy


def begin_operation(
    payment: Payment,
    kind: str,
    operation_id: str,
    parent: Attempt,
    amount_minor: int,
    now_ms: int,
    policy: Policy,
    *,
    event: str | None = None,
    reason: str | None = None,
    actor: str | None = None,
    business_date: str | None = None,
) -> Decision:
    """Ask for a capture, a void or a refund where ``parent``, which it is about, was made."""
    attempt = first_try(
        operation_id,
        kind,
        parent.gateway,
        1,
        policy.send_within_ms,
        now_ms,
        amount_minor=amount_minor,
        business_date=business_date,
        parent=parent,
    )
    changed, sent = begun(payment, attempt, now_ms, event=event, reason=reason, actor=actor)
    return decision(changed, request_of(changed, attempt), sent)

"""What ends by itself: an authorization, a late hold, a review, the wait for a customer, for an
order or for its counts.

A timer's record is passed on from tier to tier until its time. It acts only if the payment still
waits for that very time (``expires_at_ms``), or for the end of a hold that is still owed; any other
is stale.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.commands import REVIEW_MUST_BE_IN_TIME, open_void
from pipeline.domain.decision import Decision
from pipeline.domain.ids import expiry_operation_id
from pipeline.domain.lifecycle import (
    AUTHORIZATION_LAPSED,
    AUTHORIZATION_PROLONGED,
    AUTHORIZED,
    AWAITING_ORDER,
    CAPTURE,
    CAPTURED,
    DEADLINE_PASSED,
    REQUIRES_CUSTOMER_ACTION,
    RISK_REVIEW,
    VOID,
)
from pipeline.domain.model import Payment, PaymentDue
from pipeline.domain.payment import (
    amount_of,
    decision,
    in_flight,
    moved,
    reserved_minor,
    standing_main,
    timer_of,
    told,
)
from pipeline.domain.policy import Policy
from pipeline.domain.routing import profile_of
from pipeline.domain.tiers import tier_not_longer
from pipeline.processors.commands import refuse_assessed_retry, reject_waiting
from pipeline.processors.holds import HOLD_ENDS, holds_due
from pipeline.processors.operations import begin_operation
from pipeline.processors.retries import assessed_retry
from pipeline.processors.risk import counts_missing

NOT_YET_DUE: Final = "not_yet_due"
STALE_DUE: Final = "stale_due"
ORDER_MUST_ARRIVE: Final = "order_must_arrive"

_STALE_DUE: Final = Decision(note=STALE_DUE)


def process_timer(payment: Payment, due: PaymentDue, now_ms: int, policy: Policy) -> Decision:
    """Decide about a timer whose tier is over; ``now_ms`` is when it entered that tier."""
    due_at_ms = due.due_at_ms
    if due_at_ms is not None and due.reason == HOLD_ENDS:
        again = passed_on(due, now_ms, policy)
        return again or _ended_holds(payment, due_at_ms, now_ms, policy)
    if due_at_ms is None or payment.expires_at_ms != due_at_ms:
        return _STALE_DUE
    again = passed_on(due, now_ms, policy)
    if again is not None:
        return again
    if payment.risk_awaited:
        return counts_missing(payment, now_ms, policy)
    if assessed_retry(payment) is not None:
        return refuse_assessed_retry(payment, REVIEW_MUST_BE_IN_TIME, now_ms)
    if payment.status in (REQUIRES_CUSTOMER_ACTION, RISK_REVIEW):
        changed, event = moved(
            payment,
            DEADLINE_PASSED,
            now_ms,
            reason=due.reason,
            expires_at_ms=None,
            next_action_url=None,
        )
        return decision(changed, event)
    if payment.status == AWAITING_ORDER:
        return reject_waiting(replace(payment, expires_at_ms=None), ORDER_MUST_ARRIVE, now_ms)
    if payment.status not in (AUTHORIZED, CAPTURED):
        return _STALE_DUE
    longer = _lives_longer(payment, due, due_at_ms, now_ms, policy)
    if longer is not None:
        return longer
    if in_flight(payment) or reserved_minor(payment, CAPTURE) or open_void(payment) is not None:
        # A capture or a void is under way; what is left afterwards ends then.
        return _again(due, 1)
    if payment.status == CAPTURED:
        # Partly captured: the rest of the hold goes by itself, and is no longer ours to take.
        changed, event = told(
            payment,
            AUTHORIZATION_LAPSED,
            now_ms,
            reason=due.reason,
            operation_minor=payment.authorized_minor - payment.captured_minor,
            authorized_minor=payment.captured_minor,
            expires_at_ms=None,
        )
        return decision(changed, event)
    authorization = standing_main(payment)
    if authorization is None:
        return _STALE_DUE
    return begin_operation(
        replace(payment, expires_at_ms=None),
        VOID,
        expiry_operation_id(payment.order_id, authorization.operation_id),
        authorization,
        amount_of(payment, authorization),
        now_ms,
        policy,
        reason=due.reason,
    )


def _lives_longer(
    payment: Payment, due: PaymentDue, due_at_ms: int, now_ms: int, policy: Policy
) -> Decision | None:
    """What waits on for the end of an authorization whose gateway lets it live longer than when its
    timer began: it may have been taken out just then, and nobody knew."""
    authorization = standing_main(payment)
    profile = profile_of(policy, authorization.gateway) if authorization is not None else None
    if authorization is None or profile is None:
        return None
    ends_ms = authorization.updated_at_ms + profile.authorization_ms
    if ends_ms <= due_at_ms:
        return None
    changed, event = told(
        payment,
        AUTHORIZATION_PROLONGED,
        now_ms,
        reason=due.reason,
        operation_id=authorization.operation_id,
        expires_at_ms=ends_ms,
    )
    return decision(changed, timer_of(changed, ends_ms, due.reason or "", policy, now_ms), event)


def _ended_holds(payment: Payment, due_at_ms: int, now_ms: int, policy: Policy) -> Decision:
    made = holds_due(payment, due_at_ms, now_ms, policy)
    return made if made.payment is not None or made.sends else _STALE_DUE


def passed_on(due: PaymentDue, now_ms: int, policy: Policy) -> Decision | None:
    """What sends a timer on that entered its tier at ``now_ms``, or None when its time has come."""
    delays_ms = policy.timer_delays_ms
    ends_ms = now_ms + delays_ms[min(due.tier, len(delays_ms)) - 1]
    if due.due_at_ms is None or ends_ms >= due.due_at_ms:
        return None
    return _again(due, tier_not_longer(delays_ms, due.due_at_ms - ends_ms))


def _again(due: PaymentDue, tier: int) -> Decision:
    return Decision(sends=(replace(due, tier=tier),), note=NOT_YET_DUE)

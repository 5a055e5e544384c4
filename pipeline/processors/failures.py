"""What follows once an attempt has ended without having moved anything."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.decision import Decision
from pipeline.domain.lifecycle import (
    AUTHORIZED,
    CANCEL_CONFIRMED,
    DEADLINE_PASSED,
    DECLINE_SEEN,
    DECLINED,
    DECLINED_FINALLY,
    FAILOVER_STARTED,
    GIVE_UP,
    GIVEN_UP,
    MAIN_KINDS,
    OUTCOME_UNKNOWN,
    PROCESSING,
    REFUND,
    VOID,
    attempt_step,
)
from pipeline.domain.model import Attempt, GatewayResult, Payment
from pipeline.domain.normalisation import Action, action_of
from pipeline.domain.own_operations import is_expiry
from pipeline.domain.payment import (
    UNDECIDED,
    begun,
    charge_deadline_ms,
    decision,
    first_try,
    gateway_profile,
    replaced,
    request_of,
    stepped,
)
from pipeline.domain.policy import Policy
from pipeline.domain.references import taken_id
from pipeline.domain.routing import Route, facts_of, route
from pipeline.processors.permits import is_capped, needs_permit, permit_asked, with_instrument
from pipeline.processors.reversals import with_owed_again, with_successor
from pipeline.processors.unknowns import known_by

# Reason of a failure: the operation's own time is over, at whichever gateway.
ORDER_TOO_OLD: Final = "order_too_old"


def declined(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """The gateway's final no: another gateway may say yes to what was its own trouble."""
    told = taken_id(payment, attempt, result.gateway_reference, policy)
    attempt = replace(attempt, gateway_reference=told, code=result.code, uncertain_since_ms=0)
    reason = result.code or DECLINED
    chosen = _after_decline(payment, attempt, now_ms, policy)
    if chosen is not None:
        return moved_on(payment, attempt, chosen, DECLINE_SEEN, reason, now_ms, policy)
    made = _ended(payment, attempt, DECLINE_SEEN, reason, now_ms, policy)
    return with_successor(made, attempt, now_ms, policy)


def _after_decline(payment: Payment, attempt: Attempt, now_ms: int, policy: Policy) -> Route | None:
    """Who gets a charge that was declined for the gateway's own reasons; None: it has failed.

    A decline proves that nothing moved. A copy in a frozen worker's hands can only be declined
    again, but for that the gateway must take a key once, and remember it for as long as the copy
    may be sent. A customer who was sent to one gateway's page is not sent to the next one's.
    """
    if (
        attempt.kind not in MAIN_KINDS
        or action_of(attempt.code) is not Action.OTHER_GATEWAY
        or payment.status not in (PROCESSING, OUTCOME_UNKNOWN)
        or payment.cancel_requested_by is not None
        or now_ms >= charge_deadline_ms(payment, attempt, policy)
    ):
        return None
    profile = gateway_profile(policy, attempt.gateway)
    sendable_until_ms = max(
        attempt.sendable_until_ms, now_ms + attempt.send_within_ms + policy.clock_skew_ms
    )
    if (
        not profile.idempotent
        or sendable_until_ms >= attempt.started_at_ms + profile.key_retention_ms
    ):
        return None
    chosen = next_gateway(payment, attempt, policy)
    if chosen is None or is_capped(payment, chosen.profile.name, now_ms, policy):
        return None
    return chosen


def next_gateway(payment: Payment, attempt: Attempt, policy: Policy) -> Route | None:
    """The gateway for the operation's next attempt, or None when all that could have it did."""
    tried = {e.gateway for e in payment.attempts if e.operation_id == attempt.operation_id}
    return route(policy, facts_of(payment, payment.payment_id, payment.retry_token), tried)


def moved_on(
    payment: Payment,
    attempt: Attempt,
    chosen: Route,
    trigger: str,
    reason: str,
    now_ms: int,
    policy: Policy,
) -> Decision:
    """End an attempt of which nothing moved or will, and begin the next one elsewhere."""
    step = attempt_step(attempt.kind, attempt.state, trigger)
    ended = replace(attempt, state=step.to, updated_at_ms=now_ms, uncertain_since_ms=0)
    started = first_try(
        attempt.operation_id,
        attempt.kind,
        chosen.profile.name,
        attempt.attempt + 1,
        policy.send_within_ms,
        now_ms,
        because=chosen.because,
    )
    started = with_instrument(payment, started)
    without = replace(payment, attempts=replaced(payment, ended))
    if needs_permit(payment, policy):
        return permit_asked(
            without,
            started,
            now_ms,
            policy,
            moves=known_by(payment, attempt),
            reason=reason,
            detail=chosen.because,
        )
    changed, event = begun(
        without,
        started,
        now_ms,
        event=FAILOVER_STARTED,
        moves=known_by(payment, attempt),
        reason=reason,
        detail=chosen.because,
    )
    # The operation's time goes on, whichever gateway has it.
    not_after_ms = charge_deadline_ms(changed, started, policy)
    request = replace(request_of(changed, started), not_after_ms=not_after_ms)
    return decision(changed, request, event)


def gave_up(
    payment: Payment,
    attempt: Attempt,
    reason: str,
    now_ms: int,
    policy: Policy,
    *,
    trigger: str = GIVE_UP,
    actor: str | None = None,
    detail: str | None = None,
) -> Decision:
    """Nothing more is tried, and nothing is known to have moved."""
    attempt = replace(attempt, uncertain_since_ms=0)
    return _ended(payment, attempt, trigger, reason, now_ms, policy, actor=actor, detail=detail)


def _ended(
    payment: Payment,
    attempt: Attempt,
    trigger: str,
    reason: str,
    now_ms: int,
    policy: Policy,
    *,
    actor: str | None = None,
    detail: str | None = None,
) -> Decision:
    moves = None
    if attempt.kind in MAIN_KINDS:
        if payment.status in UNDECIDED:
            if payment.cancel_requested_by is not None:
                moves = CANCEL_CONFIRMED
            else:
                moves = DECLINED_FINALLY if trigger == DECLINE_SEEN else GIVEN_UP
            changed, event = stepped(
                payment, attempt, trigger, now_ms, moves=moves, reason=reason, actor=actor,
                detail=detail, next_action_url=None, expires_at_ms=None,
            )  # fmt: skip
            return decision(changed, event)
    elif attempt.kind == VOID and payment.status == AUTHORIZED and is_expiry(payment, attempt):
        # Void or not, the hold is over by now: the gateway lets it lapse by itself.
        changed, event = stepped(
            payment, attempt, trigger, now_ms, moves=DEADLINE_PASSED, reason=reason, actor=actor,
            detail=detail, authorized_minor=payment.captured_minor,
        )  # fmt: skip
        return decision(changed, event)
    changed, event = stepped(
        payment, attempt, trigger, now_ms, reason=reason, actor=actor, detail=detail
    )
    made = decision(changed, event)
    if attempt.kind != REFUND:
        return made
    return with_owed_again(payment, made, now_ms, policy, by=attempt)

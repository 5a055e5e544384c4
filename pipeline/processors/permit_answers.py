"""The answer about a permit, or that none came: the attempt begins, or ends by name."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.attempt_caps import ATTEMPTS_MUST_NOT_EXCEED_CAP, CARD_MUST_NOT_BE_TRIED_AGAIN
from pipeline.domain.card_attempts import BARRED
from pipeline.domain.card_attempts import GIVEN as PERMIT_IS_GIVEN
from pipeline.domain.decision import Decision
from pipeline.domain.lifecycle import (
    DEADLINE_PASSED,
    FAILOVER_STARTED,
    GIVE_UP,
    PAYMENT_RETRIED,
    PAYMENT_STARTED,
    PERMIT_GIVEN,
    PERMIT_WAITING,
    REVIEW_ASKED,
)
from pipeline.domain.model import Attempt, Payment, RiskResult
from pipeline.domain.payment import charge_deadline_ms, decision, request_of, stepped, timer_of
from pipeline.domain.policy import Policy
from pipeline.domain.risk import COUNTS_MISSING
from pipeline.domain.validation import PAY_BEFORE_MUST_BE_AHEAD
from pipeline.processors.commands import with_waiting_commands
from pipeline.processors.decided import with_refused_approval
from pipeline.processors.failures import ORDER_TOO_OLD, gave_up
from pipeline.processors.permits import GIVEN, attempt_key, told_again
from pipeline.processors.retries import REVIEW_ENDS

STALE_RISK_RESULT: Final = "stale_risk_result"


def answer_permit(payment: Payment, result: RiskResult, now_ms: int, policy: Policy) -> Decision:
    """Decide about an answer of a card's counter; ``now_ms`` is its append time.

    An answer that nobody waits for changes nothing in the payment. A permit that comes after its
    attempt's end is given back: its ask may have been counted only then.
    """
    attempt = waits_for_permit(payment, result)
    if attempt is None:
        is_given = result.permit == PERMIT_IS_GIVEN
        again = told_again(payment, result.attempt_key, policy) if is_given else ()
        return Decision(sends=again, note=STALE_RISK_RESULT)
    if result.permit == PERMIT_IS_GIVEN:
        made = _begun(payment, attempt, now_ms, policy)
    else:
        barred = result.permit == BARRED
        reason = CARD_MUST_NOT_BE_TRIED_AGAIN if barred else ATTEMPTS_MUST_NOT_EXCEED_CAP
        # Refused, it holds nothing that would have to be given back.
        refused = replace(attempt, permit="", code=reason)
        made = gave_up(payment, refused, reason, now_ms, policy, detail=result.detail or None)
    made = with_refused_approval(made, attempt, now_ms, result.detail or None)
    return with_waiting_commands(made, now_ms, policy)


def waits_for_permit(payment: Payment, result: RiskResult) -> Attempt | None:
    """The attempt that waits for this answer, if there is one."""
    for each in payment.attempts:
        if each.state == PERMIT_WAITING and attempt_key(payment, each) == result.attempt_key:
            return each
    return None


def permit_missing(
    payment: Payment,
    attempt: Attempt,
    now_ms: int,
    policy: Policy,
    *,
    due_at_ms: int | None = None,
) -> Decision:
    """The wait for a permit is over and no answer came: the counter does not run, or those in
    flight do not end. An order goes to a person; what a gateway was asked for before fails."""
    ended = replace(attempt, code=COUNTS_MISSING)
    if _is_too_late(payment, now_ms) or (
        payment.pay_before_ms is not None and due_at_ms == payment.pay_before_ms
    ):
        made = _expired(payment, attempt, now_ms)
    elif attempt.operation_id != payment.order_id or any(e.tries for e in payment.attempts):
        made = gave_up(payment, ended, COUNTS_MISSING, now_ms, policy)
    else:
        ends_ms = now_ms + policy.review_ms
        if payment.pay_before_ms is not None:
            ends_ms = min(ends_ms, payment.pay_before_ms)
        changed, event = stepped(
            payment,
            ended,
            GIVE_UP,
            now_ms,
            moves=REVIEW_ASKED,
            reason=COUNTS_MISSING,
            detail="no word about the permit of its card",
            expires_at_ms=ends_ms,
        )
        timer = timer_of(changed, ends_ms, REVIEW_ENDS, policy, now_ms)
        made = decision(changed, timer, event)
    made = with_refused_approval(made, attempt, now_ms)
    return with_waiting_commands(made, now_ms, policy)


def _begun(payment: Payment, attempt: Attempt, now_ms: int, policy: Policy) -> Decision:
    if _is_too_late(payment, now_ms):
        return _expired(payment, attempt, now_ms)
    before = any(
        each.tries and each.operation_id == attempt.operation_id for each in payment.attempts
    )
    # The operation's time goes on, whichever gateway has it.
    not_after_ms = charge_deadline_ms(payment, attempt, policy) if before else 0
    if before and now_ms >= not_after_ms:
        late = replace(attempt, code=ORDER_TOO_OLD)
        return gave_up(payment, late, ORDER_TOO_OLD, now_ms, policy)
    started = replace(
        attempt,
        tries=1,
        permit=GIVEN,
        started_at_ms=now_ms,
        send_within_ms=policy.send_within_ms,
    )
    if before:
        told = FAILOVER_STARTED
    else:
        told = PAYMENT_STARTED if attempt.operation_id == payment.order_id else PAYMENT_RETRIED
    changed, event = stepped(
        payment,
        started,
        PERMIT_GIVEN,
        now_ms,
        event=told,
        reason=payment.reason,
        detail=attempt.routed_because,
    )
    request = replace(request_of(changed, started), not_after_ms=not_after_ms)
    return decision(changed, request, event)


def _expired(payment: Payment, attempt: Attempt, now_ms: int) -> Decision:
    changed, event = stepped(
        payment,
        replace(attempt, code=PAY_BEFORE_MUST_BE_AHEAD),
        GIVE_UP,
        now_ms,
        moves=DEADLINE_PASSED,
        reason=PAY_BEFORE_MUST_BE_AHEAD,
    )
    return decision(changed, event)


def _is_too_late(payment: Payment, now_ms: int) -> bool:
    return payment.pay_before_ms is not None and now_ms >= payment.pay_before_ms

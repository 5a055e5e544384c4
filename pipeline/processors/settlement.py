"""The settlement processor: evidence and waits carry a payment to its outcome.

What it never does: guess. A charge that may have happened is inquired about until a gateway says
what became of it; a payment fails, or another gateway is tried, only when nobody can send the
charge any more. How that is known stands in ``docs/lifecycle.md``.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.answer import DECLINED, NOT_FOUND, NOT_SENT, PENDING, SUCCEEDED
from pipeline.domain.decision import Decision
from pipeline.domain.ids import settlement_id
from pipeline.domain.lifecycle import (
    ATTEMPT_FAILED,
    CHARGE_AGAIN,
    CHARGED,
    CONTRADICTED,
    CONTRADICTION_SEEN,
    CONTRADICTORY_EVIDENCE,
    DECLINE_SEEN,
    GIVE_UP,
    INQUIRIES_EXHAUSTED,
    INQUIRING,
    INQUIRY_DUE,
    INQUIRY_INCONCLUSIVE,
    INQUIRY_WAITING,
    MOVE_ON,
    NOT_SENT_SEEN,
    OPEN_PLACES,
    OUTCOME_UNCERTAIN,
    OUTCOME_UNKNOWN,
    PROCESSING,
    PROOF_DUE,
    RETRY_DUE,
    RETRY_WAITING,
    STARTED,
    SUCCESS_SEEN,
    transition,
)
from pipeline.domain.model import Attempt, GatewayResult, Payment, PaymentDue, Settlement
from pipeline.domain.payment import (
    CHARGE,
    INQUIRE,
    INQUIRY,
    RETRY,
    charge_deadline_ms,
    dead_lettered,
    decision,
    due_of,
    event_of,
    first_try,
    request_of,
    stepped,
)
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.routing import Route, facts_of, profile_of, route

# Kinds of settlements.
CAPTURE: Final = "capture"

# Causes of dead letters.
UNKNOWN_PAYMENT: Final = "unknown_payment"
UNKNOWN_ATTEMPT: Final = "unknown_attempt"
UNKNOWN_PURPOSE: Final = "unknown_purpose"
AMOUNT_MISMATCH: Final = "amount_mismatch"

# Notes: inputs without effect.
STALE_RESULT: Final = "stale_result"
STALE_DUE: Final = "stale_due"
SEND_WINDOW_OPEN: Final = "send_window_open"

# Reasons of a failure.
GATEWAY_UNAVAILABLE: Final = "gateway_unavailable"
PAY_BEFORE_PASSED: Final = "pay_before_passed"
ORDER_TOO_OLD: Final = "order_too_old"
KEY_RETENTION_PASSED: Final = "key_retention_passed"
RESENDS_EXHAUSTED: Final = "resends_exhausted"

# Not sent because of the load, here or there, or because a worker stopped: such waits are not
# counted as retries, since overload may slow a payment but must not fail it. The order's own
# deadline still bounds them.
OVERLOAD_CODES: Final = frozenset(
    {
        "send_before_passed",
        "rate_limited",
        "pool_timeout",
        "shutting_down",
        "throttled",
        "breaker_open",
    }
)

_STALE_RESULT: Final = Decision(note=STALE_RESULT)
_STALE_DUE: Final = Decision(note=STALE_DUE)
_OPEN: Final = frozenset(OPEN_PLACES)


def process_result(
    payment: Payment | None, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """Decide about one result; ``now_ms`` is its append time.

    Redelivered and outdated results have no effect (``stale_result``), except that a success is
    always either taken, already known, or dead-lettered as contradictory.
    """
    if payment is None:
        detail = f"no payment {result.payment_id} of order {result.order_id} is known"
        return Decision(dead_letter=UNKNOWN_PAYMENT, detail=detail)
    if result.payment_id != payment.payment_id:
        detail = f"the result names payment {result.payment_id}, not {payment.payment_id}"
        return dead_lettered(payment, UNKNOWN_PAYMENT, detail, now_ms)
    attempt = payment.attempts[-1] if payment.attempts else None
    if (
        attempt is None
        or result.attempt != attempt.attempt
        or result.operation_id != attempt.operation_id
        or result.gateway != attempt.gateway
    ):
        return _about_another_attempt(payment, result, now_ms)
    if result.try_number != attempt.tries:
        if result.try_number > attempt.tries:
            return _about_unknown_attempt(payment, result, now_ms)
        return _outdated(payment, attempt, result, now_ms)
    if attempt.state == STARTED and result.kind == CHARGE:
        return _charge_answered(payment, attempt, result, now_ms, policy)
    if attempt.state == INQUIRING and result.kind == INQUIRE:
        return _inquiry_answered(payment, attempt, result, now_ms, policy)
    return _outdated(payment, attempt, result, now_ms)


def process_due(payment: Payment | None, due: PaymentDue, now_ms: int, policy: Policy) -> Decision:
    """Decide about a wait that is over; ``now_ms`` is the append time of its record.

    Nothing here relies on the tier's delay: a record that comes early, late or twice asks sooner,
    asks later, or is dropped (``stale_due``).
    """
    if payment is None:
        detail = f"no payment {due.payment_id} of order {due.order_id} is known"
        return Decision(dead_letter=UNKNOWN_PAYMENT, detail=detail)
    attempt = payment.attempts[-1] if payment.attempts else None
    if (
        attempt is None
        or due.payment_id != payment.payment_id
        or due.attempt != attempt.attempt
        or due.operation_id != attempt.operation_id
        or due.try_number != attempt.tries
    ):
        return _STALE_DUE
    if due.purpose == RETRY:
        if attempt.state != RETRY_WAITING:
            return _STALE_DUE
        return _retry_due(payment, attempt, due, now_ms, policy)
    if due.purpose == INQUIRY:
        if attempt.state != INQUIRY_WAITING:
            return _STALE_DUE
        return _inquire(payment, attempt, INQUIRY_DUE, now_ms)
    detail = f"{due.purpose!r} is neither retry nor inquiry"
    return dead_lettered(payment, UNKNOWN_PURPOSE, detail, now_ms)


def _charge_answered(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    # The request was appended before its result, so no copy of it in a frozen worker's hands can
    # be sent later than this. That holds however long any lane lags.
    sendable_until_ms = now_ms + attempt.send_within_ms + policy.clock_skew_ms
    attempt = replace(
        attempt,
        sendable_until_ms=max(attempt.sendable_until_ms, sendable_until_ms),
        code=result.code,
    )
    if result.outcome == SUCCEEDED and result.gateway_reference:
        return _succeeded(payment, attempt, result, result.gateway_reference, now_ms)
    if result.outcome == DECLINED:
        return _declined(payment, attempt, result, now_ms)
    if result.outcome == NOT_SENT:
        changed, event = stepped(payment, attempt, NOT_SENT_SEEN, now_ms, reason=result.code)
        return decision(changed, due_of(changed, result.code), event)
    return _uncertain(payment, attempt, result, now_ms)


def _inquiry_answered(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    if result.outcome == SUCCEEDED and result.gateway_reference:
        return _succeeded(payment, attempt, result, result.gateway_reference, now_ms)
    if result.outcome == DECLINED:
        return _declined(payment, attempt, result, now_ms)
    if result.outcome == PENDING and payment.status == PROCESSING:
        # The gateway knows a charge that we believed unsent.
        return _uncertain(payment, attempt, result, now_ms)
    if result.outcome == NOT_FOUND:
        if _is_proof(attempt, now_ms, policy):
            return _proven_unsent(payment, attempt, now_ms, policy)
        if _may_send_again(payment, attempt, now_ms, policy):
            return _sent_again(payment, attempt, now_ms, policy)

    attempt = replace(attempt, code=result.code)
    if payment.status == PROCESSING and attempt.inquiries >= policy.proof_inquiry_max:
        reason = _refusal(payment, attempt, now_ms, policy) or GATEWAY_UNAVAILABLE
        return _gave_up(payment, attempt, reason, now_ms)
    if payment.status == OUTCOME_UNKNOWN and attempt.inquiries >= policy.inquiry_max:
        reason = result.code or result.outcome
        changed, event = stepped(payment, attempt, INQUIRIES_EXHAUSTED, now_ms, reason=reason)
        return decision(changed, event)
    reason = result.code or result.outcome
    changed, event = stepped(payment, attempt, INQUIRY_INCONCLUSIVE, now_ms, reason=reason)
    return decision(changed, due_of(changed, reason), event)


def _retry_due(
    payment: Payment, attempt: Attempt, due: PaymentDue, now_ms: int, policy: Policy
) -> Decision:
    if _refusal(payment, attempt, now_ms, policy) is not None:
        grace_ms = _profile(policy, attempt.gateway).grace_ms
        if now_ms < attempt.sendable_until_ms + grace_ms:
            # A frozen worker may still send it: neither give up nor believe an inquiry yet.
            return Decision(sends=(due,), note=SEND_WINDOW_OPEN)
        return _inquire(payment, attempt, PROOF_DUE, now_ms)
    counted = attempt.code not in OVERLOAD_CODES
    attempt = replace(
        attempt,
        tries=attempt.tries + 1,
        retries=attempt.retries + counted,
        send_within_ms=policy.send_within_ms,
    )
    changed, event = stepped(payment, attempt, RETRY_DUE, now_ms, reason=attempt.code)
    return decision(changed, request_of(changed, CHARGE), event)


def _inquire(payment: Payment, attempt: Attempt, trigger: str, now_ms: int) -> Decision:
    attempt = replace(attempt, tries=attempt.tries + 1, inquiries=attempt.inquiries + 1)
    changed, event = stepped(payment, attempt, trigger, now_ms, reason=payment.reason)
    return decision(changed, request_of(changed, INQUIRE), event)


def _succeeded(
    payment: Payment, attempt: Attempt, result: GatewayResult, reference: str, now_ms: int
) -> Decision:
    attempt = replace(attempt, gateway_reference=reference, code=result.code)
    if result.amount_minor != payment.amount_minor or result.currency != payment.currency:
        # Money moved, but not the money that was asked for: a person decides what is booked.
        detail = (
            f"{result.gateway} says {result.amount_minor} {result.currency} were charged, asked "
            f"were {payment.amount_minor} {payment.currency} (reference {reference})"
        )
        return _contradicted(payment, attempt, AMOUNT_MISMATCH, detail, now_ms)
    changed, event = stepped(
        payment, attempt, SUCCESS_SEEN, now_ms, captured_minor=payment.amount_minor
    )
    settlement = Settlement(
        settlement_id=settlement_id(payment.payment_id, attempt.operation_id, CAPTURE),
        merchant_id=payment.merchant_id,
        order_id=payment.order_id,
        payment_id=payment.payment_id,
        operation_id=attempt.operation_id,
        kind=CAPTURE,
        amount_minor=payment.amount_minor,
        currency=payment.currency,
        gateway=attempt.gateway,
        gateway_reference=reference,
        business_date=payment.business_date,
        ordered_at_ms=payment.ordered_at_ms,
        settled_at_ms=now_ms,
    )
    return decision(changed, settlement, event)


def _declined(payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int) -> Decision:
    attempt = replace(attempt, gateway_reference=result.gateway_reference, code=result.code)
    reason = result.code or DECLINED
    changed, event = stepped(payment, attempt, DECLINE_SEEN, now_ms, reason=reason)
    return decision(changed, event)


def _uncertain(payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int) -> Decision:
    reason = result.code or result.outcome
    reference = result.gateway_reference or attempt.gateway_reference
    attempt = replace(attempt, gateway_reference=reference, code=reason)
    changed, event = stepped(payment, attempt, OUTCOME_UNCERTAIN, now_ms, reason=reason)
    return decision(changed, due_of(changed, reason), event)


def _proven_unsent(payment: Payment, attempt: Attempt, now_ms: int, policy: Policy) -> Decision:
    """The gateway does not know the charge and nobody can send it any more."""
    # Kept on the attempt when it ends: a failure with this code is proven.
    attempt = replace(attempt, code=NOT_FOUND)
    refusal = _refusal(payment, attempt, now_ms, policy)
    if refusal is None and attempt.resends >= policy.resend_max:
        refusal = RESENDS_EXHAUSTED
    if refusal is None:
        return _sent_again(payment, attempt, now_ms, policy)
    if now_ms < charge_deadline_ms(payment, policy):
        tried = [each.gateway for each in payment.attempts]
        chosen = route(policy, facts_of(payment, payment.payment_id), tried)
        if chosen is not None:
            return _moved_on(payment, attempt, chosen, refusal, now_ms, policy)
    return _gave_up(payment, attempt, refusal, now_ms)


def _sent_again(payment: Payment, attempt: Attempt, now_ms: int, policy: Policy) -> Decision:
    """The same attempt with the same key: a copy still on its way cannot make it two charges."""
    attempt = replace(
        attempt,
        tries=attempt.tries + 1,
        resends=attempt.resends + 1,
        send_within_ms=policy.send_within_ms,
    )
    changed, event = stepped(payment, attempt, CHARGE_AGAIN, now_ms, reason=NOT_FOUND)
    return decision(changed, request_of(changed, CHARGE), event)


def _moved_on(
    payment: Payment,
    attempt: Attempt,
    chosen: Route,
    reason: str,
    now_ms: int,
    policy: Policy,
) -> Decision:
    step = transition(payment.status, attempt.state, MOVE_ON)
    ended = replace(attempt, state=ATTEMPT_FAILED, updated_at_ms=now_ms)
    started = first_try(
        attempt.operation_id,
        chosen.profile.name,
        attempt.attempt + 1,
        policy.send_within_ms,
        now_ms,
        chosen.because,
    )
    changed = replace(
        payment,
        sequence=payment.sequence + 1,
        status=step.status,
        reason=reason,
        updated_at_ms=now_ms,
        attempts=(*payment.attempts[:-1], ended, started),
    )
    return decision(changed, request_of(changed, CHARGE), event_of(changed, step.event, reason))


def _gave_up(payment: Payment, attempt: Attempt, reason: str, now_ms: int) -> Decision:
    changed, event = stepped(payment, attempt, GIVE_UP, now_ms, reason=reason)
    return decision(changed, event)


def _outdated(payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int) -> Decision:
    """A result of the latest attempt that answers no open question."""
    if result.outcome == SUCCEEDED:
        if (payment.status, attempt.state) in _OPEN and result.gateway_reference:
            return _succeeded(payment, attempt, result, result.gateway_reference, now_ms)
        if (
            attempt.state == CHARGED
            and result.gateway_reference == attempt.gateway_reference
            and result.amount_minor == payment.amount_minor
            and result.currency == payment.currency
        ):
            return _STALE_RESULT
        return _contradictory(payment, result, now_ms)
    if result.outcome == DECLINED and attempt.state in (CHARGED, CONTRADICTED):
        return _contradictory(payment, result, now_ms)
    return _STALE_RESULT


def _about_another_attempt(payment: Payment, result: GatewayResult, now_ms: int) -> Decision:
    known = any(
        each.attempt == result.attempt
        and each.operation_id == result.operation_id
        and each.gateway == result.gateway
        for each in payment.attempts
    )
    if result.outcome == SUCCEEDED:
        attempt = payment.attempts[-1] if payment.attempts else None
        if known and attempt is not None and (payment.status, attempt.state) in _OPEN:
            # An attempt that was proven unsent has charged after all: send nothing more.
            detail = _contradiction(payment, result)
            return _contradicted(payment, attempt, CONTRADICTORY_EVIDENCE, detail, now_ms)
        return _contradictory(payment, result, now_ms)
    if known:
        return _STALE_RESULT
    return _about_unknown_attempt(payment, result, now_ms)


def _about_unknown_attempt(payment: Payment, result: GatewayResult, now_ms: int) -> Decision:
    if result.outcome == SUCCEEDED:
        return _contradictory(payment, result, now_ms)
    detail = (
        f"payment {payment.payment_id} has no try {result.try_number} of attempt {result.attempt} "
        f"of {result.operation_id} at {result.gateway}"
    )
    return dead_lettered(payment, UNKNOWN_ATTEMPT, detail, now_ms)


def _contradicted(
    payment: Payment, attempt: Attempt, cause: str, detail: str, now_ms: int
) -> Decision:
    """Stop the payment until a person has looked, and keep the evidence whole."""
    changed, event = stepped(payment, attempt, CONTRADICTION_SEEN, now_ms, reason=cause)
    changed = replace(changed, dead_letters=payment.dead_letters + 1)
    return Decision(payment=changed, sends=(event,), dead_letter=cause, detail=detail)


def _contradictory(payment: Payment, result: GatewayResult, now_ms: int) -> Decision:
    return dead_lettered(
        payment,
        CONTRADICTORY_EVIDENCE,
        _contradiction(payment, result),
        now_ms,
        event=CONTRADICTORY_EVIDENCE,
    )


def _contradiction(payment: Payment, result: GatewayResult) -> str:
    return (
        f"{result.gateway} says {result.outcome} for attempt {result.attempt}, try "
        f"{result.try_number} (reference {result.gateway_reference}), but payment "
        f"{payment.payment_id} is {payment.status}"
    )


def _is_proof(attempt: Attempt, now_ms: int, policy: Policy) -> bool:
    """Whether "not found" proves that the charge did not happen and will not.

    The inquiry must have been asked after the last moment of sending plus the gateway's grace
    (``updated_at_ms`` is when it was decided, so before it was asked), and while the gateway must
    still remember the key.
    """
    profile = _profile(policy, attempt.gateway)
    return (
        attempt.updated_at_ms >= attempt.sendable_until_ms + profile.grace_ms
        and now_ms < attempt.started_at_ms + profile.key_retention_ms
    )


def _may_send_again(payment: Payment, attempt: Attempt, now_ms: int, policy: Policy) -> bool:
    """Whether "not found" allows the same key again while an older copy may still be sent.

    It need not be proof, since the gateway takes one key once. It has to be more than the gateway's
    lag: asked after its grace time, counted from the evidence that the last charge was lost
    (appended ``send_within_ms`` and the clocks' difference before ``sendable_until_ms``).
    """
    profile = _profile(policy, attempt.gateway)
    lost_at_ms = attempt.sendable_until_ms - attempt.send_within_ms - policy.clock_skew_ms
    return (
        payment.status == OUTCOME_UNKNOWN
        and attempt.updated_at_ms >= lost_at_ms + profile.grace_ms
        and attempt.resends < policy.resend_max
        and _refusal(payment, attempt, now_ms, policy) is None
    )


def _refusal(payment: Payment, attempt: Attempt, now_ms: int, policy: Policy) -> str | None:
    """Why this attempt must not be sent again, or None when it may."""
    if attempt.retries >= policy.retry_max:
        return GATEWAY_UNAVAILABLE
    if now_ms >= charge_deadline_ms(payment, policy):
        if payment.pay_before_ms is not None and now_ms >= payment.pay_before_ms:
            return PAY_BEFORE_PASSED
        return ORDER_TOO_OLD
    if now_ms >= attempt.started_at_ms + _profile(policy, attempt.gateway).key_retention_ms:
        return KEY_RETENTION_PASSED
    return None


def _profile(policy: Policy, gateway: str) -> GatewayProfile:
    # A gateway taken out of the policy is still owed its outcome, judged by the defaults.
    return profile_of(policy, gateway) or GatewayProfile(name=gateway)

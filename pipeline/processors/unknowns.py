"""What is not known yet, or not done yet: it is asked about until it is."""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from pipeline.domain.decision import Decision, Outgoing
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.lifecycle import (
    ACTION_ASKED,
    ACTION_TAKEN,
    BECAME_KNOWN,
    BECAME_UNKNOWN,
    CANCEL_CONFIRMED,
    INQUIRIES_EXHAUSTED,
    MAIN_KINDS,
    OUTCOME_UNCERTAIN,
    OUTCOME_UNKNOWN,
    PENDING,
    PENDING_SEEN,
    REQUIRES_CUSTOMER_ACTION,
)
from pipeline.domain.model import Attempt, GatewayResult, Payment
from pipeline.domain.payment import (
    CUSTOMER_ACTION_REQUIRED,
    INQUIRE,
    PENDING_CODE,
    UNDECIDED,
    decision,
    find_attempt,
    request_of,
    stepped,
    timer_of,
    wait_of,
)
from pipeline.domain.policy import Policy

# Reason of the timer of a customer who is asked.
CUSTOMER_ACTION_ENDS: Final = "customer_action_ends"


def uncertain(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """It may have happened: ask until it is known."""
    reason = result.code or result.outcome
    attempt = replace(
        attempt,
        gateway_reference=result.gateway_reference or attempt.gateway_reference,
        code=reason,
        uncertain_since_ms=attempt.uncertain_since_ms or now_ms,
    )
    changed, event = stepped(
        payment,
        attempt,
        OUTCOME_UNCERTAIN,
        now_ms,
        moves=became_unknown(payment, attempt),
        reason=reason,
    )
    wait = waiting(changed, attempt, reason, policy, now_ms, result.retry_after_ms)
    return decision(changed, wait, event)


def inquire(payment: Payment, attempt: Attempt, trigger: str, now_ms: int) -> Decision:
    """Ask the gateway what became of an attempt."""
    attempt = replace(attempt, tries=attempt.tries + 1, inquiries=attempt.inquiries + 1)
    main = attempt.kind in MAIN_KINDS and payment.status in UNDECIDED
    reason = payment.reason if main else attempt.code
    changed, event = stepped(payment, attempt, trigger, now_ms, reason=reason)
    return decision(changed, request_of(changed, attempt, INQUIRE), event)


def exhausted(payment: Payment, attempt: Attempt, reason: str, now_ms: int) -> Decision:
    """The gateway was asked as often as policy allows: a person must look."""
    changed, event = stepped(
        payment,
        attempt,
        INQUIRIES_EXHAUSTED,
        now_ms,
        moves=became_unknown(payment, attempt),
        reason=reason,
    )
    return decision(changed, event)


def pending(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """The gateway has it and is not done; maybe the customer has something to do first."""
    asks = (
        result.code == CUSTOMER_ACTION_REQUIRED
        and attempt.kind in MAIN_KINDS
        and payment.status in UNDECIDED
    )
    attempt = replace(
        attempt,
        gateway_reference=result.gateway_reference or attempt.gateway_reference,
        code=CUSTOMER_ACTION_REQUIRED if asks else PENDING_CODE,
        uncertain_since_ms=0,
    )
    if asks and payment.cancel_requested_by is not None:
        changed, event = stepped(
            payment, attempt, PENDING_SEEN, now_ms, moves=CANCEL_CONFIRMED, reason=result.code
        )
        return decision(changed, waiting(changed, attempt, result.code, policy, now_ms), event)
    if asks and payment.status != REQUIRES_CUSTOMER_ACTION:
        expires_at_ms = now_ms + policy.customer_action_ms
        if payment.pay_before_ms is not None:
            expires_at_ms = min(expires_at_ms, payment.pay_before_ms)
        changed, event = stepped(
            payment,
            attempt,
            PENDING_SEEN,
            now_ms,
            moves=ACTION_ASKED,
            reason=result.code,
            next_action_url=result.next_action_url,
            expires_at_ms=expires_at_ms,
        )
        timer = timer_of(changed, expires_at_ms, CUSTOMER_ACTION_ENDS, policy, now_ms)
        wait = waiting(changed, attempt, result.code, policy, now_ms)
        return decision(changed, timer, wait, event)
    changes: dict[str, Any] = {}
    moves = known_by(payment, attempt)
    if asks:
        # Still asked; a notice does not carry the address, the answer or an inquiry does.
        changes["next_action_url"] = result.next_action_url or payment.next_action_url
    elif attempt.kind in MAIN_KINDS and payment.status in UNDECIDED:
        # The customer has acted, or nobody asks any more: no timer may end what goes on.
        changes = {"next_action_url": None, "expires_at_ms": None}
        if payment.status == REQUIRES_CUSTOMER_ACTION:
            moves = ACTION_TAKEN
    changed, event = stepped(
        payment,
        attempt,
        PENDING_SEEN,
        now_ms,
        moves=moves,
        reason=result.code or PENDING,
        **changes,
    )
    return decision(changed, waiting(changed, attempt, result.code, policy, now_ms), event)


def waiting(
    payment: Payment,
    attempt: Attempt,
    reason: str | None,
    policy: Policy,
    now_ms: int,
    retry_after_ms: int | None = None,
) -> Outgoing:
    """The wait of an attempt that has just been changed in ``payment``."""
    found = find_attempt(payment, attempt.operation_id, attempt.attempt)
    if found is None:
        raise InvariantBroken("a wait is of an attempt of the payment")
    return wait_of(payment, found, reason, policy, now_ms, retry_after_ms)


def known_by(payment: Payment, attempt: Attempt) -> str | None:
    """The payment's trigger when the outcome of one of its attempts is unknown no more."""
    unknown = payment.status == OUTCOME_UNKNOWN and attempt.kind in MAIN_KINDS
    return BECAME_KNOWN if unknown else None


def became_unknown(payment: Payment, attempt: Attempt) -> str | None:
    """The payment's trigger when the outcome of one of its attempts became unknown."""
    if attempt.kind in MAIN_KINDS and payment.status in UNDECIDED:
        return None if payment.status == OUTCOME_UNKNOWN else BECAME_UNKNOWN
    return None

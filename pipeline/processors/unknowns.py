"""What is not known yet: it is asked about until it is."""

from __future__ import annotations

from msgspec.structs import replace

from pipeline.domain.decision import Decision, Outgoing
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.lifecycle import (
    BECAME_KNOWN,
    BECAME_UNKNOWN,
    INQUIRIES_EXHAUSTED,
    MAIN_KINDS,
    OUTCOME_UNCERTAIN,
    OUTCOME_UNKNOWN,
)
from pipeline.domain.model import Attempt, GatewayResult, Payment
from pipeline.domain.payment import (
    INQUIRE,
    UNDECIDED,
    decision,
    find_attempt,
    request_of,
    stepped,
    wait_of,
)
from pipeline.domain.policy import Policy
from pipeline.domain.references import taken_id


def uncertain(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """It may have happened: ask until it is known."""
    reason = result.code or result.outcome
    told = taken_id(payment, attempt, result.gateway_reference, policy)
    attempt = replace(
        attempt,
        gateway_reference=told or attempt.gateway_reference,
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

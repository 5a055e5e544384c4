"""Building blocks of a decision: the next snapshot with its event, a request, a wait.

Every change of a payment is one step: its sequence rises by one and exactly one event tells of
it, so the two never drift apart.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.decision import Decision, Outgoing
from pipeline.domain.ids import event_id, idempotency_key
from pipeline.domain.invariant import invariant
from pipeline.domain.lifecycle import (
    INPUT_DEAD_LETTERED,
    RETRY_WAITING,
    STANDING_EVENTS,
    STARTED,
    transition,
)
from pipeline.domain.model import Attempt, Payment, PaymentDue, PaymentEvent, PaymentRequest
from pipeline.domain.policy import Policy

# Kinds of requests.
CHARGE: Final = "charge"
INQUIRE: Final = "inquire"

# Purposes of a wait.
RETRY: Final = "retry"
INQUIRY: Final = "inquiry"

# As many as the schema promises; there are never more attempts than gateways.
ATTEMPTS_MAX: Final = 32


def stepped(
    payment: Payment,
    attempt: Attempt,
    trigger: str,
    now_ms: int,
    *,
    reason: str | None = None,
    captured_minor: int = 0,
) -> tuple[Payment, PaymentEvent]:
    """The payment after a trigger about its latest attempt, and the event of it.

    ``attempt`` is the latest attempt with all but its state and time as they shall be.
    """
    latest = payment.attempts[-1]
    invariant(latest.attempt == attempt.attempt, "only the latest attempt can change")
    step = transition(payment.status, latest.state, trigger)
    attempt = replace(attempt, state=step.attempt_state, updated_at_ms=now_ms)
    captured = payment.captured_minor + captured_minor
    invariant(captured <= payment.amount_minor, "more captured than the payment's amount")
    changed = replace(
        payment,
        sequence=payment.sequence + 1,
        status=step.status,
        reason=reason,
        updated_at_ms=now_ms,
        captured_minor=captured,
        attempts=(*payment.attempts[:-1], attempt),
    )
    return changed, event_of(changed, step.event, reason)


def dead_lettered(
    payment: Payment,
    cause: str,
    detail: str,
    now_ms: int,
    *,
    event: str = INPUT_DEAD_LETTERED,
    reason: str | None = None,
    conflicts: int = 0,
) -> Decision:
    """Refuse an input whole, and let the payment it belongs to say so; nothing else changes."""
    invariant(event in STANDING_EVENTS, f"{event} must not leave a payment where it stands")
    changed = replace(
        payment,
        sequence=payment.sequence + 1,
        updated_at_ms=now_ms,
        conflicts=payment.conflicts + conflicts,
        dead_letters=payment.dead_letters + 1,
    )
    told = event_of(changed, event, reason or cause)
    return Decision(payment=changed, sends=(told,), dead_letter=cause, detail=detail)


def event_of(payment: Payment, event: str, reason: str | None) -> PaymentEvent:
    """The event of the payment's newest transition."""
    attempt = payment.attempts[-1] if payment.attempts else None
    return PaymentEvent(
        event_id=event_id(payment.payment_id, payment.sequence),
        merchant_id=payment.merchant_id,
        order_id=payment.order_id,
        payment_id=payment.payment_id,
        sequence=payment.sequence,
        type=event,
        status=payment.status,
        reason=reason,
        amount_minor=payment.amount_minor,
        currency=payment.currency,
        gateway=None if attempt is None else attempt.gateway,
        attempt=None if attempt is None else attempt.attempt,
        occurred_at_ms=payment.updated_at_ms,
    )


def request_of(payment: Payment, kind: str) -> PaymentRequest:
    """The request for the latest attempt's current try."""
    attempt = payment.attempts[-1]
    return PaymentRequest(
        merchant_id=payment.merchant_id,
        order_id=payment.order_id,
        payment_id=payment.payment_id,
        operation_id=attempt.operation_id,
        kind=kind,
        gateway=attempt.gateway,
        amount_minor=payment.amount_minor,
        currency=payment.currency,
        instrument_token=payment.instrument_token,
        idempotency_key=idempotency_key(
            payment.payment_id, attempt.operation_id, attempt.gateway, attempt.attempt
        ),
        attempt=attempt.attempt,
        try_number=attempt.tries,
        send_within_ms=attempt.send_within_ms,
        ordered_at_ms=payment.ordered_at_ms,
        pay_before_ms=payment.pay_before_ms,
    )


def due_of(payment: Payment, reason: str | None) -> PaymentDue:
    """The wait that the latest attempt's state asks for."""
    attempt = payment.attempts[-1]
    return PaymentDue(
        merchant_id=payment.merchant_id,
        order_id=payment.order_id,
        payment_id=payment.payment_id,
        operation_id=attempt.operation_id,
        attempt=attempt.attempt,
        try_number=attempt.tries,
        purpose=RETRY if attempt.state == RETRY_WAITING else INQUIRY,
        reason=reason,
    )


def first_try(
    operation_id: str,
    gateway: str,
    number: int,
    send_within: int,
    now: int,
    because: str | None = None,
) -> Attempt:
    """A new attempt whose first request is on its way."""
    invariant(number <= ATTEMPTS_MAX, "more attempts than a payment may have")
    return Attempt(
        operation_id=operation_id,
        kind=CHARGE,
        gateway=gateway,
        attempt=number,
        state=STARTED,
        tries=1,
        retries=0,
        inquiries=0,
        started_at_ms=now,
        updated_at_ms=now,
        send_within_ms=send_within,
        routed_because=because,
    )


def charge_deadline_ms(payment: Payment, policy: Policy) -> int:
    """From this time on no charge is started: the order's own limit, or its age."""
    oldest = payment.ordered_at_ms + policy.stale_after_ms
    if payment.pay_before_ms is None:
        return oldest
    return min(oldest, payment.pay_before_ms)


def decision(payment: Payment, *sends: Outgoing) -> Decision:
    """A change with its consequences; by custom the event comes last."""
    return Decision(payment=payment, sends=sends)

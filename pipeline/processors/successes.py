"""What follows once it is known that an operation moved what it was to move.

Here money is counted and settlements are made. A charge that succeeds although its payment has
ended (failed, cancelled, expired, or paid another way meanwhile), or whose success shows after the
order's ``pay_before``, is booked as it happened and given back once: voided if it was only
authorized, else refunded.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from pipeline.domain.charges import beyond_taken
from pipeline.domain.decision import Decision, Outgoing
from pipeline.domain.ids import reversal_operation_id
from pipeline.domain.lifecycle import (
    AUTHORIZATION_SEEN,
    AUTHORIZED,
    CANCEL_CONFIRMED,
    CAPTURE,
    CAPTURE_SEEN,
    CAPTURED,
    CHARGE,
    CHARGE_SEEN,
    DEADLINE_PASSED,
    GIVEN_UP,
    LATE_SUCCESS,
    LATE_SUCCESS_SEEN,
    MAIN_KINDS,
    OPEN_STATES,
    REFUND,
    REQUIRES_CUSTOMER_ACTION,
    SUCCESS_SEEN,
    VOID,
)
from pipeline.domain.model import Attempt, GatewayResult, Payment
from pipeline.domain.own_operations import gives_back, is_expiry
from pipeline.domain.payment import (
    UNDECIDED,
    amount_of,
    decision,
    followed,
    gateway_profile,
    overcaptured_minor,
    parent_of,
    replaced,
    settlement_of,
    stepped,
    timer_of,
)
from pipeline.domain.policy import Policy
from pipeline.domain.references import is_anothers, is_shared
from pipeline.domain.reversals import is_released
from pipeline.domain.unasked_charges import settled_kind
from pipeline.processors.holds import released_minor
from pipeline.processors.losses import with_loss
from pipeline.processors.pendings import CUSTOMER_ACTION_ENDS
from pipeline.processors.refused_evidence import (
    AMOUNT_MISMATCH,
    contradicted,
    contradictory,
    of_another,
    refused,
    under_shared_id,
)
from pipeline.processors.reversals import begin_reversal, with_owed_again, with_rest

# Kinds of settlements that gateways' words about operations make.
SETTLED_CAPTURE: Final = "capture"
SETTLED_REFUND: Final = "refund"

# Reason of a failure: the order's own limit has come.
PAY_BEFORE_PASSED: Final = "pay_before_passed"

# Reason of the timer of an authorization.
AUTHORIZATION_ENDS: Final = "authorization_ends"


def succeeded(
    payment: Payment,
    attempt: Attempt,
    result: GatewayResult,
    reference: str,
    now_ms: int,
    policy: Policy,
    *,
    trigger: str = SUCCESS_SEEN,
    actor: str | None = None,
    detail: str | None = None,
) -> Decision:
    """An attempt moved the money that it was to move; ``reference`` is the gateway's id of it."""
    evidence = trigger in (SUCCESS_SEEN, LATE_SUCCESS_SEEN)
    if evidence and is_shared(payment, attempt, reference, policy):
        return under_shared_id(payment, attempt, result, now_ms)
    asked_minor = attempt.amount_minor or payment.amount_minor
    if result.amount_minor != asked_minor or result.currency != payment.currency:
        # Money moved, but not the money that was asked for: a person decides what is booked.
        told_of = (
            f"{result.gateway} says {result.amount_minor} {result.currency} were moved by the "
            f"{attempt.kind}, asked were {asked_minor} {payment.currency} (reference {reference})"
        )
        if trigger == SUCCESS_SEEN and attempt.state in OPEN_STATES:
            attempt = replace(attempt, gateway_reference=reference, code=result.code)
            return contradicted(payment, attempt, result, AMOUNT_MISMATCH, told_of, now_ms)
        return refused(payment, result, AMOUNT_MISMATCH, told_of, now_ms)
    if evidence and is_anothers(payment, attempt, reference):
        # Somebody resolved another operation by it: what is the gateway's one movement is booked.
        told_of = (
            f"{result.gateway} says that the {attempt.kind} of attempt {attempt.attempt} succeeded "
            f"as {reference}, which another one is booked as"
        )
        return of_another(payment, attempt, result, told_of, now_ms)
    attempt = replace(attempt, gateway_reference=reference, code=result.code, uncertain_since_ms=0)
    if attempt.kind in MAIN_KINDS:
        if (
            trigger == LATE_SUCCESS_SEEN
            or payment.status not in UNDECIDED
            or payment.cancel_requested_by is not None
            or (payment.pay_before_ms is not None and now_ms >= payment.pay_before_ms)
        ):
            return _too_late(payment, attempt, now_ms, policy, trigger, actor, detail)
        if attempt.kind == CHARGE:
            changed, event = stepped(
                payment,
                attempt,
                trigger,
                now_ms,
                moves=CHARGE_SEEN,
                actor=actor,
                detail=detail,
                authorized_minor=payment.authorized_minor + asked_minor,
                captured_minor=payment.captured_minor + asked_minor,
                next_action_url=None,
                expires_at_ms=None,
            )
            settlement = settlement_of(
                payment,
                SETTLED_CAPTURE,
                asked_minor,
                now_ms,
                operation_id=attempt.operation_id,
                gateway=attempt.gateway,
                reference=reference,
            )
            made = decision(changed, settlement, event)
            return with_owed_again(payment, made, now_ms, policy, by=attempt)
        return _authorized(payment, attempt, now_ms, policy, trigger, actor, detail)
    if attempt.kind == CAPTURE:
        return _captured(payment, attempt, now_ms, policy, trigger, actor, detail)
    if attempt.kind == REFUND:
        return _refunded(payment, attempt, result, now_ms, policy, trigger, actor, detail)
    return _voided(payment, attempt, now_ms, trigger, actor, detail)


def _authorized(
    payment: Payment,
    attempt: Attempt,
    now_ms: int,
    policy: Policy,
    trigger: str,
    actor: str | None,
    detail: str | None,
) -> Decision:
    expires_at_ms = now_ms + gateway_profile(policy, attempt.gateway).authorization_ms
    changed, event = stepped(
        payment,
        attempt,
        trigger,
        now_ms,
        moves=AUTHORIZATION_SEEN,
        actor=actor,
        detail=detail,
        authorized_minor=payment.authorized_minor + amount_of(payment, attempt),
        next_action_url=None,
        expires_at_ms=expires_at_ms,
    )
    timer = timer_of(changed, expires_at_ms, AUTHORIZATION_ENDS, policy, now_ms)
    return decision(changed, timer, event)


def _captured(
    payment: Payment,
    attempt: Attempt,
    now_ms: int,
    policy: Policy,
    trigger: str,
    actor: str | None,
    detail: str | None,
) -> Decision:
    standing = payment.status in (AUTHORIZED, CAPTURED)
    captured = payment.captured_minor + attempt.amount_minor
    taken = replace(payment, attempts=replaced(payment, replace(attempt, state=CAPTURED)))
    over_minor = overcaptured_minor(taken)
    beyond_minor = over_minor - overcaptured_minor(payment)
    if beyond_minor:
        more = f"{beyond_minor} {payment.currency} were captured beyond the authorization"
        detail = more if detail is None else f"{detail}; {more}"
    changed, event = stepped(
        payment,
        attempt,
        trigger,
        now_ms,
        moves=CAPTURE_SEEN if payment.status == AUTHORIZED else None,
        actor=actor,
        detail=detail,
        captured_minor=captured,
        # Not what was taken beyond it: that stays to be seen.
        authorized_minor=max(payment.authorized_minor, captured - over_minor),
        expires_at_ms=None if captured >= payment.authorized_minor else payment.expires_at_ms,
    )
    settlement = settled(payment, attempt, SETTLED_CAPTURE, attempt.amount_minor, now_ms)
    made = decision(changed, settlement, event)
    back_minor = beyond_minor if standing else attempt.amount_minor
    if back_minor:
        made = followed(made, _reversed(changed, attempt, now_ms, policy, back_minor))
    return with_owed_again(payment, made, now_ms, policy, by=attempt)


def _refunded(
    payment: Payment,
    attempt: Attempt,
    result: GatewayResult,
    now_ms: int,
    policy: Policy,
    trigger: str,
    actor: str | None,
    detail: str | None,
) -> Decision:
    beyond = beyond_taken(payment, attempt)
    if beyond is not None:
        return contradictory(payment, result, now_ms, beyond)
    refunded = payment.refunded_minor + attempt.amount_minor
    changed, event = stepped(
        payment, attempt, trigger, now_ms, actor=actor, detail=detail, refunded_minor=refunded
    )
    settlement = settled(payment, attempt, SETTLED_REFUND, -attempt.amount_minor, now_ms)
    made = with_loss(payment, decision(changed, settlement, event), now_ms)
    return with_rest(made, attempt, now_ms, policy)


def _voided(
    payment: Payment,
    attempt: Attempt,
    now_ms: int,
    trigger: str,
    actor: str | None,
    detail: str | None,
) -> Decision:
    hold = parent_of(payment, attempt)
    # A hold that lapsed, or that another void released, is not released a second time.
    over = hold is not None and is_released(payment, hold)
    changed, event = stepped(
        payment,
        attempt,
        trigger,
        now_ms,
        moves=_after_void(payment, attempt),
        actor=actor,
        detail=detail,
        authorized_minor=(payment.authorized_minor if over else released_minor(payment, attempt)),
    )
    return decision(changed, event)


def _after_void(payment: Payment, attempt: Attempt) -> str | None:
    if payment.status != AUTHORIZED or gives_back(payment, attempt):
        return None
    return DEADLINE_PASSED if is_expiry(payment, attempt) else CANCEL_CONFIRMED


def _too_late(
    payment: Payment,
    attempt: Attempt,
    now_ms: int,
    policy: Policy,
    trigger: str,
    actor: str | None,
    detail: str | None,
) -> Decision:
    """Book what happened, and begin to give it back: each attempt has one reversal."""
    amount_minor = amount_of(payment, attempt)
    charged = attempt.kind == CHARGE
    moves, reason = None, LATE_SUCCESS
    changes: dict[str, Any] = {}
    if trigger != LATE_SUCCESS_SEEN and payment.status in UNDECIDED:
        if payment.cancel_requested_by is not None:
            moves = CANCEL_CONFIRMED
        else:
            # Whoever ordered counts it as not paid by now; its timer would have ended it as well.
            asked = payment.status == REQUIRES_CUSTOMER_ACTION
            moves = DEADLINE_PASSED if asked else GIVEN_UP
            reason = CUSTOMER_ACTION_ENDS if asked else PAY_BEFORE_PASSED
            changes = {"next_action_url": None, "expires_at_ms": None}
    changed, event = stepped(
        payment,
        attempt,
        trigger,
        now_ms,
        moves=moves,
        reason=reason,
        actor=actor,
        detail=detail,
        authorized_minor=payment.authorized_minor + amount_minor,
        captured_minor=payment.captured_minor + (amount_minor if charged else 0),
        **changes,
    )
    reversal = _reversed(changed, attempt, now_ms, policy)
    if not charged:
        return followed(decision(changed, event), reversal)
    settlement = settlement_of(
        payment,
        SETTLED_CAPTURE,
        amount_minor,
        now_ms,
        # Not the attempt's own operation, of which another attempt may be settled.
        operation_id=_reversal_id(payment, attempt),
        gateway=attempt.gateway,
        reference=attempt.gateway_reference or "",
    )
    made = followed(decision(changed, settlement, event), reversal)
    return with_owed_again(payment, made, now_ms, policy, by=attempt)


def _reversed(
    payment: Payment,
    attempt: Attempt,
    now_ms: int,
    policy: Policy,
    amount_minor: int | None = None,
) -> Decision:
    """Begin to give back what the attempt moved, or a part of it."""
    kind = VOID if attempt.kind not in (CHARGE, CAPTURE) else REFUND
    parent = parent_of(payment, attempt) if attempt.kind == CAPTURE else attempt
    return begin_reversal(
        payment,
        kind,
        _reversal_id(payment, attempt),
        parent or attempt,
        amount_of(payment, attempt) if amount_minor is None else amount_minor,
        now_ms,
        policy,
    )


def _reversal_id(payment: Payment, attempt: Attempt) -> str:
    return reversal_operation_id(payment.order_id, attempt.operation_id, attempt.attempt)


def settled(
    payment: Payment, attempt: Attempt, kind: str, amount_minor: int, now_ms: int
) -> Outgoing:
    return settlement_of(
        payment,
        settled_kind(payment, kind),
        amount_minor,
        now_ms,
        operation_id=attempt.operation_id,
        gateway=attempt.gateway,
        reference=attempt.gateway_reference or "",
        business_date=attempt.business_date,
    )

"""Holds that came too late and whose void was not made: they end at their gateway by themselves.

A void that its gateway refuses leaves the customer's money held, but not for ever. Once the
lifetime of authorizations at that gateway is over, or the gateway says that it is, nothing is owed
any more, and nothing has moved.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.decision import Decision
from pipeline.domain.lifecycle import ATTEMPT_FAILED, AUTHORIZATION_LAPSED, DECLINED, VOID
from pipeline.domain.model import Attempt, Payment, PaymentDue
from pipeline.domain.payment import (
    amount_of,
    decision,
    followed,
    overcaptured_minor,
    replaced,
    timer_of,
    told,
)
from pipeline.domain.policy import Policy
from pipeline.domain.reversals import (
    AUTHORIZATION_EXPIRED,
    LAPSED,
    hold_ends_ms,
    outstanding,
    owed_minor,
)

# Reason of the timer at whose time a hold is over.
HOLD_ENDS: Final = "hold_ends"


def released_minor(payment: Payment, void: Attempt) -> int:
    """What is still authorized once a void's hold is over."""
    return max(
        payment.captured_minor - overcaptured_minor(payment),
        payment.authorized_minor - amount_of(payment, void),
    )


def lapsed(payment: Payment, void: Attempt, now_ms: int, policy: Policy) -> Decision | None:
    """What follows where the hold of a void that ended without success is over; None where it may
    still be there, or was released otherwise."""
    ends_ms = hold_ends_ms(payment, void, policy)
    if (
        ends_ms is None
        or void.state not in (DECLINED, ATTEMPT_FAILED)
        or owed_minor(payment, void) <= 0
    ):
        return None
    if void.code == AUTHORIZATION_EXPIRED:
        return _lapsed(payment, void, AUTHORIZATION_EXPIRED, now_ms)
    return _lapsed(payment, void, HOLD_ENDS, now_ms) if now_ms >= ends_ms else None


def end_of_hold(
    payment: Payment, void: Attempt, now_ms: int, policy: Policy
) -> tuple[PaymentDue, ...]:
    """The timer that ends a hold whose void is tried no more; none for a refund."""
    ends_ms = hold_ends_ms(payment, void, policy)
    return () if ends_ms is None else (timer_of(payment, ends_ms, HOLD_ENDS, policy, now_ms),)


def holds_due(payment: Payment, due_at_ms: int, now_ms: int, policy: Policy) -> Decision:
    """The time has come at which a hold is over: each that was given up and is as old ends."""
    made = Decision()
    left: tuple[PaymentDue, ...] = ()
    for void in outstanding(payment):
        ends_ms = hold_ends_ms(payment, void, policy) if void.kind == VOID else None
        if ends_ms is None:
            continue
        if ends_ms <= due_at_ms:
            made = followed(made, _lapsed(made.payment or payment, void, HOLD_ENDS, now_ms))
        else:
            left = end_of_hold(payment, void, now_ms, policy)
    # Where a gateway lets holds live longer than when the timer began.
    return made if made.payment is not None else Decision(sends=left)


def _lapsed(payment: Payment, void: Attempt, reason: str, now_ms: int) -> Decision:
    void = replace(void, code=LAPSED)
    kept = replace(payment, attempts=replaced(payment, void))
    changed, event = told(
        kept,
        AUTHORIZATION_LAPSED,
        now_ms,
        reason=reason,
        attempt=void,
        authorized_minor=released_minor(payment, void),
    )
    return decision(changed, event)

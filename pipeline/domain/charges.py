"""What was taken by each charge of a payment, and what of it may still go back.

A payment may have more than one: a charge that came too late, and whose reversal its gateway
refused, is still the customer's money. Each gives back what it took, and no more.
"""

from __future__ import annotations

from pipeline.domain.answer import NOT_FOUND
from pipeline.domain.lifecycle import (
    ATTEMPT_FAILED,
    CAPTURE,
    CHARGE,
    DECLINED,
    MAIN_KINDS,
    REFUND,
    has_succeeded,
)
from pipeline.domain.model import Attempt, Payment
from pipeline.domain.payment import (
    amount_of,
    is_unfinished,
    parent_of,
    refundable_minor,
    standing_main,
)


def refund_target(
    payment: Payment, amount_minor: int | None = None, reference: str | None = None
) -> Attempt | None:
    """Whose money a refund gives back: of the charges that can bear the amount (without one:
    that have anything left) the one that stands, else the newest.

    What was taken too late and could not be given back by itself comes after what stands; by its
    gateway's ``reference`` it is meant all the same.
    """
    standing = standing_main(payment)
    charges = [each for each in reversed(payment.attempts) if each.kind in MAIN_KINDS]
    for each in sorted(charges, key=lambda each: each is not standing):
        if reference in (None, each.gateway_reference) and (
            refundable_of_minor(payment, each) >= (amount_minor or 1)
        ):
            return each
    return None


def captured_of_minor(payment: Payment, charge: Attempt) -> int:
    """What was captured of one charge or authorization."""
    if not has_succeeded(charge.state):
        return 0
    if charge.kind == CHARGE:
        return amount_of(payment, charge)
    return sum(
        amount_of(payment, each)
        for each in payment.attempts
        if each.kind == CAPTURE and has_succeeded(each.state) and _is_about(payment, each, charge)
    )


def may_have_taken_minor(payment: Payment, charge: Attempt) -> int:
    """What a charge took, or may have taken as far as is known; an authorization takes by its
    captures only."""
    if charge.kind == CHARGE:
        return amount_of(payment, charge) if may_have_moved(charge) else 0
    return sum(
        amount_of(payment, each)
        for each in payment.attempts
        if each.kind == CAPTURE and may_have_moved(each) and _is_about(payment, each, charge)
    )


def may_have_moved(attempt: Attempt) -> bool:
    """Whether an attempt moved what it was to move, or may have: it was sent or shows as done, was
    not declined, and is not proven unknown to its gateway. What was given up on silence may have;
    what nobody here asked for was never sent."""
    return (
        (attempt.tries > 0 or has_succeeded(attempt.state))
        and attempt.state != DECLINED
        and (attempt.state, attempt.code) != (ATTEMPT_FAILED, NOT_FOUND)
    )


def refunded_of_minor(payment: Payment, charge: Attempt, *, reserved: bool = False) -> int:
    """What was given back of one charge; with ``reserved`` also what still may be."""
    return sum(
        amount_of(payment, each)
        for each in payment.attempts
        if each.kind == REFUND
        and (has_succeeded(each.state) or (reserved and is_unfinished(each)))
        and _is_about(payment, each, charge)
    )


def beyond_taken(payment: Payment, refund: Attempt) -> str | None:
    """Of a refund that is not booked yet: how much more would have gone back than was taken, of the
    payment or of the charge that it is about; None: there is room for it."""
    back_minor = payment.refunded_minor + refund.amount_minor
    taken_minor = payment.captured_minor
    charge = parent_of(payment, refund)
    if back_minor <= taken_minor and charge is not None:
        back_minor = refunded_of_minor(payment, charge) + refund.amount_minor
        taken_minor = captured_of_minor(payment, charge)
    if back_minor <= taken_minor:
        return None
    return f"{back_minor} would be refunded of {taken_minor} captured"


def refundable_of_minor(payment: Payment, charge: Attempt) -> int:
    """What a refund of this charge may still take: never more than the payment's own room."""
    room_minor = captured_of_minor(payment, charge)
    room_minor -= refunded_of_minor(payment, charge, reserved=True)
    return min(room_minor, refundable_minor(payment))


def _is_about(payment: Payment, attempt: Attempt, charge: Attempt) -> bool:
    parent = parent_of(payment, attempt)
    return parent is not None and (
        (parent.operation_id, parent.attempt) == (charge.operation_id, charge.attempt)
    )

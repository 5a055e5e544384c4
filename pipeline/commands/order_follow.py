"""What became of an order, for whoever gives it to the flow by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.commands.payment_follow import DONE, FAILED, REJECTED, Outcome, PaymentSeen, again
from pipeline.domain.lifecycle import (
    AUTHORIZED,
    CANCELLED,
    CAPTURED,
    EXPIRED,
    NO_PAYMENT_DUE,
    ORDER_CONFLICT,
)
from pipeline.domain.lifecycle import FAILED as PAYMENT_FAILED
from pipeline.domain.lifecycle import REJECTED as PAYMENT_REJECTED
from pipeline.processors.order import differing_from, is_ordered

if TYPE_CHECKING:
    from pipeline.domain.model import Order, Payment

_SUCCEEDED: Final = frozenset({AUTHORIZED, CAPTURED, NO_PAYMENT_DUE})
_ENDED: Final = frozenset({PAYMENT_FAILED, CANCELLED, EXPIRED})


def is_known(payment: Payment | None, order: Order) -> bool:
    """Whether the payment is this very order's already, so that it has no effect again."""
    return payment is not None and is_ordered(payment) and not differing_from(payment, order)


def judged_order(seen: PaymentSeen, order: Order, *, repeated: bool = False) -> Outcome | None:
    """What became of an order, or None while that is open: it was not looked at yet, its charge is
    under way, or a person or the customer has the next word.

    ``repeated``: the payment was this order's before it was given this time.
    """
    payment = seen.payment
    if payment is None or not is_ordered(payment):
        return None
    if differing_from(payment, order):
        # Another order was taken under these ids. That this one is refused is told by an event.
        for event in reversed(seen.fresh):
            if event.type == ORDER_CONFLICT:
                taken = f"another order has these ids, and its payment is {payment.status}"
                return Outcome(REJECTED, f"{event.reason}: {taken}")
        return None
    why = f" ({payment.reason})" if payment.reason else ""
    if payment.status == PAYMENT_REJECTED:
        outcome = Outcome(REJECTED, payment.reason or PAYMENT_REJECTED)
    elif payment.status in _SUCCEEDED:
        outcome = Outcome(DONE, f"the payment is {payment.status}")
    elif payment.status in _ENDED:
        outcome = Outcome(FAILED, f"the payment is {payment.status}{why}")
    else:
        return None
    return again(outcome) if repeated else outcome

"""The order processor: an order becomes a payment, once.

The same order again is a duplicate without effect, whatever its other fields say; the same order
with another amount, currency or instrument is a conflict: dead-lettered, and the payment counts
it. One charge stays one charge.
"""

from __future__ import annotations

from typing import Final

from pipeline.domain.card_numbers import mask_card_number_text
from pipeline.domain.decision import Decision
from pipeline.domain.ids import payment_id
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.keys import valid_id
from pipeline.domain.lifecycle import (
    NEW,
    NONE,
    NOTHING_DUE,
    ORDER_ACCEPTED,
    ORDER_CONFLICT,
    ORDER_REJECTED,
    transition,
)
from pipeline.domain.model import Attempt, Order, Payment
from pipeline.domain.payment import CHARGE, dead_lettered, event_of, first_try, request_of
from pipeline.domain.policy import Policy
from pipeline.domain.routing import choose_gateway
from pipeline.domain.validation import TEXT_LENGTH_MAX, broken_rule
from pipeline.processors.risk import card_number_refused

INVALID_IDS: Final = "invalid_ids"
DUPLICATE_ORDER: Final = "duplicate_order"

_DUPLICATE: Final = Decision(note=DUPLICATE_ORDER)


def process_order(payment: Payment | None, order: Order, now_ms: int, policy: Policy) -> Decision:
    """Decide about one order record; ``now_ms`` is the record's append time.

    A new order is rejected by a named rule, needs no payment, or starts one charge. Redelivery
    gives ``duplicate_order``. Ids that cannot stand in a key are dead-lettered, and so is an order
    that holds a card number.
    """
    refused = card_number_refused(payment, order, now_ms)
    if refused is not None:
        return refused
    if payment is not None:
        return _repeated(payment, order, now_ms)
    if not valid_id(order.merchant_id) or not valid_id(order.order_id):
        detail = "merchant_id and order_id must be 1 to 64 of A-Z a-z 0-9 . _ -"
        return Decision(dead_letter=INVALID_IDS, detail=detail)

    rule = broken_rule(order, now_ms, policy)
    if rule is not None:
        return _settled_at_once(order, ORDER_REJECTED, rule, now_ms)
    if order.amount_minor == 0:
        return _settled_at_once(order, NOTHING_DUE, None, now_ms)
    return _charged(order, now_ms, policy)


def _charged(order: Order, now_ms: int, policy: Policy) -> Decision:
    profile = choose_gateway(policy, order.merchant_id, order.currency)
    if profile is None:
        raise InvariantBroken("an order was found valid that no gateway serves")
    step = transition(NEW, NONE, ORDER_ACCEPTED)
    # The operation behind the first charge is the order itself.
    attempt = first_try(order.order_id, profile.name, 1, policy.send_within_ms, now_ms)
    payment = _payment(order, step.status, None, now_ms, (attempt,))
    return Decision(
        payment=payment,
        sends=(request_of(payment, CHARGE), event_of(payment, step.event, None)),
    )


def _settled_at_once(order: Order, trigger: str, reason: str | None, now_ms: int) -> Decision:
    step = transition(NEW, NONE, trigger)
    payment = _payment(order, step.status, reason, now_ms, ())
    return Decision(payment=payment, sends=(event_of(payment, step.event, reason),))


def _payment(
    order: Order, status: str, reason: str | None, now_ms: int, attempts: tuple[Attempt, ...]
) -> Payment:
    rejected = reason is not None
    return Payment(
        merchant_id=order.merchant_id,
        order_id=order.order_id,
        payment_id=payment_id(order.merchant_id, order.order_id),
        sequence=1,
        status=status,
        reason=reason,
        amount_minor=order.amount_minor,
        currency=_kept(order.currency) if rejected else order.currency,
        instrument_token=_kept(order.instrument_token) if rejected else order.instrument_token,
        business_date=_kept(order.business_date) if rejected else order.business_date,
        pay_before_ms=order.pay_before_ms,
        customer_id=(
            _kept(order.customer_id) if rejected and order.customer_id else order.customer_id
        ),
        ordered_at_ms=now_ms,
        updated_at_ms=now_ms,
        attempts=attempts,
    )


def _repeated(payment: Payment, order: Order, now_ms: int) -> Decision:
    differing = []
    if order.amount_minor != payment.amount_minor:
        differing.append("amount")
    if not _same(order.currency, payment.currency):
        differing.append("currency")
    if not _same(order.instrument_token, payment.instrument_token):
        differing.append("instrument")
    if not differing:
        return _DUPLICATE
    # Names only: a token is not for logs and headers.
    detail = f"the order differs from its payment {payment.payment_id} in {', '.join(differing)}"
    return dead_lettered(
        payment,
        ORDER_CONFLICT,
        detail,
        now_ms,
        event=ORDER_CONFLICT,
        reason=f"{'_and_'.join(differing)}_must_not_change",
        conflicts=1,
    )


def _same(ordered: str, remembered: str) -> bool:
    return ordered == remembered or _kept(ordered) == remembered


def _kept(text: str) -> str:
    """A text of a rejected order as the table may keep it: no card number in it, and not long."""
    return mask_card_number_text(text[:TEXT_LENGTH_MAX])

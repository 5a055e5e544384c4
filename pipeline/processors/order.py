"""The order processor: an order becomes a payment, once.

The same order again is a duplicate without effect, whatever its other fields say; the same order
with another amount, currency or instrument is a conflict: dead-lettered, and the payment counts
it. One charge stays one charge.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.card_numbers import mask_card_number_start
from pipeline.domain.commands import CANCEL
from pipeline.domain.decision import Decision
from pipeline.domain.ids import payment_id
from pipeline.domain.keys import valid_id
from pipeline.domain.lifecycle import (
    AUTHORIZE,
    AWAITING_ORDER,
    CHARGE,
    NEW,
    NOTHING_DUE,
    ORDER_ACCEPTED,
    ORDER_CANCELLED,
    ORDER_CONFLICT,
    ORDER_REJECTED,
    PAYMENT_STARTED,
    payment_step,
)
from pipeline.domain.model import Attempt, Order, Payment
from pipeline.domain.payment import (
    AUTOMATIC,
    dead_lettered,
    decision,
    event_of,
    first_try,
    moved,
    request_of,
)
from pipeline.domain.policy import Policy
from pipeline.domain.routing import facts_of, route
from pipeline.domain.unasked_charges import (
    MERCHANT_MUST_NOT_BE_RESERVED,
    NO_MERCHANT,
    is_unasked,
)
from pipeline.domain.validation import GATEWAY_MUST_SERVE_THE_PAYMENT, TEXT_LENGTH_MAX, broken_rule
from pipeline.processors.commands import start_charge, with_waiting_commands
from pipeline.processors.door import card_number_refused
from pipeline.processors.risk import assess_order, held_for_review

INVALID_IDS: Final = "invalid_ids"
DUPLICATE_ORDER: Final = "duplicate_order"

# What a rejected order may have filled with anything.
_TEXTS: Final = (
    "currency",
    "instrument_token",
    "business_date",
    "customer_id",
    "capture_method",
    "payment_method",
    "country",
    "card_fingerprint",
    "card_scheme",
)

_DUPLICATE: Final = Decision(note=DUPLICATE_ORDER)


def process_order(payment: Payment | None, order: Order, now_ms: int, policy: Policy) -> Decision:
    """Decide about one order record; ``now_ms`` is the record's append time.

    A new order is rejected by a named rule, needs no payment, or starts one charge or, with manual
    capture, one authorization; where risk rules are set they decide before that. Redelivery gives
    ``duplicate_order``. Ids that cannot stand in a key are dead-lettered, and so is an order that
    holds a card number. Commands that came before the order run when they can; a cancel among them
    means that nobody is asked for money at all.
    """
    refused = card_number_refused(payment, order, now_ms)
    if refused is not None:
        return refused
    if payment is not None and is_ordered(payment):
        return _repeated(payment, order, now_ms)
    if order.merchant_id == NO_MERCHANT:
        detail = f"{NO_MERCHANT} stands for charges that nobody asked for, and is no merchant's id"
        return Decision(dead_letter=MERCHANT_MUST_NOT_BE_RESERVED, detail=detail)
    if not valid_id(order.merchant_id) or not valid_id(order.order_id):
        detail = "merchant_id and order_id must be 1 to 64 of A-Z a-z 0-9 . _ -"
        return Decision(dead_letter=INVALID_IDS, detail=detail)

    rule = broken_rule(order, now_ms, policy)
    if rule is not None:
        return reject_order(payment, order, rule, now_ms, policy)
    if order.amount_minor == 0:
        return _ended(payment, order, NOTHING_DUE, None, now_ms, policy)
    cancelled = _cancelled_before(payment, order, now_ms, policy)
    if cancelled is not None:
        return cancelled
    if policy.risk is not None:
        return assess_order(_payment(payment, order, now_ms), now_ms, policy, policy.risk)
    if policy.count_cards and order.card_fingerprint is not None:
        placed = _payment(payment, order, now_ms)
        started = start_charge(
            placed, order.order_id, ORDER_ACCEPTED, PAYMENT_STARTED, now_ms, policy
        )
        rule = GATEWAY_MUST_SERVE_THE_PAYMENT
        return started or reject_order(payment, order, rule, now_ms, policy)
    return _charged(payment, order, now_ms, policy)


def is_ordered(payment: Payment) -> bool:
    """Whether an order under its ids is a repeated one; else it is what the payment waits for."""
    return payment.status != AWAITING_ORDER and not is_unasked(payment)


def _charged(payment: Payment | None, order: Order, now_ms: int, policy: Policy) -> Decision:
    """The first charge or authorization, its payment built in one go: the way of every order."""
    chosen = route(policy, facts_of(order, payment_id(order.merchant_id, order.order_id)))
    if chosen is None:
        # Its currency is served, but not this amount, country, method or token.
        return reject_order(payment, order, GATEWAY_MUST_SERVE_THE_PAYMENT, now_ms, policy)
    kind = CHARGE if order.capture_method == AUTOMATIC else AUTHORIZE
    step = payment_step(NEW if payment is None else payment.status, ORDER_ACCEPTED)
    # The operation behind the first charge is the order itself.
    attempt = first_try(
        order.order_id,
        kind,
        chosen.profile.name,
        1,
        policy.send_within_ms,
        now_ms,
        because=chosen.because,
    )
    started = _payment(payment, order, now_ms, status=step.to, attempts=(attempt,))
    event = event_of(
        started, step.event or PAYMENT_STARTED, None, attempt=attempt, detail=chosen.because
    )
    return Decision(payment=started, sends=(request_of(started, attempt), event))


def reject_order(
    payment: Payment | None, order: Order, rule: str, now_ms: int, policy: Policy
) -> Decision:
    """The payment of an order that breaks a rule: it ends before any gateway is called."""
    return _ended(payment, order, ORDER_REJECTED, rule, now_ms, policy)


def hold_for_review(
    payment: Payment | None, order: Order, reason: str, now_ms: int, policy: Policy
) -> Decision:
    """The payment of a valid order that a person shall look at before anybody is asked for money.

    It waits for the command ``review``, until a time (``held_for_review``). ``payment`` is what the
    table holds: None, or the placeholder of commands that came first.
    """
    cancelled = _cancelled_before(payment, order, now_ms, policy)
    if cancelled is not None:
        return cancelled
    return held_for_review(_payment(payment, order, now_ms), reason, now_ms, policy)


def _cancelled_before(
    payment: Payment | None, order: Order, now_ms: int, policy: Policy
) -> Decision | None:
    """The end of an order that a waiting command cancels, or None when none does."""
    commands = () if payment is None else payment.commands
    cancel = next((each for each in commands if each.type == CANCEL), None)
    if payment is None or cancel is None:
        return None
    others = tuple(each for each in commands if each is not cancel)
    waited = replace(payment, commands=others)
    return _ended(waited, order, ORDER_CANCELLED, cancel.reason, now_ms, policy, actor=cancel.actor)


def _ended(
    payment: Payment | None,
    order: Order,
    trigger: str,
    reason: str | None,
    now_ms: int,
    policy: Policy,
    *,
    actor: str | None = None,
) -> Decision:
    placed = _payment(payment, order, now_ms, rejected=trigger == ORDER_REJECTED)
    changed, event = moved(placed, trigger, now_ms, reason=reason, actor=actor)
    return with_waiting_commands(decision(changed, event), now_ms, policy)


def _payment(
    payment: Payment | None,
    order: Order,
    now_ms: int,
    *,
    rejected: bool = False,
    status: str = "",
    attempts: tuple[Attempt, ...] = (),
) -> Payment:
    """What the table will hold of an order: before its first step, or after the one to a status."""
    sequence = 1 if status else 0
    placed = Payment(
        merchant_id=order.merchant_id,
        order_id=order.order_id,
        payment_id=payment_id(order.merchant_id, order.order_id),
        sequence=sequence,
        status=status or NEW,
        amount_minor=order.amount_minor,
        currency=order.currency,
        instrument_token=order.instrument_token,
        business_date=order.business_date,
        pay_before_ms=order.pay_before_ms,
        customer_id=order.customer_id,
        ordered_at_ms=now_ms,
        updated_at_ms=now_ms,
        capture_method=order.capture_method,
        payment_method=order.payment_method,
        country=order.country,
        card_fingerprint=order.card_fingerprint,
        card_scheme=order.card_scheme,
        attempts=attempts,
    )
    if rejected:
        texts = {name: getattr(placed, name) for name in _TEXTS}
        placed = replace(placed, **{name: _kept(text) for name, text in texts.items() if text})
    if payment is None:
        return placed
    return replace(
        placed,
        status=status or payment.status,
        sequence=payment.sequence + sequence,
        commands=payment.commands,
        command_ids=payment.command_ids,
        command_marks=payment.command_marks,
        dead_letters=payment.dead_letters,
    )


def differing_from(payment: Payment | Order, order: Order) -> list[str]:
    """In what an order contradicts the payment (or the first order) that has its ids; in nothing,
    where it is the same order again."""
    differing = []
    if order.amount_minor != payment.amount_minor:
        differing.append("amount")
    if not _same(order.currency, payment.currency):
        differing.append("currency")
    if not _same(order.instrument_token, payment.instrument_token):
        differing.append("instrument")
    return differing


def _repeated(payment: Payment, order: Order, now_ms: int) -> Decision:
    differing = differing_from(payment, order)
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
    return mask_card_number_start(text, TEXT_LENGTH_MAX)

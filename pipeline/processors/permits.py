"""Permits: before a charge is sent, the counter of its card is asked whether it may be tried.

Where declines are counted across payments (``count_cards``) and the card's fingerprint is known, an
attempt begins by asking; what becomes of it is told to the counter by the decision in which it
becomes known, so that the count is as exact as the payments themselves. Everywhere else a payment
is held to the caps by its own attempts.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.attempt_caps import cap_reached, caps_for
from pipeline.domain.card_attempts import DECLINED as DECLINE_TOLD
from pipeline.domain.card_attempts import NEVER_AGAIN, RELEASED, TAKEN_BACK
from pipeline.domain.decision import Decision
from pipeline.domain.ids import idempotency_key
from pipeline.domain.instruments import (
    Instrument,
    current_instrument,
    instrument_of,
    may_be_one,
)
from pipeline.domain.lifecycle import (
    ASK_PERMIT,
    ATTEMPT_FAILED,
    DECLINED,
    MAIN_KINDS,
    PERMIT_ASKED,
    PERMIT_WAITING,
    has_succeeded,
)
from pipeline.domain.model import Attempt, Payment, RiskCheck
from pipeline.domain.normalisation import Action, action_of
from pipeline.domain.payment import begun, decision, timer_of
from pipeline.domain.policy import Policy
from pipeline.domain.risk import CARD

# What an attempt says of its permit.
ASKED: Final = "asked"
GIVEN: Final = "given"

# Reason of the timer that ends the wait for a permit.
PERMIT_AWAITED: Final = "permit_awaited"


def needs_permit(payment: Payment, policy: Policy) -> bool:
    """Whether an attempt with the payment's instrument of now has to ask first."""
    return policy.count_cards and current_instrument(payment).fingerprint is not None


def with_instrument(payment: Payment, attempt: Attempt) -> Attempt:
    """The attempt as one with the payment's instrument of now; the order's goes without saying."""
    if payment.retry_token is None:
        return attempt
    now = current_instrument(payment)
    return replace(attempt, instrument_token=now.token, card_fingerprint=now.fingerprint)


def permit_asked(
    payment: Payment,
    attempt: Attempt,
    now_ms: int,
    policy: Policy,
    *,
    moves: str | None = None,
    reason: str | None = None,
    detail: str | None = None,
    actor: str | None = None,
) -> Decision:
    """Ask for an attempt that is about to begin; nothing is sent to a gateway before the answer."""
    attempt = replace(attempt, state=PERMIT_WAITING, tries=0, permit=ASKED)
    changed, event = begun(
        payment,
        attempt,
        now_ms,
        trigger=ASK_PERMIT,
        event=PERMIT_ASKED,
        moves=moves,
        reason=reason,
        detail=detail,
        actor=actor,
    )
    until_ms = now_ms + policy.risk_answer_ms
    if payment.pay_before_ms is not None:
        until_ms = min(until_ms, payment.pay_before_ms)
    timer = timer_of(changed, until_ms, PERMIT_AWAITED, policy, now_ms)
    timer = replace(timer, operation_id=attempt.operation_id, attempt=attempt.attempt)
    card = current_instrument(changed)
    caps = caps_for(policy.attempt_caps, card.scheme)
    check = replace(_check(changed, attempt, card), caps=caps)
    return decision(changed, check, timer, event)


def is_capped(payment: Payment, gateway: str, now_ms: int, policy: Policy) -> bool:
    """Whether the payment's own attempts forbid one more at a gateway with its instrument of now.

    Two tokens may stand for one card, so an attempt counts unless both fingerprints are known and
    differ.
    """
    card = current_instrument(payment)
    own = [a for a in payment.attempts if may_be_one(instrument_of(payment, a), card)]
    caps = caps_for(policy.attempt_caps, card.scheme)
    return cap_reached(caps, own, gateway, now_ms) is not None


def reported(before: Payment | None, made: Decision, policy: Policy) -> Decision:
    """The decision, and what it tells the counters of cards about attempts whose outcome it is.

    ``before`` is the payment as the decision found it. A decline is told even where no permit was
    asked, and taken back where it turns out to have succeeded; other outcomes only give a permit
    back.
    """
    after = made.payment
    if after is None or (
        # Most payments: no card is known, so nobody counts its attempts.
        after.card_fingerprint is None
        and all(each.card_fingerprint is None for each in after.attempts)
    ):
        return made
    known = {} if before is None else {_name(each): each for each in before.attempts}
    checks: list[RiskCheck] = []
    for attempt in after.attempts:
        earlier = known.get(_name(attempt))
        if attempt is earlier or attempt.kind not in MAIN_KINDS:
            continue
        outcome = _outcome(attempt, "" if earlier is None else earlier.state)
        if outcome is None or not (attempt.permit or policy.count_cards):
            continue
        told_before = earlier is not None and earlier.state == DECLINED
        if outcome == RELEASED and not attempt.permit and not told_before:
            continue
        checks.extend(_told(after, attempt, outcome, policy, taken_back=told_before))
    # Before what is asked in the same decision: the row then knows of the decline.
    return replace(made, sends=(*checks, *made.sends)) if checks else made


def told_again(payment: Payment, attempt_key_given: str, policy: Policy) -> tuple[RiskCheck, ...]:
    """What the counter is told once more when it gives a permit for an attempt that has ended.

    An ask may be counted after the end of its attempt, for example once it was redriven from the
    dead letters: the permit would be in flight, and nobody would give it back. To tell an outcome
    twice changes nothing. An attempt that may still be declined keeps its permit.
    """
    for attempt in payment.attempts:
        if attempt.kind in MAIN_KINDS and attempt_key(payment, attempt) == attempt_key_given:
            outcome = _outcome(attempt, "")
            return () if outcome is None else _told(payment, attempt, outcome, policy)
    return ()


def _told(
    payment: Payment, attempt: Attempt, outcome: str, policy: Policy, *, taken_back: bool = False
) -> tuple[RiskCheck, ...]:
    card = instrument_of(payment, attempt)
    if card.fingerprint is None:
        return ()
    told = replace(
        _check(payment, attempt, card),
        outcome=outcome,
        code=TAKEN_BACK if taken_back else attempt.code or "",
        bar_ms=policy.card_bar_ms if outcome == NEVER_AGAIN else 0,
    )
    return (told,)


def _outcome(attempt: Attempt, earlier: str) -> str | None:
    """What of an attempt is to be told after it was in an earlier state; None when nothing is."""
    state = attempt.state
    if state == earlier:
        return None
    if state == DECLINED:
        return NEVER_AGAIN if action_of(attempt.code) is Action.NEVER_AGAIN else DECLINE_TOLD
    return RELEASED if state == ATTEMPT_FAILED or has_succeeded(state) else None


def _check(payment: Payment, attempt: Attempt, card: Instrument) -> RiskCheck:
    return RiskCheck(
        merchant_id=payment.merchant_id,
        order_id=payment.order_id,
        payment_id=payment.payment_id,
        by=CARD,
        identity=card.fingerprint or "",
        amount_minor=payment.amount_minor,
        currency=payment.currency,
        attempt_key=attempt_key(payment, attempt),
        gateway=attempt.gateway,
    )


def attempt_key(payment: Payment, attempt: Attempt) -> str:
    return idempotency_key(
        payment.payment_id, attempt.operation_id, attempt.gateway, attempt.attempt
    )


def _name(attempt: Attempt) -> tuple[str, int, str]:
    return attempt.operation_id, attempt.attempt, attempt.gateway

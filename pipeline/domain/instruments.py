"""Which instrument an attempt was made with, and which ones a payment has tried.

An instrument is a token, and where it is a card and known, its fingerprint: two tokens may stand
for one card. What differs only in blanks around it is one token.
"""

from __future__ import annotations

from msgspec import Struct

from pipeline.domain.lifecycle import DECLINED, MAIN_KINDS, PERMIT_WAITING
from pipeline.domain.model import Attempt, Payment
from pipeline.domain.normalisation import Action, action_of


class Instrument(Struct, frozen=True):
    """``scheme`` is the card network, where it is told."""

    token: str
    fingerprint: str | None = None
    scheme: str | None = None


def instrument(token: str, fingerprint: str | None, scheme: str | None = None) -> Instrument:
    """An instrument as it is compared: without blanks around it, and a blank is no fingerprint."""
    return Instrument(
        token.strip(), (fingerprint or "").strip() or None, (scheme or "").strip() or None
    )


def current_instrument(payment: Payment) -> Instrument:
    """What the payment is charged to now: the latest retry's instrument, else the order's."""
    if payment.retry_token is None:
        return instrument(payment.instrument_token, payment.card_fingerprint, payment.card_scheme)
    return instrument(payment.retry_token, payment.retry_fingerprint, payment.retry_scheme)


def instrument_of(payment: Payment, attempt: Attempt) -> Instrument:
    """What an attempt was made with."""
    if attempt.instrument_token is None:
        return instrument(payment.instrument_token, payment.card_fingerprint)
    return instrument(attempt.instrument_token, attempt.card_fingerprint)


def are_one(one: Instrument, other: Instrument) -> bool:
    """Whether two instruments are known to be one."""
    if one.fingerprint is not None and one.fingerprint == other.fingerprint:
        return True
    return one.token == other.token


def may_be_one(one: Instrument, other: Instrument) -> bool:
    """Whether two instruments are not known to be two cards."""
    if one.fingerprint is None or other.fingerprint is None:
        return True
    return one.fingerprint == other.fingerprint


def was_tried(payment: Payment, new: Instrument) -> bool:
    """Whether an attempt was made with this instrument; one that got no permit was not made."""
    attempts = [each for each in payment.attempts if _was_made(each)]
    if any(are_one(instrument_of(payment, each), new) for each in attempts):
        return True
    # Snapshots of before attempts knew their instrument: the latest retry's is known all the same.
    untold = any(
        each.operation_id != payment.order_id and each.instrument_token is None for each in attempts
    )
    return untold and payment.retry_token is not None and payment.retry_token.strip() == new.token


def is_barred(payment: Payment, new: Instrument) -> bool:
    """Whether this instrument was declined in this payment so that nobody may try it again."""
    return any(
        each.kind in MAIN_KINDS
        and each.state == DECLINED
        and action_of(each.code) is Action.NEVER_AGAIN
        and are_one(instrument_of(payment, each), new)
        for each in payment.attempts
    )


def _was_made(attempt: Attempt) -> bool:
    return attempt.kind in MAIN_KINDS and attempt.state != PERMIT_WAITING and attempt.tries > 0

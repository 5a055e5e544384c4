"""Dead letters that other stages made of a payment's records: the payment says so, and goes on.

A stage that refuses a request, a check or a settlement cannot write the table; its word comes as
evidence (``pipeline/runtime/letter_evidence``). What the payment waited for does not come any more,
so it is asked about, as any outcome that is not known.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.decision import Decision
from pipeline.domain.lifecycle import (
    INPUT_DEAD_LETTERED,
    INQUIRING,
    INQUIRY_INCONCLUSIVE,
    STARTED,
)
from pipeline.domain.model import Attempt, GatewayNotification, GatewayResult, Payment
from pipeline.domain.payment import (
    check_of,
    decision,
    find_attempt,
    followed,
    stepped,
    told,
)
from pipeline.domain.policy import Policy
from pipeline.processors.unknowns import uncertain

# Type of the notice by which the ledger tells of a settlement that it refused.
DEAD_LETTER: Final = "dead_letter"

# Notes: the letter was told of before, or belongs to no payment that the table holds.
STALE_LETTER: Final = "stale_letter"
LETTER_OF_NO_PAYMENT: Final = "letter_of_no_payment"

# Letters that a payment names; its count goes on.
LETTERS_MAX: Final = 16


def letter_told(payment: Payment, stage: str, cause: str, place: str, now_ms: int) -> Decision:
    """The payment says that a record of its own was dead-lettered by another stage, once."""
    letter = f"{stage} {place} {cause}"
    if letter in payment.letters:
        return Decision(note=STALE_LETTER)
    changed, event = told(
        payment,
        INPUT_DEAD_LETTERED,
        now_ms,
        reason=cause,
        detail=f"by the {stage} stage: {place}",
        dead_letters=payment.dead_letters + 1,
        letters=(*payment.letters, letter)[-LETTERS_MAX:],
    )
    return decision(changed, event)


def process_settlement_letter(
    payment: Payment | None, notice: GatewayNotification, now_ms: int
) -> Decision:
    """The ledger refused a settlement: the payment stays as it is, and says so."""
    if payment is None:
        return Decision(note=LETTER_OF_NO_PAYMENT)
    return letter_told(payment, "ledger", notice.code or "", notice.notification_id, now_ms)


def process_request_letter(
    payment: Payment | None, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """The gateway stage refused a request whole: it was sent by nobody who could not read it.

    One that can be read concerns its own attempt. Of one that cannot, any request that is open may
    be the one: each is asked about, which never does harm.
    """
    if payment is None:
        return Decision(note=LETTER_OF_NO_PAYMENT)
    made = letter_told(payment, "gateway", result.code or "", result.letter or "", now_ms)
    attempts = payment.attempts
    if result.operation_id:
        named = find_attempt(payment, result.operation_id, result.attempt, result.gateway)
        attempts = () if named is None or named.tries != result.try_number else (named,)
    for attempt in attempts:
        made = followed(made, _lost(made.payment or payment, attempt, result, now_ms, policy))
    return made


def _lost(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    if attempt.state == STARTED:
        if result.operation_id:
            # This very request: no copy of it can be sent later than this.
            until_ms = now_ms + attempt.send_within_ms + policy.clock_skew_ms
            attempt = replace(attempt, sendable_until_ms=until_ms)
        return uncertain(payment, attempt, result, now_ms, policy)
    if attempt.state != INQUIRING:
        return Decision()
    # Nobody was asked, so this was no question. What cannot be read now may not be in a minute
    # either: each question makes a letter, so they are far apart.
    attempt = replace(attempt, inquiries=attempt.inquiries - 1)
    changed, event = stepped(payment, attempt, INQUIRY_INCONCLUSIVE, now_ms, reason=result.code)
    asked = find_attempt(changed, attempt.operation_id, attempt.attempt) or attempt
    return decision(changed, check_of(changed, asked, result.code, policy, now_ms), event)

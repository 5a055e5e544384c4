"""Evidence that is not taken: it contradicts what is known, or says nothing new.

A contradiction is a person's, by a dead letter. Gateways say the same again, by a notice and to a
question, or to two questions: that is no second one, and the payment keeps in mind what it has put
before a person (``letters``). A letter that is redriven is judged anew.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.answer import PENDING, SUCCEEDED
from pipeline.domain.card_numbers import mask_card_number_start
from pipeline.domain.decision import Decision
from pipeline.domain.lifecycle import (
    CONTRADICTION_SEEN,
    CONTRADICTORY_EVIDENCE,
    OPEN_STATES,
    REFUND,
)
from pipeline.domain.model import Attempt, GatewayResult, Payment
from pipeline.domain.payment import (
    dead_lettered,
    stepped,
)
from pipeline.domain.reversals import RETURNED
from pipeline.processors.letters import LETTERS_MAX
from pipeline.processors.unknowns import became_unknown

AMOUNT_MISMATCH: Final = "amount_mismatch"

# Note of an input without effect.
STALE_RESULT: Final = "stale_result"

# The outcome that only notices have: of a refund, that it came back.
FAILED: Final = "failed"

# Longer than gateways' names and ids of operations are.
_NAME_LENGTH_MAX: Final = 96

# Begins what a payment keeps in mind of its own letters, beside those of other stages.
_OWN_STAGE: Final = "payments "


def contradicted(
    payment: Payment,
    attempt: Attempt,
    result: GatewayResult,
    cause: str,
    detail: str,
    now_ms: int,
) -> Decision:
    """Stop the attempt until a person has looked, and keep the evidence whole. A customer who was
    to act for it has nothing to do any more."""
    moves = became_unknown(payment, attempt)
    changes = {} if moves is None else {"next_action_url": None, "expires_at_ms": None}
    changed, event = stepped(
        _with_letter(payment, result, cause),
        attempt,
        CONTRADICTION_SEEN,
        now_ms,
        moves=moves,
        reason=cause,
        detail=detail,
        dead_letters=payment.dead_letters + 1,
        **changes,
    )
    return Decision(payment=changed, sends=(event,), dead_letter=cause, detail=detail)


def contradictory(
    payment: Payment, result: GatewayResult, now_ms: int, more: str | None = None
) -> Decision:
    """Evidence that cannot be true together with what is known; nothing changes by it."""
    detail = (
        f"{result.gateway} says {result.outcome} for attempt {result.attempt}, try "
        f"{result.try_number} (reference {result.gateway_reference}), but payment "
        f"{payment.payment_id} is {payment.status}"
    )
    detail = detail if more is None else f"{detail}; {more}"
    return refused(payment, result, CONTRADICTORY_EVIDENCE, detail, now_ms)


def of_another(
    payment: Payment, attempt: Attempt, result: GatewayResult, told_of: str, now_ms: int
) -> Decision:
    """A word of an operation under an id that is another one's: the operation does not take the id,
    and what was open is a person's."""
    if attempt.state in OPEN_STATES:
        return contradicted(payment, attempt, result, CONTRADICTORY_EVIDENCE, told_of, now_ms)
    return contradictory(payment, result, now_ms, told_of)


def under_shared_id(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int
) -> Decision:
    """The same, where the gateway's notices carry its own id alone."""
    told_of = (
        f"{result.gateway} says that the {attempt.kind} of attempt {attempt.attempt} is "
        f"{result.outcome} as {result.gateway_reference}, the id of another operation"
    )
    return of_another(payment, attempt, result, told_of, now_ms)


def refused(
    payment: Payment, result: GatewayResult, cause: str, detail: str, now_ms: int
) -> Decision:
    """A dead letter of evidence, by which nothing changes; said again, it is no news."""
    said = _said(result)
    if any(letter.startswith(said) for letter in payment.letters):
        return Decision(note=STALE_RESULT)
    return dead_lettered(
        _with_letter(payment, result, cause), cause, detail, now_ms, event=CONTRADICTORY_EVIDENCE
    )


def judged_anew(payment: Payment) -> Payment:
    """The payment without its memory of contradictions, for what a person has redriven."""
    others = tuple(each for each in payment.letters if not each.startswith(_OWN_STAGE))
    return replace(payment, letters=others)


def _with_letter(payment: Payment, result: GatewayResult, cause: str) -> Payment:
    return replace(payment, letters=(*payment.letters, _said(result) + cause)[-LETTERS_MAX:])


def _said(result: GatewayResult) -> str:
    """What the evidence says, however it was heard: a success is one of its id and amount. Where it
    is about no attempt of ours, its texts are anybody's."""
    gateway = mask_card_number_start(result.gateway, _NAME_LENGTH_MAX)
    operation_id = mask_card_number_start(result.operation_id, _NAME_LENGTH_MAX)
    about = f"{_OWN_STAGE}{gateway} {operation_id}/{result.attempt} "
    if result.outcome == SUCCEEDED:
        moved = f"{result.amount_minor} {result.currency[:3]}"
        return f"{about}{SUCCEEDED} {result.gateway_reference} {moved} "
    if result.outcome == PENDING:
        return f"{about}{PENDING} {result.gateway_reference} "
    came_back = result.code == RETURNED or (result.outcome, result.kind) == (FAILED, REFUND)
    return f"{about}{RETURNED if came_back else 'declined'} "

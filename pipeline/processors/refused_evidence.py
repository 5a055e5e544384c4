"""Evidence that is not taken: it contradicts what is known, or says nothing new."""

from __future__ import annotations

from typing import Final

from pipeline.domain.decision import Decision
from pipeline.domain.lifecycle import (
    CONTRADICTION_SEEN,
    CONTRADICTORY_EVIDENCE,
)
from pipeline.domain.model import Attempt, GatewayResult, Payment
from pipeline.domain.payment import (
    dead_lettered,
    stepped,
)
from pipeline.processors.unknowns import became_unknown

AMOUNT_MISMATCH: Final = "amount_mismatch"

# Note of an input without effect.
STALE_RESULT: Final = "stale_result"


def contradicted(
    payment: Payment, attempt: Attempt, cause: str, detail: str, now_ms: int
) -> Decision:
    """Stop the attempt until a person has looked, and keep the evidence whole. A customer who was
    to act for it has nothing to do any more."""
    moves = became_unknown(payment, attempt)
    changes = {} if moves is None else {"next_action_url": None, "expires_at_ms": None}
    changed, event = stepped(
        payment,
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
    return dead_lettered(
        payment,
        CONTRADICTORY_EVIDENCE,
        detail if more is None else f"{detail}; {more}",
        now_ms,
        event=CONTRADICTORY_EVIDENCE,
    )

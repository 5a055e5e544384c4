"""What is not done yet: it is asked about until it is, or the customer is asked to act."""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from pipeline.domain.decision import Decision
from pipeline.domain.lifecycle import (
    ACTION_ASKED,
    ACTION_TAKEN,
    CANCEL_CONFIRMED,
    MAIN_KINDS,
    PENDING,
    PENDING_SEEN,
    REQUIRES_CUSTOMER_ACTION,
)
from pipeline.domain.model import Attempt, GatewayResult, Payment
from pipeline.domain.payment import (
    CUSTOMER_ACTION_REQUIRED,
    PENDING_CODE,
    UNDECIDED,
    decision,
    stepped,
    timer_of,
)
from pipeline.domain.policy import Policy
from pipeline.domain.references import is_shared
from pipeline.processors.refused_evidence import under_shared_id
from pipeline.processors.unknowns import known_by, waiting

# Reason of the timer of a customer who is asked.
CUSTOMER_ACTION_ENDS: Final = "customer_action_ends"


def pending(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """The gateway has it and is not done; maybe the customer has something to do first."""
    if is_shared(payment, attempt, result.gateway_reference, policy):
        return under_shared_id(payment, attempt, result, now_ms)
    asks = (
        result.code == CUSTOMER_ACTION_REQUIRED
        and attempt.kind in MAIN_KINDS
        and payment.status in UNDECIDED
    )
    attempt = replace(
        attempt,
        gateway_reference=result.gateway_reference or attempt.gateway_reference,
        code=CUSTOMER_ACTION_REQUIRED if asks else PENDING_CODE,
        uncertain_since_ms=0,
    )
    if asks and payment.cancel_requested_by is not None:
        changed, event = stepped(
            payment, attempt, PENDING_SEEN, now_ms, moves=CANCEL_CONFIRMED, reason=result.code
        )
        return decision(changed, waiting(changed, attempt, result.code, policy, now_ms), event)
    if asks and payment.status != REQUIRES_CUSTOMER_ACTION:
        expires_at_ms = now_ms + policy.customer_action_ms
        if payment.pay_before_ms is not None:
            expires_at_ms = min(expires_at_ms, payment.pay_before_ms)
        changed, event = stepped(
            payment,
            attempt,
            PENDING_SEEN,
            now_ms,
            moves=ACTION_ASKED,
            reason=result.code,
            next_action_url=result.next_action_url,
            expires_at_ms=expires_at_ms,
        )
        timer = timer_of(changed, expires_at_ms, CUSTOMER_ACTION_ENDS, policy, now_ms)
        wait = waiting(changed, attempt, result.code, policy, now_ms)
        return decision(changed, timer, wait, event)
    changes: dict[str, Any] = {}
    moves = known_by(payment, attempt)
    if asks:
        # Still asked; a notice does not carry the address, the answer or an inquiry does.
        changes["next_action_url"] = result.next_action_url or payment.next_action_url
    elif attempt.kind in MAIN_KINDS and payment.status in UNDECIDED:
        # The customer has acted, or nobody asks any more: no timer may end what goes on.
        changes = {"next_action_url": None, "expires_at_ms": None}
        if payment.status == REQUIRES_CUSTOMER_ACTION:
            moves = ACTION_TAKEN
    changed, event = stepped(
        payment,
        attempt,
        PENDING_SEEN,
        now_ms,
        moves=moves,
        reason=result.code or PENDING,
        **changes,
    )
    return decision(changed, waiting(changed, attempt, result.code, policy, now_ms), event)

"""Words about operations that nobody waits for any more: a success after the end, a refund that
came back.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.decision import Decision
from pipeline.domain.lifecycle import (
    ATTEMPT_FAILED,
    CONTRADICTED,
    DECLINED,
    FAILURE_SEEN,
    LATE_SUCCESS_SEEN,
    OPEN_STATES,
    REFUND,
    has_succeeded,
)
from pipeline.domain.model import Attempt, GatewayResult, Payment
from pipeline.domain.payment import (
    amount_of,
    decision,
    stepped,
)
from pipeline.domain.policy import Policy
from pipeline.domain.reversals import CAME_BACK, FAILED_LATER, RETURNED
from pipeline.processors.refused_evidence import STALE_RESULT, contradictory
from pipeline.processors.reversals import with_owed_again
from pipeline.processors.successes import settled, succeeded

# The settlement of a refund that came back.
SETTLED_REFUND_FAILED: Final = "refund_failed"

_STALE_RESULT: Final = Decision(note=STALE_RESULT)


def late_evidence(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """A success that nobody waited for: taken, already known, given back, or contradictory.

    What was never sent, since it got no permit or waits for a dispute's end, cannot have succeeded.
    """
    reference = result.gateway_reference
    if reference and attempt.tries:
        if attempt.state in OPEN_STATES:
            return succeeded(payment, attempt, result, reference, now_ms, policy)
        if has_succeeded(attempt.state):
            if (
                reference == attempt.gateway_reference
                and result.amount_minor == amount_of(payment, attempt)
                and result.currency == payment.currency
            ):
                return _STALE_RESULT
        elif attempt.state in (DECLINED, ATTEMPT_FAILED):
            if attempt.code in CAME_BACK:
                return _STALE_RESULT
            return succeeded(
                payment, attempt, result, reference, now_ms, policy, trigger=LATE_SUCCESS_SEEN
            )
    return contradictory(payment, result, now_ms)


def tells_return(attempt: Attempt, result: GatewayResult) -> bool:
    """Whether a gateway says of a refund that it was made and came back."""
    return attempt.kind == REFUND and (result.outcome, result.code) == (DECLINED, RETURNED)


def came_back(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """A refund failed after it had succeeded, or before we heard that it had.

    It is kept also where the refund has ended without success: one that shows afterwards is older.
    """
    if attempt.state in (DECLINED, ATTEMPT_FAILED) and attempt.code in CAME_BACK:
        return _STALE_RESULT
    never_sent = not attempt.tries
    if never_sent or attempt.state == CONTRADICTED or result.currency != payment.currency:
        return contradictory(payment, result, now_ms)
    if result.amount_minor not in (0, amount_of(payment, attempt)):
        more = f"{result.amount_minor} came back of a refund of {amount_of(payment, attempt)}"
        return contradictory(payment, result, now_ms, more)
    return returned(payment, attempt, result.code or FAILED_LATER, now_ms, policy)


def returned(
    payment: Payment,
    attempt: Attempt,
    reason: str,
    now_ms: int,
    policy: Policy,
    *,
    actor: str | None = None,
    detail: str | None = None,
) -> Decision:
    """A refund has failed after it had succeeded, by its gateway's word or a person's."""
    had_moved = has_succeeded(attempt.state)
    attempt = replace(attempt, code=FAILED_LATER, uncertain_since_ms=0)
    refunded = payment.refunded_minor - (attempt.amount_minor if had_moved else 0)
    changed, event = stepped(
        payment,
        attempt,
        FAILURE_SEEN,
        now_ms,
        reason=reason,
        actor=actor,
        detail=detail,
        refunded_minor=refunded,
    )
    made = decision(changed, event)
    if had_moved:
        settlement = settled(payment, attempt, SETTLED_REFUND_FAILED, attempt.amount_minor, now_ms)
        made = decision(changed, settlement, event)
    return with_owed_again(payment, made, now_ms, policy)

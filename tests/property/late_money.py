"""What has to follow a word about money, whenever it comes: a part of the ``Referee``.

A success is counted, or somebody is told; what contradicts it moves nothing, and somebody is told.
What was captured too late or beyond its hold goes back, and nothing that came too late goes back
which a bank has given to the customer already.
"""

from __future__ import annotations

from typing import Any, Final

from pipeline.domain.decision import Decision
from pipeline.domain.model import (
    Attempt,
    GatewayNotification,
    GatewayResult,
    Payment,
    PaymentRequest,
)

COUNTED: Final = {"charged", "authorized", "captured", "voided", "refunded"}
# Nothing moved, or it has come back.
OVER: Final = {"declined", "failed"}
CAME_BACK: Final = {"failed_later", "returned"}


def judge_word(
    source: Any, before: Payment | None, made: Decision, contradicted: set[tuple[str, int]]
) -> None:
    """A gateway's word about an operation that it was asked for. ``contradicted``: those of which a
    person has been told already that not all of it can be true."""
    if before is None or not isinstance(source, GatewayResult | GatewayNotification):
        return
    was = _attempt(before, source)
    after = _attempt(made.payment or before, source)
    if was is None or after is None or not was.tries:
        return
    name = was.operation_id, was.attempt
    if made.dead_letter:
        contradicted.add(name)
    if source.outcome == "succeeded" and source.gateway_reference:
        is_back = after.kind == "refund" and after.code in CAME_BACK
        assert after.state in COUNTED or is_back or name in contradicted, (
            f"a success of {after.operation_id} that is not counted: {after.state}"
        )
    heard = source.heard if isinstance(source, GatewayResult) else None
    if source.outcome == "declined" and was.kind != "refund":
        if heard == "contradicts" or was.state in COUNTED:
            assert name in contradicted, "nobody is told of a contradiction"
            assert after.state == was.state, "a decline undoes what was made"
        elif was.state in OVER:
            assert made.payment is None, "what is over ends twice"


def judge_capture(before: Payment, after: Payment, attempt: Attempt) -> None:
    """What a hold does not cover, or what came after its payment's end, goes back."""
    back_minor = _beyond_minor(after, attempt) - _beyond_minor(before, attempt)
    if before.status not in ("authorized", "captured"):
        back_minor = attempt.amount_minor
    name = f"late-{attempt.operation_id}-{attempt.attempt}"
    ordered = [e.meant_minor or e.amount_minor for e in after.attempts if e.operation_id == name]
    assert sum(ordered) == back_minor, f"{ordered} goes back of {back_minor} captured too late"


def judge_given_back(after: Payment, request: PaymentRequest) -> None:
    """What came too late goes back, as far as the customer does not have it by a bank."""
    ordered_minor = sum(
        each.amount_minor for each in after.attempts
        if each.kind == "refund" and each.state not in OVER and (each.tries or each.code is None)
    )  # fmt: skip
    back_minor = ordered_minor + after.charged_back_minor
    assert back_minor <= after.captured_minor, (
        f"{request.operation_id} gives back: {back_minor} of {after.captured_minor}"
    )


def _beyond_minor(payment: Payment, capture: Attempt) -> int:
    """What is captured beyond the hold that this capture is of."""
    hold = capture.parent_operation_id, capture.parent_attempt
    held_minor = sum(
        each.amount_minor or payment.amount_minor for each in payment.attempts
        if (each.operation_id, each.attempt) == hold
    )  # fmt: skip
    taken_minor = sum(
        each.amount_minor for each in payment.attempts
        if each.state == "captured" and (each.parent_operation_id, each.parent_attempt) == hold
    )  # fmt: skip
    return max(0, taken_minor - held_minor)


def _attempt(payment: Payment, source: GatewayResult | GatewayNotification) -> Attempt | None:
    named = source.operation_id, source.attempt, source.gateway
    for each in payment.attempts:
        if (each.operation_id, each.attempt, each.gateway) == named:
            return each
    return None

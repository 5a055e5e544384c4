"""Gateways' own ids of what they moved: each stands for one movement of money."""

from __future__ import annotations

from pipeline.domain.lifecycle import CAPTURE, VOID, has_succeeded
from pipeline.domain.model import Attempt, Payment
from pipeline.domain.payment import parent_of
from pipeline.domain.reversals import CAME_BACK


def is_anothers(payment: Payment, attempt: Attempt, reference: str | None) -> bool:
    """Whether this is the id of what another attempt of this kind moved, also where that has come
    back since: its money would be counted twice. The other may be at another gateway: people name
    an id, not whose it is. Captures may share their hold's id, and a void moves no money."""
    if attempt.kind == VOID:
        return False
    if not any(
        each.gateway_reference == reference
        and each.kind == attempt.kind
        and (each.operation_id, each.attempt) != (attempt.operation_id, attempt.attempt)
        and (has_succeeded(each.state) or each.code in CAME_BACK)
        for each in payment.attempts
    ):
        return False
    hold = parent_of(payment, attempt) if attempt.kind == CAPTURE else None
    return hold is None or hold.gateway_reference != reference

"""Gateways' own ids of what they moved: each stands for one movement of money.

Adapters promise that (``pipeline/gateways/port.py``), so a second movement under an id is none. A
person's word needs more: people copy the id that lies next to the one they mean.
"""

from __future__ import annotations

from typing import Final

from pipeline.domain.lifecycle import CAPTURE, REFUND, VOID, has_succeeded
from pipeline.domain.model import Attempt, Payment
from pipeline.domain.payment import gateway_profile, parent_of
from pipeline.domain.policy import Policy
from pipeline.domain.reversals import CAME_BACK

# Code of an attempt that succeeded by a person's word.
RESOLVED_CHARGED: Final = "resolved_charged"


def is_anothers(payment: Payment, attempt: Attempt, reference: str | None) -> bool:
    """Whether this is the id of what another attempt of this kind moved, also where that has come
    back since: its money would be counted twice. Each gateway numbers for itself, so at another one
    it is another movement, unless a person resolved that attempt by it: people name an id, and not
    whose it is. A void moves no money."""
    if attempt.kind == VOID:
        return False
    if not any(
        each.gateway_reference == reference
        and each.kind == attempt.kind
        and (each.gateway == attempt.gateway or each.code == RESOLVED_CHARGED)
        and (each.operation_id, each.attempt) != (attempt.operation_id, attempt.attempt)
        and (has_succeeded(each.state) or each.code in CAME_BACK)
        for each in payment.attempts
    ):
        return False
    return not _is_of_what_it_is_about(payment, attempt, reference)


def is_of_another(payment: Payment, attempt: Attempt, reference: str | None) -> bool:
    """Whether the payment has this id of another operation, booked or not: of the charge that is
    refunded, of an attempt that ended without success. A void has its hold's at some gateways."""
    return attempt.kind != VOID and any(
        each.gateway_reference == reference
        and each.kind != VOID
        and (each.operation_id, each.attempt) != (attempt.operation_id, attempt.attempt)
        for each in payment.attempts
    )


def is_shared(payment: Payment, attempt: Attempt, reference: str | None, policy: Policy) -> bool:
    """Whether a gateway whose notices carry its own id alone tells an id of this operation that
    another one has. Nobody could say which of the two such a notice is about, so there each
    operation has an id of its own, also a void, and one that ended without success."""
    return (
        gateway_profile(policy, attempt.gateway).notices_by_own_id
        and reference not in (None, attempt.gateway_reference)
        and any(
            (each.gateway, each.gateway_reference) == (attempt.gateway, reference)
            for each in payment.attempts
        )
    )


def is_shared_with_earlier(payment: Payment, attempt: Attempt) -> bool:
    """Whether another operation had the gateway's id of this one before: by a person's word, which
    the notices under the id do not follow."""
    return any(
        (each.gateway, each.gateway_reference) == (attempt.gateway, attempt.gateway_reference)
        and each.updated_at_ms < attempt.updated_at_ms
        for each in payment.attempts
    )


def taken_id(
    payment: Payment, attempt: Attempt, reference: str | None, policy: Policy
) -> str | None:
    """The id that an operation takes from a word that says neither success nor pending."""
    return None if is_shared(payment, attempt, reference, policy) else reference


def is_known_otherwise(attempt: Attempt, reference: str | None) -> bool:
    """Whether the gateway has told another id of this operation before."""
    known = attempt.gateway_reference
    return attempt.kind != VOID and bool(known) and known != reference


def _is_of_what_it_is_about(payment: Payment, attempt: Attempt, reference: str | None) -> bool:
    """Whether it is the id of the hold that is captured, or of the charge or capture that is
    refunded: some gateways know all captures or refunds of one by it, and their amounts alone say
    how much was moved."""
    if attempt.kind not in (CAPTURE, REFUND):
        return False
    about = parent_of(payment, attempt)
    if about is None or about.gateway_reference == reference:
        return about is not None
    return attempt.kind == REFUND and any(
        each.kind == CAPTURE
        and each.gateway_reference == reference
        and parent_of(payment, each) is about
        for each in payment.attempts
    )

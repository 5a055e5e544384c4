"""The notification processor: gateways' webhooks about operations, and disputes.

A notice is evidence like a result, but unordered, late and maybe repeated; whatever the order, the
same notices end in the same state and the same money.
"""

from __future__ import annotations

from typing import Final

from pipeline.domain.answer import DECLINED, PENDING, SUCCEEDED
from pipeline.domain.decision import Decision
from pipeline.domain.gateway_text import GATEWAY_TEXT_LENGTH_MAX, kept_notice
from pipeline.domain.lifecycle import (
    CONTRADICTED,
    INQUIRING,
    INQUIRY_DUE,
    INQUIRY_EXHAUSTED,
    INQUIRY_WAITING,
    MAIN_KINDS,
    OPEN_STATES,
    REFUND,
    REQUIRES_CUSTOMER_ACTION,
    has_succeeded,
)
from pipeline.domain.lifecycle import PENDING as ATTEMPT_PENDING
from pipeline.domain.model import Attempt, GatewayNotification, GatewayResult, Payment
from pipeline.domain.payment import (
    CUSTOMER_ACTION_REQUIRED,
    PENDING_CODE,
    PENDING_CODES,
    UNDECIDED,
    dead_lettered,
    find_attempt,
    gateway_profile,
)
from pipeline.domain.policy import Policy
from pipeline.processors.commands import with_waiting_commands
from pipeline.processors.disputes import process_dispute, with_founded
from pipeline.processors.failures import declined
from pipeline.processors.late_evidence import came_back, late_evidence, tells_return
from pipeline.processors.letters import DEAD_LETTER, process_settlement_letter
from pipeline.processors.pendings import pending
from pipeline.processors.refused_evidence import FAILED, STALE_RESULT, contradictory
from pipeline.processors.unknowns import inquire

UNKNOWN_PAYMENT: Final = "unknown_payment"
UNKNOWN_ATTEMPT: Final = "unknown_attempt"
UNKNOWN_NOTICE: Final = "unknown_notice"
MALFORMED_NOTICE: Final = "malformed_notice"

# Types of notices.
OPERATION: Final = "operation"
DISPUTE: Final = "dispute"

_STALE: Final = Decision(note=STALE_RESULT)


def process_notification(
    payment: Payment | None, notice: GatewayNotification, now_ms: int, policy: Policy
) -> Decision:
    """Decide about one notice; ``now_ms`` is its append time.

    Repeated and outdated ones have no effect (``stale_result``); what names no payment or attempt
    of ours is dead-lettered. Commands that waited for the operation run in the same decision.
    """
    kept = kept_notice(notice)
    notice = kept or notice
    if kept is not None and notice.type == DEAD_LETTER:
        return process_settlement_letter(payment, notice, now_ms)
    if payment is None:
        detail = f"no payment {notice.payment_id} of order {notice.order_id} is known"
        return Decision(dead_letter=UNKNOWN_PAYMENT, detail=detail)
    if kept is None:
        detail = f"an id in it is blank, odd or has more than {GATEWAY_TEXT_LENGTH_MAX} characters"
        return dead_lettered(payment, MALFORMED_NOTICE, detail, now_ms)
    if notice.payment_id != payment.payment_id:
        detail = f"the notice names payment {notice.payment_id}, not {payment.payment_id}"
        return dead_lettered(payment, UNKNOWN_PAYMENT, detail, now_ms)
    if notice.type == DISPUTE:
        return process_dispute(payment, notice, now_ms, policy)
    if notice.type != OPERATION:
        detail = f"{notice.gateway} tells of a thing that is neither operation nor dispute"
        return dead_lettered(payment, UNKNOWN_NOTICE, detail, now_ms)
    attempt = find_attempt(payment, notice.operation_id, notice.attempt, notice.gateway)
    if attempt is None or notice.kind != attempt.kind:
        shared = attempt is not None and _has_its_id(attempt, notice, policy)
        if notice.outcome == SUCCEEDED or (shared and notice.outcome == PENDING):
            more = f"it says so of a {notice.kind} under another operation's id" if shared else None
            return contradictory(payment, _as_result(notice, None), now_ms, more)
        detail = f"payment {payment.payment_id} has no such operation at {notice.gateway}"
        return dead_lettered(payment, UNKNOWN_ATTEMPT, detail, now_ms)
    made = _about(payment, attempt, _as_result(notice, attempt), now_ms, policy)
    made = with_founded(made, now_ms, policy)
    return with_waiting_commands(made, now_ms, policy) if payment.commands else made


def _has_its_id(attempt: Attempt, notice: GatewayNotification, policy: Policy) -> bool:
    """Whether a notice was brought to this operation by the gateway's id of it alone."""
    by_own_id = gateway_profile(policy, notice.gateway).notices_by_own_id
    return by_own_id and attempt.gateway_reference == notice.gateway_reference


def _about(
    payment: Payment, attempt: Attempt, said: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    outcome = said.outcome
    if outcome == SUCCEEDED:
        return late_evidence(payment, attempt, said, now_ms, policy)
    if (outcome == FAILED and attempt.kind == REFUND) or tells_return(attempt, said):
        return came_back(payment, attempt, said, now_ms, policy)
    if not attempt.tries:
        # Nothing was sent, so the gateway can have no word of it.
        return _STALE
    if outcome in (DECLINED, FAILED):
        if attempt.state in OPEN_STATES:
            return declined(payment, attempt, said, now_ms, policy)
        if has_succeeded(attempt.state) or attempt.state == CONTRADICTED:
            return contradictory(payment, said, now_ms)
        return _STALE
    if outcome == PENDING and attempt.state in OPEN_STATES:
        return _not_finished(payment, attempt, said, now_ms, policy)
    return _STALE


def _not_finished(
    payment: Payment, attempt: Attempt, said: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """The gateway is not done, which changes something where it was not known, or where it is about
    the customer.

    Notices overtake each other. Plain pending says that the customer has acted, and is believed:
    else a timer would end what goes on. That the customer is asked may be an old word by then, so
    the gateway is asked which it is.
    """
    if attempt.state == INQUIRY_EXHAUSTED and attempt.code in PENDING_CODES:
        # Asked about for as long as it may be, and a person's since: it is no news that it waits.
        return _STALE
    asks = said.code == CUSTOMER_ACTION_REQUIRED
    followed = attempt.kind in MAIN_KINDS and payment.status in UNDECIDED
    if followed and asks and attempt.code == PENDING_CODE:
        if attempt.state in (ATTEMPT_PENDING, INQUIRY_WAITING):
            return inquire(payment, attempt, INQUIRY_DUE, now_ms)
        if attempt.state == INQUIRING:
            return _STALE
    acted = followed and not asks and payment.status == REQUIRES_CUSTOMER_ACTION
    if attempt.state == ATTEMPT_PENDING and not acted:
        return _STALE
    if attempt.state == INQUIRING and attempt.code in PENDING_CODES and not acted:
        # The gateway is asked already. A notice with each question would put off its answer, and
        # with it the end of the questions, for ever.
        return _STALE
    return pending(payment, attempt, said, now_ms, policy)


def _as_result(notice: GatewayNotification, attempt: Attempt | None) -> GatewayResult:
    return GatewayResult(
        merchant_id=notice.merchant_id,
        order_id=notice.order_id,
        payment_id=notice.payment_id,
        operation_id=notice.operation_id or "",
        kind=notice.kind or "",
        gateway=notice.gateway,
        attempt=notice.attempt or 0,
        try_number=0 if attempt is None else attempt.tries,
        outcome=notice.outcome or "",
        gateway_reference=notice.gateway_reference,
        code=notice.code,
        gateway_code=notice.gateway_code,
        amount_minor=notice.amount_minor,
        currency=notice.currency,
        observed_at_ms=notice.received_at_ms,
    )

"""Disputes: money that a customer's bank takes back, and what it takes for that.

Notices of one dispute may come in any order. Its states are ranked as they follow each other in
life, the highest one seen holds, and money follows the state: what is withdrawn is what that state
says, whatever came before. So an outdated notice changes nothing, and a notice that was skipped is
caught up with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipeline.domain.decision import Decision, Outgoing
from pipeline.domain.ids import derived_operation_id
from pipeline.domain.lifecycle import (
    DISPUTE_INQUIRY,
    DISPUTE_LOST,
    DISPUTE_OPENED,
    DISPUTE_PRE_ARBITRATION,
    DISPUTE_WON,
    MAIN_KINDS,
)
from pipeline.domain.model import Dispute, GatewayNotification, Payment
from pipeline.domain.payment import dead_lettered, settlement_of, told
from pipeline.processors.outcomes import STALE_RESULT, with_loss

# States, lowest rank first. Won is no end: the bank may go on to pre-arbitration; lost is one.
INQUIRY: Final = "inquiry"
OPENED: Final = "opened"
WON: Final = "won"
PRE_ARBITRATION: Final = "pre_arbitration"
LOST: Final = "lost"
RANKS: Final[Mapping[str, int]] = {
    state: rank for rank, state in enumerate((INQUIRY, OPENED, WON, PRE_ARBITRATION, LOST))
}
EVENTS: Final[Mapping[str, str]] = {
    INQUIRY: DISPUTE_INQUIRY,
    OPENED: DISPUTE_OPENED,
    WON: DISPUTE_WON,
    PRE_ARBITRATION: DISPUTE_PRE_ARBITRATION,
    LOST: DISPUTE_LOST,
}
# Where the amount is with the customer's bank, and where nothing is decided yet.
_WITHDRAWN: Final = frozenset({OPENED, PRE_ARBITRATION, LOST})
_UNDECIDED: Final = frozenset({INQUIRY, OPENED, PRE_ARBITRATION})

# Kinds of settlements.
SETTLED_DISPUTE: Final = "dispute"
SETTLED_REVERSAL: Final = "reversal"
SETTLED_DISPUTE_FEE: Final = "dispute_fee"

# One charge has one dispute, rarely a second; a payment with more is a gateway's mistake.
DISPUTES_MAX: Final = 32
AMOUNT_MINOR_MAX: Final = 999_999_999_999

# Causes of dead letters.
MALFORMED_DISPUTE: Final = "malformed_dispute"
DISPUTE_OF_NOTHING: Final = "dispute_of_nothing"
AMOUNT_MISMATCH: Final = "amount_mismatch"

_STALE: Final = Decision(note=STALE_RESULT)


def process_dispute(payment: Payment, notice: GatewayNotification, now_ms: int) -> Decision:
    """Decide about one notice of a dispute; ``now_ms`` is its append time."""
    dispute_id, state = notice.dispute_id, notice.dispute_state
    if (
        dispute_id is None
        or not dispute_id
        or len(dispute_id) > 255
        or state is None
        or state not in RANKS
        or not 0 <= notice.amount_minor <= AMOUNT_MINOR_MAX
        or not 0 <= notice.fee_minor <= AMOUNT_MINOR_MAX
    ):
        detail = "a dispute needs an id, a known state, and amounts that are not negative"
        return dead_lettered(payment, MALFORMED_DISPUTE, detail, now_ms)
    if notice.currency != payment.currency:
        detail = f"the dispute is in {notice.currency}, the payment in {payment.currency}"
        return dead_lettered(payment, AMOUNT_MISMATCH, detail, now_ms)
    known = next(
        (
            each
            for each in payment.disputes
            if each.dispute_id == dispute_id and each.gateway == notice.gateway
        ),
        None,
    )
    if known is None and (not _is_about(payment, notice) or len(payment.disputes) >= DISPUTES_MAX):
        detail = f"{notice.gateway} tells of a dispute about no charge of this payment"
        return dead_lettered(payment, DISPUTE_OF_NOTHING, detail, now_ms)
    if notice.amount_minor > payment.amount_minor:
        detail = f"{notice.amount_minor} are in dispute, {payment.amount_minor} were ordered"
        return dead_lettered(payment, AMOUNT_MISMATCH, detail, now_ms)
    before = known or Dispute(
        dispute_id=dispute_id,
        state="",
        amount_minor=0,
        gateway=notice.gateway,
        updated_at_ms=now_ms,
    )
    after = _advanced(before, state, notice, now_ms)
    if (after.state, after.amount_minor, after.fee_minor) == (
        before.state, before.amount_minor, before.fee_minor,
    ):  # fmt: skip
        return _STALE
    return _booked(payment, before, after, notice, now_ms)


def _is_about(payment: Payment, notice: GatewayNotification) -> bool:
    """Whether the payment asked this gateway for a charge that may be the one in dispute.

    Notices come in any order: a charge that has not been heard of yet has no reference.
    """
    return any(
        attempt.kind in MAIN_KINDS
        and attempt.gateway == notice.gateway
        and (
            notice.gateway_reference is None
            or attempt.gateway_reference in (None, notice.gateway_reference)
        )
        for attempt in payment.attempts
    )


def _advanced(before: Dispute, state: str, notice: GatewayNotification, now_ms: int) -> Dispute:
    rank, held = RANKS[state], RANKS.get(before.state, -1)
    amount_minor = before.amount_minor
    if rank > held:
        amount_minor = notice.amount_minor
    elif rank == held:
        amount_minor = max(amount_minor, notice.amount_minor)
    final = state if rank > held else before.state
    return Dispute(
        dispute_id=before.dispute_id,
        state=final,
        amount_minor=amount_minor,
        gateway=before.gateway,
        updated_at_ms=now_ms,
        fee_minor=max(before.fee_minor, notice.fee_minor),
        withdrawn_minor=amount_minor if final in _WITHDRAWN else 0,
    )


def _booked(
    payment: Payment, before: Dispute, after: Dispute, notice: GatewayNotification, now_ms: int
) -> Decision:
    others = tuple(each for each in payment.disputes if each.dispute_id != after.dispute_id
                   or each.gateway != after.gateway)  # fmt: skip
    # In the order of their ids, so that the order of notices leaves no trace.
    disputes = tuple(sorted((*others, after), key=lambda each: (each.gateway, each.dispute_id)))
    changed, event = told(
        payment,
        EVENTS[after.state],
        now_ms,
        reason=notice.code,
        operation_minor=after.amount_minor,
        detail=f"dispute {after.dispute_id} at {after.gateway}",
        disputes=disputes,
        disputed_minor=sum(d.amount_minor for d in disputes if d.state in _UNDECIDED),
        charged_back_minor=sum(d.withdrawn_minor for d in disputes if d.state == LOST),
    )
    parts = (
        [after.gateway, after.dispute_id]
        if _same_id_elsewhere(others, after)
        else [after.dispute_id]
    )
    if before.withdrawn_minor or before.fee_minor or before.state in _WITHDRAWN | {WON}:
        # Money of this dispute has moved before, maybe of the same kind.
        parts.append(str(changed.sequence))
    operation_id = derived_operation_id("dispute", *parts)
    sends: list[Outgoing] = []
    for kind, amount_minor in (
        (SETTLED_DISPUTE, min(0, before.withdrawn_minor - after.withdrawn_minor)),
        (SETTLED_REVERSAL, max(0, before.withdrawn_minor - after.withdrawn_minor)),
        (SETTLED_DISPUTE_FEE, before.fee_minor - after.fee_minor),
    ):
        if amount_minor:
            sends.append(
                settlement_of(
                    payment,
                    kind,
                    amount_minor,
                    now_ms,
                    operation_id=operation_id,
                    gateway=after.gateway,
                    reference=after.dispute_id,
                )
            )
    made = Decision(payment=changed, sends=(*sends, event))
    return with_loss(payment, made, now_ms)


def _same_id_elsewhere(others: tuple[Dispute, ...], dispute: Dispute) -> bool:
    return any(each.dispute_id == dispute.dispute_id for each in others)

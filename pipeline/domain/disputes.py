"""A dispute as the gateway tells it: which of its events holds, whatever order they come in.

An event's place is the gateway's own number or time of it, and within the same number its state's
rank in life. The event with the highest place holds. So events that come late, twice or in any
order end the same, also where a stage comes again: opened, won, pre-arbitration, won. Where the
gateway numbers nothing, rank alone decides, and a stage that comes again cannot be told from its
first time repeated: a person decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from pipeline.domain.charges import captured_of_minor
from pipeline.domain.lifecycle import MAIN_KINDS
from pipeline.domain.model import Attempt, Dispute, GatewayNotification, Payment

# States, lowest rank first. None is an end: after each the bank or the gateway may go on.
INQUIRY: Final = "inquiry"
OPENED: Final = "opened"
WON: Final = "won"
PRE_ARBITRATION: Final = "pre_arbitration"
LOST: Final = "lost"
RANKS: Final[Mapping[str, int]] = {
    state: rank for rank, state in enumerate((INQUIRY, OPENED, WON, PRE_ARBITRATION, LOST))
}
# Where the amount is with the customer's bank, and where nothing is decided yet.
WITHDRAWN_IN: Final = frozenset({OPENED, PRE_ARBITRATION, LOST})
UNDECIDED_IN: Final = frozenset({INQUIRY, OPENED, PRE_ARBITRATION})


def heard(before: Dispute, state: str, notice: GatewayNotification, now_ms: int) -> Dispute:
    """The dispute after an event of the gateway's. Its amount is the one of the event that holds
    (the larger where that is told twice), its fee the highest that was told.

    A person's word holds until an event comes that the gateway had not told by then.
    """
    place = notice.event_sequence or 0, RANKS[state]
    held = before.event_sequence, RANKS.get(before.gateway_state or before.state, -1)
    after = replace(before, fee_minor=max(before.fee_minor, notice.fee_minor))
    if place > held:
        after = replace(
            after,
            state=state,
            amount_minor=notice.amount_minor,
            event_sequence=place[0],
            gateway_state=None,
            resolved_by=None,
            charge_reference=notice.gateway_reference or before.charge_reference,
        )
    elif place == held:
        after = replace(after, amount_minor=max(before.amount_minor, notice.amount_minor))
    return before if after == before else _withdrawn(after, now_ms)


def resolved(before: Dispute, state: str, actor: str, now_ms: int) -> Dispute:
    """The dispute after a person has said how it ended."""
    after = replace(
        before,
        state=state,
        gateway_state=before.gateway_state or before.state,
        resolved_by=actor,
    )
    return _withdrawn(after, now_ms)


def bars_refunds(payment: Payment, charge: Attempt | None = None) -> bool:
    """Whether the customer's bank has money of the payment's and may keep it: a refund now would
    give it back twice. An inquiry has moved nothing, and a refund is how it ends best.

    ``charge``: only disputes that are, or may be, about it.
    """
    return any(
        each.state in UNDECIDED_IN
        and each.state in WITHDRAWN_IN
        and (charge is None or _may_be_about(payment, each, charge))
        for each in (*payment.disputes, *with_ground(payment))
    )


def has_ground(payment: Payment, dispute: Dispute) -> bool:
    """Whether a charge that an unfounded dispute may be about shows as taken by now: one that was
    there when the dispute was first told, and that took as much."""
    taken_minor = max(
        (
            captured_of_minor(payment, attempt)
            for attempt in payment.attempts
            if attempt.kind in MAIN_KINDS
            and attempt.gateway == dispute.gateway
            and attempt.started_at_ms <= dispute.updated_at_ms
            and dispute.charge_reference in (None, attempt.gateway_reference)
        ),
        default=0,
    )
    return 0 < dispute.amount_minor <= taken_minor


def with_ground(payment: Payment) -> tuple[Dispute, ...]:
    """Unfounded disputes that are booked in the decision that is being made."""
    return tuple(each for each in payment.unfounded_disputes if has_ground(payment, each))


def _may_be_about(payment: Payment, dispute: Dispute, charge: Attempt) -> bool:
    """A gateway's disputes are about its own charges: about the one it names, or else any."""
    reference = dispute.charge_reference
    named = [
        each
        for each in payment.attempts
        if reference is not None
        and each.kind in MAIN_KINDS
        and (each.gateway, each.gateway_reference) == (dispute.gateway, reference)
    ]
    return dispute.gateway == charge.gateway and (not named or charge in named)


def named(payment: Payment, dispute_id: str | None, gateway: str | None) -> tuple[Dispute, ...]:
    """The payment's disputes of this id, at this gateway where one is named."""
    return tuple(
        each
        for each in payment.disputes
        if each.dispute_id == dispute_id and gateway in (None, each.gateway)
    )


def _withdrawn(dispute: Dispute, now_ms: int) -> Dispute:
    withdrawn_minor = dispute.amount_minor if dispute.state in WITHDRAWN_IN else 0
    return replace(dispute, withdrawn_minor=withdrawn_minor, updated_at_ms=now_ms)

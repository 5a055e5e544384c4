"""Disputes: money that a customer's bank takes back, and what it takes for that.

Which of a dispute's events holds is ``domain/disputes``; here money follows it. What is withdrawn
is what the state says, whatever came before, so an outdated notice changes nothing, and one that
was skipped is caught up with. A person may say how a dispute ended when the gateway does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from pipeline.domain.charges import may_have_taken_minor
from pipeline.domain.decision import Decision, Outgoing
from pipeline.domain.disputes import (
    INQUIRY,
    LOST,
    OPENED,
    PRE_ARBITRATION,
    RANKS,
    UNDECIDED_IN,
    WON,
    has_ground,
    heard,
    named,
    resolved,
)
from pipeline.domain.gateway_text import cannot_be_booked
from pipeline.domain.ids import dispute_operation_id
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.lifecycle import (
    DISPUTE_INQUIRY,
    DISPUTE_LOST,
    DISPUTE_OPENED,
    DISPUTE_PRE_ARBITRATION,
    DISPUTE_WON,
    MAIN_KINDS,
)
from pipeline.domain.model import Dispute, GatewayNotification, Payment, PaymentCommand
from pipeline.domain.payment import dead_lettered, followed, settlement_of, told
from pipeline.domain.policy import Policy
from pipeline.domain.unasked_charges import settled_kind
from pipeline.processors.losses import with_loss
from pipeline.processors.refused_evidence import STALE_RESULT
from pipeline.processors.reversals import with_owed_again

EVENTS: Final[Mapping[str, str]] = {
    INQUIRY: DISPUTE_INQUIRY,
    OPENED: DISPUTE_OPENED,
    WON: DISPUTE_WON,
    PRE_ARBITRATION: DISPUTE_PRE_ARBITRATION,
    LOST: DISPUTE_LOST,
}

# Kinds of settlements.
SETTLED_DISPUTE: Final = "dispute"
SETTLED_REVERSAL: Final = "reversal"
SETTLED_DISPUTE_FEE: Final = "dispute_fee"

# One charge has one dispute, rarely a second; a payment with more is a gateway's mistake.
DISPUTES_MAX: Final = 32
AMOUNT_MINOR_MAX: Final = 999_999_999_999

# Of nothing that is known to be taken: kept in mind, in case it shows.
UNFOUNDED_MAX: Final = 8

# Causes of dead letters.
MALFORMED_DISPUTE: Final = "malformed_dispute"
DISPUTE_OF_NOTHING: Final = "dispute_of_nothing"
AMOUNT_MISMATCH: Final = "amount_mismatch"

_STALE: Final = Decision(note=STALE_RESULT)


def process_dispute(
    payment: Payment, notice: GatewayNotification, now_ms: int, policy: Policy
) -> Decision:
    """Decide about one notice of a dispute; ``now_ms`` is its append time."""
    dispute_id, state = notice.dispute_id, notice.dispute_state
    if (
        dispute_id is None
        or not dispute_id
        or cannot_be_booked(dispute_id)
        or state is None
        or state not in RANKS
        or not 0 <= notice.amount_minor <= AMOUNT_MINOR_MAX
        or not 0 <= notice.fee_minor <= AMOUNT_MINOR_MAX
        or (notice.event_sequence or 0) < 0
    ):
        detail = "a dispute needs a printable id, a known state, and numbers not below zero"
        return dead_lettered(payment, MALFORMED_DISPUTE, detail, now_ms)
    if notice.currency != payment.currency:
        detail = f"the dispute is in {notice.currency}, the payment in {payment.currency}"
        return dead_lettered(payment, AMOUNT_MISMATCH, detail, now_ms)
    known = next(iter(named(payment, dispute_id, notice.gateway)), None)
    fresh = Dispute(
        dispute_id=dispute_id,
        state="",
        amount_minor=0,
        gateway=notice.gateway,
        updated_at_ms=now_ms,
    )
    taken_minor = _taken_minor(payment, notice)
    if known is None and (not taken_minor or len(payment.disputes) >= DISPUTES_MAX):
        detail = f"{notice.gateway} tells of a dispute about no charge of this payment"
        kept = payment if taken_minor else _remembered(payment, fresh, notice, now_ms)
        return dead_lettered(kept, DISPUTE_OF_NOTHING, detail, now_ms)
    # Told too early before: what it is now is what all its events say.
    unfounded = None if known is not None else _unfounded(payment, fresh)
    base = known or unfounded or fresh
    after = heard(base, state, notice, now_ms)
    # What was taken in before this was looked at goes on as it began.
    limit_minor = max(taken_minor, 0 if known is None else known.amount_minor)
    amount_minor = max(notice.amount_minor, after.amount_minor)
    if amount_minor > limit_minor:
        detail = f"{amount_minor} are in dispute, {limit_minor} were or may have been taken"
        return dead_lettered(payment, AMOUNT_MISMATCH, detail, now_ms)
    if after is base and unfounded is None:
        return _STALE
    if unfounded is not None:
        payment = _without(payment, unfounded)
        after = replace(after, updated_at_ms=now_ms)
    detail = f"dispute {after.dispute_id} at {after.gateway}"
    before = known or fresh
    return _booked(payment, before, after, now_ms, policy, reason=notice.code, detail=detail)


def with_founded(made: Decision, now_ms: int, policy: Policy) -> Decision:
    """The decision, and the disputes that it gives a ground: what they were told about, too early,
    shows as taken. They are booked as if they had been told now."""
    for each in () if made.payment is None else made.payment.unfounded_disputes:
        payment = made.payment
        if payment is None or not has_ground(payment, each):
            continue
        before = Dispute(
            dispute_id=each.dispute_id,
            state="",
            amount_minor=0,
            gateway=each.gateway,
            updated_at_ms=now_ms,
        )
        booked = _booked(
            _without(payment, each),
            before,
            replace(each, updated_at_ms=now_ms),
            now_ms,
            policy,
            reason=None,
            detail=f"dispute {each.dispute_id} at {each.gateway}, told before its charge",
        )
        made = followed(made, booked)
    return made


def _remembered(
    payment: Payment, fresh: Dispute, notice: GatewayNotification, now_ms: int
) -> Payment:
    """The payment that keeps a dispute of nothing in mind: what it was to take, and did not, may
    show as taken all the same."""
    may_show = any(
        each.kind in MAIN_KINDS and each.gateway == notice.gateway and each.tries
        for each in payment.attempts
    )
    known = _unfounded(payment, fresh) or fresh
    others = _without(payment, known).unfounded_disputes
    if not may_show or len(others) >= UNFOUNDED_MAX:
        return payment
    after = heard(known, notice.dispute_state or "", notice, now_ms)
    # Since when it has been told: what began later is not what it is about.
    after = replace(after, updated_at_ms=known.updated_at_ms)
    return replace(payment, unfounded_disputes=(*others, after))


def _unfounded(payment: Payment, dispute: Dispute) -> Dispute | None:
    """What is kept in mind of a dispute by its id and gateway."""
    name = dispute.dispute_id, dispute.gateway
    return next((d for d in payment.unfounded_disputes if (d.dispute_id, d.gateway) == name), None)


def _without(payment: Payment, unfounded: Dispute) -> Payment:
    left = tuple(each for each in payment.unfounded_disputes if each is not unfounded)
    return replace(payment, unfounded_disputes=left)


def resolve_dispute(
    payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy
) -> Decision:
    """A person says how a dispute ended; the command keeps the rules of ``domain/commands``."""
    (before,) = named(payment, command.dispute_id, command.gateway)
    if command.decision is None or command.actor is None:
        raise InvariantBroken("a dispute is resolved by somebody, as won or lost")
    return _booked(
        payment,
        before,
        resolved(before, command.decision, command.actor, now_ms),
        now_ms,
        policy,
        reason=command.reason,
        detail=f"dispute {before.dispute_id} at {before.gateway}: {command.evidence}",
        actor=command.actor,
        command_id=command.command_id,
    )


def _taken_minor(payment: Payment, notice: GatewayNotification) -> int:
    """The most that a charge at this gateway which may be the one in dispute has taken.

    Notices come in any order: a charge that has not been heard of yet has no reference, and one
    that was given up on silence may have been made. But every capture begins here, so what is not
    even asked for was not captured.
    """
    return max(
        (
            may_have_taken_minor(payment, attempt)
            for attempt in payment.attempts
            if attempt.kind in MAIN_KINDS
            and attempt.gateway == notice.gateway
            and (
                notice.gateway_reference is None
                or attempt.gateway_reference in (None, notice.gateway_reference)
            )
        ),
        default=0,
    )


def _booked(
    payment: Payment,
    before: Dispute,
    after: Dispute,
    now_ms: int,
    policy: Policy,
    *,
    reason: str | None,
    detail: str,
    actor: str | None = None,
    command_id: str | None = None,
) -> Decision:
    others = tuple(each for each in payment.disputes if each.dispute_id != after.dispute_id
                   or each.gateway != after.gateway)  # fmt: skip
    # In the order of their ids, so that the order of notices leaves no trace.
    disputes = tuple(sorted((*others, after), key=lambda each: (each.gateway, each.dispute_id)))
    changed, event = told(
        payment,
        EVENTS[after.state],
        now_ms,
        reason=reason,
        operation_minor=after.amount_minor,
        detail=detail,
        actor=actor,
        operation_id=command_id,
        disputes=disputes,
        disputed_minor=sum(d.amount_minor for d in disputes if d.state in UNDECIDED_IN),
        charged_back_minor=sum(d.withdrawn_minor for d in disputes if d.state == LOST),
    )
    operation_id = dispute_operation_id(changed.sequence, after.dispute_id)
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
                    settled_kind(payment, kind),
                    amount_minor,
                    now_ms,
                    operation_id=operation_id,
                    gateway=after.gateway,
                    reference=after.dispute_id,
                )
            )
    made = Decision(payment=changed, sends=(*sends, event))
    return with_owed_again(payment, with_loss(payment, made, now_ms), now_ms, policy)

"""A person records what was given back outside its gateway, as by a bank transfer.

It is booked as given back, by a settlement of its own kind, since no gateway owes us less for it.
Which account paid is for the ledger: the money was moved and is explained there (``suspense``).
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from pipeline.domain.decision import Decision
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.lifecycle import (
    INQUIRY_EXHAUSTED,
    RECORD,
    REFUNDED,
    RESOLVED_NOT_DONE,
    SUCCESS_SEEN,
)
from pipeline.domain.model import Attempt, Payment, PaymentCommand
from pipeline.domain.payment import (
    begun,
    decision,
    first_try,
    followed,
    parent_of,
    settlement_of,
    stepped,
)
from pipeline.domain.policy import Policy
from pipeline.domain.recorded_refunds import RECORDED, is_unsent, transfer_of
from pipeline.domain.reversals import in_part, owed_minor, successor_id
from pipeline.domain.unasked_charges import settled_kind
from pipeline.processors.losses import with_loss
from pipeline.processors.reversals import with_owed_again

SETTLED_EXTERNAL_REFUND: Final = "external_refund"


def record_refund(
    payment: Payment, reversal: Attempt, command: PaymentCommand, now_ms: int, policy: Policy
) -> Decision:
    """Record it for a reversal; the command keeps the rules of ``domain/commands``."""
    owed = owed_minor(payment, reversal)
    amount_minor = command.amount_minor or owed
    made = Decision()
    if reversal.state == INQUIRY_EXHAUSTED:
        # Whoever says that it was given back otherwise says that this refund was not made.
        ended = replace(reversal, code=RECORDED, uncertain_since_ms=0)
        without, event = stepped(
            payment, ended, RESOLVED_NOT_DONE, now_ms, reason=RECORDED, actor=command.actor,
            detail=command.evidence,
        )  # fmt: skip
        made = decision(without, event)
    given = _given(made.payment or payment, reversal, command, amount_minor, owed, now_ms, policy)
    made = with_loss(payment, followed(made, given), now_ms)
    # What it did not suffice for is told as before.
    return with_owed_again(payment, made, now_ms, policy)


def _given(
    payment: Payment,
    reversal: Attempt,
    command: PaymentCommand,
    amount_minor: int,
    owed: int,
    now_ms: int,
    policy: Policy,
) -> Decision:
    detail = f"outside the gateway, {transfer_of(command)}: {command.evidence}"
    refunded = payment.refunded_minor + amount_minor
    named: dict[str, Any] = {
        "code": RECORDED,
        "gateway_reference": transfer_of(command),
        "business_date": command.business_date,
    }
    if is_unsent(reversal):
        given = replace(in_part(payment, reversal, amount_minor), **named)
        changed, event = stepped(
            payment, given, SUCCESS_SEEN, now_ms, reason=command.reason, actor=command.actor,
            detail=detail, refunded_minor=refunded,
        )  # fmt: skip
    else:
        parent = parent_of(payment, reversal)
        if parent is None:
            raise InvariantBroken("a reversal is of a charge or authorization of the payment")
        asked = first_try(
            successor_id(payment, reversal), reversal.kind, reversal.gateway, 1,
            policy.send_within_ms, now_ms, amount_minor=owed, parent=parent,
        )  # fmt: skip
        given = replace(in_part(payment, asked, amount_minor), state=REFUNDED, tries=0, **named)
        changed, event = begun(
            payment, given, now_ms, trigger=RECORD, reason=command.reason, actor=command.actor,
            detail=detail, refunded_minor=refunded,
        )  # fmt: skip
    settlement = settlement_of(
        payment,
        settled_kind(payment, SETTLED_EXTERNAL_REFUND),
        -amount_minor,
        now_ms,
        operation_id=given.operation_id,
        gateway=given.gateway,
        reference=transfer_of(command),
        business_date=command.business_date,
    )
    return decision(changed, settlement, event)

"""A charge nobody asked for is given back, because a person who has looked at it says so.

What was taken is booked as it happened, and given back as what came too late is: for as long as
that may succeed, asked about where it is unknown, and told where the gateway will not.
"""

from __future__ import annotations

from msgspec.structs import replace

from pipeline.domain.decision import Decision
from pipeline.domain.ids import reversal_operation_id
from pipeline.domain.lifecycle import CHARGE, CHARGE_FOUND, CHARGED, RECORD, REFUND
from pipeline.domain.model import Payment, PaymentCommand
from pipeline.domain.payment import begun, decision, first_try, followed, settlement_of
from pipeline.domain.policy import Policy
from pipeline.domain.posting import UNASKED_CAPTURE
from pipeline.domain.unasked_charges import UNASKED
from pipeline.processors.reversals import begin_reversal


def refund_unasked(
    empty: Payment, command: PaymentCommand, now_ms: int, policy: Policy
) -> Decision:
    """The charge as a payment of its own, and its refund; the command keeps its rules."""
    amount_minor = command.amount_minor or 0
    found = replace(
        empty,
        amount_minor=amount_minor,
        currency=command.currency or "",
        business_date=command.business_date or "",
        payment_method="",
    )
    taken = first_try(
        empty.order_id, CHARGE, command.gateway or "", 1, 0, now_ms, amount_minor=amount_minor
    )
    charge = replace(
        taken, state=CHARGED, tries=0, code=UNASKED, gateway_reference=command.gateway_reference
    )
    changed, event = begun(
        found,
        charge,
        now_ms,
        trigger=RECORD,
        moves=CHARGE_FOUND,
        reason=command.reason,
        actor=command.actor,
        detail=command.evidence,
        authorized_minor=amount_minor,
        captured_minor=amount_minor,
    )
    operation_id = reversal_operation_id(empty.order_id, charge.operation_id, charge.attempt)
    settlement = settlement_of(
        changed,
        UNASKED_CAPTURE,
        amount_minor,
        now_ms,
        operation_id=operation_id,
        gateway=charge.gateway,
        reference=command.gateway_reference or "",
    )
    back = begin_reversal(
        changed, REFUND, operation_id, charge, amount_minor, now_ms, policy, actor=command.actor
    )
    return followed(decision(changed, settlement, event), back)

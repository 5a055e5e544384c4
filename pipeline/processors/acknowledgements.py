"""A person acknowledges a finding of the audit: that is told, kept, and moves nothing.

The finding stands for as long as its figures do; ``paystream verify`` goes on showing it, as
acknowledged. Figures that change are a finding anew.
"""

from __future__ import annotations

from pipeline.domain.decision import Decision
from pipeline.domain.findings import acknowledging
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.lifecycle import FINDING_ACKNOWLEDGED
from pipeline.domain.model import Acknowledgement, Payment, PaymentCommand
from pipeline.domain.payment import decision, told


def acknowledge(payment: Payment, command: PaymentCommand, now_ms: int) -> Decision:
    """The command keeps the rules of ``domain/commands``."""
    finding, figures = command.finding, command.figures
    actor, reason = command.actor, command.reason
    if finding is None or figures is None or actor is None or reason is None:
        raise InvariantBroken("a finding is acknowledged by somebody, with its figures and why")
    word = Acknowledgement(
        finding=finding,
        figures=figures,
        actor=actor,
        reason=reason,
        acknowledged_at_ms=now_ms,
    )
    changed, event = told(
        payment,
        FINDING_ACKNOWLEDGED,
        now_ms,
        # Merchants may hear of events and their reasons; the words are for our own people.
        reason=finding,
        detail=f"{figures}; {reason}; {command.evidence}",
        actor=actor,
        operation_id=command.command_id,
        acknowledged=acknowledging(payment, word),
    )
    return decision(changed, event)

"""What a processor answers: the new state, what to send, or why the input is refused."""

from __future__ import annotations

from msgspec import Struct

from pipeline.domain.model import (
    AuditEntry,
    Payment,
    PaymentDue,
    PaymentEvent,
    PaymentRequest,
    RiskCheck,
    Settlement,
)

Outgoing = PaymentRequest | Settlement | PaymentEvent | PaymentDue | RiskCheck | AuditEntry


class Decision(Struct, frozen=True, kw_only=True):
    """The whole effect of one input, applied in one transaction or not at all.

    ``payment``: the new snapshot, or None when nothing changes (a duplicate, a stale timer).
    ``sends``: records for other topics, in order; the topic follows from the record's type.
    ``dead_letter``: a named cause, when the input goes to the dead letters whole.
    ``note``: a short name counted in metrics for inputs without effect (``duplicate_order``).
    """

    payment: Payment | None = None
    sends: tuple[Outgoing, ...] = ()
    dead_letter: str | None = None
    detail: str | None = None
    note: str | None = None

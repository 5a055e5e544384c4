"""What is published beside a decision about a payout: the payout as it stands after it, and the
audit's record of who decided.
"""

from __future__ import annotations

import json
import uuid
from typing import Final

from pipeline.domain.model import AuditEntry, LedgerEvent
from pipeline.domain.payouts import Payout

# Of the ids of the audit's entries: the same decision has the same entry.
_ENTRIES: Final = uuid.UUID("6f0a5f0b-9a0e-5a43-9a1c-2f0c5d8c7b11")

# The topic's role, the record key, and what is said.
Companion = tuple[str, bytes, Payout | AuditEntry]


def companions(event: LedgerEvent, payout: Payout) -> tuple[Companion, ...]:
    """``payout`` as it stands after the event."""
    subject = f"payout/{payout.payout_id}"
    audit = AuditEntry(
        entry_id=str(uuid.uuid5(_ENTRIES, event.event_id)),
        actor=event.actor,
        action=event.kind,
        subject=subject,
        occurred_at_ms=event.decided_at_ms,
        reason=event.reason or None,
        detail=json.dumps({"decision": event.sequence, "state": payout.state}),
    )
    return (
        ("payouts", payout_key(payout), payout),
        ("audit", subject.encode(), audit),
    )


def refused_approval(payout_id: str, actor: str, now_ms: int) -> Companion:
    """The audit's record of somebody who asked to approve a payout of their own."""
    subject = f"payout/{payout_id}"
    audit = AuditEntry(
        entry_id=str(uuid.uuid5(_ENTRIES, f"{subject}/{actor}/{now_ms}")),
        actor=actor,
        action="payout_approval_refused",
        subject=subject,
        occurred_at_ms=now_ms,
        reason="a second person approves it",
    )
    return "audit", subject.encode(), audit


def payout_key(payout: Payout) -> bytes:
    return f"{payout.merchant_id}:{payout.currency}".encode()

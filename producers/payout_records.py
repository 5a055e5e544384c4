"""What is published beside a payout's decision, in the same transaction: the payout as it stands
after it, and the audit's record of who decided.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Engine

from pipeline.domain.model import AuditEntry, LedgerEvent
from pipeline.domain.payouts import PAYOUT_KINDS, Payout, PayoutBook
from pipeline.ledger.database import reading
from pipeline.ledger.decisions import decisions_of

# Of the ids of the audit's entries: the same decision has the same entry.
_ENTRIES: Final = uuid.UUID("6f0a5f0b-9a0e-5a43-9a1c-2f0c5d8c7b11")

# The topic's role, the record key, and what is said.
Companion = tuple[str, bytes, Payout | AuditEntry]


def companions_of(engine: Engine, events: Sequence[LedgerEvent]) -> list[Companion]:
    """For decisions about payouts, in order; of others there is nothing else to tell."""
    told = {event.sequence for event in events if event.kind in PAYOUT_KINDS}
    if not told:
        return []
    with reading(engine) as connection:
        decided = decisions_of(connection, PAYOUT_KINDS)
    book = PayoutBook()
    found: list[Companion] = []
    for event in decided:
        payout = book.take(event)
        if payout is None or event.sequence not in told:
            continue
        found.append(("payouts", payout_key(payout), payout))
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
        found.append(("audit", subject.encode(), audit))
    return found


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

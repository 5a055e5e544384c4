"""What is published beside payouts' decisions, of the ledger as it is."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Engine

from pipeline.domain.model import LedgerEvent
from pipeline.domain.payout_records import Companion, companions
from pipeline.domain.payouts import PAYOUT_KINDS, PayoutBook
from pipeline.ledger.database import reading
from pipeline.ledger.decisions import decisions_of


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
        if payout is not None and event.sequence in told:
            found += companions(event, payout)
    return found

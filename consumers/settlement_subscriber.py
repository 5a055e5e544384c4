"""Follow settlements, for downstream systems written in Python."""

from __future__ import annotations

from typing import Any

from consumers.subscriber import (
    STARTS,
    Poison,
    Position,
    PositionLost,
    Start,
    Subscriber,
    SubscriptionError,
)
from pipeline.domain.model import Settlement
from pipeline.domain.records import settlement_from_record

__all__ = [
    "STARTS",
    "Poison",
    "Position",
    "PositionLost",
    "SettlementSubscriber",
    "Start",
    "SubscriptionError",
]


class SettlementSubscriber(Subscriber[Settlement]):
    """Settlements, each at least once, in order for each order.

    ::

        with SettlementSubscriber(servers, "fulfilment", start="earliest") as settlements:
            for settlement, position in settlements:
                ship(settlement.order_id)  # must be harmless when done twice
                settlements.commit()

    Suppress what was seen before by ``settlement_id``, which never changes. A settlement is good
    for fulfilment; it does not mean that funds were received. How a group begins and goes on:
    ``Subscriber``.
    """

    noun = "settlement"
    role = "settlements"
    schema = "settlement"
    missed = "Take what is missing from the ledger"

    def _noun(self, fields: dict[str, Any]) -> Settlement:
        return settlement_from_record(fields)

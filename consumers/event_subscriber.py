"""Follow what becomes of orders and commands, for systems written in Python that publish them."""

from __future__ import annotations

from typing import Any

from consumers.subscriber import (
    Poison,
    Position,
    PositionLost,
    Subscriber,
    SubscriptionError,
)
from pipeline.domain.model import PaymentEvent
from pipeline.domain.records import event_from_record

__all__ = ["EventSubscriber", "Poison", "Position", "PositionLost", "SubscriptionError"]


class EventSubscriber(Subscriber[PaymentEvent]):
    """Every step of every payment, each at least once, in order for each order.

    ::

        with EventSubscriber(servers, "order-desk", start="earliest") as events:
            for event, position in events:
                if event.type in ("rejected", "order_conflict"):
                    tell(event.order_id, event.reason)  # must be harmless when done twice
                events.commit()

    Suppress what was seen before by ``event_id``, which never changes. How a group begins and goes
    on: ``Subscriber``.
    """

    noun = "event"
    role = "payment-events"
    schema = "payment-event"
    missed = "`paystream payment show` tells how a payment stands by now"

    def _noun(self, fields: dict[str, Any]) -> PaymentEvent:
        return event_from_record(fields)

"""Publish orders, for upstream systems written in Python."""

from __future__ import annotations

from pipeline.domain.card_numbers import fields_not_to_send
from pipeline.domain.model import Order
from producers.publisher import (
    InvalidRecord,
    Publisher,
    PublishError,
    check_topic,
    producer_config,
)

__all__ = ["InvalidOrder", "OrderPublisher", "PublishError", "check_topic", "producer_config"]


class InvalidOrder(InvalidRecord):
    """The order cannot become a record: its ids, a field's type, or its size. Nothing was sent."""


class CardNumberInField(InvalidOrder):
    """A text of the order holds a card number; ``fields`` names them, nothing repeats the number.

    Orders carry tokens: the flow would put such an order among the dead letters.
    """

    def __init__(self, order: str, fields: tuple[str, ...]) -> None:
        super().__init__(
            f"order {order} holds a card number in {', '.join(fields)}; give a token for the card, "
            "and leave card numbers out of texts"
        )
        self.fields = fields


class OrderPublisher(Publisher[Order]):
    """Writes orders to the orders topic, each at least once, and never loses one silently.

    ::

        with OrderPublisher(servers) as publisher:
            for order in orders:
                publisher.publish(order)

    Leaving the block flushes. Orders may be published again, by this or another process: the flow
    takes the same order for one payment. The producer is idempotent, so its own retries neither
    double nor reorder. ``publish`` returns before the order is on the broker; what failed is
    raised as PublishError by the next ``publish`` or by ``flush``, once. An order that holds a card
    number is not let out of the process (CardNumberInField).

    Not for use by several threads at once. ``config`` overrides settings of the Kafka client, for
    security settings above all.
    """

    noun = "order"
    role = "orders"
    kind = Order
    invalid = InvalidOrder

    def _refuse(self, noun: Order) -> None:
        if not isinstance(noun.lines, tuple | list):
            # An iterator would be at its end when it is looked at for card numbers.
            raise InvalidOrder(
                f"the lines of an order are a tuple, not {type(noun.lines).__name__}"
            )
        fields = fields_not_to_send(noun)
        if fields:
            raise CardNumberInField(f"{noun.merchant_id}:{noun.order_id}", fields)

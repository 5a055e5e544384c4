"""A publisher whose broker never answers: the client looks for what is overdue once a second."""

from __future__ import annotations

import pytest

from pipeline.domain.model import Order
from producers.load_generator import LoadPlan, order_at
from producers.order_publisher import OrderPublisher, PublishError

pytestmark = pytest.mark.integration

NOWHERE = "127.0.0.1:1"


def order(number: int) -> Order:
    plan = LoadPlan(count=100, submitted_at_ms=1_790_000_000_000, business_date="2026-09-21")
    return order_at(plan, number)


def test_a_failed_delivery_stops_the_next_publish() -> None:
    """Whoever never flushes learns of it all the same, and the queue that is full does not hang."""
    publisher = OrderPublisher(
        NOWHERE,
        delivery_timeout_s=0.2,
        config={"log_level": 0, "queue.buffering.max.messages": 5, "linger.ms": 0},
    )

    def publish_on() -> None:
        for index in range(100):
            publisher.publish(order(index))

    with pytest.raises(PublishError) as raised:
        publish_on()
    assert raised.value.count >= 1


def test_leaving_the_block_raises_what_was_not_delivered() -> None:
    """The with block cannot be left in silence with orders lost."""
    with (
        pytest.raises(PublishError),
        OrderPublisher(NOWHERE, delivery_timeout_s=0.2, config={"log_level": 0}) as publisher,
    ):
        publisher.publish(order(0))


def test_an_error_of_the_block_keeps_the_name_of_what_was_lost() -> None:
    """The caller's own error goes on, with a note about the orders."""

    def fail_inside() -> None:
        settings = {"log_level": 0}
        with OrderPublisher(NOWHERE, delivery_timeout_s=0.2, config=settings) as publisher:
            publisher.publish(order(0))
            raise KeyError("mine")

    with pytest.raises(KeyError) as raised:
        fail_inside()
    assert "load-7-0" in raised.value.__notes__[0]

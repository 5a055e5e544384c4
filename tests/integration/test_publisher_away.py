"""A publisher whose broker never answers: the client looks for what is overdue once a second."""

from __future__ import annotations

import pytest

import producers.publisher as publisher_module
from pipeline.domain.model import Order
from producers.load_generator import LoadPlan, order_at
from producers.order_publisher import OrderPublisher, PublishError
from tests.support.mock_cluster import MockCluster
from tests.support.waiting import WAIT_S

pytestmark = pytest.mark.integration

NOWHERE = "127.0.0.1:1"
# Long beside the look for brokers.
DELIVERY_S = 20.0


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


def test_a_wrong_address_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a delivery may take once there are brokers: two minutes of silence would pass. The
    orders are named, and the address."""
    monkeypatch.setattr(publisher_module, "CHECK_TIMEOUT_S", 0.2)
    publisher = OrderPublisher(NOWHERE, delivery_timeout_s=DELIVERY_S, config={"log_level": 0})
    publisher.publish(order(0))
    with pytest.raises(
        PublishError, match=rf"no Kafka broker answers at {NOWHERE}.*: shop-a:load-7"
    ) as it:
        publisher.flush()
    assert it.value.count == 1


def test_an_outage_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers that have answered once come back: their orders wait for the delivery timeout."""
    monkeypatch.setattr(publisher_module, "CHECK_TIMEOUT_S", 0.2)
    cluster = MockCluster(1)
    publisher = OrderPublisher(cluster.bootstrap_servers, config={"log_level": 0})
    publisher.publish(order(0))
    publisher.flush(WAIT_S)
    cluster.take_down(1)
    publisher.publish(order(1))
    with pytest.raises(PublishError) as it:
        publisher.flush(1.0)
    assert "no Kafka broker answers" not in str(it.value)


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

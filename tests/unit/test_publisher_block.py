"""A publisher outside its block, where nobody waits for what it is given, and its timeout."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UserError
from producers.load_generator import LoadPlan, order_at
from producers.order_publisher import OrderPublisher, PublishError

AN_ORDER = order_at(LoadPlan(count=1, submitted_at_ms=1, business_date="2026-11-28"), 0)


def test_an_order_after_the_block_is_refused_and_not_taken_in_silence() -> None:
    """With the broker away it would be gone with the process, and nobody told."""
    with OrderPublisher("127.0.0.1:1") as publisher:
        pass
    with pytest.raises(RuntimeError, match="block was left; publish orders within it"):
        publisher.publish(AN_ORDER)


def test_a_publisher_without_a_block_or_in_a_second_one_takes_orders() -> None:
    """Whoever flushes by hand needs no block, and a block may be entered again."""
    publisher = OrderPublisher("127.0.0.1:1")
    publisher.publish(AN_ORDER)
    with pytest.raises(PublishError, match="1 orders were not certainly delivered"):
        publisher.flush(0.0)
    with publisher:
        pass
    with publisher:
        publisher.publish(AN_ORDER)
        with pytest.raises(PublishError):
            publisher.flush(0.0)


@pytest.mark.parametrize("timeout_s", [-1, float("nan"), float("inf"), 1e9, None, "120"])
def test_a_delivery_timeout_that_is_none_is_refused(timeout_s: Any) -> None:
    """The client's own errors are of three kinds, and name another setting."""
    with pytest.raises(UserError, match=r"delivery_timeout_s is .*; give seconds, from 0 to "):
        OrderPublisher("127.0.0.1:1", delivery_timeout_s=timeout_s)

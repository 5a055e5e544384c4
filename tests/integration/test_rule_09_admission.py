"""Rule 9: while the gateway stage is behind, payments under way go on and new orders wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.engine_flow import EngineFlow, ends_of, until

pytestmark = pytest.mark.integration


def test_a_closed_gate_holds_orders_while_results_flow(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """With the gate closed a result is settled and an order stays unread; with it open again the
    order is asked for, so it was slowed and not dropped."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    gate = [True]
    early, late = flow.order("early"), flow.order("late")
    with flow.running_payments(orders_allowed=lambda: gate[0]) as running:
        flow.wait_consumed(ends_of(flow.send_order(early)), running=running)
        gate[0] = False
        held = flow.send_order(late)
        buffers = running.worker._admission
        until(lambda: buffers.buffered(flow.topic("orders")) == 1, "the order has arrived")
        result = flow.send_result(early)
        flow.wait_consumed(ends_of(result), role="gateway-results", running=running)
        assert [s.order_id for s in flow.nouns("settlements")] == ["early"]
        assert flow.committed("payments", "orders")[held[0]] <= held[1]
        assert [r.order_id for r in flow.nouns("payment-requests")] == ["early"]
        gate[0] = True
        flow.wait_consumed(ends_of(held), running=running)
    assert {r.order_id for r in flow.nouns("payment-requests")} == {"early", "late"}

"""Rule 9: while the gateway stage is behind, payments under way go on and new orders wait."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.local import worker_specs
from pipeline.runtime.lag import GroupLag
from pipeline.runtime.supervisor import Supervisor
from tests.support.engine_flow import EngineFlow, ends_of, until
from tests.support.whole_flow import WholeFlow, orders

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


@pytest.mark.slow
def test_a_worker_process_asks_for_no_more_than_may_be_open(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """With no gateway stage at all, what is published after the gate has closed stays in its
    topic: not one request is added to those that wait. With the stage there all are asked for."""
    workers = {"payments": 1}
    flow = WholeFlow(
        kafka, topic_prefix, tmp_path, workers=workers, settings_given={"open_requests_max": 200}
    )
    with flow:
        topic = flow.settings.catalogue().name("payment-requests")
        lag = GroupLag(kafka, flow.settings.catalogue().group("gateway"), {topic: flow.partitions})
        try:
            flow.publish(orders(300, merchant="first"))
            flow.keep_until(
                lambda: "new orders are held back" in flow.log_tail(), 60, "the gate has closed"
            )
            time.sleep(2)  # what was prepared while it closed is committed
            open_requests = lag()[topic]
            # Control records count as well; without a gate there would be 800 in the end.
            assert 200 < open_requests < 400
            flow.publish(orders(500, merchant="second"))
            time.sleep(2)  # they must not be asked for; there is no event to wait for
            assert lag()[topic] == open_requests
            gateway = worker_specs(
                flow.settings, {"gateway": 1}, node_id="late", log_file=tmp_path / "gateway.log"
            )
            with Supervisor(gateway, metrics_dir=tmp_path):
                flow.keep_until(
                    lambda: flow.verify().summary["payments"] == {"captured": 800},
                    60,
                    "every order was asked for",
                    progress=lambda: lag()[topic],
                )
        finally:
            lag.close()

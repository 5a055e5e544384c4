"""Rule 13: a record that kills its process is quarantined; the flow goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from confluent_kafka import Message

from pipeline.config import load_settings
from pipeline.domain.keys import partition_of, record_key
from pipeline.runtime.supervisor import Supervisor
from pipeline.runtime.suspects import DEATHS_MAX
from pipeline.runtime.worker_spec import WorkerSpec
from tests.support.engine_flow import EngineFlow, headers_of
from tests.support.poisoned_worker import POISON

pytestmark = pytest.mark.integration


@pytest.mark.slow
def test_a_record_that_kills_the_process_is_quarantined_while_others_go_on(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """The poisoned order dies in the dead letters after four deaths (one to suspect what was under
    way, three to name it), five where others of its partition were, although orders of the other
    partition arrive between them; those behind it and those beside it are all asked for once.
    """
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    options = load_settings(
        bootstrap_servers=kafka, state_dir=tmp_path, partitions=2, topic_prefix=topic_prefix
    ).worker_options() | {"log_file": str(tmp_path / "worker.log")}
    spec = WorkerSpec("payments", "n1", 0, kafka, flow.settings, tmp_path, options)
    lane = partition_of(record_key("shop", POISON), 2)
    healthy = {f"h{n}": flow.order(f"h{n}") for n in range(400)}
    beside = [o for name, o in healthy.items() if partition_of(record_key("shop", name), 2) != lane]
    behind = [o for name, o in healthy.items() if partition_of(record_key("shop", name), 2) == lane]
    poison = flow.send_order(flow.order(POISON))
    sent = behind[:5]
    for order in sent:
        flow.send_order(order)
    with Supervisor(
        [spec],
        metrics_dir=tmp_path,
        restart_pause_s_max=0.2,
        module="tests.support.poisoned_worker",
    ) as running:
        deadline = time.monotonic() + 90
        letters: list[Message] = []
        while not letters and time.monotonic() < deadline:
            order = beside[len(sent) % len(beside)]
            flow.send_order(order)
            sent.append(order)
            running.tick()
            time.sleep(0.1)
            letters = flow.messages("dead-letters") if len(sent) % 10 == 0 else []
        ids: set[str] = set()
        while ids != {o.order_id for o in sent} and time.monotonic() < deadline:
            running.tick()
            time.sleep(0.2)
            ids = {r.order_id for r in flow.nouns("payment-requests")}
        exits = running.exits["payments-0"]
    (letter,) = letters
    headers = headers_of(letter)
    assert headers["dlq.cause"] == "killed_the_process"
    assert (int(headers["dlq.partition"]), int(headers["dlq.offset"])) == poison
    assert exits in ([-9] * (1 + DEATHS_MAX), [-9] * (2 + DEATHS_MAX))
    requested = [r.order_id for r in flow.nouns("payment-requests")]
    assert sorted(requested) == sorted({o.order_id for o in sent})

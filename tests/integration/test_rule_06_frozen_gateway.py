"""Rules 2 and 6 at the gateway: a worker that was frozen and wakes up charges nobody twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from pipeline.config import load_settings
from pipeline.gateways.simulator import FaultPlan, start_simulator, stop_simulator
from pipeline.runtime.supervisor import Supervisor
from pipeline.runtime.worker_spec import WorkerSpec
from tests.support.engine_flow import EngineFlow, until

pytestmark = pytest.mark.integration

ORDERS = 40


@pytest.mark.slow
def test_a_frozen_worker_that_wakes_after_a_takeover_charges_nobody_twice(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """One of two gateway workers is stopped with calls open, for longer than its session; the
    other takes its requests over and charges; the first wakes, finishes what it had begun and
    commits none of it as a request's result. The gateway's own books have each order once, and so
    have the results, but for what the first heard: that is told apart, as heard too late."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    plan = FaultPlan(slow_ms_min=1_500, slow_ms_max=2_500)
    simulator = start_simulator(tmp_path / "gateway.db", faults=plan)
    options = load_settings(
        bootstrap_servers=kafka,
        state_dir=tmp_path,
        partitions=2,
        topic_prefix=topic_prefix,
        gateway_url=simulator.url,
    ).worker_options() | {"log_file": str(tmp_path / "worker.log")}
    specs = [
        WorkerSpec("gateway", "n1", slot, kafka, flow.settings, tmp_path, options)
        for slot in (0, 1)
    ]
    frozen: int | None = None
    try:
        # A pid for each slot: the supervisor's list is in the order of its specifications.
        with Supervisor(specs, metrics_dir=tmp_path) as workers:
            until(lambda: _partitions_of_members(flow) == [1, 1], "each worker has a partition")
            warm = [_request(flow, f"warm{n}", "tok_ok") for n in range(20)]
            _wait_for_results(flow, workers, len(warm))
            for n in range(ORDERS):
                _request(flow, f"o{n}", "tok_slow")
            time.sleep(0.5)  # calls have begun, and none of them ends within 1.5 s
            frozen = workers.pids()[0]
            os.kill(frozen, signal.SIGSTOP)
            time.sleep(4)  # the other worker's own calls have ended
            held = len(warm) + ORDERS - len(flow.messages("gateway-results"))
            assert held > 5, "the frozen worker had nothing to be taken over"
            _wait_for_results(flow, workers, len(warm) + ORDERS)
            os.kill(frozen, signal.SIGCONT)
            frozen = None
            late = [_request(flow, f"late{n}", "tok_ok") for n in range(20)]
            _wait_for_results(flow, workers, len(warm) + ORDERS + len(late))
            time.sleep(2)  # what the woken worker may still do has no event to wait for
        books = _books(simulator.url)
    finally:
        if frozen is not None:
            os.kill(frozen, signal.SIGCONT)
        stop_simulator(simulator)
    assert books["orders_charged_more_than_once"]["count"] == 0
    assert books["charges"] == len(warm) + ORDERS + len(late)
    results = flow.nouns("gateway-results")
    answered = [r.order_id for r in results if not r.heard]
    assert len(answered) == len(set(answered)) == len(warm) + ORDERS + len(late)
    told = [r for r in results if r.heard]
    assert all((r.heard, r.outcome) == ("late_answer", "succeeded") for r in told)


def test_a_worker_frozen_before_its_socket_write_sends_nothing_when_it_wakes(
    tmp_path: Path,
) -> None:
    """A charge was let in while there was time, and waits for a connection when its process is
    stopped. The gateway frees the connection, the time passes, the process wakes: not one byte of
    the charge is written, so another gateway may have it. It is the last check that keeps this."""
    plan = FaultPlan(slow_ms_min=1_500, slow_ms_max=1_500)
    simulator = start_simulator(tmp_path / "gateway.db", faults=plan)
    charging = subprocess.Popen(
        [sys.executable, "-m", "tests.support.charging_process", simulator.url, "800"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert charging.stdout is not None
        said = json.loads(charging.stdout.readline())
        assert said["waiting"]
        charging.send_signal(signal.SIGSTOP)
        until(lambda: _books(simulator.url)["charges"] == 1, "the slow charge is made")
        until(lambda: time.time() * 1000 > said["until_ms"] + 100, "its time is over")
        charging.send_signal(signal.SIGCONT)
        slow, short = json.loads(charging.stdout.readline())
        assert charging.wait(30) == 0
        books = _books(simulator.url)
    finally:
        charging.kill()
        charging.wait()
        stop_simulator(simulator)
    assert slow["outcome"] == "succeeded"
    assert (short["outcome"], short["code"]) == ("not_sent", "send_before_passed")
    assert books["charges"] == 1


def _request(flow: EngineFlow, order_id: str, token: str) -> tuple[int, int]:
    request = flow.request(flow.order(order_id, instrument_token=token))
    key = f"shop:{order_id}".encode()
    return flow.send("payment-requests", key, flow.encode("payment-request", request))


def _wait_for_results(flow: EngineFlow, workers: Supervisor, count: int) -> None:
    def there() -> bool:
        workers.tick()
        return len(flow.messages("gateway-results")) >= count

    until(there, f"{count} results are there", 60)


def _partitions_of_members(flow: EngineFlow) -> list[int]:
    group = flow.catalogue.group("gateway")
    admin = AdminClient({"bootstrap.servers": flow.bootstrap})
    described = admin.describe_consumer_groups([group], request_timeout=10)[group].result()
    return [len(member.assignment.topic_partitions) for member in described.members]


def _books(url: str) -> Any:
    with urllib.request.urlopen(f"{url}/v1/books/summary", timeout=10) as answer:
        return json.load(answer)

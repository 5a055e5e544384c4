"""What keeps a flow on one machine alive: a real simulator and a real worker that end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.commands import flow as flow_commands
from pipeline.config import load_settings
from pipeline.errors import UserError
from pipeline.gateways.simulator import kill_simulator, start_simulator, stop_simulator
from pipeline.local import LocalFlow, books_file
from pipeline.runtime.supervisor import Supervisor
from pipeline.runtime.worker_spec import WorkerSpec
from tests.support.waiting import WAIT_S, wait_until
from topics.catalogue import TopicSettings

pytestmark = pytest.mark.integration


class FakeBroker:
    """A broker that is dead until it is started."""

    def __init__(self, folder: Path) -> None:
        self.log_files = (folder / "output.log", folder / "server.log")
        self.running = False
        self.starts = 0

    def is_running(self) -> bool:
        return self.running

    def start(self) -> None:
        self.running, self.starts = True, self.starts + 1


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def flow(tmp_path: Path, said: list[str]) -> Iterator[LocalFlow]:
    """A flow whose simulator is real and whose broker and workers are not."""
    made = LocalFlow(load_settings(state_dir=tmp_path), {}, say=said.append)
    broker = FakeBroker(tmp_path)
    broker.running = True
    made.kafka = SimpleNamespace(
        brokers=(broker,), started_here=False, bootstrap_servers="127.0.0.1:1"
    )
    made.simulator = start_simulator(tmp_path / books_file("simulator"), faults="none")
    made.simulators = {"simulator": made.simulator}
    supervisor = SimpleNamespace(tick=lambda: None)
    running: Any = SimpleNamespace(supervisor=supervisor, stop=lambda: False)
    made.running = running
    yield made
    if made.simulator is not None:
        stop_simulator(made.simulator)


def test_a_simulator_that_died_is_started_again_on_its_port_and_books(
    flow: LocalFlow, said: list[str]
) -> None:
    """The workers keep its address; one that dies again at once ends the flow with a sentence."""
    flow.tick()
    assert said == []
    before = flow.simulator
    kill_simulator(before)
    flow.tick()
    assert flow.simulator.pid != before.pid
    assert (flow.simulator.port, flow.simulator.books) == (before.port, before.books)
    assert said == [
        "The simulator has ended by itself; starting it again",
        "The simulator answers again",
    ]
    kill_simulator(flow.simulator)
    with pytest.raises(UserError, match="The simulator ended again"):
        flow.tick()


def test_a_kafka_that_died_is_started_again(
    flow: LocalFlow, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its own ports and data; one that dies again at once ends the flow with a sentence. What
    hangs is looked for once it serves (`test_hanging_transactions` has a real broker for that)."""
    looked: list[str] = []

    def nothing_hangs() -> None:
        looked.append(said[-1])

    monkeypatch.setattr(flow, "_end_what_hangs", nothing_hangs)
    (broker,) = flow.kafka.brokers
    broker.running = False
    flow.tick()
    assert broker.starts == 1
    assert said == ["Kafka has ended by itself; starting it again", "Kafka serves again"]
    assert len(looked) == 1
    broker.running = False
    with pytest.raises(UserError, match="Kafka ended again"):
        flow.tick()


def test_a_drain_that_failed_is_remembered(flow: LocalFlow) -> None:
    """Whoever stops the flow can tell from the exit code that a worker left something."""
    assert flow.drained
    assert not flow.close()
    assert not flow.drained
    assert flow_commands.EXIT_NOT_DRAINED != 0


def test_what_a_worker_writes_by_itself_goes_to_its_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The Kafka client's own lines, and a crash, do not bury what the terminal shows."""
    log_file = tmp_path / "workers.log"
    spec = WorkerSpec(
        stage="no such stage",
        node_id="local",
        slot=0,
        bootstrap_servers="127.0.0.1:1",
        topics=TopicSettings(),
        state_dir=tmp_path,
        options={"log_file": str(log_file)},
    )
    with Supervisor([spec], metrics_dir=tmp_path):
        wait_until(
            lambda: log_file.is_file() and "KeyError: 'no such stage'" in log_file.read_text(),
            WAIT_S,
            "the worker's traceback is in its log",
        )
    assert "KeyError" not in capfd.readouterr().err

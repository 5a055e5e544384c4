"""What keeps a flow on one machine alive, and what it remembers between two runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.commands import flow as flow_commands
from pipeline.config import Settings, load_settings
from pipeline.errors import UserError
from pipeline.gateways.simulator import kill_simulator, start_simulator, stop_simulator
from pipeline.gateways.simulator.personality import PERSONALITIES
from pipeline.local import (
    LocalFlow,
    _partitions_file,
    books_file,
    simulated,
    with_kept_partitions,
)
from pipeline.runtime.supervisor import Supervisor
from pipeline.runtime.worker_spec import WorkerSpec
from tests.support.waiting import wait_until
from topics.catalogue import TopicSettings


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
    made.kafka = SimpleNamespace(brokers=(broker,), started_here=False)
    made.simulator = start_simulator(tmp_path / books_file("simulator"), faults="none")
    made.simulators = {"simulator": made.simulator}
    supervisor = SimpleNamespace(tick=lambda: None)
    running: Any = SimpleNamespace(supervisor=supervisor, stop=lambda: False)
    made.running = running
    yield made
    if made.simulator is not None:
        stop_simulator(made.simulator)


def test_all_simulated_gateways_with_webhooks_are_a_configuration(tmp_path: Path) -> None:
    """What `up --gateways all` gives its workers is accepted: also the one that sends no notices,
    which takes no secret."""
    handles = {
        name: SimpleNamespace(url=f"http://127.0.0.1:{port}")
        for port, name in enumerate(PERSONALITIES, 1)
    }
    secret = f"whsec_{'a' * 32}"
    entries = simulated(handles, secret)
    load_settings(gateways=entries, state_dir=tmp_path)
    without = [name for name, entry in entries.items() if "notice_secrets" not in entry]
    assert without == ["legacy"]


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


def test_a_kafka_that_died_is_started_again(flow: LocalFlow, said: list[str]) -> None:
    """On its own ports and data; one that dies again at once ends the flow with a sentence."""
    (broker,) = flow.kafka.brokers
    broker.running = False
    flow.tick()
    assert broker.starts == 1
    assert said == ["Kafka has ended by itself; starting it again", "Kafka serves again"]
    broker.running = False
    with pytest.raises(UserError, match="Kafka ended again"):
        flow.tick()


def test_a_drain_that_failed_is_remembered(flow: LocalFlow) -> None:
    """Whoever stops the flow can tell from the exit code that a worker left something."""
    assert flow.drained
    assert not flow.close()
    assert not flow.drained
    assert flow_commands.EXIT_NOT_DRAINED != 0


def kept(tmp_path: Path, partitions: int) -> Settings:
    settings = load_settings(state_dir=tmp_path)
    _partitions_file(settings).parent.mkdir(exist_ok=True)
    _partitions_file(settings).write_text(f"{partitions}\n")
    return settings


def test_the_partition_count_of_before_is_used_when_none_is_given(tmp_path: Path) -> None:
    """The next `up` need not repeat the option of the first."""
    assert with_kept_partitions(load_settings(state_dir=tmp_path)).partitions == 12
    assert with_kept_partitions(kept(tmp_path, 4)).partitions == 4


def test_another_partition_count_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """One sentence, with both counts and the way out."""
    kept(tmp_path, 4)
    same = load_settings(state_dir=tmp_path, partitions=4)
    assert with_kept_partitions(same).partitions == 4
    with pytest.raises(UserError, match="have 4 partitions, not 6"):
        with_kept_partitions(load_settings(state_dir=tmp_path, partitions=6))


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
            30,
            "the worker's traceback is in its log",
        )
    assert "KeyError" not in capfd.readouterr().err

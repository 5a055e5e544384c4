"""One embedded broker: its process, and what a chaos test does to it."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.embedded import processes
from pipeline.embedded.kafka_config import BrokerPorts
from pipeline.embedded.ports import LOOPBACK, is_listening
from pipeline.embedded.processes import ProcessIdentity
from pipeline.errors import UserError

# 2.5 s on two idle cores; this is for a machine that is busy with twenty other things.
START_TIMEOUT_S = 90.0
# Where that is not enough, the broker's log says whether it gets on. It writes hundreds of lines
# until it serves; a machine that let it write none for so long would not let it serve either.
GETS_ON_S = 30.0
STARTING_S_MAX = 300.0


@dataclass
class BrokerProcess:
    """A broker of a cluster on this machine. Its port stays the same whatever is done to it."""

    ports: BrokerPorts
    cluster_id: str
    folder: Path
    command: tuple[str, ...]
    die_with_parent: bool
    identity: ProcessIdentity | None
    on_change: Callable[[], None] = field(repr=False)

    @property
    def node_id(self) -> int:
        return self.ports.node_id

    @property
    def bootstrap_server(self) -> str:
        return f"{LOOPBACK}:{self.ports.port}"

    @property
    def pid(self) -> int | None:
        """The running process's id, None while there is none."""
        return self.identity.pid if self.identity is not None and self.is_running() else None

    @property
    def log_files(self) -> tuple[Path, Path]:
        """The JVM's own output and the broker's log."""
        return self.folder / "output.log", self.folder / "server.log"

    def is_running(self) -> bool:
        """Whether the process is there; a paused one is."""
        return self.identity is not None and processes.is_alive(self.identity)

    def launch(self) -> None:
        """Start the process without waiting until it serves; nothing if it runs."""
        if self.is_running():
            return
        output = self.log_files[0]
        # One start, one file: its end is what an error message shows.
        output.unlink(missing_ok=True)
        self.identity = processes.start_detached(
            self.command, output=output, die_with_parent=self.die_with_parent
        )
        self.on_change()

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it on its own port and data, and wait until it serves as part of its cluster."""
        self.launch()
        wait_until_serving([self], timeout_s)

    def stop(self, timeout_s: float = 20.0) -> None:
        """An orderly shutdown: leadership moves first. Killed after ``timeout_s``."""
        if self.identity is not None:
            processes.stop([self.identity], timeout_s)
        self.on_change()

    def kill(self) -> None:
        """SIGKILL: what a crash or a lost machine looks like."""
        if self.identity is not None and processes.send(self.identity, signal.SIGKILL):
            processes.wait_ended(self.identity, 10.0)
        self.on_change()

    def pause(self) -> None:
        """SIGSTOP: what a long garbage collection or a frozen machine looks like."""
        if self.identity is not None:
            processes.send(self.identity, signal.SIGSTOP)

    def resume(self) -> None:
        if self.identity is not None:
            processes.send(self.identity, signal.SIGCONT)


def wait_until_serving(brokers: Sequence[BrokerProcess], timeout_s: float) -> None:
    """Wait until each of them answers a metadata request that lists all of them.

    One whose log still grows has until ``STARTING_S_MAX``. UserError with the end of the log when
    one ends first or the time is over.
    """
    begun_s = time.monotonic()
    wanted = {broker.node_id for broker in brokers}
    for broker in brokers:
        while not is_listening(broker.ports.port):
            _check_still_possible(broker, time.monotonic() - begun_s, timeout_s)
            time.sleep(0.05)
        while not wanted <= _brokers_seen_by(broker):
            _check_still_possible(broker, time.monotonic() - begun_s, timeout_s)
            time.sleep(0.05)


def _check_still_possible(broker: BrokerProcess, waited_s: float, timeout_s: float) -> None:
    if not broker.is_running():
        why = "ended while starting"
    elif waited_s > timeout_s and not (waited_s < STARTING_S_MAX and _gets_on(broker)):
        why = f"did not serve within {waited_s:.0f} s"
    else:
        return
    logs = processes.last_lines(broker.log_files)
    raise UserError(f"Kafka broker {broker.node_id} in {broker.folder} {why}.{logs}")


def _gets_on(broker: BrokerProcess) -> bool:
    """Whether its log has grown lately."""
    try:
        written_s = broker.log_files[1].stat().st_mtime
    except FileNotFoundError:
        return False
    return time.time() - written_s < GETS_ON_S


def _brokers_seen_by(broker: BrokerProcess) -> set[int]:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    quiet = logging.getLogger("pipeline.embedded.readiness")
    quiet.setLevel(logging.CRITICAL)
    client = AdminClient({"bootstrap.servers": broker.bootstrap_server}, logger=quiet)
    try:
        found = client.list_topics(timeout=2.0)
        # Another cluster may have taken the port a moment before this broker asked for it.
        return set(found.brokers) if found.cluster_id == broker.cluster_id else set()
    except KafkaException:
        return set()

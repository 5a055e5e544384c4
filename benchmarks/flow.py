"""A flow to measure: a fresh embedded broker with the topics, and workers on top of it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from confluent_kafka import Producer

from benchmarks.failure import WrongRun
from pipeline.config import Settings, load_settings
from pipeline.domain.invariant import invariant
from pipeline.embedded.kafka import start_kafka, stop_kafka
from pipeline.gateways.simulator import start_simulator, stop_simulator
from pipeline.local import worker_specs
from pipeline.runtime.supervisor import Supervisor
from producers.load_generator import run_load
from topics.provisioning import provision

Say = Callable[[str], None]
GatewayKind = Literal["in-process", "simulator"]

NODE_ID = "bench"
READY_TIMEOUT_S = 60.0
# The syslog level of a client that is expected to be told "not yet" while a broker comes up.
LOG_ERRORS_ONLY = 3


@dataclass(frozen=True)
class FlowOptions:
    """How the measured flow is set up. ``folder`` is where its data goes (None: the system's)."""

    partitions: int = 12
    gateway_workers: int = 1
    gateway: GatewayKind = "in-process"
    broker_heap_mb: int = 512
    folder: Path | None = None


@dataclass(frozen=True)
class Ground:
    """A broker that serves and nothing else yet."""

    settings: Settings
    broker_pid: int


@contextmanager
def ground(options: FlowOptions) -> Iterator[Ground]:
    """A new broker over a new folder, topics applied; all of it is gone afterwards.

    Each measurement has its own, so that none finds another's caches warm.
    """
    with tempfile.TemporaryDirectory(prefix="paystream-bench-", dir=options.folder) as name:
        folder = Path(name)
        kafka = start_kafka(folder / "kafka", heap_mb=options.broker_heap_mb, die_with_parent=True)
        try:
            settings = load_settings(
                bootstrap_servers=kafka.bootstrap_servers,
                partitions=options.partitions,
                replication_factor=1,
                min_insync_replicas=1,
                topic_prefix="",
                state_dir=folder / "state",
                schema_registry_url="",
                gateway_in_process=options.gateway == "in-process",
                log_level="WARNING",
            )
            provision(kafka.bootstrap_servers, settings.catalogue())
            _ready_for_transactions(kafka.bootstrap_servers)
            pid = kafka.brokers[0].pid
            invariant(pid is not None, "a broker that was just started runs")
            yield Ground(settings, pid or 0)
        finally:
            stop_kafka(kafka)


def _ready_for_transactions(bootstrap_servers: str) -> None:
    """A new broker makes its transaction log when it is first asked for; that is not measured."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "transactional.id": "benchmark-ready",
            "log_level": LOG_ERRORS_ONLY,
        }
    )
    producer.init_transactions(READY_TIMEOUT_S)


@contextmanager
def workers(on: Ground, options: FlowOptions, *, payments_workers: int) -> Iterator[Supervisor]:
    """Supervised workers, started on entry, drained on leaving."""
    settings = on.settings
    simulator = None
    if options.gateway == "simulator":
        simulator = start_simulator(settings.state_dir / "gateway-books.sqlite", faults="none")
        settings = settings.model_copy(update={"gateway_url": simulator.url})
    counts = {"payments": payments_workers, "gateway": options.gateway_workers}
    try:
        with Supervisor(worker_specs(settings, counts, node_id=NODE_ID)) as supervisor:
            yield supervisor
    finally:
        if simulator is not None:
            stop_simulator(simulator)


def preload(on: Ground, records: list[tuple[bytes, bytes]], say: Say) -> float:
    """Put the records into ``orders`` as fast as it goes; returns records a second."""
    report = run_load(on.settings.bootstrap_servers, records, topic="orders")
    if report.failed:
        raise WrongRun(f"{report.failed:,} orders could not be written.")
    say(f"  {report.count:,} orders written in {report.seconds:.1f} s")
    return report.count / report.seconds


def require_undisturbed(supervisor: Supervisor) -> None:
    """WrongRun when a worker died: a run with a restart in it measures something else."""
    died = {name: codes for name, codes in supervisor.exits.items() if codes}
    if died:
        raise WrongRun(
            "a worker ended during the measurement: "
            + ", ".join(f"{name} with {codes}" for name, codes in died.items())
            + "; its reason is in the lines above."
        )


def quiet_logs() -> None:
    """Warnings only: what a worker or a client reports must not drown the figures."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")

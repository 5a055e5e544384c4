"""Everything that a run starts: brokers, database, gateways, the proxy, nodes; and what it ends.

All of it lies in one folder and goes with this process, however that ends: servers and workers ask
the kernel to be told, and ``close`` stops each by its own process id.
"""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.chaos.flow.database import Database
from pipeline.chaos.flow.node import Node, send
from pipeline.chaos.flow.watch import Watch
from pipeline.chaos.marker_relay import MarkerRelay
from pipeline.chaos.proxy import KafkaProxy
from pipeline.config import Settings, load_settings
from pipeline.embedded.broker import BrokerProcess
from pipeline.embedded.kafka import KafkaHandle, start_kafka, stop_kafka
from pipeline.gateways.simulator import (
    FaultKind,
    FaultPlan,
    SimulatorHandle,
    kill_simulator,
    start_simulator,
    stop_simulator,
)
from pipeline.gateways.simulator.faults import DEFAULT_FAULTS
from pipeline.ledger.database import open_ledger
from pipeline.local import simulated
from pipeline.loopback import open_url
from pipeline.runtime.cluster import UNEQUAL
from topics.provisioning import provision

# Three of them beside the workers of two nodes on two cores and a few GB.
HEAP_MB = 320
BROKER_SETTINGS = {
    # Leadership returns to where it was soon after a broker has come back, so that the next fault
    # meets brokers that lead; by default it takes five minutes.
    "leader.imbalance.check.interval.seconds": "10",
    # Kafka's own: see `paystream up` for why the embedded broker's shorter one will not do when
    # brokers are killed.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "10000",
    # The judge reads all that was ever written: nothing is compacted within two days, the longest
    # run there is and as much again.
    "log.cleaner.min.compaction.lag.ms": str(2 * 24 * 3_600_000),
}
STAGES = {"payments": 1, "gateway": 1, "ledger": 1}
# What is asked of a machine that is killed all the time: tiers of a second, calls of four.
# Enough of each kind among some thousand orders. The default's shares are for some hundred: as each
# 429 asks for a second's rest, they let a worker make about forty calls a second at a gateway.
GATEWAY_FAULTS = FaultPlan(
    rates={
        **dict.fromkeys(DEFAULT_FAULTS, 0.003),
        FaultKind.DECLINE: 0.045,
        FaultKind.INQUIRY_ERROR: 0.05,
    }
)
PACE: dict[str, Any] = {
    "retry_delay_ms": 500,
    # The tiers are short here, so more of them make up the patience that an installation has.
    "retry_max": 40,
    "inquiry_delay_ms": 1_000,
    "call_timeout_ms": 4_000,
    # The keyless gateway hides a charge for two seconds.
    "gateway_grace_ms": 3_000,
    # A worker that is frozen for longer than this wakes up past it: others have taken over.
    "send_within_ms": 15_000,
    "clock_skew_ms": 100,
    "metrics_port": 0,
    "topic_prefix": "",
    "schema_registry_url": "",
    "risk_rules": "",
    "routes_file": "",
    "node_id": "",
}
# Charges of the other merchants go to the first and fail over to the second.
GATEWAYS = ("simulator", "northbank", "legacy")
KEYLESS = "legacy"
KEYLESS_MERCHANT = "old-shop"
# The node whose way to the brokers is the proxy's.
PROXIED = "n2"
HOME_NODES = ("n1", PROXIED)


class Cluster:
    """A context manager: entering starts all but the nodes, which ``start_nodes`` does."""

    def __init__(
        self,
        folder: Path,
        *,
        brokers: int,
        partitions: int,
        seed: int,
        say: Callable[[str], None],
        jvm_flags: Sequence[str],
        older: bool = False,
        holds_markers: bool = False,
    ) -> None:
        self.folder = folder
        self.marker_relay = MarkerRelay() if holds_markers else None
        self.partitions = partitions
        self._brokers = brokers
        self._seed = seed
        self._say = say
        self._jvm_flags = jvm_flags
        # Whether nodes that come are of the version before the upgrade that the run has.
        self.older = older
        # Whether two versions have been in one group, which explains that workers refuse.
        self.is_mixed = False
        self._stack = ExitStack()
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="chaos-later")
        self._jobs: list[Future[Any]] = []
        self.simulators: dict[str, SimulatorHandle] = {}
        self.nodes: dict[str, Node] = {}
        self._gone: list[Node] = []
        # Ends of workers that a fault explains although they look like bugs, as ``exits`` has them.
        self.excused: Counter[str] = Counter()
        self.postgres = Database(folder / "postgres")

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        stack = self._stack
        relay = self.marker_relay
        if relay is not None:
            stack.enter_context(relay)
        self.kafka: KafkaHandle = start_kafka(
            self.folder / "kafka",
            brokers=self._brokers,
            heap_mb=HEAP_MB,
            on_progress=self._say,
            extra_config=BROKER_SETTINGS,
            config_of=None if relay is None else relay.config_of,
            die_with_parent=True,
            jvm_flags=self._jvm_flags,
        )
        stack.callback(stop_kafka, self.kafka, 5.0)
        self._say("Starting PostgreSQL")
        stack.callback(self.postgres.stop)
        self.postgres.start()
        stack.callback(self._stop_simulators)
        for name in GATEWAYS:
            self.start_simulator(name)
        entries = simulated(self.simulators)
        entries[KEYLESS]["merchants"] = [KEYLESS_MERCHANT]
        replicas = len(self.kafka.brokers)
        self.settings: Settings = load_settings(
            **PACE,
            bootstrap_servers=self.kafka.bootstrap_servers,
            partitions=self.partitions,
            replication_factor=replicas,
            min_insync_replicas=max(1, replicas - 1),
            state_dir=self.folder,
            ledger_url=self.postgres.url,
            gateways=entries,
        )
        catalogue = self.settings.catalogue()
        self._say(f"Applying {len(catalogue.topics)} topics of {self.partitions} partitions")
        provision(self.settings.bootstrap_servers, catalogue)
        open_ledger(self.settings.books_url()).dispose()
        self.proxy = KafkaProxy(
            self.kafka.bootstrap_servers,
            log_file=self.folder / "injected.jsonl",
            seed=self._seed,
        )
        stack.enter_context(self.proxy)
        self.watch = Watch(self.settings.bootstrap_servers, catalogue)
        stack.enter_context(self.watch)

    def start_nodes(self) -> None:
        for name in HOME_NODES:
            self.nodes[name] = self.new_node(name)
            self.nodes[name].start()

    def new_node(
        self, name: str, workers: dict[str, int] | None = None, *, node_id: str = ""
    ) -> Node:
        settings = self.settings
        if (node_id or name) == PROXIED:
            settings = settings.model_copy(
                update={"bootstrap_servers": self.proxy.bootstrap_servers}
            )
        folder = self.folder / name
        return Node(name, settings, folder, workers or STAGES, node_id=node_id, older=self.older)

    def workers(self, stage: str) -> list[tuple[Node, int]]:
        """The workers of a stage that run and are not frozen, by node; twins are none of them."""
        return [
            (node, pid)
            for name, node in sorted(self.nodes.items())
            for pid in node.pids(stage)
            if not name.startswith("twin")
        ]

    def forget(self, name: str) -> None:
        """A node that has left for good; its exits still count."""
        self._gone.append(self.nodes.pop(name))

    def tick(self) -> None:
        """Keep workers alive, and raise what a job in the background failed of."""
        for node in list(self.nodes.values()):
            node.tick()
        for job in [job for job in self._jobs if job.done()]:
            self._jobs.remove(job)
            job.result()

    def later(self, work: Callable[[], Any]) -> Future[Any]:
        """Do what waits for a process, beside the loop."""
        job = self._pool.submit(work)
        self._jobs.append(job)
        return job

    @property
    def is_busy(self) -> bool:
        return bool(self._jobs)

    # Gateways -----------------------------------------------------------------------------------

    def start_simulator(self, name: str) -> None:
        """Start it, or again on its own port and books."""
        before = self.simulators.get(name)
        self.simulators[name] = start_simulator(
            self.folder / f"gateway-{name}.sqlite",
            faults=GATEWAY_FAULTS,
            seed=self._seed,
            port=0 if before is None else before.port,
            gateway=name,
        )

    def set_outage(self, name: str, mode: str) -> None:
        url = f"{self.simulators[name].admin_url}/v1/admin/outage"
        body = json.dumps({"mode": mode}).encode()
        ask = urllib.request.Request(
            url, data=body, headers={"Content-Type": "application/json"}, method="POST"
        )
        with open_url(ask, timeout=10):
            pass

    def _stop_simulators(self) -> None:
        for handle in self.simulators.values():
            if handle.process.poll() is None:
                stop_simulator(handle)
            else:
                kill_simulator(handle)

    # Brokers ------------------------------------------------------------------------------------

    def broker(self, node_id: int) -> BrokerProcess:
        return next(b for b in self.kafka.brokers if b.node_id == node_id)

    def controller(self) -> BrokerProcess:
        """The leader of the controllers' quorum, by what they have written down (a client is told
        of any broker)."""
        best, leader = -1, self.kafka.brokers[0].node_id
        for broker in self.kafka.brokers:
            path = broker.folder / "log" / "__cluster_metadata-0" / "quorum-state"
            try:
                state = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if state.get("leaderEpoch", -1) > best and state.get("leaderId", -1) >= 0:
                best, leader = state["leaderEpoch"], state["leaderId"]
        return self.broker(leader)

    # The end ------------------------------------------------------------------------------------

    @property
    def exits(self) -> Counter[str]:
        """Of every worker so far: how often it ended with which code, as ``n1 payments-0: -9``."""
        found: Counter[str] = Counter()
        for node in [*self.nodes.values(), *self._gone]:
            for (worker, code), times in node.exits.items():
                found[f"{node.name} {worker}: {code}"] += times
        return found

    @property
    def gave_up(self) -> list[str]:
        nodes = [*self.nodes.values(), *self._gone]
        return [
            f"{node.name}: {why}"
            for node in nodes
            for why in node.gave_up
            if not (self.is_mixed and UNEQUAL in why)
        ]

    def tell_where_they_stand(self) -> None:
        """Have every worker write its stacks into its log: one of them may hang."""
        for node in self.nodes.values():
            for stage in STAGES:
                for pid in node.pids(stage):
                    send(pid, signal.SIGUSR1)
        # It is written at once, and killed soon.
        time.sleep(1.0)

    def stop_nodes(self, timeout_s: float = 45.0) -> bool:
        """Drain all nodes at once; whether all did in time."""
        waits = [node.leave(timeout_s) for node in self.nodes.values()]
        jobs = [self._pool.submit(wait) for wait in waits]
        drained = [job.result() for job in jobs]
        return all(drained)

    def close(self) -> None:
        """Stop all of it; safe to repeat. Nothing that was frozen stays so."""
        for broker in self.kafka.brokers if hasattr(self, "kafka") else ():
            broker.resume()
        for handle in self.simulators.values():
            _resume(handle)
        self.postgres.thaw()
        try:
            self.stop_nodes(timeout_s=10.0)
        finally:
            self.nodes.clear()
            # A start that is under way is over before what it starts is stopped.
            self._pool.shutdown(wait=True)
            self._stack.close()


def _resume(handle: SimulatorHandle) -> None:
    if handle.process.poll() is None:
        send(handle.process.pid, signal.SIGCONT)

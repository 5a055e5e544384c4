"""The flow that is overloaded: one broker, one gateway, the ledger in a file, a worker a stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.audit.report import Report
from pipeline.audit.verify import Sources, verify
from pipeline.chaos.flow import seen
from pipeline.chaos.overload.memory import Memory, cpu_s, is_flat
from pipeline.chaos.overload.outcomes import Outcomes
from pipeline.chaos.overload.scenario import Outcome, Say
from pipeline.config import Settings, load_settings
from pipeline.embedded.kafka import start_kafka, stop_kafka
from pipeline.errors import UserError
from pipeline.gateways.simulator import start_simulator, stop_simulator
from pipeline.ledger.database import open_ledger
from pipeline.local import worker_specs
from pipeline.runtime.cluster import groups_joined
from pipeline.runtime.lag import GroupLag
from pipeline.runtime.supervisor import Supervisor
from pipeline.runtime.worker_spec import EXIT_LANE_FATAL, WORKER_MODULE
from producers.load_generator import KeyValue, LoadPlan, prepare, run_load
from topics.catalogue import TopicSpec
from topics.provisioning import provision

GATEWAY = "simulator"
STAGES = {"payments": 1, "gateway": 1, "ledger": 1}
# What an installation has, but for the waits: what is not sent or not known comes again soon.
PACE: dict[str, Any] = {
    "retry_delay_ms": 1_000,
    "inquiry_delay_ms": 1_000,
    "gateway_grace_ms": 1_000,
    "metrics_port": 0,
    "topic_prefix": "",
    "schema_registry_url": "",
    "risk_rules": "",
    "routes_file": "",
    "node_id": "",
    "log_level": "WARNING",
}
JOIN_S_MAX = 90.0
# Nothing at all has moved for so long: it will not any more.
STILL_S_MAX = 90.0
SAY_EVERY_S = 10.0
TURN_S = 0.05


@dataclass
class Stand:
    """A context manager. What is started is stopped, whatever happens. ``pace`` wins over PACE."""

    folder: Path
    say: Say
    partitions: int
    workers: Mapping[str, int] = field(default_factory=lambda: dict(STAGES))
    pace: Mapping[str, Any] = field(default_factory=dict)
    faults: str = "none"
    worker_module: str = WORKER_MODULE
    environment: Mapping[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        self.folder.mkdir(parents=True)
        kafka = start_kafka(self.folder / "kafka", die_with_parent=True)
        self._stack.callback(stop_kafka, kafka)
        self.broker = kafka.brokers[0]
        simulator = start_simulator(self.folder / "gateway.sqlite", faults=self.faults)
        self._stack.callback(stop_simulator, simulator)
        self.settings: Settings = load_settings(
            **{
                **PACE,
                "bootstrap_servers": kafka.bootstrap_servers,
                "partitions": self.partitions,
                "replication_factor": 1,
                "min_insync_replicas": 1,
                "state_dir": self.folder,
                "gateway_url": simulator.url,
                "gateways": {},
                "ledger_url": f"sqlite:///{self.folder / 'ledger.sqlite'}",
                **self.pace,
            }
        )
        self.catalogue = self.settings.catalogue()
        provision(kafka.bootstrap_servers, self.catalogue)
        open_ledger(self.settings.books_url()).dispose()
        self.outcomes = Outcomes(
            kafka.bootstrap_servers, self.catalogue.name("settlements"), self.partitions
        )
        self._stack.callback(self.outcomes.close)
        self.log_file = self.folder / "workers.log"
        self.supervisor = self._new_supervisor()
        self._stack.callback(lambda: self.supervisor.stop())
        self.memory = Memory(self._pids)
        self.started_s = time.monotonic()
        self.supervisor.start()
        self._stack.enter_context(self.memory)

    def _new_supervisor(self) -> Supervisor:
        return Supervisor(
            worker_specs(self.settings, self.workers, node_id="overload", log_file=self.log_file),
            environment=self.environment,
            module=self.worker_module,
        )

    def stop_workers(self) -> None:
        """Drain them all."""
        self.supervisor.stop()

    def start_workers(self) -> None:
        """New ones, after the old have drained."""
        self.supervisor = self._new_supervisor()
        self.started_s = time.monotonic()
        self.supervisor.start()

    def worker_cpu_s(self) -> float:
        """What the running workers have computed so far: it moves while one restores its table."""
        return sum(cpu_s(pid) for pid in self.supervisor.pids())

    def _pids(self) -> dict[str, int]:
        found = {stage: pid for stage in self.workers for pid in self.supervisor.pids(stage)}
        return found | {"broker": self.broker.pid or 0}

    # What goes on ------------------------------------------------------------------------------

    def wait_until_joined(self) -> float:
        """Seconds from the workers' start until every stage has its partitions."""
        wanted = {
            self.catalogue.group(stage): count
            for stage, count in self.workers.items()
            if stage != "ledger"
        }
        for missing in groups_joined(self.settings.bootstrap_servers, wanted):
            if not missing:
                break
            if time.monotonic() - self.started_s > JOIN_S_MAX:
                raise UserError(f"the workers of {', '.join(missing)} did not join their groups.")
            self.supervisor.tick()
            time.sleep(TURN_S)
        return time.monotonic() - self.started_s

    def publish(self, records: Sequence[KeyValue], rate_per_s: float | None) -> threading.Thread:
        """Orders at this pace, by a thread of their own."""
        thread = threading.Thread(
            target=run_load,
            args=(self.settings.bootstrap_servers, records),
            kwargs={"rate_per_s": rate_per_s},
            daemon=True,
        )
        thread.start()
        return thread

    def lag(self, stage: str, role: str) -> Callable[[], int]:
        """How many records of a topic a stage has before it, asked of the cluster."""
        name = self.catalogue.name(role)
        asked = GroupLag(
            self.settings.bootstrap_servers, self.catalogue.group(stage), {name: self.partitions}
        )
        self._stack.callback(asked.close)
        return lambda: asked()[name]

    def keep_until(
        self, done: Callable[[], bool], what: str, progress: Callable[[], object] = lambda: None
    ) -> None:
        """Keep the workers alive and follow the settlements until something holds.

        UserError when nothing is settled any more, ``progress`` stays what it is, and it still does
        not.
        """
        if not self._came_true(done, what, progress):
            raise UserError(
                f"{what}: nothing has moved for {STILL_S_MAX:.0f} s. The logs are in {self.folder}."
            )

    def settle(self, count: int, what: str) -> None:
        """Until so many orders are settled, or nothing is any more: the audit then says why."""
        self._came_true(lambda: len(self.outcomes) >= count, what, lambda: None)

    def _came_true(
        self, done: Callable[[], bool], what: str, progress: Callable[[], object]
    ) -> bool:
        moved_s = said_s = time.monotonic()
        last = progress()
        while not done():
            self.supervisor.tick()
            now_s = time.monotonic()
            now = progress()
            if self.outcomes.look(TURN_S) or now != last:
                moved_s, last = now_s, now
            if now_s - moved_s > STILL_S_MAX:
                return False
            if now_s - said_s > SAY_EVERY_S:
                said_s = now_s
                self.say(f"  {what}: {len(self.outcomes):,} settled")
        return True

    def keep_for(self, seconds: float, each_turn: Callable[[], None] = lambda: None) -> None:
        """Keep the workers alive for so long, and follow the settlements."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.supervisor.tick()
            self.outcomes.look(TURN_S)
            each_turn()

    # What is claimed ---------------------------------------------------------------------------

    def verify(self, wait_s: float) -> Report:
        """The audit, while the workers are kept alive by this thread."""
        s = self.settings
        sources = Sources(
            s.bootstrap_servers,
            s.topic_prefix,
            ledger_url=s.books_url(),
            gateway_urls=s.gateway_urls(),
        )
        found: list[Report | BaseException] = []

        def look() -> None:
            try:
                found.append(verify(sources, wait_s=wait_s))
            except BaseException as error:  # raised where it is waited for
                found.append(error)

        thread = threading.Thread(target=look, name="overload-verify", daemon=True)
        thread.start()
        while thread.is_alive():
            self.supervisor.tick()
            thread.join(TURN_S)
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    def claim_whole(
        self, outcome: Outcome, wait_s: float = 300.0, *, may_leave: str = ""
    ) -> Report:
        """That the audit finds nothing, and that no worker has ended by itself; one of the stage
        ``may_leave`` may have left because its group or its producer knew it no more."""
        report = self.verify(wait_s)
        wrong = [f"{f.name} ({f.count:,})" for f in [*report.broken, *report.pending]]
        outcome.claim(
            "nothing lost, doubled or left behind (`verify`)",
            ", ".join(wrong) or "whole",
            held=not wrong,
        )
        ended = {name: codes for name, codes in self.supervisor.exits.items() if codes}
        outcome.claim(
            "no worker ends by itself" + (f", but the {may_leave} worker" if may_leave else ""),
            ", ".join(f"{name}: {codes}" for name, codes in ended.items()) or "none did",
            held=all(
                bool(may_leave) and name.startswith(may_leave) and set(codes) == {EXIT_LANE_FATAL}
                for name, codes in ended.items()
            ),
        )
        return report


def committed(bootstrap_servers: str, spec: TopicSpec) -> Iterator[Any]:
    """Every message of a topic that a reader of committed records sees, to its end of now."""
    places = [(spec.name, partition) for partition in range(spec.partitions)]
    return seen.committed_records(bootstrap_servers, seen.ends(bootstrap_servers, places))


def claim_flat(
    outcome: Outcome, stand: Stand, first: tuple[float, float], then: tuple[float, float]
) -> None:
    """That no worker came to hold more in the second span of time than in the first."""
    for stage in stand.workers:
        before, after = (stand.memory.between(stage, *span) for span in (first, then))
        outcome.claim(
            f"memory of the {stage} worker is flat (most at first, most later)",
            f"{max(before, default=0):,.0f} MiB, {max(after, default=0):,.0f} MiB",
            held=is_flat(before, after),
        )


def orders(count: int, *, first: int = 0) -> list[KeyValue]:
    """Encoded orders from this index on."""
    now_s = time.time()
    return prepare(
        LoadPlan(
            count=count,
            first=first,
            submitted_at_ms=int(now_s * 1000),
            business_date=time.strftime("%Y-%m-%d", time.gmtime(now_s)),
        )
    )

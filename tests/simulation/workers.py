"""Worker processes of a simulated flow, as their supervisors start them: the production code over
what stands for clients, clock, threads and disk."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException

from pipeline.domain.policy import Policy
from pipeline.runtime.calls import Calls
from pipeline.runtime.commit_policy import CommitPolicy
from pipeline.runtime.gateway_stage import GatewayStage, GatewayTerms
from pipeline.runtime.gateway_worker import GatewayWorker
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.live_policy import LivePolicy
from pipeline.runtime.payments_stage import PaymentsStage
from pipeline.runtime.protection import Protection
from pipeline.runtime.risk_stage import RiskStage
from pipeline.runtime.surroundings import Surroundings
from pipeline.runtime.table_worker import TableWorker
from pipeline.runtime.work import Outcome
from pipeline.runtime.worker_spec import WorkerSpec
from tests.simulation.clients import ClientFaults, SimAdmin, SimConsumer, SimProducer
from tests.simulation.disk import Disk
from tests.simulation.gateway import GatewayBooks
from tests.simulation.gateway_adapter import SimGateway
from tests.simulation.ledger import SimLedger
from tests.simulation.log import Cluster, Intent
from tests.simulation.plan import MIXES, Fault, Plan
from tests.simulation.quiet import SimStandstill
from tests.simulation.shared import QUIET, shared_codec
from tests.simulation.threads import SimEvent, SimLoop, SimQueue, SimThread
from tests.simulation.violation import Violation
from tests.simulation.world import Killed, Process, Stuck, World
from topics.catalogue import Catalogue

# Where their files would be; what they write there is kept by the disk of their slot.
NOWHERE = Path("simulated")


class Armed:
    """A fault that strikes at a later passage."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.steps_left = fault.after_steps


class Slot:
    """A place for a worker: what is restarted, and what outlives it (its disk)."""

    def __init__(self, name: str, index: int) -> None:
        self.name = name
        self.index = index
        self.stage, _, number = name.rpartition("-")
        self.number = int(number)
        self.disk = Disk()
        self.process: Process | None = None
        self.stop: SimEvent | None = None
        self.client_faults = ClientFaults()
        self.armed: list[Armed] = []
        self.wanted = True
        self.starts = 0
        # Those that faults brought about.
        self.deaths = 0


class Workers:
    """All of them, by their place. ``believed`` is told what a worker was told about one of its
    transactions, ``tell`` what happens, ``on_step`` of every passage where a process may be
    struck."""

    def __init__(
        self,
        world: World,
        cluster: Cluster,
        catalogue: Catalogue,
        plan: Plan,
        *,
        policy: Policy,
        books: Mapping[str, GatewayBooks],
        ledger: SimLedger,
        believed: Callable[[Intent, str], None],
        tell: Callable[[str], None],
        fired: Callable[[str, str], None],
    ) -> None:
        self.world = world
        self.cluster = cluster
        self.catalogue = catalogue
        self.plan = plan
        self.policy = policy
        self.books = books
        self.ledger = ledger
        self.slots: dict[str, Slot] = {}
        self._believed = believed
        self._tell = tell
        self._fired = fired
        # How a process reads the decisions about the books, where there are any.
        self.decisions: Callable[[Process], Any] = lambda _process: None
        self.on_step: Callable[[Slot, Process, str], None] = lambda _slot, _process, _name: None

    def add(self, name: str, index: int) -> Slot:
        slot = Slot(name, index)
        slot.client_faults.on_fired = lambda what: self._fired(what, slot.name)
        if slot.stage == "ledger":
            # What comes within some seconds is booked at once.
            slot.client_faults.fetch_s_max = MIXES[self.plan.mix].booked_s
        self.slots[name] = slot
        self.launch(slot)
        return slot

    def launch(self, slot: Slot) -> None:
        skews = self.plan.skews_s
        skew_s = skews[slot.index % len(skews)] if skews else 0.0
        slot.starts += 1
        process = Process(self.world, f"{slot.name}#{slot.starts}", skew_s)
        process.armed = slot.armed
        process.on_step = lambda process, name: self.on_step(slot, process, name)
        process.on_put = lambda item: self._told(process, item)
        if slot.stage == "gateway" and not self.plan.idempotent:
            # It watches for having stood still.
            process.idle_s_max = 5.0
        slot.process = process
        slot.stop = SimEvent(process)
        run = self._worker(slot, process, slot.stop)

        def main() -> None:
            try:
                run()
            except Killed:
                raise
            except BaseException as error:
                self._tell(f"{process.name} ended: {error!r}")
                process.died_of = error
            self.world.after(0.0, lambda: self._ended(slot, process))

        process.spawn(main)
        self._tell(f"{process.name} starts")

    def _ended(self, slot: Slot, process: Process) -> None:
        """The supervisor's part: a worker that ended by itself is started again."""
        error = process.died_of
        if error is not None:
            raise_if_bug(slot, error)
        if not process.dead:
            process.kill()
        if slot.process is process and slot.wanted:
            self.world.after(1.0, lambda: self.relaunch(slot, process))

    def relaunch(self, slot: Slot, process: Process) -> None:
        if slot.process is process and slot.wanted:
            self.launch(slot)

    def raise_bugs(self) -> None:
        """Of whichever worker died of one."""
        for slot in self.slots.values():
            if slot.process is not None and slot.process.died_of is not None:
                raise_if_bug(slot, slot.process.died_of)

    def kill_all(self) -> None:
        for slot in self.slots.values():
            if slot.process is not None:
                slot.process.kill()

    def close(self) -> None:
        """Let go of the processes and what they hold."""
        self.kill_all()
        for slot in self.slots.values():
            slot.process = slot.stop = None
            slot.disk = Disk()
        self.slots.clear()

    def _told(self, process: Process, item: Any) -> None:
        if isinstance(item, Outcome) and process.intents:
            # The first of them is the work; another one only asked whether it is vouched for.
            self._believed(process.intents[0], item.value)
            process.intents.clear()

    def _surroundings(self, slot: Slot, process: Process) -> Surroundings:
        cluster, faults = self.cluster, slot.client_faults
        quiet: Any = SimStandstill

        def sleep(seconds: float) -> None:
            process.step("sleep")
            self.world.current.park(seconds)

        return Surroundings(
            consumer=lambda config, **more: SimConsumer(cluster, process, faults, config, **more),
            producer=lambda config, **more: SimProducer(cluster, process, faults, config, **more),
            admin=lambda config, **more: SimAdmin(cluster, process, config, **more),
            table_store=lambda path, keep_s: slot.disk.mount(process),
            state_file=slot.disk.state_file,
            time_s=process.time_s,
            monotonic_s=self.world.clock,
            sleep=sleep,
            thread=lambda target, name="", daemon=True: SimThread(process, target),
            event=lambda: SimEvent(process),
            queue=lambda: SimQueue(process),
            event_loop=lambda: SimLoop(process),
            has_brokers=False,
            standstill=lambda _monotonic_s: quiet(cluster, process),
        )

    def _worker(self, slot: Slot, process: Process, stop: SimEvent) -> Callable[[], None]:
        outside = self._surroundings(slot, process)
        spec = WorkerSpec(
            slot.stage, "n1", slot.number, "simulated", self.catalogue.settings, NOWHERE
        )
        stopped: Any = stop
        codec = shared_codec(self.plan.avro)
        commit_policy = CommitPolicy(
            records_max=self.plan.records_max, records_small=min(100, self.plan.records_max)
        )
        if slot.stage in ("payments", "risk"):
            stage: Any = (
                PaymentsStage(self.catalogue, codec, LivePolicy(self.policy))
                if slot.stage == "payments"
                else RiskStage(self.catalogue, codec)
            )
            worker: Any = TableWorker(
                spec,
                catalogue=self.catalogue,
                stage=stage,
                metrics=QUIET,
                stop=stopped,
                commit_policy=commit_policy,
                hot_max=40,
                surroundings=outside,
            )
            return worker.run  # type: ignore[no-any-return]
        if slot.stage == "gateway":
            gate = Protection(
                self.policy.gateways,
                in_flight_max=20,
                now_ms=lambda: process.monotonic_s() * 1000,
            )
            worker = GatewayWorker(
                spec,
                catalogue=self.catalogue,
                stage=GatewayStage(
                    self.catalogue,
                    codec,
                    terms={
                        profile.name: GatewayTerms(profile.key_retention_ms, profile.idempotent)
                        for profile in self.policy.gateways
                    },
                ),
                calls=Calls(
                    {
                        name: SimGateway(books, process)  # type: ignore[misc]
                        for name, books in self.books.items()
                    },
                    gate=gate,
                    # Hanging calls are swept for as long; nothing else depends on it.
                    soft_deadline_s=4.0,
                    surroundings=outside,
                ),
                metrics=QUIET,
                stop=stopped,
                commit_policy=commit_policy,
                tracked_max=60,
                surroundings=outside,
            )
            return worker.run  # type: ignore[no-any-return]
        return self.ledger.worker(
            self.catalogue,
            codec,
            spec.instance_id,
            process,
            outside,
            stopped,
            self._fired,
            self.decisions,
        )


def raise_if_bug(slot: Slot, error: BaseException) -> None:
    """A worker may be fenced, or refused by a broker; it dies of nothing else."""
    if isinstance(error, Violation | Stuck):
        raise error
    if not isinstance(error, LaneFatal | KafkaException):
        where = "".join(traceback.format_tb(error.__traceback__)[-3:])
        raise Violation("worker_bug", f"{slot.name} died of {error!r}\n{where}")

"""One run of a plan: the cluster, the gateways, the workers, the faults, and the auditor."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException

from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.model import GatewayNotification, Order, PaymentCommand
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.records import to_record
from pipeline.runtime import failpoints
from pipeline.runtime.calls import Calls
from pipeline.runtime.commit_policy import CommitPolicy
from pipeline.runtime.gateway_stage import GatewayStage, GatewayTerms
from pipeline.runtime.gateway_worker import GatewayWorker
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.live_policy import LivePolicy
from pipeline.runtime.payments_stage import PaymentsStage
from pipeline.runtime.protection import Protection
from pipeline.runtime.surroundings import Surroundings
from pipeline.runtime.table_worker import TableWorker
from pipeline.runtime.work import Outcome
from pipeline.runtime.worker_spec import WorkerSpec
from tests.simulation.auditor import Auditor, Violation
from tests.simulation.clients import ClientFaults, SimAdmin, SimConsumer, SimProducer
from tests.simulation.disk import Disk
from tests.simulation.gateway import GatewayBooks, Operation, SimGateway
from tests.simulation.ledger import SimLedger
from tests.simulation.log import ABORTED, MARKER_S_MAX, Cluster
from tests.simulation.plan import (
    ACTIVE_S,
    GATEWAYS,
    MAIN,
    MERCHANT,
    CommandPlan,
    Fault,
    OrderPlan,
    Plan,
)
from tests.simulation.shared import QUIET, shared_codec
from tests.simulation.threads import SimEvent, SimLoop, SimQueue, SimThread
from tests.simulation.world import BEGIN_S, Killed, Process, Stuck, World
from topics.catalogue import Catalogue, TopicSettings, build_catalogue

# What is still open after this much of simulated time will not end.
REST_S_MAX = 6 * 3_600.0
CURRENCY = "GBP"
# The few files of a run are written often and kept by nobody: in memory where there is such a disk.
_FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass
class Result:
    """``violation``: the broken promise, if one was. ``faults``: what struck, by kind."""

    seed: int
    violation: Violation | None = None
    faults: Counter[str] = field(default_factory=Counter)
    trace: list[str] = field(default_factory=list)
    orders: int = 0
    workers: int = 0
    checks: int = 0
    steps: int = 0
    simulated_s: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)


def run_plan(plan: Plan, *, traced: bool = False) -> Result:
    """Run it to its rest. The same plan gives the same result, step by step."""
    simulation = Simulation(plan, traced=traced)
    try:
        return simulation.run()
    finally:
        simulation.close()


@cache
def _catalogue(partitions: int) -> Catalogue:
    return build_catalogue(
        TopicSettings(partitions=partitions, timer_delay_ms=20_000, inquiry_delay_ms=9_000)
    )


@cache
def _coders() -> tuple[dict[str, Any], dict[str, Any]]:
    codec = shared_codec()
    names = ("payment-event", "settlement", "payment-request", "payment")
    inputs = ("order", "payment-command", "gateway-notification")
    return (
        {name: codec.decoder(name) for name in names},
        {name: codec.encoder(name) for name in inputs},
    )


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
        self.armed: list[Fault] = []
        self.wanted = True
        self.starts = 0


class Simulation:
    def __init__(self, plan: Plan, *, traced: bool = False) -> None:
        self.plan = plan
        self._traced = traced
        self.result = Result(plan.seed, orders=len(plan.orders))
        self.world = World(str(plan.seed))
        self.cluster = Cluster(self.world)
        self.catalogue = _catalogue(plan.partitions)
        for spec in self.catalogue.topics.values():
            self.cluster.create(spec.name, spec.partitions, (spec.delay_ms or 0) / 1000)
        decoders, self._encoders = _coders()
        self.auditor = Auditor(
            plan,
            self.cluster,
            decoders,
            {role: spec.name for role, spec in self.catalogue.topics.items()},
        )
        self.cluster.on_visible = self.auditor.see
        self.cluster.on_offsets = self.auditor.offsets
        self.cluster.on_fate = self.auditor.fate
        for stage in ("payments", "gateway"):
            for spec in self.catalogue.inputs(stage):
                for number in range(spec.partitions):
                    place = (self.catalogue.group(stage), spec.name, number)
                    self.cluster.offsets[place] = 0
        scripts = {order.order_id: order.script for order in plan.orders}
        self.books = {
            name: GatewayBooks(
                self.world,
                name,
                scripts,
                grace_s=plan.grace_s,
                retention_s=plan.retention_s if name == MAIN else 86_400.0,
                idempotent=plan.idempotent or name != MAIN,
                action_late_s=85.0,
                on_movement=self._moved,
                on_notice=self._noticed,
            )
            for name in GATEWAYS
        }
        self.policy = Policy(
            gateways=tuple(
                GatewayProfile(
                    name=name,
                    priority=index,
                    grace_ms=int(plan.grace_s * 1000),
                    key_retention_ms=int(books._retention_s * 1000),
                    idempotent=books.idempotent,
                    authorization_ms=120_000,
                )
                for index, (name, books) in enumerate(self.books.items())
            ),
            customer_action_ms=60_000,
            pending_check_ms=60_000,
            awaiting_order_ms=120_000,
        )
        self.directory = Path(tempfile.mkdtemp(prefix="paystream-simulation-", dir=_FAST))
        self.ledger = SimLedger(self.world)
        self.slots: dict[str, Slot] = {}

    # The run ------------------------------------------------------------------------------------

    def run(self) -> Result:
        result, world = self.result, self.world
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        failpoints.watch(self)
        try:
            self._start()
            self._run_to_rest()
            for slot in self.slots.values():
                if slot.process is not None and slot.process.died_of is not None:
                    self._raise_if_bug(slot, slot.process.died_of)
            self.auditor.at_rest(
                {
                    self.catalogue.group(stage): [s.name for s in self.catalogue.inputs(stage)]
                    for stage in ("payments", "gateway")
                },
                self.ledger.rows(),
                self.books.values(),
            )
        except Violation as violation:
            result.violation = violation
        except Stuck as stuck:
            result.violation = Violation("stuck", str(stuck))
        finally:
            failpoints.watch(None)
            logging.disable(before)
            for slot in self.slots.values():
                if slot.process is not None:
                    slot.process.kill()
        for books in self.books.values():
            for fault, count in books.faults_met.items():
                result.faults[f"gateway {fault}"] += count
        result.checks = self.auditor.checks
        result.steps = world.steps
        result.simulated_s = world.now_s - BEGIN_S
        result.workers = len(self.plan.slots)
        return result

    def _run_to_rest(self) -> None:
        """Until nothing is left to read, to answer or to book, and a little longer."""
        world = self.world
        until_s = BEGIN_S + ACTIVE_S
        quiet = 0
        while world.now_s < BEGIN_S + REST_S_MAX and quiet < 2:
            world.run(until_s)
            until_s += 30.0
            quiet = quiet + 1 if self._is_quiet() else 0

    def _is_quiet(self) -> bool:
        cluster = self.cluster
        if cluster.open_transactions() or any(books.open for books in self.books.values()):
            return False
        if self.ledger.count() < len(self.auditor.settlements):
            return False
        for place, offset in cluster.offsets.items():
            group, topic, number = place
            if group == self.catalogue.group("ledger"):
                continue
            records = cluster.topics[topic][number].records
            if any(record.state < ABORTED for record in records[offset:]):
                return False
        return True

    def close(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def hit(self, name: str) -> None:
        """A failpoint was passed."""
        fibre = self.world.current
        if fibre is not None:
            fibre.process.step(name)

    def trace(self, text: str) -> None:
        if self._traced:
            self.result.trace.append(f"{self.world.now_s - BEGIN_S:9.3f} {text}")

    def _start(self) -> None:
        world = self.world
        for index, name in enumerate(self.plan.slots):
            self._add_slot(name, index)
        for order in self.plan.orders:
            world.after(order.at_s, self._bound(self._publish, order))
            for copy_s in order.copies:
                world.after(order.at_s + copy_s, self._bound(self._publish, order))
            if order.conflict_at_s is not None:
                world.after(order.at_s + order.conflict_at_s, self._bound(self._conflict, order))
            for command in order.commands:
                for copy in range(command.copies):
                    world.after(
                        order.at_s + command.at_s + 2.0 * copy,
                        self._bound(self._command, order, command),
                    )
        for fault in self.plan.faults:
            world.after(fault.at_s, self._bound(self._arm, fault))

    @staticmethod
    def _bound(call: Callable[..., None], *args: Any) -> Callable[[], None]:
        return lambda: call(*args)

    # What upstream systems and gateways write ---------------------------------------------------

    def _publish(self, order: OrderPlan) -> None:
        self._write_order(order, order.amount_minor)

    def _conflict(self, order: OrderPlan) -> None:
        topic = self.catalogue.name("orders")
        number, offset = self._write_order(order, order.amount_minor + 1)
        self.auditor.bad_inputs[topic, number, offset] = "a conflicting order"

    def _write_order(self, order: OrderPlan, amount_minor: int) -> tuple[int, int]:
        made = Order(
            merchant_id=MERCHANT,
            order_id=order.order_id,
            amount_minor=0 if order.input == "nothing_due" else amount_minor,
            currency="XXX" if order.input == "bad_currency" else CURRENCY,
            instrument_token=f"tok_{order.number}",
            business_date="2027-01-15",
            submitted_at_ms=self.world.now_ms,
            capture_method=order.capture_method,
            pay_before_ms=None
            if order.pay_within_s is None
            else self.world.now_ms + int(order.pay_within_s * 1000),
        )
        key = record_key(MERCHANT, order.order_id)
        number = partition_of(key, self.plan.partitions)
        value: bytes | None = self._encoders["order"](to_record(made))
        if order.input == "garbage":
            value = b"\x00garbage"
        elif order.input == "empty":
            value = None
        elif order.input == "misrouted":
            number = (number + 1) % self.plan.partitions
        elif order.input == "wrong_key":
            key = record_key(MERCHANT, f"{order.order_id}x")
            number = partition_of(key, self.plan.partitions)
        topic = self.catalogue.name("orders")
        record = self.cluster.write(topic, number, key, value)
        if order.input in ("garbage", "empty", "misrouted", "wrong_key"):
            self.auditor.bad_inputs[topic, number, record.offset] = order.input
        return number, record.offset

    def _command(self, order: OrderPlan, command: CommandPlan) -> None:
        if command.type == "none":
            return
        made = PaymentCommand(
            merchant_id=MERCHANT,
            order_id=order.order_id,
            command_id=command.command_id,
            type=command.type,
            submitted_at_ms=self.world.now_ms,
            amount_minor=command.amount_minor,
            instrument_token=command.token,
        )
        key = record_key(MERCHANT, order.order_id)
        value = self._encoders["payment-command"](to_record(made))
        number = partition_of(key, self.plan.partitions)
        self.cluster.write(self.catalogue.name("payment-commands"), number, key, value)

    def _noticed(self, gateway: str, operation: Operation) -> None:
        request = operation.request
        answer = operation.answer()
        made = GatewayNotification(
            merchant_id=request.merchant_id,
            order_id=request.order_id,
            payment_id=request.payment_id,
            notification_id=f"{operation.reference}-{operation.state}",
            gateway=gateway,
            type="operation",
            amount_minor=answer.amount_minor,
            currency=request.currency,
            received_at_ms=self.world.now_ms,
            operation_id=request.operation_id,
            attempt=request.attempt,
            kind=request.operation_kind,
            outcome=answer.outcome,
            gateway_reference=answer.gateway_reference,
            code=answer.code,
        )
        key = record_key(request.merchant_id, request.order_id)
        value = self._encoders["gateway-notification"](to_record(made))
        number = partition_of(key, self.plan.partitions)
        self.cluster.write(self.catalogue.name("gateway-notifications"), number, key, value)

    def _moved(self, movement: Any) -> None:
        self.trace(f"{movement.gateway} {movement.kind} {movement.amount_minor} {movement.key}")
        self.auditor.moved(movement)

    # Workers ------------------------------------------------------------------------------------

    def _add_slot(self, name: str, index: int) -> Slot:
        slot = Slot(name, index)
        slot.client_faults.on_fired = lambda what: self._fired(what, slot.name)
        self.slots[name] = slot
        self._launch(slot)
        return slot

    def _launch(self, slot: Slot) -> None:
        skews = self.plan.skews_s
        skew_s = skews[slot.index % len(skews)] if skews else 0.0
        slot.starts += 1
        process = Process(self.world, f"{slot.name}#{slot.starts}", skew_s)
        process.on_step = lambda process, name: self._step(slot, process, name)
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
                self.trace(f"{process.name} ended: {error!r}")
                process.died_of = error
            self.world.after(0.0, lambda: self._ended(slot, process))

        process.spawn(main)
        self.trace(f"{process.name} starts")

    def _ended(self, slot: Slot, process: Process) -> None:
        """The supervisor's part: a worker that ended by itself is started again."""
        error = process.died_of
        if error is not None:
            self._raise_if_bug(slot, error)
        if not process.dead:
            process.kill()
        if slot.process is process and slot.wanted:
            self.world.after(1.0, lambda: self._relaunch(slot, process))

    def _relaunch(self, slot: Slot, process: Process) -> None:
        if slot.process is process and slot.wanted:
            self._launch(slot)

    @staticmethod
    def _raise_if_bug(slot: Slot, error: BaseException) -> None:
        if isinstance(error, Violation | Stuck):
            raise error
        if not isinstance(error, LaneFatal | KafkaException):
            where = "".join(traceback.format_tb(error.__traceback__)[-3:])
            raise Violation("worker_bug", f"{slot.name} died of {error!r}\n{where}")

    def _told(self, process: Process, item: Any) -> None:
        if isinstance(item, Outcome) and process.intents:
            # The first of them is the work; another one only asked whether it is vouched for.
            self.auditor.believed(process.intents[0], item.value)
            process.intents.clear()

    def _surroundings(self, slot: Slot, process: Process) -> Surroundings:
        cluster, faults = self.cluster, slot.client_faults

        def sleep(seconds: float) -> None:
            process.step("sleep")
            self.world.current.park(seconds)

        return Surroundings(
            consumer=lambda config, **more: SimConsumer(cluster, process, faults, config, **more),
            producer=lambda config, **more: SimProducer(cluster, process, faults, config, **more),
            admin=lambda config, **more: SimAdmin(cluster, process, config, **more),
            table_store=lambda path, keep_s: slot.disk.mount(process),
            time_s=process.time_s,
            monotonic_s=process.monotonic_s,
            sleep=sleep,
            thread=lambda target, name="", daemon=True: SimThread(process, target),
            event=lambda: SimEvent(process),
            queue=lambda: SimQueue(process),
            event_loop=lambda: SimLoop(process),
        )

    def _worker(self, slot: Slot, process: Process, stop: SimEvent) -> Callable[[], None]:
        outside = self._surroundings(slot, process)
        spec = WorkerSpec(
            slot.stage, "n1", slot.number, "simulated", self.catalogue.settings, self.directory
        )
        stopped: Any = stop
        commit_policy = CommitPolicy(
            records_max=self.plan.records_max, records_small=min(100, self.plan.records_max)
        )
        if slot.stage == "payments":
            worker: Any = TableWorker(
                spec,
                catalogue=self.catalogue,
                stage=PaymentsStage(self.catalogue, shared_codec(), LivePolicy(self.policy)),
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
                    shared_codec(),
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
            self.catalogue, spec.instance_id, process, outside, stopped, self._fired
        )

    # Faults -------------------------------------------------------------------------------------

    def _fired(self, what: str, where: str = "") -> None:
        self.result.faults[what] += 1
        self.trace(f"FAULT {what} {where}")

    def _arm(self, fault: Fault) -> None:
        world, kind = self.world, fault.kind
        if kind == "slow_markers":
            self.cluster.marker_s_max = 2.0
            self._fired(kind)

            def heal() -> None:
                self.cluster.marker_s_max = MARKER_S_MAX

            world.after(fault.for_s, heal)
            return
        if kind == "outage":
            self.books[fault.target].down_until_s = world.now_s + fault.for_s
            self._fired(kind, fault.target)
            return
        if kind == "join":
            self._join(fault)
            return
        slot = self.slots.get(fault.target)
        if slot is None:
            return
        if kind in ("crash", "pause", "zombie", "twin"):
            slot.armed.append(fault)
        elif kind == "end_txn":
            slot.client_faults.end_txn.append((fault.what, fault.for_s))
        elif kind == "refusal":
            slot.client_faults.refusals.append(fault.what)
        elif kind == "deaf":
            slot.client_faults.deaf_until_s = world.now_s + fault.for_s
            world.after(fault.for_s, lambda: slot.process and slot.process.ring())
            self._fired(kind, slot.name)
        elif kind == "stop":
            self._stop(slot, fault.for_s)
            self._fired(kind, slot.name)
        elif kind == "database":
            self.ledger.fail(fault.what, fault.for_s)

    def _stop(self, slot: Slot, for_s: float) -> None:
        """An orderly stop, and a start some time later."""
        if slot.stop is None:
            return
        slot.wanted = False
        slot.stop.set()

        def start() -> None:
            slot.wanted = True
            process = slot.process
            if process is None or process.ended:
                self._launch(slot)

        self.world.after(for_s, start)

    def _join(self, fault: Fault) -> None:
        """One worker more, for a while."""
        if fault.target in self.slots:
            return
        slot = self._add_slot(fault.target, len(self.slots))
        self._fired(fault.kind, fault.target)

        def leave() -> None:
            slot.wanted = False
            if slot.stop is not None:
                slot.stop.set()
                slot.stop._process.resume()

        self.world.after(fault.for_s, leave)

    def _step(self, slot: Slot, process: Process, name: str) -> None:
        """Called wherever a process may be struck."""
        armed = slot.armed
        if not armed or slot.process is not process:
            return
        fault = armed[0]
        if fault.after_steps > 0:
            armed[0] = replace(fault, after_steps=fault.after_steps - 1)
            return
        armed.pop(0)
        self._fired(f"{fault.kind}", f"{process.name} at {name}")
        world = self.world
        if fault.kind == "crash":
            slot.disk.crash(world.random)
            world.after(fault.for_s, lambda: self._relaunch(slot, process))
            process.kill()
        elif fault.kind in ("pause", "zombie"):
            process.pause()
            world.after(fault.for_s, process.resume)
        elif fault.kind == "twin":
            # Its supervisor believes it dead and starts another one in its place.
            process.pause()
            slot.disk.crash(world.random)
            world.after(0.5, lambda: self._relaunch(slot, process))
            world.after(0.5 + fault.for_s, process.resume)

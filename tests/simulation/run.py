"""One run of a plan: the cluster, the gateways, the workers, the faults, and the auditor."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pipeline.runtime import failpoints
from tests.simulation.auditor import Auditor
from tests.simulation.faults import Faults
from tests.simulation.gateway import GatewayBooks, Movement
from tests.simulation.ledger import SimLedger
from tests.simulation.lives import GATEWAYS, MAIN
from tests.simulation.log import ABORTED, Cluster
from tests.simulation.office import Office
from tests.simulation.people import People
from tests.simulation.plan import ACTIVE_S, Plan
from tests.simulation.policy import policy_of
from tests.simulation.shared import shared_codec
from tests.simulation.upstream import INPUTS, Upstream
from tests.simulation.violation import Violation
from tests.simulation.workers import Workers
from tests.simulation.world import BEGIN_S, Stuck, World
from topics.catalogue import Catalogue, TopicSettings, build_catalogue

# What is still open after this much of simulated time will not end unless a person says something.
REST_S_MAX = 3_600.0
STAGES = ("payments", "gateway", "risk")


@dataclass
class Result:
    """``violation``: the broken promise, if one was. ``faults``: what struck, by kind."""

    seed: int
    mix: str = ""
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
def _catalogue(partitions: int, inquiry_s: float) -> Catalogue:
    return build_catalogue(
        TopicSettings(
            partitions=partitions, timer_delay_ms=20_000, inquiry_delay_ms=int(inquiry_s * 1000)
        )
    )


@cache
def _coders(avro: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    codec = shared_codec(avro)
    names = (
        "payment-event",
        "settlement",
        "payment-request",
        "gateway-result",
        "payment",
        "audit-entry",
        "ledger-event",
        "payout",
    )
    return (
        {name: codec.decoder(name) for name in names},
        {name: codec.encoder(name) for name in INPUTS},
    )


class Simulation:
    def __init__(self, plan: Plan, *, traced: bool = False) -> None:
        self.plan = plan
        self._traced = traced
        self.result = Result(plan.seed, plan.mix, orders=len(plan.orders))
        self.world = World(str(plan.seed))
        self.cluster = Cluster(self.world)
        self.cluster.call_s_max = plan.pace.call_s
        self.cluster.fetch_s_max = plan.pace.fetch_s
        self.catalogue = _catalogue(plan.partitions, plan.pace.inquiry_s)
        for spec in self.catalogue.topics.values():
            self.cluster.create(spec.name, spec.partitions, (spec.delay_ms or 0) / 1000)
        decoders, encoders = _coders(plan.avro)
        self.auditor = Auditor(
            plan,
            self.cluster,
            decoders,
            {role: spec.name for role, spec in self.catalogue.topics.items()},
        )
        self.cluster.on_visible = self.auditor.see
        self.cluster.on_offsets = self.auditor.offsets
        self.cluster.on_fate = self.auditor.fate
        for stage in STAGES:
            for spec in self.catalogue.inputs(stage):
                for number in range(spec.partitions):
                    place = (self.catalogue.group(stage), spec.name, number)
                    self.cluster.offsets[place] = 0
        self.upstream = Upstream(
            self.world, self.cluster, self.catalogue, plan, self.auditor, encoders
        )
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
                retry_after_s=4.0 if plan.pace.nervous else 0.2,
                on_movement=self._moved,
                on_decline=lambda request: self.auditor.declined(
                    request.order_id, request.operation_id
                ),
                on_notice=self.upstream.notice,
            )
            for name in GATEWAYS
        }
        self.people = People(
            self.world,
            plan,
            self.upstream,
            self.books,
            self.auditor.money,
            self.auditor.stories,
            self.auditor.payment_of,
        )
        self.ledger = SimLedger(self.world)
        self.workers = Workers(
            self.world,
            self.cluster,
            self.catalogue,
            plan,
            policy=policy_of(plan, self.books),
            books=self.books,
            ledger=self.ledger,
            believed=self.auditor.believed,
            tell=self.trace,
            fired=self._fired,
        )
        self.office: Office | None = None
        if plan.payouts:
            self.office = Office(
                plan.seed, self.world, self.cluster, self.catalogue, shared_codec(plan.avro),
                self.ledger, self.auditor.payouts, self._fired,
            )  # fmt: skip
            self.workers.decisions = self.office.events
        self.faults = Faults(
            self.world, self.cluster, self.workers,
            books=self.books, ledger=self.ledger, fired=self._fired,
        )  # fmt: skip

    # The run ------------------------------------------------------------------------------------

    def run(self) -> Result:
        result, world = self.result, self.world
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        failpoints.watch(self)
        try:
            self._start()
            quiet = self._run_to_rest()
            self.auditor.money.read_disputes(self.books.values())
            while self.people.finish():
                quiet = self._run_to_rest()
                self.auditor.money.read_disputes(self.books.values())
            if not quiet:
                raise Violation("never_at_rest", self.auditor.unfinished())
            self.workers.raise_bugs()
            if self.office is not None:
                self.office.at_rest()
            self.auditor.at_rest(
                {
                    self.catalogue.group(stage): [s.name for s in self.catalogue.inputs(stage)]
                    for stage in STAGES
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
            self.workers.kill_all()
        for books in self.books.values():
            for fault, count in books.faults_met.items():
                result.faults[f"gateway {fault}"] += count
        result.checks = self.auditor.checks
        result.steps = world.steps
        result.simulated_s = world.now_s - BEGIN_S
        result.workers = len(self.plan.slots)
        return result

    def _run_to_rest(self) -> bool:
        """Until nothing is left to read, to answer or to book, and a little longer; False when it
        did not come to that. The timer of a hold whose capture only a person can tell of goes round
        until somebody does."""
        world = self.world
        until_s = max(BEGIN_S + ACTIVE_S, world.now_s + 30.0)
        last_s = world.now_s + REST_S_MAX
        quiet = 0
        while world.now_s < last_s and quiet < 2:
            world.run(until_s)
            until_s += 30.0
            quiet = quiet + 1 if self._is_quiet() else 0
        return quiet == 2

    def _is_quiet(self) -> bool:
        cluster = self.cluster
        if cluster.open_transactions() or any(books.open for books in self.books.values()):
            return False
        if self.office is not None and self.office.open:
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
        """Nothing is kept but the result: what is let go here no collector has to look for."""
        self.workers.close()
        self.cluster.close()
        self.world.close()
        self.ledger.close()

    def hit(self, name: str) -> None:
        """A failpoint was passed."""
        fibre = self.world.current
        if fibre is not None:
            process = fibre.process
            if process.armed or process.dead or process.paused:
                process.step(name)

    def trace(self, text: str) -> None:
        if self._traced:
            self.result.trace.append(f"{self.world.now_s - BEGIN_S:9.3f} {text}")

    def _start(self) -> None:
        world = self.world
        for index, name in enumerate(self.plan.slots):
            self.workers.add(name, index)
        for order in self.plan.orders:
            if order.input != "credit":
                for at_s in (0.0, *order.copies):
                    world.after(order.at_s + at_s, self._bound(self.upstream.publish, order))
            if order.conflict_at_s is not None:
                world.after(
                    order.at_s + order.conflict_at_s, self._bound(self.upstream.conflict, order)
                )
            for command in order.commands:
                at_s = max(0.0, order.at_s + command.at_s)
                for copy in range(command.copies):
                    say = self.people.command
                    if command.changed and copy:
                        say = self.people.changed
                    world.after(at_s + 2.0 * copy, self._bound(say, order, command))
        if self.office is not None:
            self.office.start()
        for fault in self.plan.faults:
            world.after(fault.at_s, self._bound(self.faults.arm, fault))

    @staticmethod
    def _bound(call: Callable[..., None], *args: Any) -> Callable[[], None]:
        return lambda: call(*args)

    def _moved(self, movement: Movement) -> None:
        self.trace(f"{movement.gateway} {movement.kind} {movement.amount_minor} {movement.key}")
        self.auditor.moved(movement)

    def _fired(self, what: str, where: str = "") -> None:
        self.result.faults[what] += 1
        self.trace(f"FAULT {what} {where}")

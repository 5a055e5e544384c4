"""Throughput and memory: a backlog of orders drained through the three hops."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.failure import WrongRun
from benchmarks.flow import FlowOptions, Say, ground, preload, require_undisturbed, workers
from benchmarks.order_pool import OrderPool
from benchmarks.process_use import UNSTARTED, ProcessCost, cost, process_use
from benchmarks.settlement_watch import SettlementWatch, verify_settlements

# Without a single settlement for so long the run has failed. A first batch takes two seconds on an
# idle machine, a quarter of a minute on one that is shared.
STALL_S = 60.0
# Settlements come in transactions of thousands: a rate over a few of them is chance.
FLOWING_S_MIN = 1.0


@dataclass(frozen=True)
class Drained:
    """``overall`` counts from the start of the workers' processes, imports included, ``flowing``
    from the first settlement seen; both to the last one. Orders a second."""

    orders: int
    payments_workers: int
    gateway_workers: int
    seconds: float
    first_settlement_s: float
    overall_per_s: float
    flowing_per_s: float | None
    processes: tuple[ProcessCost, ...]


def drain(pool: OrderPool, options: FlowOptions, *, payments_workers: int, say: Say) -> Drained:
    """One run on a fresh broker. WrongRun unless every order was settled once, exactly."""
    say(
        f"Drain of {len(pool):,} orders, {options.partitions} partitions, "
        f"{payments_workers} payments and {options.gateway_workers} gateway workers"
    )
    with ground(options) as on:
        preload(on, list(pool.records), say)
        catalogue = on.settings.catalogue()
        watch = SettlementWatch(
            on.settings.bootstrap_servers, catalogue.name("settlements"), options.partitions
        )
        refused = SettlementWatch(
            on.settings.bootstrap_servers, catalogue.name("dead-letters"), options.partitions
        )
        try:
            broker_before = process_use(on.broker_pid)
            started_s = time.monotonic()
            with workers(on, options, payments_workers=payments_workers) as supervisor:
                watch.wait_for(len(pool), timeout_s=STALL_S, each_look=supervisor.tick, say=say)
                require_undisturbed(supervisor)
                processes = [
                    cost(f"{stage} {slot}", UNSTARTED, process_use(pid), len(pool))
                    for stage in ("payments", "gateway")
                    for slot, pid in enumerate(supervisor.pids(stage))
                ]
                broker = process_use(on.broker_pid)
                processes.append(cost("broker", broker_before, broker, len(pool)))
            watch.read_to_end()
            verify_settlements(watch.seen, pool.expected)
            refused.read_to_end()
            if refused.seen:
                raise WrongRun(f"{len(refused.seen):,} records went to the dead letters.")
        finally:
            watch.close()
            refused.close()
    seconds = watch.last_s - started_s
    drained = Drained(
        orders=len(pool),
        payments_workers=payments_workers,
        gateway_workers=options.gateway_workers,
        seconds=seconds,
        first_settlement_s=(watch.first_s or watch.last_s) - started_s,
        overall_per_s=len(pool) / seconds,
        flowing_per_s=flowing_rate(watch),
        processes=tuple(processes),
    )
    say(f"  {drained.overall_per_s:,.0f} orders/s; every order settled once, amounts equal")
    return drained


def flowing_rate(watch: SettlementWatch) -> float | None:
    """Settlements a second between the first and the last look that found some; what the first
    look found came before. None when that is too little to say anything."""
    if watch.first_s is None:
        return None
    seconds = watch.last_s - watch.first_s
    after_first = len(watch.seen) - watch.first_count
    if seconds < FLOWING_S_MIN or after_first < len(watch.seen) / 2:
        return None
    return after_first / seconds

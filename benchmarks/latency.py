"""Latency: a steady open-loop pace, and lone orders, from the order's append to its settlement."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.drain import STALL_S
from benchmarks.failure import WrongRun
from benchmarks.flow import FlowOptions, Ground, Say, ground, require_undisturbed, workers
from benchmarks.order_pool import OrderPool, make_pool
from benchmarks.settlement_watch import SettlementWatch, verify_settlements
from pipeline.domain.invariant import invariant
from pipeline.runtime.supervisor import Supervisor
from producers.load_generator import LoadReport, run_load
from schemas.codec import default_codec

# Start-up, group join, first connections: the time until these have settled is not latency.
START_ORDERS = 20
# Between two lone orders: long enough for the flow to be idle again.
LONE_PAUSE_S = 0.1


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds, by nearest rank."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class Latency:
    """``append`` ends when the broker appended the settlement (its transaction still open),
    ``seen`` when a read_committed subscriber had it."""

    partitions: int
    rate_per_s: float
    seconds: float
    warm_up_s: float
    append: Percentiles
    seen: Percentiles
    lone_append: Percentiles
    lone_seen: Percentiles
    generator_late_ms_max: float


@dataclass(frozen=True)
class _Timing:
    index: int
    append_ms: float
    seen_ms: float


def percentiles(values_ms: Sequence[float]) -> Percentiles:
    """ValueError for no values."""
    if not values_ms:
        raise ValueError("no values to rank")
    ordered = sorted(values_ms)

    def rank(percent: int) -> float:
        return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]

    return Percentiles(len(ordered), rank(50), rank(95), rank(99), ordered[-1])


def measure_latency(
    options: FlowOptions,
    *,
    rate_per_s: float,
    warm_up_s: float,
    seconds: float,
    lone: int,
    say: Say,
) -> Latency:
    """Workers on a fresh broker: the pace for ``warm_up_s`` and then ``seconds``, lone orders.

    The warm-up runs into what is measured without a pause. A new broker's code is interpreted at
    first: a transaction takes many times as long, and the backlog of these seconds has to go.
    """
    warm_up = int(warm_up_s * rate_per_s)
    paced = int(seconds * rate_per_s)
    pools = _split(START_ORDERS, warm_up + paced, lone)
    say(
        f"Latency at {rate_per_s:,.0f} orders/s: {warm_up_s:.0f} s of warm-up, {seconds:.0f} s "
        f"measured, then {lone} lone orders"
    )
    with ground(options) as on:
        watch = SettlementWatch(
            on.settings.bootstrap_servers,
            on.settings.catalogue().name("settlements"),
            options.partitions,
        )
        try:
            with workers(on, options, payments_workers=1) as supervisor:
                timer = _Timer(watch, supervisor)
                run_load(on.settings.bootstrap_servers, pools[0].records)
                timer.wait(START_ORDERS)
                say("  workers are up; pacing")
                report, timings = _paced(on, pools[1], rate_per_s, timer)
                say("  lone orders")
                lone_timings = _lone(on, pools[2], timer)
                require_undisturbed(supervisor)
            watch.read_to_end()
            verify_settlements(
                watch.seen, {k: v for pool in pools for k, v in pool.expected.items()}
            )
        finally:
            watch.close()
    first_measured = START_ORDERS + warm_up
    measured = [t for t in timings if t.index >= first_measured]
    return Latency(
        partitions=options.partitions,
        rate_per_s=rate_per_s,
        seconds=seconds,
        warm_up_s=warm_up_s,
        append=percentiles([t.append_ms for t in measured]),
        seen=percentiles([t.seen_ms for t in measured]),
        lone_append=percentiles([t.append_ms for t in lone_timings]),
        lone_seen=percentiles([t.seen_ms for t in lone_timings]),
        generator_late_ms_max=report.late_s_max * 1000,
    )


def _split(*counts: int) -> list[OrderPool]:
    pools = []
    first = 0
    for count in counts:
        pools.append(make_pool(count, first=first))
        first += count
    return pools


class _Timer:
    """Turns what the watch sees into latencies, at the moment it sees it."""

    def __init__(self, watch: SettlementWatch, supervisor: Supervisor) -> None:
        self._watch = watch
        self._supervisor = supervisor
        self._decode = default_codec().decoder("settlement")

    def wait(self, count: int) -> list[_Timing]:
        """The timings of the next ``count`` settlements."""
        timings: list[_Timing] = []
        quiet_since_s = time.monotonic()
        while len(timings) < count:
            self._supervisor.tick()
            messages = self._watch.look(0.1)
            now_ms = time.time() * 1000
            if messages:
                quiet_since_s = time.monotonic()
            elif time.monotonic() - quiet_since_s > STALL_S:
                raise WrongRun(
                    f"{len(timings):,} of {count:,} settlements, then {STALL_S:.0f} s none."
                )
            for message in messages:
                settlement = self._decode(message.value())
                ordered_at_ms = settlement["ordered_at_ms"]
                timings.append(
                    _Timing(
                        index=int(settlement["order_id"].rsplit("-", 1)[1]),
                        append_ms=message.timestamp()[1] - ordered_at_ms,
                        seen_ms=now_ms - ordered_at_ms,
                    )
                )
        return timings


def _paced(
    on: Ground, pool: OrderPool, rate_per_s: float, timer: _Timer
) -> tuple[LoadReport, list[_Timing]]:
    """The generator runs beside the timer; the workers belong to this thread (see Supervisor)."""
    reports: list[LoadReport] = []

    def generate() -> None:
        reports.append(run_load(on.settings.bootstrap_servers, pool.records, rate_per_s=rate_per_s))

    thread = threading.Thread(target=generate, name="load", daemon=True)
    thread.start()
    timings = timer.wait(len(pool))
    thread.join(STALL_S)
    invariant(len(reports) == 1, "the generator ends when all its orders are settled")
    return reports[0], timings


def _lone(on: Ground, pool: OrderPool, timer: _Timer) -> list[_Timing]:
    """One order at a time: the next is written when the one before has been seen."""
    from confluent_kafka import Producer

    from producers.order_publisher import producer_config

    producer = Producer(producer_config(on.settings.bootstrap_servers, "benchmark-lone"))
    timings = []
    for key, value in pool.records:
        producer.produce("orders", value=value, key=key)
        producer.flush(STALL_S)
        timings += timer.wait(1)
        time.sleep(LONE_PAUSE_S)
    return timings

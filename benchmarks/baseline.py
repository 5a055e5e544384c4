"""The peer of the same run: three bare confluent-kafka loops, one process a hop.

It does none of the work (no payment is kept, no money checked), so it is the ceiling of what
Python over this client can do on this machine, and says how far the flow is from it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from msgspec import json

from benchmarks.drain import STALL_S, flowing_rate
from benchmarks.failure import WrongRun
from benchmarks.flow import FlowOptions, Ground, Say, ground, preload
from benchmarks.order_pool import OrderPool
from benchmarks.peer_hop import HopSpec
from benchmarks.process_use import UNSTARTED, ProcessCost, cost, process_use
from benchmarks.settlement_watch import SettlementWatch

# The same four topics, partitions and settings as the flow's three hops.
HOPS = ("orders", "payment-requests", "gateway-results", "settlements")
CODECS = ("copy", "fastavro")
BATCHES_MAX = (2_000, 10_000)
STOP_S = 30.0


@dataclass(frozen=True)
class PeerDrained:
    """As Drained, for one way of running the loops."""

    orders: int
    codec: str
    batch_max: int
    seconds: float
    overall_per_s: float
    flowing_per_s: float | None
    processes: tuple[ProcessCost, ...]


def run_peers(
    pool: OrderPool,
    options: FlowOptions,
    say: Say,
    codecs: Sequence[str] = CODECS,
    batches_max: Sequence[int] = BATCHES_MAX,
) -> list[PeerDrained]:
    """Every codec with every size of transaction, each on a fresh broker."""
    return [
        _drain(pool, options, codec, batch_max, say)
        for codec in codecs
        for batch_max in batches_max
    ]


def _drain(
    pool: OrderPool, options: FlowOptions, codec: str, batch_max: int, say: Say
) -> PeerDrained:
    say(f"Peer: three bare loops, {codec}, transactions of up to {batch_max:,}")
    with ground(options) as on:
        preload(on, list(pool.records), say)
        watch = SettlementWatch(on.settings.bootstrap_servers, HOPS[-1], options.partitions)
        try:
            broker_before = process_use(on.broker_pid)
            started_s = time.monotonic()
            with _hops(on, options.partitions, codec, batch_max) as processes:
                watch.wait_for(
                    len(pool),
                    timeout_s=STALL_S,
                    each_look=lambda: _require_alive(processes),
                    say=say,
                )
                costs = [
                    cost(f"hop {n}", UNSTARTED, process_use(process.pid), len(pool))
                    for n, process in enumerate(processes, 1)
                ]
                broker = process_use(on.broker_pid)
                costs.append(cost("broker", broker_before, broker, len(pool)))
            watch.read_to_end()
        finally:
            watch.close()
    _verify(watch, pool)
    seconds = watch.last_s - started_s
    say(f"  {len(pool) / seconds:,.0f} orders/s")
    return PeerDrained(
        orders=len(pool),
        codec=codec,
        batch_max=batch_max,
        seconds=seconds,
        overall_per_s=len(pool) / seconds,
        flowing_per_s=flowing_rate(watch),
        processes=tuple(costs),
    )


@contextmanager
def _hops(
    on: Ground, partitions: int, codec: str, batch_max: int
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The three processes; closing their standard input ends them."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for source, target in pairwise(HOPS):
            spec = HopSpec(
                on.settings.bootstrap_servers, source, target, partitions, batch_max, codec
            )
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.peer_hop", json.encode(spec).decode()],
                    stdin=subprocess.PIPE,
                )
            )
        yield processes
    finally:
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _require_alive(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for number, process in enumerate(processes, 1):
        if process.poll() is not None:
            raise WrongRun(f"hop {number} of the peer ended with code {process.returncode}.")


def _verify(watch: SettlementWatch, pool: OrderPool) -> None:
    keys = {message.key() for message in watch.seen}
    if len(watch.seen) != len(pool) or keys != {key for key, _ in pool.records}:
        raise WrongRun(
            f"the peer wrote {len(watch.seen):,} records of {len(keys):,} orders for {len(pool):,}."
        )

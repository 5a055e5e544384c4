"""An outage: one of two gateways hangs for a while under a steady pace, and what that costs.

The gateway is stopped as a process (SIGSTOP): connections are still taken and nothing is answered,
which is harder to notice than a refused connection. Orders are split in two equal halves before.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.drain import STALL_S
from benchmarks.failure import WrongRun
from benchmarks.flow import NODE_ID, FlowOptions, Say, ground, require_undisturbed
from benchmarks.latency import Percentiles, percentiles
from benchmarks.order_pool import make_pool
from benchmarks.settlement_watch import SettlementWatch, verify_settlements
from pipeline.gateways.simulator import SimulatorHandle, start_simulator, stop_simulator
from pipeline.local import worker_specs
from pipeline.runtime.supervisor import Supervisor
from producers.load_generator import run_load
from schemas.codec import default_codec

DEAD, OTHER = "north", "south"
ROUTES = {"gateways": {DEAD: {"weight": 1}, OTHER: {"weight": 1}}}
# Group join and first connections; nothing of it is measured.
START_ORDERS = 20
# The dead gateway's half of the orders has gone elsewhere once it is down to this part of all.
LEFT_SHARE = 0.15
# An order is through in a fraction of this.
SETTLE_MS = 5_000
# Payments at the dead gateway wait in tiers of up to minutes.
RESOLVE_S_MAX = 600.0


@dataclass(frozen=True)
class OutageSeen:
    """Latencies from the order's append to its settlement's append, by the broker's clock.

    ``open_after_s``: from the stop until new orders go elsewhere. ``sent_before`` and
    ``sent_after``: orders that the dead gateway was given until then, and as trials later on, of
    ``ordered_after`` of both. ``others_back``: of the other gateway's orders after the return.
    ``charged_twice``: orders of which the gateways' own books have kept more than one charge.
    ``resolved_s``: from the gateway's return until the last payment had its outcome.
    """

    rate_per_s: float
    outage_s: float
    normal: Percentiles
    open_after_s: float
    sent_before: int
    sent_after: int
    ordered_after: int
    others_before: Percentiles | None
    others: Percentiles
    others_back: Percentiles | None
    waiting_at_return: int
    resolved_s: float
    moved: int
    charged_twice: int

    @property
    def p99_ratio(self) -> float:
        return self.others.p99 / self.normal.p99

    @property
    def trials_share(self) -> float:
        """Which part of all orders since they leave it were sent to the dead gateway."""
        return self.sent_after / self.ordered_after


@dataclass(frozen=True)
class Ordered:
    """One order: where it was sent first, and by whom it was settled. Times by the broker."""

    ordered_at_ms: int
    gateway: str
    settled_at_ms: int
    settled_by: str


def measure_outage(
    options: FlowOptions,
    *,
    rate_per_s: float,
    warm_up_s: float,
    normal_s: float,
    outage_s: float,
    say: Say,
) -> OutageSeen:
    """One run on a fresh broker. WrongRun unless every order was settled once in the end."""
    paced_s = warm_up_s + normal_s + outage_s + normal_s
    say(
        f"Outage of {outage_s:.0f} s at {rate_per_s:,.0f} orders/s, one of two gateways, "
        f"{paced_s:.0f} s in all"
    )
    start = make_pool(START_ORDERS)
    pool = make_pool(int(paced_s * rate_per_s), first=START_ORDERS)
    with ground(options) as on:
        folder = on.settings.state_dir
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "routes.json").write_text(json.dumps(ROUTES))
        gateways = [
            start_simulator(folder / f"{name}.sqlite", faults="none") for name in (DEAD, OTHER)
        ]
        settings = on.settings.model_copy(
            update={
                "gateway_in_process": False,
                "gateways": {n: g.url for n, g in zip((DEAD, OTHER), gateways, strict=True)},
                "routes_file": str(folder / "routes.json"),
            }
        )
        bootstrap = settings.bootstrap_servers
        catalogue = settings.catalogue()
        watch = SettlementWatch(bootstrap, catalogue.name("settlements"), options.partitions)
        table = SettlementWatch(bootstrap, catalogue.name("payments"), options.partitions)
        counts = {"payments": 1, "gateway": options.gateway_workers}
        try:
            with Supervisor(worker_specs(settings, counts, node_id=NODE_ID)) as supervisor:
                run_load(bootstrap, start.records)
                watch.wait_for(
                    START_ORDERS, timeout_s=STALL_S, each_look=supervisor.tick, say=lambda _: None
                )
                load = threading.Thread(
                    target=run_load,
                    args=(bootstrap, pool.records),
                    kwargs={"rate_per_s": rate_per_s},
                    daemon=True,
                )
                load.start()
                begun_s = time.monotonic()
                _until(begun_s + warm_up_s, watch, supervisor)
                normal_from_ms = _now_ms()
                _until(begun_s + warm_up_s + normal_s, watch, supervisor)
                stopped_ms, waiting, back_ms = _stopped(
                    gateways[0], outage_s, watch, supervisor, rate_per_s, begun_s, say
                )
                deadline = time.monotonic() + normal_s + RESOLVE_S_MAX
                total = START_ORDERS + len(pool)
                while len(watch.seen) < total:
                    supervisor.tick()
                    watch.look(0.1)
                    if time.monotonic() > deadline:
                        raise WrongRun(f"{total - len(watch.seen):,} orders were never settled.")
                require_undisturbed(supervisor)
            watch.read_to_end()
            table.read_to_end()
            verify_settlements(watch.seen, {**start.expected, **pool.expected})
        finally:
            watch.close()
            table.close()
            for gateway in gateways:
                stop_simulator(gateway)
        charged_twice = _charged_twice([folder / f"{name}.sqlite" for name in (DEAD, OTHER)])
    found = judge(
        _orders(watch, table), normal_from_ms, stopped_ms, back_ms,
        rate_per_s=rate_per_s, outage_s=outage_s, waiting=waiting, charged_twice=charged_twice,
    )  # fmt: skip
    say(f"  others' p99 was {found.p99_ratio:.2f} times its normal value; every order settled once")
    return found


def judge(
    orders: Mapping[str, Ordered],
    normal_from_ms: int,
    stopped_ms: int,
    back_ms: int,
    *,
    rate_per_s: float,
    outage_s: float,
    waiting: int,
    charged_twice: int,
) -> OutageSeen:
    """The figures of one run from what became of each order."""
    # What was on its way when the gateway stopped belongs to the outage.
    normal_to_ms = stopped_ms - min(SETTLE_MS, (stopped_ms - normal_from_ms) // 3)
    normal = [o for o in orders.values() if normal_from_ms <= o.ordered_at_ms < normal_to_ms]
    during = [o for o in orders.values() if stopped_ms <= o.ordered_at_ms < back_ms]
    open_after_ms = _left_after_ms(during, stopped_ms, back_ms)
    opened_ms = stopped_ms + open_after_ms
    before = [o for o in during if o.ordered_at_ms < opened_ms]
    after = [o for o in during if o.ordered_at_ms >= opened_ms]
    others_before = [o for o in before if o.gateway == OTHER]
    at_dead = [o for o in during if o.gateway == DEAD]
    back = [o for o in orders.values() if o.ordered_at_ms >= back_ms and o.gateway == OTHER]
    return OutageSeen(
        rate_per_s=rate_per_s,
        outage_s=outage_s,
        normal=_latencies(normal),
        open_after_s=open_after_ms / 1000,
        sent_before=sum(o.gateway == DEAD for o in before),
        sent_after=sum(o.gateway == DEAD for o in after),
        ordered_after=len(after),
        others_before=_latencies(others_before) if others_before else None,
        others=_latencies([o for o in after if o.gateway == OTHER]),
        others_back=_latencies(back) if back else None,
        waiting_at_return=waiting,
        resolved_s=max([0, *(o.settled_at_ms - back_ms for o in at_dead)]) / 1000,
        moved=sum(o.settled_by != DEAD for o in at_dead),
        charged_twice=charged_twice,
    )


def _charged_twice(books: Sequence[Path]) -> int:
    """Orders of which all gateways together have kept more than one charge, as they wrote it."""
    kept: Counter[str] = Counter()
    for file in books:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
            kept.update(
                dict(
                    db.execute(
                        "SELECT merchant_id || ':' || order_id, sum(kind = 'charge') "
                        "- sum(kind = 'refund') FROM entries GROUP BY merchant_id, order_id"
                    )
                )
            )
    return sum(count > 1 for count in kept.values())


def _left_after_ms(during: list[Ordered], stopped_ms: int, back_ms: int) -> int:
    """When new orders had left the dead gateway: the first half second that sends few to it."""
    for at_ms in range(stopped_ms, back_ms, 100):
        seen = [o.gateway == DEAD for o in during if at_ms <= o.ordered_at_ms < at_ms + 500]
        if seen and sum(seen) <= LEFT_SHARE * len(seen):
            return at_ms - stopped_ms
    raise WrongRun("new orders never left the dead gateway.")


def _latencies(orders: list[Ordered]) -> Percentiles:
    if not orders:
        raise WrongRun("a phase of the run had no orders: it was too short for its pace.")
    return percentiles([float(o.settled_at_ms - o.ordered_at_ms) for o in orders])


def _stopped(
    gateway: SimulatorHandle,
    outage_s: float,
    watch: SettlementWatch,
    supervisor: Supervisor,
    rate_per_s: float,
    begun_s: float,
    say: Say,
) -> tuple[int, int, int]:
    """Stop the gateway for so long; (when, how many orders had no outcome at its end, when)."""
    os.kill(gateway.pid, signal.SIGSTOP)
    try:
        stopped_ms = _now_ms()
        say("  the gateway hangs")
        _until(time.monotonic() + outage_s, watch, supervisor)
    finally:
        os.kill(gateway.pid, signal.SIGCONT)
    published = START_ORDERS + int((time.monotonic() - begun_s) * rate_per_s)
    waiting = max(0, published - len(watch.seen))
    say(f"  the gateway is back, about {waiting:,} orders wait")
    return stopped_ms, waiting, _now_ms()


def _until(end_s: float, watch: SettlementWatch, supervisor: Supervisor) -> None:
    while time.monotonic() < end_s:
        supervisor.tick()
        watch.look(0.05)


def _orders(watch: SettlementWatch, table: SettlementWatch) -> dict[str, Ordered]:
    """Every order by its key: where it was sent first, and how it ended."""
    codec = default_codec()
    settlement, payment = codec.decoder("settlement"), codec.decoder("payment")
    first: dict[bytes, str] = {}
    for message in table.seen:
        if message.key() not in first:
            first[message.key()] = payment(message.value())["attempts"][0]["gateway"]
    found = {}
    for message in watch.seen:
        fields = settlement(message.value())
        found[message.key().decode()] = Ordered(
            fields["ordered_at_ms"],
            first[message.key()],
            message.timestamp()[1],
            fields["gateway"],
        )
    return found


def _now_ms() -> int:
    return int(time.time() * 1000)

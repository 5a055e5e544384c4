"""Ten times as many orders as the gateway takes, for a while; then it takes all it can again."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from pipeline.chaos.overload.scenario import Options, Outcome, Say
from pipeline.chaos.overload.stand import GATEWAY, Stand, claim_flat, orders
from pipeline.record_codec import record_codec
from pipeline.runtime.control import change_entry

NAME = "throttled-gateway"
TIMES = 10
RATE_PER_S_MAX = 5_000
# The gate looks twice a second: what came since its last look is let through.
OVERSHOOT = 1.5
# Of what the gateway takes in the second half, when requests have become as old as they may be.
SHARE_MIN = 0.5


def run(options: Options, say: Say) -> Outcome:
    taken_per_s = options.gateway_rate_per_s
    rate_per_s = min(RATE_PER_S_MAX, TIMES * taken_per_s)
    seconds = options.overload_s
    outcome = Outcome(
        NAME,
        f"{rate_per_s:,.0f} orders a second for {seconds:,.0f} s, of which the gateway takes "
        f"{taken_per_s:,.0f}; then it takes what comes",
    )
    records = orders(int(rate_per_s * seconds))
    folder = options.place / NAME
    # Before the folder of the flow is there.
    throttle = options.place / f"{NAME}-routes.json"
    throttle.write_text(json.dumps(_routes(taken_per_s)))
    with Stand(folder, say, options.partitions, pace={"routes_file": str(throttle)}) as stand:
        stand.wait_until_joined()
        open_requests = stand.lag("gateway", "payment-requests")
        waiting: list[int] = []
        begun_s = time.monotonic()
        load = stand.publish(records, rate_per_s)
        asking = _ask(load, open_requests, waiting)
        stand.keep_for(seconds / 2)
        settled_by_half = len(stand.outcomes)
        half_s = time.monotonic()
        stand.keep_until(lambda: not load.is_alive(), "overloaded")
        ended_s = time.monotonic()
        settled = len(stand.outcomes)
        _lift(stand)
        recovered_s = time.monotonic()
        count = len(records)
        stand.settle(count, "recovering")
        recovered_s = time.monotonic() - recovered_s
        asking.join(30.0)
        report = stand.claim_whole(outcome)
        states = report.summary["payments"]
        outcome.figure("orders", f"{count:,} in {ended_s - begun_s:,.0f} s")
        outcome.figure("settled by the end of the overload", f"{settled:,}")
        taken = int(taken_per_s * (ended_s - half_s))
        outcome.claim(
            f"at least {SHARE_MIN:.0%} of what the gateway takes in the second half ({taken:,}) "
            "are settled in it",
            f"{settled - settled_by_half:,}",
            held=settled - settled_by_half >= SHARE_MIN * taken,
        )
        outcome.figure("the last one settled after", f"{recovered_s:,.0f} s")
        outcome.figure("payments by state", ", ".join(f"{n:,} {s}" for s, n in states.items() if n))
        outcome.figure("requests that waited, most", f"{max(waiting, default=0):,}")
        bound = int(stand.settings.open_requests_max * OVERSHOOT)
        outcome.claim(
            f"at most {bound:,} requests wait: the rest are orders that nobody has begun",
            f"{max(waiting, default=0):,}",
            held=bool(waiting) and max(waiting) <= bound,
        )
        outcome.claim(
            "every order is charged", f"{len(stand.outcomes):,}", held=len(stand.outcomes) == count
        )
        middle_s = (begun_s + ended_s) / 2
        claim_flat(outcome, stand, (begun_s, middle_s), (middle_s, ended_s))
    return outcome


def _ask(load: threading.Thread, open_requests: Any, waiting: list[int]) -> threading.Thread:
    """The gateway's backlog, once a second for as long as the orders come."""

    def ask() -> None:
        while load.is_alive():
            waiting.append(open_requests())
            load.join(1.0)

    thread = threading.Thread(target=ask, name="overload-backlog", daemon=True)
    thread.start()
    return thread


def _routes(rate_per_s: float | None) -> dict[str, Any]:
    if rate_per_s is None:
        return {}
    return {"gateways": {GATEWAY: {"rate_per_s": rate_per_s, "burst": max(1, int(rate_per_s))}}}


def _lift(stand: Stand) -> None:
    change_entry(
        stand.settings.bootstrap_servers,
        stand.catalogue,
        record_codec(stand.catalogue, ""),
        key="routing",
        value=json.dumps(_routes(100_000.0)),
        changed_by="paystream chaos overload",
        reason="the gateway takes all that comes",
        now_ms=int(time.time() * 1000),
    )

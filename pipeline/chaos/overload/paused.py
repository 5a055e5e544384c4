"""The ledger worker stands still for minutes, while orders go on; then it has it all to book."""

from __future__ import annotations

import signal
import time

from pipeline.chaos.flow.node import send
from pipeline.chaos.overload.outcomes import percentile
from pipeline.chaos.overload.scenario import Options, Outcome, Say
from pipeline.chaos.overload.stand import Stand, claim_flat, orders

NAME = "paused-consumer"
# What is measured before: the same pace with everybody there.
BEFORE_S = 20.0
# The others' p99 while it stands, against before; a machine of two cores moves by as much.
SLOWER_TIMES, SLOWER_MS = 3.0, 500


def run(options: Options, say: Say) -> Outcome:
    rate_per_s, pause_s = options.rate_per_s, options.pause_s
    outcome = Outcome(
        NAME,
        f"the ledger worker is stopped (SIGSTOP) for {pause_s:,.0f} s at {rate_per_s:,.0f} orders "
        "a second",
    )
    records = orders(int(rate_per_s * (BEFORE_S + pause_s)))
    with Stand(options.place / NAME, say, options.partitions) as stand:
        stand.wait_until_joined()
        behind = stand.lag("ledger", "settlements")
        begun_ms, begun_s = _now_ms(), time.monotonic()
        load = stand.publish(records, rate_per_s)
        stand.keep_for(BEFORE_S)
        (pid,) = stand.supervisor.pids("ledger")
        send(pid, signal.SIGSTOP)
        stopped_ms, stopped_s = _now_ms(), time.monotonic()
        try:
            stand.keep_for(pause_s)
            backlog = behind()
        finally:
            send(pid, signal.SIGCONT)
        woken_ms, woken_s = _now_ms(), time.monotonic()
        stand.keep_until(lambda: not load.is_alive(), "the last orders")
        stand.settle(len(records), "the last settlements")
        stand.claim_whole(outcome, wait_s=pause_s + 300.0, may_leave="ledger")
        caught_up_s = time.monotonic() - woken_s
        before = percentile(stand.outcomes.took_ms(begun_ms, stopped_ms), 0.99)
        meanwhile = percentile(stand.outcomes.took_ms(stopped_ms, woken_ms - 2_000), 0.99)
        outcome.figure("orders", f"{len(records):,}")
        outcome.figure(
            "records of `settlements` that waited for it at the end, markers included",
            f"{backlog:,}",
        )
        outcome.figure("all of it booked and audited after", f"{caught_up_s:,.0f} s")
        outcome.claim(
            "the other stages go on: order to settlement, p99, before and meanwhile",
            f"{before:,} ms, then {meanwhile:,} ms",
            held=0 < meanwhile <= max(SLOWER_TIMES * before, before + SLOWER_MS),
        )
        claim_flat(outcome, stand, (begun_s, stopped_s), (stopped_s, woken_s + caught_up_s))
    return outcome


def _now_ms() -> int:
    return int(time.time() * 1000)

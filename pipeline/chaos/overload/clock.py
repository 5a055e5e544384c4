"""The workers' clock jumps an hour forwards, then an hour back, and is right again."""

from __future__ import annotations

import time

from pipeline.chaos.overload.scenario import Options, Outcome, Say
from pipeline.chaos.overload.shifted_worker import SHIFT_FILE, write_shift
from pipeline.chaos.overload.stand import Stand, orders

NAME = "clock-jumps"
# Right, ahead, right, behind, right: each for so long.
SPAN_S = 15.0
# Beyond the promise: an outcome of each order by then.
REST_S = 600.0


def run(options: Options, say: Say) -> Outcome:
    jump_s, rate_per_s = options.jump_s, options.rate_per_s
    outcome = Outcome(
        NAME,
        f"every worker's clock {jump_s:,.0f} s ahead for {SPAN_S:.0f} s, then as much behind, at "
        f"{rate_per_s:,.0f} orders a second and with the gateway's usual faults",
    )
    shifts = (0.0, jump_s, 0.0, -jump_s, 0.0)
    records = orders(int(rate_per_s * SPAN_S * len(shifts)))
    shift_file = options.place / f"{NAME}.shift"
    write_shift(shift_file, 0.0)
    with Stand(
        options.place / NAME,
        say,
        options.partitions,
        faults="default",
        worker_module="pipeline.chaos.overload.shifted_worker",
        environment={SHIFT_FILE: str(shift_file)},
    ) as stand:
        stand.wait_until_joined()
        load = stand.publish(records, rate_per_s)
        settled = []
        for shift_s in shifts:
            write_shift(shift_file, shift_s)
            before = len(stand.outcomes)
            stand.keep_for(SPAN_S)
            settled.append(len(stand.outcomes) - before)
        righted_s = time.monotonic()
        stand.keep_until(lambda: not load.is_alive(), "the last orders")
        report = stand.claim_whole(outcome, wait_s=REST_S)
        outcome.figure("orders", f"{len(records):,}")
        outcome.figure(
            "settled while right, ahead, right, behind, right",
            ", ".join(f"{each:,}" for each in settled),
        )
        outcome.figure(
            "at rest and audited, the clock being right, after",
            f"{time.monotonic() - righted_s:,.0f} s",
        )
        states = report.summary["payments"]
        outcome.figure("payments by state", ", ".join(f"{n:,} {s}" for s, n in states.items() if n))
        outcome.claim(
            "every order has its payment",
            f"{sum(states.values()):,}",
            held=sum(states.values()) == len(records),
        )
    return outcome

"""``python -m tests.simulation``: run seeds, print what broke, and remember it."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing import get_context

from tests.simulation.plan import FAULTS_MIN, MIXES, draw, mix_of
from tests.simulation.run import Result, Simulation, run_plan
from tests.simulation.seeds import Drawn, failed_seeds, remember
from tests.simulation.shrink import shrink

TRACE_LINES_MAX = 120
# A process ends after so many runs, and most of what they made with it (5 MiB each): to let go of
# that piece by piece, and to look for what is left, would take a tenth of the time.
SEEDS_OF_A_PROCESS = 24
_MADE: list[Simulation] = []


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one alone and print its trace")
    parser.add_argument("--mix", choices=sorted(MIXES), help="of what orders, else by its number")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--failed", action="store_true", help="only those that have failed before")
    parser.add_argument("--coverage", action="store_true", help="print the branch coverage")
    parser.add_argument("--no-shrink", action="store_true", help="print a failure as it is")
    options = parser.parse_args(argv)
    if options.seed is not None:
        drawn = options.seed, options.mix or mix_of(options.seed)
        return _one(drawn, shrinks=not options.no_shrink)
    numbers = range(options.first, options.first + options.seeds)
    seeds: list[Drawn] = [(seed, options.mix or mix_of(seed)) for seed in numbers]
    if options.failed:
        seeds = failed_seeds()
    elif not options.coverage:
        seeds = [*failed_seeds(), *(drawn for drawn in seeds if drawn not in failed_seeds())]
    if options.coverage:
        from tests.simulation.coverage_report import print_coverage

        return 1 if print_coverage(seeds) else 0
    began_s = time.monotonic()
    failures: list[Result] = []
    faults: Counter[str] = Counter()
    runs = checks = orders = fewest = 0
    simulated_s = 0.0
    for result in _run(seeds, options.processes):
        runs += 1
        orders += result.orders
        checks += result.checks
        simulated_s += result.simulated_s
        faults.update(result.faults)
        fewest = min(fewest or 10**9, sum(result.faults.values()))
        if result.violation is not None:
            failures.append(result)
            print(f"seed {result.seed} ({result.mix}): {result.violation}", flush=True)
    seconds = time.monotonic() - began_s
    print(
        f"{runs} seeds, {orders} orders, {sum(faults.values())} faults of {len(faults)} kinds "
        f"(at least {fewest} in a seed), {simulated_s / 3600:.0f} hours simulated in "
        f"{seconds:.0f} s, {checks} records audited: "
        + (f"{len(failures)} seeds FAILED" if failures else "every promise kept")
    )
    for fault, count in sorted(faults.items()):
        print(f"  {count:8} {fault}")
    for result in failures[:1]:
        _one((result.seed, result.mix), shrinks=not options.no_shrink)
    for result in failures:
        remember((result.seed, result.mix), str(result.violation))
    return 1 if failures else 0


def _run(seeds: Sequence[Drawn], processes: int) -> Iterator[Result]:
    if processes < 2:
        yield from (_enough_faults(run_plan(draw(*drawn))) for drawn in seeds)
        return
    # What runs need is made once, before the processes part: by one of each kind.
    run_plan(draw(0))
    run_plan(draw(1))
    gc.collect()
    gc.freeze()
    # One that ends is replaced alone: none waits for the slowest.
    made = get_context("fork").Pool(processes, gc.disable, maxtasksperchild=SEEDS_OF_A_PROCESS)
    with made as pool:
        yield from pool.imap_unordered(_result_of, seeds)


def _result_of(drawn: Drawn) -> Result:
    simulation = Simulation(draw(*drawn))
    _MADE.append(simulation)
    result = simulation.run()
    # Its records, a third of it: memory that the next run has at hand costs less than new one.
    simulation.cluster.close()
    return _enough_faults(result)


def _enough_faults(result: Result) -> Result:
    met = sum(result.faults.values())
    if result.violation is None and met < FAULTS_MIN:
        raise AssertionError(f"seed {result.seed} met only {met} faults")
    return result


def _one(drawn: Drawn, *, shrinks: bool) -> int:
    seed, mix = drawn
    plan = draw(seed, mix)
    result = run_plan(plan, traced=True)
    if result.violation is None:
        print(f"seed {seed}: every promise kept ({sum(result.faults.values())} faults)")
        return 0
    if shrinks:
        plan, result = shrink(plan, result.violation.check)
    assert result.violation is not None
    print(f"\nseed {seed} breaks a promise: {result.violation}")
    print(f"with {len(plan.orders)} orders and {len(plan.faults)} faults:")
    for fault in plan.faults:
        print(f"  {fault}")
    for order in plan.orders[:20]:
        print(f"  {order}")
    print("trace (simulated seconds):")
    for line in result.trace[-TRACE_LINES_MAX:]:
        print(f"  {line}")
    print(f"again: make simulate ARGS='--seed {seed} --mix {mix}'")
    return 1


if __name__ == "__main__":
    sys.exit(main())

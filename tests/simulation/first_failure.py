"""Run the seeds that are named until one breaks a promise, and say which: exit status 1."""

from __future__ import annotations

import sys

from tests.simulation.plan import draw
from tests.simulation.run import run_plan


def main(seeds: list[int]) -> int:
    for seed in seeds:
        violation = run_plan(draw(seed)).violation
        if violation is not None:
            text = str(violation).splitlines()[0]
            print(f"seed {seed}: {text[:110]}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main([int(seed) for seed in sys.argv[1:]]))

"""The shortest trace of a failure: faults and orders are taken out for as long as it still fails.

What is left is a plan like any other, so its run is the trace. A failure counts as the same if the
same promise is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tests.simulation.plan import Plan
from tests.simulation.run import Result, run_plan

T = TypeVar("T")
# Runs that a failure is worth: half a minute.
RUNS_MAX = 120


def shrink(plan: Plan, check: str, *, runs_max: int = RUNS_MAX) -> tuple[Plan, Result]:
    """A smaller plan that breaks the same promise, and its run with the trace."""
    left = [runs_max]

    def fails(smaller: Plan) -> bool:
        if left[0] <= 0:
            return False
        left[0] -= 1
        violation = run_plan(smaller).violation
        return violation is not None and violation.check == check

    for _ in range(2):
        plan = _with_fewer_faults(plan, fails)
        plan = _with_fewer_orders(plan, fails)
    return plan, run_plan(plan, traced=True)


def _with_fewer_faults(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    kept = _fewer(plan.faults, lambda faults: fails(plan.only(plan.orders, tuple(faults))))
    return plan.only(plan.orders, tuple(kept))


def _with_fewer_orders(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    kept = _fewer(plan.orders, lambda orders: fails(plan.only(tuple(orders), plan.faults)))
    return plan.only(tuple(kept), plan.faults)


def _fewer(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """Take out ever smaller parts, as delta debugging does."""
    size = max(1, len(items) // 2)
    while items:
        at = 0
        while at < len(items):
            without = [*items[:at], *items[at + size :]]
            if fails(without):
                items = without
            else:
                at += size
        if size == 1:
            break
        size = max(1, size // 2)
    return items

"""A handful of simulated runs; ``make simulate`` runs as many as are wanted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict

import pytest

from tests.simulation.auditor import Auditor
from tests.simulation.gateway import Movement
from tests.simulation.log import Cluster, Intent
from tests.simulation.mutate import TOP, missing_texts
from tests.simulation.mutations import MUTATIONS
from tests.simulation.plan import FAULTS_MIN, ORDERS_MIN, Plan, draw
from tests.simulation.property_mutations import PROPERTY_MUTATIONS
from tests.simulation.run import Result, run_plan
from tests.simulation.shrink import shrink
from tests.simulation.violation import Violation
from tests.simulation.world import World


def test_every_promise_is_kept_in_a_simulated_run() -> None:
    """200 orders and 20 faults over at least 3 workers: nothing lost, doubled or torn."""
    result = run_plan(draw(1))
    assert result.violation is None, result.violation
    assert result.orders >= ORDERS_MIN
    assert sum(result.faults.values()) >= FAULTS_MIN
    assert result.workers >= 3


def test_a_seed_replays_exactly() -> None:
    """The same plan takes the same steps at the same simulated times."""
    plan = draw(3)
    plan = plan.only(plan.orders[:15], plan.faults[:12])
    first, second = run_plan(plan, traced=True), run_plan(plan, traced=True)
    assert first.trace == second.trace
    assert first.steps == second.steps


def test_workers_that_have_nothing_to_do_are_left_alone() -> None:
    """Turning an idle loop shows nothing, and once took half of a run: two simulated minutes
    without an order are a few steps of each worker."""
    plan = draw(0)
    run = run_plan(plan.only((), ()))
    assert run.simulated_s >= 120
    assert run.steps <= 20 * len(plan.slots)


_REPLAY = """
from hashlib import sha256
from tests.simulation.plan import draw
from tests.simulation.run import run_plan
plan = draw(1005)
run = run_plan(plan.only(plan.orders[:30], plan.faults), traced=True)
assert len(run.trace) > 20
print(run.steps, run.checks, run.simulated_s, sha256(repr(run.trace).encode()).hexdigest())
"""


def test_a_seed_replays_exactly_in_another_process() -> None:
    """Whatever order a process gives to the names and objects of a set."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", _REPLAY],
            cwd=TOP,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("1", "2")
    ]
    first, second = (run.communicate()[0] for run in runs)
    assert first
    assert first == second


def test_every_defence_that_is_taken_out_in_turn_is_where_it_was() -> None:
    """``make mutate-guarantees`` names at least 20 defences by their text, each found once."""
    assert missing_texts() == []
    assert len(MUTATIONS) >= 20
    for each in (MUTATIONS, PROPERTY_MUTATIONS):
        assert len({mutation.name for mutation in each}) == len(each)


def test_a_failure_is_shrunk_to_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 orders and all faults, those are left without which the promise is kept."""
    plan = draw(4)
    order, fault = plan.orders[123], plan.faults[7]

    def fails_with_both(smaller: Plan, *, traced: bool = False) -> Result:
        broken = order in smaller.orders and fault in smaller.faults
        return Result(4, violation=Violation("charged_twice", "") if broken else None)

    monkeypatch.setattr("tests.simulation.shrink.run_plan", fails_with_both)
    smallest, result = shrink(plan, "charged_twice")
    assert smallest.orders == (order,)
    assert smallest.faults == (fault,)
    assert result.violation is not None


def test_a_charge_too_many_and_a_torn_transaction_are_noticed() -> None:
    """The auditor is told what must never be, and says so at that step."""
    plan = draw(4)
    auditor = Auditor(plan, Cluster(World("4")), defaultdict(lambda: dict), defaultdict(str))
    charge = Movement(0.0, "alpha", "charge", "o1", "o1", "k1", plan.orders[1].amount_minor, "r1")
    auditor.moved(charge)
    with pytest.raises(Violation, match="charged_twice"):
        auditor.moved(charge)
    intent = Intent("payments-0", 1)
    auditor.fate(intent, True)
    with pytest.raises(Violation, match="torn_transaction"):
        auditor.fate(intent, False)
    other = Intent("payments-0", 2)
    auditor.believed(other, "aborted")
    with pytest.raises(Violation, match="false_outcome"):
        auditor.fate(other, True)

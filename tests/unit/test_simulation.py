"""A handful of simulated runs; ``make simulate`` runs as many as are wanted."""

from __future__ import annotations

import pytest

from tests.simulation.mutate import missing_texts
from tests.simulation.mutations import MUTATIONS
from tests.simulation.plan import FAULTS_MIN, ORDERS_MIN, draw
from tests.simulation.run import run_plan


@pytest.mark.parametrize("seed", [1, 2])
def test_every_promise_is_kept_in_a_simulated_run(seed: int) -> None:
    """200 orders and 20 faults over at least 3 workers: nothing lost, doubled or torn."""
    result = run_plan(draw(seed))
    assert result.violation is None, result.violation
    assert result.orders >= ORDERS_MIN
    assert sum(result.faults.values()) >= FAULTS_MIN
    assert result.workers >= 3


def test_a_seed_replays_exactly() -> None:
    """The same plan takes the same steps at the same simulated times."""
    plan = draw(3)
    plan = plan.only(plan.orders[:40], plan.faults)
    first, second = run_plan(plan, traced=True), run_plan(plan, traced=True)
    assert first.trace == second.trace
    assert first.steps == second.steps


def test_every_defence_that_is_taken_out_in_turn_is_where_it_was() -> None:
    """``make mutate-guarantees`` names at least 20 defences by their text, each found once."""
    assert missing_texts() == []
    assert len(MUTATIONS) >= 20
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)

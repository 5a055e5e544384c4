"""Simulated runs: those that failed once, and as many others as half a minute holds."""

from __future__ import annotations

import pytest

from tests.simulation.plan import FAULTS_MIN, draw, mix_of
from tests.simulation.run import run_plan
from tests.simulation.seeds import failed_seeds

SEEDS = [*failed_seeds(), *((seed, mix_of(seed)) for seed in range(1_000, 1_080))]


@pytest.mark.parametrize(("seed", "mix"), SEEDS)
def test_a_seed_keeps_every_promise(seed: int, mix: str) -> None:
    """Whatever crashes, comes late, comes twice or is fenced: the auditor finds nothing."""
    result = run_plan(draw(seed, mix))
    again = f"make simulate ARGS='--seed {seed} --mix {mix}'"
    assert result.violation is None, f"{again}: {result.violation}"
    assert sum(result.faults.values()) >= FAULTS_MIN

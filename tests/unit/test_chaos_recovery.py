"""How long a fault was felt, by what each step had reached in each partition."""

from __future__ import annotations

import pytest

from pipeline.chaos.flow.recovery import Felt, Sample, felt, percentile

STEP = "settlements"


def sample(at_s: float, *reached: int) -> Sample:
    return Sample(at_s, at_s, {(STEP, p): offset for p, offset in enumerate(reached)})


def test_a_flow_that_never_stood_has_recovered_with_the_next_look() -> None:
    """And stood for no longer than a look takes."""
    samples = [sample(at, at * 10, at * 10) for at in range(10)]
    assert felt(samples, begun_s=3, ended_s=5) == Felt(1, 1, "settlements[1]")


def test_a_flow_has_recovered_once_every_partition_has_moved() -> None:
    """One partition that goes on is no recovery of the other."""
    samples = [
        sample(0, 1, 1), sample(1, 2, 2),
        sample(2, 3, 2), sample(3, 4, 2), sample(4, 5, 2), sample(5, 6, 2),
        sample(6, 7, 3), sample(7, 8, 4),
    ]  # fmt: skip
    assert felt(samples, begun_s=1.5, ended_s=3) == Felt(3, 4.5, "settlements[1]")


def test_progress_before_the_end_is_no_recovery() -> None:
    """What was on its way already arrives while the fault still goes on."""
    samples = [sample(0, 1), sample(1, 2), sample(2, 3), sample(3, 3), sample(4, 3), sample(5, 4)]
    assert felt(samples, begun_s=0.5, ended_s=2.5) == Felt(2.5, 3, "settlements[0]")


def test_a_flow_that_does_not_move_again_has_not_recovered() -> None:
    """It stood for as long as anybody looked."""
    samples = [sample(0, 1), sample(1, 2), sample(2, 2), sample(9, 2)]
    assert felt(samples, begun_s=1, ended_s=2) == Felt(None, 8, "settlements[0]")


def test_a_step_that_did_not_answer_has_not_moved() -> None:
    """A sample without a partition says nothing of it."""
    both, one = {(STEP, 0): 1, (STEP, 1): 1}, {(STEP, 0): 2}
    samples = [Sample(0, 0, both), Sample(1, 1, both), Sample(2, 2, one), Sample(3, 3, one)]
    assert felt(samples, begun_s=0, ended_s=1).recovered_s is None


@pytest.mark.parametrize(
    ("values", "share", "found"),
    [([], 0.5, 0), ([3, 1, 2], 0.5, 2), ([3, 1, 2], 0.99, 3), (range(1, 101), 0.99, 99)],
)
def test_percentiles_are_by_nearest_rank(values: list[float], share: float, found: float) -> None:
    """A value that was measured, and none between two."""
    assert percentile(values, share) == found

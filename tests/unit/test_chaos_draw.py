"""Which faults a run has: drawn from the seed, never two at the same thing at once."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.chaos.flow.draw import BY_NAME, KINDS, TAIL_S, UPGRADE, WARM_UP_S, draw
from pipeline.chaos.flow.kinds import CLASSES


def test_the_same_seed_draws_the_same_faults() -> None:
    """A run that broke can be run again; another seed is another run."""
    assert draw(1, 300, every_s=8) == draw(1, 300, every_s=8)
    assert draw(1, 300, every_s=8) != draw(2, 300, every_s=8)


@pytest.mark.slow
def test_no_two_faults_are_at_the_same_thing_at_once() -> None:
    """Two of three brokers away, or a worker frozen by one fault and killed by another, would be
    what nobody promises."""
    for seed in range(20):
        drawn = draw(seed, 1_200, every_s=8)
        for place, one in enumerate(drawn):
            for other in drawn[place + 1 :]:
                if other.at_s < one.at_s + one.duration_s:
                    assert not BY_NAME[one.kind].holds & BY_NAME[other.kind].holds


def test_faults_lie_within_the_load() -> None:
    """None begins before the flow flows, and each has ended while there is load to recover by."""
    for seed in range(20):
        for one in draw(seed, 300, every_s=8):
            shortest_s, longest_s = BY_NAME[one.kind].seconds
            assert one.at_s >= WARM_UP_S
            assert one.at_s + one.duration_s <= 300 - TAIL_S
            assert shortest_s <= one.duration_s <= longest_s


def test_a_long_run_has_every_kind_and_at_least_sixty_faults() -> None:
    """Twenty minutes of the default pace, whatever the seed."""
    for seed in range(20):
        counts = Counter(one.kind for one in draw(seed, 1_200, every_s=8))
        assert set(counts) == set(BY_NAME)
        assert counts.total() >= 60


def test_only_the_kinds_that_are_asked_for_come() -> None:
    """``--only`` makes a run of one kind; with none there is nothing to draw."""
    one = [BY_NAME["kill-ledger"]]
    assert {each.kind for each in draw(3, 120, every_s=5, kinds=one)} == {"kill-ledger"}
    assert draw(3, 120, every_s=5, kinds=[]) == []


def test_the_workers_are_upgraded_once_at_most() -> None:
    """Afterwards there is no older version any more; alone it is drawn once as well."""
    for seed in range(20):
        assert [one.kind for one in draw(seed, 1_200, every_s=8)].count(UPGRADE) == 1
        assert len(draw(seed, 1_200, every_s=8, kinds=[BY_NAME[UPGRADE]])) == 1


def test_every_kind_has_its_class() -> None:
    """What can be drawn can be done."""
    assert [kind.name for kind in KINDS] == list(CLASSES)

"""Each side has half of the time, however long its transactions take, and nobody waits for ever."""

from __future__ import annotations

import pytest

from pipeline.runtime.suspect_turns import SuspectTurns


@pytest.mark.parametrize(("suspects_s", "others_s"), [(0.25, 2.0), (4.0, 0.5), (1.0, 1.0)], ids=str)
def test_each_side_has_half_of_the_time(suspects_s: float, others_s: float) -> None:
    """A second of one side is followed by a second of the other."""
    turns, now_s = SuspectTurns(), 0.0
    had = {True: 0.0, False: 0.0}
    while now_s < 100:
        alone = turns.suspects_next
        spent_s = suspects_s if alone else others_s
        had[alone] += spent_s
        turns.committed(alone, now_s, now_s := now_s + spent_s)
        assert abs(had[True] - had[False]) <= max(suspects_s, others_s)


def test_on_a_clock_that_stands_they_take_turns() -> None:
    """Neither side ever waits for time to pass."""
    turns = SuspectTurns()
    seen = []
    for _ in range(4):
        seen.append(turns.suspects_next)
        turns.committed(turns.suspects_next, 0.0, 0.0)
    assert seen == [True, False, True, False]


def test_who_had_nothing_to_do_is_owed_nothing() -> None:
    """Suspects whose time comes after an hour of others go one piece at a time, and back."""
    turns = SuspectTurns()
    turns.committed(False, 0.0, 3_600.0)
    turns.no_suspect_now()
    assert not turns.suspects_next
    turns.committed(False, 3_600.0, 3_601.0)
    assert turns.suspects_next
    turns.committed(True, 3_601.0, 3_602.0)
    assert not turns.suspects_next
    turns.nothing_else()
    assert turns.suspects_next


def test_after_an_abort_the_other_side_is_first() -> None:
    """Whatever is wrong may be of the one that was aborted."""
    turns = SuspectTurns()
    for alone in (True, False):
        turns.aborted(alone)
        assert turns.suspects_next is not alone

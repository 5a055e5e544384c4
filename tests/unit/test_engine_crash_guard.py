"""The crash guard: which record is quarantined, and which never is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.runtime.crash_guard import DEATHS_MAX, STEADY_COMMITS, STEADY_S, CrashGuard

POISON = ("orders", 0, 7)
OTHER = ("orders", 1, 3)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot" / "crash-guard.json"


def started(path: Path, clock: Clock | None = None) -> CrashGuard:
    """A process that starts on what the one before it left."""
    guard = CrashGuard(path, now_s=clock or Clock())
    guard.start()
    guard.assigned([POISON[:2], OTHER[:2]])
    return guard


def careful_guard(path: Path, clock: Clock | None = None) -> CrashGuard:
    for _ in range(DEATHS_MAX):
        assert not started(path).careful
    guard = started(path, clock)
    assert guard.careful
    return guard


def test_a_record_that_killed_three_times_is_quarantined_and_no_other(path: Path) -> None:
    """After three deaths at one offset that record is refused; its neighbours never are."""
    guard = careful_guard(path)
    for _ in range(DEATHS_MAX):
        assert guard.handling(*POISON)
        guard = started(path)
    assert not guard.handling(*POISON)
    assert guard.handling(*OTHER)
    assert guard.handling(POISON[0], POISON[1], POISON[2] + 1)


def test_other_partitions_that_go_on_do_not_hide_the_culprit(path: Path) -> None:
    """Commits of another partition between two deaths do not reset the count: which record comes
    first after a restart is chance."""
    deaths = 0
    guard = started(path)
    while deaths < 20:
        for offset in range(5):
            if guard.careful:
                assert guard.handling(OTHER[0], OTHER[1], offset)
            guard.committed({OTHER[:2]: offset + 1})
        if guard.careful and not guard.handling(*POISON):
            break
        deaths += 1
        guard = started(path)
    assert deaths == 2 * DEATHS_MAX, "three deaths to become careful, three to name the culprit"


def test_a_record_in_hand_stays_marked_while_the_one_before_is_committed(path: Path) -> None:
    """The gateway worker handles the next record while the commit of the last is under way."""
    guard = careful_guard(path)
    for _ in range(DEATHS_MAX):
        guard.handling(*POISON)
        guard.committed({OTHER[:2]: 4})
        guard = started(path)
    assert not guard.handling(*POISON)


def test_an_orderly_end_is_no_death(path: Path) -> None:
    """A worker that leaves because the cluster is away, or is asked to stop, blames no record."""
    for _ in range(4 * DEATHS_MAX):
        guard = started(path)
        assert not guard.careful
        guard.excused()
    guard = careful_guard(path)
    for _ in range(4 * DEATHS_MAX):
        assert guard.handling(*POISON)
        guard.excused()
        guard = started(path)
    assert guard.handling(*POISON)


def test_steady_running_ends_the_careful_mode(path: Path) -> None:
    """It takes both: enough commits, and longer than a poisoned record needs to be fetched."""
    clock = Clock()
    guard = careful_guard(path, clock)
    clock.now_s += STEADY_S
    guard.committed({OTHER[:2]: 0})
    assert guard.careful, "one commit, however late, proves nothing"
    guard = started(path, clock)
    for offset in range(STEADY_COMMITS):
        guard.committed({OTHER[:2]: offset})
    assert guard.careful, "and many commits may come before the culprit is fetched"
    clock.now_s += STEADY_S
    guard.committed({OTHER[:2]: STEADY_COMMITS})
    assert not guard.careful
    assert not started(path).careful


def test_a_quarantined_record_is_forgotten_when_its_partition_has_passed_it(path: Path) -> None:
    """A suspect holds the careful mode until its own partition is committed behind it, and a
    suspect of a partition that is another worker's by now does not."""
    clock = Clock()
    guard = careful_guard(path)
    guard.handling(*POISON)
    guard = started(path, clock)
    clock.now_s += STEADY_S
    for offset in range(STEADY_COMMITS):
        guard.committed({OTHER[:2]: offset})
    assert guard.careful
    guard.assigned([OTHER[:2]])
    guard.committed({OTHER[:2]: STEADY_COMMITS})
    assert not guard.careful


def test_a_file_cut_off_by_a_crash_suspects_nobody(path: Path) -> None:
    """A damaged state file costs the memory of it, not the start."""
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"deaths": 9, "susp')
    assert not started(path).careful

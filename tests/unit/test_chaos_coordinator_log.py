"""What the coordinators decided, and whether each partition of a transaction ended like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.chaos.flow.coordinator_log import (
    Decision,
    broken_ends,
    decisions,
    entries,
    under_way,
)
from pipeline.chaos.flow.log_bytes import Compacted, truth_of
from tests.support.kafka_log import (
    COMPLETE_ABORT,
    COMPLETE_COMMIT,
    EMPTY,
    NAME,
    ONGOING,
    PLACE,
    PREPARE_ABORT,
    PREPARE_COMMIT,
    PRODUCER,
    data,
    marker,
    read,
    said,
)


def decision(*, commits: bool, taken_back: int = 0, producer: int = PRODUCER) -> Decision:
    return Decision(NAME, producer, commits, frozenset({PLACE}), taken_back)


@pytest.mark.parametrize(
    ("decided", "parts", "wrong"),
    [
        ([True], [data(0), marker(1, commits=True)], []),
        ([True], [data(0), marker(1, commits=False)], ["aborted against the word"]),
        ([False], [data(0), marker(1, commits=True)], ["committed against the word"]),
        ([True], [data(0)], ["no marker of"]),
        # Written again by a coordinator that did not hear of the first: it ends nothing.
        ([True, False], [data(0), marker(1, commits=True), marker(2, commits=True), data(3),
                         marker(4, commits=False)], []),
        # The same before further ends of the same kind.
        ([True, True], [data(0), marker(1, commits=True), marker(2, commits=True), data(3),
                        marker(4, commits=True)], []),
        # An end that nobody decided.
        ([True], [data(0), marker(1, commits=True), data(2), marker(3, commits=True)],
         ["committed against the word"]),
        ([], [data(0), marker(1, commits=True)], ["committed against the word of anybody"]),
        # A late copy of an end: the second transaction is ended against its decision.
        ([False, True], [data(0), marker(1, commits=False), data(2), marker(3, commits=False),
                         data(4), marker(5, commits=True)], ["aborted against the word"]),
    ],
    ids=[
        "as decided", "torn", "made visible", "hangs", "a marker twice", "twice before more",
        "an end too many", "an end of nobody's", "a late end",
    ],
)  # fmt: skip
def test_an_end_against_the_coordinators_word_is_found(
    tmp_path: Path, decided: list[bool], parts: list[bytes], wrong: list[str]
) -> None:
    """In each partition a transaction ends as was decided for all of them."""
    truth = truth_of(read(tmp_path, *parts))
    found = broken_ends([decision(commits=each) for each in decided], {PLACE: truth})
    assert len(found) == len(wrong)
    assert all(part in text for part, text in zip(wrong, found, strict=True))


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    ("states", "decided"),
    [
        ([EMPTY, ONGOING, PREPARE_COMMIT, COMPLETE_COMMIT, ONGOING, PREPARE_ABORT, COMPLETE_ABORT],
         [decision(commits=True), decision(commits=False)]),
        # Its markers have to come.
        ([ONGOING, PREPARE_COMMIT], [decision(commits=True)]),
        # Written, given up because too few replicas had it, and decided once more.
        ([ONGOING, PREPARE_COMMIT, PREPARE_COMMIT, COMPLETE_COMMIT],
         [decision(commits=True, taken_back=1)]),
        ([ONGOING, PREPARE_COMMIT, PREPARE_ABORT, COMPLETE_ABORT],
         [decision(commits=False, taken_back=1)]),
        ([ONGOING, PREPARE_COMMIT, PREPARE_COMMIT], [decision(commits=True, taken_back=1)]),
        # The same, and the transaction went on in between.
        ([ONGOING, PREPARE_COMMIT, ONGOING, PREPARE_ABORT, COMPLETE_ABORT],
         [decision(commits=False)]),
        ([ONGOING, PREPARE_COMMIT, ONGOING], []),
        # A new coordinator sends the markers of the one before again, and so completes it twice.
        ([ONGOING, PREPARE_COMMIT, COMPLETE_COMMIT, COMPLETE_COMMIT], [decision(commits=True)]),
        ([ONGOING, PREPARE_COMMIT, COMPLETE_COMMIT, EMPTY, ONGOING, PREPARE_COMMIT,
          COMPLETE_COMMIT], [decision(commits=True)] * 2),
    ],
    ids=[
        "one after the other", "markers to come", "the same twice", "a commit, then an abort",
        "twice without an end", "it goes on", "it goes on without an end", "completed twice",
        "a new producer",
    ],
)  # fmt: skip
def test_the_last_word_before_the_end_counts(
    tmp_path: Path, version: int, states: list[int], decided: list[Decision]
) -> None:
    """A decision that the coordinator took back stays in its log, and no marker follows it."""
    found = read(tmp_path, *(said(at, state, version) for at, state in enumerate(states)))
    assert list(decisions(entries(found))) == decided


@pytest.mark.parametrize("commits", [True, False])
def test_one_marker_is_enough_for_a_decision_that_was_written_twice(
    tmp_path: Path, *, commits: bool
) -> None:
    """And it has to be as the last one says: a commit that was taken back tears when obeyed."""
    log = read(
        tmp_path,
        *map(said, range(4), [ONGOING, PREPARE_COMMIT, PREPARE_ABORT, COMPLETE_ABORT]),
    )
    partition = truth_of(read(tmp_path, data(0), marker(1, commits=commits)))
    found = broken_ends(decisions(entries(log)), {PLACE: partition})
    assert bool(found) is commits


def test_a_producer_id_that_was_used_up_gives_way_to_a_new_one(tmp_path: Path) -> None:
    """Each of them has its own transactions and its own markers, under one transactional id."""
    states = [ONGOING, PREPARE_COMMIT, COMPLETE_COMMIT]
    log = read(
        tmp_path,
        *(said(at, state) for at, state in enumerate(states)),
        *(said(at + 3, state, producer=8) for at, state in enumerate(states)),
    )
    decided = list(decisions(entries(log)))
    assert decided == [decision(commits=True), decision(commits=True, producer=8)]
    parts = [data(0), marker(1, commits=True), data(2, producer=8)]
    ended = marker(3, commits=True, producer=8)
    assert broken_ends(decided, {PLACE: truth_of(read(tmp_path, *parts, ended))}) == []
    assert len(broken_ends(decided, {PLACE: truth_of(read(tmp_path, *parts))})) == 1


@pytest.mark.parametrize(
    ("states", "waits"),
    [
        ([EMPTY], False),
        ([ONGOING], True),
        ([ONGOING, PREPARE_COMMIT], True),
        ([ONGOING, PREPARE_ABORT], True),
        ([ONGOING, PREPARE_ABORT, COMPLETE_ABORT], False),
    ],
)
def test_markers_to_come_are_waited_for(tmp_path: Path, states: list[int], *, waits: bool) -> None:
    """A client is told of its commit before the partitions are."""
    log = read(tmp_path, *(said(at, state) for at, state in enumerate(states)))
    assert under_way(entries(log)) == ([NAME] if waits else [])


def test_decisions_that_were_compacted_away_are_not_guessed(tmp_path: Path) -> None:
    """Their markers would seem to be nobody's."""
    with pytest.raises(Compacted):
        list(entries(read(tmp_path, said(0, ONGOING), said(2, COMPLETE_COMMIT))))

"""What a hanging transaction is, and how it was decided, by what the coordinators wrote down."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from pipeline.hanging.transaction_log import (
    OpenTransaction,
    State,
    Step,
    decision_of,
    is_claimed,
    read_step,
)
from pipeline.kafka_wire import Malformed

HERE = ("settlements", 1)
ELSEWHERE = ("orders", 0)
OPEN = OpenTransaction(
    *HERE, producer_id=7, epoch=3, coordinator_epoch=1, first_offset=40, last_ms=5_000
)


def step(state: State, *partitions: tuple[str, int], epoch: int = 3, at_ms: int = 5_001) -> Step:
    return Step("lane", 7, epoch, state, frozenset(partitions), at_ms)


COMMITTED = [
    step(State.ONGOING, HERE, ELSEWHERE, at_ms=3_000),
    step(State.PREPARE_COMMIT, HERE, ELSEWHERE),
    step(State.COMPLETE_COMMIT),
]


def test_what_was_decided_is_what_the_markers_should_have_said() -> None:
    """The lost marker of a commit is a commit: an abort would tear the transaction."""
    assert not is_claimed(OPEN, COMMITTED)
    assert decision_of(OPEN, COMMITTED) is True
    timed_out = [
        step(State.ONGOING, HERE, at_ms=3_000),
        step(State.PREPARE_ABORT, HERE, epoch=4),
        step(State.COMPLETE_ABORT, epoch=4),
        # Its producer has come back since.
        step(State.EMPTY, epoch=5, at_ms=6_000),
        step(State.ONGOING, ELSEWHERE, epoch=5, at_ms=6_001),
    ]
    assert not is_claimed(OPEN, timed_out)
    assert decision_of(OPEN, timed_out) is False


@pytest.mark.parametrize(
    "state", [State.ONGOING, State.PREPARE_COMMIT, State.PREPARE_ABORT, State.PREPARE_EPOCH_FENCE]
)
def test_what_its_coordinator_still_has_to_end_does_not_hang(state: State) -> None:
    """Only where the partition is in it: a later one that goes elsewhere does not end this one."""
    assert is_claimed(OPEN, [step(state, HERE)])
    assert not is_claimed(OPEN, [step(state, ELSEWHERE)])


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [step(State.ONGOING, HERE, at_ms=3_000), step(State.DEAD)],
        # The older steps are compacted away, and the newest say nothing of this partition.
        [step(State.PREPARE_COMMIT, ELSEWHERE), step(State.COMPLETE_COMMIT)],
        # Of another life of the producer.
        [step(State.PREPARE_COMMIT, HERE, epoch=9), step(State.COMPLETE_COMMIT, epoch=9)],
        [step(State.PREPARE_COMMIT, HERE, epoch=2), step(State.COMPLETE_COMMIT, epoch=2)],
        # Decided before the record came: a late one that belongs to nothing.
        [step(State.PREPARE_COMMIT, HERE, at_ms=3_000), step(State.COMPLETE_COMMIT, at_ms=3_000)],
    ],
)
def test_nothing_is_guessed(steps: Sequence[Step]) -> None:
    """Where no decision is written down that fits, nobody can tell."""
    assert not is_claimed(OPEN, steps)
    assert decision_of(OPEN, steps) is None


def test_the_last_decision_of_the_partition_counts() -> None:
    """Each transaction before it ended with a marker of its own, or with its successor's."""
    aborted = [
        step(State.PREPARE_ABORT, HERE, epoch=2, at_ms=50),
        step(State.COMPLETE_ABORT, epoch=2, at_ms=51),
    ]
    assert decision_of(OPEN, [*aborted, *COMMITTED]) is True


def record(version: int, state: int, *, flexible: bool) -> tuple[bytes, bytes]:
    key = struct.pack(">hh", 0, 4) + b"lane"
    if flexible:
        places = b"\x02" + b"\x0c" + b"settlements" + b"\x02" + struct.pack(">i", 1) + b"\0"
    else:
        places = struct.pack(">ih", 1, 11) + b"settlements" + struct.pack(">ii", 1, 1)
    value = struct.pack(">hqhib", version, 7, 3, 10_000, state) + places
    return key, value + struct.pack(">qq", 5_001, 99) + (b"\0" if flexible else b"")


@pytest.mark.parametrize("version", [0, 1])
def test_both_forms_of_the_log_are_read(version: int) -> None:
    """The flexible one is written once the feature transaction.version is 1 or more."""
    key, value = record(version, State.PREPARE_COMMIT, flexible=version == 1)
    assert read_step(key, value) == step(State.PREPARE_COMMIT, HERE)
    # An id that was forgotten, and what a later version may write.
    assert read_step(key, None) is None
    assert read_step(struct.pack(">hh", 1, 4) + b"lane", value) is None


def test_a_state_that_is_not_known_is_no_reason_to_write_a_marker() -> None:
    """It is refused by name, not passed over: it may claim the transaction."""
    with pytest.raises(Malformed, match="state 8"):
        read_step(*record(1, 8, flexible=True))
    key, value = record(1, State.ONGOING, flexible=True)
    with pytest.raises(Malformed, match="ends before"):
        read_step(key, value[:20])

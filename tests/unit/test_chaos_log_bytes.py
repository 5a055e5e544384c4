"""What a partition's bytes say of its transactions."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.chaos.flow.log_bytes import ABORTED, COMMITTED, OPEN, Compacted, truth_of
from tests.support.kafka_log import batch_bytes, data, marker, read, record


def test_markers_decide_what_is_committed(tmp_path: Path) -> None:
    """Records of one producer up to its marker share its fate; those without one are open."""
    found = read(
        tmp_path,
        data(0, 2), data(2, producer=8), marker(3, commits=True),
        marker(4, commits=False, producer=8), data(5, plain=True), data(6),
    )  # fmt: skip
    truth = truth_of(found)
    assert list(truth.fate) == [COMMITTED, COMMITTED, ABORTED, 0, 0, COMMITTED, OPEN]


def test_a_batch_that_is_not_whole_is_not_there(tmp_path: Path) -> None:
    """A crash may leave the beginning of one at the end of a segment."""
    assert len(read(tmp_path, data(0), data(1)[:-3])) == 1


@pytest.mark.parametrize(
    "parts",
    [
        [data(0), data(2)],
        [data(3)],
        [data(0), batch_bytes(1, 1, -1, 0, record(b"k", b"v"), offsets=2)],
    ],
    ids=["a batch is gone", "the beginning is gone", "a record of a batch is gone"],
)
def test_a_log_that_was_compacted_is_not_judged(tmp_path: Path, parts: list[bytes]) -> None:
    """What is gone may have been committed, or a marker."""
    with pytest.raises(Compacted):
        truth_of(read(tmp_path, *parts))

"""Up to where a table is restored, when the answer to that question is false.

Seen with a broker killed: an end below what lay in the log, and the rows of two partitions were
taken for none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.runtime import restore
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.restore import Restorer
from pipeline.runtime.surroundings import REAL
from pipeline.runtime.table import Table
from pipeline.runtime.table_store import MemoryTableStore

END = 7
NOW_MS = 1_800_000_000_000
Answers = list[tuple[int, int]]


class Asked:
    """Both clients: each answers in turn, and the last answer for ever. A clock that sleeping
    moves."""

    def __init__(self, admin: Answers, consumer: Answers) -> None:
        self._admin, self._consumer = iter(_for_ever(admin)), iter(_for_ever(consumer))
        self.assigned: list[tuple[int, int]] = []
        self.now_s = 0.0

    def by_admin(self, *_: Any) -> dict[int, tuple[int, int]]:
        return {0: next(self._admin)}

    def get_watermark_offsets(self, _place: TopicPartition, timeout: float) -> tuple[int, int]:
        return next(self._consumer)

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned = [(tp.partition, tp.offset) for tp in partitions]

    def close(self) -> None: ...

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def _for_ever(answers: Answers) -> Iterator[tuple[int, int]]:
    yield from answers
    while True:
        yield answers[-1]


def begun(
    monkeypatch: pytest.MonkeyPatch, asked: Asked, *, checkpoint: int | None
) -> tuple[Restorer, Table[str]]:
    monkeypatch.setattr(restore, "read_uncommitted_ends", asked.by_admin)
    table: Table[str] = Table(
        MemoryTableStore(), decode=bytes.decode, cluster_id="cluster", topic_id="topic"
    )
    if checkpoint is not None:
        table.restore(0, [(b"kept", b"row")], checkpoint, NOW_MS)
    restorer = Restorer(
        table,
        stage="payments",
        topic="table",
        bootstrap_servers="nowhere",
        admin=cast("AdminClient", None),
        cluster_id="cluster",
        topic_id="topic",
        delete_retention_ms=60_000,
        now_ms=lambda: NOW_MS,
        surroundings=replace(
            REAL,
            consumer=cast("Any", lambda _config: asked),
            monotonic_s=lambda: asked.now_s,
            sleep=asked.sleep,
        ),
    )
    restorer.begin([0])
    return restorer, table


@pytest.mark.parametrize("false", [(0, 0), (-1, -1), (END, END), (0, END - 1)], ids=str)
@pytest.mark.parametrize("is_admin", [True, False])
def test_the_wider_of_two_answers_counts(
    monkeypatch: pytest.MonkeyPatch, false: tuple[int, int], is_admin: bool
) -> None:
    """Without a cache a false one would leave out rows whose inputs count as handled."""
    true = [(0, END)]
    asked = Asked([false], true) if is_admin else Asked(true, [false])
    restorer, _ = begun(monkeypatch, asked, checkpoint=None)
    assert asked.assigned == [(0, 0)]
    assert [plan.end for plan in restorer.plans] == [END]


def test_a_cache_is_kept_when_both_say_at_first_that_the_log_ends_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Asked([(0, 0), (0, 3), (0, END)], [(0, 0), (0, 3), (0, 3)])
    restorer, table = begun(monkeypatch, asked, checkpoint=END)
    assert table.get(0, b"kept") == "row"
    assert asked.assigned == []
    assert restorer.step()


def test_a_log_that_has_really_become_shorter_is_read_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that lost what was synced: told after half a minute of asking, in the log too."""
    asked = Asked([(0, 3)], [(0, 3)])
    _, table = begun(monkeypatch, asked, checkpoint=END)
    assert asked.now_s >= restore.LIST_OFFSETS_TIMEOUT_S
    assert table.get(0, b"kept") is None
    assert asked.assigned == [(0, 0)]
    assert "payments reads table[0] anew, 0 to 3: checkpoint beyond the end" in caplog.text


def test_a_worker_leaves_when_there_is_no_answer_that_can_be_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(LaneFatal, match=r"table\[0\] begins and ends is not to be had"):
        begun(monkeypatch, Asked([(-1, -1)], [(-1, -1)]), checkpoint=END)

"""A restoration that meets a transaction which is still open below the end of the table."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.runtime import restore
from pipeline.runtime.restore import WAITS_FOR_OPEN, Restorer
from pipeline.runtime.surroundings import REAL
from pipeline.runtime.table import Table
from pipeline.runtime.table_store import MemoryTableStore

END = 2


class FakeMessage:
    """A record of the table, or the word that the last stable offset is reached."""

    def __init__(self, offset: int, key: bytes | None = None, value: bytes = b"") -> None:
        self._offset, self._key, self._value = offset, key, value

    def error(self) -> KafkaError | None:
        return KafkaError(KafkaError._PARTITION_EOF) if self._key is None else None

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes:
        return self._value


class FakeConsumer:
    def __init__(self, *answers: list[FakeMessage]) -> None:
        self._answers = list(answers)

    def assign(self, partitions: list[TopicPartition]) -> None:
        assert [(tp.partition, tp.offset) for tp in partitions] == [(0, 0)]

    def consume(self, limit: int, timeout_s: float) -> list[FakeMessage]:
        return self._answers.pop(0)

    def get_watermark_offsets(self, _place: TopicPartition, timeout: float) -> tuple[int, int]:
        return 0, END

    def close(self) -> None: ...


def test_the_last_stable_offset_is_not_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is written behind it may count as handled already: its markers land when they land. The
    log says where it waits, once."""
    caplog.set_level(logging.INFO)
    consumer = FakeConsumer(
        [FakeMessage(0, b"first", b"1"), FakeMessage(1)],
        [FakeMessage(1)],
        [FakeMessage(1, b"last", b"2"), FakeMessage(END)],
    )
    monkeypatch.setattr(restore, "read_uncommitted_ends", lambda *_: {0: (0, END)})
    table: Table[str] = Table(
        MemoryTableStore(), decode=bytes.decode, cluster_id="cluster", topic_id="topic"
    )
    restorer = Restorer(
        table,
        stage="payments",
        topic="table",
        bootstrap_servers="nowhere",
        admin=cast("AdminClient", None),
        cluster_id="cluster",
        topic_id="topic",
        delete_retention_ms=60_000,
        surroundings=replace(REAL, consumer=cast("Any", lambda _config: consumer)),
    )
    restorer.begin([0])
    assert not restorer.step()
    assert not restorer.step()
    assert table.get(0, b"last") is None
    assert restorer.step()
    assert table.get(0, b"last") == "2"
    assert caplog.text.count(f"payments {WAITS_FOR_OPEN} table[0]@1") == 1

"""A database or registry that is away: settlements wait, and none of them is a dead letter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from sqlalchemy import Engine

from consumers.ledger_sink import LedgerSink
from pipeline.domain.keys import record_key
from pipeline.domain.records import to_record
from pipeline.ledger.database import open_ledger
from pipeline.ledger.errors import LedgerUnavailable
from pipeline.ledger.journal import Journal
from pipeline.ledger.queries import entry_count
from schemas.codec import default_codec
from schemas.errors import RegistryUnavailable
from tests.support.engine_fakes import FakeMessage
from tests.support.ledger import SOURCE, settlement
from topics.catalogue import build_catalogue

CATALOGUE, CODEC = build_catalogue(), default_codec()
TOPIC = CATALOGUE.name("settlements")
FAILURES = 3


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield engine
    engine.dispose()


class Waiting:
    """A consumer of one partition, and the clock of who waits with it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.said: list[str] = []

    def poll(self, timeout_s: float) -> None:
        self.now_s += timeout_s

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(TOPIC, 0)]

    def pause(self, _places: Any) -> None:
        self.said.append("paused")

    def resume(self, _places: Any) -> None:
        self.said.append("resumed")

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        return 0, 1

    def commit(self, **_: Any) -> None: ...


class Away:
    """Fails a few times before it does what it is asked for."""

    def __init__(self, does: Any, error: Exception) -> None:
        self._does, self._error = does, error
        self.left = FAILURES

    def __call__(self, *arguments: Any) -> Any:
        if self.left:
            self.left -= 1
            raise self._error
        return self._does(*arguments)


@pytest.mark.parametrize("away", ["database", "registry"])
def test_a_settlement_waits_until_what_is_away_is_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """As a dead letter its money would be missing in the books, though nothing is wrong with it."""
    sink = LedgerSink(
        bootstrap_servers="none", engine=engine, catalogue=CATALOGUE, codec=CODEC, instance_id="a"
    )
    sink._journal, waiting = Journal(engine, SOURCE), Waiting()
    sink._consumer, sink._monotonic_s = waiting, lambda: waiting.now_s
    sink._journal.begin_partition(0, 0)
    sink._begin(0, 0)
    letters: list[Any] = []
    monkeypatch.setattr(sink, "_send_dead_letters", letters.extend)
    if away == "database":
        post = Away(sink._journal.post, LedgerUnavailable("the server closed the connection"))
        monkeypatch.setattr(sink._journal, "post", post)
    else:
        sink._decode = Away(sink._decode, RegistryUnavailable("no answer"))
    told = settlement(1)
    value = CODEC.encoder("settlement")(to_record(told))
    key = record_key(told.merchant_id, told.order_id)
    sink._book(sink._take([FakeMessage(TOPIC, 0, 0, key, value, told.settled_at_ms)]))
    assert letters == []
    assert waiting.said == ["paused", "resumed"]
    assert sink._journal.stored_offset(0) == 1
    with engine.connect() as connection:
        assert entry_count(connection) == 1

"""A batch that waited over a rebalance is booked under the assignment it was read in, or not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
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
from pipeline.ledger.journal import Journal, Progress
from pipeline.ledger.queries import entry_count
from schemas.codec import default_codec
from tests.support.engine_fakes import FakeMessage
from tests.support.ledger import SOURCE, settlement
from topics.catalogue import build_catalogue

TOPIC = build_catalogue().name("settlements")
# The log holds settlements up to here.
END = 20
READ = 7


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield engine
    engine.dispose()


class AwayOnce:
    """The journal, whose database is away when it is first asked to book."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.stored_offset = journal.stored_offset
        self._is_away = True

    def post(self, *arguments: Any) -> Any:
        if self._is_away:
            self._is_away = False
            raise LedgerUnavailable("the server closed the connection")
        return self._journal.post(*arguments)


class Rebalanced:
    """A consumer that loses its partition while its sink waits, and is given it back."""

    def __init__(self, sink: LedgerSink, meanwhile: Callable[[], object]) -> None:
        self._sink, self._meanwhile = sink, meanwhile
        self.begun: list[int] = []

    def poll(self, _timeout: float) -> None:
        if not self.begun:
            places: Any = [TopicPartition(TOPIC, 0)]
            consumer: Any = self
            self._sink._on_revoke(consumer, places)
            self._meanwhile()
            self._sink._on_assign(consumer, places)

    def assign(self, places: list[TopicPartition]) -> None:
        self.begun += [place.offset for place in places]

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        return 0, END

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(TOPIC, 0)]

    def pause(self, _places: Any) -> None: ...

    def resume(self, _places: Any) -> None: ...

    def commit(self, **_: Any) -> None: ...


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(READ - 3, id="the database was restored from a backup"),
        pytest.param(READ + 5, id="another sink booked on"),
    ],
)
def test_what_was_read_before_a_rebalance_is_read_again_from_the_stored_offset(
    engine: Engine, stored: int
) -> None:
    """Booked all the same, it would move the offset past settlements that a restored database has
    not, which nobody would ever book; or back behind what another sink has booked."""
    sink = LedgerSink(
        bootstrap_servers="none",
        engine=engine,
        catalogue=build_catalogue(),
        codec=default_codec(),
        instance_id="a",
    )
    journal = Journal(engine, SOURCE)
    journal.begin_partition(0, READ)
    consumer = Rebalanced(sink, lambda: journal.post([], {0: Progress(READ, stored)}))
    sink._journal, sink._consumer = AwayOnce(journal), consumer  # type: ignore[assignment]
    sink._stopping = threading.Event().is_set
    sink._begin(0, READ)
    told = settlement(1)
    value = default_codec().encoder("settlement")(to_record(told))
    key = record_key(told.merchant_id, told.order_id)
    sink._book(sink._take([FakeMessage(TOPIC, 0, READ, key, value, told.settled_at_ms)]))
    assert consumer.begun == [stored]
    assert journal.stored_offset(0) == stored
    with engine.connect() as connection:
        assert entry_count(connection) == 0

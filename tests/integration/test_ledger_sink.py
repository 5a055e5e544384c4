"""Settlements from a real broker into the books: each exactly once, whatever is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from consumers.ledger_sink import LedgerSink
from pipeline.domain.ids import payment_id
from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.model import Settlement
from pipeline.domain.records import to_record
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.errors import SourceChanged
from pipeline.ledger.queries import booked_offsets, drifted_balances, entry_count, trial_balance
from pipeline.runtime.failpoints import fired
from schemas.codec import default_codec
from tests.support.ledger import settlement
from tests.support.topics import create_topic, log_ends, read_all
from tests.support.waiting import WAIT_S, wait_until
from topics.catalogue import Catalogue, TopicSettings, build_catalogue

pytestmark = pytest.mark.integration

PARTITIONS = 4
ENCODE = default_codec().encoder("settlement")


class Flow:
    """The topics of one test and a transactional producer of settlements."""

    def __init__(self, kafka: str, prefix: str) -> None:
        self.kafka = kafka
        self.prefix = prefix
        self.catalogue: Catalogue = build_catalogue(
            TopicSettings(prefix=prefix, partitions=PARTITIONS)
        )
        self.topic = self.catalogue.name("settlements")
        for role in ("settlements", "dead-letters", "gateway-notifications"):
            spec = self.catalogue[role]
            create_topic(kafka, spec.name, spec.partitions, config=spec.config)
        self.producer = Producer(
            {
                "bootstrap.servers": kafka,
                "transactional.id": f"{prefix}producer",
                "partitioner": "murmur2_random",
                "linger.ms": 1,
            }
        )
        self.producer.init_transactions(30)

    def transaction(self, records: list[tuple[bytes, bytes]], *, abort: bool = False) -> None:
        self.producer.begin_transaction()
        for key, value in records:
            self.producer.produce(self.topic, key=key, value=value)
        if abort:
            self.producer.flush(30)
            self.producer.abort_transaction(30)
        else:
            self.producer.commit_transaction(30)

    def publish(self, *settlements: Settlement, abort: bool = False) -> None:
        self.transaction([record_of(s) for s in settlements], abort=abort)

    def dead_letters(self) -> list[dict[str, str]]:
        return [
            {name: header(letter, name) for name, _ in _headers(letter)}
            for letter in read_all(self.kafka, self.catalogue.name("dead-letters"))
        ]

    def sink(self, engine: Engine, instance: str = "a", **options: Any) -> LedgerSink:
        return LedgerSink(
            bootstrap_servers=self.kafka,
            engine=engine,
            catalogue=self.catalogue,
            codec=default_codec(),
            instance_id=instance,
            **options,
        )

    @contextmanager
    def running(self, engine: Engine, instance: str = "a", **options: Any) -> Iterator[Counts]:
        """A sink in a thread; what ended it is raised here."""
        counts = Counts()
        stop = threading.Event()
        ended: list[BaseException] = []

        def run() -> None:
            try:
                self.sink(engine, instance, metrics=counts, **options).run(stop)
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield counts
        finally:
            stop.set()
            thread.join(60)
        assert not thread.is_alive()
        if ended:
            raise ended[0]

    def process(
        self, url: str, instance: str, log: Path, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.support.ledger_sink_process",
                 self.kafka, url, self.prefix, str(PARTITIONS), instance],
                stdout=output, stderr=output, env={**os.environ, **(env or {})},
            )  # fmt: skip


class Counts:
    """Metrics kept in memory."""

    def __init__(self) -> None:
        self.booked = 0
        self.skipped = 0
        self.causes: list[str] = []
        self.lags: dict[int, int] = {}
        self.failures = 0

    def posted(self, settlements: int) -> None:
        self.booked += settlements

    def duplicates(self, settlements: int) -> None:
        self.skipped += settlements

    def dead_lettered(self, cause: str) -> None:
        self.causes.append(cause)

    def booked_after(self, seconds: float) -> None:
        assert seconds >= 0

    def batch_seconds(self, seconds: float) -> None:
        assert seconds >= 0

    def lag(self, partition: int, records: int) -> None:
        self.lags[partition] = records

    def unavailable(self) -> None:
        self.failures += 1


@pytest.fixture
def flow(kafka: str, topic_prefix: str) -> Flow:
    return Flow(kafka, topic_prefix)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return emptied(request.getfixturevalue("postgres_url"))


@pytest.fixture
def sqlite_engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield engine
    engine.dispose()


def test_every_settlement_is_booked_once_though_a_sink_is_killed(
    flow: Flow, url: str, tmp_path: Path
) -> None:
    """2,000 settlements, a tenth in aborted transactions; one of two sinks dies at random."""
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    kill_at = chance.randrange(100, 1_200)
    engine = open_ledger(url)
    log = tmp_path / "sinks.log"
    sinks = [flow.process(url, name, log) for name in ("a", "b")]
    expected: set[str] = set()
    poison: set[bytes] = set()
    booked_at_kill: int | None = None
    try:
        wait_until(lambda: log.read_text().count(" assigned ") >= 2, WAIT_S, "both have partitions")
        for start in range(0, 2_000, 50):
            batch = [settlement(n) for n in range(start, start + 50)]
            records = [record_of(s) for s in batch]
            if start % 500 == 0:
                records.insert(chance.randrange(50), (b"m:poison", b"poison %d" % start))
            aborted = chance.random() < 0.1
            flow.transaction(records, abort=aborted)
            if not aborted:
                expected |= {s.settlement_id for s in batch}
                poison |= {value for key, value in records if key == b"m:poison"}
            if booked_at_kill is None and start >= kill_at:
                wait_until(lambda: booked(engine) >= kill_at // 2, WAIT_S, f"some (seed {seed})")
                booked_at_kill = booked(engine)
                sinks[0].send_signal(signal.SIGKILL)
                assert sinks[0].wait(30) == -signal.SIGKILL
                # Its successor: the same member of the group, so it takes over at once.
                sinks.append(flow.process(url, "a", log))
        assert booked_at_kill is not None
        assert 0 < booked_at_kill < len(expected)
        wait_until(lambda: booked(engine) >= len(expected), WAIT_S, f"all booked (seed {seed})")
        wait_until(lambda: behind(flow, engine) == 0, WAIT_S, f"read to the ends (seed {seed})")
        for sink in sinks[1:]:
            sink.send_signal(signal.SIGTERM)
        assert [sink.wait(60) for sink in sinks[1:]] == [0] * (len(sinks) - 1), log.read_text()
    finally:
        for sink in sinks:
            if sink.poll() is None:
                sink.kill()
                sink.wait(30)
    check_books(engine, expected)
    letters = read_all(flow.kafka, flow.catalogue.name("dead-letters"))
    # At least once: a crash between the letter and the offset leaves it twice.
    assert {letter.value() for letter in letters} == poison
    assert all(header(letter, "dlq.cause") == "not_wire_format" for letter in letters)
    engine.dispose()


@pytest.mark.parametrize(
    "point",
    [
        "ledger.batch_taken",
        "ledger.offsets_set",
        "ledger.entries_checked",
        "ledger.entries_inserted",
        "ledger.committed",
    ],
)
def test_killed_between_any_two_steps_it_goes_on(flow: Flow, tmp_path: Path, point: str) -> None:
    """At each step the process dies twice; its successor books what is missing and no more."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    engine = open_ledger(url)
    batch = [settlement(n) for n in range(200)]
    for start in range(0, 200, 25):
        flow.publish(*batch[start : start + 25])
    kills = tmp_path / "kills"
    kills.mkdir()
    env = {"PAYSTREAM_FAILPOINTS": f"{point}=2@3", "PAYSTREAM_FAILPOINTS_DIR": str(kills)}
    log = tmp_path / "sink.log"
    for _ in range(2):
        sink = flow.process(url, "a", log, env)
        assert sink.wait(60) == -signal.SIGKILL, log.read_text()
    assert fired(kills) == {point: 2}
    sink = flow.process(url, "a", log, env)
    try:
        wait_until(lambda: booked(engine) >= 200, WAIT_S, "all are booked")
    finally:
        sink.terminate()
        assert sink.wait(60) == 0, log.read_text()
    check_books(engine, {s.settlement_id for s in batch})
    engine.dispose()


def test_what_cannot_be_booked_is_dead_lettered_and_the_rest_goes_on(
    flow: Flow, sqlite_engine: Engine
) -> None:
    """Bad bytes, keys, content and contradictions each leave by name; a duplicate is skipped."""
    good = settlement(1)
    flow.publish(good)
    with flow.running(sqlite_engine) as counts:
        wait_until(lambda: counts.booked == 1, WAIT_S, "the first is booked")
        key, value = record_of(good)
        flow.transaction(
            [
                (key, b"{}"),
                (key, value[:20]),
                (key, value + b"!"),
                (b"m9:o9", value),
                record_of(settlement(2, kind="clearing")),
                record_of(settlement(3, gateway_reference="4111111111111111\x00")),
                record_of(settlement(1, amount_minor=1)),
                (key, value),
                record_of(settlement(4)),
            ]
        )
        wait_until(lambda: counts.booked == 2 and len(counts.causes) == 7, WAIT_S, "all handled")
        # Idle, the offsets move behind the control records too, so that retention takes nothing
        # that looks unread.
        wait_until(lambda: behind(flow, sqlite_engine) == 0, WAIT_S, "ends stored")
    causes = [
        "key_mismatch", "not_wire_format", "settlement_conflict",
        "settlement_gateway_reference_must_be_printable", "settlement_kind_must_be_known",
        "trailing_bytes", "truncated",
    ]  # fmt: skip
    assert sorted(counts.causes) == causes
    assert counts.skipped == 1
    letters = flow.dead_letters()
    assert sorted(letter["dlq.cause"] for letter in letters) == causes
    assert {letter["dlq.stage"] for letter in letters} == {"ledger"}
    assert {letter["dlq.topic"] for letter in letters} == {flow.topic}
    # And each is told to the payment of its key, in that payment's lane.
    decode = default_codec().decoder("gateway-notification")
    notices = read_all(flow.kafka, flow.catalogue.name("gateway-notifications"))
    told = {decode(m.value() or b"")["notification_id"]: m for m in notices}
    places = {f"{flow.topic}[{h['dlq.partition']}]@{h['dlq.offset']}" for h in letters}
    assert set(told) == places
    for message in told.values():
        notice = decode(message.value() or b"")
        key = record_key(notice["merchant_id"], notice["order_id"])
        assert (message.key(), message.partition()) == (key, partition_of(key, PARTITIONS))
        assert (notice["type"], notice["payment_id"]) == (
            "dead_letter", payment_id(notice["merchant_id"], notice["order_id"])
        )  # fmt: skip
    values = b"".join(
        m.value() or b"" for m in read_all(flow.kafka, flow.catalogue.name("dead-letters"))
    )
    assert b"4111111111111111" not in values
    assert b"411111******1111" in values
    check_books(sqlite_engine, {good.settlement_id, settlement(4).settlement_id})


def test_reading_starts_where_the_database_says(
    flow: Flow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The group's offsets are not read: a new, empty ledger gets everything once more, from the
    first look on and not after the compare-and-set has refused what was read elsewhere."""
    flow.publish(*(settlement(n) for n in range(20)))
    for name in ("first", "second"):
        engine = open_ledger(f"sqlite:///{tmp_path / name}.db")
        with flow.running(engine) as counts:
            wait_until(lambda: counts.booked == 20, WAIT_S, "all are booked")
        engine.dispose()
    assert "letting it go" not in caplog.text


def test_a_database_that_is_away_pauses_the_flow(
    flow: Flow, sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is dead-lettered and nothing lost; when it is back, everything is booked."""
    from pipeline.ledger import journal

    away = threading.Event()
    post = journal.Journal._post_once

    def failing(self: Any, *arguments: Any) -> Any:
        if away.is_set():
            with self._available():
                raise OperationalError("UPDATE", {}, self._driver.OperationalError("gone"))
        return post(self, *arguments)

    monkeypatch.setattr(journal.Journal, "_post_once", failing)
    with flow.running(sqlite_engine) as counts:
        flow.publish(settlement(0))
        wait_until(lambda: counts.booked == 1, WAIT_S, "the first is booked")
        away.set()
        flow.publish(*(settlement(n) for n in range(1, 50)))
        wait_until(lambda: counts.failures >= 3, WAIT_S, "it was tried again")
        assert booked(sqlite_engine) == 1
        away.clear()
        wait_until(lambda: counts.booked == 50, WAIT_S, "all are booked")
    assert flow.dead_letters() == []
    check_books(sqlite_engine, {settlement(n).settlement_id for n in range(50)})


def test_a_partition_moved_by_another_writer_is_let_go_and_taken_back(
    flow: Flow, sqlite_engine: Engine
) -> None:
    """A zombie's batch is rolled back; whoever owns the partition goes on from the database."""
    with flow.running(sqlite_engine) as counts:
        flow.publish(*(settlement(n) for n in range(40)))
        wait_until(lambda: counts.booked == 40, WAIT_S, "all are booked")
        # Another writer has booked one partition less far than this sink believes.
        with sqlite_engine.begin() as connection:
            connection.execute(
                text("UPDATE consumer_offsets SET next_offset = 1 WHERE partition = 0")
            )
        flow.publish(*(settlement(n) for n in range(40, 80)))
        wait_until(lambda: counts.booked == 80, WAIT_S, "all are booked")
    assert counts.skipped > 0
    check_books(sqlite_engine, {settlement(n).settlement_id for n in range(80)})


@pytest.mark.parametrize("paused_for", ["a database that is away", "another writer"])
def test_partitions_that_were_paused_are_read_on_after_a_rebalance(
    flow: Flow,
    sqlite_engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    paused_for: str,
) -> None:
    """The client remembers a pause over a rebalance that brings the partition back: nobody would
    ever book it again."""
    from consumers import ledger_sink
    from pipeline.ledger import journal

    away = threading.Event()
    post = journal.Journal._post_once

    def failing(self: Any, *arguments: Any) -> Any:
        if away.is_set():
            with self._available():
                raise OperationalError("UPDATE", {}, self._driver.OperationalError("gone"))
        return post(self, *arguments)

    monkeypatch.setattr(journal.Journal, "_post_once", failing)
    monkeypatch.setattr(ledger_sink, "LET_GO_S", 3_600.0)
    caplog.set_level("INFO")
    with flow.running(sqlite_engine) as first:
        flow.publish(*(settlement(n) for n in range(40)))
        wait_until(lambda: first.booked == 40, WAIT_S, "the first are booked")
        if paused_for == "another writer":
            with sqlite_engine.begin() as connection:
                connection.execute(text("UPDATE consumer_offsets SET next_offset = 1"))
        else:
            away.set()
        flow.publish(*(settlement(n) for n in range(40, 80)))
        said = "next try in" if away.is_set() else "letting it go"
        wait_until(lambda: said in caplog.text, WAIT_S, said)
        with flow.running(sqlite_engine, "b"):
            wait_until(lambda: "gave back" in caplog.text, WAIT_S, "another sink joins")
            away.clear()
            wait_until(lambda: booked(sqlite_engine) == 80, WAIT_S, "both book on")
            flow.publish(*(settlement(n) for n in range(80, 120)))
            wait_until(lambda: booked(sqlite_engine) == 120, WAIT_S, "both book what comes")
    check_books(sqlite_engine, {settlement(n).settlement_id for n in range(120)})


def test_settlements_deleted_before_they_were_booked_are_named(
    flow: Flow, sqlite_engine: Engine, tmp_path: Path
) -> None:
    """Neither a new ledger nor one that was away too long skips what is not in the log."""
    flow.publish(*(settlement(n) for n in range(40)))
    with flow.running(sqlite_engine) as counts:
        wait_until(lambda: counts.booked == 40, WAIT_S, "all are booked")
    flow.publish(*(settlement(n) for n in range(40, 80)))
    with reading(sqlite_engine) as connection:
        stored = {b.partition: b.next_offset for b in booked_offsets(connection)}
    # The marker of the first transaction and one settlement of the second.
    deleted = TopicPartition(flow.topic, 0, stored[0] + 2)
    admin = AdminClient({"bootstrap.servers": flow.kafka})
    admin.delete_records([deleted])[deleted].result(30)
    with pytest.raises(UserError, match=f"booked up to {stored[0]}: settlements were deleted"):
        flow.sink(sqlite_engine).run(deadline())
    assert booked(sqlite_engine) == 40
    empty = open_ledger(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(UserError, match="nothing is booked of it: settlements were deleted"):
        flow.sink(empty).run(deadline())
    assert booked(empty) == 0
    empty.dispose()


def test_another_topic_of_the_same_name_is_refused(flow: Flow, sqlite_engine: Engine) -> None:
    """A recreated topic has other records at the same offsets: the ledger does not start."""
    flow.publish(settlement(1))
    with flow.running(sqlite_engine) as counts:
        wait_until(lambda: counts.booked == 1, WAIT_S, "it is booked")
    with sqlite_engine.begin() as connection:
        connection.execute(text("UPDATE consumer_offsets SET topic_id = 'an earlier one'"))
    with pytest.raises(SourceChanged, match="topic id an earlier one"):
        flow.sink(sqlite_engine).run(deadline())


def test_a_missing_topic_is_said_so(kafka: str, topic_prefix: str, sqlite_engine: Engine) -> None:
    """One sentence that says which topic and what to do."""
    sink = LedgerSink(
        bootstrap_servers=kafka,
        engine=sqlite_engine,
        catalogue=build_catalogue(TopicSettings(prefix=topic_prefix)),
        codec=default_codec(),
        instance_id="a",
    )
    with pytest.raises(UserError, match="is missing on the cluster"):
        sink.run(deadline())


def deadline() -> Callable[[], bool]:
    """A stop that comes by itself, for sinks that are expected to end on their own."""
    end_s = time.monotonic() + 60
    return lambda: time.monotonic() > end_s


def record_of(one: Settlement) -> tuple[bytes, bytes]:
    return record_key(one.merchant_id, one.order_id), ENCODE(to_record(one))


def header(letter: Message, name: str) -> str:
    return dict(_headers(letter))[name].decode()


def _headers(letter: Message) -> list[tuple[str, bytes]]:
    found: Any = letter.headers()
    return list(found or ())


def booked(engine: Engine) -> int:
    with reading(engine) as connection:
        return entry_count(connection)


def behind(flow: Flow, engine: Engine) -> int:
    """Offsets between what is stored and the read_committed ends, control records included."""
    ends = log_ends(flow.kafka, flow.topic)
    with reading(engine) as connection:
        stored = {b.partition: b.next_offset for b in booked_offsets(connection)}
    return sum(end - stored.get(p, 0) for p, end in ends.items())


def check_books(engine: Engine, settlement_ids: set[str]) -> None:
    """These settlements, each once, balanced, and balances that are the sum of the postings."""
    with reading(engine) as connection:
        rows = connection.execute(text("SELECT settlement_id FROM journal_entries")).scalars().all()
        assert len(rows) == len(set(rows))
        assert set(rows) == settlement_ids
        assert all(line.difference_minor == 0 for line in trial_balance(connection))
        assert drifted_balances(connection) == []


def emptied(postgres_url: str) -> str:
    admin = create_engine(postgres_url)
    with admin.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    admin.dispose()
    return postgres_url

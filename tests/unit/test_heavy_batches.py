"""How a worker goes around batches that it has no memory for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_END

from pipeline.batches.one_answer import asks_once, one_answer
from pipeline.batches.record_batch import fetch_batches, read_batch
from pipeline.batches.unfolded import HEAVY_BYTES_MIN
from pipeline.batches.unreadable import is_damaged
from pipeline.broker_connection import Refused
from pipeline.errors import UserError
from pipeline.kafka_wire import Malformed, Reader
from pipeline.runtime import heavy_batches
from pipeline.runtime.heavy_batches import HeavyBatches, _Limits, _Together, bytes_max
from pipeline.runtime.suspects import Suspects
from pipeline.runtime.unreadable_batch import UnreadableBatch
from tests.support.mock_cluster import MockCluster
from tests.support.raw_record import (
    GZIP,
    MIB,
    ZSTD,
    batch_bytes,
    gzip_members,
    gzip_zeros,
    produce_batch,
    produce_raw,
    record_bytes,
    zeros,
)

UNKNOWN_CODEC = 6
# Of a transaction, and its control record.
MARKER = 0x30
# The bound of these tests' workers, and what is over it: every look unfolds that much.
BOUND = 2 * MIB
HEAVY = gzip_zeros(3)
TP = ("orders", 0)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> MockCluster:
    monkeypatch.setattr(heavy_batches, "bytes_max", lambda _deaths: BOUND)
    cluster = MockCluster(brokers=1)
    cluster.create_topic("orders")
    return cluster


def looked(cluster: MockCluster, position: int = 0) -> HeavyBatches:
    heavy = HeavyBatches()
    heavy.open(cluster.bootstrap_servers, 0)
    heavy.look({TP: position})
    return heavy


def put(cluster: MockCluster, records: bytes, codec: int = 0, count: int = 1) -> None:
    produce_raw(cluster.bootstrap_servers, "orders", records, codec, count=count)


def all_of(heavy: HeavyBatches) -> list[Any]:
    """As the worker is given it; what stands for a batch by its offsets."""
    found: list[Any] = []
    deadline = time.monotonic() + 30
    while heavy:
        assert time.monotonic() < deadline, found
        for message in heavy.bring(lambda _tp: True):
            if isinstance(message, UnreadableBatch):
                found.append((message.batch.first_offset, message.offset()))
            else:
                found.append(message.value())
    return found


@pytest.mark.slow
def test_what_is_before_the_last_of_them_is_brought_and_the_client_begins_behind_it(
    cluster: MockCluster,
) -> None:
    """Also what the client cannot read at all, in its place; from any position, as after an aborted
    transaction."""
    for value in (b"one", b"two"):
        put(cluster, record_bytes(b"k", value))
    put(cluster, b"no such codec", UNKNOWN_CODEC, count=3)
    put(cluster, record_bytes(b"k", b"three"))
    put(cluster, HEAVY, GZIP)
    put(cluster, HEAVY, GZIP)
    put(cluster, record_bytes(b"k", b"four"))
    heavy = looked(cluster)
    assert heavy.begin(TP, 0) == 8
    assert heavy.has_ahead(TP)
    assert all_of(heavy) == [b"one", b"two", (2, 4), b"three", (6, 6), (7, 7)]
    assert heavy.take_brought() == [TP]
    assert not heavy.has_ahead(TP)
    # Back to what was committed, in the middle.
    assert heavy.begin(TP, 1) == 8
    assert all_of(heavy) == [b"two", (2, 4), b"three", (6, 6), (7, 7)]
    assert heavy.begin(TP, 7) == 8
    assert all_of(heavy) == [(7, 7)]
    # Behind it is the client's own.
    assert heavy.begin(TP, 8) == 8
    assert not heavy


@pytest.mark.slow
def test_from_before_its_open_calls_it_is_kept_from_the_client_again(cluster: MockCluster) -> None:
    """A gateway worker begins behind them when a partition comes back to it, and where it was
    committed after an abort."""
    put(cluster, record_bytes(b"k", b"one"))
    put(cluster, HEAVY, GZIP)
    heavy = looked(cluster)
    assert heavy.begin(TP, 2) == 2
    assert not heavy
    assert heavy.begin(TP, 0) == 2
    assert all_of(heavy) == [b"one", (1, 1)]


def test_without_one_the_client_is_left_alone(cluster: MockCluster) -> None:
    put(cluster, HEAVY, GZIP)
    put(cluster, record_bytes(b"k", b"one"))
    heavy = looked(cluster, position=1)
    assert not heavy
    assert heavy.begin(TP, 1) == 1


@pytest.mark.slow
def test_one_whose_records_say_that_they_are_elsewhere_is_kept_from_the_client(
    cluster: MockCluster,
) -> None:
    """Which would go on behind the place that the record says; found again where one is met."""
    others = ("others", 0)
    cluster.create_topic("others")
    put(cluster, record_bytes(b"k", b"one"))
    heavy = looked(cluster)
    assert not heavy
    put(cluster, record_bytes(b"k", b"junk", offset=1_000))
    put(cluster, record_bytes(b"k", b"two"))
    produce_raw(cluster.bootstrap_servers, "others", HEAVY, GZIP)
    heavy.look({others: 0})
    heavy.look_again(TP, 1)
    assert heavy.keeps(TP, 1)
    assert not heavy.keeps(TP, 2)
    assert [heavy.begin(TP, 1), heavy.begin(others, 0)] == [2, 1]
    assert all_of(heavy) == [(0, 0), (1, 1)]
    heavy.look({TP: 0})
    (_, stands) = [each for _ in range(2) for each in heavy.bring(lambda _tp: True)]
    assert stands.detail == ("1 records at offsets 1 to 1 give other offsets of themselves (none)")


@pytest.mark.slow
def test_an_answer_of_a_marker_and_nothing_else_holds_up_nothing(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of one that ends a segment of the log; this cluster sends each batch by itself. The client
    asks for no more then."""
    monkeypatch.setattr(heavy_batches, "PAUSE_S_MAX", 0.1)
    marker = batch_bytes(record_bytes(bytes((0, 0, 0, 1)), bytes(6)), MARKER, producer_id=7)
    for _ in range(2):
        produce_batch(cluster.bootstrap_servers, "orders", marker)
    for value in (b"one", b"two"):
        put(cluster, record_bytes(b"k", value))
        produce_batch(cluster.bootstrap_servers, "orders", marker)
    put(cluster, HEAVY, GZIP)
    heavy = looked(cluster)
    assert heavy.begin(TP, 0) == 7
    assert all_of(heavy) == [b"one", b"two", (6, 6)]
    assert heavy.begin(TP, 5) == 7
    assert all_of(heavy) == [(6, 6)]


@pytest.mark.slow
def test_the_client_that_brings_asks_once(cluster: MockCluster) -> None:
    """Of one record too. The next that it asked for would be the batch that ends the worker."""
    for value in (b"one", b"two"):
        put(cluster, record_bytes(b"k", value))
    put(cluster, HEAVY, GZIP)
    client = asks_once(cluster.bootstrap_servers, len(record_bytes(b"k", b"one")) + 61)
    try:
        (message,) = one_answer(client, TP, 0, 0.1)
        assert message.value() == b"one"
        assert client.consume(10, 0.7) == []
    finally:
        client.close()


@pytest.mark.slow
def test_what_the_client_is_silent_about_before_one_is_told_and_can_be_passed(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds up no other partition."""
    monkeypatch.setattr(heavy_batches, "PAUSE_S_MAX", 0.1)
    cluster.create_topic("others")
    # A value with a length of -2.
    put(cluster, bytes((14, 0, 0, 0, 2, 107, 3, 0)))
    put(cluster, HEAVY, GZIP)
    produce_raw(cluster.bootstrap_servers, "others", HEAVY, GZIP)
    heavy = HeavyBatches()
    heavy.open(cluster.bootstrap_servers, 0)
    heavy.look({TP: 0, ("others", 0): 0})
    brought = [each for _ in range(8) for each in heavy.bring(lambda _tp: True)]
    assert [(each.topic(), each.offset()) for each in brought] == [("others", 0)]
    assert heavy.take_brought() == [("others", 0)]
    assert heavy.is_stuck(TP)
    assert not heavy.is_stuck(("others", 0))
    assert heavy.go_on(TP, 1)
    assert not heavy.is_stuck(TP)
    assert all_of(heavy) == [(1, 1)]
    assert not heavy.go_on(TP, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "deaths"), [(ZSTD, 0), (ZSTD, 1), (GZIP, 0)])
def test_batches_that_are_too_much_together_are_brought_one_after_the_other(
    cluster: MockCluster, codec: int, deaths: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is little, and the client would unfold all of an answer before it hands out anything;
    where a worker has died, what its other partitions may bring with that answer counts as well."""
    bound = 5 * MIB
    monkeypatch.setattr(heavy_batches, "bytes_max", lambda _deaths: bound)
    if deaths:
        cluster.create_topic("others")
        produce_raw(cluster.bootstrap_servers, "others", record_bytes(b"k", b"one"))
    folded, count = (zeros(1) if codec == ZSTD else gzip_zeros(1)), 3 if deaths else 6
    for _ in range(count):
        put(cluster, folded, codec)
    put(cluster, record_bytes(b"k", b"last"))
    heavy = HeavyBatches()
    heavy.open(cluster.bootstrap_servers, deaths)
    heavy.look({TP: 0, ("others", 0): 0} if deaths else {TP: 0})
    # The last of them needs next to nothing, but comes with the same answer.
    assert heavy.begin(TP, 0) == count + 1
    sizes = []
    while heavy:
        if brought := heavy.bring(lambda _tp: True):
            sizes.append([len(each.value()) for each in brought])
    assert [size for run in sizes for size in run] == [MIB] * count + [4]
    assert max(sum(run) for run in sizes) <= bound
    if not deaths:
        assert heavy.begin(("others", 0), 0) == 0


def test_what_compresses_as_records_do_is_not_taken_for_too_much() -> None:
    """Of gzip every byte could be a thousand; that is looked at before it is said."""
    folded = gzip_members(record_bytes(b"k", b"%1024d" % 7 * 8))
    batch = read_batch(batch_bytes(folded, GZIP), 0, ())
    together = _Together(HEAVY_BYTES_MIN)
    needed = [together.add(batch) for _ in range(1_000)]
    assert all(fits for _, fits in needed)
    assert len(batch.data) * 1_000 > 64 * 1024
    # Of an answer, and not of all there is.
    together = _Together(40 * 1024)
    assert [together.add(batch)[1] for _ in range(6)] == [True] * 4 + [False] * 2
    together.clear()
    assert together.add(batch)[1]


@pytest.mark.slow
def test_a_partition_that_is_not_wanted_waits(cluster: MockCluster) -> None:
    put(cluster, HEAVY, GZIP)
    heavy = looked(cluster)
    assert heavy.bring(lambda _tp: False) == []
    assert heavy.has_ahead(TP)


def test_a_broker_that_cannot_be_asked_keeps_nobody_from_working(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that lets clients in by Kerberos only."""
    put(cluster, HEAVY, GZIP)

    def refused(*_: object, **__: object) -> None:
        raise OSError("nobody is there")

    monkeypatch.setattr(heavy_batches, "BrokerConnection", refused)
    heavy = looked(cluster)
    assert heavy.begin(TP, 0) == 0


def test_a_look_keeps_no_more_than_a_worker_has_memory_for(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not seen then is found at the next start."""
    monkeypatch.setattr(heavy_batches, "KEPT_BYTES", 0)
    put(cluster, HEAVY, GZIP)
    put(cluster, HEAVY, GZIP)
    heavy = looked(cluster)
    assert heavy.begin(TP, 0) == 1
    assert all_of(heavy) == [(0, 0)]


@pytest.mark.slow
def test_a_look_ends_in_time_and_when_the_worker_is_to_stop(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is part of a rebalance, for which the whole group waits."""
    put(cluster, HEAVY, GZIP)
    heavy = HeavyBatches()
    heavy.open(cluster.bootstrap_servers, 0)
    heavy.look({TP: 0}, stopped=lambda: True)
    assert not heavy.has_ahead(TP)
    assert heavy.begin(TP, 0) == 0
    monkeypatch.setattr(heavy_batches, "LOOK_TIMEOUT_S", 0.0)
    assert looked(cluster).begin(TP, 0) == 0


@pytest.mark.slow
def test_the_beginnings_of_all_partitions_are_looked_at_first(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One with a long backlog would take all the time at each start, and what ends the worker lies
    in another."""
    others = ("others", 0)
    cluster.create_topic("others")
    for _ in range(50):
        put(cluster, record_bytes(b"k", b"one"))
    produce_raw(cluster.bootstrap_servers, "others", HEAVY, GZIP)
    asked: list[tuple[str, int]] = []

    def fetched(broker: Any, topic: str, *more: Any) -> Any:
        asked.append((topic, more[1]))
        return fetch_batches(broker, topic, *more)

    monkeypatch.setattr(heavy_batches, "fetch_batches", fetched)
    # No time is left behind the beginnings.
    monkeypatch.setattr(_Limits, "are_reached", lambda _limits: len(asked) >= 4)
    heavy = HeavyBatches()
    heavy.open(cluster.bootstrap_servers, 0)
    heavy.look({TP: 0, others: 0})
    assert heavy.begin(others, 0) == 1
    assert heavy.begin(TP, 0) == 0
    assert [where for where in asked if where[0] == "others"] == [("others", 0)]
    assert "orders[0]: not looked at from offset 3 on" in caplog.text
    assert "others[0]: not looked at" not in caplog.text


@pytest.fixture
def no_time(cluster: MockCluster, monkeypatch: pytest.MonkeyPatch) -> HeavyBatches:
    """A worker that has died once, and for whose look there is none."""
    monkeypatch.setattr(heavy_batches, "LOOK_TIMEOUT_S", 0.0)
    heavy = HeavyBatches()
    heavy.open(cluster.bootstrap_servers, 1)
    return heavy


def looked_on(heavy: HeavyBatches, position: int = 0) -> list[tuple[tuple[str, int], int]]:
    """Until the look has got through something; where its client begins then."""
    deadline = time.monotonic() + 30
    while not (moved := heavy.take_moved()):
        assert time.monotonic() < deadline
        heavy.look_on({TP: position})
    return moved


@pytest.mark.slow
def test_who_died_is_given_nothing_that_was_not_looked_at(
    cluster: MockCluster, no_time: HeavyBatches
) -> None:
    for value in (b"one", b"two"):
        put(cluster, record_bytes(b"k", value))
    put(cluster, HEAVY, GZIP)
    put(cluster, record_bytes(b"k", b"three"))
    no_time.look({TP: 0})
    assert no_time.begin(TP, 0) == OFFSET_END
    assert no_time.has_ahead(TP)
    assert no_time.bring(lambda _tp: True) == []
    # A transaction is aborted meanwhile.
    no_time.look_on({TP: 0})
    assert no_time.begin(TP, 0) == OFFSET_END
    assert looked_on(no_time) == [(TP, 3)]
    assert no_time.take_brought() == []
    assert all_of(no_time) == [b"one", b"two", (2, 2)]
    assert no_time.take_brought() == [TP]
    assert no_time.begin(TP, 1) == 3


def test_who_died_is_given_what_holds_nothing_of_that_kind_once_it_was_looked_at(
    cluster: MockCluster, no_time: HeavyBatches
) -> None:
    for value in (b"one", b"two"):
        put(cluster, record_bytes(b"k", value))
    no_time.look({TP: 1})
    assert no_time.begin(TP, 1) == OFFSET_END
    assert looked_on(no_time) == [(TP, 1)]
    assert no_time.take_brought() == [TP]
    assert not no_time


@pytest.mark.slow
def test_who_died_looks_on_when_what_is_kept_has_been_committed(
    cluster: MockCluster, no_time: HeavyBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heavy_batches, "KEPT_BYTES", 0)
    put(cluster, HEAVY, GZIP)
    put(cluster, record_bytes(b"k", b"one"))
    put(cluster, HEAVY, GZIP)
    put(cluster, record_bytes(b"k", b"two"))
    no_time.look({TP: 0})
    no_time.begin(TP, 0)
    found: list[Any] = []
    for position in (0, 1, 2, 3):
        for _ in range(4):
            no_time.look_on({TP: position})
            found += [(position, each.offset()) for each in no_time.bring(lambda _tp: True)]
    # What lies between came with the second, and neither before its time.
    assert found == [(0, 0), (1, 1), (1, 2)]
    assert no_time.take_moved() == [(TP, 3)]
    assert no_time.take_brought() == [TP]
    assert not no_time


@pytest.fixture
def died(cluster: MockCluster, monkeypatch: pytest.MonkeyPatch) -> HeavyBatches:
    """A worker that has died once, and has time for its look."""
    monkeypatch.setattr(heavy_batches, "AGAIN_S", 0.0)
    heavy = HeavyBatches()
    heavy.open(cluster.bootstrap_servers, 1)
    return heavy


class FailsFor:
    """Does what it stands for after some calls that fail."""

    def __init__(self, does: Any, error: BaseException, times: int) -> None:
        self._does, self._error, self.left = does, error, times

    def __call__(self, *args: Any, **more: Any) -> Any:
        if self.left:
            self.left -= 1
            raise self._error
        return self._does(*args, **more)


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["BrokerConnection", "stable_ends", "fetch_batches", "_Limits.known", "is_heavy"]
)
@pytest.mark.parametrize(
    "error", [OSError("away"), MemoryError("away"), Refused("away", 6), Malformed("away")]
)
def test_who_died_is_given_nothing_whatever_keeps_it_from_looking(
    cluster: MockCluster, died: HeavyBatches, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, what: str, error: BaseException,
) -> None:  # fmt: skip
    """For as long as it does, since its client may die there."""
    put(cluster, HEAVY, GZIP)
    put(cluster, record_bytes(b"k", b"one"))
    target = f"{heavy_batches.__name__}.{what}"
    whole = _Limits.known if "known" in what else getattr(heavy_batches, what)
    fails = FailsFor(whole, error, 5)
    failing = fails if "known" not in what else (lambda *args: fails(*args))
    monkeypatch.setattr(target, failing)
    died.look({TP: 0})
    assert fails.left == 4
    assert died.begin(TP, 0) == OFFSET_END
    for _ in range(4):
        died.look_on({TP: 0})
        assert died.take_moved() == []
        assert died.bring(lambda _tp: True) == []
    assert "orders[0]: not looked at from offset 0 on, and not read before it is" in caplog.text
    assert fails.left == 0
    assert looked_on(died) == [(TP, 1)]
    assert all_of(died) == [(0, 0)]


@pytest.mark.slow
def test_who_died_tries_in_vain_less_and_less_often(
    cluster: MockCluster, no_time: HeavyBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try takes a request's time from the other partitions."""
    now_s = 0.0
    monkeypatch.setattr(heavy_batches.time, "monotonic", lambda: now_s)
    fails = FailsFor(None, OSError("away"), 1_000)
    monkeypatch.setattr(heavy_batches, "BrokerConnection", fails)
    no_time.look({TP: 0})
    for _ in range(2_000):
        now_s += 0.1
        no_time.look_on({TP: 0})
    assert 5 <= 1_000 - fails.left <= 16


@pytest.mark.parametrize(
    "error", [Refused("deleted", 1), UserError("by Kerberos only")], ids=["deleted", "no way in"]
)
def test_who_died_is_given_what_its_client_is_told_or_nobody_can_look_at(
    cluster: MockCluster, died: HeavyBatches, monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:  # fmt: skip
    put(cluster, record_bytes(b"k", b"one"))
    monkeypatch.setattr(heavy_batches, "fetch_batches", FailsFor(None, error, 1))
    died.look({TP: 0})
    assert died.begin(TP, 0) == 0
    assert not died


@pytest.mark.slow
def test_who_died_is_given_all_that_is_empty_at_once(
    cluster: MockCluster, no_time: HeavyBatches
) -> None:
    """Each of them took a turn of its own."""
    names = [f"quiet{n}" for n in range(5)]
    for name in names:
        cluster.create_topic(name)
    put(cluster, record_bytes(b"k", b"one"))
    quiet = {(name, 0): 0 for name in names}
    no_time.look({**quiet, TP: 0})
    for tp in (*quiet, TP):
        assert no_time.begin(tp, 0) == OFFSET_END
    no_time.look_on({**quiet, TP: 0})
    assert dict(no_time.take_moved()) == quiet
    assert sorted(no_time.take_brought()) == sorted(quiet)
    assert no_time.begin(TP, 0) == OFFSET_END
    assert looked_on(no_time) == [(TP, 0)]


def test_what_was_found_is_kept_where_the_memory_ends(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other partitions of that broker are looked at over another connection, since this one
    holds the rest of an answer."""
    cluster.create_topic("others")
    for topic in ("orders", "others"):
        produce_raw(cluster.bootstrap_servers, topic, HEAVY, GZIP)
        produce_raw(cluster.bootstrap_servers, topic, record_bytes(b"k", b"one"))
    monkeypatch.setattr(heavy_batches, "FETCH_BYTES", len(HEAVY))
    frames: list[int] = []

    def reader(frame: bytes, **more: Any) -> Reader:
        frames.append(len(frame))
        # Where they end, and one batch of each.
        if len(frames) == 4:
            raise MemoryError
        return Reader(frame, **more)

    monkeypatch.setattr("pipeline.broker_connection.Reader", reader)
    heavy = HeavyBatches()
    heavy.open(cluster.bootstrap_servers, 0)
    heavy.look({("orders", 0): 0, ("others", 0): 0})
    assert len(frames) > 4
    assert [heavy.begin(tp, 0) for tp in (("orders", 0), ("others", 0))] == [1, 1]


@pytest.mark.slow
def test_gzip_of_several_members_is_kept_from_the_client(cluster: MockCluster) -> None:
    """It would bring the first one's records and nothing of the others, without a word."""
    whole = record_bytes(b"k", b"one")
    put(cluster, gzip_members(whole, record_bytes(b"k", b"two")), GZIP, count=2)
    put(cluster, gzip_members(whole, b""), GZIP)
    put(cluster, gzip_members(whole[:3], whole[3:]), GZIP)
    put(cluster, whole)
    heavy = looked(cluster)
    assert heavy.begin(TP, 0) == 4
    assert all_of(heavy) == [(0, 1), b"one", (3, 3)]


@pytest.mark.slow
def test_a_damaged_batch_is_left_to_the_client_which_names_it(cluster: MockCluster) -> None:
    """Another replica may have it whole."""
    produce_raw(cluster.bootstrap_servers, "orders", HEAVY, GZIP, damaged=True)
    assert looked(cluster).begin(TP, 0) == 0


@pytest.mark.slow
def test_a_damaged_batch_before_one_is_told_behind_what_lies_before_it(
    cluster: MockCluster,
) -> None:
    """The worker ends at it, once that is handled."""
    put(cluster, record_bytes(b"k", b"one"))
    produce_raw(cluster.bootstrap_servers, "orders", record_bytes(b"k", b"two"), damaged=True)
    put(cluster, HEAVY, GZIP)
    heavy = looked(cluster)
    assert heavy.begin(TP, 0) == 3
    came: list[Any] = []
    while not came or came[-1].error() is None:
        came += heavy.bring(lambda _tp: True)
    assert [each.offset() for each in came] == [0, 1]
    assert is_damaged(came[-1].error())


def test_each_death_without_a_word_halves_what_a_batch_may_come_to(tmp_path: Path) -> None:
    """Until a life goes on for a while or ends in order."""

    def life() -> Suspects:
        suspects = Suspects(tmp_path / "suspects.json")
        suspects.start()
        return suspects

    assert [life().deaths for _ in range(4)] == [0, 1, 2, 3]
    ordered = life()
    assert ordered.deaths == 4
    ordered.excused()
    again = life()
    assert again.deaths == 4
    again.steady()
    assert life().deaths == 0
    assert [bytes_max(deaths) >> 20 for deaths in range(6)] == [256, 128, 64, 32, 16, 16]

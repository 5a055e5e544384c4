"""A partition that stands is passed over only for what its client is silent about, and nothing
else."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.batches import silent as silent_batches
from pipeline.batches.record_batch import RECORDS_AT, RecordBatch, read_batches
from pipeline.batches.silent import heads
from pipeline.runtime import standstill
from pipeline.runtime.fetching import FETCH_BYTES
from pipeline.runtime.standstill import STANDS_S, Standstill
from pipeline.runtime.work import Outcome
from tests.support.engine_fakes import (
    Commits,
    InstantCalls,
    Member,
    gateway_with,
    key_of,
    payments_with,
)
from tests.support.engine_flow import EngineFlow
from tests.support.raw_record import GZIP, batch_bytes, gzip_members, record_bytes

TP = ("orders", 0)
OTHER = ("orders", 1)
RECORD = record_bytes(b"k", b"v")
TRANSACTIONAL, CONTROL = 0x10, 0x20
PRODUCER = 7


def batch(first: int = 0, attributes: int = 0, *, damaged: bool = False) -> bytes:
    return batch_bytes(RECORD, attributes, first=first, producer_id=PRODUCER, damaged=damaged)


def compacted_away() -> bytes:
    """Its head is kept, with a count of none."""
    head = batch()[: RECORDS_AT - 4] + bytes(4)
    return head[:8] + struct.pack(">i", RECORDS_AT - 12) + head[12:]


class Broker:
    """What a leader answers to a Fetch of ours. ``stable``: up to where a read_committed reader
    gets; ``asked``: from where it was asked; ``answers``: how often it does so in time."""

    def __init__(self, *batches: bytes, stable: int, aborted: tuple[int, ...] = ()) -> None:
        self.log = list(batches)
        self.stable = stable
        self.aborted = [(PRODUCER, first) for first in aborted]
        self.asked: list[int] = []
        self.answers = 1_000

    def ends(self, _broker: object, places: Mapping[tuple[str, int], int]) -> dict[Any, int]:
        return dict.fromkeys(places, self.stable)

    def fetch(
        self, _broker: object, _topic: str, _partition: int, offset: int, _bytes_max: int
    ) -> tuple[list[RecordBatch], bool]:
        """One batch at a time."""
        if not self.answers:
            raise TimeoutError
        self.answers -= 1
        self.asked.append(offset)
        all_of_them = list(read_batches(b"".join(self.log), self.aborted))
        one = [b for b in all_of_them if offset <= b.last_offset < self.stable][:1]
        return one, not one or one[0].last_offset + 1 >= self.stable


class Watch:
    """A standstill watch that is turned by hand, over one broker. ``silent``: what a client makes
    of what it is given there."""

    def __init__(self, patch: pytest.MonkeyPatch, broker: Broker, silent: bool | None = True):
        known = SimpleNamespace(
            topics={"orders": SimpleNamespace(partitions={0: SimpleNamespace(leader=1)})},
            brokers={1: SimpleNamespace(host="leader", port=1)},
        )
        admin = SimpleNamespace(list_topics=lambda timeout: known)
        connection = SimpleNamespace(is_closed=False, close=lambda: None)
        patch.setattr(silent_batches, "BrokerConnection", lambda *_, **__: connection)
        patch.setattr(silent_batches, "stable_ends", broker.ends)
        patch.setattr(silent_batches, "fetch_batches", broker.fetch)
        patch.setattr(standstill, "AdminClient", lambda _config: admin)
        patch.setattr(standstill, "is_silent", self._is_silent)
        self.silent = silent
        self.given: list[int] = []
        # Where it was last said to go on, since nothing lies before that.
        self.behind = 0
        self._now_s = 0.0
        self._watch = Standstill(lambda: self._now_s)
        self._watch.open("nowhere:1")

    def _is_silent(
        self, _servers: str, _tp: object, batch: RecordBatch, *_more: object
    ) -> bool | None:
        self.given.append(batch.first_offset)
        return self.silent

    def look(
        self, position: int = 0, *, waits: bool = True, after_s: float = STANDS_S
    ) -> list[int]:
        """What is passed over now; then what lies there is asked for, if the partition stands."""
        self._now_s += after_s
        # What the look before this one has found: while one asks, it is not known yet.
        self.behind = self._watch.take_empty({TP: position}).get(TP, self.behind)
        found = self._watch.take({TP: position}, lambda _tp: waits)
        if (asking := self._watch._thread) is not None:
            asking.join(10)
        self._now_s += 1.0
        return [each.offset() for each in found]

    def looks(self, position: int = 0) -> list[int]:
        """Of more than are needed."""
        return [offset for _ in range(8) for offset in self.look(position)]


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    return monkeypatch


def test_what_the_client_is_silent_about_twice_is_passed_over(patch: pytest.MonkeyPatch) -> None:
    watch = Watch(patch, Broker(batch(), stable=1))
    assert watch.looks()[:1] == [0]
    assert watch.given


def test_of_some_in_a_row_only_the_first_is_waited_for(
    patch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And what can be read behind them is not said to stand before it does."""
    watch = Watch(patch, Broker(*map(batch, range(5)), stable=5))
    while not watch.look():
        pass
    for following in (1, 2):
        found = [each for _ in range(4) for each in watch.look(following, after_s=0)]
        assert found == [following]
    watch.silent = False
    for _ in range(4):
        assert watch.look(3, after_s=0) == []
    assert watch.given == [0, 1, 2, 3]
    assert "stands at" not in caplog.text
    assert watch.looks(3) == []
    assert "stands at 3" in caplog.text


@pytest.mark.parametrize(
    "left_out",
    [
        batch_bytes(gzip_members(RECORD, record_bytes(b"k", b"v", offset=1)), GZIP, count=2),
        batch_bytes(record_bytes(b"k", b"v", offset=-1)),
    ],
    ids=["behind a first member", "before its place"],
)
def test_what_the_client_leaves_out_is_passed_over(
    patch: pytest.MonkeyPatch, left_out: bytes
) -> None:
    """A client that is given nothing else hands out what it takes, or goes on behind it."""
    watch = Watch(patch, Broker(left_out, stable=2), silent=False)
    assert watch.looks()[:1] == [next(read_batches(left_out, ())).last_offset]


def test_a_large_batch_that_waits_for_its_turn_is_said_to_be_no_fault(
    patch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    large = batch_bytes(record_bytes(b"k", b"v" * FETCH_BYTES), producer_id=PRODUCER)
    watch = Watch(patch, Broker(large, stable=1), silent=False)
    assert watch.looks() == []
    assert f"can be read: a batch of {len(large):,} bytes" in caplog.text
    assert "it comes in its turn" in caplog.text


def test_what_a_client_reads_is_never_passed_over(patch: pytest.MonkeyPatch) -> None:
    """It is given to it once, and again where the partition has not stood meanwhile."""
    watch = Watch(patch, Broker(batch(), batch(1), stable=2), silent=False)
    assert watch.looks() == []
    assert watch.given == [0]
    assert watch.looks(1) == []
    assert watch.given == [0, 1]
    for _ in range(2):
        assert watch.look(1, waits=False) == []
    assert watch.looks(1) == []
    assert watch.given == [0, 1, 1]


def test_what_nobody_knows_of_is_asked_again(patch: pytest.MonkeyPatch) -> None:
    watch = Watch(patch, Broker(batch(), stable=1), silent=None)
    assert watch.looks() == []
    assert len(watch.given) > 1
    watch.silent = True
    assert watch.looks()[:1] == [0]


def test_what_is_not_as_its_checksum_says_is_for_a_person(patch: pytest.MonkeyPatch) -> None:
    watch = Watch(patch, Broker(batch(damaged=True), stable=1))
    assert watch.looks() == []
    assert watch.given


@pytest.mark.parametrize(
    "broker",
    [
        Broker(batch(0, TRANSACTIONAL), stable=0),
        Broker(batch(0, TRANSACTIONAL), batch(1, TRANSACTIONAL | CONTROL), stable=2, aborted=(0,)),
        Broker(batch(0, TRANSACTIONAL | CONTROL), stable=1),
        Broker(compacted_away(), stable=1),
        Broker(stable=0),
    ],
    ids=["open transaction", "aborted", "marker", "compacted away", "nothing"],
)
def test_where_a_reader_is_handed_nothing_nothing_is_passed_over(
    patch: pytest.MonkeyPatch, broker: Broker
) -> None:
    watch = Watch(patch, broker)
    assert watch.looks() == []
    assert watch.given == []


MARKER = batch(1, TRANSACTIONAL | CONTROL)


@pytest.mark.parametrize(
    ("broker", "behind"),
    [
        (Broker(batch(0, TRANSACTIONAL), MARKER, stable=2, aborted=(0,)), 2),
        (Broker(batch(0, CONTROL), stable=1), 1),
        (Broker(compacted_away(), stable=1), 1),
        (Broker(stable=0), 0),
        (Broker(batch(0, TRANSACTIONAL), stable=0), 0),
    ],
    ids=["aborted", "marker", "compacted away", "nothing", "open transaction"],
)
def test_a_position_goes_on_where_nobody_is_handed_anything(
    patch: pytest.MonkeyPatch, broker: Broker, behind: int
) -> None:
    """Else it would be before the begin of the log once that is deleted."""
    watch = Watch(patch, broker, silent=False)
    watch.looks()
    assert watch.behind == behind
    assert Watch(patch, broker)._watch.empty_now({TP: 0}) == ({TP: behind} if behind else {})


def test_whoever_leaves_goes_on_up_to_what_is_still_to_be_read(patch: pytest.MonkeyPatch) -> None:
    """A backlog behind a marker, which may be deleted before it. Whoever stays reads it, or passes
    it over where its client is silent about it."""
    broker = Broker(batch(0, CONTROL), batch(1), batch(2, CONTROL), stable=3)
    watch = Watch(patch, broker, silent=False)
    watch.looks()
    assert watch.behind == 0
    assert [watch._watch.empty_now({TP: at}) for at in range(3)] == [{TP: 1}, {}, {TP: 3}]


def test_a_position_goes_on_only_from_where_it_was_asked_about(patch: pytest.MonkeyPatch) -> None:
    broker = Broker(batch(0), MARKER, stable=2)
    watch = Watch(patch, broker, silent=False)
    while not broker.asked:
        watch.look(1)
    watch.look(0)
    assert watch.behind == 0


def test_a_position_goes_on_only_over_what_was_seen_at_once(patch: pytest.MonkeyPatch) -> None:
    """Not over what lay there at an earlier look: the log may have been cut off since."""
    broker = Broker(batch(0, CONTROL), batch(1), stable=2)
    watch = Watch(patch, broker, silent=False)
    watch.looks()
    broker.log = []
    broker.stable = 0
    watch.looks()
    assert watch.behind == 0


def test_another_batch_the_second_time_may_have_come_just_now(patch: pytest.MonkeyPatch) -> None:
    broker = Broker(batch(), stable=1)
    watch = Watch(patch, broker)
    while not broker.asked:
        watch.look()
    # Compacted away, or a transaction before it has ended: what lies there is another one now.
    broker.log = [batch(3)]
    broker.stable = 4
    while len(broker.asked) == 1:
        watch.look()
    assert watch.given == []


def test_a_position_that_has_moved_meanwhile_is_left_alone(patch: pytest.MonkeyPatch) -> None:
    """The client has brought it after all."""
    watch = Watch(patch, Broker(batch(), batch(1), stable=2))
    while not watch.given:
        assert watch.look() == []
    assert watch.look(1) == []


def test_a_partition_that_is_not_waited_for_any_more_is_left_alone(
    patch: pytest.MonkeyPatch,
) -> None:
    """Paused, or with something of it in hand, since it was asked for."""
    watch = Watch(patch, Broker(batch(), stable=1))
    while not watch.given:
        assert watch.look() == []
    assert watch.look(waits=False) == []


def test_a_partition_that_is_not_waited_for_is_asked_of_nobody(patch: pytest.MonkeyPatch) -> None:
    broker = Broker(batch(), stable=1)
    watch = Watch(patch, broker)
    assert [watch.look(waits=False) for _ in range(8)] == [[]] * 8
    assert broker.asked == []


def test_a_long_tail_of_aborted_records_is_read_once(patch: pytest.MonkeyPatch) -> None:
    """In as many looks as it takes; what a reader is handed behind it is found then."""
    tail = [batch(n, TRANSACTIONAL) for n in range(6)] + [batch(6, TRANSACTIONAL | CONTROL)]
    broker = Broker(*tail, stable=7, aborted=(0,))
    watch = Watch(patch, broker)
    for _ in range(12):
        broker.answers = 2
        assert watch.look(watch.behind) == []
    assert broker.asked == [0, 1, 2, 3, 4, 5, 6]
    broker.log.append(batch(7))
    broker.stable, broker.answers = 8, 1_000
    assert watch.looks(watch.behind)[:1] == [7]


# Where leaders do not answer ---------------------------------------------------------------------


@pytest.mark.parametrize("leader", [-1, 9], ids=["none", "away"])
def test_a_partition_whose_leader_says_nothing_hides_no_other(
    leader: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connected(host: str, *_: object, **__: object) -> Any:
        if host == "away":
            raise TimeoutError
        return SimpleNamespace(is_closed=False, close=lambda: None)

    broker = Broker(batch(), stable=1)
    monkeypatch.setattr(silent_batches, "BrokerConnection", connected)
    monkeypatch.setattr(silent_batches, "stable_ends", broker.ends)
    monkeypatch.setattr(silent_batches, "fetch_batches", broker.fetch)
    partitions = {1: SimpleNamespace(leader=leader), 0: SimpleNamespace(leader=1)}
    known = SimpleNamespace(
        topics={"orders": SimpleNamespace(partitions=partitions)},
        brokers={
            9: SimpleNamespace(host="away", port=1),
            1: SimpleNamespace(host="leader", port=1),
        },
    )
    admin: Any = SimpleNamespace(list_topics=lambda timeout: known)
    gone = ("deleted", 0)
    assert list(heads(admin, {gone: 0, OTHER: 0, TP: 0}, lambda: False)) == [TP]


def test_a_partition_that_is_refused_hides_no_other_of_its_leader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection that ended with it is made anew."""
    broker = Broker(batch(), stable=1)
    connections: list[Any] = []

    def connected(*_: object, **__: object) -> Any:
        connections.append(SimpleNamespace(is_closed=False, close=lambda: None))
        return connections[-1]

    def fetch(at: Any, topic: str, partition: int, offset: int, bytes_max: int) -> Any:
        assert not at.is_closed
        if partition == 1:
            at.is_closed = True
            raise ConnectionResetError
        return broker.fetch(at, topic, partition, offset, bytes_max)

    monkeypatch.setattr(silent_batches, "BrokerConnection", connected)
    monkeypatch.setattr(silent_batches, "stable_ends", broker.ends)
    monkeypatch.setattr(silent_batches, "fetch_batches", fetch)
    partitions = {number: SimpleNamespace(leader=1) for number in (0, 1)}
    known = SimpleNamespace(
        topics={"orders": SimpleNamespace(partitions=partitions)},
        brokers={1: SimpleNamespace(host="leader", port=1)},
    )
    admin: Any = SimpleNamespace(list_topics=lambda timeout: known)
    assert list(heads(admin, {OTHER: 0, TP: 0}, lambda: False)) == [TP]
    assert len(connections) == 2


# What a worker waits for -------------------------------------------------------------------------


@pytest.fixture
def flow(tmp_path: Path) -> EngineFlow:
    return EngineFlow("127.0.0.1:1", "t.", tmp_path, partitions=1)


def test_a_payments_worker_waits_only_where_nothing_is_in_hand(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what it has read and not committed yet would be taken for what is not brought."""
    member, commits = Member(), Commits()
    worker = payments_with(flow, member, commits, monkeypatch, restore_slices=1)
    tp = (flow.topic("orders"), 0)
    waits = worker._waits_for
    worker._turn()
    assert waits(tp), "restored, and nothing has come"
    order = flow.encode("order", flow.order("o1"))
    member.append(tp[0], key_of("o1"), order)
    worker._turn()
    assert commits.busy
    assert not waits(tp), "under way"
    member.append(tp[0], key_of("o2"), flow.encode("order", flow.order("o2")))
    worker._turn()
    commits.end(Outcome.COMMITTED)
    worker._take_outcome(commits.poll())
    assert worker._batch is not None
    assert not waits(tp), "in preparation"
    worker._turn()
    commits.end(Outcome.COMMITTED)
    worker._turn()
    assert waits(tp), "all is committed"
    worker._admission.open_gate(False)
    monkeypatch.setattr(worker, "_prepare", lambda: None)
    member.append(tp[0], key_of("o3"), flow.encode("order", flow.order("o3")))
    worker._turn()
    assert not waits(tp), "read and not begun"
    worker._admission.assign([tp])
    assert waits(tp)
    worker._heavy._next[tp] = 0
    assert not waits(tp), "not the client's to bring"
    worker._heavy._next.clear()
    worker._held._queues[tp] = None
    assert not waits(tp), "held behind a suspect"


def test_a_paused_partition_of_payments_is_not_waited_for(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = payments_with(flow, Member(), Commits(), monkeypatch)
    tp = (flow.topic("orders"), 0)
    worker._turn()
    assert worker._waits_for(tp)
    worker._admission._buffers[tp[0]].paused.add(0)
    assert not worker._waits_for(tp)


class OpenCalls(InstantCalls):
    """No call ends."""

    def take_finished(self) -> list[Any]:
        return []


@pytest.mark.parametrize("calls", [InstantCalls, OpenCalls])
def test_a_gateway_worker_waits_only_where_nothing_is_in_hand(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch, calls: Callable[[], InstantCalls]
) -> None:
    member, commits = Member(), Commits()
    worker = gateway_with(flow, member, commits, calls(), monkeypatch)
    tp = (flow.topic("payment-requests"), 0)
    waits = worker._waits_for
    worker._turn(fetch=True)
    assert waits(tp)
    request = flow.encode("payment-request", flow.request(flow.order("o1")))
    member.append(tp[0], key_of("o1"), request)
    worker._turn(fetch=True)
    assert not waits(tp), "its call is open, or its result is under way"
    if commits.busy:
        commits.end(Outcome.COMMITTED)
        worker._turn(fetch=True)
        assert waits(tp)
        worker._fetch(set())
        assert not waits(tp), "paused"
        worker._fetch({0})
        worker._heavy._next[tp] = 0
        assert not waits(tp), "not the client's to bring"
        worker._heavy._next.clear()
        monkeypatch.setattr(worker._held, "count", lambda _partition: 1)
        assert not waits(tp), "held"

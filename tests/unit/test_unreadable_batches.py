"""A batch that the client cannot unfold: one dead letter, and the flow goes on behind it."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from consumers.ledger_sink import LedgerSink
from consumers.notifier.endpoints import EndpointFile
from consumers.notifier.event_reader import EventReader
from pipeline.audit.log_copy import read_partition
from pipeline.audit.unavailable import AuditUnavailable
from pipeline.batches.record_batch import read_batch, read_batches
from pipeline.batches.unreadable import PATIENCE_S, CannotStepOver, UnreadableBatches, is_unreadable
from pipeline.commands.dead_letters_text import decoded, whole_json, whole_lines
from pipeline.errors import UserError
from pipeline.kafka_wire import Malformed
from pipeline.ledger.database import open_ledger
from pipeline.runtime.cluster import consumer_config
from pipeline.runtime.dead_letters import dead_letter
from pipeline.runtime.input_record import input_record
from pipeline.runtime.redrive.letter import Joiner, Piece, Whole
from pipeline.runtime.redrive.plan import Limits, Markers, plan_redrive
from pipeline.runtime.table_worker import raise_consume_error
from pipeline.runtime.unreadable_batch import DamagedBatches, UnreadableBatch, step_over
from pipeline.runtime.work import Outcome
from schemas.codec import default_codec
from tests.support.engine_fakes import (
    Commits,
    InstantCalls,
    Member,
    gateway_with,
    key_of,
    order_keys,
    payments_with,
)
from tests.support.engine_flow import EngineFlow
from tests.support.mock_cluster import MockCluster
from tests.support.raw_record import (
    LZ4,
    MIB,
    ZSTD,
    batch_bytes,
    lz4_frame,
    produce_raw,
    record_bytes,
)

# Only the head of the frame is looked at, which says how much there is to come.
TOO_MUCH = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 1024 * MIB)
UNKNOWN_CODEC = 6
TRANSACTIONAL, CONTROL = 0x10, 0x20


class ClientMember(Member):
    """A real client on the library's mock cluster; who owns what is said by hand."""

    def __init__(self, client: Consumer) -> None:
        super().__init__()
        self._client = client

    def consume(self, limit: int, timeout_s: float) -> list[Any]:
        while self.rebalance:
            self.rebalance.pop(0)()
        return self._client.consume(limit, max(timeout_s, 0.01))

    def poll(self, timeout_s: float) -> Any:
        return self._client.poll(min(timeout_s, 0.1))

    def assign(self, partitions: list[TopicPartition]) -> None:
        self._client.assign(partitions)

    def seek(self, tp: TopicPartition) -> None:
        self._client.seek(tp)

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._client.pause(partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._client.resume(partitions)

    def list_topics(self, topic: str, timeout: float) -> Any:
        return self._client.list_topics(topic, timeout=timeout)


@pytest.fixture
def flow(tmp_path: Path) -> EngineFlow:
    cluster = MockCluster(brokers=1)
    flow = EngineFlow(cluster.bootstrap_servers, "t.", tmp_path, partitions=1)
    for role in ("orders", "payment-requests", "settlements", "payment-events"):
        cluster.create_topic(flow.topic(role))
    return flow


@pytest.fixture
def member(flow: EngineFlow) -> Iterator[ClientMember]:
    config = consumer_config(flow.bootstrap, group_id="test", instance_id="test")
    client = Consumer({**config, "fetch.error.backoff.ms": 10})
    yield ClientMember(client)
    client.close()


def put(flow: EngineFlow, role: str, records: bytes, codec: int = 0, **more: Any) -> None:
    produce_raw(flow.bootstrap, flow.topic(role), records, codec, **more)


def order(flow: EngineFlow, order_id: str) -> bytes:
    return record_bytes(key_of(order_id), flow.encode("order", flow.order(order_id)))


def letters_of(outputs: list[Any], flow: EngineFlow) -> list[tuple[Any, dict[str, bytes]]]:
    """Value and headers of each letter in these outputs."""
    topic = flow.topic("dead-letters")
    return [(value, dict(headers)) for name, _, _, value, headers in outputs if name == topic]


@pytest.mark.slow
def test_the_payments_worker_buries_the_batch_and_asks_for_the_orders_around_it(
    flow: EngineFlow, member: ClientMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One letter for each batch, however many records it has, with its bytes and its place; the
    transaction that holds it moves the position behind its last record. Aborted, it is the same."""
    put(flow, "orders", order(flow, "o1"))
    put(flow, "orders", TOO_MUCH, ZSTD, count=3)
    put(flow, "orders", b"what is this", UNKNOWN_CODEC)
    put(flow, "orders", order(flow, "o2"))
    commits = Commits()
    worker = payments_with(flow, member, commits, monkeypatch)
    place = flow.topic("orders"), 0
    outputs: list[Any] = []
    aborted = False
    while worker._positions[place] < 6:
        worker._turn()
        if commits.busy and commits.outcome is None:
            work = commits.works[-1]
            if not aborted and letters_of(work.outputs, flow):
                aborted = True
                commits.end(Outcome.ABORTED)
                continue
            outputs += work.outputs
            commits.end(Outcome.COMMITTED)
    assert aborted
    first, second = letters_of(outputs, flow)
    assert first[0].endswith(TOO_MUCH)
    assert first[1]["dlq.cause"] == b"unreadable_batch"
    assert first[1]["dlq.topic"] == flow.topic("orders").encode()
    assert (first[1]["dlq.offset"], first[1]["dlq.last_offset"]) == (b"1", b"3")
    assert first[1]["dlq.batch_records"] == b"3"
    assert first[1]["dlq.batch_sha256"].decode() == hashlib.sha256(first[0]).hexdigest()
    assert (second[1]["dlq.offset"], second[1]["dlq.last_offset"]) == (b"4", b"4")
    assert b"codec 6" in second[1]["dlq.detail"]
    asked = [key for name, _, key, _, _ in outputs if name == flow.topic("payment-requests")]
    assert asked == [key_of("o1"), key_of("o2")]
    # And it is for this once: the way of every other record is the short one again.
    assert not worker._stepped_over


@pytest.mark.slow
def test_a_batch_whose_letter_is_too_large_is_a_letter_without_its_bytes(
    flow: EngineFlow, member: ClientMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was is still known by its checksum."""
    put(flow, "orders", TOO_MUCH, ZSTD, count=3)
    commits = Commits()
    worker = payments_with(flow, member, commits, monkeypatch)
    while not commits.works:
        worker._turn()
    worker._lane.too_large = 0
    commits.end(Outcome.ABORTED)
    while len(commits.works) < 2:
        worker._turn()
    ((value, headers),) = letters_of(commits.works[-1].outputs, flow)
    assert value is None
    assert len(headers["dlq.batch_sha256"]) == 64
    assert int(headers["dlq.batch_bytes"]) == len(batch_bytes(TOO_MUCH))
    assert commits.works[-1].offsets == {(flow.topic("orders"), 0): 3}


def turn_for_ever(turn: Callable[[], None], commits: Commits) -> None:
    """With every transaction committed."""
    while True:
        turn()
        if commits.busy and commits.outcome is None:
            commits.end(Outcome.COMMITTED)


@pytest.mark.slow
def test_what_lies_before_a_damaged_order_is_handled_before_the_worker_ends(
    flow: EngineFlow, member: ClientMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came with the same answer, and whoever stepped over the batch by hand lost it."""
    put(flow, "orders", order(flow, "o1"))
    put(flow, "orders", order(flow, "o2"), damaged=True)
    put(flow, "orders", order(flow, "o3"))
    commits = Commits()
    worker = payments_with(flow, member, commits, monkeypatch)
    with pytest.raises(UserError, match=r"\[0\]@1 is damaged.* `paystream positions step-over`"):
        turn_for_ever(worker._turn, commits)
    assert order_keys(commits.works, flow.topic("payment-requests")) == [key_of("o1")]
    assert worker._positions[flow.topic("orders"), 0] == 1


@pytest.mark.slow
def test_what_lies_before_a_damaged_request_is_called_before_the_worker_ends(
    flow: EngineFlow, member: ClientMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, damaged in (("o1", False), ("o2", True), ("o3", False)):
        asked = flow.encode("payment-request", flow.request(flow.order(name)))
        put(flow, "payment-requests", record_bytes(key_of(name), asked), damaged=damaged)
    commits = Commits()
    worker = gateway_with(flow, member, commits, InstantCalls(), monkeypatch)
    with pytest.raises(UserError, match=r"payment-requests\[0\]@1 is damaged"):
        turn_for_ever(lambda: worker._turn(fetch=True), commits)
    assert order_keys(commits.works, flow.topic("gateway-results")) == [key_of("o1")]
    assert worker._positions[0] == 1


def test_nothing_is_taken_of_a_partition_behind_a_damaged_batch() -> None:
    """There the client reads on at a wrong place, and asks for offsets that it made up."""

    def came(topic: str, offset: int, error: KafkaError | None = None) -> Any:
        return SimpleNamespace(
            topic=lambda: topic, partition=lambda: 0, offset=lambda: offset, error=lambda: error
        )

    damaged = DamagedBatches()
    one, other = came("orders", 0), came("others", 5)
    spoilt = came("orders", 1, KafkaError(KafkaError._BAD_MSG, "failed CRC32C check"))
    assert damaged.before([one, other]) == [one, other]
    assert damaged.before([one, spoilt, came("orders", 2), other]) == [one, other]
    behind = came("orders", 3)
    made_up = came("orders", 1 << 56, KafkaError(KafkaError._AUTO_OFFSET_RESET))
    assert damaged.before([behind, made_up, other]) == [other]
    damaged.end(lambda tp: True)
    with pytest.raises(UserError, match=r"orders\[0\]@1 is damaged"):
        damaged.end(lambda tp: tp != ("orders", 0))
    damaged.forget(("orders", 0))
    assert damaged.before([behind]) == [behind]


@pytest.mark.slow
def test_the_gateway_worker_buries_the_batch_and_calls_for_the_requests_around_it(
    flow: EngineFlow, member: ClientMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the partition, and once."""

    def request(order_id: str) -> bytes:
        asked = flow.request(flow.order(order_id))
        return record_bytes(key_of(order_id), flow.encode("payment-request", asked))

    put(flow, "payment-requests", request("o1"))
    put(flow, "payment-requests", TOO_MUCH, ZSTD, count=2)
    put(flow, "payment-requests", request("o2"))
    commits = Commits()
    worker = gateway_with(flow, member, commits, InstantCalls(), monkeypatch)
    while worker._positions[0] < 4:
        worker._turn(fetch=True)
        if commits.busy and commits.outcome is None:
            commits.end(Outcome.COMMITTED)
    assert order_keys(commits.works, flow.topic("gateway-results")) == [key_of("o1"), key_of("o2")]
    outputs = [each for work in commits.works for each in work.outputs]
    ((value, headers),) = letters_of(outputs, flow)
    assert value.endswith(TOO_MUCH)
    assert (headers["dlq.cause"], headers["dlq.stage"]) == (b"unreadable_batch", b"gateway")
    assert (headers["dlq.offset"], headers["dlq.last_offset"]) == (b"1", b"2")


def read_with(
    flow: EngineFlow, role: str, reader: Any, take: Callable[[list[Any]], Any]
) -> list[Any]:
    """What a reader makes of a batch of three that cannot be unfolded and one record behind it."""
    put(flow, role, TOO_MUCH, ZSTD, count=3)
    put(flow, role, record_bytes(b"shop:1", b"junk"))
    config = consumer_config(flow.bootstrap, group_id="test", instance_id="test")
    client = Consumer({**config, "fetch.error.backoff.ms": 10})
    client.assign([TopicPartition(flow.topic(role), 0, 0)])
    reader._consumer = client
    found: list[Any] = []
    try:
        while not found or found[-1].offset() < 3:
            found += take(client.consume(10, 0.05))
    finally:
        client.close()
    return found


@pytest.mark.slow
def test_the_ledger_refuses_it_as_one_and_reads_on(flow: EngineFlow, books_url: str) -> None:
    """Its position moves behind the last record, under the assignment that it was read in."""
    engine = open_ledger(books_url)
    sink: Any = LedgerSink(
        bootstrap_servers=flow.bootstrap,
        engine=engine,
        catalogue=flow.catalogue,
        codec=flow.codec,
        instance_id="a",
    )
    sink._begin(0, 0)
    batches: list[Any] = []

    def take(messages: list[Any]) -> list[Any]:
        batch = sink._take(messages)
        if batch.ends:
            batches.append(batch)
            sink._stored.update(batch.ends)
        return [one.message for one in batch.refused]

    found = read_with(flow, "settlements", sink, take)
    assert [type(each) is UnreadableBatch for each in found] == [True, False]
    causes = [one.cause for batch in batches for one in batch.refused]
    assert causes == ["unreadable_batch", "not_wire_format"]
    assert (batches[0].ends[0], batches[-1].ends) == (3 if len(batches) == 2 else 4, {0: 4})
    assert batches[0].terms == {0: 1}
    engine.dispose()


@pytest.mark.slow
def test_the_notifications_bury_it_and_read_on(
    flow: EngineFlow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They once stood there without a word."""
    (tmp_path / "endpoints.toml").write_text("")
    reader: Any = EventReader(
        store=None,  # type: ignore[arg-type]
        endpoints=EndpointFile(tmp_path / "endpoints.toml"),
        bootstrap_servers=flow.bootstrap,
        catalogue=flow.catalogue,
        codec=flow.codec,
        instance_id="a",
    )
    reader._next = {0: 0}
    sent: list[Any] = []
    monkeypatch.setattr(reader, "_send", sent.extend)

    def take(messages: list[Any]) -> list[Any]:
        found = list(reader._mine(messages))
        assert [reader._event(each) for each in found] == [None] * len(found)
        return found

    found = read_with(flow, "payment-events", reader, take)
    assert [each.offset() for each in found] == [2, 3]
    causes = [headers["dlq.cause"] for _, headers in letters_of(sent, flow)]
    assert causes == [b"unreadable_batch", b"not_wire_format"]


def met(cluster: MockCluster, batches: UnreadableBatches, until: Any) -> Any:
    """What a client that reads `orders` there is given to step over, until ``until`` says so."""
    config = consumer_config(cluster.bootstrap_servers, group_id="test", instance_id="test")
    client = Consumer({**config, "fetch.error.backoff.ms": 10})
    try:
        client.assign([TopicPartition("orders", 0, 0)])
        while True:
            message = client.poll(30)
            assert message is not None
            if message.error() is None:
                assert until is None, "nothing is handed out behind it"
                return message
            raise_consume_error(message.error(), message)  # type: ignore[arg-type]
            found = step_over(batches, until or client, message)
            if found is not None:
                # What the client had at hand of it besides is no other batch.
                assert step_over(batches, client, message) is None
                return found
    finally:
        client.close()


def orders(records: bytes, attributes: int = 0, *, damaged: bool = False) -> MockCluster:
    cluster = MockCluster(brokers=1)
    cluster.create_topic("orders")
    produce_raw(cluster.bootstrap_servers, "orders", records, attributes, damaged=damaged)
    produce_raw(cluster.bootstrap_servers, "orders", record_bytes(b"k", b"behind"))
    return cluster


def test_a_batch_that_nobody_would_be_handed_is_passed_without_a_letter() -> None:
    """A marker, say: what comes next is the record behind it."""
    behind = met(orders(TOO_MUCH, ZSTD | TRANSACTIONAL | CONTROL), UnreadableBatches(), None)
    assert behind.value() == b"behind"


def test_bytes_behind_a_frame_of_lz4_are_no_damage() -> None:
    """A broker takes them, and the client gives them the code of damage. The batch is as its writer
    made it."""
    cluster = orders(lz4_frame(record_bytes(b"k", b"v")) + b"more", LZ4)
    batches = UnreadableBatches()
    assert met(cluster, batches, None).offset() == 0
    assert met(orders(lz4_frame(record_bytes(b"k", b"v")), LZ4), batches, None).value() == b"v"


@pytest.mark.slow
def test_what_came_damaged_to_us_is_not_stepped_over() -> None:
    """Whatever the client has said of it: it is asked for again, and then left to a person."""
    cluster = orders(TOO_MUCH, ZSTD, damaged=True)
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "test"})
    batches = UnreadableBatches(iter((0.0, PATIENCE_S)).__next__)
    try:
        assert batches.step_over(client, "orders", 0, 0) is None
        assert batches.step_over(client, "orders", 0, 0) is None
        with pytest.raises(CannotStepOver, match=r"not as its checksum says"):
            batches.step_over(client, "orders", 0, 0)
    finally:
        client.close()


def test_a_batch_is_handed_on_once_however_often_the_client_told_of_it() -> None:
    """Until the reader is put back, and meets it anew."""
    batches = UnreadableBatches()
    cluster = orders(TOO_MUCH, ZSTD)
    for _ in range(2):
        assert met(cluster, batches, None).offset() == 0
        batches.clear()


def test_a_damaged_batch_is_no_bad_input_and_ends_the_worker_by_name() -> None:
    """Another replica may have it whole."""
    with pytest.raises(UserError, match=r"the batch at orders\[0\]@0 is damaged"):
        met(orders(record_bytes(b"k", b"v"), damaged=True), UnreadableBatches(), None)


def test_a_broker_that_does_not_let_us_in_leaves_the_batch_to_a_person() -> None:
    """It closes the connection. That is tried for half a minute, then said."""
    now_s = 0.0

    def monotonic_s() -> float:
        nonlocal now_s
        now_s += PATIENCE_S
        return now_s

    def close_each(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=close_each, args=(listener,), daemon=True).start()
        host, port = listener.getsockname()
        known = SimpleNamespace(
            brokers={1: SimpleNamespace(host=host, port=port)},
            topics={"orders": SimpleNamespace(partitions={0: SimpleNamespace(leader=1)})},
        )
        client = SimpleNamespace(list_topics=lambda topic, timeout: known)
        with pytest.raises(UserError, match=r"at orders\[0\]@0 .* docs/operations.md says how"):
            met(orders(TOO_MUCH, ZSTD), UnreadableBatches(monotonic_s), client)


def test_a_batch_that_is_met_once_is_asked_for_again_by_the_client() -> None:
    """What came damaged over the network, or found no memory, is good the second time."""
    asked: list[int] = []

    def list_topics(topic: str, timeout: float) -> Any:
        asked.append(1)
        raise OSError("nobody is there")

    client, batches = SimpleNamespace(list_topics=list_topics), UnreadableBatches(lambda: 0.0)
    for offset, times in ((5, 0), (7, 0), (7, 1), (7, 2)):
        assert batches.step_over(client, "orders", 0, offset) is None
        assert len(asked) == times
    batches.clear()
    assert batches.step_over(client, "orders", 0, 7) is None
    assert len(asked) == 2


def test_whose_a_batch_is_is_read_from_its_head() -> None:
    """Of a producer's transaction that was aborted and reaches over it, nobody is handed anything;
    of another one's, or of a later one, everybody is."""

    def visible(attributes: int, *aborted: tuple[int, int]) -> bool:
        data = batch_bytes(b"", attributes, count=5, first=10, producer_id=7)
        batch = read_batch(data + b"and the next", 12, aborted)
        assert (batch.first_offset, batch.last_offset, batch.records) == (10, 14, 5)
        assert batch.data == data
        return batch.visible

    assert visible(0)
    assert visible(TRANSACTIONAL)
    assert visible(TRANSACTIONAL, (8, 3))
    assert visible(TRANSACTIONAL, (7, 15))
    assert not visible(TRANSACTIONAL, (7, 10))
    assert not visible(TRANSACTIONAL, (7, 3))
    # Whatever the same producer aborted later.
    assert not visible(TRANSACTIONAL, (7, 3), (7, 40))
    assert not visible(TRANSACTIONAL | CONTROL)
    # What is not transactional is no part of an aborted transaction.
    assert visible(0, (7, 3))


def test_of_several_batches_each_belongs_to_the_transaction_that_was_open_there() -> None:
    """A marker ends its producer's transaction; what is cut off at the end is no batch."""

    def batch(first: int, producer_id: int, attributes: int = TRANSACTIONAL) -> bytes:
        return batch_bytes(b"records", attributes, first=first, producer_id=producer_id)

    marker = TRANSACTIONAL | CONTROL
    data = (
        batch(0, 7) + batch(1, 8) + batch(2, 7, marker) + batch(3, 7) + batch(4, 7, marker)
        + batch(5, 7) + batch(6, 7)[:-1]
    )  # fmt: skip
    found = list(read_batches(data, [(7, 0), (7, 5)]))
    assert [each.first_offset for each in found] == [0, 1, 2, 3, 4, 5]
    assert [each.first_offset for each in found if each.visible] == [1, 3]
    assert b"".join(each.data for each in found) == data[: -len(batch(6, 7)) + 1]


@pytest.mark.parametrize(
    ("data", "offset", "said"),
    [
        (b"", 10, "no whole batch"),
        (batch_bytes(b"records", first=10)[:-1], 10, "67 bytes of a batch of 68"),
        (batch_bytes(b"", first=10), 11, "in answer to 11"),
        (batch_bytes(b"", first=10)[:16] + b"\1" + batch_bytes(b"", first=10)[17:], 10, "format 1"),
    ],
    ids=["nothing", "cut off", "of other offsets", "of an old format"],
)
def test_an_answer_that_is_no_such_batch_is_refused(data: bytes, offset: int, said: str) -> None:
    """Nothing is stepped over by what it says."""
    with pytest.raises(Malformed, match=said):
        read_batch(data, offset, ())


def test_a_letter_of_a_batch_is_never_redriven() -> None:
    """It would only be buried again."""
    batch = read_batch(batch_bytes(TOO_MUCH, ZSTD, count=3, first=4), 4, ())
    message = UnreadableBatch("orders", 0, batch)
    ((_, _, key, value, headers),) = dead_letter(
        input_record(message), topic="dlq", stage="payments", cause="unreadable_batch"
    )
    joiner = Joiner()
    letter = joiner.take(Piece(0, 9, 1, key, value, tuple(headers or ())))
    assert letter.batch is not None
    assert (letter.source, letter.batch.last_offset, letter.batch.records) == (
        ("orders", 0, 4),
        6,
        3,
    )
    limits = Limits({"orders": 1}, "payment-requests")
    plan = plan_redrive([letter], [letter], Markers(), limits)
    assert list(plan.refused) == ["batch_must_be_readable"]
    assert not plan.todo
    whole = Whole(letter, value, [])
    said = "\n".join(whole_lines(whole, Markers(), decoded(whole, "order", default_codec())))
    assert "input     orders[0]@4" in said
    assert "batch     3 records, to offset 6" in said
    assert f"SHA-256 {hashlib.sha256(batch.data).hexdigest()}" in said
    assert "not decoded: a batch that no client can decompress" in said
    told = whole_json(whole, Markers(), "")["batch"]
    assert (told["last_offset"], told["records"], told["bytes"]) == (6, 3, len(batch.data))


def test_only_what_the_client_cannot_unfold_counts() -> None:
    """Anything else that it cannot read is not stepped over."""
    assert not is_unreadable(None)
    assert not is_unreadable(KafkaError(KafkaError._BAD_MSG))
    assert is_unreadable(KafkaError(KafkaError._BAD_COMPRESSION))


@pytest.mark.slow
def test_the_audit_reads_on_behind_it_and_says_where_it_is() -> None:
    """Whoever did not ask to hear of it is told that there is no whole answer."""
    cluster = orders(TOO_MUCH, ZSTD)
    told: list[Any] = []
    records: list[Any] = []
    read_partition(
        cluster.bootstrap_servers,
        ["orders"],
        0,
        records.append,
        on_unreadable=lambda place, batch: told.append((place, batch.first_offset)),
    )
    assert told == [(("orders", 0), 0)]
    assert [message.value() for message in records] == [b"behind"]
    with pytest.raises(
        AuditUnavailable, match=r"1 records at orders\[0\]@0 cannot be decompressed"
    ):
        read_partition(cluster.bootstrap_servers, ["orders"], 0, records.append)

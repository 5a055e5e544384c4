"""Records that are not the next of their partition are compared with what the broker says."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from pipeline.batches.record_batch import RecordBatch, read_batch
from pipeline.batches.record_offsets import gives_false_offsets
from pipeline.broker_connection import Refused
from pipeline.errors import UserError
from pipeline.runtime import false_offsets
from pipeline.runtime.false_offsets import FalseOffsets
from tests.support.mock_cluster import MockCluster
from tests.support.raw_record import GZIP, batch_bytes, produce_raw, record_bytes

TP = ("orders", 0)


@pytest.fixture
def client() -> Any:
    """Of a partition with ten batches of two records."""
    cluster = MockCluster(brokers=1)
    cluster.create_topic("orders")
    records = record_bytes(b"k", b"v") + record_bytes(b"k", b"v", offset=1)
    for _ in range(10):
        produce_raw(cluster.bootstrap_servers, "orders", records, count=2)
    client = Consumer(
        {
            "bootstrap.servers": cluster.bootstrap_servers,
            "group.id": "g",
            "auto.offset.reset": "error",
            # What it is asked waits for what it has asked for itself: half a second by default.
            "fetch.wait.max.ms": 10,
        }
    )
    yield client
    client.close()
    del cluster


def following(offset: int) -> FalseOffsets:
    offsets = FalseOffsets(["orders"])
    offsets.open()
    offsets.assign({TP: offset, ("results", 0): 0})
    assert offsets.following == {TP: offset}
    return offsets


def batch(*deltas: int, codec: int = 0, said: int | None = None) -> RecordBatch:
    records = b"".join(record_bytes(b"k", b"v", offset=each) for each in deltas)
    count = len(deltas) if said is None else said
    return read_batch(batch_bytes(records, codec, count=count), 0, ())


@pytest.mark.parametrize("deltas", [(0,), (0, 1), tuple(range(300))])
def test_records_one_behind_the_other_are_where_they_say(deltas: tuple[int, ...]) -> None:
    assert not gives_false_offsets(batch(*deltas))


@pytest.mark.parametrize(
    "deltas", [(1,), (-1,), (1_000,), (0, 0), (1, 0), (0, 2), (0, 5, 1), (*range(200), 70_000)]
)
def test_records_that_say_they_are_elsewhere_are_found(deltas: tuple[int, ...]) -> None:
    assert gives_false_offsets(batch(*deltas))


def test_what_is_compressed_compacted_or_cut_is_left_to_others() -> None:
    assert not gives_false_offsets(batch(5, codec=GZIP))
    assert not gives_false_offsets(batch(0, said=2))
    compacted = batch_bytes(record_bytes(b"k", b"v", offset=2), count=1, last=2)
    assert not gives_false_offsets(read_batch(compacted, 0, ()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("next_offset", "said", "is_next"),
    [
        (4, 4, True), (5, 5, True), (4, 5, False), (4, 6, False),
        (5, 6, False), (5, 4, False), (4, 1_000, False),
    ],
)  # fmt: skip
def test_only_the_next_record_of_the_next_batch_is_believed(
    client: Any, next_offset: int, said: int, is_next: bool
) -> None:
    offsets = following(next_offset)
    assert offsets.is_next(client, TP, said) is is_next
    offsets.close()


def test_a_position_that_a_record_has_led_to_is_no_loss(client: Any) -> None:
    """What is really gone from where reading is stays one."""
    client.assign([TopicPartition(*TP, 21)])
    message = client.poll(10)
    assert message.error().code() == KafkaError._AUTO_OFFSET_RESET
    assert following(20).misled(message)
    assert not following(21).misled(message)
    assert not FalseOffsets(["orders"]).misled(message)


def test_many_gaps_are_explained_by_one_answer(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind each transaction of a publisher."""
    asked: list[int] = []
    fetch = false_offsets.fetch_batches

    def counted(broker: Any, topic: str, number: int, offset: int, size: int) -> Any:
        asked.append(offset)
        # This broker brings one at a time.
        batches, is_end = fetch(broker, topic, number, offset, size)
        while not is_end:
            more, is_end = fetch(broker, topic, number, batches[-1].last_offset + 1, size)
            batches += more
        return batches, is_end

    monkeypatch.setattr(false_offsets, "fetch_batches", counted)
    offsets = following(0)
    for offset in range(20):
        offsets.following[TP] = offset
        assert offsets.is_next(client, TP, offset)
    assert asked == [0]
    offsets.close()


@pytest.mark.slow
def test_a_connection_that_has_ended_costs_nothing(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker ends one that idles for ten minutes, and refuses once it leads no more."""
    offsets = following(4)
    assert offsets.is_next(client, TP, 4)
    fetch, failures = false_offsets.fetch_batches, [ConnectionResetError()]

    def ended_once(*question: Any) -> Any:
        if failures:
            raise failures.pop()
        return fetch(*question)

    monkeypatch.setattr(false_offsets, "fetch_batches", ended_once)
    offsets.following[TP] = 6
    assert offsets.is_next(client, TP, 6)
    assert not failures
    offsets.close()


@pytest.mark.slow
def test_where_nobody_can_be_asked_nothing_beyond_the_end_is_believed(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where a broker is away the record is read again."""

    def refused(*_: object) -> None:
        raise UserError("it lets in Kerberos only")

    def away(*_: object) -> None:
        raise OSError("nobody is there")

    monkeypatch.setattr(false_offsets, "RETRY_PAUSE_S", 0.0)
    monkeypatch.setattr(false_offsets, "BrokerConnection", refused)
    client.assign([TopicPartition(*TP, 0)])
    # From now on it knows the end.
    assert client.poll(10) is not None
    offsets = following(4)
    assert offsets.is_next(client, TP, 6)
    with pytest.raises(UserError, match=r"says that its offset is 20, where 4 comes next"):
        offsets.is_next(client, TP, 20)
    with pytest.raises(UserError, match="Nothing is skipped unasked"):
        offsets.is_next(client, TP, 3)
    monkeypatch.setattr(false_offsets, "BrokerConnection", away)
    with pytest.raises(OSError, match="nobody is there"):
        offsets.is_next(client, TP, 6)
    monkeypatch.undo()
    assert not offsets.is_next(client, TP, 6)
    offsets.close()


def test_what_was_deleted_behind_the_client_is_passed(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A marker that lay next is gone with the log's start: the client went on from behind it."""
    offsets = following(1)
    asked = offsets._asked

    def deleted(consumer: Any, tp: tuple[str, int], offset: int) -> RecordBatch:
        if offset < 4:
            raise Refused("orders[0]", KafkaError.OFFSET_OUT_OF_RANGE)
        return asked(consumer, tp, offset)

    class FromFour:
        list_topics = client.list_topics

        def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
            return 4, 20

    monkeypatch.setattr(offsets, "_asked", deleted)
    assert offsets.is_next(FromFour(), TP, 4)
    assert not offsets.is_next(FromFour(), TP, 5)

"""Records that are not the next of their partition are compared with what the broker says."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from pipeline.errors import UserError
from pipeline.runtime import false_offsets
from pipeline.runtime.false_offsets import FalseOffsets
from tests.support.mock_cluster import MockCluster
from tests.support.raw_record import produce_raw, record_bytes

TP = ("orders", 0)


@pytest.fixture
def client() -> Any:
    """Of a partition with ten batches of two records."""
    cluster = MockCluster(brokers=1)
    cluster.create_topic("orders")
    records = record_bytes(b"k", b"v") + record_bytes(b"k", b"v", offset=1)
    for _ in range(10):
        produce_raw(cluster.bootstrap_servers, "orders", records, count=2)
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "g"})
    yield client
    client.close()
    del cluster


def following(offset: int) -> FalseOffsets:
    offsets = FalseOffsets(["orders"])
    offsets.open()
    offsets.assign({TP: offset, ("results", 0): 0})
    assert offsets.following == {TP: offset}
    return offsets


@pytest.mark.parametrize(
    ("next_offset", "said", "stands_to"),
    [(4, 4, None), (5, 5, None), (4, 5, 5), (4, 6, 5), (5, 6, 5), (5, 4, 5), (4, 1_000, 5)],
)
def test_only_the_next_record_of_the_next_batch_is_believed(
    client: Any, next_offset: int, said: int, stands_to: int | None
) -> None:
    offsets = following(next_offset)
    found = offsets.judge(client, TP, said)
    assert (found and found.offset()) == stands_to
    offsets.close()


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
        assert offsets.judge(client, TP, offset) is None
    assert asked == [0]
    offsets.close()


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
    assert offsets.judge(client, TP, 6) is None
    with pytest.raises(UserError, match=r"says that its offset is 20, where 4 comes next"):
        offsets.judge(client, TP, 20)
    with pytest.raises(UserError, match="Nothing is skipped unasked"):
        offsets.judge(client, TP, 3)
    monkeypatch.setattr(false_offsets, "BrokerConnection", away)
    with pytest.raises(OSError, match="nobody is there"):
        offsets.judge(client, TP, 6)
    monkeypatch.undo()
    found = offsets.judge(client, TP, 6)
    assert found
    assert found.offset() == 5
    offsets.close()

"""A header's name that is not UTF-8: the client's message breaks, and what reads it goes on."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from pipeline.audit.trace import _redriven
from pipeline.commands.dead_letters_text import whole_lines
from pipeline.runtime.dead_letters import dead_letter, is_redriven
from pipeline.runtime.input_record import input_record
from pipeline.runtime.redrive.letter import Joiner, Piece, Whole
from pipeline.runtime.redrive.plan import Markers
from tests.support.mock_cluster import MockCluster
from tests.support.raw_record import produce_raw, record_bytes
from topics.record_headers import UNREADABLE, record_headers


def consumed(headers: list[tuple[bytes, bytes]]) -> Any:
    """A message of the real client with one header or more."""
    cluster = MockCluster(brokers=1)
    cluster.create_topic("orders")
    produce_raw(cluster.bootstrap_servers, "orders", record_bytes(b"shop:1", b"junk", headers))
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "test"})
    try:
        consumer.assign([TopicPartition("orders", 0, 0)])
        message = consumer.poll(30)
        assert message is not None
        assert message.error() is None
        return message
    finally:
        consumer.close()


@pytest.fixture
def broken() -> Any:
    return consumed([(b"trace", b"t-1"), (b"Gr\xf6\xdfe", b"v")])


def test_they_are_unreadable_however_often_they_are_asked_for(broken: Any) -> None:
    """Also after many others, when the interpreter has made the call a quick one."""
    good = consumed([(b"trace", b"t-1")])
    assert [record_headers(good) for _ in range(100)] == [(("trace", b"t-1"),)] * 100
    assert [record_headers(broken) for _ in range(3)] == [UNREADABLE] * 3
    assert record_headers(broken) is UNREADABLE


def test_a_refused_record_gets_its_letter_which_says_so(broken: Any) -> None:
    """Looked at more than once, as by the worker that refuses and by quarantine after it."""
    record = input_record(broken)
    assert not is_redriven(record)
    for _ in range(2):
        ((_, _, key, value, headers),) = dead_letter(
            record, topic="dlq", stage="payments", cause="truncated"
        )
        assert (key, value) == (b"shop:1", b"junk")
        found = dict(headers or [])
        assert found["dlq.cause"] == b"truncated"
        assert found["dlq.headers_unreadable"] == b"the name of a header is not UTF-8"
        assert not any(name.startswith("dlq.header.") for name in found)
    letter = Joiner().take(Piece(0, 9, 1, key, value, tuple(headers or ())))
    said = list(whole_lines(Whole(letter, value, []), Markers(), "not decoded"))
    assert "headers   not in the letter: the name of a header is not UTF-8" in said


def test_the_way_of_an_order_tells_it(broken: Any) -> None:
    assert _redriven(broken) == ", its headers cannot be read"


def test_readable_ones_are_as_they_were() -> None:
    message = consumed([(b"trace", b"t-1"), (b"unreadable", b"x")])
    assert record_headers(message) == (("trace", b"t-1"), ("unreadable", b"x"))
    ((*_, headers),) = dead_letter(
        input_record(message), topic="dlq", stage="payments", cause="truncated"
    )
    assert dict(headers or [])["dlq.header.trace"] == b"t-1"
    assert "dlq.headers_unreadable" not in dict(headers or [])

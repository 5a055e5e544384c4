"""What zstd unfolds to: read where it is large, named where it is more than a client takes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from pipeline.errors import UserError
from pipeline.runtime.cluster import consumer_config
from pipeline.runtime.table_worker import raise_consume_error
from tests.support.mock_cluster import MockCluster
from tests.support.raw_record import ZSTD, produce_raw, varint

MIB = 1024 * 1024
BLOCK = 128 * 1024


def zeros(mebibytes: int) -> bytes:
    """A zstd frame of one record whose value is as many zeros, in blocks that repeat a byte."""
    size = mebibytes * MIB
    # No key; the zero that counts its headers is one zero more.
    begin = bytes((0, 0, 0, 1)) + varint(size)
    begin = varint(len(begin) + size + 1) + begin
    blocks = [BLOCK] * (size // BLOCK) + [1]
    return (
        b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(begin) + size + 1)
        + _block(len(begin), kind=0) + begin
        + b"".join(
            _block(each, kind=1, last=i == len(blocks) - 1) + b"\0" for i, each in enumerate(blocks)
        )
    )  # fmt: skip


def _block(size: int, *, kind: int, last: bool = False) -> bytes:
    return struct.pack("<I", size << 3 | kind << 1 | last)[:3]


def consumed(records: bytes) -> Any:
    cluster = MockCluster(brokers=1)
    cluster.create_topic("orders")
    produce_raw(cluster.bootstrap_servers, "orders", records, ZSTD)
    config = consumer_config(cluster.bootstrap_servers, group_id="test", instance_id="test")
    consumer = Consumer(config)
    try:
        consumer.assign([TopicPartition("orders", 0, 0)])
        message = consumer.poll(30)
        assert message is not None
        return message
    finally:
        consumer.close()


def test_a_record_beyond_the_client_s_own_bound_is_read() -> None:
    """Its default is 100,000,000 bytes."""
    message = consumed(zeros(110))
    assert message.error() is None
    assert len(message.value()) == 110 * MIB


def test_a_record_that_unfolds_to_too_much_is_named_by_its_place() -> None:
    """Only the head of the frame is looked at, which says how much there is to come."""
    message = consumed(b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 1024 * MIB))
    with pytest.raises(UserError, match=r"the record at orders\[0\]@0 cannot be decompressed"):
        raise_consume_error(message.error(), message)

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
from tests.support.raw_record import MIB, ZSTD, produce_raw, zeros


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

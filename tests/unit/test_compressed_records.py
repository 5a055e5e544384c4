"""What zstd unfolds to is read where it is large."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from pipeline.runtime.cluster import consumer_config
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


@pytest.mark.slow
def test_a_record_beyond_the_client_s_own_bound_is_read() -> None:
    """Its default is 100,000,000 bytes."""
    message = consumed(zeros(110))
    assert message.error() is None
    assert len(message.value()) == 110 * MIB

"""What zstd unfolds to: read where it is large, stepped over by hand where it has to be."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from pipeline.runtime.cluster import consumer_config
from tests.support.mock_cluster import MockCluster
from tests.support.raw_record import MIB, ZSTD, produce_raw, record_bytes, zeros

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
TOO_MUCH = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 1024 * MIB)


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


@pytest.mark.slow
def test_the_documented_script_steps_over_that_place_and_over_nothing_else() -> None:
    """What stands in the operator's document, run as it stands there."""
    cluster = MockCluster(brokers=1)
    cluster.create_topic("orders")
    good = record_bytes(b"shop:1", b"value")
    for records, codec in ((good, 0), (TOO_MUCH, ZSTD), (good, 0), (good, 0)):
        produce_raw(cluster.bootstrap_servers, "orders", records, codec)
    told = OPERATIONS.read_text().split("## A batch that cannot be decompressed")[1]
    script = re.search(r"```python\n(.*?)```", told, re.DOTALL)
    assert script is not None
    words = [cluster.bootstrap_servers, "payments", "orders", "0", "1"]
    done = subprocess.run(
        [sys.executable, "-c", script[1], *words], capture_output=True, text=True, check=False
    )
    assert done.stdout == "going on at orders[0]@2\n", done
    asker = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "payments"})
    (place,) = asker.committed([TopicPartition("orders", 0)], timeout=30)
    asker.close()
    assert place.offset == 2

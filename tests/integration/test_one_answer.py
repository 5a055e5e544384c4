"""What a client brings with one answer, though some of the addresses that it was given are dead."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer

from pipeline.batches.one_answer import asks_once, one_answer
from tests.support.ports import free_port
from tests.support.topics import create_topic

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("dead", [0, 2])
def test_addresses_that_do_not_answer_are_not_taken_for_the_answer(
    kafka: str, topic_prefix: str, dead: int
) -> None:
    """A broker that is down would stop each worker that has to bring something."""
    topic = f"{topic_prefix}in"
    create_topic(kafka, topic)
    producer = Producer({"bootstrap.servers": kafka})
    for number in range(5):
        producer.produce(topic, f"record {number}")
    assert producer.flush(30) == 0
    servers = ",".join([*(f"127.0.0.1:{free_port()}" for _ in range(dead)), kafka])
    for _ in range(4):
        client = asks_once(servers, 100_000)
        try:
            brought = one_answer(client, (topic, 0), 0, 0.5)
        finally:
            client.close()
        assert [each.value() for each in brought if each.error() is None] == [
            f"record {number}".encode() for number in range(5)
        ]

"""What a worker does about an error that a consumer is told."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from pipeline.runtime.kafka_errors import passes_by_itself


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (KafkaError(KafkaError._ALL_BROKERS_DOWN), True),
        (KafkaError(KafkaError._MAX_POLL_EXCEEDED), True),
        (KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION, retriable=True), True),
        (KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), False),
        (KafkaError(KafkaError._TRANSPORT, fatal=True), False),
    ],
    ids=str,
)
def test_only_what_a_client_gets_over_by_itself_is_left_to_it(
    error: KafkaError, passes: bool
) -> None:
    """A broker that is away is waited for; a permission that is missing, or a client that is done
    for, ends the worker."""
    assert passes_by_itself(error) is passes

"""What a worker does about an error that a consumer is told."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from pipeline.runtime.kafka_errors import Course, course_of, passes_by_itself


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


@pytest.mark.parametrize(
    ("marks", "course"),
    [
        ({}, Course.LEAVE),
        ({"retriable": True}, Course.RETRY),
        ({"txn_requires_abort": True}, Course.ABORT),
        ({"retriable": True, "txn_requires_abort": True}, Course.ABORT),
        ({"fatal": True, "txn_requires_abort": True}, Course.LEAVE),
        ({"fatal": True, "retriable": True}, Course.LEAVE),
    ],
    ids=str,
)
def test_the_worst_mark_of_an_error_says_what_is_done(
    marks: dict[str, bool], course: Course
) -> None:
    """A call that is made again in a transaction which has to be aborted never succeeds; a producer
    that is done for cannot even abort; and of an error without a mark nothing is known."""
    assert course_of(KafkaError(KafkaError.NOT_COORDINATOR, **marks)) is course

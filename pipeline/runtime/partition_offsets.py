"""Where partitions begin and end, asked until the answer is of who leads them now."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.runtime.surroundings import REAL, Surroundings

PAUSE_S = 0.2


def list_offsets(
    admin: AdminClient,
    asked: Mapping[TopicPartition, Any],
    *,
    timeout_s: float,
    patience_s: float = 0.0,
    surroundings: Surroundings = REAL,
) -> dict[tuple[str, int], int]:
    """The offset of each partition, transactions that are open included.

    The client's own call goes by the leaders that it has known, and is told FENCED_LEADER_EPOCH
    for as long as it keeps them (over a minute was seen, librdkafka 2.16): it looks who leads
    only when it is told to. So after a failure it is, and asked once more; and again until
    ``patience_s`` are over, while a partition has no leader. Then the KafkaException is raised.
    """
    deadline_s = surroundings.monotonic_s() + patience_s
    asked_again = False
    while True:
        try:
            found = admin.list_offsets(
                dict(asked),
                isolation_level=IsolationLevel.READ_UNCOMMITTED,
                request_timeout=timeout_s,
            )
            return {(tp.topic, tp.partition): f.result().offset for tp, f in found.items()}
        except KafkaException:
            if asked_again and surroundings.monotonic_s() >= deadline_s:
                raise
        if asked_again:
            surroundings.sleep(PAUSE_S)
        asked_again = True
        with contextlib.suppress(KafkaException):
            admin.list_topics(timeout=timeout_s)


def watermarks(
    consumer: Consumer,
    place: TopicPartition,
    *,
    timeout_s: float,
    surroundings: Surroundings = REAL,
) -> tuple[int, int]:
    """First offset and end of a partition, asked again while it has no leader that answers.

    The client's own call waits for an answer, but not for a leader: while one is being chosen it
    fails at once (NOT_LEADER_FOR_PARTITION, _DESTROY_BROKER); where none comes in time it says
    nothing. KafkaException once the time is over.
    """
    deadline_s = surroundings.monotonic_s() + timeout_s
    while True:
        try:
            left_s = max(PAUSE_S, deadline_s - surroundings.monotonic_s())
            found = consumer.get_watermark_offsets(place, timeout=left_s)
            if found is None:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            return found
        except KafkaException:
            if surroundings.monotonic_s() >= deadline_s:
                raise
            surroundings.sleep(PAUSE_S)

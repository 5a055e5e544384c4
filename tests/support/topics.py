"""A topic made for a test, and all that it holds."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec
from confluent_kafka.cimpl import NewTopic

from tests.support.waiting import WAIT_S, wait_until

_log = logging.getLogger(__name__)

READ_TIMEOUT_S = 60.0
_LEVELS = {
    "read_committed": IsolationLevel.READ_COMMITTED,
    "read_uncommitted": IsolationLevel.READ_UNCOMMITTED,
}
_LEADER_ON_ITS_WAY = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
    # Of none of the partitions the client has heard of a leader.
    KafkaError._NOENT,
    # The client has heard of the new leader before the broker has taken its place.
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    # A broker that was restarted ends the connection of before.
    KafkaError._TRANSPORT,
}


def create_topic(
    bootstrap: str,
    topic: str,
    partitions: int = 1,
    *,
    replication: int = -1,
    replicas: Sequence[int] = (),
    config: Mapping[str, str] | None = None,
) -> None:
    """Create a topic (the broker's own replication factor by default, or each partition on these
    brokers) and wait until it is led."""
    admin = _admin(bootstrap)
    where: dict[str, Any] = {"replication_factor": replication}
    if replicas:
        where = {"replica_assignment": [list(replicas)] * partitions}
    new = NewTopic(topic, partitions, config=dict(config or {}), **where)
    admin.create_topics([new], operation_timeout=30)[topic].result(30)
    wait_until(
        lambda: len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == partitions,
        WAIT_S,
        f"topic {topic} is known",
    )
    # The broker learns that it leads a moment after the controller has answered.
    _spans(bootstrap, topic)


def log_ends(bootstrap: str, topic: str, isolation: str = "read_committed") -> dict[int, int]:
    """Where each partition ends for such a reader. A client asked for it once knows of no leader
    where one is being chosen."""
    spans = _spans(bootstrap, topic, isolation)
    return {partition: end for partition, (_, end) in spans.items()}


def delete_topics(bootstrap: str, prefix: str) -> None:
    """Delete every topic whose name begins so; a broker that is not there keeps them."""
    admin = _admin(bootstrap)
    with suppress(KafkaException):
        names = [name for name in admin.list_topics(timeout=10).topics if name.startswith(prefix)]
        # With no time for it (0, the default) a controller answers at once and deletes nothing.
        for asked in admin.delete_topics(names, operation_timeout=30).values() if names else ():
            asked.result(30)


@cache
def _admin(bootstrap: str) -> AdminClient:
    """One for as long as the process lives: a new client costs more than what it is asked."""
    return AdminClient(
        {"bootstrap.servers": bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 500}
    )


def read_all(
    bootstrap: str,
    topic: str,
    isolation: str = "read_committed",
    *,
    timeout_s: float = READ_TIMEOUT_S,
) -> list[Message]:
    """Every record up to the log ends of this moment, by partition and then by offset.

    Under read_committed an open transaction is waited for, because what lies behind it cannot be
    read yet; AssertionError when it is still open at the deadline.
    """
    # The log's end, not the end that a read_committed reader sees: that one hides the open part.
    ends = _spans(bootstrap, topic)
    consumer = _consumer(bootstrap, isolation)
    records: list[Message] = []
    try:
        missing = {partition for partition, (low, end) in ends.items() if end > low}
        consumer.assign([TopicPartition(topic, p, ends[p][0]) for p in sorted(missing)])
        deadline = time.monotonic() + timeout_s
        while missing:
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{topic}: partitions {sorted(missing)} not read to their ends after "
                    f"{timeout_s:g} s; is a transaction open?"
                )
            # With a time-out consume() would wait all of it unless a thousand are there.
            arrived = consumer.consume(1000, timeout=0)
            if not arrived and (first := consumer.poll(0.1)) is not None:
                arrived = [first]
            for message in arrived:
                partition = message.partition()
                offset = message.offset()
                assert partition is not None
                assert offset is not None
                error = message.error()
                if error is None:
                    if offset < ends[partition][1]:
                        records.append(message)
                    if offset + 1 >= ends[partition][1]:
                        missing.discard(partition)
                elif error.code() == KafkaError._PARTITION_EOF:
                    # Control records end the log without a message; this event counts them.
                    if offset >= ends[partition][1]:
                        missing.discard(partition)
                else:
                    raise AssertionError(f"{topic}: {error}")
    finally:
        consumer.close()
    return sorted(records, key=lambda m: (m.partition() or 0, m.offset() or 0))


def _spans(
    bootstrap: str, topic: str, isolation: str = "read_uncommitted"
) -> dict[int, tuple[int, int]]:
    """First and next offset of each partition, once it has a leader; unless a committed reader's
    are asked for, open and aborted transactions included."""
    admin = _admin(bootstrap)
    # Of three brokers the one that is asked may hear of a new topic last.
    partitions = wait_until(lambda: _partitions(admin, topic), WAIT_S, f"there is a topic {topic}")
    level = _LEVELS[isolation]
    if (marks := _marks(admin, partitions, level)) is not None:
        return marks
    # A client that was told of no leader once goes on saying so for minutes.
    return wait_until(
        lambda: _marks(_admin(bootstrap), partitions, level),
        WAIT_S,
        f"each partition of {topic} has a leader",
        interval_s=0.2,
    )


def _partitions(admin: AdminClient, topic: str) -> list[TopicPartition]:
    found = admin.list_topics(topic, timeout=30).topics[topic]
    return [] if found.error is not None else [TopicPartition(topic, p) for p in found.partitions]


def _marks(
    admin: AdminClient, partitions: list[TopicPartition], level: IsolationLevel
) -> dict[int, tuple[int, int]] | None:
    try:
        lows, ends = (
            {
                place.partition: answer.result(30).offset
                for place, answer in admin.list_offsets(
                    dict.fromkeys(partitions, spec),
                    isolation_level=level,
                    request_timeout=10,
                ).items()
            }
            for spec in (OffsetSpec.earliest(), OffsetSpec.latest())
        )
    except KafkaException as error:
        # Not retriable(): the client sets that mark on errors of transactional calls only.
        if error.args[0].code() in _LEADER_ON_ITS_WAY:
            # Shown by pytest where it never comes.
            _log.warning("the ends of %s: %s", partitions[0].topic, error)
            return None
        raise
    return {partition: (low, ends[partition]) for partition, low in lows.items()}


def _consumer(bootstrap: str, isolation: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            # Assigned by hand and committed never, so no group appears; the client wants a name.
            "group.id": f"read-all-{uuid.uuid4().hex}",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": isolation,
            "auto.offset.reset": "earliest",
            # Where a log ends in control records the end is told by an empty answer, and the broker
            # holds that one back for so long: half a second by default, of every read.
            "fetch.wait.max.ms": 10,
        }
    )

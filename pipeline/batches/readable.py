"""Where a partition can be read again, behind batches that no client hands out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.batches.unreadable import (
    NOT_HAD,
    UNFOLDED_BYTES_MAX,
    batch_as_it_lies,
    is_damaged,
    is_unreadable,
)
from pipeline.errors import UserError
from pipeline.kafka_access import reaching

# For the partition's leader to say something: a batch of 16 MiB is unfolded meanwhile.
ANSWER_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.5
_PASSING: Final = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE)


@dataclass(frozen=True, slots=True)
class FirstSeen:
    """What a client brings first from an offset on: a record, the end of the partition, or what it
    says of a batch that it does not hand out; and where that is."""

    offset: int
    is_end: bool = False
    unread: KafkaError | None = None


@contextmanager
def reading_places(
    bootstrap_servers: str, access: Mapping[str, Any] | None = None
) -> Iterator[Consumer]:
    """A client that belongs to no group, for ``first_seen``. It reads as workers do."""
    consumer = Consumer(
        {
            **reaching(bootstrap_servers, access),
            "log_level": 0,
            # Never used: partitions are assigned by hand and nothing is committed.
            "group.id": "paystream-reading-places-unused",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "receive.message.max.bytes": UNFOLDED_BYTES_MAX,
            "check.crcs": True,
        }
    )
    try:
        yield consumer
    finally:
        consumer.close()


def first_seen(
    consumer: Any,
    topic: str,
    partition: int,
    offset: int,
    *,
    timeout_s: float = ANSWER_TIMEOUT_S,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> FirstSeen:
    """UserError when nothing is said of it in time, or something else."""
    consumer.assign([TopicPartition(topic, partition, offset)])
    deadline_s = monotonic_s() + timeout_s
    try:
        while monotonic_s() < deadline_s:
            message = consumer.poll(_POLL_S)
            if message is None:
                continue
            error = message.error()
            if error is None:
                return FirstSeen(message.offset())
            if error.code() == KafkaError._PARTITION_EOF:
                return FirstSeen(message.offset(), is_end=True)
            if is_unreadable(error) or is_damaged(error):
                return FirstSeen(message.offset(), unread=error)
            if error.code() == KafkaError._AUTO_OFFSET_RESET and message.offset() != offset:
                # Of before: behind a damaged batch the client asks for offsets that it made up.
                continue
            if not error.retriable() and error.code() not in _PASSING:
                raise UserError(f"{topic}[{partition}] cannot be read from {offset}: {error.str()}")
    finally:
        consumer.unassign()
    raise UserError(
        f"nothing comes of {topic}[{partition}] from {offset} on within {timeout_s:.0f} s: look "
        "whether the partition has a leader"
    )


def readable_behind(
    consumer: Any,
    topic: str,
    partition: int,
    offset: int,
    *,
    access: Mapping[str, Any] | None = None,
    on_step: Callable[[int], None] = lambda offset: None,
) -> int:
    """The first offset behind the batch that holds this one, and behind those right after it that
    are not handed out either, from which on a client brings records, or nothing up to the end.

    A batch's own head says where it ends, and may be what is damaged: it is believed only as far as
    the client reads on from there, and never beyond the end. Where no broker tells us of batches,
    each offset is tried. UserError as of ``first_seen``; KafkaException.
    """
    at = offset
    while True:
        on_step(at)
        behind = _behind(consumer, topic, partition, at, access)
        end = _end(consumer, topic, partition)
        at = max(at, min(behind, end))
        seen = first_seen(consumer, topic, partition, at)
        if seen.unread is None or seen.offset > at:
            return at


def _behind(
    consumer: Any, topic: str, partition: int, offset: int, access: Mapping[str, Any] | None
) -> int:
    try:
        batch = batch_as_it_lies(consumer, topic, partition, offset, access)
    except NOT_HAD:
        return offset + 1
    return batch.last_offset + 1


def _end(consumer: Any, topic: str, partition: int) -> int:
    found = consumer.get_watermark_offsets(
        TopicPartition(topic, partition), timeout=ANSWER_TIMEOUT_S
    )
    if found is None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return int(found[1])

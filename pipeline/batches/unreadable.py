"""Batches of records that no client of ours can unfold, and how a reader goes on behind them.

A batch that zstd unfolds to more than the client takes, one of a codec that it does not know, or a
frame of LZ4 with more bytes behind it, which a broker takes: the client says so with an error that
carries the batch's first offset, asks for the batch again, and never gets beyond it. What the
reader needs to go on is in the batch's own head.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from pipeline.batches.record_batch import RecordBatch, fetch_batch
from pipeline.broker_connection import BrokerConnection, Refused
from pipeline.errors import UserError
from pipeline.kafka_wire import Malformed

# What a compressed batch of records unfolds to, at most, for every reader alike (their
# ``receive.message.max.bytes``). A topic takes 16 MiB; the client's default of 100,000,000 bytes is
# soon reached from there. It is memory of the reader while the batch is read.
UNFOLDED_BYTES_MAX: Final = 256 * 1024 * 1024
_CODES: Final = frozenset({KafkaError._BAD_COMPRESSION, KafkaError._NOT_IMPLEMENTED})
# What librdkafka 2.16 says of a batch that it has begun to unfold, so that its checksum was right;
# bytes behind a frame of LZ4 have the code of damage.
_UNFOLDING: Final = "Decompression "
# The client asks again every half a second; a leader that has just changed is known by then.
PATIENCE_S: Final = 30.0
# Of each of two questions, while the reader does nothing else: a worker of the gateway stage counts
# as having stood still after seven seconds.
REQUEST_TIMEOUT_S: Final = 3.0
# Why a batch is not to be had. A UserError: a broker that lets us in by Kerberos or a token only.
# LookupError and ValueError: what it says of the partition, or of SCRAM, is not what was asked for.
NOT_HAD: Final = (
    OSError, Malformed, Refused, KafkaException, UserError, LookupError, ValueError,
)  # fmt: skip


def is_unreadable(error: KafkaError | None) -> bool:
    """Whether a consumer with check.crcs says that it cannot unfold a batch, which came as its
    writer's checksum says."""
    if error is None:
        return False
    code = error.code()
    return code in _CODES or (code == KafkaError._BAD_MSG and error.str().startswith(_UNFOLDING))


def is_damaged(error: KafkaError | None) -> bool:
    """Whether a consumer says that a batch is not as its checksum says."""
    return error is not None and error.code() == KafkaError._BAD_MSG and not is_unreadable(error)


def not_stepped_over(topic: str, partition: int, offset: int, why: object) -> str:
    """What is said of a batch at which reading ends, since a person has to look first."""
    return (
        f"the batch at {topic}[{partition}]@{offset} cannot be decompressed ({why}). Nothing is "
        "passed over there unasked; see docs/operations.md, a batch that cannot be decompressed."
    )


class CannotStepOver(Exception):
    """The batch's own head cannot be had: where it ends is not known."""


class UnreadableBatches:
    """Those that one consumer meets. ``clear`` when it is assigned anew or put back. ``access``:
    how it reaches its brokers, where that is not as the process says."""

    def __init__(
        self,
        monotonic_s: Callable[[], float] = time.monotonic,
        access: Mapping[str, Any] | None = None,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._access = access
        self._met: dict[tuple[str, int], int] = {}
        self._behind: dict[tuple[str, int], int] = {}
        self._failing_since_s: dict[tuple[str, int], float] = {}

    def clear(self) -> None:
        self._met, self._behind, self._failing_since_s = {}, {}, {}

    def step_over(
        self, consumer: Any, topic: str, partition: int, offset: int
    ) -> RecordBatch | None:
        """The batch that begins here, with the consumer set behind it; None while it is not to be
        had, or met for the first time. The client's error comes again until it is stepped over.

        Twice, since what came damaged over the network, or was unfolded where memory was short, is
        good when it is asked for again. CannotStepOver when it is not to be had for 30 s, as of
        a broker that lets clients in by Kerberos or a token only.
        """
        place = topic, partition
        if offset < self._behind.get(place, 0):
            return None
        if self._met.get(place) != offset:
            self._met[place] = offset
            self._failing_since_s.pop(place, None)
            return None
        try:
            batch = batch_at(consumer, topic, partition, offset, self._access)
            consumer.seek(TopicPartition(topic, partition, batch.last_offset + 1))
        except NOT_HAD as error:
            now_s = self._monotonic_s()
            if now_s - self._failing_since_s.setdefault(place, now_s) >= PATIENCE_S:
                raise CannotStepOver(str(error)) from error
            return None
        self._behind[place] = batch.last_offset + 1
        self._failing_since_s.pop(place, None)
        return batch


def batch_at(
    consumer: Any,
    topic: str,
    partition: int,
    offset: int,
    access: Mapping[str, Any] | None = None,
) -> RecordBatch:
    """The batch that holds this offset, as it was written, from whoever leads the partition; one of
    NOT_HAD."""
    batch = batch_as_it_lies(consumer, topic, partition, offset, access)
    if batch.is_damaged:
        raise Malformed(f"the batch at {topic}[{partition}]@{offset} is not as its checksum says")
    return batch


def batch_as_it_lies(
    consumer: Any,
    topic: str,
    partition: int,
    offset: int,
    access: Mapping[str, Any] | None = None,
) -> RecordBatch:
    """The same, damaged or not."""
    known = consumer.list_topics(topic, timeout=REQUEST_TIMEOUT_S)
    leader = known.brokers.get(known.topics[topic].partitions[partition].leader)
    if leader is None:
        raise Malformed(f"{topic}[{partition}] has no leader")
    broker = BrokerConnection(leader.host, leader.port, REQUEST_TIMEOUT_S, access=access)
    try:
        return fetch_batch(broker, topic, partition, offset)
    finally:
        broker.close()

"""Reading a topic's past in the order of append times, leaving nothing on the cluster."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from msgspec import Struct

from pipeline.batches.record_batch import RecordBatch
from pipeline.batches.unreadable import (
    UNFOLDED_BYTES_MAX,
    CannotStepOver,
    UnreadableBatches,
    is_unreadable,
    not_stepped_over,
)
from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.kafka_refusal import why_away
from pipeline.runtime.cluster import METADATA_TIMEOUT_S
from pipeline.runtime.partition_offsets import watermarks

# A broker that is there answers a fetch at once; this long it may be busy.
STALL_S = 30.0
BATCH_RECORDS = 500
# All of it is waited for unless a whole batch is there, once for each partition that ends.
POLL_S = 0.1


class PastRecord(Struct, frozen=True, gc=False):
    """One committed record; ``timestamp_ms`` is its append time."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


class TopicReader:
    """Joins no group and commits no offsets. A batch that cannot be decompressed ends the reading
    with a UserError, since what is in it may be missed; or is told to ``on_unreadable``, where
    whoever has read it before went on without it as well."""

    def __init__(
        self,
        bootstrap_servers: str,
        on_unreadable: Callable[[RecordBatch], None] | None = None,
    ) -> None:
        self._on_unreadable = on_unreadable
        self._config: dict[str, Any] = {
            **reaching(bootstrap_servers),
            # Named, as the client wants it; nothing is ever committed under it.
            "group.id": "paystream-past",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "receive.message.max.bytes": UNFOLDED_BYTES_MAX,
            "enable.partition.eof": True,
            # A log that ends in control records ends with an empty answer, held back for so long.
            "fetch.wait.max.ms": 50,
            # One consumer for each partition: what each holds ahead has to stay small.
            "queued.max.messages.kbytes": 4 * 1024,
            "log_level": 0,
        }
        self._servers = bootstrap_servers

    def by_time(
        self, topic: str, from_ms: int | None, until_ms: int | None
    ) -> Iterator[PastRecord]:
        """Records of all partitions, merged by append time, from a time on and before another.

        Ends where each partition ended when it was begun: what is appended meanwhile is left out.
        Raises UserError when the broker or the topic is away.
        """
        asked = Consumer(self._config)
        try:
            found = asked.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics[topic]
        except KafkaException as error:
            raise self._away(error) from error
        finally:
            asked.close()
        if found.error is not None:
            raise UserError(
                f"the cluster at {self._servers} has no topic {topic!r}; create the topics with "
                "`paystream topics apply`."
            )
        parts = [self._partition(topic, p, from_ms, until_ms) for p in sorted(found.partitions)]
        yield from heapq.merge(*parts, key=lambda record: record.timestamp_ms)

    def onward(self, topic: str, partition: int, start: int) -> Iterator[PastRecord]:
        """Records of one partition from an offset on, up to where it ends now."""
        return self._partition(topic, partition, None, None, start)

    def _partition(
        self,
        topic: str,
        partition: int,
        from_ms: int | None,
        until_ms: int | None,
        first: int | None = None,
    ) -> Iterator[PastRecord]:
        consumer = Consumer(self._config)
        unreadable = UnreadableBatches()
        try:
            place = TopicPartition(topic, partition)
            _, end = watermarks(consumer, place, timeout_s=METADATA_TIMEOUT_S)
            start = first
            if start is None:
                start = self._start(consumer, topic, partition, from_ms)
            if start is None or start >= end:
                return
            consumer.assign([TopicPartition(topic, partition, start)])
            last_news_s = time.monotonic()
            while True:
                for message in consumer.consume(BATCH_RECORDS, POLL_S):
                    last_news_s = time.monotonic()
                    error = message.error()
                    if error is not None:
                        if error.code() == KafkaError._PARTITION_EOF:
                            return
                        if error.retriable():
                            continue
                        if is_unreadable(error):
                            batch = self._step_over(unreadable, consumer, message)
                            if batch is not None and batch.last_offset + 1 >= end:
                                return
                            continue
                        raise self._away(KafkaException(error))
                    offset, at_ms = message.offset() or 0, message.timestamp()[1]
                    if offset >= end or (until_ms is not None and at_ms >= until_ms):
                        return
                    yield PastRecord(partition, offset, at_ms, message.key(), message.value())
                if time.monotonic() - last_news_s > STALL_S:
                    raise self._away(None)
        except KafkaException as error:
            raise self._away(error) from error
        finally:
            consumer.close()

    def _step_over(
        self, unreadable: UnreadableBatches, consumer: Consumer, message: Message
    ) -> RecordBatch | None:
        topic, partition, offset = message.topic() or "", message.partition() or 0, message.offset()
        offset = offset or 0
        try:
            batch = unreadable.step_over(consumer, topic, partition, offset)
        except CannotStepOver as error:
            raise UserError(not_stepped_over(topic, partition, offset, error)) from error
        if batch is not None and batch.visible:
            if self._on_unreadable is None:
                why = f"{batch.codec_name}, {batch.records} records to offset {batch.last_offset}"
                raise UserError(not_stepped_over(topic, partition, offset, why))
            self._on_unreadable(batch)
        return batch

    @staticmethod
    def _start(consumer: Consumer, topic: str, partition: int, from_ms: int | None) -> int | None:
        """The first offset appended at or after a time; None when there is none."""
        if from_ms is None:
            place = TopicPartition(topic, partition)
            low, _ = watermarks(consumer, place, timeout_s=METADATA_TIMEOUT_S)
            return low
        (found,) = consumer.offsets_for_times(
            [TopicPartition(topic, partition, max(0, from_ms))], timeout=METADATA_TIMEOUT_S
        )
        return found.offset if found.offset >= 0 else None

    def _away(self, error: KafkaException | None) -> UserError:
        why = why_away(self._servers, error)
        return UserError(
            f"the Kafka broker at {self._servers} does not answer{why}; start it, or name another "
            "with --bootstrap-servers."
        )

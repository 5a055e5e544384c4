"""Records whose offsets are not those of their places in the log.

The client hands out what records of an uncompressed batch say of their offsets: a position behind
such a record would be anywhere, and what comes there passed over. So of topics that others write
to, a record that is not the next one is compared with the heads of the batches, which are the
broker's own. Markers and aborted records explain most of those, at the cost of one request for a
quarter of a megabyte of the log.

What the client leaves out without a word is found in the same way: by what comes behind it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, TopicPartition

from pipeline.batches.record_batch import RecordBatch, fetch_batches
from pipeline.batches.unreadable import NOT_HAD, REQUEST_TIMEOUT_S
from pipeline.broker_connection import BrokerConnection, Refused
from pipeline.errors import UserError
from pipeline.kafka_wire import Malformed
from pipeline.runtime.work import TopicPartitionKey

# What others than this flow write.
OPEN_ROLES: Final = frozenset({"orders", "payment-commands"})
FETCH_BYTES: Final = 256 * 1024
RETRY_PAUSE_S: Final = 0.1


class FalseOffsets:
    """Of one worker. ``following``: what comes next of each partition of those topics; empty until
    it is opened."""

    def __init__(self, topics: Iterable[str]) -> None:
        self._topics = frozenset(topics)
        self._is_open = False
        self.following: dict[TopicPartitionKey, int] = {}
        self._ahead: dict[TopicPartitionKey, deque[RecordBatch]] = {}
        self._brokers: dict[TopicPartitionKey, BrokerConnection] = {}

    def open(self) -> None:
        self._is_open = True

    def close(self) -> None:
        for broker in self._brokers.values():
            broker.close()
        self._brokers.clear()

    def assign(self, positions: Mapping[TopicPartitionKey, int]) -> None:
        """A new assignment, or the same from other positions."""
        self.following.clear()
        self._ahead.clear()
        if self._is_open:
            self.following.update({tp: o for tp, o in positions.items() if tp[0] in self._topics})

    def misled(self, message: Any) -> bool:
        """Whether this error says that a position is not in the log to which only a record's word
        has brought the client."""
        if message.error().code() not in (
            KafkaError._AUTO_OFFSET_RESET,
            KafkaError.OFFSET_OUT_OF_RANGE,
        ):
            return False
        following = self.following.get((message.topic(), message.partition()))
        return following not in (None, message.offset())

    def is_next(self, consumer: Any, tp: TopicPartitionKey, offset: int) -> bool:
        """Whether a record of this offset is the next of its partition, though offsets lie between.
        One of NOT_HAD, after which the partition has to be read again."""
        following = self.following[tp]
        try:
            following, batch = self._from(consumer, tp, following)
        except UserError as error:
            # A broker that lets in no connection of our own.
            _, end = consumer.get_watermark_offsets(TopicPartition(*tp), cached=True)
            if following <= offset < end:
                return True
            raise UserError(
                f"{tp[0]}[{tp[1]}]: a record says that its offset is {offset}, where {following} "
                f"comes next and {end} is the end, and what lies there could not be asked for "
                f"({error}). Nothing is skipped unasked; see docs/operations.md."
            ) from error
        except NOT_HAD:
            self._hang_up(tp)
            time.sleep(RETRY_PAUSE_S)
            raise
        return offset == max(following, batch.first_offset)

    def _from(self, consumer: Any, tp: TopicPartitionKey, offset: int) -> tuple[int, RecordBatch]:
        """Where to look from, and what a reader is handed first from there on. What was passed over
        (a transaction's marker) may be deleted since: the client has gone on from behind it."""
        try:
            return offset, self._asked(consumer, tp, offset)
        except Refused as error:
            if error.code != KafkaError.OFFSET_OUT_OF_RANGE:
                raise
            start, _ = consumer.get_watermark_offsets(
                TopicPartition(*tp), timeout=REQUEST_TIMEOUT_S
            )
            if start <= offset:
                raise
            return start, self._asked(consumer, tp, start)

    def _asked(self, consumer: Any, tp: TopicPartitionKey, offset: int) -> RecordBatch:
        """Over the connection that there is, then over a new one: a broker ends what has idled, and
        may lead no more."""
        if tp in self._brokers:
            with contextlib.suppress(*NOT_HAD):
                return self._batch(consumer, tp, offset)
            self._hang_up(tp)
        return self._batch(consumer, tp, offset)

    def _hang_up(self, tp: TopicPartitionKey) -> None:
        if (broker := self._brokers.pop(tp, None)) is not None:
            broker.close()

    def _batch(self, consumer: Any, tp: TopicPartitionKey, offset: int) -> RecordBatch:
        """The first one from an offset on of which a reader is handed records."""
        batches = self._ahead.setdefault(tp, deque())
        while True:
            while batches:
                batch = batches[0]
                if batch.visible and batch.last_offset >= offset:
                    return batch
                offset = max(offset, batches.popleft().last_offset + 1)
            found, _ = fetch_batches(self._broker(consumer, tp), *tp, offset, FETCH_BYTES)
            if not found:
                raise Malformed(f"nothing lies at {offset}")
            batches.extend(found)

    def _broker(self, consumer: Any, tp: TopicPartitionKey) -> BrokerConnection:
        broker = self._brokers.get(tp)
        if broker is None or broker.is_closed:
            known = consumer.list_topics(tp[0], timeout=REQUEST_TIMEOUT_S)
            leader = known.brokers[known.topics[tp[0]].partitions[tp[1]].leader]
            broker = BrokerConnection(str(leader.host), leader.port, REQUEST_TIMEOUT_S)
            self._brokers[tp] = broker
        return broker

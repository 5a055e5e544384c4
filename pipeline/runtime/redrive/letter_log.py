"""Reads the dead letters and what was done about them, as a read_committed reader sees them.

Joins no group and commits nothing, so it leaves no trace on the cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.batches.record_batch import RecordBatch
from pipeline.batches.unreadable import (
    UNFOLDED_BYTES_MAX,
    CannotStepOver,
    UnreadableBatches,
    is_unreadable,
    not_stepped_over,
)
from pipeline.domain.records import marker_from_record
from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.kafka_refusal import why_refused
from pipeline.runtime.partition_offsets import watermarks
from pipeline.runtime.redrive.letter import Joiner, Letter, Piece, Place, Whole, join
from pipeline.runtime.redrive.plan import Markers
from schemas.codec import Codec
from schemas.errors import DecodeError
from topics.catalogue import Catalogue
from topics.record_headers import record_headers

# A person waits for this: a broker that is there answers in milliseconds.
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 15.0
# Reading makes progress every few milliseconds; a broker's restart takes some ten seconds.
STALL_TIMEOUT_S = 30.0
# Letters have up to 8 MiB: a slice holds as many as come within it, and few enough for memory.
BATCH_RECORDS = 500
POLL_S = 0.1


class LetterLog:
    """One installation's dead letters. Raises UserError when the broker or a topic is away."""

    def __init__(self, bootstrap_servers: str, catalogue: Catalogue, codec: Codec) -> None:
        self._servers = bootstrap_servers
        self._letters = catalogue.name("dead-letters")
        self._markers = catalogue.name("dead-letter-markers")
        self._marker_positions: dict[int, int] = {}
        self._decode_marker = codec.decoder("dead-letter-marker")
        self._group = f"{catalogue.settings.prefix}dead-letters-tool"
        # What is missing in ``letters``, each in a sentence.
        self.left_out: list[str] = []
        self._consumer = self._new_consumer()
        # Of its own: markers are read while letters still come.
        self._marker_consumer = self._new_consumer()
        wanted = (self._letters, self._markers, catalogue.name("audit"))
        self.partitions = self._partition_counts(catalogue, wanted)

    def close(self) -> None:
        self._consumer.close()
        self._marker_consumer.close()

    def __enter__(self) -> LetterLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def letters(self, on_progress: Callable[[int], None] | None = None) -> list[Letter]:
        """Every dead letter that is committed now, without its bytes."""
        joiner = Joiner()
        self.left_out.clear()
        messages = self._read(
            self._consumer,
            self._letters,
            self._spans(self._letters),
            wait_for_end=False,
            left_out=self.left_out,
        )
        for read, message in enumerate(messages, 1):
            joiner.take(_piece(message))
            if on_progress is not None and read % 10_000 == 0:
                on_progress(read)
        return joiner.letters

    def wholes(self, letters: Sequence[Letter]) -> Iterator[Whole]:
        """The same letters with their bytes, in the order of their partitions."""
        by_partition: dict[int, dict[Place, Letter]] = {}
        for letter in letters:
            pieces = by_partition.setdefault(letter.partition, {})
            for offset in letter.pieces:
                pieces[letter.partition, offset] = letter
        for partition, wanted in sorted(by_partition.items()):
            offsets = [offset for _, offset in wanted]
            span = {partition: (min(offsets), max(offsets) + 1)}
            messages = self._read(self._consumer, self._letters, span, wait_for_end=False)
            yield from join((_piece(message) for message in messages), wanted)

    def refresh(self, markers: Markers) -> None:
        """Add what was done since the last call.

        To its end as an uncommitted reader sees it: only redrives write there, and what one of
        them left open is ended before its successor asks.
        """
        spans = {
            partition: (max(start, self._marker_positions.get(partition, 0)), end)
            for partition, (start, end) in self._spans(self._markers).items()
        }
        for message in self._read(self._marker_consumer, self._markers, spans, wait_for_end=True):
            value = message.value()
            if value is None:
                continue
            try:
                markers.take(marker_from_record(self._decode_marker(value)))
            except DecodeError as error:
                # Not passed over: what it says may be that a letter went back, once and for all.
                raise UserError(
                    f"{self._markers}[{message.partition()}]@{message.offset()} is no word about a "
                    f"dead letter ({error}). Nobody of this flow writes such but a newer version: "
                    "see docs/operations.md, dead letters."
                ) from error
        self._marker_positions |= {partition: end for partition, (_, end) in spans.items()}

    def _new_consumer(self, isolation: str = "read_committed") -> Consumer:
        return Consumer(
            {
                **reaching(self._servers),
                # Never joined: partitions are assigned by hand and nothing is committed.
                "group.id": self._group,
                "client.id": "paystream-dead-letters",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": isolation,
                "enable.partition.eof": True,
                "receive.message.max.bytes": UNFOLDED_BYTES_MAX,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,
                # Letters are large at times, and read more slowly than they are fetched.
                "queued.max.messages.kbytes": 32 * 1024,
                "reconnect.backoff.max.ms": 1_000,
                "log_level": 0,
                "error_cb": lambda error: None,
            }
        )

    def _partition_counts(self, catalogue: Catalogue, wanted: Sequence[str]) -> Mapping[str, int]:
        try:
            known = self._consumer.list_topics(timeout=CONNECT_TIMEOUT_S).topics
        except KafkaException as error:
            raise UserError(
                f"No Kafka broker answers at {self._servers}{why_refused(self._servers)}: start "
                "one, or name another with --bootstrap-servers or PAYSTREAM_BOOTSTRAP_SERVERS."
            ) from error
        missing = [name for name in wanted if name not in known]
        if missing:
            raise UserError(
                f"The broker at {self._servers} has no topic {missing[0]!r}: give the prefix of "
                "the flow (--prefix), or let `paystream topics apply` make what is missing."
            )
        return {
            spec.name: len(known[spec.name].partitions)
            for spec in catalogue.topics.values()
            if spec.name in known
        }

    def _spans(self, topic: str) -> dict[int, tuple[int, int]]:
        """First offset and read_uncommitted end of each partition."""
        # The client answers for its own isolation level, and an end below an open transaction
        # would hide what a redrive has just committed behind it.
        asker = self._new_consumer("read_uncommitted")
        try:
            return {
                partition: watermarks(
                    asker, TopicPartition(topic, partition), timeout_s=ANSWER_TIMEOUT_S
                )
                for partition in range(self.partitions[topic])
            }
        except KafkaException as error:
            raise self._away(error) from error
        finally:
            asker.close()

    def _read(
        self,
        consumer: Consumer,
        topic: str,
        spans: Mapping[int, tuple[int, int]],
        *,
        wait_for_end: bool,
        left_out: list[str] | None = None,
    ) -> Iterator[Any]:
        """The committed messages of the spans; without ``wait_for_end`` a transaction that is
        still open ends its partition. A batch that cannot be decompressed ends the reading, or is
        told to ``left_out``."""
        missing = {partition for partition, (start, end) in spans.items() if start < end}
        if not missing:
            return
        consumer.assign([TopicPartition(topic, p, spans[p][0]) for p in sorted(missing)])
        stalled_s = time.monotonic() + STALL_TIMEOUT_S
        unreadable = UnreadableBatches()
        try:
            while missing:
                messages = consumer.consume(BATCH_RECORDS, timeout=POLL_S)
                for message in messages:
                    error = message.error()
                    partition, offset = message.partition() or 0, message.offset() or 0
                    end = spans[partition][1]
                    if error is None:
                        if offset < end:
                            yield message
                        if offset + 1 >= end:
                            missing.discard(partition)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        # Control records end the log without a message; this event counts them.
                        if offset >= end or not wait_for_end:
                            missing.discard(partition)
                    elif is_unreadable(error):
                        batch = _step_over(unreadable, consumer, topic, partition, offset)
                        if batch is None:
                            continue
                        if batch.visible and batch.first_offset < end:
                            why = f"{batch.codec_name}, to offset {batch.last_offset}"
                            if left_out is None:
                                raise UserError(not_stepped_over(topic, partition, offset, why))
                            left_out.append(
                                f"{batch.records} letters at {topic}[{partition}]@{offset} are "
                                f"left out: they cannot be decompressed ({why})"
                            )
                        if batch.last_offset + 1 >= end:
                            missing.discard(partition)
                    elif not error.retriable() and error.code() != KafkaError._TRANSPORT:
                        raise self._away(KafkaException(error))
                now_s = time.monotonic()
                if messages:
                    stalled_s = now_s + STALL_TIMEOUT_S
                elif now_s > stalled_s:
                    raise UserError(
                        f"{topic} of {self._servers} was not read to its end in "
                        f"{STALL_TIMEOUT_S:.0f} s: the broker is away, or a transaction hangs "
                        "(see docs/operations.md). Run the command again."
                    )
        except KafkaException as error:
            raise self._away(error) from error
        consumer.unassign()

    def _away(self, error: KafkaException) -> UserError:
        return UserError(
            f"Kafka at {self._servers} stopped answering ({error.args[0]}). Run the command again."
        )


def _step_over(
    unreadable: UnreadableBatches, consumer: Consumer, topic: str, partition: int, offset: int
) -> RecordBatch | None:
    try:
        return unreadable.step_over(consumer, topic, partition, offset)
    except CannotStepOver as error:
        raise UserError(not_stepped_over(topic, partition, offset, error)) from error


def _piece(message: Any) -> Piece:
    return Piece(
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        record_headers(message),
    )

"""A batch of records as it lies in the log, asked for by a Fetch of our own.

The client unfolds every batch before it hands out anything of it. Where it cannot, only the batch's
own head tells how far it reaches and whose it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.batches.crc32c import crc32c
from pipeline.broker_connection import NO_ERROR, BrokerConnection, Refused
from pipeline.kafka_wire import Malformed, Reader

FETCH: Final = 1
# The first whose answers may hold zstd (KIP-110), and not flexible yet.
FETCH_VERSION: Final = 10
_WAIT_MS: Final = 1_000
_READ_COMMITTED: Final = 1
# First offset, length, leader epoch, magic, checksum; attributes, last offset's delta, first and
# greatest time, producer's id, epoch and sequence, count of records.
_HEAD: Final = struct.Struct(">qiibIhiqqqhii")
# Where the records begin, compressed or not.
RECORDS_AT: Final = _HEAD.size
_LENGTH_FROM: Final = 12
_CHECKSUM: Final = struct.Struct(">I")
_CHECKSUM_AT, _CHECKED_FROM = 17, 21
_MAGIC: Final = 2
_CODEC, _TRANSACTIONAL, _CONTROL = 0x07, 0x10, 0x20
CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")
NONE, GZIP, SNAPPY, LZ4, ZSTD = range(len(CODECS))


@dataclass(frozen=True)
class RecordBatch:
    """``visible``: whether a read_committed reader is handed its records, which it is not of a
    transaction that was aborted, nor of markers. ``at_ms`` is the greatest time of its records,
    their append time in the topics of this flow."""

    first_offset: int
    last_offset: int
    records: int
    at_ms: int
    codec: int
    visible: bool
    data: bytes
    is_control: bool = False

    @property
    def is_damaged(self) -> bool:
        """Whether its bytes are other ones than its checksum was made of."""
        (checksum,) = _CHECKSUM.unpack_from(self.data, _CHECKSUM_AT)
        return bool(checksum != crc32c(memoryview(self.data)[_CHECKED_FROM:]))

    @property
    def codec_name(self) -> str:
        return CODECS[self.codec] if self.codec < len(CODECS) else f"codec {self.codec}"


def fetch_batch(broker: BrokerConnection, topic: str, partition: int, offset: int) -> RecordBatch:
    """The committed batch that holds this offset, from the partition's leader.

    Refused when the broker does not lead the partition or has no such offset; Malformed when what
    it sends is no such batch. The checksum is not looked at: a reader's client has done so.
    """
    # The bounds are of one byte: of a batch that is larger the first comes whole, and alone.
    fetched = _fetch(broker, topic, partition, offset, bytes_max=1, wait_ms=_WAIT_MS)
    return read_batch(fetched.data, offset, fetched.aborted)


def fetch_batches(
    broker: BrokerConnection, topic: str, partition: int, offset: int, bytes_max: int
) -> tuple[list[RecordBatch], bool]:
    """The committed batches from the one on that holds this offset, as many as come at once; and
    whether there are no more. Errors as of ``fetch_batch``."""
    fetched = _fetch(broker, topic, partition, offset, bytes_max=bytes_max, wait_ms=0)
    batches = list(read_batches(fetched.data, fetched.aborted))
    reached = batches[-1].last_offset + 1 if batches else offset
    return batches, not batches or reached >= fetched.stable_end


def stable_ends(
    broker: BrokerConnection, positions: Mapping[tuple[str, int], int]
) -> dict[tuple[str, int], int]:
    """How far a read_committed reader gets in partitions that this broker leads; those are left
    out of which it says something else. ``positions``: an offset of each, by topic and number."""
    by_topic: dict[str, list[tuple[int, int]]] = {}
    for (topic, partition), offset in positions.items():
        by_topic.setdefault(topic, []).append((partition, offset))
    answer = _ask(broker, by_topic, bytes_max=1, wait_ms=0)
    found = {}
    for _ in answer.array():
        topic = answer.string() or ""
        for _ in answer.array():
            partition, code = answer.i32(), answer.i16()
            answer.i64()  # high watermark
            end = answer.i64()
            answer.i64()  # log start
            answer.skip(16 * len(answer.array()))  # aborted transactions
            answer.data()
            if code == NO_ERROR:
                found[topic, partition] = end
    return found


@dataclass(frozen=True)
class _Fetched:
    """``aborted``: producer and first offset of each aborted transaction that reaches to the
    offset that was asked for, or lies behind it."""

    stable_end: int
    aborted: list[tuple[int, int]]
    data: bytes


def _fetch(
    broker: BrokerConnection,
    topic: str,
    partition: int,
    offset: int,
    *,
    bytes_max: int,
    wait_ms: int,
) -> _Fetched:
    wanted = {topic: [(partition, offset)]}
    answer = _ask(broker, wanted, bytes_max=bytes_max, wait_ms=wait_ms)
    for _ in answer.array():
        answer.string()
        for _ in answer.array():
            answer.i32()
            _accept(answer.i16(), topic, partition)
            answer.i64()  # high watermark
            stable_end = answer.i64()
            answer.i64()  # log start
            aborted = [(answer.i64(), answer.i64()) for _ in answer.array()]
            return _Fetched(stable_end, aborted, answer.data())
    raise Malformed(f"an answer without {topic}[{partition}]")


def _ask(
    broker: BrokerConnection,
    wanted: Mapping[str, Sequence[tuple[int, int]]],
    *,
    bytes_max: int,
    wait_ms: int,
) -> Reader:
    """The answer to a Fetch from partitions and their offsets, at its topics."""
    body = struct.pack(
        ">iiiibii", -1, wait_ms, min(1, wait_ms), bytes_max, _READ_COMMITTED, 0, -1
    ) + struct.pack(">i", len(wanted))
    for topic, places in wanted.items():
        name = topic.encode()
        body += struct.pack(">h", len(name)) + name + struct.pack(">i", len(places))
        for partition, offset in places:
            body += struct.pack(">iiqqi", partition, -1, offset, -1, bytes_max)
    answer = broker.ask(FETCH, FETCH_VERSION, body + struct.pack(">i", 0), flexible=False)
    answer.i32()  # throttle time
    if (code := answer.i16()) != NO_ERROR:
        raise Refused(", ".join(wanted), code)
    answer.i32()  # session
    return answer


def _accept(code: int, topic: str, partition: int) -> None:
    if code != NO_ERROR:
        raise Refused(f"{topic}[{partition}]", code)


def read_batch(data: bytes, offset: int, aborted: Iterable[tuple[int, int]]) -> RecordBatch:
    """The batch that ``data`` begins with. ``aborted``: producer and first offset of the aborted
    transactions that reach to ``offset`` or lie behind it."""
    batch, _ = _batch_at(data, 0, aborted)
    if not batch.first_offset <= offset <= batch.last_offset:
        raise Malformed(
            f"a batch of offsets {batch.first_offset} to {batch.last_offset} in answer to {offset}"
        )
    return batch


def read_batches(data: bytes, aborted: Iterable[tuple[int, int]]) -> Iterator[RecordBatch]:
    """The batches that ``data`` holds whole; what is cut off at its end is left out. ``aborted`` as
    of ``read_batch``, for the first of them."""
    open_ones = list(aborted)
    at = 0
    while len(data) - at >= _HEAD.size:
        (length,) = struct.unpack_from(">i", data, at + 8)
        if length > 0 and len(data) - at < _LENGTH_FROM + length:
            return
        batch, producer_id = _batch_at(data, at, open_ones)
        if batch.is_control:
            # The end of whatever transaction its producer had.
            open_ones = [
                (whose, first)
                for whose, first in open_ones
                if whose != producer_id or first > batch.first_offset
            ]
        at += len(batch.data)
        yield batch


def _batch_at(data: bytes, at: int, aborted: Iterable[tuple[int, int]]) -> tuple[RecordBatch, int]:
    """The batch that begins here, and its producer's id."""
    if len(data) - at < _HEAD.size:
        raise Malformed(f"no whole batch in {len(data) - at} bytes")
    (
        first, length, _epoch, magic, _checksum, attributes, delta, _first_ms, last_ms, producer_id,
        _producer_epoch, _sequence, records,
    ) = _HEAD.unpack_from(data, at)  # fmt: skip
    size = _LENGTH_FROM + length
    if magic != _MAGIC:
        raise Malformed(f"a batch of format {magic}")
    if not _HEAD.size <= size <= len(data) - at:
        raise Malformed(f"{len(data) - at} bytes of a batch of {size}")
    # A producer has one transaction at a time, so one that began before this batch and ends behind
    # it holds it.
    dropped = bool(attributes & _TRANSACTIONAL) and any(
        whose == producer_id and begun <= first for whose, begun in aborted
    )
    is_control = bool(attributes & _CONTROL)
    batch = RecordBatch(
        first_offset=first,
        last_offset=first + delta,
        records=records,
        at_ms=last_ms,
        codec=attributes & _CODEC,
        visible=not dropped and not is_control,
        data=data[at : at + size],
        is_control=is_control,
    )
    return batch, producer_id

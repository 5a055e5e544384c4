"""A batch of records as it lies in the log, asked for by a Fetch of our own.

The client unfolds every batch before it hands out anything of it. Where it cannot, only the batch's
own head tells how far it reaches and whose it is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from pipeline.broker_connection import NO_ERROR, BrokerConnection, Refused
from pipeline.kafka_wire import Malformed

FETCH: Final = 1
# The first whose answers may hold zstd (KIP-110), and not flexible yet.
FETCH_VERSION: Final = 10
_WAIT_MS: Final = 1_000
_READ_COMMITTED: Final = 1
# First offset, length, leader epoch, magic, checksum; attributes, last offset's delta, first and
# greatest time, producer's id, epoch and sequence, count of records.
_HEAD: Final = struct.Struct(">qiibIhiqqqhii")
_LENGTH_FROM: Final = 12
_MAGIC: Final = 2
_CODEC, _TRANSACTIONAL, _CONTROL = 0x07, 0x10, 0x20
CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")


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

    @property
    def codec_name(self) -> str:
        return CODECS[self.codec] if self.codec < len(CODECS) else f"codec {self.codec}"


def fetch_batch(broker: BrokerConnection, topic: str, partition: int, offset: int) -> RecordBatch:
    """The committed batch that holds this offset, from the partition's leader.

    Refused when the broker does not lead the partition or has no such offset; Malformed when what
    it sends is no such batch. The checksum is not looked at: a reader's client has done so.
    """
    name = topic.encode()
    # The bounds are of one byte: of a batch that is larger the first comes whole, and alone.
    body = (
        struct.pack(">iiiibii", -1, _WAIT_MS, 1, 1, _READ_COMMITTED, 0, -1)
        + struct.pack(">ih", 1, len(name)) + name
        + struct.pack(">iiiqqi", 1, partition, -1, offset, -1, 1)
        + struct.pack(">i", 0)
    )  # fmt: skip
    answer = broker.ask(FETCH, FETCH_VERSION, body, flexible=False)
    answer.i32()  # throttle time
    _accept(answer.i16(), topic, partition)
    answer.i32()  # session
    for _ in answer.array():
        answer.string()
        for _ in answer.array():
            answer.i32()
            _accept(answer.i16(), topic, partition)
            answer.skip(3 * 8)  # high watermark, last stable offset, log start
            aborted = [(answer.i64(), answer.i64()) for _ in answer.array()]
            return read_batch(answer.data(), offset, dict(aborted))
    raise Malformed(f"an answer without {topic}[{partition}]")


def _accept(code: int, topic: str, partition: int) -> None:
    if code != NO_ERROR:
        raise Refused(f"{topic}[{partition}]", code)


def read_batch(data: bytes, offset: int, aborted: dict[int, int]) -> RecordBatch:
    """The batch that ``data`` begins with. ``aborted``: first offset of a producer's aborted
    transaction that reaches to ``offset`` or beyond, by the producer's id."""
    if len(data) < _HEAD.size:
        raise Malformed(f"no whole batch in {len(data)} bytes")
    (
        first, length, _epoch, magic, _checksum, attributes, delta, _first_ms, last_ms, producer_id,
        _producer_epoch, _sequence, records,
    ) = _HEAD.unpack_from(data)  # fmt: skip
    end = _LENGTH_FROM + length
    if magic != _MAGIC:
        raise Malformed(f"a batch of format {magic}")
    if not _HEAD.size <= end <= len(data):
        raise Malformed(f"{len(data)} bytes of a batch of {end}")
    if not first <= offset <= first + delta:
        raise Malformed(f"a batch of offsets {first} to {first + delta} in answer to {offset}")
    data = data[:end]
    # A producer has one transaction at a time, so one that began before this batch and ends behind
    # it holds it.
    dropped = bool(attributes & _TRANSACTIONAL) and aborted.get(producer_id, first + 1) <= first
    return RecordBatch(
        first_offset=first,
        last_offset=first + delta,
        records=records,
        at_ms=last_ms,
        codec=attributes & _CODEC,
        visible=not dropped and not attributes & _CONTROL,
        data=data,
    )

"""What a batch of records takes of a reader's memory once the client has unfolded it.

The client unfolds a whole batch before it hands out anything, and bounds only zstd. What the others
come to is found here without holding it: gzip is unfolded and thrown away piece by piece up to a
bound, and of the others the frame's own lengths are added up.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from pipeline.record_batch import RECORDS_AT, RecordBatch
from pipeline.unreadable import UNFOLDED_BYTES_MAX

# What the client and we hold for each record beside its bytes: a record may have seven.
RECORD_BYTES: Final = 512
# What no publisher of this flow's records comes near, and every worker has the memory for.
HEAVY_BYTES_MIN: Final = 16 * 1024 * 1024
# By less than this a publisher's records compress; a batch of such is given to every worker,
# however often that one has died of something.
USUAL_MOST: Final = 64
# Of deflate and of LZ4 no byte unfolds to more; zstd repeats a byte 131,072 times in four.
_MOST: Final = {0: 1, 1: 1_032, 2: 22, 3: 255}
_GZIP, _SNAPPY, _LZ4, _ZSTD = 1, 2, 3, 4
_PIECE: Final = 4 * 1024
_SLICE: Final = 1024 * 1024
_XERIAL: Final = b"\x82SNAPPY\0"
_LZ4_BLOCK: Final = {4: 64 * 1024, 5: 256 * 1024, 6: 1024 * 1024, 7: 4 * 1024 * 1024}
_ZSTD_BLOCK: Final = 128 * 1024


def most_unfolded(batch: RecordBatch) -> int:
    """What its records can come to at the most, by the number of its bytes or its frame's word."""
    most = _MOST.get(batch.codec)
    if most is None:
        return unfolded_bytes(batch, UNFOLDED_BYTES_MAX)
    return (len(batch.data) - RECORDS_AT) * most


def is_heavy(batch: RecordBatch, bytes_max: int) -> bool:
    """Whether a reader of this batch needs more than so many bytes for it.

    Below the bound of all workers only what no publisher of orders would write is: a worker that
    was killed for other reasons must not take good records for too many.
    """
    room = bytes_max - batch.records * RECORD_BYTES
    if bytes_max < UNFOLDED_BYTES_MAX:
        usual = USUAL_MOST * len(batch.data)
        room = max(room, min(usual, UNFOLDED_BYTES_MAX - batch.records * RECORD_BYTES))
    if most_unfolded(batch) <= room:
        return False
    size = unfolded_bytes(batch, max(0, room) + 1)
    if batch.codec == _ZSTD and size > UNFOLDED_BYTES_MAX:
        # The client stops there, and has made no record of it.
        return bytes_max < UNFOLDED_BYTES_MAX
    return size > room


def unfolded_bytes(batch: RecordBatch, enough: int) -> int:
    """How much a batch's records come to. Counted up to ``enough``, or a little beyond; where its
    frame does not say it exactly, the most that it says. What is no frame of its codec is nothing:
    the client refuses it."""
    folded = memoryview(batch.data)[RECORDS_AT:]
    try:
        if batch.codec == _GZIP:
            return _gzip(folded, enough)
        if batch.codec == _SNAPPY:
            return _snappy(folded)
        if batch.codec == _LZ4:
            return _lz4(folded)
        if batch.codec == _ZSTD:
            return _zstd(folded)
    except (IndexError, struct.error, zlib.error, KeyError):
        return 0
    return len(folded)


def _gzip(folded: memoryview, enough: int) -> int:
    stream = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
    total = 0
    for at in range(0, len(folded), _PIECE):
        rest = bytes(folded[at : at + _PIECE])
        while rest and total < enough and not stream.eof:
            total += len(stream.decompress(rest, _SLICE))
            rest = stream.unconsumed_tail
    return total


def _snappy(folded: memoryview) -> int:
    """One block, or as Java's client writes it: a head of 16 bytes, then blocks after lengths."""
    if bytes(folded[: len(_XERIAL)]) != _XERIAL:
        return _varint(folded, 0)
    total, at = 0, 16
    while at < len(folded):
        (size,) = struct.unpack_from(">I", folded, at)
        total += _varint(folded, at + 4)
        at += 4 + size
    return total


def _varint(data: memoryview, at: int) -> int:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        at, shift = at + 1, shift + 7


def _lz4(folded: memoryview) -> int:
    """Of the frame's blocks each as much as its head allows, or as its bytes can come to."""
    flags, most = folded[4], _LZ4_BLOCK[folded[5] >> 4 & 7]
    at = 7 + 8 * bool(flags & 0x08) + 4 * bool(flags & 0x01)
    total = 0
    while True:
        (head,) = struct.unpack_from("<I", folded, at)
        size = head & 0x7FFF_FFFF
        if not size:
            return total
        total += size if head != size else min(most, size * _MOST[_LZ4])
        at += 4 + size + 4 * bool(flags & 0x10)


def _zstd(folded: memoryview) -> int:
    """What the frame says of itself, else of its blocks each as much as it says or may come to."""
    flags = folded[4]
    single, code = flags >> 5 & 1, flags >> 6
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    size = (single, 2, 4, 8)[code]
    if size:
        said = int.from_bytes(folded[at : at + size], "little")
        return said + 256 if size == 2 else said
    total = 0
    while True:
        head = folded[at] | folded[at + 1] << 8 | folded[at + 2] << 16
        length, kind = head >> 3, head >> 1 & 3
        total += _ZSTD_BLOCK if kind == 2 else length
        if head & 1:
            return total
        at += 3 + (1 if kind == 1 else length)

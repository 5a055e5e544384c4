"""What a batch of records takes of a reader's memory once the client has unfolded it.

The client unfolds a whole batch before it hands out anything, and bounds only zstd. What the others
come to is found here without holding it: gzip is unfolded and thrown away piece by piece up to a
bound, and of the others the frames' own lengths are added up.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Final

from pipeline.batches.record_batch import GZIP, LZ4, NONE, RECORDS_AT, SNAPPY, ZSTD, RecordBatch
from pipeline.batches.unreadable import UNFOLDED_BYTES_MAX

# What the client and we hold for each record beside its bytes: a record may have seven.
RECORD_BYTES: Final = 512
# What no publisher of this flow's records comes near, and every worker has the memory for.
HEAVY_BYTES_MIN: Final = 16 * 1024 * 1024
# By less than this a publisher's records compress; a batch of such is given to every worker,
# however often that one has died of something. (Orders that differ in their number alone: by 27
# with zstd, 60 by what its frames say.)
USUAL_MOST: Final = 128
# No record of this flow has as few bytes: what is held for each is more than itself.
USUAL_RECORD_BYTES: Final = 32
# Of deflate and of LZ4 no byte unfolds to more; zstd repeats a byte 131,072 times in four.
_MOST: Final = {NONE: 1, GZIP: 1_032, SNAPPY: 22, LZ4: 255}
_PIECE: Final = 4 * 1024
_SLICE: Final = 1024 * 1024
# What gzip begins with; Java's reader looks for it behind each member.
_MEMBER: Final = b"\x1f\x8b\x08"
_XERIAL: Final = b"\x82SNAPPY\0"
_LZ4_FRAME: Final = b"\x04\x22\x4d\x18"
_LZ4_BLOCK: Final = {4: 64 * 1024, 5: 256 * 1024, 6: 1024 * 1024, 7: 4 * 1024 * 1024}
_ZSTD_FRAME, _ZSTD_SKIPPED = 0xFD2F_B528, 0x184D_2A50
_ZSTD_BLOCK: Final = 128 * 1024
# Frames and blocks that are looked at, a fraction of a second; 256 MiB have 2,048 of them,
# and what was cut into many more counts as much as that.
PIECES_MAX: Final = 64 * 1024


def most_unfolded(batch: RecordBatch) -> int:
    """What its records can come to at the most, by the number of its bytes or its frame's word."""
    most = _MOST.get(batch.codec)
    if most is None:
        return unfolded_bytes(batch, UNFOLDED_BYTES_MAX)
    return (len(batch.data) - RECORDS_AT) * most


def most_memory_of(batch: RecordBatch) -> int:
    """What a reader needs for it at the most, found without unfolding it."""
    return most_unfolded(batch) + batch.records * RECORD_BYTES


def memory_of(batch: RecordBatch) -> int:
    """What a reader needs for it."""
    return unfolded_bytes(batch, UNFOLDED_BYTES_MAX) + batch.records * RECORD_BYTES


def is_heavy(batch: RecordBatch, bytes_max: int) -> bool:
    """Whether a reader of this batch needs more than so many bytes for it; of a lower bound never
    fewer batches are.

    Below the bound of all workers only what no publisher of orders would write is: a worker that
    was killed for other reasons must not take good records for too many. What is held for each
    record counts there only where it is nearly all.
    """
    most = max(bytes_max, min(USUAL_MOST * len(batch.data), UNFOLDED_BYTES_MAX))
    of_records = batch.records * RECORD_BYTES
    if most_unfolded(batch) + of_records <= most:
        return False
    size = unfolded_bytes(batch, most + 1)
    if batch.codec == ZSTD and size > UNFOLDED_BYTES_MAX:
        # The client stops there, and has made no record of it.
        return bytes_max < UNFOLDED_BYTES_MAX
    if size > most or size + of_records > max(most, UNFOLDED_BYTES_MAX):
        return True
    return size + of_records > most and size < USUAL_RECORD_BYTES * batch.records


def is_handed_out_in_part(batch: RecordBatch) -> bool:
    """Whether it is gzip of several members, of which the client unfolds the first and says nothing
    of the others; a broker takes them all for the batch. What is behind the first and no member
    belongs to nobody's records."""
    if batch.codec != GZIP or batch.data.find(_MEMBER, RECORDS_AT + 1) < 0:
        return False
    try:
        stream = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
        at = RECORDS_AT
        while not stream.eof and at < len(batch.data):
            rest, at = batch.data[at : at + _PIECE], at + _PIECE
            while rest and not stream.eof:
                stream.decompress(rest, _SLICE)
                rest = stream.unconsumed_tail
        behind = stream.unused_data + batch.data[at:]
        while behind:
            stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            if stream.decompress(behind, 1):
                return True
            behind = stream.unused_data
    except zlib.error:
        pass
    return False


def unfolded_bytes(batch: RecordBatch, enough: int) -> int:
    """How much a batch's records come to. Counted up to ``enough``, or a little beyond; where its
    frames do not say it exactly, the most that they say. What is no frame of its codec is nothing:
    the client refuses it."""
    pieces = _PIECES.get(batch.codec)
    folded = memoryview(batch.data)[RECORDS_AT:]
    if pieces is None:
        return len(folded)
    total = 0
    try:
        for number, size in enumerate(pieces(folded)):
            total += size
            if total >= enough:
                break
            if number == PIECES_MAX:
                return max(total, UNFOLDED_BYTES_MAX)
    except (IndexError, struct.error, zlib.error, KeyError):
        pass
    return total


def _gzip(folded: memoryview) -> Iterator[int]:
    """Of the first member: the client does not look for others."""
    stream = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
    for at in range(0, len(folded), _PIECE):
        rest = bytes(folded[at : at + _PIECE])
        while rest and not stream.eof:
            yield len(stream.decompress(rest, _SLICE))
            rest = stream.unconsumed_tail
        if stream.eof:
            return


def _snappy(folded: memoryview) -> Iterator[int]:
    """One block, or as Java's client writes it: a head of 16 bytes, then blocks after lengths."""
    if bytes(folded[: len(_XERIAL)]) != _XERIAL:
        yield _varint(folded, 0)
        return
    at = 16
    while at < len(folded):
        (size,) = struct.unpack_from(">I", folded, at)
        yield _varint(folded, at + 4)
        at += 4 + size


def _varint(data: memoryview, at: int) -> int:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        at, shift = at + 1, shift + 7


def _lz4(folded: memoryview) -> Iterator[int]:
    """Of the first frame's blocks each as much as its head allows, or as its bytes can come to. The
    client calls a batch damaged that has more behind that."""
    if bytes(folded[:4]) != _LZ4_FRAME:
        return
    flags, most = folded[4], _LZ4_BLOCK[folded[5] >> 4 & 7]
    at = 7 + 8 * bool(flags & 0x08) + 4 * bool(flags & 0x01)
    while True:
        (head,) = struct.unpack_from("<I", folded, at)
        size = head & 0x7FFF_FFFF
        if not size or at + 4 + size > len(folded):
            return
        yield size if head != size else min(most, size * _MOST[LZ4])
        at += 4 + size + 4 * bool(flags & 0x10)


def _zstd(folded: memoryview) -> Iterator[int]:
    """Of each frame, which the client unfolds one behind the other."""
    at = 0
    while at < len(folded):
        (magic,) = struct.unpack_from("<I", folded, at)
        if magic & 0xFFFF_FFF0 == _ZSTD_SKIPPED:
            (size,) = struct.unpack_from("<I", folded, at + 4)
            at += 8 + size
            yield 0
        elif magic == _ZSTD_FRAME:
            at = yield from _zstd_frame(folded, at)
        else:
            return


def _zstd_frame(folded: memoryview, at: int) -> Generator[int, None, int]:
    """What it says of itself, else of its blocks each as much as it says or may come to; and where
    it ends."""
    flags = folded[at + 4]
    single, code = flags >> 5 & 1, flags >> 6
    at += 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    size = (single, 2, 4, 8)[code]
    said = int.from_bytes(folded[at : at + size], "little") + 256 * (size == 2)
    at += size
    if size:
        yield said
    while True:
        head = folded[at] | folded[at + 1] << 8 | folded[at + 2] << 16
        length, kind = head >> 3, head >> 1 & 3
        most = _ZSTD_BLOCK if kind == 2 else length
        yield 0 if size else most
        at += 3 + (1 if kind == 1 else length)
        if head & 1:
            return at + 4 * (flags >> 2 & 1)


_PIECES: Final[dict[int, Callable[[memoryview], Iterator[int]]]] = {
    GZIP: _gzip,
    SNAPPY: _snappy,
    LZ4: _lz4,
    ZSTD: _zstd,
}

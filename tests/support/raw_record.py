"""A record as bytes on the wire, for what no client would write."""

from __future__ import annotations

import socket
import struct
import time
import zlib
from collections.abc import Sequence

from pipeline.kafka_wire import framed
from tests.support.late_produce import PRODUCE, TIMEOUT_S, VERSION, _compact, _crc32c
from tests.support.waiting import WAIT_S, wait_until

GZIP, LZ4, ZSTD = 1, 3, 4
# It does not know the topic, nobody leads the partition, or another one does.
_LEADS_NOT_YET = (3, 5, 6)
MIB = 1024 * 1024
BLOCK = 128 * 1024


def record_bytes(
    key: bytes, value: bytes, headers: Sequence[tuple[bytes, bytes]] = (), *, offset: int = 0
) -> bytes:
    """A record of a batch, the one or as far behind its first."""
    record = bytes((0, 0)) + varint(offset) + _sized(key) + _sized(value) + varint(len(headers))
    record += b"".join(_sized(name) + _sized(text) for name, text in headers)
    return _sized(record)


def batch_bytes(
    records: bytes,
    attributes: int = 0,
    *,
    count: int = 1,
    last: int | None = None,
    first: int = 0,
    producer_id: int = -1,
    epoch: int = -1,
    sequence: int = -1,
    damaged: bool = False,
) -> bytes:
    """``attributes`` are the codec's number and the batch's marks; ``damaged``: its checksum is
    another's; ``last``: where its last record is, behind its first."""
    at_ms = int(time.time() * 1000)
    last = count - 1 if last is None else last
    checked = struct.pack(
        ">hiqqqhii", attributes, last, at_ms, at_ms, producer_id, epoch, sequence, count
    )
    checked += records
    rest = struct.pack(">ibI", -1, 2, _crc32c(checked) ^ damaged) + checked
    return struct.pack(">qi", first, len(rest)) + rest


def produce_raw(
    bootstrap: str,
    topic: str,
    records: bytes,
    codec: int = 0,
    *,
    count: int = 1,
    damaged: bool = False,
) -> None:
    """A batch in partition 0; ``count``: how many records it says it has."""
    batch = batch_bytes(records, codec, count=count, damaged=damaged)
    produce_batch(bootstrap, topic, batch)


def produce_batch(
    bootstrap: str, topic: str, batch: bytes, transactional_id: str | None = None
) -> None:
    """A batch as it is, in partition 0; as part of a transaction that is open."""
    error = answer_to_batch(bootstrap, topic, batch, transactional_id)
    assert error == 0, error


def answer_to_batch(
    bootstrap: str, topic: str, batch: bytes, transactional_id: str | None = None
) -> int:
    """The broker's error once it leads, 0 if it has taken it."""

    def answered() -> list[int]:
        error = _answer_to_batch(bootstrap, topic, batch, transactional_id)
        return [] if error in _LEADS_NOT_YET else [error]

    return wait_until(answered, WAIT_S, f"the broker leads {topic}", interval_s=0.1)[0]


def _answer_to_batch(bootstrap: str, topic: str, batch: bytes, transactional_id: str | None) -> int:
    host, _, port = bootstrap.partition(":")
    transaction = b"\0" if transactional_id is None else _compact(transactional_id.encode())
    body = (
        struct.pack(">hhih", PRODUCE, VERSION, 1, 4) + b"test" + b"\0"
        + transaction + struct.pack(">hi", -1, 30_000)
        + b"\x02" + _compact(topic.encode())
        + b"\x02" + struct.pack(">i", 0) + _compact(batch) + b"\0"
        + b"\0" + b"\0"
    )  # fmt: skip
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        connection.sendall(framed(body))
        answer = connection.recv(4096)
    (error,) = struct.unpack_from(">h", answer, 4 + 4 + 1 + 1 + 1 + len(topic) + 1 + 4)
    return int(error)


def zeros(mebibytes: int, key: bytes | None = None) -> bytes:
    """A zstd frame of one record whose value is as many zeros, in blocks that repeat a byte."""
    size = mebibytes * MIB
    return _zstd_frame(_begin(size, key), size + 1)


def zeros_in_frames(mebibytes: int, *, told: bool) -> bytes:
    """The same without a key, behind a frame of nothing and in one for its begin and another for
    the rest; ``told``: that one says how much it is."""
    size = mebibytes * MIB
    nothing = b"\x50\x2a\x4d\x18" + struct.pack("<I", 1) + b"\0"
    return nothing + _zstd_frame(_begin(size), 0) + _zstd_frame(b"", size + 1, told=told)


def _begin(size: int, key: bytes | None = None) -> bytes:
    """Of a record with so large a value, up to that."""
    # A one says that there is no key; the zero that counts its headers is one zero more.
    begin = bytes((0, 0, 0)) + (b"\x01" if key is None else _sized(key)) + varint(size)
    return varint(len(begin) + size + 1) + begin


def _zstd_frame(begin: bytes, size: int, *, told: bool = True) -> bytes:
    """These bytes and so many zeros behind them."""
    blocks = [BLOCK] * (size // BLOCK) + [size % BLOCK]
    return (
        # A window of 128 KiB: the broker unfolds it as a stream, however much comes.
        b"\x28\xb5\x2f\xfd"
        + (b"\x80\x38" + struct.pack("<I", len(begin) + size) if told else b"\x00\x38")
        + _block(len(begin), kind=0) + begin
        + b"".join(
            _block(each, kind=1, last=i == len(blocks) - 1) + b"\0" for i, each in enumerate(blocks)
        )
    )  # fmt: skip


def gzip_zeros(mebibytes: int) -> bytes:
    """The same without a key, by gzip."""
    size = mebibytes * MIB
    begin = _begin(size)
    checksum = zlib.crc32(begin)
    for _ in range(mebibytes):
        checksum = zlib.crc32(bytes(MIB), checksum)
    checksum = zlib.crc32(b"\0", checksum)
    # A piece that ends in a full flush stands by itself, so that one is compressed for all.
    return (
        b"\x1f\x8b\x08" + bytes(7)
        + _deflated(begin) + _deflated(bytes(MIB)) * mebibytes
        + _deflated(b"\0", zlib.Z_FINISH)
        + struct.pack("<II", checksum, len(begin) + size + 1 & 0xFFFF_FFFF)
    )  # fmt: skip


def gzip_members(*parts: bytes) -> bytes:
    """Each a member by itself, which a broker reads as one."""
    return b"".join(zlib.compress(each, wbits=16 + zlib.MAX_WBITS) for each in parts)


def lz4_frame(data: bytes) -> bytes:
    """Of less than 64 KiB, as they are, in one block."""
    head = b"\x04\x22\x4d\x18\x60\x40\x82"
    return head + struct.pack("<I", len(data) | 1 << 31) + data + bytes(4)


def _deflated(data: bytes, end: int = zlib.Z_FULL_FLUSH) -> bytes:
    stream = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush(end)


def _block(size: int, *, kind: int, last: bool = False) -> bytes:
    return struct.pack("<I", size << 3 | kind << 1 | last)[:3]


def _sized(data: bytes) -> bytes:
    return varint(len(data)) + data


def varint(number: int) -> bytes:
    """Of at most 64 bits."""
    number, out = number << 1 ^ number >> 63, b""
    while number >= 0x80:
        out, number = out + bytes((number & 0x7F | 0x80,)), number >> 7
    return out + bytes((number,))

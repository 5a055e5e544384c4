"""Bytes as Kafka writes them into a partition's log, made by hand."""

from __future__ import annotations

import struct
from pathlib import Path

from pipeline.chaos.flow.log_bytes import Batch, batches

PLACE = ("settlements", 0)
# A transactional id of the coordinator's log, and its producer.
NAME, PRODUCER = "paystream//n1/payments/0", 7
ONGOING, PREPARE_COMMIT, PREPARE_ABORT, COMPLETE_COMMIT, COMPLETE_ABORT = 1, 2, 3, 4, 5
EMPTY = 0


def varint(value: int) -> bytes:
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def record(key: bytes, value: bytes) -> bytes:
    body = b"\0" + varint(0) + varint(0) + varint(len(key)) + key + varint(len(value)) + value
    body += varint(0)
    return varint(len(body)) + body


def batch_bytes(
    first: int, count: int, producer: int, attributes: int, body: bytes, *, offsets: int = 0
) -> bytes:
    """``offsets``: how many the batch has, where some of its records have been compacted away."""
    rest = struct.pack(
        ">ibIhiqqqhii", 0, 2, 0, attributes, (offsets or count) - 1, 0, 0, producer, 0, 0, count
    )  # fmt: skip
    return struct.pack(">qi", first, len(rest) + len(body)) + rest + body


def data(first: int, count: int = 1, producer: int = PRODUCER, *, plain: bool = False) -> bytes:
    body = record(b"k", b"v") * count
    return batch_bytes(first, count, producer, 0 if plain else 0x10, body)


def marker(first: int, *, commits: bool, producer: int = PRODUCER) -> bytes:
    body = record(struct.pack(">hh", 0, int(commits)), b"\0" * 6)
    return batch_bytes(first, 1, producer, 0x30, body)


def said(first: int, state: int, version: int = 1, *, producer: int = PRODUCER) -> bytes:
    """A record of the coordinator's about NAME; a transaction that is complete has no partitions
    any more."""
    places = () if state in (EMPTY, COMPLETE_COMMIT, COMPLETE_ABORT) else (PLACE,)
    body = record(_key(), _value(version, state, producer, places))
    return batch_bytes(first, 1, -1, 0, body)


def read(folder: Path, *parts: bytes) -> list[Batch]:
    """The batches of a partition with this one segment."""
    (folder / "00000000000000000000.log").write_bytes(b"".join(parts))
    return list(batches(folder))


def _key() -> bytes:
    return struct.pack(">hh", 0, len(NAME)) + NAME.encode()


def _value(version: int, state: int, producer: int, places: tuple[tuple[str, int], ...]) -> bytes:
    out = struct.pack(">hqhib", version, producer, 0, 10_000, state)
    out += struct.pack(">i", len(places)) if version == 0 else bytes([len(places) + 1])
    for topic, partition in places:
        if version == 0:
            out += struct.pack(">h", len(topic)) + topic.encode()
            out += struct.pack(">ii", 1, partition)
        else:
            out += bytes([len(topic) + 1]) + topic.encode() + bytes([2])
            out += struct.pack(">i", partition) + b"\0"
    out += struct.pack(">qq", 0, 0)
    if version == 0:
        return out
    # One tagged field, as a transaction of a client with transaction version 2 has it.
    return out + bytes([1, 2, 2]) + struct.pack(">h", 2)

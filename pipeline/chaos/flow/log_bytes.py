"""What a partition says by its own bytes: batches and markers.

Read from a broker's segment files, with no client and none of our code between: which records
belong to a transaction that was committed, which to one that was aborted. Format: Kafka's record
batch (magic 2).
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# base offset, length, leader epoch, magic, crc, attributes, last offset delta, two timestamps,
# producer id, producer epoch, base sequence, records
_HEADER = struct.Struct(">qiibIhiqqqhii")
# The length does not count what stands before it, nor itself.
_LENGTH_FROM = 12
_TRANSACTIONAL, _CONTROL, _COMPRESSION = 0x10, 0x20, 0x07
_COMMIT = 1

COMMITTED, ABORTED, OPEN = 1, 2, 3


class Compacted(Exception):
    """Some of a log's records are gone: what they said is not known any more."""


@dataclass(frozen=True)
class Batch:
    """One batch. ``commits`` is None unless it is a marker; ``body`` is empty if compressed.

    ``count`` is less than its offsets where the log was compacted.
    """

    first: int
    last: int
    count: int
    producer_id: int
    transactional: bool
    commits: bool | None
    body: bytes


@dataclass(frozen=True)
class Marker:
    """The end of a producer's transaction in one partition; ``ended``: it had records there."""

    offset: int
    commits: bool
    ended: bool


@dataclass
class PartitionTruth:
    """``fate`` of each offset: 0 for what is no record, COMMITTED, ABORTED, or OPEN."""

    fate: bytearray = field(default_factory=bytearray)
    markers: dict[int, list[Marker]] = field(default_factory=lambda: defaultdict(list))


def batches(folder: Path) -> Iterator[Batch]:
    """Every batch of a partition's folder, in order. A torn last batch is not there yet."""
    for segment in sorted(folder.glob("*.log")):
        data = segment.read_bytes()
        at = 0
        while at + _HEADER.size <= len(data):
            (first, length, _, magic, _, attributes, delta, _, _, producer, _, _, count) = (
                _HEADER.unpack_from(data, at)
            )
            end = at + _LENGTH_FROM + length
            if length <= 0 or magic != 2 or end > len(data):
                break
            commits = None
            body = data[at + _HEADER.size : end]
            if attributes & _CONTROL:
                key, _ = next(records(body))
                # Of the two kinds of control records that a partition of data has.
                commits = key is not None and struct.unpack_from(">hh", key)[1] == _COMMIT
            if attributes & _COMPRESSION:
                body = b""
            transactional = bool(attributes & _TRANSACTIONAL)
            yield Batch(first, first + delta, count, producer, transactional, commits, body)
            at = end


def whole(found: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches; Compacted if a record between the first and the last is not there."""
    next_offset = 0
    for batch in found:
        if batch.first != next_offset or batch.count != batch.last - batch.first + 1:
            raise Compacted(f"some of the records {next_offset} to {batch.last} are gone")
        next_offset = batch.last + 1
        yield batch


def truth_of(found: Iterable[Batch]) -> PartitionTruth:
    """Which records are committed, by the markers alone. Compacted if some are gone."""
    truth = PartitionTruth()
    still_open: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for batch in whole(found):
        if batch.last >= len(truth.fate):
            truth.fate.extend(bytes(batch.last + 1 - len(truth.fate)))
        span = (batch.first, batch.last)
        if batch.commits is not None:
            ended = still_open.pop(batch.producer_id, [])
            for each in ended:
                _set(truth.fate, each, COMMITTED if batch.commits else ABORTED)
            marker = Marker(batch.first, batch.commits, bool(ended))
            truth.markers[batch.producer_id].append(marker)
        elif batch.transactional:
            still_open[batch.producer_id].append(span)
            _set(truth.fate, span, OPEN)
        else:
            _set(truth.fate, span, COMMITTED)
    return truth


def _set(fate: bytearray, span: tuple[int, int], value: int) -> None:
    first, last = span
    fate[first : last + 1] = bytes((value,)) * (last + 1 - first)


def records(body: bytes) -> Iterator[tuple[bytes | None, bytes | None]]:
    """Key and value of each record of an uncompressed batch."""
    reader = Reader(body)
    while not reader.done:
        size = reader.varint()
        end = reader.at + size
        reader.take(1)
        reader.varint()
        reader.varint()
        key = reader.blob()
        value = reader.blob()
        yield key, value
        reader.at = end


class Reader:
    """Kafka's encodings, read one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    @property
    def done(self) -> bool:
        return self.at >= len(self._data)

    def number(self, form: str) -> int:
        value: int = struct.unpack_from(form, self._data, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def take(self, size: int) -> bytes:
        taken = self._data[self.at : self.at + size]
        self.at += size
        return taken

    def blob(self) -> bytes | None:
        size = self.varint()
        return None if size < 0 else self.take(size)

    def varint(self, *, signed: bool = True) -> int:
        value = shift = 0
        while True:
            byte = self._data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1) if signed else value
            shift += 7


def partition_folders(log_dir: Path) -> dict[tuple[str, int], Path]:
    """The folders of a broker's log directory by topic and partition."""
    found = {}
    for folder in log_dir.iterdir():
        match = re.fullmatch(r"(.+)-([0-9]+)", folder.name)
        if match and folder.is_dir():
            found[match[1], int(match[2])] = folder
    return found

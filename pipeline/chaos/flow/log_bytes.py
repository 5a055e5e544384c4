"""What a log says by its own bytes: batches, markers and the coordinator's decisions.

Read from a broker's segment files, with no client and none of our code between: which records
belong to a transaction that was committed, which to one that was aborted, and what the transaction
coordinator had decided. Formats: Kafka's record batch (magic 2) and ``TransactionLogValue``.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# base offset, length, leader epoch, magic, crc, attributes, last offset delta, two timestamps,
# producer id, producer epoch, base sequence, records
_HEADER = struct.Struct(">qiibIhiqqqhii")
# The length does not count what stands before it, nor itself.
_LENGTH_FROM = 12
_TRANSACTIONAL, _CONTROL, _COMPRESSION = 0x10, 0x20, 0x07
_COMMIT = 1
# States of TransactionLogValue that are decisions, and whether for a commit.
_DECISIONS = {2: True, 3: False}

COMMITTED, ABORTED, OPEN = 1, 2, 3


@dataclass(frozen=True)
class Batch:
    """One batch. ``commits`` is None unless it is a marker."""

    first: int
    last: int
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


@dataclass(frozen=True)
class Decision:
    """What the coordinator decided of one transaction, and which partitions were in it."""

    transactional_id: str
    producer_id: int
    commits: bool
    partitions: frozenset[tuple[str, int]]


def batches(folder: Path) -> Iterator[Batch]:
    """Every batch of a partition's folder, in order. A torn last batch is not there yet."""
    for segment in sorted(folder.glob("*.log")):
        data = segment.read_bytes()
        at = 0
        while at + _HEADER.size <= len(data):
            (first, length, _, magic, _, attributes, delta, _, _, producer, _, _, _) = (
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
            yield Batch(
                first, first + delta, producer, bool(attributes & _TRANSACTIONAL), commits, body
            )
            at = end


def truth_of(found: Iterable[Batch]) -> PartitionTruth:
    """Which records are committed, by the markers alone."""
    truth = PartitionTruth()
    still_open: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for batch in found:
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


def decisions(found: Iterable[Batch]) -> Iterator[Decision]:
    """What the coordinator wrote down for good, in order, of one partition of its log."""
    for batch in found:
        if batch.commits is not None:
            continue
        for key, value in records(batch.body):
            if key is None or value is None or struct.unpack_from(">h", key)[0] != 0:
                continue
            size = struct.unpack_from(">h", key, 2)[0]
            decision = _decision(key[4 : 4 + size].decode(), value)
            if decision is not None:
                yield decision


def _decision(transactional_id: str, value: bytes) -> Decision | None:
    reader = _Reader(value)
    flexible = reader.number(">h") >= 1
    producer_id = reader.number(">q")
    reader.number(">h")
    reader.number(">i")
    state = reader.number(">b")
    if state not in _DECISIONS:
        return None
    count = reader.varint(signed=False) - 1 if flexible else reader.number(">i")
    partitions = set()
    for _ in range(max(0, count)):
        size = reader.varint(signed=False) - 1 if flexible else reader.number(">h")
        topic = reader.take(size).decode()
        places = reader.varint(signed=False) - 1 if flexible else reader.number(">i")
        partitions |= {(topic, reader.number(">i")) for _ in range(places)}
        if flexible:
            for _ in range(reader.varint(signed=False)):
                reader.varint(signed=False)
                reader.take(reader.varint(signed=False))
    return Decision(transactional_id, producer_id, _DECISIONS[state], frozenset(partitions))


def records(body: bytes) -> Iterator[tuple[bytes | None, bytes | None]]:
    """Key and value of each record of an uncompressed batch."""
    reader = _Reader(body)
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


class _Reader:
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
        match = re.fullmatch(r"(.+)-(\d+)", folder.name)
        if match and folder.is_dir():
            found[match[1], int(match[2])] = folder
    return found


def broken_ends(
    decided: Iterable[Decision], truths: dict[tuple[str, int], PartitionTruth]
) -> list[str]:
    """Transactions that did not end in some partition as their coordinator had decided.

    A coordinator that has come after another writes markers again; such a one ends nothing.
    """
    expected: dict[tuple[int, str, int], list[Decision]] = defaultdict(list)
    for decision in decided:
        for topic, partition in decision.partitions:
            if (topic, partition) in truths:
                expected[decision.producer_id, topic, partition].append(decision)
    wrong = []
    for (topic, partition), truth in truths.items():
        for producer, markers in truth.markers.items():
            wanted = expected.pop((producer, topic, partition), [])
            said = _against_their_word(markers, wanted)
            if said:
                wrong.append(f"{topic}[{partition}]{said}")
    for (_, topic, partition), wanted in expected.items():
        wrong.append(f"{topic}[{partition}]: no marker of {wanted[0].transactional_id}")
    return wrong


def _against_their_word(markers: Sequence[Marker], wanted: Sequence[Decision]) -> str:
    """The first marker that no reading of these decisions explains, or that one has no marker."""
    # How many of the decisions may have been carried out so far: a marker that ended nothing may
    # be one's first, or the one before again.
    done = {0}
    for marker in markers:
        next_done = {
            at + 1 for at in done if at < len(wanted) and wanted[at].commits == marker.commits
        }
        if not marker.ended:
            next_done |= done
        if not next_done:
            said = "committed" if marker.commits else "aborted"
            who = wanted[min(max(done), len(wanted) - 1)].transactional_id if wanted else "anybody"
            return f"@{marker.offset}: {said} against the word of {who}"
        done = next_done
    if len(wanted) in done:
        return ""
    return f": no marker of {wanted[max(done)].transactional_id}"

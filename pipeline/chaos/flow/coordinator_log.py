"""What the transaction coordinators decided, by the bytes of ``__transaction_state``.

Format: Kafka's ``TransactionLogValue``, versions 0 and 1. A coordinator believes a record of its
own once enough replicas have it. One that it gave up waiting for stays in the log all the same,
and it decides anew: the same again, or, after the transaction's time-out, the opposite. Markers
follow the last decision alone; ``Complete`` is written when every partition has its marker.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.chaos.flow.log_bytes import (
    Batch,
    Marker,
    PartitionTruth,
    Reader,
    batches,
    records,
    whole,
)

_ONGOING = 1
# States of TransactionLogValue that are decisions, and whether for a commit.
_DECISIONS = {2: True, 3: False}
_COMPLETE = {4, 5}


@dataclass(frozen=True)
class Entry:
    """One record of the coordinator's. ``partitions`` are those with a marker to come."""

    transactional_id: str
    producer_id: int
    state: int
    partitions: frozenset[tuple[str, int]]

    @property
    def is_under_way(self) -> bool:
        """More is to come of this transaction, if only its abort after a time-out."""
        return self.state == _ONGOING or self.state in _DECISIONS


@dataclass(frozen=True)
class Decision:
    """What became of one transaction, and which partitions were in it. ``taken_back``: how many
    decisions were written before that no partition was ever told."""

    transactional_id: str
    producer_id: int
    commits: bool
    partitions: frozenset[tuple[str, int]]
    taken_back: int = 0


def entries(found: Iterable[Batch]) -> Iterator[Entry]:
    """Every record of one partition of the coordinator's log. Compacted if some are gone."""
    for batch in whole(found):
        # No marker of any transaction comes here.
        for key, value in records(batch.body):
            if key is None or value is None or struct.unpack_from(">h", key)[0] != 0:
                continue
            size = struct.unpack_from(">h", key, 2)[0]
            yield _entry(key[4 : 4 + size].decode(), value)


def producer_id_of(folder: Path, transactional_id: str) -> int | None:
    """Whose transactions go by that id now, by the coordinator's log in that folder."""
    found = None
    for entry in entries(batches(folder)):
        if entry.transactional_id == transactional_id:
            found = entry.producer_id
    return found


def decisions(said: Iterable[Entry]) -> Iterator[Decision]:
    """What was decided for good, in order. A last one without ``Complete`` counts as well: its
    markers have to come."""
    words: dict[str, list[Entry]] = defaultdict(list)
    for entry in said:
        if entry.state in _DECISIONS:
            words[entry.transactional_id].append(entry)
        elif entry.state in _COMPLETE:
            yield from _last(words.pop(entry.transactional_id, []))
        else:
            # It goes on, or its producer begins anew: what was written before was not obeyed.
            words.pop(entry.transactional_id, None)
    for left in words.values():
        yield from _last(left)


def _last(words: Sequence[Entry]) -> Iterator[Decision]:
    if words:
        last = words[-1]
        yield Decision(
            last.transactional_id,
            last.producer_id,
            _DECISIONS[last.state],
            last.partitions,
            len(words) - 1,
        )


def under_way(said: Iterable[Entry]) -> list[str]:
    """Transactional ids of which more is to be written although nobody writes any more."""
    last = {entry.transactional_id: entry for entry in said}
    return sorted(name for name, entry in last.items() if entry.is_under_way)


def _entry(transactional_id: str, value: bytes) -> Entry:
    reader = Reader(value)
    flexible = reader.number(">h") >= 1
    producer_id = reader.number(">q")
    reader.number(">h")
    reader.number(">i")
    state = reader.number(">b")
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
    return Entry(transactional_id, producer_id, state, frozenset(partitions))


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

"""Requests that a careful gateway worker has fetched and not begun.

It begins one at a time, and what it fetched meanwhile waits here: to pause a partition throws away
what the client has prefetched, so to fetch one record at a time costs a fetch for each. What waits
was neither decoded nor written down as under way, and is read again by whoever comes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from pipeline.runtime.input_record import InputRecord

# Enough for a second or more of single calls; fetching stops there, and goes on at half of it.
HELD_MAX = 500


class HeldRequests:
    """Bounded by its user, who stops fetching. Each partition's records come out in their order."""

    def __init__(self) -> None:
        # Of partitions of which something waits.
        self._queues: dict[int, deque[InputRecord]] = {}

    def __len__(self) -> int:
        # Asked at each turn of the loop, of a worker that nearly always holds nothing.
        return sum(map(len, self._queues.values())) if self._queues else 0

    def count(self, partition: int) -> int:
        return len(self._queues.get(partition, ()))

    def add(self, records: Iterable[InputRecord]) -> None:
        for record in records:
            self._queues.setdefault(record.partition, deque()).append(record)

    def one(self, first: Collection[int]) -> list[InputRecord]:
        """The next record, of these partitions as long as they have any; empty when none waits."""
        for partition in sorted(self._queues, key=lambda each: each not in first):
            # In turn with the others: no partition waits for all of another's.
            queue = self._queues.pop(partition)
            record = queue.popleft()
            if queue:
                self._queues[partition] = queue
            return [record]
        return []

    def all(self) -> list[InputRecord]:
        """Whatever waits: the worker is careful no more."""
        records = [record for queue in self._queues.values() for record in queue]
        self._queues.clear()
        return records

    def drop(self, partition: int) -> None:
        """It is read again from an earlier position, or is not ours any more."""
        self._queues.pop(partition, None)

    def clear(self) -> None:
        self._queues.clear()

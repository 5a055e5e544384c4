"""Commits in order over calls that end out of order.

A partition's offset may only move over a prefix of finished records: a result behind an unfinished
one is held. What is held and open is bounded by the caller, who stops fetching.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from pipeline.domain.invariant import invariant

T = TypeVar("T")


class PartitionPrefix(Generic[T]):
    """The open and finished records of one partition, in offset order."""

    __slots__ = ("_finished", "_order", "next_offset")

    def __init__(self) -> None:
        # Behind the last record taken; None before the first.
        self.next_offset: int | None = None
        self._order: deque[int] = deque()
        self._finished: dict[int, T] = {}

    def begin(self, offset: int) -> None:
        """A record was taken; offsets of a partition are taken in order."""
        invariant(not self._order or offset > self._order[-1], "records are taken in offset order")
        self._order.append(offset)
        self.next_offset = offset + 1

    def finish(self, offset: int, output: T) -> None:
        """Its output is ready. Told twice, the first stands (a parked call answers late)."""
        self._finished.setdefault(offset, output)

    def pop_finished(self, limit: int) -> Iterator[tuple[int, T]]:
        """The finished records at the head, which leave the partition."""
        order = self._order
        while limit > 0 and order and order[0] in self._finished:
            offset = order.popleft()
            limit -= 1
            yield offset, self._finished.pop(offset)

    @property
    def size(self) -> int:
        """Open and held records."""
        return len(self._order)

    @property
    def ready(self) -> bool:
        return bool(self._order) and self._order[0] in self._finished

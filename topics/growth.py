"""Whether topics were given more partitions after their flow was used.

Kafka keeps no count of before. But provisioning gives every group an offset in each partition of
its inputs, and workers begin nowhere else: where no group has one in the last partitions, they were
added by another hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Grown:
    """A used flow that had ``before`` lanes, and its ``topics`` that have more partitions now."""

    before: int
    topics: tuple[str, ...]

    def __str__(self) -> str:
        more = len(self.topics) - 1
        which = f"{self.topics[0]} and {more} more have" if more else f"{self.topics[0]} has"
        return (
            f"{which} more than {self.before} partitions, but no group has an offset beyond the "
            f"first {self.before}: they were added after records had been written, and not by "
            "`paystream topics apply`. Most keys belong to another partition now, so records of "
            "one order would meet in two lanes, and an order that is published once more would be "
            "charged once more. Partitions cannot be taken away: provision a new set of topics "
            'under another prefix and move there (docs/operations.md, "More partitions")'
        )


def grown(
    committed: Iterable[tuple[str, int]], counts: Mapping[str, int], used: Callable[[], bool]
) -> Grown | None:
    """By the partitions in which any group of the flow has an offset, and how many its topics have.

    Of all groups together: one that is new, or has lost its offsets, proves nothing. ``used`` says
    whether anything was ever written; it is asked only where it matters.
    """
    before = lanes_read(committed)
    wider = tuple(name for name, count in counts.items() if count > before)
    return Grown(before, wider) if before and wider and used() else None


def lanes_read(committed: Iterable[tuple[str, int]]) -> int:
    """How many lanes groups have offsets in, by the highest of (topic, partition); 0 for none.

    A partition below it without an offset has lost it; it was there before.
    """
    return 1 + max((partition for _, partition in committed), default=-1)

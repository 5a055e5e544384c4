"""One transaction's worth of work, as prepared in memory before anything of it is produced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Headers = list[tuple[str, bytes]]
# topic, partition, key, value, headers
Outgoing = tuple[str, int, bytes | None, bytes | None, Headers | None]
TopicPartitionKey = tuple[str, int]


@dataclass(slots=True)
class Work:
    """What one transaction does: records to produce and input offsets to commit.

    ``offsets`` holds for each input partition the last processed offset plus one; it is never
    empty, since an empty list of offsets fences nobody. ``group_metadata`` was taken from the
    consumer when the first record of the batch was taken: metadata fetched later would let a
    worker commit offsets of a partition that has moved to another.
    ``tracked`` names the outputs (by index) whose offset is wanted after the commit. ``moves``:
    whether an offset is another one than before; where none is, they do not tell how it ended.
    """

    outputs: list[Outgoing]
    offsets: Mapping[TopicPartitionKey, int]
    group_metadata: Any
    tracked: Mapping[int, Callable[[int], None]] = field(default_factory=dict)
    moves: bool = True


class Outcome(Enum):
    """What became of a transaction; nothing else is ever reported. Of a work that moves no offset
    ABORTED may also mean that nobody knows."""

    COMMITTED = "committed"
    ABORTED = "aborted"

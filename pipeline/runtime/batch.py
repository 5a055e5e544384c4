"""The batch in preparation: everything one transaction will do, still in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.runtime.work import Outgoing, TopicPartitionKey, Work


@dataclass(slots=True)
class Batch:
    """Filled by a stage, sealed into a Work, dropped whole when anything before it fails.

    ``first_offsets`` is where each input partition began, for the rewind; ``notes`` counts what
    happened, by name, for metrics once the commit is known.
    """

    group_metadata: Any
    opened_s: float
    outputs: list[Outgoing] = field(default_factory=list)
    offsets: dict[TopicPartitionKey, int] = field(default_factory=dict)
    first_offsets: dict[TopicPartitionKey, int] = field(default_factory=dict)
    # Index of the last table record of each partition; its offset becomes the checkpoint.
    last_table_output: dict[int, int] = field(default_factory=dict)
    notes: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    latencies_ms: list[int] = field(default_factory=list)
    # Each input, and where its outputs begin, to know whose an output is.
    inputs: list[tuple[str, int, int]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    records: int = 0
    input_bytes: int = 0
    # Append time of the oldest input (epoch ms), a tier's delay added; for the stage's latency.
    oldest_ms: int | None = None

    def took(self, topic: str, partition: int, offset: int) -> None:
        """An input of this offset is part of the batch."""
        tp = (topic, partition)
        self.first_offsets.setdefault(tp, offset)
        self.offsets[tp] = offset + 1
        self.inputs.append((topic, partition, offset))
        self.starts.append(len(self.outputs))
        self.records += 1

    def passes(self, tp: TopicPartitionKey, end: int) -> None:
        """Up to this offset a partition holds nothing that anybody is handed; it goes on there."""
        if self.offsets.get(tp, -1) < end:
            self.offsets[tp] = end
            self.first_offsets.setdefault(tp, end)

    def input_of(self, output: int) -> tuple[str, int, int]:
        """Topic, partition and offset of the input that an output, by its index, was made of."""
        return self.inputs[bisect_right(self.starts, output) - 1]

    def aged(self, timestamp_ms: int) -> None:
        """An input that was due at this time is part of the batch."""
        if self.oldest_ms is None or timestamp_ms < self.oldest_ms:
            self.oldest_ms = timestamp_ms

    def seal(self, on_table_offset: Callable[[int, int], None] | None = None) -> Work:
        """The work of one transaction; ``on_table_offset(partition, offset)`` hears the last
        offset written to each table partition."""
        tracked: dict[int, Callable[[int], None]] = {}
        if on_table_offset is not None:
            for partition, index in self.last_table_output.items():
                tracked[index] = _bind(on_table_offset, partition)
        moves = bool(self.first_offsets)
        return Work(self.outputs, self.offsets, self.group_metadata, tracked, moves)


def _bind(report: Callable[[int, int], None], partition: int) -> Callable[[int], None]:
    def with_partition(offset: int) -> None:
        report(partition, offset)

    return with_partition

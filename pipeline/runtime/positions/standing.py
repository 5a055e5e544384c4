"""Where a group stands in its partitions, and what it has not read is not in the log any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from confluent_kafka import KafkaException, TopicPartition

from pipeline.errors import UserError
from pipeline.runtime.cluster import bystander, committed_or_none
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.partition_offsets import list_offsets
from topics.admin import REQUEST_TIMEOUT_S, Admin, earliest, latest, user_error

# As for a leader that is being chosen.
PATIENCE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Position:
    """``committed``: the next offset that the group reads, None where it has none. ``first`` and
    ``end`` are the log's: the first offset that is kept, and the next one that is written."""

    topic: str
    partition: int
    committed: int | None
    first: int
    end: int

    @property
    def place(self) -> str:
        return f"{self.topic}[{self.partition}]"

    @property
    def gone(self) -> int:
        """How many offsets were deleted before the group had read them."""
        return 0 if self.committed is None else max(0, self.first - self.committed)

    @property
    def is_beyond_end(self) -> bool:
        """Whether the log ends before what the group has read: it lost records."""
        return self.committed is not None and self.committed > self.end


def partitions_of(
    admin: Admin, topics: Iterable[str], *, missing: bool = False
) -> list[tuple[str, int]]:
    """Those of the cluster. UserError for a topic that is not there, unless it may be missing."""
    try:
        known = admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics
    except KafkaException as error:
        raise user_error(error) from error
    found: list[tuple[str, int]] = []
    for topic in topics:
        if topic in known:
            found += [(topic, number) for number in sorted(known[topic].partitions)]
        elif not missing:
            raise UserError(
                f"there is no topic {topic}; is the prefix right, and were the topics made "
                "(`paystream topics apply`)?"
            )
    return found


def committed_offsets(
    bootstrap_servers: str,
    group: str,
    partitions: Sequence[tuple[str, int]],
    *,
    stable: bool,
    waiting: Callable[[], None] = lambda: None,
) -> Mapping[tuple[str, int], int]:
    """The group's offset of each partition, negative where it has none.

    ``stable``: what a transaction that is still open would set them to is waited for, half a
    minute at the most, and ``waiting`` is called meanwhile. UserError when they cannot be had.
    """
    isolation = "read_committed" if stable else "read_uncommitted"

    def said() -> bool:
        waiting()
        return False

    try:
        with bystander(bootstrap_servers, group, isolation) as consumer:
            return committed_or_none(consumer, partitions, stopped=said)
    except LaneFatal as error:
        raise UserError(f"{error}.") from error
    except KafkaException as error:
        raise user_error(error, f"The offsets of group {group} cannot be had") from error


def positions(
    admin: Admin,
    bootstrap_servers: str,
    group: str,
    partitions: Sequence[tuple[str, int]],
    *,
    stable: bool = False,
    waiting: Callable[[], None] = lambda: None,
) -> list[Position]:
    """Where the group stands; ``stable`` and ``waiting`` as of ``committed_offsets``."""
    committed = committed_offsets(
        bootstrap_servers, group, partitions, stable=stable, waiting=waiting
    )
    places = [TopicPartition(*place) for place in partitions]
    try:
        firsts, ends = (
            list_offsets(
                admin,
                dict.fromkeys(places, spec),
                timeout_s=REQUEST_TIMEOUT_S,
                patience_s=PATIENCE_S,
            )
            for spec in (earliest(), latest())
        )
    except KafkaException as error:
        raise user_error(error, "Where the topics begin and end cannot be had") from error
    return [
        Position(
            *place, None if committed[place] < 0 else committed[place], firsts[place], ends[place]
        )
        for place in partitions
    ]

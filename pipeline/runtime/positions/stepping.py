"""From a batch that no client hands out to the place behind it where its partition is read on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaException

from pipeline.batches.readable import first_seen, readable_behind
from pipeline.batches.unreadable import is_damaged
from pipeline.errors import UserError
from pipeline.runtime.positions.mover import Move
from pipeline.runtime.positions.standing import Position
from topics.admin import user_error

# As workers name a batch: orders[3]@1042.
_PLACE: Final = re.compile(
    r"(?P<topic>[^\[\]@]+)\[(?P<partition>\d{1,9})\]@(?P<offset>\d{1,18})", re.A
)


def parse_place(text: str) -> tuple[str, int, int] | None:
    """Topic, partition and offset."""
    found = _PLACE.fullmatch(text.strip())
    return None if found is None else (found[1], int(found[2]), int(found[3]))


@dataclass(frozen=True, slots=True)
class Step:
    """``why``: what the client says of the batch. ``is_damaged``: its bytes are not as its checksum
    says; else it is one that a stage puts aside by itself where brokers tell it of batches."""

    move: Move
    why: str
    is_damaged: bool


def plan_step(
    consumer: Any,
    position: Position,
    offset: int,
    *,
    on_step: Callable[[int], None] = lambda offset: None,
) -> Step:
    """Over the batch that begins at ``offset``, for a group that stands before it or in it.

    UserError when it is not the first thing that comes from the position on: what lies before it
    has not been handled, or it can be read by now.
    """
    place = position.place
    at = position.committed
    if at is None:
        raise UserError(
            f"the group has no position in {place}: `paystream topics apply` commits where it "
            "begins. Nothing was moved."
        )
    if position.gone or position.is_beyond_end:
        raise UserError(
            f"the position {at} in {place} is not in the log any more, which begins at "
            f"{position.first} and ends at {position.end}: look with `paystream positions show`."
        )
    try:
        seen = first_seen(consumer, position.topic, position.partition, at)
        if seen.unread is None:
            raise UserError(_readable(place, at, seen.offset, offset, is_end=seen.is_end))
        to = readable_behind(
            consumer, position.topic, position.partition, seen.offset, on_step=on_step
        )
    except KafkaException as error:
        raise user_error(error, f"{place} cannot be read") from error
    if not seen.offset <= offset < to:
        raise UserError(
            f"the first batch in {place} that cannot be read from the group's position {at} on is "
            f"the one at {seen.offset}, and not at {offset}. Nothing was moved."
        )
    move = Move(position.topic, position.partition, at, to, max(at, seen.offset))
    return Step(move, seen.unread.str(), is_damaged(seen.unread))


def _readable(place: str, at: int, found: int, offset: int, *, is_end: bool) -> str:
    if is_end:
        return (
            f"nothing lies in {place} from the group's position {at} on, so there is nothing to "
            "step over."
        )
    if found < offset:
        return (
            f"the stage has not come to {place}@{offset} yet: it stands at {at}, and what lies at "
            f"{found} can be read. Start it; it handles what comes before, and says where it "
            "ends. Nothing was moved."
        )
    return (
        f"{place} can be read from the group's position {at} on, where {found} comes first: start "
        "the stage. Nothing was moved."
    )

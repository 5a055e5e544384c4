"""Checksums of rows that change, which no chain of hashes can hold: offsets, places of decisions.

SHA-256, as the seals have, written by whoever writes the row and in the same transaction. An empty
one says that something else than the ledger's writers set the row: an earlier version of them, or a
person (the database empties it then, see ``guards``). A row that does not fit its checksum was
changed behind the database's back, and nothing goes on from it.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select

from pipeline.errors import UserError
from pipeline.ledger.hashed import hashed_form
from pipeline.ledger.tables import consumer_offsets

# A row that is not as the ledger's writers have left it.
UNSET = ""

# Made once, since each batch asks: in one order everywhere, as two writers that wait for each
# other's rows would deadlock.
_OFFSETS_OF_TOPIC: Final = (
    select(consumer_offsets)
    .where(consumer_offsets.c.topic == bindparam("of_topic"))
    .order_by(consumer_offsets.c.partition)
    .with_for_update()
)
_OFFSETS_OF_PARTITIONS: Final = _OFFSETS_OF_TOPIC.where(
    consumer_offsets.c.partition.in_(bindparam("partitions", expanding=True))
)


class OffsetChanged(UserError):
    """A stored offset is not the one that the ledger wrote."""


def offset_row(
    topic: str,
    partition: int,
    cluster_id: str,
    topic_id: str,
    *,
    next_offset: int,
    updated_at_ms: int,
    settled_through_ms: int,
) -> dict[str, Any]:
    """A whole row of ``consumer_offsets``, its checksum with it."""
    return {
        "topic": topic,
        "partition": partition,
        "cluster_id": cluster_id,
        "topic_id": topic_id,
        "next_offset": next_offset,
        "updated_at_ms": updated_at_ms,
        "settled_through_ms": settled_through_ms,
        "checksum": _checksum(
            topic, partition, cluster_id, topic_id, next_offset, updated_at_ms, settled_through_ms
        ),
    }


def offset_checksum(row: Any) -> str:
    """What the checksum of a row of ``consumer_offsets`` should be."""
    made: str = offset_row(
        row.topic, row.partition, row.cluster_id, row.topic_id, next_offset=row.next_offset,
        updated_at_ms=row.updated_at_ms, settled_through_ms=row.settled_through_ms,
    )["checksum"]  # fmt: skip
    return made


def place_checksum(event_id: str, partition: int | None, offset: int | None) -> str:
    """Of the place a decision was published at."""
    return _checksum(event_id, partition, offset)


def _checksum(*said: str | int | None) -> str:
    return hashlib.sha256(hashed_form(said)).hexdigest()


def require_unchanged(row: Any) -> None:
    """OffsetChanged when a row of ``consumer_offsets`` does not fit its checksum."""
    if row.checksum not in (UNSET, offset_checksum(row)):
        raise OffsetChanged(
            f"the stored offset {row.next_offset} of {row.topic}[{row.partition}] is not what the "
            "ledger wrote: its row in consumer_offsets was changed. Find out what changed it "
            "(`paystream ledger verify`, the database's backup); see docs/ledger.md for how to "
            "set it right."
        )


def held_offsets(connection: Connection, topic: str, *partitions: int) -> dict[int, Any]:
    """The rows of some partitions (of all, if none is named) of a topic, kept from other writers
    until the transaction's end. OffsetChanged when one was changed."""
    if partitions:
        asked = {"of_topic": topic, "partitions": partitions}
        rows = connection.execute(_OFFSETS_OF_PARTITIONS, asked).all()
    else:
        rows = connection.execute(_OFFSETS_OF_TOPIC, {"of_topic": topic}).all()
    for row in rows:
        require_unchanged(row)
    return {row.partition: row for row in rows}

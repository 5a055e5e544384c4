"""Decisions about the books: made here, published to `ledger-events`, then booked.

The database decides, since only it knows how far the books are: a period's cut and the time from
which a fee schedule counts are set while every writer waits, so an entry made before and one made
after are told apart by the log alone. Then the decision is published, and what it posts is booked
with the place it was published at. A crash in between leaves a decision that is not published or
not booked; the next command takes it further.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, func, insert, select

from pipeline.domain.decisions import (
    PERIOD_CLOSE,
    RULE_KINDS,
    Rules,
    close_body,
    closing_of,
    rules_of,
)
from pipeline.domain.model import LedgerEvent
from pipeline.domain.periods import require_ended
from pipeline.domain.records import to_record
from pipeline.domain.said_text import (
    NAME_LENGTH_MAX,
    REASON_LENGTH_MAX,
    require_text,
    storable,
)
from pipeline.errors import UserError
from pipeline.ledger.checksums import held_offsets
from pipeline.ledger.tables import (
    closed_periods,
    consumer_offsets,
    ledger_decisions,
)
from schemas.codec import Encoder, default_codec
from schemas.errors import EncodeError

_EVENTS: Final = uuid.UUID("b1a3d0f4-6a05-5c0e-8f0d-6a1f0b6f2f27")
# What the client takes uncompressed, with room for the rest of the record. A decision that is made
# and cannot be published would keep every later one back.
DECISION_BYTES_MAX: Final = 950_000
# What the topic of decisions is called, behind the prefix of its flow: whoever looks at the ledger
# alone knows no prefix, and no other topic that is booked ends so.
TOPIC_ROLE: Final = "ledger-events"
# Any number: decisions are made one after the other.
_DECISIONS_LOCK: Final = 0x6C656469
_LAST_DECISION: Final = select(func.max(ledger_decisions.c.sequence))


class WaitingDecision(Struct, frozen=True, gc=False):
    """A decision that is not booked yet; ``size`` is the length of its body."""

    sequence: int
    event_id: str
    size: int


def decide(
    connection: Connection,
    *,
    kind: str,
    body: str,
    actor: str,
    reason: str,
    now_ms: int,
    tried: bool = True,
) -> LedgerEvent:
    """Make the next decision, in the connection's transaction; UserError, and nothing made, when
    it could not be published or booked, or when a decision that is booked is gone: its number would
    be given out again.

    ``tried`` False: whoever makes many tries them together (``require_bookable``) before the
    transaction is committed.
    """
    # Booking follows decisions, so it is not there yet when this module is loaded.
    from pipeline.ledger.trial_booking import require_bookable

    require_text(actor, "the name", NAME_LENGTH_MAX)
    require_text(reason, "the reason", REASON_LENGTH_MAX)
    size = sum(len(text.encode()) for text in (kind, body, actor, reason))
    if size > DECISION_BYTES_MAX:
        raise UserError(
            f"the decision has {size:,} bytes and can have {DECISION_BYTES_MAX:,}; make several of "
            "it, with a shorter reason or fewer lines each."
        )
    lock_decisions(connection)
    _require_newest(connection)
    last = connection.execute(
        select(func.coalesce(func.max(ledger_decisions.c.sequence), 0))
    ).scalar_one()
    sequence = int(last) + 1
    event = LedgerEvent(
        event_id="",
        kind=kind,
        sequence=sequence,
        actor=actor,
        reason=reason,
        decided_at_ms=now_ms,
        body=body,
    )
    event = replace(event, event_id=event_id_of(event))
    # One that is made and stands in the way would keep every later one back, for good.
    with connection.begin_nested():
        require_publishable(to_record(event), "ledger-event")
        record(connection, event)
        if tried:
            require_bookable(connection, event)
    return event


def require_publishable(record: Mapping[str, Any], schema: str) -> None:
    """UserError when no topic can carry the record."""
    try:
        _encoder(schema)(dict(record))
    except EncodeError as error:
        raise UserError(
            f"the decision cannot be published ({storable(str(error))}), so it is not made."
        ) from error


@cache
def _encoder(schema: str) -> Encoder:
    # Ids of schemas are numbers, whichever an installation has.
    return default_codec().encoder(schema)


def newest_booked(connection: Connection) -> Iterator[tuple[str, int, int]]:
    """Topic, partition and offset that decisions are booked up to: each is the place of one, since
    its booking alone moves the offset."""
    c = consumer_offsets.c
    for topic, partition, next_offset in connection.execute(
        select(c.topic, c.partition, c.next_offset).where(c.topic.endswith(TOPIC_ROLE))
    ).all():
        yield topic, partition, next_offset - 1


def _require_newest(connection: Connection) -> None:
    c = ledger_decisions.c
    for topic, partition, offset in newest_booked(connection):
        known = select(c.sequence).where(
            c.published_partition == partition, c.published_offset == offset
        )
        if connection.execute(known).first() is None:
            raise UserError(
                f"the decision of {topic}[{partition}]@{offset} is booked and not in the ledger "
                "any more; see `paystream ledger verify`. Rebuild the books from the topics before "
                "anything else is decided."
            )


def event_id_of(event: LedgerEvent) -> str:
    """Derived from all that it says, so that a changed decision does not fit its id."""
    said = "\x1f".join(
        (str(event.sequence), event.kind, event.actor, event.reason, str(event.decided_at_ms),
         event.body)
    )  # fmt: skip
    return str(uuid.uuid5(_EVENTS, said))


def record(connection: Connection, event: LedgerEvent) -> None:
    """Keep a decision that was made, here or where the topic was written from."""
    connection.execute(
        insert(ledger_decisions).values(
            sequence=event.sequence,
            event_id=event.event_id,
            kind=event.kind,
            actor=event.actor,
            reason=event.reason,
            decided_at_ms=event.decided_at_ms,
            body=event.body,
        )
    )
    if event.kind == PERIOD_CLOSE:
        closing = closing_of(event)
        connection.execute(
            insert(closed_periods).values(
                sequence=event.sequence,
                through_date=closing.through,
                cuts=event.body,
                sealed=0,
            )
        )


def adopt(connection: Connection, events: Sequence[LedgerEvent]) -> int:
    """Take over the decisions that the topic has and this ledger has not; how many.

    A new ledger, or one restored from a backup, has to follow them like the one that made them.
    UserError when the two contradict each other.
    """
    lock_decisions(connection)
    known = decided_ids(connection)
    taken = 0
    for event in sorted(events, key=lambda each: each.sequence):
        if event.sequence not in known:
            record(connection, event)
            taken += 1
        elif known[event.sequence] != event.event_id:
            raise UserError(
                f"decision {event.sequence} of this ledger is another one than in the topic: "
                "another ledger decides on these topics. Use its database, or rebuild this one."
            )
    return taken


def lock_decisions(connection: Connection) -> None:
    """Keep every other decision waiting until the transaction's end, and every partition that is to
    be booked for the first time. Taken before any row of the offsets, by all who take both.

    SQLite has one writer at a time anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_DECISIONS_LOCK})")


def hold_writers(connection: Connection, topic: str) -> dict[int, tuple[int, int]]:
    """Keep every writer of a topic waiting until the transaction's end.

    Whoever calls it holds the lock of decisions: a partition that has no offset yet has no row to
    hold. By partition: its next offset, and the latest time of settlement that is booked.
    """
    held = held_offsets(connection, topic)
    return {p: (row.next_offset, row.settled_through_ms) for p, row in held.items()}


def decide_terms(
    connection: Connection,
    topic: str,
    *,
    body: str,
    effective_from_ms: int,
    actor: str,
    reason: str,
    now_ms: int,
) -> LedgerEvent:
    """Put a fee schedule into force; UserError when something is settled already by then."""
    from pipeline.domain.decisions import FEE_SCHEDULE

    lock_decisions(connection)
    held = hold_writers(connection, topic)
    latest_ms = max((settled_ms for _, settled_ms in held.values()), default=0)
    if effective_from_ms <= latest_ms:
        raise UserError(
            f"a settlement of {latest_ms} (epoch ms) is booked already: the schedule can count "
            "from a later time on only, since entries are never changed."
        )
    return decide(
        connection, kind=FEE_SCHEDULE, body=body, actor=actor, reason=reason, now_ms=now_ms
    )


def decide_close(
    connection: Connection, topic: str, *, through: str, actor: str, reason: str, now_ms: int
) -> LedgerEvent:
    """Close everything up to a day: what is booked belongs to it, what comes later does not.
    UserError when the day is not over, or is closed already."""
    require_ended(through, now_ms)
    lock_decisions(connection)
    held = hold_writers(connection, topic)
    before = connection.execute(select(func.max(closed_periods.c.through_date))).scalar_one()
    if before is not None and through <= before:
        raise UserError(f"everything through {before} is closed already.")
    cuts = {partition: next_offset for partition, (next_offset, _) in held.items()}
    return decide(
        connection,
        kind=PERIOD_CLOSE,
        body=close_body(through, cuts),
        actor=actor,
        reason=reason,
        now_ms=now_ms,
    )


def current_rules(connection: Connection, known: Rules) -> Rules:
    """The rules of all decisions; those that are known already cost one look-up."""
    last = connection.execute(_LAST_DECISION).scalar_one()
    if (last or 0) == known.sequence:
        return known
    # Of the others there may be many, and none of them changes the rules.
    found = rules_of(decisions_of(connection, RULE_KINDS))
    return replace(found, sequence=last or 0)


def decisions_of(connection: Connection, kinds: Collection[str]) -> list[LedgerEvent]:
    """The decisions of some kinds, in order."""
    c = ledger_decisions.c
    rows = connection.execute(
        select(ledger_decisions).where(c.kind.in_(sorted(kinds))).order_by(c.sequence)
    )
    return [event_of(row) for row in rows]


def all_decisions(connection: Connection) -> list[LedgerEvent]:
    """Every decision, in order."""
    rows = connection.execute(select(ledger_decisions).order_by(ledger_decisions.c.sequence))
    return [event_of(row) for row in rows]


def decided_ids(connection: Connection) -> dict[int, str]:
    """The id of each decision, by its number."""
    c = ledger_decisions.c
    return {
        row.sequence: row.event_id for row in connection.execute(select(c.sequence, c.event_id))
    }


def decisions_at(connection: Connection, sequences: Sequence[int]) -> list[LedgerEvent]:
    """Decisions of consecutive numbers, in order."""
    c = ledger_decisions.c
    rows = connection.execute(
        select(ledger_decisions)
        .where(c.sequence.between(sequences[0], sequences[-1]))
        .order_by(c.sequence)
    )
    return [event_of(row) for row in rows]


def waiting_decisions(connection: Connection) -> list[WaitingDecision]:
    """What ``unpublished`` holds, without the bodies: those of a large reconciliation come to more
    than memory should hold at once."""
    c = ledger_decisions.c
    rows = connection.execute(
        select(c.sequence, c.event_id, func.length(c.body))
        .where(c.published_offset.is_(None))
        .order_by(c.sequence)
    )
    return [WaitingDecision(*row) for row in rows]


def unpublished_count(connection: Connection) -> int:
    """How many decisions ``unpublished`` holds."""
    asked = select(func.count()).where(ledger_decisions.c.published_offset.is_(None))
    return int(connection.execute(asked).scalar_one())


def unpublished(connection: Connection) -> Sequence[LedgerEvent]:
    """Decisions whose place in the topic is not known, in order."""
    c = ledger_decisions.c
    rows = connection.execute(
        select(ledger_decisions).where(c.published_offset.is_(None)).order_by(c.sequence)
    )
    return [event_of(row) for row in rows]


def event_of(row: Any) -> LedgerEvent:
    return LedgerEvent(
        event_id=row.event_id,
        kind=row.kind,
        sequence=row.sequence,
        actor=row.actor,
        reason=row.reason,
        decided_at_ms=row.decided_at_ms,
        body=row.body,
    )

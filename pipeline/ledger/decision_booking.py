"""What a published decision posts: corrections of a closed month's tiers, the entry it holds.

The entries carry the place the decision was published at, as a settlement's entry carries its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Connection, Engine, func, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from pipeline.domain.decisions import (
    PERIOD_CLOSE,
    Rules,
    closing_of,
    decided_entry_of,
)
from pipeline.domain.fee_schedule import RETURN_NONE, FeePlan
from pipeline.domain.fees import NO_PLAN, tier_correction, tier_corrections
from pipeline.domain.model import LedgerEvent
from pipeline.domain.periods import day_after, last_day, months_ended
from pipeline.domain.posting import NO_GATEWAY, JournalEntry, Posting, balanced
from pipeline.domain.reconciliation_decisions import POSTING_KINDS, RELEASE
from pipeline.domain.transfers import FEE_TRUE_UP, FEE_TRUE_UP_RETURNED, fee_true_up
from pipeline.errors import UserError
from pipeline.ledger.checksums import held_offsets, offset_row, place_checksum, require_unchanged
from pipeline.ledger.clearing_booking import reconciliation_entries, reconciliation_ids
from pipeline.ledger.decisions import current_rules
from pipeline.ledger.entries import EntryWriter, Item, entries_by_id
from pipeline.ledger.guards.v6 import ENTRIES_LOCK
from pipeline.ledger.journal import Source
from pipeline.ledger.tables import closed_periods, consumer_offsets, ledger_decisions
from pipeline.ledger.tier_returns import ALL, returns_due
from pipeline.ledger.unbookable import in_a_line, refuses_content

_log = logging.getLogger(__name__)

# Equal in every copy of one entry of a decision. What tells one decision from another (its id, its
# time) may differ, and the day that it counts under when its own was closed meanwhile.
_SAID_ALIKE: Final = (
    "kind", "merchant_id", "order_id", "payment_id", "gateway", "gateway_reference",
    "business_date", "postings", "terms",
)  # fmt: skip


class BookedDecisions(Struct, frozen=True, gc=False):
    """How far the decisions of a topic are booked: the last one's number, and by partition where
    its records go on."""

    sequence: int
    next_offsets: dict[int, int]


def booked_decisions(connection: Connection, source: Source) -> BookedDecisions:
    """None are, where what is booked came from another topic of that name."""
    o, c = consumer_offsets.c, ledger_decisions.c
    rows = connection.execute(
        select(consumer_offsets).where(
            o.topic == source.topic,
            o.cluster_id == source.cluster_id,
            o.topic_id == source.topic_id,
        )
    ).all()
    for row in rows:
        require_unchanged(row)
    last = connection.execute(
        select(func.max(c.sequence)).where(c.published_offset.is_not(None))
    ).scalar_one()
    if not rows or last is None:
        return BookedDecisions(0, {})
    return BookedDecisions(last, {row.partition: row.next_offset for row in rows})


class DecisionBooker:
    """Books decisions one after the other; remembers accounts and rules from one to the next."""

    def __init__(
        self,
        engine: Engine,
        source: Source,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._engine = engine
        self._source = source
        self._now_ms = now_ms
        self._writer = EntryWriter(engine.dialect.name, now_ms)
        # Entries are written past SQLAlchemy, which so wraps no error of theirs.
        self._driver: Any = engine.dialect.loaded_dbapi
        self._rules = Rules()

    def book(self, event: LedgerEvent, partition: int, offset: int) -> int:
        """Book what a decision posts and keep its place, in one transaction; how many entries it
        made.

        Decisions are booked in their order, each once: one that is booked already makes none. What
        it says and an earlier one has said just so is passed over; UserError where the earlier one
        said it otherwise, or the database can never book it: it then keeps every later one back. A
        closed period is sealed by it: from then on the database takes no entry of it.
        """
        try:
            try:
                return self._booked(event, partition, offset)
            except (IntegrityError, self._driver.IntegrityError):
                # Nearly always all is new: what is booked already is looked for only then.
                return self._booked(event, partition, offset, sort_out=True)
        except Exception as error:
            if not refuses_content(error, self._driver):
                raise
            raise UserError(
                f"decision {event.sequence} ({event.kind}, by {event.actor}) cannot be booked "
                f"({in_a_line(error)}), and nothing that was decided after it: see docs/operations"
                ".md, a decision that stands in the way."
            ) from error

    def _booked(
        self, event: LedgerEvent, partition: int, offset: int, *, sort_out: bool = False
    ) -> int:
        try:
            with self._engine.begin() as connection:
                made = self._book(connection, event, partition, offset, sort_out)
        except BaseException:
            self._writer.rolled_back()
            raise
        self._writer.committed()
        return made

    def _book(
        self,
        connection: Connection,
        event: LedgerEvent,
        partition: int,
        offset: int,
        sort_out: bool,
    ) -> int:
        c = ledger_decisions.c
        source = self._source
        if connection.dialect.name == "postgresql":
            # Waits for those who are inserting entries; those who come later see the seal.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ENTRIES_LOCK})")
        booked = connection.execute(
            update(ledger_decisions)
            .where(c.sequence == event.sequence, c.published_offset.is_(None))
            .values(
                published_partition=partition,
                published_offset=offset,
                place_checksum=place_checksum(event.event_id, partition, offset),
            )
        ).rowcount
        if not booked:
            return 0
        if event.kind == PERIOD_CLOSE:
            _require_booked_to_the_cuts(connection, source.topic, event)
        self._rules = current_rules(connection, self._rules)
        entries = entries_of(connection, event, self._rules)
        if sort_out:
            entries = self._not_booked_yet(connection, event, entries)
        if entries:
            items = [Item(partition, offset, entry, part) for part, entry in enumerate(entries)]
            sums = self._writer.insert(connection, source.topic, items)
            self._writer.add_balances(connection, sums)
        if event.kind == PERIOD_CLOSE:
            connection.execute(
                update(closed_periods)
                .where(closed_periods.c.sequence == event.sequence)
                .values(sealed=1)
            )
        _move_offset(connection, source, partition, offset + 1, self._now_ms())
        return len(entries)

    def _not_booked_yet(
        self, connection: Connection, event: LedgerEvent, entries: Sequence[JournalEntry]
    ) -> Sequence[JournalEntry]:
        known = self._writer.known(connection, [entry.entry_id for entry in entries])
        booked = entries_by_id(connection, sorted(known))
        for entry in entries:
            before = booked.get(entry.entry_id)
            if before is None:
                continue
            # A release counts under the day that it was decided.
            alike = (n for n in _SAID_ALIKE if n != "business_date" or event.kind != RELEASE)
            differing = [n for n in alike if getattr(before, n) != getattr(entry, n)]
            if differing:
                raise UserError(
                    f"decision {event.sequence} ({event.kind}) says otherwise what an earlier one "
                    f"has booked as {entry.entry_id}: {', '.join(differing)}. Nothing more is "
                    "booked of the decisions until it is explained."
                )
        if booked:
            _log.warning(
                "decision %d (%s): %d of its %d entries were booked by an earlier one just so; "
                "they are passed over",
                event.sequence, event.kind, len(booked), len(entries),
            )  # fmt: skip
        return [entry for entry in entries if entry.entry_id not in booked]


def _require_booked_to_the_cuts(
    connection: Connection, decisions_topic: str, event: LedgerEvent
) -> None:
    """A ledger that took the close over from the topic may still have to book the period."""
    rows = connection.execute(
        select(consumer_offsets.c.partition, consumer_offsets.c.next_offset).where(
            consumer_offsets.c.topic != decisions_topic
        )
    )
    booked = {row.partition: row.next_offset for row in rows}
    for partition, cut in closing_of(event).cuts.items():
        if booked.get(partition, 0) < cut:
            raise UserError(
                f"the settlements of partition {partition} are booked up to "
                f"{booked.get(partition, 0)}, the period was closed at {cut}: let the ledger "
                "catch up, then run `paystream ledger publish`."
            )


def entries_of(connection: Connection, event: LedgerEvent, rules: Rules) -> Sequence[JournalEntry]:
    if event.kind == PERIOD_CLOSE:
        made = _true_ups(connection, event, rules)
        return [*made, *_true_ups_returned(connection, event, rules, made)]
    if event.kind in POSTING_KINDS:
        closed = max((x.through for x in rules.closings if x.sequence < event.sequence), default="")
        return reconciliation_entries(connection, event, closed)
    hand = decided_entry_of(event)
    if hand is None:
        return ()
    closed = max((x.through for x in rules.closings if x.sequence < event.sequence), default="")
    return [
        _entry(
            event,
            hand.kind,
            hand.merchant_id,
            hand.business_date,
            hand.postings,
            booked_date=day_after(closed) if hand.business_date <= closed else "",
        )
    ]


def ids_of_entries(
    connection: Connection, event: LedgerEvent, rules: Rules, offset: int
) -> set[str]:
    """The ids of what a decision that posts several has posted when it was booked from an offset.

    A closed day takes no more entries, so a close posts the same whenever it is asked.
    """
    if event.kind != PERIOD_CLOSE:
        return reconciliation_ids(connection, event)
    made = _true_ups(connection, event, rules)
    returned = _true_ups_returned(connection, event, rules, made, offset)
    return {entry.entry_id for entry in (*made, *returned)}


def _true_ups(connection: Connection, event: LedgerEvent, rules: Rules) -> list[JournalEntry]:
    """For each month that ends with this close and each plan with tiers: one correction, and one
    for each version of the plan that the month spans."""
    closing = closing_of(event)
    through = closing.through
    before = max((x.through for x in rules.closings if x.sequence < event.sequence), default="")
    day = "CASE booked_date WHEN '' THEN business_date ELSE booked_date END"
    volumes = connection.execute(
        text(
            f"SELECT substr({day}, 1, 7) AS month, e.merchant_id, p.currency, e.terms, "
            "sum(p.amount_minor) AS volume FROM journal_entries e "
            "JOIN postings p ON p.entry_number = e.entry_number AND p.line = 1 "
            f"WHERE e.kind = 'capture' AND e.terms <> '' AND substr({day}, 1, 7) >= :first "
            f"AND {day} <= :through GROUP BY 1, 2, 3, 4"
        ),
        # A month that was closed by days counts whole when its last one is.
        {"first": before[:7], "through": through},
    ).all()
    ended = set(months_ended(before, through, [row.month for row in volumes]))
    # A plan's methods count together.
    sums: dict[tuple[str, str, str, str], dict[int, int]] = {}
    for row in volumes:
        version, plan, _method = row.terms.split("/")
        if row.month in ended and plan != NO_PLAN:
            of = sums.setdefault((row.month, row.merchant_id, row.currency, plan), {})
            of[int(version)] = of.get(int(version), 0) + int(row.volume)
    made = []
    for (month, merchant, currency, name), volumes_of in sorted(sums.items()):
        slices = [
            (version, plan, volume)
            for version, volume in sorted(volumes_of.items(), key=lambda v: _since(v[0], rules))
            if (plan := _plan(version, name, rules)) is not None
        ]
        if closing.tiers_over_versions:
            corrections = tier_corrections([(plan, volume) for _, plan, volume in slices])
        else:
            corrections = [tier_correction(plan, volume) for _, plan, volume in slices]
        for (version, _, volume), correction in zip(slices, corrections, strict=True):
            lines = fee_true_up(merchant, currency, correction)
            if lines:
                made.append(
                    _entry(
                        event, FEE_TRUE_UP, merchant, last_day(month), lines,
                        terms=f"{version}/{name}/", reference=f"{month} {volume} {currency}",
                    )
                )  # fmt: skip
    return made


def _true_ups_returned(
    connection: Connection,
    event: LedgerEvent,
    rules: Rules,
    made: Sequence[JournalEntry],
    before: int = ALL,
) -> list[JournalEntry]:
    """What refunds take back of months that were set right, with this close or before."""
    closing = closing_of(event)
    if not closing.tiers_over_versions:
        return []
    found = []
    for due in returns_due(connection, closing.through, made, before):
        version, name, _ = due.terms.split("/")
        plan = _plan(int(version), name, rules)
        if plan is None or plan.returned == RETURN_NONE:
            continue
        lines = fee_true_up(due.merchant, due.currency, due.more_minor)
        if lines:
            found.append(
                _entry(
                    event, FEE_TRUE_UP_RETURNED, due.merchant, closing.through, lines,
                    terms=due.terms, about=due.month,
                    reference=f"{due.month} {due.refunded_minor} {due.currency}",
                )
            )  # fmt: skip
    return found


def _plan(version: int, name: str, rules: Rules) -> FeePlan | None:
    schedule = rules.terms.version(version)
    return schedule.plan_named(name) if schedule is not None else None


def _since(version: int, rules: Rules) -> tuple[int, int]:
    """Versions in the order in which they were in force."""
    schedule = rules.terms.version(version)
    return (schedule.effective_from_ms if schedule is not None else 0, version)


def _entry(
    event: LedgerEvent,
    kind: str,
    merchant: str,
    business_date: str,
    lines: tuple[Posting, ...],
    *,
    terms: str = "",
    reference: str = "",
    booked_date: str = "",
    about: str = "",
) -> JournalEntry:
    parts = (merchant, business_date, about, terms, lines[0].currency)
    what = ":".join(part for part in parts if part)
    return balanced(
        JournalEntry(
            entry_id=f"{kind}:{event.event_id}:{what}",
            settlement_id="",
            kind=kind,
            merchant_id=merchant,
            order_id="",
            payment_id="",
            operation_id=event.event_id,
            gateway=NO_GATEWAY,
            gateway_reference=reference,
            business_date=business_date,
            settled_at_ms=event.decided_at_ms,
            postings=lines,
            terms=terms,
            booked_date=booked_date,
        )
    )


def _move_offset(
    connection: Connection, source: Source, partition: int, next_offset: int, now_ms: int
) -> None:
    before = held_offsets(connection, source.topic, partition).get(partition)
    row = offset_row(
        source.topic,
        partition,
        source.cluster_id if before is None else before.cluster_id,
        source.topic_id if before is None else before.topic_id,
        next_offset=next_offset,
        updated_at_ms=now_ms,
        settled_through_ms=0 if before is None else before.settled_through_ms,
    )
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(
        insert(consumer_offsets)
        .values(row)
        .on_conflict_do_update(index_elements=["topic", "partition"], set_=row)
    )


def closed_through(connection: Connection) -> str:
    """The last day that is closed, sealed or not; "" for none."""
    return connection.execute(select(func.max(closed_periods.c.through_date))).scalar_one() or ""

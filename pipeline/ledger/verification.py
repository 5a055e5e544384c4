"""Whether the books are as they were sealed: every damage by name, with the place it lies at.

This is the ledger looking at itself, by one read transaction and without the topics; `paystream
verify` compares it with everything else. Whoever rewrites all seals from some entry on leaves books
that are whole in themselves but end in another hash: the heads are for comparing, with an earlier
look or with a rebuild.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError

from pipeline.domain.accounts import CHART, is_kept_in, kind_of
from pipeline.domain.decisions import PERIOD_CLOSE, Rules, decided_entry_of
from pipeline.domain.model import LedgerEvent
from pipeline.domain.reconciliation_decisions import POSTING_KINDS
from pipeline.ledger.checksums import UNSET, offset_checksum, place_checksum
from pipeline.ledger.damages import Damage
from pipeline.ledger.decision_booking import ids_of_entries
from pipeline.ledger.decisions import (
    TOPIC_ROLE,
    all_decisions,
    current_rules,
    event_id_of,
    newest_booked,
)
from pipeline.ledger.guards import missing_guards
from pipeline.ledger.queries import drifted_balances
from pipeline.ledger.seals import (
    FIRST_HASH,
    BookedEntry,
    ChainHead,
    booked_entries,
    chain_heads,
    next_hash,
)
from pipeline.ledger.storage import storage_damages
from pipeline.ledger.tables import (
    REVISION,
    alembic_version,
    chains,
    closed_periods,
    consumer_offsets,
    entry_seals,
    ledger_decisions,
)
from pipeline.ledger.unreadable_rows import (
    bytes_kept,
    is_of_bad_rows,
    printable,
    unreadable_rows,
)

_PLACES: Final = text(
    "SELECT source_topic, source_partition FROM journal_entries "
    "UNION SELECT topic, partition FROM chains ORDER BY 1, 2"
)
_PLACES_OF_DECISIONS: Final = text(
    "SELECT source_topic, source_partition, source_offset, count(*) FROM journal_entries "
    "WHERE settlement_id = '' OR source_topic LIKE :topics "
    "GROUP BY source_topic, source_partition, source_offset"
)
_IDS_AT: Final = text(
    "SELECT entry_id FROM journal_entries WHERE source_topic = :topic "
    "AND source_partition = :partition AND source_offset = :offset ORDER BY source_part"
)
# What these post depends on what was booked before them.
_POSTS_SEVERAL: Final = frozenset({PERIOD_CLOSE, *POSTING_KINDS})


class Verification(Struct, frozen=True):
    """``unsealed``: entries behind the newest seals, which the next sealing takes."""

    damages: tuple[Damage, ...]
    heads: tuple[ChainHead, ...]
    entries: int
    unsealed: int


def verify_books(connection: Connection) -> Verification:
    """Look at everything once. ``with reading(engine) as connection`` gives the connection."""
    error: Exception | None = None
    try:
        found = _Look(connection).all()
        if "file_damaged" not in {damage.name for damage in found.damages}:
            return found
    except Exception as each:
        if connection.dialect.name != "sqlite" or not is_of_bad_rows(each):
            raise
        error = each
    # Once more, of the same moment: slower, past what ended the first look, and row by row.
    with bytes_kept(connection):
        found = _Look(connection, past_errors=True).all()
    if error is None or isinstance(error, DBAPIError):
        return found
    if all(damage.name == "not_judged" for damage in found.damages):
        # No row is to blame.
        raise error
    return found


class _Look:
    """``past_errors``: an error that comes of bad rows ends its part alone, and is told of."""

    def __init__(self, connection: Connection, *, past_errors: bool = False) -> None:
        self._connection = connection
        self._past_errors = past_errors
        self._damages: list[Damage] = []

    def all(self) -> Verification:
        connection = self._connection
        heads: list[ChainHead] = []
        entries = unsealed = 0
        with self._part("chains"):
            heads += chain_heads(connection)
        by_place = {(head.topic, head.partition): head for head in heads}
        places: list[Any] = []
        with self._part("chains"):
            places += connection.execute(_PLACES).all()
        for topic, partition in places:
            with self._part(f"{topic}[{partition}]"):
                seen, behind = _chain(connection, topic, partition,
                                      by_place.get((topic, partition)), self._damages)  # fmt: skip
                entries += seen
                unsealed += behind
        self._take("indexes and keys", storage_damages(connection))
        if self._past_errors:
            self._take("rows", unreadable_rows(connection))
        self._take("seals", _strays(connection))
        self._take("lines", _lines(connection))
        self._take("balances", _balances(connection))
        self._take("accounts", _accounts(connection))
        self._take("offsets", _offsets(connection))
        self._take("decisions", _decisions(connection, tuple(self._damages)))
        self._take("periods", _periods(connection))
        self._take("days", _days(connection))
        self._take("guards", _guards(connection))
        self._take("schema", _schema(connection))
        damages = tuple(self._damages)
        if self._past_errors:
            damages = tuple(
                Damage(each.name, printable(each.place), printable(each.detail)) for each in damages
            )
            heads = [replace(head, topic=printable(head.topic)) for head in heads]
        return Verification(damages, tuple(heads), entries, unsealed)

    def _take(self, part: str, found: Iterator[Damage]) -> None:
        with self._part(part):
            # One by one, so that what was found before an error is kept.
            for damage in found:
                self._damages.append(damage)

    @contextmanager
    def _part(self, part: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._past_errors or not is_of_bad_rows(error):
                raise
            said = error.orig if isinstance(error, DBAPIError) else error
            self._damages.append(Damage("not_judged", part, f"{said}"))


def _balances(connection: Connection) -> Iterator[Damage]:
    for kept, summed in drifted_balances(connection):
        yield Damage(
            "balance_differs",
            f"balances {kept.account} {kept.currency}",
            f"debits {kept.debits_minor}, credits {kept.credits_minor}; its postings sum to "
            f"{summed.debits_minor} and {summed.credits_minor}",
        )


def _accounts(connection: Connection) -> Iterator[Damage]:
    """Posted by hand when nobody looked; taken out again it is told of no more."""
    rows = connection.execute(
        text(
            "SELECT a.name, b.currency, b.debits_minor - b.credits_minor FROM balances b "
            "JOIN accounts a ON a.account_id = b.account_id WHERE b.debits_minor <> "
            "b.credits_minor ORDER BY a.name, b.currency"
        )
    )
    for name, currency, minor in rows:
        if kind_of(name) in CHART and not is_kept_in(name, currency):
            yield Damage("account_of_another_currency", f"balances {name} {currency}",
                         f"{minor} {currency} stand in it: take them out by an entry by hand, to "
                         f"{kind_of(name)}:{currency}")  # fmt: skip


def _guards(connection: Connection) -> Iterator[Damage]:
    for table, name, why, anew in missing_guards(connection):
        yield Damage("guard_missing", f"{table} {name}", f"it is {why}; put it right by: {anew}")


def _schema(connection: Connection) -> Iterator[Damage]:
    named = connection.execute(select(alembic_version.c.version_num)).scalars().all()
    if named != [REVISION]:
        yield Damage("schema_differs", "alembic_version", f"{', '.join(map(str, named))}")


def _chain(
    connection: Connection,
    topic: str,
    partition: int,
    head: ChainHead | None,
    damages: list[Damage],
) -> tuple[int, int]:
    """Compare one partition's entries with its seals; how many entries, how many not sealed yet."""
    end = (head.source_offset, head.source_part) if head is not None else (-1, 0)
    seals = _seals(connection, topic, partition)
    seal = next(seals, None)
    judge = _ChainJudge(f"{topic}[{partition}]", damages)
    seen = behind = 0
    for entry in booked_entries(connection, topic, partition):
        seen += 1
        place = entry.source_offset, entry.source_part
        while seal is not None and (seal.source_offset, seal.source_part) < place:
            judge.missing(seal)
            seal = next(seals, None)
        if seal is not None and (seal.source_offset, seal.source_part) == place:
            judge.pair(entry, seal)
            seal = next(seals, None)
        elif place < end:
            judge.tell("entry_unsealed", entry.source_offset, entry.entry_id)
        else:
            behind += 1
    while seal is not None:
        judge.missing(seal)
        seal = next(seals, None)
    judge.settle(None)
    return seen, behind


class _ChainJudge:
    """Walks one chain. Each entry is judged by the stored seal before it, so that one damage is
    told once and not for everything behind it."""

    def __init__(self, place: str, damages: list[Damage]) -> None:
        self._place = place
        self._damages = damages
        self._before, self._position = FIRST_HASH, 0
        # An entry that does not fit its seal, and the seal it would have: which of the two was
        # changed is known from the next one.
        self._suspect: tuple[BookedEntry, bytes] | None = None

    def tell(self, name: str, offset: int, detail: str) -> None:
        self._damages.append(Damage(name, f"{self._place}@{offset}", detail))

    def missing(self, seal: Any) -> None:
        self.settle(None)
        self.tell("entry_missing", seal.source_offset, f"sealed as entry {seal.position}")
        self._advance(seal)

    def pair(self, entry: BookedEntry, seal: Any) -> None:
        follows_suspect = self.settle((entry, seal))
        computed = next_hash(self._before, entry.content)
        gap = seal.position - self._position - 1
        if gap:
            # What the missing seals held is not known, so this entry's cannot be judged.
            self.tell("seal_missing", entry.source_offset, f"{gap} before seal {seal.position}")
        elif not follows_suspect and computed != bytes(seal.hash):
            self._suspect = entry, computed
        elif (entry.entry_number, entry.posted_at_ms) != (seal.entry_number, seal.posted_at_ms):
            self.tell("entry_changed", entry.source_offset,
                      f"{entry.entry_id}: its number or time of posting")  # fmt: skip
        self._advance(seal)

    def settle(self, after: tuple[BookedEntry, Any] | None) -> bool:
        """Say what became of a suspect; whether the pair after it follows from what it would be,
        so that its seal was changed and not the entry."""
        if self._suspect is None:
            return False
        suspect, computed = self._suspect
        self._suspect = None
        if after is not None and next_hash(computed, after[0].content) == bytes(after[1].hash):
            self.tell("seal_changed", suspect.source_offset, f"the seal of {suspect.entry_id}")
            return True
        self.tell("entry_changed", suspect.source_offset,
                  f"{suspect.entry_id} is not what was sealed")  # fmt: skip
        return False

    def _advance(self, seal: Any) -> None:
        self._before, self._position = bytes(seal.hash), seal.position


def _seals(connection: Connection, topic: str, partition: int) -> Iterator[Any]:
    rows = connection.execution_options(yield_per=10_000).execute(
        select(entry_seals)
        .join(chains, chains.c.chain_id == entry_seals.c.chain_id)
        .where(chains.c.topic == topic, chains.c.partition == partition)
        .order_by(entry_seals.c.position)
    )
    yield from rows


def _strays(connection: Connection) -> Iterator[Damage]:
    rows = connection.execute(
        text(
            "SELECT s.chain_id, count(*) FROM entry_seals s "
            "LEFT JOIN chains c ON c.chain_id = s.chain_id "
            "WHERE c.chain_id IS NULL GROUP BY s.chain_id ORDER BY 1"
        )
    )
    for chain_id, seals in rows:
        yield Damage("seals_without_chain", f"entry_seals {chain_id}",
                     f"{seals} seals of a chain that is not there")  # fmt: skip


def _lines(connection: Connection) -> Iterator[Damage]:
    rows = connection.execute(
        text(
            "SELECT e.entry_id, e.source_topic, e.source_partition, e.source_offset "
            "FROM journal_entries e LEFT JOIN postings p ON p.entry_number = e.entry_number "
            "GROUP BY e.entry_number, e.entry_id, e.source_topic, e.source_partition, "
            "e.source_offset, e.posting_count HAVING count(p.line) <> e.posting_count "
            "OR min(p.line) <> 1 OR max(p.line) <> e.posting_count"
        )
    )
    for entry_id, topic, partition, offset in rows:
        yield Damage("entry_unbalanced", f"{topic}[{partition}]@{offset}",
                     f"{entry_id} has not the lines it names")  # fmt: skip
    rows = connection.execute(
        text(
            "SELECT e.entry_id, e.source_topic, e.source_partition, e.source_offset, p.currency, "
            "sum(p.amount_minor) FROM journal_entries e "
            "JOIN postings p ON p.entry_number = e.entry_number "
            "GROUP BY e.entry_number, e.entry_id, e.source_topic, e.source_partition, "
            "e.source_offset, p.currency HAVING sum(p.amount_minor) <> 0"
        )
    )
    for entry_id, topic, partition, offset, currency, minor in rows:
        yield Damage("entry_unbalanced", f"{topic}[{partition}]@{offset}",
                     f"{entry_id}: debits less credits are {minor} {currency}")  # fmt: skip
    rows = connection.execute(
        text(
            "SELECT DISTINCT p.entry_number FROM postings p LEFT JOIN journal_entries e "
            "ON e.entry_number = p.entry_number WHERE e.entry_number IS NULL"
        )
    )
    for (number,) in rows:
        yield Damage("postings_without_entry", f"postings {number}", "no entry has this number")


def _offsets(connection: Connection) -> Iterator[Damage]:
    rows = connection.execute(
        text(
            "SELECT e.entry_id, e.source_topic, e.source_partition, e.source_offset "
            "FROM journal_entries e LEFT JOIN consumer_offsets c ON c.topic = e.source_topic "
            "AND c.partition = e.source_partition "
            "WHERE c.next_offset IS NULL OR e.source_offset >= c.next_offset"
        )
    )
    for entry_id, topic, partition, offset in rows:
        yield Damage("entry_beyond_offset", f"{topic}[{partition}]@{offset}", entry_id)
    for row in connection.execute(select(consumer_offsets)).all():
        if row.checksum != offset_checksum(row):
            yield Damage("offset_changed", f"consumer_offsets {row.topic}[{row.partition}]",
                         f"next offset {row.next_offset}: the row is not what the ledger wrote"
                         if row.checksum else
                         f"next offset {row.next_offset} was set by something else than the "
                         "ledger, or by an earlier version of it")  # fmt: skip
    # Books are of one cluster, and of one topic of each name: reading goes on for no other.
    rows = connection.execute(
        text(
            "SELECT topic FROM consumer_offsets GROUP BY topic HAVING count(DISTINCT topic_id) > 1 "
            "OR count(DISTINCT cluster_id) > 1 ORDER BY topic"
        )
    )
    for (topic,) in rows:
        yield Damage("offset_source_differs", f"consumer_offsets {topic}",
                     "its partitions name different clusters or topics")  # fmt: skip


def _decisions(connection: Connection, known: Sequence[Damage]) -> Iterator[Damage]:
    """``known``: what the chains have told, so that nothing is told twice."""
    told = {damage.place for damage in known}
    several: list[tuple[LedgerEvent, tuple[int, int]]] = []
    closes = {row.sequence: row for row in connection.execute(select(closed_periods))}
    c = ledger_decisions.c
    places = {
        row.sequence: row
        for row in connection.execute(
            select(c.sequence, c.event_id, c.published_partition, c.published_offset,
                   c.place_checksum)
        )
    }  # fmt: skip
    entries: Counter[tuple[int, int]] = Counter()
    newest = set(newest_booked(connection))
    booked: set[tuple[str, int, int]] = set()
    for topic, partition, offset, count in connection.execute(
        _PLACES_OF_DECISIONS, {"topics": f"%{TOPIC_ROLE}"}
    ):
        booked.add((topic, partition, offset))
        entries[partition, offset] += count
    topics = {topic for topic, _, _ in booked | newest}
    expected, changed = 1, False
    for event in all_decisions(connection):
        if expected < event.sequence:
            # One damage for a gap: a changed number may leave as many out as a number can say.
            last = event.sequence - 1
            gap = f"{expected}" if expected == last else f"{expected} to {last}"
            yield Damage("decision_missing", f"ledger_decisions {gap}", "a later one is there")
        expected = event.sequence + 1
        row = closes.pop(event.sequence, None)
        if event.kind == PERIOD_CLOSE:
            agrees = _is_closed(event, row, places[event.sequence].published_offset is not None)
        else:
            agrees = row is None
        if not _has_its_id(event) or not agrees:
            changed = True
            yield Damage("decision_changed", f"ledger_decisions {event.sequence}", event.kind)
        elif not _place_fits(places[event.sequence]):
            changed = True
            yield Damage("decision_changed", f"ledger_decisions {event.sequence}",
                         f"{event.kind}: the place it was published at")  # fmt: skip
        else:
            row = places[event.sequence]
            place = row.published_partition, row.published_offset
            if event.kind in _POSTS_SEVERAL:
                if entries[place]:
                    several.append((event, place))
            elif told.isdisjoint(f"{topic}[{place[0]}]@{place[1]}" for topic in topics):
                yield from _as_it_posts(event, place, entries[place])
    unsealed = {damage.detail for damage in known if damage.name == "entry_unsealed"}
    yield from _besides(connection, several, topics, unsealed, closes_too=not changed)
    for sequence in closes:
        yield Damage("decision_changed", f"closed_periods {sequence}", "nobody decided it")
    decided = {(row.published_partition, row.published_offset) for row in places.values()}
    if not changed:
        # One that has posted nothing has left its offset alone.
        booked.update(newest)
    for topic, partition, offset in sorted(booked):
        if (partition, offset) not in decided:
            yield Damage("decision_missing", f"{topic}[{partition}]@{offset}", "it is booked")


def _has_its_id(event: LedgerEvent) -> bool:
    """What no decision could have said has no id."""
    try:
        return event.event_id == event_id_of(event)
    except (TypeError, ValueError):
        return False


def _as_it_posts(
    event: LedgerEvent, place: tuple[int | None, int | None], entries: int
) -> Iterator[Damage]:
    """A decision of one entry has that alone once it is booked, and one of none has none."""
    partition, offset = place
    posts = 0 if offset is None or decided_entry_of(event) is None else 1
    if entries != posts:
        yield Damage("decision_posted_otherwise", f"ledger_decisions {event.sequence}",
                     f"{event.kind}, published at [{partition}]@{offset}, posts {posts}: "
                     f"{entries} are booked")  # fmt: skip


def _besides(
    connection: Connection,
    several: Sequence[tuple[LedgerEvent, tuple[int, int]]],
    topics: Collection[str],
    told: Collection[str],
    *,
    closes_too: bool,
) -> Iterator[Damage]:
    """Entries that stand with those of a decision of several, and that it does not post.

    What a close posts follows from what decisions say and closes before it have posted: it is
    judged only where those are whole.
    """
    rules = Rules()
    for event, (partition, offset) in several:
        if event.kind == PERIOD_CLOSE:
            if not closes_too:
                continue
            rules = current_rules(connection, rules)
        try:
            posts = ids_of_entries(connection, event, rules, offset)
        except (ValueError, ArithmeticError):
            # Of a changed entry, which its seal tells of.
            continue
        there = [
            entry_id
            for topic in sorted(topics)
            for entry_id in connection.execute(
                _IDS_AT, {"topic": topic, "partition": partition, "offset": offset}
            ).scalars()
        ]
        for entry_id in there:
            if entry_id in posts or entry_id in told:
                continue
            closes_too = closes_too and event.kind != PERIOD_CLOSE
            yield Damage("decision_posted_otherwise", f"ledger_decisions {event.sequence}",
                         f"{event.kind}, published at [{partition}]@{offset}, does not post "
                         f"{entry_id}")  # fmt: skip


def _is_closed(event: LedgerEvent, row: Any, booked: bool) -> bool:
    """Whether a close has the period that it decided. It is sealed in the transaction that books
    it, and in no other."""
    if row is None:
        return False
    kept = _closed(row.cuts)
    return (
        kept is not None
        and row.cuts == event.body
        and row.through_date == kept["through"]
        and row.sealed == (1 if booked else 0)
    )


def _place_fits(row: Any) -> bool:
    """A place is whole or not there; one of an earlier version has no checksum."""
    there = row.published_partition is not None and row.published_offset is not None
    none = row.published_partition is None and row.published_offset is None
    if row.place_checksum == UNSET:
        return there or none
    return there and row.place_checksum == place_checksum(
        row.event_id, row.published_partition, row.published_offset
    )


def _closed(said: str) -> dict[str, Any] | None:
    """What a close says; None when it is none."""
    try:
        found = json.loads(said)
        whole = isinstance(found["through"], str) and all(
            int(partition) >= 0 and type(cut) is int for partition, cut in found["cuts"].items()
        )
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    return found if whole else None


def _periods(connection: Connection) -> Iterator[Damage]:
    """Entries of settlements from a cut on that count under a day it closed."""
    topics = set(connection.execute(select(consumer_offsets.c.topic)).scalars())
    for row in connection.execute(select(closed_periods)).all():
        # One that cannot be read is told of with the decisions.
        kept = _closed(row.cuts) or {"cuts": {}}
        for partition, cut in kept["cuts"].items():
            found = connection.execute(
                text(
                    "SELECT entry_id, source_topic, source_offset FROM journal_entries "
                    "WHERE source_partition = :partition AND source_offset >= :cut "
                    "AND settlement_id <> '' AND :through >= "
                    "CASE booked_date WHEN '' THEN business_date ELSE booked_date END"
                ),
                {"partition": int(partition), "cut": cut, "through": row.through_date},
            )
            for entry_id, topic, offset in found:
                if topic in topics:
                    yield Damage("entry_in_closed_period", f"{topic}[{partition}]@{offset}",
                                 f"{entry_id} counts in a period closed through "
                                 f"{row.through_date}")  # fmt: skip


def _days(connection: Connection) -> Iterator[Damage]:
    """Entries whose days are no dates: as text they sort behind a closed day that they may be of.
    No writer of ours makes one."""
    few = connection.execute(
        text("SELECT DISTINCT business_date, booked_date FROM journal_entries")
    )
    if all(_is_day(day) and (booked == "" or _is_day(booked)) for day, booked in few):
        return
    rows = connection.execute(
        text(
            "SELECT entry_id, source_topic, source_partition, source_offset, business_date, "
            "booked_date FROM journal_entries ORDER BY entry_number"
        )
    )
    for entry_id, topic, partition, offset, *days in rows:
        for name, day in zip(("business_date", "booked_date"), days, strict=True):
            if not _is_day(day) and (name, day) != ("booked_date", ""):
                yield Damage("day_unreadable", f"{topic}[{partition}]@{offset}",
                             f"{entry_id}: its {name} is {day!r}")  # fmt: skip


def _is_day(said: object) -> bool:
    """Whether it is a date of the calendar in the one form that sorts as dates do."""
    try:
        return isinstance(said, str) and date.fromisoformat(said).isoformat() == said
    except ValueError:
        return False

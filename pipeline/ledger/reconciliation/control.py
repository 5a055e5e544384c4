"""The internal control: every record of the settlements topic is in the ledger, and no other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Connection, TextClause, text

from pipeline.domain.breaks import LEDGER_DIFFERS, ReconciliationBreak, break_id
from pipeline.domain.model import Settlement
from pipeline.domain.money import format_amount
from pipeline.domain.posting import NO_GATEWAY, entry_id
from pipeline.domain.validation import is_date
from pipeline.ledger.statements import AMONG_TEXTS

# What a database's integer holds.
_AT_RISK_MINOR_MAX: Final = 2**63 - 1
_BOOKED: Final = (
    "SELECT e.entry_id, e.gateway, e.gateway_reference, p.currency, p.amount_minor "
    "FROM journal_entries e JOIN postings p ON p.entry_number = e.entry_number AND p.line = 1 "
)
# What was booked from some records of a partition, in the order in which it was written.
_BOOKED_FROM: Final = text(
    f"{_BOOKED} WHERE e.source_topic = :topic AND e.source_partition = :partition "
    "AND e.source_offset BETWEEN :first AND :last"
)
# All ids as one value, so that each database has one plan, however many they are.
_BOOKED_AS: Final[Mapping[str, TextClause]] = {
    dialect: text(f"{_BOOKED} WHERE e.entry_id {among}")
    for dialect, among in (
        ("sqlite", "IN (SELECT value FROM json_each(:ids))"),
        ("postgresql", AMONG_TEXTS.format(":ids")),
    )
}
_COUNT: Final = text(
    "SELECT count(*) FROM journal_entries WHERE source_topic = :topic "
    "AND source_partition = :partition AND source_offset >= :low AND source_offset < :end"
)


# Gateway, its reference, currency, amount.
Booked = Sequence[Any]


class Published(Struct, frozen=True, gc=False):
    """A settlement, where it lies in its topic, and since when."""

    settlement: Settlement
    topic: str
    partition: int
    offset: int
    appended_at_ms: int = 0

    @property
    def place(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


def compare(
    connection: Connection, published: Sequence[Published]
) -> tuple[list[ReconciliationBreak], int]:
    """Settlements of one partition that the ledger has read, in their order, against its entries;
    and how many of those say that they come from there."""
    if not published:
        return [], 0
    found: list[ReconciliationBreak] = []
    ids = [entry_id(_shown(each.settlement.settlement_id)) for each in published]
    side_by_side = _booked_from(connection, published)
    entries = {known: side_by_side[known] for known in ids if known in side_by_side}
    booked_here = len(entries)
    entries.update(_booked_as(connection, [known for known in ids if known not in entries]))
    for each, known in zip(published, ids, strict=True):
        booked = entries.get(known)
        s = each.settlement
        if booked is None:
            amount = format_amount(s.amount_minor, s.currency)
            found.append(_differs(each, abs(s.amount_minor), f"{amount} is not booked"))
            continue
        gateway, reference, currency, amount_minor = booked
        here = (gateway, reference, currency, abs(amount_minor))
        there = (s.gateway, s.gateway_reference, s.currency, abs(s.amount_minor))
        if here != there:
            amount = format_amount(s.amount_minor, s.currency)
            said = format_amount(amount_minor, currency)
            at_risk = abs(abs(amount_minor) - abs(s.amount_minor)) or abs(s.amount_minor)
            found.append(_differs(each, at_risk, f"{amount} is booked as {said}"))
    return found, booked_here


def _booked_from(connection: Connection, published: Sequence[Published]) -> dict[str, Booked]:
    """The entries of where these lie, by id: nearly all of theirs, side by side as they were
    read."""
    first, last = published[0], published[-1]
    where = {"topic": first.topic, "partition": first.partition, "first": first.offset,
             "last": last.offset}  # fmt: skip
    return {row[0]: row[1:] for row in connection.execute(_BOOKED_FROM, where)}


def _booked_as(connection: Connection, ids: Sequence[str]) -> dict[str, Booked]:
    """Entries by id: one that was published again was booked from another place."""
    if not ids:
        return {}
    asked = _BOOKED_AS[connection.dialect.name]
    return {row[0]: row[1:] for row in connection.execute(asked, {"ids": json.dumps(ids)})}


def day_of(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()


def entries_between(connection: Connection, topic: str, partition: int, low: int, end: int) -> int:
    """How many entries say that they come from these records."""
    return int(
        connection.execute(
            _COUNT, {"topic": topic, "partition": partition, "low": low, "end": end}
        ).scalar_one()
    )


def too_many(
    topic: str, partition: int, booked: int, entries: int, day: str
) -> ReconciliationBreak:
    """The ledger has entries of a partition that the topic has not. The detail holds how many more
    and not of how many, so it stays the same while the topic grows."""
    place = f"{topic}[{partition}]"
    return ReconciliationBreak(
        break_id=break_id(LEDGER_DIFFERS, NO_GATEWAY, place),
        kind=LEDGER_DIFFERS,
        gateway=NO_GATEWAY,
        subject=place,
        currency="XXX",
        at_risk_minor=0,
        since=day,
        detail=f"{entries - booked} entries more come from {place} than it has settlements; see "
        "`paystream verify`",
        settlement_place=place,
    )


def _differs(published: Published, at_risk_minor: int, detail: str) -> ReconciliationBreak:
    """What is so odd that the ledger refuses it is named too, as far as a book can hold it."""
    s = published.settlement
    subject = _shown(s.settlement_id)
    return ReconciliationBreak(
        break_id=break_id(LEDGER_DIFFERS, s.gateway, subject),
        kind=LEDGER_DIFFERS,
        gateway=_shown(s.gateway),
        subject=subject,
        currency=_shown(s.currency),
        at_risk_minor=min(at_risk_minor, _AT_RISK_MINOR_MAX),
        since=s.business_date if is_date(s.business_date) else day_of(published.appended_at_ms),
        detail=_shown(detail),
        merchant_id=_shown(s.merchant_id),
        order_id=_shown(s.order_id),
        payment_id=_shown(s.payment_id),
        gateway_reference=_shown(s.gateway_reference),
        settlement_place=published.place,
    )


def _shown(text: str) -> str:
    """PostgreSQL keeps no NUL, and takes none in a question."""
    return text.replace("\0", "\\0")

"""Both sides as streams in one order, put together group by group: memory does not grow with them.

What is cleared is looked at no more. The databases sort; the rules are ``domain/matching``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Connection, text

from pipeline.domain.matching import (
    BookedSide,
    Paired,
    ReportedSide,
    Tolerance,
    differences,
    is_cleared,
    pair,
)
from pipeline.domain.posting import KNOWN_BY_REFERENCE, UNASKED

_FETCH_ROWS: Final = 5_000
# Groups come in the order of bytes, so that both databases and Python agree about it. On SQLite the
# sign keeps the planner from reading a table row by row in the order of some index of it.
_ORDER: Final[Mapping[str, str]] = {
    "sqlite": "+{0}.gateway, +{0}.gateway_reference, {1}",
    "postgresql": '{0}.gateway COLLATE "C", {0}.gateway_reference COLLATE "C", {1} COLLATE "C"',
}
_BY_REFERENCE: Final = ", ".join(f"'{kind}'" for kind in sorted(KNOWN_BY_REFERENCE))
# What moved, as a report says it: of a charge nobody asked for as of any other.
_MOVED: Final = f"replace(e.kind, '{UNASKED}', '')"

_BOOKED_SIDE: Final = f"""
    SELECT e.settlement_id, e.gateway, e.gateway_reference, {_MOVED}, e.payment_id, e.operation_id,
        e.merchant_id, e.order_id, p.currency, p.amount_minor,
        CAST(CASE e.terms WHEN '' THEN 0 ELSE coalesce((
            SELECT sum(q.amount_minor) FROM postings q
            WHERE q.entry_number = e.entry_number AND q.account_id = a.account_id
        ), 0) END AS BIGINT) AS cost_minor,
        e.terms, e.settled_at_ms, e.source_topic, e.source_partition, e.source_offset,
        e.kind IN ({_BY_REFERENCE})
    FROM journal_entries e JOIN postings p ON p.entry_number = e.entry_number AND p.line = 1
    LEFT JOIN accounts a ON a.name = 'gateway_cost:' || e.gateway"""
_BOOKED: Final = f"""{_BOOKED_SIDE}
    WHERE e.settlement_id <> '' AND e.gateway <> 'none' AND {_MOVED} <> 'external_refund'
    AND NOT EXISTS (
        SELECT 1 FROM cleared_rows c WHERE c.settlement_id = e.settlement_id
    )
    ORDER BY {{order}}"""
_AT: Final = text(
    f"{_BOOKED_SIDE} WHERE e.source_topic = :topic AND e.source_partition = :partition "
    "AND e.source_offset = :offset AND e.settlement_id <> ''"
)
_REPORTED: Final = """
    SELECT r.gateway, r.gateway_reference, r.kind, r.payment_id, r.operation_id, r.attempt,
        r.file_id, r.row_number, r.report_date, r.merchant_id, r.order_id, r.currency,
        r.amount_minor, r.fee_minor, r.batch_id, r.operation_kind, r.told, r.source_partition,
        r.source_offset
    FROM clearing_rows r WHERE NOT EXISTS (
        SELECT 1 FROM cleared_rows c WHERE c.gateway = r.gateway AND c.file_id = r.file_id
        AND c.row_number = r.row_number
    )
    ORDER BY {order}"""
_SIBLING: Final = text(
    "SELECT r.file_id, r.row_number FROM clearing_rows r JOIN cleared_rows c "
    "ON c.gateway = r.gateway AND c.file_id = r.file_id AND c.row_number = r.row_number "
    "WHERE r.gateway = :gateway AND r.gateway_reference = :reference AND r.kind = :kind "
    "AND r.payment_id = :payment AND r.operation_id = :operation "
    # The same one at every look.
    "ORDER BY c.sequence, r.report_date, r.file_id, r.row_number LIMIT 1"
)


class Matched(Struct, frozen=True, gc=False):
    """A row and the settlement it tells of. ``differs``: names of breaks."""

    booked: BookedSide
    row: ReportedSide
    differs: tuple[str, ...]

    @property
    def clears(self) -> bool:
        return is_cleared(self.differs)


class OnlyHere(Struct, frozen=True, gc=False):
    """A settlement that no row tells of."""

    booked: BookedSide


class OnlyThere(Struct, frozen=True, gc=False):
    """A row that tells of no settlement that is still to be cleared. ``cleared_by``: the row that
    has cleared the same one, as ``file:row``, so this is a duplicate; else ""."""

    row: ReportedSide
    cleared_by: str = ""


Result = Matched | OnlyHere | OnlyThere


def matched(
    connection: Connection, topics: tuple[str, str], tolerance: Callable[[str], Tolerance]
) -> Iterator[Result]:
    """Everything that is not cleared, put together. ``topics``: settlements, clearings; the
    connection is one of ``reading``: both sides are of one moment."""
    groups = _merged(
        groupby(_booked(connection), lambda b: (b.gateway, b.gateway_reference, b.kind)),
        groupby(
            _reported(connection, topics[1]), lambda r: (r.gateway, r.gateway_reference, r.kind)
        ),
    )
    for gateway, booked, rows in groups:
        if not rows:
            yield from map(OnlyHere, booked)
            continue
        allowed = tolerance(gateway)
        found = pair(booked, rows, allowed)
        for settled, row in (*found.pairs, *found.repeated):
            yield Matched(settled, row, differences(settled, row, allowed))
        yield from map(OnlyHere, found.booked)
        for row in found.reported:
            yield OnlyThere(row, _cleared_by(connection, found, row, allowed))


def _merged(
    booked: Iterator[tuple[Any, Iterator[BookedSide]]],
    reported: Iterator[tuple[Any, Iterator[ReportedSide]]],
) -> Iterator[tuple[str, list[BookedSide], list[ReportedSide]]]:
    here, there = next(booked, None), next(reported, None)
    while here is not None or there is not None:
        key = min(each[0] for each in (here, there) if each is not None)
        ours: list[BookedSide] = []
        theirs: list[ReportedSide] = []
        if here is not None and here[0] == key:
            ours = list(here[1])
            here = next(booked, None)
        if there is not None and there[0] == key:
            theirs = list(there[1])
            there = next(reported, None)
        yield key[0], ours, theirs


def _cleared_by(
    connection: Connection, found: Paired, row: ReportedSide, allowed: Tolerance
) -> str:
    earlier = connection.execute(
        _SIBLING,
        {"gateway": row.gateway, "reference": row.gateway_reference, "kind": row.kind,
         "payment": row.payment_id, "operation": row.operation_id},
    ).one_or_none()  # fmt: skip
    if earlier is not None:
        return f"{earlier.file_id}:{earlier.row_number}"
    for settled, other in found.pairs:
        named = other.operation_id == row.operation_id and other.payment_id == row.payment_id
        if named and is_cleared(differences(settled, other, allowed)):
            return f"{other.file_id}:{other.row_number}"
    return ""


def _booked(connection: Connection) -> Iterator[BookedSide]:
    for row in _rows(connection, _BOOKED, "e", _MOVED):
        yield _booked_side(row)


def _booked_side(row: Any) -> BookedSide:
    place = f"{row[13]}[{row[14]}]@{row[15]}"
    return BookedSide(*(*row[:11], bool(row[11]), row[12], place, bool(row[16])))


def settlement_at(connection: Connection, place: str) -> BookedSide | None:
    """The settlement that was booked from ``topic[partition]@offset``, cleared or not."""
    topic, _, rest = place.rpartition("[")
    partition, _, offset = rest.partition("]@")
    if not offset:
        return None
    where = {"topic": topic, "partition": int(partition), "offset": int(offset)}
    row = connection.execute(_AT, where).one_or_none()
    return None if row is None else _booked_side(row)


def _reported(connection: Connection, topic: str) -> Iterator[ReportedSide]:
    for row in _rows(connection, _REPORTED, "r", "r.kind"):
        yield ReportedSide(*(*row[:17], f"{topic}[{row[17]}]@{row[18]}"))


def _rows(connection: Connection, statement: str, table: str, moved: str) -> Iterator[Any]:
    order = _ORDER[connection.dialect.name].format(table, moved)
    ordered = text(statement.format(order=order))
    cursor = connection.execute(ordered.execution_options(yield_per=_FETCH_ROWS))
    for batch in cursor.partitions(_FETCH_ROWS):
        yield from batch

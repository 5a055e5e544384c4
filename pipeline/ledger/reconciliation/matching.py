"""Both sides as streams in one order, put together group by group: memory does not grow with them.

What is cleared is looked at no more. The databases sort; the rules are ``domain/matching``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Connection, TextClause, text

from pipeline.domain.matching import (
    BookedSide,
    Paired,
    ReportedSide,
    Tolerance,
    differences,
    is_cleared,
    is_same,
    pair,
)
from pipeline.domain.posting import KNOWN_BY_REFERENCE, UNASKED

_FETCH_ROWS: Final = 5_000
# Of SQLite's memory for pages, which each sort takes once more: a million rows are some 400 MB, so
# they are merged of a dozen runs, and both sides are read in the order in which they were written.
_SQLITE_CACHE_KIB: Final = 32 * 1024
# All rows of both cursors are fetched; a planner takes a tenth for granted, and walks an index for
# that. Each sort gets some of the server's memory, so that it merges its runs once.
_WHOLE: Final = (
    "SET LOCAL cursor_tuple_fraction = 1",
    "SET LOCAL work_mem = '64MB'",
    "SET LOCAL jit = off",
)
# Rows without a settlement that are looked up together.
_LEFT_MAX: Final = 1_000
# Groups come in the order of bytes, so that both databases and Python agree about it, led by what
# tells most: nearly every comparison ends with it. On SQLite the sign keeps the planner from
# reading a table row by row in the order of some index of it.
_ORDER: Final[Mapping[str, str]] = {
    "sqlite": "+{0}.gateway_reference, +{0}.gateway, {1}",
    "postgresql": '{0}.gateway_reference COLLATE "C", {0}.gateway COLLATE "C", {1} COLLATE "C"',
}
_BY_REFERENCE: Final = ", ".join(f"'{kind}'" for kind in sorted(KNOWN_BY_REFERENCE))
# What moved, as a report says it: of a charge nobody asked for as of any other.
_MOVED: Final = f"replace(e.kind, '{UNASKED}', '')"

# In the order of ``BookedSide``. One look at an entry's lines, whatever is asked of them; for CROSS
# JOIN SQLite reads the entries, and their lines beside them.
_BOOKED_SIDE: Final = f"""
    SELECT e.settlement_id, e.gateway, e.gateway_reference, {_MOVED}, e.payment_id, e.operation_id,
        e.merchant_id, e.order_id, p.currency, p.amount_minor,
        CAST(CASE e.terms WHEN '' THEN 0 ELSE coalesce((
            SELECT sum(q.amount_minor) FROM postings q
            WHERE q.entry_number = e.entry_number AND q.account_id = a.account_id
        ), 0) END AS BIGINT) AS cost_minor,
        e.terms <> '', e.settled_at_ms,
        e.source_topic || '[' || e.source_partition || ']@' || e.source_offset,
        e.kind IN ({_BY_REFERENCE})
    FROM journal_entries e CROSS JOIN postings p
    LEFT JOIN accounts a ON a.name = 'gateway_cost:' || e.gateway
    WHERE p.entry_number = e.entry_number AND p.line = 1"""
# The length is asked for since SQLite would walk the index of settlements' payments otherwise, and
# read the entries one by one in its order.
_BOOKED: Final = f"""{_BOOKED_SIDE}
    AND length(e.settlement_id) > 0 AND e.gateway <> 'none' AND {_MOVED} <> 'external_refund'
    AND NOT EXISTS (
        SELECT 1 FROM cleared_rows c WHERE c.settlement_id = e.settlement_id
    )
    ORDER BY {{order}}"""
_AT: Final = text(
    f"{_BOOKED_SIDE} AND e.source_topic = :topic AND e.source_partition = :partition "
    "AND e.source_offset = :offset AND e.settlement_id <> ''"
)
# In the order of ``ReportedSide``.
_REPORTED: Final = """
    SELECT r.gateway, r.gateway_reference, r.kind, r.payment_id, r.operation_id, r.attempt,
        r.file_id, r.row_number, r.report_date, r.merchant_id, r.order_id, r.currency,
        r.amount_minor, r.fee_minor, r.batch_id, r.operation_kind, r.told,
        {value} || '[' || r.source_partition || ']@' || r.source_offset
    FROM clearing_rows r WHERE NOT EXISTS (
        SELECT 1 FROM cleared_rows c WHERE c.gateway = r.gateway AND c.file_id = r.file_id
        AND c.row_number = r.row_number
    )
    ORDER BY {order}"""
# For rows that are given as a list, those that tell of the same and have cleared it. The databases
# look each up by its reference: a planner that takes ``cleared_rows`` for empty, as it was when the
# run began, would read all of it for each.
_FIRST_CLEARED: Final = "c.sequence, r.report_date, r.file_id, r.row_number"
_SIBLINGS: Final[Mapping[str, TextClause]] = {
    "sqlite": text(
        "SELECT w.key, r.file_id, r.row_number FROM json_each(:wanted) w "
        "CROSS JOIN clearing_rows r ON r.gateway_reference = json_extract(w.value, '$[0]') "
        "AND r.kind = json_extract(w.value, '$[1]') AND r.gateway = json_extract(w.value, '$[2]') "
        "AND r.payment_id = json_extract(w.value, '$[3]') "
        "AND r.operation_id = json_extract(w.value, '$[4]') "
        "CROSS JOIN cleared_rows c ON c.gateway = r.gateway AND c.file_id = r.file_id "
        "AND c.row_number = r.row_number "
        f"ORDER BY w.key, {_FIRST_CLEARED}"
    ),
    "postgresql": text(
        "SELECT w.number - 1, r.file_id, r.row_number "
        "FROM json_array_elements(CAST(:wanted AS json)) WITH ORDINALITY w(value, number), "
        "LATERAL (SELECT * FROM clearing_rows s WHERE s.gateway_reference = w.value ->> 0 "
        "AND s.kind = w.value ->> 1 AND s.gateway = w.value ->> 2 "
        "AND s.payment_id = w.value ->> 3 AND s.operation_id = w.value ->> 4 OFFSET 0) r, "
        "LATERAL (SELECT * FROM cleared_rows d WHERE d.gateway = r.gateway "
        "AND d.file_id = r.file_id AND d.row_number = r.row_number OFFSET 0) c "
        f"ORDER BY w.number, {_FIRST_CLEARED}"
    ),
}


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
_Row = tuple[Any, ...]
# Reference, gateway and kind, as they are ordered.
_KEY_OF_BOOKED: Final = itemgetter(2, 1, 3)
_KEY_OF_REPORTED: Final = itemgetter(1, 0, 2)


@contextmanager
def for_sorting(connection: Connection) -> Iterator[None]:
    """PostgreSQL's settings last as long as the transaction, SQLite's as long as the connection."""
    if connection.dialect.name == "postgresql":
        for setting in _WHOLE:
            connection.exec_driver_sql(setting)
        yield
        return
    before = connection.exec_driver_sql("PRAGMA cache_size").scalar_one()
    connection.exec_driver_sql(f"PRAGMA cache_size = -{_SQLITE_CACHE_KIB}")
    try:
        yield
    finally:
        connection.exec_driver_sql(f"PRAGMA cache_size = {before}")


def matched(
    connection: Connection, topics: tuple[str, str], tolerance: Callable[[str], Tolerance]
) -> Iterator[Result]:
    """Everything that is not cleared, put together. ``topics``: settlements, clearings; the
    connection is one of ``reading``, so both sides are of one moment, set ``for_sorting``."""
    left: list[tuple[ReportedSide, str]] = []
    ours = _rows(connection, _BOOKED, "e", _MOVED)
    theirs = _rows(connection, _REPORTED, "r", "r.kind", topics[1])
    for booked, rows in _merged(ours, theirs):
        if not rows:
            yield from map(OnlyHere, booked)
            continue
        allowed = tolerance(rows[0].gateway)
        if len(booked) == len(rows) == 1 and is_same(booked[0], rows[0]):
            # Nearly all of them.
            yield Matched(booked[0], rows[0], differences(booked[0], rows[0], allowed))
            continue
        found = pair(booked, rows, allowed)
        for settled, row in (*found.pairs, *found.repeated):
            yield Matched(settled, row, differences(settled, row, allowed))
        yield from map(OnlyHere, found.booked)
        left += ((row, _paired_by(found, row, allowed)) for row in found.reported)
        if len(left) >= _LEFT_MAX:
            yield from _only_there(connection, left)
            left = []
    yield from _only_there(connection, left)


def _merged(
    booked: Iterator[_Row], reported: Iterator[_Row]
) -> Iterator[tuple[list[BookedSide], list[ReportedSide]]]:
    """Both sides group by group. Rows become sides only here: their groups are told apart by the
    driver's own tuples."""
    ours, theirs = groupby(booked, _KEY_OF_BOOKED), groupby(reported, _KEY_OF_REPORTED)
    here, there = next(ours, None), next(theirs, None)
    while here is not None or there is not None:
        at_here = here is not None and (there is None or here[0] <= there[0])
        at_there = there is not None and (here is None or there[0] <= here[0])
        yield (
            [BookedSide(*row) for row in here[1]] if here is not None and at_here else [],
            [ReportedSide(*row) for row in there[1]] if there is not None and at_there else [],
        )
        if at_here:
            here = next(ours, None)
        if at_there:
            there = next(theirs, None)


def _only_there(
    connection: Connection, left: Sequence[tuple[ReportedSide, str]]
) -> Iterator[OnlyThere]:
    """Rows without a settlement, each with the row of this look that is paired with what it tells
    of, if there is one; one that has cleared the same before comes first."""
    if not left:
        return
    wanted = [
        (row.gateway_reference, row.kind, row.gateway, row.payment_id, row.operation_id)
        for row, _ in left
    ]
    asked = _SIBLINGS[connection.dialect.name]
    earlier: dict[int, str] = {}
    for number, file_id, row_number in connection.execute(asked, {"wanted": json.dumps(wanted)}):
        # The first is the same one at every look.
        earlier.setdefault(number, f"{file_id}:{row_number}")
    for number, (row, paired_by) in enumerate(left):
        yield OnlyThere(row, earlier.get(number, paired_by))


def _paired_by(found: Paired, row: ReportedSide, allowed: Tolerance) -> str:
    for settled, other in found.pairs:
        named = other.operation_id == row.operation_id and other.payment_id == row.payment_id
        if named and is_cleared(differences(settled, other, allowed)):
            return f"{other.file_id}:{other.row_number}"
    return ""


def settlement_at(connection: Connection, place: str) -> BookedSide | None:
    """The settlement that was booked from ``topic[partition]@offset``, cleared or not."""
    topic, _, rest = place.rpartition("[")
    partition, _, offset = rest.partition("]@")
    if not offset:
        return None
    where = {"topic": topic, "partition": int(partition), "offset": int(offset)}
    row = connection.execute(_AT, where).one_or_none()
    return None if row is None else BookedSide(*row)


def _rows(
    connection: Connection, statement: str, table: str, moved: str, *given: str
) -> Iterator[_Row]:
    """The driver's own tuples, fetched by its own cursor: a million would be made into rows of
    SQLAlchemy for nothing."""
    dialect = connection.dialect.name
    order = _ORDER[dialect].format(table, moved)
    driver: Any = connection.connection.driver_connection
    # A named cursor of PostgreSQL stays at the server.
    cursor, value = (driver.cursor(), "?") if dialect == "sqlite" else (driver.cursor(table), "%s")
    with closing(cursor):
        cursor.execute(statement.format(order=order, value=f"CAST({value} AS TEXT)"), given)
        while batch := cursor.fetchmany(_FETCH_ROWS):
            yield from batch

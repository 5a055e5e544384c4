"""Taking in the clearings: each row once, with the topic's offsets in the same transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple, fields
from sqlalchemy import Connection, Engine, select, text, update

from pipeline.domain.breaks import CLEARING_REFUSED, ReconciliationBreak, break_id
from pipeline.domain.clearing import Clearing, clearing_key
from pipeline.domain.posting import NO_GATEWAY
from pipeline.errors import UserError
from pipeline.ledger.errors import SourceChanged
from pipeline.ledger.journal import Progress, Source
from pipeline.ledger.reconciliation.breaks import keep
from pipeline.ledger.reconciliation.tables import clearing_offsets, clearing_rows

# Values in one IN list: below SQLite's limit of variables in every build.
_IN_LIST_MAX = 200
_FIELDS = tuple(field.name for field in fields(Clearing))
_FIRST_OFFSET = text(
    "INSERT INTO clearing_offsets (topic, partition, cluster_id, topic_id, next_offset) "
    "VALUES (:topic, :partition, :cluster_id, :topic_id, :next_offset) ON CONFLICT DO NOTHING"
)


class Placed(Struct, frozen=True, gc=False):
    """A row and where it lies in the topic."""

    clearing: Clearing
    partition: int
    offset: int


def stored_offsets(connection: Connection, source: Source) -> dict[int, int]:
    """By partition, how far the topic is taken in. SourceChanged when it is another topic."""
    c = clearing_offsets.c
    rows = connection.execute(select(clearing_offsets).where(c.topic == source.topic)).all()
    for row in rows:
        if (row.cluster_id, row.topic_id) != (source.cluster_id, source.topic_id):
            raise SourceChanged(
                f"the clearings of another cluster or an earlier topic {source.topic} are taken in "
                "here: connect the cluster this ledger belongs to, or use a new ledger."
            )
    return {row.partition: row.next_offset for row in rows}


def take_in(
    engine: Engine,
    source: Source,
    rows: Sequence[Placed],
    progress: Mapping[int, Progress],
    refused: Sequence[ReconciliationBreak] = (),
    *,
    now_ms: int = 0,
) -> int:
    """Store the rows that are new and move the offsets, all or nothing; how many were new.

    A row that is there with the same content is skipped. With another it is not stored, since what
    it contradicts may be in the books: it becomes a break, as what was ``refused`` already does.
    """
    with engine.begin() as connection:
        for partition in sorted(progress):
            _move(connection, source, partition, progress[partition])
        inserted = _insert(connection, rows) if rows else 0
        broken = list(refused)
        if inserted != len(rows):
            broken += _contradictions(connection, source, rows)
        if broken:
            keep(connection, broken, now_ms, judged=())
    return inserted


def refusal(
    source: Source,
    partition: int,
    offset: int,
    detail: str,
    *,
    day: str = "",
    clearing: Clearing | None = None,
) -> ReconciliationBreak:
    """The break that a record which is not taken in becomes; ``day`` counts if it names none."""
    place = f"{source.topic}[{partition}]@{offset}"
    gateway = NO_GATEWAY if clearing is None else clearing.gateway
    return ReconciliationBreak(
        break_id=break_id(CLEARING_REFUSED, gateway, place),
        kind=CLEARING_REFUSED,
        gateway=gateway,
        subject=place,
        currency="XXX" if clearing is None else clearing.currency,
        at_risk_minor=0 if clearing is None else abs(clearing.amount_minor),
        since=day if clearing is None else clearing.report_date,
        detail=detail,
        file_id="" if clearing is None else clearing.file_id,
        row_number=0 if clearing is None else clearing.row_number,
        clearing_place=place,
    )


def new_rows(connection: Connection, rows: Sequence[Clearing]) -> list[Clearing]:
    """Those that are not stored, each once. UserError for one that contradicts what is stored."""
    known: dict[tuple[str, str, int], Clearing] = {}
    for gateway, file_id in sorted({(row.gateway, row.file_id) for row in rows}):
        c = clearing_rows.c
        stored = connection.execute(
            select(*(c[name] for name in _FIELDS)).where(c.gateway == gateway, c.file_id == file_id)
        )
        known.update({(r.gateway, r.file_id, r.row_number): Clearing(**r._mapping) for r in stored})
    fresh = []
    for row in rows:
        before = known.setdefault(_key(row), row)
        if before is row:
            fresh.append(row)
        else:
            _require_same(before, row)
    return fresh


def _contradictions(
    connection: Connection, source: Source, rows: Sequence[Placed]
) -> list[ReconciliationBreak]:
    """Of these rows, those that were there with another content."""
    c = clearing_rows.c
    found = []
    for start in range(0, len(rows), _IN_LIST_MAX):
        some = rows[start : start + _IN_LIST_MAX]
        stored = connection.execute(
            select(*(c[name] for name in _FIELDS)).where(
                c.gateway.in_({each.clearing.gateway for each in some}),
                c.file_id.in_({each.clearing.file_id for each in some}),
                c.row_number.in_({each.clearing.row_number for each in some}),
            )
        )
        known = {_key(row): row for row in (Clearing(**r._mapping) for r in stored)}
        for each in some:
            differing = _differing(known[_key(each.clearing)], each.clearing)
            if differing:
                said = f"came before with another {', '.join(differing)}"
                detail = f"row {clearing_key(*_key(each.clearing))} {said}"
                found.append(
                    refusal(source, each.partition, each.offset, detail, clearing=each.clearing)
                )
    return found


def _require_same(before: Clearing, row: Clearing) -> None:
    differing = _differing(before, row)
    if differing:
        raise UserError(
            f"row {clearing_key(*_key(row))} came before with another {', '.join(differing)}: a "
            f"report never changes. Ask {row.gateway} which is true."
        )


def _differing(before: Clearing, row: Clearing) -> list[str]:
    if before == row:
        return []
    return [name for name in _FIELDS if getattr(before, name) != getattr(row, name)]


def _key(row: Clearing) -> tuple[str, str, int]:
    return row.gateway, row.file_id, row.row_number


def _insert(connection: Connection, rows: Sequence[Placed]) -> int:
    """How many of them were not there."""
    columns = (*_FIELDS, "source_partition", "source_offset")
    names = ", ".join(columns)
    # What came first counts.
    first: dict[tuple[str, str, int], Placed] = {}
    for row in rows:
        first.setdefault(_key(row.clearing), row)
    # In the order of the larger index, so that each of its pages is come to once.
    ordered = sorted(first.values(), key=lambda r: r.clearing.gateway_reference)
    values = [(*astuple(r.clearing), r.partition, r.offset) for r in ordered]
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * len(columns))
        statement = f"INSERT INTO clearing_rows ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING"
        return connection.exec_driver_sql(statement, values).rowcount
    # COPY knows no conflicts, so the rows go by a table of this connection's own.
    connection.exec_driver_sql(
        "CREATE TEMPORARY TABLE IF NOT EXISTS clearing_rows_new "
        "(LIKE clearing_rows INCLUDING DEFAULTS) ON COMMIT DELETE ROWS"
    )
    driver: Any = connection.connection.driver_connection
    with (
        driver.cursor() as cursor,
        cursor.copy(f"COPY clearing_rows_new ({names}) FROM STDIN") as copy,
    ):
        for each in values:
            copy.write_row(each)
    return connection.exec_driver_sql(
        f"INSERT INTO clearing_rows ({names}) SELECT {names} FROM clearing_rows_new "
        "ON CONFLICT DO NOTHING"
    ).rowcount


def _move(connection: Connection, source: Source, partition: int, moved: Progress) -> None:
    """Compare and set, as everywhere: of two that take in the same records one does."""
    c = clearing_offsets.c
    changed = connection.execute(
        update(clearing_offsets)
        .where(
            c.topic == source.topic,
            c.partition == partition,
            c.topic_id == source.topic_id,
            c.next_offset == moved.expected,
        )
        .values(next_offset=moved.next_offset)
    ).rowcount
    if not changed and not moved.expected:
        # The first time there is nothing to compare: who comes second does not store it.
        changed = connection.execute(
            _FIRST_OFFSET,
            {
                "topic": source.topic,
                "partition": partition,
                "cluster_id": source.cluster_id,
                "topic_id": source.topic_id,
                "next_offset": moved.next_offset,
            },
        ).rowcount
    if not changed:
        raise UserError(
            f"another process takes in {source.topic}[{partition}] at this moment; run it again."
        )

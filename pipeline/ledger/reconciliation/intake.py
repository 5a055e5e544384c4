"""Taking in the clearings: each row once, with the topic's offsets in the same transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import astuple, fields
from sqlalchemy import Connection, Engine, insert, select, update

from pipeline.domain.clearing import Clearing, clearing_key
from pipeline.errors import UserError
from pipeline.ledger.errors import SourceChanged
from pipeline.ledger.journal import Progress, Source
from pipeline.ledger.reconciliation.tables import clearing_offsets, clearing_rows

# Values in one IN list: below SQLite's limit of variables in every build.
_IN_LIST_MAX = 200
_FIELDS = tuple(field.name for field in fields(Clearing))


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
    engine: Engine, source: Source, rows: Sequence[Placed], progress: Mapping[int, Progress]
) -> int:
    """Store the rows that are new and move the offsets, all or nothing; how many were new.

    A row that is there with the same content is skipped. With other content it contradicts what may
    be in the books already: UserError, and nothing is stored.
    """
    with engine.begin() as connection:
        for partition in sorted(progress):
            _move(connection, source, partition, progress[partition])
        inserted = _insert(connection, rows) if rows else 0
        if inserted != len(rows):
            _require_equal(connection, [placed.clearing for placed in rows])
    return inserted


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


def _require_equal(connection: Connection, rows: Sequence[Clearing]) -> None:
    """What was there already says what these say."""
    c = clearing_rows.c
    for start in range(0, len(rows), _IN_LIST_MAX):
        some = {_key(row): row for row in rows[start : start + _IN_LIST_MAX]}
        stored = connection.execute(
            select(*(c[name] for name in _FIELDS)).where(
                c.gateway.in_({row.gateway for row in some.values()}),
                c.file_id.in_({row.file_id for row in some.values()}),
                c.row_number.in_({row.row_number for row in some.values()}),
            )
        )
        for found in stored:
            row = some.get((found.gateway, found.file_id, found.row_number))
            if row is not None:
                _require_same(Clearing(**found._mapping), row)


def _require_same(before: Clearing, row: Clearing) -> None:
    differing = [name for name in _FIELDS if getattr(before, name) != getattr(row, name)]
    if differing:
        raise UserError(
            f"row {clearing_key(*_key(row))} came before with another {', '.join(differing)}: a "
            f"report never changes. Ask {row.gateway} which is true."
        )


def _key(row: Clearing) -> tuple[str, str, int]:
    return row.gateway, row.file_id, row.row_number


def _insert(connection: Connection, rows: Sequence[Placed]) -> int:
    """How many of them were not there."""
    columns = (*_FIELDS, "source_partition", "source_offset")
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    statement = (
        f"INSERT INTO clearing_rows ({', '.join(columns)}) "
        f"VALUES ({', '.join([mark] * len(columns))}) ON CONFLICT DO NOTHING"
    )
    values = [(*astuple(r.clearing), r.partition, r.offset) for r in rows]
    return connection.exec_driver_sql(statement, values).rowcount


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
        connection.execute(
            insert(clearing_offsets).values(
                topic=source.topic,
                partition=partition,
                cluster_id=source.cluster_id,
                topic_id=source.topic_id,
                next_offset=moved.next_offset,
            )
        )
    elif not changed:
        raise UserError(
            f"another process takes in {source.topic}[{partition}] at this moment; run it again."
        )

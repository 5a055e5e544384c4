"""Breaks as they stand: opened when they are found, ended by later evidence or by a person."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict, fields, replace
from sqlalchemy import ColumnElement, Connection, bindparam, func, or_, select, update

from pipeline.domain.breaks import (
    ACCEPTED,
    AMOUNT_DIFFERS,
    BY_LATER_EVIDENCE,
    CONVERTED,
    CORRECTED,
    CURRENCY_DIFFERS,
    EXPLAINED_AFTERWARDS,
    OPEN,
    RESOLVED,
    ReconciliationBreak,
    figures,
)
from pipeline.domain.model import LedgerEvent
from pipeline.domain.reconciliation_decisions import (
    BREAK_RESOLUTION,
    BreakResolution,
    resolution_of,
)
from pipeline.ledger.decisions import decisions_of, lock_decisions
from pipeline.ledger.reconciliation.tables import breaks, insert_breaks, is_prepared

# Values in one IN list: below SQLite's limit of variables in every build.
_IN_LIST_MAX: Final = 200
# Breaks that are made into rows together: a large look finds some ten thousand.
_INSERTED_AT_ONCE: Final = 5_000
_HALF: Final = 1 << 32
_FIELDS: Final = tuple(field.name for field in fields(ReconciliationBreak))

_KEPT: Final = select(
    *(
        breaks.c[name]
        for name in (
            "break_id", "kind", "gateway", "since", "state", "resolution", "at_risk_minor",
            "detail", "version",
        )
    )
)  # fmt: skip
_CHANGE: Final = update(breaks).where(breaks.c.break_id == bindparam("of_break"))
_PUBLISHED: Final = (
    update(breaks)
    .where(
        breaks.c.break_id == bindparam("of_break"),
        breaks.c.published_version < bindparam("published"),
    )
    .values(published_version=bindparam("published"))
)


class Changes(Struct, frozen=True):
    """What a look has changed, in numbers of breaks."""

    opened: int = 0
    ended: int = 0


class BreakSum(Struct, frozen=True):
    """Open breaks of one gateway, kind and currency."""

    gateway: str
    kind: str
    currency: str
    count: int
    at_risk_minor: int


def keep(
    connection: Connection,
    found: Iterable[ReconciliationBreak],
    now_ms: int,
    *,
    judged: Collection[str],
    due: Callable[[str, str, str], bool] = lambda _kind, _gateway, _since: True,
) -> Changes:
    """Bring the breaks in line with what was found: new ones open, open ones of the ``judged``
    kinds that were not found again end, where they were ``due`` by the day that was looked at (by
    kind, gateway and the day they are of): of any other that look says nothing. What a person has
    resolved stays so while its figures are those that were looked at; with others it opens
    again. One that a person has corrected does not end by itself, nor stay resolved, once it is not
    found any more: it opens and says so, once, since what was posted by hand may be booked twice.

    Two that keep breaks at once do so one after the other, so each is opened once."""
    lock_decisions(connection)
    resolved = _resolutions(connection)
    found = list(found)
    # Where nothing is judged, what was not found again does not matter: a run keeps the fees of
    # each decision so, and all the breaks there are by then are many. A break's id says its kind.
    if judged:
        stored = _stored_of_kinds(connection, {*judged, *(each.kind for each in found)})
    else:
        stored = _stored(connection, sorted({each.break_id for each in found}))
    new: list[ReconciliationBreak] = []
    changed: list[dict[str, Any]] = []
    seen: set[str] = set()
    opened = 0
    for each in found:
        if each.break_id in seen:
            continue
        seen.add(each.break_id)
        before = stored.get(each.break_id)
        if before is None:
            each = replace(each, opened_at_ms=now_ms)
            said, ending = resolved.get(each.break_id, ("", None))
            if ending is not None and said in ("", figures(each.at_risk_minor, each.detail)):
                each = replace(each, **ending)
            new.append(each)
            opened += each.state == OPEN
        elif before.resolution == BY_LATER_EVIDENCE or not _is_known(before, each):
            opened += before.state == RESOLVED
            again = replace(each, opened_at_ms=now_ms, version=before.version + 1)
            changed.append(asdict(again))
    for start in range(0, len(new), _INSERTED_AT_ONCE):
        some = new[start : start + _INSERTED_AT_ONCE]
        insert_breaks(connection, [asdict(each) for each in some])
    if changed:
        connection.execute(_CHANGE, [{**row, "of_break": row["break_id"]} for row in changed])
    gone = [
        row
        for row in stored.values()
        if row.kind in judged
        and row.break_id not in seen
        and not row.detail.endswith(EXPLAINED_AFTERWARDS)
        and due(row.kind, row.gateway, row.since)
    ]
    explained = [row for row in gone if _is_corrected(row, resolved)]
    _open_explained(connection, explained, now_ms)
    opened += sum(row.state == RESOLVED for row in explained)
    told = {row.break_id for row in explained}
    ended = [row.break_id for row in gone if row.state == OPEN and row.break_id not in told]
    if ended:
        connection.execute(
            update(breaks)
            .where(breaks.c.break_id == bindparam("of_break"))
            .values(
                state=RESOLVED,
                resolution=BY_LATER_EVIDENCE,
                resolved_at_ms=now_ms,
                version=breaks.c.version + 1,
            ),
            [{"of_break": break_id} for break_id in ended],
        )
    return Changes(opened, len(ended))


def _is_known(before: Any, found: ReconciliationBreak) -> bool:
    """Whether a break is kept with the figures that were found. One that is open as explained stays
    so where another run had looked before the evidence came."""
    known = [found.detail]
    if before.state == OPEN:
        known.append(found.detail + EXPLAINED_AFTERWARDS)
    return before.at_risk_minor == found.at_risk_minor and before.detail in known


def _is_corrected(row: Any, resolved: Mapping[str, tuple[str, Mapping[str, Any]]]) -> bool:
    """Whether the last that a person has said of a break is that it was corrected, before it was
    explained. A row of another amount is explained by that word itself, which clears it."""
    if row.kind == AMOUNT_DIFFERS:
        return False
    said, ending = resolved.get(row.break_id, ("", {}))
    return ending.get("resolution") == CORRECTED and not said.endswith(EXPLAINED_AFTERWARDS)


def _open_explained(connection: Connection, rows: Sequence[Any], now_ms: int) -> None:
    if not rows:
        return
    connection.execute(
        _CHANGE.values(
            state=OPEN,
            resolution="",
            reason="",
            actor="",
            opened_at_ms=now_ms,
            resolved_at_ms=0,
            detail=breaks.c.detail + EXPLAINED_AFTERWARDS,
            version=breaks.c.version + 1,
        ),
        [{"of_break": row.break_id} for row in rows],
    )


def _stored(connection: Connection, break_ids: Sequence[str]) -> dict[str, Any]:
    """Breaks of these ids as they are kept."""
    return {
        row.break_id: row
        for start in range(0, len(break_ids), _IN_LIST_MAX)
        for row in connection.execute(
            _KEPT.where(breaks.c.break_id.in_(break_ids[start : start + _IN_LIST_MAX]))
        )
    }


def _stored_of_kinds(connection: Connection, kinds: Collection[str]) -> dict[str, Any]:
    """All breaks of these kinds as they are kept."""
    rows = connection.execute(_KEPT.where(breaks.c.kind.in_(sorted(kinds))))
    return {row.break_id: row for row in rows}


def _resolutions(connection: Connection) -> dict[str, tuple[str, dict[str, Any]]]:
    """What people have made of breaks and of which figures, the latest of each by id: these tables
    may have been made anew since."""
    return {
        (found := resolution_of(event)).break_id: (found.figures, _ending(found, event))
        for event in decisions_of(connection, [BREAK_RESOLUTION])
    }


def _ending(found: BreakResolution, event: LedgerEvent) -> dict[str, Any]:
    return {
        "state": RESOLVED,
        "resolution": found.resolution,
        "reason": event.reason,
        "actor": event.actor,
        "resolved_at_ms": event.decided_at_ms,
    }


def may_be_resolved(found: ReconciliationBreak, resolution: str) -> bool:
    """Whether a person may say this of a break as it stands. Another currency that was accepted,
    which an earlier version took for an end of it, may be converted still."""
    known = found.kind == CURRENCY_DIFFERS and found.resolution == ACCEPTED
    return found.state == OPEN or (resolution == CONVERTED and known)


def _resolvable(resolution: str) -> ColumnElement[bool]:
    """Like ``may_be_resolved``, of the rows of ``breaks``."""
    c = breaks.c
    if resolution != CONVERTED:
        return c.state == OPEN
    return or_(c.state == OPEN, (c.kind == CURRENCY_DIFFERS) & (c.resolution == ACCEPTED))


def resolve_by_hand(connection: Connection, event: LedgerEvent) -> bool:
    """Whether it was there and open, with the figures that were looked at."""
    found = resolution_of(event)
    c = breaks.c
    resolvable = _resolvable(found.resolution)
    row = connection.execute(
        select(c.at_risk_minor, c.detail, c.version).where(c.break_id == found.break_id, resolvable)
    ).one_or_none()
    if row is None or found.figures not in ("", figures(row.at_risk_minor, row.detail)):
        return False
    # What another process has changed since has another version.
    return bool(
        connection.execute(
            update(breaks)
            .where(c.break_id == found.break_id, resolvable, c.version == row.version)
            .values(**_ending(found, event), version=c.version + 1)
        ).rowcount
    )


def list_breaks(
    connection: Connection,
    *,
    state: str | None = OPEN,
    gateway: str | None = None,
    kind: str | None = None,
    limit: int | None = None,
) -> list[ReconciliationBreak]:
    """Breaks, what is most at risk first."""
    c = breaks.c
    statement = select(*(c[name] for name in _FIELDS)).order_by(
        c.at_risk_minor.desc(), c.gateway, c.break_id
    )
    for column, wanted in ((c.state, state), (c.gateway, gateway), (c.kind, kind)):
        if wanted is not None:
            statement = statement.where(column == wanted)
    if limit is not None:
        statement = statement.limit(limit)
    return [ReconciliationBreak(**row._mapping) for row in connection.execute(statement)]


def find_break(connection: Connection, break_id: str) -> ReconciliationBreak | None:
    c = breaks.c
    row = connection.execute(
        select(*(c[name] for name in _FIELDS)).where(c.break_id == break_id)
    ).one_or_none()
    return None if row is None else ReconciliationBreak(**row._mapping)


def open_sums(connection: Connection) -> list[BreakSum]:
    """How many are open and what is at risk, by gateway, kind and currency.

    Two amounts that the database can hold may have a sum that it cannot, and SQLite then ends the
    query: both halves of an amount are summed apart.
    """
    c = breaks.c
    rows = connection.execute(
        select(
            c.gateway, c.kind, c.currency, func.count(),
            func.sum(c.at_risk_minor // _HALF), func.sum(c.at_risk_minor % _HALF),
        )
        .where(c.state == OPEN)
        .group_by(c.gateway, c.kind, c.currency)
        .order_by(c.gateway, c.kind, c.currency)
    )  # fmt: skip
    return [
        BreakSum(row[0], row[1], row[2], row[3], int(row[4]) * _HALF + int(row[5])) for row in rows
    ]


def open_count(connection: Connection) -> int:
    """How many are open; 0 also where nothing was ever reconciled."""
    if not is_prepared(connection):
        return 0
    asked = select(func.count()).where(breaks.c.state == OPEN)
    return int(connection.execute(asked).scalar_one())


def unpublished_breaks(
    connection: Connection, limit: int, after: str = ""
) -> list[ReconciliationBreak]:
    """Breaks that have changed since they were last in the topic, by their ids, from one on."""
    c = breaks.c
    rows = connection.execute(
        select(*(c[name] for name in _FIELDS))
        .where(c.version > c.published_version, c.break_id > after)
        .order_by(c.break_id)
        .limit(limit)
    )
    return [ReconciliationBreak(**row._mapping) for row in rows]


def mark_published(connection: Connection, published: Sequence[ReconciliationBreak]) -> None:
    # Else it could wait for one who keeps the same breaks in another order, and he for it.
    lock_decisions(connection)
    rows = [{"of_break": each.break_id, "published": each.version} for each in published]
    if connection.dialect.name == "sqlite":
        connection.execute(_PUBLISHED, rows)
    elif rows:
        # One value for all: the driver sends them one by one otherwise.
        connection.exec_driver_sql(
            "UPDATE breaks SET published_version = w.published "
            "FROM json_to_recordset(%s::json) w(of_break text, published int) "
            "WHERE break_id = w.of_break AND published_version < w.published",
            (json.dumps(rows),),
        )

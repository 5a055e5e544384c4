"""Callbacks that wait, and the log of their deliveries, in a database.

Every method is one transaction, for any thread. What is written twice stands once: a callback by
its endpoint and event, an offset only forwards. So two workers that both believe to own a partition
lose nothing; the worst they do is to deliver the same message, with the same id, twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import (
    ColumnElement,
    Engine,
    and_,
    case,
    delete,
    exists,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError

from consumers.notifier.callback import Callback
from consumers.notifier.database import DETAIL_MAX, callbacks, deliveries, positions, troubles
from consumers.notifier.patience import SILENCE_MS_MAX
from consumers.notifier.sender import Delivery

WAITING: Final = "waiting"
DELIVERED: Final = "delivered"
GIVEN_UP: Final = "given_up"
STATES: Final = (WAITING, DELIVERED, GIVEN_UP)
# In the log beside the outcomes of deliveries.
ASKED: Final = "resend_asked"

# In the log of a delivery that began before somebody asked for another, and so ends nothing.
BEFORE_RESEND: Final = "begun before it was asked for again"

# One INSERT binds at most so many rows: SQLite allows 32,766 values in one statement.
ROWS_MAX = 500


class Head(Struct, frozen=True, kw_only=True):
    """A callback that may be delivered now, as the next of its payment. ``resends``: how often
    somebody had asked for it again by then."""

    endpoint: str
    event_id: str
    payment_id: str
    sequence: int
    type: str
    tries: int
    body: bytes
    resends: int = 0


class Result(Struct, frozen=True, kw_only=True):
    """A delivery and what follows. ``due_ms``: when it is tried again; None when it has ended."""

    head: Head
    delivery: Delivery
    state: str
    due_ms: int | None = None


class StoreAway(Exception):
    """The database does not answer now; nothing was written."""


class CallbackStore:
    """Over an engine of ``open_callbacks``, which stays the caller's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        dialect: Any = sqlite if engine.dialect.name == "sqlite" else postgresql
        self._insert = dialect.insert

    # Events become callbacks --------------------------------------------------------------------

    def next_offset(self, cluster_id: str, topic_id: str, partition: int) -> int | None:
        """Where reading a partition goes on; None when nothing of it was ever read."""
        with _Transaction(self._engine) as connection:
            found = connection.execute(
                select(positions.c.next_offset).where(
                    positions.c.cluster_id == cluster_id,
                    positions.c.topic_id == topic_id,
                    positions.c.partition == partition,
                )
            ).scalar_one_or_none()
        return None if found is None else int(found)

    def take(
        self,
        new: Sequence[Callback],
        cluster_id: str,
        topic_id: str,
        offsets: Mapping[int, int],
        now_ms: int,
    ) -> None:
        """Keep callbacks and the offsets behind their events, both or neither."""
        with _Transaction(self._engine) as connection:
            waits = self._waits(connection, new)
            rows = [
                {
                    **asdict(each),
                    "state": WAITING,
                    "tries": 0,
                    "kept_ms": now_ms,
                    # Not before what it has to wait for: it would be looked at for nothing.
                    "due_ms": max(now_ms, waits.get((each.endpoint, each.payment_id), 0)),
                }
                for each in new
            ]
            for start in range(0, len(rows), ROWS_MAX):
                statement = self._insert(callbacks).values(rows[start : start + ROWS_MAX])
                connection.execute(statement.on_conflict_do_nothing())
            for partition, offset in sorted(offsets.items()):
                statement = self._insert(positions).values(
                    cluster_id=cluster_id,
                    topic_id=topic_id,
                    partition=partition,
                    next_offset=offset,
                )
                connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=["cluster_id", "topic_id", "partition"],
                        set_={"next_offset": offset},
                        where=positions.c.next_offset < offset,
                    )
                )

    @staticmethod
    def _waits(connection: Any, new: Sequence[Callback]) -> dict[tuple[str, str], int]:
        """Until when earlier callbacks of the same payments wait, by endpoint and payment."""
        found: dict[tuple[str, str], int] = {}
        payments = sorted({each.payment_id for each in new})
        for start in range(0, len(payments), ROWS_MAX):
            rows = connection.execute(
                select(
                    callbacks.c.endpoint,
                    callbacks.c.payment_id,
                    func.max(callbacks.c.due_ms),
                )
                .where(
                    callbacks.c.payment_id.in_(payments[start : start + ROWS_MAX]),
                    callbacks.c.endpoint.in_(sorted({each.endpoint for each in new})),
                    callbacks.c.state == WAITING,
                )
                .group_by(callbacks.c.endpoint, callbacks.c.payment_id)
            )
            found.update({(endpoint, payment): int(due) for endpoint, payment, due in rows})
        return found

    # Delivering ---------------------------------------------------------------------------------

    def due(
        self,
        endpoint: str,
        lanes: Collection[int],
        now_ms: int,
        limit: int,
        under_way: Collection[str] = (),
    ) -> list[Head]:
        """Callbacks of an endpoint that are due and the next of their payments, longest due first.

        Payments ``under_way`` are left out.
        """
        earlier = callbacks.alias("earlier")
        blocked = exists().where(
            and_(
                earlier.c.endpoint == callbacks.c.endpoint,
                earlier.c.payment_id == callbacks.c.payment_id,
                earlier.c.state == WAITING,
                earlier.c.sequence < callbacks.c.sequence,
            )
        )
        names = Head.__struct_fields__
        query = (
            select(*(callbacks.c[name] for name in names))
            .where(
                callbacks.c.state == WAITING,
                callbacks.c.endpoint == endpoint,
                callbacks.c.due_ms <= now_ms,
                callbacks.c.lane.in_(sorted(lanes)),
                ~blocked,
            )
            .order_by(callbacks.c.due_ms, callbacks.c.sequence)
            .limit(limit)
        )
        if under_way:
            query = query.where(callbacks.c.payment_id.not_in(sorted(under_way)))
        with _Transaction(self._engine) as connection:
            rows = connection.execute(query).all()
        return [Head(**dict(zip(names, row, strict=True))) for row in rows]

    def waiting(self, lanes: Collection[int]) -> dict[str, tuple[int, int, int, int]]:
        """Of each endpoint with callbacks that wait: how many, the first due time, the oldest
        event's time, and since when the first one waits."""
        with _Transaction(self._engine) as connection:
            rows = connection.execute(
                select(
                    callbacks.c.endpoint,
                    func.count(),
                    func.min(callbacks.c.due_ms),
                    func.min(callbacks.c.occurred_at_ms),
                    func.min(callbacks.c.kept_ms),
                )
                .where(callbacks.c.state == WAITING, callbacks.c.lane.in_(sorted(lanes)))
                .group_by(callbacks.c.endpoint)
            ).all()
        return {
            name: (int(n), int(due), int(oldest), int(kept)) for name, n, due, oldest, kept in rows
        }

    def record(self, results: Sequence[Result]) -> list[Result]:
        """Log deliveries and move their callbacks on; the results that came too late.

        Those began before somebody asked to have the callback sent again. They move nothing, not
        even a delivery: who asks is sent one that begins afterwards.
        """
        late: list[Result] = []
        with _Transaction(self._engine) as connection:
            rows = []
            for result in results:
                detail = result.delivery.detail
                if not self._move_on(connection, result):
                    late.append(result)
                    detail = "; ".join(part for part in (BEFORE_RESEND, detail) if part)
                rows.append(
                    {
                        "endpoint": result.head.endpoint,
                        "event_id": result.head.event_id,
                        "try_number": result.head.tries + 1,
                        "at_ms": result.delivery.at_ms,
                        "took_ms": result.delivery.took_ms,
                        "outcome": result.delivery.outcome,
                        "status": result.delivery.status,
                        "detail": detail[:DETAIL_MAX],
                    }
                )
            if rows:
                connection.execute(deliveries.insert(), rows)
            self._note_troubles(connection, results)
        return late

    def _note_troubles(self, connection: Any, results: Sequence[Result]) -> None:
        """Since when endpoints take nothing: what one takes ends its trouble."""
        took = {r.head.endpoint for r in results if r.delivery.outcome == DELIVERED}
        failed: dict[str, tuple[int, int]] = {}
        for result in results:
            name, began_ms = result.head.endpoint, result.delivery.at_ms
            if name not in took:
                first_ms, last_ms = failed.get(name, (began_ms, 0))
                ended_ms = began_ms + result.delivery.took_ms
                failed[name] = min(first_ms, began_ms), max(last_ms, ended_ms)
        over = set[str]()
        if took:
            known = select(troubles.c.endpoint).where(troubles.c.endpoint.in_(sorted(took)))
            over = set(connection.execute(known).scalars())
        # In one order, so that two workers do not wait for each other.
        for name in sorted(over | failed.keys()):
            if name in over:
                connection.execute(delete(troubles).where(troubles.c.endpoint == name))
                continue
            since_ms, failed_ms = failed[name]
            statement = self._insert(troubles).values(
                endpoint=name, since_ms=since_ms, failed_ms=failed_ms
            )
            new = statement.excluded
            silent = new.since_ms - troubles.c.failed_ms > SILENCE_MS_MAX
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["endpoint"],
                    set_={
                        "since_ms": case((silent, new.since_ms), else_=troubles.c.since_ms),
                        "failed_ms": new.failed_ms,
                    },
                )
            )

    @staticmethod
    def _move_on(connection: Any, result: Result) -> bool:
        """False when the callback was asked for again since the delivery began."""
        head, due_ms = result.head, result.due_ms
        mine = and_(callbacks.c.endpoint == head.endpoint, callbacks.c.event_id == head.event_id)
        ended_ms = result.delivery.at_ms + result.delivery.took_ms
        values: dict[str, Any] = {"state": result.state, "tries": head.tries + 1}
        if due_ms is None:
            values["ended_at_ms"] = ended_ms
        # What a twin of ours gave up meanwhile may have arrived all the same.
        open_ = (WAITING, GIVEN_UP) if result.state == DELIVERED else (WAITING,)
        hit = connection.execute(
            update(callbacks)
            .where(mine, callbacks.c.resends == head.resends, callbacks.c.state.in_(open_))
            .values(**values)
        ).rowcount
        if not hit:
            # What the twin ended stays ended otherwise, and so do the times that it set for the
            # later ones.
            since = select(callbacks.c.resends).where(mine)
            resends = connection.execute(since).scalar_one_or_none()
            return resends is None or resends == head.resends
        later = and_(
            callbacks.c.endpoint == head.endpoint,
            callbacks.c.payment_id == head.payment_id,
            # Not one from before it, which somebody has had sent again meanwhile.
            callbacks.c.sequence >= head.sequence,
            callbacks.c.state == WAITING,
        )
        if due_ms is not None:
            # The later ones of the payment wait as long: they are not looked at before.
            moved = update(callbacks).where(later, callbacks.c.due_ms < due_ms)
            connection.execute(moved.values(due_ms=due_ms))
        else:
            # The next one need not wait for a time that was this one's.
            moved = update(callbacks).where(
                later, callbacks.c.tries == 0, callbacks.c.due_ms > ended_ms
            )
            connection.execute(moved.values(due_ms=ended_ms))
        return True

    def give_up_forgotten(self, known: Collection[str], before_ms: int, now_ms: int) -> int:
        """End the wait of old callbacks whose endpoint is not configured any more; how many.
        ROWS_MAX at a time, so ask until it is fewer."""
        forgotten = and_(callbacks.c.endpoint.not_in(sorted(known)), callbacks.c.due_ms < before_ms)
        with _Transaction(self._engine) as connection:
            return self._give_up(
                connection, forgotten, "its endpoint is not configured any more", now_ms
            )

    def give_up_overdue(
        self,
        endpoint: str,
        lanes: Collection[int],
        patience_ms: int,
        now_ms: int,
        under_way: Collection[str] = (),
    ) -> int:
        """End the wait of callbacks that are older than all their tries would have taken alone, to
        an endpoint that has taken nothing for as long; how many, ROWS_MAX at a time. An endpoint
        with many callbacks is tried too seldom for each of them to have its tries.

        Payments ``under_way`` are left out.
        """
        before_ms = now_ms - patience_ms
        overdue = and_(
            callbacks.c.endpoint == endpoint,
            callbacks.c.lane.in_(sorted(lanes)),
            callbacks.c.kept_ms <= before_ms,
            callbacks.c.payment_id.not_in(sorted(under_way)),
        )
        with _Transaction(self._engine) as connection:
            since_ms = connection.execute(
                select(troubles.c.since_ms).where(
                    troubles.c.endpoint == endpoint,
                    troubles.c.since_ms <= before_ms,
                    troubles.c.failed_ms >= now_ms - SILENCE_MS_MAX,
                )
            ).scalar_one_or_none()
            if since_ms is None:
                return 0
            since = datetime.fromtimestamp(since_ms / 1000, UTC)
            return self._give_up(
                connection,
                overdue,
                f"the time for all of them is over, and its endpoint has taken nothing since "
                f"{since:%Y-%m-%d %H:%M:%S}",
                now_ms,
            )

    @staticmethod
    def _give_up(connection: Any, which: ColumnElement[bool], why: str, now_ms: int) -> int:
        """End the wait of some callbacks for another reason than their own last try, which the log
        then has."""
        key = tuple_(callbacks.c.endpoint, callbacks.c.event_id)
        some = (
            select(callbacks.c.endpoint, callbacks.c.event_id)
            .where(callbacks.c.state == WAITING, which)
            .limit(ROWS_MAX)
        )
        ended = connection.execute(
            update(callbacks)
            .where(key.in_(some), callbacks.c.state == WAITING)
            .values(state=GIVEN_UP, ended_at_ms=now_ms)
            .returning(callbacks.c.endpoint, callbacks.c.event_id, callbacks.c.tries)
        ).all()
        rows = [
            {
                "endpoint": endpoint,
                "event_id": event_id,
                "try_number": 0,
                "at_ms": now_ms,
                "took_ms": 0,
                "outcome": GIVEN_UP,
                "status": None,
                "detail": f"after {tries} tries: {why}"[:DETAIL_MAX],
            }
            for endpoint, event_id, tries in ended
        ]
        if rows:
            connection.execute(deliveries.insert(), rows)
        return len(rows)

    def forget(self, before_ms: int) -> int:
        """Delete what has ended before, and its log; how many callbacks."""
        with _Transaction(self._engine) as connection:
            connection.execute(delete(deliveries).where(deliveries.c.at_ms < before_ms))
            connection.execute(delete(troubles).where(troubles.c.failed_ms < before_ms))
            gone = connection.execute(delete(callbacks).where(callbacks.c.ended_at_ms < before_ms))
        return int(gone.rowcount)

    # For people ---------------------------------------------------------------------------------

    def find(
        self,
        *,
        merchant: str | None = None,
        order: str | None = None,
        endpoint: str | None = None,
        event: str | None = None,
        state: str | None = None,
        since_ms: int | None = None,
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """Callbacks without their bodies, the newest events first."""
        given = {
            "merchant_id": merchant,
            "order_id": order,
            "endpoint": endpoint,
            "event_id": event,
            "state": state,
        }
        query = select(*(column for column in callbacks.c if column.name != "body")).order_by(
            callbacks.c.occurred_at_ms.desc(), callbacks.c.sequence.desc()
        )
        for name, value in given.items():
            if value is not None:
                query = query.where(callbacks.c[name] == value)
        if since_ms is not None:
            query = query.where(callbacks.c.occurred_at_ms >= since_ms)
        with _Transaction(self._engine) as connection:
            return [dict(row) for row in connection.execute(query.limit(limit)).mappings()]

    def deliveries_of(
        self, event_ids: Iterable[str]
    ) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """The log of these events by endpoint and event, the oldest first."""
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        wanted = sorted(set(event_ids))
        with _Transaction(self._engine) as connection:
            for start in range(0, len(wanted), ROWS_MAX):
                rows = connection.execute(
                    select(deliveries)
                    .where(deliveries.c.event_id.in_(wanted[start : start + ROWS_MAX]))
                    .order_by(deliveries.c.id)
                ).mappings()
                for row in rows:
                    found.setdefault((row["endpoint"], row["event_id"]), []).append(dict(row))
        return found

    def resend(self, chosen: Sequence[tuple[str, str]], by: str, now_ms: int) -> None:
        """Deliver these (endpoint, event) once more, under the ids they had, from the first try."""
        with _Transaction(self._engine) as connection:
            for endpoint, event_id in chosen:
                connection.execute(
                    update(callbacks)
                    .where(callbacks.c.endpoint == endpoint, callbacks.c.event_id == event_id)
                    .values(
                        state=WAITING,
                        tries=0,
                        due_ms=now_ms,
                        kept_ms=now_ms,
                        ended_at_ms=None,
                        resends=callbacks.c.resends + 1,
                    )
                )
            if chosen:
                connection.execute(
                    deliveries.insert(),
                    [
                        {
                            "endpoint": endpoint,
                            "event_id": event_id,
                            "try_number": 0,
                            "at_ms": now_ms,
                            "took_ms": 0,
                            "outcome": ASKED,
                            "status": None,
                            "detail": by,
                        }
                        for endpoint, event_id in chosen
                    ],
                )


class _Transaction:
    """``engine.begin()`` that says by StoreAway when the database is away."""

    def __init__(self, engine: Engine) -> None:
        self._context = engine.begin()

    def __enter__(self) -> Any:
        try:
            return self._context.__enter__()
        except OperationalError as error:
            raise StoreAway(_first_line(error)) from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._context.__exit__(kind, error, trace)
        except OperationalError as away:
            raise StoreAway(_first_line(away)) from away
        if isinstance(error, DBAPIError) and (
            isinstance(error, OperationalError) or error.connection_invalidated
        ):
            raise StoreAway(_first_line(error)) from error


def _first_line(error: DBAPIError) -> str:
    return (str(error.orig).strip().splitlines() or [type(error).__name__])[0]

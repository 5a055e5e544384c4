"""The ledger's sink over a database in memory that may be away, or leave a commit unknown."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import StaticPool

from consumers.ledger_sink import LedgerSink
from pipeline.ledger import guards
from pipeline.ledger.tables import metadata
from pipeline.runtime.surroundings import Surroundings
from tests.simulation.world import Process, World
from topics.catalogue import Catalogue


@cache
def _empty() -> bytes:
    """The tables and guards of an empty ledger, as the bytes of a database."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.begin() as connection:
        metadata.create_all(connection)
        guards.install(connection)
    raw = engine.raw_connection().driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw.serialize()


@cache
def _shared_engine() -> tuple[Engine, list[Any]]:
    """One engine for all runs: what it has compiled is kept. The list holds the connection in use
    and the run's ledger."""
    state: list[Any] = [None, None]
    engine = create_engine("sqlite://", poolclass=StaticPool, creator=lambda: state[0])

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        state[1]._before_begin()
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine, state


def _nothing() -> None: ...


class SimLedger:
    def __init__(self, world: World) -> None:
        self._world = world
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.deserialize(_empty())
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._engine, self._state = _shared_engine()
        self._engine.dispose()
        self._state[:] = [_Kept(self._connection, self), self]
        self._faults: list[str] = []
        self._away_until_s = 0.0
        self._changes = 0
        # Whose the open transaction is.
        self._owner: Process | None = None
        self._fired: Callable[[str, str], None] = lambda _what, _where: None

    def close(self) -> None:
        self._engine.dispose()
        self._connection.close()

    def fail(self, what: str, for_s: float) -> None:
        if what == "away":
            self._away_until_s = self._world.now_s + for_s
            self._fired("database away", "ledger")
        else:
            self._faults.append(what)

    def worker(
        self,
        catalogue: Catalogue,
        codec: Any,
        instance_id: str,
        process: Process,
        outside: Surroundings,
        stop: Any,
        fired: Callable[[str, str], None],
        decisions: Any,
    ) -> Callable[[], None]:
        self._fired = fired
        # A process that died left its transaction open; the database takes it back.
        process.on_death.append(lambda: self.take_back(process))
        sink = LedgerSink(
            bootstrap_servers="simulated",
            engine=self._engine,
            catalogue=catalogue,
            codec=codec,
            instance_id=instance_id,
            surroundings=outside,
            decisions=decisions(process) or cast(Any, SimpleNamespace(read=list)),
            # The office seals, when it is its turn.
            sealer=lambda _engine: cast(Any, SimpleNamespace(start=_nothing, stop=_nothing)),
        )
        return lambda: sink.run(stop.is_set)

    def count(self) -> int:
        return int(
            self._connection.execute(
                "SELECT count(*) FROM journal_entries WHERE settlement_id <> ''"
            ).fetchone()[0]
        )

    def rows(self) -> dict[str, Any]:
        """What the books hold, read without the code that wrote them."""
        run = self._connection.execute
        return {
            "entries": [
                row[0]
                for row in run(
                    "SELECT settlement_id FROM journal_entries WHERE settlement_id <> ''"
                )
            ],
            "unbalanced": run(
                "SELECT entry_number FROM postings GROUP BY entry_number, currency "
                "HAVING sum(amount_minor) <> 0"
            ).fetchall(),
            "balances": {
                name: debits - credits
                for name, debits, credits in run(
                    "SELECT name, sum(debits_minor), sum(credits_minor) FROM balances "
                    "JOIN accounts USING (account_id) GROUP BY name"
                )
            },
        }

    @property
    def engine(self) -> Engine:
        return self._engine

    def take_back(self, process: Process) -> None:
        """A process has died: if the open transaction is its own it is taken back."""
        if process is self._owner:
            self._take_back()

    def _take_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _before_begin(self) -> None:
        if self._away_until_s > self._world.now_s:
            raise sqlite3.OperationalError("the database is away")
        self._changes = self._connection.total_changes
        fibre = self._world.current
        self._owner = None if fibre is None else fibre.process

    def commit(self) -> None:
        """A commit; with a fault its answer is lost, and it happened or it did not."""
        wrote = self._connection.total_changes != self._changes
        fault = self._faults.pop(0) if wrote and self._faults else None
        if fault is None:
            self._connection.commit()
            return
        self._fired(f"database {fault}", "ledger")
        if fault == "commit_unknown":
            self._connection.commit()
        else:
            self._connection.rollback()
        raise sqlite3.OperationalError("the server closed the connection")


class _Kept:
    """The one connection of a run, which is not closed when a pool lets it go."""

    def __init__(self, connection: sqlite3.Connection, ledger: SimLedger) -> None:
        self._connection = connection
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        self._ledger.commit()

    def close(self) -> None: ...

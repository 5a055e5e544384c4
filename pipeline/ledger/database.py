"""Opening the ledger's database: SQLite in a file, or PostgreSQL, with the same tables."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from pipeline.errors import UserError
from pipeline.interrupted_queries import InterruptibleConnection
from pipeline.ledger import guards, migrations
from pipeline.ledger.tables import (
    REVISION,
    SCHEMA_VERSION,
    alembic_version,
    metadata,
    schema_version,
)

# How long a writer waits for another one; a batch holds the database for tenths of a second.
BUSY_TIMEOUT_MS = 10_000
# The index of entry ids is hit at random: 64 MiB hold it for about a million entries.
_SQLITE_CACHE_KIB = 64 * 1024
# Pages of 4 KiB: the log is folded into the file every 64 MiB, so that a page of an index that
# several batches touch is written there once.
_SQLITE_CHECKPOINT_PAGES = 16_384
_CONNECT_TIMEOUT_S = 10
# Any number: it keeps two processes from creating the tables at once on PostgreSQL.
_CREATION_LOCK = 0x6C656467
_READ_ONLY = "ledger_read_only"


class NoLedger(UserError):
    """Nothing was ever booked at this place, or what was there is gone."""

    def __init__(self, shown: str) -> None:
        super().__init__(
            f"there is no ledger at {shown}. The ledger's workers make it when they start: start "
            "the flow, or start it again if it runs; or name another with --ledger-url."
        )


class LedgerAway(UserError):
    """The server does not answer: it may be stopped, starting, or another one than was meant."""


def open_ledger(url: str, *, create: bool = True, forward: bool | None = None) -> Engine:
    """The engine of a ledger whose tables and guards exist and are of this version.

    ``url`` is SQLAlchemy's: ``sqlite:////absolute/path.db`` or ``postgresql://host/name``. Tables
    are created where missing and brought forward where they are of an earlier version; with
    ``create`` off that is refused, for those who only read, unless ``forward`` is on. Safe to call
    from several processes at once. UserError when the database cannot be used as it is, LedgerAway
    when it does not answer.
    """
    parsed = _parse(url)
    shown = parsed.render_as_string(hide_password=True)
    forward = create if forward is None else forward
    try:
        if parsed.get_backend_name() != "sqlite":
            engine = _postgresql(parsed)
        elif create or Path(str(parsed.database)).is_file():
            engine = _sqlite(parsed)
        else:
            raise NoLedger(shown)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the ledger at {shown} needs {error.name}, which is not installed. Install "
            "paystream[postgres]."
        ) from error
    try:
        found = _version(engine)
        if create and found is None:
            with engine.begin() as connection:
                _create(connection)
        elif forward and found is not None and found < SCHEMA_VERSION:
            _bring_forward(parsed, engine)
        with reading(engine) as connection:
            _require_this_version(connection, shown)
    except UserError:
        engine.dispose()
        raise
    except DBAPIError as error:
        engine.dispose()
        reason = str(error.orig).strip().splitlines()
        away = parsed.get_backend_name() != "sqlite" and isinstance(error, OperationalError)
        raise (LedgerAway if away else UserError)(
            f"the ledger's database at {shown} cannot be used: {reason[0] if reason else error}. "
            "Check that it runs and that the URL is right."
        ) from error
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One read transaction: everything read in it is of one moment, and no writer waits for it."""
    options: dict[str, Any] = {_READ_ONLY: True}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection:
        # Rolled back as it ends: a file that is spoilt may refuse even a commit of nothing.
        connection.begin()
        yield connection


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError) as error:
        raise UserError(
            f"{url!r} is not a database URL. Use sqlite:////absolute/path.db or "
            "postgresql://user@host/name."
        ) from error
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise UserError("the ledger needs a file: use sqlite:////absolute/path.db.")
        return parsed
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise UserError(
        f"the ledger does not know {backend!r}: use sqlite:////absolute/path.db or "
        "postgresql://user@host/name."
    )


def use_wal(connection: sqlite3.Connection) -> None:
    """SQLite's own wait is not for this: who changes the mode while another does is told at once
    that the file is locked."""
    deadline_s = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)
        else:
            return


def _sqlite(url: URL, *, foreign_keys: bool = True) -> Engine:
    path = Path(str(url.database)).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the ledger's folder {path.parent} cannot be made: {error}.") from error
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "factory": InterruptibleConnection},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # Transactions are begun below, not by the driver, which would begin them too late.
        connection.isolation_level = None
        use_wal(connection)
        # A commit that was answered survives a power cut.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        connection.execute(f"PRAGMA cache_size = -{_SQLITE_CACHE_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_SQLITE_CHECKPOINT_PAGES}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the lock at once: two that read first and write later would deadlock.
        read_only = connection.get_execution_options().get(_READ_ONLY)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _postgresql(url: URL) -> Engine:
    return create_engine(
        url,
        # A connection that died while idle is replaced before it is used.
        pool_pre_ping=True,
        # Compare-and-set under READ COMMITTED looks again after waiting for another writer.
        isolation_level="READ COMMITTED",
        connect_args={"connect_timeout": _CONNECT_TIMEOUT_S, "application_name": "paystream"},
    )


def _version(engine: Engine) -> int | None:
    with reading(engine) as connection:
        if not inspect(connection).has_table(schema_version.name):
            return None
        return connection.execute(select(schema_version.c.version)).scalar_one_or_none()


def _create(connection: Connection) -> None:
    """All tables, unless another process was first."""
    _lock(connection)
    if inspect(connection).has_table(schema_version.name):
        return
    metadata.create_all(connection)
    guards.install(connection)
    connection.execute(schema_version.insert().values(version=SCHEMA_VERSION))
    connection.execute(alembic_version.insert().values(version_num=REVISION))


def _bring_forward(url: URL, engine: Engine) -> None:
    """Run the migrations in one transaction: all of them count, or none."""
    sqlite = engine.dialect.name == "sqlite"
    # Tables that are made anew must not take along what refers to them.
    working = _sqlite(url, foreign_keys=False) if sqlite else engine
    try:
        with working.begin() as connection:
            _lock(connection)
            if not sqlite:
                # In the order in which writers come to them: locked one by one as the scripts
                # need them, two would wait for each other.
                connection.exec_driver_sql(
                    "LOCK TABLE consumer_offsets, accounts, postings, journal_entries, balances"
                )
            migrations.stamp(connection)
            migrations.migrate(connection)
            if sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                raise UserError(
                    "the ledger has postings of no entry or account, so it was not brought "
                    "forward; see `paystream verify`."
                )
    finally:
        if working is not engine:
            working.dispose()


def _lock(connection: Connection) -> None:
    """SQLite's writers hold the whole file by themselves."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})")


def _require_this_version(connection: Connection, shown: str) -> None:
    found = None
    if inspect(connection).has_table(schema_version.name):
        found = connection.execute(select(schema_version.c.version)).scalar_one_or_none()
    if found is None:
        raise NoLedger(shown)
    if found < SCHEMA_VERSION:
        raise UserError(
            f"the ledger at {shown} has schema version {found}, this program knows "
            f"{SCHEMA_VERSION}. Bring it forward with `paystream ledger migrate`."
        )
    if found != SCHEMA_VERSION:
        raise UserError(
            f"the ledger at {shown} has schema version {found}, this program knows "
            f"{SCHEMA_VERSION}. Use the version of paystream that wrote it."
        )

"""The tables of the callbacks, and opening their database: SQLite in a file, or PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    inspect,
    select,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from pipeline.errors import UserError

SCHEMA_VERSION: Final = 3
# What brings a database of the version before to each; PostgreSQL and SQLite alike.
_FORWARD: Final = {
    2: ("ALTER TABLE callbacks ADD COLUMN resends INTEGER NOT NULL DEFAULT 0",),
    3: (
        "ALTER TABLE callbacks ADD COLUMN kept_ms BIGINT NOT NULL DEFAULT 0",
        "UPDATE callbacks SET kept_ms = due_ms WHERE state = 'waiting'",
        "CREATE TABLE callback_troubles (endpoint VARCHAR(64) NOT NULL PRIMARY KEY, "
        "since_ms BIGINT NOT NULL, failed_ms BIGINT NOT NULL)",
    ),
}

# Of what a delivery is logged with.
DETAIL_MAX: Final = 400
# How long a writer waits for another one; a batch holds the database for tenths of a second.
BUSY_TIMEOUT_MS = 10_000
CONNECT_TIMEOUT_S = 10
# Any number: it keeps two processes from creating the tables at once on PostgreSQL.
_CREATION_LOCK = 0x63616C6C

metadata = MetaData()

# One row for each event that an endpoint is to be told.
callbacks = Table(
    "callbacks",
    metadata,
    Column("endpoint", String(64), primary_key=True),
    Column("event_id", String(64), primary_key=True),
    Column("merchant_id", String(64), nullable=False),
    Column("order_id", String(64), nullable=False),
    Column("payment_id", String(64), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("type", String(64), nullable=False),
    Column("lane", Integer, nullable=False),
    Column("occurred_at_ms", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    # waiting, delivered or given_up
    Column("state", String(16), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("due_ms", BigInteger, nullable=False),
    Column("ended_at_ms", BigInteger),
    # How often somebody has asked to have it sent again: tries of before the last time end nothing.
    Column("resends", Integer, nullable=False, server_default="0"),
    # Since when it waits: since it was read, or asked for again.
    Column("kept_ms", BigInteger, nullable=False, server_default="0"),
    # What is due of an endpoint; which earlier one of a payment still waits; what is old; whose.
    Index("callbacks_due", "state", "endpoint", "due_ms"),
    Index("callbacks_order", "endpoint", "payment_id", "sequence"),
    Index("callbacks_ended", "ended_at_ms"),
    Index("callbacks_merchant", "merchant_id", "order_id"),
)

# What became of each delivery, and who asked for one by hand.
deliveries = Table(
    "callback_deliveries",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("endpoint", String(64), nullable=False),
    Column("event_id", String(64), nullable=False),
    Column("try_number", Integer, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("took_ms", BigInteger, nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("status", Integer),
    Column("detail", String(DETAIL_MAX), nullable=False),
    Index("callback_deliveries_of", "event_id", "endpoint"),
    Index("callback_deliveries_at", "at_ms"),
)

# Endpoints that took nothing of what was sent last: the first failure since, and the newest.
troubles = Table(
    "callback_troubles",
    metadata,
    Column("endpoint", String(64), primary_key=True),
    Column("since_ms", BigInteger, nullable=False),
    Column("failed_ms", BigInteger, nullable=False),
)

# Up to where the events of each partition have become callbacks; in the callbacks' transaction.
positions = Table(
    "callback_positions",
    metadata,
    Column("cluster_id", String(64), primary_key=True),
    Column("topic_id", String(64), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("next_offset", BigInteger, nullable=False),
)

schema_version = Table(
    "callback_schema_version", metadata, Column("version", Integer, nullable=False)
)


def open_callbacks(url: str) -> Engine:
    """The engine of a database with the callbacks' tables, created where missing, and brought
    forward where an earlier version made them.

    Safe to call from several processes at once, also in the ledger's own PostgreSQL database.
    UserError when it cannot be used.
    """
    parsed = _parse(url)
    shown = parsed.render_as_string(hide_password=True)
    try:
        engine = _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the callbacks at {shown} need {error.name}, which is not installed. Install "
            "paystream[postgres]."
        ) from error
    try:
        with engine.begin() as connection:
            _create_or_check(connection, shown)
    except UserError:
        engine.dispose()
        raise
    except DBAPIError as error:
        engine.dispose()
        reason = str(error.orig).strip().splitlines()
        raise UserError(
            f"the callbacks' database at {shown} cannot be used: {reason[0] if reason else error}. "
            "Check that it runs and that PAYSTREAM_CALLBACKS_URL is right."
        ) from error
    return engine


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError) as error:
        raise UserError(
            f"{url!r} is not a database URL. Use sqlite:////absolute/path.db or "
            "postgresql://user@host/name."
        ) from error
    if backend == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise UserError(
        "the callbacks need a file or PostgreSQL: sqlite:////absolute/path.db or "
        "postgresql://user@host/name."
    )


def _sqlite(url: URL) -> Engine:
    path = Path(str(url.database)).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the callbacks' folder {path.parent} cannot be made: {error}.") from error
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # Transactions are begun below, not by the driver, which would begin them too late.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        # A power cut may take the last commits: offsets go with them, so events are read again, and
        # a delivery that is forgotten is made again under the same id.
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the lock at once: two that read first and write later would deadlock.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _postgresql(url: URL) -> Engine:
    return create_engine(
        url,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "paystream-notifications",
        },
    )


def _create_or_check(connection: Connection, shown: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})")
    if not inspect(connection).has_table(schema_version.name):
        metadata.create_all(connection)
        connection.execute(schema_version.insert().values(version=SCHEMA_VERSION))
        return
    found = connection.execute(select(schema_version.c.version)).scalar_one_or_none()
    while found is not None and 0 < found < SCHEMA_VERSION:
        found += 1
        for statement in _FORWARD[found]:
            connection.exec_driver_sql(statement)
        connection.execute(update(schema_version).values(version=found))
    if found != SCHEMA_VERSION:
        raise UserError(
            f"the callbacks at {shown} have schema version {found}, this program knows "
            f"{SCHEMA_VERSION}. Use the version of paystream that wrote them."
        )

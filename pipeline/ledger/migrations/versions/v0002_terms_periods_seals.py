"""Terms and later days in entries, entries of other events, decisions, closed periods and seals.

PostgreSQL changes the tables in place: the new columns have constant defaults, so no row is
written anew; the new index and the check are built under a lock that writers wait for. SQLite
makes the table of entries anew, since it cannot change a constraint.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import Connection

from pipeline.ledger.guards import v1, v2

revision = "0002"
down_revision = "0001"

_ENTRIES = """
    CREATE TABLE journal_entries_new (
        entry_number INTEGER NOT NULL,
        entry_id TEXT NOT NULL,
        settlement_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        merchant_id TEXT NOT NULL,
        order_id TEXT NOT NULL,
        payment_id TEXT NOT NULL,
        operation_id TEXT NOT NULL,
        gateway TEXT NOT NULL,
        gateway_reference TEXT NOT NULL,
        business_date TEXT NOT NULL,
        source_topic TEXT NOT NULL,
        source_partition INTEGER NOT NULL,
        source_offset INTEGER NOT NULL,
        settled_at_ms INTEGER NOT NULL,
        posted_at_ms INTEGER NOT NULL,
        posting_count INTEGER NOT NULL,
        source_part INTEGER DEFAULT '0' NOT NULL,
        booked_date TEXT DEFAULT '' NOT NULL,
        terms TEXT DEFAULT '' NOT NULL,
        PRIMARY KEY (entry_number),
        CONSTRAINT entry_id_of_settlement CHECK (
            settlement_id = '' OR entry_id = 'settlement:' || settlement_id
        ),
        CONSTRAINT entry_has_two_sides CHECK (posting_count >= 2),
        CONSTRAINT entry_source UNIQUE
            (source_topic, source_partition, source_offset, source_part),
        UNIQUE (entry_id)
    ) STRICT"""
_OLD_COLUMNS = (
    "entry_number, entry_id, settlement_id, kind, merchant_id, order_id, payment_id, operation_id, "
    "gateway, gateway_reference, business_date, source_topic, source_partition, source_offset, "
    "settled_at_ms, posted_at_ms, posting_count"
)
_TABLES = (
    """
    CREATE TABLE ledger_decisions (
        sequence {int64} NOT NULL,
        event_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        actor TEXT NOT NULL,
        reason TEXT NOT NULL,
        decided_at_ms {int64} NOT NULL,
        body TEXT NOT NULL,
        published_partition INTEGER,
        published_offset {int64},
        PRIMARY KEY (sequence),
        UNIQUE (event_id)
    ) {strict}""",
    """
    CREATE TABLE closed_periods (
        sequence {int64} NOT NULL,
        through_date TEXT NOT NULL,
        cuts TEXT NOT NULL,
        sealed INTEGER NOT NULL,
        PRIMARY KEY (sequence),
        CONSTRAINT sealed_or_not CHECK (sealed IN (0, 1)),
        FOREIGN KEY(sequence) REFERENCES ledger_decisions (sequence)
    ) {strict}""",
    """
    CREATE TABLE chains (
        chain_id {serial} NOT NULL,
        topic TEXT NOT NULL,
        partition INTEGER NOT NULL,
        PRIMARY KEY (chain_id),
        CONSTRAINT chain_source UNIQUE (topic, partition)
    ) {strict}""",
    """
    CREATE TABLE entry_seals (
        chain_id INTEGER NOT NULL,
        position {int64} NOT NULL,
        entry_number {int64} NOT NULL,
        source_offset {int64} NOT NULL,
        source_part INTEGER NOT NULL,
        posted_at_ms {int64} NOT NULL,
        hash {bytes} NOT NULL,
        PRIMARY KEY (chain_id, position),
        FOREIGN KEY(chain_id) REFERENCES chains (chain_id)
    ) {rowless}""",
)
_SQLITE = {
    "int64": "INTEGER",
    "serial": "INTEGER",
    "bytes": "BLOB",
    "strict": "STRICT",
    "rowless": "WITHOUT ROWID, STRICT",
}
_POSTGRESQL = {"int64": "BIGINT", "serial": "SERIAL", "bytes": "BYTEA", "strict": "", "rowless": ""}


def upgrade() -> None:
    connection = op.get_bind()
    run = connection.exec_driver_sql
    v1.remove(connection)
    if connection.dialect.name == "sqlite":
        _sqlite(connection)
        words = _SQLITE
    else:
        _postgresql(connection)
        words = _POSTGRESQL
    run(
        "ALTER TABLE consumer_offsets ADD COLUMN settled_through_ms "
        f"{words['int64']} DEFAULT '0' NOT NULL"
    )
    run(
        "UPDATE consumer_offsets SET settled_through_ms = coalesce((SELECT max(settled_at_ms) "
        "FROM journal_entries WHERE source_topic = topic AND source_partition = partition), 0)"
    )
    run("CREATE INDEX entry_payment ON journal_entries (payment_id)")
    for table in _TABLES:
        run(table.format(**words))
    v2.install(connection)
    run("UPDATE ledger_schema SET version = 2")


def _sqlite(connection: Connection) -> None:
    run = connection.exec_driver_sql
    run(_ENTRIES)
    run(
        f"INSERT INTO journal_entries_new ({_OLD_COLUMNS}) "
        f"SELECT {_OLD_COLUMNS} FROM journal_entries"
    )
    run("DROP TABLE journal_entries")
    run("ALTER TABLE journal_entries_new RENAME TO journal_entries")


def _postgresql(connection: Connection) -> None:
    connection.exec_driver_sql(
        "ALTER TABLE journal_entries"
        " ADD COLUMN source_part INTEGER DEFAULT '0' NOT NULL,"
        " ADD COLUMN booked_date TEXT DEFAULT '' NOT NULL,"
        " ADD COLUMN terms TEXT DEFAULT '' NOT NULL,"
        " DROP CONSTRAINT entry_id_of_settlement,"
        " ADD CONSTRAINT entry_id_of_settlement CHECK"
        " (settlement_id = '' OR entry_id = 'settlement:' || settlement_id),"
        " DROP CONSTRAINT entry_source,"
        " ADD CONSTRAINT entry_source UNIQUE"
        " (source_topic, source_partition, source_offset, source_part)"
    )

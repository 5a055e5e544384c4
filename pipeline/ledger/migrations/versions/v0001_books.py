"""The tables of version 1: entries, postings, accounts, balances and offsets."""

from __future__ import annotations

from alembic import op

from pipeline.ledger.guards import v1

revision = "0001"
down_revision = None

_TABLES = (
    """
    CREATE TABLE accounts (
        account_id {serial} NOT NULL,
        name TEXT NOT NULL,
        PRIMARY KEY (account_id),
        UNIQUE (name)
    ) {strict}""",
    """
    CREATE TABLE consumer_offsets (
        topic TEXT NOT NULL,
        partition INTEGER NOT NULL,
        cluster_id TEXT NOT NULL,
        topic_id TEXT NOT NULL,
        next_offset {int64} NOT NULL,
        updated_at_ms {int64} NOT NULL,
        PRIMARY KEY (topic, partition),
        CONSTRAINT offset_not_negative CHECK (next_offset >= 0)
    ) {strict}""",
    """
    CREATE TABLE journal_entries (
        entry_number {int64} NOT NULL,
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
        source_offset {int64} NOT NULL,
        settled_at_ms {int64} NOT NULL,
        posted_at_ms {int64} NOT NULL,
        posting_count INTEGER NOT NULL,
        PRIMARY KEY (entry_number),
        CONSTRAINT entry_id_of_settlement CHECK (entry_id = 'settlement:' || settlement_id),
        CONSTRAINT entry_has_two_sides CHECK (posting_count >= 2),
        CONSTRAINT entry_source UNIQUE (source_topic, source_partition, source_offset),
        UNIQUE (entry_id)
    ) {strict}""",
    """
    CREATE TABLE ledger_schema (
        version INTEGER NOT NULL,
        PRIMARY KEY (version)
    ) {strict}""",
    """
    CREATE TABLE balances (
        account_id INTEGER NOT NULL,
        currency TEXT NOT NULL,
        debits_minor {int64} NOT NULL,
        credits_minor {int64} NOT NULL,
        PRIMARY KEY (account_id, currency),
        CONSTRAINT balance_totals CHECK (debits_minor >= 0 AND credits_minor >= 0),
        FOREIGN KEY(account_id) REFERENCES accounts (account_id)
    ) {rowless}""",
    """
    CREATE TABLE postings (
        entry_number {int64} NOT NULL,
        line INTEGER NOT NULL,
        account_id INTEGER NOT NULL,
        currency TEXT NOT NULL,
        amount_minor {int64} NOT NULL,
        PRIMARY KEY (entry_number, line),
        CONSTRAINT posting_line CHECK (line >= 1),
        CONSTRAINT posting_moves_money CHECK (amount_minor <> 0),
        CONSTRAINT posting_currency CHECK (length(currency) = 3),
        FOREIGN KEY(entry_number) REFERENCES journal_entries (entry_number)
            DEFERRABLE INITIALLY DEFERRED,
        FOREIGN KEY(account_id) REFERENCES accounts (account_id)
    ) {rowless}""",
)
_SQLITE = {
    "int64": "INTEGER",
    "serial": "INTEGER",
    "strict": "STRICT",
    "rowless": "WITHOUT ROWID, STRICT",
}
_POSTGRESQL = {"int64": "BIGINT", "serial": "SERIAL", "strict": "", "rowless": ""}


def upgrade() -> None:
    connection = op.get_bind()
    sqlite = connection.dialect.name == "sqlite"
    if not sqlite:
        connection.exec_driver_sql("CREATE SEQUENCE journal_entry_numbers")
    for table in _TABLES:
        connection.exec_driver_sql(table.format(**(_SQLITE if sqlite else _POSTGRESQL)))
    v1.install(connection)
    connection.exec_driver_sql("INSERT INTO ledger_schema (version) VALUES (1)")

"""The tables of the books, the same on SQLite and PostgreSQL.

Amounts are signed integers in minor units, debits positive, credits negative. Entries and their
postings are written once and never touched again; ``guards`` holds the rules that the database
itself keeps. Offsets of the settlements topic lie beside the entries, so that both are committed
together or not at all.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
)

# Raised by every change of these tables; a database of another version is not touched.
SCHEMA_VERSION = 1

metadata = MetaData()

# In a STRICT table of SQLite every integer is 64 bits wide and nothing else is accepted.
Int64 = BigInteger().with_variant(Integer(), "sqlite")

schema_version = Table(
    "ledger_schema",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    sqlite_strict=True,
)

accounts = Table(
    "accounts",
    metadata,
    # Short in the postings; the name is what people read.
    Column("account_id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    sqlite_strict=True,
)

# PostgreSQL only (several writers); SQLite has one writer at a time and counts by itself.
entry_numbers = Sequence("journal_entry_numbers", metadata=metadata)

journal_entries = Table(
    "journal_entries",
    metadata,
    # Only joins entry and postings; numbers have gaps and mean no order in time.
    Column("entry_number", Int64, primary_key=True, autoincrement=False),
    Column("entry_id", Text, nullable=False, unique=True),
    Column("settlement_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("merchant_id", Text, nullable=False),
    Column("order_id", Text, nullable=False),
    Column("payment_id", Text, nullable=False),
    Column("operation_id", Text, nullable=False),
    Column("gateway", Text, nullable=False),
    Column("gateway_reference", Text, nullable=False),
    Column("business_date", Text, nullable=False),
    Column("source_topic", Text, nullable=False),
    Column("source_partition", Integer, nullable=False),
    Column("source_offset", Int64, nullable=False),
    Column("settled_at_ms", Int64, nullable=False),
    Column("posted_at_ms", Int64, nullable=False),
    Column("posting_count", Integer, nullable=False),
    # So the unique entry_id makes settlement_id unique too, without a second index: random
    # inserts into an index are what posting costs most.
    CheckConstraint("entry_id = 'settlement:' || settlement_id", name="entry_id_of_settlement"),
    CheckConstraint("posting_count >= 2", name="entry_has_two_sides"),
    UniqueConstraint("source_topic", "source_partition", "source_offset", name="entry_source"),
    sqlite_strict=True,
)

postings = Table(
    "postings",
    metadata,
    Column(
        "entry_number",
        Int64,
        ForeignKey("journal_entries.entry_number", deferrable=True, initially="DEFERRED"),
        nullable=False,
    ),
    Column("line", Integer, nullable=False),
    Column("account_id", Integer, ForeignKey("accounts.account_id"), nullable=False),
    Column("currency", Text, nullable=False),
    Column("amount_minor", Int64, nullable=False),
    PrimaryKeyConstraint("entry_number", "line"),
    CheckConstraint("line >= 1", name="posting_line"),
    CheckConstraint("amount_minor <> 0", name="posting_moves_money"),
    CheckConstraint("length(currency) = 3", name="posting_currency"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

balances = Table(
    "balances",
    metadata,
    Column("account_id", Integer, ForeignKey("accounts.account_id"), nullable=False),
    Column("currency", Text, nullable=False),
    Column("debits_minor", Int64, nullable=False),
    Column("credits_minor", Int64, nullable=False),
    PrimaryKeyConstraint("account_id", "currency"),
    CheckConstraint("debits_minor >= 0 AND credits_minor >= 0", name="balance_totals"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

consumer_offsets = Table(
    "consumer_offsets",
    metadata,
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("cluster_id", Text, nullable=False),
    Column("topic_id", Text, nullable=False),
    Column("next_offset", Int64, nullable=False),
    Column("updated_at_ms", Int64, nullable=False),
    PrimaryKeyConstraint("topic", "partition"),
    CheckConstraint("next_offset >= 0", name="offset_not_negative"),
    sqlite_strict=True,
)

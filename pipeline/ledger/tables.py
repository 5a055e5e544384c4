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
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

# Raised by every change of these tables; a database of another version is not touched.
SCHEMA_VERSION = 7
# The revision of ``migrations`` that makes these tables.
REVISION = "0007"

# Entries that may move what is available: those of no settlement, and of settlements one kind.
MOVES_AVAILABLE = "({0}settlement_id = '' OR {0}kind = 'external_refund')"
# Entries of settlements, and of nothing else.
OF_SETTLEMENT = "{0}settlement_id <> ''"

metadata = MetaData()

# In a STRICT table of SQLite every integer is 64 bits wide and nothing else is accepted.
Int64 = BigInteger().with_variant(Integer(), "sqlite")

schema_version = Table(
    "ledger_schema",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    sqlite_strict=True,
)

# Where the migrations keep which of them have been made.
alembic_version = Table(
    "alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
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
    # Several entries may come of one event; a settlement is one.
    Column("source_part", Integer, nullable=False, server_default="0"),
    # The day it counts under when its own was closed already; else empty.
    Column("booked_date", Text, nullable=False, server_default=""),
    # What its fees were worked out by: schedule/plan/method; empty for none.
    Column("terms", Text, nullable=False, server_default=""),
    # So the unique entry_id makes settlement_id unique too, without a second index: random
    # inserts into an index are what posting costs most.
    CheckConstraint(
        "settlement_id = '' OR entry_id = 'settlement:' || settlement_id",
        name="entry_id_of_settlement",
    ),
    CheckConstraint("posting_count >= 2", name="entry_has_two_sides"),
    UniqueConstraint(
        "source_topic", "source_partition", "source_offset", "source_part", name="entry_source"
    ),
    # What was settled of a payment decides what its next settlement costs. What is cleared of it
    # is booked of the same payments, at random places of this index, and is not asked for by it.
    Index(
        "entry_settled_payment",
        "payment_id",
        sqlite_where=text(OF_SETTLEMENT.format("")),
        postgresql_where=text(OF_SETTLEMENT.format("")),
    ),
    # What became available since a cut-off, or was taken of it: of settlements one kind does that.
    Index(
        "entry_arrival",
        "settled_at_ms",
        sqlite_where=text(MOVES_AVAILABLE.format("")),
        postgresql_where=text(MOVES_AVAILABLE.format("")),
    ),
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
    # The latest settled_at_ms that is booked: terms that count from an earlier time come too late.
    Column("settled_through_ms", Int64, nullable=False, server_default="0"),
    # Of the whole row, see ``checksums``; empty where something else than the ledger wrote it.
    Column("checksum", Text, nullable=False, server_default=""),
    PrimaryKeyConstraint("topic", "partition"),
    CheckConstraint("next_offset >= 0", name="offset_not_negative"),
    sqlite_strict=True,
)

# What people decided about the books. A row is decided first, published to `ledger-events` next,
# and what it posts is booked last, with the place it was published at.
ledger_decisions = Table(
    "ledger_decisions",
    metadata,
    Column("sequence", Int64, primary_key=True, autoincrement=False),
    Column("event_id", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("decided_at_ms", Int64, nullable=False),
    Column("body", Text, nullable=False),
    Column("published_partition", Integer),
    Column("published_offset", Int64),
    # Of that place; empty while there is none, and where an earlier version wrote it.
    Column("place_checksum", Text, nullable=False, server_default=""),
    sqlite_strict=True,
)

closed_periods = Table(
    "closed_periods",
    metadata,
    Column(
        "sequence",
        Int64,
        ForeignKey("ledger_decisions.sequence"),
        primary_key=True,
        autoincrement=False,
    ),
    # Everything up to and with this day.
    Column("through_date", Text, nullable=False),
    # The next offset of each partition of the settlements topic, as JSON: what lies from there on
    # came too late for the period.
    Column("cuts", Text, nullable=False),
    # 1 once all that belongs to the period is booked; the database takes no more then.
    Column("sealed", Integer, nullable=False),
    CheckConstraint("sealed IN (0, 1)", name="sealed_or_not"),
    sqlite_strict=True,
)

# One chain of hashes for each partition that entries come from.
chains = Table(
    "chains",
    metadata,
    Column("chain_id", Integer, primary_key=True),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    UniqueConstraint("topic", "partition", name="chain_source"),
    sqlite_strict=True,
)

entry_seals = Table(
    "entry_seals",
    metadata,
    Column("chain_id", Integer, ForeignKey("chains.chain_id"), nullable=False),
    # Counts the partition's entries from 1, in the order of the log.
    Column("position", Int64, nullable=False),
    Column("entry_number", Int64, nullable=False),
    Column("source_offset", Int64, nullable=False),
    Column("source_part", Integer, nullable=False),
    Column("posted_at_ms", Int64, nullable=False),
    # SHA-256 of the hash before it and the entry.
    Column("hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("chain_id", "position"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

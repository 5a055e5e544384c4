"""The tables of reconciliation, beside those of the books; the same on SQLite and PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    insert,
    inspect,
)

metadata = MetaData()
# SQLite's integers are 64 bits under one name.
Int64 = BigInteger().with_variant(Integer(), "sqlite")
# Any number: it keeps two processes from making the tables at once on PostgreSQL.
_CREATION_LOCK = 0x72656363

# How far the clearings topic is taken in, with the ids that tell it from another of its name.
clearing_offsets = Table(
    "clearing_offsets",
    metadata,
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("cluster_id", Text, nullable=False),
    Column("topic_id", Text, nullable=False),
    Column("next_offset", Int64, nullable=False),
    PrimaryKeyConstraint("topic", "partition"),
)

clearing_rows = Table(
    "clearing_rows",
    metadata,
    Column("gateway", Text, nullable=False),
    Column("file_id", Text, nullable=False),
    Column("row_number", Integer, nullable=False),
    Column("report_date", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("operation_kind", Text, nullable=False),
    Column("gateway_reference", Text, nullable=False),
    Column("amount_minor", Int64, nullable=False),
    Column("fee_minor", Int64, nullable=False),
    Column("currency", Text, nullable=False),
    Column("batch_id", Text, nullable=False),
    Column("occurred_at_ms", Int64, nullable=False),
    Column("payment_id", Text, nullable=False),
    Column("operation_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("merchant_id", Text, nullable=False),
    Column("order_id", Text, nullable=False),
    Column("source_partition", Integer, nullable=False),
    Column("source_offset", Int64, nullable=False),
    # 1: the payment was told by this row.
    Column("told", Integer, nullable=False, server_default="0"),
    PrimaryKeyConstraint("gateway", "file_id", "row_number"),
    # Led by what tells most: a planner without statistics takes an index by its first column.
    Index("clearing_reference", "gateway_reference", "kind", "gateway"),
)

# Which row has cleared which settlement, by the decision that says so.
cleared_rows = Table(
    "cleared_rows",
    metadata,
    Column("settlement_id", Text, nullable=False),
    Column("gateway", Text, nullable=False),
    Column("file_id", Text, nullable=False),
    Column("row_number", Integer, nullable=False),
    Column("sequence", Int64, nullable=False),
    PrimaryKeyConstraint("settlement_id"),
    Index("cleared_row", "gateway", "file_id", "row_number", unique=True),
    sqlite_with_rowid=False,
)

bank_lines = Table(
    "bank_lines",
    metadata,
    Column("account", Text, nullable=False),
    Column("file_id", Text, nullable=False),
    Column("line_id", Text, nullable=False),
    Column("gateway", Text, nullable=False),
    Column("batch_id", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("amount_minor", Int64, nullable=False),
    Column("value_date", Text, nullable=False),
    Column("text", Text, nullable=False),
    # 1: a payout to a merchant, which posts itself.
    Column("payout", Integer, nullable=False, server_default="0"),
    Column("sequence", Int64, nullable=False),
    PrimaryKeyConstraint("account", "file_id", "line_id"),
)

# The last decision that is in these tables.
followed_decisions = Table(
    "followed_decisions",
    metadata,
    Column("sequence", Int64, nullable=False),
    PrimaryKeyConstraint("sequence"),
)

# The decisions of refunds that the flow was told of.
ordered_refunds = Table(
    "ordered_refunds",
    metadata,
    Column("sequence", Int64, nullable=False),
    PrimaryKeyConstraint("sequence"),
)

breaks = Table(
    "breaks",
    metadata,
    Column("break_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("gateway", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("at_risk_minor", Int64, nullable=False),
    Column("since", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("resolution", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("opened_at_ms", Int64, nullable=False),
    Column("resolved_at_ms", Int64, nullable=False),
    Column("version", Integer, nullable=False),
    Column("file_id", Text, nullable=False),
    Column("row_number", Integer, nullable=False),
    Column("merchant_id", Text, nullable=False),
    Column("order_id", Text, nullable=False),
    Column("payment_id", Text, nullable=False),
    Column("gateway_reference", Text, nullable=False),
    Column("settlement_place", Text, nullable=False),
    Column("clearing_place", Text, nullable=False),
    # The newest version that is in the topic.
    Column("published_version", Integer, nullable=False, server_default="0"),
    Index("breaks_state", "state"),
)


def prepare(engine: Engine) -> None:
    """Make what is missing; safe from several processes at once."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})")
        # A ledger of before has the older ones, and any may be dropped.
        if not metadata.tables.keys() <= set(inspect(connection).get_table_names()):
            metadata.create_all(connection)


def insert_cleared(connection: Connection, rows: Sequence[tuple[str, str, str, int, int]]) -> None:
    """Rows of ``cleared_rows``, in the form each database does fastest."""
    if not rows:
        return
    names = ", ".join(column.name for column in cleared_rows.columns)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(
            f"INSERT INTO {cleared_rows.name} ({names}) VALUES (?, ?, ?, ?, ?)", list(rows)
        )
        return
    # One value for all of them: the driver would make an array of each column value by value.
    connection.exec_driver_sql(
        f"INSERT INTO {cleared_rows.name} ({names}) SELECT w ->> 0, w ->> 1, w ->> 2, "
        "(w ->> 3)::int, (w ->> 4)::bigint FROM json_array_elements(%s::json) w",
        (json.dumps(rows),),
    )


def insert_breaks(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of ``breaks``, all of the same columns, in the form each database does fastest."""
    if connection.dialect.name == "sqlite":
        connection.execute(insert(breaks), list(rows))
        return
    names = ", ".join(rows[0])
    connection.exec_driver_sql(
        f"INSERT INTO {breaks.name} ({names}) SELECT {names} "
        f"FROM json_populate_recordset(NULL::{breaks.name}, %s::json)",
        (json.dumps(rows),),
    )


def is_prepared(connection: Connection) -> bool:
    """Whether reconciliation was ever run on this ledger."""
    return inspect(connection).has_table(breaks.name)

"""Checksums of the stored offsets and of the places that decisions were published at.

What stands in the ledger now is taken as it is.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import Connection, text

from pipeline.ledger.checksums import offset_checksum, place_checksum
from pipeline.ledger.guards import v4

revision = "0005"
down_revision = "0004"

_GUARD = "ledger_decisions_no_update"


def upgrade() -> None:
    connection = op.get_bind()
    run = connection.exec_driver_sql
    run("ALTER TABLE consumer_offsets ADD COLUMN checksum TEXT DEFAULT '' NOT NULL")
    run("ALTER TABLE ledger_decisions ADD COLUMN place_checksum TEXT DEFAULT '' NOT NULL")
    for row in connection.execute(text("SELECT * FROM consumer_offsets")).all():
        connection.execute(
            text("UPDATE consumer_offsets SET checksum = :checksum "
                 "WHERE topic = :topic AND partition = :partition"),
            {"checksum": offset_checksum(row), "topic": row.topic, "partition": row.partition},
        )  # fmt: skip
    _places(connection)
    v4.bring_forward(connection)
    run("UPDATE ledger_schema SET version = 5")


def _places(connection: Connection) -> None:
    """A published decision never changes: its guard is off meanwhile, in this transaction."""
    rows = connection.execute(
        text("SELECT sequence, event_id, published_partition, published_offset "
             "FROM ledger_decisions WHERE published_offset IS NOT NULL")
    ).all()  # fmt: skip
    if not rows:
        return
    run = connection.exec_driver_sql
    guard = ""
    if connection.dialect.name == "sqlite":
        guard = run(f"SELECT sql FROM sqlite_master WHERE name = '{_GUARD}'").scalar_one()
        run(f"DROP TRIGGER {_GUARD}")
    else:
        run(f"ALTER TABLE ledger_decisions DISABLE TRIGGER {_GUARD}")
    connection.execute(
        text("UPDATE ledger_decisions SET place_checksum = :checksum WHERE sequence = :sequence"),
        [
            {
                "sequence": row.sequence,
                "checksum": place_checksum(
                    row.event_id, row.published_partition, row.published_offset
                ),
            }
            for row in rows
        ],
    )
    run(guard or f"ALTER TABLE ledger_decisions ENABLE TRIGGER {_GUARD}")

"""Version 4: as version 3, and a stored offset that is changed without its checksum loses it.

So a writer of an earlier version, or a person with a tool, does not leave a checksum that belongs
to another row: it is empty then, which `paystream ledger verify` names. Whoever changes the row
behind the triggers' back leaves one that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection

from pipeline.ledger.guards import v3
from pipeline.ledger.guards.v3 import ENTRIES_LOCK

__all__ = ["ENTRIES_LOCK", "bring_forward", "install"]

_COLUMNS = (
    "topic", "partition", "cluster_id", "topic_id", "next_offset", "updated_at_ms",
    "settled_through_ms",
)  # fmt: skip


def install(connection: Connection) -> None:
    """Create the triggers; the tables are there and none of the triggers is."""
    v3.install(connection)
    bring_forward(connection)


def bring_forward(connection: Connection) -> None:
    """Add to version 3 what this one has besides."""
    statements = _sqlite() if connection.dialect.name == "sqlite" else _postgresql()
    for statement in statements:
        connection.exec_driver_sql(statement)


def _sqlite() -> Iterator[str]:
    changed = " OR ".join(f"OLD.{column} IS NOT NEW.{column}" for column in _COLUMNS)
    yield f"""
        CREATE TRIGGER consumer_offsets_unset AFTER UPDATE ON consumer_offsets
        WHEN OLD.checksum = NEW.checksum AND NEW.checksum <> '' AND ({changed}) BEGIN
            UPDATE consumer_offsets SET checksum = ''
            WHERE topic = NEW.topic AND partition = NEW.partition;
        END"""


def _postgresql() -> Iterator[str]:
    yield """
        CREATE OR REPLACE FUNCTION ledger_unset_checksum() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.checksum := '';
            RETURN NEW;
        END $$"""
    changed = " OR ".join(f"OLD.{column} IS DISTINCT FROM NEW.{column}" for column in _COLUMNS)
    yield f"""
        CREATE TRIGGER consumer_offsets_unset BEFORE UPDATE ON consumer_offsets
        FOR EACH ROW WHEN (OLD.checksum = NEW.checksum AND ({changed}))
        EXECUTE FUNCTION ledger_unset_checksum()"""

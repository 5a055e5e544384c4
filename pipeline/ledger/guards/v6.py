"""Version 6: as version 5, and a record has several entries only where a decision is booked by it.

A key keeps a record's entries apart by their part, so somebody could have added a part of his own
to a settlement, or to a decision that posts one entry. Now a part that is not the first one belongs
to no settlement and stands on a first one that belongs to none either and is of a kind that comes
by several. Looked at for such parts alone: settlements have none.

Which decisions post several is known from the kind of the first entry, since no entry by hand and
none of a payout is of these kinds. So nothing is looked up in the decisions, whose places have no
index: a report's decision has two thousand parts.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection

from pipeline.ledger.guards import v5
from pipeline.ledger.guards.v5 import ENTRIES_LOCK

__all__ = ["ENTRIES_LOCK", "bring_forward", "install"]

# Of closes, clearings, bank statements and releases: all that post more than one entry.
_SEVERAL = "('fee_true_up', 'fee_true_up_returned', 'clearing', 'bank_receipt', 'release')"
_SECOND = "the record has one entry: a further part is for decisions that post several"


def install(connection: Connection) -> None:
    """Create the triggers; the tables are there and none of the triggers is."""
    v5.install(connection)
    bring_forward(connection)


def bring_forward(connection: Connection) -> None:
    """Add to version 5 what this one has besides."""
    statements = _sqlite() if connection.dialect.name == "sqlite" else _postgresql(connection)
    for statement in statements:
        connection.exec_driver_sql(statement)


def _sqlite() -> Iterator[str]:
    yield f"""
        CREATE TRIGGER journal_entries_parts AFTER INSERT ON journal_entries
        WHEN NEW.source_part <> 0 BEGIN
            SELECT RAISE(ABORT, '{_SECOND}')
            WHERE NEW.source_part < 0 OR NEW.settlement_id <> '' OR NOT EXISTS (
                SELECT 1 FROM journal_entries
                WHERE source_topic = NEW.source_topic AND source_partition = NEW.source_partition
                AND source_offset = NEW.source_offset AND source_part = 0 AND settlement_id = ''
                AND kind IN {_SEVERAL}
            );
        END"""


def _postgresql(connection: Connection) -> Iterator[str]:
    # A first part of another transaction is not seen before its commit, so it refuses as well.
    yield f"""
        CREATE FUNCTION ledger_check_parts() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (
                SELECT 1 FROM added WHERE source_part < 0
                OR (source_part <> 0 AND settlement_id <> '')
            ) OR EXISTS (
                SELECT 1 FROM (
                    SELECT DISTINCT source_topic, source_partition, source_offset
                    FROM added WHERE source_part <> 0
                ) of_record WHERE NOT EXISTS (
                    SELECT 1 FROM journal_entries e
                    WHERE e.source_topic = of_record.source_topic
                    AND e.source_partition = of_record.source_partition
                    AND e.source_offset = of_record.source_offset
                    AND e.source_part = 0 AND e.settlement_id = ''
                    AND e.kind IN {_SEVERAL}
                )
            ) THEN
                RAISE EXCEPTION USING ERRCODE = 'check_violation', MESSAGE = '{_SECOND}';
            END IF;
            RETURN NULL;
        END $$"""
    schema = connection.exec_driver_sql(
        "SELECT relnamespace::regnamespace::text FROM pg_class "
        "WHERE oid = 'journal_entries'::regclass"
    ).scalar_one()
    # As in version 5.
    function = "ALTER FUNCTION ledger_check_parts() SET"
    yield f"{function} search_path = pg_catalog, {schema}, pg_temp"
    yield f"{function} enable_seqscan = off"
    yield f"{function} jit = off"
    yield """
        CREATE TRIGGER journal_entries_parts AFTER INSERT ON journal_entries
        REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION ledger_check_parts()"""

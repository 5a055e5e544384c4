"""Version 1, as it was; only a migration uses it.

* An entry whose postings are missing, or whose debits and credits differ in some currency.
* A posting added to an entry that is booked.
* A change or deletion of an entry, a posting or an account.
* A second entry of the same settlement (a unique key, see ``tables``).

SQLite checks an entry when it is inserted, after its postings. ``INSERT OR REPLACE`` deletes the
row in its way without any delete trigger, so a guard before the insert looks for such a row.
PostgreSQL checks at the commit: another transaction's half of an entry is seen only then.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection

_IMMUTABLE = ("journal_entries", "postings", "accounts")


def install(connection: Connection) -> None:
    """Create the triggers; the tables are there and none of the triggers is."""
    statements = _sqlite() if connection.dialect.name == "sqlite" else _postgresql()
    for statement in statements:
        connection.exec_driver_sql(statement)


def remove(connection: Connection) -> None:
    """Drop what ``install`` made."""
    if connection.dialect.name == "sqlite":
        names = [f"{t}_no_{verb}" for t in _IMMUTABLE for verb in ("update", "delete")]
        for name in (*names, "accounts_no_replace", "postings_sealed", "journal_entries_checked"):
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        return
    for table in _IMMUTABLE:
        connection.exec_driver_sql(f"DROP TRIGGER {table}_no_change ON {table}")
        connection.exec_driver_sql(f"DROP TRIGGER {table}_no_truncate ON {table}")
    connection.exec_driver_sql("DROP TRIGGER journal_entries_checked ON journal_entries")
    connection.exec_driver_sql("DROP TRIGGER postings_sealed ON postings")
    connection.exec_driver_sql("DROP FUNCTION ledger_refuse_change, ledger_check_entry")


def _sqlite() -> Iterator[str]:
    for table in _IMMUTABLE:
        for verb in ("UPDATE", "DELETE"):
            yield f"""
                CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} BEGIN
                    SELECT RAISE(ABORT, '{_never_change(table)}');
                END"""
    yield """
        CREATE TRIGGER accounts_no_replace BEFORE INSERT ON accounts
        WHEN EXISTS (
            SELECT 1 FROM accounts WHERE account_id = NEW.account_id OR name = NEW.name
        ) BEGIN
            SELECT RAISE(ABORT, 'the account exists');
        END"""
    yield """
        CREATE TRIGGER postings_sealed BEFORE INSERT ON postings
        WHEN EXISTS (SELECT 1 FROM journal_entries WHERE entry_number = NEW.entry_number) BEGIN
            SELECT RAISE(ABORT, 'the entry is booked: no posting can be added to it');
        END"""
    # The check of balance reads the primary key twice; grouping by currency would sort each time.
    yield """
        CREATE TRIGGER journal_entries_checked BEFORE INSERT ON journal_entries BEGIN
            SELECT RAISE(ABORT, 'the settlement or its source is booked already')
            WHERE EXISTS (SELECT 1 FROM journal_entries WHERE entry_id = NEW.entry_id)
            OR EXISTS (SELECT 1 FROM journal_entries WHERE entry_number = NEW.entry_number)
            OR EXISTS (
                SELECT 1 FROM journal_entries
                WHERE source_topic = NEW.source_topic
                AND source_partition = NEW.source_partition
                AND source_offset = NEW.source_offset
            );
            SELECT RAISE(ABORT, 'the entry has not the postings it names')
            WHERE (
                SELECT count(*) <> NEW.posting_count OR max(line) <> NEW.posting_count
                FROM postings WHERE entry_number = NEW.entry_number
            );
            SELECT RAISE(ABORT, 'debits and credits of the entry differ')
            WHERE EXISTS (
                SELECT 1 FROM postings p WHERE p.entry_number = NEW.entry_number AND 0 <> (
                    SELECT sum(q.amount_minor) FROM postings q
                    WHERE q.entry_number = NEW.entry_number AND q.currency = p.currency
                )
            );
        END"""


def _postgresql() -> Iterator[str]:
    yield """
        CREATE FUNCTION ledger_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION USING ERRCODE = 'restrict_violation',
                MESSAGE = TG_ARGV[0];
        END $$"""
    for table in _IMMUTABLE:
        yield f"""
            CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table}
            FOR EACH ROW EXECUTE FUNCTION ledger_refuse_change('{_never_change(table)}')"""
        yield f"""
            CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change('{_never_change(table)}')"""
    yield """
        CREATE FUNCTION ledger_check_entry() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            expected integer;
            found integer;
            last_line integer;
        BEGIN
            SELECT posting_count INTO expected FROM journal_entries
                WHERE entry_number = NEW.entry_number;
            SELECT count(*), max(line) INTO found, last_line FROM postings
                WHERE entry_number = NEW.entry_number;
            IF found IS DISTINCT FROM expected OR last_line IS DISTINCT FROM expected THEN
                RAISE EXCEPTION USING ERRCODE = 'check_violation',
                    MESSAGE = 'the entry has not the postings it names';
            END IF;
            IF EXISTS (
                SELECT 1 FROM postings WHERE entry_number = NEW.entry_number
                GROUP BY currency HAVING sum(amount_minor) <> 0
            ) THEN
                RAISE EXCEPTION USING ERRCODE = 'check_violation',
                    MESSAGE = 'debits and credits of the entry differ';
            END IF;
            RETURN NULL;
        END $$"""
    yield """
        CREATE CONSTRAINT TRIGGER journal_entries_checked AFTER INSERT ON journal_entries
        DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION ledger_check_entry()"""
    # Every booked entry has lines 1 and 2, so one more line is at least the third.
    yield """
        CREATE CONSTRAINT TRIGGER postings_sealed AFTER INSERT ON postings
        DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.line > 2) EXECUTE FUNCTION ledger_check_entry()"""


def _never_change(table: str) -> str:
    return f"{table} are never changed: book a reversing entry instead"

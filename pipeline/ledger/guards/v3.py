"""Version 3: as version 2, without the ways around it that were found.

SQLite judges an entry after its insert, when its number is known even where the database chose it,
and a decision or a chain is not replaced through any of its keys. On PostgreSQL a line is judged by
the number of lines its entry names, whenever it comes; tables are looked up in the ledger's own
schema, never among a connection's temporary ones; and entries are made under READ COMMITTED only,
where a period that was sealed meanwhile is seen.

* An entry whose postings are missing, or whose debits and credits differ in some currency.
* A posting added to an entry that is booked.
* A change or deletion of an entry, a posting, an account, a seal or a decision (a decision's place
  in its topic is written once; a closed period is sealed once).
* A second entry of the same event (unique keys, see ``tables``).
* An entry that counts under a day of a sealed period.

SQLite checks an entry when it is inserted, after its postings. ``INSERT OR REPLACE`` deletes the
row in its way without any delete trigger, so a guard before the insert looks for such a row by each
unique key.
PostgreSQL checks at the commit: another transaction's half of an entry is seen only then. Whoever
inserts entries holds a shared lock that sealing a period waits for.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection

IMMUTABLE = ("journal_entries", "postings", "accounts", "entry_seals", "chains")
# Taken shared by whoever inserts entries, exclusively by what has to wait for them.
ENTRIES_LOCK = 0x6C656468

_FUNCTIONS = (
    "ledger_refuse_change",
    "ledger_check_entry",
    "ledger_check_posting",
    "ledger_check_period",
)
_DECIDED = ("sequence", "event_id", "kind", "actor", "reason", "decided_at_ms", "body")
_CLOSED = ("sequence", "through_date", "cuts")


def install(connection: Connection) -> None:
    """Create the triggers; the tables are there and none of the triggers is."""
    if connection.dialect.name == "sqlite":
        statements = [*_sqlite(), *_sqlite_changed()]
    else:
        statements = [*_functions(), *_postgresql()]
    for statement in statements:
        connection.exec_driver_sql(statement)
    _confine(connection)


def bring_forward(connection: Connection) -> None:
    """Change what version 2 has into this one.

    PostgreSQL's triggers stay as they are, so no table is locked for it: what they call changes.
    """
    if connection.dialect.name == "sqlite":
        for name in ("ledger_decisions_no_replace", "journal_entries_checked"):
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        statements = [*_sqlite_changed()]
    else:
        statements = [*_functions()]
    for statement in statements:
        connection.exec_driver_sql(statement)
    _confine(connection)


def _sqlite() -> Iterator[str]:
    for table in IMMUTABLE:
        for verb in ("UPDATE", "DELETE"):
            yield f"""
                CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} BEGIN
                    SELECT RAISE(ABORT, '{_never_change(table)}');
                END"""
    for table, columns, once in _WRITTEN_ONCE:
        yield f"""
            CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} BEGIN
                SELECT RAISE(ABORT, '{_never_change(table)}');
            END"""
        same = " AND ".join(f"OLD.{column} IS NEW.{column}" for column in columns)
        yield f"""
            CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table}
            WHEN NOT ({same} AND OLD.{once} IS {_UNSET[once]}) BEGIN
                SELECT RAISE(ABORT, '{_never_change(table)}');
            END"""
    yield f"""
        CREATE TRIGGER closed_periods_no_replace BEFORE INSERT ON closed_periods
        WHEN EXISTS (SELECT 1 FROM closed_periods WHERE sequence = NEW.sequence) BEGIN
            SELECT RAISE(ABORT, '{_never_change("closed_periods")}');
        END"""
    yield """
        CREATE TRIGGER accounts_no_replace BEFORE INSERT ON accounts
        WHEN EXISTS (
            SELECT 1 FROM accounts WHERE account_id = NEW.account_id OR name = NEW.name
        ) BEGIN
            SELECT RAISE(ABORT, 'the account exists');
        END"""
    yield """
        CREATE TRIGGER entry_seals_no_replace BEFORE INSERT ON entry_seals
        WHEN EXISTS (
            SELECT 1 FROM entry_seals WHERE chain_id = NEW.chain_id AND position = NEW.position
        ) BEGIN
            SELECT RAISE(ABORT, 'the entry is sealed');
        END"""
    yield """
        CREATE TRIGGER postings_sealed BEFORE INSERT ON postings
        WHEN EXISTS (SELECT 1 FROM journal_entries WHERE entry_number = NEW.entry_number) BEGIN
            SELECT RAISE(ABORT, 'the entry is booked: no posting can be added to it');
        END"""


def _sqlite_changed() -> Iterator[str]:
    """What version 2 had otherwise or not at all."""
    for table, same in (
        ("ledger_decisions", "sequence = NEW.sequence OR event_id = NEW.event_id"),
        (
            "chains",
            "chain_id = NEW.chain_id OR (topic = NEW.topic AND partition = NEW.partition)",
        ),
    ):
        yield f"""
            CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table}
            WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) BEGIN
                SELECT RAISE(ABORT, '{_never_change(table)}');
            END"""
    yield """
        CREATE TRIGGER journal_entries_no_replace BEFORE INSERT ON journal_entries BEGIN
            SELECT RAISE(ABORT, 'the event or its source is booked already')
            WHERE EXISTS (SELECT 1 FROM journal_entries WHERE entry_id = NEW.entry_id)
            OR EXISTS (SELECT 1 FROM journal_entries WHERE entry_number = NEW.entry_number)
            OR EXISTS (
                SELECT 1 FROM journal_entries
                WHERE source_topic = NEW.source_topic
                AND source_partition = NEW.source_partition
                AND source_offset = NEW.source_offset
                AND source_part = NEW.source_part
            );
        END"""
    # Before the insert, an entry number that the database is to choose is not known.
    # The check of balance reads the primary key twice; grouping by currency would sort each time.
    yield """
        CREATE TRIGGER journal_entries_checked AFTER INSERT ON journal_entries BEGIN
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
            SELECT RAISE(ABORT, 'the period is closed: the entry counts under a later day')
            WHERE EXISTS (
                SELECT 1 FROM closed_periods WHERE sealed = 1 AND through_date >=
                CASE NEW.booked_date WHEN '' THEN NEW.business_date ELSE NEW.booked_date END
            );
        END"""


def _functions() -> Iterator[str]:
    """What PostgreSQL's triggers call."""
    yield """
        CREATE OR REPLACE FUNCTION ledger_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION USING ERRCODE = 'restrict_violation',
                MESSAGE = TG_ARGV[0];
        END $$"""
    yield """
        CREATE OR REPLACE FUNCTION ledger_check_entry() RETURNS trigger LANGUAGE plpgsql AS $$
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
    # An entry that was checked has its lines from 1 to the last one it names, and a second line of
    # one number is refused by the key: whatever is added has a higher one. So a line needs one look
    # at its entry, and no count, whoever adds it and whenever the entry was checked.
    yield """
        CREATE OR REPLACE FUNCTION ledger_check_posting() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (
                SELECT 1 FROM journal_entries
                WHERE entry_number = NEW.entry_number AND posting_count < NEW.line
            ) THEN
                RAISE EXCEPTION USING ERRCODE = 'check_violation',
                    MESSAGE = 'the entry has not the postings it names';
            END IF;
            RETURN NULL;
        END $$"""
    # What was sealed while the lock was waited for, or since the transaction began, is seen by a
    # newer snapshot only, and under other levels none is taken.
    yield f"""
        CREATE OR REPLACE FUNCTION ledger_check_period() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
                RAISE EXCEPTION USING ERRCODE = 'invalid_transaction_state',
                    MESSAGE = 'entries are made under READ COMMITTED only';
            END IF;
            PERFORM pg_advisory_xact_lock_shared({ENTRIES_LOCK});
            IF EXISTS (
                SELECT 1 FROM added JOIN closed_periods ON sealed = 1 AND through_date >=
                CASE booked_date WHEN '' THEN business_date ELSE booked_date END
            ) THEN
                RAISE EXCEPTION USING ERRCODE = 'check_violation',
                    MESSAGE = 'the period is closed: the entry counts under a later day';
            END IF;
            RETURN NULL;
        END $$"""


def _postgresql() -> Iterator[str]:
    for table in IMMUTABLE:
        yield f"""
            CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table}
            FOR EACH ROW EXECUTE FUNCTION ledger_refuse_change('{_never_change(table)}')"""
    for table, columns, once in _WRITTEN_ONCE:
        yield f"""
            CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table}
            FOR EACH ROW EXECUTE FUNCTION ledger_refuse_change('{_never_change(table)}')"""
        changed = " OR ".join(f"OLD.{c} IS DISTINCT FROM NEW.{c}" for c in columns)
        yield f"""
            CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table}
            FOR EACH ROW WHEN ({changed} OR OLD.{once} IS DISTINCT FROM {_UNSET[once]})
            EXECUTE FUNCTION ledger_refuse_change('{_never_change(table)}')"""
    for table in (*IMMUTABLE, *(table for table, *_ in _WRITTEN_ONCE)):
        yield f"""
            CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change('{_never_change(table)}')"""
    yield """
        CREATE CONSTRAINT TRIGGER journal_entries_checked AFTER INSERT ON journal_entries
        DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION ledger_check_entry()"""
    # Every booked entry has lines 1 and 2, so one more line is at least the third.
    yield """
        CREATE CONSTRAINT TRIGGER postings_sealed AFTER INSERT ON postings
        DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.line > 2) EXECUTE FUNCTION ledger_check_posting()"""
    yield """
        CREATE TRIGGER journal_entries_in_open_period AFTER INSERT ON journal_entries
        REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION ledger_check_period()"""


def _confine(connection: Connection) -> None:
    """What PostgreSQL's functions name is found in the schema of the ledger's tables, not in one
    that whoever is connected has put before it: temporary tables come first where they are not
    named."""
    if connection.dialect.name != "postgresql":
        return
    schema = connection.exec_driver_sql(
        "SELECT relnamespace::regnamespace::text FROM pg_class "
        "WHERE oid = 'journal_entries'::regclass"
    ).scalar_one()
    for name in _FUNCTIONS:
        connection.exec_driver_sql(
            f"ALTER FUNCTION {name}() SET search_path = pg_catalog, {schema}, pg_temp"
        )


# (table, columns that never change, the column that is written once).
_WRITTEN_ONCE = (
    ("ledger_decisions", _DECIDED, "published_offset"),
    ("closed_periods", _CLOSED, "sealed"),
)
_UNSET = {"published_offset": "NULL", "sealed": "0"}


def _never_change(table: str) -> str:
    what = "book a reversing entry" if table in ("journal_entries", "postings") else "add another"
    return f"{table} are never changed: {what} instead"

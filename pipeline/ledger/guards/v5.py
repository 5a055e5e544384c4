"""Version 5: as version 4, and an entry's postings are read once for its check.

PostgreSQL looks at all rows of a statement together when it has inserted them, no longer at each
one by itself: for that it took most of its time. So

* an entry's postings stand before it, in its own transaction, as on SQLite and as every version has
  written them;
* a posting's account is there (accounts are never changed, so no key has to hold them);
* a posting of line n stands on one of line n - 1, which its transaction sees, and of an entry that
  is booked there are no more than it names. So nobody adds to an entry of another transaction:
  before that is committed its lines are not seen, and then its entry is;
* the first line has its entry at the commit, and the others with it.

The two foreign keys of postings, which asked the same of each row, are in their way.

A period is closed by a decision of that kind only, as it says, and sealed when it is booked.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection

from pipeline.ledger.guards import v4
from pipeline.ledger.guards.v4 import ENTRIES_LOCK

__all__ = ["ENTRIES_LOCK", "bring_forward", "install"]

_UNDECIDED = "closed_periods: nobody decided that the period is closed"
_UNBOOKED = "closed_periods: the close is not booked yet"


def install(connection: Connection) -> None:
    """Create the triggers; the tables are there and none of the triggers is."""
    v4.install(connection)
    bring_forward(connection)


def bring_forward(connection: Connection) -> None:
    """Change what version 4 has into this one."""
    statements = _sqlite() if connection.dialect.name == "sqlite" else _postgresql(connection)
    for statement in statements:
        connection.exec_driver_sql(statement)


def _sqlite() -> Iterator[str]:
    # Where all lines are of one currency, as nearly always, their sum says it.
    yield "DROP TRIGGER journal_entries_checked"
    yield """
        CREATE TRIGGER journal_entries_checked AFTER INSERT ON journal_entries BEGIN
            SELECT CASE
                WHEN lines <> NEW.posting_count OR last_line <> NEW.posting_count
                THEN RAISE(ABORT, 'the entry has not the postings it names')
                WHEN total <> 0 OR (currencies > 1 AND EXISTS (
                    SELECT 1 FROM postings WHERE entry_number = NEW.entry_number
                    GROUP BY currency HAVING sum(amount_minor) <> 0
                ))
                THEN RAISE(ABORT, 'debits and credits of the entry differ')
            END
            FROM (
                SELECT count(*) AS lines, max(line) AS last_line, sum(amount_minor) AS total,
                    1 + (min(currency) <> max(currency)) AS currencies
                FROM postings WHERE entry_number = NEW.entry_number
            );
            SELECT RAISE(ABORT, 'the period is closed: the entry counts under a later day')
            WHERE EXISTS (
                SELECT 1 FROM closed_periods WHERE sealed = 1 AND through_date >=
                CASE NEW.booked_date WHEN '' THEN NEW.business_date ELSE NEW.booked_date END
            );
        END"""
    yield f"""
        CREATE TRIGGER closed_periods_decided BEFORE INSERT ON closed_periods
        WHEN NEW.sealed <> 0 OR NOT EXISTS (
            SELECT 1 FROM ledger_decisions WHERE sequence = NEW.sequence
            AND kind = 'period_close' AND body = NEW.cuts
            AND json_extract(body, '$.through') = NEW.through_date
        ) BEGIN
            SELECT RAISE(ABORT, '{_UNDECIDED}');
        END"""
    yield f"""
        CREATE TRIGGER closed_periods_booked BEFORE UPDATE ON closed_periods
        WHEN NOT EXISTS (
            SELECT 1 FROM ledger_decisions WHERE sequence = NEW.sequence
            AND published_offset IS NOT NULL
        ) BEGIN
            SELECT RAISE(ABORT, '{_UNBOOKED}');
        END"""


def _postgresql(connection: Connection) -> Iterator[str]:
    yield """
        CREATE FUNCTION ledger_check_entries() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            incomplete boolean;
            unbalanced boolean;
        BEGIN
            SELECT bool_or(
                lines IS DISTINCT FROM posting_count OR last_line IS DISTINCT FROM posting_count
            ), bool_or(differs)
            INTO incomplete, unbalanced
            FROM added CROSS JOIN LATERAL (
                SELECT sum(lines) AS lines, max(last_line) AS last_line,
                    bool_or(total <> 0) AS differs
                FROM (
                    SELECT count(*) AS lines, max(line) AS last_line, sum(amount_minor) AS total
                    FROM postings WHERE postings.entry_number = added.entry_number
                    GROUP BY currency
                ) of_currency
            ) of_entry;
            IF incomplete THEN
                RAISE EXCEPTION USING ERRCODE = 'check_violation',
                    MESSAGE = 'the entry has not the postings it names';
            END IF;
            IF unbalanced THEN
                RAISE EXCEPTION USING ERRCODE = 'check_violation',
                    MESSAGE = 'debits and credits of the entry differ';
            END IF;
            RETURN NULL;
        END $$"""
    # The second question is asked after the first, of a newer moment: whoever has seen the lines of
    # another transaction sees its entry.
    yield """
        CREATE FUNCTION ledger_check_postings() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (
                SELECT 1 FROM (SELECT DISTINCT account_id FROM added) a WHERE NOT EXISTS (
                    SELECT 1 FROM accounts WHERE accounts.account_id = a.account_id
                )
            ) THEN
                RAISE EXCEPTION USING ERRCODE = 'foreign_key_violation',
                    MESSAGE = 'foreign key: there is no such account';
            END IF;
            IF EXISTS (
                SELECT 1 FROM added WHERE line > 1 AND NOT EXISTS (
                    SELECT 1 FROM postings
                    WHERE postings.entry_number = added.entry_number
                    AND postings.line = added.line - 1
                )
            ) THEN
                RAISE EXCEPTION USING ERRCODE = 'check_violation',
                    MESSAGE = 'the entry has not the postings it names: the line before is missing';
            END IF;
            IF EXISTS (
                SELECT 1 FROM added WHERE line > 1 AND EXISTS (
                    SELECT 1 FROM journal_entries
                    WHERE journal_entries.entry_number = added.entry_number
                    AND posting_count < added.line
                )
            ) THEN
                RAISE EXCEPTION USING ERRCODE = 'check_violation',
                    MESSAGE = 'the entry has not the postings it names: no posting can be added';
            END IF;
            RETURN NULL;
        END $$"""
    yield """
        CREATE FUNCTION ledger_check_first_line() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NOT EXISTS (
                SELECT 1 FROM journal_entries WHERE entry_number = NEW.entry_number
            ) THEN
                RAISE EXCEPTION USING ERRCODE = 'foreign_key_violation',
                    MESSAGE = 'foreign key: there is no entry of these postings';
            END IF;
            RETURN NULL;
        END $$"""
    yield f"""
        CREATE FUNCTION ledger_check_close() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'UPDATE' THEN
                IF NOT EXISTS (
                    SELECT 1 FROM ledger_decisions WHERE sequence = NEW.sequence
                    AND published_offset IS NOT NULL
                ) THEN
                    RAISE EXCEPTION USING ERRCODE = 'check_violation', MESSAGE = '{_UNBOOKED}';
                END IF;
            ELSIF NEW.sealed <> 0 OR NOT EXISTS (
                SELECT 1 FROM ledger_decisions WHERE sequence = NEW.sequence
                AND kind = 'period_close' AND body = NEW.cuts
                AND body::json ->> 'through' = NEW.through_date
            ) THEN
                RAISE EXCEPTION USING ERRCODE = 'check_violation', MESSAGE = '{_UNDECIDED}';
            END IF;
            RETURN NEW;
        END $$"""
    schema = connection.exec_driver_sql(
        "SELECT relnamespace::regnamespace::text FROM pg_class "
        "WHERE oid = 'journal_entries'::regclass"
    ).scalar_one()
    for name in ("entries", "postings", "first_line", "close"):
        function = f"ALTER FUNCTION ledger_check_{name}() SET"
        # As in version 3: no temporary table stands in for one of the books.
        yield f"{function} search_path = pg_catalog, {schema}, pg_temp"
        # Rows are found by their keys, whatever the planner takes their number for: a plan that was
        # made while there were few is kept. To compile one costs many times what it would save.
        yield f"{function} enable_seqscan = off"
        yield f"{function} jit = off"
    yield "DROP TRIGGER journal_entries_checked ON journal_entries"
    yield "DROP TRIGGER postings_sealed ON postings"
    yield "DROP FUNCTION ledger_check_entry(), ledger_check_posting()"
    yield """
        CREATE TRIGGER journal_entries_checked AFTER INSERT ON journal_entries
        REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION ledger_check_entries()"""
    yield """
        CREATE TRIGGER postings_checked AFTER INSERT ON postings
        REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION ledger_check_postings()"""
    yield """
        CREATE CONSTRAINT TRIGGER postings_of_an_entry AFTER INSERT ON postings
        DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.line = 1) EXECUTE FUNCTION ledger_check_first_line()"""
    yield """
        CREATE TRIGGER closed_periods_decided BEFORE INSERT OR UPDATE ON closed_periods
        FOR EACH ROW EXECUTE FUNCTION ledger_check_close()"""
    yield (
        "ALTER TABLE postings DROP CONSTRAINT postings_entry_number_fkey, "
        "DROP CONSTRAINT postings_account_id_fkey"
    )

"""The ledger on SQLite: all that is demanded of every ledger, and what is special to a file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.entries import Item
from pipeline.ledger.errors import LedgerUnavailable
from pipeline.ledger.journal import Journal, Progress
from pipeline.ledger.queries import entry_count, trial_balance
from pipeline.ledger.seals import seal
from pipeline.ledger.verification import verify_books
from tests.support.ledger import SOURCE, LedgerSuite, entry_of, journal_at
from tests.support.ledger_migrations import MigrationSuite
from tests.support.ledger_rules import RulesSuite, announce
from tests.support.ledger_seals import SealsSuite
from tests.support.ledger_trials import TrialsSuite


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'books' / 'ledger.db'}"


class TestOnSqlite(LedgerSuite):
    pass


class TestRulesOnSqlite(RulesSuite):
    pass


class TestTrialsOnSqlite(TrialsSuite):
    pass


class TestSealsOnSqlite(SealsSuite):
    pass


@pytest.fixture
def other_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'other.db'}"


@pytest.fixture
def folder(tmp_path: Path) -> None:
    """Tables of an earlier version are made past ``open_ledger``, which makes the folder."""
    (tmp_path / "books").mkdir()


@pytest.mark.usefixtures("folder")
class TestMigrationsOnSqlite(MigrationSuite):
    pass


@pytest.fixture
def bare(url: str, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A connection as any tool makes it, to a ledger of one entry: no pragma of ours is set."""
    engine = open_ledger(url)
    journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
    engine.dispose()
    with closing(sqlite3.connect(tmp_path / "books" / "ledger.db", isolation_level=None)) as found:
        assert found.execute("PRAGMA foreign_keys").fetchone() == (0,)
        yield found


@pytest.mark.parametrize(
    "attack",
    [
        "INSERT OR REPLACE INTO postings SELECT entry_number, line, account_id, currency, 9 "
        "FROM postings",
        "REPLACE INTO journal_entries SELECT * FROM journal_entries",
        # In the way by its settlement, by its number, by its source: one at a time.
        "INSERT OR REPLACE INTO journal_entries SELECT 77, entry_id, settlement_id, kind, 'thief', "
        "order_id, payment_id, operation_id, gateway, gateway_reference, business_date, "
        "source_topic, source_partition, 77, 1, 1, 2, 0, '', '' FROM journal_entries",
        "INSERT OR REPLACE INTO journal_entries SELECT entry_number, 'settlement:x', 'x', kind, "
        "'thief', order_id, payment_id, operation_id, gateway, gateway_reference, business_date, "
        "source_topic, source_partition, 77, 1, 1, 2, 0, '', '' FROM journal_entries",
        "INSERT OR REPLACE INTO journal_entries SELECT 77, 'settlement:x', 'x', kind, 'thief', "
        "order_id, payment_id, operation_id, gateway, gateway_reference, business_date, "
        "source_topic, source_partition, source_offset, 1, 1, 2, 0, '', '' FROM journal_entries",
        "INSERT OR REPLACE INTO accounts SELECT account_id, 'thief' FROM accounts",
        "INSERT OR IGNORE INTO postings VALUES (1, 3, 1, 'GBP', 5)",
        "UPDATE OR REPLACE postings SET line = 1",
        "INSERT INTO postings VALUES (77, 1, 1, 'GBP', 0.5)",
        "DELETE FROM journal_entries",
        "DELETE FROM postings",
    ],
)
def test_no_connection_can_change_what_is_booked(bare: sqlite3.Connection, attack: str) -> None:
    """A tool without our pragmas is refused too, INSERT OR REPLACE included."""
    before = _books(bare)
    with pytest.raises(sqlite3.IntegrityError):
        bare.execute(attack)
    assert _books(bare) == before


def test_an_entry_whose_number_the_database_chooses_is_judged_by_its_own_lines(
    bare: sqlite3.Connection,
) -> None:
    """Before the insert such a number reads as -1, and lines of that number may balance."""
    bare.execute("BEGIN")
    for number, amounts in ((2, (1000, -1)), (-1, (5, -5))):
        for line, amount in enumerate(amounts, 1):
            bare.execute(f"INSERT INTO postings VALUES ({number}, {line}, {line}, 'GBP', {amount})")
    columns = [row[1] for row in bare.execute("PRAGMA table_info(journal_entries)")]
    unnumbered = ", ".join(columns[1:])
    copied = unnumbered.replace("entry_id", "'hand:1'").replace("source_offset", "7")
    with pytest.raises(sqlite3.IntegrityError, match="debits and credits of the entry differ"):
        bare.execute(
            f"INSERT INTO journal_entries ({unnumbered}) "
            f"SELECT {copied.replace('settlement_id', repr(''))} FROM journal_entries"
        )


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param("ledger_decisions SELECT 2, event_id, kind, 'mallory', reason, 1, body, "
                     "NULL, NULL, '' FROM ledger_decisions", id="a decision by its event"),
        pytest.param("ledger_decisions SELECT sequence, 'other', kind, 'mallory', reason, 1, body, "
                     "NULL, NULL, '' FROM ledger_decisions", id="a decision by its number"),
        pytest.param("chains VALUES (1, 'elsewhere', 0)", id="a chain by its number"),
        pytest.param("chains VALUES (7, 'settlements', 0)", id="a chain by its place"),
    ],
)  # fmt: skip
def test_a_row_is_not_replaced_through_any_of_its_keys(
    bare: sqlite3.Connection, url: str, attack: str
) -> None:
    """The row in the way would go without a trigger."""
    engine = open_ledger(url)
    announce(engine, from_ms=1_700_000_000_501)
    seal(engine)
    engine.dispose()
    asked = "SELECT * FROM ledger_decisions", "SELECT * FROM chains"
    before = [bare.execute(each).fetchall() for each in asked]
    with pytest.raises(sqlite3.IntegrityError, match="never changed"):
        bare.execute(f"INSERT OR REPLACE INTO {attack}")
    assert [bare.execute(each).fetchall() for each in asked] == before


def test_lines_left_by_a_careless_tool_reach_no_entry(bare: sqlite3.Connection, url: str) -> None:
    """Postings without an entry, from a connection without foreign keys, count nowhere."""
    bare.execute("INSERT INTO postings VALUES (2, 1, 1, 'GBP', 4)")
    engine = open_ledger(url)
    Journal(engine, SOURCE).post([Item(0, 1, entry_of(2))], {0: Progress(1, 2)})
    with reading(engine) as connection:
        assert entry_count(connection) == 2
        assert [t.difference_minor for t in trial_balance(connection)] == [0]
    engine.dispose()


def test_a_line_numbered_from_0_is_named(bare: sqlite3.Connection, url: str) -> None:
    """The lines are as they were sealed and in their order, but what looks for the first of an
    entry, as the tiers of a month do, does not find it."""
    engine = open_ledger(url)
    seal(engine)
    bare.execute("PRAGMA ignore_check_constraints = ON")
    ((guard,),) = bare.execute("SELECT sql FROM sqlite_master WHERE name = 'postings_no_update'")
    bare.execute("DROP TRIGGER postings_no_update")
    bare.execute("UPDATE postings SET line = 0 WHERE line = 1")
    bare.execute(guard)
    with reading(engine) as connection:
        damages = verify_books(connection).damages
    assert [(damage.name, damage.place, damage.detail) for damage in damages] == [
        ("file_damaged", "file", "CHECK constraint failed in postings"),
        ("entry_unbalanced", "settlements[0]@0",
         f"{entry_of(1).entry_id} has not the lines it names"),
    ]  # fmt: skip
    engine.dispose()


def test_a_locked_database_is_unavailable_not_broken(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program's long transaction makes the sink wait; afterwards the batch is booked."""
    monkeypatch.setattr("pipeline.ledger.database.BUSY_TIMEOUT_MS", 50)
    engine = open_ledger(url)
    journal = journal_at(engine)
    with closing(sqlite3.connect(tmp_path / "books" / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable, match="locked"):
            journal.post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        assert journal.stored_offset(0) == 0
        other.execute("ROLLBACK")
    assert journal.post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)}).posted == 1
    engine.dispose()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("nonsense", "not a database URL"),
        ("sqlite://", "needs a file"),
        ("mysql://host/name", "does not know 'mysql'"),
        ("sqlite:////dev/null/ledger.db", "cannot be made"),
    ],
)
def test_a_url_that_cannot_be_opened_is_said_so(bad: str, said: str) -> None:
    """One sentence instead of a traceback."""
    with pytest.raises(UserError, match=said):
        open_ledger(bad)


def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    """A wrong path to some other file is named, and the file is left alone."""
    path = tmp_path / "letter.txt"
    path.write_text("dear auditor, " * 100)
    with pytest.raises(UserError, match="cannot be used"):
        open_ledger(f"sqlite:///{path}")
    assert path.read_text().startswith("dear auditor")


def _books(connection: sqlite3.Connection) -> list[object]:
    return [
        connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
        for table in ("journal_entries", "postings", "accounts")
    ]

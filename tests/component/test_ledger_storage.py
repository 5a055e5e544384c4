"""A ledger's file with single bytes changed: what `paystream ledger verify` says of it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from pipeline.cli import app
from pipeline.ledger.damages import Damage
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.entries import Item
from pipeline.ledger.journal import Journal, Progress
from pipeline.ledger.seals import seal
from pipeline.ledger.storage import storage_damages
from pipeline.ledger.verification import verify_books
from tests.support.cli_runner import CliRunner
from tests.support.ledger import SOURCE, entry_of, journal_at
from tests.support.ledger_rules import announce, book_all, close

ENTRIES = 30
# One in the middle of a leaf of each index.
CHANGED = entry_of(7)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Sealed books of some captures, all of it in the one file."""
    path = tmp_path / "ledger.sqlite"
    engine = open_ledger(f"sqlite:///{path}")
    items = [Item(0, n, entry_of(n)) for n in range(ENTRIES)]
    journal_at(engine).post(items, {0: Progress(0, ENTRIES)})
    seal(engine)
    engine.dispose()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
    return path


@pytest.fixture
def engine(file: Path) -> Iterator[Engine]:
    made = open_ledger(f"sqlite:///{file}")
    yield made
    made.dispose()


def flip(file: Path, of: str, found: str, *, bit: int = 1) -> None:
    """One bit of the last byte of a text, on the pages of a table or an index."""
    with closing(sqlite3.connect(file)) as db:
        ((size,),) = db.execute("PRAGMA page_size").fetchall()
        pages = db.execute("SELECT pageno FROM dbstat WHERE name = ?", (of,)).fetchall()
    held = bytearray(file.read_bytes())
    for (page,) in pages:
        start = (page - 1) * size
        at = held.find(found.encode(), start, start + size)
        if at >= 0:
            held[at + len(found) - 1] ^= bit
            file.write_bytes(held)
            return
    raise AssertionError(f"{found} is not in {of}")


def found(engine: Engine) -> set[tuple[str, str]]:
    with reading(engine) as connection:
        return {(damage.name, damage.place) for damage in verify_books(connection).damages}


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("entry_settled_payment", CHANGED.payment_id),
        ("sqlite_autoindex_journal_entries_2", CHANGED.entry_id),
    ],
)
def test_a_changed_byte_of_an_index_is_named(file: Path, index: str, said: str) -> None:
    """All rows are as they were sealed, and what is looked up by the index is not found."""
    flip(file, index, said)
    engine = open_ledger(f"sqlite:///{file}")
    assert found(engine) == {("index_differs", f"index {index}")}
    with reading(engine) as connection:
        told = [damage.detail for damage in verify_books(connection).damages]
    assert any(f"missing from index {index}" in each for each in told), told
    engine.dispose()


def test_an_entry_that_was_booked_again_past_such_an_index_is_named(file: Path) -> None:
    """The key that would have refused it did not find the first one."""
    flip(file, "sqlite_autoindex_journal_entries_2", CHANGED.entry_id)
    engine = open_ledger(f"sqlite:///{file}")
    done = Journal(engine, SOURCE).post([Item(0, ENTRIES, CHANGED)],
                                        {0: Progress(ENTRIES, ENTRIES + 1)})  # fmt: skip
    assert done.posted == 1
    seal(engine)
    with reading(engine) as connection:
        numbers = connection.execute(
            text("SELECT entry_number FROM journal_entries NOT INDEXED "
                 "WHERE entry_id = :id ORDER BY 1"), {"id": CHANGED.entry_id},
        ).scalars()  # fmt: skip
        place = f"journal_entries {', '.join(map(str, numbers))}"
        (doubled,) = [d for d in storage_damages(connection) if d.name == "entry_doubled"]
    assert (doubled.place, doubled.detail) == (place, f"{CHANGED.entry_id} is booked 2 times")
    assert ("entry_doubled", place) in found(engine)
    engine.dispose()


def test_no_index_answers_whether_an_entry_is_there_twice(engine: Engine) -> None:
    """Else the one that is spoilt would be asked."""
    plans = []
    with reading(engine) as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.set_trace_callback(plans.append)
        list(storage_damages(connection))
        raw.set_trace_callback(None)
        asked = [each for each in plans if "GROUP BY" in each]
        assert len(asked) == 2
        for each in asked:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {each}").all()
            assert not [row for row in plan if "INDEX" in row[3]], plan


TEXTS = [
    ("accounts", "name"),
    ("alembic_version", "version_num"),
    ("balances", "currency"),
    ("chains", "topic"),
    ("closed_periods", "cuts"),
    ("closed_periods", "through_date"),
    ("consumer_offsets", "cluster_id"),
    ("consumer_offsets", "checksum"),
    ("journal_entries", "gateway_reference"),
    ("journal_entries", "source_topic"),
    ("ledger_decisions", "event_id"),
    ("ledger_decisions", "reason"),
    ("ledger_decisions", "place_checksum"),
    ("postings", "currency"),
]


@pytest.mark.parametrize(("table", "column"), TEXTS)
def test_bytes_that_are_no_text_are_named(decided: Path, table: str, column: str) -> None:
    """A byte whose highest bit has changed is no UTF-8: its row is named, and by its hash too."""
    row = spoil(decided, table, column, f"CAST(x'ff' || substr({column}, 2) AS TEXT)")
    damages = looked_at(decided)
    places = {(damage.name, damage.place) for damage in damages}
    assert ("row_unreadable", row.encode("utf-8", "backslashreplace").decode()) in places
    assert {name for name, _ in places} - {"row_unreadable"}
    for damage in damages:
        assert (damage.place + damage.detail).encode()


@pytest.mark.parametrize(
    ("table", "column", "value", "others"),
    [
        ("ledger_decisions", "reason", "x'41'", {"decision_changed"}),
        ("ledger_decisions", "reason", "NULL", {"decision_changed"}),
        ("ledger_decisions", "decided_at_ms", "'soon'", {"decision_changed"}),
        ("journal_entries", "source_offset", "'x'", {"entry_missing"}),
        ("journal_entries", "kind", "x'41'", {"entry_changed"}),
        ("consumer_offsets", "next_offset", "1.5", {"offset_changed"}),
        ("entry_seals", "hash", "'x'", {"not_judged"}),
        ("postings", "amount_minor", "'x'", {"entry_changed"}),
    ],
)
def test_a_value_of_another_type_is_named(
    decided: Path, table: str, column: str, value: str, others: set[str]
) -> None:
    """As a changed byte in the head of a row makes it."""
    with closing(sqlite3.connect(decided)) as db:
        db.execute("PRAGMA writable_schema = ON")
        ((strict,),) = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,))
        lax = re.sub(r",?\s*\bSTRICT\b,?", "", strict)
        if value == "NULL":
            lax = lax.replace(" NOT NULL", "")
        db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (lax, table))
        db.commit()
    row = spoil(decided, table, column, value)
    with closing(sqlite3.connect(decided)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (strict, table))
        db.commit()
    places = {(damage.name, damage.place) for damage in looked_at(decided)}
    assert ("row_unreadable", row) in places
    assert others <= {name for name, _ in places}, places


def test_what_is_no_text_is_printed(decided: Path) -> None:
    """By escapes, in words and as JSON; the exit code says that it is damaged."""
    spoil(decided, "journal_entries", "source_topic", "CAST(x'ff' || source_topic AS TEXT)")
    spoil(decided, "ledger_decisions", "reason", "CAST(x'ff41' AS TEXT)")
    for more in ((), ("--json",)):
        done = CliRunner().invoke(
            app, ["ledger", "verify", "--ledger-url", f"sqlite:///{decided}", *more]
        )
        assert done.exit_code == 1, done.output
        assert "row_unreadable" in done.output
        assert "udcff" in done.output


def test_an_error_that_no_row_is_to_blame_for_stays_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of the program is not told of as one of the books."""

    def mistaken(_connection: object) -> list[object]:
        raise TypeError("a mistake")

    monkeypatch.setattr("pipeline.ledger.verification.drifted_balances", mistaken)
    with reading(engine) as connection, pytest.raises(TypeError, match="a mistake"):
        verify_books(connection)


@pytest.fixture
def decided(file: Path) -> Path:
    """With a fee schedule and a close besides."""
    engine = open_ledger(f"sqlite:///{file}")
    announce(engine, {"plans": []}, from_ms=1_900_000_000_000)
    close(engine, "2009-01-01")
    book_all(engine)
    engine.dispose()
    assert looked_at(file) == ()
    return file


def spoil(file: Path, table: str, column: str, value: str) -> str:
    """Give the first row another value, past its guards; its place."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        guards = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in guards:
            db.execute(f"DROP TRIGGER {name}")
        keys = [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[5]]
        key = ", ".join(keys)
        first = db.execute(f"SELECT {key} FROM {table} NOT INDEXED LIMIT 1").fetchone()
        where = " AND ".join(f"{each} = ?" for each in keys)
        db.execute(f"UPDATE {table} SET {column} = {value} WHERE {where}", first)
        for _, statement in guards:
            db.execute(statement)
        if column in keys:
            # Found by what it has become.
            rows = db.execute(f"SELECT {key} FROM {table}").fetchall()
            first = next(row for row in rows if not "".join(map(str, row)).isascii())
    return f"{table} {', '.join(map(str, first))}"


def looked_at(file: Path) -> tuple[Damage, ...]:
    engine = open_ledger(f"sqlite:///{file}")
    try:
        with reading(engine) as connection:
            return verify_books(connection).damages
    finally:
        engine.dispose()

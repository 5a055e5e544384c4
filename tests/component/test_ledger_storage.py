"""A ledger's file with single bytes changed: what `paystream ledger verify` says of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.entries import Item
from pipeline.ledger.journal import Journal, Progress
from pipeline.ledger.seals import seal
from pipeline.ledger.storage import storage_damages
from pipeline.ledger.verification import verify_books
from tests.support.ledger import SOURCE, entry_of, journal_at

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

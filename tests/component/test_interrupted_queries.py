"""Ctrl-C while a query of SQLite runs: heard at once, and only by what was asked to hear it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.interrupted_queries import InterruptibleConnection, heard_in_queries
from pipeline.ledger.database import open_ledger
from tests.support.cli import Cli
from tests.support.endless_books import endless, wait_until_asked

# Two seconds, as a busy machine has them; without being heard it takes for ever.
AT_ONCE_S = 20.0
ENDLESS = (
    "SELECT begun() UNION ALL SELECT i FROM "
    "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n) WHERE i < 0"
)
READS_FOR_EVER = """
import sys
from pipeline.audit.ledger_copy import LedgerReader
from pipeline.interrupted_queries import heard_in_queries
with heard_in_queries():
    LedgerReader(sys.argv[1]).read()
"""


@pytest.fixture(autouse=True)
def _interrupts_heard() -> Iterator[None]:
    """Whatever this process began with: a shell has its background jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def books(tmp_path: Path) -> Path:
    file = tmp_path / "ledger.sqlite"
    open_ledger(f"sqlite:///{file}").dispose()
    return file


def test_a_signal_ends_the_query_that_runs(tmp_path: Path) -> None:
    """What SQLite makes of it is a KeyboardInterrupt to everybody else, and the connection is as
    good as before."""
    with closing(sqlite3.connect(tmp_path / "db", factory=InterruptibleConnection)) as db:
        db.create_function("begun", 0, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt), heard_in_queries():
            db.execute(ENDLESS).fetchall()
        assert db.execute("SELECT 1").fetchone() == (1,)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1


def test_what_is_made_of_the_querys_error_stays_an_interrupt(tmp_path: Path) -> None:
    """Whoever turns errors of databases into sentences would tell of a ledger that cannot be
    read."""
    with closing(sqlite3.connect(tmp_path / "db", factory=InterruptibleConnection)) as db:
        db.create_function("begun", 0, lambda: os.kill(os.getpid(), signal.SIGINT))

        def read() -> None:
            try:
                db.execute(ENDLESS).fetchall()
            except BaseException as error:
                raise RuntimeError("it cannot be read") from error

        with pytest.raises(KeyboardInterrupt), heard_in_queries():
            read()


def test_what_was_put_in_order_after_it_is_not_ended(tmp_path: Path) -> None:
    """From when Python has heard of it, queries are those of leaving in good order."""
    with closing(sqlite3.connect(tmp_path / "db", factory=InterruptibleConnection)) as db:
        db.create_function("begun", 0, lambda: os.kill(os.getpid(), signal.SIGINT))
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000)"

        def read() -> None:
            try:
                db.execute(ENDLESS).fetchall()
            finally:
                assert db.execute(f"{numbers} SELECT count(*) FROM n").fetchone() == (1_000_000,)

        with pytest.raises(KeyboardInterrupt), heard_in_queries():
            read()


def test_one_within_another_and_one_of_another_thread_hear_nothing_themselves() -> None:
    """The outer one has its handlers to the end; another thread has none."""
    with heard_in_queries():
        outer = signal.getsignal(signal.SIGINT)
        with heard_in_queries():
            assert signal.getsignal(signal.SIGINT) is outer
        assert signal.getsignal(signal.SIGINT) is outer
        entered: list[object] = []

        def elsewhere() -> None:
            with heard_in_queries():
                entered.append(signal.getsignal(signal.SIGINT))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert entered == [outer]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_without_a_signal_stays_what_it_is() -> None:
    with pytest.raises(sqlite3.OperationalError), heard_in_queries():
        raise sqlite3.OperationalError("locked")


def test_ctrl_c_ends_the_verification_of_large_books(books: Path, tmp_path: Path) -> None:
    """While one query of it runs; nothing is left, and the books are as they were."""
    cli = Cli(tmp_path / "cli")
    words = ("ledger", "verify", "--ledger-url", f"sqlite:///{books}")
    with endless(books, "closed_periods"), cli.start(*words) as terminal:
        wait_until_asked(books, terminal.process)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ended(AT_ONCE_S) == 130
        assert terminal.said == "paystream: interrupted\n"
    assert cli.temporary_files() == []
    assert cli.run(*words).code == 0


def test_ctrl_c_ends_the_audits_reading_of_large_books(books: Path) -> None:
    """The audit has connections of its own."""
    with (
        endless(books, "consumer_offsets"),
        subprocess.Popen(
            [sys.executable, "-c", READS_FOR_EVER, f"sqlite:///{books}"],
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            wait_until_asked(books, process)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=AT_ONCE_S)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in said

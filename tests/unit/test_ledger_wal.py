"""A new ledger's file, whose mode is changed while another process does the same."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from pipeline.ledger.database import use_wal


def test_a_file_that_is_just_locked_is_waited_for(tmp_path: Path) -> None:
    """SQLite does not wait for it by itself: workers that start at once would be refused."""
    path = tmp_path / "ledger.db"
    with (
        closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as first,
        closing(sqlite3.connect(path, isolation_level=None, timeout=0.0)) as second,
    ):
        first.execute("BEGIN EXCLUSIVE")
        freed = threading.Timer(0.1, first.rollback)
        freed.start()
        use_wal(second)
        freed.join()
        assert second.execute("PRAGMA journal_mode").fetchone() == ("wal",)

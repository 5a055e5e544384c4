"""Rows that go by themselves: RocksDB counts their age by a clock that nobody can move."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.runtime.table_store import Checkpoint, RocksTableStore

pytestmark = pytest.mark.integration

NOW_MS = 1_800_000_000_000


def test_rows_of_an_expiring_table_go_by_themselves(tmp_path: Path) -> None:
    """A store whose rows are worth keeping for a second drops the older ones when it compacts."""
    store = RocksTableStore(tmp_path / "table", keep_s=1)
    checkpoint = Checkpoint("c", "t", 1, NOW_MS)
    store.write(0, [(b"old", b"1")], checkpoint)
    assert store.get(0, b"old") == b"1"
    store.flush()
    time.sleep(2.1)
    store.write(0, [(b"new", b"2")], checkpoint)
    store.flush()
    store._db.compact_range(None, None)
    assert (store.get(0, b"old"), store.get(0, b"new")) == (None, b"2")
    assert store.checkpoint(0) == checkpoint
    store.wipe(0)
    assert store.get(0, b"new") is None
    store.close()

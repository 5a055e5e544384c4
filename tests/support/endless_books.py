"""Books of which one table never ends: whoever asks for all of it waits for ever.

What a query of large books is for minutes, and no machine is too fast for it.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.support.cli import PATIENCE_S
from tests.support.waiting import wait_until

# A process that has worked so long within one query stands in it.
_WORKED_S = 0.3


@contextmanager
def endless(file: Path, table: str) -> Iterator[None]:
    """Meanwhile a table of these books has no last row to look at."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        columns = [name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")]
        values = ", ".join(f"i AS {name}" for name in columns)
        db.execute(f"ALTER TABLE {table} RENAME TO {table}_kept")
        db.execute(
            f"CREATE VIEW {table} AS WITH RECURSIVE n(i) AS "
            f"(SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT {values} FROM n WHERE i < 0"
        )
    yield
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute(f"DROP VIEW {table}")
        db.execute(f"ALTER TABLE {table}_kept RENAME TO {table}")


def wait_until_asked(file: Path, process: subprocess.Popen[str]) -> None:
    """Until a process reads these books, and has worked for a while since."""
    wait_until(lambda: process.poll() is not None or _is_read(file), PATIENCE_S, "somebody reads")
    assert process.poll() is None, "it has ended by itself"
    begun_s = _worked_s(process.pid)
    wait_until(lambda: _worked_s(process.pid) > begun_s + _WORKED_S, PATIENCE_S, "it is asked")


def _is_read(file: Path) -> bool:
    """Whether a reader holds what was written since it began."""
    with closing(sqlite3.connect(file, isolation_level=None, timeout=0)) as db:
        try:
            db.execute("PRAGMA user_version = 0")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            # It writes at this moment.
            return False
        busy, _, _ = db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        return bool(busy)


def _worked_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

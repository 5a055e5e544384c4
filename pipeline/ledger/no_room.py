"""A disk that is full, or that cannot be written to, in a sentence for whoever runs a command."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError

from pipeline.errors import UserError

# The first byte of what SQLite says: of the ledger's own files, and of those it sorts in.
_SQLITE: Final = frozenset(
    {
        sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY,
    }
)  # fmt: skip
# PostgreSQL's class of a full disk, a limit of temporary files, too little memory.
_POSTGRESQL: Final = "53"


@contextmanager
def told_where_no_room() -> Iterator[None]:
    """UserError where the database had no room; for commands that may be run again whatever they
    had done. The transaction it happened in has changed nothing."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if not _is_no_room(cause):
            raise
        (said, *_) = str(cause).strip().splitlines() or [type(cause).__name__]
        raise UserError(
            f"the ledger's database has no room for what it writes or sorts ({said}): make some "
            "where the ledger lies and where temporary files go (TMPDIR), and run it again, which "
            "is safe."
        ) from error


def _is_no_room(cause: BaseException | None) -> bool:
    if isinstance(cause, sqlite3.Error):
        # One that the driver itself raises has no code.
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE
    return str(getattr(cause, "sqlstate", None) or "").startswith(_POSTGRESQL)

"""Rows of SQLite's file that no program can read as what they should be.

A changed bit makes bytes that are no UTF-8 of a text, which Python's driver refuses, or a value of
another type than its column has. Here such texts are read with their bytes kept (as ``surrogates``
of Python), so that they differ from what was hashed and the looking goes on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from pipeline.ledger.damages import Damage

# What reading such rows ends in, beside the driver's own errors.
_WRONG_VALUES: Final = (
    TypeError, ValueError, LookupError, AttributeError, ArithmeticError, MemoryError,
)  # fmt: skip
_NO_TEXT: Final = "Could not decode to UTF-8"
_TYPES: Final = {"INTEGER": int, "TEXT": str, "BLOB": bytes}


def is_of_bad_rows(error: Exception) -> bool:
    """Whether an error may come of rows or pages that are not as they were written."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, _WRONG_VALUES)
    cause = error.orig
    # One that the driver itself raises has no code.
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    return code == sqlite3.SQLITE_CORRUPT or (not code and _NO_TEXT in str(cause))


@contextmanager
def bytes_kept(connection: Connection) -> Iterator[None]:
    """Meanwhile texts that are none are read all the same. Too slow for every look."""
    driver: Any = connection.connection.driver_connection
    before = driver.text_factory
    driver.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    try:
        yield
    finally:
        driver.text_factory = before


def printable(said: str) -> str:
    """A text with such bytes shown as escapes."""
    return said.encode("utf-8", "backslashreplace").decode()


def unreadable_rows(connection: Connection) -> Iterator[Damage]:
    """Every row of every table, by its key. Within ``bytes_kept``."""
    run = connection.exec_driver_sql
    tables = run(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' "
        "ORDER BY name"
    ).all()
    for (table,) in tables:
        columns = run(f"PRAGMA table_info({table})").all()
        keys = [at for at, column in enumerate(columns) if column.pk]
        types = [_TYPES.get(column.type, str) for column in columns]
        for row in run(f"SELECT * FROM {table} NOT INDEXED"):
            for column, wanted, value in zip(columns, types, row, strict=True):
                why = _why(value, wanted, bool(column.notnull))
                if why:
                    key = ", ".join(str(row[at]) for at in keys)
                    yield Damage("row_unreadable", f"{table} {key}", f"{column.name} {why}")


def _why(value: object, wanted: type, never_null: bool) -> str:
    if value is None:
        return "is nothing" if never_null else ""
    if not isinstance(value, wanted):
        return f"is of another type: {value!r}"
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"is no UTF-8: {value}"
    return ""

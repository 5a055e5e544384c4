"""Whether the database refuses what a decision posts, or is in trouble itself."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError

from pipeline.domain.said_text import storable

# PostgreSQL's class of what is larger than it takes, a name in an index for one.
_LIMIT_EXCEEDED: Final = "54"


def is_too_large(error: Exception) -> bool:
    """Of an error that otherwise is the server's trouble."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(cause, "sqlstate", None) or "").startswith(_LIMIT_EXCEEDED)


def refuses_content(error: Exception, driver: Any) -> bool:
    """Whether the same would be refused however often it is tried. ``driver``: whose own errors are
    raised where entries are written past SQLAlchemy."""
    if isinstance(error, (OperationalError, driver.OperationalError)):
        return is_too_large(error)
    refused = (IntegrityError, DataError, driver.IntegrityError, driver.DataError, OverflowError)
    return isinstance(error, refused)


def in_a_line(error: Exception) -> str:
    """What it says, without the statement and its values."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return next(iter(storable(str(cause)).strip().splitlines()), type(cause).__name__)

"""Bringing a ledger of an earlier version forward: the versions' scripts, run by alembic.

A new ledger is made from ``tables`` at once; a test holds both ways equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect

# What was there before migrations were: its tables name no revision.
FIRST = "0001"


def migrate(connection: Connection, revision: str = "head") -> None:
    """Run the scripts up to a revision, in the connection's transaction.

    On SQLite the connection must have been opened with foreign keys off, since tables are made
    anew; the caller checks them afterwards.
    """
    from alembic import command

    command.upgrade(_config(connection), revision)


def stamp(connection: Connection) -> None:
    """Name the revision of a ledger of version 1, which does not say it."""
    from alembic import command

    if not inspect(connection).has_table("alembic_version"):
        command.stamp(_config(connection), FIRST)


def _config(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    # How paths in it are told apart; alembic warns without.
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config

"""Guards that should be there: of each that is gone, off or another one, what makes it anew.

What should be there is what ``install`` makes: on SQLite in a database of its own in memory, on
PostgreSQL taken from what it would run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, cast

from sqlalchemy import Connection, create_engine, text

from pipeline.ledger.guards.v6 import install
from pipeline.ledger.tables import metadata

_TRIGGER: Final = re.compile(
    r"CREATE (?:CONSTRAINT )?TRIGGER (\w+) .*? ON (\w+) .*EXECUTE FUNCTION (\w+)\("
)
_GONE: Final = re.compile(r"DROP TRIGGER (\w+) ON (\w+)")
_FUNCTION: Final = re.compile(r"CREATE (?:OR REPLACE )?FUNCTION (\w+)\(\)(.*)")
_SETTING: Final = re.compile(r"ALTER FUNCTION (\w+)\(\) SET")
_BODY: Final = re.compile(r"\$\$(.*)\$\$")
# A trigger that is off, or on for replication alone.
_OFF: Final = frozenset("DR")


class Missing(NamedTuple):
    """``anew``: the statements, on one line."""

    table: str
    name: str
    why: str
    anew: str


def missing_guards(connection: Connection) -> Iterator[Missing]:
    """By table and name; ``why`` is "not there", "off" or "another one"."""
    if connection.dialect.name == "sqlite":
        return _of_sqlite(connection)
    return _of_postgresql(connection)


def _of_sqlite(connection: Connection) -> Iterator[Missing]:
    there = _triggers(connection)
    for (table, name), statement in sorted(_wanted_of_sqlite().items()):
        found = there.get((table, name))
        if found is None:
            yield Missing(table, name, "not there", f"{statement};")
        elif found != statement:
            yield Missing(table, name, "another one", f"DROP TRIGGER {name}; {statement};")


@cache
def _wanted_of_sqlite() -> Mapping[tuple[str, str], str]:
    engine = create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            metadata.create_all(connection)
            install(connection)
            return _triggers(connection)
    finally:
        engine.dispose()


def _triggers(connection: Connection) -> dict[tuple[str, str], str]:
    rows = connection.exec_driver_sql(
        "SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'trigger'"
    ).all()
    # Where a table was renamed, and back, SQLite has put its name into quotes.
    return {(table, name): _one_line(statement).replace('"', "") for table, name, statement in rows}


class _Listing:
    """Stands where a connection to PostgreSQL does and keeps what it is told to run."""

    dialect = SimpleNamespace(name="postgresql")

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self.statements: list[str] = []

    def exec_driver_sql(self, statement: str) -> Any:
        self.statements.append(_one_line(statement))
        # Which schema the tables are in is the one thing that is asked.
        return SimpleNamespace(scalar_one=lambda: self._schema)


def _of_postgresql(connection: Connection) -> Iterator[Missing]:
    schema = connection.execute(
        text("SELECT relnamespace::regnamespace::text FROM pg_class "
             "WHERE oid = 'journal_entries'::regclass")
    ).scalar_one()  # fmt: skip
    triggers: dict[tuple[str, str], tuple[str, str]] = {}
    functions: dict[str, str] = {}
    settings: dict[str, list[str]] = {}
    listing = _Listing(schema)
    install(cast(Connection, listing))
    for statement in listing.statements:
        if found := _TRIGGER.match(statement):
            triggers[found[2], found[1]] = found[3], statement
        elif found := _GONE.match(statement):
            del triggers[found[2], found[1]]
        elif found := _FUNCTION.match(statement):
            functions[found[1]] = f"CREATE OR REPLACE FUNCTION {found[1]}(){found[2]}"
        elif found := _SETTING.match(statement):
            settings.setdefault(found[1], []).append(statement)
    there = {
        (row.table_name, row.name): row
        for row in connection.execute(
            text(
                "SELECT c.relname AS table_name, t.tgname AS name, t.tgenabled::text AS enabled, "
                "p.proname AS function, p.prosrc AS body FROM pg_trigger t "
                "JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid "
                "WHERE NOT t.tgisinternal AND c.relnamespace = to_regnamespace(:schema)"
            ),
            {"schema": schema},
        )
    }
    for (table, name), (function, statement) in sorted(triggers.items()):
        row = there.get((table, name))
        made = [functions[function], *settings.get(function, ())]
        if row is None:
            # Its function may be gone as well.
            yield Missing(table, name, "not there", _run([*made, statement]))
        elif row.function != function:
            drop = f"DROP TRIGGER {name} ON {table}"
            yield Missing(table, name, "another one", _run([*made, drop, statement]))
        elif _one_line(row.body) != _body(functions[function]):
            yield Missing(table, name, "another one", _run(made))
        if row is not None and row.enabled in _OFF:
            yield Missing(table, name, "off", f"ALTER TABLE {table} ENABLE TRIGGER {name};")


def _body(statement: str) -> str:
    found = _BODY.search(statement)
    return found[1].strip() if found else ""


def _run(statements: list[str]) -> str:
    return " ".join(f"{statement};" for statement in statements)


def _one_line(statement: str) -> str:
    return " ".join(statement.split())

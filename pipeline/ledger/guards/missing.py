"""Guards that should be there: of each that is gone, off or another one, what makes it anew.

What should be there is what ``install`` makes: on SQLite in a database of its own in memory, on
PostgreSQL taken from what it would run, in the words in which PostgreSQL gives a trigger back.
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
    r"(CREATE (?:CONSTRAINT )?TRIGGER (?P<name>\w+) \w+) (?P<events>.*?) ON (?P<table>\w+) "
    r"(?P<how>.*?)(?: WHEN \((?P<when>.*)\))? (EXECUTE FUNCTION (?P<function>\w+)\(.*)"
)
_EVENTS: Final = ("INSERT", "DELETE", "UPDATE", "TRUNCATE")
# Where a function is named: with its schema, if that is not in the path.
_CALL: Final = re.compile(r"EXECUTE FUNCTION \S*?(\w+)\(")
_GONE: Final = re.compile(r"DROP TRIGGER (\w+) ON (\w+)")
_FUNCTION: Final = re.compile(r"CREATE (?:OR REPLACE )?FUNCTION (\w+)\(\)(.*)")
_SETTING: Final = re.compile(r"ALTER FUNCTION (\w+)\(\) SET (\w+) = (.*)")
_BODY: Final = re.compile(r"\$\$(.*)\$\$")
_BLANKS: Final = re.compile(r"[ \t\n\r\f]+")
_QUOTED: Final = re.compile(f'"({"|".join(metadata.tables)})"')
# A trigger that is off, or on for replication alone.
_OFF: Final = frozenset("DR")


class Missing(NamedTuple):
    """``anew``: the statements that put it right, on one line."""

    table: str
    name: str
    why: str
    anew: str


def missing_guards(connection: Connection) -> Iterator[Missing]:
    """By table and name; ``why`` is "not there", "off", "another one" or, on SQLite, "none of the
    ledger's": there what was made last is run first, and may end a statement before the guards."""
    if connection.dialect.name == "sqlite":
        return _of_sqlite(connection)
    return _of_postgresql(connection)


def _of_sqlite(connection: Connection) -> Iterator[Missing]:
    there = _triggers(connection)
    wanted = _wanted_of_sqlite()
    for table, name in sorted(there.keys() - wanted.keys()):
        if table.lower() in metadata.tables:
            quoted = name.replace('"', '""')
            yield Missing(table.lower(), name, "none of the ledger's", f'DROP TRIGGER "{quoted}";')
    for (table, name), statement in sorted(wanted.items()):
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
    # Where a table was renamed, and back, SQLite has put its name into quotes. Nothing else loses
    # them: a condition in quotes is a text, which never holds.
    return {
        (table, name): _QUOTED.sub(r"\1", _one_line(statement)) for table, name, statement in rows
    }


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
    triggers: dict[tuple[str, str], _Trigger] = {}
    functions: dict[str, _Function] = {}
    listing = _Listing(schema)
    install(cast(Connection, listing))
    for statement in listing.statements:
        if found := _TRIGGER.match(statement):
            trigger = _Trigger(found["function"], statement, _printed(found, schema))
            triggers[found["table"], found["name"]] = trigger
        elif found := _GONE.match(statement):
            del triggers[found[2], found[1]]
        elif found := _FUNCTION.match(statement):
            anew = f"CREATE OR REPLACE FUNCTION {found[1]}(){found[2]}"
            functions[found[1]] = _Function([anew], _body(anew), set())
        elif found := _SETTING.match(statement):
            functions[found[1]].made.append(statement)
            functions[found[1]].settings.add(f"{found[2]}={found[3]}")
    there = {
        (row.table_name, row.name): row for row in connection.execute(_THERE, {"schema": schema})
    }
    for (table, name), trigger in sorted(triggers.items()):
        row = there.get((table, name))
        function = functions[trigger.function]
        if row is None:
            # Its function may be gone as well.
            yield Missing(table, name, "not there", _run([*function.made, trigger.made]))
        elif (row.function, _CALL.sub(r"EXECUTE FUNCTION \1(", row.printed)) != (
            f"{schema}.{trigger.function}", trigger.printed,
        ):  # fmt: skip
            drop = f"DROP TRIGGER {name} ON {table}"
            yield Missing(table, name, "another one", _run([*function.made, drop, trigger.made]))
        elif not _is_meant(row, function):
            yield Missing(table, name, "another one", _run(function.made))
        if row is not None and row.enabled in _OFF:
            yield Missing(table, name, "off", f"ALTER TABLE {table} ENABLE TRIGGER {name};")


# A function that is not volatile does not see what its statement has inserted.
_THERE: Final = text(
    "SELECT c.relname AS table_name, t.tgname AS name, t.tgenabled::text AS enabled, "
    "pg_get_triggerdef(t.oid) AS printed, "
    "p.pronamespace::regnamespace::text || '.' || p.proname AS function, p.prosrc AS body, "
    "p.proconfig AS settings, l.lanname = 'plpgsql' AND p.provolatile = 'v' AND NOT p.prosecdef "
    "AS plain FROM pg_trigger t "
    "JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid "
    "JOIN pg_language l ON l.oid = p.prolang "
    "WHERE NOT t.tgisinternal AND c.relnamespace = to_regnamespace(:schema)"
)


class _Trigger(NamedTuple):
    """``made`` by this statement, ``printed`` so by ``pg_get_triggerdef``."""

    function: str
    made: str
    printed: str


class _Function(NamedTuple):
    """``made`` by these statements. ``settings`` as ``pg_proc`` keeps them."""

    made: list[str]
    body: str
    settings: set[str]


def _is_meant(row: Any, function: _Function) -> bool:
    settings = set(row.settings or ())
    return (
        bool(row.plain) and settings == function.settings and _one_line(row.body) == (function.body)
    )


def _printed(found: re.Match[str], schema: str) -> str:
    """What PostgreSQL says of a trigger: events in an order of its own, the table with its schema,
    and every part of a condition in parentheses."""
    made, call = found[1], found[7]
    events = sorted(found["events"].split(" OR "), key=_EVENTS.index)
    when = f" WHEN ({_in_parentheses(found['when'])})" if found["when"] else ""
    said = f"{made} {' OR '.join(events)} ON {schema}.{found['table']} {found['how']}"
    return f"{said}{when} {call}"


def _in_parentheses(condition: str) -> str:
    """Of comparisons joined by AND and OR, as the guards have them and no others."""
    for word in (" OR ", " AND "):
        parts = _apart(condition, word)
        if len(parts) > 1:
            return f"({word.join(map(_in_parentheses, parts))})"
    if condition.startswith("("):
        return _in_parentheses(condition[1:-1])
    said = condition.replace("IS DISTINCT FROM NULL", "IS NOT NULL")
    return f"({said.replace('OLD.', 'old.').replace('NEW.', 'new.')})"


def _apart(condition: str, word: str) -> list[str]:
    """Its parts between a word, outside of all parentheses."""
    parts = [""]
    for piece in condition.split(word):
        open_yet = parts[-1].count("(") - parts[-1].count(")")
        parts[-1:] = [f"{parts[-1]}{word}{piece}"] if open_yet else [parts[-1], piece]
    return parts[1:]


def _body(statement: str) -> str:
    found = _BODY.search(statement)
    return found[1].strip() if found else ""


def _run(statements: list[str]) -> str:
    return " ".join(f"{statement};" for statement in statements)


def _one_line(statement: str) -> str:
    """What no database takes for a blank stays as it is."""
    return " ".join(filter(None, _BLANKS.split(statement)))

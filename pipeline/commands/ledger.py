"""``paystream ledger``: the books shown, checked, exported, closed and made anew."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.audit import LedgerUrl
from pipeline.commands.ledger_decide import app as decide_app
from pipeline.commands.options import AsJson
from pipeline.commands.output import reader_may_leave
from pipeline.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

app = typer.Typer(
    help="The books: balances, statements, entries, fees, closed periods, verification.",
    epilog="Example: paystream ledger balances",
    no_args_is_help=True,
)
app.registered_commands += decide_app.registered_commands
app.registered_groups += decide_app.registered_groups

Period = Annotated[
    str | None, typer.Option("--period", help="Only what counts under YYYY-MM or YYYY-MM-DD.")
]


@app.command("balances")
def balances_command(
    merchant: Annotated[str | None, typer.Argument(help="Only this merchant.")] = None,
    all_accounts: Annotated[
        bool, typer.Option("--all", help="Every account of the chart, debits and credits.")
    ] = False,
    ledger_url: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """What each merchant is owed, pending and available apart; negative: owes us.

    Exit code 0: shown. 2: there is no ledger, or it cannot be read.

    Examples:

    \b
      paystream ledger balances

    \b
      paystream ledger balances shop --json

    \b
      paystream ledger balances --all
    """
    from pipeline.commands.ledger_text import account_lines, merchant_lines
    from pipeline.ledger.queries import balances
    from pipeline.ledger.reports import merchant_balances

    with books(ledger_url) as connection:
        if all_accounts:
            accounts = balances(connection)
            _show(accounts, account_lines(accounts), as_json)
            return
        found = merchant_balances(connection, merchant)
        _show(found, merchant_lines(found), as_json)


@app.command("statement")
def statement_command(
    merchant: Annotated[str, typer.Argument(help="Whose.")],
    period: Period = None,
    ledger_url: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """A merchant's statement: opening balance, every entry with its effect, closing balance.

    Exit code 0: shown. 1: nothing is booked of the merchant. 2: the ledger cannot be read.

    Examples:

    \b
      paystream ledger statement shop

    \b
      paystream ledger statement shop --period 2010-12
    """
    from pipeline.commands.ledger_text import statement_lines
    from pipeline.ledger.reports import statements

    first, last = _days(period)
    with books(ledger_url) as connection:
        found = statements(connection, merchant, first_day=first, last_day=last)
    if not found:
        typer.echo(f"nothing is booked of {merchant}", err=True)
        raise typer.Exit(1)
    lines = (line for statement in found for line in (*statement_lines(statement), ""))
    _show(found, lines, as_json)


@app.command("entry")
def entry_command(
    entry_id: Annotated[str, typer.Argument(metavar="ID", help="An entry's or settlement's id.")],
    ledger_url: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """One entry: its lines, terms and seal, and the record of the topic it was booked from.

    Exit code 0: shown. 1: there is none. 2: the ledger cannot be read.

    Examples:

    \b
      paystream ledger entry settlement:8a3c2f6e-3c1c-5a60-9d0b-5a6f6a3c9b1e
    """
    from pipeline.commands.ledger_text import entry_lines
    from pipeline.ledger.reports import entry_shown

    with books(ledger_url) as connection:
        found = entry_shown(connection, entry_id)
    if found is None:
        typer.echo(f"there is no entry {entry_id}", err=True)
        raise typer.Exit(1)
    _show(found, entry_lines(found), as_json)


@app.command("export")
def export_command(
    output: Annotated[Path | None, typer.Argument(help="A CSV file; default: print it.")] = None,
    period: Period = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Every line of every entry as CSV, for an ERP; amounts in decimals of their currency.

    Exit code 0: written. 2: the ledger cannot be read, or the file cannot be written.

    Examples:

    \b
      paystream ledger export december.csv --period 2010-12
    """
    from pipeline.commands.ledger_text import write_export
    from pipeline.ledger.reports import exported_lines

    first, last = _days(period)
    with books(ledger_url) as connection:
        rows = exported_lines(connection, first_day=first, last_day=last)
        if output is None:
            with reader_may_leave():
                write_export(rows, sys.stdout)
            return
        try:
            with output.open("w", encoding="utf-8", newline="") as file:
                count = write_export(rows, file)
        except OSError as error:
            raise UserError(f"{output} cannot be written: {error}.") from error
    typer.echo(f"{count} lines are in {output}")


@app.command("verify")
def verify_command(ledger_url: LedgerUrl = None, as_json: AsJson = False) -> None:
    """Whether the books are as they were sealed: a single changed byte is found and named.

    Reads the ledger alone, in one transaction; `paystream verify` compares it with the topics and
    the gateways. On SQLite the file's indexes are checked as well; on PostgreSQL pg_amcheck does
    that. A trigger that is gone, off or another one is named with the statements that put it right.
    The last lines are the newest hash of each partition, to be compared with an earlier look or
    another ledger of the same topics.

    Exit code 0: whole. 1: damaged. 2: the ledger cannot be read.

    Examples:

    \b
      paystream ledger verify
    """
    from pipeline.commands.ledger_text import verification_lines
    from pipeline.ledger.decisions import unpublished_count
    from pipeline.ledger.verification import verify_books

    with books(ledger_url) as connection:
        found = verify_books(connection)
        waiting = unpublished_count(connection)
    shown = {
        "whole": not found.damages,
        "entries": found.entries,
        "unsealed": found.unsealed,
        "unpublished_decisions": waiting,
        "damages": found.damages,
        "heads": [
            {"topic": h.topic, "partition": h.partition, "entries": h.position,
             "hash": h.hash.hex()}
            for h in found.heads
        ],
    }  # fmt: skip
    _show(shown, verification_lines(found, waiting), as_json)
    raise typer.Exit(1 if found.damages else 0)


@app.command("migrate")
def migrate_command(
    ledger_url: LedgerUrl = None,
    create: Annotated[
        bool, typer.Option("--create", help="Make a new ledger where there is none.")
    ] = False,
) -> None:
    """Bring a ledger of an earlier version forward, in one transaction.

    Writers wait meanwhile and go on. The workers do the same at their start, and make a new ledger
    where there is none; this makes one only if it is told to, since the place may be mistyped.

    Exit code 0: done, or nothing was to do. 2: there is no ledger, or the database cannot be used.

    Examples:

    \b
      paystream ledger migrate --ledger-url postgresql://books@db/ledger

    \b
      paystream ledger migrate --create --ledger-url sqlite:////var/lib/paystream/books.db
    """
    from pipeline.interrupted_queries import heard_in_queries
    from pipeline.ledger.database import open_ledger
    from pipeline.ledger.tables import SCHEMA_VERSION

    with heard_in_queries():
        open_ledger(_url(ledger_url), create=create, forward=True).dispose()
    typer.echo(f"the ledger has version {SCHEMA_VERSION}")


def _url(ledger_url: str | None) -> str:
    from pipeline.config import load_settings

    return load_settings(ledger_url=ledger_url).books_url()


@contextmanager
def books(ledger_url: str | None) -> Iterator[Connection]:
    """One moment of the ledger, to read; nothing is made or changed."""
    from pipeline.interrupted_queries import heard_in_queries
    from pipeline.ledger.database import open_ledger, reading
    from pipeline.ledger.no_room import told_where_no_room

    engine: Engine = open_ledger(_url(ledger_url), create=False)
    try:
        with heard_in_queries(), told_where_no_room(), reading(engine) as connection:
            yield connection
    finally:
        engine.dispose()


def _days(period: str | None) -> tuple[str, str]:
    from pipeline.domain.periods import last_day

    if period is None:
        return "", "9999-12-31"
    last = last_day(period)
    return (period if len(period) == len(last) else f"{period}-01"), last


def _show(found: Any, lines: Iterator[str], as_json: bool) -> None:
    from msgspec import to_builtins

    with reader_may_leave():
        if as_json:
            typer.echo(json.dumps(to_builtins(found), indent=2))
            return
        for line in lines:
            typer.echo(line)

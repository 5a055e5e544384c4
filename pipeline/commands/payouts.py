"""``paystream payouts``: what merchants are paid of their available funds, step by step."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import date
from typing import Annotated, Any

import typer

from pipeline.commands.audit import LedgerUrl
from pipeline.commands.deciding import By, MayReason, Reason, deciding, who
from pipeline.commands.ledger import books
from pipeline.commands.options import AsJson, BootstrapServers, Prefix
from pipeline.commands.output import reader_may_leave
from pipeline.commands.payout_messages import app as messages_app
from pipeline.commands.payout_terms import app as terms_app
from pipeline.errors import UserError

app = typer.Typer(
    help="Payouts to merchants: created, approved by a second person, submitted to the bank, paid.",
    epilog="Example: paystream payouts list",
    no_args_is_help=True,
)
app.add_typer(terms_app, name="terms")
app.registered_commands += messages_app.registered_commands

Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Payouts, by their ids.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The payout's id, as the bank knows it.")]
Reference = Annotated[str, typer.Option("--reference", help="The bank's own reference.")]
Day = Annotated[
    str, typer.Option("--date", help="The day it is booked on, YYYY-MM-DD; default: today (UTC).")
]


@app.command("create")
def create_command(
    through: Annotated[str, typer.Option("--through", help="The last business day, YYYY-MM-DD.")],
    merchant: Annotated[
        list[str] | None, typer.Option("--merchant", help="Only this one; may be repeated.")
    ] = None,
    reason: MayReason = "",
    by: By = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Create payouts of available funds for business days through one whose cut-off has passed.

    One for each merchant, currency and business day; run again it creates nothing twice. Below
    the minimum nothing is paid and all is carried over. A negative balance is met from the
    reserve; what is left of it becomes a receivable.

    Exit code 0: created, or nothing was to be. 2: refused, or a server is away.

    Examples:

    \b
      paystream payouts create --through 2010-12-03
    """
    from pipeline.commands.payouts_text import created_lines
    from pipeline.ledger.payouts import create_payouts

    last = _day(through)
    with deciding(bootstrap_servers, prefix, ledger_url) as (engine, log, _topic):
        with engine.begin() as connection:
            made = create_payouts(
                connection, through=last, actor=who(by), reason=reason, now_ms=_now_ms(),
                merchants=frozenset(merchant or ()),
            )  # fmt: skip
        log.publish(engine)
    for line in created_lines(made):
        typer.echo(line)


@app.command("list")
def list_command(
    merchant: Annotated[str | None, typer.Argument(help="Only this merchant's.")] = None,
    state: Annotated[
        str | None, typer.Option("--state", help="Only those: created, approved, submitted, ...")
    ] = None,
    ledger_url: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Payouts, the newest business day last, and what merchants owe us with its age.

    Exit code 0: shown. 2: the ledger cannot be read.

    Examples:

    \b
      paystream payouts list --state created

    \b
      paystream payouts list shop --json
    """
    from pipeline.commands.payouts_text import list_lines
    from pipeline.ledger.payouts import payout_book, receivables

    with books(ledger_url) as connection:
        book = payout_book(connection)
        owed = receivables(connection, book, today_ms=_now_ms())
    found = sorted(
        (p for p in book.payouts.values()
         if merchant in (None, p.merchant_id) and state in (None, p.state)),
        key=lambda p: (p.business_date, p.merchant_id, p.currency),
    )  # fmt: skip
    owed = [each for each in owed if merchant in (None, each.merchant)]
    _show({"payouts": found, "receivables": owed}, list_lines(found, owed), as_json)


@app.command("show")
def show_command(payout_id: Id, ledger_url: LedgerUrl = None, as_json: AsJson = False) -> None:
    """One payout: its amounts, and every decision about it with who, when and why.

    Exit code 0: shown. 2: there is none, or the ledger cannot be read.

    Examples:

    \b
      paystream payouts show 5d41402abc4b2a76b9719d911017c592
    """
    from pipeline.commands.payouts_text import payout_lines
    from pipeline.ledger.payouts import payout_history

    with books(ledger_url) as connection:
        payout, decided = payout_history(connection, payout_id)
    _show({"payout": payout, "decisions": decided}, payout_lines(payout, decided), as_json)


@app.command("approve")
def approve_command(
    payout_ids: Ids,
    reason: MayReason = "",
    by: By = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Approve payouts, as a second person than the one who created them.

    Exit code 0: approved. 2: refused (then none is), or a server is away.

    Examples:

    \b
      paystream payouts approve 5d41402abc4b2a76b9719d911017c592 --by bert
    """
    _move(payout_ids, "approve", reason, by, (bootstrap_servers, prefix, ledger_url))


@app.command("withdraw")
def withdraw_command(
    payout_ids: Ids,
    reason: Reason,
    by: By = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Take back payouts that were not submitted: their funds are available again.

    Exit code 0: taken back. 2: refused (then none is), or a server is away.

    Examples:

    \b
      paystream payouts withdraw 5d41402abc4b2a76b9719d911017c592 --reason "account in doubt"
    """
    _move(payout_ids, "withdraw", reason, by, (bootstrap_servers, prefix, ledger_url))


@app.command("paid")
def paid_command(
    payout_ids: Ids,
    reference: Reference = "",
    day: Day = "",
    reason: MayReason = "",
    by: By = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """The bank has paid: the money has left our account.

    Exit code 0: booked. 2: refused (then none is), or a server is away.

    Examples:

    \b
      paystream payouts paid 5d41402abc4b2a76b9719d911017c592 --date 2010-12-06
    """
    servers = bootstrap_servers, prefix, ledger_url
    _move(payout_ids, "confirm", reason, by, servers, day=day, reference=reference)


@app.command("returned")
def returned_command(
    payout_ids: Ids,
    reason: Reason,
    reference: Reference = "",
    day: Day = "",
    by: By = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """The money came back: it is available again, and paid with the next business day's payout.

    Exit code 0: booked. 2: refused (then none is), or a server is away.

    Examples:

    \b
      paystream payouts returned 5d41402abc4b2a76b9719d911017c592 --reason "account closed"
    """
    servers = bootstrap_servers, prefix, ledger_url
    _move(payout_ids, "return", reason, by, servers, day=day, reference=reference)


@app.command("unknown")
def unknown_command(
    payout_ids: Ids,
    reason: Reason,
    by: By = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Nobody knows what became of submitted payouts: they are not paid again until it is.

    Exit code 0: noted. 2: refused (then none is), or a server is away.

    Examples:

    \b
      paystream payouts unknown 5d41402abc4b2a76b9719d911017c592 --reason "not on the statement"
    """
    _move(payout_ids, "lose", reason, by, (bootstrap_servers, prefix, ledger_url))


@app.command("resolve")
def resolve_command(
    payout_id: Id,
    as_: Annotated[str, typer.Option("--as", help="What came of it: paid or returned.")],
    reason: Reason,
    reference: Reference = "",
    day: Day = "",
    by: By = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Say what came of an unknown payout.

    Exit code 0: booked. 2: refused, or a server is away.

    Examples:

    \b
      paystream payouts resolve 5d41402abc4b2a76b9719d911017c592 --as paid --reason "bank's letter"
    """
    acts = {"paid": "confirm", "returned": "return"}
    if as_ not in acts:
        raise UserError(f"an unknown payout is resolved as paid or returned, not as {as_!r}.")
    servers = bootstrap_servers, prefix, ledger_url
    _move([payout_id], acts[as_], reason, by, servers, only="unknown", day=day,
          reference=reference)  # fmt: skip


def _move(
    payout_ids: list[str],
    act: str,
    reason: str,
    by: str | None,
    servers: tuple[str | None, str | None, str | None],
    *,
    only: str = "",
    day: str = "",
    reference: str = "",
) -> None:
    """One transition of each, or of none."""
    from pipeline.domain.due_days import require_come
    from pipeline.domain.payout_records import refused_approval
    from pipeline.domain.payouts import SecondPersonNeeded
    from pipeline.ledger.payouts import move_payouts, payout_book

    if day:
        _day(day)
        require_come(day, "the booking", _now_ms())
    said = {"reference": reference} if reference else {}
    ids = list(dict.fromkeys(payout_ids))
    with deciding(*servers) as (engine, log, _topic):
        try:
            with engine.begin() as connection:
                move_payouts(
                    connection, ids, act, actor=who(by), now_ms=_now_ms(), reason=reason, day=day,
                    only=only, **said,
                )  # fmt: skip
        except SecondPersonNeeded as refused:
            log.tell(refused_approval(refused.payout_id, who(by), _now_ms()))
            raise
        log.publish(engine)
        with engine.begin() as connection:
            book = payout_book(connection)
    for payout_id in ids:
        typer.echo(f"payout {payout_id} is {book.payouts[payout_id].state}")


def _day(said: str) -> date:
    from pipeline.domain.validation import is_date

    if not is_date(said):
        raise UserError(f"{said!r} is no date: write YYYY-MM-DD.")
    return date.fromisoformat(said)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _show(found: Any, lines: Iterator[str], as_json: bool) -> None:
    from msgspec import to_builtins

    with reader_may_leave():
        if as_json:
            typer.echo(json.dumps(to_builtins(found), indent=2))
            return
        for line in lines:
            typer.echo(line)

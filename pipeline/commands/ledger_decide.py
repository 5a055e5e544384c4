"""``paystream ledger``: what people decide about the books, and the books made anew."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.audit import LedgerUrl
from pipeline.commands.deciding import (
    By,
    Reason,
    deciding,
    read_document,
    show_versions,
    shown_time,
    time_ms,
    who,
)
from pipeline.commands.options import BootstrapServers, Prefix
from pipeline.errors import UserError

app = typer.Typer()
fees_app = typer.Typer(
    help="What merchants pay and gateways take, as data.",
    epilog="Example: paystream ledger fees show",
    no_args_is_help=True,
)
app.add_typer(fees_app, name="fees")


@fees_app.command("apply")
def fees_apply_command(
    file: Annotated[Path, typer.Argument(help="The fee schedule, TOML or JSON.")],
    reason: Reason,
    effective_from: Annotated[
        str | None,
        typer.Option(
            "--from", help="Counts for payments captured from then on, UTC: YYYY-MM-DD[THH:MM:SS]."
        ),
    ] = None,
    by: By = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the schedule; decide nothing.")
    ] = False,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Put a fee schedule into force from a time on, by default from now.

    Payments that were captured before keep their terms. A time before the latest settlement that
    is booked is refused, since entries are never changed.

    Exit code 0: decided and published. 2: refused, or a server is away.

    Examples:

    \b
      paystream ledger fees apply fees.toml --reason "prices of 2027" --from 2027-01-01
    """
    from pipeline.domain.decisions import schedule_body
    from pipeline.ledger.decisions import decide_terms

    document = read_document(file, "fee schedule")
    now_ms = int(time.time() * 1000)
    from_ms = now_ms if effective_from is None else time_ms(effective_from)
    body = schedule_body(document, from_ms)
    if dry_run:
        typer.echo(f"{file} can be used")
        return
    with deciding(bootstrap_servers, prefix, ledger_url) as (engine, log, topic):
        with engine.begin() as connection:
            event = decide_terms(
                connection, topic, body=body, effective_from_ms=from_ms, actor=who(by),
                reason=reason, now_ms=now_ms,
            )  # fmt: skip
        log.publish(engine)
    typer.echo(f"fee schedule {event.sequence} counts from {shown_time(from_ms)}")


@fees_app.command("show")
def fees_show_command(ledger_url: LedgerUrl = None) -> None:
    """Every fee schedule that was put into force, the newest last, as JSON.

    Exit code 0: shown, or there is none. 2: the ledger cannot be read.

    Examples:

    \b
      paystream ledger fees show
    """
    from pipeline.commands.ledger import books
    from pipeline.domain.decisions import FEE_SCHEDULE
    from pipeline.ledger.decisions import decisions_of

    with books(ledger_url) as connection:
        events = decisions_of(connection, (FEE_SCHEDULE,))
    if not events:
        typer.echo("there is no fee schedule: nothing is charged")
    show_versions(events, "schedule", "schedule")


@app.command("close")
def close_command(
    period: Annotated[str, typer.Argument(help="YYYY-MM, or YYYY-MM-DD for a day.")],
    reason: Reason,
    by: By = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Close everything up to the end of a period: it takes no more entries.

    What is booked by now belongs to it; a settlement of its days that comes later counts under the
    first day after it. The tiers of a month's fee plans are set right, and the database refuses
    entries of the period from then on. The close is published, so a rebuild closes it as well.
    A period whose last day is not over, by UTC, is refused. Breaks that reconciliation has open are
    counted, and stop nothing: what they come to counts under a later day.

    Exit code 0: closed. 2: refused, or a server is away.

    Examples:

    \b
      paystream ledger close 2010-12 --reason "month end"
    """
    from pipeline.domain.decisions import closing_of
    from pipeline.domain.periods import last_day
    from pipeline.ledger.database import reading
    from pipeline.ledger.decisions import decide_close
    from pipeline.ledger.reconciliation.breaks import open_count
    from producers.ledger_events import topic_ranges

    through = last_day(period)
    with deciding(bootstrap_servers, prefix, ledger_url) as (engine, log, topic):
        ends = {p: end for p, (_, end) in topic_ranges(log.bootstrap_servers, topic).items()}
        with engine.begin() as connection:
            event = decide_close(
                connection, topic, through=through, actor=who(by), reason=reason,
                now_ms=int(time.time() * 1000),
            )  # fmt: skip
        made = log.publish(engine)
        with reading(engine) as connection:
            breaks = open_count(connection)
    cuts = closing_of(event).cuts
    behind = sum(max(0, end - cuts.get(partition, 0)) for partition, end in ends.items())
    if behind:
        typer.echo(
            f"{behind} records of {topic} were not booked yet (marks of transactions included): "
            "settlements among them count under the first day after the period",
            err=True,
        )
    if breaks:
        typer.echo(
            f"breaks of reconciliation that are open: {breaks}, see `paystream reconcile breaks`; "
            "what comes of them counts under the first day after the period",
            err=True,
        )
    typer.echo(f"everything through {through} is closed; {made} corrections of tiers are booked")


@app.command("post")
def post_command(
    lines: Annotated[
        list[str], typer.Argument(metavar="ACCOUNT=[-]AMOUNT:CURRENCY...", help="Debits positive.")
    ],
    reason: Reason,
    date: Annotated[str, typer.Option("--date", help="The day it counts under, YYYY-MM-DD.")],
    kind: Annotated[
        str, typer.Option("--kind", help="What it is: adjustment, conversion, ...")
    ] = "adjustment",
    merchant: Annotated[str, typer.Option("--merchant", help="Whose statement it is on.")] = "",
    by: By = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Book an entry by hand: a decision that is published, so a rebuild has it as well.

    It balances in each currency; a conversion goes through the position accounts of both.

    Exit code 0: booked. 2: refused, or a server is away.

    Examples:

    \b
      paystream ledger post suspense:north=12.50:GBP gateway_receivable:north=-12.50:GBP
      --date 2010-12-07 --reason "unexplained in report 14"
    """
    from pipeline.domain.decisions import ENTRY, entry_body
    from pipeline.ledger.decisions import decide
    from pipeline.ledger.queries import standing

    postings = [_posting(line) for line in lines]
    with deciding(bootstrap_servers, prefix, ledger_url) as (engine, log, _topic):
        with engine.begin() as connection:
            stands = standing(connection, [posting.account for posting in postings])
            body = entry_body(kind, merchant, date, postings, stands)
            event = decide(
                connection, kind=ENTRY, body=body, actor=who(by), reason=reason,
                now_ms=int(time.time() * 1000),
            )  # fmt: skip
        log.publish(engine)
    typer.echo(f"decision {event.sequence} is booked")


@app.command("convert")
def convert_command(
    account: Annotated[str, typer.Argument(help="Whose currency changes, as in ledger balances.")],
    sold: Annotated[
        str, typer.Option("--sold", metavar="AMOUNT:CURRENCY", help="What it has less.")
    ],
    bought: Annotated[
        str, typer.Option("--bought", metavar="AMOUNT:CURRENCY", help="What it has for that.")
    ],
    reason: Reason,
    date: Annotated[str, typer.Option("--date", help="The day it counts under, YYYY-MM-DD.")],
    overdraw: Annotated[
        bool, typer.Option("--overdraw", help="Sell more than it has: the rest is on its way.")
    ] = False,
    by: By = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Book a conversion by hand: one entry through the position accounts of both currencies.

    Both amounts are above nothing, whatever side the account stands on: what a merchant is owed is
    then owed in the other currency, what a gateway owes or a bank holds is in the other one. It is
    a decision that is published, so a rebuild has it as well. A day that is closed is refused, and
    so is more than the account has of what is sold, on its usual side and as booked by now: a bank
    account that may be overdrawn, or money that is on its way, needs --overdraw.

    Exit code 0: booked. 2: refused, or a server is away.

    Examples:

    \b
      paystream ledger convert merchant_available:shop --sold 100.00:GBP --bought 115.20:EUR
      --date 2010-12-07 --reason "is paid in euro, rate 1.152"

    \b
      paystream ledger convert gateway_receivable:north --sold 12.37:GBP --bought 14.26:EUR
      --date 2010-12-07 --reason "settled in euro" --by anna

    \b
      paystream ledger convert bank:main --sold 5000.00:EUR --bought 4380.00:GBP --date 2010-12-07
      --reason "the batch of today comes tomorrow" --overdraw
    """
    from pipeline.domain.conversions import conversion_body
    from pipeline.ledger.conversions import decide_conversion

    less, more = _money(sold), _money(bought)
    # Said before a server is asked.
    conversion_body(account, less, more, date)
    with deciding(bootstrap_servers, prefix, ledger_url) as (engine, log, _topic):
        with engine.begin() as connection:
            event = decide_conversion(
                connection, account, less, more, business_date=date, actor=who(by), reason=reason,
                now_ms=int(time.time() * 1000), overdraw=overdraw,
            )  # fmt: skip
        log.publish(engine)
    typer.echo(f"decision {event.sequence} is booked")


@app.command("publish")
def publish_command(
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Take decisions further that an interrupted command left unpublished or unbooked.

    Exit code 0: all are published and booked. 2: a server is away.

    Examples:

    \b
      paystream ledger publish
    """
    with deciding(bootstrap_servers, prefix, ledger_url, further=False) as (engine, log, _topic):
        made = log.publish(engine)
    typer.echo(f"every decision is published and booked; {made} entries were made now")


@app.command("rebuild")
def rebuild_command(
    into: Annotated[str, typer.Option("--into", help="The URL of an empty database or new file.")],
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
    no_compare: Annotated[
        bool, typer.Option("--no-compare", help="Do not look at the live ledger.")
    ] = False,
) -> None:
    """Make the books anew from the topics alone, and compare every hash with the live ledger's.

    Each partition is compared up to the last entry that both have sealed. Where there is no live
    ledger any more, nothing is compared, and that is said.

    Exit code 0: made, and the same, or there was nothing to compare with. 1: another hash.
    2: refused, or a server is away.

    Examples:

    \b
      paystream ledger rebuild --into sqlite:////tmp/rebuilt.sqlite
    """
    from consumers.ledger_rebuild import compare, rebuild
    from pipeline.config import load_settings
    from pipeline.interrupted_queries import heard_in_queries
    from pipeline.ledger.database import open_ledger
    from pipeline.record_codec import record_codec

    settings = load_settings(
        bootstrap_servers=bootstrap_servers, topic_prefix=prefix, ledger_url=ledger_url
    )
    if into == settings.books_url():
        raise UserError(
            "the live ledger is not rebuilt into: name another database. One that is lost is made "
            "anew by its own workers when they start."
        )
    # Before anything is made: a server that is away is told at once.
    has_live = not no_compare and _is_there(settings.books_url())
    catalogue = settings.catalogue()
    engine = open_ledger(into)
    try:
        with heard_in_queries():
            made = rebuild(
                settings.bootstrap_servers,
                catalogue,
                record_codec(catalogue, settings.schema_registry_url),
                engine,
            )
            typer.echo(
                f"{made.entries} entries from the topics, {made.decisions} decisions, "
                f"{made.refused} records that cannot be booked"
            )
            for head in made.heads:
                typer.echo(f"{head.topic}[{head.partition}]: {head.position} entries, "
                           f"{head.hash.hex()}")  # fmt: skip
            if not has_live:
                if not no_compare:
                    typer.echo("compared nothing: there is no live ledger any more")
                return
            live = open_ledger(settings.books_url(), create=False)
            try:
                compared = compare(live, engine)
            finally:
                live.dispose()
    finally:
        engine.dispose()
    for each in compared:
        if not each.same:
            typer.echo(f"{each.topic}[{each.partition}] differs within its first {each.position} "
                       "entries")  # fmt: skip
    same = all(each.same for each in compared)
    entries = sum(each.position for each in compared)
    if not entries:
        typer.echo("compared nothing with the live ledger: no entry of it is sealed yet")
        return
    typer.echo(
        f"compared {entries} entries with the live ledger: {'the SAME' if same else 'DIFFERENT'}"
    )
    raise typer.Exit(0 if same else 1)


def _is_there(url: str) -> bool:
    """Whether there is a ledger; UserError when that cannot be known."""
    from pipeline.ledger.database import NoLedger, open_ledger

    try:
        open_ledger(url, create=False).dispose()
    except NoLedger:
        return False
    return True


def _posting(line: str) -> Any:
    from pipeline.domain.posting import Posting

    account, equals, rest = line.partition("=")
    if not equals or ":" not in rest:
        raise UserError(f"{line!r} is no line: write ACCOUNT=AMOUNT:CURRENCY.")
    return Posting(account, *_money(rest))


def _money(said: str) -> tuple[str, int]:
    """Currency and minor units."""
    from pipeline.domain.money import parse_amount

    amount, colon, currency = said.partition(":")
    if not colon:
        raise UserError(f"{said!r} is no amount of a currency: write AMOUNT:CURRENCY.")
    return currency, parse_amount(amount, currency)

"""``paystream reconcile``: the books against the gateways' reports and the bank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.audit import LedgerUrl
from pipeline.commands.deciding import By, Reason
from pipeline.commands.options import AsJson, BootstrapServers, Prefix
from pipeline.commands.output import reader_may_leave
from pipeline.commands.reconciling import (
    contents,
    day_of,
    gateway_of,
    kept,
    now_ms,
    reconciling,
    rules_of,
    today,
)
from pipeline.errors import UserError

app = typer.Typer(
    help="The books against the gateways' reports and the bank: import, run, breaks, resolve.",
    epilog="Example: paystream reconcile run",
    no_args_is_help=True,
)

Gateway = Annotated[
    str | None, typer.Option("--gateway", help="Whose, by the name of the configuration.")
]
Day = Annotated[
    str | None, typer.Option("--date", help="Download that of a day, YYYY-MM-DD, instead.")
]
Files = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="As it came.")]
# Breaks that a terminal or a page shows; all are in the CSV.
SHOWN_MAX = 200
PAGE_MAX = 2_000


@app.command("import")
def import_command(
    files: Files = None,
    gateway: Gateway = None,
    day: Day = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Publish the rows of a gateway's settlement report; the same report again publishes nothing.

    A report that is not whole, or that contradicts what was imported of it, is refused as a whole.

    Exit code 0: imported, or it was before. 2: refused, or a server is away.

    Examples:

    \b
      paystream reconcile import northbank-2010-12-01.csv --gateway northbank

    \b
      paystream reconcile import --gateway northbank --date 2010-12-01
    """
    from pipeline.gateways.reports import read_report

    with reconciling(bootstrap_servers, prefix, ledger_url) as (reconciler, settings):
        name, adapter, url = gateway_of(settings, gateway)
        for where, content in contents(files, f"{url}/v1/reports/{day}" if day else None):
            report = read_report(content, gateway=name, adapter=adapter)
            fresh = reconciler.import_report(report)
            typer.echo(f"{report.file_id or where}: {len(report.rows)} rows, {fresh} of them new")


@app.command("bank")
def bank_command(
    files: Files = None,
    gateway: Gateway = None,
    day: Day = None,
    by: By = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Book a bank statement (ISO 20022 camt.053): gateways' payouts close what they owe us.

    The same statement again books nothing. A line that is no gateway's payout is a break, and stays
    one though the rules name its payer later: what is to be done is said.
    With --date it is that of the simulated bank of --gateway.

    Exit code 0: booked, or it was before. 2: refused, or a server is away.

    Examples:

    \b
      paystream reconcile bank statement-2010-12-02.xml

    \b
      paystream reconcile bank --gateway northbank --date 2010-12-02
    """
    from pipeline.commands.deciding import who
    from pipeline.domain.due_days import latest_day
    from pipeline.gateways.bank_statement import read_statements

    # The simulated bank tells what it will book on a day that is asked for.
    latest = max(latest_day(now_ms()), day or "")
    with reconciling(bootstrap_servers, prefix, ledger_url) as (reconciler, settings):
        rules = rules_of(settings)
        url = None
        if day:
            url = f"{gateway_of(settings, gateway)[2]}/v1/bank/statements/{day}"
        for where, content in contents(files, url):
            statements = read_statements(content, rules.payer, rules.bank_account, latest=latest)
            if not statements:
                typer.echo(f"{where}: no statement, since nothing was ever booked there")
            for statement in statements:
                new = reconciler.import_statement(statement, who(by))
                typer.echo(
                    f"{statement.file_id}: {len(statement.lines)} lines, "
                    f"{'booked' if new else 'booked before'}"
                )
                late = 0 if new else reconciler.named_too_late(statement)
                if late:
                    typer.echo(
                        f"{statement.file_id}: {late} lines were nobody's when it was booked, and "
                        "are a gateway's by the rules of today: post them by hand from its "
                        "gateway_receivable, and resolve their breaks as corrected"
                    )


@app.command("run")
def run_command(
    as_of: Annotated[
        str | None, typer.Option("--as-of", help="What is due by then, YYYY-MM-DD; default: today.")
    ] = None,
    no_control: Annotated[
        bool, typer.Option("--no-control", help="Do not compare ledger and settlements topic.")
    ] = False,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Match reports with the books, book what matches, and keep the breaks.

    Safe to repeat, and to be ended at any moment. Payments that only a report knows of are told.

    Exit code 0: no break is open. 1: some are. 2: a server is away, or something is contradictory.

    Examples:

    \b
      paystream reconcile run

    \b
      paystream reconcile run --as-of 2010-12-06
    """
    from msgspec import to_builtins

    from pipeline.commands.reconcile_text import sum_lines
    from pipeline.ledger.database import open_ledger, reading
    from pipeline.ledger.reconciliation.breaks import open_sums

    until = None if as_of is None else day_of(as_of)
    with reconciling(bootstrap_servers, prefix, ledger_url) as (reconciler, settings):
        ran = reconciler.run(as_of=until, controlled=not no_control)
        engine = open_ledger(settings.books_url(), create=False)
        try:
            with reading(engine) as connection:
                sums = open_sums(connection)
        finally:
            engine.dispose()
    if as_json:
        typer.echo(json.dumps({**to_builtins(ran), "open": to_builtins(sums)}, indent=2))
    else:
        typer.echo(
            f"{ran.taken_in} rows taken in, {ran.cleared} cleared ({ran.entries} entries), "
            f"{ran.waiting} wait for their other side"
        )
        if ran.told:
            typer.echo(f"{ran.told} payments were told what only a report knew")
        typer.echo(f"{ran.opened} breaks opened, {ran.ended} ended; open now:")
        for line in sum_lines(sums):
            typer.echo(line)
        if not sums:
            typer.echo("  none")
    raise typer.Exit(1 if sums else 0)


@app.command("breaks")
def breaks_command(
    gateway: Gateway = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only these.")] = None,
    state: Annotated[str, typer.Option("--state", help="open, resolved or all.")] = "open",
    ledger_url: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """What differs, what is at risk by it, how old it is and where to look: the worst first.

    Exit code 0: shown. 2: there is no ledger, or reconciliation was never run on it.

    Examples:

    \b
      paystream reconcile breaks

    \b
      paystream reconcile breaks --kind missing_here --gateway northbank --json
    """
    from msgspec import to_builtins

    from pipeline.commands.reconcile_text import break_lines
    from pipeline.domain.breaks import BREAKS, OPEN, RESOLVED
    from pipeline.ledger.reconciliation.breaks import list_breaks

    if state not in (OPEN, RESOLVED, "all"):
        raise UserError(f"{state!r} is no state: use open, resolved or all.")
    if kind is not None and kind not in BREAKS:
        raise UserError(f"{kind!r} is no kind of break: use {', '.join(BREAKS)}.")
    with kept(ledger_url) as connection:
        found = list_breaks(
            connection, state=None if state == "all" else state, gateway=gateway, kind=kind
        )
    with reader_may_leave():
        if as_json:
            typer.echo(json.dumps(to_builtins(found), indent=2))
            return
        for line in break_lines(found[:SHOWN_MAX], today()):
            typer.echo(line)
        if len(found) > SHOWN_MAX:
            typer.echo(f"and {len(found) - SHOWN_MAX} more: see `paystream reconcile report --csv`")


@app.command("resolve")
def resolve_command(
    break_id: Annotated[str, typer.Argument(metavar="BREAK", help="Its id.")],
    resolution: Annotated[
        str, typer.Option("--as", help="accepted, corrected, converted or refund_after_review.")
    ],
    reason: Reason,
    by: By = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Say what was made of a break: a decision with its reason, published to `ledger-events`.

    An amount that differs, accepted or corrected, clears its sale; accepted, the difference goes to
    rounding. A currency that differs, converted, clears its sale as well, as its row says;
    corrected, it says what is left to do.
    A charge nobody asked for (missing_here), as refund_after_review, is given back by its
    gateway, once. Nothing else moves money: set the books right with `paystream ledger post`, and
    give back what a payment of ours took with `paystream payment refund`. A charge that the flow
    may still know is refused: its workers have to run, and to have caught up.

    Exit code 0: resolved. 2: there is no such open break, it is refused, or a server is away.

    Examples:

    \b
      paystream reconcile resolve 3fa1c09b7d21 --as accepted --reason "below the cost of asking"

    \b
      paystream reconcile resolve 5d20a1f4c9e3 --as converted --reason "settles in euro"

    \b
      paystream reconcile resolve 8b02e4417c55 --as refund_after_review --reason "nobody knows it"
    """
    from pipeline.commands.deciding import who
    from pipeline.commands.reconcile_text import left_to_do

    with reconciling(bootstrap_servers, prefix, ledger_url) as (reconciler, _):
        asked = reconciler.resolve(break_id, resolution, actor=who(by), reason=reason)
        found = reconciler.known(break_id)
    typer.echo(f"break {break_id} is resolved: {resolution}")
    for line in left_to_do(found) if found is not None else ():
        typer.echo(line)
    for each in asked:
        typer.echo(
            f"{each.gateway_reference} is given back by {each.gateway}: "
            f"see `paystream payment show {each.merchant_id}:{each.order_id}`"
        )


@app.command("report")
def report_command(
    page: Annotated[Path | None, typer.Option("--html", help="Totals and breaks, a page.")] = None,
    table: Annotated[Path | None, typer.Option("--csv", help="Every break, a table.")] = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """A page for people, with totals by gateway and day, and every break as CSV.

    Exit code 0: written. 2: it cannot be written, or reconciliation was never run.

    Examples:

    \b
      paystream reconcile report --html reconciliation.html --csv breaks.csv
    """
    from pipeline.commands.reconcile_text import page as page_of
    from pipeline.commands.reconcile_text import write_csv
    from pipeline.ledger.reconciliation.breaks import list_breaks
    from pipeline.ledger.reconciliation.totals import day_totals

    if page is None and table is None:
        raise UserError("say what to write: --html FILE, --csv FILE, or both.")
    with kept(ledger_url) as connection:
        totals = day_totals(connection)
        found = list_breaks(connection)
        every = list_breaks(connection, state=None)
    try:
        if page is not None:
            page.write_text(page_of(totals, found, today(), PAGE_MAX), encoding="utf-8")
            typer.echo(f"{page}: {len(totals)} totals, {len(found)} open breaks")
        if table is not None:
            with table.open("w", encoding="utf-8", newline="") as file:
                typer.echo(f"{table}: {write_csv(every, today(), file)} breaks")
    except OSError as error:
        raise UserError(f"the report cannot be written: {error}.") from error

"""``paystream payouts terms``: when and how merchants are paid, as data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

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

app = typer.Typer(
    help="When and how merchants are paid, as data.",
    epilog="Example: paystream payouts terms show",
    no_args_is_help=True,
)


@app.command("apply")
def apply_command(
    file: Annotated[Path, typer.Argument(help="The payout terms, TOML or JSON.")],
    reason: Reason,
    effective_from: Annotated[
        str | None,
        typer.Option(
            "--from", help="Counts for cut-offs from then on, UTC: YYYY-MM-DD[THH:MM:SS]."
        ),
    ] = None,
    by: By = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the terms; decide nothing.")
    ] = False,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Put payout terms into force from a time on, by default from now.

    The document is whole: a merchant that is not in it is not paid from then on. A time before a
    cut-off that a payout was created for is refused. A day that was decided already stays as it
    is, whatever its cut-off is now: what comes until then is paid with the next one, and that is
    said.

    Exit code 0: decided and published. 2: refused, or a server is away.

    Examples:

    \b
      paystream payouts terms apply payouts.toml --reason "new merchants" --from 2010-12-01
    """
    from pipeline.commands.payouts_text import left_as_decided_lines
    from pipeline.domain.payout_terms import terms_body
    from pipeline.ledger.payouts import days_left_as_decided, decide_payout_terms

    document = read_document(file, "payout terms")
    now_ms = int(time.time() * 1000)
    from_ms = now_ms if effective_from is None else time_ms(effective_from)
    body = terms_body(document, from_ms)
    if dry_run:
        typer.echo(f"{file} can be used")
        return
    with deciding(bootstrap_servers, prefix, ledger_url) as (engine, log, _topic):
        with engine.begin() as connection:
            event = decide_payout_terms(
                connection, body=body, effective_from_ms=from_ms, actor=who(by), reason=reason,
                now_ms=now_ms,
            )  # fmt: skip
            left = days_left_as_decided(connection, event)
        log.publish(engine)
    for line in left_as_decided_lines(left):
        typer.echo(line, err=True)
    typer.echo(f"payout terms {event.sequence} count from {shown_time(from_ms)}")


@app.command("show")
def show_command(ledger_url: LedgerUrl = None) -> None:
    """All payout terms that were put into force, the newest last, as JSON.

    Exit code 0: shown, or there are none. 2: the ledger cannot be read.

    Examples:

    \b
      paystream payouts terms show
    """
    from pipeline.commands.ledger import books
    from pipeline.domain.payout_terms import PAYOUT_TERMS
    from pipeline.ledger.decisions import decisions_of

    with books(ledger_url) as connection:
        events = decisions_of(connection, (PAYOUT_TERMS,))
    if not events:
        typer.echo("there are no payout terms: nobody is paid")
    show_versions(events, "terms", "terms")

"""``paystream payouts``: what is handed to the bank, as one message of several payouts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.audit import LedgerUrl
from pipeline.commands.deciding import By, MayReason, deciding, who
from pipeline.commands.ledger import books
from pipeline.commands.options import BootstrapServers, Prefix
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.domain.payouts import PayoutBook

app = typer.Typer()

Folder = Annotated[
    Path, typer.Option("--output", help="The folder to write the message's files into.")
]


@app.command("submit")
def submit_command(
    currency: Annotated[str, typer.Argument(help="Of which currency.")],
    output: Folder,
    reason: MayReason = "",
    by: By = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
) -> None:
    """Submit every approved payout of a currency as one message, and write its files.

    MESSAGE.xml is for the bank (ISO 20022 pain.001.001.09), MESSAGE.csv for people. With nothing
    approved since, the newest message is written once more, byte for byte: hand a file to the
    bank once, it knows a second one by its message id.

    Exit code 0: written. 2: nothing was ever approved, or a server is away.

    Examples:

    \b
      paystream payouts submit GBP --output ./bank
    """
    from pipeline.ledger.payouts import payout_book, submit_payouts

    with deciding(bootstrap_servers, prefix, ledger_url) as (engine, log, _topic):
        with engine.begin() as connection:
            message_id, events = submit_payouts(
                connection,
                currency,
                actor=who(by),
                reason=reason,
                now_ms=time.time_ns() // 1_000_000,
            )
        log.publish(engine)
        with engine.begin() as connection:
            book = payout_book(connection)
    _write(book, message_id, output)
    said = f"{len(events)} payouts are submitted" if events else "nothing new is approved"
    typer.echo(f"{said}; message {message_id} is in {output}")


@app.command("file")
def file_command(
    message_id: Annotated[str, typer.Argument(metavar="MESSAGE", help="A message's id.")],
    output: Folder,
    ledger_url: LedgerUrl = None,
) -> None:
    """Write the files of a message that was submitted once more, byte for byte.

    Exit code 0: written. 2: there is no such message, or the ledger cannot be read.

    Examples:

    \b
      paystream payouts file PS5d41402abc4b2a76b9719d91101 --output ./bank
    """
    from pipeline.ledger.payouts import payout_book

    with books(ledger_url) as connection:
        book = payout_book(connection)
    _write(book, message_id, output)
    typer.echo(f"message {message_id} is in {output}")


def _write(book: PayoutBook, message_id: str, folder: Path) -> None:
    from pipeline.domain.payout_files import pain_001, payout_message, payouts_csv

    message = payout_message(book, message_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{message_id}.xml").write_bytes(pain_001(message))
        (folder / f"{message_id}.csv").write_bytes(payouts_csv(message))
    except OSError as error:
        raise UserError(
            f"the files of {message_id} cannot be written ({error}); they are written again by "
            f"`paystream payouts file {message_id}`."
        ) from error

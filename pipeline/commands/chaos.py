"""``paystream chaos``: faults on purpose, and what comes of them."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import AsJson
from pipeline.commands.output import reader_may_leave
from pipeline.commands.stopping import StopSignals

app = typer.Typer(
    help="Injure Kafka's protocol on purpose, and judge what readers see. Example: paystream chaos "
    "kip890",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def chaos() -> None:
    """Injure Kafka's protocol on purpose, and judge what readers see.

    Example: paystream chaos kip890 --faults 100
    """


@app.command("kip890")
def kip890_command(
    faults: Annotated[
        int,
        typer.Option(min=0, help="Ends injured under the engine, for each transaction.version."),
    ] = 1000,
    rounds: Annotated[
        int, typer.Option(min=1, help="How often each anomaly is tried on each loop.")
    ] = 10,
    seed: Annotated[int, typer.Option(help="The same seed injures the same ends alike.")] = 1,
    transaction_version: Annotated[
        list[int] | None,
        typer.Option(
            "--transaction-version",
            min=0,
            max=2,
            help="Only this one; may be given more than once.",
        ),
    ] = None,
    brokers: Annotated[int, typer.Option(help="1, or 3 that replicate.")] = 1,
    log: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep a JSON line for each fault in this folder."),
    ] = None,
    as_json: AsJson = False,
    write: Annotated[
        Path | None,
        typer.Option(metavar="DOCUMENT", help="Replace the table between its markers as well."),
    ] = None,
) -> None:
    """A late EndTxn ends the next transaction: who is exposed to it, who is not.

    Starts a Kafka for each transaction.version and leads clients to it through a proxy that loses
    the answers of EndTxn requests and lets the requests arrive late, or twice. A plain
    confluent-kafka loop and the engine's lane go through the same; a reader of committed records
    then says what is lost, torn, doubled or visible though it was aborted.

    It is no benchmark: its result is a verdict, and an installation with another librdkafka can
    have it for its own. So it is a command of the program and needs nothing but the embedded Kafka.

    Exit code 0: the engine noticed every fault and lost nothing. 1: it did not. 2: it could not
    run. That the plain loop is exposed does not change the exit code.

    Examples:

    \b
      paystream chaos kip890 --faults 100 --rounds 3

    \b
      paystream chaos kip890 --log injected --write docs/reliability.md
    """
    from pipeline.chaos.kip890.campaign import run_campaign
    from pipeline.chaos.kip890.report import as_text, require_markers, write_document

    if brokers not in (1, 3):
        raise typer.BadParameter("a cluster has 1 broker or 3", param_hint="--brokers")
    if write is not None:
        require_markers(write)
    if log is not None:
        log.mkdir(parents=True, exist_ok=True)
    # The lane warns of each ambiguous end, which is what this is about; it is counted instead.
    logging.getLogger().addHandler(logging.NullHandler())
    with StopSignals():
        report = run_campaign(
            faults=faults,
            rounds=rounds,
            seed=seed,
            versions=transaction_version or [1, 2],
            brokers=brokers,
            command=shlex.join(["paystream", *sys.argv[1:]]),
            log_folder=log,
            say=lambda line: typer.echo(line, err=True),
        )
    if write is not None:
        write_document(write, report)
    with reader_may_leave():
        typer.echo(json.dumps(report.to_json(), indent=2) if as_json else as_text(report))
    raise typer.Exit(0 if report.holds else 1)

"""``paystream chaos``: faults on purpose, and what comes of them."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.options import AsJson
from pipeline.commands.output import reader_may_leave
from pipeline.commands.stopping import StopSignals

app = typer.Typer(
    help="Break things on purpose, and judge what comes of it. Example: paystream chaos run",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def chaos() -> None:
    """Break things on purpose, and judge what comes of it.

    Example: paystream chaos run --minutes 5 --seed 1
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

    Exit code 0: every end was injured, the plain loop was exposed, and the engine noticed every
    fault and lost nothing. 1: one of these is not so, and the report says which. 2: it could not
    run.

    Examples:

    \b
      paystream chaos kip890 --faults 100 --rounds 3

    \b
      paystream chaos kip890 --log injected --write docs/reliability.md
    """
    from pipeline.chaos.kip890.campaign import run_campaign
    from pipeline.chaos.kip890.report import PLACE, as_markdown, as_text

    if brokers not in (1, 3):
        raise typer.BadParameter("a cluster has 1 broker or 3", param_hint="--brokers")
    if write is not None:
        PLACE.require(write)
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
        PLACE.write(write, as_markdown(report))
    with reader_may_leave():
        typer.echo(json.dumps(report.to_json(), indent=2) if as_json else as_text(report))
    raise typer.Exit(0 if report.holds else 1)


@app.command("run")
def run_command(
    minutes: Annotated[
        float, typer.Option(min=0.5, max=24 * 60, help="How long orders are published.")
    ] = 5.0,
    seed: Annotated[
        int, typer.Option(help="The same seed draws the same faults at the same times.")
    ] = 1,
    rate: Annotated[float, typer.Option(min=1, help="Orders a second.")] = 100.0,
    every: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Between two faults, on average.")
    ] = 8.0,
    brokers: Annotated[int, typer.Option(help="3 that replicate, or 1.")] = 3,
    partitions: Annotated[int, typer.Option(min=2, max=48, help="Of every topic.")] = 6,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="KIND", help="Only this fault; may be given several times."),
    ] = None,
    place: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            metavar="FOLDER",
            help="Where the run's own folder is made; on a real disk (default: /var/tmp).",
        ),
    ] = None,
    report_folder: Annotated[
        Path,
        typer.Option("--report", metavar="FOLDER", help="Where chaos-SEED.md and .json go."),
    ] = Path("chaos-reports"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep all logs and data.")] = False,
    as_json: AsJson = False,
) -> None:
    """Kill, freeze and restart everything under load, then judge what is left.

    Starts a Kafka of three brokers (three copies, of which two must agree), PostgreSQL, three
    simulated gateways with faults of their own (one of them knows no idempotency keys), and two
    nodes of workers; publishes orders and refunds. Faults are drawn from the seed: workers,
    brokers, gateways and the database are killed and frozen, nodes come and go, workers get twins,
    ends of transactions arrive late or twice. Then everything is healed, the flow comes to rest,
    and the audit and checks of its own say by the literature's names what went wrong.

    Exit code 0: whole. 1: broken. 2: it could not run, or never came to rest. Unless it was whole,
    the folder with all logs is kept and named.

    Examples:

    \b
      paystream chaos run --minutes 5 --seed 1

    \b
      paystream chaos run --minutes 2 --only kill-coordinator --only freeze-payments-long
    """
    from pipeline.chaos.flow.campaign import Options, run_campaign
    from pipeline.chaos.flow.draw import BY_NAME, KINDS
    from pipeline.chaos.flow.report import lines, write

    if brokers not in (1, 3):
        raise typer.BadParameter("a cluster has 1 broker or 3", param_hint="--brokers")
    for name in only or ():
        if name not in BY_NAME:
            known = ", ".join(BY_NAME)
            raise typer.BadParameter(f"no fault {name!r}; there are {known}", param_hint="--only")
    logging.getLogger().addHandler(logging.NullHandler())
    with StopSignals():
        report, kept = run_campaign(
            Options(
                command=shlex.join(["paystream", *sys.argv[1:]]),
                seed=seed,
                seconds=minutes * 60,
                rate_per_s=rate,
                every_s=every,
                brokers=brokers,
                partitions=partitions,
                place=place or Path("/var/tmp"),
                keep=keep,
                kinds=[BY_NAME[name] for name in only] if only else KINDS,
            ),
            say=lambda line: typer.echo(line, err=True),
        )
    document, data = write(report, report_folder)
    with reader_may_leave():
        if as_json:
            typer.echo(json.dumps(report.to_json(), indent=2))
        else:
            typer.echo("\n".join(lines(report)))
            typer.echo(f"report: {document}, {data}")
            if kept is not None:
                typer.echo(f"logs: {kept}")
    raise typer.Exit(report.exit_code)


@app.command("overload")
def overload_command(
    scenario: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SCENARIO]...", help="Only these; all of them without any."),
    ] = None,
    rate: Annotated[
        float, typer.Option(min=1, help="Orders a second beside what is wrong.")
    ] = 100.0,
    gateway_rate: Annotated[
        float, typer.Option(min=1, help="What the throttled gateway takes; ten times as many come.")
    ] = 100.0,
    overload: Annotated[
        float, typer.Option(min=2, metavar="SECONDS", help="How long they come.")
    ] = 120.0,
    pause: Annotated[
        float, typer.Option(min=2, metavar="SECONDS", help="How long the consumer stands still.")
    ] = 600.0,
    large: Annotated[int, typer.Option(min=2, help="Records at the size limit.")] = 100,
    letters: Annotated[int, typer.Option(min=1, help="Dead letters.")] = 100_000,
    hot: Annotated[int, typer.Option(min=1, help="Commands on one payment.")] = 5_000,
    payments: Annotated[int, typer.Option(min=1, help="In the table.")] = 2_000_000,
    jump: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="By how much the clock jumps.")
    ] = 3_600.0,
    partitions: Annotated[int, typer.Option(min=2, max=48, help="Of every topic.")] = 6,
    place: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            metavar="FOLDER",
            help="Where the flows' folders are made; on a real disk (default: /var/tmp).",
        ),
    ] = None,
    as_json: AsJson = False,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="DOCUMENT", help="Replace the scenario's part between its markers as well."
        ),
    ] = None,
) -> None:
    """Give the flow too much, or let a part of it stand still, and see what comes of it.

    Each scenario has a flow of its own (broker, gateway, ledger, a worker a stage) and ends with
    claims that can fail: the audit finds nothing, memory stays what it was, the others go on. All
    of them take about an hour.

    Exit code 0: every claim holds. 1: one does not, and the logs are kept. 2: it could not run.

    Examples:

    \b
      paystream chaos overload

    \b
      paystream chaos overload throttled-gateway --gateway-rate 50 --overload 60

    \b
      paystream chaos overload restored-table --payments 500000
    """
    import time

    from pipeline.chaos.overload.campaign import SCENARIOS, run_scenarios
    from pipeline.chaos.overload.report import PLACE, Report, as_markdown, as_text
    from pipeline.chaos.overload.scenario import Options
    from pipeline.chaos.versions import kafka_version, librdkafka_version, machine

    for name in scenario or ():
        if name not in SCENARIOS:
            known = ", ".join(SCENARIOS)
            raise typer.BadParameter(f"no scenario {name!r}; there are {known}")
    if write is not None:
        PLACE.require(write)
    logging.getLogger().addHandler(logging.NullHandler())
    options = Options(
        place=place or Path("/var/tmp"),
        partitions=partitions,
        rate_per_s=rate,
        gateway_rate_per_s=gateway_rate,
        overload_s=overload,
        pause_s=pause,
        large_records=large,
        letters=letters,
        hot_commands=hot,
        payments=payments,
        jump_s=jump,
    )
    with StopSignals():
        outcomes, kept = run_scenarios(
            scenario or list(SCENARIOS), options, say=lambda line: typer.echo(line, err=True)
        )
    report = Report(
        command=shlex.join(["paystream", *sys.argv[1:]]),
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        machine=machine(),
        kafka=kafka_version(),
        librdkafka=librdkafka_version(),
        outcomes=outcomes,
    )
    if write is not None:
        PLACE.write(write, as_markdown(report, before=PLACE.read(write)))
    _tell(report.to_json(), as_text(report), as_json, kept)
    raise typer.Exit(0 if report.holds else 1)


def _tell(report: dict[str, Any], text: str, as_json: bool, kept: Path | None) -> None:
    """Print what was found, and where the logs are if they were kept."""
    with reader_may_leave():
        typer.echo(json.dumps(report, indent=2) if as_json else text)
        if kept is not None:
            typer.echo(f"logs: {kept}", err=True)


@app.command("copy")
def copy_command(
    variant: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VARIANT]...", help="Only those whose name begins so; all without any."
        ),
    ] = None,
    rate: Annotated[float, typer.Option(min=50, help="Messages a second to copy.")] = 2_000.0,
    place: Annotated[
        Path | None,
        typer.Option(
            "--dir", metavar="FOLDER", help="Where the run's folder is made (default: /var/tmp)."
        ),
    ] = None,
    as_json: AsJson = False,
    write: Annotated[
        Path | None,
        typer.Option(metavar="DOCUMENT", help="Replace the table between its markers as well."),
    ] = None,
) -> None:
    """Kafka's own test of transactions, with the engine's lane in place of the Java client.

    Messages are copied from one topic to another in transactions, while copiers or brokers are
    bounced, hard (SIGKILL) or clean; in a group, or each with a partition for itself. A reader at
    the end and one that read meanwhile must see each message once, and in order where there is one.
    All sixteen variants take about twelve minutes.

    Exit code 0: every variant is exact. 1: one is not, and the logs are kept. 2: it could not run.

    Examples:

    \b
      paystream chaos copy

    \b
      paystream chaos copy hard_bounce/clients clean_bounce/brokers/order
    """
    import time

    from pipeline.chaos.copying.campaign import run_variants
    from pipeline.chaos.copying.report import PLACE, Report, as_markdown, as_text
    from pipeline.chaos.copying.variant import ALL
    from pipeline.chaos.versions import kafka_version, librdkafka_version, machine

    chosen = [v for v in ALL if not variant or any(v.name.startswith(name) for name in variant)]
    for name in variant or ():
        if not any(each.name.startswith(name) for each in chosen):
            known = ", ".join(each.name for each in ALL)
            raise typer.BadParameter(f"no variant {name!r}; there are {known}")
    if write is not None:
        PLACE.require(write)
    logging.getLogger().addHandler(logging.NullHandler())
    with StopSignals():
        results, kept = run_variants(
            chosen,
            rate_per_s=rate,
            place=place or Path("/var/tmp"),
            say=lambda line: typer.echo(line, err=True),
        )
    report = Report(
        command=shlex.join(["paystream", *sys.argv[1:]]),
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        machine=machine(),
        kafka=kafka_version(),
        librdkafka=librdkafka_version(),
        results=results,
    )
    if write is not None:
        PLACE.write(write, as_markdown(report))
    _tell(report.to_json(), as_text(report), as_json, kept)
    raise typer.Exit(0 if report.holds else 1)

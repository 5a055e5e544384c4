"""``paystream transactions``: what a broker has forgotten without ending it."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import AsJson, BootstrapServers
from pipeline.commands.output import reader_may_leave
from pipeline.kafka_access import reaching

if TYPE_CHECKING:
    from pipeline.hanging.search import Hanging

# As `topics plan`: something is to be done. 2 is a wrong option or a missing broker.
EXIT_HANGING = 3

app = typer.Typer(
    help="Transactions that hang: open in a partition, and in nobody's hands any more.",
    epilog="Example: paystream transactions list",
    no_args_is_help=True,
)


class End(StrEnum):
    COMMIT = "commit"
    ABORT = "abort"


@app.command("list")
def list_command(bootstrap_servers: BootstrapServers = None, as_json: AsJson = False) -> None:
    """Show what hangs, and how it was decided; changes nothing.

    All topics of the cluster are looked at, whoever writes to them. A transaction that is merely
    open is not shown: its coordinator ends it.

    Exit code 0: nothing hangs. 3: something does. 2: the cluster does not tell.

    Example:

    \b
      paystream transactions list
    """
    from pipeline.hanging.search import find_hanging

    found = find_hanging(_servers(bootstrap_servers))
    with reader_may_leave():
        if as_json:
            typer.echo(json.dumps([_as_json(each) for each in found], indent=2))
        else:
            for each in found:
                typer.echo(each.text)
            typer.echo(_summary(found))
    raise typer.Exit(EXIT_HANGING if found else 0)


@app.command("end")
def end_command(
    bootstrap_servers: BootstrapServers = None,
    undecided: Annotated[
        End | None,
        typer.Option("--undecided", help="How to end those of which nobody can tell."),
    ] = None,
) -> None:
    """Write the markers that are missing, each as its coordinator had decided; safe to repeat.

    Not by `kafka-transactions.sh abort`, which tears what was committed. Stop the workers first if
    you can: the next transaction of the same worker in that partition ends both alike.

    Exit code 0: nothing hangs any more. 3: something is left, of which no decision is written
    down any more (--undecided). 2: the cluster does not tell, or does not take a marker.

    Examples:

    \b
      paystream transactions end

    \b
      paystream transactions end --undecided abort
    """
    from pipeline.hanging.repair import end_what_hangs

    def said(hanging: Hanging, commit: bool) -> None:
        typer.echo(f"{'committed' if commit else 'aborted'}  {hanging.text}")

    repair = end_what_hangs(
        _servers(bootstrap_servers),
        undecided=None if undecided is None else undecided is End.COMMIT,
        on_ended=said,
    )
    for each in repair.left:
        typer.echo(f"left       {each.text}")
    for each in repair.overtaken:
        typer.echo(f"overtaken  {each.text}: its producer writes on, and will end both alike")
    typer.echo(f"{len(repair.ended)} ended, {len(repair.left)} left")
    raise typer.Exit(EXIT_HANGING if repair.left else 0)


def _servers(given: str | None) -> str:
    """Where the cluster is; UserError when no broker of it answers, before anything is asked."""
    from confluent_kafka.admin import AdminClient

    from pipeline.config import load_settings
    from pipeline.runtime.cluster import require_reachable

    servers = load_settings(bootstrap_servers=given).bootstrap_servers
    require_reachable(AdminClient({**reaching(servers), "log_level": 0}), servers)
    return servers


def _summary(found: list[Hanging]) -> str:
    if not found:
        return "no transaction hangs"
    one = len(found) == 1
    return (
        f"{len(found)} transaction{'' if one else 's'} hang{'s' if one else ''}; "
        "`paystream transactions end` ends as decided"
    )


def _as_json(hanging: Hanging) -> dict[str, object]:
    found = hanging.found
    return {
        "topic": found.topic,
        "partition": found.partition,
        "first_offset": found.first_offset,
        "producer_id": found.producer_id,
        "producer_epoch": found.epoch,
        "transactional_id": hanging.transactional_id or None,
        "decided": {True: "commit", False: "abort", None: None}[hanging.commit],
    }

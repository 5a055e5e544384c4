"""``paystream topics``: what the cluster lacks, and making it so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import BootstrapServers, Prefix

if TYPE_CHECKING:
    from topics.catalogue import Catalogue

# Not 1, which is what a crash exits with, and not 2, which is a wrong option or a missing broker.
EXIT_CHANGES_NEEDED = 3

app = typer.Typer(
    help="Compare the topics and first offsets on the cluster with the catalogue, and make them.",
    epilog="Example: paystream topics plan",
    no_args_is_help=True,
)

Partitions = Annotated[
    int | None,
    typer.Option(
        "--partitions", envvar="PAYSTREAM_PARTITIONS", min=1, help="Partitions of every topic."
    ),
]
ReplicationFactor = Annotated[
    int | None,
    typer.Option(
        "--replication-factor",
        envvar="PAYSTREAM_REPLICATION_FACTOR",
        min=1,
        help="Copies of every partition.",
    ),
]
GrowPartitions = Annotated[
    bool,
    typer.Option(
        "--grow-partitions",
        help="Give existing topics more partitions; only while nothing was ever written to them.",
    ),
]


@app.command("plan")
def plan_command(
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    partitions: Partitions = None,
    replication_factor: ReplicationFactor = None,
    grow_partitions: GrowPartitions = False,
) -> None:
    """Say what `apply` would do; changes nothing.

    Exit code 0: nothing to do. 3: changes are needed. 2: refused, or the cluster is away.

    Examples:

    \b
      paystream topics plan

    \b
      paystream topics plan --bootstrap-servers kafka-1:9092,kafka-2:9092 --prefix eu-
    """
    from topics.admin import connect
    from topics.provisioning import plan

    servers, catalogue = _target(bootstrap_servers, prefix, partitions, replication_factor)
    planned = plan(connect(servers), catalogue, grow_partitions=grow_partitions)
    for line in planned.lines():
        typer.echo(line)
    if planned.refusals:
        raise typer.Exit(2)
    if planned.has_changes:
        raise typer.Exit(EXIT_CHANGES_NEEDED)


@app.command("apply")
def apply_command(
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    partitions: Partitions = None,
    replication_factor: ReplicationFactor = None,
    grow_partitions: GrowPartitions = False,
) -> None:
    """Create what is missing, set what differs, commit first offsets; safe to repeat.

    Nothing is deleted, and no offset that exists is touched. Exit code 0: the cluster is as the
    catalogue says. 2: refused, and nothing was changed.

    Examples:

    \b
      paystream topics apply

    \b
      paystream topics apply --partitions 48 --replication-factor 3
    """
    from topics.admin import connect
    from topics.provisioning import apply, plan

    servers, catalogue = _target(bootstrap_servers, prefix, partitions, replication_factor)
    admin = connect(servers)
    planned = plan(admin, catalogue, grow_partitions=grow_partitions)
    apply(admin, planned)
    for line in planned.lines():
        typer.echo(line)


def _target(
    bootstrap_servers: str | None,
    prefix: str | None,
    partitions: int | None,
    replication_factor: int | None,
) -> tuple[str, Catalogue]:
    from pipeline.config import load_settings

    settings = load_settings(
        bootstrap_servers=bootstrap_servers,
        topic_prefix=prefix,
        partitions=partitions,
        replication_factor=replication_factor,
    )
    return settings.bootstrap_servers, settings.catalogue()

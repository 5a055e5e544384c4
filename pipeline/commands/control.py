"""``paystream control``: what workers follow while they run, shown and changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import BootstrapServers, Prefix

if TYPE_CHECKING:
    from pipeline.domain.model import ControlEntry
    from pipeline.runtime.control_standing import Standing

app = typer.Typer(
    help="Show and change what workers follow while they run: the routing rules.",
    epilog="Example: paystream control show routing",
    no_args_is_help=True,
)


@app.command("show")
def show_command(
    key: Annotated[str | None, typer.Argument(help="Only this entry: routing.")] = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Print the newest entries and what workers follow: version, who, when, why, the document.

    An entry that workers refuse is shown with everything that is wrong with it, and with what is
    in force instead. It is judged by the configuration of this machine.

    Exit code 0: printed, or there is none yet. 1: an entry is refused, or a batch of them cannot
    be decompressed. 2: the cluster is away.

    Examples:

    \b
      paystream control show

    \b
      paystream control show routing
    """
    from pipeline.config import load_settings
    from pipeline.record_codec import record_codec
    from pipeline.runtime.control import read_records
    from pipeline.runtime.control_standing import standing
    from pipeline.runtime.policy_options import policy_of

    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=prefix)
    configured = policy_of(settings.worker_options())
    catalogue = settings.catalogue()
    codec = record_codec(catalogue, settings.schema_registry_url)
    told = read_records(settings.bootstrap_servers, catalogue, codec)
    found = sorted(standing(configured, told).items())
    shown = [stands for name, stands in found if key in (None, name)]
    left_out = [each.unreadable for each in told if not each.key]
    for why in left_out:
        typer.echo(why)
    if not shown:
        typer.echo("there is no entry: the configuration's own rules are in force")
    for stands in shown:
        for line in standing_lines(stands):
            typer.echo(line)
    if left_out or any(stands.problems for stands in shown):
        raise typer.Exit(1)


def standing_lines(stands: Standing) -> list[str]:
    """What stands of a key, for people: a refused entry is never called in force."""
    newest, in_force = stands.newest, stands.in_force
    if not stands.problems:
        return [] if newest is None else [f"{_said(newest)} (in force)", *_document(newest)]
    said = f"the newest record of {stands.key}" if newest is None else _said(newest)
    lines = [f"{said} (refused by workers)", *(f"  {problem}" for problem in stands.problems)]
    if newest is not None:
        lines += _document(newest)
    if in_force is None:
        return [
            *lines,
            "in force instead: the configuration's own rules; workers that took an earlier entry "
            "before it was compacted away keep that one until they restart",
        ]
    return [*lines, f"in force instead: {_said(in_force)}", *_document(in_force)]


def _said(entry: ControlEntry) -> str:
    from datetime import UTC, datetime

    at = datetime.fromtimestamp(entry.changed_at_ms / 1000, UTC)
    return (
        f"{entry.key} version {entry.version}, by {entry.changed_by} at "
        f"{at:%Y-%m-%d %H:%M:%S} UTC: {entry.reason}"
    )


def _document(entry: ControlEntry) -> list[str]:
    import json

    try:
        return [json.dumps(json.loads(entry.value), indent=2)]
    except ValueError:
        return [entry.value]


@app.command("set")
def set_command(
    key: Annotated[str, typer.Argument(help="What to change: routing.")],
    file: Annotated[Path, typer.Argument(help="The document, JSON or TOML.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the entry.")],
    by: Annotated[str | None, typer.Option("--by", help="Who; default: this login's name.")] = None,
    version: Annotated[
        int | None,
        typer.Option(
            "--version", min=0, help="Only if this version is the newest (0: there is none)."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the document; write nothing.")
    ] = False,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Check a document and put it into force; running workers take it within a second.

    It replaces the one before it, whole, and the audit topic keeps who changed it and why. A
    document that names a gateway that is not configured, has shares that are no shares, or rules
    that can never match is refused, with all that is wrong.

    Exit code 0: written. 2: refused, another version is the newest, or the cluster is away.

    Examples:

    \b
      paystream control set routing routes.toml --reason "north is in maintenance"

    \b
      paystream control set routing routes.json --reason "split 3:1" --version 4 --dry-run
    """
    import getpass
    import time

    from pipeline.config import load_settings
    from pipeline.domain.route_rules import ROUTING
    from pipeline.errors import UserError
    from pipeline.record_codec import record_codec
    from pipeline.runtime.control import change_entry
    from pipeline.runtime.policy_options import check_routes, policy_of, read_routes_file

    if key != ROUTING:
        raise UserError(f"there is nothing to control by the name {key!r}; known is {ROUTING}.")
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=prefix)
    text = read_routes_file(file)
    check_routes(policy_of(settings.worker_options()), text, str(file))
    catalogue = settings.catalogue()
    codec = record_codec(catalogue, settings.schema_registry_url)
    if dry_run:
        typer.echo(f"{file} can be used")
        return
    entry = change_entry(
        settings.bootstrap_servers,
        catalogue,
        codec,
        key=key,
        value=text,
        changed_by=by or getpass.getuser(),
        reason=reason,
        now_ms=int(time.time() * 1000),
        newest=version,
    )
    typer.echo(f"{key} version {entry.version} is in force")

"""``paystream schemas``: keep the lock file true, and register schemas at a registry."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands.options import Prefix

app = typer.Typer(
    help="Check the Avro schemas against their locked versions; lock and register new ones.",
    epilog="Example: paystream schemas check",
    no_args_is_help=True,
)


@app.command("check")
def check_command() -> None:
    """Fail when a schema differs from its lock or from what the program holds, or cannot live
    beside an earlier version.

    Exit code 0: all schemas are locked and FULL_TRANSITIVE compatible, and the program has all of
    their fields. 1: the problems printed.

    Example:

    \b
      paystream schemas check
    """
    from pipeline.domain.record_fields import differences
    from schemas.files import SCHEMA_NAMES, has_schema, read_schema
    from schemas.lock import check

    problems = check()
    problems += differences({name: read_schema(name) for name in SCHEMA_NAMES if has_schema(name)})
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(
        "every schema is locked and compatible with its earlier versions, and the program has its "
        "fields"
    )


@app.command("lock")
def lock_command() -> None:
    """Give every new or compatibly changed schema an id; incompatible changes are refused.

    Works in a source tree; commit the .avsc and the lock file together.

    Example:

    \b
      paystream schemas lock
    """
    from schemas.lock import lock

    for line in lock() or ["nothing to lock: every schema is as locked"]:
        typer.echo(line)


@app.command("register")
def register_command(
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            envvar="PAYSTREAM_SCHEMA_REGISTRY_URL",
            help="Base URL of the schema registry.",
        ),
    ] = None,
    prefix: Prefix = None,
) -> None:
    """Register every topic's value schema as FULL_TRANSITIVE; safe to repeat.

    A subject begins with its topic's name, and so with the prefix.

    Examples:

    \b
      paystream schemas register --url http://127.0.0.1:8081

    \b
      paystream schemas register --url https://registry.example.com --prefix eu-
    """
    from pipeline.config import load_settings
    from pipeline.errors import UserError
    from schemas.registry import register

    settings = load_settings(schema_registry_url=url, topic_prefix=prefix)
    if not settings.schema_registry_url:
        raise UserError(
            "No schema registry is configured: name one with --url or PAYSTREAM_SCHEMA_REGISTRY_URL"
        )
    subjects = {
        spec.name: spec.schema for spec in settings.catalogue().topics.values() if spec.schema
    }
    for subject, schema_id in register(settings.schema_registry_url, subjects).items():
        typer.echo(f"{subject}: id {schema_id}")

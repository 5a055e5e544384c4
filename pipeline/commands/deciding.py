"""What the commands have in common that decide about the books: who, why, where."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import UserError, why_unread

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from pipeline.domain.model import LedgerEvent
    from producers.ledger_events import LedgerEvents

Reason = Annotated[str, typer.Option("--reason", help="Why; kept with the decision.")]
MayReason = Annotated[str, typer.Option("--reason", help="Why; kept with the decision.")]
By = Annotated[str | None, typer.Option("--by", help="Who; default: this login's name.")]


@contextmanager
def deciding(
    bootstrap_servers: str | None,
    prefix: str | None,
    ledger_url: str | None,
    *,
    further: bool = True,
) -> Iterator[tuple[Engine, LedgerEvents, str]]:
    """The ledger, its topic of decisions, and the name of the settlements topic.

    What an interrupted command left is taken ``further`` first.
    """
    from pipeline.config import load_settings
    from pipeline.interrupted_queries import heard_in_queries
    from pipeline.ledger.database import open_ledger
    from pipeline.record_codec import record_codec
    from producers.ledger_events import LedgerEvents

    settings = load_settings(
        bootstrap_servers=bootstrap_servers, topic_prefix=prefix, ledger_url=ledger_url
    )
    catalogue = settings.catalogue()
    engine = open_ledger(settings.books_url(), create=False)
    try:
        with heard_in_queries():
            log = LedgerEvents(
                settings.bootstrap_servers,
                catalogue,
                record_codec(catalogue, settings.schema_registry_url),
            )
            # Before anything is decided: a topic that is away is told now, not afterwards.
            log.source()
            if further:
                log.publish(engine)
            yield engine, log, catalogue.name("settlements")
    finally:
        engine.dispose()


def read_document(file: Path, what: str) -> dict[str, Any]:
    """A file of TOML or JSON; UserError when it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"the {what} {file} cannot be read: {why_unread(error)}.") from error
    if not isinstance(found, dict):
        raise UserError(f"the {what} {file} is not a table.")
    return found


def time_ms(said: str) -> int:
    try:
        found = datetime.fromisoformat(said)
    except ValueError:
        raise UserError(f"{said!r} is no time: write YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS.") from None
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return int(found.timestamp() * 1000)


def show_versions(events: Sequence[LedgerEvent], noun: str, part: str) -> None:
    """Each version of what counts from a time on, with who decided it, and its ``part`` as JSON."""
    for event in events:
        body = json.loads(event.body)
        typer.echo(
            f"{noun} {event.sequence} from {shown_time(body['effective_from_ms'])}, by "
            f"{event.actor} at {shown_time(event.decided_at_ms)}: {event.reason}"
        )
        typer.echo(json.dumps(body[part], indent=2))


def shown_time(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def who(by: str | None) -> str:
    """Whoever decides. UserError for a name that cannot be kept."""
    import getpass

    from pipeline.domain.said_text import NAME_LENGTH_MAX, require_text

    name = by or getpass.getuser()
    require_text(name, "the name", NAME_LENGTH_MAX)
    return name

"""What the commands of reconciliation share: ledger and cluster, rules, gateways, files."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.reading_progress import saying_progress
from pipeline.errors import UserError, why_unread

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from consumers.reconciliation import Reconciler
    from pipeline.config import Settings

DOWNLOAD_TIMEOUT_S = 60.0


@contextmanager
def reconciling(
    bootstrap_servers: str | None, prefix: str | None, ledger_url: str | None
) -> Iterator[tuple[Reconciler, Settings]]:
    """Reconciliation over the cluster and the ledger of the settings."""
    from consumers.reconciliation import Reconciler
    from pipeline.config import load_settings
    from pipeline.interrupted_queries import heard_in_queries
    from pipeline.ledger.database import open_ledger
    from pipeline.ledger.no_room import told_where_no_room
    from pipeline.record_codec import record_codec

    settings = load_settings(
        bootstrap_servers=bootstrap_servers, topic_prefix=prefix, ledger_url=ledger_url
    )
    rules = rules_of(settings)
    catalogue = settings.catalogue()
    engine = open_ledger(settings.books_url(), create=False)
    try:
        codec = record_codec(catalogue, settings.schema_registry_url)
        with heard_in_queries(), told_where_no_room():
            yield (
                Reconciler(
                    settings.bootstrap_servers,
                    catalogue,
                    codec,
                    engine,
                    rules,
                    now_ms=now_ms,
                    on_read=saying_progress(),
                ),
                settings,
            )
    finally:
        engine.dispose()


@contextmanager
def kept(ledger_url: str | None) -> Iterator[Connection]:
    """The breaks and totals that are kept, as of one moment."""
    from pipeline.commands.ledger import books
    from pipeline.ledger.reconciliation.tables import is_prepared

    with books(ledger_url) as connection:
        if not is_prepared(connection):
            raise UserError(
                "nothing was ever reconciled on this ledger: `paystream reconcile import` brings "
                "in a report, `paystream reconcile run` compares."
            )
        yield connection


def rules_of(settings: Settings) -> Any:
    """What reconciliation allows, by the settings; UserError for rules that cannot be meant."""
    from pipeline.gateways.configured import gateways_of
    from pipeline.gateways.reports.terms import rules_of as rules_by_contract

    entries = gateways_of(settings.worker_options())
    adapters = {name: entry.adapter for name, entry in entries.items()}
    return rules_by_contract(adapters, _document(settings.reconciliation_rules))


def gateway_of(settings: Settings, wanted: str | None) -> tuple[str, str, str]:
    """Name, adapter and address of the gateway that is meant."""
    from pipeline.gateways.configured import gateways_of

    entries = gateways_of(settings.worker_options())
    name = next(iter(entries)) if wanted is None and len(entries) == 1 else wanted
    if name is None or name not in entries:
        raise UserError(f"say whose it is with --gateway: one of {', '.join(entries)}.")
    return name, entries[name].adapter, entries[name].url.rstrip("/")


def contents(files: list[Path] | None, url: str | None) -> Iterator[tuple[str, bytes]]:
    """Where each is from, and what it holds."""
    if url is None and not files:
        raise UserError("name the files, or a day with --date.")
    for file in files or ():
        try:
            yield str(file), file.read_bytes()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {why_unread(error)}.") from error
    if url is not None:
        yield url, _downloaded(url)


def _downloaded(url: str) -> bytes:
    import urllib.error

    from pipeline.loopback import open_url

    try:
        with open_url(url, timeout=DOWNLOAD_TIMEOUT_S) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        said = error.read(500).decode("utf-8", "replace")
        raise UserError(f"{url} answers {error.code}: {said}") from error
    except OSError as error:
        raise UserError(f"{url} cannot be downloaded: {error}.") from error


def _document(path: str) -> dict[str, Any]:
    if not path:
        return {}
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the reconciliation rules {file} cannot be read: {why_unread(error)}."
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"the reconciliation rules {file} are not a table of gateways.")
    return found


def day_of(said: str) -> date:
    try:
        return date.fromisoformat(said)
    except ValueError:
        raise UserError(f"{said!r} is no date: write YYYY-MM-DD.") from None


def today() -> date:
    return datetime.now(UTC).date()


def now_ms() -> int:
    return time.time_ns() // 1_000_000

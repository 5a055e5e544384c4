"""Schema ids from a registry that speaks Confluent's protocol.

Subjects are ``<topic>-value``. A registry that is away is never taken for an id that does not
exist: at start it is a UserError, later RegistryUnavailable, which pauses the flow.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from pipeline.errors import UserError
from schemas.errors import RegistryUnavailable, UnknownSchemaId
from schemas.files import read_schema
from schemas.ids import without_docs

COMPATIBILITY: Final = "FULL_TRANSITIVE"
# The worker thread waits for an answer, so it is short; the flow pauses and asks again.
REQUEST_TIMEOUT_S: Final = 3.0
# A worker that is refused twice at its start ends the flow, a person waits for a registration, and
# a registry that has just started, or a busy machine, is slow at its first answers.
START_TIMEOUT_S: Final = 30.0
# An id is registered before it is written, so "unknown" is an answer that lasts. It is forgotten
# all the same, for a registry whose replicas lag, and bounded, for noise that looks like ids.
UNKNOWN_KEPT_S: Final = 30.0
UNKNOWN_IDS_MAX: Final = 1_024

# Codes of the protocol's error_code: 404 with either of these is about the id or the subject
# asked for; a 404 without them comes from something that is no registry.
_SCHEMA_NOT_FOUND: Final = 40403
_INCOMPATIBLE: Final = 409
# Of HTTP: who asks is not known, or may not do this.
_NOT_LET_IN: Final = (401, 403)

T = TypeVar("T")


class RegistryIds:
    """Ids as registered. Thread-safe; what was once resolved is never asked for again."""

    def __init__(self, url: str, subjects: Mapping[str, str]) -> None:
        """``subjects``: topic name -> schema name, as in the catalogue.

        Asks the registry for the ids of this program's own schemas; UserError when it is away,
        or when one of them is not registered.
        """
        self._client = client(url, REQUEST_TIMEOUT_S)
        at_start = client(url, START_TIMEOUT_S)
        self._schemas: dict[int, Mapping[str, Any]] = {}
        self._unknown: dict[int, float] = {}
        self._lock = threading.Lock()
        self._current: dict[str, int] = {}
        for topic, name in subjects.items():
            self._current[name] = _registered_id(at_start, url, topic, name)

    def current_id(self, name: str) -> int:
        return self._current[name]

    def schema_of(self, schema_id: int) -> Mapping[str, Any]:
        with self._lock:
            if (known := self._schemas.get(schema_id)) is not None:
                return known
            if self._unknown.get(schema_id, 0.0) > time.monotonic():
                raise UnknownSchemaId(schema_id)
        text = self._fetch(schema_id)
        with self._lock:
            if text is None:
                if len(self._unknown) >= UNKNOWN_IDS_MAX:
                    self._unknown.clear()
                self._unknown[schema_id] = time.monotonic() + UNKNOWN_KEPT_S
                raise UnknownSchemaId(schema_id)
            schema = _as_record(text)
            self._schemas[schema_id] = schema
            return schema

    def _fetch(self, schema_id: int) -> str | None:
        """The schema's text, None when the registry answers that there is none."""
        try:
            found = self._client.get_schema(schema_id)
        except SchemaRegistryError as error:
            if error.error_code == _SCHEMA_NOT_FOUND:
                return None
            raise RegistryUnavailable(f"the schema registry answered: {error}") from error
        except Exception as error:
            # Whatever its HTTP client raises for a server that is away: never "unknown".
            raise RegistryUnavailable(f"the schema registry did not answer: {error}") from error
        return found.schema_str if found.schema_type in (None, "AVRO") else "{}"


def register(url: str, subjects: Mapping[str, str]) -> dict[str, int]:
    """Register each topic's schema; returns the id by subject. Safe to repeat.

    Sets FULL_TRANSITIVE on a subject before the first version enters it. UserError when the
    registry is away, or refuses a schema as incompatible with what is there.
    """
    registry = client(url, START_TIMEOUT_S)

    def register_one(topic: str, name: str) -> int:
        registry.set_compatibility(subject(topic), COMPATIBILITY)
        return registry.register_schema(subject(topic), _schema(name))

    ids: dict[str, int] = {}
    for topic, name in subjects.items():
        try:
            ids[subject(topic)] = _asked(url, partial(register_one, topic, name))
        except SchemaRegistryError as error:
            if error.http_status_code == _INCOMPATIBLE:
                raise UserError(
                    f"The registry at {url} refuses the schema {name} for {subject(topic)}: it is "
                    f"not {COMPATIBILITY} compatible with an earlier version "
                    f"({_said(error)}); undo the change, or give the new field a default"
                ) from error
            raise UserError(
                f"The registry at {url} refuses {subject(topic)}: {_said(error)}"
            ) from error
    return ids


def subject(topic: str) -> str:
    """The registry's name for what a topic's values are."""
    return f"{topic}-value"


def client(url: str, timeout_s: float = REQUEST_TIMEOUT_S) -> SchemaRegistryClient:
    """A client that gives up soon: the flow waits better than a request does."""
    try:
        return SchemaRegistryClient({"url": url, "timeout": timeout_s, "max.retries": 0})
    except (ValueError, TypeError) as error:
        raise UserError(f"{url!r} is no address of a schema registry: {error}") from error


def _registered_id(registry: SchemaRegistryClient, url: str, topic: str, name: str) -> int:
    try:
        found = _asked(url, lambda: registry.lookup_schema(subject(topic), _schema(name)))
    except SchemaRegistryError as error:
        raise UserError(
            f"The schema {name} of this program is not registered as {subject(topic)} at "
            f"{url} ({_said(error)}): run `paystream schemas register` first"
        ) from error
    if found.schema_id is None:
        raise UserError(f"The registry at {url} gives {subject(topic)} no id: see its own log")
    return found.schema_id


def _schema(name: str) -> Schema:
    # Without the texts for people, so that rewording one registers nothing.
    return Schema(json.dumps(without_docs(read_schema(name))), "AVRO")


def _as_record(text: str) -> Mapping[str, Any]:
    """The schema as JSON; what is no record (a bare type, a union) gets a name nothing matches."""
    try:
        schema = json.loads(text)
    except ValueError:
        schema = text
    return schema if isinstance(schema, dict) and "type" in schema else {"type": str(schema)[:80]}


def _said(error: SchemaRegistryError) -> str:
    """What the registry said of it, if it said anything."""
    status = f"HTTP status {error.http_status_code}"
    return f"{error.error_message}, {status}" if error.error_message else status


def _asked(url: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except SchemaRegistryError as error:
        if error.http_status_code in _NOT_LET_IN:
            raise UserError(
                f"The schema registry at {url} does not let this program in (HTTP status "
                f"{error.http_status_code}): it wants credentials, or others than it was given"
            ) from error
        if error.http_status_code >= 500 or error.error_code == SchemaRegistryError.UNKNOWN:
            raise UserError(
                f"The schema registry at {url} does not work ({_said(error)}): see its own log, "
                "or check the address"
            ) from error
        raise
    except Exception as error:
        raise UserError(
            f"No schema registry answers at {url} ({type(error).__name__}): start it, or unset "
            "PAYSTREAM_SCHEMA_REGISTRY_URL to use the locked ids"
        ) from error

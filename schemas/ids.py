"""Where schema ids come from: the committed lock file, or anything else with the same two answers.

The lock (``ids.lock.json``) holds every version of every schema that was ever released, oldest
first, each with the id its records carry. Ids are never reused, so old records stay readable.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, Protocol

from pipeline.errors import UserError
from schemas.errors import UnknownSchemaId
from schemas.files import SCHEMA_NAMES, read_schema

LOCK_FILE: Final = "ids.lock.json"


class SchemaIds(Protocol):
    """Both answers may raise RegistryUnavailable where a registry stands behind them."""

    def current_id(self, name: str) -> int:
        """The id to write records of this schema with."""

    def schema_of(self, schema_id: int) -> Mapping[str, Any]:
        """The schema as JSON that records of this id were written with; else UnknownSchemaId."""


@dataclass(frozen=True)
class LockedVersion:
    """One released version of a schema."""

    id: int
    fingerprint: str
    schema: Mapping[str, Any]


class LockedIds:
    """Ids as committed. Needs no server, so it is the default."""

    def __init__(self, versions: Mapping[str, Sequence[LockedVersion]]) -> None:
        self._current = {name: entries[-1].id for name, entries in versions.items()}
        self._schemas = {v.id: v.schema for entries in versions.values() for v in entries}

    def current_id(self, name: str) -> int:
        return self._current[name]

    def schema_of(self, schema_id: int) -> Mapping[str, Any]:
        try:
            return self._schemas[schema_id]
        except KeyError:
            raise UnknownSchemaId(schema_id) from None


def locked_ids() -> LockedIds:
    """The ids of the packaged lock; UserError when a packaged schema is not what was locked.

    Writing under an id that describes other bytes would make records nobody can read, hence the
    comparison at every start.
    """
    versions = parse_lock((resources.files("schemas") / LOCK_FILE).read_text(encoding="utf-8"))
    for name in SCHEMA_NAMES:
        entries = versions.get(name)
        if not entries or entries[-1].fingerprint != fingerprint(read_schema(name)):
            raise UserError(
                f"schemas/{name}.avsc differs from its entry in schemas/{LOCK_FILE}: "
                "run `paystream schemas lock`, review the change and commit both"
            )
    return LockedIds(versions)


def parse_lock(text: str) -> dict[str, tuple[LockedVersion, ...]]:
    """The lock file's text as versions by schema name, oldest first; UserError when damaged."""
    try:
        entries: dict[str, list[dict[str, Any]]] = json.loads(text)
        versions = {
            name: tuple(LockedVersion(int(e["id"]), e["fingerprint"], e["schema"]) for e in listed)
            for name, listed in entries.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"schemas/{LOCK_FILE} cannot be read ({error!r}): restore it from version control"
        ) from error
    ids = [v.id for listed in versions.values() for v in listed]
    if len(ids) != len(set(ids)):
        raise UserError(
            f"schemas/{LOCK_FILE} uses an id twice: ids are never reused, so restore it from "
            "version control and run `paystream schemas lock` again"
        )
    for name, listed in versions.items():
        for version in listed:
            if version.fingerprint != fingerprint(version.schema):
                raise UserError(
                    f"schemas/{LOCK_FILE}: id {version.id} of {name} was edited by hand; locked "
                    "versions never change, so restore the file from version control"
                )
    return versions


def render_lock(versions: Mapping[str, Sequence[LockedVersion]]) -> str:
    """The lock file's text: stable, one line a version, so that a change reads as added lines."""
    blocks = []
    for name, listed in sorted(versions.items()):
        lines = [
            json.dumps(
                {"id": v.id, "fingerprint": v.fingerprint, "schema": v.schema}, ensure_ascii=False
            )
            for v in listed
        ]
        blocks.append(f"  {json.dumps(name)}: [\n    " + ",\n    ".join(lines) + "\n  ]")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def fingerprint(schema: Mapping[str, Any]) -> str:
    """SHA-256 of what decides reading and resolution: everything but the ``doc`` texts.

    Avro's own parsing canonical form drops defaults and aliases as well, yet those decide how an
    old record reads under a new schema, so they count here.
    """
    canonical = json.dumps(
        without_docs(schema), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def without_docs(schema: Mapping[str, Any], *, logical_types: bool = True) -> dict[str, Any]:
    """A copy of the schema without the texts for people, and without logical types if told so."""
    dropped = {"doc"} if logical_types else {"doc", "logicalType"}

    def strip(node: Any) -> Any:
        if isinstance(node, list):
            return [strip(item) for item in node]
        if isinstance(node, Mapping):
            # A default is data, not schema: a key "doc" in it stays.
            return {
                key: copy.deepcopy(value) if key == "default" else strip(value)
                for key, value in node.items()
                if key not in dropped
            }
        return node

    stripped: dict[str, Any] = strip(schema)
    return stripped

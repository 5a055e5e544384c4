"""Keep the lock file true: ``check`` names what is wrong, ``lock`` adds what is new."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from schemas.files import SCHEMA_NAMES, has_schema, read_schema
from schemas.ids import (
    LOCK_FILE,
    LockedVersion,
    fingerprint,
    parse_lock,
    render_lock,
    without_docs,
)


def lock_path() -> Path:
    """Where the lock lies: beside the schemas, in the source tree."""
    return Path(__file__).with_name(LOCK_FILE)


def read_lock(path: Path | None = None) -> dict[str, tuple[LockedVersion, ...]]:
    """The lock's versions; empty when there is no file yet."""
    path = path or lock_path()
    return parse_lock(path.read_text(encoding="utf-8")) if path.exists() else {}


def current_schemas() -> dict[str, dict[str, Any]]:
    """Every .avsc of this tree by name."""
    return {name: read_schema(name) for name in SCHEMA_NAMES}


def check(
    path: Path | None = None, schemas: Mapping[str, Mapping[str, Any]] | None = None
) -> list[str]:
    """Problems, one sentence each; empty when every schema is locked and compatible."""
    locked = read_lock(path)
    if schemas is None:
        schemas = {name: read_schema(name) for name in SCHEMA_NAMES if has_schema(name)}
    problems = []
    for name, schema in schemas.items():
        versions = locked.get(name, ())
        if not versions:
            problems.append(f"{name}: not in {LOCK_FILE}; run `paystream schemas lock`")
            continue
        if versions[-1].fingerprint != fingerprint(schema):
            problems.append(
                f"{name}: the .avsc differs from its locked version (id {versions[-1].id}); "
                "run `paystream schemas lock` and commit both"
            )
        problems += incompatibilities(name, schema, versions)
    problems += [
        f"{name}: locked, but there is no schemas/{name}.avsc; its records would be unreadable"
        for name in locked
        if name not in schemas
    ]
    return problems


def lock(
    path: Path | None = None, schemas: Mapping[str, Mapping[str, Any]] | None = None
) -> list[str]:
    """Add every new or compatibly changed schema under a new id; returns what was added.

    UserError, and nothing written, when a change is not FULL_TRANSITIVE compatible with every
    version locked before.
    """
    path = path or lock_path()
    locked: dict[str, tuple[LockedVersion, ...]] = read_lock(path)
    schemas = current_schemas() if schemas is None else schemas
    next_id = 1 + max((v.id for versions in locked.values() for v in versions), default=0)
    added, problems = [], []
    for name, schema in sorted(schemas.items()):
        versions = locked.get(name, ())
        if versions and versions[-1].fingerprint == fingerprint(schema):
            continue
        problems += incompatibilities(name, schema, versions)
        entry = LockedVersion(next_id, fingerprint(schema), without_docs(schema))
        locked[name] = (*versions, entry)
        added.append(f"{name}: version {len(versions) + 1}, id {next_id}")
        next_id += 1
    if problems:
        raise UserError(
            "Nothing was locked, because records of earlier versions could not be read any more, "
            "or the new ones by earlier programs:\n  " + "\n  ".join(problems)
        )
    if added:
        path.write_text(render_lock(locked), encoding="utf-8")
    return added


def incompatibilities(
    name: str, schema: Mapping[str, Any], versions: tuple[LockedVersion, ...]
) -> list[str]:
    """Why the schema may not follow these versions; compared with all but its own copy."""
    from schemas.compatibility import full_incompatibilities

    own = fingerprint(schema)
    return [
        f"{name}: not compatible with locked id {version.id}: {reason}"
        for version in versions
        if version.fingerprint != own
        for reason in full_incompatibilities(schema, version.schema)
    ]

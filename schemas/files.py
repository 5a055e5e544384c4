"""The schemas of this version of the program: the .avsc files beside this module."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Final

from pipeline.errors import UserError

SCHEMA_NAMES: Final[tuple[str, ...]] = (
    "audit-entry",
    "clearing",
    "control-entry",
    "dead-letter-marker",
    "gateway-notification",
    "gateway-reference",
    "gateway-result",
    "ledger-event",
    "order",
    "payment",
    "payment-command",
    "payment-due",
    "payment-event",
    "payment-request",
    "reconciliation-break",
    "payout",
    "risk-check",
    "risk-result",
    "risk-velocity",
    "settlement",
)


@cache
def schema_text(name: str) -> str:
    """The text of the .avsc file, read once; KeyError for a name that is not in SCHEMA_NAMES."""
    if name not in SCHEMA_NAMES:
        raise KeyError(name)
    return _file(name).read_text(encoding="utf-8")


def has_schema(name: str) -> bool:
    """Whether there is an .avsc file of this name."""
    return _file(name).is_file()


def _file(name: str) -> Traversable:
    return resources.files("schemas") / f"{name}.avsc"


def read_schema(name: str) -> dict[str, Any]:
    """The .avsc file as plain JSON; UserError when it is none, or missing."""
    try:
        schema = json.loads(schema_text(name))
    except FileNotFoundError as error:
        raise UserError(
            f"schemas/{name}.avsc is missing; restore the file from version control"
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"schemas/{name}.avsc is not JSON: {error.msg} at line {error.lineno}, column "
            f"{error.colno}; correct it there, or restore the file from version control"
        ) from error
    if not isinstance(schema, dict):
        raise UserError(f"schemas/{name}.avsc is not a JSON object")
    return schema


def full_name(schema: dict[str, Any]) -> str:
    """The record's name with its namespace, as ``io.paystream.v1.Order``."""
    name, namespace = str(schema["name"]), schema.get("namespace")
    return name if "." in name or not namespace else f"{namespace}.{name}"

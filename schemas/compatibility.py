"""Whether two versions of a schema can read each other, by Avro's own rules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError


def full_incompatibilities(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Reasons why new cannot read old, or old cannot read new; empty when both can (FULL)."""
    return [
        *(f"new cannot read old: {reason}" for reason in read_incompatibilities(new, old)),
        *(f"old cannot read new: {reason}" for reason in read_incompatibilities(old, new)),
    ]


def read_incompatibilities(reader: Mapping[str, Any], writer: Mapping[str, Any]) -> list[str]:
    """Reasons why the reader's schema cannot read records of the writer's."""
    try:
        from avro.compatibility import (
            ReaderWriterCompatibilityChecker,
            SchemaCompatibilityType,
        )
        from avro.errors import AvroException
        from avro.schema import parse
    except ImportError as error:
        raise UserError(
            "Comparing schema versions needs the package avro: install paystream[dev]"
        ) from error

    try:
        reader_schema, writer_schema = parse(json.dumps(reader)), parse(json.dumps(writer))
    except AvroException as error:
        return [f"not an Avro schema: {error}"]
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]  # avro's own gap
    result = checker.get_compatibility(reader_schema, writer_schema)
    if result.compatibility is SchemaCompatibilityType.compatible:
        return []
    reasons = [
        f"{message} at {location}"
        for message, location in zip(
            sorted(result.messages), sorted(result.locations), strict=False
        )
    ]
    return reasons or ["incompatible"]

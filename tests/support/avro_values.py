"""Hypothesis strategies for records of our Avro schemas, each built once."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from schemas.codec import SCHEMA_NAMES
from schemas.files import read_schema

_SIMPLE: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "string": st.text(max_size=80),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
}


@cache
def records_of(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Any record that a schema allows."""
    return _values_of(read_schema(name))


@cache
def named_records() -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """Any record of any schema, with the schema's name."""
    return st.sampled_from(SCHEMA_NAMES).flatmap(_named)


@cache
def _named(name: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.tuples(st.just(name), records_of(name))


def with_defaults(fields: list[dict[str, Any]], record: dict[str, Any]) -> dict[str, Any]:
    """The record with what its schema's fields have besides, so that a new one changes no test."""
    return {**{f["name"]: f["default"] for f in fields if "default" in f}, **record}


def _values_of(schema: Any) -> st.SearchStrategy[Any]:
    if isinstance(schema, list):
        return st.one_of([_values_of(branch) for branch in schema])
    kind = schema if isinstance(schema, str) else schema["type"]
    if kind == "record":
        return st.fixed_dictionaries({f["name"]: _values_of(f["type"]) for f in schema["fields"]})
    if kind == "array":
        return st.lists(_values_of(schema["items"]), max_size=4)
    return _SIMPLE[kind]

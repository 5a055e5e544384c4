"""Whether each Struct has the fields of its Avro schema, which only a record would find out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin

import msgspec

from pipeline.domain.records import FROM_RECORD, SCHEMA_OF

_AVRO: Final[Mapping[Any, str]] = {
    NoneType: "null",
    str: "string",
    int: "long",
    bool: "boolean",
    tuple: "array",
}


def differences(schemas: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What schemas and Structs do not have in common, a sentence for each field; empty when every
    record can become its Struct and back. ``schemas``: each .avsc by name."""
    structs = {name: struct for struct, name in SCHEMA_OF.items()}
    found = [
        f"{name}: no Struct is made of it; name one in SCHEMA_OF, TO_RECORD and FROM_RECORD of "
        "pipeline/domain/records.py"
        for name in schemas
        if name not in structs or name not in FROM_RECORD
    ]
    for name, schema in schemas.items():
        if name in structs:
            file = f"schemas/{name}.avsc"
            try:
                found += [f"{name}: {each}" for each in _of_record(file, schema, structs[name])]
            except (KeyError, TypeError):
                found.append(f"{name}: {file} is no schema of a record, or a part of it is missing")
    return found


def _of_record(file: str, schema: Mapping[str, Any], struct: type, at: str = "") -> Iterator[str]:
    where = f"{struct.__name__} in {struct.__module__.replace('.', '/')}.py"
    told = {field["name"]: field["type"] for field in schema["fields"]}
    kept = {field.name: field.type for field in msgspec.structs.fields(struct)}
    for name in sorted(told.keys() - kept.keys()):
        yield f"{file} has the field {at}{name}, and {where} has not; add it there"
    for name in sorted(kept.keys() - told.keys()):
        yield (
            f"{where} has the field {at}{name}, and {file} has not; add it there and run "
            "`paystream schemas lock`"
        )
    for name in sorted(told.keys() & kept.keys()):
        yield from _of_field(file, told[name], where, kept[name], at + name)


def _of_field(file: str, avro: Any, where: str, hint: Any, at: str) -> Iterator[str]:
    there, here = _branches(avro), _hints(hint)
    if there.keys() != here.keys():
        yield f"{at} is {_words(there)} in {file}, and {_words(here)} in {where}; they must agree"
        return
    if "array" in there:
        yield from _of_field(
            file, there["array"]["items"], where, get_args(here["array"])[0], f"{at}[]"
        )
    if "record" in there:
        yield from _of_record(file, there["record"], here["record"], f"{at}.")


def _branches(avro: Any) -> dict[str, Any]:
    """What a field of a schema may hold, by Avro's word for it; all whole numbers are long."""
    every = avro if isinstance(avro, list) else [avro]
    words = [(each if isinstance(each, str) else each["type"], each) for each in every]
    return {"long" if word == "int" else word: each for word, each in words}


def _hints(hint: Any) -> dict[str, Any]:
    """The same of a Struct's field."""
    every = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {_word(each): each for each in every}


def _word(hint: Any) -> str:
    kind = get_origin(hint) or hint
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "record"
    return _AVRO.get(kind) or str(hint)


def _words(kinds: Mapping[str, Any]) -> str:
    return " or ".join(sorted(kinds))

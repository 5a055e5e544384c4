"""Records to bytes and back: Avro in the Confluent wire format.

A record is the byte 0, the schema's id in four bytes (big endian) and the Avro body. This is the
hot path: ``encoder`` and ``decoder`` return closures that are bound once and called per record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, Final

import fastavro
from fastavro.read import SchemaResolutionError
from fastavro.schema import SchemaParseException

from schemas.errors import DecodeError, EncodeError, UnknownSchemaId
from schemas.files import SCHEMA_NAMES, full_name, read_schema
from schemas.ids import SchemaIds, locked_ids, without_docs

__all__ = ["SCHEMA_NAMES", "Codec", "Decoder", "Encoder", "Record", "default_codec", "load_schemas"]

Record = dict[str, Any]
Encoder = Callable[[Record], bytes]
Decoder = Callable[[bytes], Record]

MAGIC: Final = b"\x00"
HEADER_BYTES: Final = 5


def default_codec() -> Codec:
    """The codec over the committed lock file; UserError when the lock is stale."""
    return Codec(locked_ids())


def load_schemas() -> dict[str, Any]:
    """Every schema, parsed by fastavro, by its name in SCHEMA_NAMES."""
    return {name: fastavro.parse_schema(read_schema(name)) for name in SCHEMA_NAMES}


class Codec:
    """Encoders and decoders over one source of schema ids."""

    def __init__(self, ids: SchemaIds) -> None:
        self._ids = ids
        self._schemas = load_schemas()

    def encoder(self, name: str) -> Encoder:
        """Record -> header and body. EncodeError when the record does not fit its schema."""
        schema = self._schemas[name]
        header = wire_header(self._ids.current_id(name))
        write = fastavro.schemaless_writer
        whole, nested = _whole_numbers(read_schema(name))

        def encode(record: Record) -> bytes:
            # fastavro cuts a float or Decimal off to a long without a word, and amounts are longs.
            for field, bound in whole:
                _check_whole(name, field, bound, record.get(field))
            for field, inner in nested:
                for item in record.get(field) or ():
                    for part, bound in inner:
                        _check_whole(name, part, bound, item.get(part))
            out = BytesIO()
            out.write(header)
            try:
                write(out, schema, record, strict_allow_default=True)
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
                raise EncodeError(f"{name}: {error}") from error
            return out.getvalue()

        return encode

    def decoder(self, name: str) -> Decoder:
        """Header and body -> record with every field of the current schema.

        Records of other known versions of the same schema are resolved to the current one.
        Raises DecodeError for anything that is not such a record, and nothing else, except
        RegistryUnavailable from a source of ids that had to be asked.
        """
        schema = self._schemas[name]
        header = wire_header(self._ids.current_id(name))
        writers: dict[int, Any] = {}
        read = fastavro.schemaless_reader

        def decode(value: bytes) -> Record:
            if value is None:
                raise DecodeError("not_wire_format", "a record without a value")
            body = BytesIO(value)
            if body.read(HEADER_BYTES) == header:
                writer, reader = schema, None
            else:
                schema_id = wire_id(value)
                writer = writers.get(schema_id)
                if writer is None:
                    writer = writers[schema_id] = self._writer_schema(name, schema_id)
                reader = schema
            try:
                record: Any = read(body, writer, reader)
            except SchemaResolutionError as error:
                raise DecodeError("wrong_schema", f"the writer's schema: {error}") from None
            except (EOFError, IndexError, UnicodeDecodeError) as error:
                raise _body_error(error, body, value) from None
            except Exception as error:
                # fastavro raises many kinds from its compiled part; all mean the same here.
                raise DecodeError("malformed", f"{type(error).__name__} in the body") from None
            if body.tell() != len(value):
                raise DecodeError("trailing_bytes", f"{len(value) - body.tell()} bytes too many")
            return record  # type: ignore[no-any-return]

        return decode

    def _writer_schema(self, name: str, schema_id: int) -> Any:
        try:
            plain = dict(self._ids.schema_of(schema_id))
        except UnknownSchemaId as error:
            raise DecodeError("unknown_schema_id", str(error)) from None
        expected = full_name(read_schema(name))
        try:
            found = full_name(plain)
            if found != expected:
                raise DecodeError("wrong_schema", f"id {schema_id} is {found}, not {expected}")
            # A writer's logical type would make a datetime of a field that is a plain long here.
            return fastavro.parse_schema(without_docs(plain, logical_types=False))
        except (SchemaParseException, KeyError, TypeError, ValueError) as error:
            raise DecodeError("wrong_schema", f"id {schema_id}: {error}") from None


_Whole = tuple[tuple[str, int], ...]
_BOUNDS: Final = {"int": 2**31, "long": 2**63}


def _check_whole(name: str, field: str, bound: int, value: Any) -> None:
    if type(value) is int:
        if -bound <= value < bound:
            return
        raise EncodeError(f"{name}.{field}: {value} is out of range")
    if value is not None:
        raise EncodeError(f"{name}.{field}: {type(value).__name__} is no whole number")


def _whole_numbers(schema: Mapping[str, Any]) -> tuple[_Whole, tuple[tuple[str, _Whole], ...]]:
    """The int and long fields of a record with their bounds, and those of records in arrays."""
    whole: list[tuple[str, int]] = []
    nested: list[tuple[str, _Whole]] = []
    for field in schema["fields"]:
        kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
        for kind in kinds:
            if kind in ("int", "long"):
                whole.append((field["name"], _BOUNDS[kind]))
            elif isinstance(kind, dict) and kind.get("type") == "array":
                inner, _ = _whole_numbers(kind["items"])
                nested.append((field["name"], inner))
    return tuple(whole), tuple(nested)


def wire_header(schema_id: int) -> bytes:
    """The five bytes every record of this schema starts with."""
    return MAGIC + schema_id.to_bytes(4, "big")


def wire_id(value: bytes) -> int:
    """The schema id of a record; DecodeError not_wire_format when there is none."""
    if len(value) < HEADER_BYTES or value[:1] != MAGIC:
        raise DecodeError("not_wire_format", f"{len(value)} bytes without a schema id in front")
    return int.from_bytes(value[1:HEADER_BYTES], "big")


def _body_error(error: Exception, body: BytesIO, value: bytes) -> DecodeError:
    if isinstance(error, UnicodeDecodeError) or (
        isinstance(error, IndexError) and body.tell() < len(value)
    ):
        return DecodeError("malformed", f"{type(error).__name__} at byte {body.tell()}")
    return DecodeError("truncated", f"{len(value)} bytes end inside the record")

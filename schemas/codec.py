"""Records to bytes and back: Avro in the Confluent wire format.

A record is the byte 0, the schema's id in four bytes (big endian) and the Avro body. This is the
hot path: ``encoder`` and ``decoder`` return closures that are bound once and called per record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, Final

import fastavro
from fastavro.schema import SchemaParseException

from schemas.compiled import UnsupportedSchema, compile_decoder, compile_encoder
from schemas.errors import DecodeError, UnknownSchemaId
from schemas.files import SCHEMA_NAMES, full_name, read_schema
from schemas.ids import SchemaIds, locked_ids, without_docs

__all__ = ["SCHEMA_NAMES", "Codec", "Decoder", "Encoder", "Record", "default_codec", "load_schemas"]

Record = dict[str, Any]
Encoder = Callable[[Any], bytes]
Decoder = Callable[[bytes], Any]

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
        self._plain = {name: read_schema(name) for name in SCHEMA_NAMES}
        self._parsed = load_schemas()

    def encoder(self, name: str, *, attributes: bool = False) -> Encoder:
        """Record -> header and body; KeyError for a name that is not in SCHEMA_NAMES.

        The record is a dict, or with ``attributes`` an object with an attribute for each field,
        such as the Structs of the domain. A missing key takes the schema's default. EncodeError
        when the record does not fit: an unknown field, a float for minor units, out of range.
        """
        header = wire_header(self._ids.current_id(name))
        return compile_encoder(self._plain[name], header, attributes=attributes)

    def decoder(self, name: str, *, into: Mapping[str, type] | None = None) -> Decoder:
        """Header and body -> record with every field of the current schema.

        The record is a dict, or with ``into`` (record name -> class, nested records included, as
        ``{"Order": Order, "OrderLine": OrderLine}``) an instance made with keyword arguments.
        Records of other known versions of the same schema are resolved to the current one. Raises
        DecodeError for anything that is not such a record, and nothing else, except
        RegistryUnavailable from a source of ids that had to be asked.
        """
        header = wire_header(self._ids.current_id(name))
        resolvers: dict[int, Callable[[bytes], bytes]] = {}

        def other(value: bytes) -> Any:
            schema_id = wire_id(value)
            resolve = resolvers.get(schema_id)
            if resolve is None:
                resolve = resolvers[schema_id] = self._resolver(name, schema_id)
            return decode(resolve(value))

        decode = compile_decoder(self._plain[name], header, other, into=into)
        return decode

    def _resolver(self, name: str, schema_id: int) -> Callable[[bytes], bytes]:
        """What makes a record of the current version out of one of another version."""
        written = self._written_schema(name, schema_id)
        header = wire_header(schema_id)
        try:
            strict = compile_decoder(written, header, _never)
            writer = fastavro.parse_schema(written)
        except (
            UnsupportedSchema, SchemaParseException, LookupError, TypeError, ValueError,
        ) as error:  # fmt: skip
            raise DecodeError("wrong_schema", f"id {schema_id}: {error}") from None
        reader = self._parsed[name]
        encode = self.encoder(name)

        def resolve(value: bytes) -> bytes:
            strict(value)  # names every malformed input, and bounds what fastavro will allocate
            try:
                record: Any = fastavro.schemaless_reader(
                    BytesIO(value[HEADER_BYTES:]), writer, reader
                )
                return encode(record)
            except Exception as error:
                # The bytes are good, so it is the schemas that do not go together; fastavro has
                # many exceptions to say so, some from compiled code.
                raise DecodeError("wrong_schema", f"id {schema_id}: {error}") from None

        return resolve

    def _written_schema(self, name: str, schema_id: int) -> dict[str, Any]:
        try:
            written = without_docs(self._ids.schema_of(schema_id), logical_types=False)
        except UnknownSchemaId as error:
            raise DecodeError("unknown_schema_id", str(error)) from None
        expected = full_name(self._plain[name])
        found = full_name(written) if "name" in written else str(written.get("type"))
        if found != expected:
            raise DecodeError("wrong_schema", f"id {schema_id} is {found}, not {expected}")
        return written


def _never(value: bytes) -> Any:
    raise DecodeError("wrong_schema", f"id {wire_id(value)} was given to another id's resolver")


def wire_header(schema_id: int) -> bytes:
    """The five bytes every record of this schema starts with."""
    return MAGIC + schema_id.to_bytes(4, "big")


def wire_id(value: bytes | None) -> int:
    """The schema id of a record; DecodeError not_wire_format when there is none."""
    if value is None:
        raise DecodeError("not_wire_format", "a record without a value")
    if len(value) < HEADER_BYTES or value[:1] != MAGIC:
        raise DecodeError("not_wire_format", f"{len(value)} bytes without a schema id in front")
    return int.from_bytes(value[1:HEADER_BYTES], "big")

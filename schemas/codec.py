"""Records to bytes and back: Avro in the Confluent wire format.

A record is the byte 0, the schema's id in four bytes (big endian) and the Avro body. This is the
hot path: ``encoder`` and ``decoder`` return closures that are bound once and called per record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from io import BytesIO
from typing import Any, Final

import fastavro
from fastavro.read import SchemaResolutionError
from fastavro.schema import SchemaParseException

from schemas.compiled_writer import Writer, compile_writer
from schemas.errors import DecodeError, EncodeError, UnknownSchemaId
from schemas.files import SCHEMA_NAMES, full_name, read_schema
from schemas.ids import SchemaIds, locked_ids, without_docs

__all__ = ["SCHEMA_NAMES", "Codec", "Decoder", "Encoder", "Record", "default_codec", "load_schemas"]

Record = dict[str, Any]
Encoder = Callable[[Record], bytes]
Decoder = Callable[[bytes], Record]

MAGIC: Final = b"\x00"
HEADER_BYTES: Final = 5
SMALL: Final = 2**31
# What a record may have. A line of an order takes five bytes at least and 300 once it is read, so
# this is 250 MiB of a reader's memory; what 1 MiB on the wire unfolds to would be gigabytes.
RECORD_BYTES_MAX: Final = 4 * 1024 * 1024
# Rows of the table: nobody else writes them, and one of a version without limits has to be read.
_OWN_STATE: Final = frozenset({"payment"})
# What a writer raises for a record that does not fit.
_MISFITS: Final = (TypeError, ValueError, KeyError, AttributeError, OverflowError)


@cache
def default_codec() -> Codec:
    """The codec over the committed lock file, made once; UserError when the lock is stale."""
    return Codec(locked_ids())


def load_schemas() -> dict[str, Any]:
    """Every schema, parsed by fastavro, by its name in SCHEMA_NAMES."""
    return {name: fastavro.parse_schema(read_schema(name)) for name in SCHEMA_NAMES}


class Codec:
    """Encoders and decoders over one source of schema ids."""

    def __init__(self, ids: SchemaIds) -> None:
        self._ids = ids
        self._schemas = load_schemas()

    def encoder(self, name: str, *, checked: bool = True) -> Encoder:
        """Record -> header and body. EncodeError when the record does not fit its schema.

        ``checked`` also refuses what would be written without a word: unknown fields, a float or
        Decimal for a whole number (fastavro cuts it off), an int too large for its field. The
        engine leaves it out and writes by code made for the schema, at less than half of the cost:
        its values were decoded from Avro or made by integer arithmetic, and none of its fields is
        missing.
        """
        header = wire_header(self._ids.current_id(name))
        if not checked:
            return _unchecked(name, _writer(name, header))
        schema = self._schemas[name]
        write = fastavro.schemaless_writer
        small, nested = _small_numbers_of(name)
        of_avro = _AVRO_TYPES.issuperset

        def check(record: Record) -> None:
            # fastavro cuts a float or Decimal off to a long without a word, and amounts are longs;
            # nor does it mind an int that no other reader can take.
            if not of_avro(map(type, record.values())):
                raise _misfit(name, record)
            for field in small:
                if not -SMALL <= (record.get(field) or 0) < SMALL:
                    raise EncodeError(f"{name}.{field}: {record[field]} is out of range")
            for field, inner in nested:
                for item in record.get(field) or ():
                    if not of_avro(map(type, item.values())):
                        raise _misfit(f"{name}.{field}", item)
                    for part in inner:
                        if not -SMALL <= (item.get(part) or 0) < SMALL:
                            raise EncodeError(f"{name}.{field}.{part}: out of range")

        def encode(record: Record) -> bytes:
            out = BytesIO()
            out.write(header)
            try:
                check(record)
                write(out, schema, record, strict_allow_default=True)
            except _MISFITS as error:
                raise EncodeError(f"{name}: {error}") from error
            return out.getvalue()

        return encode

    def decoder(self, name: str) -> Decoder:
        """Header and body -> record with every field of the current schema.

        Records of other known versions of the same schema are resolved to the current one.
        Raises DecodeError for anything that is not such a record, and nothing else, except
        RegistryUnavailable from a source of ids that had to be asked. One of more than
        RECORD_BYTES_MAX is not read, but for rows of the table.
        """
        schema = self._schemas[name]
        header = wire_header(self._ids.current_id(name))
        writers: dict[int, Any] = {}
        small, nested = _small_numbers_of(name)
        read = fastavro.schemaless_reader
        is_bounded = name not in _OWN_STATE

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
            if is_bounded and len(value) > RECORD_BYTES_MAX:
                raise DecodeError(
                    "record_too_large",
                    f"{len(value):,} bytes, of which a record may have {RECORD_BYTES_MAX:,}",
                )
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
            # fastavro reads an int of any size; no other reader does, and none may write it again.
            for field in small:
                if not -SMALL <= (record[field] or 0) < SMALL:
                    raise DecodeError("malformed", f"{field} is no int of 32 bits")
            for field, inner in nested:
                for item in record[field] or ():
                    for part in inner:
                        if not -SMALL <= (item[part] or 0) < SMALL:
                            raise DecodeError("malformed", f"{field}.{part} is no int of 32 bits")
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


@cache
def _writer(name: str, header: bytes) -> Writer:
    return compile_writer(read_schema(name), header)


def _unchecked(name: str, write: Writer) -> Encoder:
    def encode(record: Record) -> bytes:
        try:
            return write(record)
        except _MISFITS as error:
            raise EncodeError(f"{name}{_where(name, record)}: {error}") from error

    return encode


def _where(name: str, record: Record) -> str:
    """The first field that does not fit, by writing each alone; of the record if none is alone."""
    for field, write in _field_writers(name):
        try:
            write(record)
        except _MISFITS:
            return f".{field}"
    return ""


@cache
def _field_writers(name: str) -> tuple[tuple[str, Writer], ...]:
    """Made at the first misfit of a schema: most processes meet none, and a flood of them is no
    reason to compile each field again for each."""
    return tuple(
        (field["name"], compile_writer({"name": name, "fields": [field]}))
        for field in read_schema(name)["fields"]
    )


# What a value of our schemas is in Python: they hold no float, and no money is one.
_AVRO_TYPES: Final = frozenset({str, int, type(None), list, tuple})


def _misfit(name: str, record: Record) -> EncodeError:
    field = next(f for f, value in record.items() if type(value) not in _AVRO_TYPES)
    return EncodeError(f"{name}.{field}: {type(record[field]).__name__} is not what it holds")


@cache
def _small_numbers_of(
    name: str,
) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    """``_small_numbers`` of this version's schema, which is the same for the process's life."""
    return _small_numbers(read_schema(name))


def _small_numbers(
    schema: Mapping[str, Any],
) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    """The 32-bit fields of a record, and those of the records in each of its arrays."""
    small: list[str] = []
    nested: list[tuple[str, tuple[str, ...]]] = []
    for field in schema["fields"]:
        kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
        for kind in kinds:
            if kind == "int":
                small.append(field["name"])
            elif isinstance(kind, dict) and isinstance(kind.get("items"), dict):
                nested.append((field["name"], _small_numbers(kind["items"])[0]))
    return tuple(small), tuple(nested)


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

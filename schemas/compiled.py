"""Avro bodies by generated Python: one function for each schema, written out field by field.

Why not fastavro on the hot path: it takes two and a half times as long for our records, and it is
lenient where money is concerned: a float given for a long is cut off without a word, an int out of
range is written, a negative union branch is read. Here every such thing is an error. fastavro
stays the reference (a property test holds both against each other) and resolves old versions.

Generated code is limited to what the schemas need; ``UnsupportedSchema`` says where it ends.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from schemas.errors import DecodeError, EncodeError
from schemas.files import full_name

# A varint takes seven bits a byte, so two table look-ups write up to 28 bits, three up to 42
# (epoch milliseconds until 2039). Two tables of 2^14 entries are about 1.2 MB a process.
_CHUNK_BITS: Final = 14
_CHUNK: Final = 1 << _CHUNK_BITS
_LAST = tuple(
    bytes((i,)) if i < 128 else bytes((i & 127 | 128, i >> 7)) for i in range(_CHUNK)
)  # ends the number, in as few bytes as it takes
_MORE = tuple(bytes((i & 127 | 128, i >> 7 | 128)) for i in range(_CHUNK))  # more bytes follow
_SMALL = _LAST[::2]  # the zigzag form of 0..8191: lengths, counts and small amounts


class UnsupportedSchema(Exception):
    """The schema uses something this module writes no code for."""


def compile_encoder(
    schema: Mapping[str, Any], header: bytes, *, attributes: bool = False
) -> Callable[[Any], bytes]:
    """A function from a record to header and body.

    Records are dicts, or with ``attributes`` objects with an attribute for each field. A missing
    key takes the field's default; EncodeError for all that does not fit.
    """
    writer = _Writer(attributes)
    function = writer.record(schema, "header")
    encode = writer.build(function, header=header)

    def checked(record: Any) -> bytes:
        try:
            encoded: bytes = encode(record)
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            raise EncodeError(_misfit(schema, record, attributes) or repr(error)) from None
        return encoded

    return checked


def compile_decoder(
    schema: Mapping[str, Any],
    header: bytes,
    other: Callable[[bytes], Any],
    *,
    into: Mapping[str, type] | None = None,
) -> Callable[[bytes], Any]:
    """A function from header and body to a record; ``other`` takes what has another header.

    Records become dicts, or with ``into`` instances of the class of the record's plain name, made
    with keyword arguments, and arrays tuples. Raises DecodeError truncated, malformed or
    trailing_bytes. Time and memory are bounded by the length of the input.
    """
    reader = _Reader(into)
    return reader.build(schema, header=header, other=other)


# --- writing -------------------------------------------------------------------------------------


def _write_long(value: int) -> bytes:
    zigzag = value << 1 if value >= 0 else (~value << 1) | 1
    if zigzag < _CHUNK:
        return _LAST[zigzag]
    if zigzag >> 64:
        raise OverflowError("more than 64 bits")
    parts = []
    while zigzag >= _CHUNK:
        parts.append(_MORE[zigzag & (_CHUNK - 1)])
        zigzag >>= _CHUNK_BITS
    parts.append(_LAST[zigzag])
    return b"".join(parts)


def _write_int(value: int) -> bytes:
    if not -0x8000_0000 <= value <= 0x7FFF_FFFF:
        raise OverflowError("more than 32 bits")
    return _write_long(value)


def _write_boolean(value: bool) -> bytes:
    if value is True:
        return b"\x01"
    if value is False:
        return b"\x00"
    raise TypeError("not a boolean")


def _write_bytes(value: bytes) -> bytes:
    if type(value) is not bytes:
        raise TypeError("not bytes")
    return _write_long(len(value)) + value


def _array_start(value: Sequence[Any]) -> bytes:
    """The count of the one block; for an empty array that is all of it."""
    if not isinstance(value, (list, tuple)):
        raise TypeError("not an array")
    return _write_long(len(value))


class _Writer:
    """Collects one function for each record; functions return bytes."""

    def __init__(self, attributes: bool) -> None:
        self._attributes = attributes
        self._lines: list[str] = []
        self._names: dict[str, Any] = {
            "SMALL": _SMALL,
            "write_long": _write_long,
            "write_int": _write_int,
            "write_boolean": _write_boolean,
            "write_bytes": _write_bytes,
            "array_start": _array_start,
            "join": b"".join,
        }
        self._count = 0

    def build(self, function: str, **names: Any) -> Callable[[Any], bytes]:
        return _execute(self._lines, function, {**self._names, **names})

    def record(self, schema: Mapping[str, Any], first: str | None = None) -> str:
        """Emits the function of a record; ``first`` is put in front of its fields."""
        lines: list[str] = []
        parts = [first] if first else []
        fields = _fields(schema)
        if not self._attributes:
            known = self._constant(frozenset(f["name"] for f in fields))
            lines.append(f" if len(r) != {len(fields)} and not r.keys() <= {known}:")
            lines.append("  raise KeyError('unknown field')")
        for field in fields:
            variable = self._new("v")
            lines.append(f" {variable} = {self._access(field)}")
            parts += self._value(field["type"], variable, lines, " ")
        name = self._new("record")
        tail = "," if len(parts) == 1 else ""
        self._lines += [f"def {name}(r):", *lines, f" return join(({', '.join(parts)}{tail}))"]
        return name

    def _access(self, field: Mapping[str, Any]) -> str:
        name = field["name"]
        if self._attributes:
            return f"r.{name}"
        if "default" in field:
            return f"r.get({name!r}, {self._constant(field['default'])})"
        return f"r[{name!r}]"

    def _value(self, schema: Any, variable: str, lines: list[str], indent: str) -> list[str]:
        """Emits what prepares a value, returns the expressions of its bytes."""
        schema = _plain(schema)
        kind = _kind(schema)
        if kind in ("int", "long"):
            return [f"SMALL[{variable}] if 0 <= {variable} < 8192 else write_{kind}({variable})"]
        if kind in ("boolean", "bytes"):
            return [f"write_{kind}({variable})"]
        if kind == "string":
            length = self._new("n")
            lines.append(f"{indent}{variable} = {variable}.encode()")
            lines.append(f"{indent}{length} = len({variable})")
            return [f"SMALL[{length}] if {length} < 8192 else write_long({length})", variable]
        if kind == "record":
            return [f"{self.record(schema)}({variable})"]
        if kind == "array":
            return [self._array(schema, variable)]
        if kind == "union" and len(schema) == 2 and "null" in schema:
            return self._optional(schema, variable, lines, indent)
        raise UnsupportedSchema(f"no code is generated to write {kind}")

    def _array(self, schema: Mapping[str, Any], variable: str) -> str:
        item = self._new("item")
        if _kind(schema["items"]) == "record":
            item = self.record(schema["items"])
        else:
            lines: list[str] = []
            parts = self._value(schema["items"], "r", lines, " ")
            self._lines += [f"def {item}(r):", *lines, f" return join(({', '.join(parts)},))"]
        return (
            f"array_start({variable}) + join([{item}(i) for i in {variable}]) + b'\\0' "
            f"if {variable} else array_start({variable})"
        )

    def _optional(
        self, schema: Sequence[Any], variable: str, lines: list[str], indent: str
    ) -> list[str]:
        null = schema.index("null")
        inner = schema[1 - null]
        nothing, something = _SMALL[null], _SMALL[1 - null]
        result = self._new("o")
        lines.append(f"{indent}if {variable} is None: {result} = {nothing!r}")
        lines.append(f"{indent}else:")
        parts = self._value(inner, variable, lines, indent + " ")
        lines.append(f"{indent} {result} = {something!r} + " + " + ".join(f"({p})" for p in parts))
        return [result]

    def _constant(self, value: Any) -> str:
        name = self._new("c")
        self._names[name] = value
        return name

    def _new(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"


# --- reading -------------------------------------------------------------------------------------


class _Malformed(Exception):
    """No Avro writer makes these bytes."""


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number before its zigzag is undone, and where it ends. IndexError past the end."""
    byte = data[at + 1]
    number = data[at] & 127 | (byte & 127) << 7
    if byte < 128:
        return number, at + 2
    byte = data[at + 2]
    number |= (byte & 127) << 14
    if byte < 128:
        return number, at + 3
    shift = 21
    for position in range(at + 3, at + 10):  # 64 bits take ten bytes at most
        byte = data[position]
        number |= (byte & 127) << shift
        if byte < 128:
            if number >> 64:
                break
            return number, position + 1
        shift += 7
    raise _Malformed("a number of more than 64 bits")


def _raise(why: str) -> None:
    raise _Malformed(why)


class _Reader:
    """Collects the statements of one function that walks through ``d`` at position ``p``."""

    def __init__(self, into: Mapping[str, type] | None) -> None:
        self._into = into
        self._lines: list[str] = []
        self._names: dict[str, Any] = {"varint": _read_varint, "bad": _raise}
        self._known: dict[str, Any] = {}
        self._open: set[str] = set()
        self._count = 0

    def build(
        self, schema: Mapping[str, Any], *, header: bytes, other: Callable[[bytes], Any]
    ) -> Callable[[bytes], Any]:
        result = self._value(schema, "  ", "")
        lines = [
            "def decode(d):",
            " if d is None or d[:5] != header: return other(d)",
            " p = e = 5",
            " try:",
            *self._lines,
            " except IndexError:",
            "  raise truncated(d) from None",
            " except UnicodeDecodeError:",
            "  raise (truncated(d) if e > len(d) else malformed('text is not UTF-8')) from None",
            " except Malformed as error:",
            "  raise malformed(error) from None",
            " if p != len(d): raise truncated(d) if p > len(d) else trailing(len(d) - p)",
            f" return {result}",
        ]
        names = {
            "header": header,
            "other": other,
            "Malformed": _Malformed,
            "truncated": lambda d: DecodeError("truncated", f"{len(d)} bytes end in the record"),
            "malformed": lambda error: DecodeError("malformed", str(error)),
            "trailing": lambda extra: DecodeError("trailing_bytes", f"{extra} bytes too many"),
        }
        return _execute(lines, "decode", {**self._names, **names})

    def _value(self, schema: Any, indent: str, namespace: str) -> str:
        """Emits what reads a value, returns the expression that holds it."""
        schema = self._resolve(schema, namespace)
        kind = _kind(schema)
        if kind == "null":
            return "None"
        if kind == "record":
            return self._record(schema, indent, namespace)
        variable = self._new("v")
        if kind in ("int", "long"):
            self._varint(indent)
            if kind == "int":
                self._emit(indent, "if n > 127 and n >> 32: bad('an int of more than 32 bits')")
            self._emit(indent, f"{variable} = ~(n >> 1) if n & 1 else n >> 1")
        elif kind in ("string", "bytes"):
            self._varint(indent)
            self._emit(indent, "if n & 1: bad('a negative length')")
            decode = ".decode()" if kind == "string" else ""
            self._emit(indent, f"e = p + (n >> 1); {variable} = d[p:e]{decode}; p = e")
        elif kind == "boolean":
            self._emit(indent, "n = d[p]; p += 1")
            self._emit(indent, "if n > 1: bad('a boolean that is neither 0 nor 1')")
            self._emit(indent, f"{variable} = n == 1")
        elif kind in ("float", "double"):
            size, code = (4, "<f") if kind == "float" else (8, "<d")
            unpack = self._constant(struct.Struct(code).unpack_from)
            self._emit(indent, f"d[p + {size - 1}]; {variable} = {unpack}(d, p)[0]; p += {size}")
        elif kind == "fixed":
            size = int(schema["size"])
            self._emit(indent, f"{variable} = d[p:p + {size}]; p += {size}")
        elif kind == "enum":
            symbols = self._constant(tuple(schema["symbols"]))
            self._varint(indent)
            self._emit(indent, f"if n & 1 or n >> 1 >= len({symbols}): bad('no such symbol')")
            self._emit(indent, f"{variable} = {symbols}[n >> 1]")
        elif kind in ("array", "map"):
            self._blocks(schema, kind, variable, indent, namespace)
        elif kind == "union":
            self._union(schema, variable, indent, namespace)
        else:
            raise UnsupportedSchema(f"no code is generated to read {kind}")
        return variable

    def _record(self, schema: Mapping[str, Any], indent: str, namespace: str) -> str:
        name = full_name({"namespace": namespace, **schema})
        if name in self._open:
            raise UnsupportedSchema(f"{name} contains itself")
        self._open.add(name)
        inner = name.rpartition(".")[0]
        values = [
            (field["name"], self._value(field["type"], indent, inner)) for field in _fields(schema)
        ]
        self._open.remove(name)
        variable = self._new("v")
        if self._into is None:
            made = "{" + ", ".join(f"{field!r}: {value}" for field, value in values) + "}"
        else:
            make = self._constant(self._into[name.rpartition(".")[2]])
            made = f"{make}(" + ", ".join(f"{field}={value}" for field, value in values) + ")"
        self._emit(indent, f"{variable} = {made}")
        return variable

    def _blocks(
        self, schema: Mapping[str, Any], kind: str, variable: str, indent: str, namespace: str
    ) -> None:
        items = schema["items" if kind == "array" else "values"]
        if kind == "array" and self._may_be_empty(items, namespace):
            raise UnsupportedSchema("an array of items without bytes: its length is not bounded")
        count = self._new("count")
        self._emit(indent, f"{variable} = {'[]' if kind == 'array' else '{}'}")
        self._emit(indent, "while True:")
        inside = indent + " "
        self._varint(inside)
        self._emit(inside, "if n == 0: break")
        self._emit(inside, f"{count} = n >> 1")
        self._emit(inside, "if n & 1:")
        self._emit(inside, f" {count} += 1")
        self._varint(inside + " ")  # the block's size in bytes, of no use here
        # Every item takes a byte at least: a greater count is cut off, and is not tried.
        self._emit(inside, f"if {count} > len(d) - p: d[len(d)]")
        self._emit(inside, f"for _ in range({count}):")
        if kind == "map":
            key = self._value("string", inside + " ", namespace)
            value = self._value(items, inside + " ", namespace)
            self._emit(inside, f" {variable}[{key}] = {value}")
        else:
            value = self._value(items, inside + " ", namespace)
            self._emit(inside, f" {variable}.append({value})")
            if self._into is not None:
                self._emit(indent, f"{variable} = tuple({variable})")

    def _union(self, branches: Sequence[Any], variable: str, indent: str, namespace: str) -> None:
        self._varint(indent)
        for index, branch in enumerate(branches):
            self._emit(indent, f"{'el' if index else ''}if n == {index * 2}:")
            value = self._value(branch, indent + " ", namespace)
            self._emit(indent, f" {variable} = {value}")
        self._emit(indent, "else: bad('no such branch of a union')")

    def _resolve(self, schema: Any, namespace: str) -> Any:
        """Remembers named types where they are defined, and finds them where they are named."""
        schema = _plain(schema)
        if isinstance(schema, Mapping) and _kind(schema) in ("record", "enum", "fixed"):
            self._known[full_name({"namespace": namespace, **schema})] = schema
        elif isinstance(schema, str) and schema not in _PRIMITIVES:
            name = full_name({"namespace": namespace, "name": schema})
            if name not in self._known:
                raise UnsupportedSchema(f"{name} is not defined")
            return self._known[name]
        return schema

    def _may_be_empty(self, schema: Any, namespace: str) -> bool:
        schema = self._resolve(schema, namespace)
        kind = _kind(schema)
        if kind == "record":
            return all(self._may_be_empty(f["type"], namespace) for f in _fields(schema))
        return kind == "null" or (kind == "fixed" and not schema["size"])

    def _varint(self, indent: str) -> None:
        self._emit(indent, "n = d[p]; p += 1")
        self._emit(indent, "if n > 127: n, p = varint(d, p - 1)")

    def _emit(self, indent: str, line: str) -> None:
        self._lines.append(indent + line)

    def _constant(self, value: Any) -> str:
        name = self._new("c")
        self._names[name] = value
        return name

    def _new(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"


# --- both ----------------------------------------------------------------------------------------

_PRIMITIVES: Final = frozenset(
    ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
)


def _plain(schema: Any) -> Any:
    """The schema without the wrapping in ``{"type": {"type": ...}}`` and ``{"type": "string"}``."""
    while isinstance(schema, Mapping) and (
        not isinstance(schema["type"], str) or schema["type"] in _PRIMITIVES
    ):
        schema = schema["type"]
    return schema


def _kind(schema: Any) -> str:
    schema = _plain(schema)
    if isinstance(schema, str):
        return schema
    return str(schema["type"]) if isinstance(schema, Mapping) else "union"


def _fields(schema: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    fields: Sequence[Mapping[str, Any]] = schema["fields"]
    for field in fields:
        # Names become part of generated code.
        if not (isinstance(field["name"], str) and field["name"].isidentifier()):
            raise UnsupportedSchema(f"{field['name']!r} is no name of a field")
    return fields


def _execute(lines: list[str], function: str, names: dict[str, Any]) -> Callable[[Any], Any]:
    """Runs generated code: built from schemas only, whose names were checked; never from input."""
    namespace = dict(names)
    exec(compile("\n".join(lines), f"<generated {function}>", "exec"), namespace)
    made: Callable[[Any], Any] = namespace[function]
    return made


def _misfit(schema: Mapping[str, Any], record: Any, attributes: bool, path: str = "") -> str | None:
    """Which field does not fit, in words, without the value itself; None when all do."""
    where = path or str(schema["name"])
    names = {field["name"] for field in schema["fields"]}
    if not attributes:
        if not isinstance(record, Mapping):
            return f"{where}: {type(record).__name__} is no record"
        if unknown := sorted(str(key) for key in record if key not in names):
            return f"{where}: unknown field {unknown[0]}"
    for field in schema["fields"]:
        name = field["name"]
        if attributes and hasattr(record, name):
            value = getattr(record, name)
        elif not attributes and name in record:
            value = record[name]
        elif not attributes and "default" in field:
            continue
        else:
            return f"{where}.{name}: missing"
        if why := _misfit_value(field["type"], value, attributes, f"{where}.{name}"):
            return why
    return None


def _misfit_value(schema: Any, value: Any, attributes: bool, where: str) -> str | None:
    schema = _plain(schema)
    kind = _kind(schema)
    given = type(value).__name__
    if kind == "union":
        if value is None:
            return None
        inner = next(branch for branch in schema if branch != "null")
        return _misfit_value(inner, value, attributes, where)
    if kind == "record":
        return _misfit(schema, value, attributes, where)
    if kind == "array":
        if not isinstance(value, (list, tuple)):
            return f"{where}: {given} is no array"
        reasons = (
            _misfit_value(schema["items"], item, attributes, f"{where}[{index}]")
            for index, item in enumerate(value)
        )
        return next((reason for reason in reasons if reason), None)
    if kind in ("int", "long"):
        bits = 32 if kind == "int" else 64
        if not isinstance(value, int):
            return f"{where}: {given} is no {kind}"
        return None if -(1 << bits - 1) <= value < 1 << bits - 1 else f"{where}: out of range"
    expected = {"string": str, "bytes": bytes, "boolean": bool}[kind]
    if not isinstance(value, expected):
        return f"{where}: {given} is no {kind}"
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        return f"{where}: text with half a surrogate pair"
    return None

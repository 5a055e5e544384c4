"""Writers of Avro bodies, made from a schema: straight-line Python for exactly that schema.

The engine writes eight records for an order, and a general writer asks at each field of each of
them what the schema says of it. Made once, the answer is code. The bytes are those of fastavro,
which stays the reader and the reference.

Only what our schemas are made of can be compiled: string, int, long, a union of null and one of
these, an array of these or of records. SchemaNotCompiled says that there is something else.

Encoding as in the Avro 1.12 specification, "Binary encoding": numbers are zigzag varints, a string
is its length and its UTF-8, a union the index of its branch, an array one block and a zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

Writer = Callable[[Mapping[str, Any]], bytes]

_LONG: Final = 2**63
# Lengths, counts and small numbers are looked up: 4096 is longer than nearly every string here.
_SMALL_MAX: Final = 4_096
# At most so many fields are asked together whether all of them are empty: one that is not costs the
# question for the others.
_TOGETHER_MAX: Final = 8


class SchemaNotCompiled(Exception):
    """The schema holds a type that is not compiled; it names it."""


def compile_writer(schema: Mapping[str, Any], header: bytes = b"") -> Writer:
    """A function from a record to ``header`` and the record's body.

    It needs every field, and raises KeyError, TypeError, AttributeError, ValueError or
    OverflowError for most records that do not fit. It does not mind an int of more than 32 bits, a
    bool or an integral float for a number, nor which kind of empty thing an empty array is: whoever
    cannot vouch for the types of his values has them checked (``Codec.encoder``).
    """
    lines = ["def write(r0):", "    out = bytearray(HEADER)"]
    lines += _fields(schema["fields"], "r0", 1)
    lines.append("    return bytes(out)")
    names: dict[str, Any] = {
        "HEADER": header,
        "SMALL": _SMALL,
        "number": _number,
    }
    exec(compile("\n".join(lines), f"<writer of {schema['name']}>", "exec"), names)
    writer: Writer = names["write"]
    return writer


def _fields(fields: Sequence[Mapping[str, Any]], record: str, depth: int) -> list[str]:
    """The code for the fields of one record; usually empty neighbours are asked together."""
    lines: list[str] = []
    together: list[Mapping[str, Any]] = []
    for field in [*fields, None]:
        if field is not None and _empty(field, record) and len(together) < _TOGETHER_MAX:
            together.append(field)
            continue
        lines += _run(together, record, depth)
        together = []
        if field is None:
            break
        if _empty(field, record):
            together.append(field)
        else:
            lines += _value(field["type"], f"{record}[{field['name']!r}]", depth)
    return lines


def _run(fields: Sequence[Mapping[str, Any]], record: str, depth: int) -> list[str]:
    """Fields of which each is one zero byte when it is empty."""
    each = [
        line
        for field in fields
        for line in _value(field["type"], f"{record}[{field['name']!r}]", depth + (len(fields) > 1))
    ]
    if len(fields) < 2:
        return each
    indent = "    " * depth
    empty = " and ".join([_empty(field, record) or "" for field in fields])
    return [
        f"{indent}if {empty}:",
        f"{indent}    out += {bytes(len(fields))!r}",
        f"{indent}else:",
        *each,
    ]


def _empty(field: Mapping[str, Any], record: str) -> str | None:
    """The question whether a field holds nothing; None for one that always holds something."""
    value, kind = f"{record}[{field['name']!r}]", field["type"]
    if isinstance(kind, list):
        return f"{value} is None"
    if isinstance(kind, dict) and kind["type"] == "array":
        return f"len({value}) == 0"
    if kind in ("int", "long") and field.get("default") == 0:
        return f"{value} == 0"
    return None


def _value(kind: Any, value: str, depth: int) -> list[str]:
    """The code that appends one value."""
    indent = "    " * depth
    if kind == "string":
        return [
            f"{indent}v = {value}.encode()",
            f"{indent}n = len(v)",
            f"{indent}out += SMALL[n] if n < {_SMALL_MAX} else number(n)",
            f"{indent}out += v",
        ]
    if kind in ("int", "long"):
        return [
            f"{indent}n = {value}",
            f"{indent}out += SMALL[n] if 0 <= n < {_SMALL_MAX} else number(n)",
        ]
    if isinstance(kind, list) and len(kind) == 2 and kind[0] == "null":
        return [
            f"{indent}if {value} is None:",
            f"{indent}    out += b'\\x00'",
            f"{indent}else:",
            f"{indent}    out += b'\\x02'",
            *_value(kind[1], value, depth + 1),
        ]
    if isinstance(kind, dict) and kind["type"] == "array":
        items, each = kind["items"], f"r{depth}"
        if isinstance(items, dict) and items["type"] == "record":
            body = _fields(items["fields"], each, depth + 2)
        else:
            body = _value(items, each, depth + 2)
        return [
            f"{indent}a = {value}",
            f"{indent}if len(a):",
            f"{indent}    out += number(len(a))",
            f"{indent}    for {each} in a:",
            *body,
            f"{indent}out += b'\\x00'",
        ]
    raise SchemaNotCompiled(f"no writer is made for {kind!r}")


def _zigzag(value: int) -> int:
    return (value << 1) ^ (value >> 63)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


_SMALL: Final = tuple(_varint(_zigzag(n)) for n in range(_SMALL_MAX))
# The first two bytes of a number that has more.
_LOW: Final = tuple(bytes((n & 127 | 128, n >> 7 | 128)) for n in range(2**14))
# The rest of it: of times of the same seconds it is the same.
_rest = lru_cache(maxsize=4_096)(_varint)


def _number(value: int) -> bytes:
    """A number as zigzag varint; OverflowError beyond 64 bits, TypeError for what is no int."""
    if not -_LONG <= value < _LONG:
        raise OverflowError(f"{value} does not fit 64 bits")
    zigzag = (value << 1) ^ (value >> 63)
    if zigzag < 2**14:
        return _varint(zigzag)
    return _LOW[zigzag & 16_383] + _rest(zigzag >> 14)

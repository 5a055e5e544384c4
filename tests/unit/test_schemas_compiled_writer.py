"""Writers made from a schema write what fastavro writes, and refuse what does not fit."""

from __future__ import annotations

import io
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import default_codec
from schemas.compiled_writer import SchemaNotCompiled, compile_writer
from schemas.errors import EncodeError
from schemas.files import SCHEMA_NAMES, read_schema

# Around every border of the encoding: a byte more, a sign, a lookup that ends, the ends of 64 bits.
EDGES = [n + d for n in (0, 64, 2**13, 4_096, 2**20, 2**31, 2**41) for d in (-1, 0, 1)]
LONGS = st.one_of(
    st.sampled_from([*EDGES, *[-n for n in EDGES], 2**63 - 1, -(2**63)]),
    st.integers(-(2**63), 2**63 - 1),
)
INTS = st.one_of(st.sampled_from([-64, 63, 64, 4_096]), st.integers(-(2**31), 2**31 - 1))
# Few of them are long, so that one longer than the lookup is drawn as well.
STRINGS = st.one_of(st.text(max_size=20), st.sampled_from(["", "é" * 70, "x" * 4_095, "x" * 9_000]))


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of an Avro type; what is usually empty is empty half of the time."""
    if isinstance(kind, list):
        return st.one_of(st.none(), values(kind[1]))
    if isinstance(kind, dict) and kind["type"] == "array":
        return st.one_of(st.just([]), st.lists(values(kind["items"]), max_size=3))
    if isinstance(kind, dict):
        return records(kind)
    if kind == "string":
        return STRINGS
    return st.one_of(st.just(0), LONGS if kind == "long" else INTS)


def records(schema: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({f["name"]: values(f["type"]) for f in schema["fields"]})


WRITERS = {
    name: (fastavro.parse_schema(read_schema(name)), compile_writer(read_schema(name), b"head"))
    for name in SCHEMA_NAMES
}


def same(name: str, record: dict[str, Any]) -> None:
    parsed, write = WRITERS[name]
    out = io.BytesIO()
    fastavro.schemaless_writer(out, parsed, record)
    assert write(record) == b"head" + out.getvalue()


@pytest.mark.slow
@given(
    st.sampled_from(SCHEMA_NAMES).flatmap(
        lambda name: st.tuples(st.just(name), records(read_schema(name)))
    )
)
def test_the_bytes_are_those_of_fastavro(drawn: tuple[str, dict[str, Any]]) -> None:
    """For every schema, whatever its fields hold."""
    same(*drawn)


@pytest.mark.parametrize("name", SCHEMA_NAMES)
def test_each_field_alone_is_written_like_fastavro(name: str) -> None:
    """All but one empty, or all but one full: fields that are asked together are written apart."""
    fields = {f["name"]: f["type"] for f in read_schema(name)["fields"]}
    empty = {field: _emptied(kind) for field, kind in fields.items()}
    full = {field: plain(kind) for field, kind in fields.items()}
    same(name, empty)
    same(name, full)
    for field in fields:
        same(name, {**empty, field: full[field]})
        same(name, {**full, field: empty[field]})


def plain(kind: Any) -> Any:
    """The smallest value that holds something, so that no field is passed over as empty."""
    if isinstance(kind, list):
        return plain(kind[1])
    if isinstance(kind, dict) and kind["type"] == "array":
        return [plain(kind["items"])]
    if isinstance(kind, dict):
        return {f["name"]: plain(f["type"]) for f in kind["fields"]}
    return "x" if kind == "string" else 1


@pytest.mark.parametrize("name", SCHEMA_NAMES)
@pytest.mark.parametrize("empty", [False, True])
def test_a_field_that_is_missing_or_of_another_type_is_refused(name: str, empty: bool) -> None:
    """Also where all its neighbours are empty, and nothing is cut off or taken as empty."""
    schema = read_schema(name)
    encode = default_codec().encoder(name, checked=False)
    good = {f["name"]: _emptied(f["type"]) if empty else plain(f["type"]) for f in schema["fields"]}
    encode(good)
    for field in schema["fields"]:
        others = {k: v for k, v in good.items() if k != field["name"]}
        for wrong in (_wrong(field["type"]), object()):
            with pytest.raises(EncodeError):
                encode({**others, field["name"]: wrong})
        with pytest.raises(EncodeError):
            encode(others)


def _emptied(kind: Any) -> Any:
    if isinstance(kind, list):
        return None
    if isinstance(kind, dict):
        return []
    return "" if kind == "string" else 0


def _wrong(kind: Any) -> Any:
    if isinstance(kind, list):
        return _wrong(kind[1])
    if isinstance(kind, dict):
        return None
    return 1 if kind == "string" else 0.5


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_a_number_beyond_64_bits_is_refused(number: int) -> None:
    """It would be read as another one."""
    write = compile_writer(record_of("long"))
    with pytest.raises(OverflowError):
        write({"it": number})


@pytest.mark.parametrize(
    "kind", ["double", "bytes", ["string", "null"], {"type": "map", "values": "long"}]
)
def test_what_no_schema_of_ours_holds_is_not_compiled(kind: Any) -> None:
    """A type that is added one day is refused by name, and not written wrongly."""
    with pytest.raises(SchemaNotCompiled):
        compile_writer(record_of(kind))


def record_of(kind: Any) -> dict[str, Any]:
    return {"type": "record", "name": "R", "fields": [{"name": "it", "type": kind}]}

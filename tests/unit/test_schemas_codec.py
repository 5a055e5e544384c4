"""Records to bytes and back, and what becomes of bytes that are no record."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.domain.model import Payment
from pipeline.domain.records import FROM_RECORD, to_record
from schemas.codec import (
    RECORD_BYTES_MAX,
    SCHEMA_NAMES,
    Codec,
    default_codec,
    load_schemas,
    wire_header,
)
from schemas.errors import DECODE_KINDS, DecodeError, EncodeError
from schemas.files import read_schema
from schemas.ids import LockedIds, LockedVersion, fingerprint, locked_ids
from tests.support.avro_values import named_records, with_defaults
from tests.support.examples import share_of

CODEC = default_codec()
IDS = locked_ids()
PARSED = load_schemas()
ENCODERS = {name: CODEC.encoder(name) for name in SCHEMA_NAMES}
DECODERS = {name: CODEC.decoder(name) for name in SCHEMA_NAMES}


def by_fastavro(name: str, record: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, PARSED[name], dict(record))
    return wire_header(IDS.current_id(name)) + out.getvalue()


def kind_of(name: str, value: Any) -> str | None:
    try:
        DECODERS[name](value)
    except DecodeError as error:
        return DECODE_KINDS[DECODE_KINDS.index(error.kind)]
    return None


ORDER_FIELDS = read_schema("order")["fields"]
(LINE_FIELDS,) = (f["type"]["items"]["fields"] for f in ORDER_FIELDS if f["name"] == "lines")
ORDER_LINE = with_defaults(LINE_FIELDS, {
    "line_number": 1, "sku": "85123A", "description": "", "quantity": 6, "unit_amount_minor": 255,
})  # fmt: skip
ORDER = with_defaults(ORDER_FIELDS, {
    "merchant_id": "shop-1", "order_id": "o-1", "amount_minor": 1530, "currency": "EUR",
    "instrument_token": "tok_1", "payment_method": "card", "capture_method": "automatic",
    "pay_before_ms": None, "business_date": "2026-01-31", "submitted_at_ms": 1_760_000_000_000,
    "customer_id": "müller", "country": None, "card_fingerprint": None, "card_scheme": None,
    "lines": [ORDER_LINE],
})  # fmt: skip
DUE = with_defaults(read_schema("payment-due")["fields"], {
    "merchant_id": "m", "order_id": "o", "payment_id": "p", "operation_id": "o", "attempt": 1,
    "try_number": 1, "purpose": "retry", "reason": None, "due_at_ms": None, "tier": 1,
})  # fmt: skip


def around(name: str, record: dict[str, Any], field: str, other: Any) -> tuple[bytes, bytes]:
    """Where a field begins: the record's bytes before its first one, and behind that."""
    value, changed = ENCODERS[name](record), ENCODERS[name]({**record, field: other})
    at = next(at for at, (one, two) in enumerate(zip(value, changed, strict=False)) if one != two)
    return value[:at], value[at + 1 :]


@pytest.mark.slow
@given(named_records())
def test_bytes_are_those_of_another_avro_library(named: tuple[str, Any]) -> None:
    """Whatever record is written, fastavro writes the same bytes, and both read it back."""
    name, record = named
    value = ENCODERS[name](record)
    assert value == by_fastavro(name, record)
    assert DECODERS[name](value) == record


@pytest.mark.slow
@given(named_records(), st.data())
@settings(max_examples=share_of(60))
def test_every_cut_is_truncated(named: tuple[str, Any], data: st.DataObject) -> None:
    """A record that ends early is named truncated, wherever it was cut."""
    name, record = named
    value = ENCODERS[name](record)
    for length in range(len(value)):
        kind = kind_of(name, value[:length])
        assert kind == ("not_wire_format" if length < 5 else "truncated")
    extra = data.draw(st.binary(min_size=1, max_size=9))
    assert kind_of(name, value + extra) == "trailing_bytes"


@given(st.sampled_from(SCHEMA_NAMES), st.binary(max_size=200), st.booleans())
@settings(max_examples=share_of(400))
def test_random_bytes_never_raise_anything_else(name: str, noise: bytes, headed: bool) -> None:
    """Noise is either a record or a DecodeError; what decodes is what an encoder accepts."""
    value = wire_header(IDS.current_id(name)) + noise if headed else noise
    if kind_of(name, value) is None:
        record = DECODERS[name](value)
        assert DECODERS[name](ENCODERS[name](record)) == record


@pytest.mark.slow
@given(named_records(), st.data())
@settings(max_examples=share_of(300))
def test_flipped_bytes_never_raise_anything_else(
    named: tuple[str, Any], data: st.DataObject
) -> None:
    """A damaged record gives a record that can be written again, or a DecodeError."""
    name, record = named
    value = bytearray(ENCODERS[name](record))
    for _ in range(data.draw(st.integers(1, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    if kind_of(name, bytes(value)) is None:
        read = DECODERS[name](bytes(value))
        assert DECODERS[name](ENCODERS[name](read)) == read


def test_a_record_has_at_most_so_many_bytes_whatever_it_holds() -> None:
    """One of lines that are all alike compresses to nothing, and takes sixty times its bytes once
    it is read: it is not."""
    order = {**ORDER, "lines": [{**ORDER_LINE, "description": "x" * (RECORD_BYTES_MAX - 200)}]}
    longer = RECORD_BYTES_MAX - len(ENCODERS["order"](order))
    order["lines"][0]["description"] += "x" * longer
    fits = ENCODERS["order"](order)
    assert len(fits) == RECORD_BYTES_MAX
    assert DECODERS["order"](fits) == order
    order["lines"][0]["description"] += "x"
    assert kind_of("order", ENCODERS["order"](order)) == "record_too_large"
    # What is no record at all keeps its name.
    assert kind_of("order", b"{" * 2 * RECORD_BYTES_MAX) == "not_wire_format"


def test_a_row_of_the_table_is_read_whatever_its_size() -> None:
    """Nobody else writes them. One that a version without limits has left could not be refused: its
    worker would end at it, and so would the next one."""
    row = Payment(
        merchant_id="shop", order_id="wide", payment_id="p", sequence=1, status="risk_review",
        amount_minor=500, currency="GBP", instrument_token="x" * RECORD_BYTES_MAX,
        business_date="2027-01-15", ordered_at_ms=1, updated_at_ms=1,
    )  # fmt: skip
    written = ENCODERS["payment"](to_record(row))
    assert DECODERS["payment"](written)["instrument_token"] == row.instrument_token


def test_a_declared_length_of_gigabytes_allocates_nothing() -> None:
    """A length or count far beyond the input is named truncated at once."""
    header = wire_header(IDS.current_id("order"))
    huge = b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # 2^63 - 1
    assert kind_of("order", header + huge) == "truncated"
    lines_at, _ = around("order", {**ORDER, "lines": []}, "lines", [ORDER_LINE])
    assert kind_of("order", lines_at + huge) == "truncated"
    assert kind_of("order", lines_at + b"\xff" * 9 + b"\x01" + b"\x00") == "truncated"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\x02\xff", "text that is not UTF-8"),
        (b"\x01", "a negative length"),
        (b"\xff" * 9 + b"\x02", "a number of more than 64 bits"),
        (b"\xff" * 30 + b"\x00", "a number without an end"),
    ],
)
def test_bytes_that_no_writer_makes_are_refused(body: bytes, why: str) -> None:
    """Bytes that are neither short nor long but wrong are never taken for a record."""
    header = wire_header(IDS.current_id("order"))
    assert kind_of("order", header + body + b"\x00" * 60) in ("malformed", "truncated"), why


def test_a_branch_that_is_not_in_the_union_is_refused() -> None:
    """A third branch of a union of two is no record."""
    before, behind = around("payment-due", DUE, "due_at_ms", 1)
    assert kind_of("payment-due", before + b"\x04" + behind) in ("malformed", "truncated")


def test_ids_of_nothing_and_of_another_record_are_told_apart() -> None:
    """An id nobody knows and the id of another topic's record have different causes."""
    value = ENCODERS["order"](ORDER)
    assert kind_of("order", wire_header(999_999) + value[5:]) == "unknown_schema_id"
    assert kind_of("settlement", value) == "wrong_schema"
    assert kind_of("order", b"\x01" + value[1:]) == "not_wire_format"
    assert kind_of("order", b'{"order_id": "o-1"}') == "not_wire_format"
    assert kind_of("order", None) == "not_wire_format"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"amount_minor": 15.5}, "amount_minor"),
        ({"amount_minor": 15.0}, "amount_minor"),
        ({"amount_minor": 1e12}, "amount_minor"),
        ({"amount_minor": None}, "amount_minor"),
        ({"amount_minor": 2**63}, "too large"),
        ({"amount_minor": -(2**63) - 1}, "too large"),
        ({"currency": b"EUR"}, "currency"),
        ({"currency": None}, "currency"),
        ({"country": "\ud800"}, "surrogates"),
        ({"countri": "DE"}, "countri"),
        ({"lines": None}, "lines"),
        ({"lines": [{**ORDER_LINE, "quantity": 1.5}]}, "quantity"),
        ({"lines": [{**ORDER_LINE, "quantity": 2**31}]}, "quantity"),
        ({"amount_minor": Decimal("3.7")}, "amount_minor"),
        ({"lines": [{"sku": "x"}]}, "line_number"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(change: dict[str, Any], named: str) -> None:
    """A wrong record is never written, least of all a float cut off to an amount."""
    with pytest.raises(EncodeError, match=named):
        ENCODERS["order"]({**ORDER, **change})


def test_a_missing_field_takes_its_default_or_is_refused() -> None:
    """An optional field may be left out of a record, a required one may not."""
    partial = {key: value for key, value in ORDER.items() if key not in ("lines", "country")}
    assert DECODERS["order"](ENCODERS["order"](partial)) == {**ORDER, "lines": []}
    del partial["currency"]
    with pytest.raises(EncodeError, match="currency"):
        ENCODERS["order"](partial)


@given(named_records())
@settings(max_examples=share_of(50))
def test_every_struct_has_the_fields_of_its_schema(named: tuple[str, Any]) -> None:
    """Any record of any schema survives the way through the Struct of the same name."""
    name, record = named
    value = ENCODERS[name](record)
    read = FROM_RECORD[name](DECODERS[name](value))
    assert ENCODERS[name](to_record(read)) == value


def codec_with_older(name: str, older: dict[str, Any], older_id: int = 900) -> Codec:
    versions = {
        other: [LockedVersion(IDS.current_id(other), "", read_schema(other))]
        for other in SCHEMA_NAMES
    }
    versions[name].insert(0, LockedVersion(older_id, fingerprint(older), older))
    return Codec(LockedIds(versions))


def without_field(name: str, field: str) -> dict[str, Any]:
    schema = read_schema(name)
    schema["fields"] = [f for f in schema["fields"] if f["name"] != field]
    return schema


def test_a_record_of_an_older_version_reads_as_the_current_one() -> None:
    """A field the old version lacked gets its default; one that is gone is dropped."""
    older = without_field("order", "country")
    older["fields"].append(
        {"name": "note", "type": {"type": "map", "values": "long"}, "default": {}, "doc": "gone"}
    )
    out = io.BytesIO()
    record = {key: value for key, value in ORDER.items() if key != "country"}
    fastavro.schemaless_writer(out, fastavro.parse_schema(older), {**record, "note": {"a": 1}})
    value = wire_header(900) + out.getvalue()
    codec = codec_with_older("order", older)
    assert codec.decoder("order")(value) == ORDER
    for length in range(5, len(value)):
        with pytest.raises(DecodeError) as caught:
            codec.decoder("order")(value[:length])
        assert caught.value.kind == "truncated"
    with pytest.raises(DecodeError) as caught:
        codec.decoder("order")(value + b"\x00")
    assert caught.value.kind == "trailing_bytes"


def test_a_timestamp_of_another_writer_stays_a_number() -> None:
    """A writer's logical type makes no datetime of a field that is a plain long here."""
    other = read_schema("order")
    for field in other["fields"]:
        if field["name"] == "submitted_at_ms":
            field["type"] = {"type": "long", "logicalType": "timestamp-millis"}
    value = wire_header(900) + ENCODERS["order"](ORDER)[5:]
    assert codec_with_older("order", other).decoder("order")(value) == ORDER


def test_a_version_that_cannot_be_resolved_is_the_wrong_schema() -> None:
    """The same record name with fields that do not go together is wrong_schema, not a crash."""
    foreign = read_schema("order")
    foreign["fields"] = [{"name": "amount_minor", "type": "string"}]
    codec = codec_with_older("order", foreign)
    with pytest.raises(DecodeError) as caught:
        codec.decoder("order")(wire_header(900) + b"\x02a")
    assert caught.value.kind == "wrong_schema"


def test_arrays_are_read_in_any_blocks() -> None:
    """Other writers split arrays into blocks, with their size in front or without."""
    start, rest = around("order", ORDER, "lines", [])
    _, behind = around("order", {**ORDER, "lines": []}, "lines", [ORDER_LINE])
    line = rest.removesuffix(b"\x00" + behind)
    assert line.startswith(b"\x02\x0c85123A")
    whole = start + b"\x06" + line * 3 + b"\x00" + behind
    assert ENCODERS["order"]({**ORDER, "lines": [ORDER_LINE] * 3}) == whole
    sized = b"\x03" + bytes((len(line) * 4,)) + line * 2
    value = start + sized + b"\x02" + line + b"\x00" + behind
    assert DECODERS["order"](value) == {**ORDER, "lines": [ORDER_LINE] * 3}


def test_the_wire_format_is_confluents() -> None:
    """Byte 0, then the id in four bytes, most significant first."""
    value = ENCODERS["settlement"](
        {
            f["name"]: "x" if f["type"] == "string" else 1
            for f in read_schema("settlement")["fields"]
            if "default" not in f
        }
    )
    assert struct.unpack(">bI", value[:5]) == (0, IDS.current_id("settlement"))

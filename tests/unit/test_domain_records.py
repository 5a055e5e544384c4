from __future__ import annotations

import io
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.domain.model import Order, OrderLine
from pipeline.domain.records import FROM_RECORD, SCHEMA_OF, to_record
from schemas.codec import load_schemas

PARSED = load_schemas()


def values_of(schema: Any) -> st.SearchStrategy[Any]:
    """Any value an Avro schema of ours allows."""
    if isinstance(schema, list):
        return st.one_of([values_of(branch) for branch in schema])
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind == "record":
        return st.fixed_dictionaries({f["name"]: values_of(f["type"]) for f in schema["fields"]})
    if kind == "array":
        return st.lists(values_of(schema["items"]), max_size=3)
    return {
        "string": st.text(max_size=12),
        "int": st.integers(-(2**31), 2**31 - 1),
        "long": st.integers(-(2**63), 2**63 - 1),
        "null": st.none(),
    }[kind]


@pytest.mark.parametrize("name", sorted(FROM_RECORD))
def test_structs_and_avro_records_carry_the_same(name: str) -> None:
    """Any record written by the schema becomes a Struct and the same bytes again."""

    @settings(max_examples=50, deadline=None)
    @given(values_of(PARSED[name]))
    def check(record: dict[str, Any]) -> None:
        written = io.BytesIO()
        fastavro.schemaless_writer(written, PARSED[name], record)
        decoded = fastavro.schemaless_reader(io.BytesIO(written.getvalue()), PARSED[name], None)
        struct = FROM_RECORD[name](decoded)
        assert SCHEMA_OF[type(struct)] == name
        assert to_record(struct) == decoded == record
        again = io.BytesIO()
        fastavro.schemaless_writer(again, PARSED[name], to_record(struct))
        assert again.getvalue() == written.getvalue()

    check()


def test_a_field_that_the_struct_lacks_is_a_bug() -> None:
    """A schema that has drifted from its Struct is noticed at the first record."""
    line = OrderLine(line_number=1, sku="s", quantity=1, unit_amount_minor=5)
    order = Order(
        merchant_id="m", order_id="o", amount_minor=5, currency="GBP", instrument_token="t",
        business_date="2026-11-01", submitted_at_ms=1, lines=(line,),
    )  # fmt: skip
    with pytest.raises(TypeError):
        FROM_RECORD["order"]({**to_record(order), "colour": "red"})

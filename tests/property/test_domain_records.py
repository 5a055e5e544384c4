from __future__ import annotations

import io
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings

from pipeline.domain.model import Order, OrderLine
from pipeline.domain.records import FROM_RECORD, SCHEMA_OF, to_record
from schemas.codec import load_schemas
from tests.support.avro_values import records_of
from tests.support.examples import share_of

PARSED = load_schemas()


@pytest.mark.parametrize("name", sorted(FROM_RECORD))
def test_structs_and_avro_records_carry_the_same(name: str) -> None:
    """Any record written by the schema becomes a Struct and the same bytes again."""

    @settings(max_examples=share_of(50), deadline=None)
    @given(records_of(name))
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

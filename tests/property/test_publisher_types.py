"""Whatever a field holds, publishing takes it or refuses it by name: no other error comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from pipeline.domain.model import Order, OrderLine, PaymentCommand
from pipeline.domain.records import SCHEMA_OF, to_record
from producers.command_publisher import CommandPublisher, InvalidCommand
from producers.order_publisher import InvalidOrder, OrderPublisher
from schemas.codec import SCHEMA_NAMES, default_codec
from schemas.errors import EncodeError
from schemas.files import read_schema

NOWHERE = "127.0.0.1:1"
CODEC = default_codec()
ENCODERS = [
    {name: CODEC.encoder(name, checked=checked) for name in SCHEMA_NAMES}
    for checked in (True, False)
]
LINE = OrderLine(line_number=1, sku="a", quantity=1, unit_amount_minor=500)
ORDER = Order(
    merchant_id="shop", order_id="o1", amount_minor=500, currency="GBP", instrument_token="tok_1",
    business_date="2026-11-26", submitted_at_ms=1, lines=(LINE,),
)  # fmt: skip
COMMAND = PaymentCommand(
    merchant_id="shop", order_id="o1", command_id="c1", type="refund", submitted_at_ms=1
)

WRONG: list[Callable[[], Any]] = [
    lambda: None, lambda: 5, lambda: -1, lambda: 2**31, lambda: -(2**31) - 1, lambda: 2**63,
    lambda: 2**64, lambda: 1.5, lambda: float("nan"), lambda: True, lambda: Decimal("5"),
    lambda: "3", lambda: "", lambda: "\ud800", lambda: b"x", lambda: bytearray(b"x"),
    lambda: date(2026, 11, 26), list, lambda: ["x"], lambda: (), lambda: ("abc",),
    dict, lambda: {"a": 1}, lambda: ({"a": 1},), lambda: {1}, object, lambda: iter(()),
    lambda: iter((LINE,)), lambda: LINE, lambda: (ORDER,), lambda: (None,), lambda: str, lambda: 1j,
]  # fmt: skip
wrong = st.sampled_from(WRONG).map(lambda make: make())


@pytest.fixture(scope="module")
def orders() -> OrderPublisher:
    return OrderPublisher(NOWHERE, config={"log_level": 0})


@pytest.fixture(scope="module")
def commands() -> CommandPublisher:
    return CommandPublisher(NOWHERE, config={"log_level": 0})


def read_back(noun: Any) -> None:
    """What was taken is a record that says the same."""
    name = SCHEMA_OF[type(noun)]
    record = to_record(noun)
    found = CODEC.decoder(name)(CODEC.encoder(name)(record))
    assert found == {**record, **({"lines": list(record["lines"])} if "lines" in record else {})}


@given(st.data())
def test_an_order_of_wrong_types_is_taken_as_it_is_or_refused_by_name(
    orders: OrderPublisher, data: st.DataObject
) -> None:
    """In any of its fields, in those of its lines, in several at once."""
    name = st.sampled_from([field.name for field in fields(Order)])
    part = st.sampled_from([field.name for field in fields(OrderLine)])
    order = replace(ORDER, **data.draw(st.dictionaries(name, wrong, max_size=3)))
    if data.draw(st.booleans()):
        line = replace(LINE, **data.draw(st.dictionaries(part, wrong, max_size=2)))
        order = replace(order, lines=(LINE, line))
    try:
        orders.publish(order)
    except InvalidOrder:
        return
    read_back(order)


@given(
    st.dictionaries(st.sampled_from([f.name for f in fields(PaymentCommand)]), wrong, max_size=3)
)
def test_a_command_of_wrong_types_is_taken_as_it_is_or_refused_by_name(
    commands: CommandPublisher, changes: dict[str, Any]
) -> None:
    """In any of its fields."""
    command = replace(COMMAND, **changes)
    try:
        commands.publish(command)
    except InvalidCommand:
        return
    read_back(command)


@pytest.mark.parametrize("make", WRONG)
def test_what_is_no_order_at_all_is_refused_by_name(
    orders: OrderPublisher, commands: CommandPublisher, make: Callable[[], Any]
) -> None:
    """Nothing that is not one can be published as one."""
    with pytest.raises(InvalidOrder):
        orders.publish(make())
    with pytest.raises(InvalidCommand):
        commands.publish(make())


def test_a_card_number_in_lines_that_are_read_once_is_not_let_out(orders: OrderPublisher) -> None:
    """An iterator is at its end after it was written."""
    lines: Any = iter((replace(LINE, description="4111 1111 1111 1111"),))
    with pytest.raises(InvalidOrder, match="tuple, not tuple_iterator"):
        orders.publish(replace(ORDER, lines=lines))


def sample(kind: Any) -> Any:
    """The smallest value of a schema that holds one of everything."""
    if isinstance(kind, list):
        return sample(kind[-1])
    if isinstance(kind, dict) and kind["type"] == "array":
        return [sample(kind["items"])]
    if isinstance(kind, dict):
        return {field["name"]: sample(field["type"]) for field in kind["fields"]}
    return "x" if kind == "string" else 1


def holders(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The record and those in its lists."""
    yield record
    for value in record.values():
        if isinstance(value, list) and isinstance(value[0], dict):
            yield from holders(value[0])


@pytest.mark.parametrize("name", SCHEMA_NAMES)
def test_a_field_of_a_wrong_type_is_written_or_an_encode_error(name: str) -> None:
    """Each field of each schema, at any depth, with each wrong thing, by both writers."""
    record = sample(read_schema(name))
    for encoders in ENCODERS:
        encoders[name](record)
    for holder in holders(record):
        for key, right in list(holder.items()):
            for make in WRONG:
                holder[key] = make()
                for encoders in ENCODERS:
                    with suppress(EncodeError):
                        encoders[name](record)
            holder[key] = right


@pytest.mark.parametrize("field", [field.name for field in fields(Order)])
def test_each_field_of_an_order_with_each_wrong_thing(orders: OrderPublisher, field: str) -> None:
    """One bad order is one that can be parked, whatever is wrong with it."""
    for make in WRONG:
        with suppress(InvalidOrder):
            orders.publish(replace(ORDER, **{field: make()}))


@pytest.mark.parametrize("field", [field.name for field in fields(OrderLine)])
def test_each_field_of_a_line_with_each_wrong_thing(orders: OrderPublisher, field: str) -> None:
    """And whatever is wrong with one of its lines."""
    for make in WRONG:
        with suppress(InvalidOrder):
            orders.publish(replace(ORDER, lines=(replace(LINE, **{field: make()}),)))


@pytest.mark.parametrize("field", [field.name for field in fields(PaymentCommand)])
def test_each_field_of_a_command_with_each_wrong_thing(
    commands: CommandPublisher, field: str
) -> None:
    """The same for commands."""
    for make in WRONG:
        with suppress(InvalidCommand):
            commands.publish(replace(COMMAND, **{field: make()}))

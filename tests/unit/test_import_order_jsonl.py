"""Reading orders from JSON Lines, and telling the two formats apart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.domain.model import Order, OrderLine
from pipeline.errors import UserError
from producers.order_file import detect_format, read_raw
from producers.order_jsonl import parse_order, read_orders

NOW_MS = 1_700_000_000_000
LEAST: dict[str, Any] = {
    "merchant_id": "m-1",
    "order_id": "o-1",
    "amount_minor": 1250,
    "currency": "GBP",
    "instrument_token": "tok_ok",
}
LINE = {"line_number": 1, "sku": "A", "quantity": 2, "unit_amount_minor": 625}


def parse(**changes: Any) -> Order:
    return parse_order(json.dumps({**LEAST, **changes}), now_ms=NOW_MS)


def test_the_least_an_order_needs() -> None:
    """Five fields are an order; it is submitted now, today (UTC)."""
    assert parse() == Order(**LEAST, business_date="2023-11-14", submitted_at_ms=NOW_MS)


def test_every_field_is_taken_as_given() -> None:
    """Nothing a line says is lost."""
    given = {
        "payment_method": "wallet",
        "capture_method": "manual",
        "pay_before_ms": NOW_MS + 1,
        "business_date": "2023-11-10",
        "submitted_at_ms": NOW_MS - 5,
        "customer_id": "c",
        "country": "FR",
    }
    order = parse(**given, lines=[LINE])
    for name, value in given.items():
        assert getattr(order, name) == value
    assert order.lines == (OrderLine(**LINE),)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"amount_minor": 12.5}, "amount_minor must be a whole number, not 12.5"),
        ({"amount_minor": 1250.0}, "amount_minor must be a whole number"),
        ({"amount_minor": "1250"}, "Expected 'int', got 'str' at 'amount_minor'"),
        ({"amount_minor": True}, "Expected 'int', got 'bool'"),
        ({"amount_minor": 1 << 63}, "amount_minor is too large"),
        ({"amount_minor": None}, "got 'null' at 'amount_minor'"),
        ({"amount": 5}, "unknown field 'amount'; did you mean 'amount_minor'?"),
        ({"zzz": 5}, "unknown field 'zzz'; known: merchant_id"),
        ({"order_id": "a b"}, "order_id 'a b' must match"),
        ({"merchant_id": ""}, "merchant_id '' must match"),
        ({"lines": [{**LINE, "qty": 1}]}, "unknown field 'qty' in line 1 of the order"),
        ({"lines": [{**LINE, "quantity": 1.5}]}, "quantity must be a whole number"),
        ({"lines": [{**LINE, "quantity": 1 << 31}]}, "too large"),
        ({"lines": [{"line_number": 1}]}, "missing field 'sku' at 'lines[0]'"),
        ({"customer_id": "\ud800"}, "half a character"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], reason: str) -> None:
    """Each mistake is told with the field it is in."""
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse(**changes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ("[" * 100_000, "not"),
        ('{"amount_minor": 1, "amount_minor": 2}', "field 'amount_minor' is there twice"),
        ('{"amount_minor": NaN}', "NaN is not a number of JSON"),
        ('{"amount_minor": ' + "9" * 6000 + "}", "a number of 6,000 digits is too large for any"),
    ],
)
def test_a_line_that_is_no_order_is_refused(text: str, reason: str) -> None:
    """Broken, doubtful or hostile JSON is an error of its line, whatever it holds."""
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_order(text, now_ms=NOW_MS)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"cvv": "123"}, "field 'cvv' is a card's security code"),
        ({"Security-Code": "123"}, "is a card's security code"),
        ({"instrument_token": "tok_4111111111111111"}, "a card number stands in instrument_token"),
        ({"country": "4111 1111 1111 1111"}, "a card number stands in country"),
    ],
)
def test_card_data_is_refused_and_not_repeated(more: dict[str, str], reason: str) -> None:
    """Security codes by their name, card numbers by what they are; the sentence holds neither."""
    with pytest.raises(ValueError, match=reason) as refused:
        parse_order(json.dumps({**LEAST, **more}), now_ms=NOW_MS)
    assert "1111" not in str(refused.value)
    assert "123" not in str(refused.value)


def test_bad_lines_are_named_and_the_others_taken(tmp_path: Path) -> None:
    """Lines count from 1, blank ones included; a card number is masked in the report."""
    path = tmp_path / "orders.jsonl"
    good = json.dumps(LEAST)
    card = json.dumps({**LEAST, "order_id": "4242424242424242 x"})
    path.write_text(f"{good}\r\n\n{{\n{card}\n{good.replace('o-1', 'o-2')}\n")
    found = read_orders(path, now_ms=NOW_MS, prefix="p-")
    assert [order.order_id for order in found.orders] == ["p-o-1", "p-o-2"]
    assert [problem.line_number for problem in found.problems] == [3, 4]
    assert "4242424242424242" not in found.problems[1].reason
    assert found.left_out == 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"{", "invoice-csv"),
        ("a.JSONL", b"", "order-jsonl"),
        ("a.ndjson", b"", "order-jsonl"),
        ("a.txt", b'\xef\xbb\xbf \n{"a": 1}', "order-jsonl"),
        ("a", b"InvoiceNo,StockCode", "invoice-csv"),
    ],
)
def test_the_format_is_told_by_name_and_else_by_content(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    """A file without a telling name is looked into."""
    assert detect_format(tmp_path / name, content) == expected


def test_a_json_array_is_told_what_is_read_instead(tmp_path: Path) -> None:
    """It was taken for a CSV file without its columns."""
    with pytest.raises(UserError, match="is a JSON array; write one order per line"):
        detect_format(tmp_path / "orders.json", b' [{"merchant_id": "shop"}]')


def test_a_file_that_is_away_is_a_sentence(tmp_path: Path) -> None:
    """A wrong path is named."""
    with pytest.raises(UserError, match="cannot be read"):
        read_raw(tmp_path / "none")


def test_a_byte_that_is_not_utf8_costs_its_own_line_only(tmp_path: Path) -> None:
    """The line is named by number and byte; those around it are taken, with their own numbers."""
    path = tmp_path / "orders.jsonl"
    good = json.dumps(LEAST)
    bad = json.dumps({**LEAST, "country": "Caf?"}).encode().replace(b"?", b"\xe9")
    path.write_bytes(b"\n".join([good.encode(), bad, good.replace("o-1", "o-2").encode()]))
    found = read_orders(path, now_ms=NOW_MS)
    assert [order.order_id for order in found.orders] == ["o-1", "o-2"]
    assert found.line_numbers == (1, 3)
    assert [problem.line_number for problem in found.problems] == [2]
    assert "not UTF-8 (byte 0xE9)" in found.problems[0].reason

"""Read orders from JSON Lines: one order a line, with the fields of the Order record.

``merchant_id``, ``order_id``, ``amount_minor`` (whole minor units), ``currency`` and
``instrument_token`` are required; ``submitted_at_ms`` and ``business_date`` default to the time of
the import and its UTC date, the other fields to those of the record.
"""

from __future__ import annotations

import difflib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from pipeline.domain.card_numbers import mask_card_number_text, names_a_security_code
from pipeline.domain.keys import ID_PATTERN, valid_id
from pipeline.domain.model import Order, OrderLine
from producers.order_file import (
    OrderFile,
    Problem,
    card_number_reason,
    not_utf8,
    read_raw,
    text_lines,
)

INT64_MAX = (1 << 63) - 1
INT32_MAX = (1 << 31) - 1
# More than any field takes; what is shorter is refused with the field's own name.
DIGITS_MAX = 100


def read_orders(
    path: Path, *, now_ms: int, prefix: str = "", raw: bytes | None = None
) -> OrderFile:
    """The file's orders; bad lines become problems and the others are taken.

    ``raw`` is what the file holds, where that was read already. ``prefix`` goes in front of each
    order id. Checks form only: whether an order may be paid is
    decided by the flow. Raises UserError for a file that cannot be read at all.
    """
    orders: list[Order] = []
    line_numbers: list[int] = []
    problems: list[Problem] = []
    lines = text_lines(read_raw(path) if raw is None else raw)
    for line_number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            orders.append(parse_order(text, now_ms=now_ms, prefix=prefix))
            line_numbers.append(line_number)
        except ValueError as error:
            problems.append(Problem(line_number, mask_card_number_text(str(error))))
    return OrderFile(
        line_count=len(lines),
        orders=tuple(orders),
        problems=tuple(problems),
        left_out=len(problems),
        line_numbers=tuple(line_numbers),
    )


def parse_order(text: str, *, now_ms: int, prefix: str = "") -> Order:
    """One order of one JSON object; ValueError says what is wrong with it."""
    broken = not_utf8(text)
    if broken is not None:
        raise ValueError(broken)
    try:
        given = json.loads(
            text, object_pairs_hook=_once, parse_constant=_no_constant, parse_int=_whole
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except RecursionError:
        raise ValueError("not an order: nested too deeply") from None
    if not isinstance(given, dict):
        raise ValueError("not an order: the line must be a JSON object")
    try:
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half a character (a lone surrogate)") from None
    _known(given, Order.__struct_fields__, "")
    lines = given.get("lines")
    if isinstance(lines, list):
        for number, line in enumerate(lines, start=1):
            if isinstance(line, dict):
                _known(line, OrderLine.__struct_fields__, f" in line {number} of the order")
    given.setdefault("submitted_at_ms", now_ms)
    given.setdefault(
        "business_date", datetime.fromtimestamp(now_ms / 1000, tz=UTC).date().isoformat()
    )
    _whole_numbers(given)
    try:
        order = msgspec.convert(given, Order)
    except msgspec.ValidationError as error:
        raise ValueError(_readable(str(error))) from error
    if prefix:
        order = msgspec.structs.replace(order, order_id=f"{prefix}{order.order_id}")
    for name, value in (("merchant_id", order.merchant_id), ("order_id", order.order_id)):
        if not valid_id(value):
            raise ValueError(f"{name} {value[:80]!r} must match {ID_PATTERN}")
    refused = card_number_reason(order)
    if refused is not None:
        raise ValueError(refused)
    _in_range(order)
    return order


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names differ: of two amounts nobody could say which one is meant."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} is there twice")
    return found


def _whole(digits: str) -> int:
    """A whole number; Python's own refusal of a long one tells of a setting of Python."""
    if len(digits) > DIGITS_MAX:
        raise ValueError(f"a number of {len(digits):,} digits is too large for any field")
    return int(digits)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _known(given: dict[str, Any], fields: tuple[str, ...], where: str) -> None:
    for name in given:
        if names_a_security_code(name):
            raise ValueError(
                f"field {name!r}{where} is a card's security code, which must be kept nowhere; "
                "take it out of the file"
            )
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(fields)}"
            raise ValueError(f"unknown field {name[:80]!r}{where}{hint}")


def _whole_numbers(given: dict[str, Any]) -> None:
    """Refuse 12.50, and 1250.0 as well: whoever writes a point may not mean minor units."""
    for name, value in given.items():
        if isinstance(value, float):
            raise ValueError(
                f"{name} must be a whole number, not {value}; amounts are in minor units"
            )
    lines = given.get("lines")
    for line in lines if isinstance(lines, list) else ():
        if isinstance(line, dict):
            _whole_numbers(line)


def _in_range(order: Order) -> None:
    for name in ("amount_minor", "submitted_at_ms", "pay_before_ms"):
        value = getattr(order, name)
        if value is not None and abs(value) > INT64_MAX:
            raise ValueError(f"{name} is too large")
    for line in order.lines:
        if abs(line.unit_amount_minor) > INT64_MAX:
            raise ValueError("unit_amount_minor is too large")
        if abs(line.quantity) > INT32_MAX or abs(line.line_number) > INT32_MAX:
            raise ValueError("quantity or line_number is too large")


def _readable(message: str) -> str:
    """msgspec's sentence without its notation for the top of the object."""
    return (
        message.replace(" - at `$.", " at `")
        .replace("Object missing required field", "missing field")
        .replace("`", "'")
    )

"""The audit's amounts: decimals as ISO 4217 has them."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.audit.amounts import amount_text
from pipeline.audit.render import state_line, summary_lines
from pipeline.audit.trace import Trace, describe, money
from pipeline.domain.money import MINOR_UNITS, format_amount
from tests.unit.test_demo import WHOLE


@pytest.mark.parametrize(
    ("amount_minor", "currency", "text"),
    [
        (500, "GBP", "GBP 5.00"),
        (5, "GBP", "GBP 0.05"),
        (-123_456_789, "EUR", "EUR -1,234,567.89"),
        (500, "JPY", "JPY 500"),
        (1_500, "KWD", "KWD 1.500"),
        (7, "CLF", "CLF 0.0007"),
        (0, "GBP", "GBP 0.00"),
        (500, "???", "??? 500 minor"),
    ],
)
def test_minor_units_become_the_units_of_the_currency(
    amount_minor: int, currency: str, text: str
) -> None:
    """Nobody reads 500 pence as 500 pounds."""
    assert amount_text(amount_minor, currency) == text


def test_both_tables_say_the_same() -> None:
    """Two copies by intent: where they differ, one of them is wrong."""
    for code in [*MINOR_UNITS, "XXX"]:
        assert amount_text(-1_234_567, code) == format_amount(-1_234_567, code)


def test_a_trace_shows_units_of_the_currency() -> None:
    """In a hop and in the state with its charge."""
    fields: dict[str, Any] = {"amount_minor": 1_250, "currency": "GBP"}
    assert money(fields) == "GBP 12.50"
    assert describe("orders", fields) == "ordered, GBP 12.50"
    trace = Trace(
        "m:o", 0, "p", [], state="captured", charges=[{"kind": "charge", "id": "ch-1", **fields}]
    )
    assert "charge ch-1 of GBP 12.50" in state_line(trace)


def test_a_summary_shows_units_of_the_currency() -> None:
    """What was captured, settled, charged and booked."""
    assert "GBP 12.50" in "\n".join(summary_lines({**WHOLE, "orders_repeated": 0}))
    assert "1,250" not in "\n".join(summary_lines({**WHOLE, "orders_repeated": 0}))

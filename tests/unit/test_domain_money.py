from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.money import MINOR_UNITS, format_amount, minor_units, parse_amount
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("currency", "digits"),
    [
        ("GBP", 2),
        ("EUR", 2),
        ("JPY", 0),
        ("ISK", 0),
        ("KWD", 3),
        ("BHD", 3),
        ("CLF", 4),
        ("XCG", 2),
    ],
)
def test_minor_units(currency: str, digits: int) -> None:
    """The table says how many decimals a currency has."""
    assert minor_units(currency) == digits


@pytest.mark.parametrize("currency", ["", "gbp", "XXX", "XAU", "DEM", "HRK", "£"])
def test_what_is_no_active_currency(currency: str) -> None:
    """Test codes, metals, retired and misspelt currencies are refused in a sentence."""
    with pytest.raises(UserError, match="ISO 4217"):
        minor_units(currency)


@pytest.mark.parametrize(
    ("minor", "currency", "sign", "text"),
    [
        (15365288, "GBP", False, "GBP 153,652.88"),
        (15365288, "GBP", True, "£153,652.88"),
        (-5, "EUR", True, "-€0.05"),
        (-5, "USD", True, "USD -0.05"),
        (1234567, "JPY", True, "JPY 1,234,567"),
        (1, "KWD", False, "KWD 0.001"),
        (7, "???", True, "??? 7 minor"),
    ],
)
def test_amounts_for_people(minor: int, currency: str, sign: bool, text: str) -> None:
    """An amount is shown with its currency, its decimals and its thousands."""
    assert format_amount(minor, currency, sign=sign) == text


@given(st.integers(-(10**17), 10**17), st.sampled_from(sorted(MINOR_UNITS)))
def test_what_is_shown_can_be_read_back(minor: int, currency: str) -> None:
    """Parsing a formatted amount gives exactly the minor units it was made of."""
    shown = format_amount(minor, currency).removeprefix(f"{currency} ").replace(",", "")
    assert parse_amount(shown, currency) == minor


@pytest.mark.parametrize(
    ("text", "currency", "minor"),
    [("2.55", "GBP", 255), ("2.5", "GBP", 250), ("2.5500", "GBP", 255),
     ("-11062.06", "GBP", -1106206), ("0.1", "KWD", 100), ("7.0", "JPY", 7), (" 007 ", "GBP", 700)],
)  # fmt: skip
def test_decimal_strings_are_read_exactly(text: str, currency: str, minor: int) -> None:
    """No float stands between the text and the minor units."""
    assert parse_amount(text, currency) == minor


@pytest.mark.parametrize(
    ("text", "currency"),
    [("2.555", "GBP"), ("1.5", "JPY"), ("", "GBP"), ("1,000.00", "GBP"), ("1e3", "GBP"),
     (".5", "GBP"), ("NaN", "GBP"), ("٣", "GBP"), ("9" * 40, "GBP"), ("1.00", "XXX")],
)  # fmt: skip
def test_what_is_no_amount_is_refused(text: str, currency: str) -> None:
    """Nothing is rounded, guessed or truncated."""
    with pytest.raises(UserError):
        parse_amount(text, currency)

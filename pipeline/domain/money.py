"""Amounts: integers in minor units of an ISO 4217 currency, never floats.

The table holds every active currency that has minor units of its own (ISO 4217 list one);
gold, test codes and units of account are left out because nobody pays with them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from pipeline.errors import UserError

_CODES_BY_MINOR_UNITS: Final = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: (
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD "
        "CAD CDF CHE CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP "
        "GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK "
        "LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO "
        "NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS "
        "SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST "
        "XCD XCG YER ZAR ZMW ZWG"
    ),
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}

MINOR_UNITS: Final[Mapping[str, int]] = {
    code: digits for digits, codes in _CODES_BY_MINOR_UNITS.items() for code in codes.split()
}

# Signs that mean one currency only; "$" and "kr" would leave a reader guessing.
_SIGNS: Final = {"GBP": "£", "EUR": "€"}

# 18 digits: every amount of that length fits a signed 64-bit integer (19 digits may not).
_DIGITS_MAX: Final = 18
_DECIMAL = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?")


def minor_units(currency: str) -> int:
    """How many decimal digits the currency has.

    Raises UserError for a code that is not an active ISO 4217 currency.
    """
    digits = MINOR_UNITS.get(currency)
    if digits is None:
        raise UserError(
            f"{currency!r} is not an active ISO 4217 currency: use a code such as GBP or JPY."
        )
    return digits


def format_amount(amount_minor: int, currency: str, *, sign: bool = False) -> str:
    """An amount for people: ``GBP 153,652.88``, or ``£153,652.88`` where ``sign`` is set.

    An unknown currency is shown in minor units (``??? 15365288 minor``), since what is shown may
    be the bad input itself.
    """
    digits = MINOR_UNITS.get(currency)
    if digits is None:
        return f"{currency} {amount_minor} minor"
    whole, rest = divmod(abs(amount_minor), 10**digits)
    text = f"{whole:,}.{rest:0{digits}d}" if digits else f"{whole:,}"
    minus = "-" if amount_minor < 0 else ""
    if sign and currency in _SIGNS:
        return f"{minus}{_SIGNS[currency]}{text}"
    return f"{currency} {minus}{text}"


def decimal(amount_minor: int, currency: str) -> str:
    """A plain decimal without separators, as banks, spreadsheets and an ERP read it: JPY 1999,
    GBP 19.99, KWD 1.999. An unknown currency's minor units stay as they are."""
    digits = MINOR_UNITS.get(currency, 0)
    whole, rest = divmod(abs(amount_minor), 10**digits)
    text = f"{whole}.{rest:0{digits}d}" if digits else str(whole)
    return f"-{text}" if amount_minor < 0 else text


def parse_amount(text: str, currency: str) -> int:
    """Minor units of a decimal string such as ``1536.5``, exactly; zeros may be left out or added.

    Raises UserError when it is not a plain decimal number or finer than the currency allows.
    """
    digits = minor_units(currency)
    match = _DECIMAL.fullmatch(text.strip())
    if match is None:
        raise UserError(f"{text!r} is not an amount: write digits and at most one point.")
    minus, whole, fraction = match.group(1), match.group(2), match.group(3) or ""
    fraction = fraction.rstrip("0")
    if len(fraction) > digits:
        raise UserError(f"{text!r} is finer than {currency} allows: it has {digits} decimals.")
    number = (whole + fraction.ljust(digits, "0")).lstrip("0") or "0"
    if len(number) > _DIGITS_MAX:
        raise UserError(f"{text!r} is too large: an amount has at most {_DIGITS_MAX} digits.")
    amount_minor = int(number)
    return -amount_minor if minus else amount_minor

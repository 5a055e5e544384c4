"""Amounts for people: minor units with the decimals of their currency (ISO 4217, list one).

The audit's own table: what it judges may have the decimals wrong.
"""

from __future__ import annotations

from typing import Any, Final

_CODES_BY_DECIMALS: Final = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: """AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD
        CAD CDF CHE CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP
        GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK
        LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO
        NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS
        SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST
        XCD XCG YER ZAR ZMW ZWG""",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
_DECIMALS: Final = {
    code: decimals for decimals, codes in _CODES_BY_DECIMALS.items() for code in codes.split()
}


def amount_text(amount_minor: int, currency: str) -> str:
    """``GBP 1,536.52``; an unknown currency, which may be the fault, as ``ABC 153652 minor``."""
    decimals = _DECIMALS.get(currency)
    if decimals is None:
        return f"{currency} {amount_minor} minor"
    digits = f"{abs(amount_minor):0{decimals + 1}d}"
    whole = f"{int(digits[: len(digits) - decimals]):,}"
    sign = "-" if amount_minor < 0 else ""
    return f"{currency} {sign}{whole}" + (f".{digits[-decimals:]}" if decimals else "")


def amount_of(record: Any) -> str:
    """The text of a record's ``amount_minor`` and ``currency``."""
    return amount_text(record.amount_minor, record.currency)

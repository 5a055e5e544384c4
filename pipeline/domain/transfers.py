"""Entries of other origin than a settlement, as pure rules: what moves between accounts and why.

Each gives balanced lines; whoever books them adds the event they come from.
"""

from __future__ import annotations

from typing import Final

from pipeline.domain.accounts import (
    CURRENCY_POSITION,
    FEE_REVENUE,
    GATEWAY_COST,
    GATEWAY_RECEIVABLE,
    MERCHANT_AVAILABLE,
    MERCHANT_PAYABLE,
)
from pipeline.domain.invariant import invariant
from pipeline.domain.posting import Posting

# The kind of the entries that set a closed month's tiers right.
FEE_TRUE_UP: Final = "fee_true_up"
# And of those that return of that what refunds have since taken back.
FEE_TRUE_UP_RETURNED: Final = "fee_true_up_returned"


def conversion(account: str, sold: tuple[str, int], bought: tuple[str, int]) -> tuple[Posting, ...]:
    """What stands in an account changes its currency: (currency, amount) becomes another.

    Amounts are signed as the account holds them: debits positive, so what is owed is negative.

    The entry balances in each currency by itself. Of what is owed: we keep the money and owe it no
    more, a credit of the one position, and owe what we do not hold, a debit of the other. So it
    stands until the money at the bank is changed as well, at some rate.
    """
    (from_currency, from_minor), (to_currency, to_minor) = sold, bought
    invariant(from_currency != to_currency, "a conversion is between two currencies")
    invariant(from_minor * to_minor > 0, "a conversion moves both currencies to one side")
    return (
        Posting(account, from_currency, -from_minor),
        Posting(f"{CURRENCY_POSITION}:{from_currency}", from_currency, from_minor),
        Posting(f"{CURRENCY_POSITION}:{to_currency}", to_currency, -to_minor),
        Posting(account, to_currency, to_minor),
    )


def cost_true_up(
    gateway: str, currency: str, accrued_minor: int, actual_minor: int
) -> tuple[Posting, ...]:
    """A gateway's report says what it took; the cost accrued at the capture is set right."""
    more_minor = actual_minor - accrued_minor
    if not more_minor:
        return ()
    return (
        Posting(f"{GATEWAY_COST}:{gateway}", currency, more_minor),
        Posting(f"{GATEWAY_RECEIVABLE}:{gateway}", currency, -more_minor),
    )


def made_available(merchant: str, currency: str, amount_minor: int) -> tuple[Posting, ...]:
    """A merchant's sale is cleared: what was pending may be paid out."""
    invariant(amount_minor != 0, "something becomes available")
    return (
        Posting(f"{MERCHANT_PAYABLE}:{merchant}", currency, amount_minor),
        Posting(f"{MERCHANT_AVAILABLE}:{merchant}", currency, -amount_minor),
    )


def fee_true_up(merchant: str, currency: str, correction_minor: int) -> tuple[Posting, ...]:
    """A closed month's tiers cost the merchant more than was charged (less: negative)."""
    if not correction_minor:
        return ()
    return (
        Posting(f"{MERCHANT_PAYABLE}:{merchant}", currency, correction_minor),
        Posting(f"{FEE_REVENUE}:{merchant}", currency, -correction_minor),
    )

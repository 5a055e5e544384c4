"""A conversion by hand: what stands in an account changes its currency, as the body of a decision.

A person says both amounts as they are; the account says on which side it stands.
"""

from __future__ import annotations

from typing import Final

from pipeline.domain.accounts import CHART, is_account, kind_of
from pipeline.domain.decisions import entry_body
from pipeline.domain.money import format_amount
from pipeline.domain.transfers import conversion
from pipeline.errors import UserError

CONVERSION: Final = "conversion"


def conversion_body(
    account: str, sold: tuple[str, int], bought: tuple[str, int], business_date: str
) -> str:
    """The decision for an account that has ``bought`` for ``sold`` from then on, each a currency
    and an amount above nothing. UserError where that cannot be booked."""
    if not is_account(account):
        raise UserError(f"there is no account {account!r}; see docs/ledger.md.")
    kind = CHART[kind_of(account)]
    if kind.of == "currency":
        raise UserError(f"{account} is of one currency alone: nothing in it can be converted.")
    for name, (currency, amount_minor) in (("sold", sold), ("bought", bought)):
        if amount_minor <= 0:
            raise UserError(
                f"what is {name} is more than nothing, not {format_amount(amount_minor, currency)}."
            )
    if sold[0] == bought[0]:
        raise UserError(f"a conversion is between two currencies, not from {sold[0]} to {sold[0]}.")
    lines = conversion(
        account, (sold[0], kind.normal * sold[1]), (bought[0], kind.normal * bought[1])
    )
    merchant = account.partition(":")[2] if kind.of == "merchant" else ""
    return entry_body(CONVERSION, merchant, business_date, lines)

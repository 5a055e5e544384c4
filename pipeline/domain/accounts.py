"""The chart of accounts: every account there is, by kind; each is kept per currency.

An account's name is its kind and whose it is: ``merchant_payable:shop``. Assets and expenses have
debit balances (positive), what is owed and income credit balances (negative). Payouts, clearing and
reconciliation post to accounts of this chart as well, so a kind that is not here is no account.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from pipeline.domain.keys import valid_id

GATEWAY_RECEIVABLE: Final = "gateway_receivable"
MERCHANT_PAYABLE: Final = "merchant_payable"
MERCHANT_AVAILABLE: Final = "merchant_available"
MERCHANT_RECEIVABLE: Final = "merchant_receivable"
RESERVE: Final = "reserve"
PAYOUTS_IN_TRANSIT: Final = "payouts_in_transit"
BANK: Final = "bank"
FEE_REVENUE: Final = "fee_revenue"
GATEWAY_COST: Final = "gateway_cost"
DISPUTES_AND_LOSSES: Final = "disputes_and_losses"
UNAPPLIED_CREDITS: Final = "unapplied_credits"
CURRENCY_POSITION: Final = "currency_position"
ROUNDING: Final = "rounding"
SUSPENSE: Final = "suspense"

DEBIT: Final = 1
CREDIT: Final = -1


class AccountKind(Struct, frozen=True):
    """``normal`` is the side on which the balance usually stands; ``of`` is whose it is."""

    normal: int
    of: str
    meaning: str


CHART: Final[Mapping[str, AccountKind]] = {
    GATEWAY_RECEIVABLE: AccountKind(DEBIT, "gateway", "what a gateway owes us, its cost taken off"),
    MERCHANT_PAYABLE: AccountKind(
        CREDIT, "merchant", "pending: owed to a merchant, not yet cleared by a report"
    ),
    MERCHANT_AVAILABLE: AccountKind(
        CREDIT, "merchant", "available: owed to a merchant and cleared, so it may be paid out"
    ),
    MERCHANT_RECEIVABLE: AccountKind(
        DEBIT,
        "merchant",
        "what a merchant owes us: a negative balance that was called in, an advance",
    ),
    RESERVE: AccountKind(CREDIT, "merchant", "held back from a merchant's payouts"),
    PAYOUTS_IN_TRANSIT: AccountKind(
        CREDIT, "merchant", "handed to the bank for a merchant, not yet confirmed"
    ),
    BANK: AccountKind(DEBIT, "bank account", "money in our own account"),
    FEE_REVENUE: AccountKind(CREDIT, "merchant", "fees charged to a merchant less fees returned"),
    GATEWAY_COST: AccountKind(DEBIT, "gateway", "what a gateway takes for its service"),
    DISPUTES_AND_LOSSES: AccountKind(
        DEBIT, "merchant", "taken by gateways for disputes, not given back and borne by nobody yet"
    ),
    UNAPPLIED_CREDITS: AccountKind(
        CREDIT, "merchant", "owed to customers whose sale is not known: held"
    ),
    CURRENCY_POSITION: AccountKind(
        CREDIT,
        "currency",
        "what we hold of a currency beyond what we owe in it, by conversions; a debit: what we owe "
        "and do not hold",
    ),
    ROUNDING: AccountKind(
        DEBIT, "currency", "what is left over where figures of others are rounded"
    ),
    SUSPENSE: AccountKind(DEBIT, "gateway", "moved, and not yet explained"),
}


def account(kind: str, owner: str) -> str:
    """The name of an account; KeyError for a kind that is not in the chart."""
    CHART[kind]
    return f"{kind}:{owner}"


def kind_of(name: str) -> str:
    """The kind of an account by its name."""
    return name.partition(":")[0]


def is_account(name: str) -> bool:
    """Whether the name is one of an account of the chart: its owner is an id."""
    kind, _, owner = name.partition(":")
    return kind in CHART and valid_id(owner)


def is_kept_in(name: str, currency: str) -> bool:
    """Whether an account may hold a currency: one that is a currency's own holds no other."""
    kind, _, owner = name.partition(":")
    return owner == currency or CHART[kind].of != "currency"

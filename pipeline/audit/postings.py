"""How each kind of settlement is booked, written down a second time from docs/ledger.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# kind: the account that takes the settlement's signed amount (positive: a debit), and the one
# that takes the opposite.
_ACCOUNTS: Final[Mapping[str, tuple[str, str]]] = {
    "capture": ("gateway_receivable:{gateway}", "merchant_payable:{merchant}"),
    "refund": ("gateway_receivable:{gateway}", "merchant_payable:{merchant}"),
    "refund_failed": ("gateway_receivable:{gateway}", "merchant_payable:{merchant}"),
    "dispute": ("gateway_receivable:{gateway}", "disputes_and_losses:{merchant}"),
    "reversal": ("gateway_receivable:{gateway}", "disputes_and_losses:{merchant}"),
    "dispute_fee": ("gateway_receivable:{gateway}", "disputes_and_losses:{merchant}"),
    "external_refund": ("suspense:{gateway}", "merchant_available:{merchant}"),
    "unasked_capture": ("gateway_receivable:{gateway}", "suspense:{gateway}"),
    "unasked_refund": ("gateway_receivable:{gateway}", "suspense:{gateway}"),
    "unasked_refund_failed": ("gateway_receivable:{gateway}", "suspense:{gateway}"),
    "unasked_external_refund": ("unapplied_credits:{merchant}", "suspense:{gateway}"),
    "unasked_dispute": ("gateway_receivable:{gateway}", "suspense:{gateway}"),
    "unasked_reversal": ("gateway_receivable:{gateway}", "suspense:{gateway}"),
    "unasked_dispute_fee": ("gateway_receivable:{gateway}", "suspense:{gateway}"),
    "credit": ("unapplied_credits:{merchant}", "merchant_payable:{merchant}"),
}


def expected_postings(
    kind: str, amount_minor: int, currency: str, gateway: str, merchant: str
) -> dict[tuple[str, str], int] | None:
    """Signed amounts (debits positive) by account and currency; None for a kind we do not know."""
    accounts = _ACCOUNTS.get(kind)
    if accounts is None:
        return None
    to, against = (name.format(gateway=gateway, merchant=merchant) for name in accounts)
    return {(to, currency): amount_minor, (against, currency): -amount_minor}

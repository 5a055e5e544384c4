"""Payouts to merchants that the bank was asked for, and whose debit no statement has shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, text

from pipeline.domain.breaks import PAYOUT_UNCONFIRMED, ReconciliationBreak, break_id
from pipeline.domain.money import format_amount
from pipeline.domain.payouts import PAID, SUBMITTED, UNKNOWN
from pipeline.ledger.payouts import payout_book
from pipeline.ledger.reconciliation.findings import Clocks

# Also of lines that are not the payout's own (another amount): each of those is a break itself.
_DEBITED: Final = text(
    "SELECT batch_id, currency, sum(-amount_minor) AS minor FROM bank_lines "
    "WHERE gateway = '' AND batch_id <> '' AND amount_minor < 0 GROUP BY batch_id, currency"
)
_SAID: Final = {SUBMITTED: "submitted", PAID: "called paid by hand", UNKNOWN: "unknown"}


def unconfirmed_payouts(connection: Connection, clocks: Clocks) -> Iterator[ReconciliationBreak]:
    """Those that are due, whatever a person has said of them meanwhile; not what came back."""
    debited = {(d.batch_id, d.currency): int(d.minor) for d in connection.execute(_DEBITED)}
    for payout in payout_book(connection).payouts.values():
        if payout.state not in _SAID or not clocks.is_unconfirmed(payout.execution_date):
            continue
        debited_minor = debited.get((payout.payout_id, payout.currency), 0)
        if debited_minor >= payout.amount_minor:
            continue
        asked = format_amount(payout.amount_minor, payout.currency)
        shown = format_amount(debited_minor, payout.currency) if debited_minor else "no line"
        yield ReconciliationBreak(
            break_id=break_id(PAYOUT_UNCONFIRMED, payout.bank, payout.payout_id),
            kind=PAYOUT_UNCONFIRMED,
            gateway=payout.bank,
            subject=payout.payout_id,
            currency=payout.currency,
            at_risk_minor=payout.amount_minor,
            since=payout.execution_date,
            detail=f"a payout of {asked} is {_SAID[payout.state]}, the bank has {shown} of it",
            merchant_id=payout.merchant_id,
            gateway_reference=payout.payout_id,
        )

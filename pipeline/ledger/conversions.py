"""Conversions by hand are decided here: only of what was ever booked, and under an open day."""

from __future__ import annotations

from sqlalchemy import Connection, select

from pipeline.domain.conversions import conversion_body
from pipeline.domain.decisions import ENTRY
from pipeline.domain.model import LedgerEvent
from pipeline.errors import UserError
from pipeline.ledger.decision_booking import closed_through
from pipeline.ledger.decisions import decide, lock_decisions
from pipeline.ledger.tables import accounts, balances


def decide_conversion(
    connection: Connection,
    account: str,
    sold: tuple[str, int],
    bought: tuple[str, int],
    *,
    business_date: str,
    actor: str,
    reason: str,
    now_ms: int,
) -> LedgerEvent:
    """Decide that an account has ``bought`` for ``sold``, in the connection's transaction.
    UserError where it cannot be booked, the day is closed, or the account never had what is sold:
    it is another one that is meant."""
    body = conversion_body(account, sold, bought, business_date)
    lock_decisions(connection)
    closed = closed_through(connection)
    if business_date <= closed:
        raise UserError(f"everything through {closed} is closed: give a later day with --date.")
    _require_booked(connection, account, sold[0])
    return decide(connection, kind=ENTRY, body=body, actor=actor, reason=reason, now_ms=now_ms)


def _require_booked(connection: Connection, account: str, currency: str) -> None:
    asked = (
        select(balances.c.currency)
        .join(accounts, accounts.c.account_id == balances.c.account_id)
        .where(accounts.c.name == account, balances.c.currency == currency)
    )
    if connection.execute(asked.limit(1)).first() is None:
        raise UserError(
            f"nothing was ever booked in {account} in {currency}: nothing can be sold of it; see "
            "`paystream ledger balances --all`."
        )

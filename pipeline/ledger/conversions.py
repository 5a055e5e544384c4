"""Conversions by hand are decided here: only of what the account has, and under an open day."""

from __future__ import annotations

from sqlalchemy import Connection

from pipeline.domain.accounts import CHART, kind_of
from pipeline.domain.conversions import conversion_body
from pipeline.domain.decisions import ENTRY, decided_entry_of
from pipeline.domain.model import LedgerEvent
from pipeline.domain.money import format_amount
from pipeline.errors import UserError
from pipeline.ledger.decision_booking import closed_through
from pipeline.ledger.decisions import decide, lock_decisions, unpublished
from pipeline.ledger.queries import standing


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
    overdraw: bool = False,
) -> LedgerEvent:
    """Decide that an account has ``bought`` for ``sold``, in the connection's transaction.
    UserError where it cannot be booked, the day is closed, the account never had what is sold (it
    is another one that is meant), or has less of it and is not to be overdrawn."""
    body = conversion_body(account, sold, bought, business_date)
    lock_decisions(connection)
    closed = closed_through(connection)
    if business_date <= closed:
        raise UserError(f"everything through {closed} is closed: give a later day with --date.")
    _require_stands(connection, account, sold, overdraw)
    return decide(connection, kind=ENTRY, body=body, actor=actor, reason=reason, now_ms=now_ms)


def _require_stands(
    connection: Connection, account: str, sold: tuple[str, int], overdraw: bool
) -> None:
    currency, amount_minor = sold
    booked_minor = standing(connection, [account]).get((account, currency))
    if booked_minor is None:
        raise UserError(
            f"nothing was ever booked in {account} in {currency}: nothing can be sold of it; see "
            "`paystream ledger balances --all`."
        )
    # Another command may have decided and not booked yet: the same is not sold to both.
    waiting_minor = sum(
        posting.amount_minor
        for event in unpublished(connection)
        if (entry := decided_entry_of(event)) is not None
        for posting in entry.postings
        if (posting.account, posting.currency) == (account, currency)
    )
    stands_minor = CHART[kind_of(account)].normal * (booked_minor + waiting_minor)
    if amount_minor > stands_minor and not overdraw:
        raise UserError(
            f"{account} has {format_amount(stands_minor, currency)}, and "
            f"{format_amount(amount_minor, currency)} of it are to be sold. Where it may be "
            "overdrawn, or the rest is on its way, say so with --overdraw."
        )

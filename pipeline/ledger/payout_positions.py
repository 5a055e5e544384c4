"""Where merchants stand, for payouts: the balances of now, and what came after a cut-off.

Decisions that are made and not booked yet count as booked: their entries are certain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final

from msgspec import Struct
from sqlalchemy import Connection, text

from pipeline.domain.accounts import (
    MERCHANT_AVAILABLE,
    MERCHANT_PAYABLE,
    MERCHANT_RECEIVABLE,
    RESERVE,
)
from pipeline.domain.decisions import decided_entry_of
from pipeline.domain.payouts import TAKING_KINDS
from pipeline.ledger.decisions import unpublished
from pipeline.ledger.tables import MOVES_AVAILABLE

_FETCH_ROWS: Final = 10_000
_KINDS: Final = (MERCHANT_AVAILABLE, RESERVE, MERCHANT_RECEIVABLE, MERCHANT_PAYABLE)
# What has come to be available since a time, by when. Its own index leads to the entries.
ARRIVALS: Final = (
    "SELECT a.name, p.currency, e.settled_at_ms, sum(p.amount_minor) FROM postings p "
    "JOIN accounts a ON a.account_id = p.account_id "
    "JOIN journal_entries e ON e.entry_number = p.entry_number "
    f"WHERE {MOVES_AVAILABLE.format('e.')} AND e.settled_at_ms >= :since "
    "AND a.name LIKE 'merchant_available:%' "
    "AND e.kind NOT IN ('payout_created', 'payout_netted') "
    "GROUP BY a.name, p.currency, e.settled_at_ms"
)

Key = tuple[str, str]


class Funds(Struct, kw_only=True):
    """One merchant's balances in a currency, positive as the merchant is owed (``receivable``: as
    it owes); ``pending_minor`` is not cleared yet. ``arrivals``: (when, how much) of what changed
    the available balance, without what payouts took of it, since the time that was asked for or
    longer."""

    available_minor: int = 0
    reserve_minor: int = 0
    receivable_minor: int = 0
    pending_minor: int = 0
    arrivals: list[tuple[int, int]]

    def by(self, cut_off_ms: int) -> int:
        """What may be paid out at a cut-off: what was there by then, and still is.

        A negative balance of now counts whenever it came about.
        """
        if self.available_minor < 0:
            return self.available_minor
        late_minor = sum(minor for at_ms, minor in self.arrivals if at_ms >= cut_off_ms)
        return max(0, self.available_minor - max(0, late_minor))

    def first_day(self) -> date | None:
        """A day before which nothing arrived, whatever the time zone."""
        if not self.arrivals:
            return None
        first_ms = min(at_ms for at_ms, _ in self.arrivals)
        return datetime.fromtimestamp(first_ms / 1000, UTC).date() - timedelta(days=1)


def funds(connection: Connection, since_ms: Callable[[Key], int] | None = None) -> dict[Key, Funds]:
    """By merchant and currency; whoever holds the lock of decisions sees no other payout made.

    ``since_ms`` says from when on arrivals are asked for, of those who have something available;
    without it none are.
    """
    found: dict[Key, Funds] = {}

    def of(owner: str, currency: str) -> Funds:
        return found.setdefault((owner, currency), Funds(arrivals=[]))

    for account, currency, minor in _balances(connection):
        kind, _, owner = account.partition(":")
        _add(of(owner, currency), kind, minor)
    for event in unpublished(connection):
        entry = decided_entry_of(event)
        if entry is None:
            continue
        for posting in entry.postings:
            kind, _, owner = posting.account.partition(":")
            if kind not in _KINDS:
                continue
            to = of(owner, posting.currency)
            _add(to, kind, posting.amount_minor)
            if kind == MERCHANT_AVAILABLE and entry.kind not in TAKING_KINDS:
                to.arrivals.append((event.decided_at_ms, -posting.amount_minor))
    if since_ms is not None:
        wanted = {key: since_ms(key) for key, each in found.items() if each.available_minor > 0}
        for account, currency, at_ms, minor in _arrivals(connection, wanted):
            key = account.partition(":")[2], currency
            if key in wanted:
                found[key].arrivals.append((at_ms, -minor))
    return found


def _add(to: Funds, kind: str, minor: int) -> None:
    """``minor`` is signed as in the books: debits positive."""
    if kind == MERCHANT_AVAILABLE:
        to.available_minor -= minor
    elif kind == RESERVE:
        to.reserve_minor -= minor
    elif kind == MERCHANT_PAYABLE:
        to.pending_minor -= minor
    else:
        to.receivable_minor += minor


def _balances(connection: Connection) -> Iterator[tuple[str, str, int]]:
    rows = connection.execute(
        text(
            "SELECT a.name, b.currency, b.debits_minor - b.credits_minor FROM balances b "
            "JOIN accounts a ON a.account_id = b.account_id "
            "WHERE a.name LIKE 'merchant_available:%' OR a.name LIKE 'merchant_receivable:%' "
            "OR a.name LIKE 'reserve:%' OR a.name LIKE 'merchant_payable:%'"
        )
    )
    yield from (tuple(row) for row in rows)


def _arrivals(
    connection: Connection, wanted: Mapping[Key, int]
) -> Iterator[tuple[str, str, int, int]]:
    """By the entries since the earliest time that may move what is available; an index leads to
    them."""
    if not wanted:
        return
    rows = connection.execute(
        text(ARRIVALS),
        {"since": min(wanted.values())},
        # Of this statement alone: the transaction goes on to write.
        execution_options={"yield_per": _FETCH_ROWS},
    )
    for name, currency, at_ms, minor in rows:
        yield name, currency, at_ms, int(minor)

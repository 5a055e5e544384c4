"""Reading the books. Every function takes a connection: ``with reading(engine) as connection``
gives one on which all of them see the same moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, case, func, select

from pipeline.domain.said_text import is_storable
from pipeline.ledger.tables import accounts, consumer_offsets, journal_entries, postings
from pipeline.ledger.tables import balances as balances_table


class Balance(Struct, frozen=True):
    """Totals of one account in one currency, in minor units."""

    account: str
    currency: str
    debits_minor: int
    credits_minor: int

    @property
    def balance_minor(self) -> int:
        """Debits less credits: positive is owed to us, negative is owed by us."""
        return self.debits_minor - self.credits_minor


class TrialBalance(Struct, frozen=True):
    """All postings of one currency. Books in order have equal debits and credits."""

    currency: str
    debits_minor: int
    credits_minor: int

    @property
    def difference_minor(self) -> int:
        return self.debits_minor - self.credits_minor


class KindSum(Struct, frozen=True):
    """What all entries of a kind have moved in a currency; ``amount_minor`` is never negative."""

    kind: str
    currency: str
    entries: int
    amount_minor: int


class BookedOffset(Struct, frozen=True):
    """How far a partition is booked: all settlements below ``next_offset``."""

    topic: str
    partition: int
    next_offset: int
    cluster_id: str
    topic_id: str
    updated_at_ms: int


def balances(connection: Connection, account: str | None = None) -> list[Balance]:
    """The kept balances of all accounts or of one, by account and currency."""
    b = balances_table.c
    statement = (
        select(accounts.c.name, b.currency, b.debits_minor, b.credits_minor)
        .join(accounts, accounts.c.account_id == b.account_id)
        .order_by(accounts.c.name, b.currency)
    )
    if account is not None:
        statement = statement.where(accounts.c.name == account)
    return [Balance(*row) for row in connection.execute(statement)]


def standing(connection: Connection, names: Iterable[str]) -> dict[tuple[str, str], int]:
    """What stands in these accounts, debits less credits, by account and currency."""
    return {
        (each.account, each.currency): each.balance_minor
        for name in sorted({name for name in names if is_storable(name)})
        for each in balances(connection, name)
    }


def trial_balance(connection: Connection) -> list[TrialBalance]:
    """Debits and credits of every currency, summed over the postings of booked entries."""
    rows = connection.execute(
        select(postings.c.currency, _debits(), _credits())
        .join(journal_entries, journal_entries.c.entry_number == postings.c.entry_number)
        .group_by(postings.c.currency)
        .order_by(postings.c.currency)
    )
    return [TrialBalance(currency, int(debits), int(credits)) for currency, debits, credits in rows]


def entry_count(connection: Connection) -> int:
    """How many entries are booked, which is how many settlements are."""
    return connection.execute(select(func.count()).select_from(journal_entries)).scalar_one()


def sums_by_kind(connection: Connection) -> list[KindSum]:
    """Entries and amounts by kind and currency."""
    j = journal_entries.c
    rows = connection.execute(
        select(j.kind, postings.c.currency, func.count(j.entry_number.distinct()), _debits())
        .join(postings, postings.c.entry_number == j.entry_number)
        .group_by(j.kind, postings.c.currency)
        .order_by(j.kind, postings.c.currency)
    )
    return [
        KindSum(kind, currency, entries, int(amount)) for kind, currency, entries, amount in rows
    ]


def booked_offsets(connection: Connection) -> list[BookedOffset]:
    """How far each partition is booked."""
    c = consumer_offsets.c
    rows = connection.execute(
        select(
            c.topic, c.partition, c.next_offset, c.cluster_id, c.topic_id, c.updated_at_ms
        ).order_by(c.topic, c.partition)
    )
    return [BookedOffset(*row) for row in rows]


def drifted_balances(connection: Connection) -> list[tuple[Balance, Balance]]:
    """(kept, computed) for each balance that is not the sum of its postings; empty in order."""
    rows = connection.execute(
        select(accounts.c.name, postings.c.currency, _debits(), _credits())
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .join(journal_entries, journal_entries.c.entry_number == postings.c.entry_number)
        .group_by(accounts.c.name, postings.c.currency)
    )
    computed = {
        (name, currency): Balance(name, currency, int(debits), int(credits))
        for name, currency, debits, credits in rows
    }
    kept = {(b.account, b.currency): b for b in balances(connection)}
    drifted = []
    for key in sorted(kept.keys() | computed.keys()):
        nothing = Balance(key[0], key[1], 0, 0)
        pair = kept.get(key, nothing), computed.get(key, nothing)
        if pair[0] != pair[1]:
            drifted.append(pair)
    return drifted


def _debits() -> Any:
    amount = postings.c.amount_minor
    return func.coalesce(func.sum(case((amount > 0, amount), else_=0)), 0)


def _credits() -> Any:
    amount = postings.c.amount_minor
    return func.coalesce(func.sum(case((amount < 0, -amount), else_=0)), 0)

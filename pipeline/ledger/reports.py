"""What a finance engineer asks of the books: a merchant's balances and statement, one entry, all
lines of a period. Amounts stay integers in minor units; whoever prints them makes decimals.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Connection, text

from pipeline.domain.accounts import (
    MERCHANT_AVAILABLE,
    MERCHANT_PAYABLE,
    MERCHANT_RECEIVABLE,
    PAYOUTS_IN_TRANSIT,
    RESERVE,
)
from pipeline.ledger.queries import balances

_FETCH_ROWS: Final = 10_000
DAY: Final = "CASE e.booked_date WHEN '' THEN e.business_date ELSE e.booked_date END"


class MerchantBalance(Struct, frozen=True):
    """What a merchant is owed in one currency (negative: owes us), by what it waits for."""

    merchant: str
    currency: str
    pending_minor: int = 0
    available_minor: int = 0
    reserve_minor: int = 0
    in_transit_minor: int = 0
    receivable_minor: int = 0


class StatementLine(Struct, frozen=True):
    """One entry's effect on what a merchant is owed; ``balance_minor`` is after it."""

    day: str
    entry_id: str
    kind: str
    order_id: str
    reference: str
    pending_minor: int
    available_minor: int
    balance_minor: int
    source: str


class Statement(Struct, frozen=True):
    """A merchant's account in one currency: pending and available together."""

    merchant: str
    currency: str
    opening_minor: int
    lines: tuple[StatementLine, ...]
    closing_minor: int


class EntryLine(Struct, frozen=True):
    account: str
    currency: str
    amount_minor: int


class EntryShown(Struct, frozen=True):
    """One entry with all that leads to it. ``seal``: its position in its chain and the hash."""

    entry_id: str
    kind: str
    business_date: str
    booked_date: str
    merchant_id: str
    order_id: str
    payment_id: str
    operation_id: str
    gateway: str
    gateway_reference: str
    terms: str
    settled_at_ms: int
    posted_at_ms: int
    source_topic: str
    source_partition: int
    source_offset: int
    lines: tuple[EntryLine, ...]
    seal: tuple[int, str] | None


_FIELD_OF: Final = {
    MERCHANT_PAYABLE: "pending_minor",
    MERCHANT_AVAILABLE: "available_minor",
    RESERVE: "reserve_minor",
    PAYOUTS_IN_TRANSIT: "in_transit_minor",
    MERCHANT_RECEIVABLE: "receivable_minor",
}


def merchant_balances(connection: Connection, merchant: str | None = None) -> list[MerchantBalance]:
    """By merchant and currency. Owed is positive here: a payable's credit balance."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for balance in balances(connection):
        kind, _, owner = balance.account.partition(":")
        if kind not in _FIELD_OF or merchant not in (None, owner):
            continue
        sign = 1 if kind == MERCHANT_RECEIVABLE else -1
        fields = found.setdefault((owner, balance.currency), {})
        fields[_FIELD_OF[kind]] = sign * balance.balance_minor
    return [
        MerchantBalance(owner, currency, **fields)
        for (owner, currency), fields in sorted(found.items())
    ]


def statements(
    connection: Connection, merchant: str, *, first_day: str = "", last_day: str = "9999-12-31"
) -> list[Statement]:
    """A merchant's statement for some days, one for each currency that ever moved: everything that
    its balances are made of, pending and available."""
    rows = connection.execution_options(yield_per=_FETCH_ROWS).execute(
        text(
            f"SELECT {DAY} AS day, e.entry_id, e.kind, e.order_id, e.gateway_reference, "
            "e.source_topic, e.source_partition, e.source_offset, p.currency, "
            "sum(CASE WHEN a.name = :pending THEN -p.amount_minor ELSE 0 END) AS pending, "
            "sum(CASE WHEN a.name = :available THEN -p.amount_minor ELSE 0 END) AS available "
            "FROM journal_entries e JOIN postings p ON p.entry_number = e.entry_number "
            "JOIN accounts a ON a.account_id = p.account_id "
            # By account: an entry by hand may move it and name another merchant, or none.
            "WHERE a.name IN (:pending, :available) "
            f"AND {DAY} <= :last_day "
            "GROUP BY e.entry_number, day, e.entry_id, e.kind, e.order_id, e.gateway_reference, "
            "e.source_topic, e.source_partition, e.source_offset, p.currency "
            "ORDER BY p.currency, day, e.settled_at_ms, e.source_topic, e.source_partition, "
            "e.source_offset, e.entry_id"
        ),
        {
            "pending": f"{MERCHANT_PAYABLE}:{merchant}",
            "available": f"{MERCHANT_AVAILABLE}:{merchant}",
            "last_day": last_day,
        },
    )
    opening: dict[str, int] = {}
    balance: dict[str, int] = {}
    lines: dict[str, list[StatementLine]] = {}
    for row in rows:
        pending, available = int(row.pending), int(row.available)
        at = balance.get(row.currency, 0) + pending + available
        balance[row.currency] = at
        if row.day < first_day:
            opening[row.currency] = at
            continue
        lines.setdefault(row.currency, []).append(
            StatementLine(
                row.day,
                row.entry_id,
                row.kind,
                row.order_id,
                row.gateway_reference,
                pending,
                available,
                at,
                f"{row.source_topic}[{row.source_partition}]@{row.source_offset}",
            )
        )
    return [
        Statement(
            merchant,
            currency,
            opening.get(currency, 0),
            tuple(lines.get(currency, ())),
            balance[currency],
        )
        for currency in sorted(balance)
    ]


def entry_shown(connection: Connection, wanted: str) -> EntryShown | None:
    """An entry by its id or its settlement's; None when there is none."""
    head = None
    for entry_id in (wanted, f"settlement:{wanted}"):
        head = connection.execute(
            text("SELECT * FROM journal_entries e WHERE e.entry_id = :id"), {"id": entry_id}
        ).one_or_none()
        if head is not None:
            break
    if head is None:
        return None
    lines = connection.execute(
        text(
            "SELECT a.name, p.currency, p.amount_minor FROM postings p "
            "JOIN accounts a ON a.account_id = p.account_id "
            "WHERE p.entry_number = :number ORDER BY p.line"
        ),
        {"number": head.entry_number},
    )
    seal = connection.execute(
        text(
            "SELECT s.position, s.hash FROM entry_seals s JOIN chains c USING (chain_id) "
            "WHERE c.topic = :topic AND c.partition = :partition "
            "AND s.source_offset = :offset AND s.source_part = :part"
        ),
        {"topic": head.source_topic, "partition": head.source_partition,
         "offset": head.source_offset, "part": head.source_part},
    ).one_or_none()  # fmt: skip
    return EntryShown(
        **{
            name: getattr(head, name)
            for name in EntryShown.__struct_fields__
            if name not in ("lines", "seal")
        },
        lines=tuple(EntryLine(*line) for line in lines),
        seal=None if seal is None else (seal.position, bytes(seal.hash).hex()),
    )


def exported_lines(
    connection: Connection, *, first_day: str = "", last_day: str = "9999-12-31"
) -> Iterator[Any]:
    """Every line of every entry that counts under these days, in the order of the log."""
    return iter(
        connection.execution_options(yield_per=_FETCH_ROWS).execute(
            text(
                f"SELECT e.entry_id, p.line, {DAY} AS day, e.business_date, e.kind, e.merchant_id, "
                "e.order_id, a.name AS account, p.currency, p.amount_minor, e.gateway, "
                "e.gateway_reference, e.terms, e.source_topic, e.source_partition, "
                "e.source_offset FROM journal_entries e "
                "JOIN postings p ON p.entry_number = e.entry_number "
                "JOIN accounts a ON a.account_id = p.account_id "
                f"WHERE {DAY} BETWEEN :first_day AND :last_day "
                "ORDER BY e.source_topic, e.source_partition, e.source_offset, e.source_part, "
                "p.line"
            ),
            {"first_day": first_day, "last_day": last_day},
        )
    )

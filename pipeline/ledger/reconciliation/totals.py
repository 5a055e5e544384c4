"""Sums for people: what each gateway reported for each day, and how far it is cleared and paid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from sqlalchemy import Connection, text

_TOTALS: Final = text(
    "SELECT r.gateway, r.report_date, r.currency, count(*) AS lines, "
    "sum(r.amount_minor) AS gross, sum(r.fee_minor) AS fees, "
    "count(c.settlement_id) AS cleared, "
    "sum(CASE WHEN c.settlement_id IS NULL THEN 0 ELSE r.amount_minor END) AS cleared_gross "
    "FROM clearing_rows r LEFT JOIN cleared_rows c ON c.gateway = r.gateway "
    "AND c.file_id = r.file_id AND c.row_number = r.row_number "
    "GROUP BY r.gateway, r.report_date, r.currency ORDER BY r.gateway, r.report_date, r.currency"
)
_NETS: Final = text(
    "SELECT gateway, batch_id, currency, report_date, sum(amount_minor - fee_minor) AS net "
    "FROM clearing_rows GROUP BY gateway, batch_id, currency, report_date ORDER BY report_date"
)
_PAID: Final = text(
    "SELECT gateway, batch_id, currency, sum(amount_minor) AS paid FROM bank_lines "
    "WHERE gateway <> '' AND batch_id <> '' GROUP BY gateway, batch_id, currency"
)


class DayTotal(Struct, frozen=True):
    """One gateway's report of a day in one currency. ``paid_minor``: at the bank by now."""

    gateway: str
    report_date: str
    currency: str
    rows: int
    gross_minor: int
    fee_minor: int
    cleared_rows: int
    cleared_minor: int
    paid_minor: int

    @property
    def net_minor(self) -> int:
        return self.gross_minor - self.fee_minor


def day_totals(connection: Connection) -> list[DayTotal]:
    """By gateway, day and currency."""
    paid = _paid(connection)
    return [
        DayTotal(
            row.gateway,
            row.report_date,
            row.currency,
            row.lines,
            int(row.gross),
            int(row.fees),
            row.cleared,
            int(row.cleared_gross),
            paid.get((row.gateway, row.report_date, row.currency), 0),
        )
        for row in connection.execute(_TOTALS)
    ]


def _paid(connection: Connection) -> Counter[tuple[str, str, str]]:
    """What the bank paid, by gateway, day and currency: of a batch that several reports have rows
    of, each minor unit counts for one of them."""
    nets: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    for row in connection.execute(_NETS):
        key = row.gateway, row.batch_id, row.currency
        nets.setdefault(key, []).append((row.report_date, int(row.net)))
    found: Counter[tuple[str, str, str]] = Counter()
    for gateway, batch_id, currency, paid in connection.execute(_PAID):
        # What no report has rows of is a break, and of no day.
        days = nets.get((gateway, batch_id, currency), [])
        for day, part_minor in shared(days, int(paid)):
            found[gateway, day, currency] += part_minor
    return found


def shared(nets: Sequence[tuple[str, int]], paid_minor: int) -> list[tuple[str, int]]:
    """What was paid for a batch, among the days of its rows: earlier ones in full first, and what
    is left over or missing is the last one's."""
    parts: list[tuple[str, int]] = []
    left_minor = paid_minor
    whole = paid_minor == sum(net for _, net in nets)
    for number, (day, net_minor) in enumerate(nets, 1):
        if number == len(nets):
            part_minor = left_minor
        elif whole:
            part_minor = net_minor
        else:
            part_minor = min(net_minor, max(left_minor, 0))
        parts.append((day, part_minor))
        left_minor -= part_minor
    return parts

"""Sums for people: what each gateway reported for each day, and how far it is cleared and paid."""

from __future__ import annotations

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
_PAID: Final = text(
    "SELECT b.gateway, b.day, b.currency, sum(l.amount_minor) AS paid FROM bank_lines l JOIN ("
    "SELECT DISTINCT gateway, batch_id, currency, report_date AS day FROM clearing_rows) b "
    "ON b.gateway = l.gateway AND b.batch_id = l.batch_id AND b.currency = l.currency "
    "GROUP BY b.gateway, b.day, b.currency"
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
    paid = {(p.gateway, p.day, p.currency): int(p.paid) for p in connection.execute(_PAID)}
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

"""Settlement reports out of the gateway's books: one a day, in payout batches by currency.

A report is the entries from where the one before it ended up to its own end, so every movement is
in exactly one. Some rows are late: they come with the next report, in its batch. Once made, a
report never changes. Merchants are paid by batch, some business days after the report.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from pipeline.domain.validation import is_date

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS settlement_reports (
    report_date TEXT PRIMARY KEY,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    late_every INTEGER NOT NULL,
    made_at_ms INTEGER NOT NULL
) WITHOUT ROWID;
"""

# Every so many-th entry of the books is a day late, if nothing else is said.
LATE_EVERY: Final = 20

_CHARGE, _CAPTURE, _REFUND = "charge", "capture", "refund"
# What moves money, by the kind of entry: (sign to the merchant, kind of operation).
_MOVES: Final = {
    "charge": (1, _CHARGE),
    "capture": (1, _CAPTURE),
    "refund": (-1, _REFUND),
    "refund_failed": (1, _REFUND),
    "charge_failed": (-1, _CHARGE),
    "capture_failed": (-1, _CAPTURE),
    "dispute": (-1, ""),
    "dispute_fee": (-1, ""),
    "dispute_won": (1, ""),
}


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One row, whatever the format. ``kind`` is the entry's; amounts are signed to the merchant.

    ``id`` is the gateway's own of the operation, or of the dispute; ``reference`` the caller's of
    the operation, of a dispute its charge's.
    """

    number: int
    kind: str
    id: str
    charge_id: str
    reference: str
    merchant_id: str
    order_id: str
    gross_minor: int
    fee_minor: int
    currency: str
    created_at_ms: int
    batch_id: str


@dataclass(frozen=True, slots=True)
class Report:
    """A day's report; ``report_date`` is a day in the gateway's own time zone."""

    report_date: str
    rows: tuple[ReportRow, ...]


class ReportRefused(ValueError):
    """Why there is no such report, in words."""


def make_report(
    db: sqlite3.Connection,
    report_date: str,
    now_ms: int,
    *,
    end_ms: int | None = None,
    late_every: int = LATE_EVERY,
) -> None:
    """Make the report of a day: everything since the one before, up to a time or up to now.

    One that is there stays as it is. Raises ReportRefused for a day before the latest report's.
    """
    if _known(db, report_date):
        return
    last = db.execute("SELECT max(report_date), max(last_seq) FROM settlement_reports").fetchone()
    if last[0] is not None and report_date < last[0]:
        raise ReportRefused(f"the reports have come to {last[0]}: {report_date} has none")
    (through,) = db.execute(
        "SELECT coalesce(max(seq), 0) FROM entries WHERE ? IS NULL OR created_at_ms < ?",
        (end_ms, end_ms),
    ).fetchone()
    first = (last[1] or 0) + 1
    db.execute(
        "INSERT INTO settlement_reports VALUES (?, ?, ?, ?, ?)",
        (report_date, first, max(through, first - 1), late_every, now_ms),
    )


def report_dates(db: sqlite3.Connection) -> list[str]:
    """The days that have a report."""
    return [
        day
        for (day,) in db.execute("SELECT report_date FROM settlement_reports ORDER BY report_date")
    ]


def read_report(db: sqlite3.Connection, code: str, report_date: str) -> Report | None:
    """The report of a day with its rows; ``code`` begins the names of its batches."""
    found = db.execute(
        "SELECT first_seq, last_seq, late_every FROM settlement_reports WHERE report_date = ?",
        (report_date,),
    ).fetchone()
    if found is None:
        return None
    before = db.execute(
        "SELECT first_seq, last_seq, late_every FROM settlement_reports WHERE report_date < ? "
        "ORDER BY report_date DESC LIMIT 1",
        (report_date,),
    ).fetchone()
    late = [] if before is None else [e for e in _entries(db, *before[:2]) if _late(e, before[2])]
    own = [entry for entry in _entries(db, *found[:2]) if not _late(entry, found[2])]
    day = report_date.replace("-", "")
    rows = [
        _row(db, number, entry, f"{code}{day}{entry[5]}")
        for number, entry in enumerate((*late, *own), 1)
    ]
    return Report(report_date, tuple(rows))


def end_of_day_ms(report_date: str, zone: str) -> int:
    """When a day is over in the gateway's own time zone; ValueError when it is no day."""
    following = date.fromisoformat(report_date) + timedelta(days=1)
    return int(datetime.combine(following, time(), ZoneInfo(zone)).timestamp() * 1000)


def batch_sums(report: Report) -> dict[tuple[str, str], int]:
    """By (batch, currency): what is paid out, fees taken off."""
    sums: dict[tuple[str, str], int] = {}
    for row in report.rows:
        key = (row.batch_id, row.currency)
        sums[key] = sums.get(key, 0) + row.gross_minor - row.fee_minor
    return sums


def is_day(said: str) -> bool:
    """Whether it is a date that business days may be counted from."""
    return is_date(said) and "1900" <= said[:4] < "9999"


def value_date(report_date: str, business_days: int) -> str:
    """The so many-th day from Monday to Friday after the report's."""
    day = date.fromisoformat(report_date)
    while business_days:
        day += timedelta(days=1)
        business_days -= day.weekday() < 5
    return day.isoformat()


def business_day_from(day: str) -> str:
    """The first day from Monday to Friday from a day on."""
    before = date.fromisoformat(day) - timedelta(days=1)
    return value_date(before.isoformat(), 1)


def _known(db: sqlite3.Connection, report_date: str) -> bool:
    found = db.execute(
        "SELECT 1 FROM settlement_reports WHERE report_date = ?", (report_date,)
    ).fetchone()
    return found is not None


def _entries(db: sqlite3.Connection, first: int, last: int) -> list[tuple[object, ...]]:
    kinds = ", ".join(f"'{kind}'" for kind in _MOVES)
    return db.execute(
        "SELECT seq, kind, id, reference, charge_id, currency, amount_minor, merchant_id, "
        f"order_id, created_at_ms, fee_minor FROM entries WHERE seq BETWEEN ? AND ? "
        f"AND kind IN ({kinds}) ORDER BY seq",
        (first, last),
    ).fetchall()


def _late(entry: tuple[object, ...], late_every: int) -> bool:
    return bool(late_every) and int(str(entry[0])) % late_every == 0


def _row(db: sqlite3.Connection, number: int, entry: tuple[object, ...], batch: str) -> ReportRow:
    _, kind, entry_id, reference, charge_id, currency, amount, merchant, order, at_ms, fee = (
        str(part) for part in entry
    )
    sign, operation = _MOVES[kind]
    own_id = entry_id.removesuffix("-failed")
    if not operation:
        own_id = reference
        charge = db.execute(
            "SELECT reference FROM operations WHERE id = ?", (charge_id,)
        ).fetchone()
        reference = "" if charge is None else charge[0]
    return ReportRow(
        number, kind, own_id, charge_id, reference, merchant, order, sign * int(amount), int(fee),
        currency, int(at_ms), batch,
    )  # fmt: skip

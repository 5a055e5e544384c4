"""From what was matched, or not, to breaks with their trail."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

from pipeline.domain.breaks import (
    AMOUNT_DIFFERS,
    BATCH_DIFFERS,
    BATCH_UNPAID,
    CORRECTED,
    CURRENCY_DIFFERS,
    DUPLICATE,
    FEE_DIFFERS,
    MISSING_AT_GATEWAY,
    MISSING_HERE,
    OPEN,
    PAYOUT_UNCONFIRMED,
    ReconciliationBreak,
    break_id,
)
from pipeline.domain.clearing import clearing_key
from pipeline.domain.matching import BookedSide, ReportedSide
from pipeline.domain.money import format_amount
from pipeline.domain.posting import CAPTURE
from pipeline.domain.reconciliation_rules import ReconciliationRules
from pipeline.domain.time_zones import time_zone
from pipeline.ledger.reconciliation.matching import Matched, OnlyHere, OnlyThere

_BATCHES: Final = text(
    "SELECT gateway, batch_id, currency, sum(amount_minor - fee_minor) AS minor, "
    "max(report_date) AS report_date, min(report_date) AS first_date, min(file_id) AS file_id, "
    "count(*) AS lines "
    "FROM clearing_rows GROUP BY gateway, batch_id, currency"
)
_TOLD: Final = text(
    f"SELECT break_id FROM breaks WHERE kind IN ('{BATCH_UNPAID}', '{BATCH_DIFFERS}') "
    f"AND (state = '{OPEN}' OR resolution = '{CORRECTED}')"
)
_BANK: Final = text(
    "SELECT b.gateway, b.batch_id, b.currency, sum(b.amount_minor) AS minor, "
    "min(b.value_date) AS first_day, max(b.value_date) AS last_day, "
    "min(coalesce(d.decided_at_ms, 0)) AS first_ms, "
    "max(coalesce(d.decided_at_ms, 0)) AS last_ms, "
    "min(b.account || ' ' || b.file_id || ' line ' || b.line_id) AS place "
    "FROM bank_lines b LEFT JOIN ledger_decisions d ON d.sequence = b.sequence "
    "WHERE b.gateway <> '' AND b.batch_id <> '' GROUP BY b.gateway, b.batch_id, b.currency"
)


class Clocks:
    """What is overdue at each gateway on a day; the day is the gateway's own."""

    def __init__(self, rules: ReconciliationRules, now_ms: int, as_of: date | None = None) -> None:
        self._rules = rules
        self._now = datetime.fromtimestamp(now_ms / 1000, UTC)
        self._as_of = as_of
        self._ends_ms: dict[str, int] = {}

    def today(self, gateway: str) -> date:
        zone = time_zone(self._rules.of(gateway).time_zone)
        return self._as_of or self._now.astimezone(zone).date()

    def is_missing(self, gateway: str, settled_at_ms: int) -> bool:
        """Whether a settlement of then should be in a report by now."""
        end_ms = self._ends_ms.get(gateway)
        if end_ms is None:
            rules = self._rules.of(gateway)
            last = date.fromisoformat(rules.reported_through(self.today(gateway)))
            end = datetime.combine(last + timedelta(days=1), time(), time_zone(rules.time_zone))
            end_ms = self._ends_ms[gateway] = int(end.timestamp() * 1000)
        return settled_at_ms < end_ms

    def is_unexplained(self, gateway: str, report_date: str) -> bool:
        """Whether what a report, or a bank's line, of then tells of should be known of by now: it
        is booked here, and in a report."""
        return report_date <= self._rules.of(gateway).reported_through(self.today(gateway))

    def is_unpaid(self, gateway: str, report_date: str) -> bool:
        """Whether a batch of then should be at the bank by now."""
        return report_date <= self._rules.of(gateway).paid_through(self.today(gateway))

    def is_unconfirmed(self, execution_date: str) -> bool:
        """Whether a payout of then should have been debited by now; the day is UTC's, as its."""
        today = self._as_of or self._now.date()
        return execution_date <= self._rules.payouts.debited_through(today)

    def is_due(self, kind: str, gateway: str, since: str) -> bool:
        """Whether a break of then would be told by now: one that is told by its day's distance."""
        if kind in (MISSING_AT_GATEWAY, MISSING_HERE, BATCH_DIFFERS):
            return self.is_unexplained(gateway, since)
        if kind == PAYOUT_UNCONFIRMED:
            return self.is_unconfirmed(since)
        return kind != BATCH_UNPAID or self.is_unpaid(gateway, since)

    def day_of(self, gateway: str, at_ms: int) -> str:
        zone = time_zone(self._rules.of(gateway).time_zone)
        return datetime.fromtimestamp(at_ms / 1000, zone).date().isoformat()


def of_pair(found: Matched) -> Iterator[ReconciliationBreak]:
    """One break for each thing in which the two differ."""
    booked, row = found.booked, found.row
    for name in found.differs:
        at_risk_minor, detail = _DIFFERENCE[name](booked, row)
        yield _of_row(name, row, at_risk_minor, detail, booked)


def missing_at_gateway(found: OnlyHere, clocks: Clocks) -> ReconciliationBreak | None:
    """None while it is not due."""
    booked = found.booked
    if not clocks.is_missing(booked.gateway, booked.settled_at_ms):
        return None
    amount = format_amount(booked.amount_minor, booked.currency)
    return ReconciliationBreak(
        break_id=break_id(MISSING_AT_GATEWAY, booked.gateway, booked.settlement_id),
        kind=MISSING_AT_GATEWAY,
        gateway=booked.gateway,
        subject=booked.settlement_id,
        currency=booked.currency,
        at_risk_minor=abs(booked.amount_minor),
        since=clocks.day_of(booked.gateway, booked.settled_at_ms),
        detail=f"a {booked.kind} of {amount} is in no report",
        merchant_id=booked.merchant_id,
        order_id=booked.order_id,
        payment_id=booked.payment_id,
        gateway_reference=booked.gateway_reference,
        settlement_place=booked.place,
    )


def left_row(found: OnlyThere, clocks: Clocks) -> ReconciliationBreak | None:
    """A duplicate, or what nobody here knows of; None while a settlement may still come."""
    row = found.row
    amount = format_amount(row.amount_minor, row.currency)
    if found.cleared_by:
        detail = f"a {row.kind} of {amount} was told of by row {found.cleared_by} already"
        return _of_row(DUPLICATE, row, abs(row.amount_minor), detail)
    if not clocks.is_unexplained(row.gateway, row.report_date):
        return None
    whose = "an operation of ours" if row.payment_id else "no reference of ours"
    if row.kind == CAPTURE and row.payment_id and not row.operation_id:
        whose = "our reference for another gateway"
    detail = f"a {row.kind} of {amount} with {whose} is not settled here"
    return _of_row(MISSING_HERE, row, abs(row.amount_minor), detail)


def of_batches(connection: Connection, clocks: Clocks) -> Iterator[ReconciliationBreak]:
    """The gateways' payout batches against the bank's lines, in sums of each batch. One that is
    open, or that a person has corrected, stays so while the sums differ, though a late row or
    another line gives the batch more time: that alone explains nothing."""
    told = frozenset(connection.execute(_TOLD).scalars())
    bank = {(b.gateway, b.batch_id, b.currency): b for b in connection.execute(_BANK)}
    for batch in connection.execute(_BATCHES):
        line = bank.pop((batch.gateway, batch.batch_id, batch.currency), None)
        minor = int(batch.minor)
        said = f"{batch.lines} rows come to {format_amount(minor, batch.currency)}"
        if line is None:
            # Of its first day, by which one that is open is due: its line ends it by then as well.
            found = _of_batch(BATCH_UNPAID, batch, batch.first_date, abs(minor),
                              f"{said}, the bank has no line of it", batch.file_id)  # fmt: skip
            known = found.break_id in told and clocks.is_unpaid(batch.gateway, batch.first_date)
            if minor and (known or clocks.is_unpaid(batch.gateway, batch.report_date)):
                yield found
        elif int(line.minor) != minor:
            paid = format_amount(int(line.minor), batch.currency)
            yield from _paid_otherwise(line, abs(int(line.minor) - minor),
                                       f"{said}, the bank says {paid} ({line.place})",
                                       batch.file_id, clocks, told)  # fmt: skip
    for line in bank.values():
        paid = format_amount(int(line.minor), line.currency)
        said = f"the bank says {paid} ({line.place}), no report has rows of it"
        yield from _paid_otherwise(line, abs(int(line.minor)), said, "", clocks, told)


def _paid_otherwise(
    line: Any, at_risk_minor: int, detail: str, file_id: str, clocks: Clocks, told: Collection[str]
) -> Iterator[ReconciliationBreak]:
    """Nothing while rows of the batch may still come. No report says how many rows a batch has, and
    those of a batch may be in several; but what the bank has paid was taken in by the gateway
    before, so all of it is in a report once T+N since the bank's line is over."""
    # A line counts from the day it was read at the latest: banks date some of them ahead.
    first, last = (
        min(day, clocks.day_of(line.gateway, at_ms))
        for day, at_ms in ((line.first_day, line.first_ms), (line.last_day, line.last_ms))
    )
    found = _of_batch(BATCH_DIFFERS, line, first, at_risk_minor, detail, file_id)
    if clocks.is_unexplained(line.gateway, first if found.break_id in told else last):
        yield found


def _of_batch(
    kind: str, batch: object, since: str, at_risk_minor: int, detail: str, file_id: str
) -> ReconciliationBreak:
    gateway, name, currency = (
        str(getattr(batch, part)) for part in ("gateway", "batch_id", "currency")
    )
    return ReconciliationBreak(
        break_id=break_id(kind, gateway, f"{name}:{currency}"),
        kind=kind,
        gateway=gateway,
        subject=f"{name}:{currency}",
        currency=currency,
        at_risk_minor=at_risk_minor,
        since=since,
        detail=detail,
        file_id=file_id,
        gateway_reference=name,
    )


def _of_row(
    kind: str,
    row: ReportedSide,
    at_risk_minor: int,
    detail: str,
    booked: BookedSide | None = None,
) -> ReconciliationBreak:
    subject = clearing_key(row.gateway, row.file_id, row.row_number)
    return ReconciliationBreak(
        break_id=break_id(kind, row.gateway, subject),
        kind=kind,
        gateway=row.gateway,
        subject=subject,
        currency=row.currency,
        at_risk_minor=at_risk_minor,
        since=row.report_date,
        detail=detail,
        file_id=row.file_id,
        row_number=row.row_number,
        merchant_id=row.merchant_id if booked is None else booked.merchant_id,
        order_id=row.order_id if booked is None else booked.order_id,
        payment_id=row.payment_id if booked is None else booked.payment_id,
        gateway_reference=row.gateway_reference,
        settlement_place="" if booked is None else booked.place,
        clearing_place=row.place,
    )


def _amount(booked: BookedSide, row: ReportedSide) -> tuple[int, str]:
    said = format_amount(row.amount_minor, row.currency)
    here = format_amount(booked.amount_minor, booked.currency)
    return abs(row.amount_minor - booked.amount_minor), f"{said} in the report, {here} booked"


def _currency(booked: BookedSide, row: ReportedSide) -> tuple[int, str]:
    return abs(row.amount_minor), _amount(booked, row)[1]


def _fee(booked: BookedSide, row: ReportedSide) -> tuple[int, str]:
    took = format_amount(row.fee_minor, row.currency)
    accrued = format_amount(booked.cost_minor, booked.currency)
    return abs(row.fee_minor - booked.cost_minor), f"{took} taken, {accrued} by the terms"


_DIFFERENCE: Final[dict[str, Callable[[BookedSide, ReportedSide], tuple[int, str]]]] = {
    AMOUNT_DIFFERS: _amount,
    CURRENCY_DIFFERS: _currency,
    FEE_DIFFERS: _fee,
}

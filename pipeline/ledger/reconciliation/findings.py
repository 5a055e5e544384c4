"""From what was matched, or not, to breaks with their trail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from sqlalchemy import Connection, text

from pipeline.domain.breaks import (
    AMOUNT_DIFFERS,
    BANK_LINE_UNKNOWN,
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
_UNPAID: Final = text(
    f"SELECT break_id FROM breaks WHERE kind = '{BATCH_UNPAID}' "
    f"AND (state = '{OPEN}' OR resolution = '{CORRECTED}')"
)
_BANK: Final = text(
    "SELECT gateway, batch_id, currency, sum(amount_minor) AS minor, min(value_date) AS day, "
    "min(account || ' ' || file_id || ' line ' || line_id) AS place FROM bank_lines "
    "WHERE gateway <> '' AND batch_id <> '' GROUP BY gateway, batch_id, currency"
)
_UNKNOWN: Final = text(
    "SELECT * FROM bank_lines WHERE (gateway = '' OR batch_id = '') AND payout = 0 "
    "ORDER BY account, file_id"
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
        """Whether what a report of then tells of should be booked here by now."""
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
        if kind in (MISSING_AT_GATEWAY, MISSING_HERE):
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
    open as unpaid, or that a person has corrected, stays so, though a late row gives the batch more
    time: no line explained it."""
    unpaid = frozenset(connection.execute(_UNPAID).scalars())
    bank = {(b.gateway, b.batch_id, b.currency): b for b in connection.execute(_BANK)}
    for batch in connection.execute(_BATCHES):
        line = bank.pop((batch.gateway, batch.batch_id, batch.currency), None)
        minor = int(batch.minor)
        said = f"{batch.lines} rows come to {format_amount(minor, batch.currency)}"
        if line is None:
            # Of its first day, by which one that is open is due: its line ends it by then as well.
            found = _of_batch(BATCH_UNPAID, batch, batch.first_date, abs(minor),
                              f"{said}, the bank has no line of it", batch.file_id)  # fmt: skip
            told = found.break_id in unpaid and clocks.is_unpaid(batch.gateway, batch.first_date)
            if minor and (told or clocks.is_unpaid(batch.gateway, batch.report_date)):
                yield found
        elif int(line.minor) != minor:
            paid = format_amount(int(line.minor), batch.currency)
            yield _of_batch(BATCH_DIFFERS, batch, batch.report_date, abs(int(line.minor) - minor),
                            f"{said}, the bank says {paid} ({line.place})",
                            batch.file_id)  # fmt: skip
    for line in bank.values():
        paid = format_amount(int(line.minor), line.currency)
        said = f"the bank says {paid} ({line.place}), no report has rows of it"
        yield _of_batch(BATCH_DIFFERS, line, line.day, abs(int(line.minor)), said, "")
    for line in connection.execute(_UNKNOWN):
        amount = format_amount(line.amount_minor, line.currency)
        subject = f"{line.account}:{line.file_id}:{line.line_id}"
        yield ReconciliationBreak(
            break_id=break_id(BANK_LINE_UNKNOWN, line.account, subject),
            kind=BANK_LINE_UNKNOWN,
            gateway=line.gateway or line.account,
            subject=subject,
            currency=line.currency,
            at_risk_minor=abs(line.amount_minor),
            since=line.value_date,
            detail=f"{amount}: {line.text or 'without a text'}",
            gateway_reference=line.batch_id,
        )


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

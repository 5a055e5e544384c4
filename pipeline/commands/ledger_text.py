"""The books in words and columns, for a terminal and for a file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

from pipeline.domain.csv_cells import cell
from pipeline.domain.money import decimal
from pipeline.ledger.damages import DAMAGES
from pipeline.ledger.queries import Balance
from pipeline.ledger.reports import EntryShown, MerchantBalance, Statement
from pipeline.ledger.verification import Verification

EXPORT_COLUMNS = (
    "entry_id", "line", "date", "business_date", "kind", "merchant_id", "order_id", "account",
    "currency", "debit", "credit", "gateway", "gateway_reference", "terms", "source",
)  # fmt: skip
# Damages of one name that are shown; the rest are counted.
SHOWN_MAX = 20


def merchant_lines(found: Iterable[MerchantBalance]) -> Iterator[str]:
    columns = ("pending", "available", "reserve", "in transit", "owed to us")
    yield f"{'merchant':<24} cur  " + "".join(f"{name:>16}" for name in columns)
    for each in found:
        amounts = (
            each.pending_minor, each.available_minor, each.reserve_minor, each.in_transit_minor,
            each.receivable_minor,
        )  # fmt: skip
        shown = "".join(f"{decimal(minor, each.currency):>16}" for minor in amounts)
        yield f"{each.merchant:<24} {each.currency}  {shown}"


def account_lines(found: Iterable[Balance]) -> Iterator[str]:
    yield f"{'account':<44} cur  {'debits':>18}{'credits':>18}{'balance':>18}"
    for each in found:
        shown = "".join(
            f"{decimal(minor, each.currency):>18}"
            for minor in (each.debits_minor, each.credits_minor, each.balance_minor)
        )
        yield f"{each.account:<44} {each.currency}  {shown}"


def statement_lines(statement: Statement) -> Iterator[str]:
    cur = statement.currency
    yield f"{statement.merchant} in {cur}"
    yield f"{'':<46}{'pending':>14}{'available':>14}{'balance':>16}"
    yield f"{'opening balance':<74}{decimal(statement.opening_minor, cur):>16}"
    for line in statement.lines:
        yield (
            f"{line.day} {line.kind:<14}{line.order_id[:20]:<21}"
            f"{decimal(line.pending_minor, cur):>14}{decimal(line.available_minor, cur):>14}"
            f"{decimal(line.balance_minor, cur):>16}  {line.source}"
        )
    yield f"{'closing balance':<74}{decimal(statement.closing_minor, cur):>16}"


def entry_lines(entry: EntryShown) -> Iterator[str]:
    yield entry.entry_id
    day = entry.business_date
    if entry.booked_date:
        day = f"{entry.booked_date}, since {entry.business_date} was closed"
    for name, value in (
        ("kind", entry.kind),
        ("counts under", day),
        ("order", f"{entry.merchant_id}:{entry.order_id}" if entry.order_id else ""),
        ("payment", entry.payment_id),
        ("operation", entry.operation_id),
        ("gateway", f"{entry.gateway} {entry.gateway_reference}"),
        ("terms", entry.terms),
        ("settled", _time(entry.settled_at_ms)),
        ("posted", _time(entry.posted_at_ms)),
        ("source", f"{entry.source_topic}[{entry.source_partition}]@{entry.source_offset}"),
        ("seal", "not yet" if entry.seal is None else f"{entry.seal[0]} {entry.seal[1]}"),
    ):
        if value:
            yield f"  {name:<13} {value}"
    for line in entry.lines:
        side = "debit " if line.amount_minor > 0 else "credit"
        amount = decimal(abs(line.amount_minor), line.currency)
        yield f"  {side} {line.account:<44} {line.currency} {amount:>16}"


def verification_lines(found: Verification, unpublished: int) -> Iterator[str]:
    by_name: dict[str, list[Any]] = {}
    for damage in found.damages:
        by_name.setdefault(damage.name, []).append(damage)
    for name, damages in by_name.items():
        yield f"{name}: {len(damages)}. {DAMAGES[name]}"
        for damage in damages[:SHOWN_MAX]:
            yield f"  {damage.place}: {damage.detail}"
        if len(damages) > SHOWN_MAX:
            yield f"  and {len(damages) - SHOWN_MAX} more"
    for head in found.heads:
        yield f"{head.topic}[{head.partition}]: {head.position} entries, {head.hash.hex()}"
    if unpublished:
        yield f"{unpublished} decisions are not published: run `paystream ledger publish`"
    sealed = f"{found.entries} entries, {found.unsealed} of them not sealed yet"
    yield f"{sealed}: {'WHOLE' if not found.damages else 'DAMAGED'}"


def write_export(rows: Iterable[Any], out: TextIO) -> int:
    """CSV (RFC 4180) with a header: one row for each line, debit or credit in decimals."""
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(EXPORT_COLUMNS)
    count = 0
    for row in rows:
        amount = decimal(abs(row.amount_minor), row.currency)
        debit, credit = (amount, "") if row.amount_minor > 0 else ("", amount)
        writer.writerow(
            (
                cell(row.entry_id), row.line, row.day, row.business_date, cell(row.kind),
                cell(row.merchant_id), cell(row.order_id), cell(row.account), row.currency, debit,
                credit, cell(row.gateway), cell(row.gateway_reference), cell(row.terms),
                f"{row.source_topic}[{row.source_partition}]@{row.source_offset}",
            )
        )  # fmt: skip
        count += 1
    return count


def _time(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"

"""Breaks and totals in words, columns and pages: for a terminal, a spreadsheet and a browser."""

from __future__ import annotations

import csv
import html
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import Any, TextIO

from pipeline.domain.breaks import (
    BREAKS,
    CORRECTED,
    CURRENCY_DIFFERS,
    OPEN,
    ReconciliationBreak,
)
from pipeline.domain.csv_cells import cell
from pipeline.domain.money import decimal
from pipeline.ledger.reconciliation.breaks import BreakSum
from pipeline.ledger.reconciliation.totals import DayTotal

CSV_COLUMNS = (
    "break_id", "kind", "state", "gateway", "since", "age_days", "currency", "at_risk", "subject",
    "detail", "file", "row", "merchant_id", "order_id", "payment_id", "gateway_reference",
    "settlement", "clearing", "resolution", "reason", "actor",
)  # fmt: skip
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem; }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .6rem; text-align: left; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.bad { background: #fdecea; } .good { background: #edf7ed; }
.trail { color: #666; font-size: 12px; }
"""


def age_days(found: ReconciliationBreak, today: date) -> int:
    """From the day it is of, not from when it was found."""
    return max(0, (today - date.fromisoformat(found.since)).days)


def break_lines(found: Iterable[ReconciliationBreak], today: date) -> Iterator[str]:
    yield f"{'break':<13} {'kind':<19}{'gateway':<12}{'at risk':>18}  {'age':>5}  what"
    for each in found:
        amount = f"{decimal(each.at_risk_minor, each.currency)} {each.currency}"
        yield (
            f"{each.break_id:<13} {each.kind:<19}{each.gateway[:11]:<12}{amount:>18}  "
            f"{age_days(each, today):>4}d  {each.detail}"
        )
        yield f"{'':<14}{trail(each)}"
        if each.state != OPEN:
            by = f" by {each.actor}" if each.actor else ""
            yield f"{'':<14}{each.resolution}{by}{f': {each.reason}' if each.reason else ''}"


def left_to_do(found: ReconciliationBreak) -> Iterator[str]:
    """What a person has still to do who has resolved a break. Its currency is the report's; what is
    booked in which one stands in its words."""
    if (found.kind, found.resolution) != (CURRENCY_DIFFERS, CORRECTED):
        return
    yield (
        f"nothing is booked by it: {found.merchant_id}:{found.order_id} stays pending, and "
        f"{found.gateway} owes it as it is booked ({found.detail}), until a row in that currency "
        f"comes. Where none will: `paystream ledger convert gateway_receivable:{found.gateway}` by "
        f"what the bank pays, then `paystream ledger post merchant_payable:{found.merchant_id}=... "
        f"merchant_available:{found.merchant_id}=-...` by what is pending of it. A refund or a "
        "dispute goes the other way: post both by hand, `--kind conversion` the first"
    )


def trail(found: ReconciliationBreak) -> str:
    """Where each side of it lies."""
    order = f"{found.merchant_id}:{found.order_id}" if found.order_id else ""
    row = f"report {found.file_id} row {found.row_number}" if found.row_number else found.file_id
    parts = (found.subject if not (order or row) else "", order, found.gateway_reference, row,
             found.clearing_place, found.settlement_place)  # fmt: skip
    return ", ".join(part for part in parts if part)


def sum_lines(sums: Iterable[BreakSum]) -> Iterator[str]:
    for each in sums:
        amount = f"{decimal(each.at_risk_minor, each.currency)} {each.currency}"
        yield f"  {each.gateway:<14}{each.kind:<20}{each.count:>8}{amount:>22}"


def write_csv(found: Iterable[ReconciliationBreak], today: date, out: TextIO) -> int:
    """RFC 4180 with a header; amounts in decimals of their currency."""
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(CSV_COLUMNS)
    count = 0
    for b in found:
        writer.writerow(
            (
                b.break_id, b.kind, b.state, b.gateway, b.since, age_days(b, today), b.currency,
                decimal(b.at_risk_minor, b.currency), *(cell(text) for text in (b.subject,
                b.detail, b.file_id)), b.row_number or "", *(cell(text) for text in (
                b.merchant_id, b.order_id, b.payment_id, b.gateway_reference)),
                b.settlement_place, b.clearing_place, b.resolution, cell(b.reason),
                cell(b.actor),
            )
        )  # fmt: skip
        count += 1
    return count


def page(
    totals: Sequence[DayTotal], found: Sequence[ReconciliationBreak], today: date, shown_max: int
) -> str:
    """One HTML page that needs nothing else: totals by gateway and day, then the open breaks."""
    rows = [
        _row(
            t.gateway, t.report_date, t.currency, t.rows, decimal(t.gross_minor, t.currency),
            decimal(t.fee_minor, t.currency), decimal(t.net_minor, t.currency), t.cleared_rows,
            decimal(t.gross_minor - t.cleared_minor, t.currency),
            decimal(t.paid_minor, t.currency),
            decimal(t.net_minor - t.paid_minor, t.currency), numbers=3,
            mark="good" if t.rows == t.cleared_rows and t.net_minor == t.paid_minor else "bad",
        )
        for t in totals
    ]  # fmt: skip
    broken = [
        _row(
            each.break_id, each.kind, each.gateway, each.since, age_days(each, today),
            f"{decimal(each.at_risk_minor, each.currency)} {each.currency}", each.detail,
            trail(each), numbers=0,
        )
        for each in found[:shown_max]
    ]  # fmt: skip
    more = f"<p>and {len(found) - shown_max} more.</p>" if len(found) > shown_max else ""
    words = "".join(
        f"<li><b>{html.escape(name)}</b>: {html.escape(what)}</li>" for name, what in BREAKS.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Reconciliation</title>'
        f"<style>{_STYLE}</style><h1>Reconciliation, {today.isoformat()}</h1>"
        "<h2>Reports by gateway and day</h2><table><tr>"
        + _heads("gateway", "day", "currency", "rows", "gross", "fees", "net", "cleared rows",
                 "not cleared", "at the bank", "not at the bank", numbers=3)
        + f"</tr>{''.join(rows)}</table><h2>{len(found)} open breaks</h2><table><tr>"
        + _heads("break", "kind", "gateway", "since", "days", "at risk", "what", "trail", numbers=9)
        + f"</tr>{''.join(broken)}</table>{more}<h2>Words</h2><ul>{words}</ul></html>\n"
    )  # fmt: skip


def _heads(*names: str, numbers: int) -> str:
    return "".join(
        f"<th{_number(n, numbers)}>{html.escape(name)}</th>" for n, name in enumerate(names)
    )


def _row(*cells: Any, numbers: int, mark: str = "") -> str:
    """``numbers``: from which column on they stand to the right; 0: nowhere."""
    inner = "".join(
        f"<td{_number(n, numbers)}>{html.escape(str(cell))}</td>" for n, cell in enumerate(cells)
    )
    return f"<tr{f' class={mark!r}' if mark else ''}>{inner}</tr>"


def _number(column: int, numbers: int) -> str:
    return ' class="number"' if numbers and column >= numbers else ""

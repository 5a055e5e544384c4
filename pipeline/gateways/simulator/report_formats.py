"""How each simulated gateway writes its report; the contracts are in docs/simulator.md."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

from pipeline.domain.money import MINOR_UNITS
from pipeline.gateways.simulator.reports import Report, ReportRow

_NORTHBANK: Final = {
    "charge": "PAYMENT",
    "capture": "CAPTURE",
    "refund": "REFUND",
    "refund_failed": "REFUND_RETURNED",
    "charge_failed": "PAYMENT_RETURNED",
    "capture_failed": "CAPTURE_RETURNED",
    "dispute": "CHARGEBACK",
    "dispute_fee": "CHARGEBACK_FEE",
    "dispute_won": "CHARGEBACK_REVERSED",
}
_PACIFIC: Final = {
    "charge": "Sale",
    "capture": "Settle",
    "refund": "Refund",
    "refund_failed": "Refund Return",
    "charge_failed": "Sale Return",
    "capture_failed": "Settle Return",
    "dispute": "Chargeback",
    "dispute_fee": "Chargeback Fee",
    "dispute_won": "Chargeback Won",
}
_LEGACY: Final = {
    "charge": "SALE",
    "capture": "CAPTURE",
    "refund": "REFUND",
    "refund_failed": "RFDBACK",
    "charge_failed": "SALEBACK",
    "capture_failed": "CAPBACK",
    "dispute": "CHGBK",
    "dispute_fee": "CHGFEE",
    "dispute_won": "CHGWON",
}


def plain_report(report: Report, zone: str) -> str:
    """``simulator``: comma, header, minor units, UTC."""
    rows = [
        (f"simulator-{report.report_date}", r.number, r.kind, r.id, r.charge_id, r.reference,
         r.merchant_id, r.order_id, r.gross_minor, r.fee_minor, r.gross_minor - r.fee_minor,
         r.currency, _local(r, "UTC").strftime("%Y-%m-%dT%H:%M:%SZ"), r.batch_id)
        for r in report.rows
    ]  # fmt: skip
    header = (
        "report", "row", "type", "id", "charge_id", "reference", "merchant_id", "order_id",
        "gross_minor", "fee_minor", "net_minor", "currency", "created_at", "payout",
    )  # fmt: skip
    return _csv((header, *rows))


def northbank_report(report: Report, zone: str) -> str:
    """``northbank``: semicolons, records H, D and T, decimal commas, London time."""
    day = datetime.fromisoformat(report.report_date).strftime("%d/%m/%Y")
    rows = [
        ("D", r.number, _NORTHBANK[r.kind], r.id, r.charge_id, r.reference, r.merchant_id,
         r.order_id, _decimal(r.gross_minor, r.currency, ","), _decimal(r.fee_minor, r.currency,
         ","), r.currency, _local(r, zone).strftime("%d/%m/%Y %H:%M:%S"), r.batch_id)
        for r in report.rows
    ]  # fmt: skip
    head = ("H", "NORTHBANK", f"NB-{report.report_date}", day)
    return _csv((head, *rows, ("T", len(rows))), delimiter=";")


def pacific_report(report: Report, zone: str) -> str:
    """``pacific``: every field quoted, major units, Pacific time, a case for each chargeback."""
    rows = [
        (f"PAC{report.report_date}", r.charge_id if r.kind.startswith("dispute") else r.id,
         _PACIFIC[r.kind], r.id if r.kind.startswith("dispute") else "", r.reference,
         r.merchant_id, r.order_id, r.currency, _decimal(r.gross_minor, r.currency, "."),
         _decimal(r.fee_minor, r.currency, "."),
         _decimal(r.gross_minor - r.fee_minor, r.currency, "."),
         _local(r, zone).strftime("%m/%d/%Y %I:%M:%S %p"), r.batch_id)
        for r in report.rows
    ]  # fmt: skip
    header = (
        "Report ID", "Txn ID", "Type", "Case ID", "Client Ref", "Merchant", "Order", "Currency",
        "Gross", "Fee", "Net", "Local Time", "Deposit ID",
    )  # fmt: skip
    return _csv((header, *rows), quoting=csv.QUOTE_ALL)


def legacy_report(report: Report, zone: str) -> str:
    """``legacy``: pipes, no header, unsigned digits with C or D, CR LF, Eastern time."""
    day = report.report_date.replace("-", "")
    lines = [f"LEGACY|{day}|{len(report.rows)}"]
    for r in report.rows:
        side = "C" if r.gross_minor >= 0 else "D"
        at = _local(r, zone).strftime("%Y%m%d%H%M%S")
        parts = (
            r.number, r.id, _LEGACY[r.kind], r.reference, r.merchant_id, r.order_id, side,
            f"{abs(r.gross_minor):012d}", f"{r.fee_minor:08d}", r.currency, at, r.batch_id,
        )  # fmt: skip
        lines.append("|".join(str(part) for part in parts))
    return "".join(f"{line}\r\n" for line in lines)


WRITERS: Final[Mapping[str, Callable[[Report, str], str]]] = {
    "simulator": plain_report,
    "northbank": northbank_report,
    "pacific": pacific_report,
    "legacy": legacy_report,
}


def _csv(rows: tuple[tuple[object, ...], ...], **form: object) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n", **form).writerows(rows)  # type: ignore[arg-type]
    return out.getvalue()


def _local(row: ReportRow, zone: str) -> datetime:
    return datetime.fromtimestamp(row.created_at_ms / 1000, UTC).astimezone(ZoneInfo(zone))


def _decimal(minor: int, currency: str, point: str) -> str:
    digits = MINOR_UNITS[currency]
    whole, rest = divmod(abs(minor), 10**digits)
    text = f"{whole}{point}{rest:0{digits}d}" if digits else str(whole)
    return f"-{text}" if minor < 0 else text

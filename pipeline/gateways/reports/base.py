"""What every report's reader has in common, and which reader reads whose.

A report that is not whole is refused as a whole: rows that are missing, repeated or out of order,
amounts that do not add up, a word that the contract does not know. Money is never guessed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from msgspec import Struct

from pipeline.domain.clearing import CAPTURE_FAILED, Clearing
from pipeline.domain.keys import valid_id
from pipeline.domain.money import MINOR_UNITS, parse_amount
from pipeline.domain.posting import (
    AMOUNT_MINOR_MAX,
    CAPTURE,
    DISPUTE,
    DISPUTE_FEE,
    REFERENCE_LENGTH_MAX,
    REFUND,
    REFUND_FAILED,
    REVERSAL,
)
from pipeline.domain.validation import is_date
from pipeline.errors import UserError
from pipeline.gateways.notice import OurReference, our_reference

# What a report's words can mean: kind of the settlement, kind of the gateway's operation, sign.
CHARGED: Final = (CAPTURE, "charge", 1)
CAPTURED: Final = (CAPTURE, "capture", 1)
REFUNDED: Final = (REFUND, "refund", -1)
REFUND_RETURNED: Final = (REFUND_FAILED, "refund", 1)
CHARGE_RETURNED: Final = (CAPTURE_FAILED, "charge", -1)
CAPTURE_RETURNED: Final = (CAPTURE_FAILED, "capture", -1)
DISPUTED: Final = (DISPUTE, "", -1)
DISPUTE_CHARGED: Final = (DISPUTE_FEE, "", -1)
DISPUTE_GIVEN_BACK: Final = (REVERSAL, "", 1)

Meaning = tuple[str, str, int]

_PAYMENT_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class ReportFile(Struct, frozen=True):
    """One report, read whole. ``file_id`` and ``report_date`` are "" where only rows would say
    them and the day had none."""

    gateway: str
    file_id: str
    report_date: str
    rows: tuple[Clearing, ...]


class Row(Struct, frozen=True, kw_only=True):
    """A row as a reader found it; ``reference`` is ours for the operation (a dispute's: for its
    charge)."""

    number: int
    meaning: Meaning
    gateway_reference: str
    reference: str
    merchant_id: str
    order_id: str
    amount_minor: int
    fee_minor: int
    currency: str
    occurred_at_ms: int
    batch_id: str


class NotAReport(Exception):
    """What is wrong and where, in words."""


Reader = Callable[[str], tuple[str, str, Sequence[Row]]]


def read_report(content: bytes | str, *, gateway: str, adapter: str) -> ReportFile:
    """The report of a gateway by its adapter's contract; UserError that names the row. Bytes have
    to be UTF-8: what cannot be read is not replaced."""
    try:
        text = content if isinstance(content, str) else content.decode()
        file_id, report_date, rows = _readers()[adapter](text)
        if not rows and not file_id:
            return ReportFile(gateway, "", "", ())
        if not is_date(report_date):
            raise NotAReport(f"{report_date!r} is no date")
        if not valid_id(file_id):
            raise NotAReport(f"{file_id!r} is no id of a report")
        clearings = []
        named: dict[str, int] = {}
        for expected, row in enumerate(rows, 1):
            if row.number != expected:
                raise NotAReport(f"row {row.number} stands where row {expected} belongs")
            clearings.append(_clearing(row, gateway, file_id, report_date))
            ours = _ours(row.reference, gateway)
            if ours is not None:
                named.setdefault(ours.gateway, row.number)
        if named and gateway not in named:
            other, number = next(iter(named.items()))
            raise NotAReport(
                f"row {number} is about an operation of ours at {other}, and none is about one at "
                f"{gateway}; import it as {other}'s"
            )
    except NotAReport as wrong:
        raise UserError(f"this is no report of {gateway} ({adapter}): {wrong}.") from wrong
    except UnicodeDecodeError as wrong:
        raise UserError(
            f"this is no report of {gateway} ({adapter}): it is not in UTF-8 (byte {wrong.start})."
        ) from wrong
    except (UserError, csv.Error) as wrong:
        raise UserError(f"this is no report of {gateway} ({adapter}): {wrong}") from wrong
    return ReportFile(gateway, file_id, report_date, tuple(clearings))


def _readers() -> Mapping[str, Reader]:
    from pipeline.gateways.reports import legacy, northbank, pacific, simulator

    return {
        "simulator": simulator.read,
        "northbank": northbank.read,
        "pacific": pacific.read,
        "legacy": legacy.read,
    }


def _clearing(row: Row, gateway: str, file_id: str, report_date: str) -> Clearing:
    kind, operation, sign = row.meaning
    where = f"row {row.number}"
    if row.currency not in MINOR_UNITS:
        raise NotAReport(f"{where}: {row.currency!r} is not an active ISO 4217 currency")
    if row.amount_minor * sign <= 0 or abs(row.amount_minor) > AMOUNT_MINOR_MAX:
        raise NotAReport(f"{where}: {row.amount_minor} cannot be a {kind}")
    if abs(row.fee_minor) > AMOUNT_MINOR_MAX:
        raise NotAReport(f"{where}: {row.fee_minor} cannot be a fee")
    for name, text in (("id", row.gateway_reference), ("batch", row.batch_id)):
        if not text or len(text) > REFERENCE_LENGTH_MAX or not text.isprintable():
            raise NotAReport(f"{where}: its {name} is missing or not printable")
    ours = _ours(row.reference, gateway)
    if ours is not None and ours.gateway != gateway and kind != CAPTURE:
        ours = None
    payment = "" if ours is None else ours.payment_id
    # An operation at another gateway is not one here, and its charge is all the same no stranger's.
    known = ours is not None and ours.gateway == gateway and operation != ""
    return Clearing(
        gateway=gateway,
        file_id=file_id,
        row_number=row.number,
        report_date=report_date,
        kind=kind,
        operation_kind=operation,
        gateway_reference=row.gateway_reference,
        amount_minor=row.amount_minor,
        fee_minor=row.fee_minor,
        currency=row.currency,
        batch_id=row.batch_id,
        occurred_at_ms=row.occurred_at_ms,
        payment_id=payment,
        # A dispute's reference is its charge's: it names the payment and no operation.
        operation_id=ours.operation_id if ours is not None and known else "",
        attempt=ours.attempt if ours is not None and known else 0,
        merchant_id=row.merchant_id if valid_id(row.merchant_id) else "",
        order_id=row.order_id if valid_id(row.order_id) else "",
    )


def _ours(reference: str, gateway: str) -> OurReference | None:
    """What names another gateway is ours only where it can be of a payment: the account may be
    shared with a system whose references look alike."""
    found = our_reference(reference)
    if found is None or found.gateway == gateway or _PAYMENT_ID.fullmatch(found.payment_id):
        return found
    return None


def table(text: str, columns: Sequence[str], **form: Any) -> list[dict[str, str]]:
    """The rows of CSV with exactly this header."""
    lines = list(csv.reader(io.StringIO(text, newline=""), strict=True, **form))
    if not lines or tuple(lines[0]) != tuple(columns):
        raise NotAReport(f"its first line is not {', '.join(columns)}")
    return [dict(zip(columns, counted(line, len(columns)), strict=True)) for line in lines[1:]]


def counted(parts: Sequence[str], wanted: int) -> Sequence[str]:
    if len(parts) != wanted:
        raise NotAReport(f"a line has {len(parts)} fields, not {wanted}: {' '.join(parts)[:80]}")
    return parts


def meaning_of(word: str, words: Mapping[str, Meaning]) -> Meaning:
    found = words.get(word)
    if found is None:
        raise NotAReport(f"nobody knows what {word!r} means")
    return found


def whole(text: str) -> int:
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise NotAReport(f"{text!r} is no whole number")
    return int(text)


def major(text: str, currency: str) -> int:
    """Minor units of a decimal in major units."""
    return parse_amount(text, currency)


def time_ms(text: str, form: str, zone: str) -> int:
    """A local time in epoch milliseconds; of the two of a clock's change, the earlier."""
    try:
        found = datetime.strptime(text, form).replace(tzinfo=ZoneInfo(zone))
    except ValueError:
        raise NotAReport(f"{text!r} is no time") from None
    return int(found.timestamp() * 1000)


def one_file_id(found: Iterable[str]) -> str:
    """What all rows call their report; "" of none, whose day nothing in the file says."""
    ids = set(found)
    if len(ids) > 1:
        raise NotAReport("it holds rows of several reports")
    return ids.pop() if ids else ""

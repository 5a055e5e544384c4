"""Read invoices from a CSV file: one row per invoice line, as shops export them.

Columns, in any order: InvoiceNo, StockCode, Description, Quantity, InvoiceDate (day/month/year and
time, local), UnitPrice, CustomerID (may be empty), Country. One physical line is one row. An
InvoiceNo with a leading ``C`` is a cancellation: money back to the customer.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pipeline.domain.card_numbers import mask_card_number_text
from pipeline.domain.keys import ID_PATTERN, valid_id
from pipeline.domain.model import Order, OrderLine
from pipeline.domain.money import parse_amount
from pipeline.errors import UserError
from producers.order_file import (
    OrderFile,
    Problem,
    card_number_reason,
    not_utf8,
    read_raw,
    text_lines,
)

MERCHANT_ID = "online-retail"
CURRENCY = "GBP"
COLUMNS = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)

# 32-bit counts in the record, and no shop sells a billion of one thing on a line.
_QUANTITY = re.compile(r"-?[0-9]{1,9}")
_DATE = re.compile(
    r"([0-9]{1,2})/([0-9]{1,2})/([0-9]{4})(?: ([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?)?"
)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# After a bad line: the first may lack its beginning, and with it the number that the second has.
SUSPECT_LINES = 2
# A word that is on other lines as well is whole; of a number nobody can say that.
_WORDS = ("StockCode", "Description", "CustomerID", "Country")
# Amounts stay exact for every reader of JSON (2**53).
AMOUNT_MINOR_MAX = 1 << 53


# When an invoice was written (ISO 8601, local), and the line of the file it begins on, which
# decides between two of one minute.
Placed = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """An invoice that gives money back. It does not name the sale it cancels.

    ``order_id`` is the invoice's number with the prefix of the orders.
    """

    merchant_id: str
    invoice_number: str
    order_id: str
    placed: Placed
    business_date: str
    amount_minor: int  # negative: to the customer
    currency: str
    customer_id: str | None
    lines: tuple[OrderLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceFile(OrderFile):
    """What a file of invoices holds. Zero orders are stock adjustments: nothing is due.

    ``placed`` tells of each order, by its id, when it was invoiced.
    """

    cancellations: tuple[Cancellation, ...] = ()
    placed: Mapping[str, Placed] = field(default_factory=dict)


def read_invoices(
    path: Path,
    *,
    now_ms: int,
    merchant_id: str = MERCHANT_ID,
    prefix: str = "",
    currency: str = CURRENCY,
    raw: bytes | None = None,
) -> InvoiceFile:
    """Every invoice of the file as an order, in the order of first lines.

    ``raw`` is what the file holds, where that was read already. ``now_ms`` is the time of
    submission: the dates in the file are business dates. ``prefix`` goes in front of each order id.
    An invoice with a bad line is left out whole, never charged in part, and so are the invoices
    of the lines close to it: what damaged the line may have taken one of theirs, or its number.
    Where the lines of invoices do not lie in a row, a line that does not say for certain whose it
    was may have been of any: none is taken. So is a last line without a line end bad, unless its
    last field is one that other lines have: the file may have been cut there. A cut at the end of a
    line cannot be seen. The file is held in memory.
    Raises UserError for a file that is no such CSV at all.
    """
    if not valid_id(merchant_id):
        raise UserError(f"The merchant id {merchant_id!r} must match {ID_PATTERN}.")
    if prefix and not valid_id(prefix):
        raise UserError(f"The prefix {prefix!r} must match {ID_PATTERN}.")
    raw = read_raw(path) if raw is None else raw
    lines = text_lines(raw)
    header = lines[0].rstrip("\r") if lines else ""
    width, places = _places(path, header)
    ended = raw[-1:] in (b"\n", b"\r")
    drafts, problems = _drafts(lines, width, places, currency, ended=ended)
    orders: list[Order] = []
    line_numbers: list[int] = []
    cancellations: list[Cancellation] = []
    placed: dict[str, Placed] = {}

    def leave_out(draft: _Draft, reason: str) -> None:
        told = f"invoice {_shown(draft.number)} left out: {reason}"
        problems.append(Problem(draft.line_numbers[0], told, of_order=True))

    for draft in drafts.values():
        reason = draft.held_back or _whole_reason(draft, prefix)
        if reason is not None:
            leave_out(draft, reason)
        elif draft.number[:1] in "Cc":
            cancellations.append(
                Cancellation(
                    merchant_id=merchant_id,
                    invoice_number=draft.number,
                    order_id=f"{prefix}{draft.number}",
                    placed=draft.placed,
                    business_date=draft.business_date,
                    amount_minor=draft.amount_minor,
                    currency=currency,
                    customer_id=draft.customer_id or None,
                    lines=tuple(draft.lines),
                )
            )
        else:
            payer = draft.customer_id or draft.number
            order = Order(
                merchant_id=merchant_id,
                order_id=f"{prefix}{draft.number}",
                amount_minor=draft.amount_minor,
                currency=currency,
                instrument_token=f"tok_card_{payer}",
                business_date=draft.business_date,
                submitted_at_ms=now_ms,
                customer_id=draft.customer_id or None,
                country=draft.country or None,
                lines=tuple(draft.lines),
            )
            reason = card_number_reason(order)
            if reason is not None:
                leave_out(draft, reason)
                continue
            placed[order.order_id] = draft.placed
            line_numbers.append(draft.line_numbers[0])
            orders.append(order)
    problems.sort(key=lambda problem: problem.line_number)
    return InvoiceFile(
        line_count=len(lines) - 1,
        orders=tuple(orders),
        problems=tuple(problems),
        left_out=len(drafts) - len(orders) - len(cancellations),
        line_numbers=tuple(line_numbers),
        cancellations=tuple(cancellations),
        placed=placed,
    )


@dataclass(slots=True)
class _Draft:
    """One invoice while its lines are read."""

    number: str
    customer_id: str = ""
    country: str = ""
    invoiced_at: str = ""
    amount_minor: int = 0
    lines: list[OrderLine] = field(default_factory=list)
    line_numbers: list[int] = field(default_factory=list)
    held_back: str | None = None
    # Of its last line, counting those that say whose they are.
    row: int = 0

    def hold_back(self, reason: str) -> None:
        """Leave it out; the first reason stays."""
        self.held_back = self.held_back or reason

    @property
    def business_date(self) -> str:
        return self.invoiced_at[:10]

    @property
    def placed(self) -> Placed:
        return self.invoiced_at, self.line_numbers[0]


class _BadLine(Exception):
    """Why a line cannot be taken."""


class _CutShort(_BadLine):
    """Why the last line may not be whole; nothing of it is on another."""


def _drafts(
    lines: Sequence[str], width: int, places: Sequence[int], currency: str, *, ended: bool
) -> tuple[dict[str, _Draft], list[Problem]]:
    drafts: dict[str, _Draft] = {}
    problems: list[Problem] = []
    last: _Draft | None = None
    bad_before, suspects = 0, 0  # the bad line before, how many lines after it are held for it
    rows, in_a_row = 0, True
    of_nobody: int | None = None  # the first line that does not say for certain whose it was
    for line_number, text in enumerate(lines[1:], start=2):
        text = text.rstrip("\r")
        if not text.strip() and _no_text(text) is None:
            continue
        row, broken = _row(text, width)
        # Even a broken row mostly begins with its invoice number, which tells what to leave out.
        number = (row[places[0]] if row is not None else _first_field(text, places[0])).strip()
        draft: _Draft | None = None
        try:
            if not valid_id(number):
                raise _BadLine(broken or f"bad InvoiceNo {_shown(number)!r}")
            draft = drafts.setdefault(number, _Draft(number))
            draft.line_numbers.append(line_number)
            if row is None:
                raise _BadLine(broken)
            rows += 1
            in_a_row = in_a_row and draft.row in (0, rows - 1)
            draft.row = rows
            if not ended and line_number == len(lines):
                _require_whole(row, places, lines)
            _add(draft, [row[place].strip() for place in places], currency)
        except (_BadLine, UserError) as error:
            problems.append(Problem(line_number, str(error).rstrip(".")))
            if draft is not None:
                draft.hold_back(f"its line {line_number} is bad")
            is_cut = isinstance(error, _CutShort)
            if draft is None or row is None or is_cut:
                of_nobody = of_nobody or line_number
            if is_cut:
                continue
            # It may be two lines whose end was lost, or name another invoice than it did: whose
            # it was is not certain, but it was close to these.
            if last is not None:
                last.hold_back(_close_to(line_number))
            bad_before, suspects = line_number, SUSPECT_LINES
            continue
        if suspects:
            draft.hold_back(_close_to(bad_before))
            suspects -= 1
        last = draft
    if of_nobody is not None and not in_a_row:
        for draft in drafts.values():
            draft.hold_back(f"line {of_nobody} is bad and may be of any invoice of this file")
    return drafts, problems


def _require_whole(row: Sequence[str], places: Sequence[int], lines: Sequence[str]) -> None:
    """Of the last line, which has no line end: whether all of it is there. Raises _CutShort."""
    place = len(row) - 1
    if place not in places:
        return  # Of what is ignored nothing is missed.
    column, value = COLUMNS[places.index(place)], row[place]
    others = (_row(each.rstrip("\r"), len(row))[0] for each in lines[1:-1])
    if column not in _WORDS or all(other is None or other[place] != value for other in others):
        raise _CutShort(
            f"the file ends here without a line end, maybe in the middle of {column} "
            f"{_shown(value)!r}; end the line if it is whole"
        )


def _close_to(line_number: int) -> str:
    return f"line {line_number} close to it is bad and may hold a part of it"


def _row(text: str, width: int) -> tuple[list[str] | None, str]:
    """The fields of one line, or None and why not."""
    no_text = _no_text(text)
    if no_text is not None:
        return None, no_text
    try:
        row = next(csv.reader([text], strict=True))
    except csv.Error as error:
        return None, f"not a line of CSV: {error}"
    if len(row) != width:
        # A comma that is not quoted shifts every later field, so none of them can be trusted.
        return None, f"{len(row)} fields instead of {width}"
    return row, ""


def _no_text(text: str) -> str | None:
    """Why a line is no text, None when it is. Of control characters only a tab belongs in one:
    zeros are what is left of a block that never reached the disk, and cover the ends of lines."""
    control = _CONTROL.search(text)
    if control is not None:
        return f"not text (control character 0x{ord(control[0]):02X}); the file is damaged"
    return not_utf8(text)


def _first_field(text: str, place: int) -> str:
    return text.split(",", 1)[0].strip().strip('"') if place == 0 else ""


def _add(draft: _Draft, fields: Sequence[str], currency: str) -> None:
    """Add one line to its invoice; raises _BadLine or UserError."""
    _, sku, description, quantity_text, date_text, price_text, customer_id, country = fields
    if not sku:
        raise _BadLine("StockCode is empty")
    if not _QUANTITY.fullmatch(quantity_text):
        raise _BadLine(f"Quantity {_shown(quantity_text)!r} is not a whole number")
    quantity = int(quantity_text)
    unit_amount_minor = parse_amount(price_text, currency)
    invoiced_at = _iso_time(date_text)
    if draft.lines:
        if customer_id != draft.customer_id:
            raise _BadLine(
                f"CustomerID {_shown(customer_id)!r} differs from "
                f"{_shown(draft.customer_id)!r} on line {draft.line_numbers[0]}"
            )
        if country != draft.country:
            raise _BadLine(
                f"Country {_shown(country)!r} differs from "
                f"{_shown(draft.country)!r} on line {draft.line_numbers[0]}"
            )
    else:
        # An invoice that was being written at midnight belongs to its first line's day.
        draft.customer_id, draft.country = customer_id, country
        draft.invoiced_at = invoiced_at
    draft.lines.append(
        OrderLine(
            line_number=len(draft.lines) + 1,
            sku=sku,
            quantity=quantity,
            unit_amount_minor=unit_amount_minor,
            description=description,
        )
    )
    draft.amount_minor += quantity * unit_amount_minor


def _whole_reason(draft: _Draft, prefix: str) -> str | None:
    """Why an invoice of good lines cannot be taken."""
    if abs(draft.amount_minor) > AMOUNT_MINOR_MAX:
        return "its total is too large"
    if draft.number[:1] in "Cc":
        if draft.amount_minor > 0:
            return "it is a cancellation with a positive total"
        # As long as any id that its lines are given as commands.
        if not valid_id(f"{prefix}refund-{draft.number}-line-{len(draft.lines)}"):
            return f"the ids of its lines do not match {ID_PATTERN}"
        return None
    if draft.amount_minor < 0:
        return "its total is negative and it is not a cancellation"
    if not valid_id(f"{prefix}{draft.number}"):
        return f"its order id does not match {ID_PATTERN}"
    return None


def _iso_time(text: str) -> str:
    match = _DATE.fullmatch(text)
    if match is None:
        raise _BadLine(f"InvoiceDate {_shown(text)!r} is not like 01/12/2010 08:26")
    day, month, year, hour, minute, second = (int(part or 0) for part in match.groups())
    try:
        return datetime(year, month, day, hour, minute, second).isoformat()
    except ValueError:
        raise _BadLine(f"InvoiceDate {_shown(text)!r} is not a date (day/month/year)") from None


def _places(path: Path, header: str) -> tuple[int, list[int]]:
    """How many columns there are and where each of COLUMNS stands, the invoice number first."""
    no_text = _no_text(header)
    if no_text is not None:
        raise UserError(f"The first line of {path} is {no_text}.")
    if not header.strip():
        raise UserError(f"{path} is empty; expected a CSV file with the columns {_columns()}.")
    try:
        names = [name.strip() for name in next(csv.reader([header], strict=True))]
    except csv.Error as error:
        raise UserError(f"The first line of {path} is not a CSV header ({error}).") from error
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        hint = " It seems to be separated by semicolons; use commas." if ";" in header else ""
        raise UserError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"its first line must name {_columns()}.{hint}"
        )
    twice = [column for column in COLUMNS if names.count(column) > 1]
    if twice:
        raise UserError(f"{path} has the column {twice[0]} twice; keep one of them.")
    return len(names), [names.index(column) for column in COLUMNS]


def _columns() -> str:
    return ", ".join(COLUMNS)


def _shown(text: str) -> str:
    """A value from the file for a message: short, and without a card number."""
    return mask_card_number_text(text)[:40]

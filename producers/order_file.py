"""What reading a file of orders yields, whatever its format."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.domain.card_numbers import fields_not_to_send
from pipeline.domain.model import Order
from pipeline.errors import UserError

Format = Literal["invoice-csv", "order-jsonl"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the file that was not taken; lines count from 1.

    ``of_order`` when it says what became of an order whose bad lines are problems of their own.
    """

    line_number: int
    reason: str
    of_order: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderFile:
    """The orders of a file and what was wrong with the rest.

    ``line_numbers`` says where each of ``orders`` begins. ``left_out`` counts orders (not lines)
    that the file names and that were not taken.
    """

    line_count: int
    orders: tuple[Order, ...]
    problems: tuple[Problem, ...]
    left_out: int
    line_numbers: tuple[int, ...] = ()

    @property
    def bad_line_count(self) -> int:
        return len({p.line_number for p in self.problems if not p.of_order})


def read_raw(path: Path) -> bytes:
    """The file's bytes, once and whole: a pipe cannot be read a second time.

    UserError when it is away, empty, or UTF-16.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(unreadable(path, error)) from error
    if not raw.strip():
        raise UserError(f"{path} is empty; there is nothing to import.")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8).")
    return raw


def detect_format(path: Path, raw: bytes) -> Format:
    """The format by the file's name, else by its first character that is not blank.

    UserError for a JSON array, which no format is.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return "invoice-csv"
    if suffix in (".jsonl", ".ndjson"):
        return "order-jsonl"
    start = raw[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == b"[":
        shown = shlex.quote(str(path))
        raise UserError(f"{path} is a JSON array; write one order per line (jq -c '.[]' {shown}).")
    return "order-jsonl" if start[:1] == b"{" else "invoice-csv"


def text_lines(raw: bytes) -> list[str]:
    """The lines without their ends; a byte that is not UTF-8 stays in its line, as an escape that
    ``not_utf8`` finds, so that it costs no other line."""
    lines = raw.decode("utf-8-sig", "surrogateescape").split("\n")
    if lines[-1] == "":
        lines.pop()
    return lines


def not_utf8(text: str) -> str | None:
    """Why this line of ``text_lines`` is no text, None when it is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        return (
            f"not UTF-8 (byte 0x{byte:02X}); convert the file, for example with "
            "iconv -f WINDOWS-1252 -t UTF-8"
        )
    return None


def card_number_reason(order: Order) -> str | None:
    """Why an order would not be published: it holds a card number; None when it holds none."""
    fields = fields_not_to_send(order)
    if not fields:
        return None
    return (
        f"a card number stands in {', '.join(fields)}; give a token for the card, and leave "
        "card numbers out of texts"
    )


def unreadable(path: Path, error: OSError) -> str:
    """One sentence about a file that cannot be read."""
    return f"{path} cannot be read ({error.strerror or error}); check the path."

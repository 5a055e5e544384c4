"""What reading a file of orders yields, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.domain.model import Order
from pipeline.errors import UserError

Format = Literal["invoice-csv", "order-jsonl"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the file that was not taken; lines count from 1."""

    line_number: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderFile:
    """The orders of a file and what was wrong with the rest.

    ``left_out`` counts orders (not lines) that the file names and that were not taken.
    """

    line_count: int
    orders: tuple[Order, ...]
    problems: tuple[Problem, ...]
    left_out: int


def detect_format(path: Path) -> Format:
    """The format by the file's name, else by its first character that is not blank.

    Raises UserError for a file that cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return "invoice-csv"
    if suffix in (".jsonl", ".ndjson"):
        return "order-jsonl"
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise UserError(unreadable(path, error)) from error
    return (
        "order-jsonl" if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" else "invoice-csv"
    )


def read_text(path: Path) -> str:
    """The file's text; UserError when it is away, empty, or not UTF-8."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(unreadable(path, error)) from error
    if not raw.strip():
        raise UserError(f"{path} is empty; there is nothing to import.")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8).")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line_number = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{raw[error.start]:02X} on line {line_number}); "
            "convert it first, for example with iconv -f WINDOWS-1252 -t UTF-8."
        ) from error


def unreadable(path: Path, error: OSError) -> str:
    """One sentence about a file that cannot be read."""
    return f"{path} cannot be read ({error.strerror or error}); check the path."

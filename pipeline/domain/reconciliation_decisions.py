"""What reconciliation decides about the books, as bodies of ledger events.

``clearing``: rows of one gateway and the settlements they clear. ``bank_statement``: the booked
lines of one statement. ``release``: entries that wait for no gateway's funds. ``break_resolution``:
what a person made of a break; what that clears is a ``clearing`` of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from pipeline.domain.breaks import BY_HAND
from pipeline.domain.clearing import BankLine, ClearedRow
from pipeline.domain.model import LedgerEvent
from pipeline.domain.posting import AMOUNT_MINOR_MAX
from pipeline.errors import UserError

CLEARING: Final = "clearing"
BANK_STATEMENT: Final = "bank_statement"
RELEASE: Final = "release"
BREAK_RESOLUTION: Final = "break_resolution"
KINDS: Final = (CLEARING, BANK_STATEMENT, RELEASE, BREAK_RESOLUTION)
# Those that post.
POSTING_KINDS: Final = (CLEARING, BANK_STATEMENT, RELEASE)

# Rows in one decision: about 130 bytes each, so a record of 260 kB, within a topic's 1 MiB.
ROWS_MAX: Final = 2_000
LINES_MAX: Final = 2_000


class ClearingDecision(Struct, frozen=True):
    gateway: str
    rows: tuple[ClearedRow, ...]


class BankStatement(Struct, frozen=True):
    """``file_id`` is the statement's own id; ``account`` is ours."""

    account: str
    file_id: str
    lines: tuple[BankLine, ...]


class Release(Struct, frozen=True):
    """``entries`` by their ids; they count as available under ``date``."""

    date: str
    entries: tuple[str, ...]


class BreakResolution(Struct, frozen=True):
    """``figures`` as ``breaks.figures`` words them; "" in decisions of before they were kept, which
    are of whatever figures the break has."""

    break_id: str
    resolution: str
    figures: str = ""


def clearing_body(gateway: str, rows: Sequence[ClearedRow]) -> str:
    return _json({"gateway": gateway, "rows": msgspec.to_builtins(rows)})


def clearing_of(event: LedgerEvent) -> ClearingDecision:
    return msgspec.json.decode(event.body, type=ClearingDecision)


def release_body(date: str, entries: Sequence[str]) -> str:
    return _json({"date": date, "entries": list(entries)})


def release_of(event: LedgerEvent) -> Release:
    return msgspec.json.decode(event.body, type=Release)


def statement_body(statement: BankStatement) -> str:
    if len(statement.lines) > LINES_MAX:
        raise UserError(f"a bank statement has at most {LINES_MAX} lines here.")
    for line in statement.lines:
        if abs(line.amount_minor) > AMOUNT_MINOR_MAX:
            raise UserError(f"line {line.line_id} moves more than {AMOUNT_MINOR_MAX} minor units.")
    return _json(msgspec.to_builtins(statement))


def statement_of(event: LedgerEvent) -> BankStatement:
    return msgspec.json.decode(event.body, type=BankStatement)


def resolution_body(break_id: str, resolution: str, figures: str) -> str:
    if resolution not in BY_HAND:
        raise UserError(f"{resolution!r} is no resolution: use one of {', '.join(BY_HAND)}.")
    return _json({"break_id": break_id, "resolution": resolution, "figures": figures})


def resolution_of(event: LedgerEvent) -> BreakResolution:
    return msgspec.json.decode(event.body, type=BreakResolution)


def _json(body: Any) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))

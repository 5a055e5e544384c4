"""What reconciliation decides about the books, as bodies of ledger events.

``clearing``: rows of one gateway and the settlements they clear. ``bank_statement``: the booked
lines of one statement. ``release``: entries that wait for no gateway's funds. ``break_resolution``:
what a person made of a break; what that clears is a ``clearing`` of its own, and what it has given
back is asked of the flow (``refund_command``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pipeline.domain.breaks import ACCEPTED, BY_HAND, CONVERTED, CURRENCY_DIFFERS
from pipeline.domain.clearing import BankLine, ClearedRow
from pipeline.domain.commands import REFUND_UNASKED
from pipeline.domain.ids import unasked_order_id
from pipeline.domain.invariant import invariant
from pipeline.domain.model import LedgerEvent, PaymentCommand
from pipeline.domain.posting import AMOUNT_MINOR_MAX
from pipeline.domain.unasked_charges import NO_MERCHANT, unasked_command_id
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
# What a bank writes in a line's text may take several bytes a character, so lines are counted by
# their size as well; beside them in a record are some names.
_LINES_BYTES_MAX: Final = 800_000


class ClearingDecision(Struct, frozen=True, omit_defaults=True):
    """``currency``: what the rows' amounts and fees are in, where a person has said that the
    gateway settles in another one; "" for that of what each clears."""

    gateway: str
    rows: tuple[ClearedRow, ...]
    currency: str = ""


class BankStatement(Struct, frozen=True, omit_defaults=True):
    """``file_id`` is the statement's own id; ``account`` is what the books call ours, and
    ``number`` what the bank does, which no rule changes: "" in decisions of before it was kept.

    A part of one that is too large for one decision: its lines from the ``first`` one on, ``of`` so
    many; 0 for a whole one.
    """

    account: str
    file_id: str
    lines: tuple[BankLine, ...]
    first: int = 1
    of: int = 0
    number: str = ""


class Release(Struct, frozen=True):
    """``entries`` by their ids; they count as available under ``date``."""

    date: str
    entries: tuple[str, ...]


class RefundOrder(Struct, frozen=True):
    """A charge nobody asked for, by its gateway's own id, that is to be given back whole. ``row``:
    where it was found."""

    gateway: str
    gateway_reference: str
    amount_minor: int
    currency: str
    business_date: str
    row: str


class BreakResolution(Struct, frozen=True):
    """``figures`` as ``breaks.figures`` words them; "" in decisions of before they were kept, which
    are of whatever figures the break has. ``refund``: what it has given back; None in decisions of
    before as well, when people did that at the gateway."""

    break_id: str
    resolution: str
    figures: str = ""
    refund: RefundOrder | None = None


def clearing_body(gateway: str, rows: Sequence[ClearedRow], currency: str = "") -> str:
    return _json(msgspec.to_builtins(ClearingDecision(gateway, tuple(rows), currency)))


def clearing_of(event: LedgerEvent) -> ClearingDecision:
    return msgspec.json.decode(event.body, type=ClearingDecision)


def release_body(date: str, entries: Sequence[str]) -> str:
    return _json({"date": date, "entries": list(entries)})


def release_of(event: LedgerEvent) -> Release:
    return msgspec.json.decode(event.body, type=Release)


def statement_parts(statement: BankStatement) -> list[BankStatement]:
    """The statement, or what is left of one, in parts that one decision holds each."""
    parts: list[list[BankLine]] = [[]]
    size = 0
    for line in statement.lines:
        bytes_of_line = len(_json(msgspec.to_builtins(line))) + 1
        if len(parts[-1]) == LINES_MAX or size + bytes_of_line > _LINES_BYTES_MAX:
            parts.append([])
            size = 0
        parts[-1].append(line)
        size += bytes_of_line
    if len(parts) == 1:
        return [statement]
    of = statement.of or len(statement.lines)
    first = statement.first
    made = []
    for lines in parts:
        made.append(replace(statement, lines=tuple(lines), first=first, of=of))
        first += len(lines)
    return made


def statement_body(statement: BankStatement) -> str:
    invariant(len(statement.lines) <= LINES_MAX, "a decision holds one part of a statement")
    for line in statement.lines:
        if abs(line.amount_minor) > AMOUNT_MINOR_MAX:
            raise UserError(f"line {line.line_id} moves more than {AMOUNT_MINOR_MAX} minor units.")
    return _json(msgspec.to_builtins(statement))


def statement_of(event: LedgerEvent) -> BankStatement:
    return msgspec.json.decode(event.body, type=BankStatement)


def resolution_body(
    break_id: str, resolution: str, figures: str, refund: RefundOrder | None = None
) -> str:
    body: dict[str, Any] = {"break_id": break_id, "resolution": resolution, "figures": figures}
    if refund is not None:
        body["refund"] = msgspec.to_builtins(refund)
    return _json(body)


def refund_command(event: LedgerEvent) -> PaymentCommand | None:
    """What a resolution asks of the flow: the same however often it is asked."""
    resolution = resolution_of(event)
    refund = resolution.refund
    if refund is None:
        return None
    order_id = unasked_order_id(refund.gateway, refund.gateway_reference)
    return PaymentCommand(
        merchant_id=NO_MERCHANT,
        order_id=order_id,
        command_id=unasked_command_id(order_id),
        type=REFUND_UNASKED,
        submitted_at_ms=event.decided_at_ms,
        amount_minor=refund.amount_minor,
        currency=refund.currency,
        gateway=refund.gateway,
        gateway_reference=refund.gateway_reference,
        business_date=refund.business_date,
        evidence=f"row {refund.row}, break {resolution.break_id}",
        reason=event.reason,
        actor=event.actor,
    )


def check_resolution(resolution: str) -> None:
    """UserError where a person's word is none that ends a break."""
    if resolution not in BY_HAND:
        raise UserError(f"{resolution!r} is no resolution: use one of {', '.join(BY_HAND)}.")


def check_fits(kind: str, resolution: str) -> None:
    """UserError where the word says nothing of a break of this kind."""
    if resolution == CONVERTED and kind != CURRENCY_DIFFERS:
        raise UserError(f"a {kind} cannot be converted: only a {CURRENCY_DIFFERS} can.")
    if resolution == ACCEPTED and kind == CURRENCY_DIFFERS:
        raise UserError(
            f"another currency cannot be borne as it is: resolve it as {CONVERTED}, which books "
            "what the row says, or as corrected where it is set right by hand or by the gateway."
        )


def resolution_of(event: LedgerEvent) -> BreakResolution:
    return msgspec.json.decode(event.body, type=BreakResolution)


def _json(body: Any) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))

"""A row of a gateway's settlement report, and what follows from it in the books.

A row says that the gateway has taken a movement into a payout batch, and what it took for that. It
is matched with one settlement (``matching``) and books once: the accrued cost is set right, and
what was posted to the merchant for that settlement becomes available.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from pipeline.domain.accounts import (
    BANK,
    GATEWAY_RECEIVABLE,
    ROUNDING,
)
from pipeline.domain.posting import (
    AMOUNT_MINOR_MAX,
    CAPTURE,
    CREDIT,
    DISPUTE,
    DISPUTE_FEE,
    REFUND,
    REFUND_FAILED,
    REVERSAL,
    Posting,
)
from pipeline.domain.transfers import (
    FEE_TRUE_UP,
    FEE_TRUE_UP_RETURNED,
    conversion,
    cost_true_up,
    made_available,
)
from pipeline.domain.validation import is_date

# Kinds of settlements that a report tells of, and one that none of ours can be.
CLEARED_KINDS: Final = frozenset({CAPTURE, REFUND, REFUND_FAILED, DISPUTE, DISPUTE_FEE, REVERSAL})
CAPTURE_FAILED: Final = "capture_failed"

# Before the number of a bank's line that has no reference which is an id: no id begins so.
NUMBERED: Final = "#"

# Kinds of the entries that follow.
CLEARING_ENTRY: Final = "clearing"
BANK_RECEIPT: Final = "bank_receipt"
RELEASE_ENTRY: Final = "release"
# Kinds of entries that change what a merchant is owed and that no gateway will ever report: there
# are no funds to wait for, so they count in the available balance with the next run.
RELEASED_KINDS: Final = frozenset({CREDIT, FEE_TRUE_UP, FEE_TRUE_UP_RETURNED})


class Clearing(Struct, frozen=True, kw_only=True, gc=False):
    """One row. ``amount_minor`` is signed, positive to the merchant, before the gateway's fee;
    ``fee_minor`` is what the gateway took for it, negative if it gave back.

    ``payment_id``, ``operation_id`` and ``attempt`` are read from our reference; "" and 0 where the
    row carries none that is ours. A reference for another gateway names the payment of a charge and
    no operation, which is none of this gateway.
    """

    gateway: str
    file_id: str
    row_number: int
    report_date: str
    kind: str
    operation_kind: str
    gateway_reference: str
    amount_minor: int
    fee_minor: int
    currency: str
    batch_id: str
    occurred_at_ms: int
    payment_id: str = ""
    operation_id: str = ""
    attempt: int = 0
    merchant_id: str = ""
    order_id: str = ""


def cannot_be_kept(row: Clearing) -> str:
    """Why no book can hold a row, in words; "" for one that can be. The readers of reports let none
    of these through: it was written by somebody else."""
    if "\0" in "".join(
        (row.gateway, row.file_id, row.kind, row.operation_kind, row.gateway_reference,
         row.currency, row.batch_id, row.payment_id, row.operation_id, row.merchant_id,
         row.order_id)
    ):  # fmt: skip
        return "a text of it holds a NUL"
    if max(abs(row.amount_minor), abs(row.fee_minor)) > AMOUNT_MINOR_MAX:
        return f"it moves more than {AMOUNT_MINOR_MAX} minor units"
    if not is_date(row.report_date):
        return f"{row.report_date!r} is no date"
    return ""


class ClearedRow(Struct, frozen=True, array_like=True, gc=False):
    """A row that is booked and the settlement it clears, as a decision holds it."""

    file_id: str
    row_number: int
    settlement_id: str
    amount_minor: int
    fee_minor: int
    report_date: str


class BookedEntry(Struct, frozen=True, gc=False):
    """What is asked of an entry when it is cleared or released: whose it is, its movement (the
    first line's currency and amount), what it expects the gateway to take, and what it owes the
    merchant more (less: negative)."""

    entry_id: str
    merchant_id: str
    order_id: str
    payment_id: str
    operation_id: str
    gateway: str
    gateway_reference: str
    currency: str
    amount_minor: int
    cost_minor: int
    owed_minor: int


class BankLine(Struct, frozen=True, kw_only=True, gc=False):
    """One booked line of a bank statement; ``amount_minor`` is positive when we received it.

    ``gateway`` is who paid, as far as it is known, and ``batch_id`` which of its batches. ``""``
    for what is nobody's payout to us. ``payout``: it is ours to a merchant, whose own decision
    posts it; ``batch_id`` is the payout's id then.
    """

    line_id: str
    amount_minor: int
    currency: str
    value_date: str
    gateway: str = ""
    batch_id: str = ""
    text: str = ""
    payout: bool = False


def clearing_key(gateway: str, file_id: str, row_number: int) -> str:
    """``gateway:report row``: the record's key, and what a row is called everywhere."""
    return f"{gateway}:{file_id}:{row_number}"


def clearing_lines(
    entry: BookedEntry, row: ClearedRow, settled_in: str = ""
) -> tuple[Posting, ...]:
    """What a row books for the settlement it clears; () when it only confirms what stands.
    ``settled_in``: the row's currency, "" for the settlement's own."""
    currency = entry.currency
    if settled_in not in ("", currency):
        return _converted_lines(entry, row, settled_in)
    difference_minor = row.amount_minor - entry.amount_minor
    lines: tuple[Posting, ...] = ()
    if difference_minor:
        # Within the tolerance, or it would not be cleared.
        lines = (
            Posting(f"{GATEWAY_RECEIVABLE}:{entry.gateway}", currency, difference_minor),
            Posting(f"{ROUNDING}:{currency}", currency, -difference_minor),
        )
    lines += cost_true_up(entry.gateway, currency, entry.cost_minor, row.fee_minor)
    if entry.owed_minor:
        lines += made_available(entry.merchant_id, currency, entry.owed_minor)
    return lines


def _converted_lines(entry: BookedEntry, row: ClearedRow, settled_in: str) -> tuple[Posting, ...]:
    """The gateway owes in the row's currency, and its cost is in that one as the row says it; of
    the settlement's own nothing is left but what the merchant has."""
    receivable = f"{GATEWAY_RECEIVABLE}:{entry.gateway}"
    owed, settled = (entry.currency, entry.amount_minor), (settled_in, row.amount_minor)
    lines = cost_true_up(entry.gateway, entry.currency, entry.cost_minor, 0)
    lines += conversion(receivable, owed, settled)
    lines += cost_true_up(entry.gateway, settled_in, 0, row.fee_minor)
    if entry.owed_minor:
        lines += made_available(entry.merchant_id, entry.currency, entry.owed_minor)
    return lines


def release_lines(entry: BookedEntry) -> tuple[Posting, ...]:
    """What no funds are waited for becomes available, or takes of what is; () for nothing."""
    if not entry.owed_minor:
        return ()
    return made_available(entry.merchant_id, entry.currency, entry.owed_minor)


def bank_lines(account: str, line: BankLine) -> tuple[Posting, ...]:
    """A gateway's payout has reached our bank account (a negative one was taken from it)."""
    return (
        Posting(f"{BANK}:{account}", line.currency, line.amount_minor),
        Posting(f"{GATEWAY_RECEIVABLE}:{line.gateway}", line.currency, -line.amount_minor),
    )

"""Breaks: where the books and the world outside say different things, each by name.

A break stays until a later row ends it, or a person resolves it with a reason. Its id is derived
from what it is about, so the same difference is one break however often it is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from msgspec import Struct

MISSING_AT_GATEWAY: Final = "missing_at_gateway"
MISSING_HERE: Final = "missing_here"
AMOUNT_DIFFERS: Final = "amount_differs"
CURRENCY_DIFFERS: Final = "currency_differs"
FEE_DIFFERS: Final = "fee_differs"
DUPLICATE: Final = "duplicate"
BATCH_DIFFERS: Final = "batch_differs"
BATCH_UNPAID: Final = "batch_unpaid"
BANK_LINE_UNKNOWN: Final = "bank_line_unknown"
PAYOUT_UNCONFIRMED: Final = "payout_unconfirmed"
LEDGER_DIFFERS: Final = "ledger_differs"
CLEARING_REFUSED: Final = "clearing_refused"

BREAKS: Final[Mapping[str, str]] = {
    MISSING_AT_GATEWAY: "booked here, and in no report of the gateway although it is due",
    MISSING_HERE: "in a report, and no settlement of ours: money moved that nobody here knows of",
    AMOUNT_DIFFERS: "the report says another amount; the row is not booked",
    CURRENCY_DIFFERS: "the report says another currency; the row is not booked",
    FEE_DIFFERS: "the gateway took another fee than the terms make; it is booked as it was taken",
    DUPLICATE: "a second row about a settlement that another row has cleared; it is not booked",
    BATCH_DIFFERS: "the rows of a payout batch, all due by now, and the bank's line differ",
    BATCH_UNPAID: "rows of a payout batch, and no line of the bank although it is due",
    BANK_LINE_UNKNOWN: "a line of the bank that belongs to no batch of a gateway; it is not booked",
    PAYOUT_UNCONFIRMED: "a payout the bank was asked for, and no debit of it although it is due",
    CLEARING_REFUSED: "a record of `clearings` is no row, or contradicts one that came before",
    LEDGER_DIFFERS: "a record of the settlements topic is not in the ledger as it should be",
}

OPEN: Final = "open"
RESOLVED: Final = "resolved"
# Resolutions: what ended a break, or what a person made of it.
BY_LATER_EVIDENCE: Final = "later_evidence"
ACCEPTED: Final = "accepted"
CORRECTED: Final = "corrected"
CONVERTED: Final = "converted"
REFUND_AFTER_REVIEW: Final = "refund_after_review"
BY_HAND: Final[Mapping[str, str]] = {
    ACCEPTED: "the difference is borne as it is",
    CORRECTED: "an entry by hand, or the gateway, has set it right",
    CONVERTED: "the gateway settles in another currency: booked as its row says",
    REFUND_AFTER_REVIEW: "a charge nobody asked for: its customer is given the money back",
}
# What a corrected break says once it is explained: what was posted by hand for it stands beside
# what the evidence has booked. It is for a person to end.
EXPLAINED_AFTERWARDS: Final = (
    "; evidence that explains it came after it was corrected: take back the entry by hand, if one "
    "was posted"
)


class ReconciliationBreak(Struct, frozen=True, kw_only=True, gc=False):
    """One break with its trail. ``subject`` is what it is about: a row's key, a settlement's id, a
    batch, a bank's line. ``since`` is the day it is of; its age is counted from it.

    ``at_risk_minor`` is what may be lost by it, never negative. ``settlement_place`` and
    ``clearing_place`` are ``topic[partition]@offset``, "" where there is none.
    """

    break_id: str
    kind: str
    gateway: str
    subject: str
    currency: str
    at_risk_minor: int
    since: str
    detail: str
    state: str = OPEN
    resolution: str = ""
    reason: str = ""
    actor: str = ""
    opened_at_ms: int = 0
    resolved_at_ms: int = 0
    version: int = 1
    file_id: str = ""
    row_number: int = 0
    merchant_id: str = ""
    order_id: str = ""
    payment_id: str = ""
    gateway_reference: str = ""
    settlement_place: str = ""
    clearing_place: str = ""


def figures(at_risk_minor: int, detail: str) -> str:
    """What a person looked at who resolved a break: of other figures nobody has said anything."""
    return f"{at_risk_minor}: {detail}"


def break_id(kind: str, gateway: str, subject: str) -> str:
    """Twelve hexadecimal digits: a million breaks meet by chance once in five hundred times."""
    return sha256(f"{kind}\0{gateway}\0{subject}".encode()).hexdigest()[:12]

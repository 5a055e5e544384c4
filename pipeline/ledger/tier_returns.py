"""What refunds take back of a closed month's corrections of tiers, as a close books it.

A correction is of a month's volume: of what was captured in it under one version of a plan. Of that
volume so much is refunded by a close, the oldest captures of a payment first; that part of the
correction goes back, less what went back before. So the parts sum to the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from msgspec import Struct
from sqlalchemy import Connection, bindparam, text

from pipeline.domain.fees import refunded_of, share
from pipeline.domain.posting import EXTERNAL_REFUND, REFUND, REFUND_FAILED, JournalEntry
from pipeline.domain.transfers import FEE_TRUE_UP, FEE_TRUE_UP_RETURNED
from pipeline.ledger.tables import OF_SETTLEMENT

_DAY: Final = "CASE e.booked_date WHEN '' THEN e.business_date ELSE e.booked_date END"
_REFUNDS: Final = tuple(sorted((REFUND, REFUND_FAILED, EXTERNAL_REFUND)))
# Behind every offset.
ALL: Final = 2**62
# Month, merchant, currency and terms, as version and plan.
Key = tuple[str, str, str, str]

# Line 1 is the merchant's.
_BOOKED: Final = text(
    "SELECT e.kind, e.merchant_id, e.terms, e.gateway_reference, p.amount_minor "
    "FROM journal_entries e JOIN postings p ON p.entry_number = e.entry_number AND p.line = 1 "
    "WHERE e.kind IN (:given, :returned) AND e.source_offset < :before"
)
_MOVED: Final = text(
    f"SELECT e.payment_id, e.kind, substr({_DAY}, 1, 7) AS month, e.merchant_id, p.currency, "
    "e.terms, p.amount_minor FROM journal_entries e "
    "JOIN postings p ON p.entry_number = e.entry_number AND p.line = 1 "
    f"WHERE (e.kind = 'capture' OR e.kind IN :refunds) AND {_DAY} <= :through "
    f"AND {OF_SETTLEMENT.format('e.')} "
    "AND e.payment_id IN (SELECT r.payment_id FROM journal_entries r WHERE r.kind IN :refunds) "
    "ORDER BY e.payment_id, month, e.entry_number"
).bindparams(bindparam("refunds", _REFUNDS, expanding=True))


class ReturnDue(Struct, frozen=True):
    """``more_minor``: what the merchant pays more (less: negative), as with a correction."""

    month: str
    merchant: str
    currency: str
    terms: str
    refunded_minor: int
    more_minor: int


def returns_due(
    connection: Connection, through: str, made: Sequence[JournalEntry], before: int = ALL
) -> Iterator[ReturnDue]:
    """What is to be booked now, through a day; ``made``: corrections of this very close.

    ``before``: the close's own offset where it is booked already; decisions lie in their order.
    """
    volumes: dict[Key, int] = {}
    given: dict[Key, int] = {}
    returned: dict[Key, int] = {}
    rows = [
        (e.kind, e.merchant_id, e.terms, e.gateway_reference, e.postings[0].amount_minor)
        for e in made
    ]
    kinds = {"given": FEE_TRUE_UP, "returned": FEE_TRUE_UP_RETURNED}
    booked = connection.execute(_BOOKED, {**kinds, "before": before})
    for kind, merchant, terms, reference, minor in (*booked, *rows):
        month, volume, currency = reference.split(" ")
        key = month, merchant, currency, terms
        if kind == FEE_TRUE_UP:
            given[key] = given.get(key, 0) + minor
            volumes[key] = int(volume)
        else:
            returned[key] = returned.get(key, 0) - minor
    if not given:
        return
    refunded = _refunded(connection, through)
    for key in sorted(given):
        due_minor = share(given[key], refunded.get(key, 0), volumes[key])
        more_minor = returned.get(key, 0) - due_minor
        if more_minor:
            yield ReturnDue(*key, refunded.get(key, 0), more_minor)


def _refunded(connection: Connection, through: str) -> dict[Key, int]:
    """How much of each month's volume is refunded by then."""
    found: dict[Key, int] = {}
    moved = connection.execute(_MOVED, {"through": through})
    for _, rows in groupby(moved, lambda row: row.payment_id):
        captures: list[tuple[Key, int]] = []
        refunded_minor = 0
        for row in rows:
            if row.kind == "capture":
                version, _, rest = row.terms.partition("/")
                terms = f"{version}/{rest.partition('/')[0]}/"
                key = row.month, row.merchant_id, row.currency, terms
                captures.append((key, int(row.amount_minor)))
            else:
                refunded_minor -= int(row.amount_minor)
        parts = refunded_of([minor for _, minor in captures], refunded_minor)
        for (key, _), part in zip(captures, parts, strict=True):
            found[key] = found.get(key, 0) + part
    return found

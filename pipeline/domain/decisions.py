"""What people decide about the books, as events: fee schedules, closed periods, entries by hand,
payouts (``payouts``).

The body of a decision is JSON, each kind with a shape of its own, and is read here by whoever
follows it: the writer of the books, a rebuild from the topics.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from pipeline.domain.accounts import is_account, is_kept_in, kind_of
from pipeline.domain.clearing import BANK_RECEIPT, CLEARING_ENTRY, RELEASE_ENTRY
from pipeline.domain.due_days import require_come
from pipeline.domain.fee_schedule import FeeSchedule, Terms, read_schedule, terms_of
from pipeline.domain.keys import valid_id
from pipeline.domain.model import LedgerEvent
from pipeline.domain.money import MINOR_UNITS
from pipeline.domain.payouts import PAYOUT_KINDS
from pipeline.domain.periods import Closing
from pipeline.domain.posting import AMOUNT_MINOR_MAX, RULE_OF, Posting
from pipeline.domain.said_text import storable
from pipeline.domain.transfers import FEE_TRUE_UP, FEE_TRUE_UP_RETURNED
from pipeline.domain.validation import is_date
from pipeline.errors import UserError

FEE_SCHEDULE: Final = "fee_schedule"
PERIOD_CLOSE: Final = "period_close"
ENTRY: Final = "entry"

# What a balance holds: 64 bits, signed.
_SUM_MINOR_MAX: Final = 2**63 - 1
NOTHING_STANDS: Final[Mapping[tuple[str, str], int]] = {}
# Of a name that is wrong, so much is said.
_SHOWN_MAX: Final = 100
# How a close counts a month's tiers, since it says so.
_OVER_VERSIONS: Final = "over_versions"

# What entries of settlements are made by.
RULE_KINDS: Final = (FEE_SCHEDULE, PERIOD_CLOSE)

# Kinds of entries that follow from a settlement, a close or a report, and are never made by hand.
_OWN_KINDS: Final = frozenset(
    {
        *RULE_OF,
        FEE_TRUE_UP,
        FEE_TRUE_UP_RETURNED,
        CLEARING_ENTRY,
        BANK_RECEIPT,
        RELEASE_ENTRY,
        *PAYOUT_KINDS,
    }
)


class Rules(Struct, frozen=True):
    """What entries are made by beside the settlements themselves. ``sequence``: the last decision
    that is in it."""

    sequence: int = 0
    terms: Terms = Terms()
    closings: tuple[Closing, ...] = ()


class HandEntry(Struct, frozen=True):
    """An entry somebody decided on: a conversion, a correction, a resolution, a payout."""

    kind: str
    merchant_id: str
    business_date: str
    postings: tuple[Posting, ...]


def rules_of(events: Iterable[LedgerEvent]) -> Rules:
    """The rules that follow from all decisions, in their order."""
    schedules: list[FeeSchedule] = []
    closings: list[Closing] = []
    sequence = 0
    for event in events:
        sequence = max(sequence, event.sequence)
        if event.kind == FEE_SCHEDULE:
            schedules.append(schedule_of(event))
        elif event.kind == PERIOD_CLOSE:
            closings.append(closing_of(event))
    return Rules(sequence, terms_of(schedules), tuple(closings))


def schedule_body(document: Mapping[str, Any], effective_from_ms: int) -> str:
    """UserError when the document is no schedule."""
    read_schedule(document)
    return _json({"effective_from_ms": effective_from_ms, "schedule": document})


def schedule_of(event: LedgerEvent) -> FeeSchedule:
    """A schedule's version is the number of the decision that brought it."""
    body = json.loads(event.body)
    return read_schedule(
        body["schedule"], version=event.sequence, effective_from_ms=body["effective_from_ms"]
    )


def close_body(through: str, cuts: Mapping[int, int]) -> str:
    """How the tiers are counted is a part of the decision: an earlier one stays as it was made."""
    kept = {str(p): cuts[p] for p in sorted(cuts)}
    return _json({"through": through, "cuts": kept, "tiers": _OVER_VERSIONS})


def closing_of(event: LedgerEvent) -> Closing:
    body = json.loads(event.body)
    cuts = {int(partition): offset for partition, offset in body["cuts"].items()}
    over_versions = body.get("tiers") == _OVER_VERSIONS
    return Closing(event.sequence, body["through"], cuts, over_versions)


def entry_body(
    kind: str,
    merchant_id: str,
    business_date: str,
    postings: Sequence[Posting],
    standing: Mapping[tuple[str, str], int] = NOTHING_STANDS,
) -> str:
    """UserError when the lines cannot be booked.

    ``standing``: balances by account and currency. What stands where nothing may be posted today
    may be taken out.
    """
    if not valid_id(kind) or kind in _OWN_KINDS:
        raise UserError(f"{kind!r} is no kind of an entry by hand: use adjustment, conversion, ...")
    if merchant_id and not valid_id(merchant_id):
        raise UserError(f"{merchant_id!r} is no merchant's id.")
    if not is_date(business_date):
        raise UserError(f"{business_date!r} is no date: write YYYY-MM-DD.")
    sums: dict[str, int] = {}
    for posting in postings:
        _require_account(posting, standing)
        if posting.currency not in MINOR_UNITS:
            raise UserError(f"{posting.currency!r} is not an active ISO 4217 currency.")
        if not 0 < abs(posting.amount_minor) <= AMOUNT_MINOR_MAX:
            raise UserError(f"a line moves between 1 and {AMOUNT_MINOR_MAX} minor units.")
        sums[posting.currency] = sums.get(posting.currency, 0) + posting.amount_minor
    if len(postings) < 2 or any(sums.values()):
        raise UserError("an entry has two lines at least, and balances in each currency.")
    if sum(abs(posting.amount_minor) for posting in postings) > _SUM_MINOR_MAX:
        raise UserError(
            f"the lines move more than the {_SUM_MINOR_MAX} minor units of a balance together: "
            "make several entries of it."
        )
    return _json(
        {
            "kind": kind,
            "merchant_id": merchant_id,
            "business_date": business_date,
            "postings": [[p.account, p.currency, p.amount_minor] for p in postings],
        }
    )


def _require_account(posting: Posting, standing: Mapping[tuple[str, str], int]) -> None:
    name, currency = posting.account, posting.currency
    if not is_account(name):
        if not _empties(posting, standing):
            raise UserError(
                f"there is no account {name[:_SHOWN_MAX]!r}; see docs/ledger.md. Whose it is, "
                "behind the colon, is 1 to 64 of A-Za-z0-9._-"
            )
    elif not is_kept_in(name, currency) and not _empties(posting, standing):
        raise UserError(
            f"{name} is kept in its own currency, and the line is in {currency}: post it to "
            f"{kind_of(name)}:{currency}."
        )


def _empties(posting: Posting, standing: Mapping[tuple[str, str], int]) -> bool:
    before_minor = standing.get((posting.account, posting.currency), 0)
    return abs(before_minor + posting.amount_minor) < abs(before_minor)


def require_entry_come(event: LedgerEvent) -> None:
    """UserError for an entry by hand that counts under a day yet to come, by UTC."""
    if event.kind == ENTRY:
        day = json.loads(event.body)["business_date"]
        require_come(day, "the entry", event.decided_at_ms)


def decided_entry_of(event: LedgerEvent) -> HandEntry | None:
    """The entry that a decision holds, or None where it holds none."""
    if event.kind == ENTRY:
        body = json.loads(event.body)
    elif event.kind in PAYOUT_KINDS:
        body = json.loads(event.body)["entry"]
    else:
        body = None
    if body is None:
        return None
    return HandEntry(
        body["kind"],
        body["merchant_id"],
        body["business_date"],
        # Accounts of decisions that were made before their owners were ids may hold anything.
        tuple(Posting(storable(name), *line) for name, *line in body["postings"]),
    )


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))

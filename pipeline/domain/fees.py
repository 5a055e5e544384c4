"""What a settlement costs: fees, gateway costs and who bears a dispute, as lines of its entry.

Everything is counted over the payment, not the settlement. After each capture the fee due on all
that is captured is worked out and what is missing is charged; after each refund the fee due back on
all that is refunded, and what is missing is returned. So the parts sum to the whole to the last
minor unit, however it was cut. A payment keeps the terms that were in force at its first capture,
by that capture's own time, for its life; each entry names them, so a rebuild finds the same.

Rounding: half away from zero, once on each total; nothing else is ever rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from pipeline.domain.accounts import (
    DISPUTES_AND_LOSSES,
    FEE_REVENUE,
    GATEWAY_COST,
    GATEWAY_RECEIVABLE,
    MERCHANT_AVAILABLE,
    MERCHANT_PAYABLE,
)
from pipeline.domain.fee_schedule import (
    DISPUTES_MERCHANT,
    MILLION,
    PER_PAYMENT,
    RETURN_ALL,
    RETURN_NONE,
    FeePlan,
    FeeSchedule,
    GatewayCost,
    Terms,
)
from pipeline.domain.invariant import invariant
from pipeline.domain.posting import (
    CAPTURE,
    DISPUTE,
    DISPUTE_FEE,
    EXTERNAL_REFUND,
    REFUND,
    REFUND_FAILED,
    REVERSAL,
    UNASKED_KINDS,
    JournalEntry,
    Posting,
    balanced,
)

# Of a schedule that is in force and has no plan for the merchant.
NO_PLAN: Final = "-"

_FEE_LINE: Final = f"{FEE_REVENUE}:"
_COST_LINE: Final = f"{GATEWAY_COST}:"


class AtGateway(Struct, frozen=True, gc=False):
    """What a payment has moved at one gateway, and what the gateway took for it."""

    captured_minor: int = 0
    refunded_minor: int = 0
    cost_minor: int = 0
    cost_returned_minor: int = 0


class PaymentBooks(Struct, frozen=True):
    """What the books say of one payment so far, in its currency; amounts are not negative."""

    terms: str = ""
    captures: int = 0
    captured_minor: int = 0
    refunded_minor: int = 0
    fee_minor: int = 0
    fee_returned_minor: int = 0
    gateways: tuple[tuple[str, AtGateway], ...] = ()

    def at(self, gateway: str) -> AtGateway:
        return next((found for name, found in self.gateways if name == gateway), _NOTHING)


_NOTHING: Final = AtGateway()
UNKNOWN_PAYMENT: Final = PaymentBooks()


def books_of(entries: Iterable[JournalEntry]) -> PaymentBooks:
    """A payment's books from its entries, oldest first."""
    books = UNKNOWN_PAYMENT
    for entry in entries:
        books = after(books, entry)
    return books


def after(books: PaymentBooks, entry: JournalEntry) -> PaymentBooks:
    """The payment's books once this entry is in them."""
    kind = entry.kind
    if kind not in (CAPTURE, REFUND, REFUND_FAILED, EXTERNAL_REFUND):
        return books
    # The first line is the gateway's: what it owes us more, or less. What was refunded otherwise is
    # none of its doing.
    amount_minor = entry.postings[0].amount_minor
    fee_minor = cost_minor = 0
    for posting in entry.postings:
        if posting.account.startswith(_FEE_LINE):
            fee_minor -= posting.amount_minor
        elif posting.account.startswith(_COST_LINE):
            cost_minor += posting.amount_minor
    at = books.at(entry.gateway)
    if kind == CAPTURE:
        at = replace(
            at,
            captured_minor=at.captured_minor + amount_minor,
            cost_minor=at.cost_minor + cost_minor,
        )
        changed = replace(
            books,
            terms=entry.terms,
            captures=books.captures + 1,
            captured_minor=books.captured_minor + amount_minor,
            fee_minor=books.fee_minor + fee_minor,
        )
    else:
        if kind != EXTERNAL_REFUND:
            at = replace(
                at,
                refunded_minor=at.refunded_minor - amount_minor,
                cost_returned_minor=at.cost_returned_minor - cost_minor,
            )
        changed = replace(
            books,
            refunded_minor=books.refunded_minor - amount_minor,
            fee_returned_minor=books.fee_returned_minor - fee_minor,
        )
    others = tuple(each for each in books.gateways if each[0] != entry.gateway)
    return replace(changed, gateways=(*others, (entry.gateway, at)))


def priced(entry: JournalEntry, books: PaymentBooks, terms: Terms) -> JournalEntry:
    """The entry with the lines for fees, cost and disputes, and the name of its terms.

    ``entry`` has only the movement itself; ``books`` are the payment's before it.
    """
    known = books.terms if books.captures else _terms_name(entry, terms)
    schedule, plan, method = _resolved(known, terms)
    if schedule is None or entry.kind in UNASKED_KINDS:
        return entry
    lines: tuple[Posting, ...] = ()
    if entry.kind in (CAPTURE, REFUND, REFUND_FAILED, EXTERNAL_REFUND):
        cost = schedule.cost_for(entry.gateway, method, entry.postings[0].currency)
        if entry.kind == EXTERNAL_REFUND:
            cost = None
        price = _charged if entry.kind == CAPTURE else _returned
        lines = price(entry, books, plan, cost)
    elif entry.kind in (DISPUTE, DISPUTE_FEE, REVERSAL):
        lines = _passed_on(entry, plan)
    return balanced(replace(entry, terms=known, postings=(*entry.postings, *lines)))


def fee_due(plan: FeePlan, captured_minor: int, captures: int) -> int:
    """The whole fee of a payment of which so much was captured in so many parts."""
    fixed_minor = plan.fixed_minor * (1 if plan.fixed_per == PER_PAYMENT else captures)
    return max(plan.minimum_minor, fixed_minor + share(captured_minor, plan.ppm, MILLION))


def tier_correction(plan: FeePlan, volume_minor: int) -> int:
    """What a month's captures cost more by the plan's tiers than was charged (less: negative).

    Each slice of the volume counts at its tier's percentage. The difference to the plan's plain
    percentage is rounded once, on the sum of the slices.
    """
    return share(_tiered(plan, volume_minor), 1, MILLION)


def tier_corrections(slices: Sequence[tuple[FeePlan, int]]) -> list[int]:
    """The same for a month that spans several versions of a plan, each with what was captured under
    it: the volume is one, and a version prices what lies between those before it and those after.
    Rounded on the sum up to each version, so the parts sum to the whole."""
    made: list[int] = []
    volume_minor = millionths = 0
    for plan, minor in slices:
        millionths += _tiered(plan, volume_minor + minor) - _tiered(plan, volume_minor)
        volume_minor += minor
        made.append(share(millionths, 1, MILLION) - sum(made))
    return made


def refunded_of(captured_minor: Sequence[int], refunded_minor: int) -> list[int]:
    """How much of each capture of a payment is refunded: the oldest first."""
    found = []
    left_minor = max(0, refunded_minor)
    for minor in captured_minor:
        found.append(min(minor, left_minor))
        left_minor -= found[-1]
    return found


def _tiered(plan: FeePlan, volume_minor: int) -> int:
    """What the tiers change of the first so much of a month, in millionths of a minor unit."""
    millionths = 0
    for number, tier in enumerate(plan.tiers):
        last = number + 1 == len(plan.tiers)
        end = volume_minor if last else plan.tiers[number + 1].above_minor
        part = max(0, min(volume_minor, end) - tier.above_minor)
        millionths += part * (tier.ppm - plan.ppm)
    return millionths


def share(amount_minor: int, part: int, whole: int) -> int:
    """``amount * part / whole``, rounded half away from zero."""
    numerator = amount_minor * part
    magnitude = (2 * abs(numerator) + whole) // (2 * whole)
    return magnitude if numerator >= 0 else -magnitude


def _terms_name(entry: JournalEntry, terms: Terms) -> str:
    schedule = terms.at(entry.settled_at_ms)
    if schedule is None:
        return ""
    currency = entry.postings[0].currency
    plan = schedule.plan_for(entry.merchant_id, entry.payment_method, currency)
    # The method goes with it: later settlements of the payment find the same gateway cost.
    return f"{schedule.version}/{plan.name if plan else NO_PLAN}/{entry.payment_method}"


def _resolved(name: str, terms: Terms) -> tuple[FeeSchedule | None, FeePlan | None, str]:
    if not name:
        return None, None, ""
    version, plan, method = name.split("/")
    schedule = terms.version(int(version))
    invariant(schedule is not None, "terms that an entry names are there")
    return schedule, schedule.plan_named(plan) if schedule is not None else None, method


def _charged(
    entry: JournalEntry, books: PaymentBooks, plan: FeePlan | None, cost: GatewayCost | None
) -> tuple[Posting, ...]:
    amount_minor = entry.postings[0].amount_minor
    fee_minor = 0
    if plan is not None:
        due = fee_due(plan, books.captured_minor + amount_minor, books.captures + 1)
        fee_minor = due - books.fee_minor
    cost_minor = 0
    if cost is not None:
        cost_minor = cost.fixed_minor + share(amount_minor, cost.ppm, MILLION)
    return (*_fee_lines(entry, fee_minor), *_cost_lines(entry, cost_minor))


def _returned(
    entry: JournalEntry, books: PaymentBooks, plan: FeePlan | None, cost: GatewayCost | None
) -> tuple[Posting, ...]:
    """Fees and cost that a refund gives back, or that a refund which failed takes again."""
    moved_minor = -entry.postings[0].amount_minor
    back_minor = 0
    if plan is not None and plan.returned != RETURN_NONE and books.captured_minor:
        whole_minor = books.fee_minor
        if plan.returned != RETURN_ALL:
            times = 1 if plan.fixed_per == PER_PAYMENT else books.captures
            whole_minor = max(0, whole_minor - plan.fixed_minor * times)
        back_minor = _more_due(
            share(whole_minor, books.refunded_minor + moved_minor, books.captured_minor),
            books.fee_returned_minor,
            moved_minor,
        )
    cost_back_minor = 0
    at = books.at(entry.gateway)
    if cost is not None and cost.returned and at.captured_minor:
        cost_back_minor = _more_due(
            share(at.cost_minor, at.refunded_minor + moved_minor, at.captured_minor),
            at.cost_returned_minor,
            moved_minor,
        )
    return (*_fee_lines(entry, -back_minor), *_cost_lines(entry, -cost_back_minor))


def _more_due(due_minor: int, done_minor: int, moved_minor: int) -> int:
    """A refund never charges and one that failed never returns, whatever was captured between."""
    more_minor = due_minor - done_minor
    return max(0, more_minor) if moved_minor > 0 else min(0, more_minor)


def _passed_on(entry: JournalEntry, plan: FeePlan | None) -> tuple[Posting, ...]:
    if plan is None or plan.disputes != DISPUTES_MERCHANT:
        return ()
    currency, amount_minor = entry.postings[0].currency, entry.postings[0].amount_minor
    return (
        Posting(f"{DISPUTES_AND_LOSSES}:{entry.merchant_id}", currency, amount_minor),
        Posting(f"{MERCHANT_PAYABLE}:{entry.merchant_id}", currency, -amount_minor),
    )


def _fee_lines(entry: JournalEntry, fee_minor: int) -> tuple[Posting, ...]:
    """What the merchant pays more (negative: gets back)."""
    owed = MERCHANT_AVAILABLE if entry.kind == EXTERNAL_REFUND else MERCHANT_PAYABLE
    return _pair(
        entry,
        f"{owed}:{entry.merchant_id}",
        f"{FEE_REVENUE}:{entry.merchant_id}",
        fee_minor,
    )


def _cost_lines(entry: JournalEntry, cost_minor: int) -> tuple[Posting, ...]:
    """What the gateway keeps of what it owes us (negative: gives back)."""
    return _pair(
        entry,
        f"{GATEWAY_COST}:{entry.gateway}",
        f"{GATEWAY_RECEIVABLE}:{entry.gateway}",
        cost_minor,
    )


def _pair(entry: JournalEntry, debit: str, credit: str, minor: int) -> tuple[Posting, ...]:
    if not minor:
        return ()
    currency = entry.postings[0].currency
    return Posting(debit, currency, minor), Posting(credit, currency, -minor)

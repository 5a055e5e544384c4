"""What one merchant is paid on one business day, worked out without a database.

Of the funds that are there by the cut-off: what the merchant owes us is collected first, then the
reserve is held, then parts of the reserve whose time has come are added. What is left is the
payout, or, below the minimum, nothing: then all of it is carried over. Where the terms have
advances, a part of what is pending is paid as well; it stands in ``merchant_receivable`` like all
that a merchant owes, so that it is collected first when the funds have come. A negative balance is
met from the reserve; what the reserve does not hold is called in and stands there as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Final

from msgspec import Struct

from pipeline.domain.accounts import (
    MERCHANT_AVAILABLE,
    MERCHANT_RECEIVABLE,
    PAYOUTS_IN_TRANSIT,
    RESERVE,
)
from pipeline.domain.invariant import invariant
from pipeline.domain.payout_terms import FIXED, ROLLING, AdvanceTerms, MerchantTerms, ReserveTerms
from pipeline.domain.posting import Posting

_MILLION: Final = 1_000_000


class Part(Struct, frozen=True):
    """A part of a balance, by the business day it came from. ``until``: the day a part of the
    reserve is held to, or empty: as long as the terms say."""

    day: str
    amount_minor: int
    until: str = ""


class Position(Struct, frozen=True, kw_only=True):
    """Where a merchant stands in a currency. ``funds_minor`` is negative when it owes us.

    ``reserved_minor``: came back from a payout by the cut-off, so a reserve was held of it already;
    ``late_reserved_minor``: came back after it. ``late_minor`` is available as well and came after
    the cut-off: it is not paid of this day. ``pending_minor``: owed, and not cleared yet; of it an
    advance may be paid.
    """

    funds_minor: int
    reserve: tuple[Part, ...] = ()
    receivable_minor: int = 0
    reserved_minor: int = 0
    late_reserved_minor: int = 0
    pending_minor: int = 0
    late_minor: int = 0


class Plan(Struct, frozen=True, kw_only=True):
    """What moves; nothing is negative. ``amount_minor`` 0: there is no payout. ``advanced_minor``
    of it was not cleared yet. ``reserved_minor`` of what had come back is available no longer."""

    amount_minor: int = 0
    held_minor: int = 0
    held_until: str = ""
    released_minor: int = 0
    collected_minor: int = 0
    from_reserve_minor: int = 0
    called_in_minor: int = 0
    reserved_minor: int = 0
    advanced_minor: int = 0

    @property
    def decides(self) -> bool:
        """Whether anything moves, or less of what came back is left to know of."""
        return any(
            (self.amount_minor, self.released_minor, self.collected_minor,
             self.from_reserve_minor, self.called_in_minor, self.reserved_minor)
        )  # fmt: skip


def plan_payout(position: Position, terms: MerchantTerms, day: date) -> Plan:
    """The movements of one business day."""
    reserve = position.reserve
    funds_minor = position.funds_minor
    receivable_minor = position.receivable_minor
    invariant(receivable_minor >= 0, "a receivable is not negative")
    from_reserve_minor = called_in_minor = 0
    if funds_minor < 0:
        from_reserve_minor = min(-funds_minor, total(reserve))
        called_in_minor = -funds_minor - from_reserve_minor
        receivable_minor += called_in_minor
        reserve = without(reserve, from_reserve_minor)
        funds_minor = 0
    due_minor = _due(reserve, terms.reserve, day)
    collected_minor = min(receivable_minor, funds_minor + due_minor)
    collected_of_funds = min(collected_minor, funds_minor)
    collected_of_reserve = collected_minor - collected_of_funds
    own_minor = funds_minor - collected_of_funds
    new_minor = own_minor - min(position.reserved_minor, own_minor)
    held_minor = _held(terms.reserve, own_minor, new_minor, total(reserve) - due_minor)
    advanced_minor = _advanced(position, terms.advance, receivable_minor - collected_minor)
    amount_minor = own_minor - held_minor + due_minor - collected_of_reserve + advanced_minor
    if amount_minor < max(terms.minimum_minor, 1):
        return Plan(
            released_minor=collected_of_reserve,
            collected_minor=collected_minor,
            from_reserve_minor=from_reserve_minor,
            called_in_minor=called_in_minor,
            reserved_minor=_gone(position, 0, own_minor),
        )
    return Plan(
        amount_minor=amount_minor,
        held_minor=held_minor,
        held_until=_held_until(terms.reserve, day) if held_minor else "",
        released_minor=due_minor,
        collected_minor=collected_minor,
        from_reserve_minor=from_reserve_minor,
        called_in_minor=called_in_minor,
        reserved_minor=_gone(position, own_minor, 0),
        advanced_minor=advanced_minor,
    )


def plan_postings(plan: Plan, merchant: str, currency: str) -> tuple[Posting, ...]:
    """Each movement as its own debit and credit, so that an entry says what it is made of."""
    available, reserve, receivable, in_transit = (
        f"{kind}:{merchant}"
        for kind in (MERCHANT_AVAILABLE, RESERVE, MERCHANT_RECEIVABLE, PAYOUTS_IN_TRANSIT)
    )
    movements = (
        (reserve, available, plan.from_reserve_minor),
        (receivable, available, plan.called_in_minor),
        (reserve, available, plan.released_minor),
        (available, receivable, plan.collected_minor),
        (available, reserve, plan.held_minor),
        (available, in_transit, plan.amount_minor - plan.advanced_minor),
        (receivable, in_transit, plan.advanced_minor),
    )
    return tuple(
        posting
        for debit, credit, amount_minor in movements
        if amount_minor
        for posting in (
            Posting(debit, currency, amount_minor),
            Posting(credit, currency, -amount_minor),
        )
    )


def total(parts: Sequence[Part]) -> int:
    return sum(part.amount_minor for part in parts)


def without(parts: Sequence[Part], amount_minor: int) -> tuple[Part, ...]:
    """The parts after an amount was taken off the oldest; what is more than all is dropped."""
    left = []
    for part in parts:
        taken = min(part.amount_minor, amount_minor)
        amount_minor -= taken
        if part.amount_minor > taken:
            left.append(Part(part.day, part.amount_minor - taken, part.until))
    return tuple(left)


def released(parts: Sequence[Part], amount_minor: int, day: str) -> tuple[Part, ...]:
    """The parts after a release: those whose time has come first, then the oldest."""
    ripe = [part for part in parts if part.until <= day]
    others = [part for part in parts if part.until > day]
    return (
        *without(ripe, amount_minor),
        *without(others, max(0, amount_minor - total(ripe))),
    )


def fitted(parts: Sequence[Part], balance_minor: int) -> tuple[Part, ...]:
    """The parts, made to sum up to what the books say: entries by hand move balances too.

    What the books have more has no day; what they have less is taken off the oldest.
    """
    more_minor = balance_minor - total(parts)
    if more_minor > 0:
        return (Part("", more_minor), *parts)
    return without(parts, -more_minor)


def _due(parts: Sequence[Part], terms: ReserveTerms, day: date) -> int:
    """How much of the reserve is released on a day."""
    if terms.kind == FIXED:
        return max(0, total(parts) - terms.amount_minor)
    # What was held under other terms, without a day, is held no longer.
    return sum(part.amount_minor for part in parts if part.until <= day.isoformat())


def _held(terms: ReserveTerms, own_minor: int, new_minor: int, reserve_minor: int) -> int:
    """How much of the funds is held. A percentage is of the new ones, rounded half away from zero;
    a fixed reserve is filled up from any, since it may have been used since."""
    if terms.kind == ROLLING:
        return (new_minor * terms.ppm + _MILLION // 2) // _MILLION
    if terms.kind == FIXED:
        return min(own_minor, max(0, terms.amount_minor - reserve_minor))
    return 0


def _gone(position: Position, paid_minor: int, kept_minor: int) -> int:
    """How much of what had come back is available no longer. What is paid counts as that first, and
    never is more left of it than is available at all: refunds and what is collected take of it. The
    same of what came back after the cut-off, of which nothing is paid."""
    before_minor = position.reserved_minor
    left_minor = min(before_minor - min(before_minor, paid_minor), kept_minor)
    late_gone_minor = max(0, position.late_reserved_minor - position.late_minor)
    return before_minor - left_minor + late_gone_minor


def _advanced(position: Position, terms: AdvanceTerms, owed_minor: int) -> int:
    """How much is paid before it is cleared: what a merchant owes already counts, and whose
    balance is negative gets nothing. The percentage is rounded down: it is a limit."""
    if position.funds_minor < 0:
        return 0
    limit_minor = min(terms.maximum_minor, max(0, position.pending_minor) * terms.ppm // _MILLION)
    return max(0, limit_minor - owed_minor)


def _held_until(terms: ReserveTerms, day: date) -> str:
    return (day + timedelta(days=terms.days)).isoformat() if terms.kind == ROLLING else ""

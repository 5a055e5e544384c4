"""Fees and gateway costs as data: one document, in versions that each count from a time on.

A schedule has *plans* (what a merchant pays us) and *gateway costs* (what a gateway takes). Both
are chosen for a merchant or gateway, a payment method and a currency, ``*`` for any; the most
exact one counts: by merchant before method before currency. Percentages are kept as integers in
millionths (2.9 % is 29,000), so no figure is ever a fraction. ``docs/ledger.md`` shows a document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from pipeline.domain.keys import valid_id
from pipeline.domain.money import MINOR_UNITS
from pipeline.errors import UserError

ANY: Final = "*"
PER_PAYMENT: Final = "payment"
PER_CAPTURE: Final = "capture"
RETURN_NONE: Final = "none"
RETURN_PERCENTAGE: Final = "percentage"
RETURN_ALL: Final = "all"
DISPUTES_HELD: Final = "held"
DISPUTES_MERCHANT: Final = "merchant"

MILLION: Final = 1_000_000
_PERCENT: Final = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,4}))?")
# Larger than any fee, small enough that no sum of them leaves 64 bits.
_MINOR_MAX: Final = 10**12


class Tier(Struct, frozen=True, gc=False):
    """The part of a month's captures above ``above_minor`` is charged at ``ppm``."""

    above_minor: int
    ppm: int


class FeePlan(Struct, frozen=True, kw_only=True):
    """What a merchant pays. ``ppm``: millionths of the captured amount."""

    name: str
    merchant: str = ANY
    method: str = ANY
    currency: str = ANY
    ppm: int = 0
    fixed_minor: int = 0
    fixed_per: str = PER_PAYMENT
    minimum_minor: int = 0
    tiers: tuple[Tier, ...] = ()
    returned: str = RETURN_NONE
    disputes: str = DISPUTES_HELD


class GatewayCost(Struct, frozen=True, kw_only=True):
    """What a gateway takes of each capture; ``returned`` where it gives that back on a refund."""

    gateway: str = ANY
    method: str = ANY
    currency: str = ANY
    ppm: int = 0
    fixed_minor: int = 0
    returned: bool = False


class FeeSchedule(Struct, frozen=True, kw_only=True):
    """One version of the whole document, in force from a time on."""

    version: int
    effective_from_ms: int
    plans: tuple[FeePlan, ...] = ()
    costs: tuple[GatewayCost, ...] = ()

    def plan_for(self, merchant: str, method: str, currency: str) -> FeePlan | None:
        """The most exact plan, or None: then nothing is charged."""
        best: FeePlan | None = None
        best_rank = -1
        for plan in self.plans:
            rank = _rank(
                (plan.merchant, merchant), (plan.method, method), (plan.currency, currency)
            )
            if rank > best_rank:
                best, best_rank = plan, rank
        return best

    def plan_named(self, name: str) -> FeePlan | None:
        return next((plan for plan in self.plans if plan.name == name), None)

    def cost_for(self, gateway: str, method: str, currency: str) -> GatewayCost | None:
        best: GatewayCost | None = None
        best_rank = -1
        for cost in self.costs:
            rank = _rank((cost.gateway, gateway), (cost.method, method), (cost.currency, currency))
            if rank > best_rank:
                best, best_rank = cost, rank
        return best


class Terms(Struct, frozen=True):
    """All versions of the schedule, oldest first."""

    schedules: tuple[FeeSchedule, ...] = ()

    def at(self, time_ms: int) -> FeeSchedule | None:
        """The version in force at a time, or None before the first."""
        found = None
        for schedule in self.schedules:
            if schedule.effective_from_ms <= time_ms:
                found = schedule
        return found

    def version(self, number: int) -> FeeSchedule | None:
        return next((s for s in self.schedules if s.version == number), None)


def terms_of(schedules: Sequence[FeeSchedule]) -> Terms:
    """Of two versions from the same time on the later one counts."""
    return Terms(tuple(sorted(schedules, key=lambda s: (s.effective_from_ms, s.version))))


def read_schedule(
    document: Mapping[str, Any], *, version: int = 1, effective_from_ms: int = 0
) -> FeeSchedule:
    """The schedule of a document; UserError with the place of what is wrong in it."""
    _only(document, "the document", ("plans", "gateway_costs"))
    plans = tuple(
        _plan(each, f"plans[{n}]") for n, each in enumerate(_list(document, "plans", "plans"))
    )
    costs = tuple(
        _cost(each, f"gateway_costs[{n}]")
        for n, each in enumerate(_list(document, "gateway_costs", "gateway_costs"))
    )
    _unique([plan.name for plan in plans], "two plans are named {}")
    _unique([f"{p.merchant}, {p.method}, {p.currency}" for p in plans], "two plans are for {}")
    _unique(
        [f"{c.gateway}, {c.method}, {c.currency}" for c in costs], "two gateway costs are for {}"
    )
    return FeeSchedule(
        version=version, effective_from_ms=effective_from_ms, plans=plans, costs=costs
    )


def _plan(given: Mapping[str, Any], at: str) -> FeePlan:
    _only(
        given,
        at,
        ("name", "merchant", "method", "currency", "percentage", "fixed_minor", "fixed_per",
         "minimum_minor", "tiers", "returned", "disputes"),
    )  # fmt: skip
    name = given.get("name")
    if not isinstance(name, str) or not valid_id(name):
        raise _wrong(at, "needs a name of 1 to 64 of A-Za-z0-9._-")
    tiers = tuple(
        _tier(each, f"{at}.tiers[{n}]") for n, each in enumerate(_list(given, "tiers", at))
    )
    above = [tier.above_minor for tier in tiers]
    if above != sorted(set(above)) or (above and above[0] <= 0):
        raise _wrong(at, "its tiers must begin above 0 and rise")
    plan = FeePlan(
        name=name,
        merchant=_who(given, "merchant", at),
        method=_who(given, "method", at),
        currency=_currency(given, at),
        ppm=_ppm(given, "percentage", at),
        fixed_minor=_minor(given, "fixed_minor", at),
        fixed_per=_one_of(given, "fixed_per", (PER_PAYMENT, PER_CAPTURE), at),
        minimum_minor=_minor(given, "minimum_minor", at),
        tiers=tiers,
        returned=_one_of(given, "returned", (RETURN_NONE, RETURN_PERCENTAGE, RETURN_ALL), at),
        disputes=_one_of(given, "disputes", (DISPUTES_HELD, DISPUTES_MERCHANT), at),
    )
    if plan.currency == ANY and (plan.fixed_minor or plan.minimum_minor or plan.tiers):
        raise _wrong(at, "amounts need a currency: a plan of any currency has a percentage only")
    return plan


def _tier(given: Mapping[str, Any], at: str) -> Tier:
    _only(given, at, ("above_minor", "percentage"))
    return Tier(_minor(given, "above_minor", at), _ppm(given, "percentage", at))


def _cost(given: Mapping[str, Any], at: str) -> GatewayCost:
    _only(given, at, ("gateway", "method", "currency", "percentage", "fixed_minor", "returned"))
    returned = given.get("returned", False)
    if type(returned) is not bool:
        raise _wrong(at, "returned is true or false")
    cost = GatewayCost(
        gateway=_who(given, "gateway", at),
        method=_who(given, "method", at),
        currency=_currency(given, at),
        ppm=_ppm(given, "percentage", at),
        fixed_minor=_minor(given, "fixed_minor", at),
        returned=returned,
    )
    if cost.currency == ANY and cost.fixed_minor:
        raise _wrong(at, "amounts need a currency")
    return cost


def _rank(*pairs: tuple[str, str]) -> int:
    """How exactly a row fits, the first pair counting most; -1 when it does not."""
    rank = 0
    for wanted, found in pairs:
        if wanted not in (ANY, found):
            return -1
        rank = rank * 2 + (wanted != ANY)
    return rank


def _list(given: Mapping[str, Any], name: str, at: str) -> Sequence[Mapping[str, Any]]:
    found = given.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise _wrong(at, f"{name} is a list of tables")
    return found


def _only(given: Mapping[str, Any], at: str, known: tuple[str, ...]) -> None:
    unknown = sorted(given.keys() - set(known))
    if unknown:
        raise _wrong(at, f"does not know {', '.join(unknown)}; known are {', '.join(known)}")


def _who(given: Mapping[str, Any], name: str, at: str) -> str:
    found = given.get(name, ANY)
    if not isinstance(found, str) or (found != ANY and not valid_id(found)):
        raise _wrong(at, f"{name} is an id, or * for any")
    return found


def _currency(given: Mapping[str, Any], at: str) -> str:
    found = given.get("currency", ANY)
    if found != ANY and found not in MINOR_UNITS:
        raise _wrong(at, "currency is an ISO 4217 code, or * for any")
    return str(found)


def _minor(given: Mapping[str, Any], name: str, at: str) -> int:
    found = given.get(name, 0)
    if type(found) is not int or not 0 <= found <= _MINOR_MAX:
        raise _wrong(at, f"{name} is an integer in minor units, not negative")
    return found


def _ppm(given: Mapping[str, Any], name: str, at: str) -> int:
    """A percentage as text, since a number of a document may not be exact."""
    found = given.get(name, "0")
    match = _PERCENT.fullmatch(found) if isinstance(found, str) else None
    if match is None:
        raise _wrong(at, f'{name} is text with at most four decimals, as "2.9"')
    ppm = int(match[1]) * 10_000 + int((match[2] or "").ljust(4, "0"))
    if ppm > MILLION:
        raise _wrong(at, f"{name} is more than 100")
    return ppm


def _one_of(given: Mapping[str, Any], name: str, choices: tuple[str, ...], at: str) -> str:
    found = given.get(name, choices[0])
    if found not in choices:
        raise _wrong(at, f"{name} is one of {', '.join(choices)}")
    return str(found)


def _unique(names: Sequence[str], said: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"the fee schedule is wrong: {said.format(twice[0])}.")


def _wrong(at: str, what: str) -> UserError:
    return UserError(f"the fee schedule is wrong: {at} {what}.")

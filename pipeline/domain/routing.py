"""Which gateway gets a charge, and why: the same facts and the same health choose the same one.

First who may have it at all: the gateways that serve the payment, without those the merchant will
not have, within the first rule that matches, without those tried before. Then who is well: a
gateway whose breaker is open is left out while another is left, one that is coming back gets one
payment of twenty. Among the rest the criteria of the rule (or of the routes) go one after the
other, each keeping the best by it; what is still undecided in the end is decided by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol
from zlib import crc32

from msgspec import Struct

from pipeline.domain.model import Order, Payment
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.routes import (
    COST,
    NO_ROUTES,
    PRIORITY,
    SPLIT,
    SUCCESS_RATE,
    AmountRange,
    Health,
    MerchantRoute,
    Rate,
    RouteRule,
)

# A gateway on trial gets one payment of so many: at 200 orders/s ten a second, which shows within
# a second whether it is back, and makes few wait if it is not.
TRIAL_ONE_OF = 20
# Success rates differ by chance: at 200 results and 90 % by 4 points (two standard deviations).
# Only what is further behind the best than this is behind.
RATE_MARGIN_PERCENT = 5
# A sentence for people: more names than these are not read.
_NAMES_MAX = 4

_NO_WISHES = MerchantRoute()
_EVERYTHING = RouteRule(name="")


class RouteFacts(Struct, frozen=True, kw_only=True, gc=False):
    """What of a payment decides about its gateway."""

    payment_id: str
    merchant_id: str
    currency: str
    amount_minor: int
    payment_method: str = "card"
    country: str | None = None
    instrument_token: str = ""


class Route(Struct, frozen=True):
    """The gateway, and in one sentence why it and no other."""

    profile: GatewayProfile
    because: str


class _Limits(Protocol):
    """What gateways and rules both limit; None limits nothing."""

    @property
    def currencies(self) -> frozenset[str] | None: ...
    @property
    def methods(self) -> frozenset[str] | None: ...
    @property
    def countries(self) -> frozenset[str] | None: ...
    @property
    def merchants(self) -> frozenset[str] | None: ...
    @property
    def amounts(self) -> Mapping[str, AmountRange]: ...


def route(
    policy: Policy,
    facts: RouteFacts,
    tried: Collection[str] = (),
    health: Health | None = None,
) -> Route | None:
    """The gateway for the next attempt, or None when no eligible one is left untried.

    ``health`` is the policy's unless another is given.
    """
    if len(policy.gateways) == 1:
        # Most installations, at every order: nothing to choose.
        only = policy.gateways[0]
        if policy.routes is NO_ROUTES and only.name not in tried and serving(policy, facts):
            return Route(only, f"{only.name}: the only gateway there is")
    health = policy.health if health is None else health
    eligible = serving(policy, facts)
    rule = _EVERYTHING
    for each in policy.routes.rules:
        if _within(each, facts) and _begins(facts.instrument_token, each.token_prefixes):
            rule = each
            break
    wishes = policy.routes.merchants.get(facts.merchant_id, _NO_WISHES)
    allowed = [
        profile
        for profile in eligible
        if profile.name not in wishes.never
        and (rule.gateways is None or profile.name in rule.gateways)
    ]
    left = [profile for profile in allowed if profile.name not in tried]
    if not left:
        return None
    well, unwell = _by_health(left, facts, health)
    chosen, why = _narrowed(policy, rule, wishes, facts, well, health)
    if len(eligible) == 1:
        why = f"the only one that serves {facts.currency} by {facts.payment_method} here"
    parts = [f"{chosen.name}: {why}"]
    if rule.name:
        parts.append(f"by rule {rule.name}")
    if unwell:
        parts.append(unwell)
    if len(allowed) > len(left):
        before = [profile.name for profile in allowed if profile.name in tried]
        parts.append(f"tried before: {_names(before)}")
    return Route(chosen, "; ".join(parts))


def facts_of(payment: Order | Payment, payment_id: str, token: str | None = None) -> RouteFacts:
    """The facts of an order or payment; ``token`` where another instrument is charged now."""
    return RouteFacts(
        payment_id=payment_id,
        merchant_id=payment.merchant_id,
        currency=payment.currency,
        amount_minor=payment.amount_minor,
        payment_method=payment.payment_method,
        country=payment.country,
        instrument_token=payment.instrument_token if token is None else token,
    )


def serves_currency(policy: Policy, merchant_id: str, currency: str) -> bool:
    """Whether any gateway takes this merchant's payments in this currency."""
    return any(
        (g.currencies is None or currency in g.currencies)
        and (g.merchants is None or merchant_id in g.merchants)
        for g in policy.gateways
    )


def serving(policy: Policy, facts: RouteFacts) -> list[GatewayProfile]:
    """The gateways that could take this payment, whatever rules and health say, by name.

    A token that begins as some gateway's do lives there, and no other gateway could use it.
    """
    homes = [g for g in policy.gateways if g.token_prefixes]
    token = facts.instrument_token
    at_home = [g for g in homes if token.startswith(g.token_prefixes)]
    able = at_home if at_home else [g for g in policy.gateways if not g.token_prefixes]
    found = [g for g in able if _within(g, facts)]
    if len(found) > 1:
        found.sort(key=_name)
    return found


def profile_of(policy: Policy, gateway: str) -> GatewayProfile | None:
    """The profile of a gateway by its name, or None when it was taken out of the policy."""
    for profile in policy.gateways:
        if profile.name == gateway:
            return profile
    return None


def _within(limits: _Limits, facts: RouteFacts) -> bool:
    if limits.currencies is not None and facts.currency not in limits.currencies:
        return False
    if limits.merchants is not None and facts.merchant_id not in limits.merchants:
        return False
    if limits.methods is not None and facts.payment_method not in limits.methods:
        return False
    if limits.countries is not None and facts.country not in limits.countries:
        return False
    if limits.amounts:
        amounts = limits.amounts.get(facts.currency)
        return amounts is None or amounts.holds(facts.amount_minor)
    return True


def _begins(token: str, prefixes: tuple[str, ...] | None) -> bool:
    return prefixes is None or token.startswith(prefixes)


def _by_health(
    left: list[GatewayProfile], facts: RouteFacts, health: Health
) -> tuple[list[GatewayProfile], str | None]:
    """Those to choose from, and what is to be said about the others."""
    if not health.down and not health.on_trial:
        return left, None
    trial = crc32(f"trial:{facts.payment_id}".encode()) % TRIAL_ONE_OF == 0
    on_trial = [g for g in left if g.name in health.on_trial]
    if trial and on_trial:
        return on_trial, f"on trial after an outage with one payment of {TRIAL_ONE_OF}"
    well = [g for g in left if g.name not in health.down and g.name not in health.on_trial]
    unwell = [g.name for g in left if g not in well]
    if not unwell:
        return left, None
    if well:
        return well, f"left out, not answering: {_names(unwell)}"
    return on_trial or left, f"nobody better is left while {_names(unwell)} is not answering"


def _narrowed(
    policy: Policy,
    rule: RouteRule,
    wishes: MerchantRoute,
    facts: RouteFacts,
    among: list[GatewayProfile],
    health: Health,
) -> tuple[GatewayProfile, str]:
    """The one gateway that is left, and what decided it last."""
    if len(among) == 1:
        return among[0], "the only one left to choose from"
    for wish in wishes.prefer:
        for profile in among:
            if profile.name == wish:
                return profile, f"{facts.merchant_id} prefers it to {_others(among, profile)}"
    own = [g for g in among if g.merchants is not None]
    if own and len(own) < len(among):
        if len(own) == 1:
            return own[0], f"{facts.merchant_id}'s own gateway"
        among = own
    why = ""
    for criterion in rule.order_by or policy.routes.order_by:
        best, said = _CRITERIA[criterion](among, facts, rule, health)
        if len(best) < len(among):
            why = said
            among = best
        if len(among) == 1:
            return among[0], why
    rest = f"first by name of {_names([g.name for g in among])}"
    return among[0], f"{why}, and {rest}" if why else rest


Criterion = Callable[
    [list[GatewayProfile], RouteFacts, RouteRule, Health], tuple[list[GatewayProfile], str]
]


def _priority(
    among: list[GatewayProfile], facts: RouteFacts, rule: RouteRule, health: Health
) -> tuple[list[GatewayProfile], str]:
    first = min([g.priority for g in among])
    best = [g for g in among if g.priority == first]
    return best, f"priority {first} comes before {_others(among, *best)}"


def _success_rate(
    among: list[GatewayProfile], facts: RouteFacts, rule: RouteRule, health: Health
) -> tuple[list[GatewayProfile], str]:
    rates: dict[str, Rate] = {g.name: health.rates[g.name] for g in among if g.name in health.rates}
    if not rates:
        return among, ""
    top = max([rate.percent for rate in rates.values()])
    # Whoever is too little known to be judged stays in, or would never become known.
    best = [
        g
        for g in among
        if g.name not in rates or rates[g.name].percent >= top - RATE_MARGIN_PERCENT
    ]
    behind = [f"{g.name} {rates[g.name].percent} %" for g in among if g not in best]
    return best, f"approves {top} % lately, against {_names(behind)}"


def _split(
    among: list[GatewayProfile], facts: RouteFacts, rule: RouteRule, health: Health
) -> tuple[list[GatewayProfile], str]:
    given = rule.weights
    weights = [g.weight if given is None else given.get(g.name) for g in among]
    if all(weight is None for weight in weights):
        return among, ""
    # Where some have a weight, one without has none.
    shares = [weight or 0 for weight in weights]
    total = sum(shares)
    if total == 0:
        return among, ""
    draw = crc32(f"split:{facts.payment_id}".encode()) % total
    for profile, share in zip(among, shares, strict=True):
        if draw < share:
            return [profile], f"its share of {share} in {total} against {_others(among, profile)}"
        draw -= share
    return among, ""


def _cost(
    among: list[GatewayProfile], facts: RouteFacts, rule: RouteRule, health: Health
) -> tuple[list[GatewayProfile], str]:
    costs = {
        g.name: g.fees[facts.currency].of(facts.amount_minor)
        for g in among
        if facts.currency in g.fees
    }
    if not costs:
        return among, ""
    # A gateway whose fee is not known may be dearer than all.
    least = min(costs.values())
    best = [g for g in among if costs.get(g.name) == least]
    dearer = [f"{g.name} {costs.get(g.name, 'not known')}" for g in among if g not in best]
    return best, f"costs {least} minor units, against {_names(dearer)}"


_CRITERIA: Mapping[str, Criterion] = {
    PRIORITY: _priority,
    SUCCESS_RATE: _success_rate,
    SPLIT: _split,
    COST: _cost,
}


def _name(profile: GatewayProfile) -> str:
    return profile.name


def _others(among: list[GatewayProfile], *without: GatewayProfile) -> str:
    return _names([g.name for g in among if g not in without])


def _names(names: list[str]) -> str:
    if len(names) > _NAMES_MAX:
        return f"{', '.join(names[:_NAMES_MAX])} and {len(names) - _NAMES_MAX} more"
    return ", ".join(names)

"""Routing rules as data: read, checked, and laid over the configured gateways.

One document says everything that may change without a restart: what each gateway takes, its
priority, share, fees and limits; rules; merchants' own wishes. ``routed`` takes it whole or refuses
it with everything that is wrong with it, so that what is in force is always a whole one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType, field
from msgspec.structs import asdict, replace

from pipeline.domain.breaker import BreakerRule
from pipeline.domain.money import MINOR_UNITS
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.routes import (
    CRITERIA,
    DEFAULT_ORDER,
    AmountRange,
    Fee,
    MerchantRoute,
    RouteRule,
    Routes,
)

# The key of the control topic under which this document stands.
ROUTING: Final = "routing"

# More is a slip of the pen. A breaker keeps the latest calls, and adds up its times.
_BREAKER_CALLS_MAX: Final = 10_000
_BREAKER_MS_MAX: Final = 86_400_000


class RoutesRefused(Exception):
    """The document cannot be used; ``problems`` are sentences, one for each thing wrong."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class GatewayRoute(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the document says of one gateway; what it leaves out stays as configured."""

    currencies: frozenset[str] | UnsetType | None = UNSET
    methods: frozenset[str] | UnsetType | None = UNSET
    countries: frozenset[str] | UnsetType | None = UNSET
    merchants: frozenset[str] | UnsetType | None = UNSET
    amounts: Mapping[str, AmountRange] | UnsetType = UNSET
    token_prefixes: tuple[str, ...] | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    weight: int | UnsetType | None = UNSET
    fees: Mapping[str, Fee] | UnsetType = UNSET
    concurrency_max: int | UnsetType | None = UNSET
    rate_per_s: float | UnsetType | None = UNSET
    burst: int | UnsetType | None = UNSET
    breaker: Mapping[str, int] | UnsetType = UNSET


class RoutesDocument(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document. ``must_serve``: currencies that some gateway has to take."""

    gateways: Mapping[str, GatewayRoute] = field(default_factory=dict)
    rules: tuple[RouteRule, ...] = ()
    merchants: Mapping[str, MerchantRoute] = field(default_factory=dict)
    order_by: tuple[str, ...] = DEFAULT_ORDER
    must_serve: tuple[str, ...] = ()


def read_routes(given: str | Mapping[str, Any]) -> RoutesDocument:
    """A document from JSON text, or from what a TOML file holds; RoutesRefused says what is not
    a document about it."""
    try:
        if isinstance(given, str):
            return msgspec.json.decode(given.encode(), type=RoutesDocument)
        return msgspec.convert(given, RoutesDocument)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RoutesRefused([f"it cannot be read: {error}"]) from error


def routed(policy: Policy, document: RoutesDocument, *, version: int = 0) -> Policy:
    """The policy with the document laid over it; RoutesRefused when it is not sound."""
    profiles, problems = _profiles(policy.gateways, document.gateways)
    _check_gateways(profiles, problems)
    _check_rules(document, {g.name: g for g in profiles}, problems)
    for currency in document.must_serve:
        _check_currency("must_serve", currency, problems)
        if not any(g.currencies is None or currency in g.currencies for g in profiles):
            problems.append(f"must_serve: no gateway takes {currency}")
    if problems:
        raise RoutesRefused(problems)
    routes = Routes(
        rules=document.rules,
        merchants=document.merchants,
        order_by=document.order_by,
        version=version,
    )
    return replace(policy, gateways=profiles, routes=routes)


def _profiles(
    configured: tuple[GatewayProfile, ...], said: Mapping[str, GatewayRoute]
) -> tuple[tuple[GatewayProfile, ...], list[str]]:
    problems = [
        f"gateways.{name}: there is no such gateway; configured are "
        f"{', '.join(sorted(g.name for g in configured))}"
        for name in said
        if name not in {g.name for g in configured}
    ]
    profiles = []
    for profile in configured:
        changes = {}
        if profile.name in said:
            changes = {n: v for n, v in asdict(said[profile.name]).items() if v is not UNSET}
        rule = changes.pop("breaker", None)
        if rule is not None:
            try:
                changes["breaker"] = msgspec.convert(
                    {**asdict(profile.breaker), **rule}, BreakerRule
                )
            except msgspec.ValidationError as error:
                problems.append(f"gateways.{profile.name}.breaker: {error}")
            unknown = sorted(set(rule) - set(asdict(profile.breaker)))
            if unknown:
                problems.append(
                    f"gateways.{profile.name}.breaker: there is no {', '.join(unknown)}"
                )
        profiles.append(replace(profile, **changes) if changes else profile)
    return tuple(profiles), problems


def _check_gateways(profiles: tuple[GatewayProfile, ...], problems: list[str]) -> None:
    weights = {g.name: g.weight for g in profiles if g.weight is not None}
    if weights and not sum(weights.values()):
        problems.append(
            f"gateways: nobody has a share, since the weight of {', '.join(sorted(weights))} is 0"
        )
    for g in profiles:
        where = f"gateways.{g.name}"
        _check_limits(where, g, problems)
        _check_weight(where, g.weight, problems)
        for currency, fee in g.fees.items():
            _check_currency(f"{where}.fees", currency, problems)
            if fee.basis_points < 0 or fee.fixed_minor < 0:
                problems.append(f"{where}.fees.{currency}: a fee must not be negative")
        if "" in g.token_prefixes:
            problems.append(f"{where}.token_prefixes: an empty one would be every token's")
        if g.concurrency_max is not None and g.concurrency_max < 1:
            problems.append(f"{where}.concurrency_max must be 1 or more, not {g.concurrency_max}")
        # `not >` refuses a NaN as well.
        if g.rate_per_s is not None and not 0 < g.rate_per_s <= 1_000_000:
            problems.append(f"{where}.rate_per_s must be above 0, not {g.rate_per_s}")
        if g.burst is not None and g.burst < 1:
            problems.append(f"{where}.burst must be 1 or more, not {g.burst}")
        b = g.breaker
        if not 1 <= b.trouble_percent <= 100:
            problems.append(f"{where}.breaker.trouble_percent must be 1 to 100")
        for name in asdict(b):
            most = _BREAKER_MS_MAX if "_ms" in name else _BREAKER_CALLS_MAX
            if name == "trouble_percent" or (name == "usual_ms" and b.usual_ms is None):
                continue
            if not 1 <= getattr(b, name) <= most:
                problems.append(f"{where}.breaker.{name} must be 1 to {most:,}")


def _check_rules(
    document: RoutesDocument, profiles: Mapping[str, GatewayProfile], problems: list[str]
) -> None:
    _check_order("order_by", document.order_by, problems)
    for merchant, wishes in document.merchants.items():
        for name in (*wishes.prefer, *sorted(wishes.never)):
            if name not in profiles:
                problems.append(f"merchants.{merchant}: there is no gateway {name}")
        if set(profiles) <= wishes.never:
            problems.append(f"merchants.{merchant}: no gateway is left for it")
    names: set[str] = set()
    for index, rule in enumerate(document.rules):
        where = f"rules[{index}] ({rule.name})"
        if not rule.name.strip():
            problems.append(f"rules[{index}] needs a name")
        if rule.name in names:
            problems.append(f"{where}: there is an earlier rule of that name")
        names.add(rule.name)
        _check_limits(where, rule, problems)
        if rule.order_by is not None:
            _check_order(f"{where}.order_by", rule.order_by, problems)
        for name in (*(rule.gateways or ()), *(rule.weights or {})):
            if name not in profiles:
                problems.append(f"{where}: there is no gateway {name}")
        if rule.gateways == ():
            problems.append(f"{where}: no gateway is left by it")
        for name in rule.weights or {}:
            if rule.gateways is not None and name not in rule.gateways:
                problems.append(f"{where}.weights: {name} is none of its gateways")
        for name, weight in (rule.weights or {}).items():
            _check_weight(f"{where}.weights.{name}", weight, problems)
        if rule.weights is not None and not sum(rule.weights.values()):
            problems.append(f"{where}.weights: nobody has a share")
        earlier = next((e for e in document.rules[:index] if _covers(e, rule)), None)
        if earlier is not None:
            problems.append(f"{where} can never match: {earlier.name} takes everything before it")
        allowed = [g for n, g in profiles.items() if rule.gateways is None or n in rule.gateways]
        if allowed and not any(_meet(g, rule) for g in allowed):
            problems.append(f"{where} can never match: none of its gateways takes such payments")
        for currency in sorted(rule.currencies or ()):
            if allowed and not any(
                g.currencies is None or currency in g.currencies for g in allowed
            ):
                problems.append(f"{where}: none of its gateways takes {currency}")


def _check_limits(where: str, limits: GatewayProfile | RouteRule, problems: list[str]) -> None:
    for name in ("currencies", "methods", "countries", "merchants", "token_prefixes"):
        if getattr(limits, name) == frozenset() or (
            isinstance(limits, RouteRule) and getattr(limits, name) == ()
        ):
            problems.append(f"{where}.{name} is empty: it can never match; leave it out for all")
    for currency in sorted(limits.currencies or ()):
        _check_currency(f"{where}.currencies", currency, problems)
    for country in sorted(limits.countries or ()):
        if not (len(country) == 2 and country.isascii() and country.isupper()):
            problems.append(f"{where}.countries: {country} is no country, such as GB")
    for currency, amounts in limits.amounts.items():
        _check_currency(f"{where}.amounts", currency, problems)
        if amounts.max_minor is not None and amounts.max_minor < amounts.min_minor:
            problems.append(f"{where}.amounts.{currency} can never match: max is below min")
        elif amounts.max_minor is not None and amounts.max_minor < 1:
            problems.append(f"{where}.amounts.{currency} can never match: amounts begin with 1")


def _check_currency(where: str, currency: str, problems: list[str]) -> None:
    if currency not in MINOR_UNITS:
        problems.append(f"{where}: {currency} is no ISO 4217 currency")


def _check_weight(where: str, weight: int | None, problems: list[str]) -> None:
    if weight is not None and not 0 <= weight <= 1_000_000:
        problems.append(f"{where}: a weight is 0 to 1,000,000, not {weight}")


def _check_order(where: str, order: tuple[str, ...], problems: list[str]) -> None:
    for criterion in order:
        if criterion not in CRITERIA:
            problems.append(f"{where}: {criterion!r} is none of {', '.join(CRITERIA)}")
    if len(set(order)) < len(order):
        problems.append(f"{where}: a criterion stands there twice")


def _covers(earlier: RouteRule, later: RouteRule) -> bool:
    """Whether everything that ``later`` matches is matched by ``earlier`` already.

    Told only where it is certain: limits by amount are compared for equality.
    """
    for name in ("currencies", "methods", "countries", "merchants"):
        mine, its = getattr(earlier, name), getattr(later, name)
        if mine is not None and (its is None or not its <= mine):
            return False
    if earlier.amounts and earlier.amounts != later.amounts:
        return False
    prefixes = earlier.token_prefixes
    return prefixes is None or (
        later.token_prefixes is not None
        and all(each.startswith(prefixes) for each in later.token_prefixes)
    )


def _meet(profile: GatewayProfile, rule: RouteRule) -> bool:
    """Whether there can be a payment that the rule matches and the gateway takes."""
    for name in ("currencies", "methods", "countries", "merchants"):
        mine, its = getattr(profile, name), getattr(rule, name)
        if mine is not None and its is not None and not mine & its:
            return False
    if rule.token_prefixes is not None and profile.token_prefixes:
        return any(
            ours.startswith(its) or its.startswith(ours)
            for ours in profile.token_prefixes
            for its in rule.token_prefixes
        )
    return True

"""The nouns of routing: fees, limits of what a gateway takes, rules, and gateways' health."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct, field

# What a choice may go by, each after the other until one gateway is left.
PRIORITY: Final = "priority"
SUCCESS_RATE: Final = "success_rate"
SPLIT: Final = "split"
COST: Final = "cost"
CRITERIA: Final = (PRIORITY, SUCCESS_RATE, SPLIT, COST)
DEFAULT_ORDER: Final = (PRIORITY, SPLIT, COST)


class Fee(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a gateway takes of a charge: hundredths of a per cent of it, and a fixed part."""

    basis_points: int = 0
    fixed_minor: int = 0

    def of(self, amount_minor: int) -> int:
        """The fee in minor units, half a unit rounded up."""
        return (amount_minor * self.basis_points + 5_000) // 10_000 + self.fixed_minor


class AmountRange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Both ends are inside; None has no end."""

    min_minor: int = 0
    max_minor: int | None = None

    def holds(self, amount_minor: int) -> bool:
        return amount_minor >= self.min_minor and (
            self.max_minor is None or amount_minor <= self.max_minor
        )


class RouteRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which gateways may have the payments it matches, and what decides among them.

    None matches everything; ``amounts`` limits the currencies it names. ``gateways`` None leaves
    all; ``order_by`` None keeps the routes' own order; ``weights`` go before the gateways' own.
    """

    name: str
    currencies: frozenset[str] | None = None
    methods: frozenset[str] | None = None
    countries: frozenset[str] | None = None
    merchants: frozenset[str] | None = None
    amounts: Mapping[str, AmountRange] = field(default_factory=dict)
    token_prefixes: tuple[str, ...] | None = None
    gateways: tuple[str, ...] | None = None
    order_by: tuple[str, ...] | None = None
    weights: Mapping[str, int] | None = None


class MerchantRoute(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One merchant's own wishes: these first, in this order; those never."""

    prefer: tuple[str, ...] = ()
    never: frozenset[str] = frozenset()


class Routes(Struct, frozen=True, kw_only=True):
    """The rules of one installation; the first rule that matches decides.

    ``version`` is that of the control entry they came by, 0 for the configuration's own.
    """

    rules: tuple[RouteRule, ...] = ()
    merchants: Mapping[str, MerchantRoute] = field(default_factory=dict)
    order_by: tuple[str, ...] = DEFAULT_ORDER
    version: int = 0


class Rate(Struct, frozen=True):
    """How many of a gateway's latest charges were approved."""

    approved: int
    total: int

    @property
    def percent(self) -> int:
        return 100 * self.approved // self.total if self.total else 100


class Health(Struct, frozen=True, kw_only=True):
    """How gateways do at the moment of a decision.

    ``down``: not to be chosen while another is left. ``on_trial``: coming back, gets a few.
    ``rates`` holds only gateways with enough results to tell.
    """

    down: frozenset[str] = frozenset()
    on_trial: frozenset[str] = frozenset()
    rates: Mapping[str, Rate] = field(default_factory=dict)


HEALTHY: Final = Health()
NO_ROUTES: Final = Routes()

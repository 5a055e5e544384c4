"""Risk rules and what they make of one order: allow, review or reject, with the reasons.

Pure: ``assess(rules, facts)`` is the same wherever and whenever it is asked. A rule says what it
looks for and what follows; a rule in shadow is decided and told but not acted on. What counts
(velocity, card testing) is not known here but comes with the facts: ``counters_of`` says what has
to be counted, ``risk_velocity`` counts it.

An identity that is missing is never counted as one: an order without a card's fingerprint meets no
rule about cards, whatever other orders without one there were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from pipeline.domain.model import Order, Payment, RiskCheck, RiskCounted, RiskCounter
from pipeline.domain.money import format_amount

# What follows, mildest first.
ALLOW: Final = "allow"
REVIEW: Final = "review"
REJECT: Final = "reject"
SEVERITY: Final[Mapping[str, int]] = {ALLOW: 0, REVIEW: 1, REJECT: 2}

# Types of rules.
AMOUNT: Final = "amount"
CURRENCY: Final = "currency"
BLOCKLIST: Final = "blocklist"
COUNTRY: Final = "country"
VELOCITY: Final = "velocity"
CARD_TESTING: Final = "card_testing"
COUNTING: Final = frozenset({VELOCITY, CARD_TESTING})

# What is counted by. A customer's id and a card's fingerprint are the merchant's own.
CARD: Final = "card"
CUSTOMER: Final = "customer"
MERCHANT: Final = "merchant"
IDENTITIES: Final = (CARD, CUSTOMER, MERCHANT)

# Put before a rule's name where it becomes the reason of a rejection.
REASON_PREFIX: Final = "risk_"
# Reason of a review without counts or without a permit.
COUNTS_MISSING: Final = "risk_counts_missing"


class Rule(Struct, frozen=True, kw_only=True):
    """One rule. Which fields a type needs and allows is checked where rules are read."""

    name: str
    type: str
    action: str
    shadow: bool = False
    # Only orders of these merchants; empty is every merchant.
    merchants: frozenset[str] = frozenset()
    # amount, velocity's sum and card_testing are about one currency.
    currency: str = ""
    amount_minor_max: int = 0
    # currency, country: what is allowed, or what is denied.
    allowed: frozenset[str] = frozenset()
    denied: frozenset[str] = frozenset()
    # country: whether an order that names none meets the rule.
    missing: bool = False
    # blocklist: which field, and its bad values.
    field: str = ""
    values: frozenset[str] = frozenset()
    # velocity, card_testing.
    by: str = ""
    window_ms: int = 0
    count_max: int = 0
    sum_minor_max: int = 0

    @property
    def counter(self) -> RiskCounter:
        """What a counting rule needs counted."""
        if self.type == CARD_TESTING:
            return RiskCounter(
                window_ms=self.window_ms,
                currency=self.currency,
                amount_minor_max=self.amount_minor_max,
            )
        return RiskCounter(window_ms=self.window_ms, currency=self.currency)


class RiskRules(Struct, frozen=True):
    """All rules of an installation, in the order in which their reasons are told."""

    rules: tuple[Rule, ...] = ()

    @property
    def acting(self) -> RiskRules:
        """Those that are acted on."""
        return RiskRules(tuple(rule for rule in self.rules if not rule.shadow))

    @property
    def awaited(self) -> frozenset[str]:
        """Kinds of identities whose counts an order waits for: no order waits for a shadow."""
        return frozenset(r.by for r in self.rules if r.type in COUNTING and not r.shadow)


class RiskFacts(Struct, frozen=True, kw_only=True):
    """What rules may look at. ``counted`` holds the answers that are there.

    Whom they name is compared without blanks around it, as instruments are everywhere.
    """

    merchant_id: str
    amount_minor: int
    currency: str
    instrument_token: str
    customer_id: str | None = None
    card_fingerprint: str | None = None
    country: str | None = None
    counted: tuple[RiskCounted, ...] = ()

    def named(self, field: str) -> str | None:
        """A field that names somebody; what is missing or blank names nobody."""
        value: str | None = getattr(self, field)
        return None if value is None else value.strip() or None


class Reason(Struct, frozen=True):
    """A rule that an order met, what follows from it, and what was seen, for people."""

    rule: str
    action: str
    seen: str


class Assessment(Struct, frozen=True):
    """``action`` is the severest of ``reasons``; ``shadow_reasons`` are told and change nothing."""

    action: str = ALLOW
    reasons: tuple[Reason, ...] = ()
    shadow_reasons: tuple[Reason, ...] = ()

    @property
    def reason(self) -> str | None:
        """The named reason of a review or rejection: the first rule that asked for it."""
        for reason in self.reasons:
            if reason.action == self.action:
                return f"{REASON_PREFIX}{reason.rule}"
        return None

    @property
    def detail(self) -> str | None:
        """Every reason as one line of text for a payment's history; None when there is none."""
        told = [f"{r.action} by {r.rule}: {r.seen}" for r in self.reasons]
        told += [f"in shadow, {r.action} by {r.rule}: {r.seen}" for r in self.shadow_reasons]
        return "; ".join(told) or None


_ALLOWED: Final = Assessment()


def assess(rules: RiskRules, facts: RiskFacts) -> Assessment:
    """What the rules make of an order: the severest action, and every reason for it."""
    reasons: list[Reason] = []
    shadow: list[Reason] = []
    for rule in rules.rules:
        if rule.merchants and facts.merchant_id not in rule.merchants:
            continue
        seen = _seen(rule, facts)
        if seen is not None:
            (shadow if rule.shadow else reasons).append(Reason(rule.name, rule.action, seen))
    if not reasons and not shadow:
        return _ALLOWED
    action = max((r.action for r in reasons), key=SEVERITY.__getitem__, default=ALLOW)
    return Assessment(action, tuple(reasons), tuple(shadow))


def counters_of(rules: RiskRules, facts: RiskFacts) -> dict[str, tuple[RiskCounter, ...]]:
    """What has to be counted for an order, by kind of identity; empty when nothing has to.

    Only counters that take the order: one that a rule leaves out is neither counted nor asked.
    """
    wanted: dict[str, set[RiskCounter]] = {}
    for rule in rules.rules:
        if rule.type not in COUNTING or (
            rule.merchants and facts.merchant_id not in rule.merchants
        ):
            continue
        if identity_of(rule.by, facts) is None:
            continue
        counter = rule.counter
        if counter.takes(facts.amount_minor, facts.currency):
            wanted.setdefault(rule.by, set()).add(counter)
    return {by: tuple(sorted(wanted[by])) for by in IDENTITIES if by in wanted}


def identity_of(by: str, facts: RiskFacts) -> str | None:
    """Whom an order is counted for, or None: what is missing or blank is nobody."""
    if by == CARD:
        return facts.named("card_fingerprint")
    if by == CUSTOMER:
        return facts.named("customer_id")
    return facts.merchant_id


def checks_of(
    payment: Payment,
    facts: RiskFacts,
    counters: Mapping[str, tuple[RiskCounter, ...]],
    operation_id: str = "",
) -> tuple[RiskCheck, ...]:
    """What asks for the counts of an order, or of a retry by its command's id."""
    return tuple(
        RiskCheck(
            merchant_id=payment.merchant_id,
            order_id=payment.order_id,
            payment_id=payment.payment_id,
            by=by,
            identity=identity_of(by, facts) or "",
            amount_minor=payment.amount_minor,
            currency=payment.currency,
            counters=counted,
            operation_id=operation_id,
        )
        for by, counted in counters.items()
    )


def facts_of(of: Order | Payment, counted: Sequence[RiskCounted] = ()) -> RiskFacts:
    """The facts of an order, or of the payment that it became."""
    return RiskFacts(
        merchant_id=of.merchant_id,
        amount_minor=of.amount_minor,
        currency=of.currency,
        instrument_token=of.instrument_token,
        customer_id=of.customer_id,
        card_fingerprint=of.card_fingerprint,
        country=of.country,
        counted=tuple(counted),
    )


def _seen(rule: Rule, facts: RiskFacts) -> str | None:
    """What makes the order meet the rule, or None. Never a token, an id or a fingerprint."""
    kind = rule.type
    if kind == AMOUNT:
        if facts.currency == rule.currency and facts.amount_minor > rule.amount_minor_max:
            amount, limit = facts.amount_minor, rule.amount_minor_max
            return f"{_money(amount, rule)} is over {_money(limit, rule)}"
        return None
    if kind == CURRENCY:
        return _listed("currency", facts.currency, rule)
    if kind == COUNTRY:
        if facts.country is None or not facts.country.strip():
            return "the order names no country" if rule.missing else None
        return _listed("country", facts.country.strip().upper(), rule)
    if kind == BLOCKLIST:
        value = facts.named(rule.field)
        if value is None:
            return None
        if (value.upper() if rule.field == COUNTRY else value) in rule.values:
            return f"its {rule.field} is on the list"
        return None
    return _over(rule, facts)


def _listed(what: str, value: str, rule: Rule) -> str | None:
    if value in rule.denied:
        return f"{what} {value} is denied"
    if rule.allowed and value not in rule.allowed:
        # Only the first letters: the text is the upstream system's.
        return f"{what} {value[:3]} is not among the allowed"
    return None


def _over(rule: Rule, facts: RiskFacts) -> str | None:
    counter = rule.counter
    if not counter.takes(facts.amount_minor, facts.currency):
        return None
    for counted in facts.counted:
        if counted.by != rule.by or (
            (counted.window_ms, counted.currency, counted.amount_minor_max)
            != (counter.window_ms, counter.currency, counter.amount_minor_max)
        ):
            continue
        small = "small " if rule.type == CARD_TESTING else ""
        within = f"of this {rule.by} within {_duration(rule.window_ms)}"
        if rule.count_max and counted.count > rule.count_max:
            return f"{counted.count} {small}orders {within}, over {rule.count_max}"
        if rule.sum_minor_max and counted.sum_minor > rule.sum_minor_max:
            total, limit = _money(counted.sum_minor, rule), _money(rule.sum_minor_max, rule)
            return f"{total} {within}, over {limit}"
    return None


def _money(amount_minor: int, rule: Rule) -> str:
    return format_amount(amount_minor, rule.currency)


def _duration(ms: int) -> str:
    for unit_ms, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")):
        if ms % unit_ms == 0:
            return f"{ms // unit_ms} {unit}"
    return f"{ms} ms"

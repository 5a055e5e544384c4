"""The rules that a simulated flow runs by: short patience, a customer who orders too often, a card
that is declined too often, and an instrument that somebody has to look at."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.domain.breaker import BreakerRule
from pipeline.domain.model import AttemptCap
from pipeline.domain.policy import DAY_MS, GatewayProfile, Policy
from pipeline.domain.risk_rules import read_rules
from tests.simulation.gateway import GatewayBooks
from tests.simulation.lives import WATCHED
from tests.simulation.plan import (
    AUTHORIZATION_S,
    AWAITING_ORDER_S,
    BUSY_MAX,
    DECLINES_MAX,
    Plan,
)

_RULES = read_rules(
    f"""
[[rule]]
name = "busy"
type = "velocity"
action = "reject"
by = "customer"
window_s = 86400
count_max = {BUSY_MAX}

[[rule]]
name = "watched"
type = "blocklist"
action = "review"
field = "instrument_token"
values = ["{WATCHED}"]
""",
    "the simulation",
)


# Of gateways that have trouble with one call of three all the time.
_CALM = BreakerRule(
    calls_min=60,
    trouble_percent=90,
    hanging_min=1_000,
    unreached_min=1_000,
    wait_ms_max=2_000,
    probes=1,
)


def policy_of(plan: Plan, books: Mapping[str, GatewayBooks]) -> Policy:
    """The policy of a run, over the gateways as they are."""
    return Policy(
        gateways=tuple(
            GatewayProfile(
                name=name,
                priority=index,
                grace_ms=int(plan.grace_s * 1000),
                key_retention_ms=int(each.retention_s * 1000),
                idempotent=each.idempotent,
                authorization_ms=int(AUTHORIZATION_S * 1000),
                breaker=BreakerRule() if plan.pace.nervous else _CALM,
            )
            for index, (name, each) in enumerate(books.items())
        ),
        customer_action_ms=60_000,
        pending_check_ms=60_000,
        # A gateway that has forgotten what it had called pending is given up after this.
        pending_max_ms=900_000,
        awaiting_order_ms=int(AWAITING_ORDER_S * 1000),
        review_ms=120_000,
        # In the first tier: within two minutes, then a person.
        inquiry_max=plan.pace.inquiries,
        risk=_RULES,
        count_cards=True,
        attempt_caps=(AttemptCap(name="declines", declines_max=DECLINES_MAX, window_ms=DAY_MS),),
    )

"""The gateways that the simulator can be: their formats, rules, prices and tempers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from pipeline.errors import UserError
from pipeline.gateways.simulator.faults import DECLINE_WEIGHTS, FaultPlan
from pipeline.gateways.simulator.operations import CAPTURE, REFUND
from pipeline.gateways.simulator.wires.base import GatewayWire
from pipeline.gateways.simulator.wires.legacy import LegacyWire
from pipeline.gateways.simulator.wires.northbank import NorthbankWire
from pipeline.gateways.simulator.wires.pacific import PacificWire
from pipeline.gateways.simulator.wires.plain import PlainWire

HOUR_MS = 60 * 60 * 1_000
DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class Personality:
    """One gateway's ways. ``currencies`` None takes all.

    ``grace_ms``: for so long after an operation an inquiry does not see it yet. ``pending``: kinds
    that are accepted first and succeed after the plan's ``pending_ms``. ``keeps_declines``: a
    declined payment is kept and found by inquiry. Fees: basis points of the amount, and a
    fixed part. A settlement report is of a day in ``time_zone``; its batches are named from
    ``batch_code`` on and paid ``payout_days`` business days later.
    """

    name: str
    wire: Callable[[str], GatewayWire]
    currencies: frozenset[str] | None = None
    idempotent: bool = True
    key_retention_ms: int = DAY_MS
    grace_ms: int = 0
    authorization_ms: int = 7 * DAY_MS
    fee_bps: int = 0
    fee_fixed_minor: int = 0
    decline_weights: Mapping[str, float] = field(default_factory=lambda: dict(DECLINE_WEIGHTS))
    pending: frozenset[str] = frozenset()
    keeps_declines: bool = False
    time_zone: str = "UTC"
    batch_code: str = "po_"
    payout_days: int = 1

    def fee_minor(self, amount_minor: int) -> int:
        """What the gateway keeps of a charge or capture, rounded half up, never more than all."""
        share = (amount_minor * self.fee_bps + 5_000) // 10_000
        return min(amount_minor, share + self.fee_fixed_minor)

    def plan(self, plan: FaultPlan) -> FaultPlan:
        """The plan with this gateway's own mix of declines, unless it names one."""
        if dict(plan.decline_weights) != dict(DECLINE_WEIGHTS):
            return plan
        return replace(plan, decline_weights=self.decline_weights)


PERSONALITIES: Mapping[str, Personality] = {
    each.name: each
    for each in (
        Personality("simulator", PlainWire, fee_bps=140, fee_fixed_minor=20),
        Personality(
            "northbank",
            NorthbankWire,
            currencies=frozenset({"GBP", "EUR", "CHF"}),
            key_retention_ms=7 * DAY_MS,
            grace_ms=500,
            authorization_ms=5 * DAY_MS,
            fee_bps=95,
            fee_fixed_minor=10,
            # A bank's own customers: short of money rather than stolen cards.
            decline_weights={
                "insufficient_funds": 8,
                "do_not_honor": 3,
                "expired_card": 2,
                "authentication_required": 1,
            },
            pending=frozenset({CAPTURE}),
            keeps_declines=True,
            time_zone="Europe/London",
            batch_code="NB",
            payout_days=1,
        ),
        Personality(
            "pacific",
            PacificWire,
            currencies=frozenset({"USD", "CAD", "AUD", "NZD", "JPY", "GBP", "EUR"}),
            key_retention_ms=HOUR_MS,
            grace_ms=1_000,
            authorization_ms=7 * DAY_MS,
            fee_bps=290,
            fee_fixed_minor=30,
            decline_weights={
                "do_not_honor": 6,
                "insufficient_funds": 3,
                "lost_card": 1,
                "stolen_card": 1,
                "processing_error": 2,
            },
            pending=frozenset({REFUND}),
            time_zone="America/Los_Angeles",
            batch_code="DEP-",
            payout_days=2,
        ),
        Personality(
            "legacy",
            LegacyWire,
            currencies=frozenset({"GBP", "USD", "EUR"}),
            idempotent=False,
            grace_ms=2_000,
            authorization_ms=3 * DAY_MS,
            fee_bps=60,
            fee_fixed_minor=0,
            decline_weights={"card_declined": 9, "expired_card": 1},
            time_zone="America/New_York",
            batch_code="LG",
            payout_days=3,
        ),
    )
}


def personality(name: str) -> Personality:
    """The gateway of this name; raises UserError that names the choices."""
    found = PERSONALITIES.get(name)
    if found is None:
        known = ", ".join(PERSONALITIES)
        raise UserError(f"there is no simulated gateway {name!r}; choose one of {known}.")
    return found

"""Disputes as a gateway has them: what a customer's bank does about a charge."""

from __future__ import annotations

from dataclasses import dataclass

# Lives of a dispute that a bank may lead it through. Those that come to a state twice, or leave an
# end again, can be told only where the gateway numbers its events.
ENDING_LIVES = (
    ("opened", "won"),
    ("opened", "lost"),
    ("inquiry", "opened", "lost"),
    ("inquiry",),
    ("opened", "won", "pre_arbitration", "lost"),
)
NUMBERED_LIVES = (
    ("opened", "won", "pre_arbitration", "won"),
    ("opened", "lost", "won"),
)
WITHDRAWN = frozenset({"opened", "pre_arbitration", "lost"})


@dataclass(frozen=True)
class DisputePlan:
    """``after_s``: of the money's move, ``apart_s``: between its events. ``share``: of what was
    taken. ``named``: notices carry the charge's reference. ``late_s``: how late notices are."""

    states: tuple[str, ...]
    after_s: float
    apart_s: float
    share: float = 1.0
    numbered: bool = True
    named: bool = True
    fee_minor: int = 0
    late_s: float = 30.0


class GatewayDispute:
    """One dispute in the gateway's books: what holds now, and what was told of it."""

    __slots__ = ("amount_minor", "dispute_id", "number", "plan", "reference", "request", "state")

    def __init__(
        self, dispute_id: str, plan: DisputePlan, request: object, reference: str, taken_minor: int
    ) -> None:
        self.dispute_id = dispute_id
        self.plan = plan
        # The charge or authorization that took the money, and its reference.
        self.request = request
        self.reference = reference
        self.amount_minor = max(1, int(taken_minor * plan.share))
        self.state = ""
        self.number = 0

    @property
    def withdrawn_minor(self) -> int:
        return self.amount_minor if self.state in WITHDRAWN else 0

    @property
    def fee_minor(self) -> int:
        """The highest fee that was told: an inquiry costs nothing."""
        states = self.plan.states[: self.number]
        return self.plan.fee_minor if any(state != "inquiry" for state in states) else 0

    def next(self) -> DisputeNotice:
        """The bank goes on; the notice of it, as it is now and stays however late it comes."""
        self.state = self.plan.states[self.number]
        self.number += 1
        return DisputeNotice(
            self,
            self.state,
            self.number if self.plan.numbered else None,
            0 if self.state == "inquiry" else self.plan.fee_minor,
        )

    @property
    def goes_on(self) -> bool:
        return self.number < len(self.plan.states)


@dataclass(frozen=True)
class DisputeNotice:
    dispute: GatewayDispute
    state: str
    sequence: int | None
    fee_minor: int

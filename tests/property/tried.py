"""What a referee has seen of one key: when it was sent, asked about and answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pipeline.domain.model import GatewayResult, PaymentRequest
from pipeline.domain.policy import Policy

MAIN: Final = ("charge", "authorize")
# An inquiry that ended so has asked nobody.
NOT_ASKED: Final = {"breaker_open", "rate_limited", "throttled"}

Name = tuple[str, int]


@dataclass
class Tried:
    """All that was seen of one key."""

    first: PaymentRequest
    began_ms: int
    # By try: when it was decided, and whether it only asks.
    decided: dict[int, int] = field(default_factory=dict)
    sendings: list[int] = field(default_factory=list)
    # By try: when its first result was appended, and that.
    answers: dict[int, tuple[int, GatewayResult]] = field(default_factory=dict)
    # What gateways said of it, by results and notices, the newest last.
    words: list[str] = field(default_factory=list)
    retries: int = 0
    resends: int = 0
    # The first sending of which its gateway has not said that it did not get it.
    open_from: int = 0

    @property
    def is_main(self) -> bool:
        return self.first.kind in MAIN

    @property
    def is_reversal(self) -> bool:
        return self.first.operation_id.startswith("late-")

    def lost_ms(self) -> int | None:
        """When the last sending was known to have been made: its append came before that."""
        last = self.sendings[-1]
        known = [at_ms for number, (at_ms, _) in self.answers.items() if number >= last]
        return min(known, default=None)

    def settled_ms(self, policy: Policy, grace_ms: int) -> int | None:
        """From when on nobody can send it, and the gateway shows it."""
        lost_ms = self.lost_ms()
        if lost_ms is None:
            return None
        return lost_ms + self.first.send_within_ms + policy.clock_skew_ms + grace_ms

    def not_found_asked_ms(self, source: object) -> int | None:
        """When it was asked what this input says its gateway did not know: by this question, or by
        an earlier one whose answer nobody waited for any more."""
        if not isinstance(source, GatewayResult) or source.kind != "inquire":
            return None
        decided_ms = self.decided.get(source.try_number, 0)
        if source.outcome == "not_found":
            return decided_ms
        if source.outcome == "unknown" and source.not_found_asked_at_ms:
            return min(decided_ms, source.not_found_asked_at_ms)
        return None

    def questions(self, *, since_sent: bool = False) -> int:
        """How often its gateway was asked, or since it was last sent; what a breaker or limit
        forbade asks nobody."""
        asked = set(self.decided) - set(self.sendings)
        if since_sent:
            asked = {number for number in asked if number > self.sendings[-1]}
        refused = {n for n in asked if n in self.answers and self.answers[n][1].code in NOT_ASKED}
        return len(asked - refused)

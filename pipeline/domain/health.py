"""How gateways do, learnt from their results: who is down, who comes back, who approves most.

Pure: the clock is the results' own append time. What a result says of its *gateway* is another
thing than what it says of its payment: a declined card is a gateway that works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pipeline.domain.answer import DECLINED, NOT_SENT, SUCCEEDED, UNKNOWN
from pipeline.domain.breaker import HALF_OPEN, OPEN, Breaker, BreakerRule
from pipeline.domain.routes import HEALTHY, Health, Rate
from pipeline.domain.window import SlidingWindow

# Codes of calls that were not made, to protect the gateway and the others in its lane.
BREAKER_OPEN: Final = "breaker_open"
THROTTLED: Final = "throttled"
RATE_LIMITED: Final = "rate_limited"
# Of them all: an inquiry that was not asked is none.
NOT_CALLED_CODES: Final = frozenset({BREAKER_OPEN, RATE_LIMITED, THROTTLED})
# Not made, since the worker has no such gateway. Its predecessor may have had it.
GATEWAY_NOT_CONFIGURED: Final = "gateway_not_configured"

# Unknown outcomes that say nothing against their gateway: a working one answers so, or it was not
# asked, or, with ``heard_pending``, the answer may have come in time and said less than is known.
_ALIVE: Final = frozenset(
    {
        "in_progress",
        "mismatched_answer",
        "idempotency_key_reused",
        "reference_missing",
        "reference_too_long",
        "reference_not_printable",
        RATE_LIMITED,
        THROTTLED,
        BREAKER_OPEN,
        GATEWAY_NOT_CONFIGURED,
        "killed_the_process",
        "effect_too_large",
        "possibly_sent",
        "heard_pending",
    }
)
# Requests that were not sent because nobody was there to take them.
UNREACHABLE: Final = frozenset({"connection_refused", "connect_timeout", "broken_connection"})

# A gateway that asks for a longer rest than this (Retry-After) gets no new payments until it is
# over, where another can have them. A shorter one is ordinary: it is over by the first or second
# retry, and routing would swing to and fro.
REST_MS_MAX: Final = 10_000

# Success rates change by the minute: issuers' troubles come and go, five minutes see them.
RATE_WINDOW_MS: Final = 300_000
# Fewer results than these are luck.
RATE_RESULTS_MIN: Final = 50
# Records of other partitions may be this far apart; a choice by health of half a second ago is
# as good, and a snapshot for each record would cost more than the choice.
SNAPSHOT_EVERY_MS: Final = 250

_APPROVALS: Final = frozenset({"charge", "authorize"})


def verdict(outcome: str, code: str | None) -> bool | None:
    """What an answer says of the gateway: True it works, False it is in trouble, None nothing."""
    if outcome == NOT_SENT:
        return False if code in UNREACHABLE else None
    if outcome == UNKNOWN:
        return None if code in _ALIVE else False
    return True


class HealthBook:
    """What one process has seen of all gateways; ``rule_of`` gives a gateway's breaker rule."""

    def __init__(self, rule_of: Callable[[str], BreakerRule] | None = None) -> None:
        self._rule_of = rule_of or (lambda _gateway: BreakerRule())
        self._breakers: dict[str, Breaker] = {}
        self._rates: dict[str, SlidingWindow] = {}
        # Until when gateways have asked to be left alone.
        self._rests_until_ms: dict[str, int] = {}
        self._now_ms = 0
        self._snapshot = HEALTHY
        self._stale_at_ms = 0

    def saw(
        self,
        gateway: str,
        kind: str,
        outcome: str,
        code: str | None,
        at_ms: int,
        retry_after_ms: int | None = None,
    ) -> None:
        """Count one result; ``at_ms`` is its append time."""
        self._now_ms = now_ms = max(self._now_ms, at_ms)
        breaker = self._breakers.get(gateway)
        if breaker is None:
            breaker = self._breakers[gateway] = Breaker(self._rule_of(gateway))
            self._rates[gateway] = SlidingWindow(RATE_WINDOW_MS)
        if code == BREAKER_OPEN:
            breaker.opened_elsewhere(now_ms, retry_after_ms)
            self._stale_at_ms = 0
            return
        if code == RATE_LIMITED and (retry_after_ms or 0) > REST_MS_MAX:
            until_ms = now_ms + (retry_after_ms or 0)
            self._rests_until_ms[gateway] = max(until_ms, self._rests_until_ms.get(gateway, 0))
            self._stale_at_ms = 0
        well = verdict(outcome, code)
        if well is None:
            return
        breaker.saw(well, now_ms)
        if kind in _APPROVALS and (not well or outcome in (SUCCEEDED, DECLINED)):
            self._rates[gateway].saw(outcome == SUCCEEDED, now_ms)

    def health(self, now_ms: int) -> Health:
        """How they do at this time; the same object until something is worth telling anew."""
        self._now_ms = now_ms = max(self._now_ms, now_ms)
        if now_ms >= self._stale_at_ms:
            self._stale_at_ms = now_ms + SNAPSHOT_EVERY_MS
            found = self._look(now_ms)
            if found != self._snapshot:
                self._snapshot = found
        return self._snapshot

    def _look(self, now_ms: int) -> Health:
        states = {name: breaker.state(now_ms) for name, breaker in self._breakers.items()}
        rests = {name for name, until_ms in self._rests_until_ms.items() if now_ms < until_ms}
        rates = {}
        for name, window in self._rates.items():
            approved, total = window.counts(now_ms)
            if total >= RATE_RESULTS_MIN:
                rates[name] = Rate(approved, total)
        return Health(
            down=frozenset(n for n, s in states.items() if n in rests or s == OPEN),
            on_trial=frozenset(n for n, s in states.items() if s == HALF_OPEN and n not in rests),
            rates=rates,
        )

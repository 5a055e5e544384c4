"""When a callback is tried again, and how long an endpoint in trouble is left alone: pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Each wait as a multiple of the first one, 5 s by default: then a minute, ten, an hour, and every
# four hours. A receiver's deployment is over within the first, a night's outage within all.
TIER_MULTIPLES: Final = (1, 12, 120, 720, 2_880)
# Twelve tries are eleven waits, seven of them of four hours: 29 hours.
TRIES_MAX: Final = 12
# What a receiver may ask us to wait; more would hold its callbacks beyond our own patience.
RETRY_AFTER_S_MAX: Final = 86_400

# An endpoint that failed this often in a row gets one delivery at a time, with a rest after each.
TROUBLE_AFTER: Final = 3
REST_S_MIN, REST_S_MAX = 0.5, 30.0

# Failures of an endpoint that are further apart have nothing between them that says it was dead:
# it was paused, or no worker ran. The longest wait is four hours, and a queue before a try.
SILENCE_MS_MAX: Final = 5 * 3_600_000


def wait_ms(tries: int, first_ms: int, retry_after_s: int | None = None) -> int:
    """How long to wait after the so-many-th failed try of a callback."""
    tier = TIER_MULTIPLES[min(max(tries, 1), len(TIER_MULTIPLES)) - 1] * first_ms
    asked = min(retry_after_s or 0, RETRY_AFTER_S_MAX) * 1000
    return max(tier, asked)


def patience_ms(first_ms: int, tries_max: int, timeout_ms: int) -> int:
    """How long all tries of a callback take at most when nothing else is sent to its endpoint."""
    waits_ms = sum(wait_ms(tries, first_ms) for tries in range(1, tries_max))
    return waits_ms + tries_max * (timeout_ms + int(REST_S_MAX * 1000))


def retry_after_s(header: str | None) -> int | None:
    """The seconds of a Retry-After header; None where it is absent or a date."""
    text = (header or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


@dataclass
class Condition:
    """How one endpoint is doing, as this worker sees it: one delivery until it has taken one."""

    proven: bool = False
    failures: int = 0
    rest_until_s: float = 0.0
    open: int = 0

    def delivered(self) -> None:
        self.proven, self.failures, self.rest_until_s = True, 0, 0.0

    def failed(self, now_s: float) -> None:
        self.failures += 1
        if self.failures >= TROUBLE_AFTER:
            rest_s = REST_S_MIN * 2 ** min(self.failures - TROUBLE_AFTER, 10)
            self.rest_until_s = now_s + min(rest_s, REST_S_MAX)

    def room(self, concurrency_max: int, now_s: float) -> int:
        """How many more deliveries may begin now."""
        if now_s < self.rest_until_s:
            return 0
        well = self.proven and self.failures < TROUBLE_AFTER
        allowed = concurrency_max if well else 1
        return max(0, allowed - self.open)

"""So many calls a second and no more: a token bucket as pure arithmetic over given times."""

from __future__ import annotations


class TokenBucket:
    """``rate_per_s`` tokens come every second, at most ``burst`` wait. Full at the beginning."""

    __slots__ = ("_at_ms", "_burst", "_rate_per_ms", "_tokens")

    def __init__(self, rate_per_s: float, burst: float, now_ms: float) -> None:
        self._rate_per_ms = rate_per_s / 1000
        self._burst = max(1.0, burst)
        self._tokens = self._burst
        self._at_ms = now_ms

    def take(self, now_ms: float) -> bool:
        """Take a token for one call, if there is one."""
        self._fill(now_ms)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def next_in_ms(self, now_ms: float) -> float:
        """How long until there is a token, if nobody takes one before."""
        self._fill(now_ms)
        if self._tokens >= 1:
            return 0.0
        return (1 - self._tokens) / self._rate_per_ms

    def change(self, rate_per_s: float, burst: float, now_ms: float) -> None:
        """Another rate from now on; what is in the bucket stays, as far as it fits."""
        self._fill(now_ms)
        self._rate_per_ms = rate_per_s / 1000
        self._burst = max(1.0, burst)
        self._tokens = min(self._tokens, self._burst)

    def _fill(self, now_ms: float) -> None:
        if now_ms > self._at_ms:
            grown = self._tokens + (now_ms - self._at_ms) * self._rate_per_ms
            self._tokens = min(self._burst, grown)
            self._at_ms = now_ms

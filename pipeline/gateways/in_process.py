"""A gateway in memory: answers at once, for benchmarks and tests of everything around it.

It costs next to nothing, so a benchmark that uses it measures the flow and not a gateway. Its books
end with its process; where books must survive a crash, use the simulator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from zlib import crc32

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.gateways.notice import Notice, NoticeRefused

# Two generations of this many keys: about 400 bytes a key, so at most about 160 MB.
KEYS_MAX = 200_000

_LATE = GatewayAnswer(outcome="not_sent", code="send_before_passed")
_NOT_FOUND = GatewayAnswer(outcome="not_found")


def wall_clock_ms() -> int:
    """Epoch milliseconds."""
    return int(time.time() * 1000)


class InProcessGateway:
    """Takes every charge but the given share, which it declines with ``card_declined``.

    Captures, voids and refunds are all taken: it keeps no sums.

    Which charges are declined follows from the idempotency key alone, so two runs over the same
    orders agree. The last ``keys_max`` keys, at least, are remembered: the same key gets its first
    answer again. An inquiry about a forgotten or unknown key answers ``not_found``.
    """

    def __init__(
        self,
        *,
        name: str = "in-process",
        decline_rate: float = 0.0,
        keys_max: int = KEYS_MAX,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        if not 0.0 <= decline_rate <= 1.0:
            raise ValueError(f"decline_rate must be between 0 and 1, not {decline_rate}")
        if keys_max < 1:
            raise ValueError(f"keys_max must be at least 1, not {keys_max}")
        self.name = name
        self._decline_below = int(decline_rate * 0x1_0000_0000)
        self._keys_max = keys_max
        self._now_ms = now_ms
        self._young: dict[str, GatewayAnswer] = {}
        self._old: dict[str, GatewayAnswer] = {}

    async def open(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def charge(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        return self.charge_now(request, send_before_ms=send_before_ms)

    async def authorize(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        return self.charge_now(request, send_before_ms=send_before_ms)

    async def capture(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        return self._later(request, send_before_ms)

    async def void(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        return self._later(request, send_before_ms)

    async def refund(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        return self._later(request, send_before_ms)

    async def inquire(self, request: PaymentRequest) -> GatewayAnswer:
        return self._known(request.idempotency_key) or _NOT_FOUND

    def read_notice(
        self, headers: Mapping[str, str], body: bytes, now_s: int
    ) -> Notice | NoticeRefused:
        return NoticeRefused("no_notices")

    def charge_now(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        """``charge`` without a coroutine, for callers that count microseconds."""
        if self._now_ms() >= send_before_ms:
            return _LATE
        key = request.idempotency_key
        answer = self._known(key)
        if answer is not None:
            return answer
        if self._decline_below and crc32(key.encode()) < self._decline_below:
            answer = GatewayAnswer(
                outcome="declined", code="card_declined", gateway_code="card_declined"
            )
        else:
            answer = GatewayAnswer(
                outcome="succeeded",
                gateway_reference="ip_" + key,
                amount_minor=request.amount_minor,
            )
        return self._keep(key, answer)

    def _later(self, request: PaymentRequest, send_before_ms: int) -> GatewayAnswer:
        """An operation on what was charged or authorized: taken, whatever the parent was."""
        if self._now_ms() >= send_before_ms:
            return _LATE
        key = request.idempotency_key
        return self._known(key) or self._keep(
            key,
            GatewayAnswer(
                outcome="succeeded",
                gateway_reference="ip_" + key,
                amount_minor=request.amount_minor,
            ),
        )

    def _keep(self, key: str, answer: GatewayAnswer) -> GatewayAnswer:
        young = self._young
        young[key] = answer
        if len(young) >= self._keys_max:
            self._old = young
            self._young = {}
        return answer

    def _known(self, key: str) -> GatewayAnswer | None:
        answer = self._young.get(key)
        return answer if answer is not None else self._old.get(key)

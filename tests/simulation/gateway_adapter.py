"""A gateway as one process sees it: an adapter with that process's clock and event loop, over the
gateway's books. What befalls a call is what the plan of its order says (see ``gateway``)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.gateways.notice import Notice, NoticeRefused
from tests.simulation.gateway import GatewayBooks
from tests.simulation.threads import SimLoop
from tests.simulation.world import Process

_REFUSED = GatewayAnswer(outcome="not_sent", code="connection_refused")
_LATE = GatewayAnswer(outcome="not_sent", code="send_before_passed")
_LOST = GatewayAnswer(outcome="unknown", code="connection_lost")
_ERROR = GatewayAnswer(outcome="unknown", code="gateway_error")
_TIMEOUT = GatewayAnswer(outcome="unknown", code="timeout")
_NOT_FOUND = GatewayAnswer(outcome="not_found")


class SimGateway:
    """A gateway as one process sees it: an adapter with that process's clock and event loop."""

    def __init__(self, books: GatewayBooks, process: Process) -> None:
        self.name = books.name
        self._books = books
        self._process = process

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def charge(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        return await self._send(request, send_before_ms)

    authorize = capture = void = refund = charge

    async def inquire(self, request: PaymentRequest) -> GatewayAnswer:
        books, world = self._books, self._books.world
        fault = books.next_fault(request.order_id, "inquiries")
        await self._wait(world.jitter(0.05))
        if fault == "hang":
            await self._wait(3_600.0)
        if fault != "ok":
            return _ERROR
        found = books.known(request.idempotency_key)
        answer = _NOT_FOUND if found is None else found.answer()
        await self._wait(world.jitter(0.05))
        return answer

    def read_notice(
        self, headers: Mapping[str, str], body: bytes, now_s: int
    ) -> Notice | NoticeRefused:
        return NoticeRefused("no_notices")

    async def _send(self, request: PaymentRequest, send_before_ms: int) -> GatewayAnswer:
        books, world = self._books, self._books.world
        fault = books.next_fault(request.order_id, "transport")
        await self._wait(world.jitter(0.05))
        if fault == "refused":
            return _REFUSED
        if fault == "rate_limited":
            return GatewayAnswer(
                outcome="not_sent",
                code="rate_limited",
                retry_after_ms=int(books.retry_after_s * 1000),
            )
        if fault == "slow_connect":
            await self._wait(world.jitter(120.0))
        # The last look at the clock before the first byte: from here on it may have happened.
        if self._process.time_s() * 1000 >= send_before_ms:
            return _LATE
        if fault == "lost_request":
            await self._wait(world.jitter(1.0))
            return _LOST
        if fault == "error_before":
            return _ERROR
        delay_s = world.jitter(0.2)
        if fault == "late":
            delay_s = books.grace_s * (0.5 + 0.45 * world.random.random())
        loop, answered = self._future()

        def handle() -> None:
            answer = books.arrive(request).answer()
            world.after(world.jitter(0.05), lambda: loop.resolve(answered, answer))

        world.after(delay_s, handle)
        if fault == "late":
            await self._wait(0.5)
            return _TIMEOUT
        answer: GatewayAnswer = await answered
        if fault == "hang":
            await self._wait(3_600.0)
        if fault == "lost_answer":
            return _LOST
        if fault == "error_after":
            return _ERROR
        if fault == "slow_answer":
            await self._wait(world.jitter(3.5))
        return answer

    async def _wait(self, delay_s: float) -> None:
        loop, future = self._future()
        self._books.world.after(delay_s, lambda: loop.resolve(future, None))
        await future

    def _future(self) -> tuple[SimLoop, asyncio.Future[Any]]:
        loop = self._process.loop
        return loop, asyncio.Future(loop=loop)

"""Gateways in memory behind the same port as the real ones, with books that outlive every process.

What they promise, they keep: one key moves money once for as long as it is remembered (unless the
gateway says that it knows no keys), and what was written to it is visible within its grace time.
Everything else may go wrong, as the plan of each order says, call by call (``transport``):

=================  ===============================================================================
ok                 answered
refused            nobody listens: not one byte was written
rate_limited       turned away, with a Retry-After
slow_connect       a wait for a connection of up to two minutes, before the first byte
lost_request       written, and never handled
lost_answer        handled, and the answer lost
error_before       a 5xx, not handled
error_after        a 5xx, handled
hang               handled, and never answered
late               written, handled only near the end of the grace time, answered as a time-out
=================  ===============================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.gateways.notice import Notice, NoticeRefused
from tests.simulation.threads import SimLoop
from tests.simulation.world import Process, World

TRANSPORT = (
    "refused", "rate_limited", "slow_connect", "lost_request", "lost_answer",
    "error_before", "error_after", "hang", "late",
)  # fmt: skip

_REFUSED = GatewayAnswer(outcome="not_sent", code="connection_refused")
_LIMITED = GatewayAnswer(outcome="not_sent", code="rate_limited", retry_after_ms=4_000)
_LATE = GatewayAnswer(outcome="not_sent", code="send_before_passed")
_LOST = GatewayAnswer(outcome="unknown", code="connection_lost")
_ERROR = GatewayAnswer(outcome="unknown", code="gateway_error")
_TIMEOUT = GatewayAnswer(outcome="unknown", code="timeout")
_NOT_FOUND = GatewayAnswer(outcome="not_found")


@dataclass(frozen=True)
class Movement:
    """Money moved at a gateway: a line of its books. ``amount_minor`` is never negative."""

    at_s: float
    gateway: str
    kind: str
    order_id: str
    operation_id: str
    key: str
    amount_minor: int
    reference: str


class Operation:
    """What a gateway knows of one key."""

    __slots__ = ("action", "amount_minor", "code", "reference", "request", "seen_s", "state")

    def __init__(self, request: PaymentRequest, reference: str, seen_s: float) -> None:
        self.request = request
        self.reference = reference
        self.seen_s = seen_s
        self.state = "pending"
        self.code: str | None = None
        self.amount_minor = 0
        self.action = False

    def answer(self) -> GatewayAnswer:
        if self.state == "pending":
            return GatewayAnswer(
                outcome="pending",
                code="customer_action_required" if self.action else None,
                gateway_reference=self.reference,
                next_action_url="https://bank.example/3ds" if self.action else None,
            )
        if self.state == "declined":
            return GatewayAnswer(outcome="declined", code=self.code, gateway_code=self.code)
        return GatewayAnswer(
            outcome="succeeded", gateway_reference=self.reference, amount_minor=self.amount_minor
        )


@dataclass
class Script:
    """What becomes of an order's calls. ``outcome`` by gateway: succeed, decline:<code>,
    pending_succeed, pending_decline, action_succeed, action_late, action_nothing.
    ``operations``: of captures, voids and refunds: succeed, decline, pending_succeed."""

    outcome: Mapping[str, str]
    transport: tuple[str, ...] = ()
    inquiries: tuple[str, ...] = ()
    operations: str = "succeed"
    notices: int = 0
    pending_s: float = 20.0


class GatewayBooks:
    """One gateway. ``on_movement`` is told of each movement when it happens, ``on_notice`` of each
    webhook when it comes in."""

    def __init__(
        self,
        world: World,
        name: str,
        scripts: Mapping[str, Script],
        *,
        grace_s: float,
        retention_s: float,
        idempotent: bool,
        action_late_s: float,
        on_movement: Callable[[Movement], None],
        on_notice: Callable[[str, Operation], None],
    ) -> None:
        self.world = world
        self.name = name
        self.idempotent = idempotent
        self.grace_s = grace_s
        self._retention_s = retention_s
        self._scripts = scripts
        self._action_late_s = action_late_s
        self._on_movement = on_movement
        self._on_notice = on_notice
        self._keys: dict[str, Operation] = {}
        self._count = 0
        self._calls: dict[tuple[str, str], int] = {}
        # What stands of each authorization or charge, by reference.
        self._held: dict[str, int] = {}
        self._captured: dict[str, int] = {}
        self.movements: list[Movement] = []
        self.down_until_s = 0.0
        # Operations and notices that are still to come.
        self.open = 0
        self.faults_met: dict[str, int] = {}

    def next_fault(self, order_id: str, what: str) -> str:
        script = self._scripts[order_id]
        steps = script.inquiries if what == "inquiries" else script.transport
        at = self._calls.get((order_id, what), 0)
        self._calls[order_id, what] = at + 1
        fault = steps[at] if at < len(steps) else "ok"
        if self.world.now_s < self.down_until_s:
            fault = "error_before" if what == "inquiries" else "refused"
        if fault != "ok":
            self.faults_met[fault] = self.faults_met.get(fault, 0) + 1
        return fault

    def arrive(self, request: PaymentRequest) -> Operation:
        """A request has come in: the same key again is the same operation."""
        key = request.idempotency_key
        known = self.known(key)
        if known is not None and self.idempotent:
            return known
        self._count += 1
        made = Operation(request, f"{self.name}_{self._count}", self.world.now_s)
        self._keys[key] = made
        script = self._scripts[request.order_id]
        if request.kind in ("charge", "authorize"):
            outcome = script.outcome.get(self.name, "succeed")
        else:
            outcome = self._allowed(request) or script.operations
        if outcome == "succeed":
            self._succeed(made)
        elif outcome.startswith("decline"):
            made.state, made.code = "declined", outcome.partition(":")[2] or "card_declined"
        else:
            made.action = outcome.startswith("action")
            if outcome == "action_late":
                self._later(self._action_late_s, made, "succeed")
            elif outcome == "action_nothing":
                self._later(self._action_late_s + 20.0, made, "decline")
            else:
                self._later(script.pending_s, made, outcome.rpartition("_")[2])
        self._tell(made)
        return made

    def known(self, key: str) -> Operation | None:
        found = self._keys.get(key)
        if found is not None and self.world.now_s - found.seen_s >= self._retention_s:
            return None
        return found

    def _later(self, delay_s: float, made: Operation, outcome: str) -> None:
        self.open += 1

        def end() -> None:
            self.open -= 1
            if outcome == "succeed":
                self._succeed(made)
            else:
                made.state, made.code = "declined", "insufficient_funds"
            self._tell(made)

        self.world.after(delay_s, end)

    def _allowed(self, request: PaymentRequest) -> str | None:
        parent = request.parent_reference or ""
        if request.kind == "refund":
            if self._captured.get(parent, 0) < request.amount_minor:
                return "decline:refund_exceeds_captured"
        elif self._held.get(parent, 0) < (request.amount_minor if request.kind == "capture" else 1):
            return "decline:capture_exceeds_authorized"
        return None

    def _succeed(self, made: Operation) -> None:
        request = made.request
        made.state = "succeeded"
        made.amount_minor = amount_minor = request.amount_minor
        parent = request.parent_reference or ""
        if request.kind == "authorize":
            self._held[made.reference] = amount_minor
        elif request.kind == "charge":
            self._captured[made.reference] = amount_minor
        elif request.kind == "capture":
            self._held[parent] -= amount_minor
            self._captured[parent] = self._captured.get(parent, 0) + amount_minor
        elif request.kind == "void":
            self._held[parent] = 0
        elif request.kind == "refund":
            self._captured[parent] -= amount_minor
        movement = Movement(
            self.world.now_s,
            self.name,
            request.kind,
            request.order_id,
            request.operation_id,
            request.idempotency_key,
            amount_minor,
            made.reference,
        )
        self.movements.append(movement)
        self._on_movement(movement)

    def _tell(self, made: Operation) -> None:
        for _ in range(self._scripts[made.request.order_id].notices):
            self.open += 1
            self.world.after(self.world.jitter(30.0), lambda: self._notify(made))

    def _notify(self, made: Operation) -> None:
        self.open -= 1
        self._on_notice(self.name, made)


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
            return _LIMITED
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
            made = books.arrive(request)
            loop.resolve(answered, made.answer())

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
        await self._wait(world.jitter(0.05))
        return answer

    async def _wait(self, delay_s: float) -> None:
        loop, future = self._future()
        self._books.world.after(delay_s, lambda: loop.resolve(future, None))
        await future

    def _future(self) -> tuple[SimLoop, asyncio.Future[Any]]:
        loop: Any = asyncio.get_running_loop()
        return loop, loop.create_future()

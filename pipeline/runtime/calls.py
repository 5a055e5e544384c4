"""Hundreds of gateway calls in flight, on an asyncio thread of their own.

The worker's main thread hands calls over and takes finished ones back; the two meet in two queues
and nowhere else. A call that outlives its soft deadline is parked: it is answered ``unknown``, so
that it cannot hold up its partition, and what it really did is found out by inquiry.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from msgspec import Struct

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.gateways.port import Gateway

_log = logging.getLogger(__name__)

# How often open calls are looked at for their deadline; a tenth of the shortest sensible one.
SWEEP_INTERVAL_S = 0.25

_PARKED = GatewayAnswer(outcome="unknown", code="soft_deadline")
_NO_SUCH_GATEWAY = GatewayAnswer(outcome="not_sent", code="gateway_not_configured")
_NO_SUCH_KIND = GatewayAnswer(outcome="not_sent", code="kind_not_supported")

# What may move money; the port has a method of the name for each.
MONEY_MOVING = frozenset({"charge", "authorize", "capture", "void", "refund"})


class Call(Struct, eq=False):
    """One request on its way. ``token`` is the caller's own, handed back untouched."""

    token: Any
    request: PaymentRequest
    send_before_ms: int
    answer: GatewayAnswer | None = None
    began_s: float = 0.0
    seconds: float = 0.0
    task: Any = None


class Calls:
    """Runs calls of all gateways, at most ``in_flight_max`` of each at a time."""

    def __init__(
        self,
        gateways: Mapping[str, Gateway],
        *,
        in_flight_max: int = 256,
        soft_deadline_s: float = 12.0,
    ) -> None:
        self._gateways = dict(gateways)
        self._in_flight_max = in_flight_max
        self._soft_deadline_s = soft_deadline_s
        self._waiting: dict[str, deque[Call]] = {name: deque() for name in gateways}
        self._open: dict[str, set[Call]] = {name: set() for name in gateways}
        self._finished: deque[Call] = deque()
        self._arrived = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="gateway-calls", daemon=True)

    # The main thread's side ---------------------------------------------------------------------

    def open(self) -> None:
        """Start the thread and get the adapters ready."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def start(self, calls: list[Call]) -> None:
        """Hand over calls; they begin in order as far as the limits allow."""
        self._loop.call_soon_threadsafe(self._accept, calls)

    def take_finished(self) -> list[Call]:
        """The calls that have ended since the last time."""
        if self._failure is not None:
            raise self._failure
        self._arrived.clear()
        finished = self._finished
        taken = []
        while finished:
            taken.append(finished.popleft())
        return taken

    def wait_finished(self, timeout_s: float) -> bool:
        """Wait until a call ends; False when none did in time."""
        return self._arrived.wait(timeout_s)

    @property
    def in_flight(self) -> int:
        return sum(len(calls) for calls in self._open.values())

    def close(self, timeout_s: float = 5.0) -> None:
        """Cancel what is open (it may have been sent; its request is still uncommitted)."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout_s)

    # The asyncio thread's side ------------------------------------------------------------------

    def _run(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        try:
            for gateway in self._gateways.values():
                loop.run_until_complete(gateway.open())
            loop.call_later(SWEEP_INTERVAL_S, self._sweep)
            self._ready.set()
            loop.run_forever()
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()
            self._arrived.set()
            self._shut_down()

    def _shut_down(self) -> None:
        loop = self._loop
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for gateway in self._gateways.values():
            loop.run_until_complete(gateway.close())
        loop.close()

    def _accept(self, calls: list[Call]) -> None:
        touched = set()
        for call in calls:
            waiting = self._waiting.get(call.request.gateway)
            if waiting is None:
                call.answer = _NO_SUCH_GATEWAY
                self._finished.append(call)
                self._arrived.set()
                continue
            waiting.append(call)
            touched.add(call.request.gateway)
        for name in touched:
            self._fill(name)

    def _fill(self, name: str) -> None:
        """Begin waiting calls of a gateway up to its limit."""
        waiting, is_open = self._waiting[name], self._open[name]
        gateway = self._gateways[name]
        charge_now: Callable[..., GatewayAnswer] | None = getattr(gateway, "charge_now", None)
        while waiting and len(is_open) < self._in_flight_max:
            call = waiting.popleft()
            if charge_now is not None and call.request.kind == "charge":
                call.answer = charge_now(call.request, send_before_ms=call.send_before_ms)
                self._finished.append(call)
                continue
            call.began_s = time.monotonic()
            is_open.add(call)
            call.task = self._loop.create_task(self._make(gateway, call))
        self._arrived.set()

    async def _make(self, gateway: Gateway, call: Call) -> None:
        try:
            answer = await _asked(gateway, call)
        except asyncio.CancelledError:
            answer = _PARKED
        except Exception as error:
            # An adapter that raises breaks its contract; what it sent is not known.
            _log.exception("the adapter of %s raised", call.request.gateway)
            answer = GatewayAnswer(
                outcome="unknown", code="adapter_error", gateway_code=repr(error)
            )
        self._end(call, answer)

    def _end(self, call: Call, answer: GatewayAnswer) -> None:
        if call.answer is not None:
            return
        call.answer = answer
        call.seconds = time.monotonic() - call.began_s
        self._open[call.request.gateway].discard(call)
        self._finished.append(call)
        self._arrived.set()
        self._fill(call.request.gateway)

    def _sweep(self) -> None:
        oldest_s = time.monotonic() - self._soft_deadline_s
        for is_open in self._open.values():
            for call in [call for call in is_open if call.began_s < oldest_s]:
                self._end(call, _PARKED)
                call.task.cancel()
        self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)


async def _asked(gateway: Gateway, call: Call) -> GatewayAnswer:
    """The gateway's answer to a request of any kind."""
    kind = call.request.kind
    if kind == "inquire":
        return await gateway.inquire(call.request)
    if kind not in MONEY_MOVING:
        return _NO_SUCH_KIND
    send: Callable[..., Coroutine[Any, Any, GatewayAnswer]] = getattr(gateway, kind)
    return await send(call.request, send_before_ms=call.send_before_ms)

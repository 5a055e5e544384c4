"""Hundreds of gateway calls in flight, on an asyncio thread of their own.

The worker's main thread hands calls over and takes finished ones back; the two meet in two queues
and nowhere else. A gate is asked before a call begins, and may answer in its place. A call that
outlives its soft deadline, or that is slow at a gateway in trouble, is parked: it is answered
``unknown``, so that it cannot hold up its partition, and what it did is found out by inquiry. What
a parked inquiry hears all the same is kept for the next question about that attempt (``heard``);
and where there may be none, since the payment has ended or waits for a person, it is told by
itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Set
from itertools import chain
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from pipeline.domain.answer import (
    CONTRADICTS,
    EARLIER_QUESTION,
    LATE_ANSWER,
    NOT_SENT,
    PENDING,
    UNKNOWN,
    GatewayAnswer,
)
from pipeline.domain.health import GATEWAY_NOT_CONFIGURED
from pipeline.domain.model import PaymentRequest
from pipeline.domain.payment import INQUIRE
from pipeline.gateways.port import Gateway
from pipeline.processors.gateway import SEND_BEFORE_PASSED
from pipeline.runtime.heard import Heard, contradicts, is_told, stays_true, tells_success
from pipeline.runtime.protection import HOLD_MS, Hold, Permit, Protection
from pipeline.runtime.surroundings import REAL, Surroundings

_log = logging.getLogger(__name__)

# How often open calls are looked at for their deadline; a tenth of the shortest sensible one.
SWEEP_INTERVAL_S = 0.25

# A request that has waited is given up so long before its time is over: a connection is made within
# it, and what turns out too late at the socket has used up the token of one that is not.
SEND_MARGIN_MS = 250

_PARKED = GatewayAnswer(outcome="unknown", code="soft_deadline")
_TOO_LATE = GatewayAnswer(outcome=NOT_SENT, code=SEND_BEFORE_PASSED)
_NO_SUCH_GATEWAY = GatewayAnswer(outcome=UNKNOWN, code=GATEWAY_NOT_CONFIGURED)
_NO_SUCH_KIND = GatewayAnswer(outcome="not_sent", code="kind_not_supported")

# What may move money; the port has a method of the name for each.
MONEY_MOVING = frozenset({"charge", "authorize", "capture", "void", "refund"})


class Call(Struct, eq=False):
    """One request on its way. ``token`` is the caller's own, handed back untouched, and so is
    ``read_before``: whether somebody may have made this call already. ``appended_at_ms`` and
    ``partition`` are its request's; ``keeps``: whether what it hears too late is kept;
    ``contradiction``: what is told behind its answer, since it cannot be true together with it;
    ``is_of_before``: only what stays true of it, since the operation was sent again. ``is_late``:
    not the end of a call, which was told before, but the answer that came to it all the same."""

    token: Any
    request: PaymentRequest
    send_before_ms: int
    answer: GatewayAnswer | None = None
    contradiction: GatewayAnswer | None = None
    handed_s: float = 0.0
    began_s: float = 0.0
    seconds: float = 0.0
    task: Any = None
    permit: Permit | None = None
    read_before: bool = False
    appended_at_ms: int = 0
    partition: int = -1
    keeps: bool = True
    is_of_before: bool = False
    is_late: bool = False


class Calls:
    """Runs calls of all gateways, each when the gate permits it.

    Without a gate of its own: at most ``in_flight_max`` of each gateway at a time, and breakers.
    """

    def __init__(
        self,
        gateways: Mapping[str, Gateway],
        *,
        in_flight_max: int = 256,
        soft_deadline_s: float = 12.0,
        gate: Protection | None = None,
        surroundings: Surroundings = REAL,
    ) -> None:
        self._monotonic_s = surroundings.monotonic_s
        self._time_s = surroundings.time_s
        self._gateways = dict(gateways)
        self.gate = gate or Protection((), in_flight_max=in_flight_max)
        self._soft_deadline_s = soft_deadline_s
        self._waiting: dict[str, deque[Call]] = {name: deque() for name in gateways}
        # In the order in which they began, and so swept: a set's order is not that of the next run.
        self._open: dict[str, dict[Call, None]] = {name: {} for name in gateways}
        self._parked: dict[Call, None] = {}
        self._heard = Heard()
        # Questions that have not really ended, by the key that they ask about.
        self._questions: dict[str, dict[Call, None]] = {}
        self._swept_s = 0.0
        self._wakes: dict[str, asyncio.TimerHandle] = {}
        self._finished: deque[Call] = deque()
        self._arrived = surroundings.event()
        self._loop = surroundings.event_loop()
        self._ready = surroundings.event()
        self._failure: BaseException | None = None
        self._thread = surroundings.thread(target=self._run, name="gateway-calls", daemon=True)

    # The main thread's side ---------------------------------------------------------------------

    def open(self) -> None:
        """Start the thread and get the adapters ready."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def start(self, calls: list[Call]) -> None:
        """Hand over calls; they begin in order as far as the limits allow."""
        if self._failure is not None:
            raise self._failure
        self._loop.call_soon_threadsafe(self._run_or_fail, self._accept, calls)

    def keep_only(self, partitions: Set[int]) -> None:
        """Forget what was heard of payments of all other partitions, and keep nothing of what is
        still to be heard: they were another worker's, or may be now."""
        if self._failure is not None:
            raise self._failure
        self._loop.call_soon_threadsafe(self._run_or_fail, self._forget_others, partitions)

    def forget(self, requests: list[PaymentRequest]) -> None:
        """They were decided to be sent again, and are not sent by this worker."""
        if self._failure is not None:
            raise self._failure
        for request in requests:
            self._loop.call_soon_threadsafe(self._run_or_fail, self._forget_before, request)

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
        return bool(self._arrived.wait(timeout_s))

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
            self._swept_s = self._monotonic_s()
            loop.call_later(SWEEP_INTERVAL_S, self._run_or_fail, self._sweep)
            self._ready.set()
            loop.run_forever()
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()
            self._arrived.set()
            self._shut_down()

    def _run_or_fail(self, step: Callable[..., None], *of: Any) -> None:
        """A step of this thread. A fault of ours ends the worker: asyncio would only log it, and
        calls would wait for ever for what the step had still to do."""
        try:
            step(*of)
        except Exception as error:
            if self._failure is None:
                self._failure = error
                self._loop.stop()

    def _shut_down(self) -> None:
        loop = self._loop
        # The end of an open call must not begin another one now.
        for waiting in self._waiting.values():
            waiting.clear()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for gateway in self._gateways.values():
            loop.run_until_complete(gateway.close())
        loop.close()

    def _accept(self, calls: list[Call]) -> None:
        touched: dict[str, None] = {}
        now_s = self._monotonic_s()
        for call in calls:
            waiting = self._waiting.get(call.request.gateway)
            if waiting is None:
                # Not by us, but a worker that had it may have sent it and died before it said so.
                self._answer(call, _NO_SUCH_GATEWAY)
                continue
            if call.request.kind == INQUIRE:
                heard = self._heard.success(call.request)
                if heard is not None:
                    self._answer(call, replace(heard, heard=EARLIER_QUESTION))
                    continue
                self._questions.setdefault(call.request.idempotency_key, {})[call] = None
            elif call.request.try_number > 1:
                self._forget_before(call.request)
            call.handed_s = now_s
            waiting.append(call)
            touched[call.request.gateway] = None
        for name in touched:
            self._fill(name)

    def _fill(self, name: str) -> None:
        """Begin waiting calls of a gateway, or answer them, as far as the gate says now."""
        waiting, gate = self._waiting[name], self.gate
        gateway = self._gateways[name]
        charge_now: Callable[..., GatewayAnswer] | None = getattr(gateway, "charge_now", None)
        while waiting:
            call = waiting[0]
            if charge_now is not None and call.request.kind == "charge":
                # Computed here and now: there is no gateway to protect.
                answer = charge_now(call.request, send_before_ms=call.send_before_ms)
                self._answer(waiting.popleft(), answer)
                continue
            now_s = self._monotonic_s()
            waited_ms = (now_s - call.handed_s) * 1000
            if self._is_too_late(call, waited_ms):
                # Before the gate: a backlog of these would use up every token of a rate.
                self._answer(waiting.popleft(), _TOO_LATE)
                continue
            said = gate.ask(name, call.request.kind, waited_ms)
            if isinstance(said, Hold):
                if said.seconds is not None:
                    self._fill_after(name, said.seconds)
                break
            waiting.popleft()
            if isinstance(said, GatewayAnswer):
                self._answer(call, said)
                continue
            self._begin(gateway, call, said, now_s)

    def _is_too_late(self, call: Call, waited_ms: float) -> bool:
        """Whether its time is over, or will be before it is written. An inquiry has no end."""
        if call.request.kind == INQUIRE:
            return False
        left_ms = call.send_before_ms - self._time_s() * 1000
        return left_ms <= min(SEND_MARGIN_MS, waited_ms)

    def _begin(self, gateway: Gateway, call: Call, permit: Permit, now_s: float) -> None:
        call.began_s = now_s
        call.permit = permit
        self._open[call.request.gateway][call] = None
        call.task = self._loop.create_task(self._make(gateway, call))
        call.task.add_done_callback(lambda task: self._run_or_fail(self._made, call, task))
        if permit.probe:
            self._loop.call_later(HOLD_MS / 1000, self._run_or_fail, self._park_if_slow, call)

    def _fill_after(self, name: str, seconds: float) -> None:
        """Look at a gateway's waiting calls again, once, at the earliest moment asked for."""
        if name not in self._wakes:
            self._wakes[name] = self._loop.call_later(seconds, self._run_or_fail, self._wake, name)

    def _wake(self, name: str) -> None:
        del self._wakes[name]
        self._fill(name)

    def _answer(self, call: Call, answer: GatewayAnswer) -> None:
        """The end of a call that was not made."""
        self._is_over(call)
        call.answer = answer
        self._finished.append(call)
        self._arrived.set()

    async def _make(self, gateway: Gateway, call: Call) -> GatewayAnswer:
        try:
            return await _asked(gateway, call)
        except asyncio.CancelledError:
            return _PARKED
        except Exception as error:
            # An adapter that raises breaks its contract; what it sent is not known.
            _log.exception("the adapter of %s raised", call.request.gateway)
            return GatewayAnswer(outcome="unknown", code="adapter_error", gateway_code=repr(error))

    def _made(self, call: Call, task: asyncio.Task[GatewayAnswer]) -> None:
        """The call has really ended, though it may have been parked before."""
        # Cancelled before its first step, a task has no result.
        answer = _PARKED if task.cancelled() else task.result()
        if call.permit is not None:
            self.gate.ended(call.permit, answer)
        if call.answer is not None:
            self._hear(call, answer)
        self._is_over(call)
        self._end(call, answer)
        self._fill(call.request.gateway)

    def _hear(self, call: Call, answer: GatewayAnswer) -> None:
        """The answer to a call that nobody waits for any more."""
        request = call.request
        asks = request.kind == INQUIRE
        kind = request.operation_kind if asks else request.kind
        counts = asks and call.keeps and not call.is_of_before
        if counts or stays_true(kind, answer):
            self._heard.keep(request, answer, call.appended_at_ms, call.partition)
        # To what moves money, "pending" is as good an answer as to a question about it.
        has_it = answer.outcome == PENDING and not asks
        if tells_success(answer) or has_it or (counts and is_told(kind, answer)):
            told = replace(answer, heard=LATE_ANSWER)
            self._finished.append(replace(call, answer=told, task=None, is_late=True))

    def _is_over(self, call: Call) -> None:
        """Nothing is to be heard of it any more."""
        asking = self._questions.get(call.request.idempotency_key)
        if asking is not None and asking.pop(call, call) is None and not asking:
            del self._questions[call.request.idempotency_key]

    def _forget_before(self, request: PaymentRequest) -> None:
        """It is sent again: no question of before says anything of it, whatever clocks say, but
        that it was made already."""
        self._heard.forget(request)
        for call in self._questions.get(request.idempotency_key, ()):
            call.is_of_before = True

    def _forget_others(self, partitions: Set[int]) -> None:
        self._heard.keep_only(partitions)
        for call in chain.from_iterable(self._questions.values()):
            call.keeps = call.keeps and call.partition in partitions

    def _end(self, call: Call, answer: GatewayAnswer) -> None:
        if call.answer is not None:
            return
        if call.request.kind == INQUIRE:
            answer = self._said(call, answer)
        call.answer = answer
        call.seconds = self._monotonic_s() - call.began_s
        self._open[call.request.gateway].pop(call, None)
        self._finished.append(call)
        self._arrived.set()

    def _said(self, call: Call, answer: GatewayAnswer) -> GatewayAnswer:
        """What is told of a question that ended so, with what earlier ones heard."""
        request = call.request
        known = self._heard.known(request)
        said = self._heard.instead(request, answer)
        other = known if said is answer else answer
        if other is not None and contradicts(request.operation_kind, said, other):
            call.contradiction = replace(other, heard=CONTRADICTS)
        if said is answer or said.outcome == UNKNOWN:
            return said
        return replace(said, heard=EARLIER_QUESTION)

    def _park_if_slow(self, call: Call) -> None:
        """Answer a slow call of a gateway in trouble as unknown. It goes on: its end counts for
        the breaker, and a connection is not broken under a charge that may just be slow."""
        permit = call.permit
        if call.answer is None and permit is not None:
            open_ms = (self._monotonic_s() - call.began_s) * 1000
            if self.gate.is_slow(permit, open_ms):
                self._end(call, _PARKED)
                self._parked[call] = None

    def _sweep(self) -> None:
        now_s = self._monotonic_s()
        oldest_s = now_s - self._soft_deadline_s
        # A thread that was not given its turn finds every call old, though answers may have come.
        starved, self._swept_s = now_s - self._swept_s > 2 * SWEEP_INTERVAL_S, now_s
        for name, is_open in self._open.items():
            for call in list(is_open):
                if call.began_s < oldest_s:
                    self._end(call, _PARKED)
                    call.task.cancel()
                elif not starved:
                    self._park_if_slow(call)
            # Those that wait too long are answered, and limits may have been raised.
            self._fill(name)
        for call in list(self._parked):
            if call.permit is not None and not starved:
                # A probe that is parked still has to be found slow: another may go sooner then.
                self.gate.is_slow(call.permit, (self._monotonic_s() - call.began_s) * 1000)
            if call.began_s < oldest_s or call.task.done():
                del self._parked[call]
                call.task.cancel()
        self.gate.report()
        self._loop.call_later(SWEEP_INTERVAL_S, self._run_or_fail, self._sweep)


async def _asked(gateway: Gateway, call: Call) -> GatewayAnswer:
    """The gateway's answer to a request of any kind."""
    kind = call.request.kind
    if kind == INQUIRE:
        return await gateway.inquire(call.request)
    if kind not in MONEY_MOVING:
        return _NO_SUCH_KIND
    send: Callable[..., Coroutine[Any, Any, GatewayAnswer]] = getattr(gateway, kind)
    return await send(call.request, send_before_ms=call.send_before_ms)

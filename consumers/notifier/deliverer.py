"""Delivers callbacks that are due: many endpoints at once, each within its own bounds.

An endpoint has its own number of open deliveries, so what a dead or slow one holds up is its own.
Of one payment only the earliest callback that has not ended is ever under way, which keeps the
order also while it waits for its next try.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from consumers.notifier.endpoints import Endpoint, EndpointFile, Endpoints
from consumers.notifier.patience import TRIES_MAX, Condition, patience_ms, wait_ms
from consumers.notifier.sender import (
    ADDRESS_REFUSED,
    DELIVERED,
    GONE,
    TIMED_OUT,
    UNREACHABLE,
    Delivery,
    Sender,
)
from consumers.notifier.store import (
    DELIVERED as STATE_DELIVERED,
)
from consumers.notifier.store import (
    GIVEN_UP,
    ROWS_MAX,
    WAITING,
    CallbackStore,
    Head,
    Result,
    StoreAway,
)
from consumers.notifier.watch import NotifierMetrics, Unwatched
from pipeline.runtime import failpoints

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Deliveries of one worker that are open at a time, of all endpoints together: a file descriptor
# each, and systems allow a process 1,024. The last of them are for endpoints with nothing open,
# which so wait for no other.
OPEN_MAX = 800
OPEN_SHARED_MAX = 500
# How soon something that became due is looked for, where nothing says so earlier.
LOOK_S = 0.05
# What other processes wrote (a resend) is found by counting what waits; a count that takes long
# is made less often.
SURVEY_S = 1.0
SURVEY_SHARE = 0.1
# The file of endpoints is read again this often.
RELOAD_S = 2.0
# Old callbacks and their log are deleted, and forgotten endpoints looked for, this often.
SWEEP_S = 600.0
KEPT_MS = 30 * 86_400_000
FORGOTTEN_AFTER_MS = 3 * 86_400_000
AWAY_S = 1.0
# A stop waits so long for open deliveries; one that is cut off is made again, with the same id.
DRAIN_S = 15.0

_TROUBLE = frozenset({TIMED_OUT, UNREACHABLE, ADDRESS_REFUSED})


def judge(head: Head, delivery: Delivery, *, first_ms: int, tries_max: int = TRIES_MAX) -> Result:
    """What follows from a delivery: the end, or the next try."""
    if delivery.outcome == DELIVERED:
        return Result(head=head, delivery=delivery, state=STATE_DELIVERED)
    tries = head.tries + 1
    if delivery.outcome == GONE or tries >= tries_max:
        return Result(head=head, delivery=delivery, state=GIVEN_UP)
    ended_ms = delivery.at_ms + delivery.took_ms
    due_ms = ended_ms + wait_ms(tries, first_ms, delivery.retry_after_s)
    return Result(head=head, delivery=delivery, state=WAITING, due_ms=due_ms)


class Deliverer:
    """``run`` in one thread; ``wake`` from any. ``lanes`` are the partitions of this worker."""

    def __init__(
        self,
        store: CallbackStore,
        endpoints: EndpointFile,
        *,
        lanes: Callable[[], Collection[int]],
        first_ms: int,
        tries_max: int = TRIES_MAX,
        allow_http: bool = False,
        allow_private: bool = False,
        metrics: NotifierMetrics | None = None,
    ) -> None:
        self._store = store
        self._file = endpoints
        self._lanes = lanes
        self._first_ms = first_ms
        self._tries_max = tries_max
        self._allow_http = allow_http
        self._allow_private = allow_private
        self._metrics: NotifierMetrics = metrics if metrics is not None else Unwatched()
        self._conditions: dict[str, Condition] = {}
        # When an endpoint is worth asking the store for, by its name.
        self._look_at_ms: dict[str, int] = {}
        # Payments with a delivery that is open or not recorded yet.
        self._under_way: dict[str, set[str]] = {}
        self._ended: list[Result] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = ThreadPoolExecutor(1, "callbacks")

    def run(self, stop: threading.Event) -> None:
        """Deliver until ``stop``, then let what is open end."""
        try:
            asyncio.run(self._run(stop))
        finally:
            self._threads.shutdown()

    def wake(self, endpoints: Iterable[str]) -> None:
        """These have new callbacks."""
        loop, names = self._loop, tuple(endpoints)
        if loop is not None and names:
            # A loop that has just ended needs no waking.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._woken, names)

    def _woken(self, names: Iterable[str]) -> None:
        for name in names:
            self._look_at_ms[name] = 0
        self._news.set()

    async def _run(self, stop: threading.Event) -> None:
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._survey_at_s = self._sweep_at_s = 0.0
        self._reload_at_s = time.monotonic() + RELOAD_S
        async with Sender(
            allow_http=self._allow_http, allow_private=self._allow_private, open_max=OPEN_MAX
        ) as sender:
            while not stop.is_set():
                try:
                    await self._turn(sender)
                except StoreAway as error:
                    _log.warning("the callbacks' database is away: %s", error)
                    await asyncio.sleep(AWAY_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), LOOK_S)
                self._news.clear()
            await self._drain()

    async def _apart(self, call: Callable[..., T], *given: Any) -> T:
        """Outside the loop, in the thread of the database and the file."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *given)

    async def _turn(self, sender: Sender) -> None:
        now_s = time.monotonic()
        if now_s >= self._reload_at_s:
            self._reload_at_s = now_s + RELOAD_S
            await self._apart(self._file.look)
        await self._record()
        lanes = frozenset(self._lanes())
        if not lanes:
            return
        endpoints = self._file.in_force
        if now_s >= self._survey_at_s:
            await self._survey(endpoints, lanes)
            took_s = time.monotonic() - now_s
            self._survey_at_s = time.monotonic() + max(SURVEY_S, took_s / SURVEY_SHARE)
        if now_s >= self._sweep_at_s:
            self._sweep_at_s = now_s + SWEEP_S
            await self._sweep(endpoints)
        now_ms = int(time.time() * 1000)
        for name in [n for n, at_ms in self._look_at_ms.items() if at_ms <= now_ms]:
            endpoint = endpoints.get(name)
            if endpoint is None or endpoint.paused:
                self._look_at_ms.pop(name, None)
                continue
            await self._begin(sender, endpoint, lanes, now_ms)

    async def _begin(
        self, sender: Sender, endpoint: Endpoint, lanes: frozenset[int], now_ms: int
    ) -> None:
        """Start as many deliveries of one endpoint as there is room for."""
        name = endpoint.name
        condition = self._conditions.setdefault(name, Condition())
        shared = OPEN_SHARED_MAX - len(self._tasks)
        if condition.open == 0:
            shared = max(shared, min(1, OPEN_MAX - len(self._tasks)))
        room = min(condition.room(endpoint.concurrency_max, time.monotonic()), shared)
        if room <= 0:
            return
        under_way = self._under_way.setdefault(name, set())
        # Taken off before it is asked: who wakes it in between is not forgotten.
        self._look_at_ms.pop(name, None)
        heads = await self._apart(self._store.due, name, lanes, now_ms, room, frozenset(under_way))
        if len(heads) == room:
            self._look_at_ms.setdefault(name, 0)
        for head in heads:
            condition.open += 1
            under_way.add(head.payment_id)
            task = asyncio.create_task(self._deliver(sender, endpoint, head, condition))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(
        self, sender: Sender, endpoint: Endpoint, head: Head, condition: Condition
    ) -> None:
        try:
            delivery = await sender.send(endpoint, head.event_id, head.body)
        finally:
            condition.open -= 1
        failpoints.hit("notifications.delivered")
        if delivery.outcome == DELIVERED:
            condition.delivered()
        elif delivery.outcome in _TROUBLE or (delivery.status or 0) in (429, *range(500, 600)):
            condition.failed(time.monotonic())
        self._metrics.delivery(endpoint.name, delivery.outcome, delivery.took_ms / 1000)
        result = judge(head, delivery, first_ms=self._first_ms, tries_max=self._tries_max)
        if result.state != STATE_DELIVERED:
            _log.warning(
                "callback %s (%s) to %s, try %d: %s %s %s",
                head.event_id, head.type, endpoint.name, head.tries + 1, delivery.outcome,
                delivery.status or "", delivery.detail,
            )  # fmt: skip
        self._ended.append(result)
        self._news.set()

    async def _record(self) -> None:
        """Write down what has ended; until that is done its payments stay under way."""
        ended = list(self._ended)
        if not ended:
            return
        late = await self._apart(self._store.record, ended)
        del self._ended[: len(ended)]
        for result in late:
            _log.warning(
                "callback %s to %s was asked for again while a try was open (%s): it is sent "
                "once more", result.head.event_id, result.head.endpoint, result.delivery.outcome,
            )  # fmt: skip
        now_ms = int(time.time() * 1000)
        for result in ended:
            name = result.head.endpoint
            self._under_way[name].discard(result.head.payment_id)
            self._look_at_ms[name] = min(self._look_at_ms.get(name, now_ms), now_ms)
            if result.state != WAITING and result not in late:
                self._metrics.ended(result.state)

    async def _survey(self, endpoints: Endpoints, lanes: frozenset[int]) -> None:
        found = await self._apart(self._store.waiting, lanes)
        for name, (_count, due_ms, _oldest_ms, kept_ms) in found.items():
            self._look_at_ms[name] = min(due_ms, self._look_at_ms.get(name, due_ms))
            endpoint = endpoints.get(name)
            if endpoint is not None and not endpoint.paused:
                await self._give_up_overdue(endpoint, lanes, kept_ms)
        self._metrics.waiting(
            sum(count for count, _, _, _ in found.values()),
            min((oldest_ms for _, _, oldest_ms, _ in found.values()), default=None),
        )

    async def _give_up_overdue(
        self, endpoint: Endpoint, lanes: frozenset[int], kept_ms: int
    ) -> None:
        """``kept_ms``: since when the first of its callbacks waits."""
        now_ms = int(time.time() * 1000)
        patience = patience_ms(self._first_ms, self._tries_max, endpoint.timeout_ms)
        if kept_ms > now_ms - patience:
            return
        under_way = frozenset(self._under_way.get(endpoint.name, ()))
        ended = await self._give_up(
            self._store.give_up_overdue, endpoint.name, lanes, patience, now_ms, under_way
        )
        if ended:
            _log.warning(
                "%d callbacks to %s given up: it has taken nothing for as long as their tries "
                "would take", ended, endpoint.name,
            )  # fmt: skip

    async def _sweep(self, endpoints: Endpoints) -> None:
        now_ms = int(time.time() * 1000)
        ended = await self._give_up(
            self._store.give_up_forgotten,
            tuple(endpoints.by_name),
            now_ms - FORGOTTEN_AFTER_MS,
            now_ms,
        )
        if ended:
            _log.warning("%d callbacks given up: their endpoint is not configured any more", ended)
        if ended == ROWS_MAX:
            # There may be more, for the next turn: what is due of others goes first.
            self._sweep_at_s = 0.0
        await self._apart(self._store.forget, now_ms - KEPT_MS)

    async def _give_up(self, call: Callable[..., int], *given: Any) -> int:
        """Ask the store to give up, as many as it does at a time; how many those were."""
        ended = await self._apart(call, *given)
        for _ in range(ended):
            self._metrics.ended(GIVEN_UP)
        return ended

    async def _drain(self) -> None:
        if self._tasks:
            _done, cut_off = await asyncio.wait(self._tasks, timeout=DRAIN_S)
            for task in cut_off:
                task.cancel()
        try:
            await self._record()
        except StoreAway as error:
            _log.warning("%d deliveries are not recorded and will be repeated: %s",
                         len(self._ended), error)  # fmt: skip

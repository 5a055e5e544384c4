"""What stands for threading, queue and asyncio's loop in a simulated process."""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from tests.simulation.world import SHORT_S, Killed, Process


class SimThread:
    def __init__(
        self, process: Process, target: Callable[[], None], name: str = "", daemon: bool = True
    ) -> None:
        self._process = process
        self._target = target
        self._fibre: Any = None

    def start(self) -> None:
        self._fibre = self._process.spawn(self._target)

    def join(self, timeout_s: float | None = None) -> None:
        world = self._process.world
        deadline_s = None if timeout_s is None else world.now_s + timeout_s
        while self.is_alive() and not self._process.dead:
            if deadline_s is not None and world.now_s >= deadline_s:
                return
            self._fibre.joined_by = world.current
            world.current.park(None if deadline_s is None else deadline_s - world.now_s)

    def is_alive(self) -> bool:
        return self._fibre is not None and not self._fibre.done


class SimEvent:
    def __init__(self, process: Process) -> None:
        self._process = process
        self._set = False

    def set(self) -> None:
        self._set = True
        self._process.ring()

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout_s: float | None = None) -> bool:
        if not self._set:
            if timeout_s is None:
                while not self._set:
                    self._process.world.current.park(0.001)
            else:
                # Set or not, it is rung when there is news.
                self._process.idle(timeout_s, long=True)
        return self._set


class SimQueue:
    def __init__(self, process: Process) -> None:
        self._process = process
        self._items: deque[Any] = deque()
        self._waiting: Any = None

    def put(self, item: Any) -> None:
        process = self._process
        if process.on_put is not None:
            process.on_put(item)
        self._items.append(item)
        if self._waiting is not None:
            self._waiting.wake()
        if process.world.current is not process.fibres[0]:
            process.ring()

    def get(self, block: bool = True, timeout_s: float | None = None) -> Any:
        process, items = self._process, self._items
        if process.dead:
            raise Killed
        if not items:
            if block:
                self._waiting = fibre = process.world.current
                if timeout_s is not None:
                    # What is put wakes it: turning a loop meanwhile shows nothing.
                    fibre.park(timeout_s if timeout_s > SHORT_S else SHORT_S)
                else:
                    while not items:
                        fibre.park(None)
                self._waiting = None
            if not items:
                raise queue.Empty
        return items.popleft()

    def get_nowait(self) -> Any:
        return self.get(False)


class Handle:
    """A call that a loop is to make: asyncio's own copies a context for each, which nothing here
    looks at."""

    __slots__ = ("args", "callback", "is_off")

    def __init__(self, callback: Any, args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self.is_off = False

    def cancel(self) -> None:
        self.is_off = True

    def cancelled(self) -> bool:
        return self.is_off

    @property
    def is_sweep(self) -> bool:
        """Whether it is the look at open calls, which comes again by itself."""
        of = (self.callback, *self.args)
        return any(getattr(each, "__name__", "") == "_sweep" for each in of)


class SimLoop(asyncio.AbstractEventLoop):
    """As much of an event loop as gateway calls need, run by a fibre of its process. No loop is
    said to be running (asyncio would be told twice a turn): who needs it has it from ``process``.

    Its sweep of open calls is not run while none is open: it would only turn.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        process.loop = self
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._count = 0
        self._fibre: Any = None
        self._stopping = False
        # Those that are not done, and those that have been since that was asked.
        self._tasks: list[asyncio.Task[Any]] = []

    def time(self) -> float:
        now_s: float = self._process.world.now_s
        return now_s

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = Handle(callback, args)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = self.call_soon(callback, *args, context=context)
        self._wake()
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Any = None
    ) -> Any:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        timer = Handle(callback, args)
        self._count += 1
        heappush(self._timers, (when, self._count, timer))
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **_more: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        task = asyncio.Task(coro, loop=self)
        self._tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not self._process.dead:
            self._process.died_of = error

    def run_forever(self) -> None:
        self._stopping = False
        while not self._stopping:
            self._run_once()

    def run_until_complete(self, awaited: Any) -> Any:
        if self._process.dead:
            if asyncio.iscoroutine(awaited):
                awaited.close()
            raise Killed
        task = awaited if isinstance(awaited, asyncio.Future) else self.create_task(awaited)
        while not task.done():
            self._run_once()
        return task.result()

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None: ...

    def resolve(self, future: asyncio.Future[Any], answer: Any) -> None:
        """Called by the world: the answer of a gateway has arrived."""
        if not self._process.dead and not future.done():
            future.set_result(answer)
            self._wake()

    def _wake(self) -> None:
        if self._fibre is not None:
            self._fibre.wake()

    def _run_once(self) -> None:
        process = self._process
        if process.dead:
            raise Killed
        world = process.world
        timers, ready = self._timers, self._ready
        if not ready and not (timers and timers[0][0] <= world.now_s):
            self._fibre = fibre = world.current
            if not timers or self._is_asleep():
                fibre.park(None)
            else:
                wait_s = timers[0][0] - world.now_s
                fibre.park(wait_s if wait_s > 0.0 else 0.0)
            self._fibre = None
        while timers and timers[0][0] <= world.now_s:
            timer = heappop(timers)[2]
            if not timer.is_off:
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.is_off:
                try:
                    handle.callback(*handle.args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler({"exception": error})

    def _is_asleep(self) -> bool:
        """Whether only the sweep is left: nothing to look at until somebody calls."""
        if self._tasks:
            for task in self._tasks:
                if task.done():
                    # Else each loop that ends looks through all that a process ever made.
                    asyncio.tasks._unregister_task(task)
            self._tasks = [task for task in self._tasks if not task.done()]
            if self._tasks:
                return False
        return all(timer.is_off or timer.is_sweep for _, _, timer in self._timers)

"""Time, chance and processes of a simulation.

A process is what an operating system would call one: some fibres (its threads), which see the same
clock and die together. One fibre runs at a time, until it waits for something; which of those that
can go on goes next is drawn from the seed. Time moves only when nobody can go on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from operator import attrgetter
from random import Random
from typing import Any

from greenlet import getcurrent, greenlet

# 2027-01-15 08:00 UTC, the business date of the simulated orders.
BEGIN_S = 1_800_000_000.0
# An idle worker is not turned for ever; an hour is as good as any while nothing happens.
IDLE_S_MAX = 3_600.0
# Steps without any of simulated time passing: a fibre that goes round in circles is a bug.
# Shorter waits of an idle loop are as long as this.
SHORT_S = 0.5
STEPS_AT_ONCE_MAX = 200_000


class Killed(BaseException):
    """The process of this fibre is gone; nothing it does has an effect any more."""


class Stuck(Exception):
    """The simulation goes round without time passing."""


class Process:
    """``skew_s``: by how much its clock differs from the brokers'."""

    def __init__(self, world: World, name: str, skew_s: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.skew_s = skew_s
        # How long its idle loop is left alone at most.
        self.idle_s_max = IDLE_S_MAX
        self.dead = False
        self.paused = False
        self.fibres: list[Fibre] = []
        self.rung = False
        self.died_of: BaseException | None = None
        # What waits for one of its steps; told of a step only while there is any.
        self.armed: list[Any] = []
        self.on_step: Callable[[Process, str], None] | None = None
        self.on_death: list[Callable[[], None]] = []
        self.on_pause: list[Callable[[], None]] = []
        # The transactions that it began since it last knew how one had ended.
        self.intents: list[Any] = []
        # Told of what its threads hand to each other.
        self.on_put: Callable[[Any], None] | None = None
        # Its event loop, if it has one.
        self.loop: Any = None

    def time_s(self) -> float:
        return self.world.now_s + self.skew_s

    def monotonic_s(self) -> float:
        return self.world.now_s

    def spawn(self, target: Callable[[], None]) -> Fibre:
        fibre = Fibre(self, target)
        self.fibres.append(fibre)
        self.world.ready.append(fibre)
        return fibre

    def ring(self) -> None:
        """Something happened that its main fibre may want to look at."""
        self.rung = True
        # No other one is idle, or told of it.
        main = self.fibres[0]
        if main.idle:
            main.wake()

    def idle(self, timeout_s: float, *, long: bool) -> None:
        """Wait as a main fibre does that has nothing to do. A wait that nothing interrupts may last
        longer than asked for: turning an idle loop shows nothing."""
        fibre = self.world.current
        if fibre is not self.fibres[0]:
            fibre.park(timeout_s)
            return
        if self.rung:
            self.rung = False
            return
        fibre.idle = True
        # A short wait is for something of its own that is due soon.
        fibre.park(self.idle_s_max if long else max(timeout_s, SHORT_S))
        fibre.idle = False
        self.rung = False

    def step(self, name: str) -> None:
        """A place where faults may strike."""
        if self.dead:
            raise Killed
        if self.armed and self.on_step is not None:
            self.on_step(self, name)
            if self.dead:
                raise Killed
        if self.paused:
            self.world.current.freeze()

    def kill(self) -> None:
        """SIGKILL. Its fibres unwind without any effect."""
        if self.dead:
            return
        self.dead = True
        self.paused = False
        for told in self.on_death:
            told()
        here = self.world.current
        for fibre in self.fibres:
            if fibre is not here and not fibre.done:
                fibre.parked = False
                fibre.unwind()

    def pause(self) -> None:
        """SIGSTOP: it stops where it is, believing what it believes."""
        self.paused = True
        for told in self.on_pause:
            told()

    def resume(self) -> None:
        """SIGCONT."""
        if not self.paused:
            return
        self.paused = False
        for fibre in self.fibres:
            if not fibre.done and fibre.late:
                fibre.late = False
                self.world.ready.append(fibre)

    @property
    def ended(self) -> bool:
        return self.dead or all(fibre.done for fibre in self.fibres[:1])


class Fibre:
    """One thread of a process."""

    __slots__ = (
        "_greenlet",
        "_switch",
        "_target",
        "_token",
        "_world",
        "done",
        "idle",
        "joined_by",
        "late",
        "parked",
        "process",
        "started",
    )

    def __init__(self, process: Process, target: Callable[[], None]) -> None:
        self.process = process
        self._target = target
        self._world = process.world
        self._greenlet = greenlet(self._run, process.world.hub)
        self._switch = self._greenlet.switch
        self._token = 0
        self.parked = False
        self.idle = False
        self.done = False
        self.started = False
        # Woken while its process was paused.
        self.late = False
        # Who waits for its end.
        self.joined_by: Fibre | None = None

    def _run(self) -> None:
        try:
            self._target()
        except Killed:
            pass
        except BaseException as error:
            self.process.died_of = error
        finally:
            self.done = True
            if self.joined_by is not None:
                self.joined_by.wake()

    def park(self, timeout_s: float | None) -> None:
        """Give way until woken, or until the time is over."""
        process = self.process
        if process.dead:
            raise Killed
        world = self._world
        if timeout_s is not None:
            world._count = count = world._count + 1
            at_s = world.now_s + timeout_s
            heap = world._heap
            if (
                not world.ready
                and world.now_s < at_s <= world.until_s
                and (not heap or at_s < heap[0][0])
            ):
                # Nobody else has anything to do until then: it is its own successor.
                world.now_s = at_s
                world.steps += 1
                return
            self._token = token = self._token + 1
            self.parked = True
            heappush(heap, (at_s, count, self, token))
        else:
            self._token += 1
            self.parked = True
        world.give_way()
        if process.dead:
            raise Killed

    def doze(self, most_s: float) -> None:
        """Give way for a while, mostly a short one."""
        drawn = self._world.draw()
        self.park(most_s * drawn * drawn)

    def freeze(self) -> None:
        """Stand still with the whole process until it is resumed."""
        self.late = True
        self._world.give_way()
        if self.process.dead:
            raise Killed

    def wake(self) -> None:
        if not self.parked or self.done:
            return
        self.parked = False
        if self.process.paused:
            self.late = True
        else:
            self.process.world.ready.append(self)

    def unwind(self) -> None:
        """Let a fibre of a dead process run out; every call of a client there raises at once."""
        if self.done:
            return
        if not self.started:
            self.done = True
            return
        world = self.process.world
        before, world.current = world.current, self
        try:
            self._greenlet.parent = getcurrent()
            self._greenlet.throw(Killed)
        finally:
            world.current = before


class World:
    """``run`` until nothing is left to do, or until a time."""

    def __init__(self, seed: str) -> None:
        self.random = Random(f"{seed}/schedule")
        self.draw = self.random.random
        self.now_s = BEGIN_S
        self.until_s = BEGIN_S
        self.ready: list[Fibre] = []
        self.give_way: Callable[[], None] = getcurrent().switch
        self.hub: Any = getcurrent()
        self.current: Any = None
        self.steps = 0
        # What is to happen, in the order of time: a call, or a fibre and the wait it was in.
        self._heap: list[tuple[float, int, Any, int]] = []
        self._count = 0
        # Called more often than anything else.
        self.clock: Callable[[], float] = partial(attrgetter("now_s"), self)

    def close(self) -> None:
        """Nothing happens any more."""
        self._heap.clear()
        self.ready.clear()

    @property
    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        self._count = count = self._count + 1
        heappush(self._heap, (self.now_s + delay_s, count, call, -1))

    def jitter(self, most_s: float) -> float:
        """A delay, mostly short."""
        drawn = self.draw()
        return most_s * drawn * drawn

    def run(self, until_s: float) -> bool:
        """True when nothing is left; False when the time came first."""
        self.hub = getcurrent()
        self.give_way = self.hub.switch
        self.until_s = until_s
        ready, heap, draw = self.ready, self._heap, self.draw
        at_once = 0
        while True:
            if ready:
                at_once += 1
                if at_once > STEPS_AT_ONCE_MAX:
                    raise Stuck(f"{ready[0].process.name} goes round without time passing")
                last = len(ready) - 1
                if last:
                    index = int(draw() * (last + 1))
                    fibre = ready[index]
                    ready[index] = ready[last]
                    ready.pop()
                else:
                    fibre = ready.pop()
                self.current = fibre
                self.steps += 1
                if fibre.done:
                    continue
                process = fibre.process
                if process.dead:
                    fibre.unwind()
                elif process.paused:
                    fibre.late = True
                else:
                    fibre.started = True
                    fibre._switch()
                continue
            if not heap:
                return True
            if heap[0][0] > until_s:
                self.now_s = until_s
                return False
            at_s, _, call, token = heappop(heap)
            if token < 0:
                if at_s > self.now_s:
                    self.now_s = at_s
                    at_once = 0
                self.current = None
                call()
                continue
            if not call.parked or call._token != token:
                continue  # woken before
            if at_s > self.now_s:
                self.now_s = at_s
                at_once = 0
            call.parked = False
            if call.process.paused:
                call.late = True
            elif not call.done:
                ready.append(call)

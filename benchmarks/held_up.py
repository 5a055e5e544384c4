"""How long calls of a gateway that hangs hold up those of another, in a model of the worker's loop.

The gate is the worker's own (``Protection``). The loop around it, requests and gateways are a model
on a clock of their own, drawn from a seed: no broker, no thread, no waiting. A request's partition
may be committed once all before it have ended, been parked or been refused; the time from its
coming until then is how long it was held up, its own call included. Charges without an answer are
asked about in the same partition; what else follows, retries, is left out.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from benchmarks.latency import percentiles
from pipeline.domain.answer import UNKNOWN, GatewayAnswer
from pipeline.domain.breaker import BreakerRule
from pipeline.domain.payment import INQUIRE
from pipeline.domain.policy import GatewayProfile
from pipeline.runtime.calls import SWEEP_INTERVAL_S
from pipeline.runtime.protection import HOLD_MS, Hold, Permit, Protection

PARTITIONS = 4
# Of both gateways together.
REQUESTS_PER_S = 40.0
OTHERS_TAKE_S = 0.1
# A call that hangs is given up by its adapter then.
GIVEN_UP_S = 10.0
# The worker's first seconds are looked at by themselves: it has few answers to go by.
WARM_UP_S = 20.0
MEASURED_S = 120.0
SEEDS = 10

# Of an inquiry's first tier.
ASKED_AFTER_S = 5.0

_WELL = GatewayAnswer(outcome="succeeded", gateway_reference="ch")
_SILENCE = GatewayAnswer(outcome="unknown", code="timeout")
_TROUBLED, _OTHER = "troubled", "other"


@dataclass(frozen=True)
class Case:
    """A gateway some of whose calls hang. ``variants``: its calls a second, and its places."""

    calls: str
    variants: tuple[tuple[float, int | None], ...]
    hangs: float
    good_s: float
    # One of twenty good answers takes over twice as long.
    uneven: bool = False
    usual_ms: int | None = None
    at_start: bool = False
    # Of the questions about charges without an answer.
    questions_hang: float = 0.0

    @property
    def answers(self) -> str:
        return f"{self.good_s:g} s" + (
            f", one of 20 over {2 * self.good_s:g} s" if self.uneven else ""
        )


CASES = (
    Case("20/s, or 10/s with 10 places", ((20, None), (10, 10)), 0.1, 0.1),
    Case("the same, its questions as well", ((20, None), (10, 10)), 0.1, 0.1, questions_hang=0.1),
    Case("10/s, or 10/s with 6 places", ((10, None), (10, 6)), 0.3, 0.1),
    Case("4/s", ((4, None),), 0.5, 0.1),
    Case("1/s", ((1, None),), 0.5, 0.1),
    Case("the same, the first 20 s of the worker", ((1, None),), 0.5, 0.1, at_start=True),
    Case("the same with `usual_ms = 250`", ((1, None),), 0.5, 0.1, usual_ms=250, at_start=True),
    Case("10/s", ((10, None),), 0.1, 0.3, uneven=True),
    Case("10/s", ((10, None),), 0.1, 0.6, uneven=True),
    Case("10/s", ((10, None),), 0.1, 1.0, uneven=True),
)


@dataclass(frozen=True)
class HeldUp:
    """The other gateway's requests of one run, in seconds."""

    p99_s: float
    max_s: float


class _Request(Struct, eq=False):
    gateway: str
    partition: int
    came_s: float
    kind: str = "charge"
    began_s: float = 0.0
    permit: Permit | None = None
    done: bool = False


@dataclass
class Loop:
    """The worker's: requests begin as far as the gate lets them, and are looked at while open."""

    case: Case
    rng: random.Random
    per_s: float
    places: int | None
    now_s: float = 0.0
    held: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rule = BreakerRule(usual_ms=self.case.usual_ms)
        self._gate = Protection(
            [
                GatewayProfile(name=_TROUBLED, breaker=rule, concurrency_max=self.places),
                GatewayProfile(name=_OTHER),
            ],
            now_ms=lambda: self.now_s * 1_000,
        )
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._waiting: dict[str, deque[_Request]] = {_TROUBLED: deque(), _OTHER: deque()}
        self._open: dict[_Request, None] = {}
        self._lanes: list[deque[_Request]] = [deque() for _ in range(PARTITIONS)]
        self._wakes: set[str] = set()

    def run(self, seconds: float) -> None:
        for gateway, per_s in (
            (_TROUBLED, self.per_s),
            (_OTHER, REQUESTS_PER_S - self.per_s),
        ):
            self._after(self.rng.expovariate(per_s), self._come, gateway, per_s)
        self._after(SWEEP_INTERVAL_S, self._sweep)
        while self._events and self._events[0][0] <= seconds:
            self.now_s, _, step, of = heapq.heappop(self._events)
            step(*of)

    def _after(self, seconds: float, step: Callable[..., None], *of: Any) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now_s + seconds, self._number, step, of))

    def _come(self, gateway: str, per_s: float) -> None:
        self._take(_Request(gateway, self.rng.randrange(PARTITIONS), self.now_s))
        self._after(self.rng.expovariate(per_s), self._come, gateway, per_s)

    def _take(self, request: _Request) -> None:
        request.came_s = self.now_s
        self._lanes[request.partition].append(request)
        self._waiting[request.gateway].append(request)
        self._fill(request.gateway)

    def _fill(self, gateway: str) -> None:
        waiting = self._waiting[gateway]
        while waiting:
            request = waiting[0]
            said = self._gate.ask(gateway, request.kind, (self.now_s - request.came_s) * 1_000)
            if isinstance(said, Hold):
                if said.seconds is not None and gateway not in self._wakes:
                    self._wakes.add(gateway)
                    self._after(said.seconds, self._wake, gateway)
                return
            waiting.popleft()
            if isinstance(said, GatewayAnswer):
                self._finish(request, said)
                continue
            request.began_s, request.permit = self.now_s, said
            self._open[request] = None
            takes_s, answer = self._drawn(request)
            self._after(takes_s, self._ended, request, answer)
            if said.probe:
                self._after(HOLD_MS / 1_000, self._look, request)

    def _wake(self, gateway: str) -> None:
        self._wakes.discard(gateway)
        self._fill(gateway)

    def _drawn(self, request: _Request) -> tuple[float, GatewayAnswer]:
        if request.gateway == _OTHER:
            return OTHERS_TAKE_S, _WELL
        hangs = self.case.hangs if request.kind == "charge" else self.case.questions_hang
        if self.rng.random() < hangs:
            return GIVEN_UP_S, _SILENCE
        if self.case.uneven and self.rng.random() < 0.05:
            return self.case.good_s * self.rng.uniform(2.0, 2.4), _WELL
        return self.case.good_s * self.rng.uniform(0.8, 1.2), _WELL

    def _ended(self, request: _Request, answer: GatewayAnswer) -> None:
        del self._open[request]
        if request.permit is not None:
            self._gate.ended(request.permit, answer)
        self._finish(request, answer)
        self._fill(request.gateway)

    def _look(self, request: _Request) -> None:
        """Whether it is waited for any longer; one that is not is looked at all the same."""
        if request in self._open and request.permit is not None:
            open_ms = (self.now_s - request.began_s) * 1_000
            if self._gate.is_slow(request.permit, open_ms):
                self._finish(request, _SILENCE)

    def _sweep(self) -> None:
        for request in list(self._open):
            self._look(request)
        for gateway in self._waiting:
            self._fill(gateway)
        self._gate.report()
        self._after(SWEEP_INTERVAL_S, self._sweep)

    def _finish(self, request: _Request, answer: GatewayAnswer) -> None:
        if request.done:
            return
        request.done = True
        if answer.outcome == UNKNOWN:
            question = _Request(request.gateway, request.partition, 0.0, INQUIRE)
            self._after(ASKED_AFTER_S, self._take, question)
        lane = self._lanes[request.partition]
        while lane and lane[0].done:
            ended = lane.popleft()
            if ended.gateway == _OTHER:
                self.held.append((ended.came_s, self.now_s - ended.came_s))


def held_up(case: Case, variant: tuple[float, int | None], seed: int, seconds: float) -> HeldUp:
    """One run of a worker; of a case that is not ``at_start``, what came after its first 20 s."""
    per_s, places = variant
    loop = Loop(case, random.Random(f"{case}:{variant}:{seed}"), per_s, places)
    # Until what came last in the measured time has surely ended.
    loop.run(WARM_UP_S + seconds + 2 * GIVEN_UP_S)
    begin_s, end_s = (0.0, WARM_UP_S) if case.at_start else (WARM_UP_S, WARM_UP_S + seconds)
    found = percentiles([held_s for came_s, held_s in loop.held if begin_s <= came_s < end_s])
    return HeldUp(found.p99, found.max)


def measured(
    say: Callable[[str], None], *, seeds: int = SEEDS, seconds: float = MEASURED_S
) -> list[tuple[Case, list[HeldUp]]]:
    """Each case by each of its variants and seeds."""
    found = []
    for case in CASES:
        say(f"{case.calls}, {case.hangs:.0%} of them hang, good answers take {case.answers}")
        runs = [
            held_up(case, variant, seed, seconds)
            for variant in case.variants
            for seed in range(seeds)
        ]
        found.append((case, runs))
    return found


def as_markdown(found: Sequence[tuple[Case, list[HeldUp]]], command: str) -> str:
    """The table of the documents."""
    lines = [
        f"`{command}`:",
        "",
        "| calls at the gateway | of them hang | its good answers take | others' p99 | longest |",
        "|---|---|---|---|---|",
    ]
    for case, runs in found:
        least, most = min(run.p99_s for run in runs), max(run.p99_s for run in runs)
        longest = max(run.max_s for run in runs)
        lines.append(
            f"| {case.calls} | {case.hangs:.0%} | {case.answers} | {least:.1f} to {most:.1f} s | "
            f"{longest:.1f} s |".replace("%", " %")
        )
    return "\n".join(lines)

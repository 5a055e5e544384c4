"""A gateway that hangs, or is merely slow, seen by one worker's gate over a minute of its calls.

Time is stepped by hand. A request is held from its arrival until it is answered, by its call's end
or without it: whatever stands behind it in its partition is held as long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from prometheus_client import Gauge

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.breaker import BreakerRule
from pipeline.domain.health import BREAKER_OPEN, THROTTLED
from pipeline.domain.policy import GatewayProfile
from pipeline.observability.metrics import Metrics
from pipeline.runtime.calls import SWEEP_INTERVAL_S
from pipeline.runtime.protection import (
    HOLD_MS,
    LIMIT_WAIT_MS_MAX,
    SUSPECTED_HOLD_MS,
    Hold,
    Permit,
    Protection,
)

RULE = BreakerRule()
CLOSED = 0  # as the metric says it
STEP_MS = 125
SWEEP_MS = int(SWEEP_INTERVAL_S * 1000)
HTTP_DEADLINE_MS = 10_000
WELL = GatewayAnswer(outcome="succeeded", gateway_reference="ch")
LOST = GatewayAnswer(outcome="unknown", code="timeout")


@dataclass
class Request:
    kind: str
    came_ms: float
    permit: Permit | None = None
    ends_ms: float = 0.0
    well: bool = False
    held_ms: float | None = None
    parked: bool = False
    code: str | None = None


@dataclass
class Worker:
    """One worker's calls at gateway ``a``, made and looked at as ``Calls`` does. ``b`` only is.

    ``took_ms(kind)``: how long a call that begins now takes, or None if it is never answered.
    ``lost_ms``: after how long such a call is given up.
    """

    took_ms: Callable[[str], float | None]
    concurrency_max: int | None = None
    lost_ms: float = HTTP_DEADLINE_MS
    now_ms: float = 0.0
    open: list[Request] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)
    answered: list[Request] = field(default_factory=list)
    states: set[float] = field(default_factory=set)
    open_max: int = 0
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        a = GatewayProfile(name="a", concurrency_max=self.concurrency_max)
        self.gate = Protection(
            [a, GatewayProfile(name="b")], metrics=self.metrics, now_ms=lambda: self.now_ms
        )

    def run(self, seconds: float, per_s: float, kinds: str = "charge") -> list[Request]:
        """So many requests a second for a while; those that came and were answered in it."""
        mix, due, since_ms = kinds.split(), 0.0, self.now_ms
        until_ms = since_ms + seconds * 1000
        while self.now_ms < until_ms:
            self.now_ms += STEP_MS
            self._end()
            if not self.now_ms % SWEEP_MS:
                self._sweep()
            due += per_s * STEP_MS / 1000
            while due >= 1:
                due -= 1
                mix = [*mix[1:], mix[0]]
                self.waiting.append(Request(mix[0], self.now_ms))
            self._fill()
        return [each for each in self.answered if each.came_ms > since_ms]

    @property
    def state(self) -> float:
        """The breaker's, as the metric says it."""
        return gauge(self.metrics.breaker_state, gateway="a")

    def _end(self) -> None:
        ended = [each for each in self.open if each.ends_ms <= self.now_ms]
        if ended:
            self.open = [each for each in self.open if each.ends_ms > self.now_ms]
        for each in ended:
            assert each.permit is not None
            self.gate.ended(each.permit, WELL if each.well else LOST)
            self._answer(each)

    def _sweep(self) -> None:
        for each in self.open:
            assert each.permit is not None
            if self.gate.is_slow(each.permit, self.now_ms - each.permit.began_ms):
                each.parked |= each.held_ms is None
                self._answer(each)
        self.gate.report()
        self.states.add(self.state)

    def _fill(self) -> None:
        while self.waiting:
            each = self.waiting[0]
            said = self.gate.ask("a", each.kind, self.now_ms - each.came_ms)
            if isinstance(said, Hold):
                break
            self.waiting.pop(0)
            if isinstance(said, GatewayAnswer):
                each.code = said.code
                self._answer(each)
                continue
            took_ms = self.took_ms(each.kind)
            each.permit, each.well = said, took_ms is not None
            each.ends_ms = self.now_ms + (self.lost_ms if took_ms is None else took_ms)
            self.open.append(each)
            self.open_max = max(self.open_max, len(self.open))

    def _answer(self, each: Request) -> None:
        if each.held_ms is None:
            each.held_ms = self.now_ms - each.came_ms
            self.answered.append(each)


def gauge(metric: Gauge, **labels: str) -> float:
    return next(s.value for m in metric.collect() for s in m.samples if s.labels == labels)


def most_held_ms(requests: list[Request]) -> float:
    return max(each.held_ms for each in requests if each.held_ms is not None)


@pytest.mark.parametrize("per_s", [0.2, 1, 8])
@pytest.mark.parametrize("concurrency_max", [1, 16, None])
def test_a_gateway_that_hangs_opens_its_breaker_however_few_its_calls_and_places(
    concurrency_max: int | None, per_s: float
) -> None:
    """It was quick before. Nobody is held for longer than its silence is noticed, nor after that
    for longer than a suspicion may cost; in the end nothing but probes is held at all."""
    hangs = False
    worker = Worker(lambda _: None if hangs else 125, concurrency_max)
    worker.run(30, per_s)
    hangs = True
    noticing = worker.run(1 / per_s + (RULE.silent_ms + SWEEP_MS) / 1000, per_s)
    assert most_held_ms(noticing) <= RULE.silent_ms + SWEEP_MS
    then = worker.run(RULE.hanging_min / per_s + 10, per_s)
    assert most_held_ms(then) <= SUSPECTED_HOLD_MS + SWEEP_MS
    assert worker.state != CLOSED
    later = worker.run(60, per_s)
    assert most_held_ms(later) <= HOLD_MS + SWEEP_MS
    assert {each.code for each in later} == {None, BREAKER_OPEN}


@pytest.mark.parametrize("concurrency_max", [1, None])
def test_a_gateway_that_hangs_from_the_start_opens_its_breaker(concurrency_max: int | None) -> None:
    """It has answered nobody yet, so it may only be slow: what says that it is not is slow_ms."""
    worker = Worker(lambda _: None, concurrency_max)
    assert most_held_ms(worker.run(10, 2)) <= RULE.slow_ms + SWEEP_MS
    assert worker.state != CLOSED
    assert most_held_ms(worker.run(30, 2)) <= HOLD_MS + SWEEP_MS


@pytest.mark.parametrize("took_ms", [2_600, 4_900])
@pytest.mark.parametrize("concurrency_max", [1, None])
@pytest.mark.parametrize("per_s", [0.2, 1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_gateway_that_is_merely_slow_is_never_left_alone(
    took_ms: float, concurrency_max: int | None, per_s: float
) -> None:
    """From the worker's start on, with inquiries that are quick among its calls, and in bursts."""
    worker = Worker(lambda kind: 200 if kind == "inquire" else took_ms, concurrency_max)
    worker.run(60, per_s)
    worker.run(60, per_s, "charge inquire inquire inquire")
    worker.run(30, 0)
    worker.run(30, 5, "inquire")
    worker.run(30, 0)
    worker.run(60, 2 * per_s)
    assert worker.states == {CLOSED}
    assert not [each for each in worker.answered if each.parked]


@pytest.mark.parametrize("took_ms", [300, 4_900])
@pytest.mark.parametrize("concurrency_max", [1, None])
@pytest.mark.parametrize("per_s", [0.2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_gateway_that_comes_back_slow_is_called_as_before(
    took_ms: float, concurrency_max: int | None, per_s: float
) -> None:
    """Whatever it was found doing in its outage says nothing once it answers."""
    hangs = False
    worker = Worker(lambda _: None if hangs else took_ms, concurrency_max)
    worker.run(30, per_s)
    hangs = True
    worker.run(60, per_s)
    assert worker.state != CLOSED
    hangs = False
    # The longest wait of its breaker, and its probes one after the other.
    worker.run((RULE.wait_ms_max + HTTP_DEADLINE_MS) / 1000 + 3 * (5 + 1 / per_s), per_s)
    worker.states.clear()
    worker.run(60, per_s)
    assert worker.states == {CLOSED}


def test_a_gateway_that_takes_no_connections_is_a_gateway_that_hangs() -> None:
    """Each call is given up before silence is noticed, and has held others as long."""
    worker = Worker(lambda _: None, lost_ms=2_000)
    worker.run(10, 1)
    assert worker.state != CLOSED
    assert most_held_ms(worker.run(60, 1)) <= HOLD_MS + SWEEP_MS


@pytest.mark.parametrize(
    ("kinds", "per_s"),
    [("charge " * 40 + "slow", 5), ("charge " * 80 + "slow slow slow", 20), ("slow charge", 0.1)],
)
def test_slow_cards_among_others_open_nothing(kinds: str, per_s: float) -> None:
    """Their own payments are asked about after slow_ms; those beside and after them are answered,
    and as long as some are the gateway does not hang."""
    takes = {"charge": 375.0, "slow": 8_000.0}
    worker = Worker(lambda kind: takes[kind])
    worker.run(90, per_s, kinds)
    assert worker.states == {CLOSED}
    assert most_held_ms(worker.answered) <= RULE.slow_ms + SWEEP_MS
    assert all(r.held_ms == takes["charge"] for r in worker.answered if r.kind == "charge")


def test_a_place_is_waited_for_once_nothing_hangs_any_more() -> None:
    """That a call was lost a while ago is no reason to refuse what waits for a working one."""
    hangs = True
    worker = Worker(lambda _: None if hangs else 375, concurrency_max=1)
    worker.run(1, 1)
    worker.run(60, 0)
    hangs = False
    worker.run(0.125, 24)
    worker.run(3, 0)
    assert [each.held_ms for each in worker.answered[1:]] == [375, 750, 1_125]
    assert {each.code for each in worker.answered} == {None}


@pytest.mark.parametrize("places", [4, 8])
def test_nobody_is_held_for_the_places_of_the_calls_that_hang_among_others(places: int) -> None:
    """One call of ten hangs and keeps its place until it is given up: whoever finds none waits a
    moment, and nobody gets a place that the gateway was not promised to be asked for."""
    mix = "slow" + 9 * " charge"
    worker = Worker(lambda kind: None if kind == "slow" else 125, concurrency_max=places)
    worker.run(5, 8)
    found = worker.run(120, 8, mix)
    assert most_held_ms(found) <= LIMIT_WAIT_MS_MAX + SWEEP_MS + SUSPECTED_HOLD_MS + SWEEP_MS
    assert worker.open_max == places, "all were taken"
    assert THROTTLED in {each.code for each in found}


def test_a_gateway_that_answers_inquiries_while_charges_hang_is_found_out() -> None:
    """Quick answers to other questions are no answers to charges."""
    hangs, mix = False, "charge" + 9 * " inquire"
    worker = Worker(lambda kind: 100 if kind == "inquire" or not hangs else None)
    worker.run(30, 10, mix)
    hangs = True
    worker.run((RULE.silent_ms + SWEEP_MS) / 1000 + RULE.hanging_min, 10, mix)
    assert worker.states != {CLOSED}
    later = worker.run(60, 10, mix)
    assert most_held_ms(later) <= SUSPECTED_HOLD_MS + SWEEP_MS


def test_with_one_gateway_calls_are_waited_for() -> None:
    """There is nobody behind a slow card to be held up, and its answer is worth the wait."""
    clock = [0.0]
    gate = Protection([GatewayProfile(name="a", concurrency_max=1)], now_ms=lambda: clock[0])
    permit = gate.ask("a", "charge", 0)
    assert isinstance(permit, Permit)
    clock[0] = RULE.slow_ms
    assert not gate.is_slow(permit, RULE.slow_ms)
    assert gate.ask("a", "charge", RULE.slow_ms) == Hold()

"""Somebody who looks for what was never done: journeys that are led, and can be repeated."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from pipeline.domain.lifecycle import MAIN_KINDS
from pipeline.domain.model import Payment, PaymentRequest
from pipeline.domain.recorded_refunds import recordable
from tests.property.journeys import DURATIONS, OUTCOMES, PEOPLE, WEATHERS, Journey
from tests.property.test_processors_lifecycle_properties import ALL_SO, Moved
from tests.support.lifecycle_steps import Steps
from tests.support.payment_story import SECOND

# Each weather with each kind of order and with a command before it; what ends at once, once.
STARTS: Final = (
    *itertools.product(WEATHERS, (None,), ("good",), (False, True), (1, 2)),
    *itertools.product(WEATHERS, ("refund",), ("good",), (False,), (1,)),
    *itertools.product(WEATHERS, (None,), ("soon",), (False, True), (2,)),
    *itertools.product(("none",), (None, "refund"), ("bad", "free", "none"), (False,), (1,)),
    *itertools.product(("none",), ("capture", "cancel"), ("good",), (True,), (1,)),
)
# What seldom leads anywhere new is done last.
RANKS: Final = {"answer": 2, "time": 2, "dispute": 2, "held": 2, "late": 2, "returned": 2}
# What a word, or a person's, may lead to.
HOPES: Final = {
    "done": (
        "success_seen", "late_success_seen", "charge_seen", "authorization_seen", "capture_seen",
        "cancel_confirmed",
    ),
    "declined": ("decline_seen", "declined_finally", "cancel_confirmed"),
    "troubled": ("decline_seen",),
    "pending": ("pending_seen", "action_taken"),
    "asked": ("pending_seen", "action_asked"),
    "wrong": ("contradiction_seen", "became_unknown"),
    "failed": ("failure_seen",),
    "charged": ("resolved_done",),
    "not_charged": ("resolved_not_done",),
}  # fmt: skip
# How often something is tried under one name before it is believed to move nothing.
TRIES: Final = 3
# How far a journey goes on from the place that it went to.
FURTHER: Final = 10

Name = tuple[Any, ...]
Choice = tuple[Name, Callable[[], Any]]
# A start, which of its choices was taken at each step, and where that led.
Way = tuple[Name, tuple[int, ...], Name]


class LedJourney(Journey):
    """A journey that says what may be done now."""

    def choices(self) -> Iterator[Choice]:
        """Each by a name that says what it is about; the same name may lead elsewhere later."""
        payment = self.payment()
        states = {(e.operation_id, e.attempt): e.state for e in payment.attempts}
        yield from self.of_gateways(payment.status, states)
        yield from self.of_people(payment)
        where = self.where()
        for duration_ms in DURATIONS:
            yield ("time", duration_ms, *where), partial(self.time_passes, duration_ms)
            late = self.is_late(duration_ms)
            yield ("still", late, *where), partial(self.the_flow_stands_still, duration_ms)
        if self.flow.open_requests or any(d.purpose != "timer" for d in self.flow.waits()):
            for outcome in ALL_SO:
                yield ("all", outcome, *where), partial(self.everything_goes_so, outcome)
        if self.flow.open_checks:
            yield ("count", self.is_late(), *where), self.it_is_counted
        if payment.status == "failed":
            for weather in ("review", "counted_review", "none"):
                yield ("rules", weather), partial(self.the_rules_change, weather)
        if self.held:
            yield ("late", *where), self.a_late_result_is_committed
        for moved in self.disputable():
            said = self.disputes.get(moved.reference)
            late = self.goes_back(moved.request)
            for stage in ("opened", "won", "lost") if said else ("opened",):
                for in_part in (False,) if said else (False, True):
                    name = "dispute", stage, said and said[-1], in_part, late, payment.status
                    yield name, partial(self.a_dispute_is_told, moved, stage, in_part)

    def of_gateways(self, status: str, states: dict[tuple[str, int], str]) -> Iterator[Choice]:
        if self.flow.open_requests:
            asked = self.flow.open_requests[0][1]
            state = states.get((asked.operation_id, asked.attempt))
            known = asked.idempotency_key in self.books
            for outcome in OUTCOMES:
                name: Name = ("answer", asked.kind, asked.operation_kind, state, known, outcome)
                if asked.operation_kind == "refund":
                    name = (*name, asked.operation_id.startswith("late-"), self.banks())
                yield name, partial(self.a_worker_answers, outcome)
            yield ("held", asked.kind, state), partial(self.a_worker_commits_later, "answer")
        for request in self.operations():
            state = states.get((request.operation_id, request.attempt))
            if request.idempotency_key not in self.books and self.has_room(request):
                # Nobody is told.
                yield ("quiet", request.kind, state), partial(self.says, request, "done")
            reverses = request.operation_id.startswith("late-")
            about = reverses if reverses or request.kind == "refund" else status
            for word in self.words(request):
                late = request.kind in MAIN_KINDS and self.is_late()
                # A notice alone does not say where the customer is to go.
                sent = self.payment().next_action_url is not None
                name = "word", request.kind, state, about, word, late, sent
                yield name, partial(self.a_word_comes, request, word)

    def of_people(self, payment: Payment) -> Iterator[Choice]:
        of_a_retry, *_, reversed_ = where = self.where()
        assessed = self.flow.policy.risk is not None
        for type_ in ("capture", "cancel", "refund", "retry"):
            name = "command", type_, type_ == "retry" and assessed, *where
            yield name, partial(self.a_command_comes, type_, None)
        yield ("refund", payment.status), partial(self.a_command_comes, "refund", 200)
        known = self.what_a_person_knows()
        for each in payment.attempts:
            if each.operation_id == known.get("operation_id"):
                settled = self.flow.now_ms - each.updated_at_ms > 30 * SECOND
                name = "resolve", known["decision"], each.state, settled
                yield name, partial(self.a_person_decides, "resolve")
        for each in payment.attempts:
            if each.kind == "refund":
                reverses = each.operation_id.startswith("late-")
                name = "returned", each.state, each.code == "recorded", reverses
                yield name, partial(self.somebody_says_it_came_back, each.operation_id)
        owed = bool(recordable(payment))
        for what in PEOPLE:
            name = "person", what, payment.status, of_a_retry, reversed_, owed, self.is_late()
            yield name, partial(self.a_person_decides, what)

    def where(self) -> Name:
        """Its status, and what is the matter with its newest operation."""
        payment = self.payment()
        of_a_retry = payment.assessed_retry is not None
        if not payment.attempts:
            return of_a_retry, payment.status, None, None, False
        newest = payment.attempts[-1]
        reverses = newest.operation_id.startswith("late-")
        return of_a_retry, payment.status, newest.kind, newest.state, reverses

    def banks(self) -> Name:
        """What the banks of its disputes said last."""
        return tuple(sorted({stages[-1] for stages in self.disputes.values()}))

    def goes_back(self, request: PaymentRequest) -> bool:
        """Whether what was asked for came too late."""
        name = f"late-{request.operation_id}-{request.attempt}"
        return any(each.operation_id == name for each in self.payment().attempts)

    def is_late(self, after_ms: int = 0) -> bool:
        """Whether a time has come, or will have by then, and nobody has read of it."""
        payment = self.payment()
        ends_ms = [e for e in (payment.pay_before_ms, payment.expires_at_ms) if e is not None]
        return bool(ends_ms) and self.flow.now_ms + after_ms >= min(ends_ms)

    def stands(self) -> tuple[str, list[str]]:
        """All that the tables are about."""
        payment = self.payment()
        return payment.status, [each.state for each in payment.attempts]

    def a_dispute_is_told(self, moved: Moved, stage: str, in_part: bool) -> None:
        self.a_bank_says(moved, stage, in_part)
        self.flow.notify(self.notices[-1])


class Explorer:
    """Each journey goes to a place where something was possible that nobody did, where few have
    been and that is near; does it, and goes on from there. ``seed`` decides between equals."""

    def __init__(self, steps: Steps, seed: int = 0) -> None:
        self.steps = steps
        self.chance = random.Random(seed)
        self.tried: Counter[Name] = Counter()
        self.visits: Counter[Name] = Counter()
        self.untried: dict[Name, Way] = {start: (start, (), ()) for start in STARTS}
        self.way: Way = ((), (), ())

    def walk(self) -> None:
        """One journey to its end."""
        name = min(self.untried, key=self.merit)
        start, path, _ = self.way = self.untried.pop(name)
        journey, before = repeated(self.steps, start, path)
        self.done(name, before != journey.stands())
        left = FURTHER
        while left > 0:
            journey.keeps_its_promises()
            choices = list(journey.choices())
            self.look_around(choices, journey)
            worth = [self.worth(name) for name, _ in choices]
            at = worth.index(min(worth))
            name, act = choices[at]
            left -= 3 if self.tried[name] else 1
            self.way = (start, (*self.way[1], at), ())
            stood = journey.stands()
            act()
            self.done(name, stood != journey.stands())
        journey.teardown()

    def merit(self, name: Name) -> tuple[int, int, int, float]:
        _, path, where = self.untried[name]
        return (
            0 if self.hopes(name) else RANKS.get(name[0], 1),
            self.visits[where],
            len(path),
            self.lot(),
        )

    def worth(self, name: Name) -> tuple[bool, int, float]:
        tried = self.tried[name]
        return tried >= TRIES or not self.hopes(name), tried, self.lot()

    def hopes(self, name: Name) -> bool:
        """Whether it may well lead to a step that nobody took."""
        if name[0] not in ("word", "resolve"):
            return False
        return any(
            self.steps.is_missing(state, trigger)
            for word in name
            for trigger in HOPES.get(word, ())
            for state in name
        )

    def lot(self) -> float:
        return self.chance.random()

    def done(self, name: Name, moved: bool) -> None:
        """What led nowhere may lead on elsewhere under the same name, and is tried again."""
        self.tried[name] += TRIES if moved and not self.hopes(name) else 1
        if self.tried[name] >= TRIES:
            self.untried.pop(name, None)

    def look_around(self, choices: list[Choice], journey: LedJourney) -> None:
        """Remember the shortest way to what is possible here and was not done."""
        start, path, _ = self.way
        where = journey.where()
        self.visits[where] += 1
        for at, (name, _) in enumerate(choices):
            known = self.untried.get(name)
            if self.tried[name] < TRIES and (known is None or len(known[1]) > len(path)):
                self.untried[name] = start, (*path, at), where


def repeated(
    steps: Steps, start: Name, path: tuple[int, ...]
) -> tuple[LedJourney, tuple[str, list[str]] | None]:
    """The journey of a way, and how it stood before the last step."""
    journey = LedJourney()
    journey.steps = steps
    journey.start(*start)
    before = None
    for at in path:
        before = journey.stands()
        list(journey.choices())[at][1]()
    return journey, before

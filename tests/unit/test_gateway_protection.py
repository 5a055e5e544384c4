"""The gate before calls: what it lets through, what it answers instead, and what that costs."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.breaker import BreakerRule
from pipeline.domain.model import ControlEntry, GatewayResult, PaymentRequest
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.routing import RouteFacts, route
from pipeline.observability.metrics import Metrics
from pipeline.runtime.calls import Call, Calls
from pipeline.runtime.live_policy import LivePolicy
from pipeline.runtime.protection import (
    HOLD_MS,
    LIMIT_WAIT_MS_MAX,
    PLACE_WAIT_MS_MAX,
    Hold,
    Permit,
    Protection,
)
from pipeline.runtime.surroundings import REAL
from tests.support.waiting import wait_until

WELL = GatewayAnswer(outcome="succeeded", gateway_reference="ch")
DEAD = GatewayAnswer(outcome="not_sent", code="connection_refused")
CLOSED = 0  # as the metric says it
RULE = BreakerRule(calls_min=4, wait_ms=1_000, probes=1, slow_ms=100)


@dataclass
class Clock:
    ms: float = 0.0

    def __call__(self) -> float:
        return self.ms


def gate(*profiles: GatewayProfile, clock: Clock, **more: Any) -> Protection:
    return Protection(profiles, now_ms=clock, **more)


def permitted(
    protection: Protection, gateway: str = "a", waited_ms: float = 0, kind: str = "charge"
) -> Permit:
    said = protection.ask(gateway, kind, waited_ms)
    assert isinstance(said, Permit), said
    return said


def refused(protection: Protection, gateway: str = "a", waited_ms: float = 0) -> GatewayAnswer:
    said = protection.ask(gateway, "charge", waited_ms)
    assert isinstance(said, GatewayAnswer), said
    return said


A, B = GatewayProfile(name="a", breaker=RULE), GatewayProfile(name="b", breaker=RULE)


def test_a_dead_gateway_is_left_alone_and_the_other_is_not() -> None:
    """Refused at once, as not sent, with the time after which it may be tried again."""
    clock = Clock()
    protection = gate(A, B, clock=clock)
    for _ in range(RULE.calls_min):
        protection.ended(permitted(protection), DEAD)
    answer = refused(protection)
    assert (answer.outcome, answer.code, answer.retry_after_ms) == (
        "not_sent", "breaker_open", 1_000,
    )  # fmt: skip
    inquiry = protection.ask("a", "inquire", 0)
    assert isinstance(inquiry, GatewayAnswer)
    assert (inquiry.outcome, inquiry.code) == ("unknown", "breaker_open")
    permitted(protection, "b")
    clock.ms = 1_000
    probe = permitted(protection)
    assert refused(protection).code == "breaker_open"
    protection.ended(probe, WELL)
    permitted(protection)


@pytest.mark.parametrize("apart_ms", [20_000, 300_000])
@pytest.mark.parametrize("kind", ["charge", "inquire"])
def test_a_gateway_that_cannot_be_reached_is_left_however_few_its_calls(
    kind: str, apart_ms: int
) -> None:
    """One order every five minutes: each was sent there until it was too late for any other. A
    call that is answered between says that it can be reached."""
    clock = Clock()
    protection = gate(GatewayProfile(name="a"), B, clock=clock)
    unreached = replace(DEAD, outcome="unknown" if kind == "inquire" else "not_sent")
    least = BreakerRule().unreached_min
    for answer in (*[unreached] * (least - 1), WELL, *[unreached] * least):
        protection.ended(permitted(protection, kind=kind), answer)
        clock.ms += apart_ms
    # Its wait has passed; the order is tried again while its first try opens it once more.
    protection.ended(permitted(protection), DEAD)
    assert refused(protection).code == "breaker_open"
    permitted(protection, "b")


@pytest.mark.parametrize("code", ["rate_limited", "in_progress", "mismatched_answer", "http_500"])
def test_whatever_comes_back_says_that_it_can_be_reached(code: str) -> None:
    """An answer that says nothing for or against the gateway is one all the same."""
    clock = Clock()
    protection = gate(GatewayProfile(name="a"), B, clock=clock)
    said = GatewayAnswer(outcome="unknown", code=code)
    for answer in [*[DEAD] * (BreakerRule().unreached_min - 1), said] * 3:
        protection.ended(permitted(protection), answer)
        clock.ms += 100


def test_a_call_that_was_found_slow_and_ends_well_says_so_too() -> None:
    clock = Clock()
    protection = gate(GatewayProfile(name="a"), B, clock=clock)
    slow = permitted(protection)
    clock.ms += BreakerRule().slow_ms
    assert protection.is_slow(slow, BreakerRule().slow_ms)
    for _ in range(BreakerRule().unreached_min - 1):
        protection.ended(permitted(protection), DEAD)
    protection.ended(slow, WELL)
    protection.ended(permitted(protection), DEAD)
    permitted(protection)


@pytest.mark.slow
def test_all_who_waited_for_a_gateway_do_not_send_it_away_again() -> None:
    """Back from an outage it does twenty calls a second, and hundreds wait: it gets as many at once
    as it answers in time. All of them would each take longer than a call in trouble."""
    clock = Clock()
    protection = gate(GatewayProfile(name="a"), B, clock=clock)
    for _ in range(BreakerRule().unreached_min):
        protection.ended(permitted(protection), DEAD)
    queue: list[Permit] = []
    answered, shut = 0, 0
    for step in range(4_000):
        clock.ms = 2_000 + 50 * step
        while isinstance(said := protection.ask("a", "charge", 0), Permit):
            queue.append(said)
        shut += isinstance(said, GatewayAnswer) and said.retry_after_ms is not None
        for permit in queue:
            protection.is_slow(permit, clock.ms - permit.began_ms)
        if queue:
            protection.ended(queue.pop(0), WELL)
            answered += 1
    assert shut == 0, "steps at which its breaker was open again"
    assert answered == 4_000, "all that it could do in these 200 seconds"
    assert 20 < len(queue) <= 95, "as many as it answers before they are in trouble"


def test_retry_after_is_obeyed_to_its_end() -> None:
    """No call before it; a short rest is waited for, a long one is answered at once."""
    clock = Clock()
    protection = gate(A, B, clock=clock)
    limited = GatewayAnswer(outcome="not_sent", code="rate_limited", retry_after_ms=1_000)
    protection.ended(permitted(protection), limited)
    answer = refused(protection)
    assert answer.code == "rate_limited"
    assert answer.retry_after_ms in (1_000, 1_001)
    clock.ms = 800
    assert protection.ask("a", "charge", 0) == Hold(0.2)
    assert refused(protection, waited_ms=100).code == "rate_limited"
    clock.ms = 1_000
    permitted(protection)


def test_what_one_worker_was_told_another_learns_by_itself() -> None:
    """Breakers and Retry-After are each worker's own, as the routing document says."""
    clock = Clock()
    told, other = gate(A, B, clock=clock), gate(A, B, clock=clock)
    limited = GatewayAnswer(outcome="not_sent", code="rate_limited", retry_after_ms=60_000)
    told.ended(permitted(told), limited)
    assert refused(told).code == "rate_limited"
    for _ in range(RULE.calls_min):
        told.ended(permitted(told, "b"), DEAD)
    assert refused(told, "b").code == "breaker_open"
    permitted(other)
    permitted(other, "b")


def test_limits_are_shared_out_by_partitions() -> None:
    """A worker with a quarter of the partitions opens a quarter of the calls, and at least one."""
    clock = Clock()
    limited = GatewayProfile(name="a", concurrency_max=8)
    for share, places in ((1.0, 8), (0.25, 2), (0.01, 1)):
        protection = gate(limited, B, clock=clock)
        protection.take_share(share)
        permits = [permitted(protection) for _ in range(places)]
        assert protection.ask("a", "charge", 0) == Hold()
        assert refused(protection, waited_ms=5_000).code == "throttled"
        protection.ended(permits[0], WELL)
        permitted(protection)


def test_a_rate_holds_over_time_whatever_the_load() -> None:
    """10 calls a second of two equal workers: 5 here, and those that wait too long are told."""
    clock = Clock()
    protection = gate(GatewayProfile(name="a", rate_per_s=10, burst=2), B, clock=clock)
    protection.take_share(0.5)
    begun = 0
    for ms in range(10_000):
        clock.ms = ms
        said = protection.ask("a", "charge", 0)
        if isinstance(said, Permit):
            protection.ended(said, WELL)
            begun += 1
    assert 50 <= begun <= 51
    clock.ms = 10_000
    permitted(protection)
    assert refused(protection, waited_ms=200).code == "throttled"


def test_with_one_gateway_requests_wait_their_turn() -> None:
    """There is no other gateway's payment behind them to be held up."""
    clock = Clock()
    protection = gate(GatewayProfile(name="a", concurrency_max=1), clock=clock)
    permitted(protection)
    assert protection.ask("a", "charge", 30_000) == Hold()


def test_new_limits_count_from_the_next_call_and_leave_the_breaker_as_it_is() -> None:
    """A change of a limit is no reason to call a dead gateway again."""
    clock = Clock()
    protection = gate(A, B, clock=clock)
    for _ in range(RULE.calls_min):
        protection.ended(permitted(protection), DEAD)
    protection.configure([GatewayProfile(name="a", breaker=RULE, rate_per_s=5), B])
    assert refused(protection).code == "breaker_open"


@dataclass
class FakeGateway:
    """``hangs``: calls never end. Otherwise they end at once with ``answer``."""

    name: str
    answer: GatewayAnswer = WELL
    hangs: bool = False
    calls: list[str] = field(default_factory=list)

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def charge(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        self.calls.append(request.order_id)
        if self.hangs:
            await asyncio.sleep(60)
        return self.answer

    async def inquire(self, request: PaymentRequest) -> GatewayAnswer:
        return await self.charge(request, send_before_ms=0)


def request(gateway: str, order_id: str = "1") -> PaymentRequest:
    return PaymentRequest(
        merchant_id="m", order_id=order_id, payment_id="p", operation_id="o", kind="charge",
        gateway=gateway, amount_minor=1, currency="GBP", instrument_token="t",
        idempotency_key="k", attempt=1, try_number=1, send_within_ms=60_000, ordered_at_ms=0,
    )  # fmt: skip


@contextmanager
def running(*gateways: FakeGateway, **more: Any) -> Iterator[Calls]:
    calls = Calls({g.name: g for g in gateways}, **more)  # type: ignore[dict-item]
    calls.open()
    try:
        yield calls
    finally:
        calls.close()


def finished(
    calls: Calls, wanted: Callable[[list[Call]], bool], timeout_s: float = 10
) -> list[Call]:
    found: list[Call] = []
    deadline = time.monotonic() + timeout_s
    while not wanted(found) and time.monotonic() < deadline:
        calls.wait_finished(0.05)
        found.extend(call for call in calls.take_finished() if not call.is_late)
    assert wanted(found), [(c.request.gateway, c.answer) for c in found]
    return found


def test_what_is_too_late_takes_no_token_from_what_can_still_be_sent() -> None:
    """Behind a backlog as long as the send window every token would be used up in vain, for ever. A
    question has no such time."""
    a = FakeGateway("a")
    limited = gate(GatewayProfile(name="a", rate_per_s=1, burst=2), clock=Clock())
    outside = dataclasses.replace(REAL, time_s=lambda: 100.0)
    asked = replace(request("a", "asked"), kind="inquire")
    with running(a, gate=limited, surroundings=outside) as calls:
        late = [Call(None, request("a", f"late {n}"), 100_000) for n in range(3)]
        fresh = Call(None, request("a", "fresh"), 160_000)
        calls.start([*late, Call(None, asked, 100_000), fresh])
        found = finished(calls, lambda found: len(found) == 5)
    assert a.calls == ["asked", "fresh"]
    told = [call.answer for call in found if call.request.order_id.startswith("late")]
    assert told == [GatewayAnswer(outcome="not_sent", code="send_before_passed")] * 3


def test_what_has_waited_is_given_up_before_it_is_too_late_to_be_written() -> None:
    """Who is always at the end of its time would miss it at the socket; one that has not waited may
    be sent until then."""
    a, passed = FakeGateway("a"), Clock()
    limited = gate(GatewayProfile(name="a", rate_per_s=1, burst=1), clock=Clock())
    outside = dataclasses.replace(
        REAL,
        time_s=lambda: 100 + passed.ms / 1000,
        monotonic_s=lambda: passed.ms / 1000,
    )
    with running(a, gate=limited, surroundings=outside) as calls:
        calls.start([Call(None, request("a", order), 100_200) for order in ("first", "second")])
        finished(calls, lambda found: len(found) == 1)
        passed.ms = 100
        (second,) = finished(calls, lambda found: len(found) == 1)
    assert a.calls == ["first"]
    assert second.answer == GatewayAnswer(outcome="not_sent", code="send_before_passed")


@pytest.mark.slow
def test_a_gateway_that_hangs_costs_the_other_nothing_and_its_own_calls_little() -> None:
    """It is noticed by open calls, before any of them ends; what is open then is parked, what
    comes later is refused, and the other gateway is served all the while."""
    a, b = FakeGateway("a", hangs=True), FakeGateway("b")
    protection = Protection([A, B], metrics=Metrics())
    with running(a, b, gate=protection, soft_deadline_s=30) as calls:
        began_s = time.monotonic()
        calls.start([Call(None, request("a", str(n)), 2**62) for n in range(8)])
        calls.start([Call(None, request("b"), 2**62)])
        finished(calls, lambda f: any(c.request.gateway == "b" for c in f), 2)
        parked = finished(calls, lambda f: len(f) == 8)
        assert time.monotonic() - began_s < 3
        assert {c.answer.code for c in parked if c.answer} == {"soft_deadline"}
        assert {c.answer.outcome for c in parked if c.answer} == {"unknown"}
        calls.start([Call(None, request("a", "late"), 2**62), Call(None, request("b"), 2**62)])
        after = finished(calls, lambda f: len(f) == 2, 2)
        assert {c.request.gateway: c.answer.outcome for c in after if c.answer} == {
            "a": "not_sent",
            "b": "succeeded",
        }
    assert "late" not in a.calls


@dataclass
class SlowToLookUp(FakeGateway):
    """Each question is answered when nobody waits for it any more."""

    asked: list[str] = field(default_factory=list)
    given_up: bool = False

    async def inquire(self, request: PaymentRequest) -> GatewayAnswer:
        self.asked.append(request.idempotency_key)
        while not self.given_up:
            await asyncio.sleep(0.001)
        return self.answer


class NobodyWaits(Protection):
    """Every call that is looked at is parked."""

    def is_slow(self, permit: Permit, open_ms: float) -> bool:
        return True


def look(calls: Calls) -> None:
    """One look at open calls, now."""
    looked = threading.Event()

    def sweep() -> None:
        calls._sweep()
        looked.set()

    calls._loop.call_soon_threadsafe(sweep)
    assert looked.wait(10)


def answer_to(calls: Calls, question: PaymentRequest, appended_at_ms: int = 0) -> GatewayAnswer:
    """What is said of a question that was appended then, in partition 0."""
    for gateway in calls._gateways.values():
        assert isinstance(gateway, SlowToLookUp)
        gateway.given_up = False
    calls.start([Call(None, question, 2**62, appended_at_ms=appended_at_ms, partition=0)])
    look(calls)
    answer = finished(calls, lambda found: bool(found))[0].answer
    assert answer is not None
    return answer


def hear(calls: Calls) -> None:
    """The answers that nobody waits for come."""
    for gateway in calls._gateways.values():
        assert isinstance(gateway, SlowToLookUp)
        gateway.given_up = True

    def has_ended() -> bool:
        look(calls)
        return not calls._parked

    wait_until(has_ended, 10, "they have really ended")
    look(calls)  # after the loop has been told of it


@pytest.mark.parametrize("outcome", ["succeeded", "declined", "not_found"])
def test_what_a_question_hears_too_late_counts_for_the_next_one(outcome: str) -> None:
    """A gateway that looks up slowly, beside calls that hang, would never be heard: each question
    is given up before its answer comes. But for a success it is asked again; and nothing is said of
    another attempt."""
    late = GatewayAnswer(outcome=outcome, gateway_reference="ch")
    gateway = SlowToLookUp("a", answer=late)
    ours = replace(request("a"), kind="inquire", idempotency_key="ours")
    other = replace(ours, idempotency_key="other")
    silence = GatewayAnswer(outcome="unknown", code="soft_deadline")
    with running(gateway, gate=NobodyWaits([A, B])) as calls:
        assert answer_to(calls, ours, 1_000) == silence
        hear(calls)
        asked_then = replace(silence, not_found_asked_at_ms=1_000)
        heard = replace(late, heard="earlier_question")
        said = asked_then if outcome == "not_found" else heard
        assert answer_to(calls, ours, 2_000) == said
        assert answer_to(calls, other) == silence
        hear(calls)
        assert gateway.asked == (
            ["ours", "other"] if outcome == "succeeded" else ["ours", "ours", "other"]
        )


def test_nothing_is_kept_of_questions_whose_partition_has_gone() -> None:
    """Whoever has the partition now asks there, and may send again."""
    gateway = SlowToLookUp("a", answer=GatewayAnswer(outcome="declined"))
    ours = replace(request("a"), kind="inquire")
    with running(gateway, gate=NobodyWaits([A, B])) as calls:
        for before, after, said in (
            ({1}, {0}, "unknown"),
            ({0}, {1}, "unknown"),
            ({0}, {0, 1}, "declined"),
        ):
            assert answer_to(calls, ours).outcome == "unknown"
            calls.keep_only(before)
            hear(calls)
            calls.keep_only(after)
            assert answer_to(calls, ours).outcome == said
            calls.keep_only(set())
            hear(calls)


@pytest.mark.parametrize("heard_before", [True, False], ids=["heard before", "heard after"])
def test_nothing_is_kept_of_questions_of_before_the_operation_was_sent_again(
    heard_before: bool,
) -> None:
    """The time of a question is a broker's: were its clock ahead, "not found" of before a resend
    would prove that the resend did not happen, and another gateway would charge as well."""
    gateway = SlowToLookUp("a", answer=GatewayAnswer(outcome="not_found"))
    ours = replace(request("a"), kind="inquire", try_number=2)
    with running(gateway, gate=NobodyWaits([A, B])) as calls:
        assert answer_to(calls, ours, 2**60).not_found_asked_at_ms == 0
        if heard_before:
            hear(calls)
        calls.start([Call(None, replace(request("a"), try_number=3), 2**62, partition=0)])
        finished(calls, lambda found: bool(found))
        hear(calls)
        later = replace(ours, try_number=4)
        assert answer_to(calls, later, 3_000).not_found_asked_at_ms == 0
        hear(calls)
        assert answer_to(calls, later, 4_000).not_found_asked_at_ms == 3_000
        hear(calls)
        assert not calls._questions, "nothing is left of questions that have ended"


@pytest.mark.slow
def test_a_look_at_open_calls_that_ends_none_wakes_nobody() -> None:
    """The loop of the worker waits for calls that have ended, and not for each look at them."""
    with running(FakeGateway("a", hangs=True), soft_deadline_s=3_600) as calls:
        calls.start([Call(None, request("a"), 2**62)])
        finished(calls, lambda _: calls.in_flight == 1)
        assert calls.take_finished() == []
        look(calls)
        assert not calls._arrived.is_set()


@pytest.mark.slow
def test_a_fault_in_the_gate_ends_the_worker() -> None:
    """Calls that nobody looks at any more would wait for ever, and nobody would be told."""

    class Faulty(Protection):
        def report(self) -> None:
            raise OverflowError("a fault of ours")

    def looked_at() -> bool:
        calls.wait_finished(0.05)
        calls.take_finished()
        return False

    with running(FakeGateway("a"), gate=Faulty([A])) as calls:
        with pytest.raises(OverflowError, match="a fault of ours"):
            wait_until(looked_at, 10, "the fault is told")
        with pytest.raises(OverflowError, match="a fault of ours"):
            calls.start([Call(None, request("a"), 2**62)])
        calls._thread.join(10)
        with pytest.raises(OverflowError, match="a fault of ours"):
            calls.keep_only({0})


def slow_calls(protection: Protection, clock: Clock, open_ms: int) -> list[Permit]:
    """As many open calls as the breaker judges, looked at when they have been open for so long."""
    permits = [permitted(protection) for _ in range(RULE.calls_min)]
    clock.ms += open_ms
    for permit in permits:
        protection.is_slow(permit, open_ms)
    return permits


PATIENT = BreakerRule(calls_min=RULE.calls_min, wait_ms=1_000, slow_ms=5_000, silent_ms=2_500)


def test_a_quick_gateway_that_answers_nobody_is_noticed_before_a_slow_one() -> None:
    """Nobody's call ended well for that long; one good answer meanwhile, or answers that are
    never quick, or none at all so far, and it may only be slow."""
    for took_ms, answered, noticed in (
        (100, False, True),
        (100, True, False),
        (2_000, False, False),
        (None, False, False),
    ):
        clock, metrics = Clock(), Metrics()
        protection = gate(
            GatewayProfile(name="a", breaker=PATIENT), B, clock=clock, metrics=metrics
        )
        if took_ms is not None:
            first = permitted(protection)
            clock.ms += took_ms
            protection.ended(first, WELL)
        clock.ms = 10_000
        if answered:
            another = permitted(protection)
            clock.ms += 1
            protection.ended(another, WELL)
            clock.ms -= 1
        slow_calls(protection, clock, PATIENT.silent_ms)
        protection.report()
        assert (state_of(metrics, "a") != CLOSED) is noticed, (took_ms, answered)


def test_a_gateway_that_comes_back_slow_is_let_in_again() -> None:
    """Its probes take longer than silence may, and end well: nobody else was there to be answered
    meanwhile, and a call that is merely slow is no trouble."""
    clock, metrics = Clock(), Metrics()
    protection = gate(GatewayProfile(name="a", breaker=PATIENT), B, clock=clock, metrics=metrics)
    quick = permitted(protection)
    protection.ended(quick, WELL)
    for dead in [permitted(protection) for _ in range(PATIENT.calls_min)]:
        protection.ended(dead, DEAD)
    clock.ms += 20_000
    probes = [permitted(protection) for _ in range(PATIENT.probes)]
    clock.ms += 3_000
    for probe in probes:
        protection.is_slow(probe, 3_000)
        protection.ended(probe, WELL)
    protection.report()
    assert state_of(metrics, "a") == CLOSED


def test_a_probe_is_not_waited_for_though_its_breaker_was_made_anew() -> None:
    """Another rule comes into force meanwhile: it stays a trial of a gateway in trouble."""
    clock = Clock()
    protection = gate(A, B, clock=clock)
    for dead in [permitted(protection) for _ in range(RULE.calls_min)]:
        protection.ended(dead, DEAD)
    clock.ms = RULE.wait_ms
    probe = permitted(protection)
    protection.configure([GatewayProfile(name="a", breaker=PATIENT), B])
    assert protection.is_slow(probe, HOLD_MS)


def test_a_call_that_takes_far_longer_than_all_others_holds_nobody_up() -> None:
    """Where each tenth call hangs, nothing is silent and no breaker opens, and there is always one
    of them in front of the others of its partition."""
    clock = Clock()
    both, alone = gate(A, B, clock=clock), gate(A, clock=clock)
    profile = GatewayProfile(name="c")
    both.configure([profile, B])
    alone.configure([profile])
    for protection in (both, alone):
        first = permitted(protection, "c")
        assert not protection.is_slow(first, 2_000), "nothing to go by yet"
        for took_ms in [100] * 19 + [300]:
            began_ms = clock.ms
            permit = permitted(protection, "c")
            clock.ms = began_ms + took_ms
            protection.ended(permit, WELL)
    assert not both.is_slow(permitted(both, "c"), 1_199)
    assert both.is_slow(permitted(both, "c"), 1_200)
    assert not alone.is_slow(permitted(alone, "c"), 1_200), "there is nobody to hold up"
    question = both.ask("c", "inquire", 0)
    assert isinstance(question, Permit)
    assert not both.is_slow(question, 3_000), "it may look up slowly what it does quickly"


def after_answers(
    protection: Protection, clock: Clock, took_ms: float, count: int, kind: str = "charge"
) -> None:
    for _ in range(count):
        permit = protection.ask("a", kind, 0)
        assert isinstance(permit, Permit), permit
        clock.ms += took_ms
        protection.ended(permit, WELL)


def waited_for_ms(protection: Protection, kind: str = "charge") -> int:
    """How long a call is waited for beside answers to others."""
    permit = protection.ask("a", kind, 0)
    assert isinstance(permit, Permit), permit
    return next(ms for ms in range(0, 60_000, 100) if protection.is_slow(permit, ms))


@pytest.mark.parametrize(
    ("answers", "charge_ms", "question_ms"),
    [
        (0, 5_000, 5_000),
        (1, 2_500, 5_000),
        (4, 2_500, 5_000),
        (5, 2_000, 5_000),
        (9, 1_200, 5_000),
        (10, 1_000, 1_000),
    ],
)
def test_the_fewer_answers_there_are_to_go_by_the_longer_a_call_is_waited_for(
    answers: int, charge_ms: int, question_ms: int
) -> None:
    """After a start, or where calls are few: half as long as a gateway of which nothing is known,
    once it has answered anything. A question may be the proof that ends a payment."""
    for kind, waited_ms in (("charge", charge_ms), ("inquire", question_ms)):
        clock = Clock()
        protection = gate(GatewayProfile(name="a"), B, clock=clock)
        after_answers(protection, clock, 100, answers, kind)
        assert waited_for_ms(protection, kind) == waited_ms


@pytest.mark.parametrize("kind", ["charge", "inquire"])
@pytest.mark.parametrize("calls_min", [1, 5, 20, 100])
def test_the_latest_answers_are_as_many_however_many_calls_a_breaker_judges(
    kind: str, calls_min: int
) -> None:
    """Of fewer than ten no question would ever be unusual, and a hundred would remember one slow
    card for long. Another rule takes none of them away."""
    clock = Clock()
    rule = BreakerRule(calls_min=calls_min)
    protection = gate(GatewayProfile(name="a", breaker=rule), B, clock=clock)
    after_answers(protection, clock, 400, 1, kind)
    after_answers(protection, clock, 100, 19, kind)
    assert waited_for_ms(protection, kind) == 1_600
    other = BreakerRule(calls_min=calls_min + 1)
    protection.configure([GatewayProfile(name="a", breaker=other), B])
    assert waited_for_ms(protection, kind) == 1_600
    after_answers(protection, clock, 100, 1, kind)
    assert waited_for_ms(protection, kind) == 1_000


def test_what_a_gateway_usually_takes_stands_for_answers_that_are_missing() -> None:
    """As its operator says it; answers that take longer count as soon as there are any."""
    clock = Clock()
    protection = gate(GatewayProfile(name="a", breaker=BreakerRule(usual_ms=250)), B, clock=clock)
    assert waited_for_ms(protection) == 1_000
    assert waited_for_ms(protection, "inquire") == BreakerRule().slow_ms
    after_answers(protection, clock, 1_000, 1)
    assert waited_for_ms(protection) == 4_000


def test_beside_a_call_that_hangs_others_need_not_be_as_unusual() -> None:
    """Where some hang, twice the longest of the latest answers is enough. A slow card alone has
    four times as long to be answered, and no question is judged by what moves money."""
    clock = Clock()
    never_quick = BreakerRule(silent_ms=1_500)
    protection = gate(GatewayProfile(name="a", breaker=never_quick), B, clock=clock)
    after_answers(protection, clock, 1_000, 20, "inquire")
    hanging = permitted(protection)
    after_answers(protection, clock, 1_000, 20)
    assert waited_for_ms(protection) == 4_000
    assert protection.is_slow(hanging, 20_000)
    assert waited_for_ms(protection) == 2_000
    assert waited_for_ms(protection, "inquire") == 4_000
    protection.ended(hanging, DEAD)
    assert waited_for_ms(protection) == 4_000


@pytest.mark.parametrize(
    ("answers", "given_up_ms"), [(0, 5_000), (1, 2_500), (9, 2_500), (10, 1_000)]
)
def test_a_question_of_few_is_given_up_when_its_silence_is_noticed(
    answers: int, given_up_ms: int
) -> None:
    """As the routing document says: later than one of many, and at `slow_ms` only where the gateway
    has answered none."""
    clock = Clock()
    protection = gate(GatewayProfile(name="a"), B, clock=clock)
    for _ in range(answers):
        quick = permitted(protection, kind="inquire")
        clock.ms += 100
        protection.ended(quick, WELL)
    question = permitted(protection, kind="inquire")
    began_ms = clock.ms
    while not protection.is_slow(question, clock.ms - began_ms):
        clock.ms += 50
    assert clock.ms - began_ms == given_up_ms


def test_a_gateway_that_is_back_keeps_nobody_waiting_for_the_room_of_calls_that_hang() -> None:
    """Whoever waited would hold up others and find none; a call that may be answered yet is waited
    for a moment."""
    clock = Clock()
    protection = gate(GatewayProfile(name="a"), B, clock=clock)
    after_answers(protection, clock, 100, 20)
    for _ in range(BreakerRule().unreached_min):
        protection.ended(permitted(protection), DEAD)
    clock.ms += BreakerRule().wait_ms
    after_answers(protection, clock, 100, BreakerRule().probes)
    *hanging, answered = [permitted(protection) for _ in range(2 * BreakerRule().probes)]
    clock.ms += 100
    protection.ended(answered, WELL)
    clock.ms += 900
    assert all(protection.is_slow(permit, 1_000) for permit in hanging)
    hanging = [permitted(protection), permitted(protection)]
    assert protection.ask("a", "charge", 0) == Hold()
    clock.ms += 1_000
    assert all(protection.is_slow(permit, 1_000) for permit in hanging)
    assert refused(protection).code == "throttled"


def test_the_more_places_are_kept_by_calls_that_hang_the_less_the_others_are_waited_for() -> None:
    """They end when they are given up. Beside one slow card the others' places come free as ever;
    with half of them kept a request waits a moment, and with all not at all."""
    clock = Clock()
    protection = gate(GatewayProfile(name="a", concurrency_max=3), B, clock=clock)
    after_answers(protection, clock, 100, 20)
    first, answered = permitted(protection), permitted(protection)
    clock.ms += 100
    protection.ended(answered, WELL)
    clock.ms += 800
    second, third = permitted(protection), permitted(protection)
    clock.ms += 100
    assert protection.is_slow(first, 1_000)
    assert protection.ask("a", "charge", PLACE_WAIT_MS_MAX) == Hold()
    clock.ms += 900
    assert protection.is_slow(second, 1_000)
    assert protection.ask("a", "charge", LIMIT_WAIT_MS_MAX) == Hold()
    assert refused(protection, waited_ms=LIMIT_WAIT_MS_MAX + 1).code == "throttled"
    assert protection.is_slow(third, 1_000)
    assert refused(protection).code == "throttled"
    protection.ended(first, DEAD)
    permitted(protection)


def test_with_one_gateway_requests_wait_even_for_the_places_of_calls_that_hang() -> None:
    """It was away and is back; what hung meanwhile keeps its places, and nobody else's way."""
    clock = Clock()
    protection = gate(GatewayProfile(name="a"), clock=clock)
    hanging = [permitted(protection) for _ in range(2 * BreakerRule().probes)]
    for _ in range(BreakerRule().unreached_min):
        protection.ended(permitted(protection), DEAD)
    assert all(protection.is_slow(permit, HOLD_MS) for permit in hanging)
    clock.ms += BreakerRule().wait_ms
    after_answers(protection, clock, 0, BreakerRule().probes)
    assert protection.ask("a", "charge", 0) == Hold()
    protection.configure([GatewayProfile(name="a", concurrency_max=len(hanging))])
    assert protection.ask("a", "charge", 0) == Hold()


def test_nobody_waits_for_the_place_of_a_call_that_hangs() -> None:
    """Every place is taken by calls that do not end: once that is known, the next are refused."""
    clock = Clock()
    profile = GatewayProfile(name="a", breaker=RULE, concurrency_max=RULE.calls_min)
    protection = gate(profile, B, clock=clock)
    slow_calls(protection, clock, RULE.slow_ms)
    clock.ms += RULE.wait_ms  # half-open: probes would be let through, if there were a place
    assert refused(protection).code == "breaker_open"


def state_of(metrics: Metrics, gateway: str) -> float:
    return next(
        sample.value
        for metric in metrics.breaker_state.collect()
        for sample in metric.samples
        if sample.labels["gateway"] == gateway
    )


@pytest.mark.slow
def test_a_probe_is_not_waited_for_and_still_decides() -> None:
    """The gateway has come back slow: the probe's payment is asked about later, its end closes
    the breaker."""
    a, b = FakeGateway("a", answer=DEAD), FakeGateway("b")
    rule = BreakerRule(calls_min=2, wait_ms=100, probes=1, slow_ms=5_000)
    clock, metrics = Clock(), Metrics()
    profile = GatewayProfile(name="a", breaker=rule)
    protection = Protection([profile, B], metrics=metrics, now_ms=clock)
    with running(a, b, gate=protection) as calls:
        calls.start([Call(None, request("a", str(n)), 2**62) for n in range(2)])
        finished(calls, lambda f: len(f) == 2)
        clock.ms = rule.wait_ms
        a.answer = WELL
        may_end = threading.Event()

        async def slow(asked: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
            assert await asyncio.to_thread(may_end.wait, 10)
            return WELL

        quick, a.charge = a.charge, slow  # type: ignore[method-assign]
        calls.start([Call(None, request("a", "probe"), 2**62)])
        probe = finished(calls, lambda f: len(f) == 1)[0]
        assert not may_end.is_set()
        assert probe.answer is not None
        assert probe.answer.outcome == "unknown"
        a.charge = quick  # type: ignore[method-assign]
        assert state_of(metrics, "a") != CLOSED
        may_end.set()
        wait_until(lambda: state_of(metrics, "a") == CLOSED, 10, "the probe has closed the breaker")
        calls.start([Call(None, request("a", "after"), 2**62)])
        after = finished(calls, lambda f: len(f) == 1)[0]
        assert after.answer == WELL


def entry(value: str, version: int = 1) -> ControlEntry:
    return ControlEntry(
        key="routing", value=value, version=version, changed_by="me", reason="test",
        changed_at_ms=0,
    )  # fmt: skip


def gateway_of(live: LivePolicy, at_ms: int = 0) -> str:
    facts = RouteFacts(payment_id="p", merchant_id="m", currency="GBP", amount_minor=1)
    found = route(live.at(at_ms), facts)
    assert found is not None
    return found.profile.name


def test_a_worker_follows_good_entries_keeps_the_last_good_one_and_counts_both() -> None:
    """A wrong entry changes nothing; a deleted one brings the configuration's own rules back."""
    metrics, told = Metrics(), []
    live = LivePolicy(
        Policy(gateways=(A, B)),
        routes='{"gateways": {"a": {"priority": 1}}}',
        metrics=metrics,
        on_change=lambda policy: told.append(policy.routes.version),
    )
    assert gateway_of(live) == "a"
    live.take("routing", entry('{"gateways": {"b": {"priority": 0}}}', 1))
    assert gateway_of(live) == "b"
    live.take("routing", entry('{"gateways": {"x": {}}}', 2))
    live.take("weather", entry("{}", 3))
    assert gateway_of(live) == "b"
    live.take("routing", None)
    assert gateway_of(live) == "a"
    assert told == [1, 0]
    counted = {
        s.labels["result"]: s.value
        for m in metrics.control_entries.collect()
        for s in m.samples
        if s.name.endswith("_total")
    }
    assert counted == {"applied": 2, "refused": 1}


def test_payments_go_elsewhere_once_results_say_that_a_gateway_is_down() -> None:
    """And come back when it answers again."""
    live = LivePolicy(Policy(gateways=(A, B)))

    def saw(outcome: str, code: str | None, at_ms: int) -> None:
        asked = request("a")
        live.saw(
            GatewayResult(
                merchant_id="m", order_id="1", payment_id="p", operation_id="o", kind="inquire",
                gateway=asked.gateway, attempt=1, try_number=1, outcome=outcome, code=code,
                amount_minor=0, currency="GBP", observed_at_ms=at_ms,
            ),
            at_ms,
        )  # fmt: skip

    assert gateway_of(live, 1_000) == "a"
    saw("not_sent", "breaker_open", 2_000)
    assert gateway_of(live, 2_000) == "b"
    for at_ms in (3_100, 3_200, 3_300):
        saw("not_found", None, at_ms)
    assert gateway_of(live, 3_600) == "a"

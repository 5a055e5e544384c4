"""What a call hears once it was given up, where there may be no question that it could answer."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from msgspec.structs import replace

from pipeline.audit.trace import describe
from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.domain.policy import HOUR_MS
from pipeline.domain.records import to_record
from pipeline.processors.gateway import result_of
from pipeline.runtime.calls import Call, Calls
from pipeline.runtime.late_words import WAIT_S_MAX, WORDS_MAX
from pipeline.runtime.protection import Permit
from pipeline.runtime.surroundings import REAL
from pipeline.runtime.work import Outcome
from tests.support.audit_story import judged_flow
from tests.support.engine_fakes import Commits, InstantCalls, Member, gateway_with, key_of
from tests.support.engine_flow import EngineFlow
from tests.support.payment_story import NOT_SENT, POLICY, TIMED_OUT, Story, yes
from tests.support.waiting import wait_until
from tests.unit.test_engine_turns import append_request
from tests.unit.test_gateway_protection import (
    FakeGateway,
    NobodyWaits,
    SlowToLookUp,
    answer_to,
    finished,
    hear,
    look,
    request,
    running,
)
from tests.unit.test_processors_notices import RETURNED

SUCCEEDED = GatewayAnswer(outcome="succeeded", gateway_reference="ch")
PENDING = GatewayAnswer(outcome="pending", gateway_reference="ch")
QUESTION = replace(request("a"), kind="inquire", operation_kind="charge", try_number=2)


def late(calls: Calls) -> list[Call]:
    """What has come too late and is told by itself."""
    look(calls)
    ended = calls.take_finished()
    assert all(call.is_late for call in ended)
    return ended


# Of one worker's calls ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "answer", "told"),
    [
        ("charge", SUCCEEDED, True),
        ("refund", RETURNED, True),
        # It may have come back since: that is taken in any order.
        ("refund", SUCCEEDED, True),
        ("charge", replace(SUCCEEDED, gateway_reference=None), False),
        ("refund", replace(SUCCEEDED, gateway_reference=None), False),
        # A person would be believed who says that nothing was made.
        ("charge", PENDING, True),
        ("refund", PENDING, True),
        # It may contradict what was told in time.
        ("charge", RETURNED, True),
        ("refund", replace(RETURNED, code="do_not_honor"), False),
        ("charge", GatewayAnswer(outcome="not_found"), False),
    ],
)
def test_a_late_word_that_makes_another_end_is_told_by_itself(
    kind: str, answer: GatewayAnswer, told: bool
) -> None:
    """Its payment may have ended by another word, by silence or by a person, and then nobody asks
    again."""
    question = replace(QUESTION, operation_kind=kind)
    with running(SlowToLookUp("a", answer=answer), gate=NobodyWaits([])) as calls:
        assert answer_to(calls, question).outcome == "unknown"
        hear(calls)
        said = replace(answer, heard="late_answer")
        assert [(c.request, c.answer) for c in late(calls)] == [(question, said)] * told


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["its partition", "its place before a resend"])
def test_what_does_not_stay_true_is_told_only_by_who_knows_of_resends(lost: str) -> None:
    """A refund that came back may have been sent again meanwhile; money moved was moved."""
    for kind, answer, told in (
        ("refund", RETURNED, 0),
        ("charge", PENDING, 0),
        ("charge", SUCCEEDED, 1),
        ("refund", SUCCEEDED, 1),
    ):
        question = replace(QUESTION, operation_kind=kind)
        with running(SlowToLookUp("a", answer=answer), gate=NobodyWaits([])) as calls:
            answer_to(calls, question)
            if lost == "its partition":
                calls.keep_only({1})
            else:
                again = replace(question, kind="charge", try_number=3)
                calls.start([Call(None, again, 2**62, partition=0)])
                finished(calls, lambda found: bool(found))
            hear(calls)
            assert len(late(calls)) == told


@pytest.mark.parametrize("kind", ["charge", "refund"])
def test_what_was_given_up_and_is_made_says_so(kind: str) -> None:
    """A question finds it too, if it is answered."""

    class Slow(SlowToLookUp):
        async def charge(self, request: Any, *, send_before_ms: int) -> GatewayAnswer:
            return await self.inquire(request)

        async def refund(self, request: Any, *, send_before_ms: int) -> GatewayAnswer:
            return await self.inquire(request)

    for answer, told in ((SUCCEEDED, 1), (PENDING, 1), (RETURNED, 0)):
        with running(Slow("a", answer=answer), gate=NobodyWaits([])) as calls:
            assert answer_to(calls, replace(request("a"), kind=kind)).outcome == "unknown"
            hear(calls)
            assert len(late(calls)) == told


DECLINED = GatewayAnswer(outcome="declined", code="do_not_honor")


class Impatient(NobodyWaits):
    """Nobody waits, until somebody does."""

    waits = False

    def is_slow(self, permit: Permit, open_ms: float) -> bool:
        return not self.waits


class Says(FakeGateway):
    """Answers each question by its try, once there is something to say."""

    def __init__(self) -> None:
        super().__init__("a")
        self.words: dict[int, GatewayAnswer] = {}

    async def inquire(self, request: PaymentRequest) -> GatewayAnswer:
        while request.try_number not in self.words:
            await asyncio.sleep(0.001)
        return self.words[request.try_number]


@pytest.mark.parametrize("words", [(SUCCEEDED, DECLINED), (DECLINED, SUCCEEDED)])
def test_a_heard_word_and_an_answer_in_time_that_contradict_are_both_told(
    words: tuple[GatewayAnswer, GatewayAnswer],
) -> None:
    """The success first, since a charge that was made stays made, and behind it what it
    contradicts, so that a person looks."""
    gateway, gate = Says(), Impatient([])
    with running(gateway, gate=gate) as calls:
        calls.start([Call(None, QUESTION, 2**62, partition=0)])
        look(calls)
        finished(calls, lambda found: bool(found))
        gate.waits = True
        calls.start([Call(None, replace(QUESTION, try_number=3), 2**62, partition=0)])
        gateway.words[2] = words[0]
        wait_until(lambda: len(calls._heard) == 1, 10, "the first one is heard")
        gateway.words[3] = words[1]
        (call,) = finished(calls, lambda found: bool(found))
    assert call.answer is not None
    assert call.contradiction == replace(DECLINED, heard="contradicts")
    heard = "earlier_question" if words[0] is SUCCEEDED else None
    assert call.answer == replace(SUCCEEDED, heard=heard)


# In its worker's transactions --------------------------------------------------------------------


class LateCalls(InstantCalls):
    """The calls of these orders are given up, and answered once their results are taken."""

    def __init__(self, *given_up: str) -> None:
        super().__init__()
        self._given_up = given_up
        self._late: list[Call] = []

    def start(self, calls: list[Call]) -> None:
        super().start(calls)
        for call in calls:
            if call.request.order_id in self._given_up:
                self._late.append(replace(call, is_late=True))
                call.answer = TIMED_OUT

    def take_finished(self) -> list[Call]:
        ended, late = super().take_finished(), self._late
        if not ended:
            self._late = []
            return late
        return ended


@pytest.fixture
def flow(tmp_path: Path) -> EngineFlow:
    return EngineFlow("127.0.0.1:1", "t.", tmp_path, partitions=1)


def told_by(flow: EngineFlow, commits: Commits, at: int) -> list[tuple[str, str]]:
    decode = flow.codec.decoder("gateway-result")
    found = [decode(value or b"") for _, _, _, value, _ in commits.works[at].outputs]
    return [(each["order_id"], each["outcome"]) for each in found]


def turned(worker: Any, commits: Commits, works: int, outcome: Outcome | None = None) -> None:
    for _ in range(6):
        if outcome is not None and commits.busy:
            commits.end(outcome)
        worker._turn(fetch=True)
    assert len(commits.works) == works


def given_up_on_one(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> tuple[Member, Commits, Any]:
    """A worker that has answered o1 as given up, in a transaction that is committed: what o1 hears
    afterwards waits to be told."""
    member, commits = Member(), Commits()
    worker = gateway_with(flow, member, commits, LateCalls("o1"), monkeypatch)
    append_request(flow, member, "o1")
    turned(worker, commits, 1)
    turned(worker, commits, 1, Outcome.COMMITTED)
    return member, commits, worker


def test_a_late_word_goes_with_the_next_transaction(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers no request and moves no offset; aborted, it is told with the one after that."""
    member, commits = Member(), Commits()
    worker = gateway_with(flow, member, commits, LateCalls("o1"), monkeypatch)
    append_request(flow, member, "o1")
    turned(worker, commits, 1)
    assert told_by(flow, commits, 0) == [("o1", "unknown")]
    turned(worker, commits, 1, Outcome.COMMITTED)
    append_request(flow, member, "o2")
    turned(worker, commits, 2)
    assert told_by(flow, commits, 1) == [("o2", "succeeded"), ("o1", "succeeded")]
    assert commits.works[1].offsets == {(worker._stage.topic, 0): 2}
    assert commits.works[1].outputs[-1][2] == key_of("o1")
    commits.end(Outcome.ABORTED)
    turned(worker, commits, 3)
    assert told_by(flow, commits, 2) == [("o2", "succeeded"), ("o1", "succeeded")]
    turned(worker, commits, 3, Outcome.COMMITTED)
    append_request(flow, member, "o3")
    turned(worker, commits, 4)
    assert told_by(flow, commits, 3) == [("o3", "succeeded")], "once"


@pytest.mark.parametrize(("outcome", "told"), [(Outcome.ABORTED, 1), (Outcome.COMMITTED, 0)])
def test_a_late_word_outlives_the_loss_of_its_transaction(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, told: int
) -> None:
    """Whoever has the partitions now has the requests, and knows nothing of the word."""
    member, commits, worker = given_up_on_one(flow, monkeypatch)
    append_request(flow, member, "o2")
    turned(worker, commits, 2)
    assert ("o1", "succeeded") in told_by(flow, commits, 1)
    commits.end(outcome)
    requests = flow.topic("payment-requests")
    worker._on_lost(member, [])
    member.committed = {(requests, 0): 2}
    worker._on_assign(member, [TopicPartition(requests, 0)])
    append_request(flow, member, "o3")
    turned(worker, commits, 3)
    assert told_by(flow, commits, 2) == [("o3", "succeeded"), *[("o1", "succeeded")] * told]


def standing(
    flow: EngineFlow, member: Member, commits: Commits, monkeypatch: Any
) -> tuple[Any, dict[str, float]]:
    """A worker whose one request is told of, with a late word behind it; and its clock."""
    clock = {"s": 0.0}
    outside = dataclasses.replace(REAL, monotonic_s=lambda: clock["s"])
    calls = LateCalls("o1")
    worker = gateway_with(flow, member, commits, calls, monkeypatch, surroundings=outside)
    append_request(flow, member, "o1")
    turned(worker, commits, 1)
    turned(worker, commits, 1, Outcome.COMMITTED)
    return worker, clock


def test_a_late_word_is_told_in_a_flow_that_stands_still(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a transaction of its own, once it has waited: it commits the offset that is committed, by
    which one that the group knows no more is refused. Aborted, it is told again, and no sooner."""
    member, commits = Member(), Commits()
    worker, clock = standing(flow, member, commits, monkeypatch)
    for at, outcome in ((1, Outcome.ABORTED), (2, Outcome.COMMITTED)):
        clock["s"] += WAIT_S_MAX - 0.1
        turned(worker, commits, at)
        clock["s"] += 0.1
        turned(worker, commits, at + 1)
        assert told_by(flow, commits, at) == [("o1", "succeeded")]
        work = commits.works[at]
        assert (work.offsets, work.moves) == ({(worker._stage.topic, 0): 1}, False)
        assert work.group_metadata == "generation 1"
        turned(worker, commits, at + 1, outcome)
    clock["s"] += 2 * WAIT_S_MAX
    turned(worker, commits, 3)
    append_request(flow, member, "o2")
    turned(worker, commits, 4)
    assert commits.works[3].offsets == {(worker._stage.topic, 0): 2}


def test_a_call_that_is_open_goes_on_though_a_late_word_s_transaction_is_aborted(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is read again for it: a gateway without keys would not be called a second time."""
    member, commits = Member(), Commits()
    worker, clock = standing(flow, member, commits, monkeypatch)
    worker._calls = calls = Held()
    append_request(flow, member, "o1")
    turned(worker, commits, 1)
    clock["s"] += WAIT_S_MAX
    turned(worker, commits, 2)
    turned(worker, commits, 2, Outcome.ABORTED)
    calls.end(calls.held[0], DECLINED)
    turned(worker, commits, 3)
    assert told_by(flow, commits, 2) == [("o1", "declined"), ("o1", "succeeded")]
    assert len(calls.held) == 1


class AtOnce(Commits):
    """Each transaction is committed by the next look."""

    def submit(self, work: Any) -> None:
        super().submit(work)
        self.end(Outcome.COMMITTED)


@pytest.mark.parametrize("leaving", ["a stop", "a rebalance"])
def test_a_late_word_is_told_before_a_worker_leaves(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch, leaving: str
) -> None:
    """It is memory of this worker, and nobody else's. It does not wait for others then."""
    ticks = itertools.count()
    outside = dataclasses.replace(REAL, monotonic_s=lambda: next(ticks) / 100)
    member, commits, calls = Member(), AtOnce(), LateCalls("o1")
    worker = gateway_with(flow, member, commits, calls, monkeypatch, surroundings=outside)
    append_request(flow, member, "o1")
    turned(worker, commits, 1)
    if leaving == "a stop":
        worker._drain()
    else:
        worker._on_revoke(member, [])
    assert told_by(flow, commits, 1) == [("o1", "succeeded")]
    assert len(commits.works) == 2
    assert next(ticks) / 100 < WAIT_S_MAX


def test_a_worker_without_partitions_stops_without_a_word(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can write nothing that is fenced, and waits for none."""
    member, commits = Member(), AtOnce()
    worker = gateway_with(flow, member, commits, LateCalls("o1"), monkeypatch)
    append_request(flow, member, "o1")
    turned(worker, commits, 1)
    worker._on_lost(member, [])
    worker._drain()
    assert len(commits.works) == 1


class Held(InstantCalls):
    """Calls about the first order end when told."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Call] = []

    def start(self, calls: list[Call]) -> None:
        self.held += [call for call in calls if call.request.order_id == "o1"]
        super().start([call for call in calls if call.request.order_id != "o1"])

    def end(self, call: Call, answer: GatewayAnswer) -> None:
        call.answer = answer
        self._finished.append(call)


@pytest.mark.parametrize(
    ("kind", "answer", "told"),
    [
        ("charge", SUCCEEDED, 1),
        ("inquire", SUCCEEDED, 1),
        ("charge", replace(SUCCEEDED, gateway_reference=None), 0),
        ("charge", DECLINED, 0),
        # Though it may have come back since.
        ("refund", SUCCEEDED, 1),
        # It may have been sent again since.
        ("refund", RETURNED, 0),
    ],
)
def test_a_success_is_told_though_its_request_is_read_again(
    flow: EngineFlow,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    answer: GatewayAnswer,
    told: int,
) -> None:
    """The call that is made again may hear nothing."""
    member, commits, calls = Member(), Commits(), Held()
    worker = gateway_with(flow, member, commits, calls, monkeypatch)
    append_request(flow, member, "o2")
    asked = replace(flow.request(flow.order("o1")), kind=kind, parent_reference="ch")
    value = flow.encode("payment-request", asked)
    member.append(flow.topic("payment-requests"), key_of("o1"), value, partition=0)
    turned(worker, commits, 1)
    commits.end(Outcome.ABORTED)
    turned(worker, commits, 2)
    before, again = calls.held
    calls.end(before, answer)
    turned(worker, commits, 2, Outcome.COMMITTED)
    calls.end(again, TIMED_OUT)
    turned(worker, commits, 3)
    assert told_by(flow, commits, 2) == [("o1", "unknown"), *[("o1", "succeeded")] * told]


def test_an_answer_between_two_assignments_is_told_once(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partition comes back with its open calls, and their answers count."""
    member, commits, calls = Member(), Commits(), Held()
    worker = gateway_with(flow, member, commits, calls, monkeypatch)
    append_request(flow, member, "o1")
    turned(worker, commits, 0)
    worker._on_revoke(member, [])
    calls.end(calls.held[0], SUCCEEDED)
    worker._collect()
    worker._on_assign(member, [TopicPartition(flow.topic("payment-requests"), 0)])
    turned(worker, commits, 1)
    assert told_by(flow, commits, 0) == [("o1", "succeeded")]
    assert len(calls.held) == 1


def test_a_late_word_that_no_topic_takes_is_nobodys_fault(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request beside it would be dead-lettered for it."""
    member, commits, worker = given_up_on_one(flow, monkeypatch)
    append_request(flow, member, "o2")
    turned(worker, commits, 2)
    worker._lane.too_large = 1
    commits.end(Outcome.ABORTED)
    turned(worker, commits, 3)
    assert told_by(flow, commits, 2) == [("o2", "succeeded")]


def test_no_more_late_words_wait_than_there_is_room_for(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no transaction can end, they come on."""
    member, commits = Member(), Commits(busy=True)
    worker = gateway_with(flow, member, commits, LateCalls("o1"), monkeypatch)
    for _ in range(WORDS_MAX):
        worker._words.add(("t", 0, b"oldest", b"", None))
    append_request(flow, member, "o1")
    for _ in range(3):
        worker._turn(fetch=True)
    assert len(worker._words) == WORDS_MAX
    assert worker._words.tell()[-1][2] == key_of("o1")


@pytest.mark.parametrize(("age_ms", "try_number", "forgotten"), [
    (3_600_000, 3, 1), (3_600_000, 1, 0), (0, 3, 0),
])  # fmt: skip
def test_what_was_heard_is_forgotten_though_a_resend_is_refused(
    flow: EngineFlow,
    monkeypatch: pytest.MonkeyPatch,
    age_ms: int,
    try_number: int,
    forgotten: int,
) -> None:
    """It was decided, so a worker that was frozen may have sent it. Calls see what is sent."""
    member, commits, calls = Member(), Commits(), InstantCalls()
    worker = gateway_with(flow, member, commits, calls, monkeypatch)
    asked = replace(flow.request(flow.order("o1")), try_number=try_number)
    value = flow.encode("payment-request", asked)
    member.append(flow.topic("payment-requests"), key_of("o1"), value, partition=0, age_ms=age_ms)
    turned(worker, commits, 1)
    assert calls.forgotten == [asked.idempotency_key] * forgotten


def test_of_a_resend_that_is_refused_calls_forget_what_was_before() -> None:
    """As of one that is sent."""
    answer = GatewayAnswer(outcome="not_found")
    with running(SlowToLookUp("a", answer=answer), gate=NobodyWaits([])) as calls:
        answer_to(calls, QUESTION)
        hear(calls)
        assert len(calls._heard) == 1
        calls.forget([replace(QUESTION, kind="charge", try_number=3)])
        assert answer_to(calls, replace(QUESTION, try_number=4)).not_found_asked_at_ms == 0


class Contradicted(InstantCalls):
    """Each success is contradicted by what an earlier question heard."""

    def start(self, calls: list[Call]) -> None:
        super().start(calls)
        for call in calls:
            call.contradiction = replace(DECLINED, heard="contradicts")


def test_what_contradicts_an_answer_goes_behind_it(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one transaction, or it could be read as the answer."""
    member, commits = Member(), Commits()
    worker = gateway_with(flow, member, commits, Contradicted(), monkeypatch)
    append_request(flow, member, "o1")
    turned(worker, commits, 1)
    assert told_by(flow, commits, 0) == [("o1", "succeeded"), ("o1", "declined")]


# For their payment -------------------------------------------------------------------------------


def test_a_refund_that_came_back_is_told_though_it_was_settled() -> None:
    """The question that heard it was given up, and the next one was still told of the success."""
    story = Story()
    story.flow.answer(yes)
    story.command("refund", "r1")
    story.flow.answer(TIMED_OUT)
    story.wait()
    given_up = story.flow.open_requests[-1][1]
    story.flow.answer(TIMED_OUT)
    story.wait()
    story.flow.answer(yes)
    assert story.money == (500, 500, 500)
    word = result_of(given_up, RETURNED, story.flow.now_ms)
    story.flow.result(word)
    assert story.money == (500, 500, 0)
    assert story.settled == [("capture", 500), ("refund", -500), ("refund_failed", 500)]
    assert story.flow.result(word).note == "stale_result"


@pytest.mark.parametrize("by", ["silence", "a person"])
@pytest.mark.parametrize("returned", [None, "before", "behind"])
def test_a_refund_that_was_given_up_is_booked_when_it_shows(by: str, returned: str | None) -> None:
    """The last question before the end is answered after it; refunded again, the customer would
    have it twice. Its return is taken in either order."""
    story = Story()
    story.flow.answer(yes)
    story.command("refund", "r1")
    if by == "silence":
        story.flow.run(lambda request: NOT_SENT if request.kind == "refund" else TIMED_OUT)
    else:
        story.flow.run(TIMED_OUT)
        story.flow.now_ms += 60_000
        story.command("resolve", "p1", decision="not_charged")
    assert story.payment.attempts[-1].state == "failed"
    asked = story.flow.requests()[-1]
    words = [replace(yes(asked), heard="late_answer")]
    if returned is not None:
        words.insert(returned == "behind", replace(RETURNED, heard="late_answer"))
    for word in words:
        story.flow.result(result_of(asked, word, story.flow.now_ms))
    assert story.money == (500, 500, 0 if returned else 500)
    assert sum(amount for _, amount in story.settled) == (500 if returned else 0)
    assert [f.name for f in judged_flow(story.flow, None)] == []


def heard_pending(story: Story, asked: PaymentRequest) -> str | None:
    """The note of the decision about a question's late answer."""
    word = replace(PENDING, heard="late_answer")
    return story.flow.result(result_of(asked, word, story.flow.now_ms)).note


def test_what_is_heard_to_be_pending_when_a_person_is_asked_is_no_persons() -> None:
    """The last question was given up. Who said that nothing was made would be believed, and the
    gateway have it twice; it is asked about instead, as all that is pending."""
    story = Story()
    story.flow.run(TIMED_OUT)
    assert story.payment.attempts[-1].state == "inquiry_exhausted"
    assert heard_pending(story, story.flow.requests()[-1]) is None
    story.flow.now_ms += 60_000
    assert story.rejected("resolve", "p1", decision="not_charged") == "outcome_must_be_unknown"
    story.flow.advance(2 * HOUR_MS)
    story.flow.answer(yes)
    assert (story.status, story.money) == ("captured", (500, 500, 0))


def test_what_is_known_as_pending_is_no_news() -> None:
    """Asked about for its time, it is a person's: each question that is given up may hear
    the same again, and would have it asked about for ever."""
    story = Story(policy=replace(POLICY, pending_max_ms=HOUR_MS))
    story.flow.answer(PENDING)
    story.wait()
    asked = story.flow.open_requests[-1][1]
    assert heard_pending(story, replace(asked, try_number=1)) == "stale_result"
    for _ in range(4):
        story.flow.run(TIMED_OUT)
        story.flow.advance(HOUR_MS)
    assert story.payment.attempts[-1].state == "inquiry_exhausted"
    assert heard_pending(story, story.flow.requests()[-1]) == "stale_result"


def test_what_has_ended_is_not_pending_again() -> None:
    """Its gateway tells how it ends, and a success is taken then."""
    story = Story()
    story.flow.run(lambda request: NOT_SENT if request.kind == "charge" else TIMED_OUT)
    assert heard_pending(story, story.flow.requests()[-1]) == "stale_result"
    assert story.status == "failed"


def test_a_charge_that_was_given_up_on_silence_goes_back_when_it_shows() -> None:
    """The last question before the end is answered after it."""
    story = Story()
    story.flow.run(lambda request: NOT_SENT if request.kind == "charge" else TIMED_OUT)
    assert story.status == "failed"
    asked = story.flow.requests()[-1]
    story.flow.result(result_of(asked, yes(asked), story.flow.now_ms))
    assert story.events[-2:] == ["late_success", "reversal_started"]
    story.flow.answer(yes)
    assert sum(amount for _, amount in story.settled) == 0


def test_a_decline_that_contradicts_what_was_taken_is_a_dead_letter() -> None:
    """Told behind it, or by itself when an earlier question hears it; the money stays, and `verify`
    takes neither for a result that is there twice. Both say the same, so a person is asked once."""
    story = Story()
    story.flow.answer(TIMED_OUT)
    story.wait()
    given_up = story.flow.open_requests[-1][1]
    story.flow.answer(TIMED_OUT)
    story.wait()
    asked = story.flow.open_requests[-1][1]
    story.flow.answer(yes)
    for question, heard in ((asked, "contradicts"), (given_up, "late_answer")):
        word = replace(DECLINED, heard=heard)
        story.flow.result(result_of(question, word, story.flow.now_ms))
    assert [letter.cause for letter in story.flow.dead_letters] == ["contradictory_evidence"]
    assert (story.status, story.money) == ("captured", (500, 500, 0))
    assert [f.name for f in judged_flow(story.flow, None)] == []


def test_a_decline_that_comes_late_changes_nothing_where_nothing_was_taken() -> None:
    """The next question is told of it as well."""
    story = Story()
    story.flow.answer(TIMED_OUT)
    story.wait()
    given_up = story.flow.open_requests[-1][1]
    story.flow.answer(TIMED_OUT)
    word = replace(DECLINED, heard="late_answer")
    told = story.flow.result(result_of(given_up, word, story.flow.now_ms))
    assert told.note == "stale_result"
    assert story.status == "outcome_unknown"


def test_a_word_told_by_itself_is_no_result_that_is_there_twice() -> None:
    """The question's own result was told before. One that is not marked so is."""
    for heard, found in (("late_answer", []), (None, ["result_duplicated"])):
        story = Story()
        story.flow.answer(TIMED_OUT)
        story.wait()
        asked = story.flow.open_requests[-1][1]
        story.flow.answer(TIMED_OUT)
        word = replace(yes(asked), heard=heard)
        story.flow.result(result_of(asked, word, story.flow.now_ms))
        story.flow.run(yes)
        assert story.money == (500, 500, 0)
        assert [f.name for f in judged_flow(story.flow, None)] == found


@pytest.mark.parametrize(
    ("heard", "told"),
    [
        (None, "inquire at a: succeeded, ch, "),
        ("earlier_question", "inquire at a: succeeded, an earlier question heard it, ch, "),
        ("late_answer", "inquire at a: succeeded, heard too late, ch, "),
        ("contradicts", "inquire at a: succeeded, against what was told before, ch, "),
    ],
)
def test_the_way_of_an_order_tells_whose_answer_it_is(heard: str | None, told: str) -> None:
    """Of what an earlier question heard nobody was asked."""
    result = result_of(QUESTION, replace(SUCCEEDED, heard=heard), 7)
    assert describe("gateway-results", to_record(result)).startswith(told)

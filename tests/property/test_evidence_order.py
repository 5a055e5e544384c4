"""The same evidence, in any order and at any pace, has the same end: answers, notices, and words
that a worker heard when nobody waited for them any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import GatewayResult, Order, PaymentRequest
from pipeline.domain.policy import DAY_MS, HOUR_MS, MINUTE_MS, Policy
from pipeline.processors.gateway import result_of
from tests.property.late_words import UNKNOWN
from tests.property.referee import JudgedDriver
from tests.support.examples import share_of
from tests.support.payment_story import (
    MANUAL,
    NOT_SENT,
    NOW,
    ORDER,
    POLICY,
    SECOND,
    TIMED_OUT,
    Story,
    yes,
)

# What a gateway came to say of an operation, stage by stage.
MAIN_TRUTHS = (
    ("succeeded",),
    ("declined",),
    ("pending", "succeeded"),
    ("pending", "declined"),
    ("asks", "succeeded"),
    ("asks", "declined"),
    ("asks", "pending", "succeeded"),
    ("asks", "pending", "declined"),
)
LATER_TRUTHS = (("succeeded",), ("declined",), ("pending", "succeeded"), ("pending", "declined"))
REFUND_TRUTHS = (*LATER_TRUTHS, ("succeeded", "failed"), ("pending", "succeeded", "failed"))
TRUTHS = {
    "charge": MAIN_TRUTHS,
    "authorize": MAIN_TRUTHS,
    "capture": LATER_TRUTHS,
    "refund": REFUND_TRUTHS,
}
# The call's own answer among the notices.
ANSWER = "the answer"


# Many questions may go unanswered before a person is asked.
PATIENT: Final = replace(POLICY, inquiry_max=60)


class JudgedStory(Story):
    """Each decision is held to the rules, and questions may be answered too late."""

    flow: JudgedDriver

    def __init__(
        self, order: Order, unheard: Sequence[bool] = (), policy: Policy = PATIENT
    ) -> None:
        self.flow = JudgedDriver(policy, now_ms=NOW)
        self.order_id = order.order_id
        self.flow.order(order)
        self.unheard = list(unheard)

    def told_of(self, request: PaymentRequest, said: GatewayAnswer) -> GatewayAnswer:
        """What is told of a question: its answer, or, where that comes too late, what is known."""
        words = self.flow.late_words
        if request.kind != "inquire":
            return said
        if not (self.unheard and self.unheard.pop(0)):
            return words.answer(request, said)
        known = words.answer(request, UNKNOWN)
        words.hear(request, said, self.flow.asked_at_ms, self.flow.now_ms)
        return known

    def tell(self, words_max: int = 1_000) -> None:
        """Late words, the newest first, each by itself; now and then one once more."""
        told = self.flow.late_words.told
        for number in range(min(words_max, len(told))):
            word = told[-1]
            self.flow.a_late_word_is_told(-1)
            if number % 2:
                self.flow.result(word)


# Which questions are heard too late, and how many late words are told after each other word.
LATENESS = st.tuples(
    st.lists(st.booleans(), max_size=4), st.lists(st.integers(0, 2), min_size=1, max_size=6)
)
IN_TIME: Final[tuple[list[bool], list[int]]] = ([], [0])


def said(stage: str, amount_minor: int) -> GatewayAnswer:
    if stage == "lost":
        return TIMED_OUT
    code = {"declined": "insufficient_funds", "failed": "returned"}.get(stage)
    outcome = {"asks": "pending", "failed": "declined"}.get(stage, stage)
    answer = GatewayAnswer(
        outcome=outcome, code=code, gateway_reference="ref", amount_minor=amount_minor
    )
    if stage != "asks":
        return answer
    return replace(answer, code="customer_action_required", next_action_url="https://bank.example")


def end(
    kind: str,
    truth: tuple[str, ...],
    answered: str,
    words: list[str],
    gap_ms: int,
    lateness: tuple[list[bool], list[int]] = IN_TIME,
) -> Any:
    """How it ends when these words come so long after each other; inquiries are told the truth, in
    time or later."""
    unheard, told_after = lateness
    order = MANUAL if kind in ("authorize", "capture") else ORDER
    story = JudgedStory(order, unheard)
    operation_id, amount_minor = "1", 500
    if kind in ("capture", "refund"):
        story.flow.answer(yes)
        operation_id, amount_minor = "c1", 200
        story.command(kind, operation_id, amount_minor=amount_minor)
    flow = story.flow
    opened = flow.open_requests.pop(0)
    result = flow.handle(opened, said(answered, amount_minor))
    if answered == "lost":
        flow.late_words.made(opened[1], said(truth[0], amount_minor), flow.now_ms)

    def ask() -> None:
        while flow.open_requests:
            flow.answer(lambda request: story.told_of(request, said(truth[-1], amount_minor)))

    for word, late in zip(words, cycle(told_after)):
        if word == ANSWER:
            flow.result(result)
        else:
            told = said(word, amount_minor)
            outcome = "failed" if word == "failed" else told.outcome
            fields = {"code": told.code, "gateway_reference": "ref", "amount_minor": amount_minor}
            story.notify(outcome, operation_id, **fields)
        story.tell(late)
        flow.advance(gap_ms)
        ask()
    while any(due.purpose != "timer" for due in flow.waits()):
        flow.advance(MINUTE_MS)
        ask()
    story.tell()
    payment = story.payment
    states = [(each.operation_id, each.kind, each.state) for each in payment.attempts]
    assert 0 <= payment.refunded_minor <= payment.captured_minor <= payment.authorized_minor
    # A refund that was made and came back may be heard of as one that failed: the sum is the same.
    settled_minor = sum(minor for _, minor in story.settled)
    assert not flow.dead_letters
    return story.status, story.money, settled_minor, states, payment.next_action_url


@settings(max_examples=share_of(500))
@given(data=st.data(), kind=st.sampled_from(sorted(TRUTHS)))
def test_the_order_of_evidence_changes_nothing(data: st.DataObject, kind: str) -> None:
    """The answer, late or lost, the notices of each stage, once or twice, and what questions heard
    too late, in any order."""
    truth = data.draw(st.sampled_from(TRUTHS[kind]))
    words = [ANSWER, *truth, *data.draw(st.lists(st.sampled_from(truth), max_size=2))]
    shuffled = data.draw(st.permutations(words))
    answered = data.draw(st.sampled_from(["lost", *truth]))
    gap_ms = data.draw(st.sampled_from([0, SECOND, 20 * SECOND]))
    straight = end(kind, truth, truth[0], [ANSWER, *truth], 0)
    lateness = data.draw(LATENESS)
    assert end(kind, truth, answered, shuffled, gap_ms, lateness) == straight


# Several operations, and disputes -----------------------------------------------------------------

# One word: of an operation, or of a dispute, its stage; the answer that a worker holds is one too.
Word = tuple[str, str]
DISPUTE: Final = "the dispute"
# What is held by workers when the words begin, by operation.
Held = dict[str, GatewayResult]


class Scene:
    """A payment some way on its life, and the operations of which the truth is still to come.

    ``truths``: of each operation what its gateway may come to say, stage by stage.
    """

    def __init__(
        self,
        begin: Callable[[Story], Held],
        truths: Mapping[str, tuple[tuple[str, ...], ...]],
        amounts: Mapping[str, int],
        *,
        manual: bool = False,
        disputes: tuple[tuple[str, ...], ...] = ((),),
    ) -> None:
        self.begin = begin
        self.truths = truths
        self.amounts = amounts
        self.order = MANUAL if manual else ORDER
        self.disputes = disputes


def held(story: Story, answer: GatewayAnswer = TIMED_OUT) -> GatewayResult:
    return story.flow.handle(story.flow.open_requests.pop(0), answer)


def cancelled_charge(story: Story) -> Held:
    result = held(story)
    story.command("cancel", "c1")
    return {"1": result}


def captures_and_refund(story: Story) -> Held:
    """Two captures that take long, and a refund that waits for one of them."""
    story.flow.answer(yes)
    for name, amount_minor in (("c1", 200), ("c2", 300)):
        story.command("capture", name, amount_minor=amount_minor)
        story.flow.answer(word_of(name, "pending", amount_minor))
    story.command("refund", "c3", amount_minor=200)
    return {}


def refund_and_dispute(story: Story) -> Held:
    story.flow.answer(word_of("1", "succeeded", 500))
    story.command("refund", "c1", amount_minor=200)
    return {"c1": held(story)}


def two_refunds(story: Story) -> Held:
    """Both are made, and either may come back."""
    story.flow.answer(word_of("1", "succeeded", 500))
    for name, amount_minor in (("c1", 200), ("c2", 300)):
        story.command("refund", name, amount_minor=amount_minor)
        story.flow.answer(word_of(name, "pending", amount_minor))
    return {}


def retried_charge(story: Story) -> Held:
    """What was given up on silence may show as made, beside the retry."""
    story.flow.run(NOT_SENT)
    assert story.status == "failed"
    story.command("retry", "c1", instrument_token="tok_2")
    return {"c1": held(story)}


SCENES: Final = {
    "a charge that is cancelled": Scene(cancelled_charge, {"1": MAIN_TRUTHS}, {"1": 500}),
    "captures in parts and a refund": Scene(
        captures_and_refund,
        {"c1": (("succeeded",), ("declined",)), "c2": (("succeeded",), ("declined",))},
        {"c1": 200, "c2": 300, "c3": 200},
        manual=True,
    ),
    "a refund and a dispute": Scene(
        refund_and_dispute,
        {"c1": REFUND_TRUTHS},
        {"1": 500, "c1": 200},
        disputes=(("opened",), ("opened", "won"), ("opened", "lost"), ("inquiry", "opened")),
    ),
    "two refunds": Scene(
        two_refunds, {"c1": REFUND_TRUTHS, "c2": REFUND_TRUTHS}, {"1": 500, "c1": 200, "c2": 300}
    ),
    # What was given back before the bank took it as well is no matter of the words.
    "a late charge and a dispute that is won": Scene(
        cancelled_charge,
        {"1": (("succeeded",), ("pending", "succeeded"))},
        {"1": 500},
        disputes=(("opened", "won"),),
    ),
    "a retry and a late charge": Scene(
        retried_charge,
        {"1": (("succeeded",),), "c1": (("succeeded",), ("declined",), ("pending", "succeeded"))},
        {"1": 500, "c1": 500},
    ),
}


def word_of(operation_id: str, stage: str, amount_minor: int) -> GatewayAnswer:
    return replace(said(stage, amount_minor), gateway_reference=f"ref_{operation_id}")


def played(
    scene: Scene,
    truths: Mapping[str, tuple[str, ...]],
    dispute: tuple[str, ...],
    words: list[Word],
    gap_ms: int,
    lateness: tuple[list[bool], list[int]] = IN_TIME,
) -> Any:
    """How the scene ends when these words come so long after each other; questions are told the
    truth, in time or later, and what follows is done."""
    unheard, told_after = lateness
    story = JudgedStory(scene.order, unheard)
    results = scene.begin(story)
    flow = story.flow

    def truth(request: PaymentRequest) -> GatewayAnswer:
        name = request.operation_id
        if name not in truths:
            return yes(request)
        return story.told_of(request, word_of(name, truths[name][-1], scene.amounts[name]))

    def go_on() -> None:
        while flow.open_requests:
            flow.answer(truth)

    for (about, stage), late in zip(words, cycle(told_after)):
        if stage == ANSWER:
            flow.result(results[about])
        elif about == DISPUTE:
            number = dispute.index(stage) + 1
            story.dispute(stage, amount_minor=300, event_sequence=number, gateway_reference="ref_1")
        else:
            told = word_of(about, stage, scene.amounts[about])
            outcome = "failed" if stage == "failed" else told.outcome
            fields = {"code": told.code, "gateway_reference": told.gateway_reference}
            story.notify(outcome, about, amount_minor=scene.amounts[about], **fields)
        story.tell(late)
        flow.advance(gap_ms)
        go_on()
    for _ in range(200):
        if not any(due.attempt or due.purpose != "timer" for due in flow.waits()):
            break
        flow.advance(HOUR_MS)
        go_on()
    story.tell()
    go_on()
    payment = story.payment
    states = sorted((each.operation_id, each.kind, each.state) for each in payment.attempts)
    disputes = [(each.dispute_id, each.state, each.withdrawn_minor) for each in payment.disputes]
    settled_minor = sum(minor for _, minor in story.settled)
    # A dispute may be told before its charge is, and is kept until then.
    assert {letter.cause for letter in flow.dead_letters} <= {"dispute_of_nothing"}
    amounts = (*story.money, payment.disputed_minor, payment.charged_back_minor, settled_minor)
    return story.status, amounts, states, disputes, payment.commands


@settings(max_examples=share_of(240))
@given(data=st.data(), name=st.sampled_from(sorted(SCENES)))
def test_words_about_several_things_commute(data: st.DataObject, name: str) -> None:
    """Of a cancelled charge, captures, refunds and disputes, each told once or twice, and heard in
    time or too late."""
    scene = SCENES[name]
    truths = {each: data.draw(st.sampled_from(of_it)) for each, of_it in scene.truths.items()}
    dispute = data.draw(st.sampled_from(scene.disputes))
    words: list[Word] = [(each, stage) for each, stages in truths.items() for stage in stages]
    words += [(DISPUTE, stage) for stage in dispute]
    answers = [(each, ANSWER) for each in scene.begin(Story(scene.order))]
    again = data.draw(st.lists(st.sampled_from(words), max_size=2))
    shuffled = data.draw(st.permutations([*answers, *words, *again]))
    gap_ms = data.draw(st.sampled_from([0, SECOND, 20 * SECOND]))
    straight = played(scene, truths, dispute, [*answers, *words], 0)
    lateness = data.draw(LATENESS)
    assert played(scene, truths, dispute, shuffled, gap_ms, lateness) == straight


# A gateway that contradicts itself --------------------------------------------------------------

# How it says that it made an operation, and that it declined it.
MADE: Final = ("notice", "late answer", "pair")
DECLINED: Final = ("declined by notice", "declined too late")


@settings(max_examples=share_of(240))
@given(data=st.data(), kind=st.sampled_from(["charge", "authorize", "capture"]))
def test_what_contradicts_itself_counts_once_and_is_told(data: st.DataObject, kind: str) -> None:
    """A success and a decline of one operation, by notices, by what was heard too late, and as one
    answer behind the other. What was made is counted, or, where its payment had failed by the
    decline, given back; of a decline after it a person is told."""
    words = data.draw(st.lists(st.sampled_from((*MADE, *DECLINED)), min_size=2, max_size=6))
    gap_ms = data.draw(st.sampled_from([0, SECOND, 20 * SECOND]))
    story = JudgedStory(ORDER if kind == "charge" else MANUAL)
    flow = story.flow
    operation_id, amount_minor = "1", 500
    if kind == "capture":
        story.flow.answer(yes)
        operation_id, amount_minor = "c1", 200
        story.command("capture", operation_id, amount_minor=amount_minor)
    flow.answer(TIMED_OUT)
    story.wait()
    _, question = flow.open_requests[0]
    done, no = said("succeeded", amount_minor), said("declined", 0)

    def told(answer: GatewayAnswer, heard: str) -> None:
        flow.result(result_of(question, replace(answer, heard=heard), flow.now_ms))

    is_contradicted, is_made, is_declined = False, False, False
    for word in words:
        is_contradicted |= word == "pair" or (is_made and word in DECLINED)
        if word == "notice":
            fields = {"gateway_reference": "ref", "amount_minor": amount_minor}
            story.notify("succeeded", operation_id, **fields)
        elif word == "late answer":
            told(done, "late_answer")
        elif word == "pair":
            told(done, "earlier_question")
            told(no, "contradicts")
        elif word == "declined by notice":
            story.notify("declined", operation_id, gateway_reference="ref", amount_minor=0)
        else:
            told(no, "late_answer")
        is_declined |= not is_made and word in DECLINED
        is_made |= word in MADE
        flow.advance(gap_ms)
    # Where nothing was said, it was made.
    is_made |= not is_declined
    truth = done if is_made else no
    flow.run(lambda request: truth if request.operation_id == operation_id else yes(request))
    letters = {letter.cause for letter in flow.dead_letters}
    assert letters == ({"contradictory_evidence"} if is_contradicted else set())
    ends = {
        "charge": ("captured", (500, 500, 0)),
        "authorize": ("authorized", (500, 0, 0)),
        "capture": ("captured", (500, 200, 0)),
    }
    end = ends[kind]
    if kind != "capture" and is_declined:
        given_back = (500, 500, 500) if kind == "charge" else (0, 0, 0)
        end = ("failed", given_back if is_made else (0, 0, 0))
    elif not is_made:
        end = ("authorized", (500, 0, 0))
    assert (story.status, story.money) == end


# Another gateway --------------------------------------------------------------------------------

TWO_GATEWAYS: Final = replace(
    PATIENT,
    gateways=tuple(replace(POLICY.gateways[0], name=name) for name in ("first", "second")),
)
# How it is heard that a gateway had trouble of its own.
HEARD_BY: Final = ("answer", "notice", "question")


@settings(max_examples=share_of(120))
@given(
    by=st.sampled_from(HEARD_BY),
    after_ms=st.sampled_from([0, SECOND, MINUTE_MS, 2 * MINUTE_MS, 3 * MINUTE_MS, DAY_MS]),
    soon=st.booleans(),
)
def test_another_gateway_has_what_one_declined_only_in_time(
    by: str, after_ms: int, soon: bool
) -> None:
    """However it is heard that the first had trouble of its own, and however late."""
    pay_before_ms = NOW + 2 * MINUTE_MS if soon else None
    story = JudgedStory(replace(ORDER, pay_before_ms=pay_before_ms), policy=TWO_GATEWAYS)
    flow = story.flow
    trouble = GatewayAnswer(outcome="declined", code="processing_error")
    opened = flow.open_requests.pop(0)
    if by == "answer":
        result = flow.handle(opened, trouble)
        flow.now_ms += after_ms
        flow.result(result)
    elif by == "notice":
        flow.result(flow.handle(opened, said("pending", 500)))
        flow.now_ms += after_ms
        story.notify("declined", code=trouble.code, gateway_reference="ref", amount_minor=0)
    else:
        flow.result(flow.handle(opened, TIMED_OUT))
        story.wait()
        flow.now_ms += after_ms
        flow.answer(trouble)
    in_time = flow.now_ms < (pay_before_ms or NOW + TWO_GATEWAYS.stale_after_ms)
    flow.run(yes)
    assert story.status == ("captured" if in_time else "failed")
    assert story.asked.count("charge") == 1 + in_time

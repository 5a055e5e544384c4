"""The same evidence, in any order and at any pace, has the same end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import GatewayResult, PaymentRequest
from pipeline.domain.policy import HOUR_MS, MINUTE_MS
from tests.support.examples import share_of
from tests.support.payment_story import (
    MANUAL,
    NOT_SENT,
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


def end(kind: str, truth: tuple[str, ...], answered: str, words: list[str], gap_ms: int) -> Any:
    """How it ends when these words come so long after each other; inquiries are told the truth."""
    order = MANUAL if kind in ("authorize", "capture") else ORDER
    story = Story(order, replace(POLICY, inquiry_max=60))
    operation_id, amount_minor = "1", 500
    if kind in ("capture", "refund"):
        story.flow.answer(yes)
        operation_id, amount_minor = "c1", 200
        story.command(kind, operation_id, amount_minor=amount_minor)
    flow = story.flow
    result = flow.handle(flow.open_requests.pop(0), said(answered, amount_minor))

    def ask() -> None:
        while flow.open_requests:
            flow.answer(said(truth[-1], amount_minor))

    for word in words:
        if word == ANSWER:
            flow.result(result)
        else:
            told = said(word, amount_minor)
            outcome = "failed" if word == "failed" else told.outcome
            fields = {"code": told.code, "gateway_reference": "ref", "amount_minor": amount_minor}
            story.notify(outcome, operation_id, **fields)
        flow.advance(gap_ms)
        ask()
    while any(due.purpose != "timer" for due in flow.waits()):
        flow.advance(MINUTE_MS)
        ask()
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
    """The answer, late or lost, and the notices of each stage, once or twice, in any order."""
    truth = data.draw(st.sampled_from(TRUTHS[kind]))
    words = [ANSWER, *truth, *data.draw(st.lists(st.sampled_from(truth), max_size=2))]
    shuffled = data.draw(st.permutations(words))
    answered = data.draw(st.sampled_from(["lost", *truth]))
    gap_ms = data.draw(st.sampled_from([0, SECOND, 20 * SECOND]))
    straight = end(kind, truth, truth[0], [ANSWER, *truth], 0)
    assert end(kind, truth, answered, shuffled, gap_ms) == straight


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
) -> Any:
    """How the scene ends when these words come so long after each other; questions are told the
    truth, and what follows is done."""
    story = Story(scene.order, replace(POLICY, inquiry_max=60))
    results = scene.begin(story)
    flow = story.flow

    def truth(request: PaymentRequest) -> GatewayAnswer:
        name = request.operation_id
        if name not in truths:
            return yes(request)
        return word_of(name, truths[name][-1], scene.amounts[name])

    def go_on() -> None:
        while flow.open_requests:
            flow.answer(truth)

    for about, stage in words:
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
        flow.advance(gap_ms)
        go_on()
    for _ in range(200):
        if not any(due.attempt or due.purpose != "timer" for due in flow.waits()):
            break
        flow.advance(HOUR_MS)
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
    """Of a cancelled charge, captures, refunds and disputes, each told once or twice."""
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
    assert played(scene, truths, dispute, shuffled, gap_ms) == straight

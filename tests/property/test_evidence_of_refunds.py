"""A refund that was made and came back unheard, and the one ordered in its place: true words about
both have one end, in whichever order they are heard."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.policy import HOUR_MS
from tests.support.examples import share_of
from tests.support.payment_story import NOT_SENT, POLICY, SECOND, TIMED_OUT, Story, yes

FIRST, SECOND_ONE, THIRD = "r1", "r2", "r3"
ANSWER: Final = "the answer"
Word = tuple[str, str]
# What the gateway came to say of the second one, stage by stage.
TRUTHS: Final = (("succeeded",), ("pending", "succeeded"))


def given_up(by: str) -> Story:
    """The first refund is over as far as is known, and the second is asked for."""
    # Many questions may be asked before the last word comes.
    story = Story(policy=replace(POLICY, inquiry_max=60))
    story.flow.answer(yes)
    story.command("refund", FIRST)
    if by == "silence":
        story.flow.run(lambda request: NOT_SENT if request.kind == "refund" else TIMED_OUT)
    else:
        story.flow.answer(TIMED_OUT)
        story.flow.now_ms += HOUR_MS
        story.command("resolve", "p1", operation_id=FIRST, decision="not_charged")
        story.flow.run(TIMED_OUT)
    assert story.payment.attempts[-1].state == "failed"
    story.command("refund", SECOND_ONE)
    return story


def heard(by: str, truth: tuple[str, ...], answered: str, words: list[Word], gap_ms: int) -> Any:
    """How it ends when these words come so long after each other; questions are told the truth, and
    what waits for the second one finds nothing left."""
    story = given_up(by)
    flow = story.flow
    request = flow.open_requests[0][1]

    def said(stage: str) -> GatewayAnswer:
        return TIMED_OUT if stage == "lost" else replace(yes(request), outcome=stage)

    result = flow.handle(flow.open_requests.pop(0), said(answered))
    story.command("refund", THIRD, amount_minor=100)
    for about, stage in words:
        if stage == ANSWER:
            flow.result(result)
        else:
            story.notify(stage, about, code="returned" if stage == "failed" else None)
        flow.advance(gap_ms)
        while flow.open_requests:
            flow.answer(yes)
    flow.run(yes)
    assert {letter.cause for letter in flow.dead_letters} <= {"contradictory_evidence"}
    states = {each.operation_id: each.state for each in story.payment.attempts}
    settled_minor = sum(minor for _, minor in story.settled)
    return story.money, settled_minor, states, story.payment.commands


@settings(max_examples=share_of(240))
@given(data=st.data(), by=st.sampled_from(["silence", "a person"]), truth=st.sampled_from(TRUTHS))
def test_refunds_in_each_others_place_end_the_same(
    data: st.DataObject, by: str, truth: tuple[str, ...]
) -> None:
    """What is known as made leaves no room for the other until its return is heard."""
    words: list[Word] = [(FIRST, "succeeded"), (FIRST, "failed")]
    words += [(SECOND_ONE, stage) for stage in truth]
    again = data.draw(st.lists(st.sampled_from(words), max_size=2))
    shuffled = data.draw(st.permutations([(SECOND_ONE, ANSWER), *words, *again]))
    answered = data.draw(st.sampled_from(["lost", *truth]))
    gap_ms = data.draw(st.sampled_from([0, SECOND, 20 * SECOND]))
    returned_first: list[Word] = [(FIRST, "failed"), (FIRST, "succeeded"), (SECOND_ONE, ANSWER)]
    straight = heard(by, truth, truth[-1], returned_first, 0)
    states = {"1": "charged", FIRST: "failed", SECOND_ONE: "refunded"}
    assert straight == ((500, 500, 500), 0, states, ())
    assert heard(by, truth, answered, shuffled, gap_ms) == straight

"""The same evidence, in any order and at any pace, has the same end."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.policy import MINUTE_MS
from tests.support.examples import share_of
from tests.support.payment_story import MANUAL, ORDER, POLICY, SECOND, TIMED_OUT, Story, yes

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


@settings(max_examples=share_of(600))
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

"""Notices that carry their gateway's own id alone, where several operations have it: the book of
references finds the newest of them, the amount says which one is meant.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.decision import Decision
from pipeline.domain.policy import GatewayProfile, Policy
from tests.support.payment_story import MANUAL, ORDER, POLICY, Story, yes

OWN_ID = replace(
    POLICY,
    gateways=(GatewayProfile(name="simulator", grace_ms=10_000, notices_by_own_id=True),),
)


def shared(amount_minor: int) -> GatewayAnswer:
    return GatewayAnswer(outcome="succeeded", gateway_reference="ch_1", amount_minor=amount_minor)


def two_refunds(*amounts: int, policy: Policy = OWN_ID) -> Story:
    """Both made, and known by the id of their charge."""
    story = Story(policy=policy)
    story.flow.answer(shared(500))
    for number, amount_minor in enumerate(amounts, start=1):
        story.command("refund", f"r{number}", amount_minor=amount_minor)
        story.flow.answer(shared(amount_minor))
    assert story.money == (500, 500, sum(amounts))
    return story


def told_of(story: Story, outcome: str, kind: str, amount_minor: int, **more: Any) -> Decision:
    """A notice as the book addresses it: to the newest operation that has the id."""
    newest = [each for each in story.payment.attempts if each.gateway_reference == "ch_1"][-1]
    named = {"gateway_reference": "ch_1", "kind": kind, "amount_minor": amount_minor, **more}
    return story.notify(outcome, newest.operation_id, **named)


def states(story: Story) -> list[str]:
    return [each.state for each in story.payment.attempts]


@pytest.mark.parametrize(("back_minor", "left"), [(200, "r2"), (300, "r1")])
def test_the_refund_whose_amount_came_back_is_the_one_that_failed(
    back_minor: int, left: str
) -> None:
    """Whichever of the two is newer; told again, it is no news."""
    story = two_refunds(200, 300)
    for _ in range(2):
        told_of(story, "failed", "refund", back_minor, code="returned")
    made = [each.operation_id for each in story.payment.attempts if each.state == "refunded"]
    assert (made, story.money) == ([left], (500, 500, 500 - back_minor))
    assert story.settled[-1] == ("refund_failed", back_minor)
    assert story.flow.dead_letters == []


@pytest.mark.parametrize(("amounts", "back_minor"), [((200, 300), 100), ((200, 200), 200)])
def test_what_no_amount_or_more_than_one_fits_is_not_guessed(
    amounts: tuple[int, int], back_minor: int
) -> None:
    """A person hears of it, once; nothing is booked."""
    story = two_refunds(*amounts)
    for _ in range(2):
        told_of(story, "failed", "refund", back_minor, code="returned")
    assert states(story) == ["charged", "refunded", "refunded"]
    assert [letter.cause for letter in story.flow.dead_letters] == ["contradictory_evidence"]


def test_a_charge_that_is_told_again_after_its_refund_is_no_news() -> None:
    """The refund has its id, and is the newer one."""
    story = two_refunds(200)
    assert told_of(story, "succeeded", "charge", 500).note == "stale_result"
    assert story.flow.dead_letters == []


def test_the_capture_whose_amount_is_told_is_the_one_that_was_made() -> None:
    """Two captures of one hold, known by its id; neither is known as made before."""
    story = Story(MANUAL, policy=OWN_ID)
    story.flow.answer(shared(500))
    pending = GatewayAnswer(outcome="pending", gateway_reference="ch_1")
    for capture, amount_minor in (("k1", 100), ("k2", 300)):
        story.command("capture", capture, amount_minor=amount_minor)
        story.flow.answer(pending)
    told_of(story, "succeeded", "capture", 100)
    assert states(story) == ["authorized", "captured", "pending"]
    assert story.money == (500, 100, 0)


@pytest.mark.parametrize("policy", [POLICY, OWN_ID])
def test_a_refund_of_which_another_amount_came_back_is_a_persons(policy: Policy) -> None:
    """However the notice names it: it is not booked as its whole."""
    story = Story(ORDER, policy=policy)
    story.flow.answer(yes)
    story.command("refund", "r1", amount_minor=200)
    story.flow.answer(yes)
    told = story.notify("failed", "r1", code="returned", amount_minor=150)
    assert told.dead_letter == "contradictory_evidence"
    assert (states(story), story.money) == (["charged", "refunded"], (500, 500, 200))
    story.notify("failed", "r1", code="returned", amount_minor=200)
    assert story.money == (500, 500, 0)


def test_a_notice_that_names_our_operation_needs_no_amount_to_be_told_apart() -> None:
    """Its gateway repeats our key, whatever ids it has."""
    story = two_refunds(200, 200, policy=POLICY)
    story.notify("failed", "r1", gateway_reference="ch_1", code="returned", amount_minor=200)
    assert states(story) == ["charged", "failed", "refunded"]
    assert story.flow.dead_letters == []

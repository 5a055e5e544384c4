"""A refund's success with no room for it: another that came back is known as made."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from tests.support.audit_story import judged_flow
from tests.support.payment_story import DECLINED, NOT_SENT, POLICY, TIMED_OUT, Story, yes
from tests.unit.test_processors_notices import RETURNED

PENDING = GatewayAnswer(outcome="pending", gateway_reference="refund_1_r2")


def refund_ordered_again() -> Story:
    """The first refund was given up on silence, though its gateway made it; the second is asked
    for."""
    story = Story()
    story.flow.answer(yes)
    story.command("refund", "r1")
    story.flow.run(lambda request: NOT_SENT if request.kind == "refund" else TIMED_OUT)
    assert states(story) == {"r1": "failed"}
    story.command("refund", "r2")
    return story


def states(story: Story) -> dict[str, str]:
    return {each.operation_id: each.state for each in story.payment.attempts[1:]}


def letters(story: Story) -> list[str]:
    return [letter.cause for letter in story.flow.dead_letters]


@pytest.mark.parametrize("heard_by", ["its answer", "a question", "two questions", "a late check"])
def test_it_is_asked_about_until_there_is_room(heard_by: str) -> None:
    """The gateway had room by then: it made the second when the first had come back. Whichever word
    is heard first, the end is the same."""
    story = refund_ordered_again()
    if heard_by == "a late check":
        story.flow.answer(PENDING)
        story.wait()
    elif heard_by != "its answer":
        story.flow.answer(TIMED_OUT)
        story.wait()
    story.notify("succeeded", "r1")
    story.flow.answer(yes)
    assert letters(story) == ["contradictory_evidence"]
    if heard_by == "two questions":
        story.wait()
        assert story.flow.answer(yes).note is None
    assert states(story) == {"r1": "refunded", "r2": "inquiry_waiting"}
    assert story.payment.attempts[-1].code == (
        "pending" if heard_by == "a late check" else "contradictory_evidence"
    )
    story.command("refund", "r3", amount_minor=100)
    story.notify("failed", "r1", code="returned")
    story.flow.run(yes)
    assert states(story) == {"r1": "failed", "r2": "refunded"}
    assert story.money == (500, 500, 500)
    assert letters(story) == ["contradictory_evidence"]
    assert story.payment.commands == ()


def test_silence_does_not_end_it_and_at_last_a_person_is_asked() -> None:
    """Its gateway has said that it made it, so that it says nothing more is no proof. What was said
    before is asked about as often as anything; then nothing waits for it any more."""
    story = refund_ordered_again()
    while story.flow.open_requests[-1][1].kind != "inquire":
        story.flow.answer(NOT_SENT)
        while not story.flow.open_requests:
            story.wait()
    story.notify("succeeded", "r1")
    story.flow.answer(yes)
    story.command("refund", "r3", amount_minor=100)
    story.flow.run(TIMED_OUT)
    assert states(story) == {"r1": "refunded", "r2": "inquiry_exhausted"}
    assert story.payment.attempts[-1].inquiries == POLICY.inquiry_max
    assert story.flow.events()[-1].reason == "refund_must_not_exceed_captured"


def test_its_send_window_has_an_end() -> None:
    """A person may say that it was not made, once nobody can make it any more."""
    story = refund_ordered_again()
    story.notify("succeeded", "r1")
    story.flow.answer(yes)
    assert story.payment.attempts[-1].sendable_until_ms > story.flow.now_ms
    assert story.rejected("resolve", "p1", decision="not_charged") == "send_window_must_be_over"
    story.flow.now_ms += 60_000
    story.command("resolve", "p2", decision="not_charged")
    assert states(story) == {"r1": "refunded", "r2": "failed"}


def test_a_notice_leaves_the_request_open() -> None:
    """Its answer is still on its way, and may be another one."""
    story = refund_ordered_again()
    story.notify("succeeded", "r1")
    assert story.notify("succeeded", "r2").dead_letter == "contradictory_evidence"
    assert states(story) == {"r1": "refunded", "r2": "started"}
    story.notify("failed", "r1", code="returned")
    story.flow.answer(yes)
    assert states(story) == {"r1": "failed", "r2": "refunded"}


@pytest.mark.parametrize("asked", [False, True])
def test_a_return_of_other_money_is_asked_about_as_well(asked: bool) -> None:
    """It is a contradiction that leaves the refund as it is."""
    story = Story()
    story.flow.answer(yes)
    story.command("refund", "r1")
    if asked:
        story.flow.answer(TIMED_OUT)
        story.wait()
    told = story.flow.answer(replace(RETURNED, currency="EUR"))
    assert told.dead_letter == "contradictory_evidence"
    assert states(story) == {"r1": "inquiry_waiting"}
    story.flow.run(DECLINED)
    assert states(story) == {"r1": "declined"}


def test_a_person_s_word_for_which_there_is_no_room_is_rejected_by_name() -> None:
    """It books nothing, and says so to whoever waits for it; later it may be booked."""
    story = refund_ordered_again()
    story.flow.run(TIMED_OUT)
    story.notify("succeeded", "r1")
    word: dict[str, Any] = {"decision": "charged", "gateway_reference": "re_2"}
    named = {**word, "operation_id": "r2"}
    assert story.rejected("resolve", "p1", **named) == "refund_must_not_exceed_captured"
    assert letters(story) == []
    story.notify("failed", "r1", code="returned")
    story.command("resolve", "p2", **named)
    assert states(story) == {"r1": "failed", "r2": "refunded"}
    assert story.money == (500, 500, 500)


def test_a_person_tells_the_return_that_its_gateway_never_tells() -> None:
    """Then there is room for the other one, which did go back; both words are in the audit. The
    gateway's own word, should it ever come, is no news."""
    story = refund_ordered_again()
    story.flow.run(TIMED_OUT)
    story.notify("succeeded", "r1")
    paid: dict[str, Any] = {"decision": "charged", "gateway_reference": "re_2"}
    rule = "refund_must_not_exceed_captured"
    for override in (None, "reference"):
        word = {**paid, "operation_id": "r2", "override": override}
        assert story.rejected("resolve", f"p-{override}", **word) == rule
    story.command("resolve", "p1", operation_id="r1", decision="returned")
    assert (states(story)["r1"], story.money) == ("failed", (500, 500, 0))
    story.command("resolve", "p2", operation_id="r2", **paid)
    assert (states(story)["r2"], story.money) == ("refunded", (500, 500, 500))
    assert story.notify("failed", "r1", code="returned").note == "stale_result"
    done = [e.detail for e in story.flow.audit_entries() if '"outcome":"done"' in (e.detail or "")]
    assert [('"returned"' in each, '"charged"' in each) for each in done] == [
        (True, False), (False, True),
    ]  # fmt: skip
    assert [f.name for f in judged_flow(story.flow, None)] == []


@pytest.mark.parametrize(
    ("word", "rule"),
    [
        ({}, "operation_must_be_named"),
        ({"operation_id": "1"}, "operation_must_be_a_refund_that_was_made"),
        ({"operation_id": "r2"}, "operation_must_be_a_refund_that_was_made"),
        ({"operation_id": "r9"}, "operation_must_be_the_payments"),
        ({"operation_id": "r1", "amount_minor": 5}, "amount_must_not_be_given"),
        ({"operation_id": "r1", "evidence": ""}, "evidence_must_be_given"),
    ],
)
def test_only_a_refund_that_is_booked_as_made_is_said_to_have_come_back(
    word: dict[str, Any], rule: str
) -> None:
    """By its name, whole, and with what proves it."""
    story = refund_ordered_again()
    story.flow.run(TIMED_OUT)
    story.notify("succeeded", "r1")
    assert story.rejected("resolve", "p1", **{"decision": "returned", **word}) == rule

"""What a gateway has and is not done with, when it is old: the gateway is asked what becomes of it
before a person is.
"""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import Attempt
from pipeline.domain.policy import HOUR_MS, GatewayProfile
from tests.support.payment_story import PENDING, POLICY, TIMED_OUT, Story, yes

KEPT_MS = 20 * HOUR_MS
KEYS = GatewayProfile(name="simulator", grace_ms=10_000, key_retention_ms=KEPT_MS)
PATIENT = replace(POLICY, gateways=(KEYS,), pending_max_ms=10 * HOUR_MS)


def latest(story: Story) -> Attempt:
    return story.payment.attempts[-1]


def asked_until_old(story: Story, answer: GatewayAnswer, age_ms: int) -> None:
    """Answer every question so until one is open of an attempt that is that old."""
    while not story.flow.open_requests or story.flow.now_ms < latest(story).started_at_ms + age_ms:
        if story.flow.open_requests:
            story.flow.answer(answer)
        else:
            assert story.flow.tiers, "nobody asks any more"
            story.flow.advance(HOUR_MS)
    assert latest(story).state == "inquiring"


@pytest.mark.parametrize("word", [PENDING, GatewayAnswer(outcome="unknown", code="heard_pending")])
def test_the_first_word_of_pending_is_no_reason_to_ask_a_person(word: GatewayAnswer) -> None:
    """What is to go back is asked about for as long as its gateway knows its key. That it has it
    may be the very last word, also of an earlier question: what becomes of it is asked then."""
    story = Story(policy=PATIENT)
    story.command("cancel")
    story.flow.answer(yes)
    asked_until_old(story, TIMED_OUT, KEPT_MS)
    story.flow.answer(word)
    assert latest(story).state in ("pending", "inquiry_waiting")
    asked_until_old(story, word, KEPT_MS)
    story.flow.answer(word)
    assert latest(story).state == "inquiry_exhausted"


def test_a_person_is_told_once_of_what_stays_pending() -> None:
    """Notices that it still waits are no news, and it stays a person's to resolve."""
    story = Story(policy=PATIENT)
    story.command("cancel")
    story.flow.answer(yes)
    asked_until_old(story, PENDING, KEPT_MS)
    story.flow.answer(PENDING)
    refund = latest(story).operation_id
    for code in (None, "customer_action_required"):
        assert story.notify("pending", refund, code=code).note == "stale_result"
        assert story.flow.open_requests == []
    assert story.events.count("inquiry_exhausted") == 1
    story.notify("succeeded", refund)
    assert story.money == (500, 500, 500)


def test_the_first_word_of_pending_is_news_to_a_person() -> None:
    """What nobody knew of is asked about once more, and then a person is told once."""
    story = Story(policy=PATIENT)
    story.command("cancel")
    story.flow.answer(yes)
    while latest(story).state != "inquiry_exhausted":
        story.flow.run(lambda _: TIMED_OUT)
        story.flow.advance(HOUR_MS)
    for _ in range(3):
        story.notify("pending", latest(story).operation_id)
        while story.flow.tiers:
            story.flow.advance(HOUR_MS)
            story.flow.run(lambda _: TIMED_OUT)
    assert story.events.count("inquiry_exhausted") == 2
    known = latest(story).gateway_reference
    story.command("resolve", "p1", decision="charged", gateway_reference=known)
    assert story.money == (500, 500, 500)


def test_the_first_word_of_pending_may_be_what_ends_it() -> None:
    """The question behind it is answered, and nobody is needed."""
    story = Story(policy=PATIENT)
    story.command("cancel")
    story.flow.answer(yes)
    asked_until_old(story, TIMED_OUT, KEPT_MS)
    story.flow.answer(PENDING)
    story.flow.advance(HOUR_MS)
    story.flow.answer(yes)
    assert story.money == (500, 500, 500)

"""Dead letters that other stages make of a payment's records: it says so, and is not stuck."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pipeline.audit.trace import describe
from pipeline.domain.model import GatewayNotification, GatewayResult
from pipeline.domain.policy import HOUR_MS, MINUTE_MS
from pipeline.domain.records import to_record
from tests.support.payment_story import (
    DECLINED,
    NOT_FOUND,
    NOT_SENT,
    NOW,
    PENDING,
    SECOND,
    TIMED_OUT,
    Story,
    yes,
)

WORD = GatewayResult(
    merchant_id="shop",
    order_id="1",
    payment_id="",
    operation_id="",
    kind="",
    gateway="",
    attempt=0,
    try_number=0,
    outcome="dead_lettered",
    code="unknown_schema_id",
    amount_minor=0,
    currency="",
    observed_at_ms=NOW,
    letter="payment-requests[3]@17",
)


def unread(story: Story, **more: object) -> GatewayResult:
    """The word of a request that could not be read."""
    return replace(WORD, payment_id=story.payment.payment_id, **more)


def read(story: Story, number: int = -1) -> GatewayResult:
    """The word of a request that could."""
    request = story.flow.requests()[number]
    return unread(
        story,
        operation_id=request.operation_id,
        kind=request.kind,
        gateway=request.gateway,
        attempt=request.attempt,
        try_number=request.try_number,
        currency="GBP",
        code="killed_the_process",
    )


def settled_not(story: Story, offset: int = 4) -> GatewayNotification:
    return GatewayNotification(
        merchant_id="shop",
        order_id="1",
        payment_id=story.payment.payment_id,
        notification_id=f"settlements[3]@{offset}",
        gateway="",
        type="dead_letter",
        amount_minor=0,
        currency="",
        received_at_ms=NOW,
        code="settlement_conflict",
    )


@pytest.mark.parametrize("word", [unread, read])
def test_a_request_that_was_dead_lettered_is_told_and_asked_about(word: object) -> None:
    """The payment says so and does not wait for ever: nobody sent it that could not read it, but a
    process that died may have, so the gateway is asked."""
    story = Story()
    story.flow.result(word(story))  # type: ignore[operator]
    assert story.events[-2:] == ["input_dead_lettered", "outcome_unknown"]
    event = story.flow.events()[-2]
    assert event.detail == "by the gateway stage: payment-requests[3]@17"
    assert story.payment.dead_letters == 1
    (letter,) = story.payment.letters
    assert letter.startswith("gateway payment-requests[3]@17 ")
    story.flow.open_requests.clear()
    story.flow.run(yes)
    assert (story.status, story.money) == ("captured", (500, 500, 0))


def test_a_request_that_nobody_could_read_is_sent_again_under_its_key() -> None:
    """The gateway does not know it, so it was lost: the same key goes out, once."""
    story = Story()
    story.flow.result(unread(story))
    story.flow.open_requests.clear()
    story.flow.run(lambda r: NOT_FOUND if r.kind == "inquire" else yes(r))
    assert story.status == "captured"
    first, *_, last = [r for r in story.flow.requests() if r.kind == "charge"]
    assert first.idempotency_key == last.idempotency_key


def test_an_answer_that_comes_all_the_same_is_taken() -> None:
    """A letter of somebody else's rubbish under this key takes nothing from the payment."""
    story = Story()
    story.flow.result(unread(story))
    story.flow.answer(yes)
    assert (story.status, story.money) == ("captured", (500, 500, 0))
    assert story.flow.result(unread(story)).note == "stale_letter"
    story.flow.result(unread(story, letter="payment-requests[3]@18"))
    assert (story.status, story.payment.dead_letters) == ("captured", 2)


def test_a_letter_ends_no_send_window() -> None:
    """It may be another's record: until when the open request may be sent says its own answer."""
    story = Story()
    story.flow.result(unread(story))
    assert story.payment.attempts[0].sendable_until_ms == 0
    story.flow.now_ms += 60 * SECOND
    assert story.rejected("resolve", decision="not_charged") == "send_window_must_be_over"


def test_an_inquiry_that_was_dead_lettered_was_no_question() -> None:
    """While requests cannot be read no patience is used up, and letters do not pile up: it is asked
    every hour, and once it can be read it is known."""
    story = Story()
    story.flow.answer(TIMED_OUT)
    story.wait()
    for n in range(20):
        story.flow.open_requests.clear()
        story.flow.result(unread(story, letter=f"payment-requests[3]@{n}"))
        assert story.events[-2:] == ["input_dead_lettered", "inquiry_scheduled"]
        story.flow.advance(HOUR_MS + MINUTE_MS)
        assert story.asked.count("inquire") == n + 2
    assert story.payment.attempts[0].inquiries == 1
    assert (len(story.payment.letters), story.payment.dead_letters) == (16, 20)
    story.flow.run(yes)
    assert story.status == "captured"


def test_a_letter_of_an_earlier_try_is_told_and_nothing_else() -> None:
    """What was sent again, or is no longer open, is not disturbed."""
    story = Story()
    story.flow.answer(NOT_SENT)
    word = read(story)
    story.wait()
    story.flow.result(word)
    assert (story.events[-1], story.payment.attempts[0].state) == ("input_dead_lettered", "started")
    waits = Story()
    waits.flow.answer(NOT_SENT)
    waits.flow.result(unread(waits))
    assert waits.payment.attempts[0].state == "retry_waiting"


def test_every_request_that_may_be_the_lost_one_is_asked_about() -> None:
    """Two are open: a refund of what came too late, and the retry's charge."""
    story = Story()
    story.flow.answer(DECLINED)
    late = story.late_result()
    story.command("retry", instrument_token="tok_2")
    story.flow.result(late)
    assert [a.state for a in story.payment.attempts] == ["charged", "started", "started"]
    story.flow.result(unread(story))
    assert [a.state for a in story.payment.attempts[1:]] == ["inquiry_waiting"] * 2
    story.flow.open_requests.clear()
    story.flow.run(yes)
    assert (story.status, story.money) == ("captured", (1_000, 1_000, 500))


def test_a_settlement_that_the_ledger_refused_is_told_once() -> None:
    """Its letter and its database are not one transaction: the word may come twice."""
    story = Story()
    story.flow.answer(yes)
    before = story.payment
    story.flow.notify(settled_not(story))
    assert story.flow.notify(settled_not(story)).note == "stale_letter"
    event = story.flow.events()[-1]
    assert (event.type, event.reason) == ("input_dead_lettered", "settlement_conflict")
    assert event.detail == "by the ledger stage: settlements[3]@4"
    after = story.payment
    assert (after.status, after.dead_letters) == ("captured", 1)
    assert after.attempts == before.attempts
    story.flow.notify(settled_not(story, 5))
    assert story.payment.dead_letters == 2


def test_a_letter_of_no_payment_makes_no_second_letter() -> None:
    """A foreign record under a key that no order has."""
    story = Story()
    word = replace(unread(story), order_id="2")
    assert story.flow.result(word).note == "letter_of_no_payment"
    notice = replace(settled_not(story), order_id="2")
    assert story.flow.notify(notice).note == "letter_of_no_payment"
    assert story.flow.dead_letters == []


def test_commands_wait_for_what_was_lost() -> None:
    """A refund behind a charge that was dead-lettered runs when the charge is known."""
    story = Story()
    story.command("refund", "r1")
    story.flow.result(unread(story))
    assert [each.command_id for each in story.payment.commands] == ["r1"]
    story.flow.open_requests.clear()
    story.flow.run(yes)
    assert story.money == (500, 500, 500)


def test_a_pending_operation_is_not_disturbed() -> None:
    """Nothing of it is open."""
    story = Story()
    story.flow.answer(PENDING)
    story.flow.result(unread(story))
    assert story.payment.attempts[0].state == "pending"


def test_a_trace_tells_of_the_letter() -> None:
    """In words, with its stage, place and cause."""
    story = Story()
    assert describe("gateway-results", to_record(unread(story))) == (
        "dead letter of the gateway stage: payment-requests[3]@17, unknown_schema_id"
    )
    assert describe("gateway-notifications", to_record(settled_not(story))) == (
        "dead letter of the ledger: settlements[3]@4, settlement_conflict"
    )

"""What came too late goes back, however long its gateway is away; and if not, a person is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from pipeline.audit.report import Severity
from pipeline.commands.payment_follow import PaymentSeen, judged
from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import Order, PaymentRequest
from pipeline.domain.policy import DAY_MS, DEFAULT_POLICY, HOUR_MS, MINUTE_MS, Policy
from pipeline.domain.reversals import REVERSALS_MAX, outstanding
from tests.support.audit_story import judged_flow
from tests.support.payment_story import (
    DECLINED,
    MANUAL,
    NOT_FOUND,
    NOT_SENT,
    NOW,
    ORDER,
    PENDING,
    POLICY,
    TIMED_OUT,
    Story,
    command,
    yes,
)

NO_KEYS = replace(DEFAULT_POLICY, gateways=(replace(DEFAULT_POLICY.gateways[0], idempotent=False),))
OWN_TROUBLE = GatewayAnswer(outcome="declined", code="processing_error")
BOTH = pytest.mark.parametrize("order", [ORDER, MANUAL], ids=["refund", "void"])


def down(request: PaymentRequest) -> GatewayAnswer:
    return TIMED_OUT if request.kind == "inquire" else NOT_SENT


def cancelled_too_late(order: Order, policy: Policy = DEFAULT_POLICY) -> Story:
    """The charge or hold was made all the same, and its reversal is under way."""
    story = Story(order, policy)
    story.command("cancel", "c1")
    story.flow.answer(yes)
    assert story.flow.open_requests[0][1].operation_id == "late-1-1"
    return story


def given_back_in_two() -> Story:
    """A late charge whose reversal was declined: a part went back by ``refund``, the rest by
    ``give_back``."""
    story = cancelled_too_late(ORDER)
    story.flow.answer(DECLINED)
    story.command("refund", "r1", amount_minor=300)
    story.flow.answer(yes)
    story.command("give_back", "g1")
    story.flow.answer(yes)
    return story


def lives_until(
    story: Story, until_ms: int, gateway: Callable[[PaymentRequest], GatewayAnswer]
) -> None:
    """Requests are answered and waits are passed until a time."""
    while True:
        if story.flow.open_requests:
            story.flow.answer(gateway)
        elif story.flow.tiers and min(story.flow.tiers)[0] <= until_ms:
            story.flow.advance(max(0, min(story.flow.tiers)[0] - story.flow.now_ms))
        else:
            story.flow.now_ms = max(story.flow.now_ms, until_ms)
            return


def is_back(story: Story, order: Order) -> bool:
    return story.money == ((500, 500, 500) if order is ORDER else (0, 0, 0))


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("minutes", [5, 3 * 60, 23 * 60, 30 * 60])
def test_it_goes_back_however_long_the_gateway_was_away(order: Order, minutes: int) -> None:
    """Five minutes, three hours, longer than one reversal is sent for, and than its key is kept."""
    story = cancelled_too_late(order)
    lives_until(story, NOW + minutes * MINUTE_MS, down)
    assert not is_back(story, order)
    back_ms = story.flow.now_ms
    lives_until(
        story, back_ms + 2 * HOUR_MS, lambda r: NOT_FOUND if r.kind == "inquire" else yes(r)
    )
    if minutes > 24 * 60:
        # Its gateway was away for so long that it cannot prove anything: a person is asked.
        assert story.payment.attempts[-1].state == "inquiry_exhausted"
        story.command("resolve", "p1", decision="not_charged")
        story.flow.answer(yes)
    assert is_back(story, order)
    assert story.status == "cancelled"


@BOTH
def test_while_it_waits_the_same_key_is_sent_ever_more_seldom(order: Order) -> None:
    """Half a day of waiting makes a few dozen records, not hundreds, and one key."""
    story = cancelled_too_late(order)
    lives_until(story, NOW + 11 * HOUR_MS, down)
    sent = [r for r in story.flow.requests() if r.kind in ("refund", "void")]
    assert len({r.idempotency_key for r in sent}) == 1
    assert 12 < len(sent) < 30


@pytest.mark.slow
@BOTH
def test_what_is_proven_unsent_is_ordered_again_under_another_key(order: Order) -> None:
    """Once the time of one reversal is over, proof makes room for the next; without any it is not
    given up but asked about, then a person is."""
    story = cancelled_too_late(order)
    lives_until(story, NOW + 11 * HOUR_MS, down)
    lives_until(story, NOW + 14 * HOUR_MS, lambda r: NOT_FOUND if r.kind == "inquire" else NOT_SENT)
    first, second = story.payment.attempts[-2:]
    assert (first.state, first.code) == ("failed", "not_found")
    assert (second.operation_id, second.state) == ("late-late-1-1-1", "retry_waiting")
    lives_until(story, NOW + 16 * HOUR_MS, yes)
    assert is_back(story, order)


@BOTH
@pytest.mark.parametrize("tries", [1, 8], ids=["first", "later"])
def test_a_gateways_long_retry_after_does_not_outlast_its_memory(order: Order, tries: int) -> None:
    """It asks not to be called for a week: by half the time that it knows the key, it is asked for
    proof all the same, and another operation takes its place."""
    short = replace(DEFAULT_POLICY.gateways[0], key_retention_ms=10 * HOUR_MS)
    story = cancelled_too_late(order, replace(DEFAULT_POLICY, gateways=(short,)))
    for _ in range(tries - 1):
        story.flow.answer(NOT_SENT)
        while not story.flow.open_requests:
            story.flow.advance(max(0, min(story.flow.tiers)[0] - story.flow.now_ms))
    limited = GatewayAnswer(outcome="not_sent", code="rate_limited", retry_after_ms=7 * DAY_MS)
    story.flow.answer(limited)
    lives_until(story, NOW + 4 * HOUR_MS, yes)
    assert not is_back(story, order)
    lives_until(story, NOW + 6 * HOUR_MS, lambda r: NOT_FOUND if r.kind == "inquire" else yes(r))
    assert is_back(story, order)


@pytest.mark.slow
@BOTH
def test_silence_never_ends_it(order: Order) -> None:
    """Nobody could ask its gateway for a day: its outcome waits for a person, who orders it again
    by saying that it was not made."""
    story = cancelled_too_late(order)
    lives_until(story, NOW + 2 * DAY_MS, down)
    assert story.payment.attempts[-1].state == "inquiry_exhausted"
    story.command("resolve", "p1", decision="not_charged")
    assert story.events[-2:] == [f"{story.payment.attempts[1].kind}_failed", "reversal_started"]
    story.flow.answer(yes)
    assert is_back(story, order)


@BOTH
def test_what_a_gateway_without_keys_may_have_is_not_sent_there_again(order: Order) -> None:
    """It would take a second call for a second refund. That it does not know the first is no order
    to make one: a person is told, and may give it."""
    story = cancelled_too_late(order, NO_KEYS)
    story.flow.answer(TIMED_OUT)
    lives_until(story, NOW + DAY_MS, lambda _: NOT_FOUND)
    reversal = story.payment.attempts[-1]
    assert (reversal.operation_id, reversal.state, reversal.code) == (
        "late-1-1", "failed", "not_found",
    )  # fmt: skip
    assert story.asked.count(reversal.kind) == 1
    assert (story.events[-1], outstanding(story.payment)) == ("reversal_failed", (reversal,))
    assert [f.name for f in judged_flow(story.flow, None)] == ["waits_for_a_person"]
    story.command("give_back", "g1", actor="ann")
    story.flow.answer(yes)
    assert is_back(story, order)


@pytest.mark.slow
@BOTH
def test_what_a_gateway_without_keys_cannot_have_goes_on_by_itself(order: Order) -> None:
    """Nobody could send it for half a day, and the gateway does not know it."""
    story = cancelled_too_late(order, NO_KEYS)
    lives_until(story, NOW + 16 * HOUR_MS, lambda r: NOT_FOUND if r.kind == "inquire" else NOT_SENT)
    assert story.payment.attempts[-1].operation_id == "late-late-1-1-1"
    lives_until(story, NOW + 20 * HOUR_MS, yes)
    assert is_back(story, order)


@BOTH
def test_its_gateways_own_trouble_is_waited_out(order: Order) -> None:
    """A decline that may pass is no reason to keep the money: an hour later it is asked again."""
    story = cancelled_too_late(order)
    story.flow.answer(OWN_TROUBLE)
    assert story.flow.open_requests == []
    lives_until(story, story.flow.now_ms + 59 * MINUTE_MS, yes)
    assert not is_back(story, order)
    lives_until(story, story.flow.now_ms + 3 * MINUTE_MS, yes)
    assert is_back(story, order)


@BOTH
def test_what_was_tried_often_enough_is_told_and_waits_for_a_person(order: Order) -> None:
    """The event is what the alert counts; the command orders it again, also where a hold is left
    that no other command could release."""
    story = cancelled_too_late(order)
    lives_until(story, NOW + DAY_MS, lambda _: OWN_TROUBLE)
    reversals = [a for a in story.payment.attempts if a.operation_id.startswith("late-")]
    assert len(reversals) == REVERSALS_MAX
    assert story.events.count("reversal_failed") == 1
    assert outstanding(story.payment) == (reversals[-1],)
    story.command("give_back", "g1", actor="ann")
    assert story.events[-2:] == ["give_back_ordered", "reversal_started"]
    assert story.flow.events()[-1].actor == "ann"
    story.flow.run(yes)
    assert is_back(story, order)
    assert outstanding(story.payment) == ()
    assert story.rejected("give_back", "g2") == "give_back_must_be_outstanding"


@BOTH
def test_a_plain_no_is_told_at_once(order: Order) -> None:
    """To ask the same again would end the same; a person may know better."""
    story = cancelled_too_late(order)
    story.flow.answer(DECLINED)
    assert story.events[-1] == "reversal_failed"
    assert story.flow.events()[-1].reason == "insufficient_funds"
    # A hold ends by itself, if nobody does it sooner.
    assert [each.reason for each in story.flow.waits()] == ["hold_ends"] * (order is MANUAL)
    story.command("give_back", "g1")
    story.flow.answer(yes)
    assert is_back(story, order)


def test_a_give_back_that_came_back_is_told() -> None:
    """The customer's account is closed: the money is ours to give back in another way."""
    story = cancelled_too_late(ORDER)
    story.flow.answer(yes)
    story.notify("failed", "late-1-1", code="account_closed")
    assert story.events[-2:] == ["refund_failed", "reversal_failed"]
    assert story.money == (500, 500, 0)
    assert [each.operation_id for each in outstanding(story.payment)] == ["late-1-1"]


def test_what_went_back_in_another_way_is_not_given_back_twice() -> None:
    """A person refunds the charge while its reversal waits for its gateway's trouble to pass."""
    story = cancelled_too_late(ORDER)
    story.flow.answer(OWN_TROUBLE)
    story.flow.result(story.flow.handle((story.flow.now_ms, story.flow.requests()[1]), OWN_TROUBLE))
    assert story.rejected("refund", "r1") == "refund_must_not_exceed_captured", "it is reserved"
    story.notify("succeeded", "late-1-1", gateway_reference="re_9")
    lives_until(story, story.flow.now_ms + 3 * HOUR_MS, yes)
    assert story.money == (500, 500, 500)
    assert story.payment.attempts[-1].state == "failed"
    assert sum(amount for _, amount in story.settled) == 0
    assert "reversal_failed" not in story.events


def test_nobody_waits_for_what_waits_to_go_back() -> None:
    """A retry of a failed payment is not held up by its late charge, which is given back."""
    story = Story(policy=replace(POLICY, retry_max=1))
    story.flow.answer(DECLINED)
    story.notify("succeeded", "1")
    story.flow.answer(NOT_SENT)
    assert story.payment.attempts[-1].state == "retry_waiting"
    story.command("retry", "r1", instrument_token="tok_2")
    assert story.status == "processing"
    story.flow.answer(yes)
    story.flow.run(yes)
    assert (story.status, story.money) == ("captured", (1000, 1000, 500))


@BOTH
def test_the_audit_names_what_is_owed_by_what_it_waits_for(order: Order) -> None:
    """As long as it is tried it is under way; afterwards it waits for a person, and never less."""
    story = cancelled_too_late(order)
    story.flow.answer(OWN_TROUBLE)
    found = judged_flow(story.flow, None)
    assert {(f.name, f.severity) for f in found} == {("order_without_outcome", Severity.PENDING)}
    lives_until(story, NOW + DAY_MS, lambda _: OWN_TROUBLE)
    found = judged_flow(story.flow, None)
    assert {(f.name, f.severity) for f in found} == {("waits_for_a_person", Severity.PENDING)}
    story.command("give_back", "g1")
    story.flow.answer(yes)
    assert judged_flow(story.flow, None) == []


def test_the_command_line_tells_what_became_of_what_was_ordered_again() -> None:
    """It follows the operation, which has an id of its own, to its end."""
    story = cancelled_too_late(ORDER)
    story.flow.answer(DECLINED)
    ordered = command("give_back", "g1")
    story.flow.command(ordered)
    assert judged(PaymentSeen(story.payment, story.flow.events(), []), ordered) is None
    story.flow.answer(DECLINED)
    seen = PaymentSeen(story.payment, story.flow.events(), [])
    outcome = judged(seen, ordered)
    assert outcome is not None
    assert (outcome.kind, "insufficient_funds" in outcome.text) == ("failed", True)
    again = command("give_back", "g2")
    story.flow.command(again)
    story.flow.answer(yes)
    outcome = judged(PaymentSeen(story.payment, story.flow.events(), []), again)
    assert outcome is not None
    assert (outcome.kind, "refunded" in outcome.text) == ("done", True)


def test_a_dispute_bars_what_is_ordered_again_like_any_refund() -> None:
    """Forced, it runs."""
    story = cancelled_too_late(ORDER)
    story.flow.answer(DECLINED)
    story.dispute("opened")
    assert story.rejected("give_back", "g1") == "refund_must_not_run_during_a_dispute"
    story.command("give_back", "g2", override="dispute")
    story.flow.answer(yes)
    assert is_back(story, ORDER)


def test_the_audit_does_not_accuse_a_refund_that_its_gateway_takes_days_for() -> None:
    """It is asked about every hour; in between there is nothing but a timer."""
    story = Story()
    story.flow.answer(yes)
    story.command("refund", "r1")
    story.flow.run(lambda _: PENDING)
    found = judged_flow(story.flow, None)
    assert {(f.name, f.severity) for f in found} == {("order_without_outcome", Severity.PENDING)}


def test_a_refund_by_command_that_comes_back_leaves_a_late_charge_owed() -> None:
    """It stood for a part of what goes back: that is told, named, and ordered again."""
    story = given_back_in_two()
    assert (story.money, judged_flow(story.flow, None)) == ((500, 500, 500), [])
    story.notify("failed", "r1")
    assert story.events[-2:] == ["refund_failed", "reversal_failed"]
    (named,) = judged_flow(story.flow, None)
    assert (named.name, named.example.detail) == (
        "waits_for_a_person", "the refund late-late-1-1-1 of 300 GBP was given up",
    )  # fmt: skip
    story.command("give_back", "g2")
    assert story.flow.open_requests[0][1].amount_minor == 300
    story.flow.answer(yes)
    assert (story.money, judged_flow(story.flow, None)) == ((500, 500, 500), [])


def test_one_of_several_is_ordered_again_by_its_name() -> None:
    """A bank has the money of one charge: the other goes back without force, and without it."""
    story = Story()
    story.flow.answer(DECLINED)
    story.command("retry", "r1", instrument_token="tok_2")
    story.flow.answer(DECLINED)
    for operation_id in ("1", "r1"):
        story.notify("succeeded", operation_id)
        story.flow.answer(DECLINED)
    story.dispute("opened", gateway_reference="charge_1")
    assert story.rejected("give_back", "g1") == "refund_must_not_run_during_a_dispute"
    one = {"operation_id": "late-1-1"}
    assert story.rejected("give_back", "g2", **one) == "refund_must_not_run_during_a_dispute"
    assert story.rejected("give_back", "g3", operation_id="r9") == "operation_must_be_the_payments"
    story.command("give_back", "g4", operation_id="late-r1-1")
    assert [r.operation_id for _, r in story.flow.open_requests] == ["late-late-r1-1-1"]
    story.flow.answer(yes)
    assert [each.operation_id for each in outstanding(story.payment)] == ["late-1-1"]
    again = {"operation_id": "late-r1-1", "override": "dispute"}
    assert story.rejected("give_back", "g5", **again) == "give_back_must_be_outstanding"

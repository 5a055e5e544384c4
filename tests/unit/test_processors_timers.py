"""What ends by itself, and which tier each wait takes."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import Order, PaymentDue
from pipeline.domain.policy import DAY_MS, HOUR_MS, MINUTE_MS
from pipeline.domain.tiers import (
    inquiry_tier,
    jittered,
    retry_tier,
    tier_not_longer,
    tier_not_shorter,
)
from pipeline.processors.driver import FlowDriver
from tests.support.payment_story import (
    ACTION,
    DECLINED,
    MANUAL,
    NOT_FOUND,
    NOT_SENT,
    NOW,
    ORDER,
    PENDING,
    POLICY,
    SECOND,
    TIMED_OUT,
    Story,
    yes,
)


def authorized() -> Story:
    story = Story(MANUAL)
    story.flow.answer(yes)
    return story


def test_an_authorization_expires_and_is_voided() -> None:
    """After seven days the hold is given back; the timer was passed on, never early, once late."""
    story = authorized()
    assert story.payment.expires_at_ms == NOW + 7 * DAY_MS
    story.flow.advance(7 * DAY_MS - 1)
    assert story.asked == ["authorize"]
    story.flow.advance(MINUTE_MS + 1)
    void = story.flow.requests()[-1]
    assert (void.kind, void.operation_id, void.parent_reference) == (
        "void", "expiry-1", "authorize_1",
    )  # fmt: skip
    story.flow.run(yes)
    assert (story.status, story.money, story.settled) == ("expired", (0, 0, 0), [])
    assert not story.flow.waits()


@pytest.mark.parametrize("answer", [DECLINED, NOT_SENT])
def test_an_authorization_expires_whatever_becomes_of_its_void(answer: object) -> None:
    """The hold lapses at the gateway by itself; it is no longer ours to capture."""
    story = authorized()
    story.flow.advance(7 * DAY_MS + MINUTE_MS)
    story.flow.run(lambda r: answer if r.kind == "void" else NOT_FOUND)  # type: ignore[return-value, arg-type]
    assert (story.status, story.money) == ("expired", (0, 0, 0))


def test_the_rest_of_a_partly_captured_authorization_lapses() -> None:
    """What was captured stays; what was not can no longer be."""
    story = authorized()
    story.command("capture", amount_minor=200)
    story.flow.answer(yes)
    story.flow.advance(7 * DAY_MS + MINUTE_MS)
    assert (story.status, story.money) == ("captured", (200, 200, 0))
    event = story.flow.events()[-1]
    assert (event.type, event.operation_minor) == ("authorization_lapsed", 300)
    assert story.rejected("capture", "c2") == "payment_must_be_authorized"


def test_an_authorization_does_not_expire_under_a_capture() -> None:
    """What is under way ends first."""
    story = authorized()
    story.flow.advance(7 * DAY_MS - MINUTE_MS)
    story.command("capture")
    story.flow.answer(PENDING)
    story.flow.advance(2 * MINUTE_MS)
    assert story.asked.count("void") == 0
    story.notify("succeeded", "c1")
    assert story.status == "captured"
    story.flow.advance(DAY_MS)
    assert story.money == (500, 500, 0)


@pytest.mark.parametrize(
    ("word", "voids"), [("succeeded", {"c1"}), ("declined", {"c1", "expiry-1"})]
)
def test_an_authorization_does_not_expire_under_a_void(word: str, voids: set[str]) -> None:
    """A hold is not given back twice at a time; if the first void is refused, its time has come."""
    story = authorized()
    story.flow.advance(7 * DAY_MS - MINUTE_MS)
    story.command("cancel")
    story.flow.answer(PENDING)
    story.flow.advance(5 * MINUTE_MS)
    assert story.asked.count("void") == 1
    story.flow.open_requests.clear()
    story.notify(word, "c1")
    story.flow.advance(5 * MINUTE_MS)
    story.flow.run(yes)
    assert {r.operation_id for r in story.flow.requests() if r.kind == "void"} == voids
    assert story.status == ("cancelled" if word == "succeeded" else "expired")


def test_a_capture_waits_for_the_void_of_an_expiry() -> None:
    """What is being given back is not captured."""
    story = authorized()
    story.flow.advance(7 * DAY_MS + MINUTE_MS)
    story.flow.answer(PENDING)
    story.command("capture")
    assert story.events[-1] == "command_waiting"
    story.notify("succeeded", "expiry-1")
    assert story.flow.events()[-1].reason == "payment_must_be_authorized"


def test_a_late_authorization_is_voided() -> None:
    """A hold that shows after the failure is given back, and told."""
    story = Story(MANUAL)
    story.flow.answer(DECLINED)
    story.flow.result(story.late_result())
    assert story.events[-2:] == ["late_success", "reversal_started"]
    assert story.asked[-1] == "void"
    story.flow.answer(yes)
    assert (story.status, story.money, story.settled) == ("failed", (0, 0, 0), [])


def test_a_capture_that_shows_after_the_void_is_refunded() -> None:
    """A capture given up, a cancelled payment, and money that moved all the same."""
    story = authorized()
    story.command("capture")
    story.flow.run(lambda r: NOT_SENT if r.kind == "capture" else NOT_FOUND)
    assert story.events[-1] == "capture_failed"
    story.command("cancel", "c2")
    story.flow.answer(yes)
    story.flow.result(story.late_result(1))
    story.flow.answer(yes)
    assert (story.status, story.money) == ("cancelled", (500, 500, 500))
    assert story.settled == [("capture", 500), ("refund", -500)]


def test_a_customer_who_does_not_come_back_lets_the_payment_expire() -> None:
    """After an hour; the gateway is still asked, and a late charge goes back."""
    story = Story()
    story.flow.answer(ACTION)
    for _ in range(3):
        story.wait()
        story.flow.answer(ACTION)
    assert story.status == "requires_customer_action"
    story.flow.advance(HOUR_MS + MINUTE_MS)
    assert (story.status, story.payment.next_action_url) == ("expired", None)
    story.notify("succeeded", gateway_reference="ch_1")
    story.flow.open_requests.pop(0)  # an inquiry that nobody waits for
    story.flow.answer(yes)
    assert (story.status, story.money) == ("expired", (500, 500, 500))


def test_a_customer_has_no_longer_than_the_order() -> None:
    """pay_before ends the wait when it comes first."""
    story = Story(replace(ORDER, pay_before_ms=NOW + 5 * MINUTE_MS))
    story.flow.answer(ACTION)
    assert story.payment.expires_at_ms == NOW + 5 * MINUTE_MS
    story.flow.advance(6 * MINUTE_MS)
    assert story.status == "expired"


def test_a_decline_after_the_end_leaves_the_end() -> None:
    """An expired payment stays expired; its attempt says declined."""
    story = Story()
    story.flow.answer(ACTION)
    story.command("cancel")
    story.notify("declined")
    assert (story.status, story.payment.attempts[0].state) == ("cancelled", "declined")


def test_timers_that_nobody_waits_for_are_stale() -> None:
    """A timer acts only on the very time that its payment still waits for."""
    story = authorized()
    (due,) = story.flow.waits()
    story.command("capture")
    story.flow.answer(yes)
    assert story.flow.due(due).note == "stale_due"
    assert story.flow.due(replace(due, due_at_ms=None)).note == "stale_due"


# Tiers.


def test_each_retry_waits_in_the_next_tier_or_the_one_after_it() -> None:
    """5, 10, 20, 40 and 80 seconds, a draw of the payment's aside; then what is left is asked
    about. A wait is as long as its tier, whichever it is."""
    story = Story(policy=replace(POLICY, retry_max=5))
    for tier in (1, 2, 3, 4, 5):
        story.flow.answer(NOT_SENT)
        (due,) = story.flow.waits()
        assert due.purpose == "retry"
        assert due.tier in (tier, min(tier + 1, 5))
        before_ms = story.flow.now_ms
        story.wait()
        assert story.flow.now_ms - before_ms == 5_000 * 2 ** (due.tier - 1)
    assert story.asked == ["charge"] * 6


def waits_of(count: int, answer: GatewayAnswer, order: Order = ORDER) -> list[PaymentDue]:
    """The first wait of so many payments whose gateway gave them all the same answer."""
    flow = FlowDriver(POLICY, now_ms=NOW)
    for number in range(count):
        flow.order(replace(order, order_id=f"o-{number}"))
        flow.answer(answer)
    return [due for _, _, due in flow.tiers if due.purpose == "retry"]


@pytest.mark.slow
@pytest.mark.parametrize("retry_after_ms", [None, 1, 5_000, 5_001, 12_000, 39_999])
def test_what_failed_together_does_not_come_back_together_and_never_early(
    retry_after_ms: int | None,
) -> None:
    """A quarter of the payments waits one tier longer; none waits less than its first tier, or
    than its gateway asked for; and the draw is the payment's own, so a replay draws the same."""
    answer = replace(NOT_SENT, retry_after_ms=retry_after_ms)
    waits = waits_of(100, answer)
    base = tier_not_shorter(POLICY.retry_delays_ms, retry_after_ms or 0)
    tiers = Counter(due.tier for due in waits)
    assert set(tiers) == {base, base + 1}
    assert 15 < tiers[base + 1] < 35
    for due in waits:
        assert POLICY.retry_delays_ms[due.tier - 1] >= max(5_000, retry_after_ms or 0)
    assert waits_of(25, answer) == waits[:25]


def test_the_draw_of_a_wait_is_its_own() -> None:
    """Another attempt, another draw: no payment is the slow one of every crowd."""
    delays = (10, 20, 40)
    drawn = [jittered(delays, 1, f"p:o:1:{tries}", 1_000) for tries in range(1, 41)]
    assert set(drawn) == {1, 2}
    assert {jittered(delays, 3, f"p:o:1:{tries}", 1_000) for tries in range(1, 41)} == {3}


@pytest.mark.slow
def test_no_draw_outlasts_the_order() -> None:
    """What may be charged for eight seconds is not sent into a wait of ten by chance."""
    waits = waits_of(60, NOT_SENT, replace(ORDER, pay_before_ms=NOW + 8 * SECOND))
    assert {due.tier for due in waits} == {1}


@pytest.mark.parametrize(
    ("retry_after_ms", "tier", "waited_ms"),
    [(1, 1, 10_000), (5_001, 2, 20_000), (30_000, 4, 80_000), (100_000, 5, 160_000)],
)
def test_a_gateway_that_asks_for_time_gets_it(
    retry_after_ms: int, tier: int, waited_ms: int
) -> None:
    """The smallest tier that is not shorter, or by its draw the next; beyond the longest one the
    record goes round again."""
    story = Story()
    story.flow.answer(replace(NOT_SENT, code="rate_limited", retry_after_ms=retry_after_ms))
    assert story.flow.waits()[0].tier in (tier, min(tier + 1, 5))
    while not story.flow.open_requests:
        story.wait()
    waited = story.flow.now_ms - NOW
    assert retry_after_ms <= waited <= waited_ms


def test_a_gateway_cannot_ask_for_more_time_than_the_order_has() -> None:
    """A Retry-After of a year does not hold a payment for a year."""
    story = Story(replace(ORDER, pay_before_ms=NOW + 30 * SECOND))
    story.flow.answer(replace(NOT_SENT, retry_after_ms=365 * DAY_MS))
    story.flow.run(lambda _: NOT_FOUND)
    assert (story.status, story.payment.reason) == ("failed", "pay_before_passed")


def test_a_gateway_that_is_away_is_asked_about_a_charge_no_sooner_than_it_says() -> None:
    """What became of the charge is not known; it would only be told once more that it is away."""
    story = Story()
    story.flow.answer(replace(TIMED_OUT, code="gateway_error", retry_after_ms=30_000))
    before_ms = story.flow.now_ms
    story.wait()
    assert story.asked == ["charge", "inquire"]
    assert 30_000 <= story.flow.now_ms - before_ms <= 60_000
    story.flow.answer(yes)
    assert story.status == "captured"


@pytest.mark.slow
def test_inquiries_stay_dense_and_then_thin_out() -> None:
    """Twelve in the first tier, sixteen in the second, the rest in the third."""
    delays = (5, 15, 60)
    tiers = [inquiry_tier(delays, asked) for asked in range(83)]
    assert tiers == [1] * 12 + [2] * 16 + [3] * 55
    story = Story(policy=replace(POLICY, inquiry_max=83))
    story.flow.run(lambda _: TIMED_OUT)
    assert story.flow.now_ms - NOW == 3_600 * SECOND, "an hour of patience"


@pytest.mark.slow
def test_questions_that_nobody_was_asked_thin_out_too_and_none_is_used_up() -> None:
    """A gateway that is away for an hour: each wait at least what its breaker says, and longer each
    time, since a hundred thousand payments asking every five seconds would stop all others."""
    story = Story()
    story.flow.answer(TIMED_OUT)
    began_ms = story.flow.now_ms
    asked = 0
    story.wait()
    while story.flow.now_ms - began_ms < 3_600 * SECOND:
        before_ms = story.flow.now_ms
        story.flow.answer(replace(TIMED_OUT, code="breaker_open", retry_after_ms=14_000))
        asked += 1
        story.wait()
        assert story.flow.now_ms - before_ms >= 14_000
    assert asked <= 28 + 60, "once a minute, after the first few minutes"
    assert story.payment.attempts[0].inquiries == 1, "the open one; nobody was asked the others"
    story.flow.answer(yes)
    assert story.status == "captured"


def test_tiers_are_chosen_by_what_they_wait() -> None:
    """Not shorter, not longer, and the nearest where there is none."""
    delays = (10, 20, 40)
    assert [tier_not_shorter(delays, ms) for ms in (0, 10, 11, 40, 41)] == [1, 1, 2, 3, 3]
    assert [tier_not_longer(delays, ms) for ms in (0, 9, 10, 39, 40)] == [1, 1, 1, 2, 3]
    assert [retry_tier(delays, sends) for sends in (0, 1, 3, 9)] == [1, 1, 3, 3]


@pytest.mark.slow
def test_timers_scale_with_the_first_tier() -> None:
    """A test's installation may let a day pass in seconds, and nothing is ever early."""
    story = Story(MANUAL, timer_delay_ms=100)
    story.flow.answer(yes)
    expires_at_ms = story.payment.expires_at_ms
    while "void" not in story.asked:
        due_ms = min(due for due, _, _ in story.flow.tiers)
        story.flow.advance(due_ms - story.flow.now_ms)
    assert expires_at_ms is not None
    assert 0 <= story.flow.now_ms - expires_at_ms <= 100

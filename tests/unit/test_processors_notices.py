"""Webhooks: evidence that comes unordered, late and again; disputes and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import permutations

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import GatewayNotification, Order
from pipeline.domain.policy import DAY_MS, HOUR_MS, MINUTE_MS
from tests.support.payment_story import (
    ACTION,
    DECLINED,
    MANUAL,
    NOT_SENT,
    ORDER,
    PENDING,
    TIMED_OUT,
    Story,
    yes,
)

# What adapters make of a refund that is shown as returned.
RETURNED = GatewayAnswer(outcome="declined", code="returned", gateway_reference="refund_1_r1")


def charged() -> Story:
    story = Story()
    story.flow.answer(yes)
    return story


def refunding() -> Story:
    story = charged()
    story.command("refund", "r1", amount_minor=200)
    return story


def test_a_pending_charge_is_finished_by_its_notice() -> None:
    """The gateway has it: nothing is unknown, commands wait, and the webhook ends it."""
    story = Story()
    story.flow.answer(PENDING)
    assert (story.status, story.payment.attempts[0].state) == ("processing", "pending")
    story.command("refund", "r1")
    assert story.events[-1] == "command_waiting"
    story.notify("succeeded")
    assert story.events[-2:] == ["captured", "refund_started"]
    assert story.notify("succeeded").note == "stale_result"
    assert [decision.note for decision in story.flow.advance(60_000)] == ["stale_due"]


def test_a_pending_charge_is_finished_by_its_inquiry() -> None:
    """A webhook may never come; the gateway is asked until it is done."""
    story = Story()
    story.flow.answer(PENDING)
    story.wait()
    story.flow.answer(PENDING)
    story.wait()
    story.flow.answer(DECLINED)
    assert story.events == [
        "payment_started", "pending", "inquiry_started", "pending", "inquiry_started", "failed",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_pending_charge_that_nobody_tells_of_waits_for_a_person() -> None:
    """Silence about what the gateway has is never taken for failure."""
    story = Story()
    story.flow.answer(PENDING)
    for _ in range(14 * 25):
        story.flow.run(lambda _: TIMED_OUT)
        story.flow.advance(HOUR_MS)
    assert (story.status, story.events[-1]) == ("outcome_unknown", "inquiry_exhausted")
    story.notify("succeeded")
    assert story.status == "captured"


def refused_for_days(story: Story, days: int, code: str = "breaker_open") -> None:
    for _ in range(days):
        story.flow.advance(DAY_MS)
        story.flow.answer(replace(NOT_SENT, code=code))


@pytest.mark.parametrize("code", ["breaker_open", "rate_limited", "throttled"])
def test_what_is_pending_becomes_a_persons_though_no_question_was_let_through(code: str) -> None:
    """The time alone makes it one's, since nobody else might ever end it."""
    story = Story()
    story.flow.answer(PENDING)
    refused_for_days(story, 13, code)
    assert story.rejected("resolve", decision="not_charged") == "outcome_must_be_unknown"
    refused_for_days(story, 1, code)
    assert (story.status, story.events[-1]) == ("outcome_unknown", "inquiry_exhausted")
    story.command("resolve", "c2", decision="charged", gateway_reference="ch_1")
    assert (story.status, story.money) == ("captured", (500, 500, 0))


def test_what_is_pending_becomes_a_persons_though_each_question_brings_a_notice() -> None:
    """It comes before the answer, says what is known, and does not put the end off."""
    story = Story()
    story.flow.answer(PENDING)
    for _ in range(14):
        story.flow.advance(DAY_MS)
        while story.flow.open_requests:
            story.notify("pending")
            story.flow.answer(PENDING)
    assert (story.status, story.events[-1]) == ("outcome_unknown", "inquiry_exhausted")


@pytest.mark.slow
def test_what_is_pending_keeps_its_hold_when_it_becomes_a_persons() -> None:
    """Nothing else is captured in its place until somebody has said what became of it."""
    story = Story(MANUAL)
    story.flow.answer(yes)
    story.command("capture", amount_minor=200)
    story.flow.answer(PENDING)
    refused_for_days(story, 14)
    assert (story.payment.attempts[-1].state, story.money) == ("inquiry_exhausted", (500, 0, 0))
    assert story.rejected("capture", "c2", amount_minor=301) == "capture_must_not_exceed_authorized"
    story.command("resolve", "c3", decision="charged", gateway_reference="ca_1")
    assert story.money == (500, 200, 0)


@pytest.mark.slow
def test_a_refund_that_takes_days_is_asked_about_every_hour() -> None:
    """It needs no person and holds up nobody; its end is found though no notice comes."""
    story = refunding()
    story.flow.answer(PENDING)
    for _ in range(48):
        story.flow.run(lambda _: PENDING)
        story.flow.advance(HOUR_MS)
    assert story.payment.attempts[-1].state in ("pending", "inquiring")
    assert 48 <= story.asked.count("inquire") <= 48 + story.flow.policy.inquiry_max
    story.flow.run(yes)
    story.flow.advance(2 * HOUR_MS)
    story.flow.run(yes)
    assert story.money == (500, 500, 200)


@pytest.mark.parametrize("first", [NOT_SENT, TIMED_OUT, PENDING, ACTION])
@pytest.mark.parametrize("outcome", ["succeeded", "declined", "pending"])
def test_a_notice_counts_wherever_the_charge_is(first: object, outcome: str) -> None:
    """The gateway's word is taken while a wait, a question or nothing is open."""
    story = Story()
    story.flow.answer(first)  # type: ignore[arg-type]
    story.notify(outcome)
    after = {"succeeded": "captured", "declined": "failed", "pending": "processing"}
    assert story.status == after[outcome]


def test_the_same_word_in_any_order_ends_the_same() -> None:
    """An answer, its webhook and a repetition of each: one state, one money."""
    ends = set()
    for order in permutations(range(4)):
        story = Story()
        request = story.flow.requests()[0]
        steps: list[Callable[[], object]] = [
            partial(story.flow.result, story.flow.handle((story.flow.now_ms, request), yes)),
            partial(story.notify, "succeeded"),
            partial(story.notify, "pending"),
            partial(story.notify, "succeeded"),
        ]
        for at in order:
            steps[at]()
        ends.add((story.status, story.money, tuple(story.settled)))
    assert ends == {("captured", (500, 500, 0), (("capture", 500),))}


def test_a_refund_that_failed_after_all_gives_its_money_back() -> None:
    """The books say so, and the room is free for another refund."""
    story = refunding()
    story.flow.answer(yes)
    story.notify("failed", "r1", code="account_closed")
    assert story.money == (500, 500, 0)
    assert story.settled == [("capture", 500), ("refund", -200), ("refund_failed", 200)]
    assert (story.events[-1], story.flow.events()[-1].reason) == ("refund_failed", "account_closed")
    assert story.notify("failed", "r1").note == "stale_result"
    assert story.notify("succeeded", "r1").note == "stale_result", "an old notice"
    story.command("refund", "r2")
    assert story.flow.requests()[-1].amount_minor == 500


def test_a_refund_that_failed_before_it_was_heard_of_moves_nothing() -> None:
    """Failed first, succeeded later: the same end as the other way round."""
    story = refunding()
    story.notify("failed", "r1")
    story.flow.answer(yes)
    assert story.money == (500, 500, 0)
    assert sum(amount for _, amount in story.settled) == 500


def test_a_declined_refund_that_failed_moves_nothing() -> None:
    """It had moved nothing; what shows as made afterwards is older than its failure."""
    story = refunding()
    story.flow.answer(DECLINED)
    story.notify("failed", "r1")
    assert story.notify("failed", "r1").note == "stale_result"
    assert story.notify("succeeded", "r1").note == "stale_result"
    assert story.money == (500, 500, 0)
    assert story.settled == [("capture", 500)]


@pytest.mark.parametrize("order", [*permutations(["inquired", "succeeded", "failed"])])
def test_a_refund_that_came_back_is_not_refunded_whoever_tells_it_when(
    order: tuple[str, ...],
) -> None:
    """Its answer was lost. Three true words about it end the same in every order: the inquiry's,
    which knows what it is by now, and the notices of its success and of its return."""
    story = charged()
    story.command("refund", "r1")
    story.flow.answer(TIMED_OUT)
    for word in order:
        if word != "inquired":
            story.notify(word, "r1")
        elif story.payment.attempts[-1].state == "inquiry_waiting":
            story.wait()
            story.flow.answer(RETURNED)
    assert story.money == (500, 500, 0)
    assert sum(amount for _, amount in story.settled) == 500
    assert story.flow.dead_letters == []
    story.command("refund", "r2")
    assert story.flow.requests()[-1].amount_minor == 500, "its room is free"


def test_an_inquiry_that_is_overtaken_by_an_old_success_still_tells_of_the_return() -> None:
    """It was asked before the notice came, and is answered after it."""
    story = charged()
    story.command("refund", "r1")
    story.flow.answer(TIMED_OUT)
    story.wait()
    story.notify("succeeded", "r1")
    story.flow.answer(RETURNED)
    assert story.money == (500, 500, 0)
    assert story.settled == [("capture", 500), ("refund", -500), ("refund_failed", 500)]
    assert story.flow.dead_letters == []


def test_a_refund_that_a_person_gave_up_and_that_came_back_stays_given_up() -> None:
    """The notice of its return is kept although nothing had moved: its success may still come."""
    story = charged()
    story.command("refund", "r1")
    while story.payment.attempts[-1].state != "inquiry_exhausted":
        story.flow.answer(TIMED_OUT)
        if not story.flow.open_requests and story.flow.waits():
            story.wait()
    story.flow.now_ms += 10 * MINUTE_MS
    story.command("resolve", "p1", decision="not_charged")
    story.notify("failed", "r1", code="returned")
    assert story.notify("succeeded", "r1").note == "stale_result"
    assert story.money == (500, 500, 0)


def test_the_customer_is_sent_to_the_bank() -> None:
    """The address is in the payment and its event's reason; the outcome comes by webhook."""
    story = Story(MANUAL)
    story.flow.answer(ACTION)
    payment = story.payment
    assert payment.status == "requires_customer_action"
    assert payment.next_action_url == "https://bank.example/3ds"
    assert payment.expires_at_ms == story.flow.now_ms + story.flow.policy.customer_action_ms
    story.notify("succeeded", gateway_reference="au_1")
    assert (story.status, story.payment.next_action_url) == ("authorized", None)


def test_a_notice_that_the_customer_is_asked_may_be_old_whatever_was_heard_too_late() -> None:
    """Plainly pending by its gateway's own word, and by an earlier question that was heard too
    late: the customer has acted by then, so the gateway is asked, and nobody is sent nowhere."""
    story = Story()
    story.flow.answer(PENDING)
    story.wait()
    story.flow.answer(replace(TIMED_OUT, code="heard_pending"))
    story.notify("pending", code="customer_action_required")
    assert (story.status, story.asked) == ("processing", ["charge", "inquire", "inquire"])


def test_a_pending_charge_may_ask_for_the_customer_later() -> None:
    """A notice that the customer is asked may be an old one and has no address: the gateway says
    at once how it is."""
    story = Story()
    story.flow.answer(PENDING)
    story.notify("pending", code="customer_action_required")
    assert (story.status, story.asked) == ("processing", ["charge", "inquire"])
    assert story.notify("pending", code="customer_action_required").note == "stale_result"
    story.flow.answer(ACTION)
    assert story.status == "requires_customer_action"
    assert story.payment.next_action_url == "https://bank.example/3ds"
    assert story.notify("pending", code="customer_action_required").note == "stale_result"


@pytest.mark.parametrize("by", ["answer", "inquiry"])
def test_the_address_is_learned_though_a_notice_came_first(by: str) -> None:
    """A notice says that the customer is asked and not where; the answer, or the next inquiry,
    says that too."""
    story = Story()
    story.notify("pending", code="customer_action_required")
    assert (story.status, story.payment.next_action_url) == ("requires_customer_action", None)
    expires_at_ms = story.payment.expires_at_ms
    if by == "inquiry":
        story.flow.open_requests.clear()
        story.wait()
    story.flow.answer(ACTION)
    assert story.payment.next_action_url == "https://bank.example/3ds"
    assert story.payment.expires_at_ms == expires_at_ms


@pytest.mark.parametrize("order", [MANUAL, ORDER])
@pytest.mark.parametrize("by", ["notice", "inquiry"])
def test_a_customer_who_has_acted_is_not_expired(order: Order, by: str) -> None:
    """The gateway goes on without asking, by notice or when asked: the timer is dropped, and what
    succeeds hours later is the merchant's."""
    story = Story(order)
    story.flow.answer(ACTION)
    if by == "notice":
        story.notify("pending")
        assert story.notify("pending").note == "stale_result"
    else:
        story.wait()
        story.flow.answer(PENDING)
    payment = story.payment
    assert (story.status, payment.next_action_url, payment.expires_at_ms) == (
        "processing", None, None,
    )  # fmt: skip
    assert story.events[-1] == "pending"
    for _ in range(3):
        story.flow.run(lambda _: PENDING)
        story.flow.advance(HOUR_MS)
    story.notify("succeeded", gateway_reference="ch_1")
    assert story.status == ("authorized" if order is MANUAL else "captured")
    assert story.money[2] == 0
    assert "refund" not in story.asked
    assert "void" not in story.asked


def test_a_customer_may_be_asked_a_second_time() -> None:
    """After one challenge the bank may have another; its timer is a new one."""
    story = Story()
    story.flow.answer(ACTION)
    story.flow.advance(HOUR_MS // 2)
    story.notify("pending")
    story.flow.open_requests.clear()
    story.wait()
    story.flow.answer(ACTION)
    assert story.status == "requires_customer_action"
    assert story.payment.expires_at_ms == story.flow.now_ms + HOUR_MS


@pytest.mark.slow
def test_words_about_the_customer_in_any_order_end_the_same() -> None:
    """Asked, has acted, charged; twice, and in any order: once the gateway was heard, it is the
    same state and the same money, and no timer is left that would end it."""
    steps = ("action", "pending", "pending", "action", "answer")
    ends = set()
    for order in set(permutations(steps)):
        for last in ("", "succeeded"):
            story = Story()
            request = story.flow.open_requests.pop(0)
            for what in order:
                if what == "answer":
                    story.flow.result(story.flow.handle(request, ACTION))
                else:
                    code = {"action": "customer_action_required"}.get(what)
                    story.notify("pending", code=code, gateway_reference="ch_1")
            # By now the customer has acted: so the gateway says when it is asked.
            for _ in range(30):
                story.flow.run(lambda _: PENDING)
                story.flow.advance(5 * MINUTE_MS)
            if last:
                story.notify(last, gateway_reference="ch_1")
            ends.add((last, story.status, story.money, story.payment.expires_at_ms))
    assert ends == {
        ("", "processing", (0, 0, 0), None),
        ("succeeded", "captured", (500, 500, 0), None),
    }


def test_words_that_cannot_both_be_true_are_kept_for_a_person() -> None:
    """A decline after a success, or another reference, is contradictory and changes nothing."""
    story = charged()
    assert story.notify("declined").dead_letter == "contradictory_evidence"
    other = story.notify("succeeded", gateway_reference="ch_2")
    assert other.dead_letter == "contradictory_evidence"
    assert (story.status, story.money) == ("captured", (500, 500, 0))


def test_another_amount_of_a_late_success_is_kept_for_a_person() -> None:
    """Nothing is given back by guess."""
    story = Story()
    story.flow.answer(DECLINED)
    decision = story.notify("succeeded", amount_minor=499)
    assert decision.dead_letter == "amount_mismatch"
    assert (story.status, story.settled) == ("failed", [])


@pytest.mark.parametrize("by", ["notice", "inquiry"])
def test_no_customer_is_sent_anywhere_once_their_money_is_said_to_have_moved(by: str) -> None:
    """Another amount than was asked for: a person looks, and the customer has nothing to do."""
    story = Story()
    story.flow.answer(ACTION)
    if by == "notice":
        decision = story.notify("succeeded", amount_minor=499)
    else:
        story.wait()
        decision = story.flow.answer(lambda request: replace(yes(request), amount_minor=499))
    assert decision.dead_letter == "amount_mismatch"
    payment = story.payment
    assert (payment.status, payment.next_action_url, payment.expires_at_ms) == (
        "outcome_unknown", None, None,
    )  # fmt: skip


def test_notices_about_nothing_of_ours_are_dead_lettered() -> None:
    """Whole, with their cause; the payment they name says so."""
    story = charged()
    forged = story.notice("declined")
    assert story.flow.notify(replace(forged, operation_id="x")).dead_letter == "unknown_attempt"
    assert story.flow.notify(replace(forged, kind="refund")).dead_letter == "unknown_attempt"
    assert story.flow.notify(replace(forged, payment_id="x")).dead_letter == "unknown_payment"
    assert story.flow.notify(replace(forged, order_id="2")).dead_letter == "unknown_payment"
    assert story.flow.notify(replace(forged, type="news")).dead_letter == "unknown_notice"
    claimed = story.notice("succeeded", operation_id="1", attempt=2)
    assert story.flow.notify(claimed).dead_letter == "contradictory_evidence"
    assert story.payment.dead_letters == 5


# Disputes.


def test_a_dispute_takes_the_money_and_its_win_brings_it_back() -> None:
    """Withdrawn when opened, reversed when won; the fee stays with the gateway."""
    story = charged()
    story.dispute("inquiry")
    assert story.payment.disputed_minor == 500
    story.dispute("opened", fee_minor=15)
    story.dispute("won")
    assert story.settled == [
        ("capture", 500), ("dispute", -500), ("dispute_fee", -15), ("reversal", 500),
    ]  # fmt: skip
    assert (story.payment.disputed_minor, story.payment.charged_back_minor) == (0, 0)
    assert story.events[-3:] == ["dispute_inquiry", "dispute_opened", "dispute_won"]


def test_a_dispute_won_may_be_lost_in_arbitration() -> None:
    """The second withdrawal is another settlement, with an id of its own."""
    story = charged()
    for state in ("opened", "won", "pre_arbitration", "lost"):
        story.dispute(state, fee_minor=15)
    assert story.settled == [
        ("capture", 500), ("dispute", -500), ("dispute_fee", -15), ("reversal", 500),
        ("dispute", -500),
    ]  # fmt: skip
    assert story.payment.charged_back_minor == 500


def test_refunded_and_charged_back_is_a_loss() -> None:
    """More goes out than came in: it is posted and told, with the amount that is lost."""
    story = charged()
    story.command("refund", "r1", amount_minor=200)
    story.flow.answer(yes)
    story.dispute("opened")
    story.dispute("lost")
    event = story.flow.events()[-1]
    assert (event.type, event.operation_minor) == ("loss_posted", 200)
    assert story.dispute("lost").note == "stale_result"
    story.command("refund", "r2", amount_minor=100, override="dispute")
    story.flow.answer(yes)
    event = story.flow.events()[-1]
    assert (event.type, event.operation_minor) == ("loss_posted", 300)


@pytest.mark.slow
def test_notices_of_a_dispute_in_any_order_end_the_same() -> None:
    """Also with different amounts and fees, twice, and before the charge is heard of."""
    ends = set()
    steps = (
        {"state": "inquiry", "amount_minor": 0},
        {"state": "opened", "fee_minor": 15},
        {"state": "lost", "amount_minor": 300, "fee_minor": 20},
        {"state": "opened", "fee_minor": 15},
        None,
    )
    for order in permutations(range(5)):
        story = Story()
        for at in order:
            step = steps[at]
            if step is None:
                story.flow.answer(yes)
            else:
                story.dispute(**step)  # type: ignore[arg-type]
        payment = story.payment
        dispute = replace(payment.disputes[0], updated_at_ms=0)
        sums: dict[str, int] = {"money": sum(amount for _, amount in story.settled)}
        ends.add((payment.status, payment.charged_back_minor, dispute, sums["money"]))
    assert len(ends) == 1
    ((status, charged_back, dispute, money),) = ends
    assert (status, charged_back, money) == ("captured", 300, 500 - 300 - 20)
    assert (dispute.state, dispute.fee_minor, dispute.withdrawn_minor) == ("lost", 20, 300)


@pytest.mark.parametrize(
    "changes",
    [
        {"gateway": "second"},
        {"gateway_reference": "ch_of_somebody_else"},
        {"amount_minor": 501},
    ],
)
def test_a_dispute_about_another_charge_is_dead_lettered(changes: dict[str, object]) -> None:
    """A genuine notice with another's order in it, of a gateway that was not asked, or of more than
    was ordered, takes nothing from the merchant."""
    story = charged()
    assert story.dispute("opened", **changes).dead_letter in (
        "dispute_of_nothing", "amount_mismatch",
    )  # fmt: skip
    assert story.settled == [("capture", 500)]
    assert story.payment.disputes == ()


@pytest.mark.parametrize(
    ("cause", "changes"),
    [
        ("malformed_dispute", {"dispute_id": ""}),
        ("malformed_dispute", {"dispute_state": "angry"}),
        ("malformed_dispute", {"amount_minor": -1}),
        ("amount_mismatch", {"currency": "EUR"}),
    ],
)
def test_a_dispute_that_makes_no_sense_is_dead_lettered(
    cause: str, changes: dict[str, object]
) -> None:
    """It is kept whole, and books nothing."""
    story = charged()
    notice = GatewayNotification(
        merchant_id="shop", order_id="1", payment_id=story.payment.payment_id,
        notification_id="n", gateway="simulator", type="dispute", amount_minor=500,
        currency="GBP", received_at_ms=0, dispute_id="d", dispute_state="opened",
    )  # fmt: skip
    assert story.flow.notify(replace(notice, **changes)).dead_letter == cause
    assert story.settled == [("capture", 500)]


def test_a_dispute_of_what_no_gateway_was_asked_for_is_dead_lettered() -> None:
    """A free order cannot be disputed."""
    story = Story(replace(MANUAL, amount_minor=0))
    assert story.dispute("opened").dead_letter == "dispute_of_nothing"


def test_a_dispute_of_a_declined_charge_is_dead_lettered_until_it_shows_as_made() -> None:
    """A declined charge took nothing; one that was made after all can be disputed."""
    story = Story()
    story.flow.answer(DECLINED)
    assert story.dispute("opened").dead_letter == "dispute_of_nothing"
    assert (story.settled, story.payment.disputes) == ([], ())
    story.notify("succeeded")
    assert story.dispute("opened").dead_letter is None
    assert ("dispute", -500) in story.settled


def test_a_dispute_may_come_before_the_charge_that_it_is_about_is_known() -> None:
    """Its request is under way, or was given up on silence: the money may have moved."""
    story = Story()
    assert story.dispute("opened").dead_letter is None
    assert story.settled == [("dispute", -500)]

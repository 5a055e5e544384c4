"""Caps on attempts in the flow: what a payment asks of its card's counter, and tells it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import (
    AttemptCap,
    GatewayNotification,
    Payment,
    PaymentRequest,
    RiskCheck,
    RiskResult,
)
from pipeline.domain.policy import DAY_MS, HOUR_MS, MINUTE_MS, GatewayProfile, Policy
from pipeline.domain.reviews import review_name
from pipeline.domain.risk_answer import answer_check
from pipeline.domain.risk_rules import read_rules
from pipeline.domain.risk_velocity import velocity_key
from pipeline.processors.driver import RISK_CHECKS, FlowDriver
from pipeline.processors.risk import process_risk_result
from tests.support.examples import share_of
from tests.support.payment_story import NOT_FOUND, NOW, ORDER, SECOND, TIMED_OUT, command, yes

TWO = AttemptCap(name="two", declines_max=2, window_ms=DAY_MS)
POLICY = Policy(
    gateways=(
        GatewayProfile(name="north", priority=1, grace_ms=10 * SECOND),
        GatewayProfile(name="south", priority=2, grace_ms=10 * SECOND),
    ),
    attempt_caps=(TWO,),
    count_cards=True,
    send_within_ms=10 * SECOND,
    clock_skew_ms=SECOND,
    inquiry_max=4,
)
ONE_ONLY = replace(POLICY, attempt_caps=(replace(TWO, declines_max=1),))
CARD: dict[str, Any] = {"card_fingerprint": "fp_1"}

NO_FUNDS = GatewayAnswer(outcome="declined", code="insufficient_funds")
LOST = GatewayAnswer(outcome="declined", code="lost_card")
OWN_TROUBLE = GatewayAnswer(outcome="declined", code="processing_error")
CAPPED = "attempts_must_not_exceed_the_cap"
BARRED = "card_must_not_be_tried_again"


class Flow(FlowDriver):
    """Orders with one card; ``of(n)`` is the payment of the n-th."""

    def __init__(self, policy: Policy = POLICY) -> None:
        super().__init__(policy, now_ms=NOW)

    def buy(self, number: int, **fields: Any) -> None:
        self.order(replace(ORDER, order_id=f"o-{number}", **{**CARD, **fields}))

    def of(self, number: int) -> Payment:
        payment = self.payment("shop", f"o-{number}")
        assert payment is not None
        return payment

    def ask(self, type_: str, number: int, command_id: str = "c1", **fields: Any) -> None:
        given = command(type_, command_id, **fields)
        self.command(replace(given, order_id=f"o-{number}"))

    def declined(self, number: int, answer: GatewayAnswer = NO_FUNDS, **fields: Any) -> None:
        """An order whose charge is declined, and whose counter has heard of it."""
        self.buy(number, **fields)
        self.count_all()
        self.answer(answer)
        self.count_all()

    def told(self) -> list[tuple[str, str]]:
        """What counters were asked and told, by order."""
        checks = self.read(RISK_CHECKS, RiskCheck)
        return [(c.order_id, c.outcome or "asks") for c in checks if c.attempt_key]

    def story(self, number: int) -> list[tuple[str, str | None]]:
        events = [e for e in self.events() if e.order_id == f"o-{number}"]
        assert [e.sequence for e in events] == list(range(1, len(events) + 1))
        return [(e.type, e.reason) for e in events]


def states(payment: Payment) -> list[tuple[str, str, int]]:
    return [(a.gateway, a.state, a.tries) for a in payment.attempts]


def test_a_charge_asks_before_it_is_sent_and_tells_what_became_of_it() -> None:
    """Nothing goes to a gateway before the answer; a success gives the permit back."""
    flow = Flow()
    flow.buy(1)
    assert flow.open_requests == []
    assert states(flow.of(1)) == [("north", "permit_waiting", 0)]
    flow.count()
    assert states(flow.of(1)) == [("north", "started", 1)]
    flow.answer(yes)
    assert flow.of(1).status == "captured"
    assert flow.told() == [("o-1", "asks"), ("o-1", "released")]
    assert [type_ for type_, _ in flow.story(1)] == ["permit_asked", "payment_started", "captured"]
    flow.count_all()
    (row,) = flow.velocity.values()
    assert (row.in_flight, row.declined) == ((), ())


@pytest.mark.parametrize(
    ("policy", "fields"),
    [
        pytest.param(replace(POLICY, count_cards=False), {}, id="not counted"),
        pytest.param(POLICY, {"card_fingerprint": None}, id="no fingerprint"),
        pytest.param(POLICY, {"card_fingerprint": " "}, id="a blank one"),
    ],
)
def test_where_no_card_is_counted_nothing_is_asked(policy: Policy, fields: dict[str, Any]) -> None:
    """A missing identity is nobody, and whoever does not count pays nothing for it."""
    flow = Flow(policy)
    flow.buy(1, **fields)
    assert len(flow.open_requests) == 1
    flow.answer(NO_FUNDS)
    assert flow.told() == []


def test_a_card_over_its_cap_is_not_sent_in_another_payment() -> None:
    """Two declines in two payments: the third payment fails by name, no gateway hears of it, and
    another card pays for it."""
    flow = Flow()
    flow.declined(1)
    flow.declined(2)
    flow.buy(3)
    flow.count_all()
    assert (flow.of(3).status, flow.of(3).reason) == ("failed", CAPPED)
    assert flow.events()[-1].detail == "2 declines of this card within 1 d, cap two"
    assert states(flow.of(3)) == [("north", "failed", 0)]
    assert flow.told()[-1] == ("o-3", "asks"), "refused, there is nothing to give back"
    assert [r.order_id for r in flow.requests()] == ["o-1", "o-2"]
    flow.ask("retry", 3, instrument_token="tok_2", card_fingerprint="fp_2")
    flow.count_all()
    flow.answer(yes)
    assert flow.of(3).status == "captured"
    assert [type_ for type_, _ in flow.story(3)] == [
        "permit_asked", "failed", "permit_asked", "payment_retried", "captured",
    ]  # fmt: skip


def test_a_card_over_its_cap_may_be_asked_for_again_when_the_window_has_passed() -> None:
    """It was not tried in this payment, so it is no instrument that was; by then it may be."""
    flow = Flow()
    flow.declined(1)
    flow.declined(2)
    flow.buy(3)
    flow.count_all()
    flow.now_ms += HOUR_MS
    flow.ask("retry", 3, "early", instrument_token="tok_1", card_fingerprint="fp_1")
    flow.count_all()
    assert flow.story(3)[-1] == ("failed", CAPPED)
    flow.now_ms += DAY_MS
    flow.ask("retry", 3, "late", instrument_token="tok_1", card_fingerprint="fp_1")
    flow.count_all()
    flow.answer(yes)
    assert flow.of(3).status == "captured"


def test_a_retry_over_the_cap_is_not_sent() -> None:
    """Its card was declined too often elsewhere, though never in this payment."""
    flow = Flow()
    flow.declined(1)
    flow.declined(2)
    flow.declined(3, card_fingerprint="fp_2")
    flow.ask("retry", 3, instrument_token="tok_x", card_fingerprint="fp_1")
    flow.count_all()
    assert (flow.of(3).status, flow.of(3).reason) == ("failed", CAPPED)
    assert len(flow.requests()) == 3


def test_merchants_are_capped_each_by_itself() -> None:
    """As the networks count: one card at one merchant."""
    flow = Flow()
    flow.declined(1)
    flow.declined(2)
    flow.order(replace(ORDER, merchant_id="other", order_id="x", **CARD))
    flow.count_all()
    assert [r.merchant_id for r in flow.requests()] == ["shop", "shop", "other"]


def test_a_card_declined_for_good_is_not_tried_in_any_payment() -> None:
    """Lost in one payment: not by a retry there, whatever the token, and in no other for thirty
    days; another card goes through."""
    flow = Flow()
    flow.declined(1, LOST)
    flow.buy(2, instrument_token="tok_other")
    flow.count_all()
    assert (flow.of(2).status, flow.of(2).reason) == ("failed", BARRED)
    assert flow.events()[-1].detail == "lost_card bars this card"
    for token, fingerprint in (("tok_1", None), (" tok_1 ", None), ("tok_new", "fp_1")):
        flow.ask("retry", 1, token, instrument_token=token, card_fingerprint=fingerprint)
        assert flow.story(1)[-1] == ("command_rejected", BARRED), token
    assert len(flow.requests()) == 1
    flow.ask("retry", 1, "c9", instrument_token="tok_2", card_fingerprint="fp_2")
    flow.count_all()
    flow.answer(yes)
    assert flow.of(1).status == "captured"
    flow.now_ms += 30 * DAY_MS
    flow.buy(3)
    flow.count_all()
    assert flow.of(3).status == "processing"
    assert len(flow.open_requests) == 1


def test_without_a_fingerprint_a_token_declined_for_good_is_refused_in_its_payment() -> None:
    """The least that is known: the token."""
    flow = Flow(replace(POLICY, count_cards=False))
    flow.buy(1, card_fingerprint=None)
    flow.answer(LOST)
    flow.ask("retry", 1, instrument_token="tok_1\n")
    assert flow.story(1)[-1] == ("command_rejected", BARRED)
    flow.ask("retry", 1, "c2", instrument_token="tok_2")
    flow.answer(NO_FUNDS)
    flow.ask("retry", 1, "c3", instrument_token="tok_2 ")
    assert flow.story(1)[-1] == ("command_rejected", "token_must_be_new")


def test_the_next_gateway_is_asked_for_as_well() -> None:
    """A decline for the gateway's own reasons counts too: told first, then asked for the next."""
    flow = Flow()
    flow.buy(1)
    flow.count_all()
    flow.answer(OWN_TROUBLE)
    assert flow.told() == [("o-1", "asks"), ("o-1", "declined"), ("o-1", "asks")]
    assert flow.open_requests == []
    flow.count_all()
    flow.answer(yes)
    assert states(flow.of(1)) == [("north", "declined", 1), ("south", "charged", 1)]
    assert [type_ for type_, _ in flow.story(1)] == [
        "permit_asked", "payment_started", "permit_asked", "failover_started", "captured",
    ]  # fmt: skip


def test_a_permit_that_is_read_days_later_sends_nobody_to_the_next_gateway() -> None:
    """What it leads to is written when it is read; the operation's time goes on meanwhile."""
    flow = Flow()
    flow.buy(1)
    flow.count_all()
    flow.answer(OWN_TROUBLE)
    while flow.open_checks:
        check = flow.open_checks.pop(0)
        at = velocity_key(check.merchant_id, check.by, check.identity)
        row, answers = answer_check(flow.velocity.get(at), check, flow.now_ms)
        if row is not None:
            flow.velocity[at] = row
        made = [
            (answer, process_risk_result(flow.of(1), answer, flow.now_ms, flow.policy))
            for answer in answers
        ]
        if answers:
            flow.now_ms += 2 * DAY_MS
        for answer, decided in made:
            flow.apply(answer, decided)
    assert flow.open_requests[0][1].gateway == "south"
    late = flow.handle(flow.open_requests.pop(0), yes)
    assert (late.outcome, late.code) == ("not_sent", "send_before_passed")


def test_the_next_gateway_gets_nothing_over_the_cap() -> None:
    """The decline that reached the cap is the last one: the payment fails."""
    flow = Flow()
    flow.declined(1)
    flow.buy(2)
    flow.count_all()
    flow.answer(OWN_TROUBLE)
    flow.count_all()
    assert (flow.of(2).status, flow.of(2).reason) == ("failed", CAPPED)
    assert [r.gateway for r in flow.requests()] == ["north", "north"]


def test_an_order_waits_while_others_may_still_be_declined() -> None:
    """Two in flight, two allowed: the third waits, and goes when one has succeeded."""
    flow = Flow()
    for number in (1, 2, 3):
        flow.buy(number)
    flow.count_all()
    assert [r.order_id for _, r in flow.open_requests] == ["o-1", "o-2"]
    flow.answer(NO_FUNDS)
    flow.count_all()
    assert len(flow.open_requests) == 1
    flow.answer(yes)
    flow.count_all()
    assert [r.order_id for _, r in flow.open_requests] == ["o-3"]


def test_a_permit_that_took_its_time_does_not_age_the_charge() -> None:
    """What a gateway remembers of a key begins with the first request, not with the question."""
    forgetful = tuple(replace(g, key_retention_ms=5 * MINUTE_MS) for g in POLICY.gateways)
    flow = Flow(replace(ONE_ONLY, gateways=forgetful))
    flow.buy(1)
    flow.buy(2)
    flow.count_all()
    flow.advance(10 * MINUTE_MS)
    flow.open_requests.clear()
    flow.ask("cancel", 1)
    flow.notify(success_of(flow.of(1)))
    flow.count_all()
    ((_, request),) = [opened for opened in flow.open_requests if opened[1].kind == "charge"]
    assert request.order_id == "o-2"
    refused = GatewayAnswer(outcome="not_sent", code="connection_refused")
    flow.result(flow.handle((flow.now_ms, request), refused))
    flow.advance(MINUTE_MS)
    assert [r.kind for r in flow.requests() if r.order_id == "o-2"] == ["charge", "charge"]


def success_of(payment: Payment) -> GatewayNotification:
    """The gateway's notice that a payment's charge has succeeded."""
    attempt = payment.attempts[-1]
    return GatewayNotification(
        merchant_id="shop", order_id=payment.order_id, payment_id=payment.payment_id,
        notification_id="n1", gateway=attempt.gateway, type="operation", amount_minor=500,
        currency="GBP", received_at_ms=NOW, operation_id=attempt.operation_id,
        attempt=attempt.attempt, kind=attempt.kind, outcome="succeeded", gateway_reference="ch_1",
    )  # fmt: skip


def unanswered(flow: Flow, number: int = 1, **fields: Any) -> None:
    flow.buy(number, **fields)
    flow.open_checks.clear()


def test_an_order_without_an_answer_goes_to_a_person_and_is_asked_for_again() -> None:
    """After fifteen minutes, not before; approved, it asks once more, under another key."""
    flow = Flow()
    unanswered(flow)
    flow.advance(15 * MINUTE_MS - 1)
    assert flow.of(1).status == "processing"
    flow.advance(MINUTE_MS)
    assert (flow.of(1).status, flow.of(1).reason) == ("risk_review", "risk_counts_missing")
    flow.ask("review", 1, decision="approve")
    flow.count_all()
    flow.answer(yes)
    assert flow.of(1).status == "captured"
    assert states(flow.of(1)) == [("north", "failed", 0), ("north", "charged", 1)]
    flow.count_all()
    (row,) = flow.velocity.values()
    assert row.in_flight == row.waiting == ()


def test_an_approval_of_one_attempt_lets_no_later_one_go_on() -> None:
    """Nobody answered about the permit that it asked for, so the order is in review once more."""
    flow = Flow()
    unanswered(flow)
    flow.advance(20 * MINUTE_MS)
    assert review_name(flow.of(1)) == "o-1:2"
    of = {"decision": "approve", "operation_id": "o-1"}
    flow.ask("review", 1, "v1", attempt=1, **of)
    assert flow.story(1)[-1] == ("command_rejected", "review_must_be_of_what_is_in_review")
    flow.ask("review", 1, "v2", attempt=2, **of)
    flow.count_all()
    flow.answer(yes)
    assert flow.of(1).status == "captured"


def test_an_approved_order_has_its_whole_time_again() -> None:
    """The attempt that was never made does not age the one that is: retries go on."""
    flow = Flow()
    unanswered(flow)
    flow.advance(20 * MINUTE_MS)
    flow.now_ms += 2 * DAY_MS
    flow.ask("review", 1, decision="approve")
    flow.count_all()
    flow.answer(GatewayAnswer(outcome="not_sent", code="connection_refused"))
    flow.advance(MINUTE_MS)
    assert [r.kind for r in flow.requests()] == ["charge", "charge"]


@pytest.mark.slow
def test_an_order_is_not_approved_without_end_while_nobody_counts() -> None:
    """Each approval asks anew; beyond forty one is refused by name, and the order can be denied."""
    flow = Flow()
    unanswered(flow)
    for number in range(45):
        flow.advance(16 * MINUTE_MS)
        flow.ask("review", 1, f"v{number}", decision="approve")
        flow.open_checks.clear()
    assert flow.story(1)[-1] == ("command_rejected", "operations_must_not_exceed_limit")
    assert (flow.of(1).status, len(flow.of(1).attempts)) == ("risk_review", 40)
    flow.ask("review", 1, "no", decision="deny")
    assert flow.of(1).status == "rejected"


def test_another_gateway_is_not_begun_with_when_the_operations_time_is_over() -> None:
    """The permit comes too late for a request that could still be sent: the payment fails at once,
    its gateway is neither sent anything nor asked, and the permit is given back."""
    for permit_ms, in_time in ((5 * MINUTE_MS, False), (5 * MINUTE_MS - 1, True)):
        flow = Flow(replace(POLICY, stale_after_ms=5 * MINUTE_MS))
        flow.buy(1)
        flow.count_all()
        flow.now_ms = NOW + 4 * MINUTE_MS
        (asked,) = flow.requests()
        flow.result(flow.handle((flow.now_ms, asked), OWN_TROUBLE))
        flow.now_ms = NOW + permit_ms
        flow.count_all()
        if in_time:
            assert flow.requests()[-1].gateway == "south"
        else:
            assert (flow.of(1).status, flow.of(1).reason) == ("failed", "order_too_old")
            assert states(flow.of(1)) == [("north", "declined", 1), ("south", "failed", 0)]
            assert [r.gateway for r in flow.requests()] == ["north"]
            assert flow.told()[-1] == ("o-1", "released")


def test_an_order_that_must_be_paid_sooner_expires() -> None:
    """Without an answer, and with one that comes too late."""
    flow = Flow()
    unanswered(flow, pay_before_ms=NOW + 5 * MINUTE_MS)
    flow.advance(10 * MINUTE_MS)
    assert (flow.of(1).status, flow.of(1).reason) == (
        "expired", "pay_before_must_be_in_the_future",
    )  # fmt: skip
    flow.buy(2, pay_before_ms=flow.now_ms + 5 * MINUTE_MS)
    flow.now_ms += 6 * MINUTE_MS
    flow.count_all()
    assert flow.of(2).status == "expired"
    assert not flow.requests()
    flow.count_all()
    assert all(row.in_flight == () for row in flow.velocity.values())


def test_a_retry_without_an_answer_fails() -> None:
    """What a gateway was asked for before goes back to where it was, by name."""
    flow = Flow()
    flow.declined(1)
    flow.ask("retry", 1, instrument_token="tok_2", card_fingerprint="fp_2")
    flow.open_checks.clear()
    flow.advance(20 * MINUTE_MS)
    assert (flow.of(1).status, flow.of(1).reason) == ("failed", "risk_counts_missing")
    assert len(flow.requests()) == 1


def test_a_check_that_was_dead_lettered_is_not_waited_for() -> None:
    """The risk stage says so: an order goes to a person at once, and the letter is counted."""
    flow = Flow()
    flow.buy(1)
    (check,) = flow.open_checks
    letter = RiskResult(
        merchant_id="shop", order_id="o-1", payment_id=check.payment_id, by="card",
        counted_at_ms=NOW, cause="killed_the_process", letter="risk-checks[0]@1",
        attempt_key=check.attempt_key,
    )  # fmt: skip
    flow.risk_result(letter)
    assert (flow.of(1).status, flow.of(1).reason) == ("risk_review", "risk_counts_missing")
    assert flow.of(1).dead_letters == 1
    assert flow.risk_result(letter).note == "stale_letter"


def test_a_retry_that_a_person_approved_asks_for_its_permit_then() -> None:
    """Rules first, then the person, then the card's counter; nothing is sent before."""
    flow = Flow()
    flow.declined(1)
    rules = "[[rule]]\nname='v'\ntype='amount'\naction='review'\ncurrency='GBP'\n"
    risk = read_rules(rules + "amount_minor_max=1\n", "rules")
    flow.policy = replace(flow.policy, risk=risk)
    flow.ask("retry", 1, "r1", instrument_token="tok_2", card_fingerprint="fp_2")
    assert flow.of(1).status == "risk_review"
    assert flow.told()[-1] == ("o-1", "declined")
    flow.ask("review", 1, "v1", decision="approve")
    assert (flow.of(1).status, flow.told()[-1]) == ("processing", ("o-1", "asks"))
    assert len(flow.requests()) == 1
    flow.count_all()
    flow.answer(yes)
    assert flow.of(1).status == "captured"
    assert flow.requests()[-1].instrument_token == "tok_2"


def test_an_order_is_cancelled_at_once_while_it_waits_for_its_permit() -> None:
    """A permit that comes all the same is given back and sends nothing; commands wait meanwhile."""
    flow = Flow()
    flow.buy(1)
    flow.ask("refund", 1, "r1")
    assert flow.story(1)[-1] == ("command_waiting", "refund")
    flow.ask("cancel", 1, "c1")
    assert flow.of(1).status == "cancelled"
    assert flow.told() == [("o-1", "asks"), ("o-1", "released")]
    assert flow.count().note == "stale_risk_result"
    flow.count_all()
    flow.advance(HOUR_MS)
    assert flow.of(1).status == "cancelled"
    assert not flow.requests()
    (row,) = flow.velocity.values()
    assert row.in_flight == ()
    assert not flow.of(1).commands


def test_rules_decide_before_a_permit_is_asked_for() -> None:
    """An order that a count rejects takes no place of its card's."""
    rules = "[[rule]]\nname='v'\ntype='velocity'\naction='reject'\nby='card'\nwindow_s=60\n"
    flow = Flow(replace(POLICY, risk=read_rules(rules + "count_max=1\n", "rules")))
    flow.buy(1)
    flow.buy(2)
    flow.count_all()
    assert flow.told() == [("o-1", "asks")]
    assert [r.order_id for r in flow.requests()] == ["o-1"]
    assert flow.of(2).status == "rejected"


def test_what_is_unknown_holds_its_place_until_it_is_known() -> None:
    """A person's word gives it back."""
    flow = Flow(ONE_ONLY)
    flow.buy(1)
    flow.buy(2)
    flow.count_all()
    flow.run(lambda _: TIMED_OUT)
    assert states(flow.of(1))[0][1] == "inquiry_exhausted"
    assert flow.told() == [("o-1", "asks"), ("o-2", "asks")]
    flow.now_ms += MINUTE_MS
    flow.ask("resolve", 1, decision="not_charged")
    flow.count_all()
    assert flow.told()[-1] == ("o-1", "released")
    assert [r.order_id for _, r in flow.open_requests] == ["o-2"]


def test_what_is_proven_not_to_have_been_sent_gives_its_place_back() -> None:
    """And asks for one at the next gateway."""
    flow = Flow(replace(ONE_ONLY, inquiry_max=40, resend_max=0))
    flow.buy(1)
    flow.count_all()
    flow.answer(TIMED_OUT)
    flow.run(lambda _: NOT_FOUND)
    assert flow.told() == [("o-1", "asks"), ("o-1", "released"), ("o-1", "asks")]
    flow.count_all()
    flow.answer(yes)
    assert states(flow.of(1))[-1] == ("south", "charged", 1)


def test_evidence_of_an_attempt_that_was_never_made_is_refused() -> None:
    """Nobody can answer what nobody was asked."""
    flow = Flow()
    flow.buy(1)
    request = PaymentRequest(
        merchant_id="shop", order_id="o-1", payment_id=flow.of(1).payment_id, operation_id="o-1",
        kind="charge", gateway="north", amount_minor=500, currency="GBP", instrument_token="tok_1",
        idempotency_key="k", attempt=1, try_number=1, send_within_ms=1_000, ordered_at_ms=NOW,
    )  # fmt: skip
    made = flow.result(flow.handle((NOW, request), yes))
    assert made.dead_letter == "contradictory_evidence"
    assert states(flow.of(1)) == [("north", "permit_waiting", 0)]


def test_a_forged_or_repeated_answer_has_no_effect() -> None:
    """Of another attempt, or once more."""
    flow = Flow()
    flow.buy(1)
    flow.count()
    (answer,) = [r for r in flow.read("risk-results", RiskResult) if r.permit]
    assert flow.risk_result(answer).note == "stale_risk_result"
    other = replace(answer, attempt_key="another", permit="refused")
    assert flow.risk_result(other).note == "stale_risk_result"
    assert len(flow.requests()) == 1


@pytest.mark.parametrize("answer", [None, yes, NO_FUNDS, LOST])
def test_an_ask_that_is_counted_after_the_end_takes_no_place(answer: Any) -> None:
    """A redriven ask, of an attempt that was never made or is over: the next order is not held up,
    and neither a decline nor a bar is counted twice or forgotten."""
    flow = Flow()
    if answer is None:
        unanswered(flow)
        flow.advance(16 * MINUTE_MS)
    else:
        flow.buy(1)
        flow.count()
        flow.answer(answer)
    flow.count_all()
    # An attempt that was never counted leaves no row.
    before = next(iter(flow.velocity.values()), None)
    (ask, *_) = flow.read(RISK_CHECKS, RiskCheck)
    flow.open_checks.append(ask)
    flow.count_all()
    (row,) = flow.velocity.values()
    assert (row.in_flight, row.waiting) == ((), ())
    if before is None:
        assert (row.declined, row.barred_by) == ((), "")
    else:
        assert row.declined == before.declined
        assert (row.barred_by, row.barred_until_ms) == (before.barred_by, before.barred_until_ms)


def test_what_got_no_permit_cannot_have_succeeded() -> None:
    """Nothing was sent, so a gateway that says so is believed no more than while it was awaited."""
    flow = Flow(ONE_ONLY)
    flow.declined(1)
    flow.buy(2)
    flow.count_all()
    refused = flow.of(2)
    assert states(refused) == [("north", "failed", 0)]
    made = flow.notify(
        GatewayNotification(
            merchant_id="shop", order_id="o-2", payment_id=refused.payment_id,
            notification_id="n", gateway="north", type="operation", amount_minor=500,
            currency="GBP", received_at_ms=NOW, operation_id="o-2", attempt=1, kind="charge",
            outcome="succeeded", gateway_reference="ch_x",
        )
    )  # fmt: skip
    assert made.dead_letter == "contradictory_evidence"
    assert (flow.of(2).captured_minor, flow.of(2).attempts) == (0, refused.attempts)
    assert flow.open_requests == []


@pytest.mark.parametrize("counted", [True, False])
def test_a_card_is_barred_no_longer_when_its_decline_was_a_success(counted: bool) -> None:
    """Late evidence: the money had moved, so the card was never declined for good, whether or not
    the attempt had asked for its permit."""
    flow = Flow(replace(POLICY, count_cards=counted))
    flow.buy(1)
    flow.count_all()
    flow.policy = replace(flow.policy, count_cards=True)
    flow.answer(LOST)
    flow.count_all()
    assert next(iter(flow.velocity.values())).barred_by == "lost_card"
    flow.result(flow.handle((flow.now_ms, flow.requests()[0]), yes))
    flow.answer(yes)
    flow.count_all()
    flow.buy(2)
    flow.count_all()
    flow.answer(yes)
    assert flow.of(2).status == "captured"


def test_a_refused_ask_that_is_counted_again_takes_no_place() -> None:
    """Its card may be tried again by then, but its attempt is over."""
    flow = Flow(ONE_ONLY)
    flow.declined(1)
    flow.buy(2)
    (ask,) = flow.open_checks
    flow.count_all()
    assert flow.of(2).status == "failed"
    flow.now_ms += 2 * DAY_MS
    flow.open_checks.append(ask)
    flow.count_all()
    flow.buy(3)
    flow.count_all()
    assert states(flow.of(3)) == [("north", "started", 1)]


def test_an_attempt_that_may_still_be_declined_keeps_its_place_when_it_is_asked_for_again() -> None:
    """To ask twice, or to be answered twice, gives nothing back while the outcome is unknown."""
    flow = Flow(ONE_ONLY)
    flow.buy(1)
    (ask,) = flow.open_checks
    flow.count()
    flow.answer(TIMED_OUT)
    flow.open_checks.append(ask)
    flow.count_all()
    flow.buy(2)
    flow.count_all()
    assert states(flow.of(2)) == [("north", "permit_waiting", 0)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(share_of(30)))
def test_no_mix_of_orders_ever_exceeds_the_cap_and_all_come_to_rest(seed: int) -> None:
    """Orders, retries, cancels and gateways' words in any order, checks counted out of order
    between cards: within a day no card is declined more often than its cap; nothing is stuck."""
    chance = random.Random(seed)
    flow = Flow()
    declines: dict[str, list[int]] = {}

    def gateway(request: PaymentRequest) -> GatewayAnswer:
        answer = chance.choice([yes(request), NO_FUNDS, OWN_TROUBLE, TIMED_OUT, NO_FUNDS])
        if request.kind == "inquire" and answer.outcome != "unknown":
            answer = yes(request)
        if answer.outcome == "declined" and request.kind == "charge":
            card = cards.get(request.instrument_token, "")
            declines.setdefault(card, []).append(flow.now_ms)
        return answer

    cards = {f"tok_{n}": f"fp_{n % 3}" for n in range(6)}
    for number in range(40):
        token = chance.choice(list(cards))
        flow.buy(number, instrument_token=token, card_fingerprint=cards[token])
        for _ in range(chance.randrange(6)):
            what = chance.random()
            if what < 0.5 and flow.open_checks:
                flow.count()
            elif what < 0.75 and flow.open_requests:
                flow.answer(gateway)
            elif what < 0.85:
                flow.ask("cancel", chance.randrange(number + 1), f"x{chance.random()}")
            elif what < 0.95:
                token = chance.choice(list(cards))
                flow.ask(
                    "retry", chance.randrange(number + 1), f"y{chance.random()}",
                    instrument_token=token, card_fingerprint=cards[token],
                )  # fmt: skip
            else:
                flow.advance(chance.choice([SECOND, MINUTE_MS, HOUR_MS]))
    for _ in range(400):
        flow.count_all()
        if flow.open_requests:
            flow.answer(gateway)
        elif flow.tiers:
            flow.advance(MINUTE_MS)
    for card, times in declines.items():
        for at in times:
            within = [each for each in times if at - DAY_MS < each <= at]
            assert len(within) <= TWO.declines_max, (card, seed)
    for number in range(40):
        assert not any(a.state == "permit_waiting" for a in flow.of(number).attempts)


def test_a_charge_that_got_no_permit_cannot_be_disputed() -> None:
    """It was never sent, so no bank can take anything back for it."""
    flow = Flow(ONE_ONLY)
    flow.declined(1)
    flow.buy(2)
    flow.count_all()
    payment = flow.of(2)
    assert states(payment) == [("north", "failed", 0)]
    notice = GatewayNotification(
        merchant_id="shop", order_id="o-2", payment_id=payment.payment_id, notification_id="n",
        gateway="north", type="dispute", amount_minor=500, currency="GBP", received_at_ms=NOW,
        dispute_id="d1", dispute_state="opened", fee_minor=1500,
    )  # fmt: skip
    assert flow.notify(notice).dead_letter == "dispute_of_nothing"
    assert flow.settlements() == []
    assert flow.of(2).disputes == ()


@pytest.mark.parametrize("answer", [LOST, NO_FUNDS], ids=["bars", "counts"])
def test_a_decline_that_is_heard_after_its_success_counts_nothing(answer: GatewayAnswer) -> None:
    """The counter could not read that it was declined; the charge succeeded all the same; then the
    letter is redriven."""
    flow = Flow()
    flow.buy(1)
    flow.count_all()
    flow.answer(answer)
    letter = flow.open_checks.pop()
    assert letter.outcome in ("declined", "never_again")
    flow.notify(
        GatewayNotification(
            merchant_id="shop", order_id="o-1", payment_id=flow.of(1).payment_id,
            notification_id="n1", gateway="north", type="operation", amount_minor=500,
            currency="GBP", received_at_ms=NOW, operation_id="o-1", attempt=1, kind="charge",
            outcome="succeeded", gateway_reference="ch_1",
        )
    )  # fmt: skip
    flow.count_all()
    for _ in range(2):
        flow.open_checks.append(letter)
        flow.count_all()
    (row,) = flow.velocity.values()
    assert (row.bars, row.declined, len(row.taken_back)) == ((), (), 1)
    flow.buy(2)
    flow.count_all()
    assert flow.requests()[-1].order_id == "o-2"

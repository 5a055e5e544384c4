"""What rules make of orders, told through records in and records out."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import Order, Payment, PaymentCommand, PaymentRequest, RiskResult
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.risk_rules import read_rules
from pipeline.processors.driver import FlowDriver
from producers.command_publisher import CardNumberInCommand, CommandPublisher
from producers.order_publisher import CardNumberInField, OrderPublisher
from tests.support.examples import share_of

NOW = 1_790_000_000_000
MINUTE = 60_000
SUCCEEDED = GatewayAnswer(outcome="succeeded", gateway_reference="ch_1", amount_minor=500)

RULES = """
[[rule]]
name = "large"
type = "amount"
action = "review"
currency = "GBP"
amount_minor_max = 1000

[[rule]]
name = "stolen"
type = "blocklist"
action = "reject"
field = "card_fingerprint"
values = ["fp_stolen"]
"""
VELOCITY = """
[[rule]]
name = "card_hour"
type = "velocity"
action = "reject"
by = "card"
window_s = 3600
count_max = 3

[[rule]]
name = "customer_hour"
type = "velocity"
action = "review"
by = "customer"
window_s = 3600
currency = "GBP"
sum_minor_max = 3000
"""


def order(number: int = 1, **more: Any) -> Order:
    fields: dict[str, Any] = {
        "merchant_id": "shop",
        "amount_minor": 500,
        "currency": "GBP",
        "instrument_token": "tok_1",
        "business_date": "2026-09-21",
        "submitted_at_ms": NOW,
        "card_fingerprint": "fp_1",
        "customer_id": "c-1",
    }
    return Order(order_id=f"o-{number}", **{**fields, **more})


def driver(rules: str) -> FlowDriver:
    policy = Policy(
        gateways=(GatewayProfile(name="simulator"),), risk=read_rules(rules, "rules.toml")
    )
    return FlowDriver(policy, now_ms=NOW)


def the(flow: FlowDriver, number: int = 1) -> Payment:
    payment = flow.payment("shop", f"o-{number}")
    assert payment is not None
    return payment


def story(flow: FlowDriver) -> list[tuple[str, str | None, str | None]]:
    return [(event.type, event.reason, event.detail) for event in flow.events()]


def review(decision: str, number: int = 1, **more: Any) -> PaymentCommand:
    return PaymentCommand(
        merchant_id="shop",
        order_id=f"o-{number}",
        command_id=f"cmd-{decision}",
        type="review",
        decision=decision,
        submitted_at_ms=NOW,
        reason="looked at",
        actor="ann",
        **more,
    )


def test_an_order_that_meets_no_rule_starts_as_without_rules() -> None:
    """Rules that only look at the order cost no record."""
    flow = driver(RULES)
    flow.order(order())
    assert [step[:2] for step in story(flow)] == [("payment_started", None)]
    assert not flow.open_checks
    flow.answer(SUCCEEDED)
    assert the(flow).status == "captured"


def test_a_rejection_is_named_by_its_rule_and_charges_nobody() -> None:
    """The reason is the rule's, the detail says what was seen."""
    flow = driver(RULES)
    flow.order(order(card_fingerprint="fp_stolen", amount_minor=5_000))
    ((kind, reason, detail),) = story(flow)
    assert (kind, reason) == ("rejected", "risk_stolen")
    assert detail == (
        "review by large: GBP 50.00 is over GBP 10.00; "
        "reject by stolen: its card_fingerprint is on the list"
    )
    assert the(flow).status == "rejected"
    assert not flow.requests()


def test_a_review_that_is_approved_charges_once() -> None:
    """Nobody is asked for money before a person says so."""
    flow = driver(RULES)
    flow.order(order(amount_minor=5_000))
    assert (the(flow).status, the(flow).reason) == ("risk_review", "risk_large")
    assert not flow.requests()
    flow.command(review("approve"))
    flow.command(review("approve"))
    flow.answer(replace(SUCCEEDED, amount_minor=5_000))
    assert the(flow).status == "captured"
    assert [kind for kind, _, _ in story(flow)] == ["risk_review", "payment_started", "captured"]
    assert len(flow.requests()) == 1


def test_a_charge_that_was_approved_late_is_tried_again() -> None:
    """An order held longer than the gateway knows a key: its key was new when it was approved."""
    forgetful = GatewayProfile(name="simulator", key_retention_ms=60 * MINUTE)
    rules = read_rules(RULES, "rules")
    flow = FlowDriver(Policy(gateways=(forgetful,), risk=rules), now_ms=NOW)
    flow.order(order(amount_minor=5000))
    flow.now_ms += 65 * MINUTE
    flow.command(review("approve"))
    flow.answer(GatewayAnswer(outcome="not_sent", code="connection_refused"))
    called = []

    def gateway(request: PaymentRequest) -> GatewayAnswer:
        called.append((request.kind, request.try_number))
        return replace(SUCCEEDED, amount_minor=5000)

    flow.run(gateway)
    assert called == [("charge", 2)]
    payment = flow.payment("shop", "o-1")
    assert payment is not None
    assert payment.status == "captured"


def test_a_review_that_is_denied_ends_as_a_rejection() -> None:
    """The denial is the reason, and the payment can never be charged."""
    flow = driver(RULES)
    flow.order(order(amount_minor=5_000))
    flow.command(review("deny"))
    assert (the(flow).status, the(flow).reason) == ("rejected", "risk_review_denied")
    flow.command(replace(review("approve"), command_id="too-late"))
    assert the(flow).status == "rejected"
    assert not flow.requests()


def test_a_review_ends_with_pay_before() -> None:
    """What nobody looked at in time expires by itself."""
    flow = driver(RULES)
    flow.order(order(amount_minor=5_000, pay_before_ms=NOW + 5 * MINUTE))
    flow.advance(5 * MINUTE + MINUTE)
    assert the(flow).status == "expired"
    flow.command(review("approve"))
    assert not flow.requests()


def test_the_limit_is_exact_whatever_the_order_of_checks() -> None:
    """Of ten orders of one card three are charged; the others name the rule."""
    chance = random.Random(5)
    flow = driver(VELOCITY)
    for number in range(10):
        flow.order(order(number, customer_id=None))
    assert not flow.requests()
    while flow.open_checks:
        flow.now_ms += 10
        flow.count(chance.randrange(len(flow.open_checks)))
    statuses = [the(flow, number).status for number in range(10)]
    assert (statuses.count("processing"), statuses.count("rejected")) == (3, 7)
    rejected = [e for e in flow.events() if e.type == "rejected"]
    assert {e.reason for e in rejected} == {"risk_card_hour"}
    assert sorted(e.detail or "" for e in rejected)[0] == (
        "reject by card_hour: 10 orders of this card within 1 h, over 3"
    )
    assert len(flow.requests()) == 3


def test_blanks_around_a_card_do_not_get_it_past_its_limit() -> None:
    """A fingerprint is counted, and looked up in lists, without the blanks around it."""
    flow = driver(VELOCITY)
    for number, card in enumerate(["fp_1", " fp_1", "fp_1 ", "fp_1\t"]):
        flow.order(order(number, card_fingerprint=card))
        flow.count_all()
    assert [the(flow, n).status for n in range(4)] == ["processing"] * 3 + ["rejected"]
    flow = driver(RULES.replace('"fp_stolen"', '" fp_stolen"'))
    flow.order(order(card_fingerprint="fp_stolen "))
    assert the(flow).reason == "risk_stolen"


def test_an_order_waits_for_all_its_counts() -> None:
    """One answer of two decides nothing; a repeated answer and a repeated order count nothing."""
    flow = driver(VELOCITY)
    flow.order(order())
    assert the(flow).risk_awaited == ("card", "customer")
    assert flow.order(order()).note == "duplicate_order"
    flow.count()
    assert (the(flow).status, the(flow).risk_awaited) == ("processing", ("customer",))
    assert not flow.requests()
    flow.count()
    assert [kind for kind, _, _ in story(flow)] == [
        "risk_checking",
        "risk_counted",
        "payment_started",
    ]
    assert the(flow).risk_counted == ()
    assert len(flow.requests()) == 1


def test_an_answer_that_comes_again_changes_nothing() -> None:
    """Neither before nor after the decision is an answer taken twice."""
    flow = driver(VELOCITY)
    flow.order(order())
    flow.count()
    (first,) = flow.read("risk-results", RiskResult)
    assert flow.risk_result(first).note == "stale_risk_result"
    flow.count()
    assert flow.risk_result(first).note == "stale_risk_result"
    assert len(flow.requests()) == 1
    forged = replace(first, order_id="o-2")
    assert flow.risk_result(forged).dead_letter == "unknown_payment"


def test_a_missing_identity_is_never_counted_as_one() -> None:
    """Orders without card and customer ask for no count, however many there are."""
    flow = driver(VELOCITY)
    for number in range(10):
        flow.order(order(number, customer_id=None, card_fingerprint=" "))
    assert not flow.open_checks
    assert len(flow.requests()) == 10


def test_a_sum_sends_the_order_that_goes_over_it_to_review() -> None:
    """Six orders of GBP 5.00 are GBP 30.00; the seventh is looked at."""
    flow = driver(VELOCITY)
    for number in range(7):
        flow.order(order(number, card_fingerprint=f"fp_{number}"))
        while flow.open_checks:
            flow.count()
    assert [the(flow, n).status for n in range(7)] == ["processing"] * 6 + ["risk_review"]
    assert the(flow, 6).reason == "risk_customer_hour"


def test_a_shadow_rule_is_told_and_charges_all_the_same() -> None:
    """What it would have done stands in the history, and nobody waits for its count."""
    flow = driver(VELOCITY.replace('action = "reject"', 'action = "reject"\nshadow = true'))
    for number in range(5):
        flow.order(order(number, customer_id=None))
        assert len(flow.requests()) == number + 1
    notes = [flow.count().note for _ in range(5)]
    assert notes == ["counted_in_shadow"] * 3 + [None, None]
    told = [e.detail for e in flow.events() if e.type == "risk_counted"]
    assert told == [
        f"in shadow, reject by card_hour: {n} orders of this card within 1 h, over 3"
        for n in (4, 5)
    ]
    assert {the(flow, number).status for number in range(5)} == {"processing"}
    flow.command(replace(review("x", 4), type="cancel", decision=None))
    assert the(flow, 4).cancel_requested_by == "cmd-x", "commands do not wait for a shadow"


def test_a_shadow_beside_an_acting_rule_is_told_with_its_decision() -> None:
    """Both count the same card: one check, one answer, one event with both reasons."""
    shadow = VELOCITY.split("[[rule]]")[1].replace("card_hour", "card_one")
    shadow = shadow.replace("count_max = 3", "count_max = 1").replace(
        'action = "reject"', 'action = "reject"\nshadow = true'
    )
    flow = driver(VELOCITY + "[[rule]]" + shadow)
    for number in range(2):
        flow.order(order(number, customer_id=None))
        assert len(flow.requests()) == number
        flow.count()
    assert flow.events()[-1].type == "payment_started"
    assert flow.events()[-1].detail == (
        "simulator: the only gateway there is; "
        "in shadow, reject by card_one: 2 orders of this card within 1 h, over 1"
    )
    assert not flow.open_checks


def test_counts_that_do_not_come_are_a_persons_business() -> None:
    """After a quarter of an hour the order is in review, and late counts change nothing."""
    flow = driver(VELOCITY)
    flow.order(order())
    flow.count()
    flow.advance(20 * MINUTE)
    assert (the(flow).status, the(flow).reason) == ("risk_review", "risk_counts_missing")
    assert flow.events()[-1].detail == "no count by customer"
    assert flow.count().note == "stale_risk_result"
    flow.command(review("approve"))
    assert len(flow.requests()) == 1


def test_a_count_that_rejects_is_enough() -> None:
    """An order that its card's count rejects is not held for its customer's, which never comes."""
    flow = driver(VELOCITY)
    for number in range(4):
        flow.order(order(number, customer_id=f"c-{number}"))
        flow.count(next(at for at, c in enumerate(flow.open_checks) if c.by == "card"))
    flow.advance(20 * MINUTE)
    assert [the(flow, n).status for n in range(4)] == ["risk_review"] * 3 + ["rejected"]
    assert the(flow, 3).reason == "risk_card_hour"


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_counts_never_outlast_pay_before(late: bool) -> None:
    """An order whose time is over is not charged, whether the counts came late or not at all."""
    flow = driver(VELOCITY)
    flow.order(order(customer_id=None, pay_before_ms=NOW + MINUTE))
    if late:
        flow.now_ms += 2 * MINUTE
        flow.count()
    else:
        flow.advance(3 * MINUTE)
    assert (the(flow).status, the(flow).reason) == ("expired", "pay_before_must_be_in_the_future")
    assert not flow.requests()


def test_an_order_is_cancelled_while_it_is_counted() -> None:
    """A cancel does not wait for counts; what waits behind it does."""
    flow = driver(VELOCITY)
    flow.order(order())
    flow.command(replace(review("approve"), command_id="early"))
    assert flow.events()[-1].type == "command_waiting"
    cancel = PaymentCommand(
        merchant_id="shop", order_id="o-1", command_id="c", type="cancel", submitted_at_ms=NOW
    )
    flow.command(cancel)
    assert the(flow).status == "cancelled"
    assert flow.count().note == "stale_risk_result"
    flow.advance(30 * MINUTE)
    assert the(flow).status == "cancelled"
    assert not flow.requests()
    assert not the(flow).commands


def test_a_publisher_lets_no_card_number_out() -> None:
    """The error names the field, holds no number, and nothing was sent."""
    publisher = OrderPublisher("127.0.0.1:1", config={"log_level": 0})
    with pytest.raises(CardNumberInField, match="instrument_token") as refused:
        publisher.publish(order(instrument_token="4111111111111111"))
    assert refused.value.fields == ("instrument_token",)
    assert "1111" not in str(refused.value)
    publisher.flush(0)


def test_a_publisher_of_commands_lets_no_card_number_out() -> None:
    """Neither as the new instrument nor in what a person writes; a gateway's ids go through."""
    publisher = CommandPublisher("127.0.0.1:1", config={"log_level": 0})
    card = "card 4111111111111111"
    asked = PaymentCommand(
        merchant_id="shop", order_id="1", command_id="c1", type="retry", submitted_at_ms=NOW,
        instrument_token=card, reason=f"said {card}", gateway_reference="re_0a4ababc_00000003",
    )  # fmt: skip
    with pytest.raises(CardNumberInCommand) as refused:
        publisher.publish(asked)
    assert refused.value.fields == ("instrument_token", "reason")
    assert "1111" not in str(refused.value)
    publisher.flush(0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(share_of(30)))
def test_whatever_comes_in_between_the_limit_holds_and_nothing_is_stuck(seed: int) -> None:
    """Counts in any order, some never; repeats, cancels, reviews and time: at most three orders of
    the card are charged but for those that a person approved, and every order comes to rest."""
    chance = random.Random(seed)
    flow = driver(VELOCITY)
    numbers = list(range(12))
    approved: set[int] = set()
    todo = [order(n, pay_before_ms=NOW + 40 * MINUTE if n % 4 == 0 else None) for n in numbers]
    lost = 0
    for _ in range(200):
        what = chance.random()
        if what < 0.3 and todo:
            flow.order(todo.pop() if chance.random() < 0.9 else todo[-1])
        elif what < 0.6 and flow.open_checks:
            at = chance.randrange(len(flow.open_checks))
            if chance.random() < 0.05:
                flow.open_checks.pop(at)
                lost += 1
            else:
                flow.count(at)
        elif what < 0.7:
            number = chance.choice(numbers)
            verdict = chance.choice(["approve", "deny"])
            there = flow.payment("shop", f"o-{number}")
            if there is not None and there.status == "risk_review" and verdict == "approve":
                approved.add(number)
            command = review(verdict, number)
            if there is not None:
                flow.command(replace(command, command_id=f"c{chance.random()}"))
        elif what < 0.75 and flow.payment("shop", f"o-{(number := chance.choice(numbers))}"):
            cancel = replace(review("x", number), type="cancel", decision=None)
            flow.command(replace(cancel, command_id=f"c{chance.random()}"))
        else:
            flow.advance(chance.randrange(30_000))
    for each in todo:
        flow.order(each)
    while flow.open_checks:
        flow.count()
    flow.advance(60 * MINUTE)
    charged = {request.order_id for request in flow.requests()}
    assert len(flow.requests()) == len(charged), "one charge for each order"
    for number in numbers:
        payment = the(flow, number)
        assert not payment.risk_awaited
        assert payment.status in ("processing", "rejected", "risk_review", "cancelled", "expired")
        if payment.status in ("rejected", "risk_review", "expired"):
            assert f"o-{number}" not in charged
        assert (payment.status == "processing") <= (f"o-{number}" in charged)
    unapproved = charged - {f"o-{number}" for number in approved}
    assert len(unapproved) <= 3, (lost, unapproved)


def test_a_check_that_was_dead_lettered_is_told_and_waited_for_no_longer() -> None:
    """Its counts never come: a person decides at once, and the other count is not waited for."""
    flow = driver(VELOCITY)
    flow.order(order())
    asked = flow.open_checks[0]
    word = RiskResult(
        merchant_id="shop",
        order_id="o-1",
        payment_id=asked.payment_id,
        by=asked.by,
        counted_at_ms=NOW,
        cause="killed_the_process",
        letter="risk-checks[1]@5",
    )
    flow.risk_result(word)
    payment = the(flow)
    assert (payment.status, payment.reason) == ("risk_review", "risk_counts_missing")
    assert [event.type for event in flow.events()][-2:] == ["input_dead_lettered", "risk_review"]
    assert payment.letters == ("risk risk-checks[1]@5 killed_the_process",)
    assert flow.count(1).note == "stale_risk_result"
    assert flow.risk_result(word).note == "stale_letter"
    assert flow.risk_result(replace(word, order_id="o-9")).note == "letter_of_no_payment"


def test_a_check_that_only_a_shadow_asked_for_is_told_when_it_was_dead_lettered() -> None:
    """No order waits for a shadow, so nothing else follows."""
    flow = driver(VELOCITY.replace("count_max = 3", "count_max = 3\nshadow = true"))
    flow.order(order(customer_id=None))
    asked = flow.open_checks[0]
    status = the(flow).status
    flow.risk_result(
        RiskResult(
            merchant_id="shop", order_id="o-1", payment_id=asked.payment_id, by=asked.by,
            counted_at_ms=NOW, cause="misrouted", letter="risk-checks[1]@5",
        )
    )  # fmt: skip
    assert (the(flow).status, the(flow).dead_letters) == (status, 1)

"""A retry with another instrument meets the risk rules, told through records in and records out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.attempt_caps import AttemptCap
from pipeline.domain.model import AuditEntry, PaymentCommand, RiskResult
from pipeline.processors.driver import FlowDriver
from tests.unit.test_risk_stories import MINUTE, NOW, VELOCITY, driver, order, story, the

DECLINED = GatewayAnswer(outcome="declined", code="insufficient_funds")
SUCCEEDED = GatewayAnswer(outcome="succeeded", gateway_reference="ch_2", amount_minor=500)

RULES = """
[[rule]]
name = "stolen"
type = "blocklist"
action = "reject"
field = "card_fingerprint"
values = ["fp_stolen"]

[[rule]]
name = "token"
type = "blocklist"
action = "reject"
field = "instrument_token"
values = ["tok_bad"]
"""
LATER = {
    "amount": "type = 'amount'\ncurrency = 'GBP'\namount_minor_max = 100",
    "currency": "type = 'currency'\ndenied = ['GBP']",
    "country": "type = 'country'\ndenied = ['KP']",
    "customer": "type = 'blocklist'\nfield = 'customer_id'\nvalues = ['c-1']",
}


def rule(name: str, action: str) -> str:
    return f"[[rule]]\nname = '{name}'\naction = '{action}'\n{LATER[name]}\n"


def failed(rules: str, then: str = "", **more: Any) -> FlowDriver:
    """An order that was declined under some rules, which others may follow."""
    flow = driver(rules)
    flow.order(order(**more))
    while flow.open_checks:
        flow.count()
    flow.answer(DECLINED)
    assert the(flow).status == "failed"
    if then:
        flow.policy = replace(flow.policy, risk=driver(then).policy.risk)
    return flow


def retry(command_id: str = "r1", token: str = "tok_2", **more: Any) -> PaymentCommand:
    return PaymentCommand(
        merchant_id="shop",
        order_id="o-1",
        command_id=command_id,
        type="retry",
        submitted_at_ms=NOW,
        instrument_token=token,
        **more,
    )


def command(type_: str, command_id: str = "c1", **more: Any) -> PaymentCommand:
    made = replace(retry(command_id), type=type_, instrument_token=None, actor="ann")
    return replace(made, **more)


def rejection(flow: FlowDriver) -> tuple[str | None, str | None]:
    """Which command was rejected last, and by which rule."""
    event = [e for e in flow.events() if e.type == "command_rejected"][-1]
    return event.operation_id, event.reason


def test_a_retry_that_meets_no_rule_is_charged() -> None:
    """The order's own card says nothing about another one."""
    flow = failed(RULES)
    flow.command(retry(card_fingerprint="fp_2"))
    flow.answer(SUCCEEDED)
    assert the(flow).status == "captured"
    assert not flow.open_checks


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"card_fingerprint": "fp_stolen"}, "risk_stolen"),
        ({"token": "tok_bad"}, "risk_token"),
    ],
)
def test_a_blocked_instrument_is_refused_by_the_rules_name(more: Any, reason: str) -> None:
    """Nobody is asked for money, the payment is failed as before, and another one may be tried."""
    flow = failed(RULES)
    flow.command(retry(**more))
    assert rejection(flow) == ("r1", reason)
    assert (the(flow).status, len(flow.requests())) == ("failed", 1)
    flow.command(retry("r2", "tok_3"))
    assert (the(flow).status, len(flow.requests())) == ("processing", 2)


@pytest.mark.parametrize("name", LATER)
def test_every_rule_about_the_order_looks_at_its_retry_as_well(name: str) -> None:
    """Rules that came since the order was allowed: amount, currency, country, customer."""
    flow = failed(RULES, rule(name, "reject"), country="KP")
    flow.command(retry())
    assert rejection(flow) == ("r1", f"risk_{name}")
    assert flow.events()[-1].detail is not None
    assert len(flow.requests()) == 1


def test_a_persons_word_about_a_retry_is_audited() -> None:
    """Who let the other card be charged, or did not, as with an order."""
    for decision in ("approve", "deny"):
        flow = failed(RULES, rule("amount", "review"))
        flow.command(retry())
        made = flow.command(command("review", decision=decision, reason="looked at"))
        (entry,) = [sent for sent in made.sends if isinstance(sent, AuditEntry)]
        assert (entry.action, entry.actor) == (f"review_{decision}", "ann")


@pytest.mark.parametrize("decision", ["approve", "deny"])
def test_a_retry_may_wait_for_a_person(decision: str) -> None:
    """Held like an order; approved it is charged under its own id, denied the payment has failed as
    before and the retry is answered."""
    flow = failed(RULES, rule("amount", "review"))
    flow.command(retry(actor="bob"))
    payment = the(flow)
    assert (payment.status, payment.reason) == ("risk_review", "risk_amount")
    assert [each.command_id for each in payment.commands] == ["r1"]
    assert len(flow.requests()) == 1
    flow.command(command("review", decision=decision, reason="looked at"))
    if decision == "deny":
        assert (the(flow).status, the(flow).reason) == ("failed", "risk_review_denied")
        assert rejection(flow) == ("r1", "risk_review_denied")
        flow.command(retry("r2", "tok_3"))
        assert the(flow).status == "risk_review"
        return
    assert flow.requests()[-1].operation_id == "r1"
    assert flow.requests()[-1].instrument_token == "tok_2"
    assert (flow.events()[-1].type, flow.events()[-1].actor) == ("payment_retried", "ann")
    flow.answer(SUCCEEDED)
    assert (the(flow).status, the(flow).assessed_retry) == ("captured", None)


def test_a_retry_in_review_is_cancelled() -> None:
    """The payment had failed: what ends is the retry. What waited behind it is judged."""
    flow = failed(RULES, rule("amount", "review"))
    flow.command(retry())
    flow.command(command("refund", "c0"))
    flow.command(command("cancel"))
    assert the(flow).status == "failed"
    assert [e.reason for e in flow.events()[-2:]] == [
        "cancel_requested",
        "payment_must_be_captured",
    ]
    assert the(flow).commands == ()


def test_a_retry_in_review_ends_with_the_orders_deadline() -> None:
    """What nobody looked at in time is refused, and the payment stays failed; so it does after the
    longest that a review may take, whether the timer or a late word comes first."""
    for more, minutes in (({"pay_before_ms": NOW + 5 * MINUTE}, 7), ({}, 8 * 24 * 60)):
        flow = failed(RULES, rule("amount", "review"), **more)
        flow.command(retry())
        flow.advance(minutes * MINUTE)
        assert the(flow).status == "failed"
        assert rejection(flow) == ("r1", "review_must_be_in_time")
    late = failed(RULES, rule("amount", "review"))
    late.command(retry())
    late.now_ms += 7 * 24 * 60 * MINUTE
    late.command(command("review", decision="approve"))
    assert (the(late).status, len(late.requests())) == ("failed", 1)
    assert rejection(late) == ("c1", "review_must_be_in_time")


def test_an_approval_does_not_go_beyond_the_cap() -> None:
    """The networks' cap counts when the retry is made, not when it was asked for."""
    flow = failed(RULES, rule("amount", "review"))
    flow.command(retry())
    cap = AttemptCap(name="one", declines_max=1, window_ms=MINUTE)
    flow.policy = replace(flow.policy, attempt_caps=(cap,))
    flow.command(command("review", decision="approve"))
    assert the(flow).status == "failed"
    capped = "attempts_must_not_exceed_the_cap"
    told = [(e.operation_id, e.reason) for e in flow.events() if e.type == "command_rejected"]
    assert told == [("r1", capped), ("c1", capped)]
    assert len(flow.requests()) == 1
    (entry,) = flow.audit_entries()
    said = json.loads(entry.detail)
    assert (entry.action, said["outcome"], said["rule"]) == ("review_approve", "refused", capped)


def test_a_retry_counts_as_one_order_more() -> None:
    """Trying cards on one order is card testing as well: the fourth use of a card is refused,
    whatever order it is for."""
    flow = failed(VELOCITY, customer_id=None)
    for number in range(2, 5):
        flow.order(order(number, customer_id=None, card_fingerprint="fp_2"))
        flow.count()
    flow.command(retry(card_fingerprint="fp_2"))
    waiting = the(flow)
    assert (waiting.status, waiting.assessed_retry) == ("failed", "r1")
    assert flow.events()[-1].type == "command_waiting"
    flow.command(command("refund", "c9"))
    assert [each.command_id for each in the(flow).commands] == ["r1", "c9"]
    flow.count()
    assert the(flow).status == "failed"
    (retried,) = [
        e for e in flow.events() if e.operation_id == "r1" and e.reason == "risk_card_hour"
    ]
    assert retried.detail == "reject by card_hour: 4 orders of this card within 1 h, over 3"
    assert rejection(flow) == ("c9", "payment_must_be_captured")
    assert the(flow).commands == ()


def test_a_retry_that_is_counted_and_allowed_is_charged() -> None:
    """Once, under its own id; its timer and a repeated answer change nothing."""
    flow = failed(VELOCITY)
    flow.command(retry(card_fingerprint="fp_2"))
    assert [check.by for check in flow.open_checks] == ["card", "customer"]
    assert {check.operation_id for check in flow.open_checks} == {"r1"}
    flow.count()
    assert the(flow).risk_awaited == ("customer",)
    flow.count()
    assert flow.requests()[-1].operation_id == "r1"
    for answer in flow.read("risk-results", RiskResult):
        assert flow.risk_result(answer).note == "stale_risk_result"
    assert len(flow.requests()) == 2
    flow.answer(SUCCEEDED)
    flow.advance(30 * MINUTE)
    assert the(flow).status == "captured"


def test_an_orders_late_count_does_not_decide_its_retry() -> None:
    """Answers name what asked for them."""
    flow = failed(VELOCITY)
    late = flow.read("risk-results", RiskResult)[0]
    flow.command(retry(card_fingerprint="fp_2"))
    assert flow.risk_result(late).note == "stale_risk_result"
    assert the(flow).risk_awaited == ("card", "customer")


def test_counts_of_a_retry_that_do_not_come_are_a_persons_business() -> None:
    """As with an order; approved, it is charged."""
    flow = failed(VELOCITY)
    flow.command(retry(card_fingerprint="fp_2"))
    flow.advance(20 * MINUTE)
    assert (the(flow).status, the(flow).reason) == ("risk_review", "risk_counts_missing")
    flow.command(command("review", decision="approve"))
    assert flow.requests()[-1].operation_id == "r1"


def test_counts_of_a_retry_never_outlast_pay_before() -> None:
    """Its time is over: refused by name, and the payment has failed as before."""
    flow = failed(VELOCITY, pay_before_ms=NOW + 5 * MINUTE)
    flow.command(retry(card_fingerprint="fp_2"))
    flow.advance(8 * MINUTE)
    assert the(flow).status == "failed"
    assert rejection(flow) == ("r1", "pay_before_must_be_in_the_future")


def test_a_retrys_check_that_was_dead_lettered_is_a_persons_business() -> None:
    """Its counts never come."""
    flow = failed(VELOCITY)
    flow.command(retry(card_fingerprint="fp_2"))
    word = RiskResult(
        merchant_id="shop", order_id="o-1", payment_id=the(flow).payment_id, by="card",
        counted_at_ms=NOW, cause="misrouted", letter="risk-checks[0]@1", operation_id="r1",
    )  # fmt: skip
    flow.risk_result(word)
    assert (the(flow).status, the(flow).reason) == ("risk_review", "risk_counts_missing")


def test_a_retry_without_a_fingerprint_meets_no_rule_about_cards() -> None:
    """A missing identity is nobody; its customer is counted all the same."""
    flow = failed(VELOCITY)
    flow.command(retry())
    assert [check.by for check in flow.open_checks] == ["customer"]


def test_a_shadow_rule_is_told_of_a_retry_and_holds_up_nobody() -> None:
    """What it would have done stands in the history."""
    flow = failed(VELOCITY.replace('action = "reject"', 'action = "reject"\nshadow = true'),
                  customer_id=None)  # fmt: skip
    for number in range(2, 5):
        flow.order(order(number, customer_id=None, card_fingerprint="fp_2"))
        flow.count()
    flow.command(retry(card_fingerprint="fp_2"))
    assert flow.requests()[-1].operation_id == "r1"
    flow.count()
    assert story(flow)[-1] == (
        "risk_counted", None,
        "in shadow, reject by card_hour: 4 orders of this card within 1 h, over 3",
    )  # fmt: skip


def test_a_fingerprint_is_not_a_card_number() -> None:
    """It is refused at the door, like a token that is one, and nothing of it is kept."""
    flow = failed(RULES)
    made = flow.command(retry(card_fingerprint="4111111111111111"))
    assert made.dead_letter == "card_number_in_field"
    assert the(flow).command_ids == ()

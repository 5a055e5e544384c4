"""What routing and protection mean for a payment: its history says why, and no overload ends it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.routes import Health
from pipeline.processors.driver import FlowDriver
from tests.unit.test_processors_stories import (
    NOT_FOUND,
    POLICY,
    SUCCEEDED,
    TIMED_OUT,
    TWO_GATEWAYS,
    started,
    story,
    the_payment,
    wait,
)

THROTTLED = GatewayAnswer(outcome="not_sent", code="throttled")


def held_back(flow: FlowDriver, times: int, answer: GatewayAnswer = THROTTLED) -> None:
    for _ in range(times):
        flow.answer(answer)
        wait(flow)


def next_question(flow: FlowDriver) -> None:
    """Until the gateway is asked what became of the charge."""
    while flow.tiers:
        wait(flow)
    assert flow.requests()[-1].kind == "inquire"


def test_a_payment_s_history_says_why_each_gateway() -> None:
    """In the attempt, and in the detail of the event that started it."""
    flow = started(TWO_GATEWAYS)
    why = "simulator: priority 100 comes before second"
    assert the_payment(flow).attempts[0].routed_because == why
    assert [e.detail for e in flow.events()] == [why]


@pytest.mark.parametrize("code", ["breaker_open", "throttled", "rate_limited"])
def test_calls_that_were_not_made_are_no_retries(code: str) -> None:
    """Far more of them than retries are allowed leave the payment where it is, and it is charged
    in the end."""
    flow = started()
    held_back(flow, 20, GatewayAnswer(outcome="not_sent", code=code))
    assert the_payment(flow).attempts[0].retries == 0
    flow.answer(SUCCEEDED)
    assert story(flow)[-1] == "captured"


def test_a_payment_held_back_too_often_goes_elsewhere_with_proof() -> None:
    """After overload_max waits the first gateway is asked, once nobody can send there any more;
    only its "not found" lets the other one have the payment."""
    flow = started(TWO_GATEWAYS)
    held_back(flow, TWO_GATEWAYS.overload_max + 1)
    next_question(flow)
    assert {r.gateway for r in flow.requests()} == {"simulator"}
    flow.answer(NOT_FOUND)
    payment = the_payment(flow)
    assert [a.gateway for a in payment.attempts] == ["simulator", "second"]
    assert payment.reason == "gateway_overloaded"
    assert flow.events()[-1].type == "failover_started"
    assert flow.events()[-1].detail == (
        "second: the only one left to choose from; tried before: simulator"
    )
    flow.answer(replace(SUCCEEDED, gateway_reference="ch_2"))
    assert the_payment(flow).status == "captured"


def test_a_payment_at_a_gateway_in_trouble_is_there_when_it_comes_back() -> None:
    """Without proof nothing moves, and a gateway that does not answer can prove nothing: the
    payment goes on trying instead of waiting for the end of its window."""
    flow = started(TWO_GATEWAYS)
    held_back(flow, 20, GatewayAnswer(outcome="not_sent", code="breaker_open"))
    assert {(r.gateway, r.kind) for r in flow.requests()} == {("simulator", "charge")}
    assert len(flow.requests()) == 21
    flow.answer(SUCCEEDED)
    assert story(flow)[-1] == "captured"


def test_overload_fails_nobody_when_the_first_gateway_cannot_even_be_asked() -> None:
    """No answer is no proof: the payment goes on asking instead of failing or moving."""
    flow = started(TWO_GATEWAYS)
    held_back(flow, TWO_GATEWAYS.overload_max + 1)
    for _ in range(2 * TWO_GATEWAYS.proof_inquiry_max):
        next_question(flow)
        flow.answer(TIMED_OUT)
    payment = the_payment(flow)
    assert payment.status == "processing"
    assert len(payment.attempts) == 1


def test_where_the_others_are_down_an_overloaded_gateway_keeps_its_payments() -> None:
    """It is better to wait at a gateway that is full than to go to one that is away."""
    flow = started(replace(TWO_GATEWAYS, health=Health(down=frozenset({"second"}))))
    held_back(flow, 20)
    assert {r.kind for r in flow.requests()} == {"charge"}


def test_questions_that_were_not_asked_are_not_counted() -> None:
    """An outage longer than all questions together leaves the payment asking, not with a person."""
    flow = started()
    flow.answer(TIMED_OUT)
    gated = GatewayAnswer(outcome="unknown", code="breaker_open")
    for _ in range(3 * POLICY.inquiry_max):
        wait(flow)
        flow.answer(gated)
    assert the_payment(flow).attempts[0].inquiries == 0
    assert the_payment(flow).attempts[0].state == "inquiry_waiting"
    wait(flow)
    flow.answer(SUCCEEDED)
    assert the_payment(flow).status == "captured"

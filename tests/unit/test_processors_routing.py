"""What routing and protection mean for a payment: its history says why, and no overload ends it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import AttemptCap
from pipeline.domain.policy import DAY_MS, HOUR_MS, Policy
from pipeline.domain.routes import Health
from pipeline.processors.driver import FlowDriver
from pipeline.processors.settlement import process_result
from tests.support.payment_story import ACTION, MANUAL, NOT_SENT, Story, command, yes
from tests.unit.test_processors_stories import (
    NOT_FOUND,
    NOW,
    ORDER,
    POLICY,
    SECOND,
    SUCCEEDED,
    TIMED_OUT,
    TWO_GATEWAYS,
    result_for,
    started,
    story,
    the_payment,
    wait,
)

THROTTLED = GatewayAnswer(outcome="not_sent", code="throttled")
OWN_TROUBLE = GatewayAnswer(outcome="declined", code="processing_error")
ELSEWHERE = replace(SUCCEEDED, gateway_reference="ch_2")


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


def test_a_retry_after_and_then_silence_fail_nobody() -> None:
    """The question's own code takes the place of the Retry-After's, and is no reason to give up."""
    flow = started(TWO_GATEWAYS)
    limited = GatewayAnswer(outcome="not_sent", code="rate_limited", retry_after_ms=80 * SECOND)
    held_back(flow, 1, limited)
    flow.answer(limited)
    for _ in range(2 * TWO_GATEWAYS.proof_inquiry_max):
        next_question(flow)
        flow.answer(TIMED_OUT)
    assert the_payment(flow).status == "processing"
    next_question(flow)
    flow.answer(SUCCEEDED)
    assert the_payment(flow).status == "captured"


def test_what_was_lost_is_sent_again_where_questions_were_forbidden_before() -> None:
    """They held no charge back: it need not wait for the proof that another gateway would need."""
    flow = started(replace(TWO_GATEWAYS, send_within_ms=HOUR_MS))
    flow.answer(TIMED_OUT)
    for _ in range(2 * TWO_GATEWAYS.overload_max):
        wait(flow)
        flow.answer(GatewayAnswer(outcome="unknown", code="breaker_open"))
    wait(flow)
    flow.answer(NOT_FOUND)
    assert flow.requests()[-1].kind == "charge"
    assert flow.requests()[-1].gateway == "simulator"


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


@pytest.mark.parametrize(
    ("possibly_sent", "ended"), [(False, "cancelled"), (True, "outcome_unknown")]
)
def test_silence_ends_no_cancelled_charge_that_a_worker_may_have_sent(
    possibly_sent: bool, ended: str
) -> None:
    """It was called, its worker died, and the next one held the request back: only the gateway, or
    a person, can say that nothing was taken."""
    flow = started()
    (_, request), flow.open_requests = flow.open_requests[0], []
    held = result_for(
        request, outcome="not_sent", code="breaker_open", gateway_reference=None, amount_minor=0,
        earlier_reads=int(possibly_sent),
    )  # fmt: skip
    flow.result(held)
    flow.command(command("resolve", "p1", decision="charged", gateway_reference="ch_1"))
    assert flow.events()[-1].reason == "outcome_must_be_unknown", "it goes on by itself"
    flow.command(command("cancel"))
    flow.run(lambda _: TIMED_OUT)
    assert the_payment(flow).status == ended
    assert (story(flow)[-1] == "inquiry_exhausted") == possibly_sent


def attempts(flow: FlowDriver) -> list[tuple[str, int, str, str | None]]:
    return [(a.gateway, a.attempt, a.state, a.code) for a in the_payment(flow).attempts]


@pytest.mark.parametrize("kind", ["charge", "authorize"])
@pytest.mark.parametrize("asked", ["at once", "by an inquiry", "by a notice"])
def test_what_a_gateway_declines_for_its_own_reasons_goes_to_the_next_one(
    kind: str, asked: str
) -> None:
    """A decline proves that nothing moved, so nothing is waited for; its code is in the history,
    and the money that the other one takes is booked once."""
    order = replace(ORDER, capture_method="manual" if kind == "authorize" else "automatic")
    told = Story(order, TWO_GATEWAYS)
    flow = told.flow
    if asked == "at once":
        flow.answer(OWN_TROUBLE)
    else:
        flow.answer(TIMED_OUT)
        if asked == "by an inquiry":
            wait(flow)
            flow.answer(OWN_TROUBLE)
        else:
            told.notify("declined", code="processing_error")
    assert (told.status, told.payment.reason) == ("processing", "processing_error")
    event = flow.events()[-1]
    assert (event.type, event.gateway, event.reason) == (
        "failover_started",
        "second",
        "processing_error",
    )
    assert event.detail == "second: the only one left to choose from; tried before: simulator"
    first, second = flow.requests()[0], flow.requests()[-1]
    assert second.kind == first.kind == kind
    assert second.idempotency_key != first.idempotency_key
    flow.answer(ELSEWHERE)
    done = "charged" if kind == "charge" else "authorized"
    assert attempts(flow) == [
        ("simulator", 1, "declined", "processing_error"),
        ("second", 2, done, None),
    ]
    assert told.events[-1] == ("captured" if kind == "charge" else "authorized")
    assert told.settled == ([("capture", 500)] if kind == "charge" else [])


def test_the_last_gateway_s_decline_is_the_payment_s() -> None:
    """Each gateway is tried once."""
    flow = started(TWO_GATEWAYS)
    flow.answer(OWN_TROUBLE)
    flow.answer(OWN_TROUBLE)
    assert story(flow) == ["payment_started", "failover_started", "failed"]
    assert the_payment(flow).reason == "processing_error"
    assert not flow.open_requests
    assert not flow.tiers


def test_a_late_copy_of_a_declined_charge_changes_nothing() -> None:
    """A frozen worker's copy is declined again by its key; should the gateway break its word, the
    money goes back."""
    told = Story(ORDER, TWO_GATEWAYS)
    told.flow.answer(OWN_TROUBLE)
    again = told.flow.handle((told.flow.now_ms, told.flow.requests()[0]), OWN_TROUBLE)
    assert told.flow.result(again).note == "stale_result"
    told.flow.answer(ELSEWHERE)
    told.flow.result(told.late_result())
    assert told.flow.requests()[-1].kind == "refund"
    assert told.flow.requests()[-1].gateway == "simulator"


WITHOUT_KEYS = replace(
    TWO_GATEWAYS,
    gateways=(replace(POLICY.gateways[0], idempotent=False), TWO_GATEWAYS.gateways[1]),
)
FORGETFUL = replace(
    TWO_GATEWAYS,
    gateways=(replace(POLICY.gateways[0], key_retention_ms=10_000), TWO_GATEWAYS.gateways[1]),
)
CAPPED = replace(
    TWO_GATEWAYS, attempt_caps=(AttemptCap(name="one", declines_max=1, window_ms=1_000),)
)


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        pytest.param(POLICY, "processing_error", id="nobody else"),
        pytest.param(TWO_GATEWAYS, "insufficient_funds", id="the customer's"),
        pytest.param(TWO_GATEWAYS, "lost_card", id="never again"),
        pytest.param(TWO_GATEWAYS, None, id="no reason given"),
        pytest.param(WITHOUT_KEYS, "processing_error", id="a copy may be charged"),
        pytest.param(FORGETFUL, "processing_error", id="forgotten before the copy is harmless"),
        pytest.param(CAPPED, "processing_error", id="the card network's cap"),
    ],
)
def test_any_other_decline_fails_the_payment(policy: Policy, code: str | None) -> None:
    """The customer's reasons are the same at every gateway; and another key waits for nobody only
    where the first one can do no more harm."""
    flow = started(policy)
    flow.answer(GatewayAnswer(outcome="declined", code=code))
    assert story(flow) == ["payment_started", "failed"]
    assert len(flow.requests()) == 1


def test_a_declined_payment_that_is_cancelled_or_too_late_goes_nowhere() -> None:
    """Neither is charged elsewhere."""
    told = Story(ORDER, TWO_GATEWAYS)
    told.command("cancel")
    told.flow.answer(OWN_TROUBLE)
    assert told.status == "cancelled"
    flow = started(TWO_GATEWAYS, replace(ORDER, pay_before_ms=NOW + 2_000))
    opened = flow.open_requests.pop()
    result = flow.handle(opened, OWN_TROUBLE)
    flow.now_ms += 2_000
    flow.result(result)
    assert story(flow)[-1] == "failed"


def test_a_customer_at_one_gateway_s_page_is_not_sent_to_the_next() -> None:
    """What is declined after his action fails: he has identified himself there and nowhere else."""
    told = Story(ORDER, TWO_GATEWAYS)
    told.flow.answer(ACTION)
    told.notify("declined", code="processing_error")
    assert told.status == "failed"


def test_a_capture_stays_where_its_authorization_is() -> None:
    """However it is declined."""
    told = Story(MANUAL, TWO_GATEWAYS)
    told.flow.answer(yes)
    told.command("capture")
    told.flow.answer(OWN_TROUBLE)
    assert told.status == "authorized"
    assert told.events[-1] == "capture_failed"


def test_money_goes_back_only_where_it_came_from() -> None:
    """A reversal that is declined while the payment is charged anew is no charge to move."""
    told = Story(ORDER, TWO_GATEWAYS)
    told.flow.answer(GatewayAnswer(outcome="declined", code="insufficient_funds"))
    told.command("retry", instrument_token="tok_2")
    told.flow.result(told.late_result())
    (refund,) = (opened for opened in told.flow.open_requests if opened[1].kind == "refund")
    told.flow.result(told.flow.handle(refund, OWN_TROUBLE))
    assert told.status == "processing"
    assert told.events[-2:] == ["refund_failed", "retry_scheduled"]
    told.flow.advance(2 * HOUR_MS)
    assert {r.gateway for r in told.flow.requests()} == {"simulator"}


# A gateway's own cap ------------------------------------------------------------------------------


def retried_after_two_declines(cap: AttemptCap) -> Story:
    """Declined by both gateways, and tried with another token, which may be of the same card."""
    told = Story(ORDER, replace(TWO_GATEWAYS, attempt_caps=(cap,)))
    for _ in range(2):
        told.flow.answer(OWN_TROUBLE)
    told.command("retry", "c1", instrument_token="tok_2")
    return told


SECONDS_CAP = AttemptCap(name="own", declines_max=1, window_ms=86_400_000, gateway="second")


def test_a_gateway_that_is_proven_to_have_moved_nothing_hands_over_within_the_next_ones_cap() -> (
    None
):
    """The next one's cap counts what it declined; the payment fails by the cap's name, and the
    attempt still says that its failure is proven."""
    told = retried_after_two_declines(SECONDS_CAP)
    told.flow.run(lambda r: NOT_FOUND if r.kind == "inquire" else NOT_SENT)
    assert (told.status, told.payment.reason) == ("failed", "attempts_must_not_exceed_the_cap")
    assert {r.gateway for r in told.flow.requests() if r.operation_id == "c1"} == {"simulator"}
    assert attempts(told.flow)[-1] == ("simulator", 1, "failed", "not_found")


def test_what_is_proven_to_have_moved_nothing_was_no_decline() -> None:
    """It uses up no cap: the next gateway has the payment as before."""
    one = AttemptCap(name="one", declines_max=1, window_ms=86_400_000)
    flow = started(replace(TWO_GATEWAYS, attempt_caps=(one,)))
    flow.run(
        lambda r: (
            yes(r) if r.gateway == "second" else NOT_FOUND if r.kind == "inquire" else NOT_SENT
        )
    )
    assert the_payment(flow).status == "captured"


def test_an_overloaded_gateway_keeps_what_caps_let_no_other_have() -> None:
    """Asked for proof, it would end a payment that only has to wait."""
    told = retried_after_two_declines(SECONDS_CAP)
    held_back(told.flow, 20)
    assert {r.kind for r in told.flow.requests()} == {"charge"}
    told.flow.answer(SUCCEEDED)
    assert told.status == "captured"


def test_a_stop_of_days_sends_nobody_to_the_next_gateway_days_later() -> None:
    """A decline that is read two days after it was written: what it leads to is written today, but
    the operation's time is over."""
    flow = started(TWO_GATEWAYS)
    declined = flow.handle(flow.open_requests.pop(0), OWN_TROUBLE)
    made = process_result(the_payment(flow), declined, flow.now_ms, flow.policy)
    flow.now_ms += 2 * DAY_MS
    flow.apply(declined, made)
    assert flow.open_requests[0][1].gateway == "second"
    late = flow.handle(flow.open_requests.pop(0), SUCCEEDED)
    assert (late.outcome, late.code) == ("not_sent", "send_before_passed")

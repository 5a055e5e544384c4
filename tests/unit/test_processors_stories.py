"""One story for each path of a payment, told through records in and records out."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import GatewayResult, Order, Payment, PaymentDue, PaymentRequest
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.processors.driver import FlowDriver
from pipeline.processors.gateway import result_of

NOW = 1_790_000_000_000
SECOND = 1_000

SUCCEEDED = GatewayAnswer(outcome="succeeded", gateway_reference="ch_1", amount_minor=500)
DECLINED = GatewayAnswer(outcome="declined", code="insufficient_funds")
NOT_SENT = GatewayAnswer(outcome="not_sent", code="connection_refused")
TIMED_OUT = GatewayAnswer(outcome="unknown", code="timeout")
PENDING = GatewayAnswer(outcome="pending")
NOT_FOUND = GatewayAnswer(outcome="not_found")

ORDER = Order(
    merchant_id="shop",
    order_id="1",
    amount_minor=500,
    currency="GBP",
    instrument_token="tok_1",
    business_date="2026-09-21",
    submitted_at_ms=NOW,
)

POLICY = Policy(
    gateways=(GatewayProfile(name="simulator", grace_ms=10 * SECOND),),
    retry_max=3,
    inquiry_max=8,
    proof_inquiry_max=2,
    resend_max=1,
    send_within_ms=10 * SECOND,
    clock_skew_ms=SECOND,
)
TWO_GATEWAYS = replace(
    POLICY, gateways=(*POLICY.gateways, GatewayProfile(name="second", priority=200))
)


def started(policy: Policy = POLICY, order: Order = ORDER) -> FlowDriver:
    flow = FlowDriver(policy, now_ms=NOW)
    flow.order(order)
    return flow


def the_payment(flow: FlowDriver) -> Payment:
    payment = flow.payment("shop", "1")
    assert payment is not None
    return payment


def story(flow: FlowDriver) -> list[str]:
    """The types of all events, after checking that they count the payment's transitions."""
    events = flow.events()
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert the_payment(flow).sequence == len(events)
    assert events[-1].status == the_payment(flow).status
    return [event.type for event in events]


def wait(flow: FlowDriver) -> None:
    """Move the clock to the end of the next wait."""
    due_ms, _, _ = min(flow.tiers)
    flow.advance(max(0, due_ms - flow.now_ms))


def result_for(request: PaymentRequest, **changes: Any) -> GatewayResult:
    result = GatewayResult(
        merchant_id=request.merchant_id,
        order_id=request.order_id,
        payment_id=request.payment_id,
        operation_id=request.operation_id,
        kind=request.kind,
        gateway=request.gateway,
        attempt=request.attempt,
        try_number=request.try_number,
        outcome="succeeded",
        gateway_reference="ch_1",
        amount_minor=500,
        currency="GBP",
        observed_at_ms=NOW,
    )
    return replace(result, **changes)


def test_an_order_is_charged_and_settled() -> None:
    """The happy path: one request, one settlement, two events."""
    flow = started()
    flow.answer(SUCCEEDED)

    assert story(flow) == ["payment_started", "captured"]
    (settlement,) = flow.settlements()
    assert (settlement.kind, settlement.amount_minor, settlement.gateway_reference) == (
        "capture", 500, "ch_1",
    )  # fmt: skip
    payment = the_payment(flow)
    assert (payment.status, payment.captured_minor, payment.reason) == ("captured", 500, None)
    assert not flow.waits()


def test_a_decline_is_a_failure_with_its_code() -> None:
    """A declined charge fails by the gateway's normalised code, and no money is settled."""
    flow = started()
    flow.answer(DECLINED)
    assert story(flow) == ["payment_started", "failed"]
    assert the_payment(flow).reason == "insufficient_funds"
    assert not flow.settlements()


def test_a_bad_order_is_rejected_by_a_rule() -> None:
    """A broken rule ends the payment at once, without any request."""
    flow = started(order=replace(ORDER, currency="GPB"))
    assert story(flow) == ["rejected"]
    assert the_payment(flow).reason == "currency_must_be_iso_4217"
    assert not flow.requests()


def test_an_order_with_a_card_number_is_refused_whole() -> None:
    """It becomes no payment; a payment that is there already says so and keeps its token."""
    flow = started(order=replace(ORDER, instrument_token="4111111111111111"))
    assert [(letter.cause, letter.detail) for letter in flow.dead_letters] == [
        ("card_number_in_field", "a card number stands in instrument_token")
    ]
    assert flow.payment(ORDER.merchant_id, ORDER.order_id) is None
    flow.order(ORDER)
    flow.order(replace(ORDER, country="card 4111 1111 1111 1111"))
    assert story(flow) == ["payment_started", "input_dead_lettered"]
    assert the_payment(flow).dead_letters == 1
    assert the_payment(flow).instrument_token == ORDER.instrument_token


def test_nothing_is_charged_for_nothing() -> None:
    """An order of zero needs no payment and no instrument."""
    flow = started(order=replace(ORDER, amount_minor=0, instrument_token=""))
    assert story(flow) == ["no_payment_due"]
    assert not flow.requests()


def test_ids_that_fit_no_key_are_dead_lettered() -> None:
    """Without a usable key there is no payment to reject."""
    flow = started(order=replace(ORDER, order_id="1:2"))
    assert [letter.cause for letter in flow.dead_letters] == ["invalid_ids"]
    assert flow.decisions[-1].payment is None


@pytest.mark.parametrize("when", ["processing", "captured"])
def test_the_same_order_again_is_one_payment(when: str) -> None:
    """A redelivered order changes nothing, at any time, whatever its descriptions say."""
    flow = started()
    if when == "captured":
        flow.answer(SUCCEEDED)
    before = the_payment(flow)
    again = flow.order(replace(ORDER, country="FR", submitted_at_ms=NOW + 1))
    assert again.note == "duplicate_order"
    assert not again.sends
    assert the_payment(flow) == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"amount_minor": 501}, "amount_must_not_change"),
        ({"currency": "EUR"}, "currency_must_not_change"),
        ({"instrument_token": "tok_2"}, "instrument_must_not_change"),
        ({"amount_minor": 1, "currency": "EUR"}, "amount_and_currency_must_not_change"),
    ],
)
def test_another_order_under_the_same_id_is_a_conflict(
    changes: dict[str, Any], reason: str
) -> None:
    """One charge stays one charge: the other order is dead-lettered and the payment says so."""
    flow = started()
    decision = flow.order(replace(ORDER, **changes))
    assert story(flow) == ["payment_started", "order_conflict"]
    assert flow.events()[-1].reason == reason
    assert [letter.cause for letter in flow.dead_letters] == ["order_conflict"]
    assert "tok" not in (decision.detail or "")
    payment = the_payment(flow)
    assert (payment.conflicts, payment.dead_letters, payment.amount_minor) == (1, 1, 500)
    assert len(flow.requests()) == 1


def test_what_was_not_sent_is_sent_again_with_the_same_key() -> None:
    """A refused connection waits in the retry tier; the second try succeeds."""
    flow = started()
    flow.answer(NOT_SENT)
    assert [due.purpose for due in flow.waits()] == ["retry"]
    assert flow.advance(4_999) == []
    flow.advance(1)
    flow.answer(SUCCEEDED)

    assert story(flow) == ["payment_started", "retry_scheduled", "retry_started", "captured"]
    first, second = flow.requests()
    assert first.idempotency_key == second.idempotency_key
    assert (first.try_number, second.try_number) == (1, 2)


def test_giving_up_waits_for_frozen_workers_and_asks_first() -> None:
    """After the last retry nothing fails until nobody can send, and the gateway knows nothing."""
    flow = started()
    for _ in range(POLICY.retry_max + 1):
        flow.answer(NOT_SENT)
        given_up_ms = flow.now_ms
        wait(flow)
    assert not flow.open_requests
    assert flow.decisions[-1].note == "send_window_open"
    while not flow.open_requests:
        wait(flow)
    # The window, the clocks' difference and the gateway's grace have passed.
    assert flow.now_ms >= given_up_ms + 21 * SECOND
    assert flow.open_requests[0][1].kind == "inquire"
    assert the_payment(flow).status == "processing"

    flow.answer(NOT_FOUND)
    assert story(flow)[-2:] == ["inquiry_started", "failed"]
    payment = the_payment(flow)
    assert payment.reason == "gateway_unavailable"
    assert payment.attempts[-1].code == "not_found", "the failure is proven"


def test_a_charge_by_a_frozen_worker_is_found_before_giving_up() -> None:
    """The charge that a woken worker made unseen is captured, not failed."""
    flow = started()
    for _ in range(POLICY.retry_max + 1):
        flow.answer(NOT_SENT)
        wait(flow)
    while not flow.open_requests:
        wait(flow)
    flow.answer(SUCCEEDED)
    assert story(flow)[-1] == "captured"
    assert len(flow.settlements()) == 1


def test_a_gateway_that_cannot_even_be_asked() -> None:
    """Unreachable for charges and inquiries: failed after the last question, as unavailable."""
    flow = started()
    flow.run(lambda request: NOT_SENT if request.kind == "charge" else TIMED_OUT)
    last = ["inquiry_started", "inquiry_scheduled", "inquiry_started", "failed"]
    assert story(flow)[-4:] == last
    payment = the_payment(flow)
    assert (payment.reason, payment.attempts[-1].code) == ("gateway_unavailable", "timeout")


def test_silence_is_no_proof_of_what_a_dead_worker_may_have_sent() -> None:
    """A request that is read again and not sent this time may have been charged by the worker that
    died with its call open: it is sent again under its key, and silence ends with a person."""
    flow = started()
    request = flow.open_requests.pop(0)[1]
    flow.result(result_for(request, outcome="not_sent", code="breaker_open", earlier_reads=1))
    assert the_payment(flow).status == "processing"
    flow.run(lambda request: NOT_SENT if request.kind == "charge" else TIMED_OUT)
    assert story(flow)[-1] == "inquiry_exhausted"
    payment = the_payment(flow)
    assert payment.status == "outcome_unknown"
    assert [r.idempotency_key for r in flow.requests()] == [request.idempotency_key] * len(
        flow.requests()
    )

    well = started()
    request = well.open_requests.pop(0)[1]
    well.result(result_for(request, outcome="not_sent", code="breaker_open", earlier_reads=1))
    wait(well)
    well.answer(SUCCEEDED)
    assert story(well)[-1] == "captured"
    assert the_payment(well).attempts[0].uncertain_since_ms == 0


def test_a_gateway_that_cannot_be_asked_keeps_the_other_one_out() -> None:
    """Without proof no other gateway is tried: a failure can be repaired, a double charge not."""
    flow = started(TWO_GATEWAYS)
    flow.run(lambda request: NOT_SENT if request.kind == "charge" else TIMED_OUT)
    assert {request.gateway for request in flow.requests()} == {"simulator"}
    assert the_payment(flow).status == "failed"


def test_the_next_gateway_is_tried_after_proof() -> None:
    """When the first gateway knows nothing and nobody can send any more, the second charges."""
    flow = started(TWO_GATEWAYS)

    def adapter(request: PaymentRequest) -> GatewayAnswer:
        if request.gateway == "second":
            return SUCCEEDED
        return NOT_SENT if request.kind == "charge" else NOT_FOUND

    flow.run(adapter)
    assert story(flow)[-2:] == ["failover_started", "captured"]
    payment = the_payment(flow)
    assert [(a.gateway, a.attempt, a.state) for a in payment.attempts] == [
        ("simulator", 1, "failed"), ("second", 2, "charged"),
    ]  # fmt: skip
    assert flow.settlements()[0].gateway == "second"


@pytest.mark.parametrize("first", [NOT_SENT, TIMED_OUT])
def test_another_gateway_waits_for_window_clocks_and_grace(first: GatewayAnswer) -> None:
    """Failover comes not a moment before the last frozen copy could have shown at the gateway."""
    policy = replace(TWO_GATEWAYS, retry_max=0, resend_max=0, inquiry_max=1000)
    flow = FlowDriver(policy, now_ms=NOW, retry_delay_ms=100, inquiry_delay_ms=100)
    flow.order(ORDER)
    flow.answer(first)
    while the_payment(flow).attempts[-1].gateway == "simulator":
        flow.advance(100)
        if flow.open_requests:
            decided_at_ms = the_payment(flow).updated_at_ms
            flow.answer(NOT_FOUND)
    # 10 s to be sent, 1 s of wrong clocks, 10 s to show; and the longest tier of the wait at most.
    assert 21_000 <= decided_at_ms - NOW <= 21_000 + 1_200


def test_overload_slows_a_payment_and_does_not_fail_it() -> None:
    """Requests that expired in a backlog are not counted as retries."""
    flow = started()
    for _ in range(POLICY.retry_max * 3):
        flow.now_ms += 11 * SECOND
        flow.answer(SUCCEEDED)  # not asked: the request is too old
        wait(flow)
    assert the_payment(flow).status == "processing"
    assert the_payment(flow).attempts[-1].retries == 0
    flow.answer(SUCCEEDED)
    assert the_payment(flow).status == "captured"


def test_pay_before_ends_the_retries() -> None:
    """At the order's own deadline no charge is started; the failure says why."""
    order = replace(ORDER, pay_before_ms=NOW + 12 * SECOND)
    flow = started(replace(POLICY, retry_max=9), order)
    sent_at_ms: list[int] = []

    def adapter(request: PaymentRequest) -> GatewayAnswer:
        if request.kind == "inquire":
            return NOT_FOUND
        sent_at_ms.append(flow.now_ms)
        return NOT_SENT

    flow.run(adapter)
    assert the_payment(flow).reason == "pay_before_passed"
    assert max(sent_at_ms) < NOW + 12 * SECOND


def test_a_request_is_not_sent_after_pay_before() -> None:
    """A request that lagged beyond the customer's deadline is not sent, young as it may be."""
    flow = started(order=replace(ORDER, pay_before_ms=NOW + 2 * SECOND))
    flow.now_ms += 2 * SECOND
    flow.answer(SUCCEEDED)
    assert the_payment(flow).attempts[-1].code == "send_before_passed"


def test_an_old_order_is_not_charged_the_day_after() -> None:
    """An order that could not be sent for half a day fails as too old."""
    flow = started()
    flow.answer(NOT_SENT)
    flow.now_ms += POLICY.stale_after_ms
    flow.advance(0)
    assert flow.requests()[-1].kind == "charge"
    flow.answer(NOT_SENT)
    flow.run(lambda _: NOT_FOUND)
    assert the_payment(flow).reason == "order_too_old"


def test_unknown_is_not_failed() -> None:
    """A call without an answer is inquired about until it is known."""
    flow = started()
    flow.answer(TIMED_OUT)
    assert (the_payment(flow).status, the_payment(flow).reason) == ("outcome_unknown", "timeout")
    assert [due.purpose for due in flow.waits()] == ["inquiry"]
    flow.advance(5 * SECOND)
    flow.answer(PENDING)
    assert the_payment(flow).status == "processing", "the gateway knows it"
    flow.advance(5 * SECOND)
    flow.answer(SUCCEEDED)
    assert story(flow) == [
        "payment_started", "outcome_unknown", "inquiry_started", "pending",
        "inquiry_started", "captured",
    ]  # fmt: skip
    assert [request.kind for request in flow.requests()] == ["charge", "inquire", "inquire"]


def test_an_inquiry_may_learn_of_a_decline() -> None:
    """A decline whose answer was lost is a decline all the same."""
    flow = started()
    flow.answer(TIMED_OUT)
    flow.advance(5 * SECOND)
    flow.answer(DECLINED)
    assert story(flow)[-1] == "failed"
    assert the_payment(flow).reason == "insufficient_funds"


def test_not_found_is_believed_late_and_then_sent_again_with_the_same_key() -> None:
    """ "Not found" counts after the gateway's grace time; then the same key is sent again."""
    flow = started()
    flow.answer(TIMED_OUT)
    asked_at_ms: list[int] = []
    while the_payment(flow).status == "outcome_unknown":
        flow.advance(5 * SECOND)
        asked_at_ms.append(flow.now_ms)
        flow.answer(NOT_FOUND)
    # The loss was known at 0 s, the grace is 10 s, and the question of 10 s was asked late enough.
    assert len(asked_at_ms) > 1
    assert asked_at_ms[-1] - NOW >= 10 * SECOND
    assert story(flow)[-1] == "resend_scheduled"
    flow.answer(SUCCEEDED)
    assert story(flow)[-1] == "captured"
    charges = [request for request in flow.requests() if request.kind == "charge"]
    assert len({request.idempotency_key for request in charges}) == 1
    assert [request.try_number for request in flow.requests()] == list(
        range(1, len(flow.requests()) + 1)
    )


def test_a_proof_must_have_been_asked_for_late_enough() -> None:
    """An inquiry of before the window's end proves nothing, however late its answer arrives."""
    flow = started()
    flow.answer(TIMED_OUT)
    flow.advance(5 * SECOND)
    flow.now_ms += 60 * SECOND
    flow.answer(NOT_FOUND)
    assert story(flow)[-1] == "inquiry_scheduled"


def not_found_then(asked_at_ms: int) -> GatewayAnswer:
    """A question without an answer, beside an earlier one that was answered too late."""
    return replace(TIMED_OUT, code="soft_deadline", not_found_asked_at_ms=asked_at_ms)


def test_what_was_not_found_counts_for_when_it_was_asked() -> None:
    """The question that an answer serves may be asked long after the one that it was given to: sent
    again only if that one was asked after the grace time."""
    for asked_ms, told in ((10_000, "resend_scheduled"), (9_999, "inquiry_scheduled")):
        flow = started()
        flow.answer(TIMED_OUT)
        while flow.now_ms < NOW + 15 * SECOND:
            flow.advance(5 * SECOND)
            flow.answer(TIMED_OUT)
        assert story(flow)[-1] == "inquiry_scheduled"
        flow.advance(5 * SECOND)
        flow.answer(not_found_then(NOW + asked_ms))
        assert story(flow)[-1] == told


def test_what_was_not_found_before_the_latest_send_says_nothing_of_it() -> None:
    """The same key was sent again meanwhile: that may have arrived."""
    flow = started(replace(POLICY, resend_max=2))
    flow.answer(TIMED_OUT)
    while story(flow)[-1] != "resend_scheduled":
        flow.advance(5 * SECOND)
        asked_at_ms = flow.now_ms
        flow.answer(NOT_FOUND)
    flow.now_ms += SECOND
    flow.answer(TIMED_OUT)
    for _ in range(3):
        flow.advance(5 * SECOND)
        flow.answer(not_found_then(asked_at_ms))
        assert story(flow)[-1] == "inquiry_scheduled"
    flow.advance(5 * SECOND)
    flow.answer(NOT_FOUND)
    assert story(flow)[-1] == "resend_scheduled"


def test_another_gateway_charges_only_by_a_question_of_after_window_and_grace() -> None:
    """10 s to be sent, 1 s of wrong clocks, 10 s to show: asked a moment sooner, it is no proof."""
    policy = replace(TWO_GATEWAYS, resend_max=0, inquiry_max=100)
    for asked_ms, gateway in ((21_000, "second"), (20_999, "simulator")):
        flow = FlowDriver(policy, now_ms=NOW)
        flow.order(ORDER)
        flow.answer(TIMED_OUT)
        while flow.now_ms < NOW + 30 * SECOND:
            flow.advance(5 * SECOND)
            flow.answer(TIMED_OUT)
        flow.advance(5 * SECOND)
        flow.answer(not_found_then(NOW + asked_ms))
        assert the_payment(flow).attempts[-1].gateway == gateway


def test_an_earlier_question_was_asked_before_the_later_one_whatever_clocks_say() -> None:
    """The time of its request is another broker's: ahead, it would be after window and grace,
    though the question of now was asked before their end."""
    flow = started(replace(TWO_GATEWAYS, resend_max=0, inquiry_max=100))
    flow.answer(TIMED_OUT)
    while flow.now_ms < NOW + 25 * SECOND:
        flow.advance(5 * SECOND)
        flow.answer(not_found_then(NOW + 60 * SECOND))
    assert [a.gateway for a in the_payment(flow).attempts] == ["simulator"]
    flow.advance(5 * SECOND)
    flow.answer(not_found_then(NOW + 60 * SECOND))
    assert the_payment(flow).attempts[-1].gateway == "second"


def test_an_earlier_not_found_proves_nothing_beside_a_newer_word() -> None:
    """A notice has told meanwhile that the gateway has it; and no answer but silence has one."""
    flow = started()
    flow.answer(TIMED_OUT)
    while flow.now_ms < NOW + 30 * SECOND:
        flow.advance(5 * SECOND)
        flow.answer(PENDING if flow.now_ms > NOW + 25 * SECOND else TIMED_OUT)
    flow.advance(5 * SECOND)
    flow.answer(not_found_then(NOW + 25 * SECOND))
    assert story(flow)[-1] == "inquiry_scheduled"
    question = flow.requests()[-1]
    assert question.kind == "inquire"
    for answer, kept in ((TIMED_OUT, 5), (PENDING, 0), (NOT_FOUND, 0)):
        result = result_of(question, replace(answer, not_found_asked_at_ms=5), NOW)
        assert result.not_found_asked_at_ms == kept
    charge = flow.requests()[0]
    assert result_of(charge, not_found_then(5), NOW).not_found_asked_at_ms == 0


def test_what_was_heard_to_be_pending_is_asked_about_for_as_long_as_what_is_pending() -> None:
    """Known to the gateway, it is never given up. Where the customer stands it does not say, and
    neither silence nor "not found" says anything else."""
    flow = started(replace(TWO_GATEWAYS, inquiry_max=3))
    flow.answer(TIMED_OUT)
    asked = 0
    while flow.now_ms < NOW + 300 * 60 * SECOND:
        flow.advance(60 * SECOND)
        if flow.open_requests:
            asked += 1
            # With the third question it would be left to a person.
            silence = replace(TIMED_OUT, code="heard_pending" if asked == 3 else "soft_deadline")
            flow.answer(NOT_FOUND if asked == 4 else silence)
    payment = the_payment(flow)
    assert asked > 4
    assert (payment.status, payment.next_action_url) == ("outcome_unknown", None)
    assert [(a.gateway, a.state) for a in payment.attempts] == [("simulator", "inquiry_waiting")]
    while not flow.open_requests:
        flow.advance(60 * SECOND)
    assert flow.open_requests[0][1].kind == "inquire"
    flow.answer(SUCCEEDED)
    assert the_payment(flow).status == "captured"


def test_a_gateway_without_idempotency_is_never_sent_the_same_twice() -> None:
    """What may have reached it is asked about; once proven not found another gateway is tried."""
    first = replace(POLICY.gateways[0], idempotent=False)
    policy = replace(TWO_GATEWAYS, gateways=(first, TWO_GATEWAYS.gateways[1]), inquiry_max=40)
    flow = started(policy)

    def adapter(request: PaymentRequest) -> GatewayAnswer:
        if request.gateway == "second":
            return SUCCEEDED
        return TIMED_OUT if request.kind == "charge" else NOT_FOUND

    flow.run(adapter)
    charges = [(r.gateway, r.try_number) for r in flow.requests() if r.kind == "charge"]
    assert charges == [("simulator", 1), ("second", 1)]
    assert "resend_scheduled" not in story(flow)
    assert flow.events()[-2].reason == "gateway_not_idempotent"


def test_resends_are_bounded() -> None:
    """A charge that is lost again and again ends as a failure that is proven."""
    flow = started(replace(POLICY, inquiry_max=100))
    flow.run(lambda request: TIMED_OUT if request.kind == "charge" else NOT_FOUND)
    assert story(flow).count("resend_scheduled") == 1
    assert the_payment(flow).reason == "resends_exhausted"


def test_a_question_without_end_waits_for_a_person() -> None:
    """After the last inquiry the outcome stays unknown, visibly, and is never guessed."""
    flow = started()
    flow.run(lambda _: TIMED_OUT)
    assert story(flow)[-1] == "inquiry_exhausted"
    payment = the_payment(flow)
    assert (payment.status, payment.attempts[-1].inquiries) == ("outcome_unknown", 8)

    decision = flow.result(result_for(flow.requests()[0]))
    assert decision.dead_letter is None
    assert story(flow)[-1] == "captured", "evidence counts, however late"


def test_a_forgotten_key_is_never_sent_again() -> None:
    """Once the gateway may have forgotten the key, "not found" proves nothing."""
    profile = GatewayProfile(name="simulator", grace_ms=SECOND, key_retention_ms=30 * SECOND)
    flow = started(replace(POLICY, gateways=(profile,)))
    flow.answer(TIMED_OUT)
    flow.now_ms += 30 * SECOND
    flow.run(lambda _: NOT_FOUND)
    assert story(flow)[-1] == "inquiry_exhausted"
    assert [r.kind for r in flow.requests()].count("charge") == 1


def test_an_amount_that_was_not_asked_for_is_never_settled() -> None:
    """Another amount stops the payment for a person: unknown, dead-lettered, nothing booked."""
    flow = started()
    decision = flow.answer(replace(SUCCEEDED, amount_minor=499))
    assert decision.dead_letter == "amount_mismatch"
    assert "499 GBP" in (decision.detail or "")
    assert story(flow) == ["payment_started", "contradictory_evidence"]
    payment = the_payment(flow)
    assert (payment.status, payment.reason, payment.dead_letters) == (
        "outcome_unknown", "amount_mismatch", 1,
    )  # fmt: skip
    assert not flow.settlements()
    assert not flow.waits()
    again = flow.result(result_for(flow.requests()[0]))
    assert again.dead_letter == "contradictory_evidence"
    assert not flow.settlements()


def test_a_success_in_another_currency_is_never_settled() -> None:
    """Five hundred of something else is not what was asked for."""
    flow = started()
    decision = flow.answer(replace(SUCCEEDED, currency="JPY"))
    assert decision.dead_letter == "amount_mismatch"
    assert not flow.settlements()


def test_a_redelivered_result_settles_once() -> None:
    """The same evidence again has no effect."""
    flow = started()
    flow.answer(SUCCEEDED)
    again = flow.result(result_for(flow.requests()[0]))
    assert (again.note, again.payment, again.sends) == ("stale_result", None, ())
    assert len(flow.settlements()) == 1


def test_a_second_charge_of_one_payment_is_named() -> None:
    """A success with another reference than the captured one is evidence of a double charge."""
    flow = started()
    flow.answer(SUCCEEDED)
    decision = flow.result(result_for(flow.requests()[0], gateway_reference="ch_2"))
    assert decision.dead_letter == "contradictory_evidence"
    assert story(flow)[-1] == "contradictory_evidence"
    assert the_payment(flow).status == "captured"
    assert len(flow.settlements()) == 1


def test_a_success_after_a_failure_is_given_back() -> None:
    """Money that moved although the payment failed is booked, refunded once, and told."""
    flow = started()
    flow.answer(DECLINED)
    late = result_for(flow.requests()[0])
    flow.result(late)
    assert story(flow)[-2:] == ["late_success", "reversal_started"]
    flow.result(late)
    (_, refund) = flow.requests()
    assert (refund.kind, refund.operation_id, refund.parent_reference) == (
        "refund", "late-1-1", "ch_1",
    )  # fmt: skip
    flow.answer(replace(SUCCEEDED, gateway_reference="re_1"))
    payment = the_payment(flow)
    assert (payment.status, payment.reason) == ("failed", "insufficient_funds")
    assert (payment.captured_minor, payment.refunded_minor) == (500, 500)
    assert [(each.kind, each.amount_minor) for each in flow.settlements()] == [
        ("capture", 500), ("refund", -500),
    ]  # fmt: skip


def test_a_decline_after_a_capture_is_never_dropped() -> None:
    """The opposite contradiction is told as well."""
    flow = started()
    flow.answer(SUCCEEDED)
    decision = flow.result(result_for(flow.requests()[0], outcome="declined"))
    assert decision.dead_letter == "contradictory_evidence"


def test_an_outdated_success_is_taken_as_evidence() -> None:
    """A success of an earlier try of the same attempt captures; the open try adds nothing."""
    flow = started()
    flow.answer(NOT_SENT)
    flow.advance(5 * SECOND)
    flow.result(result_for(flow.requests()[0]))
    assert story(flow)[-1] == "captured"
    assert flow.answer(SUCCEEDED).note == "stale_result"
    assert len(flow.settlements()) == 1


def test_a_success_of_an_attempt_proven_unsent_is_given_back() -> None:
    """When the first gateway charged after all, that charge goes back; the second one is paid."""
    flow = started(TWO_GATEWAYS)
    first = flow.requests()[0]
    while the_payment(flow).attempts[-1].gateway == "simulator":
        if flow.open_requests:
            flow.answer(lambda r: NOT_SENT if r.kind == "charge" else NOT_FOUND)
        wait(flow) if flow.waits() else None
    flow.result(result_for(first))
    assert the_payment(flow).status == "processing"
    flow.answer(replace(SUCCEEDED, gateway_reference="ch_2"))
    flow.answer(replace(SUCCEEDED, gateway_reference="re_1"))
    payment = the_payment(flow)
    assert (payment.status, payment.captured_minor, payment.refunded_minor) == (
        "captured", 1_000, 500,
    )  # fmt: skip
    settlements = flow.settlements()
    assert [(each.kind, each.gateway) for each in settlements] == [
        ("capture", "simulator"), ("capture", "second"), ("refund", "simulator"),
    ]  # fmt: skip
    assert len({each.settlement_id for each in settlements}) == 3


def test_a_result_of_no_payment_is_dead_lettered() -> None:
    """Evidence about a payment that the table does not know is kept whole."""
    flow = started()
    request = replace(flow.requests()[0], order_id="2")
    assert flow.result(result_for(request)).dead_letter == "unknown_payment"


@pytest.mark.parametrize(
    "changes", [{"attempt": 2}, {"try_number": 7}, {"gateway": "other"}, {"operation_id": "x"}]
)
def test_a_result_of_no_attempt_is_dead_lettered(changes: dict[str, Any]) -> None:
    """What names an attempt that was never made is not believed, and not lost."""
    flow = started()
    result = result_for(flow.requests()[0], **changes)
    assert flow.result(replace(result, outcome="declined")).dead_letter == "unknown_attempt"
    assert flow.result(result).dead_letter == "contradictory_evidence"
    assert the_payment(flow).status == "processing"
    assert not flow.settlements()


def test_an_outcome_outside_the_contract_is_unknown() -> None:
    """A word that nobody agreed on is inquired about."""
    flow = started()
    flow.result(result_for(flow.requests()[0], outcome="sucess"))
    assert the_payment(flow).status == "outcome_unknown"


def test_a_success_without_a_reference_is_unknown() -> None:
    """A charge that nobody can point at is inquired about before it is booked."""
    flow = started()
    flow.answer(replace(SUCCEEDED, gateway_reference=None))
    assert the_payment(flow).reason == "reference_missing"
    flow.advance(5 * SECOND)
    flow.answer(SUCCEEDED)
    assert the_payment(flow).status == "captured"


def test_waits_that_come_twice_or_too_late_are_dropped() -> None:
    """A due record counts once, and not at all when its payment has moved on."""
    flow = started()
    flow.answer(NOT_SENT)
    due = flow.waits()[0]
    assert flow.due(due).note is None, "early is harmless: it is sent earlier"
    assert flow.due(due).note == "stale_due"
    assert flow.due(replace(due, purpose="inquiry", try_number=2)).note == "stale_due"
    flow.answer(SUCCEEDED)
    assert [decision.note for decision in flow.advance(60 * SECOND)] == ["stale_due"]
    assert len(flow.requests()) == 2


def test_a_wait_of_no_payment_or_purpose_is_dead_lettered() -> None:
    """Due records that make no sense are kept with their cause."""
    flow = started()
    flow.answer(NOT_SENT)
    due: PaymentDue = flow.waits()[0]
    assert flow.due(replace(due, order_id="2")).dead_letter == "unknown_payment"
    assert flow.due(replace(due, purpose="nap")).dead_letter == "unknown_purpose"


def test_replaying_the_same_inputs_gives_the_same_bytes() -> None:
    """Two runs of one story write equal records to every topic."""

    def run() -> FlowDriver:
        flow = started(TWO_GATEWAYS)
        flow.answer(NOT_SENT)
        flow.advance(5 * SECOND)
        flow.answer(TIMED_OUT)
        flow.order(replace(ORDER, amount_minor=1))
        flow.run(lambda request: SUCCEEDED if request.try_number > 4 else NOT_FOUND)
        return flow

    assert run().topics == run().topics

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.card_numbers import mask_card_number_start, mask_card_number_text
from pipeline.domain.model import PaymentRequest
from pipeline.domain.normalisation import Action, action_of
from pipeline.gateways.adapters.base import refused
from pipeline.processors.gateway import plan_call, result_of, send_before_ms

NOW = 1_790_000_000_000

CHARGE = PaymentRequest(
    merchant_id="shop",
    order_id="1",
    payment_id="p",
    operation_id="1",
    kind="charge",
    gateway="simulator",
    amount_minor=500,
    currency="GBP",
    instrument_token="tok_1",
    idempotency_key="p:1:simulator:1",
    attempt=1,
    try_number=1,
    send_within_ms=60_000,
    ordered_at_ms=NOW - 5_000,
)
INQUIRE = replace(CHARGE, kind="inquire", try_number=2)


def test_a_request_may_be_sent_until_its_own_append_time_plus_its_window() -> None:
    """The window counts from the request's append, end excluded, whatever the order's age."""
    assert send_before_ms(CHARGE, NOW) == NOW + 60_000
    assert plan_call(CHARGE, NOW, NOW + 59_999).refusal is None
    refusal = plan_call(CHARGE, NOW, NOW + 60_000).refusal
    assert refusal == GatewayAnswer(outcome="not_sent", code="send_before_passed")


def test_pay_before_ends_the_window() -> None:
    """The customer's deadline counts when it comes first."""
    request = replace(CHARGE, pay_before_ms=NOW + 10)
    assert plan_call(request, NOW, NOW + 9).refusal is None
    assert plan_call(request, NOW, NOW + 10).refusal is not None
    assert send_before_ms(replace(CHARGE, pay_before_ms=NOW + 10**9), NOW) == NOW + 60_000


@pytest.mark.parametrize("kind", ["charge", "authorize", "capture", "void", "refund"])
def test_the_time_of_the_operation_ends_the_window(kind: str) -> None:
    """A repetition that was decided about late is not sent late, whatever it is."""
    request = replace(CHARGE, kind=kind, parent_reference="ch_1", not_after_ms=NOW + 10)
    assert plan_call(request, NOW, NOW + 9).send_before_ms == NOW + 10
    refusal = plan_call(request, NOW, NOW + 10).refusal
    assert refusal == GatewayAnswer(outcome="not_sent", code="send_before_passed")
    inquiry = replace(request, kind="inquire", operation_kind=kind)
    assert plan_call(inquiry, NOW, NOW + 10).refusal is None


def test_an_inquiry_does_not_expire() -> None:
    """Asking moves no money, so it is never too late."""
    assert plan_call(INQUIRE, NOW, NOW + 10**9, 1).refusal is None


def test_a_forgotten_key_is_not_sent_again() -> None:
    """A repeated charge whose key the gateway may have forgotten is refused; a first one is not."""
    again = replace(CHARGE, try_number=2)
    assert plan_call(again, NOW, NOW, 5_001).refusal is None
    refusal = plan_call(again, NOW, NOW, 5_000).refusal
    assert refusal is not None
    assert refusal.code == "key_retention_passed"
    assert plan_call(CHARGE, NOW, NOW, 5_000).refusal is None


def test_a_key_is_as_old_as_its_attempt() -> None:
    """An order that waited long for a person begins with a new key; its repetition is sent."""
    again = replace(CHARGE, try_number=2, attempt_started_at_ms=NOW - 1_000)
    assert plan_call(again, NOW, NOW, 1_001).refusal is None
    refusal = plan_call(again, NOW, NOW, 1_000).refusal
    assert refusal == GatewayAnswer(outcome="not_sent", code="key_retention_passed")
    assert action_of(refusal.code) is Action.INQUIRE, "what may be forgotten is asked about first"


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"kind": "payout"}, "kind_not_supported"), ({"kind": "refund"}, "parent_missing")],
)
def test_a_request_that_cannot_be_meant_calls_nobody(changes: dict[str, str], code: str) -> None:
    """A kind that no adapter has, and a refund of nothing, are not sent."""
    refusal = plan_call(replace(CHARGE, **changes), NOW, NOW).refusal
    assert refusal == GatewayAnswer(outcome="not_sent", code=code)


@pytest.mark.parametrize("kind", ["capture", "void", "refund"])
def test_what_follows_a_charge_is_not_bound_by_pay_before(kind: str) -> None:
    """The customer's deadline is about being charged; giving money back may come long after it."""
    request = replace(CHARGE, kind=kind, parent_reference="ch_1", pay_before_ms=NOW - 1)
    assert plan_call(request, NOW, NOW + 59_999).refusal is None
    assert plan_call(request, NOW, NOW + 60_000).refusal is not None


@pytest.mark.parametrize("kind", ["charge", "authorize", "capture", "void", "refund"])
def test_no_operation_is_repeated_with_a_forgotten_key(kind: str) -> None:
    """A retry, a capture, a void and a refund would be made twice like a first charge, also where
    the key is forgotten while the request waits in its worker."""
    request = replace(
        CHARGE, kind=kind, operation_id="cmd", try_number=2, parent_reference="ch_1",
        attempt_started_at_ms=NOW - 1_000,
    )  # fmt: skip
    refusal = plan_call(request, NOW, NOW + 4_000, 5_000).refusal
    assert refusal == GatewayAnswer(outcome="not_sent", code="key_retention_passed")
    plan = plan_call(request, NOW, NOW + 3_999, 5_000)
    assert (plan.refusal, plan.send_before_ms) == (None, NOW + 4_000)


def test_a_later_operation_is_not_judged_by_the_orders_age() -> None:
    """A refund's key is as old as its command, however old its order is."""
    request = replace(
        CHARGE, kind="refund", parent_reference="ch_1", operation_id="cmd", try_number=2,
        ordered_at_ms=NOW - 10**9, attempt_started_at_ms=NOW,
    )  # fmt: skip
    assert plan_call(request, NOW, NOW, 1).refusal is None


def test_what_may_have_been_sent_where_nothing_is_recognised_is_unknown() -> None:
    """Without idempotency a request that comes a second time is asked about, never sent."""
    refusal = plan_call(CHARGE, NOW, NOW + 10**9, possibly_sent=True).refusal
    assert refusal == GatewayAnswer(outcome="unknown", code="possibly_sent")
    assert plan_call(INQUIRE, NOW, NOW, possibly_sent=True).refusal is None


@pytest.mark.parametrize("kind", ["authorize", "capture", "void", "refund"])
def test_every_operation_expires_like_a_charge(kind: str) -> None:
    """A frozen worker must not send a refund late either."""
    request = replace(CHARGE, kind=kind, operation_id="r1", try_number=2, parent_reference="ch_1")
    assert plan_call(request, NOW, NOW + 59_999).refusal is None
    assert plan_call(request, NOW, NOW + 60_000).refusal is not None


def test_a_result_says_what_it_answers() -> None:
    """The result names the request's try, and the amount that the gateway moved."""
    answer = GatewayAnswer(outcome="succeeded", gateway_reference="ch_1", amount_minor=499)
    result = result_of(CHARGE, answer, NOW + 7)
    assert (result.attempt, result.try_number, result.kind) == (1, 1, "charge")
    assert (result.amount_minor, result.currency, result.observed_at_ms) == (499, "GBP", NOW + 7)
    assert result_of(CHARGE, replace(answer, currency="EUR"), NOW).currency == "EUR"


@pytest.mark.parametrize(
    ("request_", "answer", "code"),
    [
        (CHARGE, GatewayAnswer(outcome="succeeded", amount_minor=500), "reference_missing"),
        (CHARGE, GatewayAnswer(outcome="not_found"), "outcome_not_in_contract"),
        (INQUIRE, GatewayAnswer(outcome="paid"), "outcome_not_in_contract"),
    ],
)
def test_nothing_is_claimed_that_was_not_proven(
    request_: PaymentRequest, answer: GatewayAnswer, code: str
) -> None:
    """Answers that cannot be relied on become unknown, with the reason."""
    result = result_of(request_, answer, NOW)
    assert (result.outcome, result.code) == ("unknown", code)


def test_a_gateways_text_is_kept_short_and_without_card_numbers() -> None:
    """What a gateway writes is evidence; it is neither a page nor a card number."""
    answer = GatewayAnswer(outcome="declined", gateway_code="4111111111111111 " + "x" * 1000)
    text = result_of(CHARGE, answer, NOW).gateway_code
    assert text is not None
    assert text.startswith("411111******1111 x")
    assert len(text) == 255


@pytest.mark.parametrize("length_max", [64, 255])
@pytest.mark.parametrize("card", ["4111111111111111", "4111-1111-1111-1111", "4 1 1 1" + " 1" * 12])
def test_no_more_of_a_card_number_is_kept_where_a_text_is_cut(card: str, length_max: int) -> None:
    """Of fifteen digits the check digit tells the sixteenth. Adapters cut sooner than records."""
    for before in range(length_max - len(card), length_max):
        text = "x" * before + " " + card + " y"
        if length_max == 64:
            code = refused("simulator", text, otherwise="card_declined").gateway_code
        else:
            answer = GatewayAnswer(outcome="declined", gateway_code=text)
            code = result_of(CHARGE, answer, NOW).gateway_code
        assert code is not None
        assert len(code) <= length_max
        assert sum(letter.isdigit() for letter in code) <= 10


@given(st.text("0123456789 -x", max_size=120), st.integers(0, 60))
def test_a_text_is_cut_as_if_it_had_been_masked_whole(text: str, length_max: int) -> None:
    """Though only as much of it is looked at as may matter; rather too much is masked."""
    start, whole = mask_card_number_start(text, length_max), mask_card_number_text(text)
    assert len(start) == len(whole[:length_max])
    assert all(mine in (other, "*") for mine, other in zip(start, whole, strict=False))

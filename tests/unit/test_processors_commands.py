"""Commands: what each does, in which order, and by which rule it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.card_numbers import is_card_number
from pipeline.domain.command_memory import content_digest, remembering
from pipeline.domain.decision import Decision
from pipeline.domain.payment import COMMANDED_ATTEMPTS_MAX
from pipeline.domain.policy import DAY_MS, GatewayProfile
from pipeline.domain.routes import Health
from pipeline.processors.order import hold_for_review
from tests.support.audit_story import judged_flow
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
    command,
    yes,
)


def charged() -> Story:
    story = Story()
    story.flow.answer(yes)
    return story


def authorized() -> Story:
    story = Story(MANUAL)
    story.flow.answer(yes)
    return story


def failed() -> Story:
    story = Story()
    story.flow.answer(DECLINED)
    return story


def exhausted(order: Any = ORDER) -> Story:
    story = Story(order)
    story.flow.run(lambda _: TIMED_OUT)
    assert story.events[-1] == "inquiry_exhausted"
    return story


def reviewed(order: Any = ORDER) -> Story:
    """A payment that the risk rules held: the hook that they use, in the driver's table."""
    story = Story(None)
    story.flow.apply(order, hold_for_review(None, order, "risky_country", NOW, POLICY))
    return story


# Captures.


def test_an_authorization_is_captured_in_parts() -> None:
    """Several captures take what was authorized, each settled by its own operation."""
    story = authorized()
    assert (story.status, story.money, story.settled) == ("authorized", (500, 0, 0), [])
    story.command("capture", "c1", amount_minor=200, business_date="2026-09-25")
    assert story.flow.requests()[-1].parent_reference == "authorize_1"
    story.flow.answer(yes)
    assert (story.status, story.money) == ("captured", (500, 200, 0))
    story.command("capture", "c2")
    story.flow.answer(yes)
    assert story.money == (500, 500, 0)
    assert story.settled == [("capture", 200), ("capture", 300)]
    assert [s.business_date for s in story.flow.settlements()] == ["2026-09-25", "2026-09-21"]
    assert story.events == [
        "payment_started", "authorized", "capture_started", "captured", "capture_started",
        "captured",
    ]  # fmt: skip
    assert story.payment.expires_at_ms is None
    assert story.rejected("capture", "c3") == "payment_must_be_authorized"


def test_a_capture_takes_no_more_than_is_left() -> None:
    """What is being captured counts as captured."""
    story = authorized()
    assert story.rejected("capture", amount_minor=501) == "capture_must_not_exceed_authorized"
    story.command("capture", "c2", amount_minor=400)
    story.flow.answer(PENDING)
    assert story.rejected("capture", "c3", amount_minor=101) == "capture_must_not_exceed_authorized"
    assert story.rejected("cancel", "c4") == "payment_must_not_be_captured"
    story.notify("succeeded", "c2")
    assert story.money == (500, 400, 0)


def test_a_capture_that_failed_leaves_the_authorization() -> None:
    """A declined capture changes no amount and no status; another one may follow."""
    story = authorized()
    story.command("capture")
    story.flow.answer(DECLINED)
    assert (story.status, story.money) == ("authorized", (500, 0, 0))
    assert story.events[-1] == "capture_failed"
    story.command("capture", "c2")
    story.flow.answer(yes)
    assert story.status == "captured"


# Refunds.


def test_refunds_take_no_more_than_was_captured() -> None:
    """Full and partial refunds, with what is under way reserved, and what failed free again."""
    story = charged()
    story.command("refund", "r1", amount_minor=200)
    assert story.flow.requests()[-1].parent_reference == "charge_1"
    story.flow.answer(PENDING)
    assert story.rejected("refund", "r2", amount_minor=301) == "refund_must_not_exceed_captured"
    story.command("refund", "r3", amount_minor=300)
    story.flow.answer(DECLINED)
    assert story.events[-1] == "refund_failed"
    story.notify("succeeded", "r1")
    story.command("refund", "r4")
    story.flow.answer(yes)
    assert story.money == (500, 500, 500)
    assert story.settled == [("capture", 500), ("refund", -200), ("refund", -300)]
    assert story.rejected("refund", "r5") == "refund_must_not_exceed_captured"


def test_an_unknown_refund_is_inquired_about_and_leaves_the_status() -> None:
    """A refund that may have happened is asked about, never repeated under another key."""
    story = charged()
    story.command("refund", "r1")
    story.flow.answer(TIMED_OUT)
    assert story.status == "captured"
    assert story.events[-1] == "outcome_unknown"
    story.wait()
    inquiry = story.flow.requests()[-1]
    assert (inquiry.kind, inquiry.operation_kind) == ("inquire", "refund")
    story.flow.answer(yes)
    assert story.money == (500, 500, 500)


def test_a_refund_that_cannot_be_sent_fails_at_last() -> None:
    """A refund stays at its gateway: it is tried again, asked about, and given up with proof."""
    story = charged()
    story.command("refund", "r1")
    story.flow.run(lambda r: NOT_SENT if r.kind == "refund" else NOT_FOUND)
    assert story.events[-1] == "refund_failed"
    assert (story.status, story.money) == ("captured", (500, 500, 0))
    story.flow.result(replace(story.late_result(1), try_number=1))
    assert story.events[-1] == "late_success", "money that left is booked, however late"
    assert story.money == (500, 500, 500)


# Cancels.


def test_an_order_cancelled_in_a_retry_tier_is_never_charged() -> None:
    """The cancel bars sending at once; the payment ends when nobody can have sent."""
    story = Story()
    story.flow.answer(NOT_SENT)
    story.command("cancel", actor="ann")
    assert (story.status, story.payment.cancel_requested_by) == ("processing", "c1")
    story.flow.run(lambda r: yes(r) if r.kind == "charge" else NOT_FOUND)
    assert story.status == "cancelled"
    assert story.asked == ["charge", "inquire"]
    assert story.settled == []
    assert story.rejected("cancel", "c2") == "payment_must_be_open"


def test_a_charge_that_turns_out_made_after_a_cancel_is_given_back() -> None:
    """Cancelled all the same: the charge is booked and refunded, once."""
    story = Story()
    story.command("cancel")
    story.flow.answer(yes)
    assert story.status == "cancelled"
    assert story.events[-2:] == ["cancelled", "reversal_started"]
    story.flow.answer(yes)
    assert story.money == (500, 500, 500)
    assert story.settled == [("capture", 500), ("refund", -500)]


def test_a_cancelled_authorization_is_voided() -> None:
    """A hold is given back at the gateway; nothing is settled."""
    story = authorized()
    story.command("cancel")
    assert story.asked == ["authorize", "void"]
    story.flow.answer(yes)
    assert (story.status, story.money, story.settled) == ("cancelled", (0, 0, 0), [])
    assert story.rejected("capture", "c2") == "payment_must_be_authorized"


def test_a_void_that_failed_leaves_the_authorization() -> None:
    """The status says what is true: the hold stands."""
    story = authorized()
    story.command("cancel")
    story.flow.answer(DECLINED)
    assert (story.status, story.events[-1]) == ("authorized", "void_failed")


def test_a_captured_payment_is_not_cancelled() -> None:
    """Money that was taken goes back by a refund, which says how much."""
    assert charged().rejected("cancel") == "payment_must_not_be_captured"


def test_a_cancel_of_a_decline_is_cancelled() -> None:
    """The decline ends it, and nothing is left to retry."""
    story = Story()
    story.command("cancel")
    assert story.rejected("cancel", "c2") == "cancel_must_not_be_repeated"
    story.flow.answer(DECLINED)
    assert story.status == "cancelled"
    assert story.rejected("retry", "c3", instrument_token="tok_2") == "payment_must_have_failed"


def test_captures_beyond_the_authorization_are_told_and_the_excess_goes_back() -> None:
    """Two captures of 400 of 500, the first one given up and late: 300 go back, once, and what was
    authorized stays what it was."""
    story = Story(MANUAL)
    story.flow.answer(yes)
    story.command("capture", "c1", amount_minor=400)
    story.flow.run(lambda request: NOT_SENT if request.kind != "inquire" else TIMED_OUT)
    assert story.events[-1] == "capture_failed"
    story.command("capture", "c2", amount_minor=400)
    story.flow.answer(yes)
    story.notify("succeeded", "c1")
    late, reversal = story.flow.events()[-2:]
    assert (late.type, reversal.type) == ("late_success", "reversal_started")
    assert late.detail == "300 GBP were captured beyond the authorization"
    request = story.flow.requests()[-1]
    assert (request.kind, request.operation_id, request.amount_minor) == (
        "refund",
        "late-c1-1",
        300,
    )
    story.flow.answer(yes)
    story.notify("succeeded", "c1")
    assert story.flow.open_requests == []
    assert (story.status, story.money) == ("captured", (500, 800, 300))
    assert story.settled == [("capture", 400), ("capture", 400), ("refund", -300)]
    assert story.rejected("capture", "c3", amount_minor=1) == "payment_must_be_authorized"
    story.command("refund", "r1")
    story.flow.answer(yes)
    assert story.money == (500, 800, 800)


# Retries with another instrument.


def test_a_cancel_bars_a_retry_that_waits_for_its_turn() -> None:
    """The retry waits for a reversal, and is not made after it; a refund that waits is."""
    story = failed()
    story.notify("succeeded")
    story.command("retry", "r1", instrument_token="tok_2")
    story.command("refund", "r2", amount_minor=100)
    story.command("cancel", "x1")
    assert story.events[-2:] == ["cancel_requested", "command_rejected"]
    rejected = story.flow.events()[-1]
    assert (rejected.operation_id, rejected.reason) == ("r1", "cancel_requested")
    assert [each.command_id for each in story.payment.commands] == ["r2"]
    story.flow.run(yes)
    assert (story.status, story.money) == ("failed", (500, 500, 500))
    assert {each.instrument_token for each in story.flow.requests()} == {"tok_1"}


def test_a_declined_payment_is_retried_with_another_instrument() -> None:
    """The new token is charged under the command's id; the order's own stays its token."""
    story = failed()
    assert story.rejected("retry", "c0", instrument_token="tok_1") == "token_must_be_new"
    story.command("retry", instrument_token="tok_2")
    request = story.flow.requests()[-1]
    assert (request.instrument_token, request.operation_id, request.attempt) == ("tok_2", "c1", 1)
    assert (story.status, story.events[-1]) == ("processing", "payment_retried")
    story.flow.answer(yes)
    assert (story.status, story.money) == ("captured", (500, 500, 0))
    assert story.flow.order(ORDER).note == "duplicate_order"


def test_a_first_charge_that_shows_after_a_retry_is_given_back() -> None:
    """One payment, paid once: the first charge goes back, the second one stays."""
    story = failed()
    late = story.late_result()
    story.command("retry", instrument_token="tok_2")
    story.flow.result(late)
    story.flow.answer(yes)
    story.flow.answer(yes)
    assert (story.status, story.money) == ("captured", (1_000, 1_000, 500))
    assert sorted(story.settled) == [("capture", 500), ("capture", 500), ("refund", -500)]


def test_a_reversal_that_the_gateway_refuses_is_left_to_a_refund() -> None:
    """The money is still the customer's; a person may give it back by command."""
    story = failed()
    story.flow.result(story.late_result())
    story.flow.answer(DECLINED)
    assert (story.events[-2:], story.money) == (["refund_failed", "reversal_failed"], (500, 500, 0))
    story.command("refund", "r1")
    assert story.flow.requests()[-1].parent_reference == "charge_1"
    story.flow.answer(yes)
    assert (story.status, story.money) == ("failed", (500, 500, 500))


# Resolutions and reviews.


def test_a_person_resolves_what_no_gateway_would_say() -> None:
    """Charged, by the gateway's reference, with evidence and a name."""
    story = exhausted()
    story.command("resolve", decision="charged", gateway_reference="ch_9")
    assert (story.status, story.settled) == ("captured", [("capture", 500)])
    event = story.flow.events()[-1]
    assert (event.actor, event.detail) == ("ann", "the gateway's report")
    assert story.rejected(
        "resolve", "c2", decision="charged", gateway_reference="x"
    ) == "outcome_must_be_unknown"  # fmt: skip


def test_a_person_resolves_a_charge_as_not_made() -> None:
    """Not charged, but only once nobody can send it any more; then it may be retried."""
    story = Story()
    story.flow.answer(TIMED_OUT)
    assert story.rejected("resolve", decision="not_charged") == "send_window_must_be_over"
    story.flow.now_ms += 21 * SECOND
    story.command("resolve", "c2", decision="not_charged")
    assert (story.status, story.payment.reason) == ("failed", "resolved_not_charged")


def resolved(story: Story, command_id: str) -> str | None:
    """The rule by which a resolution as not charged is refused; None: it was taken."""
    story.command("resolve", command_id, decision="not_charged")
    event = story.flow.events()[-1]
    return event.reason if event.type == "command_rejected" else None


def test_a_contradiction_before_the_answer_does_not_end_the_send_window() -> None:
    """A notice stops the charge while its request may lie in a frozen worker's hands. Until when
    that may send it is known from the answer alone: before, and until then, nobody charges
    elsewhere."""
    story = Story()
    story.notify("succeeded", amount_minor=499)
    assert story.payment.attempts[0].state == "contradicted"
    story.flow.now_ms += 3_600 * SECOND
    assert resolved(story, "c1") == "send_window_must_be_over", "the request may be younger"
    story.flow.answer(NOT_SENT)
    event = story.flow.events()[-1]
    assert (event.type, event.reason) == ("answer_came_late", "send_before_passed")
    window_ms = (10 + 1 + 10) * SECOND  # send_within, clocks, and the gateway's grace
    story.flow.now_ms += window_ms - 1
    assert resolved(story, "c2") == "send_window_must_be_over"
    story.flow.now_ms += 1
    assert resolved(story, "c3") is None
    story.command("retry", "c4", instrument_token="tok_2")
    assert story.status == "processing"


@pytest.mark.parametrize("first", [TIMED_OUT, NOT_SENT])
def test_each_request_has_a_send_window_of_its_own(first: Any) -> None:
    """Sent again, and contradicted before the second answer: the first one's window proves
    nothing."""
    story = Story(policy=replace(POLICY, inquiry_max=40))
    story.flow.answer(first)
    while story.asked[-1] != "charge" or len(story.asked) == 1:
        if story.flow.open_requests:
            story.flow.answer(NOT_FOUND)
        else:
            story.wait()
    story.flow.now_ms += 60 * SECOND
    story.notify("succeeded", amount_minor=499)
    assert resolved(story, "c1") == "send_window_must_be_over"
    story.flow.answer(TIMED_OUT)
    story.flow.now_ms += 60 * SECOND
    assert resolved(story, "c2") is None


@pytest.mark.parametrize("heard", ["answer", "inquiry", "nothing"])
def test_a_pending_notice_before_the_answer_ends_no_send_window(heard: str) -> None:
    """Nor does a second one that contradicts: an answer does, and so does a later inquiry's, which
    the request's own has gone before."""
    story = Story()
    story.notify("pending")
    request = story.flow.open_requests.pop()
    if heard == "answer":
        story.flow.result(story.flow.handle(request, PENDING))
        assert story.events[-1] == "answer_came_late"
    if heard == "inquiry":
        story.wait()
        story.flow.answer(PENDING)
    story.notify("succeeded", amount_minor=499)
    story.flow.now_ms += 60 * SECOND
    assert (resolved(story, "c1") is None) is (heard != "nothing")


def test_an_answer_that_never_comes_does_not_keep_a_person_waiting_for_ever() -> None:
    """What is older than any charge may be, nobody sends: for snapshots of before the answer was
    remembered."""
    story = Story()
    story.notify("succeeded", amount_minor=499)
    story.flow.now_ms += story.flow.policy.stale_after_ms + 60 * SECOND
    assert resolved(story, "c1") is None


def test_a_decline_after_a_pending_notice_counts() -> None:
    """The answer is the gateway's word on this very request, whichever came first."""
    story = Story()
    story.notify("pending")
    story.flow.answer(DECLINED)
    assert (story.status, story.payment.reason) == ("failed", "insufficient_funds")


def two_unknown_refunds() -> Story:
    story = charged()
    for number in ("r1", "r2"):
        story.command("refund", number, amount_minor=200)
        story.flow.run(lambda _: TIMED_OUT)
    return story


def test_of_several_unknown_operations_one_is_named() -> None:
    """Nobody's word about one is taken for another's; the refusal says which there are."""
    story = two_unknown_refunds()
    charged_back = {"decision": "charged", "gateway_reference": "re_9"}
    assert story.rejected("resolve", "c1", **charged_back) == "operation_must_be_named"
    assert story.flow.events()[-1].detail == (
        "resolve: one of r1 (refund of 200 GBP at simulator), r2 (refund of 200 GBP at simulator)"
    )
    story.command("resolve", "c2", operation_id="r2", **charged_back)
    states = {a.operation_id: a.state for a in story.payment.attempts}
    assert states == {"1": "charged", "r1": "inquiry_exhausted", "r2": "refunded"}
    story.command("resolve", "c3", decision="not_charged")
    assert story.payment.attempts[1].state == "failed", "only one is left, so it is meant"
    assert story.money == (500, 500, 200)


@pytest.mark.parametrize(
    ("operation_id", "rule"),
    [("1", "outcome_must_be_unknown"), ("r9", "operation_must_be_the_payments")],
)
def test_what_is_known_is_not_resolved(operation_id: str, rule: str) -> None:
    """Naming an operation that is known, or no operation at all, resolves none."""
    story = two_unknown_refunds()
    word = {"decision": "not_charged", "operation_id": operation_id}
    assert story.rejected("resolve", **word) == rule


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ("amount_must_be_positive", {"amount_minor": 0}),
        ("amount_must_not_be_given", {"decision": "not_charged", "amount_minor": 400}),
        ("gateway_reference_must_be_given", {"gateway_reference": " "}),
        ("gateway_reference_must_be_given", {"gateway_reference": "re_1\u200b"}),
        ("gateway_reference_must_be_given", {"gateway_reference": "re_\x001"}),
        ("amount_must_be_what_was_asked", {"operation_id": "r1", "amount_minor": 99}),
    ],
)
def test_what_an_outcome_is_said_to_have_moved_keeps_the_rules(rule: str, fields: Any) -> None:
    """Only what takes the customer's money may turn out to have taken another amount."""
    story = charged()
    story.command("refund", "r1", amount_minor=100)
    story.flow.answer(TIMED_OUT)
    told = {"decision": "charged", "gateway_reference": "re_1", **fields}
    assert story.rejected("resolve", "p1", **told) == rule
    story.command("resolve", "p2", decision="charged", gateway_reference="re_1", amount_minor=100)
    assert story.money == (500, 500, 100)


def test_a_charge_is_not_resolved_by_the_id_of_another_operation() -> None:
    """The first charge showed late and went back; who finds its id in the gateway's dashboard must
    not make a sale of it once more."""
    story = Story()
    story.flow.run(lambda request: NOT_SENT if request.kind != "inquire" else TIMED_OUT)
    story.command("retry", "t1", instrument_token="tok_2")
    story.flow.run(lambda _: TIMED_OUT)
    story.notify("succeeded", "1")
    story.flow.run(yes)
    assert story.money == (500, 500, 500)
    reference = f" {story.payment.attempts[0].gateway_reference} "
    named = {"decision": "charged", "gateway_reference": reference}
    rule = "gateway_reference_must_not_be_another_operations"
    assert story.rejected("resolve", "p1", **named) == rule
    story.command("resolve", "p2", decision="charged", gateway_reference="ch_2")
    assert story.payment.attempts[1].gateway_reference == "ch_2"


def test_a_refund_is_not_resolved_by_the_id_of_another_one() -> None:
    """Nor is a refund counted twice."""
    story = two_unknown_refunds()
    told = {"decision": "charged", "gateway_reference": "re_1"}
    story.command("resolve", "p1", operation_id="r1", **told)
    rule = "gateway_reference_must_not_be_another_operations"
    assert story.rejected("resolve", "p2", operation_id="r2", **told) == rule


def test_the_audit_names_a_charge_that_was_settled_for_two_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Should such a word ever be taken, nothing else shows it: the payment is whole by itself."""
    monkeypatch.setattr("pipeline.domain.commands.is_of_another", lambda *_: False)
    story = exhausted(MANUAL)
    story.command("resolve", "p0", decision="charged", gateway_reference="au_1")
    story.command("capture", "k1")
    story.flow.answer(yes)
    for refund in ("r1", "r2"):
        story.command("refund", refund, amount_minor=100)
        story.flow.run(lambda _: TIMED_OUT)
    assert "reference_settled_twice" not in {f.name for f in judged_flow(story.flow, None)}
    for refund in ("r1", "r2"):
        told = {"operation_id": refund, "decision": "charged", "gateway_reference": "re_1"}
        story.command("resolve", f"p-{refund}", **told)
    assert story.money == (500, 500, 200)
    assert [f.name for f in judged_flow(story.flow, None)] == ["reference_settled_twice"]


def test_captures_of_one_hold_may_have_one_id() -> None:
    """Some gateways know a capture by the id of its authorization alone."""
    story = Story(MANUAL)
    story.flow.answer(yes)
    hold = story.payment.attempts[0].gateway_reference
    told = {"decision": "charged", "gateway_reference": hold, "override": "reference"}
    for command_id in ("k1", "k2"):
        story.command("capture", command_id, amount_minor=100)
        story.flow.run(lambda _: TIMED_OUT)
        story.command("resolve", f"p-{command_id}", **told)
    assert story.money == (500, 200, 0)
    assert [f.name for f in judged_flow(story.flow, None)] == []


@pytest.mark.parametrize("told_by", ["the gateway", "a person"])
def test_refunds_of_one_charge_may_have_its_id(told_by: str) -> None:
    """Some gateways have none of its own for a refund; what went back they tell by its amount."""
    story = charged()
    reference = story.payment.attempts[0].gateway_reference
    for command_id in ("r1", "r2"):
        story.command("refund", command_id, amount_minor=100)
        if told_by == "the gateway":
            story.flow.answer(lambda r: replace(yes(r), gateway_reference=reference))
        else:
            story.flow.run(lambda _: TIMED_OUT)
            told = {"decision": "charged", "gateway_reference": reference}
            rule = "gateway_reference_must_not_be_another_operations"
            assert story.rejected("resolve", f"q-{command_id}", **told) == rule
            story.command("resolve", f"p-{command_id}", **told, override="reference")
    assert (story.money, story.flow.dead_letters) == ((500, 500, 200), [])
    assert [f.name for f in judged_flow(story.flow, None)] == []


@pytest.mark.parametrize("about", ["authorize_1", "capture_1_k1"])
def test_refunds_of_one_capture_may_have_its_id_or_its_hold_s(about: str) -> None:
    """Whichever of the two the gateway knows a refund by."""
    story = authorized()
    for command_id in ("k1", "k2"):
        story.command("capture", command_id, amount_minor=200)
        story.flow.answer(yes)
    for command_id in ("r1", "r2"):
        story.command("refund", command_id, amount_minor=100)
        story.flow.answer(lambda r: replace(yes(r), gateway_reference=about))
    assert (story.money, story.flow.dead_letters) == ((500, 400, 200), [])
    assert [f.name for f in judged_flow(story.flow, None)] == []


def test_a_capture_is_not_resolved_by_the_id_of_another_one() -> None:
    """Where each has an id of its own."""
    story = Story(MANUAL)
    story.flow.answer(yes)
    story.command("capture", "k1", amount_minor=100)
    story.flow.answer(yes)
    story.command("capture", "k2", amount_minor=100)
    story.flow.answer(TIMED_OUT)
    told = {"decision": "charged", "gateway_reference": story.payment.attempts[1].gateway_reference}
    rule = "gateway_reference_must_not_be_another_operations"
    assert story.rejected("resolve", "p1", **told) == rule
    assert story.money == (500, 100, 0)


def test_a_refund_is_not_resolved_by_the_id_of_one_that_came_back() -> None:
    """What came back under it is no other refund."""
    story = charged()
    story.command("refund", "r1", amount_minor=100)
    story.flow.answer(yes)
    story.notify("failed", "r1")
    story.command("refund", "r2", amount_minor=100)
    story.flow.answer(TIMED_OUT)
    refund = next(each for each in story.payment.attempts if each.operation_id == "r1")
    assert (refund.state, story.money) == ("failed", (500, 500, 0))
    told = {"decision": "charged", "gateway_reference": refund.gateway_reference}
    rule = "gateway_reference_must_not_be_another_operations"
    assert story.rejected("resolve", "p1", **told) == rule


def test_a_person_books_what_moved_under_the_id_of_another_operation() -> None:
    """A gateway may break its promise that an id stands for one movement. Whoever has seen both in
    its books says so, and need not deny that the money moved."""
    story = Story(MANUAL)
    story.flow.answer(yes)
    for command_id in ("k1", "k2"):
        story.command("capture", command_id, amount_minor=200)
        story.flow.answer(lambda r: replace(yes(r), gateway_reference="pay_1"))
    assert (story.payment.attempts[-1].state, story.money) == ("contradicted", (500, 200, 0))
    story.flow.advance(3_600_000)
    told = {"decision": "charged", "gateway_reference": "pay_1"}
    rule = "gateway_reference_must_not_be_another_operations"
    assert story.rejected("resolve", "p1", **told) == rule
    assert story.rejected("resolve", "p2", **told, override="dispute") == rule
    story.command("resolve", "p3", **told, override="reference")
    assert (story.money, story.settled) == ((500, 400, 0), [("capture", 200), ("capture", 200)])
    assert [f.name for f in judged_flow(story.flow, None)] == []


def test_a_refund_that_is_made_again_under_its_id_is_booked_by_a_person() -> None:
    """It came back, and the gateway made it once more without a new id."""
    story = charged()
    for command_id in ("r1", "r2"):
        story.command("refund", command_id)
        story.flow.answer(lambda r: replace(yes(r), gateway_reference="re_1"))
        if command_id == "r1":
            story.notify("failed", "r1", gateway_reference="re_1", code="returned")
    assert (story.payment.attempts[-1].state, story.money) == ("contradicted", (500, 500, 0))
    told = {"decision": "charged", "gateway_reference": "re_1", "override": "reference"}
    story.command("resolve", "p1", **told)
    assert story.money == (500, 500, 500)
    assert [f.name for f in judged_flow(story.flow, None)] == []


def test_the_audit_names_an_id_that_only_a_refused_word_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a person asked for and did not get confirms nothing, nor does another id."""
    story = two_unknown_refunds()
    told = {"decision": "charged", "gateway_reference": "re_1"}
    story.command("resolve", "p1", operation_id="r1", **told)
    confirmed = {**told, "override": "reference"}
    assert story.rejected("resolve", "p2", operation_id="1", **confirmed) is not None
    monkeypatch.setattr("pipeline.domain.commands.is_of_another", lambda *_: False)
    story.command("resolve", "p3", operation_id="r2", **told)
    assert [f.name for f in judged_flow(story.flow, None)] == ["reference_settled_twice"]


def test_a_retry_is_not_resolved_by_the_id_that_the_first_attempt_was_told() -> None:
    """Its gateway told the id and not what became of it; no money was booked under it."""
    story = Story()
    story.flow.answer(GatewayAnswer(outcome="unknown", code="timeout", gateway_reference="ch_1"))
    story.flow.run(lambda _: TIMED_OUT)
    story.flow.advance(3_600_000)
    story.command("resolve", "p1", decision="not_charged")
    story.command("retry", "t1", instrument_token="tok_2")
    story.flow.run(lambda _: TIMED_OUT)
    told = {"decision": "charged", "gateway_reference": "ch_1"}
    rule = "gateway_reference_must_not_be_another_operations"
    assert story.rejected("resolve", "p2", **told) == rule


def test_an_operation_is_not_resolved_by_another_id_than_its_gateway_told() -> None:
    """Unless the person insists: the gateway may have been wrong, or have several."""
    story = Story()
    story.flow.answer(GatewayAnswer(outcome="unknown", code="timeout", gateway_reference="ch_1"))
    story.flow.run(lambda _: TIMED_OUT)
    told = {"decision": "charged", "gateway_reference": "ch_9"}
    rule = "gateway_reference_must_be_the_one_that_is_known"
    assert story.rejected("resolve", "p1", **told) == rule
    story.command("resolve", "p2", **told, override="reference")
    assert story.payment.attempts[0].gateway_reference == "ch_9"
    assert story.status == "captured"
    assert [f.name for f in judged_flow(story.flow, None)] == []


def test_a_void_is_resolved_by_the_id_of_its_hold() -> None:
    """It moves no money, and many gateways have no id of its own for it."""
    story = authorized()
    story.command("cancel", "c1")
    story.flow.run(lambda _: TIMED_OUT)
    hold = story.payment.attempts[0].gateway_reference
    story.command("resolve", "p1", decision="charged", gateway_reference=hold)
    assert story.status == "cancelled"


def test_a_charge_that_shows_late_under_the_id_of_another_one_is_a_dead_letter() -> None:
    """A person took it for the retry's. There is one charge, and it is booked: to book it once more
    and give it back would give away the goods."""
    story = Story()
    story.flow.run(lambda request: NOT_SENT if request.kind != "inquire" else TIMED_OUT)
    story.command("retry", "t1", instrument_token="tok_2")
    story.flow.run(lambda _: TIMED_OUT)
    story.command("resolve", "p1", decision="charged", gateway_reference="ch_1")
    story.notify("succeeded", "1", gateway_reference="ch_1")
    story.flow.run(yes)
    assert [letter.cause for letter in story.flow.dead_letters] == ["contradictory_evidence"]
    assert (story.status, story.money) == ("captured", (500, 500, 0))
    assert story.settled == [("capture", 500)]
    assert [f.name for f in judged_flow(story.flow, None)] == []


def test_an_open_refund_that_shows_under_the_id_of_another_one_is_a_persons() -> None:
    """Its own outcome is not known by that."""
    story = two_unknown_refunds()
    told = {"decision": "charged", "gateway_reference": "refund_1_r1"}
    story.command("resolve", "p2", operation_id="r2", **told)
    booked = story.money
    story.notify("succeeded", "r1", gateway_reference="refund_1_r1")
    story.flow.run(yes)
    assert [letter.cause for letter in story.flow.dead_letters] == ["contradictory_evidence"]
    assert story.money == booked
    assert [a.operation_id for a in story.payment.attempts if a.state == "contradicted"] == ["r1"]
    story.command("resolve", "p1", operation_id="r1", decision="not_charged")
    assert story.money == booked
    assert story.status == "captured"


def retried_elsewhere() -> Story:
    """The first charge was given up, and the retry at the other gateway is unknown."""
    other = GatewayProfile(name="other", grace_ms=10 * SECOND, priority=200)
    story = Story(policy=replace(POLICY, gateways=(*POLICY.gateways, other)))
    story.flow.run(lambda request: NOT_SENT if request.kind != "inquire" else TIMED_OUT)
    story.flow.policy = replace(story.flow.policy, health=Health(down=frozenset({"simulator"})))
    story.command("retry", "t1", instrument_token="tok_2")
    story.flow.run(lambda _: TIMED_OUT)
    assert [a.gateway for a in story.payment.attempts] == ["simulator", "other"]
    return story


def test_a_retry_elsewhere_is_not_resolved_by_the_id_of_the_first_charge() -> None:
    """Whoever copies an id does not see at which gateway the payment looks for it."""
    story = retried_elsewhere()
    story.notify("succeeded", "1", gateway_reference="ch_1")
    story.flow.run(yes)
    assert story.money == (500, 500, 500)
    told = {"decision": "charged", "gateway_reference": "ch_1"}
    rule = "gateway_reference_must_not_be_another_operations"
    assert story.rejected("resolve", "p1", **told) == rule
    story.command("resolve", "p2", decision="charged", gateway_reference="ch_2")
    assert story.money == (1000, 1000, 500)
    assert [f.name for f in judged_flow(story.flow, None)] == []


def test_a_charge_elsewhere_that_shows_under_the_id_of_another_one_is_a_dead_letter() -> None:
    """A person took it for the retry's: there is one charge, and it is booked, at whichever of the
    two gateways it was made."""
    story = retried_elsewhere()
    story.command("resolve", "p1", decision="charged", gateway_reference="ch_1")
    story.notify("succeeded", "1", gateway_reference="ch_1")
    story.flow.run(yes)
    assert [letter.cause for letter in story.flow.dead_letters] == ["contradictory_evidence"]
    assert (story.status, story.money) == ("captured", (500, 500, 0))
    assert story.settled == [("capture", 500)]


def test_the_audit_names_an_id_that_one_payment_has_at_two_gateways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Should such a word ever be taken, nothing else shows it."""
    monkeypatch.setattr("pipeline.domain.commands.is_of_another", lambda *_: False)
    story = retried_elsewhere()
    story.notify("succeeded", "1", gateway_reference="ch_1")
    story.flow.run(yes)
    story.command("resolve", "p1", decision="charged", gateway_reference="ch_1")
    assert [f.name for f in judged_flow(story.flow, None)] == ["reference_settled_twice"]


def test_two_gateways_may_number_alike() -> None:
    """Each for itself: both say that they charged under one id, and the one too many goes back."""
    story = retried_elsewhere()
    story.notify("succeeded", "t1", gateway_reference="1001")
    assert (story.status, story.money) == ("captured", (500, 500, 0))
    story.notify("succeeded", "1", gateway_reference="1001")
    story.flow.run(yes)
    assert (story.status, story.money) == ("captured", (1000, 1000, 500))
    assert story.flow.dead_letters == []
    assert [f.name for f in judged_flow(story.flow, None)] == []


@pytest.mark.parametrize("named", [None, "r1"])
def test_who_tells_a_refund_apart_has_said_nothing_of_a_charge(
    named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refund has the id of its charge, and a person insists. That two charges were
    settled under that id is found all the same."""
    story = Story()
    story.flow.run(lambda request: NOT_SENT if request.kind != "inquire" else TIMED_OUT)
    story.command("retry", "t1", instrument_token="tok_2")
    story.flow.answer(lambda r: replace(yes(r), gateway_reference="ch_1"))
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.processors.successes.is_anothers", lambda *_: False)
        story.notify("succeeded", "1", gateway_reference="ch_1")
    story.flow.run(yes)
    story.command("refund", "r1", amount_minor=100)
    story.flow.run(lambda _: TIMED_OUT)
    told = {"decision": "charged", "gateway_reference": "ch_1", "override": "reference"}
    story.command("resolve", "p1", operation_id=named, **told)
    assert story.money == (1000, 1000, 600)
    assert [f.name for f in judged_flow(story.flow, None)] == ["reference_settled_twice"]


def test_what_was_heard_to_be_pending_is_no_persons_to_resolve() -> None:
    """Its gateway has it: called not charged, it would be charged beside a retry. The same as where
    it said so in time."""
    story = Story()
    story.flow.answer(TIMED_OUT)
    story.wait()
    story.flow.answer(replace(TIMED_OUT, code="heard_pending"))
    story.flow.now_ms += 30 * SECOND
    story.wait()
    assert story.rejected("resolve", decision="not_charged") == "outcome_must_be_unknown"
    story.flow.answer(yes)
    assert (story.status, story.money) == ("captured", (500, 500, 0))


def test_an_authorization_is_resolved_as_well() -> None:
    """A resolved authorization can be captured."""
    story = exhausted(MANUAL)
    story.command("resolve", decision="charged", gateway_reference="au_9")
    assert (story.status, story.money) == ("authorized", (500, 0, 0))
    story.command("capture", "c2")
    assert story.flow.requests()[-1].parent_reference == "au_9"


def test_a_resolved_charge_of_a_cancelled_payment_is_given_back() -> None:
    """The cancel still counts."""
    story = exhausted()
    story.command("cancel")
    assert story.status == "outcome_unknown"
    story.command("resolve", "c2", decision="charged", gateway_reference="ch_9")
    assert story.status == "cancelled"
    story.flow.answer(yes)
    assert story.money == (500, 500, 500)


def test_a_review_is_approved_and_charged() -> None:
    """Nobody is asked for money before a person has said so; commands wait for that."""
    story = reviewed(MANUAL)
    assert (story.status, story.asked) == ("risk_review", [])
    story.command("capture", "c1")
    assert story.events[-1] == "command_waiting"
    story.command("review", "c2", decision="approve")
    assert story.status == "processing"
    story.flow.answer(yes)
    assert story.asked == ["authorize", "capture"]


def test_a_review_is_denied_or_cancelled() -> None:
    """Either ends the payment before any gateway heard of it."""
    story = reviewed()
    story.command("review", decision="deny", reason="stolen card")
    assert (story.status, story.payment.reason) == ("rejected", "risk_review_denied")
    assert story.rejected("review", "c2", decision="approve") == "payment_must_be_in_review"
    story = reviewed()
    story.command("cancel")
    assert (story.status, story.asked) == ("cancelled", [])


def test_a_review_ends_with_the_orders_deadline() -> None:
    """A payment that nobody looked at in time expires."""
    story = reviewed(replace(ORDER, pay_before_ms=NOW + 90 * SECOND))
    story.flow.advance(180 * SECOND)
    assert story.status == "expired"


@pytest.mark.parametrize("pay_before_ms", [None, NOW + 90 * DAY_MS])
def test_a_review_ends_by_itself(pay_before_ms: int | None) -> None:
    """Nobody is charged months after he ordered, also where the order sets no limit."""
    story = reviewed(replace(ORDER, pay_before_ms=pay_before_ms))
    assert story.payment.expires_at_ms == NOW + POLICY.review_ms
    story.command("refund", "r1")
    story.flow.advance(POLICY.review_ms - DAY_MS)
    assert story.status == "risk_review"
    story.flow.advance(DAY_MS + 120 * SECOND)
    assert (story.status, story.payment.reason) == ("expired", "review_ends")
    assert story.events[-2:] == ["expired", "command_rejected"], "what waited is answered"
    assert story.asked == []


def test_a_review_that_is_over_is_not_approved() -> None:
    """Its timer may be late by a tier; the end counts all the same."""
    story = reviewed()
    story.command("capture", "c1")
    story.flow.now_ms += POLICY.review_ms
    story.command("review", "c2", decision="approve")
    assert (story.status, story.asked) == ("expired", [])
    assert story.events[-3:] == ["expired", "command_rejected", "command_rejected"]
    assert story.flow.events()[-2].reason == "review_must_be_in_time"


@pytest.mark.parametrize(
    ("age_ms", "decision", "status"),
    [
        (POLICY.review_ms - 1, "approve", "processing"),
        (POLICY.review_ms, "approve", "expired"),
        (POLICY.review_ms, "deny", "rejected"),
    ],
)
def test_a_review_of_before_has_an_end_as_well(age_ms: int, decision: str, status: str) -> None:
    """It was begun without a timer; its order's age bounds it when somebody decides."""
    story = reviewed()
    story.flow.apply(ORDER, Decision(payment=replace(story.payment, expires_at_ms=None)))
    story.flow.now_ms += age_ms
    story.command("review", decision=decision)
    assert story.status == status


# Credits.

CREDIT: dict[str, Any] = {
    "amount_minor": 300,
    "currency": "GBP",
    "business_date": "2026-09-21",
}


def test_an_unlinked_credit_is_booked_and_held() -> None:
    """A credit without a payment stands on its own key, once."""
    story = Story(None)
    story.command("credit", **CREDIT, reason="goods returned")
    (settlement,) = story.flow.settlements()
    assert (settlement.kind, settlement.amount_minor) == ("credit", -300)
    assert (settlement.gateway, settlement.gateway_reference) == ("none", "c1")
    assert (story.status, story.asked) == ("credit_held", [])
    assert story.command("credit", **CREDIT).note == "duplicate_command"
    assert story.rejected("credit", "c2", **CREDIT) == "credit_must_have_its_own_key"
    assert story.flow.order(ORDER).dead_letter == "order_conflict"


def test_a_credit_of_a_payment_is_a_refund() -> None:
    """Where there is a payment a credit is refused."""
    assert charged().rejected("credit", **CREDIT) == "credit_must_have_its_own_key"


# Waiting.


def test_commands_wait_and_run_in_order() -> None:
    """Captures and refunds given while the authorization is open run when they can, in order."""
    story = Story(MANUAL)
    story.command("capture", "c1", amount_minor=200)
    story.command("refund", "c2", amount_minor=200)
    story.command("capture", "c3")
    assert story.command("capture", "c1", amount_minor=200).note == "duplicate_command"
    assert [each.command_id for each in story.payment.commands] == ["c1", "c2", "c3"]
    story.flow.run(yes)
    assert [request.operation_id for request in story.flow.requests()] == ["1", "c1", "c2", "c3"]
    assert story.money == (500, 500, 200)
    assert not story.payment.commands


def test_waiting_commands_are_judged_when_they_run() -> None:
    """What became impossible meanwhile is rejected then, and the next one runs in the same
    decision."""
    story = Story(MANUAL)
    story.command("capture", "c1")
    story.command("capture", "c2")
    story.command("refund", "c3", amount_minor=100)
    story.flow.answer(yes)
    story.flow.answer(yes)
    assert story.events[-3:] == ["captured", "command_rejected", "refund_started"]
    assert story.payment.sequence == len(story.flow.events())


@pytest.mark.parametrize("amount_minor", [None, 300])
def test_a_refund_waits_for_a_capture_that_is_pending(amount_minor: int | None) -> None:
    """What the gateway has not finished capturing can be given back once it is there."""
    story = authorized()
    story.command("capture", "c1", amount_minor=300)
    story.flow.answer(PENDING)
    story.command("refund", "r1", amount_minor=amount_minor)
    assert story.events[-1] == "command_waiting"
    story.flow.run(lambda _: PENDING)
    assert [each.command_id for each in story.payment.commands] == ["r1"]
    story.notify("succeeded", "c1")
    assert story.events[-2:] == ["captured", "refund_started"]
    story.flow.run(yes)
    assert (story.money, story.payment.commands) == ((500, 300, 300), ())


@pytest.mark.parametrize(
    ("outcome", "rule"),
    [("declined", "payment_must_be_captured"), ("succeeded", None)],
)
def test_a_refund_that_waited_is_judged_when_its_capture_is_final(
    outcome: str, rule: str | None
) -> None:
    """No capture, no refund: by name."""
    story = authorized()
    story.command("capture", "c1")
    story.flow.answer(PENDING)
    story.command("refund", "r1", amount_minor=500)
    story.notify(outcome, "c1")
    assert story.flow.events()[-1].reason == rule
    assert story.asked.count("refund") == (rule is None)


def test_a_refund_of_another_charge_waits_for_no_capture() -> None:
    """It names a hold that came too late, of which nothing is being captured: judged at once."""
    story = Story(MANUAL)
    story.flow.answer(DECLINED)
    late = story.late_result()
    story.command("retry", "r1", instrument_token="tok_2")
    story.flow.answer(yes)
    story.command("capture", "c1", amount_minor=300)
    story.flow.answer(PENDING)
    story.flow.result(late)
    story.flow.answer(yes)
    other = story.payment.attempts[0].gateway_reference
    rule = story.rejected("refund", "r2", gateway_reference=other)
    assert rule == "payment_must_be_captured"
    story.command("refund", "r3", amount_minor=300)
    assert [each.command_id for each in story.payment.commands] == ["r3"]


def test_a_refund_waits_only_where_a_pending_capture_matters() -> None:
    """What was captured suffices: it runs at once. More than all there will be: refused at once."""
    story = authorized()
    story.command("capture", "c1", amount_minor=200)
    story.flow.answer(yes)
    story.command("capture", "c2", amount_minor=300)
    story.flow.answer(PENDING)
    assert story.rejected("refund", "r1", amount_minor=501) == "refund_must_not_exceed_captured"
    story.command("refund", "r2", amount_minor=150)
    story.flow.open_requests.sort(key=lambda opened: opened[1].kind == "inquire")
    story.flow.answer(yes)
    assert story.money == (500, 200, 150)
    story.command("refund", "r3", amount_minor=51)
    story.command("refund", "r4", amount_minor=10)
    waiting = [each.command_id for each in story.payment.commands]
    assert waiting == ["r3", "r4"], "what comes behind waits with it"
    story.notify("declined", "c2")
    rejected = story.flow.events()[-2]
    assert (rejected.operation_id, rejected.reason) == ("r3", "refund_must_not_exceed_captured")
    assert story.events[-1] == "refund_started"


def voiding(answer: Any) -> Story:
    """An authorized payment whose void is not finished, with a capture and a void behind it."""
    story = authorized()
    story.command("cancel", "v1")
    story.flow.answer(answer)
    if answer is TIMED_OUT:
        story.flow.run(lambda _: TIMED_OUT)
    story.command("capture", "c1", amount_minor=200)
    story.command("cancel", "v2")
    assert [each.command_id for each in story.payment.commands] == ["c1", "v2"]
    assert [kind for kind in story.asked if kind != "inquire"] == ["authorize", "void"]
    return story


def test_a_capture_waits_for_a_void_that_is_pending() -> None:
    """Voided: there is nothing left to capture or to void, and both are refused by name."""
    story = voiding(PENDING)
    story.notify("succeeded", "v1")
    assert story.events[-3:] == ["cancelled", "command_rejected", "command_rejected"]
    assert [event.reason for event in story.flow.events()[-2:]] == [
        "payment_must_be_authorized", "payment_must_be_open",
    ]  # fmt: skip
    assert (story.status, story.money) == ("cancelled", (0, 0, 0))


def test_a_capture_runs_when_the_void_before_it_was_refused() -> None:
    """The hold stands: it is captured, and a second void is too late."""
    story = voiding(PENDING)
    story.notify("declined", "v1")
    story.flow.run(yes)
    assert (story.status, story.money) == ("captured", (500, 200, 0))
    assert story.flow.events()[-1].reason == "payment_must_not_be_captured"


def test_a_capture_waits_for_a_void_that_only_a_person_can_end() -> None:
    """Nobody knows whether the hold is gone; a person says, and then the capture runs."""
    story = voiding(TIMED_OUT)
    assert story.payment.attempts[-1].state == "inquiry_exhausted"
    story.flow.now_ms += 60 * SECOND
    story.command("resolve", "c9", decision="not_charged")
    story.flow.run(yes)
    assert (story.status, story.money) == ("captured", (500, 200, 0))


def test_a_command_that_overtakes_its_order_waits_for_it() -> None:
    """Nothing is lost or refused because two topics have no common order."""
    story = Story(None)
    story.command("capture", "c1", amount_minor=200)
    assert (story.status, story.events) == ("awaiting_order", ["awaiting_order"])
    story.command("refund", "c2", amount_minor=50)
    story.flow.order(MANUAL)
    story.flow.run(yes)
    assert story.asked == ["authorize", "capture", "refund"]
    assert story.money == (500, 200, 50)
    assert story.flow.order(MANUAL).note == "duplicate_order"


def test_an_order_whose_cancel_came_first_is_never_charged() -> None:
    """The cancel is found waiting when the order arrives; what else waited is judged by it."""
    story = Story(None)
    story.command("capture", "c1")
    story.command("cancel", "c2", reason="changed my mind")
    story.flow.order(ORDER)
    assert (story.status, story.asked) == ("cancelled", [])
    assert story.events[-2:] == ["cancelled", "command_rejected"]


def test_a_placeholder_becomes_whatever_its_order_is() -> None:
    """A rejected or free order answers the commands that waited for it."""
    story = Story(None)
    story.command("refund", "c1")
    story.flow.order(replace(ORDER, currency="?"))
    assert story.events == ["awaiting_order", "rejected", "command_rejected"]
    story = Story(None)
    story.command("refund", "c1")
    story.flow.order(replace(ORDER, amount_minor=0))
    assert story.events == ["awaiting_order", "no_payment_due", "command_rejected"]


def test_commands_of_an_order_that_never_comes_are_rejected() -> None:
    """After a day their senders are told; a later order is still paid."""
    story = Story(None)
    story.command("refund", "c1")
    story.flow.advance(DAY_MS + 120 * SECOND)
    assert story.events[-1] == "command_rejected"
    assert story.flow.events()[-1].reason == "order_must_arrive"
    story.command("refund", "c2")
    story.flow.advance(DAY_MS + 120 * SECOND)
    assert story.events.count("command_rejected") == 2
    story.flow.order(ORDER)
    assert story.status == "processing"


def test_waiting_commands_are_bounded() -> None:
    """The seventeenth command that would wait is refused by name."""
    story = Story(MANUAL)
    for number in range(16):
        story.command("capture", f"c{number}", amount_minor=1)
    assert story.rejected("capture", "c16") == "commands_must_not_exceed_limit"


def filled(story: Story, ids: int = 256) -> Story:
    """The payment's memory of commands is full, by commands of this very moment."""
    payment = story.payment
    while len(payment.command_ids) < ids:
        taken = command("refund", f"x{len(payment.command_ids)}")
        known = remembering(payment, taken, story.flow.now_ms, POLICY, always=False)
        assert known is not None
        payment = known
    story.flow.apply(ORDER, Decision(payment=payment))
    return story


@pytest.mark.slow
def test_remembered_commands_are_bounded() -> None:
    """An endless stream of commands cannot make a snapshot endless, nor be taken twice."""
    story = charged()
    for number in range(256):
        story.command("capture", f"x{number}")
    assert story.rejected("refund", "r1") == "commands_must_not_exceed_limit"
    assert story.rejected("refund", "r1") == "commands_must_not_exceed_limit"
    assert len(story.payment.command_ids) == len(story.payment.command_marks) == 256


def test_a_command_that_cannot_come_again_gives_way() -> None:
    """Past the retention of its topic no record repeats it: there is room for another one."""
    story = filled(authorized())
    story.flow.now_ms += story.flow.policy.command_memory_ms
    assert story.rejected("refund", "r1") == "commands_must_not_exceed_limit"
    story.flow.now_ms += 1
    story.command("capture", "c1")
    story.flow.answer(yes)
    assert story.status == "captured"
    assert (len(story.payment.command_ids), story.payment.command_ids[-1]) == (256, "c1")
    assert story.payment.command_ids[0] == "x1"
    assert story.command("refund", "x1").note == "duplicate_command"


@pytest.mark.slow
def test_what_a_person_needs_is_always_taken() -> None:
    """A cancel, a resolution and a review, whatever came before; memory stays bounded, and each is
    taken once."""
    story = filled(authorized())
    story.command("cancel", "p1")
    assert story.asked[-1] == "void"
    assert story.command("cancel", "p1").note == "duplicate_command"
    story.flow.run(lambda _: TIMED_OUT)
    story.flow.now_ms += 60 * SECOND
    story.command("resolve", "p2", decision="charged", gateway_reference="vo_1")
    assert story.status == "cancelled"
    assert len(story.payment.command_ids) == len(story.payment.command_marks) == 256
    held = filled(reviewed())
    held.command("review", "p1", decision="approve")
    assert held.status == "processing"


def test_commands_of_before_marks_were_kept_give_way_as_well() -> None:
    """Their time is not known: they were taken before the oldest that is, or the last change."""
    story = filled(authorized())
    story.flow.apply(ORDER, Decision(payment=replace(story.payment, command_marks=())))
    assert story.rejected("refund", "r1") == "commands_must_not_exceed_limit"
    story.flow.now_ms += story.flow.policy.command_memory_ms + 1
    story.command("refund", "r1")
    assert story.payment.command_ids[-1] == "r1"
    assert len(story.payment.command_marks) == 1
    assert story.command("refund", "x1", amount_minor=7).note == "duplicate_command"


def test_a_command_that_waits_is_never_forgotten() -> None:
    """Taken once means once, also for those that have not run yet."""
    story = Story(MANUAL)
    story.command("capture", "c1", amount_minor=100)
    filled(story)
    story.flow.now_ms += story.flow.policy.command_memory_ms + 1
    story.command("cancel", "p1")
    assert story.payment.command_ids[:2] == ("c1", "x2")


def test_a_cancel_finds_room_among_what_waits() -> None:
    """Sixteen wait at most; a person's cancel is the seventeenth."""
    story = authorized()
    story.command("capture", "c0", amount_minor=1)
    for number in range(1, 17):
        story.command("capture", f"c{number}", amount_minor=1)
    assert story.rejected("capture", "c17") == "commands_must_not_exceed_limit"
    story.command("cancel", "p1")
    assert story.payment.commands[-1].command_id == "p1"


@pytest.mark.parametrize(
    "other",
    [
        {"type": "capture"},
        {"amount_minor": 201},
        {"amount_minor": None},
        {"currency": "GBP"},
        {"override": "dispute"},
    ],
)
def test_another_command_under_a_known_id_is_a_named_conflict(other: dict[str, Any]) -> None:
    """It is not the one that was taken, and nobody may be told that it is done."""
    story = charged()
    story.command("refund", "r1", amount_minor=200)
    story.flow.answer(yes)
    given = {"type": "refund", "amount_minor": 200, **other}
    assert story.rejected(command_id="r1", **given) == "content_of_a_command_id_must_not_change"
    assert story.rejected(command_id="r1", **given) == "content_of_a_command_id_must_not_change"
    assert story.command("refund", "r1", amount_minor=200).note == "duplicate_command"
    assert story.money == (500, 500, 200)


def test_a_masked_token_is_not_charged() -> None:
    """What a dead letter left of a card number is no instrument."""
    story = failed()
    rule = story.rejected("retry", instrument_token="411111******1111")
    assert rule == "instrument_token_must_not_be_masked"
    masked = Story(replace(ORDER, instrument_token="411111******1111"))
    assert (masked.status, masked.payment.reason) == ("rejected", rule)
    assert masked.asked == []


def test_the_same_command_in_other_words_is_the_same() -> None:
    """Who asked, when, why, and by which evidence is not what was asked for."""
    story = exhausted()
    story.command("resolve", "p1", decision="charged", gateway_reference="ch_1")
    again = story.command(
        "resolve", "p1", decision="charged", gateway_reference="ch_1",
        actor="bob", evidence="told by phone", reason="asked twice",
    )  # fmt: skip
    assert again.note == "duplicate_command"


def test_a_command_that_came_before_its_order_is_known_by_its_content() -> None:
    """Also one that waits for its order, and once the order is there."""
    story = Story(None)
    story.command("refund", "r1", amount_minor=200)
    assert story.rejected("refund", "r1", amount_minor=300) is not None
    story.flow.order(ORDER)
    assert story.rejected("refund", "r1", amount_minor=300) is not None
    assert story.command("refund", "r1", amount_minor=200).note == "duplicate_command"


def test_no_digest_of_a_card_number_is_kept() -> None:
    """Two that differ in masked digits only have one digest, so none can be found by trying."""
    one, two = (
        command("retry", instrument_token=number)
        for number in ("4111111111111111", "4111110000091111")
    )
    assert is_card_number(one.instrument_token or "")
    assert is_card_number(two.instrument_token or "")
    assert content_digest(one) == content_digest(two)


@pytest.mark.slow
def test_operations_are_bounded() -> None:
    """No command makes more operations than a snapshot shall hold."""
    story = charged()
    for number in range(39):
        story.command("refund", f"r{number}", amount_minor=1)
        story.flow.answer(yes)
    assert story.rejected("refund", "r39") == "operations_must_not_exceed_limit"


@pytest.mark.slow
def test_a_cancel_is_possible_beyond_what_commands_may_begin() -> None:
    """A void has room of its own, bounded as well."""
    story = authorized()
    for number in range(39):
        story.command("capture", f"c{number}", amount_minor=1)
        story.flow.answer(DECLINED)
    assert story.rejected("capture", "c39") == "operations_must_not_exceed_limit"
    for number in range(8):
        story.command("cancel", f"p{number}")
        story.flow.answer(DECLINED)
    assert story.rejected("cancel", "p8") == "operations_must_not_exceed_limit"
    assert len(story.payment.attempts) == 48


# Rules about a command alone.

BROKEN: list[tuple[str, str, dict[str, Any]]] = [
    ("command_type_must_be_known", "pay", {}),
    ("amount_must_be_positive", "refund", {"amount_minor": 0}),
    ("amount_must_not_exceed_limit", "refund", {"amount_minor": 10**12}),
    ("currency_must_be_iso_4217", "refund", {"currency": "pounds"}),
    ("currency_must_be_the_payments", "refund", {"currency": "EUR"}),
    ("business_date_must_be_a_date", "refund", {"business_date": "today"}),
    ("texts_must_be_at_most_1000_characters", "refund", {"reason": "x" * 1001}),
    ("instrument_token_must_be_present", "retry", {"instrument_token": " "}),
    ("decision_must_be_known", "resolve", {"decision": "maybe"}),
    ("evidence_must_be_given", "resolve", {"decision": "charged", "evidence": ""}),
    ("actor_must_be_given", "resolve", {"decision": "charged", "actor": None}),
    ("gateway_reference_must_be_given", "resolve", {"decision": "charged"}),
    ("decision_must_be_known", "review", {}),
    ("actor_must_be_given", "review", {"decision": "deny", "actor": ""}),
    ("amount_must_be_given", "credit", {**CREDIT, "amount_minor": None}),
    ("currency_must_be_iso_4217", "credit", {**CREDIT, "currency": None}),
    ("business_date_must_be_a_date", "credit", {**CREDIT, "business_date": None}),
    ("payment_must_be_authorized", "capture", {}),
    ("payment_must_have_failed", "retry", {"instrument_token": "tok_2"}),
    ("outcome_must_be_unknown", "resolve", {"decision": "not_charged"}),
    ("payment_must_be_in_review", "review", {"decision": "approve"}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "type_", "fields"), BROKEN)
def test_each_broken_rule_has_its_name(rule: str, type_: str, fields: dict[str, Any]) -> None:
    """A command that breaks a rule is refused in that rule's words; nothing else changes."""
    assert charged().rejected(type_, **fields) == rule


@pytest.mark.slow
def test_whatever_comes_too_late_is_given_back_however_much_it_is() -> None:
    """All that commands may begin shows after it was given up: each has its reversal."""
    story = authorized()
    numbers = range(1, COMMANDED_ATTEMPTS_MAX)
    for number in numbers:
        story.command("capture", f"c{number}", amount_minor=500)
        attempts = story.payment.attempts
        given_up = replace(attempts[-1], state="failed")
        changed = replace(story.payment, attempts=(*attempts[:-1], given_up))
        story.flow.apply(MANUAL, Decision(payment=changed))
    for number in numbers:
        story.notify("succeeded", f"c{number}")
    back = [r for r in story.flow.requests() if r.kind == "refund"]
    assert len({r.idempotency_key for r in back}) == len(numbers) - 1, "all but the first"
    assert sum(r.amount_minor for r in back) == story.money[1] - 500


@pytest.mark.parametrize("command_id", ["1", "late-1-1", "expiry-1", "dispute-1"])
def test_a_command_cannot_take_the_name_of_another_operation(command_id: str) -> None:
    """Otherwise two operations would share one key at the gateway."""
    rule = charged().rejected("refund", command_id)
    assert rule == "command_id_must_not_name_another_operation"


def test_a_refused_command_stays_refused() -> None:
    """A redelivered command is not run later because the payment has changed meanwhile."""
    story = Story()
    story.flow.answer(DECLINED)
    story.rejected("refund", "r1")
    story.command("retry", "c1", instrument_token="tok_2")
    story.flow.answer(yes)
    assert story.command("refund", "r1").note == "duplicate_command"


def test_a_bad_command_before_its_order_is_told() -> None:
    """The placeholder says why; the order is paid as if nothing had been."""
    story = Story(None)
    story.command("refund", amount_minor=-1)
    assert story.events == ["awaiting_order", "command_rejected"]
    story.flow.order(ORDER)
    assert story.status == "processing"


def test_ids_that_fit_no_key_are_dead_lettered() -> None:
    """A command id becomes our reference at the gateway, so it has to be one."""
    story = charged()
    assert story.flow.command(command("refund", "r 1")).dead_letter == "invalid_ids"


def test_what_only_looks_like_a_card_number_is_masked_in_a_reason() -> None:
    """People write what they like: no issuer has such a number, so it is taken, and kept masked."""
    story = charged()
    story.command("refund", reason="ref 9111111111111119 was lost")
    assert story.flow.events()[-1].reason == "ref 9111111*****1119 was lost"


def test_a_disputed_payment_is_refunded_only_when_forced() -> None:
    """The bank may give the money back itself; whoever refunds all the same says so."""
    story = charged()
    story.dispute("opened")
    assert story.rejected("refund", "r1") == "refund_must_not_run_during_a_dispute"
    story.command("refund", "r2", override="dispute")
    story.flow.answer(yes)
    assert story.money == (500, 500, 500)


def test_a_customer_who_cancels_at_the_bank_is_not_charged() -> None:
    """A payment that waits for its customer is cancelled at once; a late charge goes back."""
    story = Story()
    story.flow.answer(ACTION)
    story.command("cancel")
    assert (story.status, story.payment.next_action_url) == ("cancelled", None)
    story.notify("succeeded", gateway_reference="ch_1")
    assert story.events[-2:] == ["charged", "reversal_started"]
    story.flow.answer(yes)
    assert (story.status, story.money) == ("cancelled", (500, 500, 500))


# Snapshots of before.


def test_a_payment_captured_before_refunds_were_there_is_refunded() -> None:
    """Its snapshot counts no authorized amount; what was captured can go back all the same."""
    story = charged()
    story.flow.apply(ORDER, Decision(payment=replace(story.payment, authorized_minor=0)))
    story.command("refund", "r1")
    story.flow.answer(yes)
    assert story.money == (0, 500, 500)


def test_an_outcome_unknown_of_before_is_still_not_guessed() -> None:
    """An attempt that does not say itself that it is uncertain is asked about just as long."""
    story = Story()
    story.flow.answer(TIMED_OUT)
    attempt = replace(story.payment.attempts[0], uncertain_since_ms=0)
    story.flow.apply(ORDER, Decision(payment=replace(story.payment, attempts=(attempt,))))
    story.flow.run(lambda _: TIMED_OUT)
    assert (story.status, story.payment.attempts[0].state) == (
        "outcome_unknown", "inquiry_exhausted",
    )  # fmt: skip

"""Every step of both tables of the lifecycle is taken, and leads where it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain import lifecycle
from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.lifecycle import ATTEMPT_TRANSITIONS, OPEN_STATES, PAYMENT_TRANSITIONS, Step
from pipeline.domain.model import Order, Payment
from pipeline.domain.policy import DAY_MS, HOUR_MS, MINUTE_MS
from pipeline.domain.risk_rules import read_rules
from pipeline.processors.driver import FlowDriver
from pipeline.processors.order import hold_for_review
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
    unasked,
    yes,
)

CREDIT: dict[str, Any] = {
    "amount_minor": 300,
    "currency": "GBP",
    "business_date": "2026-09-21",
}


def reached(kind: str, state: str, pending: GatewayAnswer = PENDING) -> Story:
    """A payment whose newest operation, of this kind, is in this state."""
    story = Story(MANUAL if kind == "authorize" else ORDER)
    if kind == "refund":
        story.flow.answer(yes)
        story.command("refund", "r1", amount_minor=200)
    operation_id = "r1" if kind == "refund" else "1"
    if state == "retry_waiting":
        story.flow.answer(NOT_SENT)
    elif state in ("inquiry_waiting", "inquiring"):
        story.flow.answer(TIMED_OUT)
        if state == "inquiring":
            story.wait()
    elif state == "inquiry_exhausted":
        story.flow.run(lambda _: TIMED_OUT)
    elif state == "pending":
        story.flow.answer(pending)
    elif state == "contradicted":
        story.notify("succeeded", operation_id, amount_minor=499)
    elif state == "declined":
        story.flow.answer(DECLINED)
    elif state == "failed":
        story.flow.run(lambda r: NOT_FOUND if r.kind == "inquire" else NOT_SENT)
    assert story.payment.attempts[-1].state == state
    return story


def word(kind: str, state: str, trigger: str) -> Story:
    """The operation after a gateway's word, or a person's, that came while it was in a state."""
    # A pending charge is told to be pending again when its customer has acted.
    acted = (state, trigger) == ("pending", "pending_seen")
    story = reached(kind, state, ACTION if acted else PENDING)
    operation_id = "r1" if kind == "refund" else "1"
    if trigger in ("success_seen", "late_success_seen"):
        story.notify("succeeded", operation_id)
    elif trigger == "decline_seen":
        story.notify("declined", operation_id)
    elif trigger == "failure_seen":
        story.notify("failed", operation_id)
    elif trigger == "pending_seen":
        story.notify("pending", operation_id)
    elif trigger == "contradiction_seen":
        story.notify("succeeded", operation_id, amount_minor=499)
    else:
        if state == "contradicted":
            story.flow.answer(TIMED_OUT)  # until then it may still be sent
        story.flow.now_ms += 60 * SECOND
        decision = {"decision": "not_charged"}
        if trigger == "resolved_done":
            known = story.payment.attempts[-1].gateway_reference
            decision = {"decision": "charged", "gateway_reference": known or "x"}
        story.command("resolve", "c9", **decision)
    return story


WORDS = [
    (kind, state, trigger)
    for kind in ("charge", "authorize", "refund")
    for state, trigger in ATTEMPT_TRANSITIONS
    if trigger
    in ("success_seen", "late_success_seen", "decline_seen", "pending_seen", "contradiction_seen")
    and not (kind == "refund" and (state, trigger) == ("pending", "pending_seen"))
]
WORDS += [("refund", state, "failure_seen") for state in (*OPEN_STATES, "declined", "failed")]
WORDS += [
    (kind, state, trigger)
    for kind in ("charge", "authorize", "refund")
    for state, trigger in ATTEMPT_TRANSITIONS
    if trigger.startswith("resolved")
]


@pytest.mark.parametrize(("kind", "state", "trigger"), WORDS)
def test_a_word_leads_where_the_table_says(kind: str, state: str, trigger: str) -> None:
    """Whatever an operation waits for, a gateway's or a person's word is taken at once."""
    story = word(kind, state, trigger)
    operation_id = "r1" if kind == "refund" else "1"
    attempt = next(a for a in story.payment.attempts if a.operation_id == operation_id)
    to = ATTEMPT_TRANSITIONS[state, trigger].to
    assert attempt.state == (lifecycle.SUCCEEDED_STATES[kind] if to == "succeeded" else to)
    if kind == "refund":
        assert story.status == "captured", "a refund never moves its payment's status"
        assert story.payment.refunded_minor == (200 if to == "succeeded" else 0)


def review(order: Order, before: Payment | None = None, story: Story | None = None) -> Story:
    story = story or Story(None)
    story.flow.apply(order, hold_for_review(before, order, "risky", NOW, POLICY))
    return story


def placeholder(type_: str = "refund") -> Story:
    story = Story(None)
    story.command(type_, "c1")
    return story


def _orders() -> None:
    for make in (lambda: Story(None), placeholder):
        for order in (ORDER, replace(ORDER, currency="?"), replace(ORDER, amount_minor=0)):
            make().flow.order(order)
    review(ORDER)
    story = placeholder()
    review(ORDER, story.payment, story)
    placeholder("cancel").flow.order(ORDER)
    Story(None).command("credit", **CREDIT)


def _reviews() -> None:
    review(ORDER).command("review", decision="approve")
    review(ORDER).command("review", decision="deny")
    review(ORDER).command("cancel")
    review(replace(ORDER, pay_before_ms=NOW + MINUTE_MS)).flow.advance(2 * MINUTE_MS)


def _counted() -> None:
    rules = "[[rule]]\nname='v'\ntype='velocity'\naction='{}'\nby='merchant'\nwindow_s=60\n"
    for action, limit, end in (
        ("review", 1, "processing"),
        ("reject", 0, "rejected"),
        ("review", 0, "risk_review"),
    ):
        # A sum that every order is over, or none.
        text = rules.format(action) + f"currency='GBP'\nsum_minor_max={limit * 10_000 or 1}\n"
        policy = replace(POLICY, risk=read_rules(text, "rules"))
        story = Story(ORDER, policy)
        story.flow.count()
        assert story.status == end
        late = Story(replace(ORDER, pay_before_ms=NOW + MINUTE_MS), policy)
        late.flow.advance(2 * MINUTE_MS)
        assert late.status == "expired"
        placed = Story(None, policy)
        placed.command("refund")
        placed.flow.order(ORDER)
        placed.flow.count()


def _retries_in_review() -> None:
    rules = "[[rule]]\nname='a'\ntype='amount'\naction='review'\ncurrency='GBP'\n"
    policy = replace(POLICY, risk=read_rules(f"{rules}amount_minor_max=1\n", "rules"))
    for decision, end in (("approve", "processing"), ("deny", "failed")):
        story = Story()
        story.flow.answer(DECLINED)
        story.flow.policy = replace(story.flow.policy, risk=policy.risk)
        story.command("retry", "r1", instrument_token="tok_2")
        assert story.status == "risk_review"
        story.command("review", "p1", decision=decision)
        assert story.status == end


def _unanswered() -> None:
    unsent = Story()
    unsent.flow.run(lambda r: NOT_FOUND if r.kind == "inquire" else NOT_SENT)
    assert unsent.status == "failed"
    patient = replace(POLICY, inquiry_max=40)
    lost = Story(policy=patient)
    lost.flow.run(lambda r: NOT_FOUND if r.kind == "inquire" else TIMED_OUT)
    assert lost.status == "failed"
    for start in (NOT_SENT, TIMED_OUT):
        cancelled = Story(policy=patient)
        cancelled.flow.answer(start)
        cancelled.command("cancel")
        cancelled.flow.run(lambda _: NOT_FOUND)
        assert cancelled.status == "cancelled"


def _customers() -> None:
    for order in (ORDER, MANUAL):
        for outcome in ("succeeded", "declined"):
            story = Story(order)
            story.flow.answer(ACTION)
            story.notify(outcome)
    asked = Story()
    asked.flow.answer(TIMED_OUT)
    asked.wait()
    asked.flow.answer(ACTION)
    asked.command("cancel")
    assert asked.status == "cancelled"
    doubtful = Story()
    doubtful.flow.answer(ACTION)
    doubtful.notify("succeeded", amount_minor=499)
    assert doubtful.status == "outcome_unknown"
    gone = Story()
    gone.flow.answer(ACTION)
    gone.flow.advance(2 * HOUR_MS)
    assert gone.status == "expired"


def _after_the_first_outcome() -> None:
    for type_, end in (("capture", "captured"), ("cancel", "cancelled"), ("", "expired")):
        story = Story(MANUAL)
        story.flow.answer(yes)
        story.command(type_) if type_ else story.flow.advance(8 * DAY_MS)
        story.flow.run(yes)
        assert story.status == end
    retried = Story()
    retried.flow.answer(DECLINED)
    retried.command("retry", instrument_token="tok_2")
    failed = Story()
    failed.flow.answer(yes)
    failed.command("refund", "r1")
    failed.flow.answer(yes)
    failed.notify("failed", "r1")


def _reversals() -> None:
    story = Story()
    story.flow.answer(DECLINED)
    story.notify("succeeded")
    story.flow.answer(GatewayAnswer(outcome="declined", code="processing_error"))
    # It was made all the same, so its successor has nothing to do.
    story.notify("succeeded", "late-1-1")
    story.flow.advance(2 * HOUR_MS)
    assert story.payment.attempts[-1].state == "failed"
    recorded = Story()
    recorded.flow.answer(DECLINED)
    recorded.notify("succeeded")
    recorded.flow.answer(DECLINED)
    word = {"gateway_reference": "T-1", "evidence": "a statement", "actor": "ann"}
    recorded.command("record_refund", **word)
    assert recorded.payment.attempts[-1].state == "refunded"


def _found() -> None:
    found = FlowDriver(POLICY, now_ms=NOW)
    found.command(unasked())
    assert found.events()[0].status == "captured"
    late = FlowDriver(POLICY, now_ms=NOW)
    late.command(unasked(type="give_back", command_id="g"))
    late.command(unasked())
    assert late.events()[1].status == "captured"


def _permits() -> None:
    policy = replace(POLICY, count_cards=True)
    order = replace(ORDER, card_fingerprint="fp_1")
    given = Story(order, policy)
    given.flow.count()
    given.flow.answer(yes)
    assert given.status == "captured"
    cancelled = Story(order, policy)
    cancelled.command("cancel")
    assert cancelled.status == "cancelled"


SCENARIOS: tuple[Callable[[], None], ...] = (
    _orders, _reviews, _counted, _retries_in_review, _unanswered, _customers,
    _after_the_first_outcome, _reversals, _found, _permits,
)  # fmt: skip


class Recording(dict[tuple[str, str], Step]):
    """A table that remembers which of its steps were taken."""

    def __init__(self, table: Any) -> None:
        super().__init__(table)
        self.taken: set[tuple[str, str]] = set()

    def get(self, key: Any, default: Any = None) -> Any:
        if key in self:
            self.taken.add(key)
        return super().get(key, default)


@pytest.mark.slow
def test_every_step_of_both_tables_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """No transition is only drawn: the stories of this module take each of them."""
    payments, attempts = Recording(PAYMENT_TRANSITIONS), Recording(ATTEMPT_TRANSITIONS)
    monkeypatch.setattr(lifecycle, "PAYMENT_TRANSITIONS", payments)
    monkeypatch.setattr(lifecycle, "ATTEMPT_TRANSITIONS", attempts)
    lifecycle.payment_step.cache_clear()
    lifecycle.attempt_step.cache_clear()
    for kind, state, trigger in WORDS:
        word(kind, state, trigger)
    for scenario in SCENARIOS:
        scenario()
    assert set(PAYMENT_TRANSITIONS) - payments.taken == set()
    assert set(ATTEMPT_TRANSITIONS) - attempts.taken == set()

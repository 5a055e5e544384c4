"""What people decide is told to the audit: who, when, why, about what, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.decision import Decision
from pipeline.domain.model import AuditEntry
from pipeline.domain.policy import DAY_MS
from pipeline.processors.decided import audited
from pipeline.processors.order import hold_for_review
from tests.support.payment_story import (
    DECLINED,
    NOW,
    ORDER,
    POLICY,
    SECOND,
    TIMED_OUT,
    Story,
    command,
    yes,
)


def reviewed() -> Story:
    story = Story(None)
    story.flow.apply(ORDER, hold_for_review(None, ORDER, "risk_large", NOW, POLICY))
    return story


def exhausted() -> Story:
    story = Story()
    story.flow.run(lambda _: TIMED_OUT)
    return story


def disputed() -> Story:
    story = Story()
    story.flow.answer(yes)
    story.dispute("opened")
    return story


def said(story: Story) -> tuple[AuditEntry, dict[str, Any]]:
    """The only entry, and its detail."""
    (entry,) = story.flow.audit_entries()
    detail: dict[str, Any] = json.loads(entry.detail)
    return entry, detail


RESOLVED = {
    "decision": "charged", "gateway_reference": "ch_9", "kind": "charge", "operation_id": "1",
    "gateway": "simulator", "attempt": 1, "amount_minor": 500, "currency": "GBP",
    "evidence": "the gateway's report",
}  # fmt: skip
DECISIONS: list[tuple[str, Callable[[], Story], str, dict[str, Any], dict[str, Any]]] = [
    ("payment_resolve", exhausted, "resolve",
     {"decision": "charged", "gateway_reference": "ch_9"}, RESOLVED),
    ("payment_resolve", exhausted, "resolve", {"decision": "not_charged"},
     {"decision": "not_charged", "operation_id": "1", "evidence": "the gateway's report"}),
    ("review_approve", reviewed, "review", {"decision": "approve"}, {"decision": "approve"}),
    ("review_deny", reviewed, "review", {"decision": "deny"}, {"decision": "deny"}),
    ("dispute_resolve", disputed, "resolve_dispute",
     {"decision": "won", "dispute_id": "d1", "evidence": "a letter", "actor": "ann"},
     {"decision": "won", "dispute_id": "d1", "gateway": "simulator", "was": "opened",
      "amount_minor": 500, "evidence": "a letter"}),
]  # fmt: skip


@pytest.mark.parametrize(("action", "begin", "type_", "fields", "about"), DECISIONS)
def test_a_decision_is_told_with_all_that_it_is_about(
    action: str, begin: Callable[[], Story], type_: str, fields: Any, about: dict[str, Any]
) -> None:
    """In the same decision as its effect, so in the same transaction."""
    story = begin()
    if action == "payment_resolve":
        story.flow.now_ms += 60 * SECOND
    made = story.command(type_, "p1", reason="as told on the phone", **fields)
    assert [type(each) for each in made.sends].count(AuditEntry) == 1
    assert made.payment is not None
    entry, detail = said(story)
    assert (entry.action, entry.actor, entry.subject) == (action, "ann", "shop:1")
    assert (entry.reason, entry.occurred_at_ms) == ("as told on the phone", story.flow.now_ms)
    assert detail["outcome"] == "done"
    assert (detail["command_id"], detail["payment_id"]) == ("p1", story.payment.payment_id)
    assert {name: detail[name] for name in about} == about
    assert story.command(type_, "p1", **fields).sends == (), "the same command tells nothing more"


@pytest.mark.parametrize(
    ("rule", "type_", "fields"),
    [
        ("outcome_must_be_unknown", "resolve", {"decision": "not_charged"}),
        ("operation_must_be_the_payments", "resolve",
         {"decision": "not_charged", "operation_id": "x"}),
        ("decision_must_be_known", "resolve", {"decision": "maybe"}),
        ("actor_must_be_given", "review", {"decision": "deny", "actor": None}),
        ("payment_must_be_in_review", "review", {"decision": "approve"}),
        ("dispute_must_be_known", "resolve_dispute",
         {"decision": "won", "dispute_id": "d9", "evidence": "x", "actor": "ann"}),
    ],
)  # fmt: skip
def test_what_is_refused_is_told_with_its_rule(rule: str, type_: str, fields: Any) -> None:
    """Who tried to decide what, and why it had no effect, is worth as much."""
    story = Story()
    story.flow.answer(yes)
    story.rejected(type_, "p1", **fields)
    entry, detail = said(story)
    assert (detail["outcome"], detail["rule"]) == ("refused", rule)
    assert entry.actor == ("" if rule == "actor_must_be_given" else "ann")


def test_what_comes_too_soon_is_told_when_it_is_judged() -> None:
    """A word about an order that has not come waits for it, and is refused if it never does."""
    story = Story(None)
    story.command("resolve", "p1", decision="not_charged")
    assert story.flow.audit_entries() == []
    story.flow.advance(DAY_MS + 120 * SECOND)
    _, detail = said(story)
    assert (detail["outcome"], detail["rule"]) == ("refused", "order_must_arrive")


def test_a_word_that_contradicts_the_books_is_told_as_refused() -> None:
    """More would go back than was taken: it is booked nowhere."""
    story = Story()
    story.flow.answer(yes)
    story.command("refund", "r1")
    story.flow.run(lambda _: TIMED_OUT)
    other = replace(story.payment, refunded_minor=100)
    story.flow.apply(ORDER, Decision(payment=other))
    story.command("resolve", "p1", decision="charged", gateway_reference="re_9")
    _, detail = said(story)
    assert (detail["outcome"], detail["rule"]) == ("refused", "refund_must_not_exceed_captured")


def test_the_same_decision_told_again_is_the_same_entry() -> None:
    """What is refused without being remembered is refused as often as it comes; another word under
    the same command id is another act."""
    payment = disputed().payment

    def told(reason: str) -> str:
        word = command("review", "p1", decision="deny", reason=reason)
        made = audited(Decision(), payment, word, NOW, rule="commands_must_not_exceed_limit")
        (entry,) = made.sends
        assert isinstance(entry, AuditEntry)
        return entry.entry_id

    assert told("once") == told("once") != told("another")


def test_other_commands_are_nobodys_word() -> None:
    """Merchants' systems refund by the thousand; their history is in the payment's events."""
    story = Story()
    story.flow.answer(DECLINED)
    story.command("retry", instrument_token="tok_2", actor="ann")
    story.flow.answer(yes)
    story.command("refund", "r1", actor="ann")
    story.flow.answer(yes)
    story.rejected("capture", "c2", actor="ann")
    assert story.flow.audit_entries() == []


def test_the_audit_keeps_no_card_number_and_no_novel() -> None:
    """It keeps what it has for ever. A card number is refused before anything is decided; what only
    looks like one is masked."""
    story = disputed()
    refused = command("resolve_dispute", "p0", decision="won", evidence="card 4111111111111111")
    assert story.flow.command(refused).dead_letter == "card_number_in_field"
    assert story.flow.audit_entries() == []
    card = "9111111111111119"
    story.flow.command(
        command("resolve_dispute", "p1", decision="x" * 5_000, dispute_id=card, actor=f"ann {card}",
                evidence=f"card {card}", gateway_reference=card, reason=card)
    )  # fmt: skip
    entry, detail = said(story)
    assert card not in entry.detail + entry.actor + (entry.reason or "")
    assert len(detail["decision"]) == 1_000
    assert detail["evidence"] == "card 9111111*****1119"

"""A finding that stays true for ever is acknowledged by a person, with its figures alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.audit.render import report_lines
from pipeline.audit.report import Finding, Report
from pipeline.audit.summary import summarize
from pipeline.audit.trace import _decided
from pipeline.commands.payment_meaning import figures_now
from pipeline.domain.decision import Decision
from pipeline.domain.findings import amounts_out_of_order
from pipeline.errors import UserError
from tests.support.audit_flow import healthy_flow
from tests.support.audit_story import judged_flow
from tests.support.payment_story import ORDER, Story, yes
from tests.unit.test_own_operations import late_capture

FIGURES = "refunded 300, captured 800, authorized 500"
WORD: dict[str, Any] = {
    "finding": "amounts_out_of_order",
    "figures": FIGURES,
    "reason": "given back",
    "evidence": "the gateway's report of 3 May",
    "actor": "ann",
}


def given_back() -> Story:
    """Captured beyond the authorization, and the excess is back: verify names it all the same."""
    story = late_capture("1")
    story.flow.answer(yes)
    return story


def found(story: Story) -> list[Finding]:
    return [each for each in judged_flow(story.flow, None) if each.name == "amounts_out_of_order"]


def told(story: Story) -> list[tuple[str, str]]:
    return [(each.severity.value, each.example.detail) for each in found(story)]


@pytest.mark.slow
def test_an_acknowledged_finding_is_shown_and_no_longer_broken() -> None:
    """Who said so, and why, stands beside it; the verdict is whole, and says that there is one."""
    story = given_back()
    (before,) = found(story)
    assert (before.severity.value, before.example.detail) == ("broken", FIGURES)
    story.command("acknowledge", "a1", **WORD)
    assert told(story) == [("acknowledged", f"{FIGURES}; acknowledged by ann: given back")]
    findings = [each for each in judged_flow(story.flow, None) if each.severity.value != "note"]
    report = Report(findings, {})
    assert (report.exit_code, report.verdict) == (0, "whole")
    assert [each["name"] for each in report.to_json()["findings"]] == ["amounts_out_of_order"]
    numbers = summarize(healthy_flow().evidence())
    lines = list(report_lines(Report(findings, {**numbers, "not_judged": []})))
    assert lines[0] == "WHOLE: every guarantee holds, but for what was acknowledged."
    assert "amounts_out_of_order x1" in lines[1]


def test_it_is_an_event_and_an_entry_of_the_audit_and_moves_nothing() -> None:
    """Published for whoever follows payments, and kept for ever with name and evidence."""
    story = given_back()
    money, asked = story.money, len(story.asked)
    story.command("acknowledge", "a1", **WORD)
    assert story.events[-1] == "finding_acknowledged"
    event = story.flow.events()[-1]
    assert (event.actor, event.reason, event.operation_id) == ("ann", WORD["finding"], "a1")
    assert event.detail == f"{FIGURES}; given back; {WORD['evidence']}"
    assert (story.money, len(story.asked)) == (money, asked)
    (entry,) = story.flow.audit_entries()
    assert (entry.action, entry.actor, entry.reason) == (
        "finding_acknowledge", "ann", "given back",
    )  # fmt: skip
    said = json.loads(entry.detail)
    assert said["outcome"] == "done"
    for name in ("finding", "figures", "evidence"):
        assert said[name] == WORD[name]
    assert _decided({"detail": entry.detail}) == (
        f"done, amounts_out_of_order {FIGURES}, {WORD['evidence']}"
    )
    assert story.command("acknowledge", "a1", **WORD).note == "duplicate_command"


def test_any_further_change_of_the_amounts_is_a_finding_again() -> None:
    """And may be acknowledged anew, with its own figures; the earlier word does not come back."""
    story = given_back()
    story.command("acknowledge", "a1", **WORD)
    story.command("refund", "r1", amount_minor=100)
    story.flow.answer(yes)
    now = "refunded 400, captured 800, authorized 500"
    assert told(story) == [("broken", now)]
    assert story.rejected("acknowledge", "a2", **WORD) == "figures_must_be_the_payments"
    story.command("acknowledge", "a3", **{**WORD, "figures": now})
    assert [severity for severity, _ in told(story)] == ["acknowledged"]
    assert [each.figures for each in story.payment.acknowledged] == [now]


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ("finding_must_be_known", {"finding": None}),
        ("finding_must_be_known", {"finding": "charged_twice"}),
        ("figures_must_be_given", {"figures": None}),
        ("figures_must_be_the_payments", {"figures": FIGURES.replace("300", "301")}),
        ("evidence_must_be_given", {"evidence": ""}),
        ("reason_must_be_given", {"reason": None}),
        ("actor_must_be_given", {"actor": ""}),
        ("texts_must_be_at_most_1000_characters", {"figures": "x" * 1001}),
    ],
)
def test_what_cannot_be_acknowledged_is_refused_by_name(rule: str, fields: dict[str, Any]) -> None:
    """And stays broken; the refusal is told to the audit as well."""
    story = given_back()
    assert story.rejected("acknowledge", "a1", **{**WORD, **fields}) == rule
    assert told(story) == [("broken", FIGURES)]
    (entry,) = story.flow.audit_entries()
    assert json.loads(entry.detail)["rule"] == rule


def test_what_is_in_order_or_acknowledged_already_is_not_acknowledged() -> None:
    """A word about nothing would wait for the day on which it hides something."""
    story = Story()
    story.flow.answer(yes)
    assert story.rejected("acknowledge", "a1", **WORD) == "figures_must_be_the_payments"
    other = given_back()
    other.command("acknowledge", "a1", **WORD)
    rule = other.rejected("acknowledge", "a2", **{**WORD, "reason": "as I said"})
    assert rule == "finding_must_not_be_acknowledged_so_already"


def test_a_person_is_heard_while_an_operation_is_under_way() -> None:
    """It is about none, so it waits for none."""
    story = given_back()
    story.command("refund", "r1", amount_minor=100)
    story.command("acknowledge", "a1", **WORD)
    assert story.events[-1] == "finding_acknowledged"


def test_flow_and_auditor_word_the_figures_alike() -> None:
    """Also where one charge gave back more than it took; each from its own reading."""
    story = Story()
    story.flow.answer(yes)
    for number in ("r1", "r2"):
        story.command("refund", number, amount_minor=250)
        story.flow.answer(yes)
    charge, first, second = story.payment.attempts
    late = replace(charge, attempt=2, gateway_reference="ch_2")
    wrong = replace(
        story.payment,
        attempts=(charge, first, replace(second, amount_minor=300), late),
        authorized_minor=1000,
        captured_minor=1000,
        refunded_minor=550,
    )
    story.flow.apply(ORDER, Decision(payment=wrong))
    figures = "refunded 550 of the 500 captured by 1, attempt 1"
    assert amounts_out_of_order(story.payment) == figures
    assert told(story) == [("broken", figures)]
    story.command("acknowledge", "a1", **{**WORD, "figures": figures})
    assert [severity for severity, _ in told(story)] == ["acknowledged"]


def test_the_command_takes_the_figures_of_the_table() -> None:
    """So that nobody has to copy them; where there is nothing to acknowledge it says so."""
    assert figures_now(given_back().payment, "shop:1") == FIGURES
    story = Story()
    for payment in (None, story.payment):
        with pytest.raises(UserError, match="nothing to acknowledge"):
            figures_now(payment, "shop:1")

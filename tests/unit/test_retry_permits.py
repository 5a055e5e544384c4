"""A retry with another card is assessed by the risk rules first, then asks for its permit."""

from __future__ import annotations

import json

from msgspec.structs import replace

from pipeline.domain.model import RiskCheck, RiskResult
from pipeline.domain.policy import MINUTE_MS
from pipeline.domain.risk_rules import read_rules
from tests.support.payment_story import yes
from tests.unit.test_permits import BARRED, CAPPED, LOST, NO_FUNDS, ONE_ONLY, POLICY, Flow, states

VELOCITY = "[[rule]]\nname='v'\ntype='velocity'\nby='card'\nwindow_s=60\ncount_max=1\n"
REJECT = replace(POLICY, risk=read_rules(VELOCITY + "action='reject'\n", "rules"))
REVIEW = replace(POLICY, risk=read_rules(VELOCITY + "action='review'\n", "rules"))
OTHER = {"instrument_token": "tok_2", "card_fingerprint": "fp_2"}


REVIEW_ALL = "[[rule]]\nname='all'\ntype='amount'\naction='review'\n" + (
    "currency='GBP'\namount_minor_max=1\n"
)


def approvals(flow: Flow) -> list[tuple[str, str, str, str | None, str | None]]:
    """What the audit tells of approvals: whose, by whom, what became of them, why."""
    found = []
    for entry in flow.audit_entries():
        said = json.loads(entry.detail)
        assert entry.action == "review_approve"
        found.append(
            (said["command_id"], entry.actor, said["outcome"], said.get("rule"), said.get("detail"))
        )
    return found


def asked(flow: Flow) -> list[tuple[str, str]]:
    """What the retry's open checks are about, and whose card."""
    return [("permit" if c.attempt_key else "count", c.identity) for c in flow.open_checks]


def lettered(check: RiskCheck) -> RiskResult:
    """The risk stage's word that it refused a check."""
    return RiskResult(
        merchant_id=check.merchant_id,
        order_id=check.order_id,
        payment_id=check.payment_id,
        by=check.by,
        counted_at_ms=0,
        cause="killed_the_process",
        letter="risk-checks[0]@7",
        attempt_key=check.attempt_key,
    )


def test_a_retry_is_counted_and_then_asks_for_its_permit() -> None:
    """Nothing is sent before both have been answered, and both are about the new card."""
    flow = Flow(REJECT)
    flow.declined(1)
    flow.ask("retry", 1, **OTHER)
    assert asked(flow) == [("count", "fp_2")]
    assert flow.of(1).status == "failed"
    flow.count()
    assert asked(flow) == [("permit", "fp_2")]
    assert (flow.of(1).status, len(flow.requests())) == ("processing", 1)
    flow.count()
    assert flow.requests()[-1].instrument_token == "tok_2"
    flow.answer(yes)
    assert flow.of(1).status == "captured"
    told = [type_ for type_, _ in flow.story(1)]
    assert told[-4:] == ["command_waiting", "permit_asked", "payment_retried", "captured"]


def test_a_retry_that_rules_refuse_takes_no_place_of_its_card() -> None:
    """The rule's name comes first, and no permit is asked for."""
    flow = Flow(REJECT)
    flow.declined(1)
    flow.buy(2, card_fingerprint="fp_2")
    flow.count_all()
    flow.ask("retry", 1, **OTHER)
    before = len(flow.told())
    flow.count_all()
    assert flow.story(1)[-1] == ("command_rejected", "risk_v")
    assert len(flow.told()) == before


def test_a_cancel_bars_a_retry_that_waits_for_its_counts() -> None:
    """Nothing is sent, also when the counts come after all; the cancel has its answer at once."""
    flow = Flow(REJECT)
    flow.declined(1)
    flow.ask("retry", 1, **OTHER)
    flow.ask("retry", 1, "c2", instrument_token="tok_3", card_fingerprint="fp_3")
    flow.ask("cancel", 1, "x1", reason="customer called")
    assert flow.story(1)[-3:] == [
        ("cancel_requested", "customer called"),
        ("command_rejected", "cancel_requested"),
        ("command_rejected", "cancel_requested"),
    ]
    flow.count_all()
    flow.advance(20 * MINUTE_MS)
    payment = flow.of(1)
    assert (payment.status, payment.commands, payment.assessed_retry) == ("failed", (), None)
    assert len(flow.requests()) == 1
    flow.ask("cancel", 1, "x2")
    assert flow.story(1)[-1] == ("command_rejected", "payment_must_be_open")
    flow.ask("retry", 1, "c3", instrument_token="tok_4", card_fingerprint="fp_4")
    flow.count_all()
    flow.answer(yes)
    assert flow.of(1).status == "captured"


def test_a_cancel_bars_what_waits_behind_a_retry_in_review() -> None:
    """Not only the retry that a person looks at: the next one would be charged instead."""
    flow = Flow(REVIEW)
    flow.declined(1)
    flow.buy(2, card_fingerprint="fp_2")
    flow.count_all()
    flow.ask("retry", 1, **OTHER)
    flow.count_all()
    assert flow.of(1).status == "risk_review"
    flow.ask("retry", 1, "c2", instrument_token="tok_3", card_fingerprint="fp_3")
    sent = len(flow.requests())
    flow.ask("cancel", 1, "x1")
    flow.count_all()
    assert (flow.of(1).status, flow.of(1).commands) == ("failed", ())
    assert flow.story(1)[-2:] == [("command_rejected", "cancel_requested")] * 2
    assert len(flow.requests()) == sent


def test_an_approved_retry_meets_the_cap_of_its_card() -> None:
    """Its card was declined elsewhere while it waited for a person."""
    flow = Flow(replace(ONE_ONLY, risk=REVIEW.risk))
    flow.declined(1)
    flow.buy(2, card_fingerprint="fp_2")
    flow.count_all()
    flow.ask("retry", 1, **OTHER)
    flow.count_all()
    assert flow.of(1).status == "risk_review"
    flow.answer(NO_FUNDS)
    flow.count_all()
    flow.ask("review", 1, "c2", decision="approve", actor="ann", reason="known")
    flow.count_all()
    assert (flow.of(1).status, flow.of(1).reason) == ("failed", CAPPED)
    assert [r.instrument_token for r in flow.requests() if r.order_id == "o-1"] == ["tok_1"]
    assert approvals(flow) == [
        ("c2", "ann", "done", None, None),
        ("c2", "ann", "refused", CAPPED, "1 declines of this card within 1 d, cap two"),
    ]


def test_an_approved_order_that_its_card_bars_is_told_as_refused() -> None:
    """The audit keeps the approval for ever: it says that nothing came of it, and why. One that is
    charged has the one entry."""
    flow = Flow(replace(POLICY, risk=read_rules(REVIEW_ALL, "rules")))
    flow.buy(1)
    flow.buy(2)
    flow.ask("review", 2, "a2", decision="approve", actor="ann")
    flow.count_all()
    flow.answer(LOST)
    flow.count_all()
    flow.ask("review", 1, "a1", decision="approve", actor="bob")
    flow.count_all()
    assert (flow.of(1).status, flow.of(1).reason) == ("failed", BARRED)
    assert approvals(flow) == [
        ("a2", "ann", "done", None, None),
        ("a1", "bob", "done", None, None),
        ("a1", "bob", "refused", BARRED, "lost_card bars this card"),
    ]


def test_an_approval_whose_permit_never_comes_is_told_as_refused() -> None:
    """It waits for a person again, and each approval has its own end."""
    flow = Flow(replace(POLICY, risk=read_rules(REVIEW_ALL, "rules")))
    flow.buy(1)
    for command_id in ("a1", "a2"):
        flow.ask("review", 1, command_id, decision="approve", actor="ann")
        flow.advance(20 * MINUTE_MS)
        assert flow.of(1).status == "risk_review"
    missing = "risk_counts_missing"
    assert [(who, outcome, rule) for who, _, outcome, rule, _ in approvals(flow)] == [
        ("a1", "done", None), ("a1", "refused", missing),
        ("a2", "done", None), ("a2", "refused", missing),
    ]  # fmt: skip


def test_a_dead_lettered_question_for_a_permit_holds_up_nobody() -> None:
    """A retry fails by name at once, an order goes to a person, and each says why."""
    flow = Flow()
    flow.declined(1)
    flow.ask("retry", 1, **OTHER)
    flow.risk_result(lettered(flow.open_checks.pop()))
    assert flow.story(1)[-2:] == [
        ("input_dead_lettered", "killed_the_process"),
        ("failed", "risk_counts_missing"),
    ]
    flow.buy(2, card_fingerprint="fp_3")
    flow.risk_result(lettered(flow.open_checks.pop(-1)))
    assert (flow.of(2).status, flow.of(2).reason) == ("risk_review", "risk_counts_missing")


def test_a_dead_lettered_report_is_told_and_changes_nothing() -> None:
    """Not the counts of a retry either that waits meanwhile."""
    flow = Flow(REJECT)
    flow.buy(1)
    flow.count_all()
    flow.answer(NO_FUNDS)
    report = flow.open_checks.pop()
    assert report.outcome == "declined"
    flow.ask("retry", 1, **OTHER)
    before = flow.of(1)
    flow.risk_result(lettered(report))
    after = flow.of(1)
    assert after.dead_letters == 1
    assert (after.status, after.risk_awaited, states(after)) == (
        before.status, before.risk_awaited, states(before),
    )  # fmt: skip

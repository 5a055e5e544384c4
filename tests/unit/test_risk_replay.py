"""Rules tried on the past, and the commands that read rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.cli import app
from pipeline.commands.risk import report_lines
from pipeline.config import load_settings
from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import Order, Payment, PaymentCommand
from pipeline.domain.risk_replay import Outcome, Replay, replayed
from pipeline.domain.risk_rules import read_rules
from pipeline.errors import UserError
from pipeline.local import worker_specs
from pipeline.processors.driver import PAYMENTS, FlowDriver
from tests.support.cli_runner import CliRunner
from tests.support.payment_story import POLICY, command

NOW = 1_790_000_000_000
MINUTE = 60_000
RULES = """
[[rule]]
name = "large"
type = "amount"
action = "reject"
currency = "GBP"
amount_minor_max = 1000

[[rule]]
name = "card_hour"
type = "velocity"
action = "review"
by = "card"
window_s = 3600
count_max = 2
"""


def order(number: int, **more: Any) -> Order:
    fields: dict[str, Any] = {
        "merchant_id": "shop",
        "amount_minor": 500,
        "currency": "GBP",
        "instrument_token": "tok_1",
        "business_date": "2026-09-21",
        "submitted_at_ms": NOW,
        "card_fingerprint": "fp_1",
    }
    return Order(order_id=f"o-{number}", **{**fields, **more})


def outcome(status: str = "captured", reason: str | None = None, lost: int = 0) -> Outcome:
    return Outcome(status, reason, 500 if status == "captured" else 0, lost)


def changes(replay: Replay) -> dict[tuple[str, str], int]:
    return {change: sums.orders for change, sums in replay.changes.items()}


def test_a_replay_says_what_would_have_changed_and_what_it_would_have_cost() -> None:
    """By change and by rule: orders, sums, what was captured and what was disputed of them."""
    replay = Replay(read_rules(RULES, "rules.toml"))
    replay.take(order(1), NOW, outcome(), counts=True)
    replay.take(order(2), NOW, outcome(lost=500), counts=True)
    replay.take(order(3), NOW, outcome(lost=500), counts=True)
    replay.take(order(4, amount_minor=1_001), NOW, outcome("failed", "declined"), counts=True)
    replay.take(order(5), NOW, None, counts=True)
    report = replay.report()
    assert changes(replay) == {
        ("allow", "allow"): 2,
        ("allow", "review"): 1,
        ("allow", "reject"): 1,
        ("unknown", "review"): 1,
    }
    large, card = report["rules"]
    assert (large["orders"], large["amount_minor"], large["captured_minor"]) == (
        1,
        {"GBP": 1_001},
        {},
    )
    assert (card["orders"], card["captured_minor"], card["disputed_minor"]) == (
        2,
        {"GBP": 500},
        {"GBP": 500},
    )
    held = next(c for c in report["decisions"] if (c["current"], c["new"]) == ("allow", "review"))
    (example,) = held["examples"]
    assert example["order"] == "shop:o-3"
    assert example["why"] == "review by card_hour: 3 orders of this card within 1 h, over 2"


@pytest.mark.parametrize(
    ("was", "current"),
    [
        (outcome("rejected", "risk_large"), "reject"),
        (outcome("failed", "do_not_honor"), "allow"),
    ],
)
def test_what_stands_now_is_read_from_the_payment(was: Outcome, current: str) -> None:
    """As it ended: a failure at a gateway was allowed before."""
    replay = Replay(read_rules(RULES, "rules.toml"))
    replay.take(order(1), NOW, was, counts=True)
    assert changes(replay) == {(current, "allow"): 1}


def test_orders_that_rules_are_never_asked_about_are_left_out() -> None:
    """Invalid, free and repeated orders, and those with a card number, neither count nor change."""
    replay = Replay(read_rules(RULES, "rules.toml"))
    replay.take(order(1), NOW, outcome("rejected", "currency_must_be_iso_4217"), counts=True)
    replay.take(order(2, amount_minor=0), NOW, outcome("no_payment_due"), counts=True)
    replay.take(order(3, instrument_token="4111111111111111"), NOW, None, counts=True)
    for _ in range(4):
        replay.take(order(4), NOW, outcome(), counts=True)
    replay.take(order(5), NOW, outcome(), counts=True)
    assert replay.report()["orders"] == {
        "read": 8,
        "repeated": 3,
        "not_assessed": 3,
        "assessed": 2,
    }
    assert changes(replay) == {("allow", "allow"): 2}


def test_windows_are_full_at_the_beginning() -> None:
    """What came before the reported time is counted and not reported; a rejected order neither."""
    replay = Replay(read_rules(RULES, "rules.toml"))
    replay.take(order(1), NOW - 30 * MINUTE, outcome(), counts=False)
    replay.take(order(2), NOW - 20 * MINUTE, outcome(), counts=False)
    replay.take(order(3, amount_minor=5_000), NOW - MINUTE, outcome(), counts=False)
    replay.take(order(4), NOW, outcome(), counts=True)
    replay.take(order(5, card_fingerprint=None), NOW, outcome(), counts=True)
    assert changes(replay) == {("allow", "review"): 1, ("allow", "allow"): 1}
    (example,) = replay.examples["allow", "review"]
    assert example["why"].startswith("review by card_hour: 3 orders")


def both(orders: list[tuple[Order, str | None]], since: int) -> tuple[Payment, Replay]:
    """The last of these payments in a flow with a rule on cards, and a replay of that rule over
    what the flow left; a command may come before its order."""
    rules = read_rules(
        "[[rule]]\nname='v'\ntype='velocity'\naction='reject'\nby='card'\nwindow_s=3600\n"
        "count_max=2\n",
        "rules.toml",
    )
    flow = FlowDriver(replace(POLICY, risk=rules), now_ms=NOW)
    appended = []
    for each, before in orders:
        if before is not None:
            flow.command(command(before, f"c-{each.order_id}", order_id=each.order_id))
        flow.now_ms += MINUTE
        flow.order(each)
        flow.count_all()
        appended.append((each, flow.now_ms))
    replay = replayed(rules, flow.read(PAYMENTS, Payment), appended, since)
    last = flow.payment("shop", orders[-1][0].order_id)
    assert last is not None
    return last, replay


@pytest.mark.parametrize("since", [NOW, NOW + 4 * MINUTE], ids=["within", "before"])
@pytest.mark.parametrize(
    "uncounted",
    [
        pytest.param([({"currency": "XXX"}, None)], id="no currency"),
        pytest.param([({"instrument_token": " "}, None)], id="no token"),
        pytest.param([({}, "cancel")], id="cancelled before it came"),
    ],
)
def test_what_the_flow_never_counted_counts_nowhere(
    uncounted: list[tuple[dict[str, Any], str | None]], since: int
) -> None:
    """Of the reported time and of the window before it: the good order after them stays allowed."""
    orders = [(order(n, **fields), before) for n in (1, 2, 3) for fields, before in uncounted]
    last, replay = both([*orders, (order(4), None)], since)
    assert last.status == "processing"
    assert changes(replay) == {("allow", "allow"): 1}


@pytest.mark.parametrize("since", [NOW, NOW + 3 * MINUTE], ids=["within", "before"])
def test_what_the_flow_counted_counts_in_a_replay(since: int) -> None:
    """Whatever came before it, a command that waits among it."""
    orders = [(order(1), None), (order(2), "refund"), (order(3), None)]
    last, replay = both(orders, since)
    assert last.status == "rejected"
    assert changes(replay)["reject", "reject"] == 1


ENDS: dict[str, list[PaymentCommand]] = {
    "waiting": [],
    "approved": [command("review", decision="approve", order_id="o-1")],
    "denied": [command("review", decision="deny", order_id="o-1")],
    "cancelled": [command("cancel", order_id="o-1", reason="changed their mind")],
    "expired": [],
}


@pytest.mark.parametrize("end", ENDS)
def test_an_order_that_was_in_review_counts_as_one_however_that_ended(end: str) -> None:
    """The rules that are in force change nothing, and how reviews ended is what they are judged
    by: one that expired or was cancelled took no money."""
    rules = read_rules(RULES.replace('"reject"', '"review"'), "rules.toml")
    flow = FlowDriver(replace(POLICY, risk=rules, review_ms=5 * MINUTE), now_ms=NOW)
    large, small = order(1, amount_minor=2_000), order(2, card_fingerprint=None)
    flow.order(large)
    flow.order(small)
    flow.count_all()
    flow.now_ms += MINUTE
    for each in ENDS[end]:
        flow.command(each)
    if end == "expired":
        flow.advance(10 * MINUTE)
    orders = [(large, NOW), (small, NOW)]
    replay = replayed(rules, flow.read(PAYMENTS, Payment), orders, NOW)
    assert changes(replay) == {("review", "review"): 1, ("allow", "allow"): 1}
    assert replay.changes["review", "review"].to_json()["reviews"] == {end: 1}
    report = {"since": "2026-11-01T00:00:00Z", "until": "x", "first_order": None}
    lines = list(report_lines({**report, **replay.report()}))
    assert f"  stays review             1 orders, GBP 20.00; reviews 1 {end}" in lines


LARGE = (
    "[[rule]]\nname='large'\ntype='amount'\naction='review'\ncurrency='GBP'\n"
    "amount_minor_max=1000\n"
)
COUNTED = (
    "[[rule]]\nname='v'\ntype='velocity'\naction='review'\nby='card'\nwindow_s=3600\ncount_max=5\n"
)


def uncounted(
    text: str, amount_minor: int, before: list[PaymentCommand], after: list[PaymentCommand]
) -> Replay:
    """A replay of the rules in force: after these commands the risk stage is silent about an order,
    which is in review for that; the others, or nothing in time, come there."""
    rules = read_rules(text, "rules.toml")
    policy = replace(POLICY, risk=rules, review_ms=5 * MINUTE, risk_answer_ms=MINUTE)
    flow = FlowDriver(replace(policy, count_cards=text == LARGE), now_ms=NOW)
    placed = order(1, amount_minor=amount_minor)
    flow.order(placed)
    for each in before:
        flow.command(each)
    flow.open_checks.clear()
    flow.advance(3 * MINUTE)
    payment = flow.payment("shop", "o-1")
    assert payment is not None
    assert (payment.status, payment.reason) == ("risk_review", "risk_counts_missing")
    for each in after:
        flow.command(each)
    if not after:
        flow.advance(20 * MINUTE)
    return replayed(rules, flow.read(PAYMENTS, Payment), [(placed, NOW)], NOW)


@pytest.mark.parametrize("end", [end for end in ENDS if end != "waiting"])
def test_a_review_for_want_of_a_permit_is_told_apart_however_it_ended(end: str) -> None:
    """No rule asked for it, so the rules in force would not allow what was held. Cancelled there it
    was cancelled in review: the attempt that was made ready was never sent."""
    replay = uncounted(LARGE, 500, [], ENDS[end])
    assert changes(replay) == {("counts_missing", "allow"): 1}
    assert replay.changes["counts_missing", "allow"].to_json()["reviews"] == {end: 1}


def test_a_review_for_want_of_counts_is_told_apart_while_it_lasts() -> None:
    """Its end takes its reason, and it is told as any review."""
    rules = read_rules(COUNTED, "rules.toml")
    flow = FlowDriver(replace(POLICY, risk=rules, risk_answer_ms=MINUTE), now_ms=NOW)
    flow.order(order(1))
    flow.advance(3 * MINUTE)
    replay = replayed(rules, flow.read(PAYMENTS, Payment), [(order(1), NOW)], NOW)
    assert changes(replay) == {("counts_missing", "allow"): 1}
    assert changes(uncounted(COUNTED, 500, [], ENDS["denied"])) == {("review", "allow"): 1}


def test_an_approval_that_came_to_nothing_is_not_how_the_review_ended() -> None:
    """A rule asked, a person approved, the permit did not come, and it was cancelled in its second
    review."""
    cancel = command("cancel", "x-1", order_id="o-1", reason="changed their mind")
    replay = uncounted(LARGE, 2_000, ENDS["approved"], [cancel])
    assert changes(replay) == {("review", "review"): 1}
    assert replay.changes["review", "review"].to_json()["reviews"] == {"cancelled": 1}


def test_an_order_that_is_cancelled_while_its_permit_is_awaited_was_in_no_review() -> None:
    """No rule asked for one, and the permit may still have come."""
    rules = read_rules(LARGE, "rules.toml")
    flow = FlowDriver(replace(POLICY, risk=rules, count_cards=True), now_ms=NOW)
    flow.order(order(1))
    for each in ENDS["cancelled"]:
        flow.command(each)
    assert [each.status for each in flow.read(PAYMENTS, Payment)][-1] == "cancelled"
    replay = replayed(rules, flow.read(PAYMENTS, Payment), [(order(1), NOW)], NOW)
    assert changes(replay) == {("allow", "allow"): 1}
    assert replay.changes["allow", "allow"].to_json()["reviews"] == {}


def test_a_review_of_a_retry_says_nothing_of_its_order() -> None:
    """The order was allowed, and its other card is held."""
    rules = read_rules(
        '[[rule]]\nname="other"\ntype="blocklist"\naction="review"\nfield="instrument_token"\n'
        'values=["tok_2"]\n',
        "rules.toml",
    )
    flow = FlowDriver(replace(POLICY, risk=rules), now_ms=NOW)
    flow.order(order(1, card_fingerprint=None))
    flow.answer(GatewayAnswer(outcome="declined", code="do_not_honor"))
    flow.command(command("retry", order_id="o-1", instrument_token="tok_2"))
    payment = flow.payment("shop", "o-1")
    assert payment is not None
    assert payment.status == "risk_review"
    replay = replayed(rules, [payment], [(order(1, card_fingerprint=None), NOW)], NOW)
    assert changes(replay) == {("allow", "allow"): 1}


def test_the_report_is_read_by_people() -> None:
    """Every figure of the JSON stands in a line."""
    replay = Replay(read_rules(RULES, "rules.toml"))
    replay.take(order(1, amount_minor=2_000), NOW, outcome(), counts=True)
    report = {"since": "2026-11-01T00:00:00Z", "until": "x", "first_order": None}
    lines = list(report_lines({**report, **replay.report()}))
    assert "  allow -> reject          1 orders, GBP 20.00, captured GBP 5.00" in lines
    assert "      reject by large: GBP 20.00 is over GBP 10.00" in lines
    assert "  card_hour                review: 0 orders" in lines


def test_rules_are_checked_by_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right rules are listed; wrong ones, and none at all, are one sentence and exit code 2."""
    path = tmp_path / "rules.toml"
    path.write_text(RULES.replace('action = "review"', 'action = "review"\nshadow = true'))
    done = CliRunner().invoke(app, ["risk", "check", str(path)])
    assert done.exit_code == 0
    assert done.output.splitlines()[0].endswith("rules.toml: 2 rules")
    assert done.output.splitlines()[2] == "  card_hour: velocity, review (in shadow)"
    monkeypatch.setenv("PAYSTREAM_RISK_RULES", str(path))
    assert CliRunner().invoke(app, ["risk", "check"]).output == done.output
    path.write_text(RULES.replace("count_max", "count_mx"))
    with pytest.raises(UserError, match=r"risk rule 'card_hour' in .*did you mean count_max"):
        CliRunner().invoke(app, ["risk", "check"], catch_exceptions=False)
    monkeypatch.delenv("PAYSTREAM_RISK_RULES")
    with pytest.raises(UserError, match="no rules are set; name a file"):
        CliRunner().invoke(app, ["risk", "check"], catch_exceptions=False)


@pytest.mark.parametrize("since", ["yesterday", "2026-13-01", "2126-01-01T00:00Z"])
def test_a_replay_needs_a_moment_in_the_past(tmp_path: Path, since: str) -> None:
    """A wrong time is a sentence, before anything is read."""
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    with pytest.raises(UserError, match="--since"):
        CliRunner().invoke(
            app, ["risk", "replay", str(path), "--since", since], catch_exceptions=False
        )


def test_wrong_rules_keep_payments_workers_from_starting(tmp_path: Path) -> None:
    """They are refused where workers are started; other stages do not ask for them."""
    path = tmp_path / "rules.toml"
    settings = load_settings(risk_rules=str(path), state_dir=tmp_path)
    with pytest.raises(UserError, match=r"rules\.toml cannot be read"):
        worker_specs(settings, {"payments": 1}, node_id="n")
    path.write_text("[[rule]]\n")
    with pytest.raises(UserError, match=r"risk rule number 1 in .*rules\.toml: name is missing"):
        worker_specs(settings, {"payments": 1}, node_id="n")
    assert worker_specs(settings, {"gateway": 1}, node_id="n")
    path.write_text(RULES)
    (spec,) = worker_specs(settings, {"payments": 1}, node_id="n")
    assert spec.options["risk_rules"] == RULES

"""``paystream payment`` and ``paystream review``, as far as they need no broker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.audit.trace import Hop, Trace, describe
from pipeline.cli import app
from pipeline.commands.payment_follow import (
    DONE,
    FAILED,
    REJECTED,
    REPEATED,
    Outcome,
    PaymentSeen,
    judged,
)
from pipeline.commands.payment_meaning import (
    asked_anew,
    check_nobodys,
    check_single,
    review_named,
    review_now,
    with_id,
)
from pipeline.commands.payment_story import story_json, story_lines
from pipeline.domain.command_memory import content_digest
from pipeline.domain.ids import payment_id
from pipeline.domain.keys import valid_id
from pipeline.domain.model import (
    Attempt,
    CommandMark,
    Dispute,
    Payment,
    PaymentCommand,
    PaymentEvent,
)
from pipeline.domain.policy import HOUR_MS
from pipeline.domain.records import payment_to_record, to_record
from pipeline.domain.risk_rules import read_rules
from pipeline.errors import UserError
from tests.support.cli_runner import CliRunner
from tests.support.payment_story import (
    DECLINED,
    MANUAL,
    ORDER,
    POLICY,
    TIMED_OUT,
    Story,
    command,
    unasked,
    yes,
)

runner = CliRunner()

REFUND = PaymentCommand(
    merchant_id="shop",
    order_id="1001",
    command_id="r-1",
    type="refund",
    submitted_at_ms=1,
    amount_minor=500,
    currency="GBP",
)
DISPUTE = ["payment", "resolve-dispute", "shop:1", "--dispute", "d1"]
CHARGE = Attempt(
    operation_id="1001",
    kind="charge",
    gateway="sim-a",
    attempt=1,
    state="charged",
    tries=3,
    retries=1,
    inquiries=1,
    started_at_ms=0,
    updated_at_ms=0,
    gateway_reference="ch_1",
    routed_because="priority 1 of 2",
)
PAYMENT = Payment(
    merchant_id="shop",
    order_id="1001",
    payment_id=payment_id("shop", "1001"),
    sequence=4,
    status="captured",
    amount_minor=1_250,
    currency="GBP",
    instrument_token="tok_ok",
    business_date="2026-11-01",
    ordered_at_ms=0,
    updated_at_ms=0,
    authorized_minor=1_250,
    captured_minor=1_250,
    attempts=(CHARGE,),
)


def refund_attempt(state: str, **more: Any) -> Attempt:
    return replace(
        CHARGE,
        operation_id="r-1",
        kind="refund",
        state=state,
        amount_minor=500,
        gateway_reference="re_1",
        **more,
    )


def event(type_: str, **more: Any) -> PaymentEvent:
    return PaymentEvent(
        event_id="e",
        merchant_id="shop",
        order_id="1001",
        payment_id=PAYMENT.payment_id,
        sequence=5,
        type=type_,
        status="captured",
        amount_minor=1_250,
        currency="GBP",
        occurred_at_ms=0,
        **more,
    )


def ask(*words: str) -> str:
    """What an illegal command line is told; nobody listens at the address."""
    result = runner.invoke(app, [*words, "--bootstrap-servers", "127.0.0.1:1"])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["payment", "refund", "shop"], "names no payment"),
        (["payment", "refund", "shop:1001:2"], "names no payment"),
        (["payment", "refund", "shop:1", "--amount", "1.005", "--currency", "GBP"], "finer than"),
        (["payment", "capture", "shop:1", "--amount", "1", "--currency", "XXX"], "not an active"),
        (["payment", "refund", "shop:1", "--business-date", "1 May"], "is not a date"),
        (["payment", "retry", "shop:1", "--token", "4242 4242 4242 4242"], "a card number"),
        (["payment", "resolve", "shop:1", "--evidence", "x"], "Give one of --charged REF and"),
        (
            ["payment", "resolve", "shop:1", "--charged", "c", "--not-charged", "--evidence", "x"],
            "Give one of --charged REF and",
        ),
        (["payment", "resolve", "shop:1", "--not-charged"], "--evidence"),
        (
            ["payment", "resolve", "shop:1", "--not-charged", "--amount", "1", "--evidence", "x"],
            "leave it out",
        ),
        (["payment", "resolve", "shop:1", "--returned", "--evidence", "x"], "--operation"),
        (
            ["payment", "resolve", "shop:1", "--returned", "--not-charged", "--evidence", "x"],
            "or --returned",
        ),
        (
            ["payment", "resolve", "shop:1", "--not-charged", "--despite-id", "--evidence", "x"],
            "leave it out",
        ),
        (["payment", "refund", "shop:1", "--command-id", "a b"], "command_id 'a b' does not match"),
        ([*DISPUTE, "--evidence", "x"], "Give one of --won and --lost"),
        ([*DISPUTE, "--won", "--lost", "--evidence", "x"], "Give one of --won and --lost"),
        ([*DISPUTE, "--won"], "--evidence"),
        (["payment", "acknowledge", "shop:1", "--reason", "x"], "--evidence"),
        (["payment", "record-refund", "shop:1", "--reference", "T-1"], "--evidence"),
        (
            ["payment", "record-refund", "shop:1", "--reference", " ", "--evidence", "x"],
            "--reference",
        ),
        (["payment", "acknowledge", "shop:1", "--evidence", "x"], "--reason"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused_before_it_is_sent(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake is named in one sentence, and nothing is published."""
    monkeypatch.setattr("producers.publisher.check_topic", lambda *_, **_given: None)
    assert message in ask(*words)


def test_amounts_follow_the_currencys_decimals() -> None:
    """12.50 is 1,250 minor units of GBP, and refused for JPY, which has none."""
    assert "finer than JPY allows" in ask(
        "payment", "refund", "shop:1", "--amount", "12.50", "--currency", "JPY"
    )


def test_the_same_line_typed_again_is_the_same_command() -> None:
    """The id comes from what is asked, not from when or by whom; something else is another one."""
    asked = replace(REFUND, command_id="")
    again = replace(asked, submitted_at_ms=99, actor="somebody else")
    assert with_id(asked).command_id == with_id(again).command_id
    assert with_id(asked).command_id.startswith("refund-")
    for other in (
        {"amount_minor": 501},
        {"reason": "a second one"},
        {"order_id": "1002"},
        {"card_fingerprint": "fp_2"},
        {"card_scheme": "visa"},
        {"figures": "refunded 1"},
    ):
        assert with_id(replace(asked, **other)).command_id != with_id(asked).command_id
    assert with_id(REFUND) == REFUND


def test_ids_of_commands_outlast_an_upgrade() -> None:
    """The same line typed to the next version must not give money back a second time."""
    assert with_id(replace(REFUND, command_id="")).command_id == "refund-2dd254513d4e76e8"


@pytest.mark.parametrize(
    "type_", ["cancel", "give_back", "resolve", "resolve_dispute", "review", "retry", "capture"]
)
def test_what_moves_no_money_by_itself_is_asked_anew_each_time(type_: str) -> None:
    """A cancel that was refused, typed again after a retry, is another intent; a retry is not."""
    asked = replace(REFUND, command_id="", type=type_)
    first, second = with_id(asked).command_id, with_id(asked).command_id
    assert (first == second) is (type_ in ("retry", "capture"))
    assert first.startswith(f"{type_}-")
    assert valid_id(first)
    assert with_id(replace(asked, command_id="mine")).command_id == "mine"


def typed(type_: str, **fields: Any) -> PaymentCommand:
    return with_id(command(type_, "", actor="ann", **fields))


def test_a_cancel_typed_again_after_a_retry_cancels() -> None:
    """The first was refused; the second bars the retry that is under way by then."""
    story = Story(MANUAL)
    story.flow.answer(DECLINED)
    story.flow.command(typed("cancel"))
    assert story.flow.events()[-1].reason == "payment_must_be_open"
    story.command("retry", "r1", instrument_token="tok_2")
    story.flow.command(typed("cancel"))
    story.flow.run(yes)
    assert (story.status, story.money) == ("cancelled", (0, 0, 0))
    story.flow.command(typed("cancel"))
    assert story.flow.events()[-1].reason == "payment_must_be_open", "told by name, not silently"


def test_an_approval_typed_again_lets_no_later_retry_go_on() -> None:
    """The retry is held by the same rule as its order: another card, which nobody has looked at.
    The line of before is about the order, whenever it comes; the next has to name the retry."""
    rules = """
        [[rule]]
        name = "large"
        type = "amount"
        action = "review"
        currency = "GBP"
        amount_minor_max = 100
    """
    story = Story(ORDER, replace(POLICY, risk=read_rules(rules, "rules.toml")))
    operation_id, attempt = review_now(story.payment, "shop:1")
    assert (operation_id, attempt) == ("1", 1)
    line = {"decision": "approve", "operation_id": operation_id, "attempt": attempt}
    story.flow.command(typed("review", **line))
    story.flow.answer(DECLINED)
    story.command("retry", "r1", instrument_token="tok_2")
    assert story.status == "risk_review"
    rule = "review_must_be_of_what_is_in_review"
    for decision in ("approve", "deny"):
        story.flow.command(typed("review", **{**line, "decision": decision}))
        assert (story.status, story.flow.events()[-1].reason) == ("risk_review", rule)
    with pytest.raises(UserError, match=r"in review for r1, .* --operation r1\.$"):
        review_now(story.payment, "shop:1")
    named, number = review_named("r1")
    story.flow.command(typed("review", decision="approve", operation_id=named, attempt=number))
    story.flow.answer(yes)
    assert story.status == "captured"
    with pytest.raises(UserError, match="is captured"):
        review_now(story.payment, "shop:1")


def test_a_review_is_named_as_it_is_listed() -> None:
    """By its operation, and from the second attempt on by that as well."""
    assert review_named("1001") == ("1001", 1)
    assert review_named("1001:2") == ("1001", 2)
    for wrong in ("1001:x", "1001:22222"):
        with pytest.raises(UserError, match="names no review"):
            review_named(wrong)


def test_a_resolution_that_came_too_early_may_be_typed_again() -> None:
    """Ten minutes later nobody can send the charge any more."""
    story = Story()
    story.flow.answer(TIMED_OUT)
    word = {"decision": "not_charged", "evidence": "ticket 1", "operation_id": "1"}
    story.flow.command(typed("resolve", **word))
    assert story.flow.events()[-1].reason == "send_window_must_be_over"
    story.flow.now_ms += 600_000
    story.flow.command(typed("resolve", **word))
    assert story.status == "failed"


def test_a_resolution_typed_again_decides_about_no_other_operation() -> None:
    """Of a payment with several the one is named, also where only one is unknown: later it would be
    another one."""
    charge = replace(CHARGE, state="inquiry_exhausted")
    check_single(replace(PAYMENT, attempts=(charge,)), ())
    refund = refund_attempt("inquiry_exhausted")
    with pytest.raises(UserError, match=r"--operation: r-1 \(refund of 500 GBP at sim-a\)\.$"):
        check_single(replace(PAYMENT, attempts=(CHARGE, refund)), ())


def test_what_was_given_back_as_nobodys_is_no_charge_of_a_payment() -> None:
    """Typed with a space behind it as well; of another gateway or reference, or where nothing but
    a refused word came under its key, the person may say so."""
    story = Story()
    story.flow.answer(TIMED_OUT)
    story.flow.command(unasked("ch_77"))
    story.flow.command(replace(unasked("ch_78"), type="cancel"))
    with pytest.raises(UserError, match=r"ch_77 of simulator was given back .* by unasked:"):
        check_nobodys(story.payment, "ch_77 ", story.flow.payment)
    check_nobodys(story.payment, "ch_78", story.flow.payment)
    check_nobodys(story.payment, "ch_79", story.flow.payment)
    elsewhere = replace(story.payment.attempts[0], gateway="pacific")
    check_nobodys(replace(story.payment, attempts=(elsewhere,)), "ch_77", story.flow.payment)
    found = story.flow.payment("unasked", unasked("ch_77").order_id)
    assert found is not None
    check_nobodys(found, "ch_77", story.flow.payment)


def test_a_command_that_was_taken_before_is_not_told_as_done() -> None:
    """A repetition has no effect, and says so: of two returned items at one price a program would
    take the second for refunded. What the first came to is told with it, and a failure as one."""
    review = replace(REFUND, type="review", amount_minor=None, decision="approve")
    seen = PaymentSeen(replace(PAYMENT, status="risk_review", command_ids=("r-1",)))
    outcome = judged(seen, review, repeated=True)
    assert outcome == Outcome(
        REPEATED, "it was taken before and has no effect now; the payment is risk_review"
    )
    before = "it was taken before and has no effect now; refund of GBP 5.00 at sim-a: "

    def of(attempt: Attempt) -> Outcome | None:
        taken = replace(PAYMENT, command_ids=("r-1",), attempts=(CHARGE, attempt))
        return judged(PaymentSeen(taken), REFUND, repeated=True)

    assert of(refund_attempt("refunded")) == Outcome(REPEATED, f"{before}refunded, reference re_1")
    assert of(refund_attempt("declined", code="card_closed")) == Outcome(
        FAILED, f"{before}declined, card_closed"
    )
    assert of(refund_attempt("inquiring")) is None


@pytest.mark.parametrize(
    ("payment", "events", "outcome"),
    [
        (None, [], None),
        (PAYMENT, [], None),
        (replace(PAYMENT, command_ids=("r-1",), commands=(REFUND,)), [], None),
        (
            replace(PAYMENT, command_ids=("r-1",), attempts=(CHARGE, refund_attempt("inquiring"))),
            [],
            None,
        ),
        (
            replace(PAYMENT, command_ids=("r-1",), attempts=(CHARGE, refund_attempt("refunded"))),
            [],
            Outcome(DONE, "refund of GBP 5.00 at sim-a: refunded, reference re_1"),
        ),
        (
            replace(
                PAYMENT,
                command_ids=("r-1",),
                attempts=(CHARGE, refund_attempt("declined", code="card_closed")),
            ),
            [],
            Outcome(FAILED, "refund of GBP 5.00 at sim-a: declined, card_closed"),
        ),
        (
            replace(PAYMENT, command_ids=("r-1",)),
            [event("command_rejected", operation_id="r-1", reason="payment_must_be_captured")],
            Outcome(REJECTED, "payment_must_be_captured"),
        ),
        (
            replace(PAYMENT, command_ids=("r-1",)),
            [event("command_rejected", operation_id="r-2", reason="payment_must_be_captured")],
            Outcome(DONE, "the payment is captured"),
        ),
        (
            replace(
                PAYMENT, command_ids=("r-1",), status="processing", cancel_requested_by="r-1"
            ),
            [],
            None,
        ),
    ],
    ids=[
        "no payment", "not read yet", "waits", "under way", "done", "declined", "rejected",
        "another one's rejection", "a cancel that waits for the charge",
    ],
)  # fmt: skip
def test_what_became_of_a_command(
    payment: Payment | None, events: list[PaymentEvent], outcome: Outcome | None
) -> None:
    """Only a rejection or an end is an outcome; until then the command is followed."""
    assert judged(PaymentSeen(payment, events, events), REFUND) == outcome


def test_a_rejection_from_before_counts_only_where_it_is_remembered() -> None:
    """A payment that forgot the command judges it anew, so the old answer is not its answer."""
    old = event("command_rejected", operation_id="r-1", reason="commands_must_not_exceed_limit")
    assert judged(PaymentSeen(PAYMENT, [old], []), REFUND) is None
    assert judged(PaymentSeen(PAYMENT, [old], [old]), REFUND) is not None


def test_another_command_under_a_known_id_is_not_done() -> None:
    """Who asks for something else under an id that was taken is told so, and never that it is done;
    who asks for the same again is told what became of it, whatever others tried meanwhile."""
    mark = CommandMark(digest=content_digest(REFUND), taken_at_ms=0)
    payment = replace(
        PAYMENT,
        command_ids=("r-0", "r-1"),
        command_marks=(mark,),
        attempts=(CHARGE, refund_attempt("refunded")),
    )
    rule = "content_of_a_command_id_must_not_change"
    conflict = event("command_rejected", operation_id="r-1", reason=rule)
    other = replace(REFUND, amount_minor=600)
    assert judged(PaymentSeen(payment, [], []), other) is None
    assert judged(PaymentSeen(payment, [conflict], []), other) is None, "an earlier one's"
    outcome = judged(PaymentSeen(payment, [conflict], [conflict]), other)
    assert outcome == Outcome(REJECTED, rule)
    again = judged(PaymentSeen(payment, [conflict], [conflict]), REFUND)
    assert again is not None
    assert again.kind == DONE


def trace_of(payment: Payment) -> Trace:
    told = event("refunded", operation_id="r-1", kind="refund", operation_minor=500, actor="ann")
    records: list[tuple[str, dict[str, Any]]] = [
        ("payment-commands", to_record(replace(REFUND, actor="ann", reason="broken"))),
        ("payment-events", to_record(told)),
        ("payments", payment_to_record(payment)),
    ]
    hops = [
        Hop(role, role, 0, n, 1_800_000_000_000 + n, n, describe(role, fields), fields)
        for n, (role, fields) in enumerate(records)
    ]
    return Trace("shop:1001", 0, PAYMENT.payment_id, hops, state="captured")


def test_show_tells_the_whole_history() -> None:
    """Amounts, shown statuses, attempts and why their gateway, what waits, disputes, events."""
    payment = replace(
        PAYMENT,
        refunded_minor=500,
        dead_letters=2,
        letters=("gateway payment-requests[3]@17 truncated",),
        disputed_minor=750,
        attempts=(CHARGE, refund_attempt("refunded")),
        commands=(replace(REFUND, command_id="r-2", actor="ann"),),
        disputes=(
            Dispute(
                dispute_id="dp1",
                state="opened",
                amount_minor=750,
                gateway="sim-a",
                updated_at_ms=0,
                fee_minor=1_500,
                withdrawn_minor=750,
            ),
            Dispute(
                dispute_id="dp2",
                state="won",
                amount_minor=100,
                gateway="sim-a",
                updated_at_ms=0,
                gateway_state="pre_arbitration",
                resolved_by="ann",
            ),
        ),
    )
    text = "\n".join(story_lines(trace_of(payment)))
    for said in (
        "status            captured, partially_refunded, disputed",
        "captured          GBP 12.50",
        "refunded          GBP 5.00",
        "attempt 1         charge of GBP 12.50 at sim-a: charged, ch_1",
        "operation 1001, attempt 1; 3 requests, 1 retries, 1 inquiries",
        "there because: priority 1 of 2",
        "attempt 2         refund of GBP 5.00 at sim-a: refunded, re_1, of ch_1",
        "dispute           dp1 at sim-a: opened, GBP 7.50, of it withdrawn GBP 7.50, fee GBP 15.00",
        "dispute           dp2 at sim-a: won, by ann (the gateway said pre_arbitration), GBP 1.00",
        "waits             refund of GBP 5.00, command r-2, asked by ann",
        "dead letters      2, of them conflicts: 0",
        "by the stage gateway payment-requests[3]@17 truncated",
        "command r-1: refund, GBP 5.00, broken, by ann",
        "event 5: refunded, captured, refund r-1 of GBP 5.00, by ann",
    ):
        assert said in text, text
    assert "payment at 4" not in text

    story = story_json(trace_of(payment))
    assert story["statuses"] == ["captured", "partially_refunded", "disputed"]
    assert story["payment"]["refunded_minor"] == 500
    assert [each["topic"] for each in story["history"]] == ["payment-commands", "payment-events"]


def test_nothing_of_a_payment_steers_the_terminal() -> None:
    """Whatever a merchant, a gateway or a person wrote into it."""
    clear = "x\x1b[2J"
    charge = replace(
        CHARGE, gateway_reference=clear, code=clear, routed_because=clear, operation_id=clear
    )
    dispute = Dispute(
        dispute_id=clear,
        state="won",
        amount_minor=1,
        gateway="sim-a",
        updated_at_ms=0,
        gateway_state=clear,
        resolved_by=clear,
    )
    payment = replace(
        PAYMENT,
        attempts=(charge, refund_attempt("inquiry_exhausted")),
        disputes=(dispute,),
        unfounded_disputes=(dispute,),
        commands=(replace(command("refund", "r-2"), actor=clear, currency=clear, amount_minor=1),),
        currency=clear,
        capture_method=clear,
        reason=clear,
        customer_id=clear,
        next_action_url=clear,
        cancel_requested_by=clear,
        dead_letters=1,
        letters=(clear,),
    )
    lines = list(story_lines(trace_of(payment)))
    assert any("x?[2J" in line for line in lines)
    assert [line for line in lines if not line.isprintable()] == []


def test_show_tells_what_a_person_may_resolve() -> None:
    """The line to type is there, with the operation's name."""
    refund = refund_attempt("inquiry_exhausted")
    text = "\n".join(story_lines(trace_of(replace(PAYMENT, attempts=(CHARGE, refund)))))
    said = "outcome unknown: paystream payment resolve shop:1001 --operation r-1"
    assert text.count("outcome unknown") == 1
    assert said in text


@pytest.mark.parametrize(
    ("role", "fields", "said"),
    [
        (
            "audit",
            {
                "action": "payment_resolve", "actor": "ann", "reason": "phone",
                "detail": json.dumps({
                    "command_id": "p1", "outcome": "done", "decision": "charged",
                    "operation_id": "r-1", "kind": "refund", "gateway_reference": "re_1",
                    "evidence": "their report",
                }),
            },
            "by hand: payment_resolve, done, charged, refund r-1, re_1, their report, ann, phone",
        ),
        (
            "audit",
            {
                "action": "dispute_resolve", "actor": "ann", "reason": None,
                "detail": json.dumps({
                    "command_id": "p1", "outcome": "refused", "rule": "dispute_must_be_known",
                    "decision": "won", "dispute_id": "d9",
                }),
            },
            "by hand: dispute_resolve, refused by dispute_must_be_known, won, dispute d9, ann",
        ),
        (
            "audit",
            {"action": "dead_letters_redrive", "actor": "ann", "reason": "mended",
             "detail": '{"letters": ["0:1"]}'},
            "by hand: dead_letters_redrive, ann, mended",
        ),
        (
            "payment-commands",
            to_record(
                replace(REFUND, type="resolve_dispute", amount_minor=None, decision="won",
                        dispute_id="dp1", evidence="a letter", actor="ann")
            ),
            "command r-1: resolve_dispute, won, dispute dp1, a letter, by ann",
        ),
        (
            "payment-commands",
            to_record(
                replace(REFUND, type="acknowledge", amount_minor=None, finding="amounts",
                        figures="refunded 1", evidence="a letter", reason="known", actor="ann")
            ),
            "command r-1: acknowledge, amounts refunded 1, a letter, known, by ann",
        ),
        (
            "gateway-notifications",
            {
                "gateway": "sim-a", "type": "dispute", "dispute_id": "dp1", "kind": None,
                "dispute_state": "opened", "outcome": None, "code": None, "amount_minor": 750,
                "currency": "GBP", "gateway_reference": None, "operation_id": None,
            },
            "notice of sim-a: dispute dp1 opened, GBP 7.50",
        ),
        (
            "gateway-notifications",
            {
                "gateway": "sim-a", "type": "operation", "dispute_id": None, "kind": "refund",
                "dispute_state": None, "outcome": "failed", "code": "card_closed",
                "amount_minor": 0, "currency": "GBP", "gateway_reference": "re_1",
                "operation_id": "r-1",
            },
            "notice of sim-a: refund r-1, failed, card_closed, GBP 0.00, re_1",
        ),
        (
            "payment-timer-2",
            {"purpose": "timer", "reason": "authorization_ends", "due_at_ms": 1_800_000_000_000},
            "timer: authorization_ends, until 2027-01-15 08:00:00 UTC",
        ),
        (
            "payment-retry-3",
            {"purpose": "retry", "reason": "rate_limited", "due_at_ms": None},
            "waits to be sent again, rate_limited",
        ),
        (
            "payment-inquiry-2",
            {"purpose": "inquiry", "reason": "timeout", "due_at_ms": None},
            "waits to inquire, timeout",
        ),
        (
            "payment-requests",
            {
                "kind": "inquire", "operation_kind": "refund", "gateway": "sim-a",
                "operation_id": "r-1", "order_id": "1001", "attempt": 1, "try_number": 2,
                "amount_minor": 500, "currency": "GBP",
            },
            "inquiry about the refund requested at sim-a, r-1, attempt 1, try 2, GBP 5.00",
        ),
    ],
)  # fmt: skip
def test_a_trace_tells_each_topic_in_words(role: str, fields: dict[str, Any], said: str) -> None:
    """Notices, timers, tiers and inquiries read like sentences, not like records."""
    assert describe(role, fields) == said


def test_a_resolution_typed_again_is_not_taken_for_one_of_something_else() -> None:
    """A reversal was not made, its successor is unknown: the line of before, which named neither,
    would order a third. By its operation's name it is refused where that is known by now."""
    story = Story()
    story.command("cancel", "c1")
    story.flow.answer(yes)
    line = replace(
        command("resolve", ""), decision="not_charged", evidence="their dashboard", actor="ann"
    )

    def unknown() -> None:
        story.flow.run(lambda _: TIMED_OUT)
        story.flow.now_ms += HOUR_MS

    unknown()
    story.flow.command(with_id(line))
    assert story.events[-1] == "reversal_started"
    unknown()
    with pytest.raises(UserError, match="--operation: late-late-1-1-1 "):
        check_single(story.payment, story.flow.events())
    story.flow.command(with_id(replace(line, operation_id="late-1-1")))
    assert story.flow.events()[-1].reason == "outcome_must_be_unknown"


def test_a_resolution_that_was_refused_may_be_typed_again() -> None:
    """It was refused, so it decided about nothing. Once one was carried out, the same line is
    refused where the operation is unknown again."""
    story = Story()
    story.flow.answer(TIMED_OUT)
    line = replace(
        command("resolve", ""), decision="not_charged", evidence="their dashboard", actor="ann"
    )
    story.flow.command(with_id(line))
    assert story.flow.events()[-1].reason == "send_window_must_be_over"
    story.flow.now_ms += HOUR_MS
    check_single(story.payment, story.flow.events())
    taken = with_id(line)
    story.flow.command(taken)
    assert story.status == "failed"
    unknown_again = replace(story.payment.attempts[0], state="inquiry_exhausted")
    with pytest.raises(UserError, match="--operation: 1 "):
        check_single(replace(story.payment, attempts=(unknown_again,)), story.flow.events())


def asked_again(story: Story, type_: str) -> str:
    """The id of a line that is typed against the payment as it stands, and taken."""
    line = asked_anew(typed(type_), story.payment, story.flow.events())
    story.flow.command(line)
    return line.command_id


@pytest.mark.parametrize("asked", ["refund", "capture"])
def test_what_was_refused_is_asked_anew_by_the_same_line(asked: str) -> None:
    """A refund once its dispute is won, a capture once a retry holds the money: each is judged by
    how the payment stands, and is made once."""
    story = Story(MANUAL if asked == "capture" else ORDER)
    if asked == "refund":
        story.flow.answer(yes)
        story.dispute("opened")
    else:
        story.flow.answer(DECLINED)
    first = asked_again(story, asked)
    assert story.flow.events()[-1].type == "command_rejected"
    if asked == "refund":
        story.dispute("won")
    else:
        story.command("retry", "r1", instrument_token="tok_2")
        story.flow.answer(yes)
    second = asked_again(story, asked)
    assert second == f"{first}-2"
    assert story.flow.open_requests[0][1].operation_id == second
    story.flow.answer(yes)
    assert asked_again(story, asked) == second, "once: it was carried out"
    assert story.flow.decisions[-1].note == "duplicate_command"

"""What its gateway will never refund is paid otherwise, and a person's record of that ends it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from pipeline.audit.gateway_copy import ChargeSeen, GatewayCopy
from pipeline.commands.payment_follow import DONE, Outcome, PaymentSeen, judged
from pipeline.commands.payment_story import _attempt
from pipeline.domain.payment import ATTEMPTS_MAX
from pipeline.domain.policy import DAY_MS, HOUR_MS
from pipeline.domain.posting import JournalEntry, journal_entry
from pipeline.domain.reversals import outstanding
from tests.support.audit_story import judged_flow
from tests.support.payment_story import DECLINED, ORDER, Story, command, yes
from tests.unit.test_reversals import cancelled_too_late, down, lives_until
from tests.unit.test_reversals_in_dispute import cancelled_in_dispute, captured_beyond_in_dispute

WORD: dict[str, Any] = {
    "gateway_reference": " TRF-88 ",
    "evidence": "the statement of 3 May",
    "actor": "ann",
}
RECORDED = ("external_refund", -500)


def named(story: Story) -> list[str]:
    return [each.name for each in judged_flow(story.flow, None)]


def refused() -> Story:
    """A charge that came too late, and its gateway will not give it back."""
    story = cancelled_too_late(ORDER)
    story.flow.answer(DECLINED)
    assert (named(story), story.settled) == (["waits_for_a_person"], [("capture", 500)])
    return story


def test_it_is_given_back_and_nobody_waits_any_more() -> None:
    """Told as refunded, settled under the transfer's own name, and asked of no gateway."""
    story = refused()
    asked = len(story.asked)
    story.command("record_refund", "x1", **WORD)
    assert (story.events[-1], story.money, len(story.asked)) == ("refunded", (500, 500, 500), asked)
    event = story.flow.events()[-1]
    assert (event.operation_id, event.actor) == ("late-late-1-1-1", "ann")
    assert event.detail == "outside the gateway, TRF-88: the statement of 3 May"
    assert story.settled == [("capture", 500), RECORDED]
    assert story.flow.settlements()[-1].gateway_reference == "TRF-88"
    assert (named(story), outstanding(story.payment)) == ([], ())
    assert story.rejected("give_back", "g1") == "give_back_must_be_outstanding"
    assert story.command("record_refund", "x1", **WORD).note == "duplicate_command"


def test_the_books_owe_nobody_and_say_that_something_is_to_be_explained() -> None:
    """The gateway still has the charge; the merchant has it no more; who paid is open."""
    story = refused()
    story.command("record_refund", "x1", **WORD)
    sums: Counter[str] = Counter()
    for settlement in story.flow.settlements():
        entry = journal_entry(settlement)
        assert isinstance(entry, JournalEntry)
        for posting in entry.postings:
            sums[posting.account] += posting.amount_minor
    assert dict(sums) == {
        "gateway_receivable:simulator": 500,
        "merchant_payable:shop": -500,
        "merchant_available:shop": 500,
        "suspense:simulator": -500,
    }


def test_it_stands_in_the_audit_with_name_and_evidence() -> None:
    """And which operation it was about; a refusal as well."""
    story = refused()
    story.command("record_refund", "x1", **WORD)
    story.command("record_refund", "x2", **{**WORD, "gateway_reference": "TRF-89"})
    done, denied = story.flow.audit_entries()
    assert (done.action, done.actor) == ("refund_record", "ann")
    said = json.loads(done.detail)
    assert (said["outcome"], said["operation_id"], said["evidence"]) == (
        "done", "late-1-1", WORD["evidence"],
    )  # fmt: skip
    assert json.loads(denied.detail)["rule"] == "refund_must_be_owed"


def test_a_part_leaves_the_rest_owed() -> None:
    """Which is told, named, and may be recorded by another transfer or ordered again."""
    story = refused()
    story.command("record_refund", "x1", amount_minor=200, **WORD)
    assert (story.money, story.events[-1]) == ((500, 500, 200), "reversal_failed")
    assert named(story) == ["waits_for_a_person"]
    again = {**WORD, "evidence": "the same once more"}
    assert story.rejected("record_refund", "x2", **again) == "refund_must_not_be_recorded_already"
    more = {**WORD, "gateway_reference": "TRF-89"}
    assert story.rejected("record_refund", "x3", amount_minor=301, **more) == (
        "refund_must_not_exceed_what_is_owed"
    )
    story.command("record_refund", "x4", amount_minor=100, **more)
    story.command("give_back", "g1")
    assert story.flow.open_requests[0][1].amount_minor == 200
    story.flow.answer(yes)
    assert (story.money, named(story)) == ((500, 500, 500), [])


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ("reference_of_the_transfer_must_be_given", {"gateway_reference": " "}),
        ("reference_of_the_transfer_must_be_given", {"gateway_reference": "a\nb"}),
        ("reference_of_the_transfer_must_be_given", {"gateway_reference": None}),
        ("evidence_must_be_given", {"evidence": ""}),
        ("actor_must_be_given", {"actor": None}),
        ("amount_must_be_positive", {"amount_minor": 0}),
        ("operation_must_be_the_payments", {"operation_id": "late-9"}),
        ("refund_must_be_owed", {"operation_id": "1"}),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_name(rule: str, fields: dict[str, Any]) -> None:
    """And stays owed."""
    story = refused()
    assert story.rejected("record_refund", "x1", **{**WORD, **fields}) == rule
    assert named(story) == ["waits_for_a_person"]


def test_what_is_not_owed_or_on_its_way_is_not_recorded() -> None:
    """A customer would be paid twice."""
    paid = Story()
    paid.flow.answer(yes)
    assert paid.rejected("record_refund", "x1", **WORD) == "refund_must_be_owed"
    sent = cancelled_too_late(ORDER)
    sent.command("record_refund", "x1", **WORD)
    assert sent.events[-1] == "command_waiting"
    sent.flow.answer(yes)
    assert (sent.flow.events()[-1].reason, sent.money) == ("refund_must_be_owed", (500, 500, 500))


@pytest.mark.slow
def test_a_gateway_that_is_gone_for_good_holds_nothing_up() -> None:
    """Nobody knows what became of the refund; that it was paid otherwise ends it as not made."""
    story = cancelled_too_late(ORDER)
    lives_until(story, story.flow.now_ms + 2 * DAY_MS, down)
    assert story.payment.attempts[-1].state == "inquiry_exhausted"
    story.command("record_refund", "x1", **WORD)
    assert story.events[-2:] == ["refund_failed", "refunded"]
    assert (story.money, named(story)) == ((500, 500, 500), [])
    assert story.notify("succeeded", "late-1-1").dead_letter == "contradictory_evidence"
    assert story.money == (500, 500, 500)


def test_what_waits_for_a_bank_may_be_paid_meanwhile() -> None:
    """The dispute's end then gives nothing more; lost, it is told as a loss."""
    story = cancelled_in_dispute()
    story.command("record_refund", "x1", **WORD)
    assert (story.money, "refund" in story.asked) == ((500, 500, 500), False)
    story.dispute("lost")
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.events[-1] == "loss_posted"
    assert "refund" not in story.asked


def test_of_several_the_one_that_is_meant_is_named() -> None:
    """Two charges came too late, and neither is taken back; the words list both."""
    story = Story()
    story.flow.answer(DECLINED)
    story.command("retry", "r1", instrument_token="tok_2")
    story.flow.answer(DECLINED)
    for operation_id in ("1", "r1"):
        story.notify("succeeded", operation_id)
        story.flow.answer(DECLINED)
    assert story.rejected("record_refund", "x1", **WORD) == "operation_must_be_named"
    detail = story.flow.events()[-1].detail or ""
    assert "late-1-1 (500 GBP at simulator), late-r1-1 (500" in detail
    story.command("record_refund", "x2", operation_id="late-r1-1", **WORD)
    assert [each.operation_id for each in outstanding(story.payment)] == ["late-1-1"]


def test_what_was_captured_beyond_a_hold_is_recorded_for_itself() -> None:
    """Although the charge has more that could go back."""
    story = captured_beyond_in_dispute()
    story.dispute("won")
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, lambda _: DECLINED)
    story.command("record_refund", "x1", **WORD)
    assert story.payment.refunded_minor == 300
    assert named(story) == ["amounts_out_of_order"]


def test_two_charges_of_which_one_was_paid_back_otherwise_are_not_charged_twice() -> None:
    """The gateways' books show both as kept for ever."""
    story = Story()
    story.flow.answer(DECLINED)
    story.command("retry", "r1", instrument_token="tok_2")
    story.flow.answer(yes)
    story.notify("succeeded")
    story.flow.answer(DECLINED)
    charges = [
        ChargeSeen(
            id=f"charge_1{mark}", reference=request.idempotency_key, amount_minor=500,
            currency="GBP", created_at_ms=story.flow.now_ms, kind="charge", recent=False,
        )
        for mark, request in zip(("", "_r1"), story.flow.requests(), strict=False)
    ]  # fmt: skip
    books = GatewayCopy(charges={"shop:1": charges})
    kept = {each.name for each in judged_flow(story.flow, books)}
    assert kept == {"charged_twice", "waits_for_a_person"}
    story.command("record_refund", "x1", **WORD)
    assert judged_flow(story.flow, books) == []


@pytest.mark.slow
def test_give_backs_leave_room_for_what_may_still_come_and_for_a_record() -> None:
    """However often a gateway refuses: a charge that shows after that is given back once."""
    story = Story()
    for at in range(3):
        story.flow.answer(DECLINED)
        story.command("retry", f"r{at}", instrument_token=f"tok_r{at}")
    story.flow.answer(DECLINED)
    story.notify("succeeded")
    story.flow.answer(DECLINED)
    at = 0
    while story.events[-1] == "reversal_failed":
        at += 1
        story.command("give_back", f"g{at}")
        if story.flow.open_requests:
            story.flow.answer(DECLINED)
    assert story.flow.events()[-1].reason == "operations_must_not_exceed_limit"
    story.command("record_refund", "x1", **WORD)
    assert story.money == (500, 500, 500)
    for at in range(3):
        story.notify("succeeded", f"r{at}")
        story.flow.answer(yes)
    assert (story.money, named(story)) == ((2000, 2000, 2000), [])
    assert len(story.payment.attempts) <= ATTEMPTS_MAX


def test_show_names_the_command() -> None:
    """Beside the one that orders it again."""
    story = refused()
    lines = "\n".join(_attempt(story.payment, 2, story.payment.attempts[1]))
    assert "paystream payment record-refund shop:1 --operation late-1-1" in lines
    story.command("record_refund", "x1", **WORD)
    lines = "\n".join(_attempt(story.payment, 3, story.payment.attempts[2]))
    said = "refund of GBP 5.00 outside simulator: refunded"
    assert said in lines
    seen = PaymentSeen(story.payment, story.flow.events(), [])
    outcome = judged(seen, command("record_refund", "x1", **WORD))
    assert outcome == Outcome(DONE, f"{said}, reference TRF-88")


@pytest.mark.parametrize(
    ("state", "amount_minor"), [("inquiry", 1), ("inquiry", 500), ("opened", 100), ("won", 100)]
)
def test_no_word_of_a_bank_orders_the_rest_of_what_a_person_gives_back(
    state: str, amount_minor: int
) -> None:
    """Its gateway had refused it for good, and the person may be paying the rest just now."""
    story = refused()
    story.command("record_refund", "x1", amount_minor=200, **WORD)
    asked = list(story.asked)
    story.dispute(state, amount_minor=amount_minor, event_sequence=1)
    assert (story.asked, story.events.count("reversal_failed")) == (asked, 2)
    assert "waits_for_a_person" in named(story)
    story.command("record_refund", "x2", **{**WORD, "gateway_reference": "TRF-89"})
    assert story.money == (500, 500, 500)


def test_of_what_a_bank_returns_after_a_record_a_person_is_told() -> None:
    """The bank had 200 for good, and a person gave back the other 300 by transfer."""
    story = refused()
    story.dispute("lost", amount_minor=200, event_sequence=1)
    story.command("record_refund", "x1", **WORD)
    assert (story.money, outstanding(story.payment)) == ((500, 500, 300), ())
    asked = list(story.asked)
    story.dispute("won", amount_minor=200, event_sequence=2)
    assert (story.events[-1], story.asked) == ("reversal_failed", asked)
    assert named(story) == ["waits_for_a_person"]
    story.command("give_back", "g1")
    story.flow.answer(yes)
    assert (story.money, named(story)) == ((500, 500, 500), [])

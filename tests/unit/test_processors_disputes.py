"""Disputes that go back and forth: the gateway's order of events, and a person's word."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.disputes import RANKS
from pipeline.domain.matching import ReportedSide
from pipeline.domain.model import Dispute, Settlement
from pipeline.domain.policy import GatewayProfile
from pipeline.gateways.notice import Notice
from pipeline.processors.disputes import process_dispute
from producers.clearings import words_of
from producers.webhook_endpoint import notification_of
from tests.support.examples import share_of
from tests.support.payment_story import (
    MANUAL,
    NOT_FOUND,
    NOT_SENT,
    NOW,
    ORDER,
    POLICY,
    TIMED_OUT,
    Story,
    yes,
)
from tests.support.reconciliation import reported_side

# A life that comes back to a stage it had been in, numbered as gateways number it.
WON_TWICE = (("opened", 1), ("won", 2), ("pre_arbitration", 3), ("won", 4))
LOST_AT_LAST = (*WON_TWICE, ("pre_arbitration", 5), ("lost", 6))


def charged() -> Story:
    story = Story()
    story.flow.answer(yes)
    return story


def disputed(*states: str) -> Story:
    """Told by a gateway that numbers nothing."""
    story = charged()
    for state in states:
        story.dispute(state)
    return story


def standing(story: Story) -> tuple[str, int, int, int]:
    """What a dispute comes to: its state, what is withdrawn, charged back, and the money moved."""
    (dispute,) = story.payment.disputes
    money = sum(amount for kind, amount in story.settled if kind != "capture")
    return dispute.state, dispute.withdrawn_minor, story.payment.charged_back_minor, money


def resolve(story: Story, decision: str = "won", command_id: str = "p1", **fields: Any) -> None:
    fields = {"dispute_id": "d1", "evidence": "scheme's letter", "actor": "ann", **fields}
    story.command("resolve_dispute", command_id, decision=decision, **fields)


def test_a_dispute_won_again_after_pre_arbitration_comes_back() -> None:
    """The second win is the gateway's fourth event, so it is no repetition of the first."""
    story = charged()
    for state, number in WON_TWICE:
        story.dispute(state, event_sequence=number)
    assert story.settled == [
        ("capture", 500), ("dispute", -500), ("reversal", 500), ("dispute", -500),
        ("reversal", 500),
    ]  # fmt: skip
    assert story.payment.disputed_minor == 0
    assert story.events[-1] == "dispute_won"
    story.command("refund", "r1")
    assert story.flow.requests()[-1].kind == "refund", "nothing bars a refund any more"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("life", "end"),
    [(WON_TWICE, ("won", 0, 0, 0)), (LOST_AT_LAST[2:], ("lost", 500, 500, -500))],
)
def test_numbered_events_in_any_order_end_the_same(life: Any, end: Any) -> None:
    """Late, twice and in any order: the gateway's last event holds, and the money follows."""
    for order in permutations((*life, life[1])):
        story = charged()
        for state, number in order:
            story.dispute(state, event_sequence=number)
        assert standing(story) == end, order


def test_a_dispute_that_only_a_report_tells_of_is_booked() -> None:
    """Its rows are evidence as an unknown charge's are: what was taken and the fee, then what was
    given back. The gateway's own word about the same, heard late, moves nothing twice."""
    story = charged()

    def told(*rows: ReportedSide) -> None:
        ((word, _),) = words_of(rows, NOW)
        story.flow.notify(word)

    def row(number: int, kind: str, amount_minor: int) -> ReportedSide:
        return reported_side(
            number, kind=kind, amount_minor=amount_minor, gateway="simulator",
            gateway_reference="d1", payment_id=story.payment.payment_id, merchant_id="shop",
            order_id=story.order_id, operation_id="", operation_kind="", attempt=0,
        )  # fmt: skip

    told(row(1, "dispute", -500), row(2, "dispute_fee", -15))
    assert story.settled == [("capture", 500), ("dispute", -500), ("dispute_fee", -15)]
    told(row(1, "dispute", -500), row(2, "dispute_fee", -15))
    story.dispute("opened", event_sequence=1)
    assert len(story.settled) == 3
    told(row(3, "reversal", 500))
    # Numbered by now: what a row cannot place among the gateway's events changes nothing.
    assert (len(story.settled), story.payment.disputes[0].state) == (3, "opened")

    story = charged()
    told(row(1, "dispute", -500))
    told(row(3, "reversal", 500))
    assert standing(story) == ("won", 0, 0, 0)


@pytest.mark.slow
@settings(max_examples=share_of(60), deadline=None)
@given(
    life=st.lists(st.sampled_from(sorted(RANKS)), min_size=1, max_size=7),
    chance=st.randoms(use_true_random=False),
)
def test_any_life_of_a_dispute_ends_with_its_last_event(life: list[str], chance: Any) -> None:
    """Whatever stages a gateway goes through, and however its notices arrive."""
    told = list(enumerate(life, 1)) * 2
    chance.shuffle(told)
    story = charged()
    for number, state in told[: len(told) - chance.randrange(len(life))]:
        story.dispute(state, event_sequence=number)
    story.dispute(life[-1], event_sequence=len(life))
    withdrawn = 500 if life[-1] in ("opened", "pre_arbitration", "lost") else 0
    lost = 500 if life[-1] == "lost" else 0
    assert standing(story) == (life[-1], withdrawn, lost, -withdrawn)
    undecided = life[-1] in ("inquiry", "opened", "pre_arbitration")
    assert story.payment.disputed_minor == (500 if undecided else 0)


def test_the_same_stage_again_is_remembered_as_the_newer_event() -> None:
    """Else the stage between the two, coming last, would undo the second one."""
    story = charged()
    for state, number in (("won", 2), ("won", 4), ("pre_arbitration", 3)):
        story.dispute(state, event_sequence=number)
    assert standing(story)[0] == "won"


def test_events_of_one_moment_are_put_in_the_order_of_life() -> None:
    """A gateway that tells only times may tell two events of the same one."""
    for order in permutations(("opened", "won", "pre_arbitration")):
        story = charged()
        for state in order:
            story.dispute(state, event_sequence=7)
        assert standing(story)[0] == "pre_arbitration"


def test_a_numbered_event_goes_before_those_of_before_numbers() -> None:
    """Notices of before an upgrade carry no number, and are the older ones."""
    story = disputed("opened", "won", "pre_arbitration")
    story.dispute("won", event_sequence=4)
    assert story.dispute("lost").note == "stale_result"
    assert standing(story) == ("won", 0, 0, 0)


def test_the_endpoint_hands_the_gateways_number_on() -> None:
    """What the adapter read is what the table decides by."""
    read = Notice(
        notification_id="n", gateway="simulator", type="dispute", amount_minor=500, currency="GBP",
        merchant_id="shop", order_id="1", dispute_id="d1", dispute_state="won", event_sequence=4,
    )  # fmt: skip
    assert notification_of(read, 1).event_sequence == 4


def test_a_negative_number_is_no_number() -> None:
    """It is kept whole, and books nothing."""
    story = charged()
    assert story.dispute("opened", event_sequence=-1).dead_letter == "malformed_dispute"


def test_an_inquiry_bars_no_refund() -> None:
    """No money has moved yet, and giving it back is how an inquiry ends best."""
    story = disputed("inquiry")
    story.command("refund", "r1", amount_minor=200)
    story.flow.answer(yes)
    assert story.money == (500, 500, 200)
    story.dispute("opened")
    assert story.rejected("refund", "r2") == "refund_must_not_run_during_a_dispute"


# A person's word.


def test_a_person_ends_what_the_gateway_leaves_open() -> None:
    """Won again, at a gateway that numbers nothing: the money is back, with a name to it."""
    story = disputed("opened", "won", "pre_arbitration", "won")
    assert standing(story) == ("pre_arbitration", 500, 0, -500)
    resolve(story, "won", reason="case closed")
    assert standing(story) == ("won", 0, 0, 0)
    event = story.flow.events()[-1]
    assert (event.type, event.actor, event.reason, event.operation_id) == (
        "dispute_won", "ann", "case closed", "p1",
    )  # fmt: skip
    assert event.detail == "dispute d1 at simulator: scheme's letter"
    assert (story.payment.disputes[0].resolved_by, story.payment.disputed_minor) == ("ann", 0)


def test_a_person_may_say_that_a_dispute_is_lost() -> None:
    """What was not withdrawn yet is, and what it costs together with a refund is told."""
    story = disputed("inquiry")
    story.command("refund", "r1", amount_minor=200)
    story.flow.answer(yes)
    resolve(story, "lost")
    assert standing(story) == ("lost", 500, 500, -200 - 500)
    assert story.events[-2:] == ["dispute_lost", "loss_posted"]


def test_a_persons_word_waits_for_nothing() -> None:
    """A dispute is no operation: one under way holds the word up no more than another."""
    story = disputed("opened")
    story.command("refund", "r1", override="dispute")
    story.flow.answer(NOT_SENT)
    resolve(story)
    assert standing(story)[0] == "won"


def test_what_was_told_before_does_not_undo_a_persons_word() -> None:
    """Notices come again at any time; only news counts."""
    story = charged()
    for state, number in WON_TWICE[:3]:
        story.dispute(state, event_sequence=number)
    resolve(story)
    for state, number in WON_TWICE[:3]:
        assert story.dispute(state, event_sequence=number).note == "stale_result"
    assert standing(story) == ("won", 0, 0, 0)


def test_a_gateways_later_word_goes_before_a_persons() -> None:
    """It has the money: what it does next is followed, and the person's name is off it."""
    story = charged()
    story.dispute("opened", event_sequence=1)
    resolve(story)
    story.dispute("lost", event_sequence=2)
    assert standing(story) == ("lost", 500, 500, -500)
    assert story.payment.disputes[0].resolved_by is None


@pytest.mark.slow
def test_a_persons_word_is_taken_of_a_payment_with_many_operations() -> None:
    """It begins none, so the limit of operations is not for it."""
    story = charged()
    for number in range(39):
        story.command("refund", f"r{number}", amount_minor=1)
        story.flow.answer(yes)
    story.dispute("opened")
    resolve(story)
    assert standing(story)[0] == "won"


def test_a_persons_word_can_be_taken_back() -> None:
    """Whoever was wrong says so, by another command; the same one again has no effect."""
    story = disputed("opened")
    resolve(story, "lost")
    resolve(story, "won", "p2")
    assert standing(story) == ("won", 0, 0, 0)
    resolve(story, "lost")
    assert story.flow.decisions[-1].note == "duplicate_command"


DISPUTE: dict[str, Any] = {
    "dispute_id": "d1", "decision": "lost", "evidence": "scheme's letter", "actor": "ann",
}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ("decision_must_be_known", {"decision": "charged"}),
        ("evidence_must_be_given", {"evidence": ""}),
        ("actor_must_be_given", {"actor": None}),
        ("dispute_must_be_known", {"dispute_id": "d9"}),
        ("dispute_must_be_known", {"dispute_id": None}),
        ("dispute_must_be_known", {"gateway": "another"}),
        ("dispute_must_not_be_decided_so_already", {"decision": "won"}),
        ("texts_must_be_at_most_1000_characters", {"dispute_id": "d" * 1001}),
    ],
)
def test_a_word_that_breaks_a_rule_is_refused_by_name(rule: str, fields: dict[str, Any]) -> None:
    """And changes nothing."""
    story = disputed("opened", "won")
    assert story.rejected("resolve_dispute", **{**DISPUTE, **fields}) == rule


def test_one_id_at_two_gateways_needs_the_gateways_name() -> None:
    """Ids are a gateway's own: another one may have given the same."""
    gateways = (POLICY.gateways[0], GatewayProfile(name="second", priority=200))
    story = Story(ORDER, replace(POLICY, gateways=gateways))
    story.flow.answer(yes)
    story.dispute("opened")
    (first,) = story.payment.attempts
    attempts = (first, replace(first, gateway="second", attempt=2))
    story.flow.apply(
        ORDER, replace(story.flow.decisions[-1], payment=replace(story.payment, attempts=attempts),
                       sends=())
    )  # fmt: skip
    story.dispute("opened", gateway="second")
    assert len(story.payment.disputes) == 2
    assert story.rejected("resolve_dispute", **DISPUTE) == "dispute_must_name_its_gateway"
    resolve(story, "lost", gateway="second")
    assert [each.state for each in story.payment.disputes] == ["lost", "opened"]


def proven_unsent() -> Story:
    """A cancel waits for proof that nobody sent the charge, and gets it."""
    story = Story()
    story.flow.answer(NOT_SENT)
    story.command("cancel")
    story.flow.run(lambda r: NOT_FOUND if r.kind == "inquire" else NOT_SENT)
    assert story.payment.attempts[0].code == "not_found"
    return story


def held() -> Story:
    story = Story(MANUAL)
    story.flow.answer(yes)
    return story


def voided() -> Story:
    story = held()
    story.command("cancel")
    story.flow.answer(yes)
    return story


def captured_in_vain() -> Story:
    """Its only capture was declined."""
    story = held()
    story.command("capture", "k1")
    story.flow.answer(GatewayAnswer(outcome="declined", code="do_not_honor"))
    return story


@pytest.mark.parametrize("nothing", [proven_unsent, held, voided, captured_in_vain])
@pytest.mark.parametrize("state", ["inquiry", "opened", "lost"])
def test_a_dispute_of_what_took_nothing_books_nothing(nothing: Any, state: str) -> None:
    """No bank can take back what nobody took; it is kept by name for somebody to look at."""
    story = nothing()
    assert story.dispute(state, fee_minor=15).dead_letter == "dispute_of_nothing"
    assert (story.settled, story.payment.disputes) == ([], ())
    assert story.payment.dead_letters == 1


@pytest.mark.parametrize("answer", [None, TIMED_OUT, yes])
def test_a_capture_that_may_have_been_made_can_be_disputed(answer: Any) -> None:
    """Asked for, lost or known: to the amount that it may have taken, and no more."""
    story = held()
    story.command("capture", "k1", amount_minor=100)
    if answer is not None:
        story.flow.answer(answer)
    assert story.dispute("opened", amount_minor=500).dead_letter == "amount_mismatch"
    assert story.dispute("opened", amount_minor=100).dead_letter is None
    assert ("dispute", -100) in story.settled


def test_a_late_capture_of_what_was_voided_can_be_disputed() -> None:
    """It was given up on silence before the void: it may have been made."""
    story = held()
    story.command("capture", "k1")
    story.flow.run(lambda r: TIMED_OUT if r.kind == "inquire" else NOT_SENT)
    assert story.payment.attempts[-1].state == "failed"
    story.command("cancel")
    story.flow.answer(yes)
    assert story.dispute("opened").dead_letter is None


def test_a_dispute_that_was_taken_in_before_still_ends() -> None:
    """Of a version that booked it: what it withdrew comes back when it is won."""
    story = voided()
    old = Dispute(
        dispute_id="d1", state="opened", amount_minor=500, gateway="simulator",
        updated_at_ms=0, withdrawn_minor=500,
    )  # fmt: skip
    payment = replace(story.payment, disputes=(old,), disputed_minor=500)
    notice = replace(story.notice("succeeded"), type="dispute", dispute_id="d1",
                     dispute_state="won", amount_minor=500)  # fmt: skip
    made = process_dispute(payment, notice, 1, POLICY)
    assert made.dead_letter is None
    assert [s.amount_minor for s in made.sends if isinstance(s, Settlement)] == [500]

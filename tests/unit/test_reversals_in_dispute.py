"""What came too late and is in dispute: the bank decides first whose the money is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.audit.report import Severity
from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.domain.policy import DAY_MS, DEFAULT_POLICY, HOUR_MS, Policy
from pipeline.domain.reversals import held
from tests.support.audit_story import judged_flow
from tests.support.payment_story import (
    DECLINED,
    MANUAL,
    NOT_FOUND,
    NOT_SENT,
    ORDER,
    PENDING,
    POLICY,
    SECOND,
    TIMED_OUT,
    Story,
    yes,
)
from tests.unit.test_reversals import (
    NO_KEYS,
    OWN_TROUBLE,
    cancelled_too_late,
    down,
    given_back_in_two,
    lives_until,
)


def shown_in_dispute() -> Story:
    """A charge that was given up on silence is disputed before its success shows."""
    story = Story()
    story.flow.run(down)
    assert story.status == "failed"
    story.dispute("opened")
    story.notify("succeeded")
    return story


def cancelled_in_dispute(policy: Policy = POLICY) -> Story:
    story = Story(ORDER, policy)
    story.command("cancel")
    story.dispute("opened")
    story.flow.answer(yes)
    return story


def captured_beyond_in_dispute() -> Story:
    """Of a hold of 500 a first capture of 300, given up, shows after a second one of the whole."""
    story = Story(MANUAL)
    story.flow.answer(yes)
    story.command("capture", "k1", amount_minor=300)
    story.flow.run(lambda _: TIMED_OUT)
    story.flow.now_ms += HOUR_MS
    story.command("resolve", "p1", decision="not_charged")
    story.command("capture", "k2")
    story.flow.answer(yes)
    story.dispute("opened")
    story.notify("succeeded", "k1")
    return story


IN_DISPUTE = pytest.mark.parametrize(
    "told", [shown_in_dispute, cancelled_in_dispute, captured_beyond_in_dispute]
)


@pytest.mark.slow
@IN_DISPUTE
def test_nothing_goes_back_while_the_bank_has_the_money(told: object) -> None:
    """For as long as that takes; it is told, and the audit waits as well."""
    story = told()  # type: ignore[operator]
    (reversal,) = held(story.payment)
    event = story.flow.events()[-1]
    assert (event.type, event.reason) == ("reversal_held", "disputed")
    lives_until(story, story.flow.now_ms + 30 * DAY_MS, yes)
    assert [r.kind for r in story.flow.requests() if r.operation_id == reversal.operation_id] == []
    assert story.events[-1] == "reversal_held", "once"
    found = {f.name: f.severity for f in judged_flow(story.flow, None)}
    # What was captured beyond a hold is named whatever becomes of it.
    assert {**found, "amounts_out_of_order": None} == {
        "order_without_outcome": Severity.PENDING, "amounts_out_of_order": None,
    }  # fmt: skip


@pytest.mark.slow
@IN_DISPUTE
def test_after_a_dispute_that_was_won_it_goes_back(told: object) -> None:
    """The money is ours again, and still not ours to keep."""
    story = told()  # type: ignore[operator]
    owed_minor = held(story.payment)[0].amount_minor
    lives_until(story, story.flow.now_ms + 30 * DAY_MS, yes)
    story.dispute("won")
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.payment.refunded_minor == owed_minor
    assert sum(amount for _, amount in story.settled) == story.payment.captured_minor - owed_minor


@pytest.mark.parametrize("told", [shown_in_dispute, cancelled_in_dispute])
def test_after_a_dispute_that_was_lost_nothing_is_left_to_give(told: object) -> None:
    """The bank has given the customer his money; nobody pays him twice."""
    story = told()  # type: ignore[operator]
    story.dispute("lost")
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert "refund" not in story.asked
    assert story.flow.events()[-1].reason == "nothing_left_to_give_back"
    assert sum(amount for _, amount in story.settled) == 0
    assert "loss_posted" not in story.events
    assert judged_flow(story.flow, None) == []


@pytest.mark.parametrize("amount_minor", [200, 500])
@pytest.mark.parametrize("words", [*permutations(("opened", "lost", "won"))], ids=" then ".join)
def test_a_dispute_that_was_won_after_all_ends_the_same_in_any_order(
    words: tuple[str, ...], amount_minor: int
) -> None:
    """What was not given back since the bank had taken it for good goes back when that was not so:
    all of it, or the part. Hours lie between the words."""
    number = {"opened": 1, "lost": 2, "won": 3}
    story = Story()
    story.command("cancel")
    for at, word in enumerate(words):
        story.dispute(word, amount_minor=amount_minor, event_sequence=number[word])
        if not at:
            story.flow.answer(yes)
        lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.money == (500, 500, 500)
    assert sum(amount for _, amount in story.settled) == 0
    assert judged_flow(story.flow, None) == []


TROUBLE = GatewayAnswer(outcome="declined", code="processing_error")
REFUSED = GatewayAnswer(outcome="declined", code="invalid_request")


def proven_not_made(story: Story) -> None:
    """Its answer was lost, and its gateway does not know it."""
    story.flow.answer(TIMED_OUT)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, lambda _: NOT_FOUND)


def not_made_for_now(story: Story) -> None:
    """Its gateway was in trouble, and said so."""
    story.flow.answer(TROUBLE)


def never_sent(story: Story) -> None:
    """Its gateway was away all the time, and does not know it."""
    story.flow.answer(NOT_SENT)
    lives_until(
        story,
        story.flow.now_ms + 15 * HOUR_MS,
        lambda request: NOT_FOUND if request.kind == "inquire" else NOT_SENT,
    )


def said_not_made(story: Story) -> None:
    """Nobody knew, until a person looked."""
    story.flow.answer(TIMED_OUT)
    lives_until(story, story.flow.now_ms + 3 * DAY_MS, lambda _: TIMED_OUT)
    (operation,) = [a.operation_id for a in story.payment.attempts if a.kind == "refund"]
    story.command("resolve", "p1", decision="not_charged", operation_id=operation)


@pytest.mark.parametrize("forced", [False, True], ids=["", "by force"])
@pytest.mark.parametrize("at", range(3), ids=["before lost", "before won", "after won"])
@pytest.mark.parametrize("ended", [proven_not_made, not_made_for_now, never_sent, said_not_made])
def test_what_was_begun_and_not_made_goes_back_whenever_that_shows(
    ended: Callable[[Story], None], at: int, forced: bool
) -> None:
    """A refund was begun before its charge came into dispute, or by force during it, and nothing of
    it moved. Whether that is known before the bank has the money for good, while, or after that
    was taken back, the customer has it in the end."""
    story = Story()
    story.command("cancel")
    words = [("opened", 1), ("lost", 2), ("won", 3)]
    if forced:
        story.dispute("opened", event_sequence=1)
        del words[0]
    story.flow.answer(yes)
    if forced:
        story.command("give_back", "g1", override="dispute", actor="ann")
    late_at = at if forced else at + 1
    for place, (word, number) in enumerate(words):
        if place == late_at:
            ended(story)
        story.dispute(word, event_sequence=number)
    if late_at >= len(words):
        ended(story)
    lives_until(story, story.flow.now_ms + 40 * HOUR_MS, yes)
    assert story.money == (500, 500, 500)
    assert "reversal_failed" not in story.events
    assert judged_flow(story.flow, None) == []


@pytest.mark.parametrize(
    "order",
    [words for words in permutations(("opened", "lost", "won", "no"))
        if words.index("opened") < words.index("lost") < words.index("won") and words[0] != "no"],
    ids=" then ".join,
)  # fmt: skip
def test_what_its_gateway_refused_for_good_is_told_in_any_order(order: tuple[str, ...]) -> None:
    """Nobody orders it anew by himself; whoever is to do so hears that it is owed."""
    story = Story()
    story.command("cancel")
    story.flow.answer(yes)
    for word in order:
        if word == "no":
            story.flow.answer(REFUSED)
        else:
            story.dispute(word, event_sequence=order.index(word))
    assert story.payment.refunded_minor == 0
    assert story.events[-1] == "reversal_failed"
    assert {each.name for each in judged_flow(story.flow, None)} == {"waits_for_a_person"}


def test_what_came_back_while_the_bank_had_the_money_is_told_when_it_is_owed_again() -> None:
    """It would come back again, so it is not ordered anew."""
    story = Story()
    story.command("cancel")
    story.flow.answer(yes)
    story.flow.answer(yes)
    (refund,) = [a.operation_id for a in story.payment.attempts if a.kind == "refund"]
    story.dispute("lost", event_sequence=1)
    story.notify("failed", refund)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert "reversal_failed" not in story.events, "the bank has given the customer his money"
    story.dispute("won", event_sequence=2)
    assert story.events[-1] == "reversal_failed"
    assert story.asked.count("refund") == 1


def test_what_may_have_reached_a_gateway_without_keys_is_told_not_ordered_anew() -> None:
    """A call that it may have is never made there a second time by itself."""
    story = cancelled_too_late(ORDER, NO_KEYS)
    story.dispute("lost", event_sequence=1)
    proven_not_made(story)
    story.dispute("won", event_sequence=2)
    assert story.events[-1] == "reversal_failed"
    assert story.asked.count("refund") == 1


def both_too_late() -> Story:
    """A charge that was given up on silence, and the retry's, both show after a cancel."""
    story = Story()
    story.flow.run(down)
    story.command("retry", "r1", instrument_token="tok_2")
    story.command("cancel", "c1")
    story.flow.answer(yes)
    story.notify("succeeded", "1")
    assert (story.status, story.payment.captured_minor) == ("cancelled", 1_000)
    return story


def test_of_two_that_are_owed_no_more_is_given_back_than_is_left() -> None:
    """The bank took one of the two, and did not say which: whoever orders both gives back one."""
    story = both_too_late()
    story.flow.run(lambda _: REFUSED)
    story.dispute("lost", event_sequence=1)
    story.command("give_back", "g1", actor="ann")
    assert [request.amount_minor for _, request in story.flow.open_requests] == [500]
    story.flow.run(yes)
    assert story.payment.refunded_minor == 500
    assert sum(amount for _, amount in story.settled) == 0
    assert judged_flow(story.flow, None) == []


def test_of_two_that_are_owed_again_no_more_goes_back_than_came_back() -> None:
    """The bank had taken both, and returns one."""
    story = Story()
    story.flow.run(down)
    story.command("retry", "r1", instrument_token="tok_2")
    story.command("cancel", "c1")
    for dispute_id in ("d1", "d2"):
        story.dispute("lost", dispute_id, event_sequence=1)
    story.flow.answer(yes)
    story.notify("succeeded", "1")
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.money == (1_000, 1_000, 0)
    story.dispute("won", "d1", event_sequence=2)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.payment.refunded_minor == 500
    assert story.asked.count("refund") == 1
    assert sum(amount for _, amount in story.settled) == 0
    assert judged_flow(story.flow, None) == []


def test_of_what_was_captured_beyond_a_hold_the_rest_goes_back_as_well() -> None:
    """800 of 500 were taken, and the bank had 600 of them, so that 200 of the 300 went back."""
    story = captured_beyond_in_dispute()
    assert held(story.payment)[0].amount_minor == 300
    story.dispute("lost", amount_minor=600)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.payment.refunded_minor == 200
    story.dispute("won", amount_minor=600, event_sequence=1)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.payment.refunded_minor == 300
    assert {each.name for each in judged_flow(story.flow, None)} == {"amounts_out_of_order"}


@pytest.mark.parametrize("by", ["its gateway", "a person"])
def test_a_part_of_what_was_captured_beyond_a_hold_that_comes_back_is_owed_again(by: str) -> None:
    """The rest of it had gone back after it, in another refund, and stays with the customer."""
    story = captured_beyond_in_dispute()
    story.dispute("lost", amount_minor=600)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    story.dispute("won", amount_minor=600, event_sequence=1)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    parts = [(e.operation_id, e.amount_minor) for e in story.payment.attempts if e.kind == "refund"]
    assert parts == [("late-k1-1", 200), ("late-late-k1-1-1", 100)]
    if by == "a person":
        story.command("resolve", "p2", operation_id="late-k1-1", decision="returned")
    else:
        story.notify("failed", "late-k1-1", code="returned")
    assert story.events[-2:] == ["refund_failed", "reversal_failed"]
    assert story.payment.refunded_minor == 100
    named = {each.name for each in judged_flow(story.flow, None)}
    assert named == {"amounts_out_of_order", "waits_for_a_person"}
    story.command("give_back", "g1")
    story.flow.answer(yes)
    assert story.payment.refunded_minor == 300
    assert {each.name for each in judged_flow(story.flow, None)} == {"amounts_out_of_order"}


@pytest.mark.parametrize("state", ["won", "pre_arbitration"])
def test_what_a_bank_returns_while_the_rest_is_on_its_way_goes_back_as_well(state: str) -> None:
    """A refund of 300 was sent since the bank had 200 for good, and has these no longer when it is
    made: kept by nobody, once no bank may keep them."""
    story = Story()
    story.command("cancel")
    story.dispute("lost", amount_minor=200, event_sequence=1)
    story.flow.answer(yes)
    while not story.flow.open_requests:
        story.flow.advance(min(story.flow.tiers)[0] - story.flow.now_ms)
    assert [request.amount_minor for _, request in story.flow.open_requests] == [300]
    story.dispute(state, amount_minor=200, event_sequence=2)
    story.flow.answer(yes)
    assert story.money == (500, 500, 300)
    if state != "won":
        assert story.events[-1] == "reversal_held"
        story.dispute("won", amount_minor=200, event_sequence=3)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.money == (500, 500, 500)
    assert sum(amount for _, amount in story.settled) == 0
    assert judged_flow(story.flow, None) == []


@pytest.mark.parametrize("answer", [yes, OWN_TROUBLE], ids=["made", "declined"])
def test_what_comes_back_while_the_rest_is_on_its_way_is_told(answer: Any) -> None:
    """Another refund would come back as well: none is ordered by itself."""
    story = Story()
    story.command("cancel")
    story.dispute("lost", amount_minor=200, event_sequence=1)
    story.flow.answer(yes)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    story.dispute("won", amount_minor=200, event_sequence=2)
    story.flow.now_ms += SECOND
    story.command("resolve", "p1", operation_id="late-1-1", decision="returned")
    assert story.events[-1] == "refund_failed", "the other one is still on its way"
    story.flow.answer(answer)
    assert story.events[-1] == "reversal_failed"
    assert (story.flow.open_requests, story.flow.waits()) == ([], [])
    assert [each.name for each in judged_flow(story.flow, None)] == ["waits_for_a_person"]
    story.command("give_back", "g1")
    story.flow.answer(yes)
    assert (story.money, judged_flow(story.flow, None)) == ((500, 500, 500), [])


@pytest.mark.parametrize("state", ["inquiry", "opened", "won"])
def test_no_word_of_a_bank_orders_again_what_came_back(state: str) -> None:
    """A person was told of it, and may be paying it by bank transfer."""
    story = given_back_in_two()
    story.flow.now_ms += SECOND
    story.command("resolve", "p1", operation_id="r1", decision="returned")
    assert story.events[-2:] == ["refund_failed", "reversal_failed"]
    story.dispute("opened", event_sequence=1)
    story.dispute(state, event_sequence=2)
    assert (story.flow.open_requests, story.flow.waits()) == ([], [])
    paid = {"gateway_reference": "T-1", "evidence": "a statement", "actor": "ann"}
    story.command("record_refund", "t1", **paid)
    assert ("external_refund", -300) in story.settled
    assert story.money == (500, 500, 500)


@pytest.mark.parametrize("jump_ms", [-SECOND, -1, 0, SECOND])
def test_what_came_back_by_a_clock_that_was_set_back_is_ordered_by_nobody_but_people(
    jump_ms: int,
) -> None:
    """A worker whose clock is behind handles the return of what another one had sent."""
    story = cancelled_too_late(ORDER)
    story.flow.answer(yes)
    story.flow.now_ms += jump_ms
    story.notify("failed", "late-1-1", code="returned")
    assert story.events[-1] == "reversal_failed"
    story.flow.now_ms += HOUR_MS
    for number, state in enumerate(("opened", "lost", "won"), start=1):
        story.dispute(state, event_sequence=number)
        lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.money == (500, 500, 0)
    assert [each.name for each in judged_flow(story.flow, None)] == ["waits_for_a_person"]


def test_a_rest_that_is_owed_again_and_refused_is_told_and_named() -> None:
    """A person orders it like any other."""
    story = Story()
    story.command("cancel")
    story.dispute("lost", amount_minor=200, event_sequence=1)
    story.flow.answer(yes)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert (story.money, judged_flow(story.flow, None)) == ((500, 500, 300), [])
    story.dispute("won", amount_minor=200, event_sequence=2)
    story.flow.answer(DECLINED)
    assert story.events[-1] == "reversal_failed"
    assert [each.name for each in judged_flow(story.flow, None)] == ["waits_for_a_person"]
    story.command("give_back", "g1")
    story.flow.answer(yes)
    assert (story.money, judged_flow(story.flow, None)) == ((500, 500, 500), [])


def test_what_a_person_called_lost_goes_back_when_it_was_won() -> None:
    """And waits again where the dispute goes on instead."""
    story = cancelled_in_dispute()
    word = {"dispute_id": "d1", "evidence": "a letter", "actor": "ann"}
    story.command("resolve_dispute", "x1", decision="lost", **word)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert held(story.payment) == ()
    story.dispute("pre_arbitration")
    assert [each.operation_id for each in held(story.payment)] == ["late-late-1-1-1"]
    story.command("resolve_dispute", "x2", decision="won", **word)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.money == (500, 500, 500)


def test_of_a_part_that_was_lost_the_rest_goes_back() -> None:
    """200 of 500 by the bank, 300 by us."""
    story = Story()
    story.command("cancel")
    story.dispute("opened", amount_minor=200)
    story.flow.answer(yes)
    story.dispute("lost", amount_minor=200)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.money == (500, 500, 300)
    assert sum(amount for _, amount in story.settled) == 0


def test_a_charge_that_shows_after_its_dispute_was_lost_is_not_given_back() -> None:
    """It went back before it was known to have come."""
    story = Story()
    story.command("cancel")
    story.dispute("lost")
    story.flow.answer(yes)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert "refund" not in story.asked
    assert sum(amount for _, amount in story.settled) == 0


def test_a_dispute_stops_what_its_gateway_could_not_take_yet() -> None:
    """It was certainly not sent, which is proven first; then it waits for the bank."""
    story = Story(ORDER, DEFAULT_POLICY)
    story.command("cancel")
    story.flow.answer(yes)
    lives_until(story, story.flow.now_ms + HOUR_MS, down)
    story.dispute("opened")
    lives_until(story, story.flow.now_ms + DAY_MS, lambda r: NOT_FOUND)
    assert [each.operation_id for each in held(story.payment)] == ["late-late-1-1-1"]
    assert story.money == (500, 500, 0)
    story.dispute("won")
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.money == (500, 500, 500)


@pytest.mark.parametrize("outcome", ["succeeded", "declined", "failed", "pending"])
def test_no_word_about_what_was_never_sent_is_believed(outcome: str) -> None:
    """A gateway cannot know a refund that waits for the dispute's end: it stays held, and owed."""
    story = cancelled_in_dispute()
    (reversal,) = held(story.payment)
    of_refund = replace(
        story.notice(outcome), operation_id=reversal.operation_id, kind="refund",
        amount_minor=500, gateway_reference="re_9",
    )  # fmt: skip
    told = story.flow.notify(of_refund)
    assert held(story.payment) == (reversal,)
    claims_made = outcome in ("succeeded", "failed")
    assert (told.dead_letter == "contradictory_evidence") is claims_made
    assert ("refund", -500) not in story.settled
    story.dispute("won")
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.money == (500, 500, 500)


def never(request: PaymentRequest) -> GatewayAnswer:
    return NOT_FOUND if request.kind == "inquire" else NOT_SENT


@pytest.mark.slow
@pytest.mark.parametrize("policy", [POLICY, DEFAULT_POLICY], ids=["short", "default"])
def test_by_force_it_goes_back_though_it_cannot_be_sent_at_once(policy: Policy) -> None:
    """The person has decided; a gateway that is away for a minute, or longer than one reversal is
    tried for, does not decide otherwise."""
    for away_ms in (SECOND, DAY_MS):
        story = cancelled_in_dispute(policy)
        story.command("give_back", "g1", override="dispute", actor="ann")
        lives_until(story, story.flow.now_ms + away_ms, never)
        assert story.events.count("reversal_held") == 1, "before the command"
        lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
        assert story.money == (500, 500, 500)


def test_by_force_it_goes_back_after_its_gateways_own_trouble() -> None:
    """The decline that may pass has a successor, which is forced as well."""
    story = cancelled_in_dispute()
    story.command("give_back", "g1", override="dispute")
    story.flow.answer(GatewayAnswer(outcome="declined", code="processing_error"))
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.money == (500, 500, 500)


def test_the_force_is_of_one_order() -> None:
    """What its gateway refused for good is ordered anew, and by force only if that is said anew."""
    story = cancelled_in_dispute()
    story.command("give_back", "g1", override="dispute")
    story.flow.answer(DECLINED)
    assert story.rejected("give_back", "g2") == "refund_must_not_run_during_a_dispute"
    story.dispute("won")
    story.command("give_back", "g3")
    story.flow.answer(NOT_SENT)
    story.dispute("opened", "d2")
    lives_until(story, story.flow.now_ms + DAY_MS, never)
    assert len(held(story.payment)) == 1


def test_a_person_may_force_it() -> None:
    """Like any refund; otherwise it is refused by the rule's name."""
    story = cancelled_in_dispute()
    assert story.rejected("give_back", "g1") == "refund_must_not_run_during_a_dispute"
    story.command("give_back", "g2", override="dispute")
    story.flow.answer(yes)
    assert story.money == (500, 500, 500)
    story.dispute("lost")
    assert story.events[-1] == "loss_posted"


def retried_and_disputed(reference: str) -> Story:
    """The first charge shows as made after a retry was, and one of the two is in dispute."""
    story = Story()
    story.flow.run(down)
    story.command("retry", "r1", instrument_token="tok_2")
    story.flow.answer(yes)
    story.dispute("opened", gateway_reference=reference)
    story.notify("succeeded")
    return story


def test_a_dispute_of_another_charge_holds_nothing_up() -> None:
    """The customer is owed the charge that came too late whatever becomes of the other."""
    story = retried_and_disputed("charge_1_r1")
    assert held(story.payment) == ()
    story.flow.answer(yes)
    assert story.payment.refunded_minor == 500


def test_what_a_bank_took_of_the_late_charge_itself_is_not_given_again() -> None:
    """Although the other charge's money is still there."""
    story = retried_and_disputed("charge_1")
    assert len(held(story.payment)) == 1
    story.dispute("lost", gateway_reference="charge_1")
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.payment.refunded_minor == 0
    assert story.payment.attempts[-1].state == "failed"
    assert sum(amount for _, amount in story.settled) == 500


def taken_twice(first: str) -> Story:
    """A bank took the first charge for good before that showed as made, a retry was cancelled, and
    then both show as made, in this order."""
    story = Story()
    story.flow.answer(TROUBLE)
    story.dispute("opened", gateway_reference="charge_1", event_sequence=1)
    story.flow.run(down)
    story.command("retry", "r1", instrument_token="tok_2")
    story.dispute("lost", gateway_reference="charge_1", event_sequence=2)
    story.command("cancel", "c1")
    for operation_id in (first, "r1" if first == "1" else "1"):
        story.notify("succeeded", operation_id)
    return story


@pytest.mark.parametrize("first", ["1", "r1"])
def test_what_waits_for_nothing_keeps_nothing_from_the_other_charge(first: str) -> None:
    """What waits for the dispute's charge owes nothing, and must not count as given back when the
    other one's is due."""
    story = taken_twice(first)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.money == (1000, 1000, 500)
    assert [r.operation_id for r in story.flow.requests() if r.kind == "refund"] == ["late-r1-1"]
    assert sum(amount for _, amount in story.settled) == 0
    assert judged_flow(story.flow, None) == []


@pytest.mark.parametrize("first", ["1", "r1"])
def test_a_dispute_that_was_told_too_early_and_again_is_booked_once(first: str) -> None:
    """Its first word is of no charge; its next one may be of the retry, which is on its way."""
    story = taken_twice(first)
    assert [each.cause for each in story.flow.dead_letters] == ["dispute_of_nothing"]
    assert [kind for kind, _ in story.settled if kind.startswith("dispute")] == ["dispute"]
    (dispute,) = story.payment.disputes
    assert (dispute.state, dispute.withdrawn_minor) == ("lost", 500)
    assert story.payment.unfounded_disputes == ()


def test_an_older_word_of_a_dispute_that_was_told_too_early_changes_nothing_of_it() -> None:
    """It gives it its ground; the newest of its words holds."""
    story = Story()
    story.flow.answer(TROUBLE)
    story.dispute("lost", gateway_reference="charge_1", event_sequence=2, fee_minor=15)
    story.flow.run(down)
    story.command("retry", "r1", instrument_token="tok_2")
    story.dispute("opened", gateway_reference="charge_1", event_sequence=1)
    (dispute,) = story.payment.disputes
    assert (dispute.state, dispute.withdrawn_minor, dispute.fee_minor) == ("lost", 500, 15)
    assert story.dispute("lost", gateway_reference="charge_1", event_sequence=2).note == (
        "stale_result"
    )


def lost_while_it_goes_back(
    by: GatewayAnswer, *, named: bool = True, stands: bool = False
) -> Story:
    """Two charges, of which a bank takes one for good while a refund of it is under way, which its
    gateway answers so. The other one is late, and waits.

    ``stands``: what is refunded is the retry's charge by command, else the late charge's reversal.
    """
    story = Story()
    story.flow.run(down)
    story.command("retry", "r1", instrument_token="tok_2")
    if stands:
        story.flow.answer(yes)
        story.command("refund", "f1")
    else:
        story.notify("succeeded")
        story.flow.open_requests.reverse()
    story.flow.answer(by)
    fields = {"gateway_reference": "charge_1_r1" if stands else "charge_1"} if named else {}
    for word in ("opened", "lost"):
        story.dispute(word, **fields)
    if not stands:
        story.command("cancel", "c1")
    story.notify("succeeded", "1" if stands else "r1")
    return story


@pytest.mark.parametrize("named", [True, False], ids=["by its name", "of any charge"])
@pytest.mark.parametrize("stands", [False, True], ids=["reversal", "command"])
@pytest.mark.parametrize("by", [TIMED_OUT, PENDING], ids=["unknown", "pending"])
def test_what_waits_for_a_refund_that_was_not_made_goes_back(
    by: GatewayAnswer, stands: bool, named: bool
) -> None:
    """While a refund may have been made, the customer may have all: by it, and by the bank. Once
    that was not so the other charge is owed, though its own wait is long over."""
    story = lost_while_it_goes_back(by, named=named, stands=stands)
    first = "f1" if stands else "late-1-1"

    def gateway(request: PaymentRequest) -> GatewayAnswer:
        if request.operation_id != first:
            return yes(request)
        if by is PENDING:
            return PENDING if story.flow.now_ms < ends_ms else REFUSED
        return NOT_FOUND if request.kind == "inquire" else TIMED_OUT

    ends_ms = story.flow.now_ms + 5 * HOUR_MS
    lives_until(story, ends_ms - HOUR_MS // 2, gateway)
    if by is PENDING:
        assert story.payment.refunded_minor == 0
        assert [a.state for a in story.payment.attempts if a.kind == "refund"][-1] == "failed"
    lives_until(story, story.flow.now_ms + 2 * DAY_MS, gateway)
    if story.payment.refunded_minor == 0:
        # Asked about as often as commands' refunds are, and then a person's.
        story.command("resolve", "p1", decision="not_charged", operation_id=first)
        story.flow.run(gateway)
    assert story.money == (1000, 1000, 500)
    assert "reversal_failed" not in story.events
    assert sum(amount for _, amount in story.settled) == 0
    assert judged_flow(story.flow, None) == []


def lost_before_it_shows(*, first: bool) -> Story:
    """A bank takes a charge for good that was given up on silence, and a retry comes too late:
    before that, or after its own refund was made."""
    story = Story()
    story.flow.run(down)
    story.command("retry", "r1", instrument_token="tok_2")
    story.command("cancel", "c1")
    if not first:
        story.flow.run(yes)
        assert story.money == (500, 500, 500)
    for word in ("opened", "lost"):
        story.dispute(word, gateway_reference="charge_1")
    story.flow.run(yes)
    return story


def test_what_was_not_owed_goes_back_once_the_charge_in_dispute_shows() -> None:
    """Until then one charge was taken, and its money was with the customer by the bank."""
    story = lost_before_it_shows(first=True)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert (story.money, story.asked.count("refund")) == ((500, 500, 0), 0)
    story.notify("succeeded")
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.money == (1000, 1000, 500)
    (refund,) = [r for r in story.flow.requests() if r.kind == "refund"]
    assert refund.parent_reference == "charge_1_r1"
    assert sum(amount for _, amount in story.settled) == 0
    assert judged_flow(story.flow, None) == []


def test_what_came_back_is_told_once_the_charge_in_dispute_shows() -> None:
    """It was not owed when it came back, so nobody was told then."""
    story = lost_before_it_shows(first=False)
    story.notify("failed", "late-r1-1")
    assert (story.money, "reversal_failed" in story.events) == ((500, 500, 0), False)
    story.notify("succeeded")
    told = [(e.type, e.operation_id) for e in story.flow.events() if e.type == "reversal_failed"]
    assert told == [("reversal_failed", "late-r1-1")]
    story.command("give_back", "g1", actor="ann")
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert story.money == (1000, 1000, 500)
    assert judged_flow(story.flow, None) == []


def declined_then_taken(*, dispute_first: bool, by: str = "notice", **fields: Any) -> Story:
    """A gateway declines, takes the money all the same, and it comes into dispute. That it did is
    shown by its notice, or by the result of a worker that was frozen."""
    story = Story()
    story.flow.answer(DECLINED)
    for word in ("dispute", "late") if dispute_first else ("late", "dispute"):
        if word == "dispute":
            story.dispute("opened", **fields)
        elif by == "notice":
            story.notify("succeeded")
        else:
            story.flow.result(story.late_result())
    return story


@pytest.mark.parametrize("by", ["notice", "result"])
def test_a_dispute_that_is_told_before_its_charge_shows_is_booked_when_it_does(by: str) -> None:
    """It is a dead letter first, of a charge that was declined. In either order the bank has the
    same money; the refund that was not sent yet waits for it, and the letter redriven says nothing
    new."""
    first, last = (declined_then_taken(dispute_first=each, by=by) for each in (True, False))
    assert [each.cause for each in first.flow.dead_letters] == ["dispute_of_nothing"]
    assert sorted(first.settled) == sorted(last.settled) == [("capture", 500), ("dispute", -500)]
    assert first.payment.unfounded_disputes == ()
    assert [each.operation_id for each in held(first.payment)] == ["late-1-1"]
    assert first.dispute("opened").note == "stale_result"
    first.dispute("won")
    last.dispute("won")
    for story in (first, last):
        lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
        assert story.money == (500, 500, 500)
        assert sum(amount for _, amount in story.settled) == 0
    named = {each.name for each in judged_flow(first.flow, None)}
    assert named == ({"result_duplicated"} if by == "result" else set())


def test_a_dispute_that_was_lost_before_its_charge_shows_leaves_nothing_to_give_back() -> None:
    """Its stages are followed while nothing is booked, whatever their order."""
    story = Story()
    story.flow.answer(DECLINED)
    for state, number in (("lost", 2), ("opened", 1)):
        story.dispute(state, event_sequence=number, fee_minor=15)
    assert story.settled == []
    story.notify("succeeded")
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert "refund" not in story.asked
    assert story.settled == [("capture", 500), ("dispute", -500), ("dispute_fee", -15)]
    assert judged_flow(story.flow, None) == []


def test_a_dispute_of_nothing_is_about_no_charge_that_began_later() -> None:
    """A retry at the same gateway is not in dispute, and may be refunded."""
    story = Story()
    story.flow.answer(DECLINED)
    story.dispute("opened")
    story.flow.now_ms += SECOND
    story.command("retry", "r1", instrument_token="tok_2")
    story.flow.answer(yes)
    assert story.settled == [("capture", 500)]
    story.command("refund", "r2")
    story.flow.answer(yes)
    assert story.money == (500, 500, 500)
    assert judged_flow(story.flow, None) == []


def test_a_dispute_of_more_than_was_taken_holds_nothing_up() -> None:
    """It is no dispute of this charge: what came too late goes back."""
    story = declined_then_taken(dispute_first=True, amount_minor=501)
    story.flow.answer(yes)
    assert (story.money, story.settled) == ((500, 500, 500), [("capture", 500), ("refund", -500)])

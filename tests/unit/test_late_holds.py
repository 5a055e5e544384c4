"""A hold that came too late and whose void was refused is over when its gateway lets it lapse."""

from __future__ import annotations

from msgspec.structs import replace

from pipeline.audit.report import Severity
from pipeline.commands.payment_follow import DONE, PaymentSeen, judged
from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.policy import DAY_MS, HOUR_MS, MINUTE_MS, GatewayProfile
from pipeline.domain.reversals import outstanding
from tests.support.audit_story import judged_flow
from tests.support.payment_story import (
    DECLINED,
    MANUAL,
    NOT_FOUND,
    POLICY,
    SECOND,
    TIMED_OUT,
    Story,
    command,
    yes,
)
from tests.unit.test_reversals import NO_KEYS, cancelled_too_late, lives_until

EXPIRED = GatewayAnswer(outcome="declined", code="authorization_expired")


def found(story: Story) -> list[tuple[str, Severity]]:
    return [(each.name, each.severity) for each in judged_flow(story.flow, None)]


def held_too_late() -> Story:
    """Cancelled while it was asked for, then held all the same, and its void is refused."""
    story = Story(MANUAL)
    story.command("cancel")
    story.flow.answer(yes)
    story.flow.answer(DECLINED)
    assert (story.events[-1], story.money) == ("reversal_failed", (500, 0, 0))
    return story


def test_it_is_over_when_its_gateways_lifetime_is() -> None:
    """As an authorization that stood is expired by then, whatever became of its void."""
    story = held_too_late()
    lives_until(story, story.flow.now_ms + 6 * DAY_MS, yes)
    assert found(story) == [("waits_for_a_person", Severity.PENDING)]
    lives_until(story, story.flow.now_ms + DAY_MS + HOUR_MS, yes)
    event = story.flow.events()[-1]
    assert (event.type, event.reason, event.operation_minor) == (
        "authorization_lapsed", "hold_ends", 500,
    )  # fmt: skip
    assert (story.money, story.status, story.settled) == ((0, 0, 0), "cancelled", [])
    assert found(story) == []
    assert story.asked.count("void") == 1
    assert story.rejected("give_back", "g1") == "give_back_must_be_outstanding"


def test_its_gateways_word_that_it_has_expired_ends_it_at_once() -> None:
    """Which a person hears who orders it back; the command is done."""
    story = held_too_late()
    story.command("give_back", "g1")
    story.flow.answer(EXPIRED)
    assert (story.events[-1], story.money) == ("authorization_lapsed", (0, 0, 0))
    assert found(story) == []
    seen = PaymentSeen(story.payment, story.flow.events(), [])
    outcome = judged(seen, command("give_back", "g1"))
    assert outcome is not None
    assert (outcome.kind, "the hold is over" in outcome.text) == (DONE, True)
    lives_until(story, story.flow.now_ms + 8 * DAY_MS, yes)
    assert story.events.count("authorization_lapsed") == 1


def test_what_is_refused_once_the_hold_is_over_is_not_told_as_owed() -> None:
    """Also where no timer was begun, by a version that knew none."""
    story = held_too_late()
    story.flow.tiers.clear()
    lives_until(story, story.flow.now_ms + 40 * DAY_MS, yes)
    story.command("give_back", "g1")
    story.flow.answer(DECLINED)
    assert (story.events[-1], story.money) == ("authorization_lapsed", (0, 0, 0))
    assert story.events.count("reversal_failed") == 1


def test_a_void_that_is_under_way_at_that_time_ends_by_its_own_outcome() -> None:
    """Nothing is told about what a gateway may be releasing; once it refuses, the hold is over."""
    story = held_too_late()
    lives_until(story, story.flow.now_ms + 7 * DAY_MS - 30 * MINUTE_MS, yes)
    story.command("give_back", "g1")
    refused = story.flow.handle(story.flow.open_requests.pop(), DECLINED)
    story.flow.advance(2 * HOUR_MS)
    assert (story.money, story.events[-1]) == ((500, 0, 0), "reversal_started")
    story.flow.result(refused)
    assert (story.money, story.events[-1]) == ((0, 0, 0), "authorization_lapsed")


def test_a_gateway_that_lets_holds_live_longer_is_waited_for() -> None:
    """Its lifetime was set higher after the timer had begun."""
    story = held_too_late()
    longer = replace(POLICY.gateways[0], authorization_ms=9 * DAY_MS)
    story.flow.policy = replace(story.flow.policy, gateways=(longer,))
    lives_until(story, story.flow.now_ms + 8 * DAY_MS, yes)
    assert story.money == (500, 0, 0)
    lives_until(story, story.flow.now_ms + DAY_MS + HOUR_MS, yes)
    assert story.money == (0, 0, 0)


def test_a_hold_beside_another_leaves_it_as_it_is() -> None:
    """The first hold shows after a retry holds the money as well: only its own ends, and once,
    although its void turns out to have been made."""
    story = Story(MANUAL)
    story.flow.answer(DECLINED)
    story.flow.advance(DAY_MS)
    story.notify("succeeded")
    story.flow.answer(DECLINED)
    story.flow.advance(6 * DAY_MS)
    story.command("retry", "r1", instrument_token="tok_2")
    story.flow.answer(yes)
    assert story.money == (1000, 0, 0)
    story.flow.advance(DAY_MS + HOUR_MS)
    assert (story.money, story.status) == ((500, 0, 0), "authorized")
    assert outstanding(story.payment) == ()
    story.notify("succeeded", "late-1-1")
    assert (story.money, story.status) == ((500, 0, 0), "authorized")
    story.command("capture", "k1")
    story.flow.answer(yes)
    assert story.money == (500, 500, 0)
    assert found(story) == []


def test_a_gateway_that_took_no_key_leaves_the_hold_to_its_time() -> None:
    """What it may have released is not sent there again; a person or the time ends it."""
    story = cancelled_too_late(MANUAL, NO_KEYS)
    story.flow.answer(TIMED_OUT)
    lives_until(story, story.flow.now_ms + DAY_MS, lambda _: NOT_FOUND)
    assert story.events[-1] == "reversal_failed"
    lives_until(story, story.flow.now_ms + 8 * DAY_MS, yes)
    assert (story.money, found(story)) == ((0, 0, 0), [])


def test_a_hold_of_a_gateway_that_was_taken_out_is_not_taken_for_over() -> None:
    """How long it keeps one is forgotten with it: a person is waited for, and once it is back its
    own time holds."""
    gone = GatewayProfile(name="simulator", grace_ms=10 * SECOND, authorization_ms=30 * DAY_MS)
    left = GatewayProfile(name="left", priority=200)
    known, without = (replace(POLICY, gateways=each) for each in ((gone, left), (left,)))
    story = Story(MANUAL, known)
    story.command("cancel")
    story.flow.answer(yes)
    story.flow.policy = without
    story.flow.answer(DECLINED)
    story.flow.advance(29 * DAY_MS)
    assert (story.events[-1], story.money) == ("reversal_failed", (500, 0, 0))
    assert [name for name, _ in found(story)] == ["waits_for_a_person"]
    story.flow.policy = known
    story.flow.advance(2 * DAY_MS)
    story.command("give_back", "g1")
    story.flow.answer(DECLINED)
    assert (story.events[-1], story.money) == ("authorization_lapsed", (0, 0, 0))
    assert found(story) == []

"""The counter of a card's declined attempts: exact, bounded, and the same whoever asks twice."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from pipeline.domain.card_attempts import (
    BARS_MAX,
    DECLINED_MAX,
    IN_FLIGHT_MAX,
    WAITING_MAX,
    take_attempt,
)
from pipeline.domain.ids import payment_id
from pipeline.domain.model import AttemptCap, RiskCheck, RiskResult, RiskVelocity
from pipeline.domain.records import to_record, velocity_from_record
from pipeline.domain.risk_answer import answer_check
from schemas.codec import default_codec
from tests.unit.test_risk_velocity import check as order_check

NOW = 1_790_000_000_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

THREE = AttemptCap(name="three", declines_max=3, window_ms=DAY_MS)
TWO_AT_NORTH = AttemptCap(name="north", declines_max=2, window_ms=DAY_MS, gateway="north")


def ask(number: int, gateway: str = "south", caps: tuple[AttemptCap, ...] = (THREE,)) -> RiskCheck:
    identity = payment_id("shop", f"o-{number}")
    return RiskCheck(
        merchant_id="shop",
        order_id=f"o-{number}",
        payment_id=identity,
        by="card",
        identity="fp_1",
        amount_minor=100,
        currency="GBP",
        attempt_key=f"{identity}:o-{number}:{gateway}:1",
        gateway=gateway,
        caps=caps,
    )


def told(asked: RiskCheck, outcome: str, code: str = "insufficient_funds") -> RiskCheck:
    bar_ms = 30 * DAY_MS if outcome == "never_again" else 0
    return replace(asked, caps=(), outcome=outcome, code=code, bar_ms=bar_ms)


class Counter:
    """A card's row, and everything it answered."""

    def __init__(self) -> None:
        self.row: RiskVelocity | None = None
        self.answers: list[RiskResult] = []
        self.now_ms = NOW

    def take(self, check: RiskCheck) -> list[tuple[str, str]]:
        row, answers = take_attempt(self.row, check, self.now_ms)
        self.row = row or self.row
        self.answers += answers
        return [(answer.order_id, answer.permit) for answer in answers]


def test_declines_are_counted_across_payments_up_to_the_cap() -> None:
    """Three declines of three payments; the fourth is refused, by name and in words."""
    counter = Counter()
    for number in range(3):
        assert counter.take(ask(number)) == [(f"o-{number}", "given")]
        assert counter.take(told(ask(number), "declined")) == []
    assert counter.take(ask(3)) == [("o-3", "refused")]
    answer = counter.answers[-1]
    assert answer.payment_id == payment_id("shop", "o-3")
    assert (answer.rule, answer.detail) == (
        "three", "3 declines of this card within 1 d, cap three",
    )  # fmt: skip


def test_what_succeeds_or_is_never_sent_counts_nothing() -> None:
    """A card may pay as often as it likes."""
    counter = Counter()
    for number in range(50):
        assert counter.take(ask(number)) == [(f"o-{number}", "given")]
        counter.take(told(ask(number), "released"))
    assert counter.row is not None
    assert (counter.row.declined, counter.row.in_flight) == ((), ())


def test_who_might_exceed_the_cap_waits_until_it_is_known() -> None:
    """With three in flight the fourth and fifth wait; a success lets one go, declines refuse the
    other: never more than three declines, and nobody is refused for one that did not come."""
    counter = Counter()
    for number in range(3):
        counter.take(ask(number))
    assert counter.take(ask(3)) == []
    assert counter.take(ask(4)) == []
    assert counter.take(told(ask(0), "released")) == [("o-3", "given")]
    assert counter.take(told(ask(1), "declined")) == []
    assert counter.take(told(ask(2), "declined")) == []
    assert counter.take(told(ask(3), "declined")) == [("o-4", "refused")]
    assert counter.row is not None
    assert (len(counter.row.declined), counter.row.waiting) == (3, ())


def test_one_that_waited_and_gave_up_takes_no_place() -> None:
    """Its payment was cancelled, or went to a person, meanwhile."""
    counter = Counter()
    for number in range(4):
        counter.take(ask(number))
    counter.take(told(ask(3), "released"))
    assert counter.take(told(ask(0), "released")) == []
    assert counter.take(ask(4)) == [("o-4", "given")]


def test_a_window_forgets() -> None:
    """To the millisecond: a decline counts for as long as the cap says, from when it was told."""
    counter = Counter()
    for number in range(3):
        counter.take(ask(number))
        counter.take(told(ask(number), "declined"))
        counter.now_ms += 1
    counter.now_ms = NOW + DAY_MS - 1
    assert counter.take(ask(3)) == [("o-3", "refused")]
    counter.now_ms = NOW + DAY_MS
    assert counter.take(ask(4)) == [("o-4", "given")]


def test_a_gateways_cap_counts_what_that_gateway_declined() -> None:
    """Two declines at north bar north for this card, and not south."""
    counter = Counter()
    caps = (THREE, TWO_AT_NORTH)
    for number in range(2):
        counter.take(ask(number, "north", caps))
        counter.take(told(ask(number, "north"), "declined"))
    assert counter.take(ask(2, "north", caps)) == [("o-2", "refused")]
    assert counter.answers[-1].detail == "2 declines of this card at north within 1 d, cap north"
    assert counter.take(ask(3, "south", caps)) == [("o-3", "given")]


def test_a_full_gateway_holds_up_nobody_who_goes_elsewhere() -> None:
    """Those who wait are let go in the order in which they asked, each for its own gateway."""
    counter = Counter()
    ten = AttemptCap(name="ten", declines_max=10, window_ms=DAY_MS)
    caps = (ten, TWO_AT_NORTH)
    for number in range(2):
        counter.take(ask(number, "north", caps))
    assert counter.take(ask(2, "north", caps)) == []
    assert counter.take(ask(3, "north", caps)) == []
    assert counter.take(ask(4, "south", caps)) == [("o-4", "given")]
    assert counter.take(told(ask(0, "north"), "released")) == [("o-2", "given")]


def test_who_asks_overtakes_nobody_who_waits() -> None:
    """A decline that leaves its window makes room for the one that has waited longest."""
    counter = Counter()
    counter.take(ask(0))
    counter.take(told(ask(0), "declined"))
    counter.now_ms += HOUR_MS
    for number in (1, 2):
        counter.take(ask(number))
    assert counter.take(ask(3)) == []
    counter.now_ms = NOW + DAY_MS
    assert counter.take(ask(4)) == [("o-3", "given")]
    assert counter.row is not None
    assert [each.order_id for each in counter.row.waiting] == ["o-4"]


def test_a_decline_that_says_never_again_bars_the_card() -> None:
    """Everybody who waits is told, and whoever asks within the time; then it is over."""
    counter = Counter()
    for number in range(4):
        counter.take(ask(number))
    assert counter.take(told(ask(0), "never_again", "lost_card")) == [("o-3", "barred")]
    counter.now_ms += 30 * DAY_MS - 1
    assert counter.take(ask(5)) == [("o-5", "barred")]
    assert (counter.answers[-1].rule, counter.answers[-1].detail) == (
        "lost_card", "lost_card bars this card",
    )  # fmt: skip
    counter.now_ms += 1
    assert counter.take(ask(6)) == [("o-6", "given")]


def test_asking_and_telling_twice_changes_nothing() -> None:
    """The same answer again, one decline, and no row to write."""
    counter = Counter()
    counter.take(ask(0))
    before = counter.row
    assert counter.take(ask(0)) == [("o-0", "given")]
    assert take_attempt(before, ask(0), NOW)[0] is None
    counter.take(told(ask(0), "declined"))
    before = counter.row
    assert before is not None
    assert take_attempt(before, told(ask(0), "declined"), NOW + 1) == (None, ())
    assert len(before.declined) == 1


def test_a_decline_nobody_had_a_permit_for_counts_all_the_same() -> None:
    """Attempts of before the card was counted."""
    counter = Counter()
    for number in range(3):
        counter.take(told(ask(number), "declined"))
    assert counter.take(ask(9)) == [("o-9", "refused")]


def test_a_decline_that_was_a_success_after_all_is_taken_back() -> None:
    """Late evidence: the money had moved."""
    counter = Counter()
    for number in range(3):
        counter.take(ask(number))
        counter.take(told(ask(number), "declined"))
    counter.take(told(ask(1), "released"))
    assert counter.take(ask(3)) == [("o-3", "given")]


def test_a_bar_ends_when_its_decline_was_a_success_after_all() -> None:
    """Only that one: what another decline bars stays barred, for as long as that says."""
    counter = Counter()
    for number in range(3):
        counter.take(ask(number))
    counter.take(told(ask(0), "never_again", "lost_card"))
    counter.now_ms += HOUR_MS
    counter.take(told(ask(1), "never_again", "pickup_card"))
    counter.take(told(ask(2), "declined"))
    counter.take(told(ask(1), "released"))
    assert counter.take(ask(3)) == [("o-3", "barred")]
    assert counter.answers[-1].rule == "lost_card"
    row = counter.row
    assert row is not None
    assert (row.barred_by, row.barred_until_ms) == ("lost_card", NOW + 30 * DAY_MS)
    codec = default_codec()
    value = codec.encoder("risk-velocity")(to_record(row))
    assert velocity_from_record(codec.decoder("risk-velocity")(value)) == row
    counter.take(told(ask(0), "released"))
    assert counter.take(ask(4)) == [("o-4", "given")]
    assert counter.row is not None
    assert (counter.row.barred_by, counter.row.barred_until_ms) == ("", 0)


def test_a_bar_of_before_bars_were_kept_one_by_one_ends_by_its_time() -> None:
    """Whose decline it was is not known, so nothing lifts it; a bar that comes later is its own."""
    counter = Counter()
    counter.take(ask(0))
    counter.take(told(ask(0), "never_again", "lost_card"))
    assert counter.row is not None
    counter.row = replace(counter.row, bars=())
    counter.take(told(ask(0), "released"))
    assert counter.take(ask(1)) == [("o-1", "barred")]
    counter.now_ms += 30 * DAY_MS
    assert counter.take(ask(2)) == [("o-2", "given")]


@pytest.mark.slow
def test_a_row_stays_small_and_survives_its_bytes() -> None:
    """However many ask, are in flight and are declined; whoever finds no place is refused."""
    counter = Counter()
    wide = AttemptCap(name="wide", declines_max=100, window_ms=DAY_MS)
    for number in range(IN_FLIGHT_MAX + WAITING_MAX + 5):
        counter.take(ask(number, caps=()))
    assert [a.rule for a in counter.answers if a.permit == "refused"] == (
        ["too_many_attempts_wait"] * 5
    )
    for number in range(IN_FLIGHT_MAX):
        counter.take(told(ask(number), "declined"))
    counter.take(ask(10_000, caps=(wide,)))
    row = counter.row
    assert row is not None
    assert len(row.declined) == DECLINED_MAX
    assert len(row.in_flight) <= IN_FLIGHT_MAX
    codec = default_codec()
    value = codec.encoder("risk-velocity")(to_record(row))
    assert velocity_from_record(codec.decoder("risk-velocity")(value)) == row
    for number in range(IN_FLIGHT_MAX, IN_FLIGHT_MAX + 2 * BARS_MAX):
        counter.take(told(ask(number), "never_again"))
    assert counter.row is not None
    assert len(counter.row.bars) == BARS_MAX
    assert len(value) < 48_000
    counter.now_ms += 31 * DAY_MS
    counter.take(ask(10_001))
    assert counter.row is not None
    assert (counter.row.declined, len(counter.row.in_flight)) == ((), 1)


def test_orders_and_attempts_of_one_card_share_its_row() -> None:
    """Counting one leaves the other alone."""
    row, _ = answer_check(None, order_check(1), NOW)
    row, _ = answer_check(row, ask(1), NOW)
    row, _ = answer_check(row, told(ask(1), "declined"), NOW)
    row, (counted,) = answer_check(row, order_check(2), NOW)
    assert counted.counted[0].count == 2
    assert row is not None
    assert len(row.declined) == 1
    assert row.caps == (THREE,)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_comes_declines_and_flights_never_exceed_the_cap_and_all_are_answered(
    seed: int,
) -> None:
    """Any mix of asking, repeating, declines, successes and giving up: at no time are more than
    three declined or under way within the window, and in the end nobody waits."""
    chance = random.Random(seed)
    counter, open_, waiting = Counter(), {}, {}
    declined_at: list[int] = []
    for number in range(120):
        counter.now_ms += chance.choice([1, 1_000, HOUR_MS])
        answered = counter.take(ask(number))
        waiting[f"o-{number}"] = ask(number)
        if chance.random() < 0.2:
            answered += counter.take(ask(number))
        for _ in range(chance.randrange(3)):
            given = list(open_)
            if given and chance.random() < 0.8:
                name = chance.choice(given)
                outcome = chance.choice(["declined", "released", "released"])
                if outcome == "declined":
                    declined_at.append(counter.now_ms)
                answered += counter.take(told(open_.pop(name), outcome))
            elif waiting and chance.random() < 0.3:
                answered += counter.take(
                    told(waiting.pop(chance.choice(list(waiting))), "released")
                )
        for name, permit in answered:
            asked = waiting.pop(name, None)
            if asked is not None and permit == "given":
                open_[name] = asked
        recent = [at for at in declined_at if at > counter.now_ms - DAY_MS]
        assert len(recent) + len(open_) <= 3
    while open_:
        answered = counter.take(told(open_.pop(next(iter(open_))), "released"))
        for name, permit in answered:
            asked = waiting.pop(name)
            if permit == "given":
                open_[name] = asked
    assert counter.row is not None
    assert counter.row.in_flight == ()
    assert counter.row.waiting == ()

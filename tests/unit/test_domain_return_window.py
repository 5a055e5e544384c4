"""A gateway that is back after an outage gets as much as it can do, and not all at once."""

from __future__ import annotations

from pipeline.domain.return_window import LONE_ANSWERS, ReturnWindow

SLOW_MS = 5_000


def room(window: ReturnWindow) -> int:
    """How many calls may be open."""
    return next(n for n in range(10_000) if not window.has_room(n))


def test_it_doubles_each_round_until_there_is_no_limit() -> None:
    """Six, twelve, twenty-four: a gateway that is well again has everything within seconds."""
    window = ReturnWindow(6, 100, SLOW_MS)
    rounds = []
    for _ in range(4):
        rounds.append(room(window))
        for _ in range(rounds[-1]):
            window.answered(200, 0)
    assert rounds == [6, 12, 24, 48]
    for _ in range(4):
        window.answered(200, 0)
    assert window.has_room(1_000_000)


def test_a_gateway_that_was_not_away_has_no_limit() -> None:
    window = ReturnWindow.wide_open()
    assert window.has_room(1_000_000)
    window.troubled(0, 10)
    assert window.has_room(1_000_000)


def test_one_that_gets_slow_gets_hardly_more() -> None:
    """Answers that take long may be a queue at the gateway, and may be its pace: one more every
    five seconds finds out which, and leaves no gateway with a few calls for ever."""
    window = ReturnWindow(6, 100, SLOW_MS)
    for _ in range(4):
        window.answered(200, 0)
    for now_ms in range(0, 5_000, 100):
        window.answered(2_501, now_ms)
    assert room(window) == 10
    for now_ms in range(5_000, 500_000, 100):
        window.answered(2_501, now_ms)
    assert window.has_room(1_000_000)


def test_one_that_always_takes_long_is_let_in_all_the_same() -> None:
    """Three seconds alone, three seconds among many: it is no slower for having more."""
    window = ReturnWindow(6, 100, SLOW_MS)
    for _ in range(94):
        window.answered(3_000, 0)
    assert window.has_room(1_000_000)


def test_trouble_halves_it_once_for_a_crowd_and_never_below_the_least() -> None:
    """Calls that began before the last halving say nothing of what came of it."""
    window = ReturnWindow(6, 100, SLOW_MS)
    for _ in range(34):
        window.answered(200, 0)
    for began_ms in range(10):
        window.troubled(began_ms, 5_000 + began_ms)
    assert room(window) == 20
    for now_ms in (20_000, 30_000, 40_000):
        window.troubled(now_ms - 1, now_ms)
    assert room(window) == 6


def test_a_slow_card_among_many_answers_takes_no_room() -> None:
    """A gateway whose answers take two or three seconds has one over five now and then, and gets
    more room by few quick ones: it would be throttled for as long as it is so. What the crowd makes
    slow does not come alone."""
    window = ReturnWindow(6, 100, SLOW_MS)
    for _ in range(34):
        window.answered(200, 0)
    window.troubled(1, 5_000)
    assert room(window) == 40
    window.troubled(2, 5_001)
    assert room(window) == 20
    for now_ms in range(10_000, 10_000 + LONE_ANSWERS - 1):
        window.answered(4_000, now_ms)
    window.troubled(15_000, 20_000)
    assert room(window) == 10

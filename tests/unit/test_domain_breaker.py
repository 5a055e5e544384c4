"""Breaker, window, token bucket, attempt caps and health: pure, the time given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.breaker import CLOSED, HALF_OPEN, OPEN, Breaker, BreakerRule
from pipeline.domain.health import HealthBook, verdict
from pipeline.domain.routes import Rate
from pipeline.domain.token_bucket import TokenBucket
from pipeline.domain.window import SlidingWindow

RULE = BreakerRule(
    window_ms=1_000, calls_min=4, trouble_percent=50, wait_ms=100, wait_ms_max=300, probes=2
)


def opened(at_ms: int = 0) -> Breaker:
    breaker = Breaker(RULE)
    for _ in range(RULE.calls_min):
        breaker.saw(False, at_ms)
    assert breaker.state(at_ms) == OPEN
    return breaker


def test_a_breaker_opens_on_a_share_of_trouble_and_not_before_enough_calls() -> None:
    """Three troubles of three are bad luck; two of four are an outage."""
    breaker = Breaker(RULE)
    for _ in range(3):
        breaker.saw(False, 0)
    assert breaker.state(0) == CLOSED
    calm = Breaker(RULE)
    for well in (False, True, True, True, False, True, True, True, False):
        calm.saw(well, 0)
    assert calm.state(0) == CLOSED
    half = Breaker(RULE)
    for well in (True, True, False, False):
        half.saw(well, 0)
    assert half.state(0) == OPEN


def test_trouble_is_forgotten_with_its_window() -> None:
    """Three troubles an hour apart are no outage."""
    breaker = Breaker(RULE)
    for hour in range(10):
        breaker.saw(False, hour * 3_600_000)
    assert breaker.state(36_000_000) == CLOSED


def test_an_open_breaker_lets_a_few_probes_through_and_closes_when_all_are_well() -> None:
    """Nobody calls while it waits; then two, and not a third, until both have ended well."""
    breaker = opened()
    assert breaker.begin(99) is None
    assert breaker.retry_in_ms(40) == 60
    first, second = breaker.begin(100), breaker.begin(100)
    assert breaker.state(100) == HALF_OPEN
    assert first is not None
    assert second is not None
    assert breaker.begin(100) is None
    breaker.end(first, True, 110)
    assert breaker.begin(110) is None
    breaker.end(second, True, 120)
    assert breaker.state(120) == CLOSED
    assert breaker.begin(120) is not None


def test_a_probe_in_trouble_opens_it_again_for_twice_as_long_up_to_a_bound() -> None:
    """100, 200, 300, 300 ms."""
    breaker = opened()
    now_ms, waits = 100, []
    for _ in range(4):
        permit = breaker.begin(now_ms)
        assert permit is not None
        breaker.end(permit, False, now_ms)
        waits.append(breaker.retry_in_ms(now_ms))
        now_ms += waits[-1]
    assert waits == [200, 300, 300, 300]


def test_a_probe_that_says_nothing_gives_its_place_back() -> None:
    """A probe that found no free connection is no evidence; another may go."""
    breaker = opened()
    permits = [breaker.begin(100), breaker.begin(100)]
    assert permits[0] is not None
    breaker.end(permits[0], None, 110)
    assert breaker.begin(110) is not None
    assert breaker.begin(110) is None


def test_calls_from_before_it_opened_say_nothing_afterwards() -> None:
    """A late time-out must not reopen what probes have closed, nor a late success close it."""
    breaker = Breaker(RULE)
    old = breaker.begin(0)
    assert old is not None
    for _ in range(RULE.calls_min):
        breaker.saw(False, 0)
    breaker.end(old, True, 150)
    for _ in range(2):
        permit = breaker.begin(150)
        assert permit is not None
        breaker.end(permit, True, 160)
    assert breaker.state(160) == CLOSED
    for _ in range(20):
        breaker.end(old, False, 170)
    assert breaker.state(170) == CLOSED


@given(st.lists(st.tuples(st.sampled_from(["begin", "well", "bad", "none"]), st.integers(0, 80))))
def test_a_breaker_never_has_more_probes_out_than_it_may_and_never_gets_stuck(
    steps: list[tuple[str, int]],
) -> None:
    """Whatever happens in whatever order, it can be called again once its calls have ended."""
    breaker, now_ms = opened(), 0
    out: list[int] = []
    for what, passed_ms in steps:
        now_ms += passed_ms
        if what == "begin":
            closed = breaker.state(now_ms) == CLOSED
            permit = breaker.begin(now_ms)
            if permit is not None:
                out.append(permit)
                assert closed or out.count(permit) <= RULE.probes
        elif out:
            well = {"well": True, "bad": False, "none": None}[what]
            breaker.end(out.pop(), well, now_ms)
    while out:
        breaker.end(out.pop(), None, now_ms)
    assert breaker.begin(now_ms + RULE.wait_ms_max) is not None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=60))
def test_a_window_counts_what_is_in_it_give_or_take_a_slice(
    results: list[tuple[bool, int]],
) -> None:
    """Everything of the last nine tenths is counted, nothing older than the whole."""
    window, now_ms, seen = SlidingWindow(1_000), 0, []
    for good, passed_ms in results:
        now_ms += passed_ms
        window.saw(good, now_ms)
        seen.append((now_ms, good))
    good, total = window.counts(now_ms)
    surely = [g for at, g in seen if at > now_ms - 900]
    at_most = [g for at, g in seen if at > now_ms - 1_000]
    assert len(surely) <= total <= len(at_most)
    assert sum(surely) <= good <= sum(at_most)


@given(st.floats(0.5, 1_000), st.integers(1, 50), st.lists(st.floats(0, 2_000), max_size=200))
def test_a_bucket_never_gives_more_than_its_burst_and_its_rate(
    rate_per_s: float, burst: int, pauses_ms: list[float]
) -> None:
    """However calls come, by any time at most burst + rate x time were allowed."""
    bucket, now_ms, taken = TokenBucket(rate_per_s, burst, 0), 0.0, 0
    for pause_ms in pauses_ms:
        now_ms += pause_ms
        taken += bucket.take(now_ms)
        assert taken <= burst + rate_per_s * now_ms / 1000 + 1e-6
    wait_ms = bucket.next_in_ms(now_ms)
    assert bucket.take(now_ms + wait_ms + 1e-6)


def test_what_an_answer_says_of_its_gateway() -> None:
    """A declined card is a working gateway; what our own limits held back says nothing."""
    assert verdict("declined", "insufficient_funds") is True
    assert verdict("not_found", None) is True
    assert verdict("unknown", "timeout") is False
    assert verdict("unknown", "gateway_error") is False
    assert verdict("unknown", "in_progress") is None
    assert verdict("not_sent", "connection_refused") is False
    for code in ("rate_limited", "throttled", "breaker_open", "send_before_passed"):
        assert verdict("not_sent", code) is None


def test_what_was_heard_to_be_pending_says_nothing_of_its_gateway() -> None:
    """It may have answered "not found" in time, which is told so where an earlier question heard
    better. New payments are not sent elsewhere for it."""
    for code, down in (("heard_pending", set()), ("timeout", {"a"})):
        book = HealthBook(lambda _: RULE)
        for _ in range(200):
            book.saw("a", "inquire", "unknown", code, 1_000)
        assert book.health(1_000).down == down


def test_results_say_who_is_down_who_comes_back_and_who_approves_most() -> None:
    """From results alone, by their own times."""
    book = HealthBook(lambda _: RULE)
    for number in range(100):
        book.saw("a", "charge", "succeeded" if number % 4 else "declined", None, 1_000)
        book.saw("b", "charge", "succeeded", None, 1_000)
    health = book.health(1_000)
    assert health.rates == {"a": Rate(75, 100), "b": Rate(100, 100)}
    assert not health.down
    for _ in range(200):
        book.saw("b", "charge", "unknown", "timeout", 2_500)
    assert book.health(2_500 + 90).down == {"b"}
    assert book.health(3_000).on_trial == {"b"}
    for _ in range(2):
        book.saw("b", "inquire", "not_found", None, 3_000)
    assert book.health(3_300).on_trial == frozenset()


def test_a_breaker_open_elsewhere_counts_here() -> None:
    """Payments learn from the answers of calls that were not made."""
    book = HealthBook(lambda _: RULE)
    book.saw("a", "charge", "not_sent", "breaker_open", 1_000)
    assert book.health(1_000).down == {"a"}
    book.saw("a", "charge", "not_sent", "breaker_open", 1_090)
    assert book.health(1_150).down == {"a"}
    assert book.health(1_500).on_trial == {"a"}
    book.saw("a", "charge", "not_sent", "breaker_open", 1_500, 15_000)
    assert book.health(16_400).down == {"a"}
    assert book.health(16_800).on_trial == {"a"}

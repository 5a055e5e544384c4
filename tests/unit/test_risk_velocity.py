from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.domain.ids import payment_id
from pipeline.domain.keys import partition_of
from pipeline.domain.model import RiskCheck, RiskCounted, RiskCounter, RiskVelocity
from pipeline.domain.records import to_record, velocity_from_record
from pipeline.domain.risk_velocity import (
    BUCKETS,
    RECENT_MAX,
    SERIES_MAX,
    bucket_ms,
    count_check,
    counted_at,
    velocity_key,
)
from schemas.codec import default_codec
from tests.support.examples import share_of

NOW = 1_790_000_000_000
HOUR_MS = 3_600_000
HOUR = RiskCounter(window_ms=HOUR_MS)
SMALL = RiskCounter(window_ms=600_000, currency="GBP", amount_minor_max=200)


def check(
    number: int, amount_minor: int = 100, counters: tuple[RiskCounter, ...] = (HOUR,)
) -> RiskCheck:
    return RiskCheck(
        merchant_id="shop",
        order_id=f"o-{number}",
        payment_id=payment_id("shop", f"o-{number}"),
        by="card",
        identity="fp_1",
        amount_minor=amount_minor,
        currency="GBP",
        counters=counters,
    )


def counted(checks: list[tuple[RiskCheck, int]]) -> RiskVelocity:
    velocity: RiskVelocity | None = None
    for each, at_ms in checks:
        velocity = count_check(velocity, each, at_ms)[0] or velocity
    assert velocity is not None
    return velocity


def test_each_order_is_answered_with_itself_included() -> None:
    """The first order counts one, the sixth six: a limit of five lets exactly five through."""
    velocity, answers = None, []
    for number in range(6):
        velocity, answer = count_check(velocity, check(number), NOW + number)
        answers.append((answer[0].count, answer[0].sum_minor))
    assert answers == [(n, 100 * n) for n in range(1, 7)]


def test_the_same_order_is_one_count() -> None:
    """A check that comes again changes nothing and is answered with what there is."""
    velocity = counted([(check(1), NOW), (check(2), NOW)])
    again, answer = count_check(velocity, check(1), NOW + 5)
    assert again is None
    assert answer[0].count == 2


def test_a_window_forgets_within_a_sixtieth() -> None:
    """An order counts for the whole window and at most a bucket longer."""
    velocity = counted([(check(1), NOW)])
    assert counted_at(velocity, HOUR, NOW + HOUR_MS - 1).count == 1
    assert counted_at(velocity, HOUR, NOW + HOUR_MS + bucket_ms(HOUR_MS)).count == 0
    assert bucket_ms(HOUR_MS) == 60_000


def test_only_what_was_asked_is_counted() -> None:
    """A counter of small amounts knows nothing of the orders that did not ask for it."""
    velocity = counted([(check(1, 150, (HOUR, SMALL)), NOW), (check(2, 5_000), NOW)])
    assert counted_at(velocity, SMALL, NOW) == RiskCounted(
        by="card", window_ms=600_000, count=1, sum_minor=150, currency="GBP", amount_minor_max=200
    )
    assert counted_at(velocity, HOUR, NOW).count == 2


@pytest.mark.slow
def test_a_row_stays_small_however_much_is_counted() -> None:
    """Buckets, series and remembered orders are bounded, and what has expired goes."""
    velocity: RiskVelocity | None = None
    for number in range(3_000):
        windows = (HOUR, RiskCounter(window_ms=60_000 + number % 100 * 1_000))
        velocity, _ = count_check(velocity, check(number, 1, windows), NOW + number * 7_000)
    assert velocity is not None
    assert len(velocity.series) <= SERIES_MAX
    assert all(len(each.buckets) <= BUCKETS + 2 for each in velocity.series)
    assert len(velocity.recent) == RECENT_MAX
    late, _ = count_check(velocity, check(9_999), NOW + 3_000 * 7_000 + 10 * HOUR_MS)
    assert late is not None
    assert [(len(each.buckets), each.window_ms) for each in late.series] == [(1, HOUR_MS)]


@pytest.mark.slow
@settings(max_examples=share_of(200), deadline=None)
@given(
    at=st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 4 * HOUR_MS), st.integers(0, 10_000)),
        min_size=1,
        max_size=40,
    ),
    order=st.randoms(use_true_random=False),
)
def test_the_order_of_checks_does_not_matter_for_totals(
    at: list[tuple[int, int, int]], order: object
) -> None:
    """Any order, with repeats of one order at its own time, comes to the same counts and sums."""
    first = {number: (check(number, amount), NOW + ms) for number, ms, amount in at}
    checks = [first[number] for number, _, _ in at]
    shuffled = list(checks)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    end = NOW + 4 * HOUR_MS
    one, other = counted(checks), counted(shuffled)
    assert counted_at(one, HOUR, end) == counted_at(other, HOUR, end)
    length = bucket_ms(HOUR_MS)
    inside = [c for c, ms in first.values() if ms - ms % length + length > end - HOUR_MS]
    total = counted_at(one, HOUR, end)
    assert (total.count, total.sum_minor) == (len(inside), sum(c.amount_minor for c in inside))


def test_keys_keep_merchants_and_kinds_apart() -> None:
    """The same text as a card and as a customer, or at two merchants, is not the same identity."""
    keys = {
        velocity_key(merchant, by, "x") for merchant in ("a", "b") for by in ("card", "customer")
    }
    assert len(keys) == 4
    assert velocity_key("shop", "customer", "ü:1") == "customer:shop:ü:1".encode()
    assert len({partition_of(velocity_key("a", "card", f"fp_{n}"), 12) for n in range(200)}) == 12


def test_a_row_survives_its_bytes() -> None:
    """What is written to the table is what is read back from it."""
    velocity = counted([(check(n, n, (HOUR, SMALL)), NOW + n * 61_000) for n in range(5)])
    codec = default_codec()
    raw = codec.encoder("risk-velocity")(to_record(velocity))
    assert velocity_from_record(codec.decoder("risk-velocity")(raw)) == velocity

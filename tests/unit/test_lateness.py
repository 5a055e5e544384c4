"""The measure of how late retry tiers are: a late tier shows, a busy machine does not."""

from __future__ import annotations

import random

import pytest

from tests.support.examples import share_of
from tests.support.lateness import Probe, late_by_itself_ms

# As the ten thousand payments are judged and their lanes asked (test_retry_tiers).
LATE_MS_MAX = 1_000
EACH_MS = 250
DUE_MS = 100_000


def asked(took_ms: int, stood: tuple[int, int] | None = None) -> list[Probe]:
    """A minute of probes; none is handled while the lane stands still."""
    probes = []
    for at_ms in range(DUE_MS - 30_000, DUE_MS + 30_000, EACH_MS):
        handled_ms = at_ms + took_ms
        if stood is not None and stood[0] <= handled_ms < stood[1]:
            handled_ms = stood[1] + took_ms
        probes.append(Probe(at_ms, handled_ms))
    return probes


@pytest.mark.parametrize("took_ms", [5, 100, 900])
def test_a_tier_that_is_two_seconds_late_by_itself_is_noticed(took_ms: int) -> None:
    """Whatever else the lane gets is handled in time, on a quick machine as on a slow one."""
    assert late_by_itself_ms(DUE_MS, DUE_MS + 2_000, asked(took_ms)) > LATE_MS_MAX


@pytest.mark.parametrize("stood", [(-20_000, -12_000), (4_000, 12_000)])
def test_what_held_up_the_lane_at_another_time_is_no_excuse(stood: tuple[int, int]) -> None:
    """It stood still for long, but not while the wait was late."""
    probes = asked(5, (DUE_MS + stood[0], DUE_MS + stood[1]))
    assert late_by_itself_ms(DUE_MS, DUE_MS + 2_000, probes) > LATE_MS_MAX


def test_a_lane_that_is_not_asked_excuses_nothing() -> None:
    """Without a probe meanwhile nothing is taken off."""
    assert late_by_itself_ms(DUE_MS, DUE_MS + 2_000, []) == 2_000


def test_a_tier_that_is_late_beside_a_lane_that_stands_still_is_noticed() -> None:
    """What is taken off is what the lane stood, and no more."""
    probes = asked(5, (DUE_MS, DUE_MS + 3_000))
    assert late_by_itself_ms(DUE_MS, DUE_MS + 3_000 + 2_000, probes) > LATE_MS_MAX


@pytest.mark.parametrize("seed", range(share_of(200)))
def test_a_machine_that_stops_both_is_no_lateness(seed: int) -> None:
    """However long, and whenever it began: the wait is handled as soon as the lane goes on, as what
    was asked before."""
    rng = random.Random(seed)
    began_ms = DUE_MS - rng.randrange(10_000)
    ended_ms = DUE_MS + rng.randrange(20_000)
    handled_ms = ended_ms + rng.randrange(200)
    probes = asked(rng.randrange(1, 500), (began_ms, ended_ms))
    assert late_by_itself_ms(DUE_MS, handled_ms, probes) <= LATE_MS_MAX

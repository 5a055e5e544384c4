"""Every transition of the lifecycle is reached by journeys through the processors, no other one is
taken, and what is promised about money holds on all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from msgspec.structs import replace

from pipeline.domain.decision import Decision
from pipeline.domain.lifecycle import ATTEMPT_TRANSITIONS, PAYMENT_TRANSITIONS
from tests.property.exploring import Explorer
from tests.property.journeys import Journey
from tests.support.examples import share_of
from tests.support.lifecycle_steps import Steps, WatchedDriver, watched_steps
from tests.support.payment_story import NOW, POLICY, Story, unasked, yes

# Journeys after the last transition was reached, and how many may be needed for that.
MORE = share_of(200)
MOST = 1_000


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    with watched_steps() as watched:
        monkeypatch.setattr(Journey, "steps", watched, raising=False)
        yield watched


Journey.TestCase.settings = settings(
    max_examples=share_of(240),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestJourney = Journey.TestCase


def test_every_transition_is_reached_and_no_other(steps: Steps) -> None:
    """Journeys that look for what was never done, the same ones in every run. A failure names the
    way to repeat, or the transitions that none of them reached: those are dead, or want a rule."""
    # Of a key of its own, which no journey has.
    found = WatchedDriver(POLICY, now_ms=NOW)
    found.steps = steps
    found.command(unasked())
    found.command(unasked("ch_78", type="give_back", command_id="g"))
    found.command(unasked("ch_78"))
    found.run(yes)
    explorer = Explorer(steps)
    journeys = 0
    while steps.missing and journeys < MOST:
        explore(explorer)
        journeys += 1
    assert not steps.missing, "\n  ".join(["never reached:", *steps.missing])
    for _ in range(MORE):
        explore(explorer)


def explore(explorer: Explorer) -> None:
    try:
        explorer.walk()
    except Exception as error:
        start, path, _ = explorer.way
        raise AssertionError(f"repeated(steps, {start}, {path}) breaks: {error}") from error


def test_what_moves_without_a_step_is_noticed(steps: Steps) -> None:
    """A status, an attempt's state and an attempt that goes each need a step of the tables."""
    story = Story()
    before = story.payment
    paid = replace(before, status="captured")
    with pytest.raises(AssertionError, match="no step led from processing to captured"):
        steps.decided(before, Decision(payment=paid))
    steps.forget()
    charged = replace(before.attempts[0], state="charged")
    with pytest.raises(AssertionError, match=r"no step of .* led from started to succeeded"):
        steps.decided(before, Decision(payment=replace(before, attempts=(charged,))))
    steps.forget()
    with pytest.raises(AssertionError, match="attempts are gone"):
        steps.decided(before, Decision(payment=replace(before, attempts=())))
    steps.forget()
    decided = story.flow.answer(yes)
    steps.decided(before, decided)
    assert "payment: processing --charge_seen" not in steps.missing
    assert len(steps.missing) == len(PAYMENT_TRANSITIONS) + len(ATTEMPT_TRANSITIONS) - 2

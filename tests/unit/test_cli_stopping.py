"""The first signal ends a command in good order, and no later one cuts that short."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from pipeline.commands.stopping import SIGNALS, StopSignals


@pytest.fixture(autouse=True)
def _handlers_kept() -> Iterator[None]:
    # Whoever runs the tests may have had some of them ignored, as nohup does.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_start_is_left_at_once_and_only_once(number: signal.Signals) -> None:
    """The first signal unwinds the start; those that come during the clean-up are not heard."""
    stop = StopSignals()
    with pytest.raises(SystemExit) as caught:
        signal.raise_signal(number)
    assert caught.value.code == 128 + number
    for again in SIGNALS:
        signal.raise_signal(again)
    assert stop.asked.is_set()


def test_a_stop_that_an_extension_swallows_still_ends_the_command() -> None:
    """The Kafka client turns a SystemExit raised inside it into a TypeError of its own."""

    def make_client() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except SystemExit as stopped:
            raise TypeError("expected configuration property name") from stopped

    with pytest.raises(SystemExit) as caught, StopSignals():
        make_client()
    assert caught.value.code == 128 + signal.SIGINT


def test_an_error_without_a_signal_stays_what_it_is() -> None:
    """Only a command that was asked to stop ends as one that was stopped."""
    with pytest.raises(TypeError), StopSignals():
        raise TypeError


def test_a_command_that_looks_by_itself_is_asked() -> None:
    """After ready nothing is raised, so that a drain begins between two looks."""
    stop = StopSignals()
    stop.ready()
    signal.raise_signal(signal.SIGTERM)
    assert stop.asked.is_set()


def test_a_background_job_of_a_script_hears_sigint_and_nohup_keeps_its_meaning() -> None:
    """A shell starts its background jobs with SIGINT ignored; nohup ignores SIGHUP on purpose."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopSignals()
    stop.ready()
    signal.raise_signal(signal.SIGHUP)
    assert not stop.asked.is_set()
    signal.raise_signal(signal.SIGINT)
    assert stop.asked.is_set()

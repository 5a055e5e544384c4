"""What a signal's handler may set, wherever in the main thread the signal comes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from pipeline.signal_event import SignalEvent
from tests.house import TOP


def with_a_signal_at_each_step(event: threading.Event, called: Callable[[], object]) -> int:
    """The call, with a handler's ``set`` run before each line of Python in it; how many."""
    steps = 0

    def heard(_frame: FrameType, what: str, _value: Any) -> Any:
        nonlocal steps
        if what == "line":
            steps += 1
            sys.settrace(None)
            event.set()
            sys.settrace(heard)
        return heard

    before = sys.gettrace()
    sys.settrace(heard)
    try:
        called()
    finally:
        sys.settrace(before)
    return steps


def test_it_may_be_set_at_each_step_of_being_set_and_waited_for() -> None:
    for call in (SignalEvent.set, lambda event: event.wait(60.0)):
        event = SignalEvent()
        assert with_a_signal_at_each_step(event, lambda call=call, event=event: call(event)) > 1
        assert event.is_set()


def test_a_wait_ends_when_it_is_set_and_when_its_time_is_over() -> None:
    event = SignalEvent()
    assert not event.wait(0.0)
    assert not event.wait(0.001)
    setting = threading.Thread(target=event.set)
    setting.start()
    assert event.wait()
    setting.join()
    assert event.wait(0.0)
    with pytest.raises(NotImplementedError):
        event.clear()


@pytest.mark.slow
def test_a_signal_at_the_very_end_of_a_process_harms_nothing() -> None:
    """What is left to be done at exit is done, and nothing is written."""
    ending = (
        "import atexit, os, signal\n"
        "def late():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('done', flush=True)\n"
        "atexit.register(late)\n"
        "from pipeline.signal_event import SignalEvent\n"
        "stop = SignalEvent()\n"
        "signal.signal(signal.SIGTERM, lambda *_: stop.set())\n"
    )
    done = subprocess.run([sys.executable, "-c", ending], capture_output=True, text=True, cwd=TOP)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")

"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# For what a machine that does other things as well may be slow to do: start a process, choose a
# leader, let a group settle. What holds sooner is not waited for any longer.
WAIT_S = 120.0


def wait_until(
    predicate: Callable[[], T | None], timeout_s: float, what: str, *, interval_s: float = 0.02
) -> T:
    """The predicate's first true answer; AssertionError naming ``what`` when the time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:g} s still not: {what} (last: {answer!r})")
        time.sleep(interval_s)

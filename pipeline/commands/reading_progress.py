"""How far a command has read of a topic, said while it is long about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

PROGRESS_S = 2.0


def saying_progress(now_s: Callable[[], float] = time.monotonic) -> Callable[[str, int], None]:
    """Lines on the error stream, one every two seconds: what is read, and how many records."""
    next_s = now_s() + PROGRESS_S

    def say(what: str, done: int) -> None:
        nonlocal next_s
        # The clock is looked at once in a thousand records.
        if done % 1_000 or now_s() < next_s:
            return
        next_s = now_s() + PROGRESS_S
        print(f"{done:,} records of {what} read ...", file=sys.stderr, flush=True)

    return say

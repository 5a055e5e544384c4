"""Resident memory over time and CPU time, by process, from /proc (Linux)."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.chaos.overload.scenario import MIB

LOOK_EVERY_S = 0.5
# A process that has all it needs still moves by so much: the allocator, the client's queues.
GROWTH_SHARE, GROWTH_MIB = 0.25, 48.0

Series = list[tuple[float, float]]


def resident_mib(pid: int) -> float | None:
    """None when there is no such process."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def peak_mib(pid: int) -> float:
    """The most that a process has held so far; 0 when there is no such process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max(
        (int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), default=0.0
    )


def cpu_s(pid: int) -> float:
    """User and system time, to a second; 0 when there is no such process."""
    try:
        # The command name may hold blanks and parentheses: count from the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) // os.sysconf("SC_CLK_TCK")


class Memory:
    """A thread that looks twice a second; ``pids`` says whose, by name. A context manager."""

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="overload-memory", daemon=True)
        self.series: dict[str, Series] = defaultdict(list)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            for name, pid in self._pids().items():
                mib = resident_mib(pid)
                if mib is not None:
                    self.series[name].append((time.monotonic(), mib))

    def between(self, name: str, begin_s: float, end_s: float) -> list[float]:
        return [mib for at_s, mib in list(self.series[name]) if begin_s <= at_s <= end_s]


def is_flat(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the most that was held did not grow any more."""
    return (
        bool(before)
        and bool(after)
        and max(after) <= max(before) + max(GROWTH_MIB, GROWTH_SHARE * max(before))
    )

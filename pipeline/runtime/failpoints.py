"""Named places where a test may kill this process.

Production code calls ``hit("payments.produced")`` between the steps of a transaction. Without the
environment variable ``PAYSTREAM_FAILPOINTS`` that is one comparison. With it, for example
``payments.begun=2@5``, the process kills itself with SIGKILL at the fifth passage of the named
point, two times in all: kills are counted across restarts in the directory named by
``PAYSTREAM_FAILPOINTS_DIR``, where a test can read how often each point fired.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Protocol

POINTS: tuple[str, ...] = (
    "payments.taken",
    "payments.processed",
    "payments.begun",
    "payments.half_produced",
    "payments.produced",
    "payments.offsets_sent",
    "payments.committed",
    "payments.cache_applied",
    "payments.restoring",
    "gateway.taken",
    "gateway.called",
    "gateway.begun",
    "gateway.half_produced",
    "gateway.produced",
    "gateway.offsets_sent",
    "gateway.committed",
    "ledger.batch_taken",
    "ledger.entries_checked",
    "ledger.entries_inserted",
    "ledger.offsets_set",
    "ledger.committed",
)
# Of the worker that runs only where risk is assessed: the steps of payments.
RISK_POINTS: tuple[str, ...] = tuple(
    point.replace("payments.", "risk.") for point in POINTS if point.startswith("payments.")
)
# Of the worker that runs only where merchants are told.
NOTIFICATION_POINTS: tuple[str, ...] = ("notifications.taken", "notifications.delivered")
# Not of a worker but of a command, which nobody starts again.
COMMAND_POINTS: tuple[str, ...] = (
    "redrive.begun",
    "redrive.half_produced",
    "redrive.produced",
    "redrive.committed",
)


class Watcher(Protocol):
    """Told of every passage."""

    def hit(self, name: str) -> None: ...


class _Armed:
    """The failpoints of this process, parsed once."""

    def __init__(self, spec: str, directory: str) -> None:
        self.directory = Path(directory)
        self.rules: dict[str, tuple[int, int]] = {}
        self.passages: dict[str, int] = {}
        for part in filter(None, (p.strip() for p in spec.split(","))):
            name, _, rule = part.partition("=")
            times, _, every = (rule or "1").partition("@")
            points = (*POINTS, *RISK_POINTS, *NOTIFICATION_POINTS, *COMMAND_POINTS)
            if name not in points:
                known = ", ".join(points)
                raise ValueError(f"unknown failpoint {name!r}; known: {known}")
            self.rules[name] = (int(times), int(every or "1"))

    def hit(self, name: str) -> None:
        rule = self.rules.get(name)
        if rule is None:
            return
        times, every = rule
        self.passages[name] = passages = self.passages.get(name, 0) + 1
        if passages < every:
            return
        for n in range(times):
            try:
                # O_EXCL: of several workers at the same point, one dies for each count.
                fd = os.open(self.directory / f"{name}.{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                continue
            os.write(fd, str(os.getpid()).encode())
            os.fsync(fd)
            os.close(fd)
            os.kill(os.getpid(), signal.SIGKILL)


_spec = os.environ.get("PAYSTREAM_FAILPOINTS", "")
_armed: _Armed | Watcher | None = (
    _Armed(_spec, os.environ.get("PAYSTREAM_FAILPOINTS_DIR", ".")) if _spec else None
)


def hit(name: str) -> None:
    """Die here if a test asked for it."""
    if _armed is not None:
        _armed.hit(name)


def watch(watcher: Watcher | None) -> None:
    """Tell every passage in this process to ``watcher`` from now on: a simulation ends its workers
    there by itself."""
    global _armed
    _armed = watcher


def fired(directory: Path) -> dict[str, int]:
    """How often each point has killed a process, read from a test's directory."""
    counts: dict[str, int] = {}
    for path in directory.iterdir():
        name, _, _ = path.name.rpartition(".")
        counts[name] = counts.get(name, 0) + 1
    return counts

"""Finds processes that a test run started and did not end, wherever they hang in the tree."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

# Set in the environment of the run, so every process started by it carries it, also one that left
# its parent's session or whose parent has gone.
MARK = "PAYSTREAM_TEST_RUN"
# Python's own helper lives until the interpreter that needed it ends.
ENDS_BY_ITSELF = "multiprocessing.resource_tracker"


@dataclass(frozen=True)
class LeftOver:
    pid: int
    command: str


def left_over_processes(mark: str, grace_s: float) -> list[LeftOver]:
    """Those of the marked run that still live after the grace time (Linux; elsewhere none).

    One that is just being started shows no environment for a moment, so only two looks in which
    none was seen say that there is none.
    """
    deadline = time.monotonic() + grace_s
    seen_none = False
    while True:
        found = _marked(f"{MARK}={mark}".encode())
        if (not found and seen_none) or (found and time.monotonic() > deadline):
            return found
        seen_none = not found
        time.sleep(0.05)


def end_left_over(found: list[LeftOver]) -> None:
    for process in found:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def lives(pid: int) -> bool:
    """Whether that process runs; one that ended and waits to be reaped does not (Linux)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def _marked(mark: bytes) -> list[LeftOver]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        try:
            if mark not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue
        if command and ENDS_BY_ITSELF not in command:
            found.append(LeftOver(int(folder.name), command[:200]))
    return found

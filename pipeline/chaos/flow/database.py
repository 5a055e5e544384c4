"""The ledger's PostgreSQL, as something that can be killed and frozen."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.embedded.postgres import new_database, start_postgres, stop_postgres
from pipeline.errors import UserError

# After a kill the sessions of the old server end within moments; it does not start before.
START_TRIES_S = 60.0


class Database:
    """One server with one database, over a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pid = 0
        self._frozen: list[int] = []
        self.url = ""

    def start(self) -> None:
        """Start it, or again; waits until it answers."""
        deadline_s = time.monotonic() + START_TRIES_S
        while True:
            try:
                handle = start_postgres(self._folder, die_with_parent=True)
                break
            except UserError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.2)
        self._pid = handle.pid
        if not self.url:
            self.url = new_database(handle, "ledger")

    def stop(self) -> None:
        self.thaw()
        stop_postgres(self._folder)

    def kill(self) -> None:
        """SIGKILL of the server: its sessions notice by themselves and end."""
        _send(self._pid, signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP of the server and of each session: nothing answers, no connection is cut."""
        _send(self._pid, signal.SIGSTOP)
        self._frozen = [self._pid, *_children(self._pid)]
        for pid in self._frozen[1:]:
            _send(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in reversed(self._frozen):
            _send(pid, signal.SIGCONT)
        self._frozen = []


def _send(pid: int, number: int) -> None:
    if pid > 0:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _children(pid: int) -> list[int]:
    return [child for child, parent in _parents() if parent == pid]


def _parents() -> Iterator[tuple[int, int]]:
    """Each process with its parent (Linux)."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = (folder / "stat").read_text(encoding="utf-8")
            yield int(folder.name), int(stat.rpartition(")")[2].split()[1])

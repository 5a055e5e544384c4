"""How a long download shows itself: a bar for a person at a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

# Often enough that a log shows life, seldom enough that a slow line does not fill it.
LINE_INTERVAL_S = 5.0


class Progress(Protocol):
    def advance(self, count_bytes: int) -> None: ...


@contextmanager
def progress_shown(
    title: str, size_bytes: int, on_line: Callable[[str], None] | None = None
) -> Iterator[Progress]:
    """A bar when stderr is a terminal; else lines to ``on_line`` (stderr when there is none)."""
    if sys.stderr.isatty():
        with _bar(title, size_bytes) as bar:
            yield bar
    else:
        lines = _Lines(title, size_bytes, on_line or _to_stderr)
        lines.say(title)
        yield lines


class _Lines:
    def __init__(self, title: str, size_bytes: int, say: Callable[[str], None]) -> None:
        self.say = say
        self._title = title
        self._size_bytes = size_bytes
        self._done_bytes = 0
        self._next_line_s = time.monotonic() + LINE_INTERVAL_S
        self._lock = threading.Lock()

    def advance(self, count_bytes: int) -> None:
        with self._lock:
            self._done_bytes += count_bytes
            now_s = time.monotonic()
            due = now_s >= self._next_line_s
            if due:
                self._next_line_s = now_s + LINE_INTERVAL_S
            percent = min(100, 100 * self._done_bytes // max(1, self._size_bytes))
        if due:
            self.say(f"{self._title}: {percent} %")


@contextmanager
def _bar(title: str, size_bytes: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with RichProgress(
        *columns, TransferSpeedColumn(), console=Console(stderr=True), transient=True
    ) as shown:
        task = shown.add_task(title, total=size_bytes)

        class Bar:
            def advance(self, count_bytes: int) -> None:
                shown.advance(task, count_bytes)

        yield Bar()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

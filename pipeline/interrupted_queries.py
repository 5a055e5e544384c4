"""Ctrl-C ends a query of SQLite while it runs.

Python hears of a signal between two steps of its own, and a query of large books is one step of
minutes. So a thread hears of it as well, by the byte that a signal writes into a socket, and ends
the queries that run. PostgreSQL's driver looks for signals by itself while it waits.
"""

from __future__ import annotations

import signal
import socket
import sqlite3
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

# SIGHUP is not known everywhere.
_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
# Python hears of a signal at once where no query runs. Where one does, it may only be about to
# begin, which cannot be ended yet.
_AGAIN_S: Final = 0.05
# Held by a handler as well, which may come while its own thread holds it.
_LOCK: Final = threading.RLock()
_OPEN: Final[weakref.WeakSet[InterruptibleConnection]] = weakref.WeakSet()


class InterruptibleConnection(sqlite3.Connection):
    """A ``factory`` of connections whose queries are ended."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        with _LOCK:
            _OPEN.add(self)


@contextmanager
def heard_in_queries() -> Iterator[None]:
    """Meanwhile a signal ends the queries that run, where its handler leaves what it interrupts:
    the default of SIGINT, or one that was set. What it leads to is a KeyboardInterrupt, whatever
    was made of the query's own error. Of the main thread, which alone hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    if before != -1:
        # Somebody listens already: an outer one of these, whose thread ends our queries as well.
        signal.set_wakeup_fd(before)
        reader.close()
        writer.close()
        yield
        return
    heard = threading.Event()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    left = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number, handler in left.items():
        signal.signal(number, _telling(heard, handler))
    listener = threading.Thread(target=_end_queries, args=(reader, left, heard), daemon=True)
    listener.start()
    try:
        yield
    except Exception as error:
        if heard.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in left.items():
            signal.signal(number, handler)
        writer.close()
        listener.join()
        reader.close()


def _telling(
    heard: threading.Event, handler: Callable[[int, FrameType | None], Any]
) -> Callable[[int, FrameType | None], Any]:
    def hear(number: int, frame: FrameType | None) -> None:
        with _LOCK:
            heard.set()
        handler(number, frame)

    return hear


def _end_queries(reader: socket.socket, numbers: Collection[int], heard: threading.Event) -> None:
    """Until Python has heard of it; from then on queries put things in order."""
    while came := reader.recv(1):
        while came[0] in numbers and not heard.wait(_AGAIN_S):
            with _LOCK:
                for connection in () if heard.is_set() else list(_OPEN):
                    with suppress(sqlite3.ProgrammingError):
                        connection.interrupt()

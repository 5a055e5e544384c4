"""An event that the handler of a signal may set."""

from __future__ import annotations

import os
import select
import threading
import weakref


class SignalEvent(threading.Event):
    """An Event that can be set while it is being set, or waited for, by the same thread.

    A handler runs in the main thread, between any two steps of it. The lock inside a plain Event is
    not reentrant: a second signal in the middle of ``set``, or the first one in the middle of
    ``wait``, stops the main thread for ever. The kernel sends a process several SIGTERMs at once
    where the supervisor that it is bound to is killed. Here there is no lock: a flag for who asks,
    and a pipe, which nobody reads, for who waits. Once set it stays so.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked = False
        self._read_end, self._write_end = os.pipe()
        # Not at the interpreter's end: a signal may come after that.
        weakref.finalize(self, _close, self._read_end, self._write_end).atexit = False

    def is_set(self) -> bool:
        return self._asked

    def set(self) -> None:
        if not self._asked:
            self._asked = True
            os.write(self._write_end, b"\0")

    def wait(self, timeout: float | None = None) -> bool:
        """True once it is set; False when ``timeout`` seconds have passed without."""
        if not self._asked:
            waiting = select.poll()
            waiting.register(self._read_end, select.POLLIN)
            waiting.poll(None if timeout is None else max(0.0, timeout) * 1000)
        return self._asked

    def clear(self) -> None:
        raise NotImplementedError("an end that was asked for is not taken back")


def _close(*descriptors: int) -> None:
    for each in descriptors:
        os.close(each)

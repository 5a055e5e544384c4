"""Ctrl-C, SIGTERM and a closed terminal: heard at any moment, once."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Self

from pipeline.signal_event import SignalEvent

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """From now on the first of these signals ends the command in good order.

    Until ``ready`` is called it raises SystemExit(128 + signal) wherever the command is, so that a
    start or a long run is left at once and what was started is stopped on the way out; after that
    it sets ``asked``. Later ones are ignored: a terminal and a wrapper such as ``timeout`` may each
    send one, and the second must not cut the clean-up short.

    As a context manager it ends with that exit code even where the SystemExit was raised inside a
    C extension that turned it into an error of its own (the Kafka client makes it a TypeError).
    """

    def __init__(self) -> None:
        self.asked = SignalEvent()
        self._is_ready = False
        self._exit_code: int | None = None
        for number in SIGNALS:
            # What nohup ignores stays ignored. SIGINT does not: a script's background job begins
            # with it ignored, and whoever sends it one means it.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._hear)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._exit_code is not None and isinstance(error, Exception):
            raise SystemExit(self._exit_code) from error

    def ready(self) -> None:
        """The command looks at ``asked`` by itself from here on."""
        self._is_ready = True

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.asked.is_set():
            return
        self.asked.set()
        if self._is_ready:
            return
        # Not by print: the signal may have come in the middle of one.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\nstopping\n")
        self._exit_code = 128 + number
        sys.exit(self._exit_code)

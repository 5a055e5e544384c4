"""Work in a process of its own: its memory is nobody else's, and it has a core for itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress


@contextmanager
def own_process() -> Iterator[ProcessPoolExecutor]:
    """An executor of one new process. Whoever leaves by an error or a Ctrl-C does not wait for what
    is still worked on there: the process is ended."""
    context = multiprocessing.get_context("spawn")
    # A terminal sends Ctrl-C to every process; what follows of it is decided here.
    ignore = signal.SIGINT, signal.SIG_IGN
    with ProcessPoolExecutor(1, context, initializer=signal.signal, initargs=ignore) as pool:
        pid = pool.submit(os.getpid).result()
        try:
            yield pool
        except BaseException:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise

"""Commits one transaction in the background while the next is prepared in memory.

The thread makes a lane of two steps and no more: nothing of transaction N+1 is produced before the
outcome of N is known, because the main loop hands over N+1 only after taking that outcome.
"""

from __future__ import annotations

import queue
from typing import Any

from pipeline.domain.invariant import invariant
from pipeline.runtime.kafka_errors import LaneHung
from pipeline.runtime.lane import Lane
from pipeline.runtime.surroundings import REAL, Surroundings
from pipeline.runtime.work import Outcome, Work

# Each call of a transaction has a time-out of its own, and all of them together, with a new
# producer and the question how the old one's ended, stay below this.
TRANSACTION_S_MAX = 240.0
# A call that is overdue is looked at again after this: a process that was frozen wakes with all its
# clocks run out, and its client comes back in a moment.
OVERDUE_S = 5.0


class CommitThread:
    """Runs ``lane.run`` for one Work at a time; its errors surface in ``poll`` or ``wait``.

    So does LaneHung, when a call of the client has not come back in the time that it was given, or
    the transaction has not ended in any that it may take: the thread cannot be helped, and a worker
    that waited on would hold its partitions for ever.
    """

    def __init__(self, lane: Lane, surroundings: Surroundings = REAL) -> None:
        self._lane = lane
        self._work: queue.SimpleQueue[Work | None] = surroundings.queue()
        self._done: queue.SimpleQueue[Outcome | BaseException] = surroundings.queue()
        self._busy = False
        self._monotonic_s = surroundings.monotonic_s
        self._submitted_s = 0.0
        self._overdue: tuple[str, float] | None = None
        self._thread = surroundings.thread(target=self._loop, name="commit", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a transaction is under way or its outcome has not been taken yet."""
        return self._busy

    def submit(self, work: Work) -> None:
        invariant(not self._busy, "one transaction at a time in a lane")
        self._busy = True
        self._submitted_s = self._monotonic_s()
        self._work.put(work)

    def poll(self) -> Outcome | None:
        """The outcome of the transaction under way, if it is known by now."""
        return self._take(block=False, timeout_s=0)

    def wait(self, timeout_s: float) -> Outcome | None:
        """The outcome, waiting for it; None when none came in time or nothing is under way."""
        return self._take(block=True, timeout_s=timeout_s) if self._busy else None

    def close(self, timeout_s: float = 5.0) -> None:
        self._work.put(None)
        self._thread.join(timeout_s)

    def _take(self, *, block: bool, timeout_s: float) -> Outcome | None:
        if not self._busy:
            return None
        try:
            done: Any = self._done.get(block, timeout_s) if block else self._done.get_nowait()
        except queue.Empty:
            self._require_progress()
            return None
        self._busy = False
        if isinstance(done, BaseException):
            raise done
        outcome: Outcome = done
        return outcome

    def _require_progress(self) -> None:
        now_s = self._monotonic_s()
        open_s = now_s - self._submitted_s
        overdue = self._lane.calls.overdue()
        if overdue is None:
            self._overdue = None
        elif self._overdue is None or self._overdue[0] != overdue:
            self._overdue = (overdue, now_s)
        elif now_s - self._overdue[1] > OVERDUE_S:
            raise LaneHung(f"{overdue} does not come back, in a transaction of {open_s:.0f} s")
        if open_s > TRANSACTION_S_MAX:
            raise LaneHung(f"a transaction has not ended for {open_s:.0f} s")

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                self._done.put(self._lane.run(work))
            except BaseException as error:  # handed to the main loop, which ends the process
                self._done.put(error)

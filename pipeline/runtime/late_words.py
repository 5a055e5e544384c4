"""What calls heard that had been given up, on its way into a transaction.

It answers no request and moves no offset, so it goes with the worker's next transaction, whichever
requests that is about. In a flow that stands still there may be none, and a worker that stops has
no other: then it goes in one of its own. That commits the offset of an input as it is: it moves
nothing, and fences a worker that the group knows no more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pipeline.runtime.work import Outcome, Outgoing

# Words that wait; the oldest go first. Notices and reports tell as well.
WORDS_MAX: Final = 10_000
# How long they wait for a transaction of requests, which costs nothing more; an inquiry's shortest
# tier is as long, so whoever waits for the word does not wait much longer than for a question.
WAIT_S_MAX: Final = 5.0


class LateWords:
    """Those of one worker: kept until the transaction that tells them is known to be committed."""

    def __init__(self, monotonic_s: Callable[[], float], words_max: int = WORDS_MAX) -> None:
        self._monotonic_s = monotonic_s
        self._words_max = words_max
        self._waiting: list[Outgoing] = []
        self._told: list[Outgoing] = []
        self._since_s = 0.0

    def __len__(self) -> int:
        """How many wait for a transaction."""
        return len(self._waiting)

    @property
    def told(self) -> int:
        """How many are the last outputs of the transaction under way."""
        return len(self._told)

    @property
    def are_due(self) -> bool:
        """Whether they have waited long enough for the transaction of others."""
        return bool(self._waiting) and self._monotonic_s() - self._since_s >= WAIT_S_MAX

    def add(self, word: Outgoing) -> None:
        if not self._waiting:
            self._since_s = self._monotonic_s()
        self._waiting.append(word)
        self._keep_newest()

    def tell(self) -> list[Outgoing]:
        """All that wait, as outputs of the transaction that is handed over now."""
        self._told, self._waiting = self._waiting, []
        return self._told

    def refused(self) -> None:
        """One of them is larger than its topic takes: none of these is told."""
        self._told = []

    def ended(self, outcome: Outcome) -> None:
        """The transaction under way has ended; aborted, its words wait for the next one."""
        told, self._told = self._told, []
        if outcome is Outcome.ABORTED and told:
            self._since_s = self._monotonic_s()
            self._waiting[:0] = told
            self._keep_newest()

    def _keep_newest(self) -> None:
        del self._waiting[: -self._words_max]

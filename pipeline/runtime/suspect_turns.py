"""Whose turn it is while a worker has suspects: theirs, or that of everything else.

By turns alone a partition with suspects would hardly move in a backlog: a piece of them may be one
record, a transaction of the others is thousands. So each side has half of the time.
"""

from __future__ import annotations


class SuspectTurns:
    """Told of what is committed while anything is held, and of a side that has nothing to do."""

    def __init__(self) -> None:
        self.suspects_next = True
        # What the others have had of the time more than the suspects.
        self._owed_s = 0.0
        self._ended_s = 0.0

    def aborted(self, alone: bool) -> None:
        """Everything is read again, the other side first: whatever is wrong may be of this one."""
        self.suspects_next, self._owed_s = not alone, 0.0

    def committed(self, alone: bool, opened_s: float, now_s: float) -> None:
        """``alone``: it was of suspects. What was prepared while another one committed counts from
        that one's end."""
        spent_s = now_s - max(opened_s, self._ended_s)
        self._ended_s = now_s
        self._owed_s += -spent_s if alone else spent_s
        self.suspects_next = self._owed_s > 0 if alone else self._owed_s >= 0

    def no_suspect_now(self) -> None:
        """None is there, or none may be handled yet: what comes later has no claim to this time."""
        self.suspects_next, self._owed_s = False, 0.0

    def nothing_else(self) -> None:
        """The same of the others."""
        self.suspects_next, self._owed_s = True, 0.0

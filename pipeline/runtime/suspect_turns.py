"""Whose turn it is while a worker has suspects: theirs, or that of everything else.

By turns alone a partition with suspects would hardly move in a backlog: a piece of them may be one
record, a transaction of the others is thousands. So each side has half of the time, and one
transaction at the least.
"""

from __future__ import annotations


class SuspectTurns:
    """Told of what is committed while anything is held, and of a side that has nothing to do."""

    def __init__(self) -> None:
        self.suspects_next = True
        # Time that the others have had and the suspects have not.
        self._owed_s = 0.0
        self._ended_s = 0.0

    def begin_anew(self) -> None:
        """Everything is read again: whoever comes first, and nobody owes anything."""
        self.suspects_next, self._owed_s = True, 0.0

    def committed(self, alone: bool, opened_s: float, now_s: float) -> None:
        """``alone``: it was of suspects. What was prepared while another one committed counts from
        that one's end."""
        spent_s = now_s - max(opened_s, self._ended_s)
        self._ended_s = now_s
        self._owed_s = max(0.0, self._owed_s - spent_s) if alone else self._owed_s + spent_s
        self.suspects_next = not alone or self._owed_s > 0

    def no_suspect_now(self) -> None:
        """None is there, or none may be handled yet: what comes later has no claim to this time."""
        self.suspects_next, self._owed_s = False, 0.0

    def nothing_else(self) -> None:
        self.suspects_next = True

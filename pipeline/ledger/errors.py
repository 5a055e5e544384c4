"""What can keep a batch out of the books, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import UserError


class LedgerUnavailable(Exception):
    """The database is away, busy or full: nothing was booked, the same call may succeed later.

    After a connection lost during the commit the batch may be booked all the same; the next try
    then finds the offset moved and starts from what the database says.
    """


class OffsetMoved(Exception):
    """Another writer has booked this partition further: nothing of the batch was booked."""

    def __init__(self, partition: int, expected: int) -> None:
        super().__init__(f"the stored offset of partition {partition} is not {expected} any more")
        self.partition = partition
        self.expected = expected


@dataclass(frozen=True)
class Conflict:
    """A settlement whose id is booked already with other content."""

    partition: int
    offset: int
    settlement_id: str
    detail: str


class SettlementConflicts(Exception):
    """Some settlements contradict what is booked: nothing of the batch was booked."""

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        super().__init__(f"{len(conflicts)} settlements contradict what is booked")
        self.conflicts = tuple(conflicts)


class SourceChanged(UserError):
    """The stored offsets belong to another cluster or to an earlier topic of the same name."""

"""What readers of committed records see, held against what the loop was told of its transactions.

Knows nothing of how the loop works: records in, findings out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from pipeline.chaos.kip890.script import PARTS


class End(Enum):
    """What the loop knows of an attempt."""

    COMMITTED = "committed"
    # Aborted, or given up before a commit was asked for: no reader may ever see it.
    NOT_COMMITTED = "not committed"
    # A commit was asked for and no answer came.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Told:
    """One attempt at one input."""

    input: int
    attempt: int
    end: End


@dataclass(frozen=True)
class Written:
    """One record, as it names itself."""

    input: int
    attempt: int
    part: int

    def encode(self) -> bytes:
        return b"%d.%d.%d" % (self.input, self.attempt, self.part)

    @classmethod
    def decode(cls, value: bytes) -> Written:
        return cls(*(int(number) for number in value.split(b".")))


@dataclass
class Findings:
    """How often each was found, by transaction or input; ``examples`` has a few in words."""

    lost: int = 0
    torn: int = 0
    aborted_visible: int = 0
    doubled: int = 0
    offsets_wrong: int = 0
    # No damage: commits that were asked for and that no answer came to.
    unknown: int = 0
    examples: tuple[str, ...] = ()

    @property
    def broken(self) -> bool:
        return any((self.lost, self.torn, self.aborted_visible, self.doubled, self.offsets_wrong))


def judge(told: Sequence[Told], visible: Iterable[Written], committed_offset: int) -> Findings:
    """``committed_offset``: where the group would begin; every input before it counts as done."""
    seen = Counter(visible)
    found = Findings()
    words: dict[str, str] = {}
    by_attempt: dict[int, list[Written]] = {}
    for record in seen:
        by_attempt.setdefault(record.attempt, []).append(record)
    # Inputs of which an attempt has said already what is missing.
    named: set[int] = set()
    for one in told:
        found.unknown += one.end is End.UNKNOWN
        parts = len(by_attempt.get(one.attempt, ()))
        where = f"input {one.input}, attempt {one.attempt}, told {one.end.value}: "
        if 0 < parts < PARTS:
            found.torn += 1
            named.add(one.input)
            words.setdefault("torn", f"{where}{parts} of {PARTS} records visible")
        if parts and one.end is End.NOT_COMMITTED:
            found.aborted_visible += 1
            words.setdefault("aborted visible", f"{where}{parts} records visible")
        if not parts and one.end is End.COMMITTED:
            found.lost += 1
            named.add(one.input)
            words.setdefault("lost", f"{where}no record visible")
    per_part = Counter((record.input, record.part) for record in seen.elements())
    for number in sorted({i for (i, _), count in per_part.items() if count > 1}):
        found.doubled += 1
        words.setdefault("doubled", f"input {number}: its records are visible more than once")
    for number in range(committed_offset):
        parts = sum((number, part) in per_part for part in range(PARTS))
        if parts < PARTS and number not in named:
            found.lost += 1
            words.setdefault("lost", f"input {number}, done: {parts} of {PARTS} records visible")
    done = {one.input for one in told if one.end is End.COMMITTED}
    if committed_offset != (max(done) + 1 if done else 0):
        found.offsets_wrong = 1
        words["offsets"] = (
            f"the group would begin at {committed_offset}, not {max(done, default=-1) + 1}"
        )
    found.examples = tuple(words.values())
    return found

"""What was copied against what there was to copy: none missing, none twice, in order. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Copied:
    """Of the messages that one reader saw. ``disorder``: not in the order of the input."""

    missing: int
    foreign: int
    doubled: int
    disorder: bool

    @property
    def exact(self) -> bool:
        return not (self.missing or self.foreign or self.doubled or self.disorder)


def compare(source: Sequence[int], seen: Sequence[int], *, check_order: bool) -> Copied:
    """``source`` and ``seen`` as they lie in their topics; their order counts if asked for, which
    only topics of one partition have."""
    there, wanted = Counter(seen), set(source)
    return Copied(
        missing=len(wanted - there.keys()),
        foreign=len(there.keys() - wanted),
        doubled=sum(times - 1 for times in there.values()),
        disorder=check_order and list(seen) != list(source),
    )

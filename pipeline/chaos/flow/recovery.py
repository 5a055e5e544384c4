"""How long a fault was felt, by samples of how far each step has come in each partition. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# A step of a payment's way and a partition.
Place = tuple[str, int]


class Sample(NamedTuple):
    """``reached``: the offset of each place that answered. It was so at some moment between
    ``asked_s`` and ``heard_s``."""

    asked_s: float
    heard_s: float
    reached: dict[Place, int]


@dataclass(frozen=True)
class Felt:
    """``recovered_s``: from the fault's end until every step has moved in every partition, None if
    it never has. ``still_s``: the longest that any of them stood from the fault's begin until then,
    and ``where``.
    """

    recovered_s: float | None
    still_s: float
    where: str = ""


def felt(samples: Sequence[Sample], begun_s: float, ended_s: float) -> Felt:
    """Progress counts from what was seen *after* the end: what moved before it is no recovery."""
    after = [sample for sample in samples if sample.asked_s >= ended_s]
    places = {place for sample in samples for place in sample.reached}
    first: dict[Place, int] = {}
    moved: set[Place] = set()
    recovered_at_s = None
    for sample in after:
        for place, offset in sample.reached.items():
            if offset > first.setdefault(place, offset):
                moved.add(place)
        if places and moved == places:
            recovered_at_s = sample.heard_s
            break
    until_s = recovered_at_s if recovered_at_s is not None else math.inf
    # With the one before, which tells whether a place still moved after the begin.
    around = [s for s in samples if s.heard_s < begun_s][-1:]
    around += [s for s in samples if s.heard_s >= begun_s and s.asked_s <= until_s]
    still = ((_longest_still(around, place, begun_s), place) for place in places)
    still_s, (step, partition) = max(still, default=(0.0, ("", 0)))
    recovered_s = None if recovered_at_s is None else recovered_at_s - ended_s
    return Felt(recovered_s, still_s, f"{step}[{partition}]" if step else "")


def _longest_still(samples: Sequence[Sample], place: Place, begun_s: float) -> float:
    longest, since_s, last = 0.0, begun_s, -1
    for sample in samples:
        offset = sample.reached.get(place)
        if offset is not None and offset > last:
            if last >= 0:
                longest = max(longest, sample.heard_s - since_s)
            since_s, last = max(since_s, sample.asked_s), offset
    if samples:
        longest = max(longest, samples[-1].heard_s - since_s)
    return longest


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank; 0 of nothing."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else 0.0

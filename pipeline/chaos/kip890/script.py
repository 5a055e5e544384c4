"""What a loop is made to go through: which transactions it aborts, and what happens to their ends.

Pure: the same seed gives the same script.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.chaos import faults
from pipeline.chaos.faults import Fault, Lost
from pipeline.chaos.wire import Api

# Each input becomes this many records, one in each partition of the output.
PARTS = 2


@dataclass(frozen=True)
class Step:
    """One transaction: whether its end is asked to be a commit, and what happens to that EndTxn."""

    commit: bool
    fault: Fault | None = None


# Of the first transaction of each pair the EndTxn is late: its client gives it up, sends another
# and is told that all is well. In the second one it lands.
PAIRS = {
    # The late abort undoes what was written; the offsets, sent after it, are committed.
    "lost": (Step(False, faults.late(Api.PRODUCE, PARTS)), Step(True)),
    # The same, half way through the records.
    "torn": (Step(False, faults.late(Api.PRODUCE, 1)), Step(True)),
    # The late commit makes visible what is being thrown away, and will be done again.
    "aborted visible": (Step(True, faults.late(Api.PRODUCE, PARTS)), Step(False)),
}

# Where a late copy may land: after these requests of the next transaction.
LANDINGS = (
    (Api.ADD_PARTITIONS_TO_TXN, 1),
    (Api.PRODUCE, 1),
    (Api.PRODUCE, PARTS),
    (Api.ADD_OFFSETS_TO_TXN, 1),
    (Api.TXN_OFFSET_COMMIT, 1),
)
_ABORTED = 0.3
# A time-out takes its time (a second here), a cut connection takes none.
_SILENT = 0.15
_DOUBLED = 0.15
_ORIGINAL = 0.6
_UNHARMED_EVERY = 10


def pairs(rounds: int) -> Iterator[Step]:
    """Every pair so many times, with a transaction between that nothing happens to."""
    for _ in range(rounds):
        for first, second in PAIRS.values():
            yield first
            yield second
            yield Step(True)


def many(count: int, seed: int) -> Iterator[Step]:
    """``count`` ends that are injured, in a row: each transaction is the one that the end before
    lands in. A few are left alone, so that a loop which cries at every end would be found out."""
    draw = random.Random(seed)
    for number in range(count):
        yield Step(draw.random() >= _ABORTED, _one(draw))
        if number % _UNHARMED_EVERY == _UNHARMED_EVERY - 1:
            yield Step(True)


def _one(draw: random.Random) -> Fault:
    """An EndTxn whose answer is lost or times out, and that arrives late or twice."""
    silently = draw.random() < _SILENT
    if draw.random() < _DOUBLED:
        return faults.double(lost=Lost.ANSWER, silently=silently)
    # Either the request itself is late, or the broker has done it and gets it once more.
    lost = Lost.REQUEST if draw.random() < _ORIGINAL else Lost.ANSWER
    after, nth = draw.choice(LANDINGS)
    return faults.late(after, nth, lost=lost, silently=silently)

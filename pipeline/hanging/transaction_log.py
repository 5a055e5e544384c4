"""What the transaction coordinators wrote down: one record for each step of a transaction.

The format is Kafka's own (``TransactionLogKey``, ``TransactionLogValue``). The log is compacted by
transactional id, so an old step may be gone; the newest of each id is always there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from pipeline.kafka_wire import Malformed, Reader

TOPIC = "__transaction_state"
PartitionName = tuple[str, int]


class State(IntEnum):
    """The coordinator's states of a transaction, as it writes them."""

    EMPTY = 0
    ONGOING = 1
    PREPARE_COMMIT = 2
    PREPARE_ABORT = 3
    COMPLETE_COMMIT = 4
    COMPLETE_ABORT = 5
    DEAD = 6
    PREPARE_EPOCH_FENCE = 7


# The coordinator goes on to end what it has written in one of these, by itself.
UNENDED = (State.ONGOING, State.PREPARE_COMMIT, State.PREPARE_ABORT, State.PREPARE_EPOCH_FENCE)
# Between the brokers' clocks.
SKEW_MS = 1_000
DECISIONS = {State.PREPARE_COMMIT: True, State.PREPARE_ABORT: False}


@dataclass(frozen=True)
class Step:
    """One record of the log; ``partitions`` are those in the transaction at that step."""

    transactional_id: str
    producer_id: int
    epoch: int
    state: State
    partitions: frozenset[PartitionName]
    at_ms: int


@dataclass(frozen=True)
class OpenTransaction:
    """A producer's transaction that a partition has not seen the end of.

    ``first_offset``: of its first record there. ``last_ms``: when its last one was appended.
    """

    topic: str
    partition: int
    producer_id: int
    epoch: int
    coordinator_epoch: int
    first_offset: int
    last_ms: int

    @property
    def place(self) -> PartitionName:
        return self.topic, self.partition


def read_step(key: bytes | None, value: bytes | None) -> Step | None:
    """A record of the log; None for a tombstone and for kinds that a later Kafka may add."""
    if key is None or value is None or struct.unpack_from(">h", key)[0] != 0:
        return None
    transactional_id = Reader(key, 2).string() or ""
    reader = Reader(value)
    version = reader.i16()
    if version > 1:
        return None
    reader.flexible = version == 1
    producer_id, epoch = reader.i64(), reader.i16()
    reader.i32()  # the transaction's time-out
    state = _state(reader.i8())
    partitions = set()
    for _ in reader.array():
        topic = reader.string() or ""
        partitions |= {(topic, reader.i32()) for _ in reader.array()}
        reader.tags()
    return Step(transactional_id, producer_id, epoch, state, frozenset(partitions), reader.i64())


def _state(code: int) -> State:
    try:
        return State(code)
    except ValueError:
        raise Malformed(f"a transaction is in state {code}, which is not known here") from None


def is_claimed(found: OpenTransaction, steps: Sequence[Step]) -> bool:
    """Whether the coordinator's newest step says that it will end the transaction there itself."""
    return bool(steps) and steps[-1].state in UNENDED and found.place in steps[-1].partitions


def decision_of(found: OpenTransaction, steps: Sequence[Step]) -> bool | None:
    """What was decided of a hanging transaction: True for a commit; None if nobody can tell.

    ``steps`` are the producer's, in order. Each later transaction of the producer in the partition
    would have ended this one with its own marker, so it is the last that was decided there. The
    coordinator may raise the epoch with its decision, once for a time-out and once for KIP-890; and
    what came into the partition after the decision does not belong to it.
    """
    decided = [s for s in steps if s.state in DECISIONS and found.place in s.partitions]
    if not decided:
        return None
    last = decided[-1]
    if last.epoch - found.epoch not in (0, 1, 2) or found.last_ms > last.at_ms + SKEW_MS:
        return None
    return DECISIONS[last.state]

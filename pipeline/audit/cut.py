"""How far each part of the flow was seen: what makes judging a live flow sound.

A flow that runs is never seen at one instant. These rules take its parts in such an order that a
healthy flow never looks broken:

1. The gateways' books (up to their last entry then) and the ledger (one read transaction) first.
2. Then the groups' committed offsets.
3. Then the read_uncommitted ends of the topics, what is written last first: markers of dead letters
   and what people did or decided; dead letters; settlements, events and payments; payment
   requests; results and waits; orders, commands and notifications.
4. The topics are read as read_committed up to those ends, waiting for open transactions to end.
5. The payments group's committed offsets once more, now without those that are pending.
6. At last what the gateways' books have gained since.

From this follows:

* *No effect without its cause* (a settlement without an order) may be judged for every effect
  seen: the cause was written before it, and its end was taken later.
* *No cause without its effect* (an order without a payment) may be judged for inputs below the
  committed offset: that transaction had ended before the ends were taken, so all of its records
  lie below them. An input at or beyond the committed offset is on its way: pending, not broken.
* A payment is *settled* when none of its inputs (orders, commands, notifications, results, waits)
  lies at or beyond the committed offset. A transaction later than that would have one: inputs'
  ends are taken after outputs' ends. A timer may wait for days, so it does not count if it lies at
  or beyond the offset of step 5 as well: what was read holds nothing of it. Comparing outputs with
  each other (table, events, settlements: written in one transaction, but seen at different times)
  is done for settled payments only.
* A partition whose end could not be reached, because a transaction stayed open, is *blind*:
  none of its payments counts as settled.
* A redriven input names the offset of the input that it stands for, so it is known for what it is
  whether or not its letter and marker were seen. A marker that was seen has its letter and its
  redriven input below their ends: those were written before or with it, and their ends taken
  later. A letter without a marker is open, as far as was seen.
* What retention has deleted cannot be judged: nothing is missed from a topic for a payment that
  is older than the oldest record left in that partition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from topics.catalogue import Catalogue

RolePartition = tuple[str, int]

# The order in which ends are taken, effects before their causes, by the schema of their records.
# Dead letters, which have none, come before them, and what people did about those before all.
# Topics of other records are not judged.
_BY_HAND: tuple[str, ...] = ("audit-entry", "dead-letter-marker", "ledger-event")
_LAYERS: tuple[tuple[str, ...], ...] = (
    ("settlement", "payment-event", "payment"),
    ("payment-request", "risk-check"),
    ("gateway-result", "risk-result", "payment-due"),
    ("order", "payment-command", "gateway-notification"),
)
DEAD_LETTERS = "dead-letters"
# Notices that have no effect yet, of operations that nobody knows.
PARKED = "parked-notices"
# Judged, but not keyed by an order.
KEYED_OTHERWISE = frozenset({"dead-letter-markers", "ledger-events", "risk-checks"})
TIMER_ROLES = "payment-timer-"


def layers(catalogue: Catalogue) -> tuple[tuple[str, ...], ...]:
    """The judged topics, by their roles, in the order in which their ends are taken."""

    def of(schemas: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            role
            for role, spec in catalogue.topics.items()
            if spec.schema in schemas and role != PARKED
        )

    return (of(_BY_HAND), (DEAD_LETTERS,), *map(of, _LAYERS))


def judged_roles(catalogue: Catalogue) -> frozenset[str]:
    """The topics that an audit reads: those keyed by an order, which one payment is told by."""
    return frozenset(role for layer in layers(catalogue) for role in layer)


class Unreadable(NamedTuple):
    """A batch of records that no client can unfold; ``records`` as many as its writer says, and
    ``checksum`` of its bytes as they lie in the log."""

    role: str
    partition: int
    first_offset: int
    last_offset: int
    records: int
    checksum: int


@dataclass(frozen=True)
class Cut:
    """What the log was when it was read. Topics are named by their role in the catalogue.

    ``ends``: read_uncommitted end of each partition. ``committed``: by stage (payments, gateway),
    the next offset of each input partition; what is missing there counts as 0. ``untouched``: the
    payments group's offsets after the reading, None where they could not be had. ``lows``: first
    offset left, where not 0. ``first_at_ms``: append time of the first record left. ``blind``:
    partitions read only in part. ``unreadable``: what lies between the records that were read.
    """

    partitions: Mapping[str, int]
    ends: Mapping[RolePartition, int]
    committed: Mapping[str, Mapping[RolePartition, int]]
    lows: Mapping[RolePartition, int] = field(default_factory=dict)
    first_at_ms: Mapping[RolePartition, int] = field(default_factory=dict)
    blind: frozenset[RolePartition] = frozenset()
    untouched: Mapping[RolePartition, int] | None = None
    unreadable: Sequence[Unreadable] = ()

    def processed(self, stage: str, role: str, partition: int, offset: int) -> bool:
        """Whether the stage had committed beyond this record before the ends were taken."""
        return offset < self.committed.get(stage, {}).get((role, partition), 0)

    def waits(self, role: str, partition: int, offset: int) -> bool:
        """Whether this is a timer that nothing of what was read can have come from."""
        return (
            role.startswith(TIMER_ROLES)
            and self.untouched is not None
            and offset >= self.untouched.get((role, partition), 0)
        )

    def may_be_deleted(self, role: str, partition: int, at_ms: int) -> bool:
        """Whether a record appended at or after ``at_ms`` may have been deleted by retention."""
        if not self.lows.get((role, partition)):
            return False
        first_at_ms = self.first_at_ms.get((role, partition))
        return first_at_ms is None or at_ms <= first_at_ms

"""Sets positions of a group without members further, and says in the audit who did it and why.

Offsets and entry are one transaction: no offset is moved without its entry, whenever the command is
killed. That brokers refuse the offsets of a transaction once the group has members, as they refuse
a plain commit, is not relied on: what was planned is looked at once more when the transaction holds
the new offsets. A worker that comes later waits for its end before it reads any, and one that came
before is a member, or has moved the position.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from pipeline.domain.model import AuditEntry
from pipeline.domain.records import to_record
from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.runtime.cluster import AWAY_S, bystander
from pipeline.runtime.positions.standing import committed_offsets
from schemas.codec import Codec
from topics.admin import Admin, reason
from topics.catalogue import Catalogue
from topics.group_offsets import member_names

MOVE_ACTION: Final = "positions_move"
STEP_OVER_ACTION: Final = "positions_step_over"
SUBJECT: Final = "positions"

# One record and some offsets; a broker that is at its limit takes seconds for them.
TRANSACTION_TIMEOUT_S: Final = 15.0
# An earlier run's transaction may have to be ended first.
INIT_TIMEOUT_S: Final = 30.0
# Between two looks at a group's members, and two sentences about them.
LOOK_S: Final = 0.5
SAY_S: Final = 2.0

# Derived ids: an act that is written twice is one entry.
_ENTRIES: Final = uuid.UUID("0a1d7d5c-3c58-5a0b-8b3e-6f0f0f4c9a57")


@dataclass(frozen=True, slots=True)
class Move:
    """From one position of a partition to a later one. ``begin``: the first offset that is skipped,
    which may lie behind the position where nothing is in between."""

    topic: str
    partition: int
    position: int
    to: int
    begin: int

    @property
    def text(self) -> str:
        return f"{self.topic}[{self.partition}]: {self.begin} to {self.to - 1}"


@dataclass(frozen=True, slots=True)
class Act:
    """Who moves them and why, for the audit."""

    action: str
    actor: str
    reason: str


class Group(Protocol):
    """What the mover asks of a group."""

    name: str

    def members(self) -> Sequence[str]:
        """Those that it has now."""

    def committed(self, places: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """Its offsets, without those that an open transaction would set."""

    def bystander(self) -> AbstractContextManager[Consumer]:
        """A consumer that names it and is no member."""


class ClusterGroup:
    """A group as the brokers have it."""

    def __init__(self, admin: Admin, bootstrap_servers: str, name: str) -> None:
        self._admin = admin
        self._servers = bootstrap_servers
        self.name = name

    def members(self) -> Sequence[str]:
        return member_names(self._admin, self.name)

    def committed(self, places: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        return committed_offsets(self._servers, self.name, places, stable=False)

    def bystander(self) -> AbstractContextManager[Consumer]:
        return bystander(self._servers, self.name, "read_committed")


def require_empty(
    group: Group,
    say: Callable[[str], None],
    *,
    patience_s: float | None = None,
    monotonic_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until the group has no members: brokers keep the place of a worker that was stopped for
    as long as it may take to come back. UserError when it has some after that."""
    patience_s = AWAY_S if patience_s is None else patience_s
    began_s = monotonic_s()
    said_s = began_s - SAY_S
    while found := group.members():
        now_s = monotonic_s()
        if now_s - began_s >= patience_s:
            raise UserError(
                f"the group {group.name} has members ({_some(found)}), so its workers are running: "
                "stop the stage on every machine first. Nothing was moved."
            )
        if now_s - said_s >= SAY_S:
            said_s = now_s
            say(
                f"the group {group.name} has members ({_some(found)}): waiting "
                f"{began_s + patience_s - now_s:.0f} s more, since the place of a worker that was "
                "stopped is kept for 10 s ..."
            )
        sleep(LOOK_S)


def _some(names: Sequence[str], shown_max: int = 3) -> str:
    more = len(names) - shown_max
    return ", ".join(names[:shown_max]) + (f" and {more} more" if more > 0 else "")


def move_positions(
    bootstrap_servers: str,
    catalogue: Catalogue,
    codec: Codec,
    group: Group,
    moves: Sequence[Move],
    act: Act,
    *,
    clock_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    make_producer: Callable[..., Any] = Producer,
) -> AuditEntry:
    """Commit the positions and the audit's entry, both or neither; the entry.

    UserError when the group has members by now, stands elsewhere than was looked at, or Kafka did
    not take the transaction.
    """
    entry = _entry(catalogue, group.name, moves, act, clock_ms())
    encoded = codec.encoder("audit-entry")(to_record(entry))
    producer = make_producer(
        {
            **reaching(bootstrap_servers),
            # One id for all: who comes later puts off whoever was in the middle of it.
            "transactional.id": f"paystream/{catalogue.settings.prefix}/positions",
            "partitioner": "murmur2_random",
            "transaction.timeout.ms": int(TRANSACTION_TIMEOUT_S * 1000),
            "compression.type": "lz4",
            "log_level": 0,
        }
    )
    begun = end_asked = False
    try:
        producer.init_transactions(INIT_TIMEOUT_S)
        producer.begin_transaction()
        begun = True
        producer.produce(catalogue.name("audit"), encoded, SUBJECT.encode())
        with group.bystander() as consumer:
            producer.send_offsets_to_transaction(
                [TopicPartition(each.topic, each.partition, each.to) for each in moves],
                consumer.consumer_group_metadata(),
                TRANSACTION_TIMEOUT_S,
            )
        _require_as_planned(group, moves)
        end_asked = True
        producer.commit_transaction(TRANSACTION_TIMEOUT_S)
    except (KafkaException, UserError) as error:
        if begun:
            with contextlib.suppress(KafkaException):
                producer.abort_transaction(TRANSACTION_TIMEOUT_S)
        if isinstance(error, UserError):
            raise
        done = (
            "It is not certain that the positions were moved" if end_asked else "Nothing was moved"
        )
        raise UserError(
            f"{done} ({reason(error)}): the cluster is away, or somebody else moves positions at "
            "the same time. Look with `paystream positions show`, then run the command again."
        ) from error
    return entry


def _require_as_planned(group: Group, moves: Sequence[Move]) -> None:
    if found := group.members():
        raise UserError(
            f"the group {group.name} has members by now ({_some(found)}): stop the stage on every "
            "machine. Nothing was moved."
        )
    now = group.committed([(each.topic, each.partition) for each in moves])
    for each in moves:
        if (at := now[each.topic, each.partition]) != each.position:
            raise UserError(
                f"the position in {each.topic}[{each.partition}] was {each.position} and is {at} "
                "now: somebody else moves it, or the stage has run meanwhile. Nothing was moved."
            )


def _entry(
    catalogue: Catalogue, group: str, moves: Sequence[Move], act: Act, now_ms: int
) -> AuditEntry:
    skipped = [
        {
            "topic": each.topic,
            "partition": each.partition,
            "from": each.begin,
            "to": each.to - 1,
        }
        for each in moves
    ]
    about = {"group": group, "skipped": skipped}
    seed = json.dumps([catalogue.settings.prefix, act.action, about], sort_keys=True)
    return AuditEntry(
        entry_id=str(uuid.uuid5(_ENTRIES, seed)),
        actor=act.actor,
        action=act.action,
        subject=SUBJECT,
        occurred_at_ms=now_ms,
        reason=act.reason,
        detail=json.dumps(about),
    )

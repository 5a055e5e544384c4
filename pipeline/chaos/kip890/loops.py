"""The two loops that are held against each other: the usual one, and the engine's lane.

Both take the next input and write its records and its offset in one transaction. What they know of
each attempt's end is all they say.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from pipeline.chaos.kip890.script import PARTS
from pipeline.chaos.kip890.verdict import End, Written
from pipeline.runtime.cluster import ask_committed_positions
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.lane import Lane, producer_config
from pipeline.runtime.work import Outcome, Work

# A lost answer is waited for this long; workers wait ten seconds, a thousand faults cannot.
SOCKET_TIMEOUT_MS = 1_000
CALL_TIMEOUT_S = 30.0
JOIN_TIMEOUT_S = 30.0

_QUIET = logging.getLogger("pipeline.chaos.plain-loop")
_QUIET.setLevel(logging.CRITICAL + 1)


class Topics:
    """Input and output of one loop, and its group. ``bootstrap`` may be a proxy's."""

    def __init__(self, bootstrap: str, name: str) -> None:
        self.bootstrap = bootstrap
        self.source, self.sink = f"{name}.in", f"{name}.out"
        self.group, self.transactional_id = f"{name}.group", f"{name}.loop"

    def committed(self) -> int:
        """The input that the group would begin at."""
        return ask_committed_positions(self.bootstrap, self.group, [(self.source, 0)])[
            self.source, 0
        ]


class Loop(Protocol):
    """``attempt`` is one transaction; after UNKNOWN the caller asks where to go on."""

    noticed: int
    rebuild_s: list[float]

    def attempt(self, number: int, attempt: int, *, commit: bool) -> End: ...

    def close(self) -> None: ...


class PlainLoop:
    """The consume-transform-produce loop of confluent-kafka's own examples.

    It obeys every error as the client marks it: the same call again, an abort, or a new producer.
    Records go out as they come; that is what ``flush`` stands for.
    """

    def __init__(self, topics: Topics, _direct: str) -> None:
        self._topics = topics
        self._consumer = Consumer(
            {
                "bootstrap.servers": topics.bootstrap,
                "group.id": topics.group,
                "enable.auto.commit": False,
                "log_level": 0,
            }
        )
        self._metadata = self._consumer.consumer_group_metadata()
        self.noticed = 0
        self.rebuild_s: list[float] = []
        self._start()

    def _start(self) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": self._topics.bootstrap,
                "transactional.id": self._topics.transactional_id,
                "socket.timeout.ms": SOCKET_TIMEOUT_MS,
            },
            # What it says is said by the findings.
            logger=_QUIET,
        )
        self._call(partial(self._producer.init_transactions, CALL_TIMEOUT_S))

    def attempt(self, number: int, attempt: int, *, commit: bool) -> End:
        producer, topics = self._producer, self._topics
        asked = False
        try:
            producer.begin_transaction()
            for part in range(PARTS):
                producer.produce(topics.sink, Written(number, attempt, part).encode(), b"", part)
                producer.flush(CALL_TIMEOUT_S)
            if not commit:
                # As when the loop's own work has failed.
                self._call(partial(producer.abort_transaction, CALL_TIMEOUT_S))
                return End.NOT_COMMITTED
            offsets = [TopicPartition(topics.source, 0, number + 1)]
            self._call(
                partial(
                    producer.send_offsets_to_transaction, offsets, self._metadata, CALL_TIMEOUT_S
                )
            )
            asked = True
            self._call(partial(producer.commit_transaction, CALL_TIMEOUT_S))
            return End.COMMITTED
        except KafkaException as error:
            cause = error.args[0]
            self.noticed += 1
            if cause.txn_requires_abort() and not cause.fatal():
                try:
                    self._call(partial(producer.abort_transaction, CALL_TIMEOUT_S))
                    return End.UNKNOWN if asked else End.NOT_COMMITTED
                except KafkaException:
                    pass
            self._start()
            return End.UNKNOWN if asked else End.NOT_COMMITTED

    @staticmethod
    def _call(call: Callable[[], Any]) -> None:
        deadline = time.monotonic() + CALL_TIMEOUT_S
        while True:
            try:
                call()
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise

    def close(self) -> None:
        self._consumer.close()


class EngineLoop:
    """The same through the lane that every worker of paystream commits by.

    It has no abort of its own: its transactions fail as a worker's do, by carrying the metadata of
    a member that the group no longer has.
    """

    def __init__(self, topics: Topics, direct: str) -> None:
        self._topics = topics
        self._consumer = Consumer(
            {"bootstrap.servers": topics.bootstrap, "group.id": topics.group, "log_level": 0}
        )
        self._metadata = self._consumer.consumer_group_metadata()
        self._stale = _metadata_of_a_former_member(direct, topics)
        self.noticed = 0
        self.rebuild_s: list[float] = []
        self._start()

    def _start(self) -> None:
        topics = self._topics
        self._lane = Lane(
            {
                **producer_config(topics.bootstrap, topics.transactional_id),
                "socket.timeout.ms": SOCKET_TIMEOUT_MS,
                "log_level": 0,
            },
            stage="payments",
            committed_offsets=partial(ask_committed_positions, topics.bootstrap, topics.group),
        )
        self._lane.open()
        self._ends = 0

    def attempt(self, number: int, attempt: int, *, commit: bool) -> End:
        work = Work(
            [
                (self._topics.sink, part, b"", Written(number, attempt, part).encode(), None)
                for part in range(PARTS)
            ],
            {(self._topics.source, 0): number + 1},
            self._metadata if commit else self._stale,
        )
        try:
            outcome = self._lane.run(work)
        except LaneFatal as error:
            logging.getLogger(__name__).warning("the lane left: %s", error)
            self._start()
            return End.UNKNOWN
        if self._lane.ambiguous_ends > self._ends:
            self._ends = self._lane.ambiguous_ends
            self.noticed += 1
            self.rebuild_s.append(self._lane.rebuild_s_last)
        return End.COMMITTED if outcome is Outcome.COMMITTED else End.NOT_COMMITTED

    def close(self) -> None:
        self._lane.close()
        self._consumer.close()


def _metadata_of_a_former_member(direct: str, topics: Topics) -> Any:
    """What a worker holds that was thrown out of its group."""
    member = Consumer(
        {
            "bootstrap.servers": direct,
            "group.id": topics.group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    try:
        member.subscribe([topics.source])
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while not member.assignment():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no member joined {topics.group} in {JOIN_TIMEOUT_S:.0f} s")
            member.poll(0.1)
        return member.consumer_group_metadata()
    finally:
        member.close()

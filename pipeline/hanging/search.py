"""Finding transactions that hang: open in a partition, and in nobody's hands any more.

Kafka 4.0 to 4.3 lose markers (KAFKA-20734): while a partition has no leader, a coordinator that
wants to end a transaction there takes the partition for deleted, writes no marker, and calls the
transaction complete. The partition's last stable offset then stands for ever, or until the same
producer's next transaction there ends, whose marker ends both, the way the later one went.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.broker_connection import BrokerConnection, Refused
from pipeline.errors import UserError
from pipeline.hanging import requests
from pipeline.hanging.transaction_log import (
    TOPIC,
    UNENDED,
    OpenTransaction,
    PartitionName,
    Step,
    decision_of,
    is_claimed,
    read_step,
)
from pipeline.kafka_access import reaching
from pipeline.kafka_wire import Malformed

# A cluster whose brokers have only just started loads for seconds.
PATIENCE_S = 30.0
PAUSE_S = 0.1
REQUEST_TIMEOUT_S = 10.0
# By their names in DescribeTransactions.
_UNENDED_NAMES = {state.name.title().replace("_", "") for state in UNENDED}

T = TypeVar("T")


@dataclass(frozen=True)
class Hanging:
    """``commit`` is what was decided of it, None where nobody can tell any more."""

    found: OpenTransaction
    transactional_id: str
    commit: bool | None

    @property
    def text(self) -> str:
        decided = {True: "commit", False: "abort", None: "unknown"}[self.commit]
        o = self.found
        return (
            f"{o.topic}[{o.partition}] from offset {o.first_offset}: "
            f"{self.transactional_id or f'producer {o.producer_id}'}, decided: {decided}"
        )


def find_hanging(bootstrap_servers: str, *, patience_s: float = PATIENCE_S) -> list[Hanging]:
    """Every transaction of the cluster that hangs; nothing is changed.

    Proven, not guessed from age: it was open in the partition, then its coordinator did not name
    the partition among those it still has to end, and then it was open there still. UserError when
    the cluster does not tell within that time.
    """
    return patiently(lambda: _find(Cluster(bootstrap_servers)), patience_s)


def patiently(ask: Callable[[], T], patience_s: float) -> T:
    """Its answer, asked again while brokers start or leaders move. UserError once time is over."""
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except (OSError, Refused, Malformed, KafkaException) as error:
            if time.monotonic() > deadline_s:
                raise UserError(
                    f"the cluster does not tell of its transactions, or takes no marker ({error}). "
                    "Look whether all its brokers run and every partition has a leader."
                ) from error
        time.sleep(PAUSE_S)


class Cluster:
    """Connections to the brokers of one moment's metadata."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers
        self._open: dict[int, BrokerConnection] = {}
        admin = AdminClient({**reaching(bootstrap_servers), "log_level": 2})
        metadata = admin.list_topics(timeout=REQUEST_TIMEOUT_S)
        self._addresses = {
            each.id: (str(each.host), int(each.port)) for each in metadata.brokers.values()
        }
        self.leaders: dict[PartitionName, int] = {
            (topic, number): partition.leader
            for topic, found in metadata.topics.items()
            for number, partition in found.partitions.items()
        }
        for (topic, number), leader in self.leaders.items():
            if leader not in self._addresses:
                raise Refused(f"the leader of {topic}[{number}]", KafkaError.LEADER_NOT_AVAILABLE)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._open.values():
            connection.close()

    def broker(self, node_id: int) -> BrokerConnection:
        if node_id not in self._open or self._open[node_id].is_closed:
            host, port = self._addresses[node_id]
            self._open[node_id] = BrokerConnection(host, port, REQUEST_TIMEOUT_S)
        return self._open[node_id]

    def open_transactions(self) -> set[OpenTransaction]:
        by_leader: dict[int, list[PartitionName]] = defaultdict(list)
        for place, leader in self.leaders.items():
            by_leader[leader].append(place)
        return {
            found
            for leader, places in by_leader.items()
            for found in requests.open_transactions(self.broker(leader), places)
        }

    def end(self, found: OpenTransaction, *, commit: bool) -> None:
        """Write the marker that is missing."""
        requests.write_marker(self.broker(self.leaders[found.place]), found, commit=commit)

    def claimed(self, producer_ids: set[int]) -> set[tuple[int, PartitionName]]:
        """Which of these producers' partitions some coordinator still has to end."""
        found = set()
        for node_id in self._addresses:
            broker = self.broker(node_id)
            names = requests.transactional_ids(broker, producer_ids)
            for each in requests.coordinated(broker, names):
                if each.state in _UNENDED_NAMES:
                    found |= {(each.producer_id, place) for place in each.partitions}
        return found

    def steps(self, producer_ids: set[int]) -> Mapping[int, Sequence[Step]]:
        """What the transaction log says of these producers, in order, up to its present end."""
        partitions = [number for topic, number in self.leaders if topic == TOPIC]
        found: dict[int, list[Step]] = defaultdict(list)
        for key, value in _records(self._servers, TOPIC, partitions):
            step = read_step(key, value)
            if step is not None and step.producer_id in producer_ids:
                found[step.producer_id].append(step)
        return found


def _find(opened: Cluster) -> list[Hanging]:
    with opened as cluster:
        before = cluster.open_transactions()
        if not before:
            return []
        claimed = cluster.claimed({each.producer_id for each in before})
        suspects = {each for each in before if (each.producer_id, each.place) not in claimed}
        if not suspects:
            return []
        # Where nobody claims it, what the coordinators have written down says who is right: one
        # that moves between two brokers at this moment is named by neither.
        steps = cluster.steps({each.producer_id for each in suspects})
        still = {_name(each) for each in cluster.open_transactions()}
    return [
        Hanging(
            each,
            steps[each.producer_id][-1].transactional_id if steps.get(each.producer_id) else "",
            decision_of(each, steps.get(each.producer_id, ())),
        )
        for each in sorted(suspects, key=_name)
        if _name(each) in still and not is_claimed(each, steps.get(each.producer_id, ()))
    ]


def _name(found: OpenTransaction) -> tuple[str, int, int, int]:
    """That very transaction, whatever its producer adds to it."""
    return found.topic, found.partition, found.first_offset, found.producer_id


def _records(
    bootstrap_servers: str, topic: str, partitions: Iterable[int]
) -> Iterator[tuple[bytes | None, bytes | None]]:
    """Everything in these partitions up to the ends they have now."""
    consumer = Consumer(
        {
            **reaching(bootstrap_servers),
            # Never used to commit.
            "group.id": "paystream-hanging-unused",
            "enable.auto.commit": False,
            "isolation.level": "read_uncommitted",
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
            "log_level": 2,
        }
    )
    with contextlib.closing(consumer):
        ends = {}
        for partition in partitions:
            place = TopicPartition(topic, partition)
            first, last = consumer.get_watermark_offsets(place, timeout=REQUEST_TIMEOUT_S)
            if first < last:
                ends[partition] = (first, last)
        consumer.assign([TopicPartition(topic, p, first) for p, (first, _) in ends.items()])
        waiting = set(ends)
        deadline_s = time.monotonic() + PATIENCE_S
        while waiting:
            for message in consumer.consume(1_000, 0.05):
                at, offset, error = message.partition(), message.offset(), message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    if error.retriable():
                        continue
                    raise KafkaException(error)
                if at is None or offset is None:
                    continue
                if error is None:
                    deadline_s = time.monotonic() + PATIENCE_S
                    yield message.key(), message.value()
                    offset += 1
                if offset >= ends[at][1]:
                    waiting.discard(at)
            if time.monotonic() > deadline_s:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

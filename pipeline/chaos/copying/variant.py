"""One variant: copiers at work, clients or brokers bounced, and what two readers saw of it."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from pipeline.chaos.copying.copier import CopierSpec
from pipeline.chaos.copying.verdict import Copied, compare
from pipeline.chaos.flow import seen
from pipeline.embedded import processes
from pipeline.embedded.kafka import KafkaHandle
from pipeline.embedded.processes import ProcessIdentity
from pipeline.errors import UserError

HARD, CLEAN = "hard_bounce", "clean_bounce"
CLIENTS, BROKERS = "clients", "brokers"
# As Kafka's test has them.
MESSAGES_MAX = 750
CLIENT_BOUNCES = 3
# Beyond the brokers' registration time-out (9 s): a killed one is out of the in-sync sets.
DOWN_S = 11.0
# A bounced client has copied something again; a bounced broker is in sync.
PROGRESS_S_MAX, SYNC_S_MAX, END_S_MAX = 60.0, 120.0, 120.0
CREATE_S = 30.0
TURN_S = 0.1


@dataclass(frozen=True)
class Variant:
    """``group``: copiers subscribe and carry their member's metadata; else each has one partition
    for itself and names only its group."""

    failure: str
    target: str
    check_order: bool
    group: bool

    @property
    def name(self) -> str:
        order = "order" if self.check_order else "sets"
        return f"{self.failure}/{self.target}/{order}/{'group' if self.group else 'assigned'}"


ALL = tuple(
    Variant(failure, target, check_order, group)
    for target in (CLIENTS, BROKERS)
    for failure in (HARD, CLEAN)
    for check_order in (True, False)
    for group in (True, False)
)


@dataclass
class Result:
    """``later`` saw the sink at the end, ``meanwhile`` while it all happened."""

    variant: Variant
    messages: int = 0
    bounces: int = 0
    exits: int = 0
    took_s: float = 0.0
    later: Copied = field(default_factory=lambda: Copied(0, 0, 0, disorder=False))
    meanwhile: Copied = field(default_factory=lambda: Copied(0, 0, 0, disorder=False))

    @property
    def exact(self) -> bool:
        return bool(self.messages and self.bounces) and self.later.exact and self.meanwhile.exact


def run_variant(
    variant: Variant, kafka: KafkaHandle, folder: Path, *, name: str, rate_per_s: float
) -> Result:
    """Numbers are written at this pace for as long as something is bounced, so that there is
    always something to copy. UserError when it does not come to an end."""
    begun_s = time.monotonic()
    sources, sinks = (1, 1) if variant.check_order else (2, 3)
    source, sink = f"{name}.in", f"{name}.out"
    group = f"{name}.group"
    _create(kafka.bootstrap_servers, {source: sources, sink: sinks})
    _begin_at_zero(kafka.bootstrap_servers, group, source, sources)
    specs = [
        CopierSpec(
            kafka.bootstrap_servers,
            source,
            sink,
            sinks,
            group,
            f"{name}.copier-{number}",
            MESSAGES_MAX,
            None if variant.group else number,
        )
        for number in range(sources)
    ]
    result = Result(variant)
    with (
        _reading(kafka.bootstrap_servers, sink, sinks) as read,
        Copiers(specs, folder / f"{name}.log") as copiers,
        _seeding(kafka.bootstrap_servers, source, sources, rate_per_s) as acknowledged,
    ):
        bounce = _bounce_clients if variant.target == CLIENTS else _bounce_brokers
        bounce(variant, kafka, copiers, read, result)
        acknowledged.stop()
        _until(
            lambda: len(read.numbers) >= acknowledged.count,
            END_S_MAX,
            f"{variant.name}: copies are missing",
            copiers.tick,
        )
        # What should not be there has a moment to come.
        time.sleep(1.0)
        result.exits = copiers.exits
    source_numbers = _numbers(kafka.bootstrap_servers, source, sources)
    if not acknowledged.numbers <= set(source_numbers):
        raise UserError(f"{variant.name}: the brokers lost input that they had acknowledged.")
    later = _numbers(kafka.bootstrap_servers, sink, sinks)
    result.messages = len(source_numbers)
    result.later = compare(source_numbers, later, check_order=variant.check_order)
    result.meanwhile = compare(source_numbers, read.numbers, check_order=variant.check_order)
    result.took_s = time.monotonic() - begun_s
    return result


class Copiers:
    """Processes that are started again when they end; a context manager."""

    def __init__(self, specs: Sequence[CopierSpec], log_file: Path) -> None:
        self._specs = specs
        self._log_file = log_file
        self._running: list[ProcessIdentity] = []
        self.exits = 0

    def __enter__(self) -> Copiers:
        self._running = [self._started(spec) for spec in self._specs]
        return self

    def __exit__(self, *_: object) -> None:
        processes.stop(self._running, timeout_s=10.0)

    def __len__(self) -> int:
        return len(self._specs)

    def tick(self) -> None:
        for number, identity in enumerate(self._running):
            if not processes.is_alive(identity):
                self.exits += 1
                self._running[number] = self._started(self._specs[number])

    def bounce(self, number: int, *, clean: bool) -> None:
        # Killed at once unless it is asked to go.
        processes.stop(
            [self._running[number]],
            timeout_s=30.0,
            gently=signal.SIGTERM if clean else signal.SIGKILL,
        )
        self._running[number] = self._started(self._specs[number])

    def _started(self, spec: CopierSpec) -> ProcessIdentity:
        command = [sys.executable, "-m", "pipeline.chaos.copying.copier", spec.encode()]
        return processes.start_detached(command, output=self._log_file, die_with_parent=True)


def _bounce_clients(
    variant: Variant, _kafka: KafkaHandle, copiers: Copiers, read: _Read, result: Result
) -> None:
    for _ in range(CLIENT_BOUNCES):
        for number in range(len(copiers)):
            before = len(read.numbers)
            _until(
                lambda before=before: len(read.numbers) > before + MESSAGES_MAX,  # type: ignore[misc]
                PROGRESS_S_MAX,
                f"{variant.name}: nothing is copied",
                copiers.tick,
            )
            copiers.bounce(number, clean=variant.failure == CLEAN)
            result.bounces += 1


def _bounce_brokers(
    variant: Variant, kafka: KafkaHandle, copiers: Copiers, _read: _Read, result: Result
) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})
    for broker in kafka.brokers:
        if variant.failure == HARD:
            broker.kill()
            _keep_for(DOWN_S, copiers)
            broker.launch()
        else:
            broker.stop()
            broker.launch()
        result.bounces += 1
        _until(
            lambda: _in_sync(admin, len(kafka.brokers)),
            SYNC_S_MAX,
            f"{variant.name}: broker {broker.node_id} is not in sync again",
            copiers.tick,
        )


def _in_sync(admin: AdminClient, brokers: int) -> bool:
    try:
        known = admin.list_topics(timeout=5)
    except Exception:
        return False
    return len(known.brokers) == brokers and all(
        set(partition.isrs) == set(partition.replicas)
        for topic in known.topics.values()
        for partition in topic.partitions.values()
    )


class _Read:
    """What a reader of committed records has seen so far, in its order."""

    def __init__(self) -> None:
        self.numbers: list[int] = []


@contextmanager
def _reading(bootstrap: str, topic: str, partitions: int) -> Iterator[_Read]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"{topic}.meanwhile",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "log_level": 0,
        }
    )
    consumer.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
    read, stop = _Read(), threading.Event()

    def run() -> None:
        while not stop.is_set():
            for message in consumer.consume(1_000, TURN_S):
                if message.error() is None:
                    read.numbers.append(int(message.value() or b""))

    thread = threading.Thread(target=run, name="copying-reader", daemon=True)
    thread.start()
    try:
        yield read
    finally:
        stop.set()
        thread.join(10.0)
        consumer.close()


class _Seeds:
    """Numbers from 0 on; ``numbers``: those that the brokers acknowledged."""

    def __init__(self, stop: threading.Event, thread: Callable[[], threading.Thread]) -> None:
        self._stop, self._thread = stop, thread
        self.numbers: set[int] = set()

    @property
    def count(self) -> int:
        return len(self.numbers)

    def stop(self) -> None:
        """When all that was written is acknowledged."""
        self._stop.set()
        self._thread().join(END_S_MAX)


@contextmanager
def _seeding(bootstrap: str, topic: str, partitions: int, rate_per_s: float) -> Iterator[_Seeds]:
    stop = threading.Event()
    seeds = _Seeds(stop, lambda: thread)

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is None:
            seeds.numbers.add(int(message.value() or b""))

    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "on_delivery": delivered,
            "linger.ms": 5,
            "log_level": 0,
        }
    )

    def run() -> None:
        begun_s, number = time.monotonic(), 0
        while not stop.is_set():
            due = int((time.monotonic() - begun_s) * rate_per_s)
            while number < due:
                try:
                    producer.produce(topic, b"%d" % number, partition=number % partitions)
                except BufferError:
                    break
                number += 1
            producer.poll(0.01)
        producer.flush(END_S_MAX)

    thread = threading.Thread(target=run, name="copying-seeds", daemon=True)
    thread.start()
    try:
        yield seeds
    finally:
        seeds.stop()


def _numbers(bootstrap: str, topic: str, partitions: int) -> list[int]:
    ends = seen.ends(bootstrap, [(topic, p) for p in range(partitions)])
    return [int(m.value() or b"") for m in seen.committed_records(bootstrap, ends)]


def _create(bootstrap: str, topics: dict[str, int]) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    config = {"min.insync.replicas": "2"}
    made = admin.create_topics(
        [NewTopic(topic, count, 3, config=config) for topic, count in topics.items()],
        operation_timeout=CREATE_S,
    )
    for future in made.values():
        future.result(CREATE_S)


def _begin_at_zero(bootstrap: str, group: str, topic: str, partitions: int) -> None:
    """So that no question for the group's offsets is without an answer, as provisioning does."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "log_level": 0})
    deadline_s = time.monotonic() + CREATE_S
    try:
        while True:
            try:
                consumer.commit(
                    offsets=[TopicPartition(topic, p, 0) for p in range(partitions)],
                    asynchronous=False,
                )
                return
            except KafkaException:
                # The brokers hear a moment late of what they lead.
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(TURN_S)
    finally:
        consumer.close()


def _keep_for(seconds: float, copiers: Copiers) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        copiers.tick()
        time.sleep(TURN_S)


def _until(done: Callable[[], bool], timeout_s: float, what: str, tick: Callable[[], None]) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not done():
        tick()
        if time.monotonic() > deadline_s:
            raise UserError(f"{what} after {timeout_s:.0f} s.")
        time.sleep(TURN_S)

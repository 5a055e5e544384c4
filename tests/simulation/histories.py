"""Scripted histories that the simulated log and a real broker have to tell alike.

Each is written once, against the clients' own surface, and returns what its readers saw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from confluent_kafka import KafkaException, TopicPartition

TIMEOUT_S = 20.0
Seen = list[Any]


class Clients(Protocol):
    """Where a history is played. Topics have two partitions each and are the history's own."""

    topic: str
    source: str
    group: str

    def producer(self, name: str) -> Any:
        """A transactional producer; the same name is the same transactional id."""

    def consumer(self, isolation: str = "read_committed", instance: str | None = None) -> Any: ...

    def bystander(self) -> Any:
        """A consumer of a group in which nobody is a member."""

    def plain_producer(self) -> Any: ...

    def patience(self) -> int:
        """How many empty polls are made before nothing is believed to come."""


def _begun(clients: Clients, name: str) -> Any:
    producer = clients.producer(name)
    producer.init_transactions(TIMEOUT_S)
    producer.begin_transaction()
    return producer


def _write(producer: Any, topic: str, text: str, partition: int = 0) -> None:
    producer.produce(topic, text.encode(), b"k", partition)
    producer.flush(TIMEOUT_S)


def _read(clients: Clients, isolation: str = "read_committed", partition: int = 0) -> Seen:
    """Offsets and values up to the end that this isolation shows, and that end."""
    consumer = clients.consumer(isolation)
    consumer.assign([TopicPartition(clients.topic, partition, 0)])
    seen: Seen = []
    empty = 0
    while empty < clients.patience():
        message = consumer.poll(0.2)
        if message is None:
            empty += 1
        elif message.error() is not None:
            seen.append(("end", message.offset()))
            break
        else:
            seen.append((message.offset(), message.value().decode()))
    consumer.close()
    return seen


def _both(clients: Clients) -> Seen:
    return [_read(clients), _read(clients, "read_uncommitted")]


def _told(clients: Clients, producer: Any) -> None:
    """Until the markers of the producer's last transaction are written: the next one, of which
    nothing stays, is not begun before."""
    asker = clients.bystander()
    producer.begin_transaction()
    producer.send_offsets_to_transaction(
        [TopicPartition(clients.source, 1, 0)], asker.consumer_group_metadata(), TIMEOUT_S
    )
    producer.abort_transaction(TIMEOUT_S)
    asker.close()


def _error(call: Callable[[], Any]) -> Any:
    """How a call ends: the client's own word for the course to take."""
    try:
        call()
    except KafkaException as error:
        cause = error.args[0]
        return cause.name(), cause.fatal(), cause.txn_requires_abort()
    return "no error"


def committed_and_aborted(clients: Clients) -> Seen:
    """What is committed is visible, what is aborted is not, and each marker takes an offset."""
    producer = clients.producer("a")
    producer.init_transactions(TIMEOUT_S)
    for number in range(4):
        producer.begin_transaction()
        _write(producer, clients.topic, f"{number}a")
        _write(producer, clients.topic, f"{number}b")
        if number % 2:
            producer.abort_transaction(TIMEOUT_S)
        else:
            producer.commit_transaction(TIMEOUT_S)
    _told(clients, producer)
    return _both(clients)


def open_transaction_holds_readers(clients: Clients) -> Seen:
    """A read_committed reader stops at the first open record, whatever lies behind it."""
    first = _begun(clients, "a")
    _write(first, clients.topic, "open")
    second = _begun(clients, "b")
    _write(second, clients.topic, "behind")
    second.commit_transaction(TIMEOUT_S)
    _told(clients, second)
    seen = _both(clients)
    first.commit_transaction(TIMEOUT_S)
    _told(clients, first)
    return [*seen, *_both(clients)]


def fenced_producer(clients: Clients) -> Seen:
    """A newer producer of the same id takes back what the older one had open, and fences it."""
    old = _begun(clients, "a")
    _write(old, clients.topic, "of the old one")
    new = _begun(clients, "a")
    _write(new, clients.topic, "of the new one")
    new.commit_transaction(TIMEOUT_S)
    _told(clients, new)
    error = _error(lambda: old.commit_transaction(TIMEOUT_S))
    return [error, *_both(clients)]


def offsets_with_their_transaction(clients: Clients) -> Seen:
    """Offsets of a transaction count when it is committed, and never when it is aborted."""
    seen: Seen = []
    asker = clients.consumer()
    metadata = asker.consumer_group_metadata()
    producer = clients.producer("a")
    producer.init_transactions(TIMEOUT_S)
    for number, commit in ((3, True), (7, False), (5, True)):
        producer.begin_transaction()
        producer.send_offsets_to_transaction(
            [TopicPartition(clients.source, 0, number)], metadata, TIMEOUT_S
        )
        if commit:
            producer.commit_transaction(TIMEOUT_S)
        else:
            producer.abort_transaction(TIMEOUT_S)
        _told(clients, producer)
        asked = asker.committed([TopicPartition(clients.source, 0)], timeout=TIMEOUT_S)
        seen.append(asked[0].offset)
    asker.close()
    return seen


def zombie_of_an_old_generation(clients: Clients) -> Seen:
    """After a rebalance the group takes no offsets under the metadata of before it, not even from
    a member that still owns the partition; under its new metadata it does."""
    first = clients.consumer(instance="one")
    first.subscribe([clients.source])
    _settled([first], [{0, 1}])
    before = first.consumer_group_metadata()
    second = clients.consumer(instance="two")
    second.subscribe([clients.source])
    _settled([first, second], [{0}, {1}])
    seen: Seen = []
    producer = clients.producer("a")
    producer.init_transactions(TIMEOUT_S)
    for metadata in (before, first.consumer_group_metadata()):
        producer.begin_transaction()
        _write(producer, clients.topic, "by the first")
        ended = _error(
            lambda metadata=metadata: producer.send_offsets_to_transaction(  # type: ignore[misc]
                [TopicPartition(clients.source, 0, 4)], metadata, TIMEOUT_S
            )
        )
        seen.append(ended)
        if ended == "no error":
            producer.commit_transaction(TIMEOUT_S)
        else:
            producer.abort_transaction(TIMEOUT_S)
    _told(clients, producer)
    asked = first.committed([TopicPartition(clients.source, 0)], timeout=TIMEOUT_S)
    seen.append(asked[0].offset)
    first.close()
    second.close()
    return [*seen, *_both(clients)]


def one_transaction_over_partitions(clients: Clients) -> Seen:
    """Both partitions of a transaction get its end; a plain record between is visible by itself."""
    producer = _begun(clients, "a")
    _write(producer, clients.topic, "left", 0)
    _write(producer, clients.topic, "right", 1)
    plain = clients.plain_producer()
    _write(plain, clients.topic, "plain", 1)
    producer.abort_transaction(TIMEOUT_S)
    _told(clients, producer)
    return [_read(clients, partition=0), _read(clients, partition=1)]


def _settled(consumers: list[Any], wanted: list[set[int]]) -> None:
    for _ in range(400):
        for consumer in consumers:
            consumer.poll(0.05)
        owned = [{tp.partition for tp in consumer.assignment()} for consumer in consumers]
        if owned == wanted:
            return
    raise AssertionError(f"the group has not settled: {owned}")


HISTORIES: tuple[Callable[[Clients], Seen], ...] = (
    committed_and_aborted,
    open_transaction_holds_readers,
    fenced_producer,
    offsets_with_their_transaction,
    zombie_of_an_old_generation,
    one_transaction_over_partitions,
)

"""The requests of KIP-664 by which a broker tells of transactions, and is told to end one.

confluent-kafka has none of them, so they have a connection of their own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.broker_connection import NO_ERROR, BrokerConnection, Refused
from pipeline.hanging.transaction_log import OpenTransaction, PartitionName
from pipeline.kafka_wire import Reader

DESCRIBE_PRODUCERS, DESCRIBE_TRANSACTIONS, LIST_TRANSACTIONS, WRITE_TXN_MARKERS = 61, 65, 66, 27
# The first version that is flexible, of each; they are old enough for every broker since 3.0.
_VERSION = {
    DESCRIBE_PRODUCERS: 0, DESCRIBE_TRANSACTIONS: 0, LIST_TRANSACTIONS: 0, WRITE_TXN_MARKERS: 1,
}  # fmt: skip
# A marker that comes too late: the producer, or its coordinator, has written there since.
OVERTAKEN = (47, 52)
# Nobody has a transaction of that producer any more, and this broker coordinates it no longer.
GONE = (16, 105)


@dataclass(frozen=True)
class Coordinated:
    """A transaction as its coordinator has it now; ``partitions`` are those not ended yet."""

    transactional_id: str
    state: str
    producer_id: int
    partitions: frozenset[PartitionName]


def open_transactions(
    broker: BrokerConnection, partitions: Iterable[PartitionName]
) -> list[OpenTransaction]:
    """Of partitions that this broker leads. Refused if it leads one of them no more."""
    reader = _ask(broker, DESCRIBE_PRODUCERS, _array(_topics(partitions)))
    reader.i32()  # throttle time
    found = []
    for _ in reader.array():
        topic = reader.string() or ""
        for _ in reader.array():
            partition, code = reader.i32(), reader.i16()
            reader.string()
            if code != NO_ERROR:
                raise Refused(f"the producers of {topic}[{partition}]", code)
            for _ in reader.array():
                producer_id, epoch = reader.i64(), reader.i32()
                reader.i32()  # last sequence
                last_ms, coordinator_epoch, first = reader.i64(), reader.i32(), reader.i64()
                reader.tags()
                if first >= 0:
                    found.append(
                        OpenTransaction(
                            topic, partition, producer_id, epoch, coordinator_epoch, first, last_ms
                        )
                    )
            reader.tags()
        reader.tags()
    return found


def transactional_ids(broker: BrokerConnection, producer_ids: Iterable[int]) -> list[str]:
    """Of these producers, those that this broker coordinates. Refused while it still loads."""
    ids = [struct.pack(">q", each) for each in producer_ids]
    reader = _ask(broker, LIST_TRANSACTIONS, _array([]) + _array(ids))
    reader.i32()
    if code := reader.i16():
        raise Refused("the transactions of a coordinator", code)
    for _ in reader.array():
        reader.string()  # states that it does not know; none were given
    found = []
    for _ in reader.array():
        found.append(reader.string() or "")
        reader.i64()
        reader.string()
        reader.tags()
    return found


def coordinated(broker: BrokerConnection, names: Iterable[str]) -> list[Coordinated]:
    """What its coordinator says of each transactional id; nothing of one that has gone."""
    reader = _ask(broker, DESCRIBE_TRANSACTIONS, _array([_string(name) for name in names]))
    reader.i32()
    found = []
    for _ in reader.array():
        code, name, state = reader.i16(), reader.string() or "", reader.string() or ""
        reader.i32()
        reader.i64()
        producer_id = reader.i64()
        reader.i16()
        partitions = set()
        for _ in reader.array():
            topic = reader.string() or ""
            partitions |= {(topic, reader.i32()) for _ in reader.array()}
            reader.tags()
        reader.tags()
        if code in GONE:
            continue
        if code != NO_ERROR:
            raise Refused(f"the transaction of {name}", code)
        found.append(Coordinated(name, state, producer_id, frozenset(partitions)))
    return found


def write_marker(broker: BrokerConnection, found: OpenTransaction, *, commit: bool) -> None:
    """End the transaction in its partition, which this broker leads. Refused says why not."""
    marker = (
        struct.pack(">qh?", found.producer_id, found.epoch, commit)
        + _array(_topics([found.place]))
        + struct.pack(">i", max(0, found.coordinator_epoch))
        + b"\0"
    )
    reader = _ask(broker, WRITE_TXN_MARKERS, _array([marker]))
    for _ in reader.array():
        reader.i64()
        for _ in reader.array():
            topic = reader.string()
            for _ in reader.array():
                partition, code = reader.i32(), reader.i16()
                reader.tags()
                if code != NO_ERROR:
                    raise Refused(f"the marker for {topic}[{partition}]", code)
            reader.tags()
        reader.tags()
    reader.tags()


def _ask(broker: BrokerConnection, api: int, body: bytes) -> Reader:
    return broker.ask(api, _VERSION[api], body)


def _topics(partitions: Iterable[PartitionName]) -> list[bytes]:
    by_topic: dict[str, list[int]] = {}
    for topic, partition in partitions:
        by_topic.setdefault(topic, []).append(partition)
    return [
        _string(topic) + _array([struct.pack(">i", p) for p in numbers]) + b"\0"
        for topic, numbers in by_topic.items()
    ]


def _array(items: list[bytes]) -> bytes:
    return _uvarint(len(items) + 1) + b"".join(items)


def _string(text: str) -> bytes:
    raw = text.encode()
    return _uvarint(len(raw) + 1) + raw


def _uvarint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

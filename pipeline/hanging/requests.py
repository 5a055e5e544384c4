"""The requests of KIP-664 by which a broker tells of transactions, and is told to end one.

confluent-kafka has none of them, so they have a connection of their own.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.hanging.secured import NotAuthenticated, authenticate, mechanism, secured_socket
from pipeline.hanging.transaction_log import OpenTransaction, PartitionName
from pipeline.kafka_wire import PREFIX, Malformed, Reader, framed

SASL_HANDSHAKE, SASL_AUTHENTICATE = 17, 36
DESCRIBE_PRODUCERS, DESCRIBE_TRANSACTIONS, LIST_TRANSACTIONS, WRITE_TXN_MARKERS = 61, 65, 66, 27
# The first version that is flexible, of each but SASL's; old enough for every broker since 3.0.
_VERSION = {
    SASL_HANDSHAKE: 1, SASL_AUTHENTICATE: 0,
    DESCRIBE_PRODUCERS: 0, DESCRIBE_TRANSACTIONS: 0, LIST_TRANSACTIONS: 0, WRITE_TXN_MARKERS: 1,
}  # fmt: skip
_CLIENT = b"paystream"
NO_ERROR = 0
# A marker that comes too late: the producer, or its coordinator, has written there since.
OVERTAKEN = (47, 52)
# Nobody has a transaction of that producer any more, and this broker coordinates it no longer.
GONE = (16, 105)


class Refused(Exception):
    """A broker answered with an error code; asked again a moment later it may not."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what}: error {code}")
        self.code = code


@dataclass(frozen=True)
class Coordinated:
    """A transaction as its coordinator has it now; ``partitions`` are those not ended yet."""

    transactional_id: str
    state: str
    producer_id: int
    partitions: frozenset[PartitionName]


class BrokerConnection:
    """One connection to one broker; a request is answered before the next is sent. OSError when
    the broker goes away."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._ids = itertools.count(1)
        wanted = mechanism()
        self._socket = secured_socket(host, port, timeout_s)
        if wanted is not None:
            try:
                self._authenticate(wanted)
            except BaseException:
                self._socket.close()
                raise

    def close(self) -> None:
        self._socket.close()

    def ask(self, api: int, body: bytes) -> Reader:
        """The answer, at the beginning of its body."""
        reader = self._asked(api, b"\0" + body + b"\0", flexible=True)
        reader.tags()
        return reader

    def _asked(self, api: int, rest: bytes, *, flexible: bool) -> Reader:
        wanted = next(self._ids)
        header = struct.pack(">hhih", api, _VERSION[api], wanted, len(_CLIENT)) + _CLIENT
        self._socket.sendall(framed(header + rest))
        (size,) = struct.unpack(">i", self._exactly(PREFIX))
        reader = Reader(self._exactly(size), flexible=flexible)
        if reader.i32() != wanted:
            raise Malformed("an answer to another request")
        return reader

    def _authenticate(self, wanted: str) -> None:
        name = wanted.encode()
        self._said(
            self._asked(SASL_HANDSHAKE, struct.pack(">h", len(name)) + name, flexible=False),
            f"The broker does not speak {wanted}",
        )
        authenticate(wanted, self._exchange)

    def _exchange(self, message: bytes) -> bytes:
        body = struct.pack(">i", len(message)) + message
        reader = self._asked(SASL_AUTHENTICATE, body, flexible=False)
        code, why = reader.i16(), reader.string()
        if code != NO_ERROR:
            raise NotAuthenticated(f"the broker refuses the user: {why or f'error {code}'}.")
        start = reader.at + 4
        reader.data()
        return reader.frame[start : reader.at]

    @staticmethod
    def _said(reader: Reader, otherwise: str) -> None:
        if (code := reader.i16()) != NO_ERROR:
            raise NotAuthenticated(f"{otherwise} (error {code}).")

    def _exactly(self, size: int) -> bytes:
        read = bytearray()
        while len(read) < size:
            piece = self._socket.recv(size - len(read))
            if not piece:
                raise ConnectionResetError("the broker has closed the connection")
            read += piece
        return bytes(read)


def open_transactions(
    broker: BrokerConnection, partitions: Iterable[PartitionName]
) -> list[OpenTransaction]:
    """Of partitions that this broker leads. Refused if it leads one of them no more."""
    reader = broker.ask(DESCRIBE_PRODUCERS, _array(_topics(partitions)))
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
    reader = broker.ask(LIST_TRANSACTIONS, _array([]) + _array(ids))
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
    reader = broker.ask(DESCRIBE_TRANSACTIONS, _array([_string(name) for name in names]))
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
    reader = broker.ask(WRITE_TXN_MARKERS, _array([marker]))
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

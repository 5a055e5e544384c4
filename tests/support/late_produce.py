"""A record that comes into a transaction after its end, as its producer would have sent it.

It needs a broker with ``transaction.partition.verification.enable=false``; what it leaves is a
transaction that nobody will end.
"""

from __future__ import annotations

import socket
import struct
import time

from pipeline.broker_connection import BrokerConnection
from pipeline.hanging import requests
from pipeline.kafka_wire import framed

PRODUCE, VERSION = 0, 9
TRANSACTIONAL = 0x10
TIMEOUT_S = 30.0


def produce_late(bootstrap: str, transactional_id: str, topic: str, value: bytes) -> None:
    """The second record of the transactional id's first transaction, in partition 0."""
    host, _, port = bootstrap.partition(":")
    broker = BrokerConnection(host, int(port), TIMEOUT_S)
    (known,) = requests.coordinated(broker, [transactional_id])
    broker.close()
    batch = _batch(known.producer_id, 1, value)
    name = b"test"
    body = (
        struct.pack(">hhih", PRODUCE, VERSION, 1, len(name)) + name + b"\0"
        + _compact(transactional_id.encode())
        + struct.pack(">hi", -1, 30_000)
        + b"\x02" + _compact(topic.encode())
        + b"\x02" + struct.pack(">i", 0) + _compact(batch) + b"\0"
        + b"\0" + b"\0"
    )  # fmt: skip
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        connection.sendall(framed(body))
        answer = connection.recv(4096)
    # Length, correlation id, tags, one topic of that name with one partition; then its error.
    at = 4 + 4 + 1 + 1 + 1 + len(topic) + 1 + 4
    (error,) = struct.unpack_from(">h", answer, at)
    assert error == 0, error


def _batch(producer_id: int, sequence: int, value: bytes) -> bytes:
    # Before the end that it comes after.
    at_ms = int(time.time() * 1000) - 60_000
    record = bytes((0, 0, 0, 1, 2 * len(value))) + value + b"\0"
    records = bytes((2 * len(record),)) + record
    checked = (
        struct.pack(">hiqqqhii", TRANSACTIONAL, 0, at_ms, at_ms, producer_id, 0, sequence, 1)
        + records
    )
    rest = struct.pack(">ibI", -1, 2, _crc32c(checked)) + checked
    return struct.pack(">qi", 0, len(rest)) + rest


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _compact(data: bytes) -> bytes:
    """After its length and one, as a varint without a sign."""
    size, length = len(data) + 1, b""
    while size >= 0x80:
        length, size = length + bytes((size & 0x7F | 0x80,)), size >> 7
    return length + bytes((size,)) + data

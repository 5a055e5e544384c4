"""The client library's own mock cluster, for what a real broker is slow to do: go away in the
middle. Its functions are exported by the library and not offered in Python."""

from __future__ import annotations

import ctypes
import socket
import threading
from contextlib import suppress
from typing import Any

from confluent_kafka import cimpl

from pipeline.broker_addresses import broker_address

# Longer than what is asked of its thread takes, and until the next connection.
WAKE_S = 0.005
PRODUCER = 0
# The request's number in the protocol.
PRODUCE = 0


class MockCluster:
    """Lives as long as the process: a client that hangs in it cannot be taken from it."""

    def __init__(self, brokers: int) -> None:
        self._library = library = ctypes.CDLL(cimpl.__file__)
        address, number, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
        make: Any = library.rd_kafka_new
        make.restype, make.argtypes = address, [number, address, text, ctypes.c_size_t]
        library.rd_kafka_conf_new.restype = address
        library.rd_kafka_conf_set.argtypes = [address, text, text, text, ctypes.c_size_t]
        library.rd_kafka_mock_cluster_new.restype = address
        library.rd_kafka_mock_cluster_new.argtypes = [address, number]
        library.rd_kafka_mock_cluster_bootstraps.restype = text
        library.rd_kafka_mock_cluster_bootstraps.argtypes = [address]
        library.rd_kafka_mock_coordinator_set.argtypes = [address, text, text, number]
        library.rd_kafka_mock_topic_create.argtypes = [address, text, ctypes.c_int, ctypes.c_int]
        library.rd_kafka_mock_broker_set_down.argtypes = [address, number]
        library.rd_kafka_mock_push_request_errors.argtypes = [
            address, ctypes.c_int16, ctypes.c_size_t, ctypes.c_int,
        ]  # fmt: skip
        conf = library.rd_kafka_conf_new()
        # It says that it has no servers.
        library.rd_kafka_conf_set(conf, b"log_level", b"0", None, 0)
        self._cluster = library.rd_kafka_mock_cluster_new(make(PRODUCER, conf, None, 0), brokers)
        self.bootstrap_servers: str = library.rd_kafka_mock_cluster_bootstraps(
            self._cluster
        ).decode()

    def coordinate_transactions(self, transactional_id: str, broker: int) -> None:
        self._coordinate(b"transaction", transactional_id, broker)

    def coordinate_group(self, group_id: str, broker: int) -> None:
        self._coordinate(b"group", group_id, broker)

    def _coordinate(self, kind: bytes, key: str, broker: int) -> None:
        self._tell("coordinator_set", kind, key.encode(), broker)

    def create_topic(self, topic: str) -> None:
        """One partition of it; topics that are produced to make themselves."""
        self._tell("topic_create", topic.encode(), 1, 1)

    def refuse_produce(self, error: int) -> None:
        """The next Produce is answered with this error."""
        # The errors are variable arguments, whose types have to be named.
        self._library.rd_kafka_mock_push_request_errors(
            self._cluster, PRODUCE, 1, ctypes.c_int(error)
        )

    def take_down(self, broker: int) -> None:
        self._tell("broker_set_down", broker)

    def _tell(self, what: str, *arguments: Any) -> None:
        """Have it done by the cluster's own thread, which misses the word now and then and sleeps
        on for a second: whatever connects to it wakes it."""
        done = threading.Event()

        def wake() -> None:
            while not done.wait(WAKE_S):
                for address in self.bootstrap_servers.split(","):
                    with suppress(OSError):
                        socket.create_connection(broker_address(address), 1.0).close()

        waker = threading.Thread(target=wake, daemon=True)
        waker.start()
        getattr(self._library, f"rd_kafka_mock_{what}")(self._cluster, *arguments)
        done.set()
        waker.join()

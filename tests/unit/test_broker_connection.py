"""A connection of our own ends in time, whatever the broker does."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pipeline.broker_connection import BrokerConnection
from pipeline.kafka_wire import Malformed

WAIT_S = 20.0


@pytest.fixture
def broker() -> Iterator[Callable[[bytes, bytes], tuple[str, int]]]:
    """One that answers each request with some bytes, and then for ever with others one by one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def start(first: bytes, drops: bytes) -> tuple[str, int]:
            def serve() -> None:
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(first)
                        while not over.wait(0.01):
                            connection.sendall(drops)

            threading.Thread(target=serve, daemon=True).start()
            host, port = listener.getsockname()
            return host, port

        yield start
        over.set()


def ended(ask: Callable[[], object]) -> BaseException:
    """What ended it, which it has to in the end."""
    told: list[BaseException] = []

    def run() -> None:
        try:
            ask()
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert told, "it still waits, or was answered"
    return told[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("timeout_s", "deadline_s"), [(0.2, math.inf), (math.inf, 0.2)], ids=["request", "all"]
)
def test_an_answer_in_drops_ends_at_the_bound(
    broker: Callable[[bytes, bytes], tuple[str, int]], timeout_s: float, deadline_s: float
) -> None:
    """Each drop comes in time; all of them never do."""
    address = broker(struct.pack(">i", 1_000_000), b"\0")
    connection = BrokerConnection(
        *address, min(timeout_s, WAIT_S), deadline_s=time.monotonic() + deadline_s
    )
    error = ended(lambda: connection.ask(1, 10, b"", flexible=False))
    assert isinstance(error, TimeoutError)
    assert connection.is_closed


@pytest.mark.slow
def test_a_broker_that_is_silent_is_not_waited_for_once_it_is_to_stop(
    broker: Callable[[bytes, bytes], tuple[str, int]],
) -> None:
    stop = threading.Event()
    connection = BrokerConnection(*broker(b"", b""), 600, stopped=stop.is_set)
    threading.Timer(0.1, stop.set).start()
    error = ended(lambda: connection.ask(1, 10, b"", flexible=False))
    assert isinstance(error, TimeoutError)


def test_what_is_no_answer_is_not_read_on(
    broker: Callable[[bytes, bytes], tuple[str, int]],
) -> None:
    """The next would be read in the middle of this one."""
    connection = BrokerConnection(*broker(struct.pack(">ii", 8, 12345), b"\0"), WAIT_S)
    error = ended(lambda: connection.ask(1, 10, b"", flexible=False))
    assert isinstance(error, Malformed)
    assert connection.is_closed

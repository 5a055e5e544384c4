"""A TCP proxy in front of a broker that can lose the answers to EndTxn, or keep the requests.

It reads Kafka's framing (four bytes of length, then api key, version and correlation id) and
rewrites nothing, so the broker advertises the proxy's port on a listener of its own (see
``proxied_kafka``).
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.embedded.kafka import start_kafka, stop_kafka
from pipeline.embedded.ports import LOOPBACK, free_ports

END_TXN = 26
# A refused EndTxn whose epoch is not the newest, in Kafka's table of errors.
INVALID_PRODUCER_EPOCH = 47
NO_ERROR = 0


@dataclass(frozen=True)
class ProxiedKafka:
    """A broker of its own with two addresses: clients of ``proxied`` are led through the proxy."""

    direct: str
    proxied: str
    proxy: EndTxnProxy


@contextlib.contextmanager
def proxied_kafka(folder: Path) -> Iterator[ProxiedKafka]:
    """Start a broker whose second listener advertises the proxy's port; stopped on leaving."""
    port, controller_port, proxied_port = free_ports(3)
    folder.mkdir(parents=True)
    # The listeners name the ports, so the ports are chosen before the start instead of by it.
    node = {"node_id": 1, "port": port, "controller_port": controller_port}
    cluster = {"cluster_id": "p" + uuid.uuid4().hex[:21], "nodes": [node]}
    (folder / "cluster.json").write_text(json.dumps(cluster))
    with EndTxnProxy(proxied_port) as proxy:
        handle = start_kafka(
            folder,
            heap_mb=320,
            die_with_parent=True,
            extra_config={
                "listeners": f"PLAINTEXT://{LOOPBACK}:{port},PROXIED://{LOOPBACK}:{proxied_port},"
                f"CONTROLLER://{LOOPBACK}:{controller_port}",
                "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port},"
                f"PROXIED://{LOOPBACK}:{proxy.port}",
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,"
                "CONTROLLER:PLAINTEXT",
            },
        )
        try:
            yield ProxiedKafka(handle.bootstrap_servers, proxy.address, proxy)
        finally:
            stop_kafka(handle)


@dataclass(frozen=True)
class EndTxnCopy:
    """One EndTxn request as it went by, header and all."""

    frame: bytes

    @property
    def version(self) -> int:
        version: int = struct.unpack_from(">h", self.frame, 6)[0]
        return version


class EndTxnProxy:
    """``with EndTxnProxy(port_of_broker) as proxy``: clients connect to ``proxy.address``.

    ``swallow(n)`` lets the next n EndTxn requests through and closes the connection instead of
    handing back the answer. ``delay_s`` holds every EndTxn back before it is forwarded. All
    EndTxn requests are kept in ``copies``; ``send_late(copy)`` sends one again, on a connection of
    its own, and returns the broker's error code.
    """

    def __init__(self, upstream_port: int, *, port: int = 0) -> None:
        self._upstream_port = upstream_port
        self._lock = threading.Lock()
        self._to_swallow = 0
        self.swallowed = 0
        self.delay_s = 0.0
        self.copies: list[EndTxnCopy] = []
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._listener = socket.create_server((LOOPBACK, port))
        self.port: int = self._listener.getsockname()[1]

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def swallow(self, count: int) -> None:
        """Lose the answers to the next ``count`` EndTxn requests."""
        with self._lock:
            self._to_swallow += count

    def send_late(self, copy: EndTxnCopy) -> int:
        """Let a kept request arrive (again); the error code that the broker answers with."""
        with socket.create_connection((LOOPBACK, self._upstream_port), timeout=10) as upstream:
            upstream.sendall(copy.frame)
            answer = _frame(upstream)
        if answer is None:
            raise AssertionError("the broker closed the connection on a late EndTxn")
        # Length, correlation id, (from version 3 on a byte of tagged fields,) throttle, error.
        at = 4 + 4 + (1 if copy.version >= 3 else 0) + 4
        code: int = struct.unpack_from(">h", answer, at)[0]
        return code

    def __enter__(self) -> EndTxnProxy:
        self._spawn(self._accept)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._closing = True
        with self._lock:
            sockets = [self._listener, *self._sockets]
        for each in sockets:
            _shut(each)
        for thread in self._threads:
            thread.join(5)

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
                upstream = socket.create_connection((LOOPBACK, self._upstream_port), timeout=10)
            except OSError:
                if self._closing:
                    return
                continue
            for each in (client, upstream):
                each.settimeout(None)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {client, upstream}
            doomed: set[int] = set()
            self._spawn(self._requests, client, upstream, doomed)
            self._spawn(self._answers, client, upstream, doomed)

    def _requests(self, client: socket.socket, upstream: socket.socket, doomed: set[int]) -> None:
        with contextlib.suppress(OSError):
            while (frame := _frame(client)) is not None:
                api_key, _, correlation_id = struct.unpack_from(">hhi", frame, 4)
                if api_key == END_TXN:
                    if self.delay_s:
                        time.sleep(self.delay_s)
                    with self._lock:
                        self.copies.append(EndTxnCopy(frame))
                        if self._to_swallow:
                            self._to_swallow -= 1
                            doomed.add(correlation_id)
                upstream.sendall(frame)
        self._part(client, upstream)

    def _answers(self, client: socket.socket, upstream: socket.socket, doomed: set[int]) -> None:
        with contextlib.suppress(OSError):
            while (frame := _frame(upstream)) is not None:
                (correlation_id,) = struct.unpack_from(">i", frame, 4)
                if correlation_id in doomed:
                    with self._lock:
                        self.swallowed += 1
                    break
                client.sendall(frame)
        self._part(client, upstream)

    def _part(self, *sockets: socket.socket) -> None:
        for each in sockets:
            _shut(each)
        with self._lock:
            self._sockets -= set(sockets)


def _frame(source: socket.socket) -> bytes | None:
    """One length-prefixed frame, the prefix included; None at the end of the stream."""
    prefix = _exactly(source, 4)
    if prefix is None:
        return None
    body = _exactly(source, struct.unpack(">i", prefix)[0])
    return None if body is None else prefix + body


def _exactly(source: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        piece = source.recv(min(65536, count - len(parts)))
        if not piece:
            return None
        parts += piece
    return bytes(parts)


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()

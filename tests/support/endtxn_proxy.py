"""A TCP proxy in front of a broker that can lose EndTxn or its answers, or answer in its place.

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
from pipeline.embedded.kafka_config import SHORT_LIVED
from pipeline.embedded.ports import LOOPBACK, free_ports

END_TXN = 26
# A refused EndTxn whose epoch is not the newest, in Kafka's table of errors.
INVALID_PRODUCER_EPOCH = 47
# A refusal that the client takes for a reason to abort.
INVALID_PRODUCER_ID_MAPPING = 49
NO_ERROR = 0
# Far below any time-out of a test's own transactions, so that the broker ends them in time.
ABORT_LOOK_INTERVAL_MS = 200


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
            jvm_flags=SHORT_LIVED,
            die_with_parent=True,
            extra_config={
                "listeners": f"PLAINTEXT://{LOOPBACK}:{port},PROXIED://{LOOPBACK}:{proxied_port},"
                f"CONTROLLER://{LOOPBACK}:{controller_port}",
                "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port},"
                f"PROXIED://{LOOPBACK}:{proxy.port}",
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,"
                "CONTROLLER:PLAINTEXT",
                "transaction.abort.timed.out.transaction.cleanup.interval.ms": str(
                    ABORT_LOOK_INTERVAL_MS
                ),
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

    @property
    def error_at(self) -> int:
        """Where the error code stands in the answer: length, correlation id, (from version 3 on a
        byte of tagged fields,) throttle time, error."""
        return 4 + 4 + (1 if self.version >= 3 else 0) + 4

    def answer(self, code: int) -> bytes:
        """The frame that answers this request with an error code."""
        tags = b"\0" if self.version >= 3 else b""
        body = self.frame[8:12] + tags + struct.pack(">ih", 0, code) + tags
        return struct.pack(">i", len(body)) + body


class EndTxnProxy:
    """``with EndTxnProxy(port_of_broker) as proxy``: clients connect to ``proxy.address``.

    ``swallow(n)`` lets the next n EndTxn requests through and closes the connection instead of
    handing back the answer; ``drop()`` loses the requests themselves until ``heal()``.
    ``answer_next(code, forward=...)`` answers the next one with that error code: without the broker
    ever seeing it, or, forwarded, in place of the broker's own answer. ``delay_s`` holds every
    EndTxn back before it is forwarded. All EndTxn requests are kept in ``copies``;
    ``send_late(copy)`` sends one again, on a connection of its own, and returns the broker's error
    code.
    """

    def __init__(self, upstream_port: int, *, port: int = 0) -> None:
        self._upstream_port = upstream_port
        self._lock = threading.Lock()
        self._to_swallow = 0
        self.swallowed = 0
        self._dropping = False
        self.dropped = 0
        self._to_answer: list[tuple[int, bool]] = []
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

    def drop(self) -> None:
        """Lose every EndTxn request, and its connection, from now on."""
        self._dropping = True

    def heal(self) -> None:
        """Let EndTxn requests through again."""
        self._dropping = False

    def answer_next(self, code: int, *, forward: bool) -> None:
        """Answer one more EndTxn with an error code, whether the broker hears of it or not."""
        with self._lock:
            self._to_answer.append((code, forward))

    def send_late(self, copy: EndTxnCopy) -> int:
        """Let a kept request arrive (again); the error code that the broker answers with."""
        with socket.create_connection((LOOPBACK, self._upstream_port), timeout=10) as upstream:
            upstream.sendall(copy.frame)
            answer = _frame(upstream)
        if answer is None:
            raise AssertionError("the broker closed the connection on a late EndTxn")
        code: int = struct.unpack_from(">h", answer, copy.error_at)[0]
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
            doomed: dict[int, bytes | None] = {}
            self._spawn(self._requests, client, upstream, doomed)
            self._spawn(self._answers, client, upstream, doomed)

    def _requests(
        self, client: socket.socket, upstream: socket.socket, doomed: dict[int, bytes | None]
    ) -> None:
        """``doomed``: correlation ids whose answer is replaced, or lost (None)."""
        with contextlib.suppress(OSError):
            while (frame := _frame(client)) is not None:
                api_key, _, correlation_id = struct.unpack_from(">hhi", frame, 4)
                forward = True
                if api_key == END_TXN:
                    if self.delay_s:
                        time.sleep(self.delay_s)
                    copy = EndTxnCopy(frame)
                    with self._lock:
                        self.copies.append(copy)
                        if self._dropping:
                            self.dropped += 1
                            break
                        if self._to_answer:
                            code, forward = self._to_answer.pop(0)
                            doomed[correlation_id] = copy.answer(code)
                        elif self._to_swallow:
                            self._to_swallow -= 1
                            doomed[correlation_id] = None
                if forward:
                    upstream.sendall(frame)
                else:
                    # The answers' thread may be in the middle of a frame to this client: let it.
                    with self._lock:
                        client.sendall(doomed.pop(correlation_id) or b"")
        self._part(client, upstream)

    def _answers(
        self, client: socket.socket, upstream: socket.socket, doomed: dict[int, bytes | None]
    ) -> None:
        with contextlib.suppress(OSError):
            while (frame := _frame(upstream)) is not None:
                (correlation_id,) = struct.unpack_from(">i", frame, 4)
                if correlation_id in doomed:
                    instead = doomed.pop(correlation_id)
                    if instead is None:
                        with self._lock:
                            self.swallowed += 1
                        break
                    frame = instead
                with self._lock:
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

"""A connection of our own to one broker, for requests that confluent-kafka does not offer."""

from __future__ import annotations

import itertools
import math
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.kafka_wire import PREFIX, Malformed, Reader, framed
from pipeline.secured import NotAuthenticated, authenticate, mechanism, secured_socket

SASL_HANDSHAKE, SASL_AUTHENTICATE = 17, 36
# Neither is flexible.
_HANDSHAKE_VERSION, _AUTHENTICATE_VERSION = 1, 0
_CLIENT = b"paystream"
NO_ERROR = 0
# What claims more is no answer of Kafka's: a batch is 16 MiB at most.
ANSWER_BYTES_MAX = 256 * 1024 * 1024
# How soon a request that waits hears that it is to end.
_HEARS_S = 0.25


class Refused(Exception):
    """A broker answered with an error code; asked again a moment later it may not."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what}: error {code}")
        self.code = code


class BrokerConnection:
    """One connection to one broker; a request is answered before the next is sent. OSError when
    the broker goes away or takes too long, Malformed when it does not speak Kafka, UserError when
    it does not let us in. After any of them, or where the memory did not suffice, it is closed:
    what comes next would be the rest of an answer.

    ``timeout_s`` bounds connecting and each request as a whole, in however small pieces its answer
    comes; ``deadline_s``, of the monotonic clock, and ``stopped`` end all of them. ``access``: how
    the broker is reached, where it is not as the process says.
    """

    def __init__(
        self,
        host: str,
        port: int,
        timeout_s: float,
        *,
        deadline_s: float = math.inf,
        stopped: Callable[[], bool] = lambda: False,
        access: Mapping[str, Any] | None = None,
    ) -> None:
        self._ids = itertools.count(1)
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._stopped = stopped
        self._until_s = self._bound()
        self._access = access
        wanted = mechanism(access)
        self._socket = secured_socket(host, port, self._left_s(), access)
        if wanted is not None:
            try:
                self._authenticate(wanted)
            except BaseException:
                self._socket.close()
                raise

    @property
    def is_closed(self) -> bool:
        return self._socket.fileno() < 0

    def close(self) -> None:
        self._socket.close()

    def ask(self, api: int, version: int, body: bytes, *, flexible: bool = True) -> Reader:
        """The answer, at the beginning of its body. ``flexible``: whether this version of the API
        is, in its headers as in its body."""
        wanted = next(self._ids)
        self._until_s = self._bound()
        header = struct.pack(">hhih", api, version, wanted, len(_CLIENT)) + _CLIENT
        tags = b"\0" if flexible else b""
        try:
            self._socket.settimeout(self._left_s())
            self._socket.sendall(framed(header + tags + body + tags))
            (size,) = struct.unpack(">i", self._exactly(PREFIX))
            if not 4 <= size <= ANSWER_BYTES_MAX:
                raise Malformed(f"an answer of {size} bytes")
            reader = Reader(self._exactly(size), flexible=flexible)
            if reader.i32() != wanted:
                raise Malformed("an answer to another request")
            reader.tags()
        except BaseException:
            self.close()
            raise
        return reader

    def _authenticate(self, wanted: str) -> None:
        name = wanted.encode()
        body = struct.pack(">h", len(name)) + name
        reader = self.ask(SASL_HANDSHAKE, _HANDSHAKE_VERSION, body, flexible=False)
        if (code := reader.i16()) != NO_ERROR:
            raise NotAuthenticated(f"The broker does not speak {wanted} (error {code}).")
        authenticate(wanted, self._exchange, self._access)

    def _exchange(self, message: bytes) -> bytes:
        body = struct.pack(">i", len(message)) + message
        reader = self.ask(SASL_AUTHENTICATE, _AUTHENTICATE_VERSION, body, flexible=False)
        code, why = reader.i16(), reader.string()
        if code != NO_ERROR:
            raise NotAuthenticated(f"the broker refuses the user: {why or f'error {code}'}.")
        return reader.data()

    def _exactly(self, size: int) -> bytes:
        read = bytearray()
        while len(read) < size:
            self._socket.settimeout(min(self._left_s(), _HEARS_S))
            try:
                piece = self._socket.recv(size - len(read))
            except TimeoutError:
                continue
            if not piece:
                raise ConnectionResetError("the broker has closed the connection")
            read += piece
        return bytes(read)

    def _bound(self) -> float:
        return min(self._deadline_s, time.monotonic() + self._timeout_s)

    def _left_s(self) -> float:
        """Of what is under way."""
        if self._stopped():
            raise TimeoutError("ended before the broker had answered")
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the broker has not answered in time")
        return left_s

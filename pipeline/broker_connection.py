"""A connection of our own to one broker, for requests that confluent-kafka does not offer."""

from __future__ import annotations

import itertools
import struct

from pipeline.kafka_wire import PREFIX, Malformed, Reader, framed
from pipeline.secured import NotAuthenticated, authenticate, mechanism, secured_socket

SASL_HANDSHAKE, SASL_AUTHENTICATE = 17, 36
# Neither is flexible.
_HANDSHAKE_VERSION, _AUTHENTICATE_VERSION = 1, 0
_CLIENT = b"paystream"
NO_ERROR = 0
# What claims more is no answer of Kafka's: a batch is 16 MiB at most.
ANSWER_BYTES_MAX = 256 * 1024 * 1024


class Refused(Exception):
    """A broker answered with an error code; asked again a moment later it may not."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what}: error {code}")
        self.code = code


class BrokerConnection:
    """One connection to one broker; a request is answered before the next is sent. OSError when
    the broker goes away, Malformed when it does not speak Kafka, UserError when it does not let us
    in."""

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

    def ask(self, api: int, version: int, body: bytes, *, flexible: bool = True) -> Reader:
        """The answer, at the beginning of its body. ``flexible``: whether this version of the API
        is, in its headers as in its body."""
        wanted = next(self._ids)
        header = struct.pack(">hhih", api, version, wanted, len(_CLIENT)) + _CLIENT
        tags = b"\0" if flexible else b""
        self._socket.sendall(framed(header + tags + body + tags))
        (size,) = struct.unpack(">i", self._exactly(PREFIX))
        if not 4 <= size <= ANSWER_BYTES_MAX:
            raise Malformed(f"an answer of {size} bytes")
        reader = Reader(self._exactly(size), flexible=flexible)
        if reader.i32() != wanted:
            raise Malformed("an answer to another request")
        reader.tags()
        return reader

    def _authenticate(self, wanted: str) -> None:
        name = wanted.encode()
        body = struct.pack(">h", len(name)) + name
        reader = self.ask(SASL_HANDSHAKE, _HANDSHAKE_VERSION, body, flexible=False)
        if (code := reader.i16()) != NO_ERROR:
            raise NotAuthenticated(f"The broker does not speak {wanted} (error {code}).")
        authenticate(wanted, self._exchange)

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
            piece = self._socket.recv(size - len(read))
            if not piece:
                raise ConnectionResetError("the broker has closed the connection")
            read += piece
        return bytes(read)

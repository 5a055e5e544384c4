"""The way between the brokers, on which the markers of one producer can be held.

    with MarkerRelay() as relay:
        start_kafka(folder, brokers=3, config_of=relay.config_of)
        relay.hold(Hold(nodes={2, 3}, producer_id=1001, topic="payments"))

A coordinator that has decided sends a marker to every broker with a partition of the transaction.
Each lands when it lands: a reader of one partition may see the transaction while one of another
does not yet. Here a request with such a marker waits until ``release``; all else, what replicas
copy above all, passes unread. A coordinator sends the next markers to that broker when the one
before was answered, so those of its other producers wait behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from pipeline.chaos.loop_thread import LoopThread
from pipeline.chaos.wire import Api
from pipeline.embedded.kafka_config import BrokerPorts, listeners
from pipeline.embedded.ports import LOOPBACK, free_ports
from pipeline.kafka_wire import PREFIX, Malformed, Reader

LISTENER = "BETWEEN"
WRITE_TXN_MARKERS = 27
# The length, and the API's key behind it.
_KEY_END = PREFIX + 2


@dataclass(frozen=True)
class Hold:
    """What is to wait: requests with a commit of this producer in that topic, to the first of these
    brokers that is sent one."""

    nodes: Collection[int]
    producer_id: int
    topic: str


@dataclass(frozen=True)
class SentMarker:
    """The end of one producer's transaction, on its way to a broker."""

    producer_id: int
    commits: bool
    partitions: frozenset[tuple[str, int]]


class MarkerRelay(LoopThread):
    """Listens once for every broker that asks for its settings. It runs in a thread of its own."""

    def __init__(self) -> None:
        super().__init__("marker-relay")
        self._ways: set[_Inbound] = set()
        self._ports: dict[int, tuple[int, int]] = {}
        self.hold_now: Hold | None = None
        self._held: list[tuple[_Inbound, bytes]] = []
        # Every marker that waited, in order.
        self.caught: list[SentMarker] = []

    def config_of(self, ports: BrokerPorts) -> Mapping[str, str]:
        """One more listener, for brokers alone, which others are told to reach by way of here."""
        if ports.node_id not in self._ports:
            (real,) = free_ports(1)
            self._ports[ports.node_id] = real, self._do(self._listen(ports.node_id, real))
        real, ours = self._ports[ports.node_id]
        return listeners(ports, LISTENER, real_port=real, named_port=ours)

    def hold(self, hold: Hold) -> None:
        """From now on, until ``release``."""
        self.hold_now = hold

    def release(self) -> None:
        """Let what waits arrive, and hold nothing any more."""
        self._do(self._release())

    async def _release(self) -> None:
        # By the thread that holds: none can come in between.
        self.hold_now = None
        held, self._held = self._held, []
        for way, frame in held:
            way.pass_on(frame)

    def takes(self, way: _Inbound, frame: bytes) -> bool:
        """Whether the frame waits here; asked by the relay's own connections."""
        hold = self.hold_now
        if hold is None or way.node_id not in hold.nodes:
            return False
        try:
            markers = read_markers(frame)
        except Malformed as error:
            self._broken = self._broken or error
            return False
        wanted = [
            marker
            for marker in markers
            if marker.commits
            and marker.producer_id == hold.producer_id
            and any(topic == hold.topic for topic, _ in marker.partitions)
        ]
        if not wanted:
            return False
        self.hold_now = replace(hold, nodes=(way.node_id,))
        self._held.append((way, frame))
        self.caught += wanted
        return True

    async def _listen(self, node_id: int, real_port: int) -> int:
        def inbound() -> _Inbound:
            way = _Inbound(self, node_id, real_port)
            self._ways.add(way)
            return way

        server = await self._loop.create_server(inbound, LOOPBACK, 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def forget(self, way: _Inbound) -> None:
        """A connection has ended: what waited on it is lost, as with any network."""
        self._ways.discard(way)
        self._held = [held for held in self._held if held[0] is not way]

    async def _end_connections(self) -> None:
        for way in list(self._ways):
            way.cut()


class _End(asyncio.Protocol):
    """One end of a way; what cannot be written yet stops the reading at the other end."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        for data in self._early:
            transport.write(data)
        self._early.clear()

    def write(self, data: bytes) -> None:
        if self.transport is None:
            self._early.append(data)
        else:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class _Inbound(_End):
    """The end at the broker that asks. Markers have connections of their own, on which nothing else
    comes but a question for versions; any other one is read no further (``_is_raw``)."""

    def __init__(self, relay: MarkerRelay, node_id: int, real_port: int) -> None:
        super().__init__()
        self.node_id = node_id
        self._relay = relay
        self._real_port = real_port
        self._unread = b""
        self._is_raw = False
        self.other = _End()
        self.other.other = self
        self._reaching: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._reaching = asyncio.get_running_loop().create_task(self._reach())

    async def _reach(self) -> None:
        other = self.other
        assert other is not None
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: other, LOOPBACK, self._real_port
            )
        except OSError:
            self.cut()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while not self._is_raw and len(self._unread) >= _KEY_END:
            key = int.from_bytes(self._unread[PREFIX:_KEY_END], "big")
            if key not in (Api.API_VERSIONS, WRITE_TXN_MARKERS):
                self._is_raw = True
                break
            size = PREFIX + int.from_bytes(self._unread[:PREFIX], "big")
            if len(self._unread) < size:
                return
            frame, self._unread = self._unread[:size], self._unread[size:]
            if not self._relay.takes(self, frame):
                self.pass_on(frame)
        if self._is_raw:
            data, self._unread = self._unread, b""
            self.pass_on(data)

    def pass_on(self, data: bytes) -> None:
        assert self.other is not None
        self.other.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.forget(self)
        if self._reaching is not None:
            self._reaching.cancel()
        super().connection_lost(exc)

    def cut(self) -> None:
        for end in (self, self.other):
            if end is not None and end.transport is not None:
                end.transport.abort()


def read_markers(frame: bytes) -> list[SentMarker]:
    """Of a WriteTxnMarkers request, versions 1 and 2; none in any other request."""
    reader = Reader(frame, PREFIX)
    api_key, version, _ = reader.i16(), reader.i16(), reader.i32()
    if api_key != WRITE_TXN_MARKERS:
        return []
    # The client id keeps the old form of a string in every version of the header.
    reader.string()
    reader.flexible = True
    reader.tags()
    markers = []
    for _ in reader.array():
        producer_id = reader.i64()
        reader.i16()  # epoch
        commits = bool(reader.i8())
        partitions: set[tuple[str, int]] = set()
        for _ in reader.array():
            topic = reader.string() or ""
            partitions |= {(topic, reader.i32()) for _ in reader.array()}
            reader.tags()
        reader.i32()  # the coordinator's epoch
        if version >= 2:
            reader.i8()  # the transaction's version
        reader.tags()
        markers.append(SentMarker(producer_id, commits, frozenset(partitions)))
    return markers

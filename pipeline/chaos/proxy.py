"""A proxy between Kafka clients and one broker or several, which injures requests by rule.

    with KafkaProxy("127.0.0.1:9092") as proxy:
        producer = Producer({"bootstrap.servers": proxy.bootstrap_servers, ...})
        proxy.inject(Rule(Api.END_TXN, lose_answer()))

It listens once for each broker and puts its own addresses in place of theirs wherever an answer
names one, so that clients stay on its way. Brokers that it learns of later get a listener when
they are first named. Plaintext only. It runs in a thread of its own; every method may be called
from any.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from pipeline.broker_addresses import broker_addresses
from pipeline.chaos import addresses
from pipeline.chaos.addresses import Address
from pipeline.chaos.faults import Injected, Lost, Rule
from pipeline.chaos.loop_thread import LoopThread
from pipeline.chaos.wire import (
    Api,
    Request,
    api_versions_request,
    correlation_id_of,
    error_of,
    is_flexible,
    plain_answer,
    read_request,
)

LOOPBACK = "127.0.0.1"
# The next request on a connection, for one that is to change places with it.
SWAP_WAIT_S = 1.0
# A copy is answered at once, or its broker is gone.
COPY_TIMEOUT_S = 15.0


@dataclass
class _Pending:
    """A request whose answer is on its way; ``order`` is that of arrival, over all connections."""

    request: Request
    order: int
    lost: bool = False
    cut: bool = False
    instead: bytes | None = None


@dataclass(eq=False)
class _Held:
    """A copy that waits for later requests to overtake it."""

    injected: Injected
    order: int
    after: Api
    left: int


class KafkaProxy(LoopThread):
    """``bootstrap`` is host:port[,...] of running brokers. ``log_file`` gets a JSON line for each
    fault, and one more when its copy was answered. ``seed`` is for rules with a chance."""

    def __init__(self, bootstrap: str, *, log_file: Path | None = None, seed: int = 0) -> None:
        super().__init__("kafka-proxy")
        self._upstreams = broker_addresses(bootstrap)
        self._ports: dict[Address, int] = {}
        self._log_file = log_file
        self._random = random.Random(seed)
        self._rules: list[Rule] = []
        self._held: list[_Held] = []
        self._injected: list[Injected] = []
        self._lock = threading.Lock()
        self._begun_s = time.monotonic()
        self._listening = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: set[asyncio.Future[None]] = set()
        self._arrived = 0
        # Requests by API key and version, for whoever wants to know what clients speak.
        self.seen: Counter[tuple[int, int]] = Counter()

    def __enter__(self) -> Self:
        super().__enter__()
        for upstream in self._upstreams:
            self._do(self._listen(upstream))
        return self

    @property
    def bootstrap_servers(self) -> str:
        """What clients are to be given in place of the brokers' addresses."""
        return ",".join(f"{LOOPBACK}:{self._ports[upstream]}" for upstream in self._upstreams)

    def inject(self, rule: Rule) -> Rule:
        """From now on; the first rule that chooses a request is the one that happens to it."""
        with self._lock:
            self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """Forget every rule. Copies that wait still arrive."""
        with self._lock:
            self._rules.clear()

    @property
    def injected(self) -> list[Injected]:
        """Every fault so far, in order."""
        with self._lock:
            return list(self._injected)

    @property
    def waiting_copies(self) -> int:
        with self._lock:
            return len(self._held)

    def release(self) -> None:
        """Let every copy that waits arrive now; returns when each is answered."""
        self._do(self._release())

    def send_again(self, injected: Injected) -> int:
        """Let a request that a fault happened to arrive once more: the broker's error code."""
        return self._do(self._send_copy(injected))

    def features(self) -> dict[str, int]:
        """The levels of the cluster's features, by its first broker's own account."""
        return self._do(self._features())

    async def _listen(self, upstream: Address) -> int:
        async with self._listening:
            port = self._ports.get(upstream)
            if port is None:
                server = await asyncio.start_server(
                    lambda r, w: self._serve(upstream, r, w), LOOPBACK, 0
                )
                self._servers.append(server)
                port = int(server.sockets[0].getsockname()[1])
                self._ports[upstream] = port
        return port

    async def _end_connections(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(
        self, upstream: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            up_reader, up_writer = await asyncio.open_connection(*upstream)
        except OSError:
            writer.transport.abort()
            return
        pending: dict[int, _Pending] = {}
        ways = [
            asyncio.ensure_future(self._requests(upstream, reader, writer, up_writer, pending)),
            asyncio.ensure_future(self._answers(up_reader, writer, pending)),
        ]
        try:
            # One side that ends is the end of both, as with a single connection.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # The proxy closes; the server's own callback would print this as an error.
            pass
        finally:
            for way in ways:
                way.cancel()
            for ended in await asyncio.gather(*ways, return_exceptions=True):
                if isinstance(ended, Exception) and not isinstance(ended, OSError):
                    self._broken = self._broken or ended
            for each in (writer, up_writer):
                each.transport.abort()

    async def _requests(
        self,
        upstream: Address,
        reader: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        broker: asyncio.StreamWriter,
        pending: dict[int, _Pending],
    ) -> None:
        overtaken = asyncio.Event()
        while (frame := await _frame(reader)) is not None:
            request = read_request(frame)
            self.seen[request.api_key, request.version] += 1
            injected = self._injure(request, upstream)
            self._arrived += 1
            waiting = _Pending(request, self._arrived)
            pending[request.correlation_id] = waiting
            if injected is not None:
                fault = injected.fault
                if fault.delay_s:
                    await asyncio.sleep(fault.delay_s)
                if fault.copy is not None and fault.copy.after is not None:
                    held = _Held(injected, waiting.order, fault.copy.after, fault.copy.nth)
                    with self._lock:
                        self._held.append(held)
                if fault.answer is not None:
                    waiting.instead = plain_answer(request, fault.answer)
                if fault.lost is Lost.REQUEST:
                    if waiting.instead is not None:
                        client.write(waiting.instead)
                    elif not fault.silently:
                        return
                    continue
                waiting.lost = fault.lost is Lost.ANSWER
                waiting.cut = waiting.lost and not fault.silently
            if injected is not None and injected.fault.swap:
                overtaken = asyncio.Event()
                self._go_on(_behind(broker, frame, overtaken))
                continue
            broker.write(frame)
            overtaken.set()
            await broker.drain()
            if injected is not None and fault.copy is not None and fault.copy.after is None:
                await self._deliver([injected])

    async def _answers(
        self,
        reader: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        pending: dict[int, _Pending],
    ) -> None:
        while (answer := await _frame(reader)) is not None:
            waiting = pending.pop(correlation_id_of(answer), None)
            if waiting is not None:
                if due := self._take_held(partial(_overtaken, waiting)):
                    await self._deliver(due)
                if waiting.instead is not None:
                    answer = waiting.instead
                elif waiting.cut:
                    return
                elif waiting.lost:
                    continue
                else:
                    answer = await self._rewritten(answer, waiting.request)
            client.write(answer)
            await client.drain()

    def _injure(self, request: Request, upstream: Address) -> Injected | None:
        with self._lock:
            for rule in self._rules:
                if rule.spent or not rule.chooses(request):
                    continue
                if rule.chance < 1 and self._random.random() >= rule.chance:
                    continue
                rule.matched += 1
                at_s = time.monotonic() - self._begun_s
                injected = Injected(len(self._injected), at_s, rule.fault, request, upstream)
                self._injected.append(injected)
                self._write(injected)
                return injected
        return None

    def _take_held(self, due: Callable[[_Held], bool]) -> list[Injected]:
        with self._lock:
            taken = [held for held in self._held if due(held)]
            self._held = [held for held in self._held if held not in taken]
        return [held.injected for held in taken]

    async def _deliver(self, due: list[Injected]) -> None:
        # They arrive even if the connection that waits for them is cut meanwhile.
        await asyncio.shield(self._go_on(self._copy(due)))

    async def _release(self) -> None:
        await self._deliver(self._take_held(lambda _held: True))
        await asyncio.gather(*self._under_way)

    def _go_on(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        """Do it whatever becomes of the connection that it came by."""
        future = asyncio.ensure_future(work)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    async def _copy(self, due: list[Injected]) -> None:
        for injected in due:
            code = await self._send_copy(injected)
            with self._lock:
                injected.copy_answer = code
                injected.copy_at_s = time.monotonic() - self._begun_s
                self._write(injected)

    async def _send_copy(self, injected: Injected) -> int:
        """-1: no answer came."""
        request = injected.request
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            async with asyncio.timeout(COPY_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(*injected.upstream)
                try:
                    writer.write(request.frame)
                    answer = await _frame(reader)
                    if answer is not None:
                        return error_of(answer, Api(request.api_key), request.version)
                finally:
                    writer.transport.abort()
        return -1

    async def _features(self) -> dict[str, int]:
        request = api_versions_request()
        reader, writer = await asyncio.open_connection(*self._upstreams[0])
        try:
            writer.write(request.frame)
            answer = await _frame(reader)
        finally:
            writer.transport.abort()
        return {} if answer is None else addresses.finalized_features(answer, request.version)

    async def _rewritten(self, answer: bytes, request: Request) -> bytes:
        api = request.api
        if api is Api.API_VERSIONS:
            return addresses.with_versions_cut(answer, request.version)
        if api is None or api not in addresses.NAMING:
            return answer
        found = addresses.brokers_named(answer, api, request.version)
        if not found:
            return answer
        for named in found:
            await self._listen(named.address)
        return addresses.with_addresses(
            answer,
            found,
            lambda address: (LOOPBACK, self._ports[address]),
            is_flexible(api, request.version),
        )

    def _write(self, injected: Injected) -> None:
        if self._log_file is not None:
            with self._log_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(injected.as_dict()) + "\n")


def _overtaken(answered: _Pending, held: _Held) -> bool:
    """Count a request that was answered towards what a copy waits for, if it came after that."""
    request = answered.request
    if (
        request.api is not held.after
        or answered.order <= held.order
        or request.transactional_id != held.injected.request.transactional_id
    ):
        return False
    held.left -= 1
    return held.left <= 0


async def _behind(broker: asyncio.StreamWriter, frame: bytes, overtaken: asyncio.Event) -> None:
    """Send it behind the next one, or alone when none comes."""
    with contextlib.suppress(asyncio.TimeoutError):
        async with asyncio.timeout(SWAP_WAIT_S):
            await overtaken.wait()
    broker.write(frame)


async def _frame(reader: asyncio.StreamReader) -> bytes | None:
    """One length-prefixed frame, the prefix included; None at the end of the stream."""
    try:
        prefix = await reader.readexactly(4)
        return prefix + await reader.readexactly(int.from_bytes(prefix, "big"))
    except (asyncio.IncompleteReadError, OSError):
        return None

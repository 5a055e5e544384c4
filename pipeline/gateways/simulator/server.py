"""The simulator's process from the inside: its ports, its books and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from pipeline.errors import UserError
from pipeline.gateways.simulator.app import Gateway, Outage, build_app
from pipeline.gateways.simulator.faults import FaultPlan
from pipeline.gateways.simulator.notices import checked_address
from pipeline.gateways.simulator.personality import personality
from pipeline.gateways.simulator.process import DEFAULT_GATEWAY, HOST, SECRETS_VARIABLE

# Slow and hanging calls are let go at once on SIGTERM; what is left is one commit.
DRAIN_TIMEOUT_S = 5.0
# How often a child looks whether its parent is still there.
PARENT_CHECK_S = 0.5
# Pending connections: hundreds of calls may open at once, and a full backlog costs a client 1 s.
BACKLOG = 1_024


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """What the process is started with. ``port`` 0 takes a free one.

    ``gateway`` is the personality, one a process: one can be killed or frozen by itself. Times of
    None are the personality's own. Notices go to ``notice_url``, signed with ``notice_secrets``.
    """

    books: Path
    plan: FaultPlan
    gateway: str = DEFAULT_GATEWAY
    seed: int = 7
    port: int = 0
    host: str = HOST
    ready_file: Path | None = None
    key_retention_ms: int | None = None
    authorization_ms: int | None = None
    notice_url: str | None = None
    notice_secrets: tuple[str, ...] = ()
    parent_pid: int | None = None


def notice_secrets() -> tuple[str, ...]:
    """What this process is to sign notices with, by its environment."""
    return tuple(os.environ.get(SECRETS_VARIABLE, "").split())


async def serve(
    settings: SimulatorSettings, on_serving: Callable[[int], None] | None = None
) -> None:
    """Run the simulator in this process until SIGTERM, SIGINT or the parent's end; then drain.

    ``on_serving`` is told the port once calls are taken. Raises UserError if the port or the books
    cannot be had.
    """
    own = personality(settings.gateway)
    if settings.notice_url is not None:
        checked_address(settings.notice_url, settings.notice_secrets)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    with _books_lock(settings.books), _reserved_port(settings.host, settings.port) as port:
        gateway = Gateway(
            settings.books,
            plan=settings.plan,
            seed=settings.seed,
            key_retention_ms=settings.key_retention_ms,
            authorization_ms=settings.authorization_ms,
            personality=own,
            public_url=f"http://{settings.host}:{port}",
        )
        if settings.notice_url is not None:
            gateway.notices.address(settings.notice_url, settings.notice_secrets)
        public = _runner(build_app(gateway, outage_applies=True))
        admin = _runner(build_app(gateway, outage_applies=False))
        try:
            await admin.setup()
            await web.SockSite(admin, _listening(HOST, 0)).start()
            gateway.admin_port = int(admin.addresses[0][1])
            await public.setup()
            listener = _PublicListener(public, settings.host, port)
            gateway.on_outage = listener.follow
            await listener.open()
            if settings.ready_file is not None:
                _write_whole(settings.ready_file, f"{port}\n")
            if on_serving is not None:
                on_serving(port)
            await _until_stopped(stop, settings.parent_pid)
        finally:
            gateway.drain()
            await public.cleanup()
            await admin.cleanup()
            await gateway.close()


class _PublicListener:
    """Opens and closes the public port: while it is closed, clients are refused by the kernel."""

    def __init__(self, runner: web.AppRunner, host: str, port: int) -> None:
        self._runner = runner
        self._host = host
        self._port = port
        self._site: web.SockSite | None = None

    async def open(self) -> None:
        if self._site is None:
            self._site = web.SockSite(
                self._runner, _listening(self._host, self._port), backlog=BACKLOG
            )
            await self._site.start()

    async def follow(self, outage: Outage) -> None:
        """Listen, or not, as the outage says."""
        if outage is not Outage.REFUSE:
            await self.open()
        elif self._site is not None:
            await self._site.stop()
            self._site = None
            server = self._runner.server
            if server is not None:
                server.pre_shutdown()  # idle connections end; their next use must be a new one


async def _until_stopped(stop: asyncio.Event, parent_pid: int | None) -> None:
    while not stop.is_set():
        # Not PR_SET_PDEATHSIG: that one fires when the *thread* that started us ends.
        if parent_pid is not None and os.getppid() != parent_pid:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), PARENT_CHECK_S)


def _runner(app: web.Application) -> web.AppRunner:
    return web.AppRunner(
        app, access_log=None, handle_signals=False, shutdown_timeout=DRAIN_TIMEOUT_S
    )


@contextlib.contextmanager
def _books_lock(books: Path) -> Iterator[None]:
    """Hold the books for this process: two gateways on one file would number entries twice."""
    lock = books.with_name(f"{books.name}.lock")
    try:
        held = lock.open("ab")
    except OSError as error:
        raise UserError(
            f"The simulator's books {books} cannot be opened ({error.strerror}); "
            "give a path in a directory that exists and can be written."
        ) from error
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"Another simulator is using the books {books}; stop it or give another file."
            ) from error
        yield


@contextlib.contextmanager
def _reserved_port(host: str, port: int) -> Iterator[int]:
    """Keep the port ours while it is not listened on, so that an outage cannot lose it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as reservation:
        yield _bind(reservation, host, port)


def _listening(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    _bind(sock, host, port)
    return sock


def _bind(sock: socket.socket, host: str, port: int) -> int:
    # With this option on both, Linux lets a second socket bind a port that none listens on yet.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        raise UserError(
            f"The simulator cannot have port {port} on {host} ({error.strerror}); "
            "give another port, or 0 for a free one."
        ) from error
    return int(sock.getsockname()[1])


def _write_whole(path: Path, text: str) -> None:
    """Write the file so that a reader sees all of it or none."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)

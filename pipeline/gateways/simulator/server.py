"""Start and stop the simulator as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from pipeline.errors import UserError
from pipeline.gateways.simulator.app import Gateway, Outage, build_app
from pipeline.gateways.simulator.faults import FaultPlan
from pipeline.gateways.simulator.notices import checked_address
from pipeline.gateways.simulator.personality import personality

HOST = "127.0.0.1"
DEFAULT_GATEWAY = "simulator"
# The secrets of the notices, separated by spaces.
SECRETS_VARIABLE = "SIMULATOR_NOTICE_SECRETS"
# Python and its imports take about 0.5 s; a busy two-core machine ten times that.
START_TIMEOUT_S = 30.0
# Slow and hanging calls are let go at once on SIGTERM; what is left is one commit.
DRAIN_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 15.0
# How often a child looks whether its parent is still there.
PARENT_CHECK_S = 0.5
# Pending connections: hundreds of calls may open at once, and a full backlog costs a client 1 s.
BACKLOG = 1_024


@dataclass(frozen=True, slots=True)
class SimulatorHandle:
    """A running simulator. ``admin_url`` serves the same routes and stays up during an outage."""

    url: str
    admin_url: str
    port: int
    pid: int
    books: Path
    process: subprocess.Popen[bytes] = field(repr=False)
    gateway: str = DEFAULT_GATEWAY


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


def start_simulator(
    books: Path,
    *,
    faults: FaultPlan | str = "default",
    seed: int = 7,
    port: int = 0,
    gateway: str = DEFAULT_GATEWAY,
    key_retention_ms: int | None = None,
    authorization_ms: int | None = None,
    notice_url: str | None = None,
    notice_secrets: Sequence[str] = (),
    die_with_parent: bool = True,
) -> SimulatorHandle:
    """Start a simulated gateway on its books and wait until it answers.

    ``gateway`` is its personality: ``simulator``, ``northbank``, ``pacific`` or ``legacy``.
    ``faults`` is a plan, ``"default"``, ``"none"`` or the path of a JSON file. What the process
    prints goes to ``<books>.log``. Raises UserError if it does not come up.
    """
    books = books.resolve()
    ready_file = books.with_name(f"{books.name}.ready")
    plan_file = books.with_name(f"{books.name}.faults.json")
    log_file = books.with_name(f"{books.name}.log")
    try:
        books.parent.mkdir(parents=True, exist_ok=True)
        ready_file.unlink(missing_ok=True)
        if isinstance(faults, FaultPlan):
            plan_file.write_bytes(faults.to_json())
        command = [
            *(sys.executable, "-m", "pipeline.gateways.simulator", "--books", str(books)),
            *("--port", str(port), "--seed", str(seed), "--ready-file", str(ready_file)),
            *("--faults", str(plan_file) if isinstance(faults, FaultPlan) else faults),
            *("--gateway", gateway),
            *_option("--key-retention-ms", key_retention_ms),
            *_option("--authorization-ms", authorization_ms),
            *_option("--notice-url", notice_url),
            *(("--parent-pid", str(os.getpid())) if die_with_parent else ()),
        ]
        # By the environment: a command line can be read by everybody on the machine.
        environment = {**os.environ, SECRETS_VARIABLE: " ".join(notice_secrets)}
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
    except OSError as error:
        raise UserError(f"The simulator cannot be started on {books} ({error}).") from error
    try:
        return _await_ready(process, books, ready_file, log_file, gateway)
    except BaseException:
        process.kill()
        process.wait()
        raise


def stop_simulator(handle: SimulatorHandle) -> None:
    """Ask the simulator to drain and end; after ``STOP_TIMEOUT_S`` it is killed. Safe to repeat."""
    if handle.process.poll() is None:
        handle.process.terminate()
    try:
        handle.process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        kill_simulator(handle)


def kill_simulator(handle: SimulatorHandle) -> None:
    """End the simulator as a crash would (SIGKILL); its books stay good."""
    handle.process.kill()
    handle.process.wait()


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


def _await_ready(
    process: subprocess.Popen[bytes], books: Path, ready_file: Path, log_file: Path, gateway: str
) -> SimulatorHandle:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = log_file.read_text(errors="replace").strip().splitlines()
            last = said[-1] if said else "it printed nothing"
            raise UserError(f"The gateway simulator ended at once: {last} (see {log_file}).")
        if ready_file.exists():
            port = int(ready_file.read_text())
            url = f"http://{HOST}:{port}"
            with urllib.request.urlopen(f"{url}/healthz", timeout=START_TIMEOUT_S) as answer:
                admin_port = int(json.load(answer)["admin_port"])
            return SimulatorHandle(
                url, f"http://{HOST}:{admin_port}", port, process.pid, books, process, gateway
            )
        time.sleep(0.01)
    raise UserError(
        f"The gateway simulator was not ready after {START_TIMEOUT_S:.0f} s; see {log_file}."
    )


def _option(name: str, value: object) -> tuple[str, ...]:
    return () if value is None else (name, str(value))


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

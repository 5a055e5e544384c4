"""Many slow endpoints at once, each within its own bounds, and one that is quick."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from consumers.notifier import deliverer
from consumers.notifier.callback import Callback
from consumers.notifier.database import open_callbacks
from consumers.notifier.deliverer import Deliverer, judge
from consumers.notifier.endpoints import EndpointFile
from consumers.notifier.sender import UNREACHABLE, Delivery
from consumers.notifier.store import ROWS_MAX, CallbackStore
from consumers.notifier.watch import Unwatched
from tests.support.waiting import WAIT_S, wait_until

NOW_MS = 1_700_000_000_000
SECRET = "whsec_" + base64.b64encode(b"x" * 24).decode()


class Receivers:
    """Takes the first delivery to each path at once, and holds later ones of slow paths."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.held: list[str] = []
        self.port = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._let_go = asyncio.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        assert self._ready.wait(30)

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._let_go.set)
        self._thread.join(30)

    def _serve(self) -> None:
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        app = web.Application()
        app.router.add_post("/{name}", self._take)
        runner = web.AppRunner(app)
        await runner.setup()
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        await web.SockSite(runner, listening).start()
        self._ready.set()
        await self._let_go.wait()
        await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        await request.read()
        name = request.match_info["name"]
        if name.startswith("slow") and name in self.taken:
            self.held.append(name)
            await self._let_go.wait()
        self.taken.append(name)
        return web.Response()


@pytest.fixture
def receivers() -> Iterator[Receivers]:
    made = Receivers()
    yield made
    made.close()


def test_slow_endpoints_that_use_all_there_is_hold_up_no_other(
    receivers: Receivers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that answer nothing have six deliveries open, all that endpoints share; a third one that
    has none open is told all the same, event after event."""
    monkeypatch.setattr(deliverer, "OPEN_SHARED_MAX", 6)
    names = ("slow1", "slow2", "quick")
    (tmp_path / "e.toml").write_text(
        "".join(
            f'[endpoints.{name}]\nmerchant = "{name}"\nsecrets = ["{SECRET}"]\n'
            f'url = "http://127.0.0.1:{receivers.port}/{name}"\n'
            for name in names
        )
    )
    file = EndpointFile(tmp_path / "e.toml", allow_http=True, allow_private=True)
    file.load()
    store = CallbackStore(open_callbacks(f"sqlite:///{tmp_path / 'c.db'}"))
    store.take([_callback(name, n) for name in names[:2] for n in range(6)], "c", "t", {0: 1},
               NOW_MS)  # fmt: skip
    working = Deliverer(store, file, lanes=lambda: [0], first_ms=5_000, allow_http=True,
                        allow_private=True)  # fmt: skip
    stop = threading.Event()
    thread = threading.Thread(target=working.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: len(receivers.held) == 6, WAIT_S, "all that endpoints share is open")
        for n in range(3):
            store.take([_callback("quick", n)], "c", "t", {0: 2 + n}, NOW_MS)
            working.wake(["quick"])
            wait_until(lambda n=n: receivers.taken.count("quick") == n + 1, WAIT_S, "quick is told")
        assert len(receivers.held) == 6
    finally:
        stop.set()
        receivers.close()
        thread.join(30)


def test_name_servers_that_hang_hold_up_no_other(
    receivers: Receivers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred endpoints whose names are not answered, each tried twice: every name is asked for
    once, an endpoint that is found by its name is told meanwhile, and a stop waits for none."""
    resolve, asked, answer = socket.getaddrinfo, list[str](), threading.Event()

    def hanging(host: str, *rest: object, **more: object) -> object:
        if host.endswith(".example"):
            asked.append(host)
            answer.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return resolve(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    names = [f"n{number}" for number in range(100)]
    where = {name: f"http://{name}.example/x" for name in names}
    where["quick"] = f"http://localhost:{receivers.port}/quick"
    (tmp_path / "e.toml").write_text(
        "".join(
            f'[endpoints.{name}]\nmerchant = "{name}"\nsecrets = ["{SECRET}"]\n'
            f'url = "{url}"\ntimeout_ms = 1000\n'
            for name, url in where.items()
        )
    )
    file = EndpointFile(tmp_path / "e.toml", allow_http=True, allow_private=True)
    file.load()
    store = CallbackStore(open_callbacks(f"sqlite:///{tmp_path / 'c.db'}"))
    store.take([_callback(name, 1) for name in names], "c", "t", {0: 1}, NOW_MS)
    working = Deliverer(store, file, lanes=lambda: [0], first_ms=100, allow_http=True,
                        allow_private=True)  # fmt: skip
    stop = threading.Event()
    thread = threading.Thread(target=working.run, args=(stop,))
    thread.start()
    try:
        wait_until(
            lambda: all(row["tries"] >= 2 for name in names for row in store.find(endpoint=name)),
            60, "every one is tried twice",
        )  # fmt: skip
        store.take([_callback("quick", 1)], "c", "t", {0: 2}, NOW_MS)
        working.wake(["quick"])
        wait_until(lambda: receivers.taken == ["quick"], WAIT_S, "quick is told")
        assert sorted(asked) == sorted(f"{name}.example" for name in names)
        stop.set()
        wait_until(lambda: not thread.is_alive(), 60, "a stop waits for no lookup")
    finally:
        stop.set()
        answer.set()
        receivers.close()
        thread.join(60)


class Ended(Unwatched):
    """Counts what the metrics are told has ended."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()

    def ended(self, state: str) -> None:
        self.states[state] += 1


def test_what_is_given_up_for_want_of_an_endpoint_is_counted(tmp_path: Path) -> None:
    """Each one is in the metrics, by which an alert tells of it, and its log says why."""
    (tmp_path / "e.toml").write_text("")
    file = EndpointFile(tmp_path / "e.toml")
    file.load()
    store = CallbackStore(open_callbacks(f"sqlite:///{tmp_path / 'c.db'}"))
    many = ROWS_MAX + 1
    store.take([_callback("gone", n) for n in range(many)], "c", "t", {0: 1}, NOW_MS)
    ended = Ended()
    working = Deliverer(store, file, lanes=lambda: [0], first_ms=5_000, metrics=ended)
    stop = threading.Event()
    thread = threading.Thread(target=working.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: ended.states == {"given_up": many}, WAIT_S, "all are counted")
    finally:
        stop.set()
        thread.join(30)
    assert len(store.find(state="given_up")) == many
    (said,) = store.deliveries_of(["gone-7"])["gone", "gone-7"]
    assert said["detail"] == "after 0 tries: its endpoint is not configured any more"


def test_a_dead_endpoint_with_many_callbacks_is_given_up_in_time(tmp_path: Path) -> None:
    """A thousand that wait for 30 hours, of which rests allow few to be tried: all of them end, and
    are counted. Those of a paused one stay."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        (tmp_path / "e.toml").write_text(
            "".join(
                f'[endpoints.{name}]\nmerchant = "m"\nsecrets = ["{SECRET}"]\n{more}\n'
                f'url = "http://127.0.0.1:{unheard.getsockname()[1]}/x"\n'
                for name, more in (("dead", ""), ("paused", "paused = true"))
            )
        )
        file = EndpointFile(tmp_path / "e.toml", allow_http=True, allow_private=True)
        file.load()
        store = CallbackStore(open_callbacks(f"sqlite:///{tmp_path / 'c.db'}"))
        now_ms = int(time.time() * 1000)
        kept_ms, many = now_ms - 30 * 3_600_000, 1_000
        new = [_callback(name, n) for name in ("dead", "paused") for n in range(many)]
        store.take(new, "c", "t", {0: 1}, kept_ms)
        for name in ("dead", "paused"):
            (head,) = store.due(name, [0], now_ms, 1)
            for hours in range(0, 30, 4):
                said = Delivery(outcome=UNREACHABLE, at_ms=kept_ms + hours * 3_600_000, took_ms=1)
                store.record([judge(head, said, first_ms=5_000)])
        ended = Ended()
        working = Deliverer(store, file, lanes=lambda: [0], first_ms=5_000, allow_http=True,
                            allow_private=True, metrics=ended)  # fmt: skip
        stop = threading.Event()
        thread = threading.Thread(target=working.run, args=(stop,))
        thread.start()
        try:
            wait_until(lambda: ended.states == {"given_up": many}, WAIT_S, "all are given up")
        finally:
            stop.set()
            thread.join(30)
    assert {row["endpoint"] for row in store.find(state="waiting")} == {"paused"}


def _callback(endpoint: str, number: int) -> Callback:
    return Callback(
        endpoint=endpoint, event_id=f"{endpoint}-{number}", merchant_id=endpoint,
        order_id=str(number), payment_id=f"{endpoint}-p{number}", sequence=1, type="captured",
        lane=0, occurred_at_ms=NOW_MS, body=b"{}",
    )  # fmt: skip

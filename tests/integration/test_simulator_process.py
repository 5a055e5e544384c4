"""The gateway simulator as a process: crashes, restarts, outages, and its parent's end."""

from __future__ import annotations

import asyncio
import base64
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pipeline.errors import UserError
from pipeline.gateways.simulator import (
    FaultPlan,
    SimulatorHandle,
    kill_simulator,
    start_simulator,
)
from pipeline.gateways.simulator.personality import PERSONALITIES
from pipeline.gateways.webhook_signature import decoded_secret, refusal
from tests.support.cli import Cli
from tests.support.ports import free_port

pytestmark = pytest.mark.integration
DEADLINE_S = 20.0
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()

Start = Callable[..., SimulatorHandle]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start simulators on the test's books; whatever still runs at its end is killed."""
    running: list[SimulatorHandle] = []

    def started(**how: Any) -> SimulatorHandle:
        running.append(start_simulator(tmp_path / "books.db", **({"faults": "none"} | how)))
        return running[-1]

    yield started
    for handle in running:
        kill_simulator(handle)


def call(url: str, content: dict[str, Any] | None = None, key: str = "") -> tuple[int, bytes]:
    """POST the content, or GET without any: status and body."""
    request = urllib.request.Request(
        url,
        data=None if content is None else json.dumps(content).encode(),
        headers={"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {}),
    )
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def charge(handle: SimulatorHandle, key: str, token: str = "tok_ok") -> tuple[int, bytes]:
    """One charge of 10.00 under the key."""
    return call(f"{handle.url}/v1/charges", charge_body(key, token), key)


def charge_body(key: str, token: str = "tok_ok") -> dict[str, Any]:
    """The body of a charge of 10.00."""
    return {
        "reference": f"ref-{key}",
        "amount_minor": 1_000,
        "currency": "GBP",
        "instrument_token": token,
        "merchant_id": "shop",
        "order_id": f"order-{key}",
    }


def get(handle: SimulatorHandle, path: str) -> Any:
    """The JSON at a path."""
    return json.loads(call(f"{handle.url}{path}")[1])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return when the condition holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {DEADLINE_S} s: {what}")
        time.sleep(0.01)


def test_charges_and_answers_survive_a_kill(start: Start) -> None:
    """After SIGKILL the same charge, the same answer bytes and the same fault counts are there."""
    first = start()
    status, body = charge(first, "k1")
    declined = charge(first, "k2", "tok_decline_expired")
    assert charge(first, "k3", "tok_500_after")[0] == 500
    faults = get(first, "/v1/faults")
    kill_simulator(first)

    second = start(port=first.port)

    assert second.url == first.url
    assert charge(second, "k1") == (status, body)
    assert charge(second, "k2", "tok_decline_expired") == declined
    assert charge(second, "k3", "tok_500_after")[0] == 201
    assert get(second, "/v1/faults") == faults
    assert get(second, "/v1/books/summary")["charges"] == 2


def test_a_kill_in_a_burst_loses_no_answered_charge(start: Start) -> None:
    """Every charge answered before the crash is in the books after it, and each key only once."""
    first = start()

    async def burst() -> dict[str, str]:
        answered: dict[str, str] = {}

        async def client(session: aiohttp.ClientSession, lane: int) -> None:
            for n in range(10_000):
                key = f"k{lane}-{n}"
                try:
                    async with session.post(
                        "/v1/charges", json=charge_body(key), headers={"Idempotency-Key": key}
                    ) as answer:
                        answered[key] = (await answer.json())["id"]
                except aiohttp.ClientError:
                    return

        async def killer() -> None:
            while len(answered) < 300:
                await asyncio.sleep(0)
            first.process.kill()

        async with (
            aiohttp.ClientSession(
                first.url, timeout=aiohttp.ClientTimeout(total=DEADLINE_S)
            ) as session,
            asyncio.timeout(DEADLINE_S),
        ):
            await asyncio.gather(killer(), *(client(session, lane) for lane in range(30)))
        return answered

    answered = asyncio.run(burst())
    first.process.wait()
    second = start()

    booked: dict[str, str] = {}
    after, more = 0, True
    while more:
        page = get(second, f"/v1/books?after={after}&limit=200")
        for entry in page["entries"]:
            assert entry["idempotency_key"] not in booked
            booked[entry["idempotency_key"]] = entry["id"]
        after, more = page["next_after"], page["has_more"]
    assert len(answered) >= 300
    assert answered.items() <= booked.items()
    # At most one open call a client may be booked without its answer having arrived.
    assert len(booked) - len(answered) <= 30


def test_sigterm_finishes_what_is_open(start: Start) -> None:
    """A slow charge that is under way at SIGTERM is made and answered; a hanging one is let go."""
    plan = FaultPlan(slow_ms_min=60_000, slow_ms_max=60_000, hang_ms=60_000)
    handle = start(faults=plan)

    async def scenario() -> tuple[int, bool]:
        async with aiohttp.ClientSession(handle.url) as session:

            async def send(token: str) -> int:
                async with session.post(
                    "/v1/charges",
                    json=charge_body(token, token),
                    headers={"Idempotency-Key": token},
                ) as answer:
                    return answer.status

            slow = asyncio.create_task(send("tok_slow"))
            hanging = asyncio.create_task(send("tok_hang_before"))
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    async with session.get("/v1/faults") as answer:
                        faults = (await answer.json())["faults"]
                    if faults["slow"] and faults["hang_before"]:
                        break
                handle.process.terminate()
                await asyncio.wait([slow, hanging])
            return slow.result(), isinstance(hanging.exception(), aiohttp.ClientError)

    assert asyncio.run(scenario()) == (201, True)
    # A second SIGTERM could meet its last moments, in which nobody hears one any more.
    assert handle.process.wait(DEADLINE_S) == 0
    assert get(start(), "/v1/books/summary")["charges"] == 1


def test_a_refusing_outage_is_refused_by_the_kernel_and_ends(start: Start) -> None:
    """During a refusing outage nothing can connect; the admin port lifts it; the port is kept."""
    handle = start()
    call(f"{handle.url}/v1/admin/outage", {"mode": "refuse"})
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", handle.port), timeout=DEADLINE_S)
    assert json.loads(call(f"{handle.admin_url}/healthz")[1])["outage"] == "refuse"

    call(f"{handle.admin_url}/v1/admin/outage", {"mode": "none"})

    assert charge(handle, "k1")[0] == 201


def test_two_simulators_never_share_books(start: Start) -> None:
    """The second one on the same file is refused with a sentence; the first goes on."""
    first = start()

    with pytest.raises(UserError, match="Another simulator is using the books"):
        start()

    assert charge(first, "k1")[0] == 201


def test_a_taken_port_is_refused_with_a_sentence(tmp_path: Path, start: Start) -> None:
    """A port in use is named, with what to do."""
    first = start()

    with pytest.raises(UserError, match=f"cannot have port {first.port}"):
        start_simulator(tmp_path / "other.db", faults="none", port=first.port)


def test_it_goes_away_with_its_parent(tmp_path: Path) -> None:
    """A simulator whose parent was killed drains and ends by itself."""
    script = (
        "import sys, time, pathlib\n"
        "from pipeline.gateways.simulator import start_simulator\n"
        "handle = start_simulator(pathlib.Path(sys.argv[1]), faults='none')\n"
        "print(handle.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "books.db")], stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()

    wait_until(lambda: not _runs(pid), "the simulator ended after its parent")


def test_notices_that_wait_survive_a_kill(start: Start) -> None:
    """What nobody took before the crash is told by the next process, signed afresh."""
    with socket.socket() as nobody:
        # Bound and not listened on: refused, and nobody else gets it.
        nobody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        how = {"notice_url": f"http://127.0.0.1:{port}/hooks", "notice_secrets": (SECRET,)}
        first = start(**how)
        assert charge(first, "k1")[0] == 201
        kill_simulator(first)
    with desk_at(port) as taken:
        second = start(**how)
        wait_until(lambda: bool(taken), "the notice was sent")
        wait_until(lambda: get(second, "/v1/admin/notices")["waiting"] == 0, "and noted as taken")
    headers, body = taken[0]
    assert json.loads(body)["data"]["reference"] == "ref-k1"
    assert refusal([decoded_secret(SECRET)], headers, body, int(time.time())) is None
    command = Path(f"/proc/{second.pid}/cmdline").read_bytes()
    assert SECRET.encode() not in command


def test_the_command_sends_notices_where_it_is_told(tmp_path: Path) -> None:
    """As the compose file runs it: the address by an option, the secret by the environment."""
    port = free_port()
    cli = Cli(tmp_path, {"SIMULATOR_NOTICE_SECRETS": SECRET})
    with desk_at(0) as taken:
        url = f"http://localhost:{taken.port}/hooks"
        with cli.start("simulator", "--port", str(port), "--notice-url", url) as simulator:
            simulator.wait_for("Ctrl-C stops it")
            assert call(f"http://127.0.0.1:{port}/v1/charges", charge_body("k1"), "k1")[0] == 201
            wait_until(lambda: bool(taken), "the notice was sent")
            simulator.interrupt()
            assert simulator.ended() == 0
    headers, body = taken[0]
    assert refusal([decoded_secret(SECRET)], headers, body, int(time.time())) is None


class Taken(list[tuple[dict[str, str], bytes]]):
    """Headers and body of what a desk was sent."""

    port: int


@contextmanager
def desk_at(port: int) -> Iterator[Taken]:
    """An HTTP server that takes whatever is posted to it; 0 takes a free port."""
    taken = Taken()

    class Desk(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    desk = http.server.HTTPServer(("127.0.0.1", port), Desk)
    taken.port = desk.server_port
    threading.Thread(target=desk.serve_forever, daemon=True).start()
    try:
        yield taken
    finally:
        desk.shutdown()
        desk.server_close()


def test_each_gateway_is_a_process_of_its_own_and_says_which(tmp_path: Path) -> None:
    """A name that is none of them is refused with the choices."""
    handle = start_simulator(tmp_path / "legacy.db", faults="none", gateway="legacy")
    try:
        assert get(handle, "/healthz")["gateway"] == "legacy"
    finally:
        kill_simulator(handle)
    with pytest.raises(UserError, match="choose one of " + ", ".join(PERSONALITIES)):
        start_simulator(tmp_path / "other.db", faults="none", gateway="southbank")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # An ended process that nobody has reaped yet still has an id.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False

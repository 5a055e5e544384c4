"""Names whose servers hang: one thread each, asked again after a time, and no end held up."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from consumers.notifier.lookups import Lookups
from tests.support.waiting import wait_until

_ENDS_WHILE_ONE_HANGS = """
import asyncio, socket, threading
socket.getaddrinfo = lambda *given, **more: threading.Event().wait()
from consumers.notifier.lookups import Lookups

async def main():
    lookups = Lookups(1)
    try:
        async with asyncio.timeout(0.01):
            await lookups.resolve("a.example")
    except TimeoutError:
        print("given up")
    await lookups.close()

asyncio.run(main())
print("ended")
"""


class NameServers:
    """Answers the names it knows, and hangs at the others until ``over``, or at one question for a
    name for as long as it is held."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.asked: list[str] = []
        self.over = threading.Event()
        self._held: dict[tuple[str, int], threading.Event] = {}
        self._lock = threading.Lock()
        self._resolve = socket.getaddrinfo

    def __call__(self, host: str, *rest: object, **more: object) -> object:
        with self._lock:
            self.asked.append(host)
            held = self._held.get((host, self.asked.count(host)))
        if held is not None:
            held.wait()
        elif host not in self.known:
            self.over.wait()
        if host not in self.known:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return self._resolve("127.0.0.1", *rest, **more)  # type: ignore[arg-type]

    def hold(self, host: str, number: int) -> threading.Event:
        """The ``number``-th question for a name hangs until the event is set."""
        return self._held.setdefault((host, number), threading.Event())

    def end(self) -> None:
        self.over.set()
        for held in self._held.values():
            held.set()
        for thread in threading.enumerate():
            if thread.name == "lookup":
                thread.join()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServers]:
    made = NameServers()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.end()


async def begun(lookups: Lookups, host: str) -> None:
    """A delivery begins to wait for a name, and gives up."""
    waiting = asyncio.create_task(lookups.resolve(host, 443))
    await asyncio.sleep(0)
    waiting.cancel()


async def addresses(lookups: Lookups, host: str) -> list[tuple[str, int]]:
    return [(each["host"], each["port"]) for each in await lookups.resolve(host, 443)]


@pytest.mark.slow
def test_a_process_ends_while_a_lookup_hangs() -> None:
    """Neither the event loop nor the interpreter waits for a thread that may never come back."""
    done = subprocess.run(
        [sys.executable, "-c", _ENDS_WHILE_ONE_HANGS], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout.split("\n"), done.returncode) == (["given up", "ended", ""], 0), done.stderr


def test_a_name_is_asked_for_again_after_a_time(servers: NameServers) -> None:
    """Before it, whoever wants the name waits for the first lookup; then a second one is answered
    though the first still hangs."""

    async def main() -> None:
        patient, hasty = Lookups(8), Lookups(8, again_s=0)
        for _ in range(3):
            await begun(patient, "a.example")
        await begun(hasty, "b.example")
        wait_until(lambda: "b.example" in servers.asked, 30, "the first lookup hangs")
        servers.known.add("b.example")
        assert await addresses(hasty, "b.example") == [("127.0.0.1", 443)]
        servers.end()

    asyncio.run(main())
    assert sorted(servers.asked) == ["a.example", "b.example", "b.example"]


@pytest.mark.slow
def test_whichever_lookup_of_a_name_is_answered_serves_all_that_wait(servers: NameServers) -> None:
    """The first is answered at last while the second hangs on: who waits for either has it, and
    the name is then asked for as one that never hung. What the second says is nobody's."""

    async def main() -> None:
        lookups = Lookups(1, again_s=0)
        second = servers.hold("a.example", 2)
        early = asyncio.create_task(addresses(lookups, "a.example"))
        await asyncio.sleep(0)
        wait_until(lambda: len(servers.asked) == 1, 30, "the first lookup hangs")
        late = asyncio.create_task(addresses(lookups, "a.example"))
        await asyncio.sleep(0)
        wait_until(lambda: len(servers.asked) == 2, 30, "the second one too")
        servers.known.add("a.example")
        servers.over.set()
        async with asyncio.timeout(60):
            assert await early == await late == [("127.0.0.1", 443)]
        assert await addresses(lookups, "a.example") == [("127.0.0.1", 443)]
        second.set()
        servers.end()
        assert await addresses(lookups, "a.example") == [("127.0.0.1", 443)]

    asyncio.run(main())
    assert servers.asked == ["a.example"] * 4


def test_lookups_that_hang_are_no_more_than_the_bounds(servers: NameServers) -> None:
    """What is beyond is refused at once, or waits for the lookup that is under way."""

    async def main() -> None:
        servers.known.add("quick.example")
        lookups = Lookups(2, again_s=0, again_max=3)
        for _ in range(6):
            await begun(lookups, "a.example")
        assert await addresses(lookups, "quick.example") == [("127.0.0.1", 443)]
        await begun(lookups, "b.example")
        with pytest.raises(OSError, match="2 lookups of names hang"):
            await lookups.resolve("quick.example", 443)
        servers.end()

    asyncio.run(main())
    assert sorted(servers.asked) == ["a.example"] * 4 + ["b.example", "quick.example"]

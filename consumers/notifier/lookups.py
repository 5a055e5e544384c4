"""Names of endpoints looked up, in threads, each name in one of them at a time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
import time
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult
from msgspec import Struct

# A name whose lookup hangs for longer than this is asked for once more, then after twice as long
# each time: a name server that never answers is asked 16 times in a month.
ASKED_AGAIN_S: Final = 60.0
# Threads of names that are asked for once more, of all names together.
AGAIN_MAX: Final = 200

_Asked = tuple[str, int, socket.AddressFamily]
_Answer = asyncio.Future[list[ResolveResult]]


class _Lookup(Struct, eq=False):
    """A name that is asked for, in one thread or in several: whichever is answered first."""

    answer: _Answer
    patience_s: float
    again_at_s: float


class Lookups(AbstractResolver):
    """A name server may hang for longer than any delivery waits, or for ever. A lookup that nobody
    waits for any more holds its thread all the same, so who asks for its name again waits for that
    one, and only after a time another thread asks once more. The answer of either is everybody's.
    ``names_max``: how many names may hang at a time; what is beyond is refused. The threads hold up
    no end of the process.
    """

    def __init__(
        self, names_max: int, *, again_s: float = ASKED_AGAIN_S, again_max: int = AGAIN_MAX
    ) -> None:
        self._names_max = names_max
        self._again_s = again_s
        self._again_max = again_max
        self._loop = asyncio.get_running_loop()
        self._open: dict[_Asked, _Lookup] = {}
        # Threads, whether or not their name has its answer: first ones, and those that ask again.
        self._first = 0
        self._again = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        asked = (host, port, family)
        now_s = time.monotonic()
        lookup = self._open.get(asked)
        if lookup is None:
            if self._first >= self._names_max:
                raise OSError(errno.EAGAIN, f"{self._names_max} lookups of names hang already")
            lookup = _Lookup(self._loop.create_future(), self._again_s, now_s + self._again_s)
            self._begin(asked, lookup, repeated=False)
            self._open[asked] = lookup
        elif now_s >= lookup.again_at_s and self._again < self._again_max:
            self._begin(asked, lookup, repeated=True)
            lookup.patience_s *= 2
            lookup.again_at_s = now_s + lookup.patience_s
        # One delivery that gives up does not end it for the others.
        return await asyncio.shield(lookup.answer)

    def _begin(self, asked: _Asked, lookup: _Lookup, *, repeated: bool) -> None:
        try:
            threading.Thread(
                target=self._look_up, args=(asked, lookup, repeated), name="lookup", daemon=True
            ).start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, f"no thread to look a name up in: {error}") from error
        self._count(1, repeated=repeated)

    def _count(self, change: int, *, repeated: bool) -> None:
        if repeated:
            self._again += change
        else:
            self._first += change

    def _look_up(self, asked: _Asked, lookup: _Lookup, repeated: bool) -> None:
        found: list[ResolveResult] | Exception
        try:
            found = _addresses(*asked)
        except Exception as error:
            found = error
        # The loop may have ended long ago.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended, asked, lookup, repeated, found)

    def _ended(
        self,
        asked: _Asked,
        lookup: _Lookup,
        repeated: bool,
        found: list[ResolveResult] | Exception,
    ) -> None:
        self._count(-1, repeated=repeated)
        if self._open.get(asked) is lookup:
            del self._open[asked]
        # Given up, or answered by another thread.
        if lookup.answer.done():
            return
        if isinstance(found, Exception):
            lookup.answer.set_exception(found)
            # Looked at, although nobody may wait for it any more.
            lookup.answer.exception()
        else:
            lookup.answer.set_result(found)

    async def close(self) -> None:
        """Nobody waits any more; the threads end by themselves or with the process."""
        for lookup in self._open.values():
            lookup.answer.cancel()


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    found = []
    for kind, _type, protocol, _name, address in socket.getaddrinfo(
        host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    ):
        # In numbers, with the interface of an address that means nothing without it.
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        shown, number = socket.getnameinfo(address, numeric)
        found.append(
            ResolveResult(
                hostname=host, host=shown, port=int(number), family=kind, proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
        )  # fmt: skip
    return found

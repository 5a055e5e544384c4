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
    answer: _Answer
    patience_s: float
    again_at_s: float
    repeated: bool


class Lookups(AbstractResolver):
    """A name server may hang for longer than any delivery waits, or for ever. A lookup that nobody
    waits for any more holds its thread all the same, so who asks for its name again waits for that
    one, and only after a time another thread asks once more. ``names_max``: how many names may hang
    at a time; what is beyond is refused. The threads hold up no end of the process.
    """

    def __init__(
        self, names_max: int, *, again_s: float = ASKED_AGAIN_S, again_max: int = AGAIN_MAX
    ) -> None:
        self._names_max = names_max
        self._again_s = again_s
        self._again_max = again_max
        self._loop = asyncio.get_running_loop()
        self._newest: dict[_Asked, _Lookup] = {}
        self._open: set[_Lookup] = set()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        asked = (host, port, family)
        lookup = self._newest.get(asked)
        if lookup is None:
            if self._count(repeated=False) >= self._names_max:
                raise OSError(errno.EAGAIN, f"{self._names_max} lookups of names hang already")
            lookup = self._begin(asked, self._again_s, repeated=False)
        elif time.monotonic() >= lookup.again_at_s and self._count(repeated=True) < self._again_max:
            lookup = self._begin(asked, 2 * lookup.patience_s, repeated=True)
        # One delivery that gives up does not end it for the others.
        return await asyncio.shield(lookup.answer)

    def _count(self, *, repeated: bool) -> int:
        return sum(each.repeated is repeated for each in self._open)

    def _begin(self, asked: _Asked, patience_s: float, *, repeated: bool) -> _Lookup:
        lookup = _Lookup(
            self._loop.create_future(), patience_s, time.monotonic() + patience_s, repeated
        )
        try:
            threading.Thread(
                target=self._look_up, args=(asked, lookup), name="lookup", daemon=True
            ).start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, f"no thread to look a name up in: {error}") from error
        self._newest[asked] = lookup
        self._open.add(lookup)
        return lookup

    def _look_up(self, asked: _Asked, lookup: _Lookup) -> None:
        found: list[ResolveResult] | Exception
        try:
            found = _addresses(*asked)
        except Exception as error:
            found = error
        # The loop may have ended long ago.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended, asked, lookup, found)

    def _ended(
        self, asked: _Asked, lookup: _Lookup, found: list[ResolveResult] | Exception
    ) -> None:
        self._open.discard(lookup)
        if self._newest.get(asked) is lookup:
            del self._newest[asked]
        if lookup.answer.cancelled():
            return
        if isinstance(found, Exception):
            lookup.answer.set_exception(found)
            # Looked at, although nobody may wait for it any more.
            lookup.answer.exception()
        else:
            lookup.answer.set_result(found)

    async def close(self) -> None:
        """Nobody waits any more; the threads end by themselves or with the process."""
        for lookup in self._open:
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

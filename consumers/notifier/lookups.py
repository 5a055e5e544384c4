"""Names of endpoints looked up, in threads, each name in one of them at a time."""

from __future__ import annotations

import asyncio
import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

_Asked = tuple[str, int, socket.AddressFamily]


class Lookups(AbstractResolver):
    """A name server may hang for longer than any delivery waits. A lookup that nobody waits for any
    more holds its thread all the same, so who asks for its name again waits for that one."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()
        self._open: dict[_Asked, asyncio.Task[list[ResolveResult]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        asked = (host, port, family)
        task = self._open.get(asked)
        if task is None:
            task = asyncio.create_task(self._resolver.resolve(host, port, family))
            self._open[asked] = task
            task.add_done_callback(lambda ended: self._ended(asked, ended))
        # One delivery that gives up does not end it for the others.
        return await asyncio.shield(task)

    def _ended(self, asked: _Asked, task: asyncio.Task[list[ResolveResult]]) -> None:
        del self._open[asked]
        if not task.cancelled():
            # Looked at, although nobody may wait for it any more.
            task.exception()

    async def close(self) -> None:
        """What has no thread yet needs none any more."""
        for task in tuple(self._open.values()):
            task.cancel()

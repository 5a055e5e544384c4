"""An event loop in a thread of its own, for servers that blocking code starts and asks."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

ANSWER_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
_T = TypeVar("_T")


class LoopThread(ABC):
    """A context manager: its servers live as long as the block. What has ``_broken`` it is a fault
    of its own, and is raised when the block is left."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._servers: list[asyncio.Server] = []
        self._broken: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT_S)
        self._loop.close()
        if self._broken is not None:
            raise self._broken

    def _do(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Have it done by the loop's thread, and wait for what comes of it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(ANSWER_TIMEOUT_S)

    async def _close(self) -> None:
        """Take no connection any more, and end those that there are."""
        for server in self._servers:
            server.close()
        await self._end_connections()

    @abstractmethod
    async def _end_connections(self) -> None: ...

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

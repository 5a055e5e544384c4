"""Connections that do not wait through endless informational answers for the one that counts."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader

# Answers of 1xx before the final one: a proxy or two may send one each.
INFORMATIONAL_MAX: Final = 8


class TooManyInformational(aiohttp.ClientError):
    """A receiver that answers 1xx without end would keep the event loop at work."""

    def __init__(self) -> None:
        super().__init__(f"more than {INFORMATIONAL_MAX} informational answers and no other")


class _Answers(ResponseHandler):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._informational = 0

    async def read(self) -> tuple[RawResponseMessage, StreamReader]:
        """The next answer of the connection, informational or final."""
        answer = await super().read()
        if not 100 <= answer[0].code < 200:
            self._informational = 0
            return answer
        self._informational += 1
        if self._informational > INFORMATIONAL_MAX:
            raise TooManyInformational
        return answer


class Connector(aiohttp.TCPConnector):
    """Of aiohttp, which bounds the size of an answer but not how many come before the final one."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        made: type[ResponseHandler] = _Answers
        self._factory = partial(made, loop=self._loop)

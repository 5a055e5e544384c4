"""What a stranger may send to the webhook endpoint: nothing of it is ever decompressed."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pipeline.domain.model import GatewayNotification
from pipeline.gateways.notice import Notice, NoticeRefused
from producers.webhook_desk import Taken
from producers.webhook_endpoint import BODY_BYTES_MAX, build_app, build_runner


class Desk:
    """Takes every notice at once."""

    delivery_timeout_s = 1.0
    failure = None

    def take(self, notice: GatewayNotification) -> Future[Taken]:
        taken: Future[Taken] = Future()
        taken.set_result(Taken.PUBLISHED)
        return taken


class Reader:
    """Keeps what it was given to verify."""

    def __init__(self) -> None:
        self.read: list[bytes] = []

    def read_notice(
        self, headers: Mapping[str, str], body: bytes, now_s: int
    ) -> Notice | NoticeRefused:
        self.read.append(body)
        return NoticeRefused("signature_wrong")


def answers(reader: Reader, *requests: tuple[str, str, bytes, dict[str, str]]) -> list[int]:
    """The status of each (method, path, body, headers), of an endpoint served as in production."""

    async def asked() -> list[int]:
        app = build_app(Desk(), {"simulator": reader})  # type: ignore[arg-type]
        runner = build_runner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        found = []
        try:
            async with aiohttp.ClientSession() as session:
                for method, path, body, headers in requests:
                    more: dict[str, Any] = {"data": body, "headers": headers}
                    async with session.request(method, url + path, **more) as answer:
                        found.append(answer.status)
        finally:
            await runner.cleanup()
        return found

    return asyncio.run(asked())


NOTICES = "/webhooks/simulator"


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "br", "zstd", "identity", ""])
def test_a_notice_that_says_it_is_compressed_is_refused_unread(coding: str) -> None:
    """A gateway's scheme signs the bytes that it sends, and none that we know compresses them."""
    reader = Reader()
    bomb = gzip.compress(b"0" * 1_000_000)
    assert answers(reader, ("POST", NOTICES, bomb, {"Content-Encoding": coding})) == [415]
    assert reader.read == []


def test_nothing_is_decompressed_by_what_serves_the_endpoint() -> None:
    """It would be before any of our own code: a body that cannot be decompressed is no matter."""
    said = {"Content-Encoding": "gzip"}
    assert answers(
        Reader(),
        ("GET", "/healthz", b"this is no gzip", said),
        ("POST", NOTICES, b"this is no gzip", said),
        ("POST", "/webhooks/nobody", b"this is no gzip", said),
    ) == [200, 415, 404]


def test_a_body_is_limited_by_its_bytes_on_the_wire() -> None:
    """Up to the limit it is verified as it came; a byte more is not."""
    reader = Reader()
    most = gzip.compress(b"0" * 1_000_000).ljust(BODY_BYTES_MAX, b" ")
    statuses = answers(reader, ("POST", NOTICES, most, {}), ("POST", NOTICES, most + b" ", {}))
    assert statuses == [401, 413]
    assert reader.read == [most]

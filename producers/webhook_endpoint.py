"""The HTTP endpoint for gateways' webhooks: verify, store, answer.

``POST /webhooks/{gateway}``. The gateway's adapter verifies its own scheme over the raw body. The
answer is 200 only when the brokers have the notice; a gateway that hears anything else, or nothing,
sends it again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from aiohttp import web
from confluent_kafka import KafkaException
from msgspec import Struct

from pipeline.domain.model import GatewayNotification
from pipeline.errors import UserError
from producers.webhook_desk import DELIVERY_TIMEOUT_MS, WebhookDesk, wall_clock_ms

_log = logging.getLogger(__name__)

# The notices of every gateway we know are under 10 kB.
BODY_BYTES_MAX = 256 * 1024
# A notice under way waits for the brokers at most this long.
DRAIN_TIMEOUT_S = 10.0
STOP_CHECK_S = 0.2

UNKNOWN_GATEWAY = "unknown_gateway"
NOT_STORED = "not_stored"
TOO_LARGE = "too_large"


class NoticeRefused(Struct, frozen=True):
    """``rule`` is a stable name (``wrong_signature``, ``malformed``, ``too_old``)."""

    rule: str
    detail: str
    # 401 for what is not from the gateway, 400 for what cannot be read.
    status: int = 400


class NoticeReader(Protocol):
    """What an adapter does with a webhook: verify it and say it in our words."""

    def read(
        self, headers: Mapping[str, str], body: bytes, received_at_ms: int
    ) -> GatewayNotification | NoticeRefused | None:
        """The notice; a refusal; or None for a true one that is about nothing of ours."""
        ...


Count = Callable[[str, str], None]


def build_app(
    desk: WebhookDesk, readers: Mapping[str, NoticeReader], count: Count = lambda _g, _r: None
) -> web.Application:
    """The routes. ``count(gateway, result)`` hears what became of each call."""

    def answered(gateway: str, status: int, result: str, detail: str = "") -> web.Response:
        count(gateway, result)
        if status != 200:
            _log.warning("webhook of %s refused: %s %s", gateway, result, detail)
        return web.json_response({"result": result}, status=status)

    async def receive(request: web.Request) -> web.Response:
        gateway = request.match_info["gateway"]
        reader = readers.get(gateway)
        if reader is None:
            return answered("unknown", 404, UNKNOWN_GATEWAY)
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return answered(gateway, 413, TOO_LARGE)
        notice = reader.read(request.headers, body, wall_clock_ms())
        if isinstance(notice, NoticeRefused):
            return answered(gateway, notice.status, notice.rule, notice.detail)
        if notice is None:
            return answered(gateway, 200, "ignored")
        try:
            taken = await asyncio.wait_for(
                asyncio.wrap_future(desk.take(notice)), DELIVERY_TIMEOUT_MS / 1000 + 1
            )
        except (KafkaException, BufferError, TimeoutError) as error:
            return answered(gateway, 503, NOT_STORED, str(error))
        return answered(gateway, 200, taken.value)

    async def health(_request: web.Request) -> web.Response:
        failure = desk.failure
        if failure is not None:
            return web.json_response({"status": "failed", "why": str(failure)}, status=503)
        return web.json_response({"status": "ok"})

    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.add_routes([web.post("/webhooks/{gateway}", receive), web.get("/healthz", health)])
    return app


class WebhookServer:
    """The endpoint on a port of its own, until ``stop`` is set.

    Raises UserError when the port cannot be had. ``port`` 0 takes a free one; ``url`` says which.
    """

    def __init__(
        self,
        desk: WebhookDesk,
        readers: Mapping[str, NoticeReader],
        *,
        host: str,
        port: int,
        count: Count = lambda _g, _r: None,
    ) -> None:
        self._desk = desk
        self._readers = dict(readers)
        self._host = host
        self._port = port
        self._count = count
        self.url = ""
        self.ready = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Serve; calls under way are answered before it returns."""
        self._desk.open()
        try:
            reports = threading.Thread(target=self._reports, name="reports", daemon=True)
            self._done = threading.Event()
            reports.start()
            try:
                asyncio.run(self._serve(stop))
            finally:
                self._done.set()
                reports.join(5.0)
        finally:
            self._desk.close()

    def _reports(self) -> None:
        while not self._done.is_set():
            self._desk.poll(0.1)

    async def _serve(self, stop: threading.Event) -> None:
        app = build_app(self._desk, self._readers, self._count)
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=DRAIN_TIMEOUT_S
        )
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, self._host, self._port).start()
            except OSError as error:
                raise UserError(
                    f"webhooks cannot be received on {self._host}:{self._port} "
                    f"({error.strerror}). Choose another port with PAYSTREAM_WEBHOOK_PORT."
                ) from error
            host = f"[{self._host}]" if ":" in self._host else self._host
            self.url = f"http://{host}:{runner.addresses[0][1]}"
            self.ready.set()
            _log.info("webhooks of %s at %s", ", ".join(sorted(self._readers)), self.url)
            while not stop.is_set():
                await asyncio.sleep(STOP_CHECK_S)
                if self._desk.failure is not None:
                    # The supervisor starts it anew; notices that come meanwhile are sent again.
                    raise self._desk.failure
        finally:
            await runner.cleanup()

"""The HTTP endpoint for gateways' webhooks: verify, store, answer.

``POST /webhooks/{gateway}``. The gateway's adapter verifies its own scheme over the raw body, so a
body is never decompressed, and one that says it is compressed is refused unread. The answer is 200
only when the brokers have the notice; a gateway that hears anything else, or nothing, sends it
again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from aiohttp import hdrs, web
from confluent_kafka import KafkaException

from pipeline.domain.gateway_text import kept_text
from pipeline.domain.ids import payment_id
from pipeline.domain.model import GatewayNotification
from pipeline.errors import UserError
from pipeline.gateways.notice import Notice, NoticeRefused
from producers.webhook_desk import NoticeUnstorable, WebhookDesk, wall_clock_ms

_log = logging.getLogger(__name__)

# The notices of every gateway we know are under 10 kB. Of the bytes on the wire.
BODY_BYTES_MAX = 256 * 1024
# A notice under way waits for the brokers at most this long.
DRAIN_TIMEOUT_S = 10.0
STOP_CHECK_S = 0.2

UNKNOWN_GATEWAY = "unknown_gateway"
NOT_STORED = "not_stored"
TOO_LARGE = "too_large"
ENCODED = "encoded"
UNSTORABLE = "unstorable"
NOT_HANDLED = "not_handled"


class NoticeReader(Protocol):
    """The part of a gateway's adapter that reads webhooks (see ``pipeline.gateways.port``)."""

    def read_notice(
        self, headers: Mapping[str, str], body: bytes, now_s: int
    ) -> Notice | NoticeRefused:
        """Verify a notice by the gateway's own scheme, and read it."""
        ...


Count = Callable[[str, str], None]


def notification_of(notice: Notice, received_at_ms: int) -> GatewayNotification:
    """The record of a notice. Without an order's key in it, ``merchant_id`` is empty: the notice is
    addressed by the gateway's own id. So it is where the key is another payment's than our
    reference says: gateways repeat with a refund what was written with its charge."""
    addressed = bool(notice.merchant_id and notice.order_id)
    if addressed and notice.payment_id and notice.gateway_reference:
        own = payment_id(notice.merchant_id or "", notice.order_id or "")
        addressed = own == notice.payment_id
    return GatewayNotification(
        merchant_id=(notice.merchant_id or "") if addressed else "",
        order_id=(notice.order_id or "") if addressed else "",
        payment_id=notice.payment_id
        or (payment_id(notice.merchant_id or "", notice.order_id or "") if addressed else ""),
        notification_id=notice.notification_id,
        gateway=notice.gateway,
        type=notice.type,
        operation_id=notice.operation_id,
        attempt=notice.attempt,
        kind=notice.kind,
        outcome=notice.outcome,
        gateway_reference=notice.gateway_reference,
        dispute_id=notice.dispute_id,
        dispute_state=notice.dispute_state,
        event_sequence=notice.event_sequence,
        amount_minor=notice.amount_minor,
        fee_minor=notice.fee_minor,
        currency=notice.currency,
        code=notice.code,
        gateway_code=None if notice.gateway_code is None else kept_text(notice.gateway_code),
        received_at_ms=received_at_ms,
    )


def build_app(
    desk: WebhookDesk, readers: Mapping[str, NoticeReader], count: Count = lambda _g, _r: None
) -> web.Application:
    """The routes. ``count(gateway, result)`` hears what became of each call."""

    def answered(gateway: str, status: int, result: str, why: str = "") -> web.Response:
        count(gateway, result)
        if status != 200:
            _log.warning("webhook of %s not taken: %s %s", gateway, result, why)
        return web.json_response({"result": result}, status=status)

    async def receive(request: web.Request) -> web.Response:
        gateway = request.match_info["gateway"]
        reader = readers.get(gateway)
        if reader is None:
            return answered("unknown", 404, UNKNOWN_GATEWAY)
        if hdrs.CONTENT_ENCODING in request.headers:
            # No gateway we know compresses; a stranger's kilobytes could be hours of work.
            return answered(gateway, 415, ENCODED)
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return answered(gateway, 413, TOO_LARGE)
        # Header names are the gateway's own spelling, whatever a proxy in between made of them.
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            return await stored(gateway, reader, headers, body)
        except Exception:
            # A fault of ours: the gateway keeps the notice and sends it again until it is mended.
            _log.exception("a webhook of %s could not be handled", gateway)
            return answered(gateway, 503, NOT_HANDLED)

    async def stored(
        gateway: str, reader: NoticeReader, headers: Mapping[str, str], body: bytes
    ) -> web.Response:
        now_ms = wall_clock_ms()
        notice = reader.read_notice(headers, body, now_ms // 1000)
        if isinstance(notice, NoticeRefused):
            return answered(gateway, 400 if notice.genuine else 401, notice.reason)
        try:
            taken = await asyncio.wait_for(
                asyncio.wrap_future(desk.take(notification_of(notice, now_ms))),
                desk.delivery_timeout_s + 1,
            )
        except (KafkaException, BufferError, TimeoutError) as error:
            return answered(gateway, 503, NOT_STORED, str(error))
        except NoticeUnstorable as error:
            return answered(gateway, 400, UNSTORABLE, str(error))
        return answered(gateway, 200, taken.value)

    async def health(_request: web.Request) -> web.Response:
        failure = desk.failure
        if failure is not None:
            return web.json_response({"status": "failed", "why": str(failure)}, status=503)
        return web.json_response({"status": "ok"})

    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.add_routes([web.post("/webhooks/{gateway}", receive), web.get("/healthz", health)])
    return app


def build_runner(app: web.Application) -> web.AppRunner:
    """What serves the routes. It decompresses nothing, not even what it throws away: that happens
    before any limit, for everybody who can connect, and holds up all others."""
    return web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=DRAIN_TIMEOUT_S,
        auto_decompress=False,
    )


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
        runner = build_runner(app)
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

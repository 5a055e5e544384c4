"""A gateway behind HTTP: one transport for every adapter, and what is certain about its calls.

Each call is one HTTP request: no retries, no redirects, no proxies from the environment. What is
certain about a failed call follows from one bit, whether the first byte of the request was about
to be written: before that, nothing can have been moved; after that, nothing is certain. What the
bytes mean is the adapter's matter (``pipeline/gateways/adapters``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
from msgspec.structs import replace
from yarl import URL

from pipeline.domain.answer import UNKNOWN, GatewayAnswer
from pipeline.domain.invariant import invariant
from pipeline.domain.model import PaymentRequest
from pipeline.domain.normalisation import OPERATIONS
from pipeline.errors import UserError
from pipeline.gateways.adapters.base import Adapter, HttpCall, HttpReply
from pipeline.gateways.adapters.simulator import SimulatorAdapter
from pipeline.gateways.in_process import wall_clock_ms
from pipeline.gateways.notice import Notice, NoticeRefused, our_reference
from pipeline.gateways.retry_after import retry_after_ms
from pipeline.gateways.webhook_signature import SECRETS_MAX

# An answer later than this is worth less than the place its call takes in its partition.
DEADLINE_S = 10.0
# A handshake is one round trip; after 2 s the packet or the server is gone. Waiting for a free
# connection counts too: nothing has been sent yet, so giving up early costs nothing.
CONNECT_TIMEOUT_S = 2.0
# At 0.1 s a call, 256 connections carry 2,560 calls a second.
CONNECTIONS_MAX = 256
# Shorter than any common server's (Apache has 5 s, most 60 s and more): a server that closes an
# idle connection just as we write makes an outcome unknown for nothing.
KEEPALIVE_S = 4.0
# The answers of the contract are under 1 kB.
ANSWER_BYTES_MAX = 64 * 1024
# The status by which a server says that it is away for a while, with Retry-After for how long.
_UNAVAILABLE = 503

_log = logging.getLogger(__name__)


class HttpGateway:
    """One gateway at ``base_url``; ``now_ms`` is the clock that ``send_before_ms`` is read by.

    ``adapter`` is the gateway's contract. ``deadline_s`` bounds a whole call,
    ``connect_timeout_s`` the part before the first byte. ``api_key`` is sent as a bearer token;
    ``notice_secrets`` are what notices are signed with, two while they are exchanged. Raises
    UserError when an address or a secret cannot be meant.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        adapter: Adapter | None = None,
        now_ms: Callable[[], int] = wall_clock_ms,
        deadline_s: float = DEADLINE_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
        api_key: str | None = None,
        notice_secrets: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.adapter: Adapter = adapter or SimulatorAdapter()
        self._base_url = _checked_url(name, base_url)
        self._notice_secrets = _checked_secrets(name, self.adapter, notice_secrets)
        self._now_ms = now_ms
        self._timeout = aiohttp.ClientTimeout(total=deadline_s, connect=connect_timeout_s)
        self._connections_max = connections_max
        self._headers = {"Content-Type": self.adapter.content_type}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the session, inside the running loop; opens no connection yet."""
        invariant(self._session is None, "the gateway is opened once")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections_max, keepalive_timeout=KEEPALIVE_S
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            timeout=self._timeout,
            trace_configs=[_traces(self._now_ms)],
        )

    async def close(self) -> None:
        """Close the connections; calls in flight must have ended."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def charge(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        """Take the money at once."""
        return await self._perform(request, "charge", send_before_ms)

    async def authorize(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        """Reserve the money."""
        return await self._perform(request, "authorize", send_before_ms)

    async def capture(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        """Take reserved money, all or a part."""
        return await self._perform(request, "capture", send_before_ms)

    async def void(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        """Release reserved money."""
        return await self._perform(request, "void", send_before_ms)

    async def refund(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        """Pay back taken money, all or a part."""
        return await self._perform(request, "refund", send_before_ms)

    async def inquire(self, request: PaymentRequest) -> GatewayAnswer:
        """Ask about ``request.operation_kind`` by our own reference, the idempotency key."""
        invariant(request.operation_kind in OPERATIONS, "an inquiry is about an operation")
        session = self._ready()
        call = _Call(None)
        try:
            reply = await self._send(session, self.adapter.ask(request), call)
        except Exception as error:
            return _unknown(_trouble(error, call))
        return _understood(self.adapter.inquired, request, reply)

    def read_notice(
        self, headers: Mapping[str, str], body: bytes, now_s: int
    ) -> Notice | NoticeRefused:
        """Verify and read a notice; ``body`` as it came, byte for byte. Raises nothing."""
        if not self._notice_secrets:
            return NoticeRefused("no_secret")
        lower = {name.lower(): value for name, value in headers.items()}
        notice = self.adapter.read_notice(self._notice_secrets, lower, body, now_s)
        if isinstance(notice, NoticeRefused):
            return notice
        ours = our_reference(notice.reference or "")
        if ours is not None and ours.gateway != self.name:
            return NoticeRefused("reference_of_another_gateway")
        return replace(notice, gateway=self.name)

    async def _perform(
        self, request: PaymentRequest, kind: str, send_before_ms: int
    ) -> GatewayAnswer:
        """Send a call that may move money, unless it is too late when the connection is ready."""
        invariant(request.kind == kind, "a request is sent as what it is")
        invariant(
            kind in ("charge", "authorize") or request.parent_reference is not None,
            "a capture, void or refund names the gateway's id of what it is about",
        )
        if self._now_ms() >= send_before_ms:
            return _not_sent("send_before_passed")
        session = self._ready()
        call = _Call(send_before_ms)
        try:
            reply = await self._send(session, self.adapter.send(request), call)
        except Exception as error:
            return _failed(error, call)
        return _understood(self.adapter.answered, request, reply)

    def _ready(self) -> aiohttp.ClientSession:
        invariant(self._session is not None, "a gateway is called between open() and close()")
        return cast(aiohttp.ClientSession, self._session)

    async def _send(self, session: aiohttp.ClientSession, http: HttpCall, call: _Call) -> HttpReply:
        # Quoted by the adapter, so that a gateway's id cannot climb out of its place in the path.
        url = URL(self._base_url + http.path, encoded=True)
        async with session.request(
            http.method,
            url.with_query(dict(http.query)) if http.query else url,
            data=http.body,
            headers=dict(http.headers),
            allow_redirects=False,
            trace_request_ctx=call,
        ) as response:
            return await _read(response, self._now_ms())


class _TooLate(Exception):
    """Raised into the client right before it writes, so that it does not."""


@dataclass(slots=True)
class _Call:
    """How far a call has come."""

    send_before_ms: int | None
    connecting: bool = False
    late: bool = False
    writing: bool = False


def _traces(now_ms: Callable[[], int]) -> aiohttp.TraceConfig:
    """The hooks that follow each call.

    ``on_request_chunk_sent`` is awaited by the client's writer straight before it hands headers
    and body to the socket in one piece; nothing else runs in between. An exception there leaves
    the request unwritten and closes the connection. The hooks about connections come earlier: the
    writer is a task of its own, and a frozen process may stop between the two.
    """

    async def connecting(_session: object, context: Any, _params: object) -> None:
        context.trace_request_ctx.connecting = True

    async def about_to_write(_session: object, context: Any, _params: object) -> None:
        call: _Call = context.trace_request_ctx
        if call.writing:
            return
        if call.send_before_ms is not None and now_ms() >= call.send_before_ms:
            call.late = True
            raise _TooLate
        call.writing = True

    traces = aiohttp.TraceConfig()
    traces.on_connection_create_start.append(connecting)
    traces.on_request_chunk_sent.append(about_to_write)
    return traces


async def _read(response: aiohttp.ClientResponse, now_ms: int) -> HttpReply:
    """Status and body; the body is None when it is longer than any answer of the contract."""
    asked_ms = retry_after_ms(
        response.headers.get("Retry-After"), response.headers.get("Date"), now_ms
    )
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > ANSWER_BYTES_MAX:
            response.close()
            return HttpReply(response.status, None, asked_ms)
        parts.append(part)
    return HttpReply(response.status, b"".join(parts), asked_ms)


def _understood(
    read: Callable[[PaymentRequest, HttpReply], GatewayAnswer],
    request: PaymentRequest,
    reply: HttpReply,
) -> GatewayAnswer:
    """What an answer says; one that upsets the adapter is an answer that cannot be read.

    What is unknown since the gateway is away is asked about no sooner than it says, whoever wrote
    the answer: a proxy's is none of the adapter's contract.
    """
    try:
        answer = read(request, reply)
    except Exception:
        _log.exception("an answer of %s could not be read", request.gateway)
        answer = _unknown("undecodable_answer", f"http_{reply.status}")
    if reply.status == _UNAVAILABLE and answer.outcome == UNKNOWN:
        return replace(answer, retry_after_ms=reply.retry_after_ms)
    return answer


def _failed(error: Exception, call: _Call) -> GatewayAnswer:
    """What is certain after the client gave up."""
    if call.late:
        return _not_sent("send_before_passed")
    code = _trouble(error, call)
    return _unknown(code) if call.writing else _not_sent(code)


def _trouble(error: Exception, call: _Call) -> str:
    """The code of a failed call."""
    if not isinstance(error, (aiohttp.ClientError, OSError, TimeoutError)):
        _log.warning("an unexpected error in a gateway call is treated as a lost one: %r", error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connection_refused"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "connect_timeout" if call.connecting else "pool_timeout"
    if isinstance(error, TimeoutError):
        if call.writing or call.send_before_ms is None:
            return "timeout"
        return "connect_timeout" if call.connecting else "pool_timeout"
    if isinstance(error, (aiohttp.ClientResponseError, aiohttp.ClientPayloadError)):
        return "undecodable_answer"
    if call.writing or call.send_before_ms is None:
        return "connection_lost"
    return "broken_connection"


def _not_sent(code: str) -> GatewayAnswer:
    return GatewayAnswer(outcome="not_sent", code=code)


def _unknown(code: str, gateway_code: str | None = None) -> GatewayAnswer:
    return GatewayAnswer(outcome="unknown", code=code, gateway_code=gateway_code)


def _checked_url(name: str, base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UserError(
            f'The address of gateway {name} is "{base_url}"; '
            "give one like https://gateway.example.com or http://127.0.0.1:8080."
        )
    return base_url.rstrip("/")


def _checked_secrets(name: str, adapter: Adapter, secrets: Sequence[str]) -> tuple[str, ...]:
    if len(secrets) > SECRETS_MAX:
        raise UserError(
            f"Gateway {name} has {len(secrets)} notice secrets; give one, or the old and the new "
            "one while they are exchanged."
        )
    for secret in secrets:
        try:
            adapter.check_secret(secret)
        except ValueError as error:
            raise UserError(f"A notice secret of gateway {name} cannot be used: {error}.") from None
    return tuple(secrets)

"""A gateway behind HTTP, by the contract in ``docs/simulator.md``.

Each call is one HTTP request: no retries, no redirects, no proxies from the environment. What is
certain about a failed call follows from one bit, whether the first byte of the request was about
to be written: before that, nothing can have been moved; after that, nothing is certain.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
import msgspec

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.invariant import invariant
from pipeline.domain.model import PaymentRequest
from pipeline.errors import UserError
from pipeline.gateways.decline_codes import normalised_decline
from pipeline.gateways.in_process import wall_clock_ms

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
# A gateway that asks for more than an hour is not busy but broken; the retry policy decides.
RETRY_AFTER_S_MAX = 3_600


_log = logging.getLogger(__name__)


class HttpGateway:
    """One gateway at ``base_url``; ``now_ms`` is the clock that ``send_before_ms`` is read by.

    ``deadline_s`` bounds a whole call, ``connect_timeout_s`` the part before the first byte.
    ``api_key`` is sent as a bearer token. Raises UserError when the address cannot be meant.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        now_ms: Callable[[], int] = wall_clock_ms,
        deadline_s: float = DEADLINE_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
        api_key: str | None = None,
    ) -> None:
        self.name = name
        self._charges_url = f"{_checked_url(name, base_url)}/v1/charges"
        self._now_ms = now_ms
        self._timeout = aiohttp.ClientTimeout(total=deadline_s, connect=connect_timeout_s)
        self._connections_max = connections_max
        self._headers = {"Content-Type": "application/json"}
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
        """POST the charge, unless it is too late when the connection is ready."""
        if self._now_ms() >= send_before_ms:
            return _not_sent("send_before_passed")
        session = self._ready()
        call = _Call(send_before_ms)
        try:
            async with session.post(
                self._charges_url,
                data=_charge_body(request),
                headers={"Idempotency-Key": request.idempotency_key},
                allow_redirects=False,
                trace_request_ctx=call,
            ) as response:
                answer = await _read(response)
        except Exception as error:
            return _failed_charge(error, call)
        return _charged(answer, request)

    async def inquire(self, request: PaymentRequest) -> GatewayAnswer:
        """GET the charge by our own reference, the idempotency key."""
        session = self._ready()
        call = _Call(None)
        try:
            async with session.get(
                self._charges_url,
                params={"reference": request.idempotency_key},
                allow_redirects=False,
                trace_request_ctx=call,
            ) as response:
                answer = await _read(response)
        except Exception as error:
            return _unknown(_trouble(error, call))
        return _inquired(answer, request)

    def _ready(self) -> aiohttp.ClientSession:
        invariant(self._session is not None, "a gateway is called between open() and close()")
        return cast(aiohttp.ClientSession, self._session)


class _TooLate(Exception):
    """Raised into the client right before it writes, so that it does not."""


@dataclass(slots=True)
class _Call:
    """How far a call has come."""

    send_before_ms: int | None
    connecting: bool = False
    late: bool = False
    writing: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes | None
    retry_after: str | None


class _ChargeView(msgspec.Struct, frozen=True):
    id: str
    reference: str
    status: str
    amount_minor: int
    currency: str
    code: str | None = None


class _Found(msgspec.Struct, frozen=True):
    found: bool
    charge: _ChargeView


class _Refusal(msgspec.Struct, frozen=True):
    code: str
    reference: str | None = None


_decode_charge = msgspec.json.Decoder(_ChargeView).decode
_decode_found = msgspec.json.Decoder(_Found).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


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


def _charge_body(request: PaymentRequest) -> bytes:
    return msgspec.json.encode(
        {
            "reference": request.idempotency_key,
            "amount_minor": request.amount_minor,
            "currency": request.currency,
            "instrument_token": request.instrument_token,
            "merchant_id": request.merchant_id,
            "order_id": request.order_id,
            "capture": True,
        }
    )


async def _read(response: aiohttp.ClientResponse) -> _Answer:
    """Status and body; the body is None when it is longer than any answer of the contract."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > ANSWER_BYTES_MAX:
            response.close()
            return _Answer(response.status, None, None)
        parts.append(part)
    return _Answer(response.status, b"".join(parts), response.headers.get("Retry-After"))


def _charged(answer: _Answer, request: PaymentRequest) -> GatewayAnswer:
    """What an answer to a charge says."""
    status = answer.status
    if 200 <= status < 300:
        try:
            charge = _decode_charge(answer.body or b"")
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _unknown("undecodable_answer", f"http_{status}")
        return _about(charge, request)
    refusal = _refusal(answer)
    gateway_code = refusal.code if refusal is not None else f"http_{status}"
    if status == 429:
        # Turned away before it was handled: nothing can have been moved by this request.
        return GatewayAnswer(
            outcome="not_sent",
            code="rate_limited",
            gateway_code=gateway_code,
            retry_after_ms=_retry_after_ms(answer.retry_after),
        )
    if status == 409:
        return _unknown("in_progress", gateway_code)
    if status in (400, 402, 422) and refusal is None:
        # A decline that cannot be read may come from a proxy in between.
        return _unknown("undecodable_answer", gateway_code)
    if status == 402 and refusal is not None:
        if refusal.reference not in (None, request.idempotency_key):
            return _unknown("mismatched_answer", gateway_code)
        return GatewayAnswer(
            outcome="declined", code=normalised_decline(gateway_code), gateway_code=gateway_code
        )
    if status == 400:
        return GatewayAnswer(outcome="declined", code="invalid_request", gateway_code=gateway_code)
    if status == 422:
        return _unknown("idempotency_key_reused", gateway_code)
    # 401, 403, 404: our own settings may be wrong, which is no reason to fail anybody's payment.
    return _unknown("gateway_error", gateway_code)


def _inquired(answer: _Answer, request: PaymentRequest) -> GatewayAnswer:
    """What an answer to an inquiry says."""
    status = answer.status
    if status == 200:
        try:
            found = _decode_found(answer.body or b"")
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _unknown("undecodable_answer", f"http_{status}")
        return _about(found.charge, request)
    refusal = _refusal(answer)
    gateway_code = refusal.code if refusal is not None else f"http_{status}"
    if status == 404 and gateway_code == "not_found":
        # Only with the contract's own word: a 404 of a proxy knows nothing about charges.
        return GatewayAnswer(outcome="not_found", gateway_code=gateway_code)
    if status == 409:
        return _unknown("in_progress", gateway_code)
    if status == 429:
        return GatewayAnswer(
            outcome="unknown",
            code="rate_limited",
            gateway_code=gateway_code,
            retry_after_ms=_retry_after_ms(answer.retry_after),
        )
    return _unknown("gateway_error", gateway_code)


def _about(charge: _ChargeView, request: PaymentRequest) -> GatewayAnswer:
    """The outcome of a charge as the gateway shows it, if it is the one that was asked for."""
    if (
        charge.reference != request.idempotency_key
        or charge.amount_minor != request.amount_minor
        or charge.currency != request.currency
    ):
        return GatewayAnswer(
            outcome="unknown", code="mismatched_answer", gateway_reference=charge.id
        )
    if charge.status == "succeeded":
        return GatewayAnswer(
            outcome="succeeded", gateway_reference=charge.id, amount_minor=charge.amount_minor
        )
    if charge.status == "pending":
        return GatewayAnswer(outcome="pending", gateway_reference=charge.id)
    if charge.status == "declined":
        code = charge.code or "card_declined"
        return GatewayAnswer(
            outcome="declined",
            gateway_reference=charge.id,
            code=normalised_decline(code),
            gateway_code=code,
        )
    return _unknown("undecodable_answer", f"status_{charge.status}"[:64])


def _failed_charge(error: Exception, call: _Call) -> GatewayAnswer:
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


def _refusal(answer: _Answer) -> _Refusal | None:
    try:
        return _decode_refusal(answer.body or b"")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _retry_after_ms(text: str | None) -> int | None:
    """Whole seconds of a Retry-After header; dates and nonsense count as not given."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 9:
        return None
    return min(int(text), RETRY_AFTER_S_MAX) * 1_000


def _not_sent(code: str) -> GatewayAnswer:
    return GatewayAnswer(outcome="not_sent", code=code)


def _unknown(code: str, gateway_code: str | None = None) -> GatewayAnswer:
    return GatewayAnswer(outcome="unknown", code=code, gateway_code=gateway_code)


def _checked_url(name: str, base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UserError(
            f"The address of gateway {name} is {json.dumps(base_url)}; "
            "give one like https://gateway.example.com or http://127.0.0.1:8080."
        )
    return base_url.rstrip("/")

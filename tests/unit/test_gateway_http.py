"""What the HTTP adapter says about calls that go wrong, against a server that plays them."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.model import PaymentRequest
from pipeline.errors import UserError
from pipeline.gateways.http_adapter import HttpGateway
from pipeline.gateways.retry_after import retry_after_ms

NOW_MS = 1_700_000_000_000
LATER_MS = NOW_MS + 60_000
KEY = "pay-1:o-1:sim:1"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# When an answer was written.
SAID, SAID_MS = "Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777_000


def a_request(amount_minor: int = 1250) -> PaymentRequest:
    return PaymentRequest(
        merchant_id="m-1",
        order_id="o-1",
        payment_id="pay-1",
        operation_id="o-1",
        kind="charge",
        gateway="sim",
        amount_minor=amount_minor,
        currency="GBP",
        instrument_token="tok_ok",
        idempotency_key=KEY,
        attempt=1,
        try_number=1,
        send_within_ms=60_000,
        ordered_at_ms=NOW_MS,
    )


class Played:
    """A server on a free port that hands every connection to one handler and keeps what came."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.connections = 0
        self.requests: list[bytes] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._handler(reader, writer)
        finally:
            writer.close()

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        """Read one request, body included."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        whole = head + await reader.readexactly(length)
        self.requests.append(whole)
        return whole


def answering(raw: bytes) -> Callable[[Played], Handler]:
    """A handler that answers every request on a connection with the same bytes."""

    def of(played: Played) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(100):
                try:
                    await played.request(reader)
                except asyncio.IncompleteReadError:
                    return
                writer.write(raw)
                await writer.drain()

        return handle

    return of


def http(status: int, content: Any, headers: str = "") -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return (
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{headers}\r\n"
    ).encode() + body


def charge_view(**changes: Any) -> dict[str, Any]:
    view = {
        "id": "ch_1",
        "reference": KEY,
        "status": "succeeded",
        "amount_minor": 1250,
        "currency": "GBP",
        "merchant_id": "m-1",
        "order_id": "o-1",
        "created_at_ms": NOW_MS,
    }
    return {**view, **changes}


def play(
    make: Callable[[Played], Handler],
    call: Callable[[HttpGateway], Awaitable[Any]],
    *,
    now_ms: Callable[[], int] = lambda: NOW_MS,
    **settings: Any,
) -> tuple[Any, Played]:
    """Run a call against a played server; returns its answer and the server."""

    async def run() -> tuple[Any, Played]:
        played = Played(lambda *_: asyncio.sleep(0))
        played._handler = make(played)
        server = await asyncio.start_server(played.connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        gateway = HttpGateway("sim", f"http://127.0.0.1:{port}", now_ms=now_ms, **settings)
        await gateway.open()
        try:
            return await asyncio.wait_for(call(gateway), 20), played
        finally:
            await gateway.close()
            server.close()

    return asyncio.run(run())


def charge(gateway: HttpGateway) -> Awaitable[GatewayAnswer]:
    return gateway.charge(a_request(), send_before_ms=LATER_MS)


def inquire(gateway: HttpGateway) -> Awaitable[GatewayAnswer]:
    return gateway.inquire(a_request())


def test_a_charge_carries_its_key_and_content() -> None:
    """The gateway gets one POST with the idempotency key, our reference, amount and token."""
    answer, played = play(answering(http(201, charge_view())), charge)
    assert answer == GatewayAnswer(outcome="succeeded", gateway_reference="ch_1", amount_minor=1250)
    (request,) = played.requests
    head, body = request.split(b"\r\n\r\n", 1)
    assert head.startswith(b"POST /v1/charges HTTP/1.1\r\n")
    assert f"idempotency-key: {KEY}".encode() in head.lower().replace(
        KEY.lower().encode(), KEY.encode()
    )
    sent = json.loads(body)
    assert (sent["reference"], sent["amount_minor"], sent["currency"]) == (KEY, 1250, "GBP")
    assert (sent["merchant_id"], sent["order_id"]) == ("m-1", "o-1")
    assert sent["instrument_token"] == "tok_ok"


@pytest.mark.parametrize(
    ("raw", "outcome", "code", "gateway_code"),
    [
        (http(402, {"code": "insufficient_funds"}), "declined", "insufficient_funds", None),
        (http(402, {"code": "pick_up_card"}), "declined", "card_declined", "pick_up_card"),
        (http(402, {"code": "x", "reference": "else"}), "unknown", "mismatched_answer", None),
        (http(402, b"<html>"), "unknown", "undecodable_answer", "http_402"),
        (http(400, {"code": "invalid_request"}), "declined", "invalid_request", None),
        (http(400, {"code": "odd_word"}), "unknown", "gateway_error", "odd_word"),
        (http(400, b"<html>Bad Request"), "unknown", "undecodable_answer", "http_400"),
        (http(401, {"code": "no_key"}), "unknown", "gateway_error", "no_key"),
        (http(404, b"nginx"), "unknown", "gateway_error", "http_404"),
        (http(409, {"code": "request_in_progress"}), "unknown", "in_progress", None),
        (http(422, {"code": "idempotency_key_reused"}), "unknown", "idempotency_key_reused", None),
        (http(500, {"code": "internal_error"}), "unknown", "gateway_error", "internal_error"),
        (http(503, b""), "unknown", "gateway_error", "http_503"),
        (http(201, b"{"), "unknown", "undecodable_answer", "http_201"),
        (http(201, b"x" * 100_000), "unknown", "undecodable_answer", "http_201"),
        (http(201, charge_view(amount_minor=1)), "unknown", "mismatched_answer", None),
        (http(201, charge_view(currency="EUR")), "unknown", "mismatched_answer", None),
        (http(201, charge_view(reference="x")), "unknown", "mismatched_answer", None),
        (http(201, charge_view(status="odd")), "unknown", "undecodable_answer", "status_odd"),
        (http(202, charge_view(status="pending")), "pending", None, None),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "unknown", "undecodable_answer", None),
    ],
)
def test_each_answer_to_a_charge_has_one_meaning(
    raw: bytes, outcome: str, code: str | None, gateway_code: str | None
) -> None:
    """Only a plain success moves money and only a plain refusal declines; the rest is unknown."""
    answer, _ = play(answering(raw), charge)
    assert (answer.outcome, answer.code) == (outcome, code)
    if gateway_code is not None:
        assert answer.gateway_code == gateway_code
    assert answer.amount_minor == 0


@pytest.mark.parametrize(
    ("header", "retry_after_ms"),
    [
        ("Retry-After: 3\r\n", 3_000),
        ("", None),
        ("Retry-After: soon\r\n", None),
        ("Retry-After: 99999999\r\n", 3_600_000),
        (f"Date: {SAID}\r\nRetry-After: Sun, 06 Nov 1994 08:50:07 GMT\r\n", 30_000),
    ],
)
def test_a_throttled_charge_was_not_sent(header: str, retry_after_ms: int | None) -> None:
    """A 429 means that the gateway did not handle the request, and says how long to wait."""
    answer, _ = play(answering(http(429, {"code": "rate_limited"}, header)), charge)
    assert (answer.outcome, answer.code) == ("not_sent", "rate_limited")
    assert answer.retry_after_ms == retry_after_ms


@pytest.mark.parametrize("call", ["charge", "inquire"])
@pytest.mark.parametrize("body", [b"", b"<html>", {"code": "internal_error"}])
def test_a_gateway_that_is_away_says_when_to_ask(call: str, body: Any) -> None:
    """Whether it handled the request is not known, whatever a proxy in front of it says."""
    raw = http(503, body, "Retry-After: 30\r\n")
    answer, _ = play(answering(raw), charge if call == "charge" else inquire)
    assert (answer.outcome, answer.code) == ("unknown", "gateway_error")
    assert answer.retry_after_ms == 30_000


@pytest.mark.parametrize(
    ("text", "date", "wait_ms"),
    [
        ("0", None, 0),
        ("Sun, 06 Nov 1994 08:49:42 GMT", SAID, 5_000),
        ("Sunday, 06-Nov-94 08:49:42 GMT", SAID, 5_000),
        ("Sun Nov  6 08:49:42 1994", SAID, 5_000),
        # Its clock and ours differ by a minute: its own two times count.
        ("Sun, 06 Nov 1994 08:49:42 GMT", "Sun, 06 Nov 1994 08:48:42 GMT", 60_000),
        ("Sun, 06 Nov 1994 08:49:42 GMT", None, 5_000),
        ("Sun, 06 Nov 1994 08:49:42 GMT", "odd", 5_000),
        ("Sun, 06 Nov 1994 08:49:30 GMT", SAID, 0),
        ("Sun, 06 Nov 2094 08:49:30 GMT", SAID, 3_600_000),
        ("-3", SAID, None), ("1.5", SAID, None), ("9" * 41, SAID, None), ("", SAID, None),
        ("Sun, 99 Nov 1994 08:49:30 GMT", SAID, None),
        ("Sun, 06 Nov 99999999999 08:49:30 GMT", SAID, None),
        ("\u0661", SAID, None),
    ],
)  # fmt: skip
def test_both_forms_of_retry_after_are_read(
    text: str, date: str | None, wait_ms: int | None
) -> None:
    """Seconds, or a date in any of its three forms; nonsense counts as not given."""
    assert retry_after_ms(text, date, SAID_MS) == wait_ms


@pytest.mark.parametrize(
    ("raw", "outcome", "code"),
    [
        (http(200, {"found": True, "charge": charge_view()}), "succeeded", None),
        (
            http(200, {"found": True, "charge": charge_view(status="declined", code="lost_card")}),
            "declined",
            "lost_card",
        ),
        (http(200, {"found": True, "charge": charge_view(amount_minor=2)}), "unknown",
         "mismatched_answer"),
        (http(404, {"code": "not_found", "found": False}), "not_found", None),
        (http(404, b"<html>no such page"), "unknown", "gateway_error"),
        (http(404, {"code": "no_route"}), "unknown", "gateway_error"),
        (http(409, {"code": "request_in_progress"}), "unknown", "in_progress"),
        (http(429, {"code": "rate_limited"}), "unknown", "rate_limited"),
        (http(500, {"code": "internal_error"}), "unknown", "gateway_error"),
        (http(200, b"{}"), "unknown", "undecodable_answer"),
    ],
)  # fmt: skip
def test_each_answer_to_an_inquiry_has_one_meaning(
    raw: bytes, outcome: str, code: str | None
) -> None:
    """Not found is only what the gateway itself says; a proxy's 404 proves nothing."""
    answer, played = play(answering(raw), inquire)
    assert (answer.outcome, answer.code) == (outcome, code)
    assert played.requests[0].startswith(b"GET /v1/charges?reference=pay-1")


def test_nothing_is_written_when_the_connection_is_ready_too_late() -> None:
    """The last check stands after the connection: the server sees a connection and no byte."""
    clock = iter([NOW_MS, LATER_MS])
    seen: list[bytes] = []

    def silent(played: Played) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.read(-1))

        return handle

    async def call(gateway: HttpGateway) -> GatewayAnswer:
        answer = await charge(gateway)
        for _ in range(200):  # until the server has seen the end of the connection
            if seen:
                break
            await asyncio.sleep(0.01)
        return answer

    answer, played = play(silent, call, now_ms=lambda: next(clock))
    assert (answer.outcome, answer.code) == ("not_sent", "send_before_passed")
    assert played.connections == 1
    assert seen == [b""]


def test_nothing_is_written_on_a_kept_connection_when_it_is_too_late() -> None:
    """The last check also guards a connection that an earlier call has left open."""
    clock = iter([NOW_MS, NOW_MS, NOW_MS, LATER_MS])

    async def call(gateway: HttpGateway) -> list[GatewayAnswer]:
        return [await charge(gateway), await charge(gateway)]

    answers, played = play(answering(http(201, charge_view())), call, now_ms=lambda: next(clock))
    assert [answer.outcome for answer in answers] == ["succeeded", "not_sent"]
    assert len(played.requests) == 1
    assert played.connections == 1


def test_a_request_that_is_late_from_the_start_opens_no_connection() -> None:
    """A request past its time costs the gateway not even a connection."""
    answer, played = play(answering(b""), lambda g: g.charge(a_request(), send_before_ms=NOW_MS))
    assert (answer.outcome, answer.code) == ("not_sent", "send_before_passed")
    assert played.connections == 0


def test_a_refused_connection_was_not_sent() -> None:
    """Where nobody listens nothing can have been charged."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else gets it
        port = held.getsockname()[1]

        async def run() -> tuple[GatewayAnswer, GatewayAnswer]:
            gateway = HttpGateway("sim", f"http://127.0.0.1:{port}", now_ms=lambda: NOW_MS)
            await gateway.open()
            try:
                return await charge(gateway), await inquire(gateway)
            finally:
                await gateway.close()

        charged, inquired = asyncio.run(run())
    assert (charged.outcome, charged.code) == ("not_sent", "connection_refused")
    assert (inquired.outcome, inquired.code) == ("unknown", "connection_refused")


@pytest.mark.parametrize("answered", [b"", b"HTTP/1.1 201 Created\r\nContent-Le"])
def test_a_connection_that_breaks_after_the_request_leaves_it_unknown(answered: bytes) -> None:
    """Whoever has read the request may have charged; it is not sent a second time."""

    def breaking(played: Played) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await played.request(reader)
            writer.write(answered)
            await writer.drain()
            writer.transport.abort()

        return handle

    answer, played = play(breaking, charge)
    assert (answer.outcome, answer.code) == ("unknown", "connection_lost")
    assert len(played.requests) == 1


def test_an_answer_cut_in_its_body_is_unknown() -> None:
    """A 201 whose body never came to its end is no proof."""

    def cut(played: Played) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await played.request(reader)
            writer.write(http(201, charge_view())[:-5])
            await writer.drain()

        return handle

    answer, _ = play(cut, charge)
    assert (answer.outcome, answer.code) == ("unknown", "undecodable_answer")


@pytest.mark.slow
def test_a_gateway_that_never_answers_is_unknown_after_the_deadline() -> None:
    """The soft deadline ends the wait, and a sent request stays unknown."""

    def hanging(played: Played) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await played.request(reader)
            await reader.read(-1)  # until the client gives up

        return handle

    answer, played = play(hanging, charge, deadline_s=0.2)
    assert (answer.outcome, answer.code) == ("unknown", "timeout")
    assert len(played.requests) == 1


@pytest.mark.slow
def test_waiting_for_a_free_connection_ends_as_not_sent() -> None:
    """With all connections busy, a call that gets none in time was not sent."""

    def slow(played: Played) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await played.request(reader)
            await reader.read(-1)

        return handle

    async def call(gateway: HttpGateway) -> list[GatewayAnswer]:
        first = asyncio.create_task(gateway.charge(a_request(), send_before_ms=LATER_MS))
        await asyncio.sleep(0)  # the first takes the only connection
        return [await charge(gateway), await first]

    answers, played = play(slow, call, connections_max=1, connect_timeout_s=0.1, deadline_s=0.4)
    assert (answers[0].outcome, answers[0].code) == ("not_sent", "pool_timeout")
    assert answers[1].outcome == "unknown"
    assert len(played.requests) == 1


def test_a_redirect_is_not_followed() -> None:
    """A redirected charge would be sent twice; it is unknown instead."""
    answer, played = play(answering(http(307, b"", "Location: /v1/elsewhere\r\n")), charge)
    assert (answer.outcome, answer.code) == ("unknown", "gateway_error")
    assert len(played.requests) == 1


def test_a_frozen_loop_between_connection_and_write_sends_nothing() -> None:
    """A process that stops right after it has a connection finds the time passed and says no more.

    The clock here is moved by the server's accept, which is as early as anybody outside can see
    the connection.
    """
    accepted = threading.Event()
    seen: list[bytes] = []

    async def run() -> GatewayAnswer:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(10)

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                accepted.set()
                seen.append(connection.recv(65536))

        thread = threading.Thread(target=accept)
        thread.start()

        def now_ms() -> int:
            if calls.pop():
                return NOW_MS
            accepted.wait(10)  # the loop is frozen until the server has the connection
            return LATER_MS

        calls = [False, True]
        gateway = HttpGateway("sim", f"http://127.0.0.1:{listener.getsockname()[1]}", now_ms=now_ms)
        await gateway.open()
        try:
            return await charge(gateway)
        finally:
            await gateway.close()
            await asyncio.to_thread(thread.join, 10)
            listener.close()

    answer = asyncio.run(run())
    assert (answer.outcome, answer.code) == ("not_sent", "send_before_passed")
    assert seen == [b""]


@pytest.mark.parametrize("url", ["gateway:80", "ftp://x", "http://", "http://x/?a=1", ""])
def test_an_address_that_cannot_be_meant_is_refused_in_one_sentence(url: str) -> None:
    """A wrong address is named before anything is sent."""
    with pytest.raises(UserError, match="The address of gateway sim"):
        HttpGateway("sim", url)


def test_calling_before_opening_is_a_bug_and_not_an_outage() -> None:
    """A programmer's error must not be answered as if a gateway had failed."""
    gateway = HttpGateway("sim", "http://127.0.0.1:1", now_ms=lambda: NOW_MS)
    with pytest.raises(InvariantBroken):
        asyncio.run(gateway.charge(a_request(), send_before_ms=LATER_MS))

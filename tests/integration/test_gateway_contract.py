"""The promises of the gateway port, which every adapter keeps: one suite, run for each."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.gateways.http_adapter import HttpGateway
from pipeline.gateways.in_process import InProcessGateway, wall_clock_ms
from pipeline.gateways.port import Gateway
from pipeline.gateways.simulator import SimulatorHandle, start_simulator, stop_simulator

pytestmark = pytest.mark.integration

_orders = itertools.count(1)


def a_request(token: str = "tok_ok", amount_minor: int = 1250) -> PaymentRequest:
    order_id = f"o-{next(_orders)}"
    return PaymentRequest(
        merchant_id="m-1",
        order_id=order_id,
        payment_id=f"pay-{order_id}",
        operation_id=order_id,
        kind="charge",
        gateway="sim",
        amount_minor=amount_minor,
        currency="GBP",
        instrument_token=token,
        idempotency_key=f"pay-{order_id}:{order_id}:sim:1",
        attempt=1,
        try_number=1,
        send_within_ms=60_000,
        ordered_at_ms=1,
    )


def soon_ms() -> int:
    return wall_clock_ms() + 30_000


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorHandle]:
    """A simulator without faults of its own: only test tokens make trouble."""
    books: Path = tmp_path_factory.mktemp("gateway") / "books.sqlite"
    handle = start_simulator(books, faults="none")
    yield handle
    stop_simulator(handle)


@pytest.fixture(params=["in-process", "http"])
def run(request: pytest.FixtureRequest) -> Callable[..., object]:
    """Runs a coroutine function with an open gateway of each kind."""
    gateway: Gateway
    if request.param == "http":
        url = request.getfixturevalue("simulator").url
        gateway = HttpGateway("sim", url, deadline_s=5.0)
    else:
        gateway = InProcessGateway(name="sim")

    def go(scenario: Callable[[Gateway], Awaitable[object]]) -> object:
        async def whole() -> object:
            async with opened(gateway):
                return await scenario(gateway)

        return asyncio.run(whole())

    return go


@asynccontextmanager
async def opened(gateway: Gateway) -> AsyncIterator[Gateway]:
    await gateway.open()
    try:
        yield gateway
    finally:
        await gateway.close()
        await gateway.close()  # twice is fine


def test_the_same_key_again_gives_the_first_answer(run: Callable[..., object]) -> None:
    """A charge that is repeated moves money once and answers with the same reference."""
    request = a_request()

    async def scenario(gateway: Gateway) -> None:
        first = await gateway.charge(request, send_before_ms=soon_ms())
        again = await gateway.charge(request, send_before_ms=soon_ms())
        found = await gateway.inquire(request)
        assert first.outcome == "succeeded"
        assert first.amount_minor == 1250
        assert first.gateway_reference
        assert again == first
        assert found == first

    run(scenario)


def test_calls_under_one_key_at_once_never_differ(run: Callable[..., object]) -> None:
    """Of calls in flight with the same key all that succeed name the same charge."""
    request = a_request()

    async def scenario(gateway: Gateway) -> None:
        answers = await asyncio.gather(
            *(gateway.charge(request, send_before_ms=soon_ms()) for _ in range(20))
        )
        succeeded = {a.gateway_reference for a in answers if a.outcome == "succeeded"}
        assert len(succeeded) == 1
        assert {a.outcome for a in answers} <= {"succeeded", "unknown"}

    run(scenario)


def test_a_late_charge_leaves_no_trace(run: Callable[..., object]) -> None:
    """After send_before nothing is sent, so the gateway knows nothing of the key."""
    request = a_request()

    async def scenario(gateway: Gateway) -> None:
        late = await gateway.charge(request, send_before_ms=wall_clock_ms())
        found = await gateway.inquire(request)
        assert (late.outcome, late.code) == ("not_sent", "send_before_passed")
        assert found.outcome == "not_found"

    run(scenario)


def test_an_inquiry_moves_nothing(run: Callable[..., object]) -> None:
    """Asking about a key before its charge does not make it known."""
    request = a_request()

    async def scenario(gateway: Gateway) -> None:
        outcomes = [(await gateway.inquire(request)).outcome for _ in range(2)]
        assert outcomes == ["not_found", "not_found"]
        charged = await gateway.charge(request, send_before_ms=soon_ms())
        assert charged.outcome == "succeeded"

    run(scenario)


def test_a_gateway_has_the_name_that_requests_use(run: Callable[..., object]) -> None:
    """The worker finds the adapter by the name in the request."""

    async def scenario(gateway: Gateway) -> None:
        assert gateway.name == a_request().gateway

    run(scenario)


@pytest.mark.parametrize(
    ("token", "outcome", "code"),
    [
        ("tok_decline_insufficient_funds", "declined", "insufficient_funds"),
        ("tok_decline_expired", "declined", "expired_card"),
        ("tok_decline_do_not_honor", "declined", "do_not_honor"),
        ("4242424242424242", "declined", "invalid_request"),
        ("tok_slow", "succeeded", None),
        ("tok_rate_limited_once", "not_sent", "rate_limited"),
        ("tok_500_before", "unknown", "gateway_error"),
        ("tok_500_after", "unknown", "gateway_error"),
        ("tok_reset_before", "unknown", "connection_lost"),
        ("tok_reset_after", "unknown", "connection_lost"),
        ("tok_hang_before", "unknown", "timeout"),
        ("tok_hang_after", "unknown", "timeout"),
    ],
)
def test_each_trouble_of_the_simulator_has_its_outcome(
    simulator: SimulatorHandle, token: str, outcome: str, code: str | None
) -> None:
    """What the simulator does to a call is told apart only as far as a client can know it."""
    request = a_request(token)
    hangs = token.startswith("tok_hang")

    async def scenario() -> tuple[GatewayAnswer, GatewayAnswer]:
        gateway = HttpGateway("sim", simulator.url, deadline_s=0.5 if hangs else 5.0)
        async with opened(gateway):
            charged = await gateway.charge(request, send_before_ms=soon_ms())
            return charged, await gateway.inquire(request)

    charged, inquired = asyncio.run(scenario())
    assert (charged.outcome, charged.code) == (outcome, code)
    money_moved = token.endswith("_after") or outcome == "succeeded"
    assert inquired.outcome == ("succeeded" if money_moved else "not_found")


def test_a_connection_that_comes_too_late_carries_nothing() -> None:
    """A server too busy to take the connection before send_before never sees the request.

    The server's queue of connections is full, so ours waits in the kernel; it is let in after the
    time has passed.
    """

    async def scenario() -> tuple[GatewayAnswer, list[bytes], bool]:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = []
        for _ in range(8):  # the kernel drops the handshakes beyond the queue's length
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        await asyncio.sleep(0)
        gateway = HttpGateway("sim", f"http://127.0.0.1:{address[1]}", connect_timeout_s=20)
        async with opened(gateway):
            send_before_ms = wall_clock_ms() + 200
            call = asyncio.create_task(gateway.charge(a_request(), send_before_ms=send_before_ms))
            while wall_clock_ms() < send_before_ms:
                await asyncio.sleep(0.01)
            waited = not call.done()
            ours = {f.getsockname() for f in fillers}
            seen: list[bytes] = []
            listener.settimeout(0.2)
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline and not (call.done() and seen):
                try:
                    connection, peer = await asyncio.to_thread(listener.accept)
                except TimeoutError:
                    continue
                with connection:
                    if peer not in ours:
                        connection.settimeout(10)
                        seen.append(await asyncio.to_thread(connection.recv, 65_536))
            answer = await call
        for filler in fillers:
            filler.close()
        listener.close()
        return answer, seen, waited

    answer, seen, waited = asyncio.run(scenario())
    assert waited, "the connection should have been held up"
    assert (answer.outcome, answer.code) == ("not_sent", "send_before_passed")
    assert seen == [b""]


def test_a_connection_that_never_comes_was_not_sent() -> None:
    """A connect time-out is not sent, whatever becomes of the handshake later."""

    async def scenario() -> GatewayAnswer:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        gateway = HttpGateway(
            "sim", f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout_s=0.3
        )
        async with opened(gateway):
            answer = await gateway.charge(a_request(), send_before_ms=soon_ms())
        for filler in fillers:
            filler.close()
        listener.close()
        return answer

    answer = asyncio.run(scenario())
    assert (answer.outcome, answer.code) == ("not_sent", "connect_timeout")

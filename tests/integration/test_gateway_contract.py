"""The promises of the gateway port, which every adapter keeps: one suite, run for each."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.domain.normalisation import Action, action_of
from pipeline.gateways.adapters.known import ADAPTERS
from pipeline.gateways.http_adapter import HttpGateway
from pipeline.gateways.in_process import InProcessGateway, wall_clock_ms
from pipeline.gateways.port import Gateway
from pipeline.gateways.simulator import (
    FaultPlan,
    SimulatorHandle,
    start_simulator,
    stop_simulator,
)
from pipeline.gateways.simulator.personality import PERSONALITIES

pytestmark = pytest.mark.integration

_orders = itertools.count(1)


def a_request(
    token: str = "tok_ok", amount_minor: int = 1250, kind: str = "charge"
) -> PaymentRequest:
    order_id = f"o-{next(_orders)}"
    return PaymentRequest(
        merchant_id="m-1",
        order_id=order_id,
        payment_id=f"pay-{order_id}",
        operation_id=order_id,
        kind=kind,
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


# The simulated gateways' own temper: kinds that are pending before they succeed.
PENDING_AT = {(name, kind) for name, each in PERSONALITIES.items() for kind in each.pending}
LATER_KINDS = ("capture", "void", "refund")
QUICK = FaultPlan(slow_ms_min=10, slow_ms_max=20, hang_ms=2_000, pending_ms=200, token_grace_ms=400)


@pytest.fixture(scope="module")
def simulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, SimulatorHandle]]:
    """One of each, without faults of their own: only test tokens make trouble."""
    folder: Path = tmp_path_factory.mktemp("gateways")
    handles: dict[str, SimulatorHandle] = {}
    try:
        for name in ADAPTERS:
            handles[name] = start_simulator(folder / f"{name}.sqlite", faults=QUICK, gateway=name)
        yield handles
    finally:
        for handle in handles.values():
            stop_simulator(handle)


@pytest.fixture
def simulator(simulators: dict[str, SimulatorHandle]) -> SimulatorHandle:
    """The one of the default."""
    return simulators["simulator"]


@pytest.fixture(params=["in-process", *ADAPTERS])
def run(request: pytest.FixtureRequest) -> Callable[..., object]:
    """Runs a coroutine function with an open gateway of each kind."""
    gateway: Gateway
    if request.param == "in-process":
        gateway = InProcessGateway(name="sim")
    else:
        gateway = over_http(request.getfixturevalue("simulators"), request.param)

    def go(scenario: Callable[[Gateway], Awaitable[object]]) -> object:
        async def whole() -> object:
            async with opened(gateway):
                return await scenario(gateway)

        return asyncio.run(whole())

    return go


def over_http(simulators: dict[str, SimulatorHandle], name: str, **more: float) -> HttpGateway:
    """The adapter of a simulated gateway."""
    settings: dict[str, float] = {"deadline_s": 5.0, **more}
    return HttpGateway("sim", simulators[name].url, adapter=ADAPTERS[name](), **settings)


def knows_keys(gateway: Gateway) -> bool:
    """Whether a call may arrive twice and be done once."""
    return not isinstance(gateway, HttpGateway) or gateway.adapter.idempotent


def a_later(
    parent: PaymentRequest, reference: str, kind: str, amount_minor: int, operation: str = ""
) -> PaymentRequest:
    """A capture, void or refund of what was charged or authorized."""
    operation_id = operation or f"{kind}-{next(_orders)}"
    return replace(
        parent,
        kind=kind,
        operation_id=operation_id,
        amount_minor=amount_minor,
        parent_reference=reference,
        idempotency_key=f"{parent.payment_id}:{operation_id}:sim:1",
    )


def asking(request: PaymentRequest) -> PaymentRequest:
    """The inquiry about a request."""
    return replace(request, kind="inquire", operation_kind=request.kind)


async def done(gateway: Gateway, request: PaymentRequest) -> GatewayAnswer:
    """Send a request by its kind."""
    answer: GatewayAnswer = await getattr(gateway, request.kind)(request, send_before_ms=soon_ms())
    return answer


async def settled(gateway: Gateway, request: PaymentRequest) -> GatewayAnswer:
    """Ask until it is no longer pending (or not yet seen)."""
    async with asyncio.timeout(20):
        while True:
            answer = await gateway.inquire(asking(request))
            if answer.outcome not in ("pending", "not_found"):
                return answer
            await asyncio.sleep(0.02)


async def parent_of(
    gateway: Gateway, kind: str, token: str = "tok_ok", amount_minor: int = 1_000
) -> tuple[PaymentRequest, str]:
    """An authorization (for captures and voids) or charge (for refunds), with its id."""
    request = a_request(token, amount_minor, kind="charge" if kind == "refund" else "authorize")
    answer = await done(gateway, request)
    assert answer.outcome == "succeeded", answer
    assert answer.gateway_reference is not None
    return request, answer.gateway_reference


@asynccontextmanager
async def opened(gateway: Gateway) -> AsyncIterator[Gateway]:
    await gateway.open()
    try:
        yield gateway
    finally:
        await gateway.close()
        await gateway.close()  # twice is fine


@pytest.mark.parametrize("kind", ["charge", "authorize"])
def test_the_same_key_again_gives_the_first_answer(run: Callable[..., object], kind: str) -> None:
    """A call that is repeated moves money once and answers with the same reference."""
    request = a_request(kind=kind)

    async def scenario(gateway: Gateway) -> None:
        first = await done(gateway, request)
        assert first.outcome == "succeeded"
        assert first.amount_minor == 1250
        assert first.gateway_reference
        if knows_keys(gateway):
            assert await done(gateway, request) == first
        assert await gateway.inquire(asking(request)) == first

    run(scenario)


@pytest.mark.parametrize("kind", LATER_KINDS)
def test_captures_voids_and_refunds_happen_once_under_a_key(
    run: Callable[..., object], kind: str
) -> None:
    """Each is taken once under its key, is found by it, and ends as succeeded."""

    async def scenario(gateway: Gateway) -> None:
        parent, reference = await parent_of(gateway, kind)
        request = a_later(parent, reference, kind, 1_000)
        assert (await gateway.inquire(asking(request))).outcome == "not_found"
        first = await done(gateway, request)
        slow = isinstance(gateway, HttpGateway) and (gateway.adapter.name, kind) in PENDING_AT
        assert first.outcome == ("pending" if slow else "succeeded")
        if knows_keys(gateway):
            assert await done(gateway, request) == first
        last = await settled(gateway, request)
        assert (last.outcome, last.amount_minor) == ("succeeded", 1_000)
        assert last.gateway_reference == first.gateway_reference != reference

    run(scenario)


@pytest.mark.parametrize("name", ADAPTERS)
def test_money_is_captured_and_refunded_in_parts(
    simulators: dict[str, SimulatorHandle], name: str
) -> None:
    """Several captures and refunds add up, and one more than there is gets a plain no."""

    async def scenario() -> None:
        async with opened(over_http(simulators, name)) as gateway:
            parent, reference = await parent_of(gateway, "capture")
            for amount_minor in (300, 600):
                part = a_later(parent, reference, "capture", amount_minor)
                await done(gateway, part)
                assert (await settled(gateway, part)).outcome == "succeeded"
            over = await done(gateway, a_later(parent, reference, "capture", 101))
            assert (over.outcome, over.code) == ("declined", "capture_exceeds_authorized")
            void = await done(gateway, a_later(parent, reference, "void", 1_000))
            assert (void.outcome, void.code) == ("declined", "already_captured")
            for amount_minor in (500, 400):
                part = a_later(parent, reference, "refund", amount_minor)
                await done(gateway, part)
                assert (await settled(gateway, part)).outcome == "succeeded"
            over = await done(gateway, a_later(parent, reference, "refund", 1))
            assert (over.outcome, over.code) == ("declined", "refund_exceeds_captured")
            nobody = await done(gateway, a_later(parent, "ch_nobody", "refund", 1))
            assert (nobody.outcome, nobody.code) == ("declined", "parent_not_found")

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_movement_has_an_id_of_its_own_or_that_of_what_it_is_about(
    simulators: dict[str, SimulatorHandle], name: str
) -> None:
    """Parts of one amount are told apart, and a refund that came back from the next one: the same
    id twice is one movement of money, to the payment and to the books. Where notices carry nothing
    else, also a void has one, and nothing that of what it is about."""
    by_own_id = ADAPTERS[name].notices_by_own_id

    async def moved(gateway: Gateway, request: PaymentRequest) -> str:
        await done(gateway, request)
        last = await settled(gateway, request)
        assert last.outcome == "succeeded" or last.code == "returned", last
        assert last.gateway_reference is not None
        assert last.gateway_reference.strip()
        return last.gateway_reference

    async def scenario() -> None:
        async with opened(over_http(simulators, name)) as gateway:
            ids: list[str] = []
            for kind, token in (
                ("capture", "tok_ok"),
                ("capture", "tok_ok"),
                ("refund", "tok_refund_fails_later"),
            ):
                parent, about = await parent_of(gateway, kind, token)
                parts = [a_later(parent, about, "refund", 200) for _ in range(2)]
                if kind == "capture":
                    parts[:0] = [a_later(parent, about, "capture", 300) for _ in range(2)]
                later = [await moved(gateway, part) for part in parts]
                ids += [about, *(each for each in later if by_own_id or each != about)]
            if by_own_id:
                hold, about = await parent_of(gateway, "void")
                ids += [about, await moved(gateway, a_later(hold, about, "void", 1_000))]
            assert len(ids) == len(set(ids))

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_voided_authorization_is_told_by_name(
    simulators: dict[str, SimulatorHandle], name: str
) -> None:
    """Nothing can be captured after a void, and the code says why."""

    async def scenario() -> None:
        async with opened(over_http(simulators, name)) as gateway:
            parent, reference = await parent_of(gateway, "void")
            assert (await done(gateway, a_later(parent, reference, "void", 1_000))).outcome == (
                "succeeded"
            )
            late = await done(gateway, a_later(parent, reference, "capture", 1))
            assert (late.outcome, late.code) == ("declined", "authorization_voided")

    asyncio.run(scenario())


# Effect of a test token -> (outcomes that the call may have, outcome an inquiry comes to).
EFFECTS: dict[str, tuple[set[str], str]] = {
    "rate_limited_once": ({"not_sent"}, "not_found"),
    "500_before": ({"unknown"}, "not_found"),
    "500_after": ({"unknown"}, "succeeded"),
    "reset_before": ({"unknown"}, "not_found"),
    "reset_after": ({"unknown"}, "succeeded"),
    "hang_before": ({"unknown"}, "not_found"),
    "hang_after": ({"unknown"}, "succeeded"),
    "malformed": ({"unknown"}, "succeeded"),
    "in_progress_once": ({"unknown"}, "not_found"),
    "not_found_grace": ({"unknown"}, "succeeded"),
    "pending_success": ({"pending"}, "succeeded"),
    "pending_failure": ({"pending"}, "declined"),
    "slow": ({"succeeded", "pending"}, "succeeded"),
    "decline_do_not_honor": ({"declined"}, "declined"),
}


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("kind", ["charge", "authorize", *LATER_KINDS])
@pytest.mark.parametrize("name", ADAPTERS)
def test_each_trouble_of_each_operation_has_its_outcome(
    simulators: dict[str, SimulatorHandle], name: str, kind: str, effect: str
) -> None:
    """Whatever goes wrong with whichever operation: never a guess, and the inquiry finds out."""
    outcomes, inquired = EFFECTS[effect]
    first = kind in ("charge", "authorize")

    async def scenario() -> None:
        deadline_s = 0.4 if effect.startswith("hang") else 5.0
        async with opened(over_http(simulators, name, deadline_s=deadline_s)) as gateway:
            if first:
                request = a_request(f"tok_{effect}", kind=kind)
            else:
                parent, reference = await parent_of(gateway, kind, f"tok_{kind}_{effect}")
                request = a_later(parent, reference, kind, 1_000)
            answer = await done(gateway, request)
            assert answer.outcome in outcomes, answer
            assert action_of(answer.code) or answer.code is None
            if inquired == "not_found":
                assert (await gateway.inquire(asking(request))).outcome == "not_found"
            elif effect.startswith("decline"):
                assert answer.code == "do_not_honor"
                assert (await gateway.inquire(asking(request))).outcome in (
                    "not_found",
                    "declined",
                )
            else:
                assert (await settled(gateway, request)).outcome == inquired

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_gateway_that_waits_for_the_customer_says_where(
    simulators: dict[str, SimulatorHandle], name: str
) -> None:
    """The answer carries the address, and the charge succeeds once the customer has been there."""
    request = a_request("tok_action_required")

    async def scenario() -> None:
        async with opened(over_http(simulators, name)) as gateway:
            answer = await done(gateway, request)
            assert (answer.outcome, answer.code) == ("pending", "customer_action_required")
            assert answer.next_action_url is not None
            assert answer.next_action_url.startswith(simulators[name].url)
            assert (await gateway.inquire(asking(request))).next_action_url == (
                answer.next_action_url
            )
            admin(simulators[name], "complete", {"reference": request.idempotency_key})
            assert (await settled(gateway, request)).outcome == "succeeded"

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_refund_that_fails_later_is_told_from_one_that_was_refused(
    simulators: dict[str, SimulatorHandle], name: str
) -> None:
    """Money that had been sent and came back is a decline with the code ``returned``."""

    async def scenario() -> None:
        async with opened(over_http(simulators, name)) as gateway:
            parent, reference = await parent_of(gateway, "refund", "tok_refund_fails_later")
            request = a_later(parent, reference, "refund", 1_000)
            await done(gateway, request)
            async with asyncio.timeout(20):
                while (answer := await gateway.inquire(asking(request))).outcome != "declined":
                    await asyncio.sleep(0.02)
            assert answer.code == "returned"

    asyncio.run(scenario())


def admin(handle: SimulatorHandle, what: str, content: dict[str, object]) -> None:
    """An administration call."""
    request = urllib.request.Request(
        f"{handle.admin_url}/v1/admin/{what}", data=json.dumps(content).encode(), method="POST"
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def test_a_currency_that_a_gateway_does_not_take_is_for_another_one(
    simulators: dict[str, SimulatorHandle],
) -> None:
    """Each gateway's own words for it become one code that sends the charge elsewhere."""

    async def scenario(name: str) -> GatewayAnswer:
        async with opened(over_http(simulators, name)) as gateway:
            return await done(gateway, replace(a_request(), currency="SEK"))

    for name in ("northbank", "pacific", "legacy"):
        answer = asyncio.run(scenario(name))
        assert (answer.outcome, answer.code) == ("declined", "currency_not_supported")
        assert action_of(answer.code) is Action.OTHER_GATEWAY


def test_an_inquiry_within_the_grace_time_is_blind(
    simulators: dict[str, SimulatorHandle],
) -> None:
    """The charge is there and not to be seen yet: "not found" of then proves nothing."""
    request = a_request("tok_card")  # follows the gateway's own ways

    async def scenario() -> None:
        async with opened(over_http(simulators, "legacy")) as gateway:
            assert (await done(gateway, request)).outcome == "succeeded"
            assert (await gateway.inquire(asking(request))).outcome == "not_found"
            assert (await settled(gateway, request)).outcome == "succeeded"

    asyncio.run(scenario())


def test_an_authorization_left_alone_expires(tmp_path: Path) -> None:
    """After the gateway's own time the money is free again, and a capture is refused by name."""
    handle = start_simulator(
        tmp_path / "books.sqlite", faults="none", gateway="pacific", authorization_ms=300
    )

    async def scenario() -> GatewayAnswer:
        async with opened(over_http({"pacific": handle}, "pacific")) as gateway:
            parent, reference = await parent_of(gateway, "capture")
            await asyncio.sleep(0.4)
            return await done(gateway, a_later(parent, reference, "capture", 1_000))

    try:
        answer = asyncio.run(scenario())
    finally:
        stop_simulator(handle)
    assert (answer.outcome, answer.code) == ("declined", "authorization_expired")


def test_calls_under_one_key_at_once_never_differ(run: Callable[..., object]) -> None:
    """Of calls in flight with the same key all that succeed name the same charge."""
    request = a_request()

    async def scenario(gateway: Gateway) -> None:
        if not knows_keys(gateway):
            return
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
        for kind in ("charge", "authorize", "capture", "void", "refund"):
            one = replace(request, kind=kind, parent_reference="x")
            late = await getattr(gateway, kind)(one, send_before_ms=wall_clock_ms())
            assert (late.outcome, late.code) == ("not_sent", "send_before_passed")
            assert (await gateway.inquire(asking(one))).outcome == "not_found"

    run(scenario)


def test_an_inquiry_moves_nothing(run: Callable[..., object]) -> None:
    """Asking about a key before its charge does not make it known."""
    request = a_request()

    async def scenario(gateway: Gateway) -> None:
        outcomes = [(await gateway.inquire(asking(request))).outcome for _ in range(2)]
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
            return charged, await gateway.inquire(asking(request))

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

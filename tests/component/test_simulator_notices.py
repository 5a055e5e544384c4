"""Notices of the simulated gateways, as the adapters read them: over a real socket, signed."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pipeline.errors import UserError
from pipeline.gateways.adapters.known import ADAPTERS
from pipeline.gateways.adapters.legacy import LegacyAdapter
from pipeline.gateways.http_adapter import HttpGateway
from pipeline.gateways.notice import Notice, NoticeRefused, our_reference
from pipeline.gateways.simulator.app import Gateway, build_app
from pipeline.gateways.simulator.faults import FaultPlan
from pipeline.gateways.simulator.notices import checked_address
from pipeline.gateways.simulator.personality import PERSONALITIES
from tests.unit.test_gateway_http import a_request

PATIENCE_S = 20
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
NEXT_SECRET = "whsec_" + base64.b64encode(b"n" * 32).decode()
TELLING = tuple(name for name, each in ADAPTERS.items() if each.sends_notices)
QUICK = FaultPlan(pending_ms=50, notice_delay_ms=0, notice_retry_ms=10)
REFERENCE = "pay-1:o:1:sim:1"  # an order id may hold a colon


class Desk:
    """Receives notices and reads them with the gateway's adapter."""

    def __init__(self, adapter: Any) -> None:
        secrets = (SECRET,) if adapter.sends_notices else ()
        self.gateway = HttpGateway(
            "sim", "http://127.0.0.1:1", adapter=adapter, notice_secrets=secrets
        )
        self.notices: list[Notice | NoticeRefused] = []
        self.raw: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = dict(request.headers)
        self.raw.append((headers, body))
        self.notices.append(self.gateway.read_notice(headers, body, int(time.time())))
        return web.Response(status=self.answers.pop(0) if self.answers else 204)

    async def until(self, count: int) -> list[Notice]:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.notices) < count:
                await asyncio.sleep(0.005)
        return [notice for notice in self.notices if isinstance(notice, Notice)]


class World:
    """A simulated gateway with its notices going to a desk, and an adapter to call it."""

    def __init__(self, gateway: Gateway, desk: Desk, caller: HttpGateway, admin_url: str) -> None:
        self.gateway, self.desk, self.caller, self.admin_url = gateway, desk, caller, admin_url

    async def send(self, token: str = "tok_ok", kind: str = "charge", **changes: Any) -> Any:
        from msgspec.structs import replace as changed

        request = changed(
            a_request(),
            **{"idempotency_key": REFERENCE, "instrument_token": token, "kind": kind, **changes},
        )
        return await getattr(self.caller, kind)(request, send_before_ms=1 << 60)

    async def admin(self, method: str, path: str, content: Any) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.admin_url + path, json=content) as answer,
        ):
            return await answer.json()


def run(name: str, path: Path, scenario: Callable[[World], Awaitable[None]]) -> None:
    async def whole() -> None:
        desk = Desk(ADAPTERS[name]())
        receiver = web.Application()
        receiver.add_routes([web.post("/hooks", desk.receive)])
        receiving = web.AppRunner(receiver, access_log=None)
        await receiving.setup()
        await web.TCPSite(receiving, "127.0.0.1", 0).start()
        gateway = Gateway(
            path, plan=QUICK, seed=7, personality=PERSONALITIES[name], public_url="http://x"
        )
        gateway.notices.address(f"http://127.0.0.1:{receiving.addresses[0][1]}/hooks", (SECRET,))
        serving = web.AppRunner(build_app(gateway, outage_applies=True), access_log=None)
        await serving.setup()
        await web.TCPSite(serving, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{serving.addresses[0][1]}"
        caller = HttpGateway("sim", url, adapter=ADAPTERS[name](), now_ms=lambda: 0)
        await caller.open()
        try:
            async with asyncio.timeout(2 * PATIENCE_S):
                await scenario(World(gateway, desk, caller, url))
        finally:
            await caller.close()
            gateway.drain()
            await serving.cleanup()
            await gateway.close()
            await receiving.cleanup()

    asyncio.run(whole())


@pytest.mark.parametrize(
    ("token", "told"), [("tok_refund_notice_duplicate", 3), ("tok_notice_duplicate", 3)]
)
def test_a_token_is_about_the_notices_of_its_own_operation(
    token: str, told: int, tmp_path: Path
) -> None:
    """Of a charge and its refund the one that the token speaks of is told twice, the other once."""

    async def scenario(world: World) -> None:
        charged = await world.send(token)
        refund = {"kind": "refund", "parent_reference": charged.gateway_reference}
        await world.send("tok_ok", idempotency_key="pay-1:r:sim:1", **refund)
        notices = await world.desk.until(told)
        await asyncio.sleep(0.2)  # one too many has no event to wait for
        kinds = [notice.kind for notice in notices]
        twice = "refund" if "refund" in token else "charge"
        assert len(world.desk.notices) == told
        assert kinds.count(twice) == 2

    run("simulator", tmp_path / "books.db", scenario)


@pytest.mark.parametrize("name", TELLING)
def test_a_success_is_told_with_all_that_the_table_needs(name: str, tmp_path: Path) -> None:
    """The notice names the payment by our reference, or by the gateway's own id alone."""

    async def scenario(world: World) -> None:
        answer = await world.send()
        (notice,) = await world.desk.until(1)
        assert (notice.type, notice.kind, notice.outcome) == ("operation", "charge", "succeeded")
        assert (notice.amount_minor, notice.currency) == (1250, "GBP")
        assert notice.gateway == "sim"
        assert notice.gateway_reference == answer.gateway_reference
        if name == "pacific":
            assert notice.reference is notice.payment_id is notice.merchant_id is None
        else:
            assert (notice.payment_id, notice.operation_id, notice.attempt) == ("pay-1", "o:1", 1)
            assert (notice.merchant_id, notice.order_id) == ("m-1", "o-1")

    run(name, tmp_path / "books", scenario)


@pytest.mark.parametrize("name", TELLING)
@pytest.mark.parametrize(("then", "outcome"), [("success", "succeeded"), ("failure", "declined")])
def test_pending_is_told_twice_first_as_pending_then_as_what_it_became(
    name: str, then: str, outcome: str, tmp_path: Path
) -> None:
    """Whoever waits for a notice learns the end without asking."""

    async def scenario(world: World) -> None:
        assert (await world.send(f"tok_pending_{then}")).outcome == "pending"
        notices = await world.desk.until(2)
        assert sorted(str(notice.outcome) for notice in notices) == sorted(["pending", outcome])
        assert len({notice.notification_id for notice in notices}) == 2
        if outcome == "declined":
            assert {n.code for n in notices if n.outcome == "declined"} == {"do_not_honor"}

    run(name, tmp_path / "books", scenario)


@pytest.mark.parametrize("name", TELLING)
def test_a_refund_that_comes_back_is_told_as_failed(name: str, tmp_path: Path) -> None:
    """Failed after it had succeeded is another word than declined."""

    async def scenario(world: World) -> None:
        paid = await world.send("tok_refund_fails_later")
        await world.send(
            "",
            "refund",
            parent_reference=paid.gateway_reference,
            idempotency_key="pay-1:cmd-1:sim:1",
        )
        notices = await world.desk.until(4 if name == "pacific" else 3)
        refunds = [n for n in notices if n.kind == "refund"]
        assert {str(n.outcome) for n in refunds} >= {"succeeded", "failed"}
        assert [n.code for n in refunds if n.outcome == "failed"] == ["returned"]

    run(name, tmp_path / "books", scenario)


@pytest.mark.parametrize("name", TELLING)
def test_a_dispute_is_told_through_all_its_stages(name: str, tmp_path: Path) -> None:
    """Each stage has a notice of its own with the amount, the fee and the charge."""

    async def scenario(world: World) -> None:
        paid = await world.send()
        asked = {"reference": REFERENCE, "state": "inquiry", "amount_minor": 1_000}
        dispute = await world.admin("POST", "/v1/admin/disputes", asked)
        stages = ("opened", "won", "pre_arbitration", "won", "lost")
        for state in stages:
            more = {"dispute_id": dispute["id"], "state": state, "reference": REFERENCE}
            fee = {"fee_minor": 1_500} if state == "opened" else {}
            await world.admin("POST", "/v1/admin/disputes", more | fee)
        told = [n for n in await world.desk.until(7) if n.type == "dispute"]
        numbers = [n.event_sequence for n in told]
        assert len({*numbers, None}) == 7, "each event has its own number"
        told.sort(key=lambda n: n.event_sequence or 0)
        assert [n.dispute_state for n in told] == ["inquiry", *stages]
        assert {(n.dispute_id, n.amount_minor) for n in told} == {(dispute["id"], 1_000)}
        assert {n.fee_minor for n in told} == {0, 1_500}
        assert {n.gateway_reference for n in told} == {paid.gateway_reference}
        named = (None, None) if name == "pacific" else ("m-1", "o-1")
        assert {(n.merchant_id, n.order_id) for n in told} == {named}

    run(name, tmp_path / "books", scenario)


def test_a_notice_that_is_not_taken_comes_again_under_its_id(tmp_path: Path) -> None:
    """A receiver in trouble loses nothing, and can tell a repetition."""

    async def scenario(world: World) -> None:
        world.desk.answers = [500, 503]
        await world.send()
        notices = await world.desk.until(3)
        assert len({notice.notification_id for notice in notices}) == 1
        async with asyncio.timeout(PATIENCE_S):
            while (await world.admin("GET", "/v1/admin/notices", None))["waiting"]:
                await asyncio.sleep(0.01)
        assert len(world.desk.notices) == 3

    run("simulator", tmp_path / "books", scenario)


def test_faults_of_notices_come_by_token(tmp_path: Path) -> None:
    """Twice; before the answer; and first with a signature that nobody may believe."""

    async def scenario(world: World) -> None:
        world.gateway.plan = replace(world.gateway.plan, notice_delay_ms=3_600_000)
        await world.send("tok_notice_before_answer")
        assert len(world.desk.notices) == 1
        counts = await world.admin("GET", "/v1/faults", None)
        assert counts["faults"]["notice_before_answer"] == 1

    run("simulator", tmp_path / "before", scenario)

    async def twice(world: World) -> None:
        await world.send("tok_notice_duplicate")
        first, second = await world.desk.until(2)
        assert first == second

    run("simulator", tmp_path / "twice", twice)

    async def wrong(world: World) -> None:
        world.desk.answers = [401]
        await world.send("tok_notice_bad_signature")
        await world.desk.until(2)
        refused, taken = world.desk.notices
        assert refused == NoticeRefused("signature_wrong")
        assert isinstance(taken, Notice)

    run("simulator", tmp_path / "wrong", wrong)


@pytest.mark.parametrize("name", TELLING)
def test_a_notice_that_was_changed_or_is_stale_is_not_believed(name: str, tmp_path: Path) -> None:
    """Each gateway's scheme covers the body and the time, and nothing passes without it."""

    async def scenario(world: World) -> None:
        await world.send()
        await world.desk.until(1)
        headers, body = world.desk.raw[0]
        read, now_s = world.desk.gateway.read_notice, int(time.time())
        assert isinstance(read(headers, body, now_s), Notice)
        assert read(headers, body.replace(b"1250", b"9999").replace(b"12.50", b"99.99"), now_s) == (
            NoticeRefused("signature_wrong")
        )
        assert read(headers, body, now_s + 400) == NoticeRefused("timestamp_out_of_tolerance")
        assert read({}, body, now_s) == NoticeRefused("signature_missing")
        adapter = ADAPTERS[name]()
        other = HttpGateway("sim", "http://x", adapter=adapter, notice_secrets=(NEXT_SECRET,))
        assert other.read_notice(headers, body, now_s) == NoticeRefused("signature_wrong")
        both = HttpGateway("sim", "http://x", adapter=adapter, notice_secrets=(NEXT_SECRET, SECRET))
        assert isinstance(both.read_notice(headers, body, now_s), Notice)
        if name != "pacific":
            stranger = HttpGateway("other", "http://x", adapter=adapter, notice_secrets=(SECRET,))
            assert stranger.read_notice(headers, body, now_s) == (
                NoticeRefused("reference_of_another_gateway")
            )

    run(name, tmp_path / "books", scenario)


def test_a_gateway_without_notices_or_secret_believes_nobody(tmp_path: Path) -> None:
    """No secret, no trust; and the legacy gateway documents no notices at all."""
    for gateway in (
        HttpGateway("sim", "http://x"),
        HttpGateway("sim", "http://x", adapter=LegacyAdapter()),
    ):
        refused = gateway.read_notice({}, b"{}", 0)
        assert isinstance(refused, NoticeRefused)
        assert not refused.genuine
    with pytest.raises(UserError, match="sends no notices"):
        HttpGateway("sim", "http://x", adapter=LegacyAdapter(), notice_secrets=("s" * 20,))

    async def scenario(world: World) -> None:
        await world.send()
        await asyncio.sleep(0.1)
        assert world.desk.raw == []

    run("legacy", tmp_path / "books", scenario)


def test_genuine_bytes_that_cannot_be_read_are_refused_by_another_word() -> None:
    """A signed notice of an unknown type is not the same as a forged one."""
    from pipeline.gateways.webhook_signature import signed_headers

    gateway = HttpGateway("sim", "http://x", notice_secrets=(SECRET,))
    for body, reason in (
        (b"{", "unreadable"),
        (b'{"type": "payout.paid", "data": {}}', "unreadable"),
        (
            b'{"type": "payout.paid", "data": {"id": "p", "status": "succeeded", '
            b'"amount_minor": 1, "currency": "GBP"}}',
            "unknown_type",
        ),
    ):
        refused = gateway.read_notice(signed_headers([SECRET], "msg_1", 100, body), body, 100)
        assert refused == NoticeRefused(reason)
        assert refused.genuine


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("p:o:sim:1", ("p", "o", "sim", 1)),
        ("p:a:b:c:sim:12", ("p", "a:b:c", "sim", 12)),
        ("p:o:sim", None),
        ("p:o:sim:x", None),
        (":o:sim:1", None),
        ("p::sim:1", None),
        ("", None),
    ],
)
def test_our_reference_is_read_back(text: str, parts: tuple[object, ...] | None) -> None:
    """What was put into the idempotency key comes out, whatever the order's id looks like."""
    ours = our_reference(text)
    if parts is None:
        assert ours is None
    else:
        assert ours is not None
        assert (ours.payment_id, ours.operation_id, ours.gateway, ours.attempt) == parts


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("http://example.com/hooks", (SECRET,)),
        ("http://10.0.0.1/hooks", (SECRET,)),
        ("http://167772161/hooks", (SECRET,)),
        ("http://0xa000001/hooks", (SECRET,)),
        ("https://127.0.0.1/hooks", (SECRET,)),
        ("http://127.0.0.1/hooks", ()),
        ("http://127.0.0.1/hooks", ("secret",)),
        ("http://127.0.0.1/hooks", (SECRET, SECRET, SECRET)),
    ],
)
def test_notices_never_leave_the_machine_and_are_never_unsigned(
    url: str, secrets: tuple[str, ...]
) -> None:
    """An address elsewhere, or a secret that is none, is refused in a sentence."""
    with pytest.raises(UserError):
        checked_address(url, secrets)
    checked_address("http://localhost:1/hooks", (SECRET, NEXT_SECRET))
    checked_address("http://webhooks:8420/hooks", (SECRET,))

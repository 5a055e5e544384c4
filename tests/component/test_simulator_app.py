"""The HTTP contract of the gateway simulator, over a real socket in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pipeline.gateways.simulator.app import Gateway, build_app
from pipeline.gateways.simulator.faults import CALL_FAULTS, FaultKind, FaultPlan
from pipeline.gateways.simulator.tokens import FORCED

RETENTION_MS = 60_000
# Short enough for a fast test; a hang ends by itself, so that no client's patience is timed.
QUICK = FaultPlan(slow_ms_min=10, slow_ms_max=20, hang_ms=50, token_grace_ms=1_500)
UNTIL_DRAINED = replace(QUICK, slow_ms_min=60_000, slow_ms_max=60_000, hang_ms=60_000)
PATIENCE_S = 20

LOST = "lost"  # the connection broke without an answer


@dataclass
class Clock:
    """The gateway's time, moved by hand."""

    now_ms: int = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@dataclass
class Answer:
    """What a client got."""

    status: int | str
    json: Any = None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Client:
    """Calls the gateway as an adapter would: no retries."""

    def __init__(self, session: aiohttp.ClientSession, clock: Clock, gateway: Gateway) -> None:
        self._session = session
        self.clock = clock
        self.gateway = gateway

    async def charge(self, token: str = "tok_ok", *, key: str = "k1", **changes: Any) -> Answer:
        body = {
            "reference": f"ref-{key}",
            "amount_minor": 1_000,
            "currency": "GBP",
            "instrument_token": token,
            "merchant_id": "shop",
            "order_id": f"order-{key}",
            "capture": True,
        }
        return await self.send("POST", "/v1/charges", json=body | changes, key=key)

    async def inquire(self, key: str = "k1") -> Answer:
        return await self.send("GET", f"/v1/charges?reference=ref-{key}")

    async def inquire_until(self, status: int, key: str = "k1") -> Answer:
        async with asyncio.timeout(PATIENCE_S):
            while (answer := await self.inquire(key)).status != status:
                await asyncio.sleep(0.001)
        return answer

    async def faults(self) -> dict[str, int]:
        return dict((await self.send("GET", "/v1/faults")).json["faults"])

    async def charges(self) -> int:
        return int((await self.send("GET", "/v1/books/summary")).json["charges"])

    async def send(
        self, method: str, path: str, *, json: Any = None, key: str | None = None
    ) -> Answer:
        headers = {} if key is None else {"Idempotency-Key": key}
        try:
            async with self._session.request(method, path, json=json, headers=headers) as answer:
                body = await answer.read()
                return Answer(answer.status, await answer.json(), body, dict(answer.headers))
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return Answer(LOST)


Scenario = Callable[[Client], Awaitable[None]]
Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a scenario against a gateway with empty books."""

    async def hosted(scenario: Scenario, plan: FaultPlan) -> None:
        clock = Clock()
        gateway = Gateway(
            tmp_path / "books.db",
            plan=plan,
            seed=7,
            key_retention_ms=RETENTION_MS,
            clock_ms=clock,
        )
        # Not aiohttp's TestServer: it cancels handlers whose client has gone, and ours must not be.
        server = web.AppRunner(build_app(gateway, outage_applies=True), access_log=None)
        await server.setup()
        await web.TCPSite(server, "127.0.0.1", 0).start()
        try:
            async with aiohttp.ClientSession(
                f"http://127.0.0.1:{server.addresses[0][1]}",
                timeout=aiohttp.ClientTimeout(total=PATIENCE_S),
                connector=aiohttp.TCPConnector(limit=0),
            ) as session:
                await scenario(Client(session, clock, gateway))
        finally:
            gateway.drain()
            await server.cleanup()
            await gateway.close()

    return lambda scenario, plan=QUICK: asyncio.run(hosted(scenario, plan))


# Token -> answers to the first, second and third call with one key, then to an inquiry; charges.
TOKENS: dict[str, tuple[list[int | str], int | str, int]] = {
    "tok_ok": ([201, 201, 201], 200, 1),
    "tok_decline_insufficient_funds": ([402, 402, 402], 404, 0),
    "tok_decline_expired": ([402, 402, 402], 404, 0),
    "tok_decline_do_not_honor": ([402, 402, 402], 404, 0),
    "tok_decline_lost_card": ([402, 402, 402], 404, 0),
    "tok_slow": ([201, 201, 201], 200, 1),
    "tok_rate_limited_once": ([429, 201, 201], 200, 1),
    "tok_500_before": ([500, 201, 201], 200, 1),
    "tok_500_after": ([500, 201, 201], 200, 1),
    "tok_reset_before": ([LOST, 201, 201], 200, 1),
    "tok_reset_after": ([LOST, 201, 201], 200, 1),
    "tok_hang_before": ([LOST, 201, 201], 200, 1),
    "tok_hang_after": ([LOST, 201, 201], 200, 1),
    "tok_not_found_grace": ([LOST, 201, 201], 404, 1),
    "tok_always_500": ([500, 500, 500], 404, 0),
    "tok_always_unknown": ([LOST, LOST, LOST], 500, 1),
    "tok_in_progress_once": ([409, 201, 201], 200, 1),
    "tok_malformed": ([LOST, 201, 201], 200, 1),
    "tok_pending_success": ([202, 202, 202], 200, 0),
    "tok_pending_failure": ([202, 202, 202], 200, 0),
    "tok_action_required": ([202, 202, 202], 200, 0),
    "tok_fails_later": ([201, 201, 201], 200, 1),
    "tok_notice_duplicate": ([201, 201, 201], 200, 1),
    "tok_notice_before_answer": ([201, 201, 201], 200, 1),
    "tok_notice_bad_signature": ([201, 201, 201], 200, 1),
}


def test_every_test_token_is_tested() -> None:
    """A token added to the simulator needs a row in the table above."""
    assert set(TOKENS) == set(FORCED)


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_forces_its_outcome_whatever_the_plan(run: Run, token: str) -> None:
    """Each test token gives its answers, call by call, even under a plan that faults everything."""
    answers, inquiry, charges = TOKENS[token]
    hostile = replace(QUICK, rates={"rate_limited": 1.0, "inquiry_500": 1.0}, inquiry_grace_ms=999)

    async def scenario(client: Client) -> None:
        got = [(await client.charge(token)).status for _ in range(3)]
        assert got == answers
        # The plan may fault inquiries about what does not exist; at most twice.
        statuses = [(await client.inquire()).status for _ in range(3)]
        assert statuses[-1] == inquiry
        assert await client.charges() == charges

    run(scenario, hostile)


@pytest.mark.parametrize(
    ("token", "charged"),
    [
        ("tok_500_before", False),
        ("tok_reset_before", False),
        ("tok_hang_before", False),
        ("tok_rate_limited_once", False),
        ("tok_500_after", True),
        ("tok_reset_after", True),
        ("tok_hang_after", True),
    ],
)
def test_after_a_lost_answer_only_an_inquiry_tells(run: Run, token: str, charged: bool) -> None:
    """Two tokens lose the answer alike; the inquiry by our reference tells charged from not."""

    async def scenario(client: Client) -> None:
        await client.charge(token)
        inquiry = await client.inquire()
        assert inquiry.status == (200 if charged else 404)
        assert inquiry.json["found"] is charged
        if charged:
            assert inquiry.json["charge"]["reference"] == "ref-k1"
            by_id = await client.send("GET", f"/v1/charges/{inquiry.json['charge']['id']}")
            assert by_id.json == inquiry.json

    run(scenario)


def test_decline_names_the_code(run: Run) -> None:
    """A decline carries the code an adapter normalises."""

    async def scenario(client: Client) -> None:
        answer = await client.charge("tok_decline_expired")
        assert answer.json["error"]["code"] == "expired_card"

    run(scenario)


def test_rate_limiting_says_how_long_to_wait(run: Run) -> None:
    """A 429 carries Retry-After in seconds."""

    async def scenario(client: Client) -> None:
        answer = await client.charge("tok_rate_limited_once")
        assert answer.headers["Retry-After"] == "1"

    run(scenario)


def test_grace_hides_a_charge_for_its_time_only(run: Run) -> None:
    """An inquiry that comes too early says not found although the charge exists."""

    async def scenario(client: Client) -> None:
        await client.charge("tok_not_found_grace")
        client.clock.now_ms += 1_499
        assert (await client.inquire()).status == 404
        client.clock.now_ms += 1
        assert (await client.inquire()).status == 200
        assert (await client.faults())["inquiry_not_found"] == 1

    run(scenario)


def test_a_replay_is_the_same_bytes_and_says_so(run: Run) -> None:
    """The same key and payload get the stored answer, marked as replayed, whatever the spacing."""

    async def scenario(client: Client) -> None:
        first = await client.charge()
        client.clock.now_ms += RETENTION_MS - 1
        again = await client.charge()
        assert again.body == first.body
        assert "Idempotent-Replayed" not in first.headers
        assert again.headers["Idempotent-Replayed"] == "true"
        assert await client.charges() == 1

    run(scenario)


def test_a_forgotten_key_charges_a_second_time(run: Run) -> None:
    """After the retention time the same request is a real second charge, and the audit shows it."""

    async def scenario(client: Client) -> None:
        first = await client.charge()
        client.clock.now_ms += RETENTION_MS
        second = await client.charge()
        assert first.json["id"] != second.json["id"]
        summary = (await client.send("GET", "/v1/books/summary")).json
        assert summary["references_charged_more_than_once"]["count"] == 1
        assert summary["orders_charged_more_than_once"]["count"] == 1

    run(scenario)


def test_a_reused_key_is_refused(run: Run) -> None:
    """The same key with another amount, currency or instrument is 422 and moves nothing."""

    async def scenario(client: Client) -> None:
        await client.charge()
        for changes in ({"amount_minor": 1}, {"currency": "EUR"}, {"instrument_token": "tok_x"}):
            answer = await client.charge(**changes)
            assert (answer.status, answer.json["code"]) == (422, "idempotency_key_reused")
        assert await client.charges() == 1

    run(scenario)


def test_fifty_concurrent_calls_with_one_key_charge_once(run: Run) -> None:
    """However many copies of a call arrive at once, one charges; the others conflict or replay."""

    async def scenario(client: Client) -> None:
        answers = await asyncio.gather(*(client.charge() for _ in range(50)))
        statuses = {answer.status for answer in answers}
        assert 201 in statuses
        assert statuses <= {201, 409}
        assert len({a.json["id"] for a in answers if a.status == 201}) == 1
        assert await client.charges() == 1

    run(scenario)


def test_a_call_in_progress_is_a_conflict_and_not_not_found(run: Run) -> None:
    """While a slow charge is under way, its key is busy and an inquiry does not deny it."""

    async def scenario(client: Client) -> None:
        under_way = asyncio.create_task(client.charge("tok_slow"))
        inquiry = await client.inquire_until(409)
        assert inquiry.json["code"] == "request_in_progress"
        again = await client.charge("tok_slow")
        assert (again.status, again.json["code"]) == (409, "request_in_progress")
        client.gateway.drain()
        assert (await under_way).status == 201
        assert (await client.inquire()).status == 200

    run(scenario, UNTIL_DRAINED)


def test_a_client_that_gives_up_on_a_slow_call_is_charged_all_the_same(run: Run) -> None:
    """Hanging up does not undo a charge: that is why unknown is not failed."""

    async def scenario(client: Client) -> None:
        under_way = asyncio.create_task(client.charge("tok_slow"))
        await client.inquire_until(409)
        under_way.cancel()
        await asyncio.wait([under_way])
        client.gateway.drain()
        await client.inquire_until(200)
        assert await client.charges() == 1

    run(scenario, UNTIL_DRAINED)


def test_a_hanging_call_keeps_neither_its_key_nor_the_gateway_busy(run: Run) -> None:
    """While one answer hangs, the same key can be asked again, and the hung client may leave."""

    async def scenario(client: Client) -> None:
        hanging = asyncio.create_task(client.charge("tok_hang_after"))
        await client.inquire_until(200)
        # Its entry can be seen an instant before its key is free again.
        while (again := await client.charge("tok_hang_after")).status == 409:
            await asyncio.sleep(0.01)
        assert again.headers["Idempotent-Replayed"] == "true"
        assert not hanging.done()
        hanging.cancel()
        await asyncio.wait([hanging])

    run(scenario, UNTIL_DRAINED)


@pytest.mark.parametrize("kind", [*CALL_FAULTS, FaultKind.INQUIRY_ERROR])
def test_each_kind_of_the_plan_is_injected_and_counted(run: Run, kind: FaultKind) -> None:
    """A plan of one kind only injects that kind, twice a key at most, and counts it."""
    plan = replace(QUICK, rates={kind: 1.0})

    async def scenario(client: Client) -> None:
        statuses = [(await client.charge("tok_any")).status for _ in range(3)]
        inquiries = [(await client.inquire()).status for _ in range(3)]
        assert statuses[-1] == 201
        assert inquiries[-1] == 200
        counted = {name: n for name, n in (await client.faults()).items() if n}
        assert counted == {kind: 2}
        assert await client.charges() == 1

    run(scenario, plan)


def test_declines_are_counted_once_a_key_and_by_code(run: Run) -> None:
    """A replayed decline is not another decline."""
    plan = replace(QUICK, rates={"decline": 1.0}, decline_weights={"lost_card": 1})

    async def scenario(client: Client) -> None:
        for key in ("k1", "k1", "k2"):
            assert (await client.charge("tok_any", key=key)).status == 402
        counts = (await client.send("GET", "/v1/faults")).json
        assert counts["faults"]["decline"] == 2
        assert counts["declines"] == {"lost_card": 2}

    run(scenario, plan)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"amount_minor": 0}, "amount_minor"),
        ({"amount_minor": -5}, "amount_minor"),
        ({"amount_minor": 9.99}, "amount_minor"),
        ({"currency": "gbp"}, "currency"),
        ({"reference": ""}, "reference"),
        ({"capture": False}, "capture must be true"),
        ({"instrument_token": "4111111111111111"}, "card number"),
    ],
)
def test_bad_requests_are_refused_by_name(run: Run, changes: dict[str, Any], says: str) -> None:
    """A request that cannot be meant is 400, names the field, and is not kept under its key."""

    async def scenario(client: Client) -> None:
        answer = await client.charge(**changes)
        assert answer.status == 400
        assert says in answer.json["error"]["message"]
        assert (await client.charge()).status == 201

    run(scenario)


def test_a_charge_without_a_usable_key_is_refused(run: Run) -> None:
    """Without an idempotency key nothing is charged."""

    async def scenario(client: Client) -> None:
        for key in (None, "", "k" * 256, "schlüssel"):
            answer = await client.send("POST", "/v1/charges", json={}, key=key)
            assert answer.status == 400
            assert "Idempotency-Key" in answer.json["error"]["message"]

    run(scenario)


def test_refunds_by_reference_stay_within_the_charge(run: Run) -> None:
    """A refund finds its charge by our reference, is found by its own, and never exceeds it."""

    async def scenario(client: Client) -> None:
        await client.charge()

        async def refund(amount_minor: int, key: str, **more: Any) -> Answer:
            body = {"reference": "ref-k1", "amount_minor": amount_minor, "refund_reference": key}
            return await client.send("POST", "/v1/refunds", json=body | more, key=key)

        first = await refund(700, "r1")
        assert first.status == 201
        assert (await refund(700, "r1")).body == first.body
        too_much = await refund(301, "r2")
        assert (too_much.status, too_much.json["code"]) == (402, "refund_exceeds_charge")
        assert (await refund(300, "r3", instrument_token="tok_reset_after")).status == LOST
        found = await client.send("GET", "/v1/refunds?reference=r3")
        assert found.json["refund"]["amount_minor"] == 300
        assert (await refund(300, "r4", reference="ref-unknown")).status == 404
        assert (await refund(1, "r5", charge_id=first.json["charge_id"])).status == 400
        summary = (await client.send("GET", "/v1/books/summary")).json
        assert summary["refunded_minor"] == {"GBP": 1_000}

    run(scenario)


def test_the_books_are_listed_in_pages(run: Run) -> None:
    """An audit reads every entry once by following next_after."""

    async def scenario(client: Client) -> None:
        for n in range(5):
            await client.charge(key=f"k{n}")
        seen: list[str] = []
        after, more = 0, True
        while more:
            page = (await client.send("GET", f"/v1/books?after={after}&limit=2")).json
            seen += [entry["reference"] for entry in page["entries"]]
            after, more = page["next_after"], page["has_more"]
        assert seen == [f"ref-k{n}" for n in range(5)]
        assert (await client.send("GET", "/v1/books?limit=many")).status == 400

    run(scenario)


def test_the_plan_is_changed_while_running(run: Run) -> None:
    """A new plan applies to the next call; a wrong one is refused and changes nothing."""

    async def scenario(client: Client) -> None:
        new = {"rates": {"decline": 1.0}}
        assert (await client.send("PUT", "/v1/admin/faults", json=new)).status == 200
        assert (await client.charge("tok_any")).status == 402
        wrong = await client.send("PUT", "/v1/admin/faults", json={"rates": {"boom": 1.0}})
        assert (wrong.status, wrong.json["code"]) == (400, "invalid_fault_plan")
        assert (await client.send("GET", "/v1/admin/faults")).json["rates"] == new["rates"]

    run(scenario)


def test_an_outage_answers_500_until_it_is_lifted(run: Run) -> None:
    """During the outage nothing is charged or answered; afterwards all is as before."""

    async def scenario(client: Client) -> None:
        await client.send("POST", "/v1/admin/outage", json={"mode": "500"})
        assert (await client.charge()).status == 500
        assert (await client.inquire()).status == 500
        assert (await client.send("POST", "/v1/admin/outage", json={"mode": "?"})).status == 400
        await client.send("POST", "/v1/admin/outage", json={"mode": "none"})
        assert (await client.inquire()).status == 404
        assert (await client.charge()).status == 201

    run(scenario)


def test_the_document_names_every_token_and_fault() -> None:
    """Whoever reads the contract finds each test token and each kind of fault in its tables."""
    document = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()

    for token in FORCED:
        assert f"\n| `{token}` |" in document
    for kind in FaultKind:
        assert f"`{kind.value}`" in document

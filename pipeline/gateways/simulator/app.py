"""The HTTP routes of a simulated gateway; the contract is docs/simulator.md."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from pipeline.errors import UserError
from pipeline.gateways.simulator import faults
from pipeline.gateways.simulator.books import (
    DISPUTE_STATES,
    Books,
    BooksReader,
    forced_on,
)
from pipeline.gateways.simulator.faults import FaultKind, FaultPlan
from pipeline.gateways.simulator.group_commit import GroupCommit
from pipeline.gateways.simulator.notices import LOOK_S, Notices
from pipeline.gateways.simulator.operations import (
    FAILED,
    FIRST,
    KINDS,
    SUCCEEDED,
    Asked,
    Call,
    Execution,
    Operation,
    Reply,
    Terms,
    payload_hash,
    shown,
)
from pipeline.gateways.simulator.personality import PERSONALITIES, Personality
from pipeline.gateways.simulator.report_desk import ReportDesk
from pipeline.gateways.simulator.tokens import Forced
from pipeline.gateways.simulator.wires.base import GatewayWire, Parts, Question

# The largest body of the contract is under 2 kB.
BODY_BYTES_MAX = 64 * 1024
PAGE_LIMIT_MAX = 5_000
# How soon a hanging answer notices that its client has gone.
HANG_CHECK_S = 0.1

_log = logging.getLogger(__name__)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Outage(StrEnum):
    """How the whole gateway is away."""

    NONE = "none"
    REFUSE = "refuse"
    ERROR = "500"


class OutageRequest(msgspec.Struct, frozen=True):
    """Body of POST /v1/admin/outage."""

    mode: str


class CompleteRequest(msgspec.Struct, frozen=True):
    """Body of POST /v1/admin/complete: what waits gets its end."""

    reference: str
    outcome: str = SUCCEEDED
    kind: str | None = None


class DisputeRequest(msgspec.Struct, frozen=True):
    """Body of POST /v1/admin/disputes: the charge by our reference or the gateway's id."""

    state: str = "opened"
    reference: str | None = None
    charge_id: str | None = None
    dispute_id: str | None = None
    amount_minor: int | None = None
    fee_minor: int = 0


class NoticesRequest(msgspec.Struct, frozen=True):
    """Body of PUT /v1/admin/notices; a url of null sends none."""

    url: str | None = None
    secrets: tuple[str, ...] = ()


class Gateway:
    """The state behind the routes: books, fault plan, notices, and the calls that are open now.

    ``key_retention_ms`` and ``authorization_ms`` of None are the personality's own. Made inside the
    running event loop.
    """

    def __init__(
        self,
        books_path: Path,
        *,
        plan: FaultPlan,
        seed: int,
        key_retention_ms: int | None = None,
        authorization_ms: int | None = None,
        personality: Personality = PERSONALITIES["simulator"],
        public_url: str = "http://127.0.0.1",
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.personality = personality
        self.plan = personality.plan(plan)
        self.seed = seed
        self.outage = Outage.NONE
        self.admin_port = 0
        self.on_outage: Callable[[Outage], Awaitable[None]] | None = None
        self.wire: GatewayWire = personality.wire(public_url)
        self._authorization_ms = authorization_ms or personality.authorization_ms
        self._clock_ms = clock_ms
        self._books_path = books_path
        self._books = Books(
            books_path,
            key_retention_ms=key_retention_ms or personality.key_retention_ms,
            wire=self.wire,
            idempotent=personality.idempotent,
            fee_minor=personality.fee_minor,
        )
        self._reader = BooksReader(books_path)
        self._writer = GroupCommit(self._books)
        self.notices = Notices(
            self._books, self._reader, self._writer, self.wire, clock_ms=clock_ms, seed=seed
        )
        self.reports = ReportDesk(
            self._books, self._writer, self._read, personality, clock_ms, seed
        )
        self._open_keys: set[str] = set()
        self._open_references: Counter[str] = Counter()
        self._draining = asyncio.Event()
        self._pulse = asyncio.get_running_loop().create_task(self._run())

    def drain(self) -> None:
        """Let hanging calls go and slow ones be quick, so that the server can stop."""
        self._draining.set()

    async def close(self) -> None:
        """Commit what is under way and close the books; notices that wait stay in them."""
        self.drain()
        self._pulse.cancel()
        await asyncio.gather(self._pulse, return_exceptions=True)
        await self.notices.close()
        await self._writer.close()
        self._reader.close()

    async def tick(self) -> None:
        """Let happen what is due by now, and send the notices that are."""
        due_ms = self._reader.next_due_ms()
        now_ms = self._clock_ms()
        if due_ms is not None and due_ms <= now_ms:
            await self._writer.submit(lambda: self._books.run_due(now_ms))
        await self.notices.send_due(self.plan)

    async def handle(self, hint: str, request: web.Request) -> web.StreamResponse:
        """Any of the gateway's own routes."""
        parts = Parts(request.headers, request.match_info, request.query, await request.read())
        try:
            key = self.wire.key(parts) if request.method == "POST" else None
            asked = self.wire.parse(hint, parts)
        except ValueError as error:
            return self._refused("invalid_request", str(error))
        if isinstance(asked, Question):
            return await self._inquire(asked)
        currencies = self.personality.currencies
        if asked.kind in FIRST and currencies is not None and asked.currency not in currencies:
            message = f"{asked.currency} is not enabled here."
            return self._refused("currency_not_supported", message, asked)
        return await self._perform(request, asked, key)

    async def get_books(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/books?after=SEQ&limit=N."""
        try:
            after = _whole_number(request, "after", default=0, low=0, high=1 << 62)
            limit = _whole_number(request, "limit", default=1_000, low=1, high=PAGE_LIMIT_MAX)
        except ValueError as error:
            return _admin_refused("invalid_request", str(error))
        page = await self._read(lambda reader: reader.page(after, limit + 1))
        shown_page = page[:limit]
        return _json(
            {
                "entries": [asdict(entry) for entry in shown_page],
                "next_after": shown_page[-1].seq if shown_page else after,
                "has_more": len(page) > limit,
            }
        )

    async def get_summary(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/books/summary."""
        return _json(await self._read(lambda reader: reader.summary()))

    async def get_faults(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/faults."""
        return _json(await self._read(lambda reader: reader.fault_counts()))

    async def get_health(self, request: web.Request) -> web.StreamResponse:
        """GET /healthz."""
        return _json(
            {
                "status": "ok",
                "gateway": self.personality.name,
                "admin_port": self.admin_port,
                "outage": self.outage,
            }
        )

    async def get_plan(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/admin/faults."""
        return _answer(200, self.plan.to_json())

    async def put_plan(self, request: web.Request) -> web.StreamResponse:
        """PUT /v1/admin/faults."""
        try:
            self.plan = self.personality.plan(
                FaultPlan.from_json(await request.read(), where="The body")
            )
        except UserError as error:
            return _admin_refused("invalid_fault_plan", str(error))
        return _answer(200, self.plan.to_json())

    async def post_outage(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/admin/outage."""
        try:
            asked = msgspec.json.decode(await request.read(), type=OutageRequest)
            mode = Outage(asked.mode)
        except (msgspec.DecodeError, ValueError):
            modes = ", ".join(Outage)
            return _admin_refused("invalid_outage", f"mode must be one of: {modes}.")
        self.outage = mode
        if self.on_outage is not None:
            await self.on_outage(mode)
        return _json({"mode": mode})

    async def post_complete(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/admin/complete: the customer has acted, or what is pending ends now."""
        try:
            asked = msgspec.json.decode(await request.read(), type=CompleteRequest)
            if asked.outcome not in (SUCCEEDED, FAILED):
                raise ValueError(f"outcome must be {SUCCEEDED} or {FAILED}")
            if asked.kind is not None and asked.kind not in KINDS:
                raise ValueError(f"kind must be one of {', '.join(KINDS)}")
            now_ms = self._clock_ms()
            operation = await self._writer.submit(
                _or_error(
                    lambda: self._books.complete(asked.reference, asked.kind, asked.outcome, now_ms)
                )
            )
            if isinstance(operation, ValueError):
                raise operation
        except (msgspec.DecodeError, ValueError) as error:
            return _admin_refused("invalid_completion", str(error))
        return _json(shown(operation))

    async def post_dispute(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/admin/disputes: open a dispute, or move one on."""
        try:
            asked = msgspec.json.decode(await request.read(), type=DisputeRequest)
        except msgspec.DecodeError as error:
            return _admin_refused("invalid_dispute", str(error))
        if asked.state not in DISPUTE_STATES:
            states = ", ".join(DISPUTE_STATES)
            return _admin_refused("invalid_dispute", f"state must be one of {states}.")
        charge = self._charge_of(asked)
        if charge is None:
            return _admin_refused("charge_not_found", "There is no such charge.", status=404)
        amount_minor = asked.amount_minor
        if asked.fee_minor < 0 or not 0 < (amount_minor or 1) <= charge.amount_minor:
            message = "amount_minor must be above zero and at most the charge's."
            return _admin_refused("invalid_dispute", message)
        now_ms = self._clock_ms()
        dispute = await self._writer.submit(
            lambda: self._books.dispute(
                charge,
                asked.state,
                now_ms,
                dispute_id=asked.dispute_id,
                amount_minor=amount_minor,
                fee_minor=asked.fee_minor,
            )
        )
        return _json(asdict(dispute))

    async def get_notices(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/admin/notices."""
        return _json({"url": self.notices.url, **self._reader.notice_counts()})

    async def put_notices(self, request: web.Request) -> web.StreamResponse:
        """PUT /v1/admin/notices: where notices go, and what they are signed with."""
        try:
            asked = msgspec.json.decode(await request.read(), type=NoticesRequest)
            self.notices.address(asked.url, asked.secrets)
        except (msgspec.DecodeError, UserError) as error:
            return _admin_refused("invalid_address", str(error))
        return _json({"url": asked.url})

    def _charge_of(self, asked: DisputeRequest) -> Operation | None:
        if asked.charge_id is not None:
            for kind in FIRST:
                found = self._reader.by_id(kind, asked.charge_id)
                if found is not None:
                    return found
            return None
        return self._reader.first_by_reference(asked.reference or "")

    def _call(self, key: str, asked: Asked) -> Call:
        plan, seed, own = self.plan, self.seed, self.personality

        def next_fault(forced: Forced | None, faulted_calls: int) -> FaultKind | None:
            if forced is not None:
                return forced.next_fault(faulted_calls)
            return faults.call_fault(plan, seed, key, faulted_calls)

        def terms(forced: Forced | None) -> Terms:
            pending = SUCCEEDED if asked.kind in own.pending else None
            code = None
            if forced is not None:
                code = forced.decline_code
                pending = forced.pending_then or pending
            elif asked.kind in FIRST:
                code = faults.decline_code(plan, seed, key)
            return Terms(
                decline_code=code,
                pending_then=pending,
                pending_ms=plan.pending_ms,
                asks_customer=forced is not None and forced.asks_customer and asked.kind in FIRST,
                fails_later=forced is not None and forced.fails_later,
                keeps_declines=own.keeps_declines and asked.kind in FIRST,
                authorization_ms=self._authorization_ms,
            )

        self._books.notice_delay_ms = plan.notice_delay_ms
        return Call(key, payload_hash(asked), self._clock_ms(), next_fault, terms)

    async def _perform(
        self, request: web.Request, asked: Asked, key: str | None
    ) -> web.StreamResponse:
        """Run one call that may move money, then answer it, or lose the answer as planned."""
        # Without keys the reference tells calls apart as far as faults go, and nothing more.
        call = self._call(key or f"{asked.kind}:{asked.reference}", asked)
        if key is not None and key in self._open_keys:
            message = f"A call with the key {key} is being handled; ask again."
            return self._refused("request_in_progress", message, asked)
        self._open_keys.add(call.key)
        self._open_references[asked.reference] += 1
        plan = self.plan
        try:
            execution = await self._writer.submit(lambda: self._books.operate(call, asked))
            if execution.fault is FaultKind.SLOW:
                await self._pause(faults.slow_ms(plan, self.seed, call.key))
                again = replace(
                    call, now_ms=self._clock_ms(), next_fault=lambda _forced, _count: None
                )
                execution = await self._writer.submit(lambda: self._books.operate(again, asked))
            operation = execution.operation
            if operation is not None and self.notices.url is not None:
                forced = forced_on(operation)
                fault = self.notices.fault_of(operation.idempotency_key, forced, plan)
                if fault is FaultKind.NOTICE_BEFORE_ANSWER:
                    await self.notices.send_about(operation.id, plan)
        except Exception:
            _log.exception("the books could not be written; nothing of this call was charged")
            return self._refused("internal_error", "The books could not be written.", asked)
        finally:
            # Released before the answer goes out: a lost answer does not keep the key busy.
            self._open_keys.discard(call.key)
            self._open_references[asked.reference] -= 1
            if not self._open_references[asked.reference]:
                del self._open_references[asked.reference]
        return await self._deliver(request, execution, plan, asked)

    async def _deliver(
        self, request: web.Request, execution: Execution, plan: FaultPlan, asked: Asked
    ) -> web.StreamResponse:
        fault = execution.fault
        if fault is FaultKind.RATE_LIMITED:
            message = "Too many requests; wait before the next."
            response = self._refused("rate_limited", message, asked)
            response.headers["Retry-After"] = str(plan.retry_after_s)
            return response
        if fault is FaultKind.IN_PROGRESS:
            message = "A call with this key is being handled; ask again."
            return self._refused("request_in_progress", message, asked)
        if fault in (FaultKind.ERROR_BEFORE, FaultKind.ERROR_AFTER):
            return self._refused("internal_error", "Something went wrong.", asked)
        if fault in (FaultKind.HANG_BEFORE, FaultKind.HANG_AFTER):
            await self._hang(request, plan.hang_ms)
            return _reset(request)
        if fault in (FaultKind.RESET_BEFORE, FaultKind.RESET_AFTER):
            return _reset(request)
        body = execution.body
        if fault is FaultKind.MALFORMED:
            # As a proxy that cuts a body short would.
            body = body[: len(body) // 3]
        response = self._reply(Reply(execution.status or 500, body))
        if execution.replayed:
            response.headers["Idempotent-Replayed"] = "true"
        return response

    async def _inquire(self, question: Question) -> web.StreamResponse:
        """Answer an inquiry: what there is, unless grace time or a test token hides it."""
        kind = question.kind
        if question.id is not None:
            operation = self._reader.by_id(kind, question.id)
        else:
            reference = question.reference or ""
            operation = self._reader.by_reference(kind, reference)
            if operation is None or forced_on(operation) is None:
                faulted = self._reader.faulted_inquiries(reference)
                if faults.inquiry_fault(self.plan, self.seed, reference, faulted):
                    await self._writer.submit(
                        lambda: self._books.count_fault(FaultKind.INQUIRY_ERROR, reference)
                    )
                    return self._refused("internal_error", "Something went wrong.")
            if operation is None and self._open_references.get(reference):
                # Not found would be a lie here: the call that is open may yet charge.
                message = f"A call with the reference {reference} is being handled; ask again."
                return self._refused("request_in_progress", message)
        forced = forced_on(operation) if operation is not None else None
        if forced is not None and forced.inquiry_always_fails:
            await self._writer.submit(lambda: self._books.count_fault(FaultKind.INQUIRY_ERROR))
            return self._refused("internal_error", "Something went wrong.")
        if operation is not None:
            grace_ms = max(self.plan.inquiry_grace_ms, self.personality.grace_ms)
            if forced is not None:
                grace_ms = self.plan.token_grace_ms if forced.inquiry_grace else 0
            if self._clock_ms() - operation.created_at_ms < grace_ms:
                await self._writer.submit(
                    lambda: self._books.count_fault(FaultKind.INQUIRY_NOT_FOUND)
                )
                operation = None
        if operation is None:
            return self._reply(self.wire.not_found(question))
        return self._reply(self.wire.found(operation))

    def _refused(self, code: str, message: str, asked: Asked | None = None) -> web.Response:
        return self._reply(self.wire.refusal(code, message, asked))

    def _reply(self, reply: Reply) -> web.Response:
        return web.Response(
            status=reply.status, body=reply.body, content_type=self.wire.content_type
        )

    def outage_error(self) -> web.Response:
        """What everything is answered while the whole gateway is in trouble."""
        return _admin_refused("internal_error", "Something went wrong.", status=500)

    async def _run(self) -> None:
        """Time passes: what is pending ends, authorizations expire, notices go out."""
        while not self._draining.is_set():
            try:
                await self.tick()
            except Exception:
                _log.exception("what was due could not be done; tried again")
            await self._pause(int(LOOK_S * 1_000))

    async def _read(self, query: Callable[[BooksReader], Any]) -> Any:
        """Run a long read in a thread, with a connection of its own."""

        def run() -> Any:
            reader = BooksReader(self._books_path)
            try:
                return query(reader)
            finally:
                reader.close()

        return await asyncio.to_thread(run)

    async def _pause(self, delay_ms: int) -> None:
        try:
            await asyncio.wait_for(self._draining.wait(), delay_ms / 1_000)
        except TimeoutError:
            return

    async def _hang(self, request: web.Request, hang_ms: int) -> None:
        """Say nothing until the client has gone, the time is up, or the server stops."""
        until = time.monotonic() + hang_ms / 1_000
        while time.monotonic() < until and not self._draining.is_set():
            if request.transport is None or request.transport.is_closing():
                return
            await self._pause(int(HANG_CHECK_S * 1_000))


def build_app(gateway: Gateway, *, outage_applies: bool) -> web.Application:
    """The routes over one gateway; the admin listener's copy stays up during an outage."""

    @web.middleware
    async def outage(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if gateway.outage is Outage.NONE or request.path.startswith("/v1/admin/"):
            return await handler(request)
        if gateway.outage is Outage.REFUSE:
            return _reset(request)  # a connection that was open before the listener closed
        return gateway.outage_error()

    app = web.Application(
        client_max_size=BODY_BYTES_MAX, middlewares=[outage] if outage_applies else []
    )

    def own(hint: str) -> _Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await gateway.handle(hint, request)

        return handle

    app.add_routes(
        [
            *(web.route(r.method, r.path, own(r.hint)) for r in gateway.wire.routes),
            web.get("/v1/books", gateway.get_books),
            web.get("/v1/books/summary", gateway.get_summary),
            *gateway.reports.routes(),
            web.get("/v1/faults", gateway.get_faults),
            web.get("/healthz", gateway.get_health),
            web.get("/v1/admin/faults", gateway.get_plan),
            web.put("/v1/admin/faults", gateway.put_plan),
            web.post("/v1/admin/outage", gateway.post_outage),
            web.post("/v1/admin/complete", gateway.post_complete),
            web.post("/v1/admin/disputes", gateway.post_dispute),
            web.get("/v1/admin/notices", gateway.get_notices),
            web.put("/v1/admin/notices", gateway.put_notices),
        ]
    )
    return app


def _whole_number(request: web.Request, name: str, *, default: int, low: int, high: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}")
    return int(text)


def _json(content: Any) -> web.Response:
    return _answer(200, msgspec.json.encode(content))


def _answer(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


def _admin_refused(code: str, message: str, *, status: int = 400) -> web.Response:
    content = {"code": code, "error": {"code": code, "message": message}}
    return _answer(status, msgspec.json.encode(content))


def _or_error(job: Callable[[], Operation]) -> Callable[[], Operation | ValueError]:
    """A job whose ValueError is its result: it must not undo what others wrote beside it."""

    def run() -> Operation | ValueError:
        try:
            return job()
        except ValueError as error:
            return error

    return run


def _reset(request: web.Request) -> web.Response:
    """Break the connection so that the client sees a reset (RST), not an orderly end."""
    transport = request.transport
    if transport is not None:
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            # Lingering for zero seconds is what turns the close into a reset.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response(status=500)  # has nowhere to go; the framework wants a response

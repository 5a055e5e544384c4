"""The HTTP routes of the simulated gateway; the contract is docs/simulator.md."""

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
    Books,
    BooksReader,
    Call,
    Entry,
    Execution,
    charge_view,
    refund_view,
)
from pipeline.gateways.simulator.faults import FaultKind, FaultPlan
from pipeline.gateways.simulator.group_commit import GroupCommit
from pipeline.gateways.simulator.tokens import forced_by
from pipeline.gateways.simulator.wire import (
    OutageRequest,
    decode_charge,
    decode_refund,
    error_body,
    payload_hash,
)

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


class Gateway:
    """The state behind the routes: books, fault plan, and the calls that are open now."""

    def __init__(
        self,
        books_path: Path,
        *,
        plan: FaultPlan,
        seed: int,
        key_retention_ms: int,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.plan = plan
        self.seed = seed
        self.outage = Outage.NONE
        self.admin_port = 0
        self.on_outage: Callable[[Outage], Awaitable[None]] | None = None
        self._clock_ms = clock_ms
        self._books_path = books_path
        self._books = Books(books_path, key_retention_ms=key_retention_ms)
        self._reader = BooksReader(books_path)
        self._writer = GroupCommit(self._books)
        self._open_keys: set[str] = set()
        self._open_references: Counter[str] = Counter()
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Let hanging calls go and slow ones be quick, so that the server can stop."""
        self._draining.set()

    async def close(self) -> None:
        """Commit what is under way and close the books."""
        self.drain()
        await self._writer.close()
        self._reader.close()

    async def post_charge(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/charges."""
        try:
            key = _idempotency_key(request)
            charge = decode_charge(await request.read())
        except ValueError as error:
            return _refused(400, "invalid_request", str(error))
        forced = forced_by(charge.instrument_token)
        if forced is not None:
            code = forced.decline_code
        else:
            code = faults.decline_code(self.plan, self.seed, key)
        call = self._call(key, payload_hash(charge), charge.instrument_token)
        return await self._perform(
            request, charge.reference, call, lambda call: self._books.charge(call, charge, code)
        )

    async def post_refund(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/refunds."""
        try:
            key = _idempotency_key(request)
            refund = decode_refund(await request.read())
        except ValueError as error:
            return _refused(400, "invalid_request", str(error))
        call = self._call(key, payload_hash(refund), refund.instrument_token)
        return await self._perform(
            request, refund.refund_reference, call, lambda call: self._books.refund(call, refund)
        )

    async def get_charges(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/charges?reference=R."""
        return await self._inquire("charge", request)

    async def get_refunds(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/refunds?reference=R."""
        return await self._inquire("refund", request)

    async def get_charge(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/charges/{id}."""
        return await self._show(self._reader.by_id("charge", request.match_info["id"]), "charge")

    async def get_refund(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/refunds/{id}."""
        return await self._show(self._reader.by_id("refund", request.match_info["id"]), "refund")

    async def get_books(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/books?after=SEQ&limit=N."""
        try:
            after = _whole_number(request, "after", default=0, low=0, high=1 << 62)
            limit = _whole_number(request, "limit", default=1_000, low=1, high=PAGE_LIMIT_MAX)
        except ValueError as error:
            return _refused(400, "invalid_request", str(error))
        page = await self._read(lambda reader: reader.page(after, limit + 1))
        shown = page[:limit]
        return _json(
            {
                "entries": [asdict(entry) for entry in shown],
                "next_after": shown[-1].seq if shown else after,
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
        health = {"status": "ok", "admin_port": self.admin_port, "outage": self.outage}
        return _json(health)

    async def get_plan(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/admin/faults."""
        return _answer(200, self.plan.to_json())

    async def put_plan(self, request: web.Request) -> web.StreamResponse:
        """PUT /v1/admin/faults."""
        try:
            self.plan = FaultPlan.from_json(await request.read(), where="The body")
        except UserError as error:
            return _refused(400, "invalid_fault_plan", str(error))
        return _answer(200, self.plan.to_json())

    async def post_outage(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/admin/outage."""
        try:
            asked = msgspec.json.decode(await request.read(), type=OutageRequest)
            mode = Outage(asked.mode)
        except (msgspec.DecodeError, ValueError):
            modes = ", ".join(Outage)
            return _refused(400, "invalid_outage", f"mode must be one of: {modes}.")
        self.outage = mode
        if self.on_outage is not None:
            await self.on_outage(mode)
        return _json({"mode": mode})

    def _call(self, key: str, hashed: bytes, instrument_token: str | None) -> Call:
        forced = forced_by(instrument_token)
        plan, seed = self.plan, self.seed

        def by_plan(faulted_calls: int) -> FaultKind | None:
            return faults.call_fault(plan, seed, key, faulted_calls)

        next_fault = by_plan if forced is None else forced.next_fault
        return Call(key, hashed, self._clock_ms(), next_fault)

    async def _perform(
        self,
        request: web.Request,
        reference: str,
        call: Call,
        write: Callable[[Call], Execution],
    ) -> web.StreamResponse:
        """Run one call that may move money, then answer it, or lose the answer as planned."""
        if call.key in self._open_keys:
            message = f"A call with the key {call.key} is being handled; ask again."
            return _refused(409, "request_in_progress", message)
        self._open_keys.add(call.key)
        self._open_references[reference] += 1
        plan = self.plan
        try:
            execution = await self._writer.submit(lambda: write(call))
            if execution.fault is FaultKind.SLOW:
                await self._pause(faults.slow_ms(plan, self.seed, call.key))
                again = replace(call, now_ms=self._clock_ms(), next_fault=lambda _: None)
                execution = await self._writer.submit(lambda: write(again))
        except Exception:
            _log.exception("the books could not be written; nothing of this call was charged")
            return _refused(500, "internal_error", "The books could not be written.")
        finally:
            # Released before the answer goes out: a lost answer does not keep the key busy.
            self._open_keys.discard(call.key)
            self._open_references[reference] -= 1
            if not self._open_references[reference]:
                del self._open_references[reference]
        return await self._deliver(request, execution, plan)

    async def _deliver(
        self, request: web.Request, execution: Execution, plan: FaultPlan
    ) -> web.StreamResponse:
        fault = execution.fault
        if fault is FaultKind.RATE_LIMITED:
            response = _refused(429, "rate_limited", "Too many requests; wait before the next.")
            response.headers["Retry-After"] = str(plan.retry_after_s)
            return response
        if fault in (FaultKind.ERROR_BEFORE, FaultKind.ERROR_AFTER):
            return _refused(500, "internal_error", "Something went wrong.")
        if fault in (FaultKind.HANG_BEFORE, FaultKind.HANG_AFTER):
            await self._hang(request, plan.hang_ms)
            return _reset(request)
        if fault in (FaultKind.RESET_BEFORE, FaultKind.RESET_AFTER):
            return _reset(request)
        response = _answer(execution.status or 500, execution.body)
        if execution.replayed:
            response.headers["Idempotent-Replayed"] = "true"
        return response

    async def _inquire(self, kind: str, request: web.Request) -> web.StreamResponse:
        reference = request.query.get("reference", "")
        if not reference:
            return _refused(400, "invalid_request", "Give ?reference=, the caller's reference.")
        entry = self._reader.by_reference(kind, reference)
        forced = forced_by(entry.instrument_token) if entry is not None else None
        if forced is None:
            faulted = self._reader.faulted_inquiries(reference)
            if faults.inquiry_fault(self.plan, self.seed, reference, faulted):
                await self._writer.submit(
                    lambda: self._books.count_fault(FaultKind.INQUIRY_ERROR, reference)
                )
                return _refused(500, "internal_error", "Something went wrong.")
        if entry is None and self._open_references.get(reference):
            # Not found would be a lie here: the call that is open may yet charge.
            message = f"A call with the reference {reference} is being handled; ask again."
            return _refused(409, "request_in_progress", message)
        return await self._show(entry, kind)

    async def _show(self, entry: Entry | None, kind: str) -> web.StreamResponse:
        """Answer an inquiry: what there is, unless grace time or a test token hides it."""
        forced = forced_by(entry.instrument_token) if entry is not None else None
        if forced is not None and forced.inquiry_always_fails:
            await self._writer.submit(lambda: self._books.count_fault(FaultKind.INQUIRY_ERROR))
            return _refused(500, "internal_error", "Something went wrong.")
        if entry is not None:
            grace_ms = self.plan.inquiry_grace_ms
            if forced is not None:
                grace_ms = self.plan.token_grace_ms if forced.inquiry_grace else 0
            if self._clock_ms() - entry.created_at_ms < grace_ms:
                await self._writer.submit(
                    lambda: self._books.count_fault(FaultKind.INQUIRY_NOT_FOUND)
                )
                entry = None
        if entry is None:
            return _answer(404, error_body("not_found", f"There is no such {kind}.", found=False))
        view = charge_view(entry) if kind == "charge" else refund_view(entry)
        return _json({"found": True, kind: view})

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
        return _refused(500, "internal_error", "Something went wrong.")

    app = web.Application(
        client_max_size=BODY_BYTES_MAX, middlewares=[outage] if outage_applies else []
    )
    app.add_routes(
        [
            web.post("/v1/charges", gateway.post_charge),
            web.get("/v1/charges", gateway.get_charges),
            web.get("/v1/charges/{id}", gateway.get_charge),
            web.post("/v1/refunds", gateway.post_refund),
            web.get("/v1/refunds", gateway.get_refunds),
            web.get("/v1/refunds/{id}", gateway.get_refund),
            web.get("/v1/books", gateway.get_books),
            web.get("/v1/books/summary", gateway.get_summary),
            web.get("/v1/faults", gateway.get_faults),
            web.get("/healthz", gateway.get_health),
            web.get("/v1/admin/faults", gateway.get_plan),
            web.put("/v1/admin/faults", gateway.put_plan),
            web.post("/v1/admin/outage", gateway.post_outage),
        ]
    )
    return app


def _idempotency_key(request: web.Request) -> str:
    key = request.headers.get("Idempotency-Key", "")
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise ValueError("the header Idempotency-Key must have 1 to 255 ASCII characters")
    return key


def _whole_number(request: web.Request, name: str, *, default: int, low: int, high: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}")
    return int(text)


def _json(content: Any) -> web.Response:
    return _answer(200, msgspec.json.encode(content))


def _answer(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


def _refused(status: int, code: str, message: str) -> web.Response:
    return _answer(status, error_body(code, message))


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

"""The routes of reports and of the bank, its statement and what it is told to pay.

The contract is docs/simulator.md.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from pipeline.gateways.simulator.bank import Account, Payout, statement
from pipeline.gateways.simulator.bank_payments import (
    BYTES_MAX,
    RETURN_EVERY,
    PaymentsRefused,
    Taken,
    give_out,
    movements,
    read_message,
    take_message,
)
from pipeline.gateways.simulator.books import Books, BooksReader
from pipeline.gateways.simulator.group_commit import GroupCommit
from pipeline.gateways.simulator.personality import Personality
from pipeline.gateways.simulator.report_formats import WRITERS
from pipeline.gateways.simulator.reports import (
    LATE_EVERY,
    Report,
    ReportRefused,
    batch_sums,
    end_of_day_ms,
    is_day,
    make_report,
    read_report,
    report_dates,
    value_date,
)

_Result = TypeVar("_Result")


class ReportRequest(msgspec.Struct, frozen=True):
    """Body of POST /v1/admin/reports: make the report of a day now, over or not."""

    date: str
    late_every: int = LATE_EVERY


class ReportDesk:
    """Makes each day's report once it is asked for and the day is over, and shows it."""

    def __init__(
        self,
        books: Books,
        writer: GroupCommit,
        read: Callable[[Callable[[BooksReader], Any]], Awaitable[Any]],
        personality: Personality,
        clock_ms: Callable[[], int],
        seed: int,
    ) -> None:
        self._books = books
        self._writer = writer
        self._read = read
        self._own = personality
        self._clock_ms = clock_ms
        self._seed = seed

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/reports", self.get_dates),
            web.get("/v1/reports/{date}", self.get_report),
            web.get("/v1/bank/statements/{date}", self.get_statement),
            web.post("/v1/bank/payments", self.post_payments),
            web.post("/v1/admin/reports", self.post_report),
        ]

    async def get_dates(self, request: web.Request) -> web.Response:
        """GET /v1/reports."""
        return _json(200, {"dates": await self._query(report_dates)})

    async def get_report(self, request: web.Request) -> web.Response:
        """GET /v1/reports/{date}: the day's file."""
        day = request.match_info["date"]
        if not is_day(day):
            return _refused(400, "invalid_date", "write the day as YYYY-MM-DD.")
        report: Report | ReportRefused | None = await self._query(
            lambda db: read_report(db, self._own.batch_code, day)
        )
        if report is None:
            end_ms = end_of_day_ms(day, self._own.time_zone)
            if self._clock_ms() < end_ms:
                return _refused(404, "report_not_ready", f"{day} is not over here.")
            report = await self._made(day, end_ms=end_ms)
        if isinstance(report, ReportRefused):
            return _refused(404, "report_not_found", f"{report}.")
        text = WRITERS[self._own.name](report, self._own.time_zone)
        name = f"{self._own.name}-{day}.csv"
        return web.Response(
            body=text.encode(),
            content_type="text/csv",
            charset="utf-8",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    async def post_report(self, request: web.Request) -> web.Response:
        """POST /v1/admin/reports."""
        try:
            asked = msgspec.json.decode(await request.read(), type=ReportRequest)
        except msgspec.DecodeError as error:
            return _refused(400, "invalid_report", str(error))
        if not is_day(asked.date) or asked.late_every < 0:
            return _refused(400, "invalid_report", "date is YYYY-MM-DD, late_every 0 or more.")
        report = await self._made(asked.date, late_every=asked.late_every)
        if isinstance(report, ReportRefused):
            return _refused(409, "report_not_found", f"{report}.")
        paid_on = value_date(asked.date, self._own.payout_days)
        batches = [
            {"batch": batch, "currency": currency, "amount_minor": minor, "value_date": paid_on}
            for (batch, currency), minor in batch_sums(report).items()
        ]
        return _json(200, {"date": asked.date, "rows": len(report.rows), "batches": batches})

    async def get_statement(self, request: web.Request) -> web.Response:
        """GET /v1/bank/statements/{date}: what the bank has booked on that day."""
        day = request.match_info["date"]
        if not is_day(day):
            return _refused(400, "invalid_date", "write the day as YYYY-MM-DD.")
        # Before it is made: what is told to the bank from here on is on a later one.
        await self._writer.submit(lambda: self._books.run(lambda db: give_out(db, day)))
        paid_in = await self._query(self._payouts)
        others = await self._query(movements)
        own = self._own.name
        account = f"sim-{own}"
        # What is paid from the account that the gateway pays into stands on its statement.
        paid_in += others.pop(Account(account), [])
        body = statement(account, own.upper(), day, paid_in, self._clock_ms(), others)
        return web.Response(body=body, content_type="application/xml", charset="utf-8")

    async def post_payments(self, request: web.Request) -> web.Response:
        """POST /v1/bank/payments: a pain.001 file, which the bank pays once."""
        every = request.query.get("return_every", str(RETURN_EVERY))
        today = datetime.fromtimestamp(self._clock_ms() / 1000, UTC).date().isoformat()
        earliest = request.query.get("from", today)
        if not (every.isascii() and every.isdigit() and is_day(earliest)):
            return _refused(
                400, "invalid_payments", "return_every is 0 or more, from is YYYY-MM-DD."
            )
        # Larger than any other body of the contract, and read past the limit of those.
        content = bytearray()
        async for part in request.content.iter_any():
            content += part
            if len(content) > BYTES_MAX:
                return _refused(413, "invalid_payments", "no message is as large.")
        try:
            message = read_message(bytes(content))
        except PaymentsRefused as error:
            return _refused(400, "invalid_payments", f"{error}.")

        def take() -> Taken | PaymentsRefused:
            try:
                return self._books.run(
                    lambda db: take_message(
                        db, message, earliest=earliest, seed=self._seed, return_every=int(every)
                    )
                )
            except PaymentsRefused as error:
                return error

        taken = await self._writer.submit(take)
        if isinstance(taken, PaymentsRefused):
            return _refused(409, "message_known", f"{taken}.")
        return _json(200, taken)

    def _payouts(self, db: sqlite3.Connection) -> list[Payout]:
        made = []
        for day in report_dates(db):
            report = read_report(db, self._own.batch_code, day)
            if report is not None:
                paid_on = value_date(day, self._own.payout_days)
                made += [
                    Payout(batch, currency, minor, paid_on)
                    for (batch, currency), minor in batch_sums(report).items()
                ]
        return made

    async def _made(
        self, day: str, *, end_ms: int | None = None, late_every: int = LATE_EVERY
    ) -> Report | ReportRefused:
        def make() -> ReportRefused | None:
            # Its refusal is a result: it must not undo what others write beside it.
            try:
                self._books.run(
                    lambda db: make_report(
                        db, day, self._clock_ms(), end_ms=end_ms, late_every=late_every
                    )
                )
            except ReportRefused as error:
                return error
            return None

        refused = await self._writer.submit(make)
        if refused is not None:
            return refused
        report = await self._query(lambda db: read_report(db, self._own.batch_code, day))
        return report or ReportRefused(f"{day} has no report")

    async def _query(self, query: Callable[[sqlite3.Connection], _Result]) -> _Result:
        found: _Result = await self._read(lambda reader: reader.run(query))
        return found


def _json(status: int, content: Any) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(content), content_type="application/json"
    )


def _refused(status: int, code: str, message: str) -> web.Response:
    return _json(status, {"code": code, "error": {"code": code, "message": message}})

"""Settlement reports: made by the simulated gateways, read by contract, and paid by a bank."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pipeline.domain.ids import idempotency_key, payment_id
from pipeline.domain.payout_files import PayoutMessage, pain_001
from pipeline.domain.payouts import Payout
from pipeline.errors import UserError
from pipeline.gateways.bank_statement import read_statements
from pipeline.gateways.reports import ReportFile, read_report
from pipeline.gateways.simulator.app import BODY_BYTES_MAX, Gateway, build_app
from pipeline.gateways.simulator.books import Books
from pipeline.gateways.simulator.faults import FaultPlan
from pipeline.gateways.simulator.operations import Asked, Call, Operation, Terms, payload_hash
from pipeline.gateways.simulator.personality import PERSONALITIES, personality
from pipeline.gateways.simulator.report_formats import WRITERS
from pipeline.gateways.simulator.reports import (
    Report,
    ReportRefused,
    batch_sums,
    make_report,
    value_date,
)  # fmt: skip
from pipeline.gateways.simulator.reports import (
    read_report as report_of,
)

# 2010-12-01 23:30 in London, and 15:30 in Los Angeles.
EVENING_MS = 1_291_246_200_000
GATEWAYS = sorted(PERSONALITIES)


class Bank:
    """One gateway's books, and what happens in them."""

    def __init__(self, path: Path, name: str) -> None:
        self.own = personality(name)
        self.books = Books(
            path, key_retention_ms=1, wire=self.own.wire("http://x"), fee_minor=self.own.fee_minor
        )
        self.books.begin()

    def move(
        self, kind: str, order: str, amount: int, *, parent: Operation | None = None,
        currency: str = "GBP", at_ms: int = EVENING_MS,
    ) -> Operation:  # fmt: skip
        payment = payment_id("shop", order)
        operation = order if parent is None else f"{kind}-{amount}"
        reference = idempotency_key(payment, operation, self.own.name, 1)
        asked = (
            Asked(kind, reference, amount, currency, "tok", "shop", order)
            if parent is None
            else Asked(kind, reference, amount, parent_id=parent.id)
        )
        call = Call(reference, payload_hash(asked), at_ms, lambda _f, _n: None, lambda _: Terms())
        made = self.books.operate(call, asked).operation
        assert made is not None
        return made

    def report(self, day: str, late_every: int = 0) -> Report:
        self.books.run(lambda db: make_report(db, day, 0, late_every=late_every))
        found = self.books.run(lambda db: report_of(db, self.own.batch_code, day))
        assert found is not None
        return found

    def read(self, report: Report) -> ReportFile:
        text = WRITERS[self.own.name](report, self.own.time_zone)
        return read_report(text, gateway=self.own.name, adapter=self.own.name)


@pytest.fixture(params=GATEWAYS)
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Bank:
    return Bank(tmp_path / "books.db", request.param)


def test_a_report_is_read_as_it_was_meant(bank: Bank) -> None:
    """Every kind of movement comes through each format: amounts, fees, ids, our own reference."""
    sale = bank.move("charge", "o-1", 12_50)
    back = bank.move("refund", "o-1", 2_50, parent=sale)
    bank.books.settle(back, "failed", EVENING_MS)
    lost = bank.books.dispute(sale, "opened", EVENING_MS, amount_minor=10_00, fee_minor=15_00)
    bank.books.dispute(sale, "won", EVENING_MS, dispute_id=lost.id)
    held = bank.move("authorize", "o-2", 7_00)
    bank.move("capture", "o-2", 5_00, parent=held)
    found = bank.read(bank.report("2010-12-01"))

    assert found.report_date == "2010-12-01"
    assert [(r.row_number, r.kind, r.operation_kind, r.gateway_reference, r.amount_minor)
            for r in found.rows] == [
        (1, "capture", "charge", sale.id, 12_50),
        (2, "refund", "refund", back.id, -2_50),
        (3, "refund_failed", "refund", back.id, 2_50),
        (4, "dispute", "", lost.id, -10_00),
        (5, "dispute_fee", "", lost.id, -15_00),
        (6, "reversal", "", lost.id, 10_00),
        (7, "capture", "capture", found.rows[6].gateway_reference, 5_00),
    ]  # fmt: skip
    fees = [bank.own.fee_minor(12_50), 0, 0, 0, 0, 0, bank.own.fee_minor(5_00)]
    assert [r.fee_minor for r in found.rows] == fees
    first = payment_id("shop", "o-1")
    assert [(r.payment_id, r.operation_id, r.attempt) for r in found.rows[:4]] == [
        (first, "o-1", 1), (first, "refund-250", 1), (first, "refund-250", 1), (first, "", 0),
    ]  # fmt: skip
    assert {r.occurred_at_ms for r in found.rows} == {EVENING_MS}
    assert {(r.merchant_id, r.order_id) for r in found.rows[:6]} == {("shop", "o-1")}
    assert {r.batch_id for r in found.rows} == {f"{bank.own.batch_code}20101201GBP"}


def test_each_movement_is_in_one_report_and_some_a_day_late(bank: Bank) -> None:
    """Every fourth comes with the next report; none is lost or twice; a report never changes."""
    made = [bank.move("charge", f"o-{n}", 100 + n).id for n in range(10)]
    first = bank.report("2010-12-01", late_every=4)
    made += [bank.move("charge", f"p-{n}", 100 + n).id for n in range(3)]
    second = bank.report("2010-12-02", late_every=4)
    third = bank.report("2010-12-03", late_every=4)
    told = [row.id for report in (first, second, third) for row in report.rows]
    assert sorted(told) == sorted(made)
    assert [len(report.rows) for report in (first, second, third)] == [8, 4, 1]
    assert {row.batch_id for row in second.rows} == {f"{bank.own.batch_code}20101202GBP"}
    assert bank.report("2010-12-01") == first
    with pytest.raises(ReportRefused, match="have come to 2010-12-03"):
        bank.report("2010-11-30")


def test_a_batch_is_paid_by_currency_with_its_fees_taken_off(tmp_path: Path) -> None:
    """By hand: 12.50 less 1.4 % and 20 is 12.12, of 1,000 yen 14 and 20 are kept."""
    bank = Bank(tmp_path / "b.db", "simulator")
    bank.move("charge", "o-1", 12_50)
    bank.move("charge", "o-2", 1_000, currency="JPY")
    assert batch_sums(bank.report("2010-12-01")) == {
        ("po_20101201GBP", "GBP"): 12_12, ("po_20101201JPY", "JPY"): 966,
    }  # fmt: skip
    # A Friday's report is paid on Monday.
    assert value_date("2010-12-03", 1) == "2010-12-06"


DAMAGES = [
    pytest.param("simulator", lambda t: t.replace(",1250,", ",1251,", 1), "not its net", id="sum"),
    pytest.param("simulator", lambda t: t.replace("charge,", "gift,", 1), "'gift'", id="word"),
    pytest.param(
        "legacy", lambda t: t.replace("|00000008|", f"|{10**15}|"), "cannot be a fee", id="fee"
    ),
    pytest.param("simulator", lambda t: t + '"', "no report of simulator", id="open quote"),
    pytest.param("northbank", lambda t: t + '"a', "no report of northbank", id="open quote"),
    pytest.param("pacific", lambda t: t + '"a', "no report of pacific", id="open quote"),
    pytest.param(
        "simulator", lambda t: t.replace("charge", "x" * 200_000, 1), "field limit", id="long field"
    ),
    pytest.param("northbank", lambda t: t.replace("T;2", "T;3"), "T record says", id="count"),
    pytest.param("northbank", lambda t: t.replace("D;2;", "D;3;"), "row 2 belongs", id="gap"),
    pytest.param("northbank", lambda t: t.replace("12,50", "-12,50"), "cannot be", id="sign"),
    pytest.param("northbank", lambda t: t.replace("12,50", "12,505"), "finer than", id="decimals"),
    pytest.param("pacific", lambda t: t.replace("GBP", "ZZZ"), "'ZZZ' is not", id="currency"),
    pytest.param("pacific", lambda t: t.replace("Deposit ID", "Deposit"), "first line", id="head"),
    pytest.param("legacy", lambda t: t.replace("|C|", "|X|"), "neither C nor D", id="side"),
    pytest.param("legacy", lambda t: t[: len(t) // 2], "as many rows|fields", id="cut short"),
    pytest.param("legacy", lambda t: "", "first line", id="empty"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damaged", "said"), DAMAGES)
def test_a_report_that_is_not_whole_is_refused(
    tmp_path: Path, name: str, damaged: Callable[[str], str], said: str
) -> None:
    """No row of it is taken, and the sentence says what is wrong."""
    bank = Bank(tmp_path / "b.db", name)
    bank.move("charge", "o-1", 12_50)
    bank.move("charge", "o-2", 3_00)
    text = WRITERS[name](bank.report("2010-12-01"), bank.own.time_zone)
    with pytest.raises(UserError, match=said):
        read_report(damaged(text), gateway=name, adapter=name)


def test_a_quiet_day_is_a_report_without_rows(bank: Bank) -> None:
    """Not an error, and nothing to import; a row whose report has no name is refused as ever."""
    report = bank.report("2010-12-01")
    quiet = bank.read(report)
    assert (quiet.gateway, quiet.rows) == (bank.own.name, ())
    text = WRITERS[bank.own.name](report, bank.own.time_zone)
    dated = any(letter.isdigit() for letter in text)
    assert quiet.report_date == ("2010-12-01" if dated else ""), "only rows of the others say it"


@pytest.mark.parametrize(
    ("name", "file_id"), [("simulator", "simulator-2010-12-01"), ("pacific", "PAC2010-12-01")]
)
def test_rows_of_no_report_are_refused(tmp_path: Path, name: str, file_id: str) -> None:
    bank = Bank(tmp_path / "b.db", name)
    bank.move("charge", "o-1", 12_50)
    text = WRITERS[name](bank.report("2010-12-01"), bank.own.time_zone)
    assert file_id in text
    with pytest.raises(UserError, match="is no date"):
        read_report(text.replace(file_id, ""), gateway=name, adapter=name)


def test_a_report_in_another_encoding_is_refused(tmp_path: Path) -> None:
    """An id with a character that was put in for another one would be another id."""
    bank = Bank(tmp_path / "b.db", "simulator")
    bank.move("charge", "o-1", 12_50)
    text = WRITERS["simulator"](bank.report("2010-12-01"), "UTC").replace("po_", "p\u00f6_")
    (row,) = read_report(text.encode(), gateway="simulator", adapter="simulator").rows
    assert row.batch_id.startswith("p\u00f6_")
    with pytest.raises(UserError, match="not in UTF-8"):
        read_report(text.encode("latin-1"), gateway="simulator", adapter="simulator")


@pytest.mark.parametrize("reference", ["their-own-42", "payment:o-1:pacific:1"])
def test_what_is_not_our_reference_is_no_operation_of_ours(tmp_path: Path, reference: str) -> None:
    """A charge that another system made names no payment, though its words may look like ours."""
    bank = Bank(tmp_path / "b.db", "northbank")
    asked = Asked("charge", reference, 5_00, "GBP", "tok", "shop", "x 1")
    bank.books.operate(
        Call("k", payload_hash(asked), EVENING_MS, lambda _f, _n: None, lambda _: Terms()), asked
    )
    (row,) = bank.read(bank.report("2010-12-01")).rows
    assert (row.payment_id, row.operation_id, row.attempt, row.order_id) == ("", "", 0, "")


def test_a_reference_for_another_gateway_names_its_payment(tmp_path: Path) -> None:
    """A charge of ours that was made under another name of the gateway is no stranger's, and no
    operation of this name. A report with such ones alone was imported under a wrong name."""
    bank = Bank(tmp_path / "b.db", "simulator")
    bank.move("charge", "o-1", 12_50)
    bank.own = personality("simulator")
    text = WRITERS["simulator"](bank.report("2010-12-01"), "UTC")
    with pytest.raises(UserError, match="row 1 is about an operation of ours at simulator, and"):
        read_report(text, gateway="simulator-eu", adapter="simulator")
    key = idempotency_key(payment_id("shop", "o-2"), "o-2", "simulator-eu", 1)
    asked = Asked("charge", key, 5_00, "GBP", "tok", "shop", "o-2")
    bank.books.operate(
        Call(key, payload_hash(asked), EVENING_MS + 86_400_000, lambda _f, _n: None,
             lambda _: Terms()), asked,
    )  # fmt: skip
    bank.move("charge", "o-3", 3_00, at_ms=EVENING_MS + 86_400_000)
    text = WRITERS["simulator"](bank.report("2010-12-02"), "UTC")
    rows = read_report(text, gateway="simulator-eu", adapter="simulator").rows
    assert [(r.order_id, r.payment_id, r.operation_id, r.attempt) for r in rows] == [
        ("o-2", payment_id("shop", "o-2"), "o-2", 1), ("o-3", payment_id("shop", "o-3"), "", 0),
    ]  # fmt: skip


def test_reports_and_statements_are_downloaded(tmp_path: Path) -> None:
    """Over HTTP: a day that is not over has no file; the bank's statement follows the report."""
    now_ms = EVENING_MS

    async def run(send: Callable[..., Awaitable[Any]]) -> None:
        nonlocal now_ms
        charged = {
            "merchant_reference": "r", "amount": "1250", "currency": "gbp", "source": "tok_ok",
            "shop": "shop", "shop_order": "o",
        }  # fmt: skip
        assert (await send("POST", "/payments", data=charged, key="k"))[0] == 200
        assert (await send("GET", "/v1/reports/2010-12-01"))[0] == 404
        # Half past midnight in London.
        now_ms += 3_600_000
        status, body, headers = await send("GET", "/v1/reports/2010-12-01")
        assert (status, headers["Content-Disposition"]) == (
            200, 'attachment; filename="northbank-2010-12-01.csv"',
        )  # fmt: skip
        assert body.startswith("H;NORTHBANK;NB-2010-12-01;01/12/2010\nD;1;PAYMENT;")
        # Made ahead of its day's end, for tests that cannot wait.
        made = await send("POST", "/v1/admin/reports", json={"date": "2010-12-02"})
        assert made[0] == 200
        assert (await send("GET", "/v1/reports"))[1] == '{"dates":["2010-12-01","2010-12-02"]}'
        status, statement, _ = await send("GET", "/v1/bank/statements/2010-12-02")
        assert "<EndToEndId>NB20101201GBP</EndToEndId>" in statement
        # 12.50 less 0.95 % and 10.
        assert '<Amt Ccy="GBP">12.28</Amt>' in statement
        assert (await send("GET", "/v1/bank/statements/soon"))[0] == 400

    asyncio.run(_served(tmp_path / "books.db", lambda: now_ms, run))


def test_the_bank_pays_a_message_once_and_sends_some_of_it_back(tmp_path: Path) -> None:
    """Friday's message for Monday: two debits on its account's statement, on Tuesday what a seed
    draws is back. Sent again it is the same; a damaged one, or another under its id, is refused."""
    paid = message("PS1", "2010-12-03", {"e-1": 10_00, "e-2": 2_50}, "number", "sim-northbank")
    other = message("PS2", "2010-12-06", {"e-3": 7_00}, "iban", "GB33BUKB20201555555555")
    # With a document type in an encoding in which its bytes are others.
    rest = paid.decode().partition("?>")[2].replace("PS1", "PS4")
    typed = f'<?xml version="1.0"?><!DOCTYPE Document>{rest}'.encode("utf-16")

    async def run(send: Callable[..., Awaitable[Any]]) -> None:
        to = "/v1/bank/payments?from=2010-12-04&return_every="
        status, told, _ = await send("POST", f"{to}1", data=paid)
        assert (status, json.loads(told)) == (200, {
            "message_id": "PS1", "payments": 2, "value_date": "2010-12-06",
            "returned": ["e-1", "e-2"], "return_date": "2010-12-07",
        })  # fmt: skip
        assert (await send("POST", f"{to}0", data=paid))[1] == told
        status, second, _ = await send("POST", f"{to}0", data=other)
        assert (status, json.loads(second)["returned"]) == (200, [])
        # Larger than any body of the gateway's own contract.
        many = message("PS3", "2010-12-08", {f"m-{n}": 1 for n in range(200)}, "number", "acct")
        assert len(many) > BODY_BYTES_MAX
        assert json.loads((await send("POST", f"{to}20", data=many))[1])["payments"] == 200
        for content, why in (
            (paid.replace(b"10.00", b"10.01"), "invalid_payments"),
            (b"<!DOCTYPE x>" + paid, "invalid_payments"),
            (typed, "invalid_payments"),
            (b"x", "invalid_payments"),
            (paid.replace(b"e-1", b"e-9"), "message_known"),
        ):
            status, body, _ = await send("POST", f"{to}0", data=content)
            assert (status, json.loads(body)["code"]) == ({"m": 409, "i": 400}[why[0]], why)
        lines = {}
        for day in ("2010-12-06", "2010-12-07"):
            _, body, _ = await send("GET", f"/v1/bank/statements/{day}")
            for each in read_statements(body.encode(), lambda _name: ""):
                lines[each.number, day] = [(x.batch_id, x.amount_minor) for x in each.lines]
        assert lines == {
            ("sim-northbank", "2010-12-06"): [("e-1", -10_00), ("e-2", -2_50)],
            ("sim-northbank", "2010-12-07"): [("e-1", 10_00), ("e-2", 2_50)],
            ("GB33BUKB20201555555555", "2010-12-06"): [("e-3", -7_00)],
            ("GB33BUKB20201555555555", "2010-12-07"): [],
        }

    asyncio.run(_served(tmp_path / "books.db", lambda: EVENING_MS, run))


def test_the_bank_books_nothing_on_a_day_whose_statement_it_has_given_out(tmp_path: Path) -> None:
    """Monday's was asked for on Friday, and Wednesday's: a message of Friday is debited on Tuesday
    and comes back on Thursday. The statements that are out say what they said."""
    paid = message("PS1", "2010-12-03", {"e-1": 10_00}, "number", "sim-northbank")

    async def run(send: Callable[..., Awaitable[Any]]) -> None:
        async def lines_of(day: str) -> list[tuple[str, int]]:
            _, body, _ = await send("GET", f"/v1/bank/statements/{day}")
            found = read_statements(body.encode(), lambda _name: "")
            return [(line.batch_id, line.amount_minor) for each in found for line in each.lines]

        out = ("2010-12-06", "2010-12-08")
        assert [await lines_of(day) for day in out] == [[], []]
        to = "/v1/bank/payments?from=2010-12-04&return_every=1"
        _, told, _ = await send("POST", to, data=paid)
        taken = json.loads(told)
        assert (taken["value_date"], taken["return_date"]) == ("2010-12-07", "2010-12-09")
        assert [await lines_of(day) for day in out] == [[], []]
        assert await lines_of("2010-12-07") == [("e-1", -10_00)]
        assert await lines_of("2010-12-09") == [("e-1", 10_00)]
        assert (await send("POST", to, data=paid))[1] == told

    asyncio.run(_served(tmp_path / "books.db", lambda: EVENING_MS, run))


def test_no_day_is_taken_that_nothing_can_follow(tmp_path: Path) -> None:
    """What fails in the books would fail all that is written with it."""

    async def run(send: Any) -> None:
        paid = message("PS1", "2010-12-03", {"e": 100}, "number", "a")
        last = message("PS2", "9999-12-31", {"e": 100}, "number", "a")
        for path, how in (
            ("/v1/bank/payments?from=9999-12-30", {"data": paid}),
            ("/v1/bank/payments?from=0001-01-01", {"data": paid}),
            ("/v1/bank/payments", {"data": last}),
            ("/v1/admin/reports", {"json": {"date": "9999-12-31"}}),
        ):
            status, body, _ = await send("POST", path, **how)
            assert status == 400, (path, body)
        assert (await send("GET", "/v1/bank/statements/9999-12-31"))[0] == 400

    asyncio.run(_served(tmp_path / "b.db", lambda: EVENING_MS, run))


def message(message_id: str, day: str, paid: Mapping[str, int], kind: str, number: str) -> bytes:
    """A message of payouts as it is handed to the bank."""
    account = {"holder": "Shop", "iban": "", "number": "", "bic": "BUKBGB22", kind: number}
    return pain_001(
        PayoutMessage(
            message_id=message_id, currency="GBP", execution_date=day, submitted_at_ms=0,
            debtor=account, transfers=tuple(
                (Payout(payout_id=each, merchant_id="shop", currency="GBP", business_date=day,
                        amount_minor=minor, state="submitted", version=3, sequence=3, held_minor=0,
                        released_minor=0, collected_minor=0, account="", bank="b", created_by="a",
                        created_at_ms=0, actor="a", changed_at_ms=0), account)
                for each, minor in paid.items()
            ),
        )
    )  # fmt: skip


async def _served(
    path: Path, clock_ms: Callable[[], int], run: Callable[..., Awaitable[None]]
) -> None:
    gateway = Gateway(path, plan=FaultPlan.none(), seed=7, clock_ms=clock_ms,
                      personality=personality("northbank"))  # fmt: skip
    runner = web.AppRunner(build_app(gateway, outage_applies=True))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:

        async def send(method: str, path: str, *, key: str = "", **how: Any) -> Any:
            headers = {"X-Request-Key": key} if key else {}
            async with session.request(method, path, headers=headers, **how) as answer:
                return answer.status, await answer.text(), answer.headers

        try:
            await run(send)
        finally:
            await runner.cleanup()
            await gateway.close()

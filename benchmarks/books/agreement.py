"""Whole books: everything taken in, every check asked, the same sums wherever they stand."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, TextClause, text

from benchmarks.books.carried import GATEWAY, Carried, Say, captured_so_far, wait_for_books
from benchmarks.books.paid_out import PaidOut, book_bank, make_payouts, paid_out
from benchmarks.failure import WrongRun
from benchmarks.own_process import own_process
from consumers.reconciliation import Reconciler
from pipeline.audit.report import Finding, Report
from pipeline.audit.verify import Sources, verify
from pipeline.commands.reconciling import rules_of
from pipeline.domain.breaks import ReconciliationBreak
from pipeline.domain.reconciliation_decisions import BankStatement
from pipeline.gateways.bank_statement import read_statements
from pipeline.gateways.reports import read_report
from pipeline.gateways.simulator.reports import value_date
from pipeline.interrupted_queries import InterruptibleConnection
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.reconciliation.breaks import list_breaks
from pipeline.ledger.seals import seal
from pipeline.ledger.verification import Verification, verify_books
from pipeline.record_codec import record_codec
from producers.ledger_events import LedgerEvents
from topics.catalogue import Catalogue

ACTOR = "benchmark"
# A busy machine's audit of a flow whose last records are only just committed.
AUDIT_WAIT_S = 60.0
# Each row whose payment is told is in a settlement by the second or third look.
LOOKS_MAX = 6
# Everything is due by then.
DUE_DAYS = 40
# What somebody has to say of a payment whose outcome no gateway could tell is a named wait.
WAITS = frozenset({"waits_for_a_person"})

Sums = Mapping[str, int]
ACCOUNT = f"sim-{GATEWAY}"
_LINES = text(
    "SELECT CASE payout WHEN 1 THEN 'payouts' ELSE 'receipts' END, currency, sum(amount_minor) "
    "FROM bank_lines GROUP BY 1, 2"
)
_AT_BANK = text(
    "SELECT CASE e.kind WHEN 'bank_receipt' THEN 'receipts' ELSE 'payouts' END, p.currency, "
    "sum(p.amount_minor) FROM journal_entries e JOIN postings p ON p.entry_number = e.entry_number "
    "JOIN accounts a ON a.account_id = p.account_id WHERE a.name LIKE 'bank:%' GROUP BY 1, 2"
)


@dataclass(frozen=True)
class Agreement:
    """``sums``: what is compared, and for each place that says so its sums by currency."""

    entries: int
    rows: int
    bank_lines: int
    told: int
    paid_out: PaidOut
    sums: tuple[tuple[str, tuple[tuple[str, Sums], ...]], ...]


def reconciler_of(on: Carried, catalogue: Catalogue, engine: Engine) -> Reconciler:
    settings = on.settings
    return Reconciler(
        settings.bootstrap_servers, catalogue, record_codec(catalogue, ""), engine,
        rules_of(settings), now_ms=lambda: int(time.time() * 1000),
    )  # fmt: skip


def ledger_events_of(on: Carried, catalogue: Catalogue) -> LedgerEvents:
    return LedgerEvents(on.settings.bootstrap_servers, catalogue, record_codec(catalogue, ""))


def reader_of(on: Carried) -> Callable[[bytes], Sequence[BankStatement]]:
    """Reads the bank's statements by the rules in force."""
    rules = rules_of(on.settings)
    return lambda content: read_statements(content, rules.payer, rules.bank_account)


def due_day(on: Carried) -> date:
    return date.fromisoformat(on.days[-1]) + timedelta(days=DUE_DAYS)


def value_dates(on: Carried) -> list[str]:
    """The days on which the bank books what the reports pay out."""
    return sorted({value_date(day, 1) for day in on.days})


def agree(on: Carried, say: Say) -> Agreement:
    """Take everything in, ask every check, compare. WrongRun when anything is found."""
    engine = open_ledger(on.settings.books_url())
    try:
        reconciler = reconciler_of(on, on.settings.catalogue(), engine)
        say(f"Taking in {len(on.days)} reports")
        rows = 0
        for day in on.days:
            rows += _import_report(on, reconciler, day)
        told = _run_until_told(on, reconciler, say)
        on.disputes.win()
        on.reports.another()
        rows += _import_report(on, reconciler, on.days[-1])
        told += _run_until_told(on, reconciler, say)
        bank_lines = 0
        for day in value_dates(on):
            for statement in reader_of(on)(on.get(f"/v1/bank/statements/{day}")):
                reconciler.import_statement(statement, ACTOR)
                bank_lines += len(statement.lines)
        say(f"Looking again with {bank_lines} lines of the bank")
        reconciler.run(as_of=due_day(on), controlled=False)
        payouts = make_payouts(engine, ledger_events_of(on, on.settings.catalogue()), ACCOUNT)
        say(f"{len(payouts)} payouts are with the bank")
        bank_lines += book_bank(reconciler, ACCOUNT, reader_of(on), payouts)
        say("Looking again with what the bank made of them, and at the settlements topic")
        reconciler.run(as_of=due_day(on))
        with reading(engine) as connection:
            require_nothing("reconcile run", [b.detail for b in list_breaks(connection)])
        while seal(engine):
            pass
        with audit_beside(on, on.settings.books_url()) as audited:
            say("Asking `ledger verify` and `verify`")
            checked = books_verified(engine)
            require_nothing("ledger verify", [f"{d.name} {d.place}" for d in checked.damages])
            report_ = audited.result()
        require_nothing("verify", [f"{f.name} x{f.count}: {f.example}" for f in broken(report_)])
        with reading(engine) as connection:
            books = {
                (name, currency): int(minor)
                for name, currency, minor in connection.execute(
                    text(
                        "SELECT a.name, b.currency, b.debits_minor - b.credits_minor "
                        "FROM balances b JOIN accounts a ON a.account_id = b.account_id"
                    )
                )
            }
            reported = _rows_by_currency(
                connection.execute(
                    text(
                        "SELECT currency, sum(amount_minor), sum(fee_minor) FROM clearing_rows "
                        "GROUP BY currency"
                    )
                )
            )
            lines = _by_what(connection, _LINES)
            at_bank = _by_what(connection, _AT_BANK)
        paid = paid_out(engine)
        sums = _sums(books, reported, lines, at_bank, paid.paid, _gateway_sums(on), report_)
        for what, places in sums:
            if len({tuple(sorted(found.items())) for _, found in places}) != 1:
                raise WrongRun(f"{what} differ: {places}")
        return Agreement(checked.entries, rows, bank_lines, told, paid, sums)
    finally:
        engine.dispose()


def require_nothing(check: str, found: list[str]) -> None:
    if found:
        raise WrongRun(f"`{check}` finds {len(found)} in undamaged books: {'; '.join(found[:5])}")


def broken(report: Report) -> list[Finding]:
    """What an audit finds but named waits."""
    return [*report.broken, *(f for f in report.pending if f.name not in WAITS)]


def books_verified(engine: Engine) -> Verification:
    with reading(engine) as connection:
        return verify_books(connection)


def breaks_of(engine: Engine) -> list[ReconciliationBreak]:
    with reading(engine) as connection:
        return list_breaks(connection)


@contextmanager
def audit_beside(
    on: Carried, ledger_url: str, gateway_url: str | None = None
) -> Iterator[Future[Report]]:
    """An audit in a process of its own meanwhile: it needs a core, and memory for a while."""
    sources = Sources(
        on.settings.bootstrap_servers,
        on.settings.topic_prefix,
        ledger_url=ledger_url,
        gateway_urls=(gateway_url or on.settings.gateway_url,),
    )
    with own_process() as pool:
        yield pool.submit(verify, sources, wait_s=AUDIT_WAIT_S)


def _import_report(on: Carried, reconciler: Reconciler, day: str) -> int:
    report = on.get(f"/v1/reports/{day}").decode()
    return reconciler.import_report(read_report(report, gateway=GATEWAY, adapter="simulator"))


def _run_until_told(on: Carried, reconciler: Reconciler, say: Say) -> int:
    """Look, and while payments are told what only a report knew, wait for them and look again."""
    told = 0
    for number in range(LOOKS_MAX):
        before = captured_so_far(on.flow)
        ran = reconciler.run(as_of=due_day(on), controlled=False)
        say(
            f"Look {number + 1}: {ran.cleared:,} cleared, {ran.told} payments told, "
            f"{ran.opened} breaks opened, {ran.ended} ended"
        )
        told += ran.told
        if not ran.told:
            return told
        # Of the others each is a charge that is captured now.
        wait_for_books(on, before + ran.told - on.disputes.news(), say)
    raise WrongRun("payments are told again and again what only a report knew.")


def _rows_by_currency(rows: Iterable[Any]) -> dict[str, tuple[int, int]]:
    return {currency: (int(amount), int(fee)) for currency, amount, fee in rows}


def _by_what(connection: Connection, asked: TextClause) -> dict[str, dict[str, int]]:
    """Sums by currency, by the first column."""
    found: dict[str, dict[str, int]] = {}
    for what, currency, minor in connection.execute(asked):
        found.setdefault(what, {})[currency] = int(minor)
    return found


def _gateway_sums(on: Carried) -> dict[str, tuple[int, int]]:
    """By currency, out of the gateway's own file: what it moved to us, and what it took for it."""
    file: Path = on.flow.simulator.books
    at = f"file:{file}?mode=ro"
    with closing(sqlite3.connect(at, uri=True, factory=InterruptibleConnection)) as db:
        rows = db.execute(
            "SELECT currency, sum(CASE WHEN kind IN ('charge', 'capture', 'refund_failed', "
            "'dispute_won') THEN amount_minor ELSE -amount_minor END), sum(fee_minor) FROM entries "
            "WHERE kind IN ('charge', 'capture', 'refund', 'refund_failed', 'dispute', "
            "'dispute_fee', 'dispute_won') GROUP BY currency"
        ).fetchall()
    return {currency: (int(moved), int(fee)) for currency, moved, fee in rows}


def _sums(
    books: Mapping[tuple[str, str], int],
    reported: Mapping[str, tuple[int, int]],
    lines: Mapping[str, Sums],
    at_bank: Mapping[str, Sums],
    payouts: Sums,
    gateway: Mapping[str, tuple[int, int]],
    report: Report,
) -> tuple[tuple[str, tuple[tuple[str, Sums], ...]], ...]:
    def balance(*accounts: str) -> dict[str, int]:
        found: Counter[str] = Counter()
        for (name, currency), minor in books.items():
            if name.startswith(accounts):
                found[currency] += minor
        return {currency: minor for currency, minor in found.items() if minor}

    def owed(*accounts: str) -> dict[str, int]:
        return {currency: -minor for currency, minor in balance(*accounts).items()}

    def taken(moved: Sums) -> dict[str, int]:
        return {**nothing, **{currency: -minor for currency, minor in moved.items()}}

    settled: Counter[str] = Counter()
    disputed: Counter[str] = Counter()
    for kind, said in report.summary["settlements"].items():
        # No gateway knows of a credit.
        if kind != "credit":
            settled.update(said["amount_minor"])
        if kind in ("dispute", "dispute_fee", "reversal"):
            disputed.subtract(said["amount_minor"])
    net = {currency: moved - fee for currency, (moved, fee) in gateway.items()}
    everything: Counter[str] = Counter()
    for (_, currency), minor in books.items():
        everything[currency] += minor
    nothing = dict.fromkeys(net, 0)
    left = {currency: minor - payouts.get(currency, 0) for currency, minor in net.items()}
    return (
        ("moved to us, fees not taken off", (
            ("the gateway's books", {c: moved for c, (moved, _) in gateway.items()}),
            ("the settlements topic", dict(settled)),
            ("the reports' rows", {c: moved for c, (moved, _) in reported.items()}),
        )),
        ("the gateway's fees", (
            ("the gateway's books", {c: fee for c, (_, fee) in gateway.items()}),
            ("the reports' rows", {c: fee for c, (_, fee) in reported.items()}),
            ("ledger: gateway_cost", balance("gateway_cost:")),
        )),
        ("paid out by the gateway", (
            ("the gateway's books, less fees", net),
            ("the bank's lines", lines["receipts"]),
            ("ledger: bank, receipts", at_bank["receipts"]),
        )),
        ("paid out to merchants", (
            ("the payouts", {**nothing, **payouts}),
            ("the bank's lines", taken(lines["payouts"])),
            ("ledger: bank, payouts", taken(at_bank["payouts"])),
        )),
        ("left at the bank", (
            ("what the gateway paid, less payouts", left),
            ("ledger: bank", {**nothing, **balance("bank:")}),
            ("ledger: owed to merchants, our fees, less the gateway's and disputes", {
                **nothing, **owed(
                    "merchant_", "unapplied_credits:", "fee_revenue:", "gateway_cost:",
                    "rounding:", "suspense:", "reserve:", "payouts_in_transit:",
                    "disputes_and_losses:")}),
        )),
        ("disputed, the gateway's fees for it included, less what was won", (
            ("the settlements topic", {**nothing, **disputed}),
            ("ledger: disputes_and_losses", {**nothing, **balance("disputes_and_losses:")}),
        )),
        ("still owed by the gateway", (
            ("ledger: gateway_receivable", {**nothing, **balance("gateway_receivable:")}),
            ("nothing", nothing),
        )),
        ("debits less credits of all accounts", (
            ("ledger", {**nothing, **everything}),
            ("nothing", nothing),
        )),
    )  # fmt: skip

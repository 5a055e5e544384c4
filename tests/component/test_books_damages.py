"""What the proof of the books damages, in seconds and without a broker: disputes and payouts."""

from __future__ import annotations

import json
import random
import sqlite3
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace
from sqlalchemy import Engine

from benchmarks.books import damaged_decisions
from benchmarks.books.damaged_ledger import DISPUTE_KINDS
from benchmarks.books.damaged_payouts import PAYOUT_KINDS, SpoiltPayouts
from benchmarks.books.disputed import DISPUTED_MIN, WON_EVERY, Disputes
from benchmarks.books.findings import LEDGER_VERIFY, RECONCILE, compare
from benchmarks.books.paid_out import PaidOut, book_bank, make_payouts, paid_out
from benchmarks.books.unguarded import Books, Drawer
from pipeline.domain.reconciliation_decisions import BankStatement
from pipeline.domain.reconciliation_rules import read_rules
from pipeline.gateways.bank_statement import read_statements
from pipeline.gateways.simulator import start_simulator, stop_simulator
from pipeline.gateways.simulator.reports import read_report
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.entries import Item
from pipeline.ledger.journal import Progress
from pipeline.ledger.reconciliation.findings import Clocks, of_batches
from pipeline.ledger.reconciliation.following import decide_statement
from pipeline.ledger.reconciliation.lines_unknown import unknown_lines
from pipeline.ledger.reconciliation.tables import prepare
from pipeline.ledger.seals import seal
from pipeline.ledger.verification import verify_books
from tests.support.ledger import entry_of, journal_at
from tests.support.ledger_rules import EVENTS, book_all
from tests.support.payouts import receive

ACCOUNT = "sim-simulator"
RULES = read_rules({"gateways": {"simulator": {"bank_names": ["SIMULATOR"]}}})


class Log:
    """Books at once what is decided."""

    def publish(self, engine: Engine) -> None:
        book_all(engine)


class Bank:
    """Takes statements over as a reconciliation does."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def import_statement(self, statement: BankStatement, actor: str) -> None:
        decide_statement(self._engine, statement, actor, now_ms())
        book_all(self._engine)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Books of four merchants who have something in three currencies."""
    made = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    prepare(made)
    now = datetime.now(UTC).isoformat()[:16]
    for merchant in ("shop-a", "shop-b", "shop-c", "shop-d"):
        for currency in ("GBP", "EUR", "JPY"):
            receive(made, 1_000, now, currency, merchant)
    yield made
    made.dispose()


def now_ms() -> int:
    return int(time.time() * 1000)


def read(content: bytes) -> list[BankStatement]:
    return read_statements(content, RULES.payer, RULES.bank_account)


def pay(engine: Engine, **spoilt: SpoiltPayouts) -> None:
    payouts = make_payouts(engine, Log(), ACCOUNT)  # type: ignore[arg-type]
    book_bank(Bank(engine), ACCOUNT, read, payouts, **spoilt)  # type: ignore[arg-type]


def test_payouts_go_to_the_bank_and_some_come_back(engine: Engine) -> None:
    """Every merchant's funds in each currency; each fifth payout is returned."""
    pay(engine)
    found = paid_out(engine)
    assert (found.payouts, found.returned) == (12, 3)
    assert sum(found.paid.values()) == 9 * 1_000
    with reading(engine) as connection:
        assert list(of_batches(connection, Clocks(RULES, now_ms(), date(2100, 1, 1)))) == []
        assert list(unknown_lines(connection)) == []
    assert isinstance(found, PaidOut)


def test_what_the_bank_made_otherwise_of_payouts_is_named(engine: Engine) -> None:
    """Each line that the books cannot explain, and no other."""
    spoilt = SpoiltPayouts(ACCOUNT, random.Random(3), 2)
    pay(engine, spoil=spoilt)
    assert Counter(each.kind for each in spoilt.damages) == dict.fromkeys(PAYOUT_KINDS, 2)
    with reading(engine) as connection:
        found = [*of_batches(connection, Clocks(RULES, now_ms(), date(2100, 1, 1))),
                 *unknown_lines(connection)]  # fmt: skip
    compare(RECONCILE, spoilt.damages, ((each.kind, each.subject) for each in found))


def test_a_hand_in_payouts_is_found_by_the_ledger_itself(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed, another merchant's, removed, approved by another than it was."""
    pay(engine)
    while seal(engine):
        pass
    monkeypatch.setattr(damaged_decisions, "DECISIONS", EVENTS.topic)
    books = Books(tmp_path / "ledger.sqlite")
    draw = random.Random(5)
    with closing(books.db):
        books.db.execute("BEGIN")
        spoilers = [
            spoil for kind, spoil in damaged_decisions.DECIDED_KINDS.items() if "payout" in kind
        ]
        wanted = [name for each in spoilers for name in each(books, draw)[1][LEDGER_VERIFY]]
        books.finish()
    with reading(engine) as connection:
        found = [(each.name, each.place) for each in verify_books(connection).damages]
    assert len(spoilers) == 4
    assert sorted(found) == sorted(wanted)


def test_a_hand_in_disputes_is_found_by_the_ledger_itself(tmp_path: Path) -> None:
    """Another amount, the merchant charged with it, the entry removed: each at its place."""
    file = tmp_path / "ledger.sqlite"
    url = f"sqlite:///{file}"
    engine = open_ledger(url)
    prepare(engine)
    items = []
    for n in range(40):
        captured = entry_of(n)
        line, against = captured.postings[:2]
        lost = (
            replace(line, amount_minor=-line.amount_minor),
            replace(against, account=f"disputes_and_losses:{captured.merchant_id}",
                    amount_minor=line.amount_minor),
        )  # fmt: skip
        disputed = replace(captured, kind="dispute", postings=lost)
        items.append(Item(0, n, disputed if n % 5 == 2 else captured))
    journal_at(engine).post(items, {0: Progress(0, len(items))})
    while seal(engine):
        pass
    books = Books(file)
    with closing(books.db):
        books.db.execute("BEGIN")
        drawn = iter(list(Drawer(books, random.Random(2)).draw("dispute", 3)))
        wanted = [
            each
            for spoil in DISPUTE_KINDS.values()
            for each in spoil(books, next(drawn))[LEDGER_VERIFY]
        ]
        books.finish()
    with reading(engine) as connection:
        found = [(each.name, each.place) for each in verify_books(connection).damages]
    assert sorted(found) == sorted(wanted)
    engine.dispose()


def test_disputes_are_the_gateways_and_in_its_report(tmp_path: Path) -> None:
    """Each with its fee, and a third of them won later on."""
    handle = start_simulator(tmp_path / "gateway.sqlite", faults="none")
    try:
        charges = [charge(handle.url, n) for n in range(DISPUTED_MIN + 5)]
        engine = open_ledger(url := f"sqlite:///{tmp_path / 'ledger.sqlite'}")
        items = [
            Item(0, n, replace(entry_of(n), gateway_reference=each))
            for n, each in enumerate(charges)
        ]
        journal_at(engine).post(items, {0: Progress(0, len(items))})
        engine.dispose()
        disputes = Disputes(handle.url, url, 400, random.Random(3))
        disputes.open(but={items[0].entry.order_id})
        assert (disputes.opened, disputes.news(), disputes.news()) == (
            DISPUTED_MIN,
            DISPUTED_MIN,
            0,
        )
        disputes.win()
        won = -(-DISPUTED_MIN // WON_EVERY)
        assert (disputes.news(), disputes.entries) == (won, 2 * DISPUTED_MIN + won)
        ask(f"{handle.url}/v1/admin/reports", {"date": "2026-11-20", "late_every": 0})
        with closing(sqlite3.connect(handle.books)) as db:
            report = read_report(db, "po_", "2026-11-20")
        assert report is not None
        assert Counter(row.kind for row in report.rows) == {
            "charge": len(charges), "dispute": DISPUTED_MIN, "dispute_fee": DISPUTED_MIN,
            "dispute_won": won,
        }  # fmt: skip
    finally:
        stop_simulator(handle)


def charge(url: str, number: int) -> str:
    body = {
        "reference": f"r{number}", "amount_minor": 1_000, "currency": "GBP", "merchant_id": "m",
        "order_id": f"o{number}", "instrument_token": "tok_ok",
    }  # fmt: skip
    return str(ask(f"{url}/v1/charges", body, {"Idempotency-Key": f"k{number}"})["id"])


def ask(
    url: str, body: dict[str, object], headers: dict[str, str] | None = None
) -> dict[str, object]:
    request = urllib.request.Request(url, json.dumps(body).encode(), headers or {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        said: dict[str, object] = json.load(answer)
        return said

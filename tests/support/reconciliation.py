"""Reports against the books: what every ledger does with them, whatever database."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from pipeline.audit.clearings import expected_entries
from pipeline.audit.ledger_copy import LedgerReader
from pipeline.audit.terms import DecisionSeen, Lines
from pipeline.domain.breaks import (
    ACCEPTED,
    CONVERTED,
    CORRECTED,
    EXPLAINED_AFTERWARDS,
    ReconciliationBreak,
    break_id,
)
from pipeline.domain.clearing import BankLine, ClearedRow, Clearing
from pipeline.domain.matching import BookedSide, ReportedSide, pair
from pipeline.domain.model import Settlement
from pipeline.domain.payouts import Payout
from pipeline.domain.posting import JournalEntry, Posting, journal_entry
from pipeline.domain.reconciliation_decisions import (
    BANK_STATEMENT,
    BREAK_RESOLUTION,
    CLEARING,
    BankStatement,
    clearing_body,
    clearing_of,
    resolution_body,
    statement_body,
)
from pipeline.domain.reconciliation_rules import ReconciliationRules, read_rules
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.decision_booking import DecisionBooker
from pipeline.ledger.decisions import adopt, all_decisions, decide, decisions_of, unpublished
from pipeline.ledger.entries import Item
from pipeline.ledger.journal import Progress, Source
from pipeline.ledger.queries import balances, drifted_balances
from pipeline.ledger.reconciliation import control, following, matching
from pipeline.ledger.reconciliation.breaks import (
    Changes,
    keep,
    list_breaks,
    mark_published,
    open_sums,
    unpublished_breaks,
)
from pipeline.ledger.reconciliation.clearing import Look, counts, keep_breaks, look, mark_told
from pipeline.ledger.reconciliation.control import too_many
from pipeline.ledger.reconciliation.findings import Clocks
from pipeline.ledger.reconciliation.following import (
    catch_up,
    decide_clearing,
    decide_releases,
    decide_resolution,
    decide_statement,
    named_too_late,
)
from pipeline.ledger.reconciliation.intake import Placed, new_rows, stored_offsets, take_in
from pipeline.ledger.reconciliation.tables import metadata, prepare
from pipeline.ledger.reconciliation.totals import day_totals
from pipeline.ledger.seals import seal
from pipeline.ledger.verification import verify_books
from tests.support import payouts
from tests.support.ledger import (
    PAIR,
    SOURCE,
    book_by_hand,
    journal_at,
    of_no_settlement,
    settlement,
)
from tests.support.ledger_rules import EVENTS, announce, close
from tests.support.ledger_suite import OnEachDatabase

CLEARINGS = Source("cluster", "clearings", "clearings-id")
TOPICS = (SOURCE.topic, CLEARINGS.topic)
# 2023-11-14, a Tuesday, in London.
SETTLED_MS = 1_700_000_000_500
DAY = "2023-11-14"
NOW_MS = SETTLED_MS + 86_400_000
RULES = read_rules(
    {
        "gateways": {
            "simulator": {"time_zone": "Europe/London", "report_days": 2, "bank_days": 3,
                          "bank_names": ["The Simulator"]},
        }
    }
)  # fmt: skip


def row_of(number: int, settled: Settlement, **changed: Any) -> Clearing:
    """The row that tells of a settlement, with a fee of 1 %."""
    fields: dict[str, Any] = {
        "gateway": settled.gateway,
        "file_id": f"simulator-{DAY}",
        "row_number": number,
        "report_date": DAY,
        "kind": settled.kind,
        "operation_kind": "charge" if settled.kind == "capture" else settled.kind,
        "gateway_reference": settled.gateway_reference,
        "amount_minor": settled.amount_minor,
        "fee_minor": max(0, settled.amount_minor // 100),
        "currency": settled.currency,
        "batch_id": "po_1",
        "occurred_at_ms": SETTLED_MS,
        "payment_id": settled.payment_id,
        "operation_id": settled.operation_id,
        "attempt": 1,
        "merchant_id": settled.merchant_id,
        "order_id": settled.order_id,
        **changed,
    }
    return Clearing(**fields)


# What a row carries that repeats no reference of ours.
NAMES_NOTHING: dict[str, Any] = {
    "payment_id": "", "operation_id": "", "attempt": 0, "merchant_id": "", "order_id": "",
    "operation_kind": "",
}  # fmt: skip


def refund_under_its_charge(number: int) -> Settlement:
    """One of several, of a gateway that knows them by the id of their charge."""
    return settlement(1, kind="refund", amount_minor=-500, operation_id=f"r{number}",
                      gateway_reference="ch_1", settled_at_ms=SETTLED_MS + number)  # fmt: skip


def line_of(number: int, **said: Any) -> BankLine:
    """One penny of a gateway's batch."""
    return BankLine(line_id=str(number), amount_minor=1, currency="GBP", value_date=DAY,
                    gateway="simulator", batch_id="po_1", **said)  # fmt: skip


class Books:
    """A ledger with its two topics, and both sides at hand."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        prepare(engine)
        self.journal = journal_at(engine)
        self.settled = 0
        self.taken = 0
        self.reported: list[Clearing] = []
        self.changes = Changes()

    def settle(self, *settlements: Settlement) -> None:
        items = []
        for n, each in enumerate(settlements, self.settled):
            entry = journal_entry(each)
            assert isinstance(entry, JournalEntry)
            items.append(Item(0, n, entry))
        end = self.settled + len(settlements)
        self.journal.post(items, {0: Progress(self.settled, end)})
        self.settled = end

    def report(self, *rows: Clearing) -> int:
        placed = [Placed(row, 0, n) for n, row in enumerate(rows, self.taken)]
        end = self.taken + len(rows)
        new = take_in(self.engine, CLEARINGS, placed, {0: Progress(self.taken, end)})
        self.taken = end
        self.reported += rows
        return new

    def make_tables_anew(self) -> None:
        """Those of reconciliation, with what their topic holds."""
        metadata.drop_all(self.engine)
        prepare(self.engine)
        rows, self.reported, self.taken = self.reported, [], 0
        self.report(*rows)

    def run(self, as_of: str = DAY, rules: ReconciliationRules = RULES) -> Look:
        clocks = Clocks(rules, NOW_MS, date.fromisoformat(as_of))
        catch_up(self.engine)
        done = look(self.engine, TOPICS, rules, clocks, NOW_MS)
        self.book()
        self.changes = keep_breaks(self.engine, done, NOW_MS)
        return done

    def book(self) -> int:
        """As if every decision had been published, at its number; how many entries were made."""
        with reading(self.engine) as connection:
            waiting = unpublished(connection)
        booker = DecisionBooker(self.engine, EVENTS)
        return sum(booker.book(e, 0, e.sequence) for e in waiting)

    def balances(self) -> dict[str, int]:
        with reading(self.engine) as connection:
            assert drifted_balances(connection) == []
            return {b.account: b.balance_minor for b in balances(connection) if b.balance_minor}

    def by_currency(self) -> dict[tuple[str, str], int]:
        with reading(self.engine) as connection:
            assert drifted_balances(connection) == []
            kept = balances(connection)
        return {(b.account, b.currency): b.balance_minor for b in kept if b.balance_minor}

    def rows_of(self, table: str) -> list[tuple[Any, ...]]:
        with reading(self.engine) as connection:
            return sorted(tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}")))

    def decided(self) -> int:
        with reading(self.engine) as connection:
            return len(all_decisions(connection))

    def breaks(self, **how: Any) -> list[ReconciliationBreak]:
        with reading(self.engine) as connection:
            return list_breaks(connection, **how)

    def kinds(self) -> list[tuple[str, str, int]]:
        return sorted((b.kind, b.subject, b.at_risk_minor) for b in self.breaks())


TERMS = {
    "plans": [{"name": "p", "currency": "GBP", "percentage": "2", "fixed_minor": 10,
               "returned": "all"}],
    "gateway_costs": [{"percentage": "1"}],
}  # fmt: skip


# What a test brings: of the sale that it is given.
Brings = Callable[[Books, Settlement], object]


def bank_pays(minor: int, file_id: str = "s-1", currency: str = "GBP") -> Brings:
    def bring(books: Books, _sale: Settlement) -> None:
        line = BankLine(line_id="1", amount_minor=minor, currency=currency, value_date=DAY,
                        gateway="simulator", batch_id="po_1")  # fmt: skip
        decide_statement(books.engine, BankStatement("acct", file_id, (line,)), "anna", NOW_MS)

    return bring


def report_says(number: int = 1, **changed: Any) -> Brings:
    return lambda books, sale: books.report(row_of(number, sale, fee_minor=0, **changed))


# By break: what makes it, and what explains it later.
LATE_EVIDENCE: dict[str, tuple[tuple[Brings, ...], tuple[Brings, ...]]] = {
    "missing_at_gateway": ((Books.settle,), (report_says(),)),
    "missing_here": ((report_says(),), (Books.settle,)),
    "currency_differs": (
        (Books.settle, report_says(currency="EUR")),
        (report_says(2, file_id="later"),),
    ),
    "batch_unpaid": ((Books.settle, report_says()), (bank_pays(12_50),)),
    "batch_differs": (
        (Books.settle, report_says(), bank_pays(12_00)),
        (bank_pays(50, "s-2"),),
    ),
}


def resolve(books: Books, found: ReconciliationBreak, resolution: str) -> None:
    decide_resolution(books.engine, found.break_id, resolution, actor="anna", reason="by hand",
                      now_ms=NOW_MS)  # fmt: skip


def priced_sale(books: Books, **changed: Any) -> Settlement:
    """One that was booked by ``TERMS``."""
    announce(books.engine, TERMS)
    books.book()
    sale = settlement(1, **changed)
    books.settle(sale)
    return sale


def audited(books: Books) -> None:
    """What rows have posted is what the audit makes of their decisions, and the books are whole."""
    reader = LedgerReader(books.engine.url.render_as_string(hide_password=False))
    try:
        entries = reader.read().entries
    finally:
        reader.close()
    posted: dict[str, Lines] = {}
    for entry in entries:
        if entry.kind == CLEARING:
            lines = posted.setdefault(entry.entry_id, Counter())
            for posting in entry.postings:
                lines[posting.account, posting.currency] += posting.amount_minor
    with reading(books.engine) as connection:
        decided = decisions_of(connection, [CLEARING])
        assert verify_books(connection).damages == ()
    settled = {entry.settlement_id: entry for entry in entries if entry.settlement_id}
    wanted: dict[str, Lines] = {}
    for event in decided:
        seen = DecisionSeen(
            0, 0, event.sequence, event.event_id, event.kind, json.loads(event.body)
        )
        wanted |= expected_entries(seen, settled, {}) or {}
    assert posted == wanted


def sealed_heads(engine: Engine) -> Sequence[Any]:
    while seal(engine):
        pass
    with reading(engine) as connection:
        return verify_books(connection).heads


def heads_of_a_rebuild(books: Books, settled: Sequence[Settlement], at: Path) -> Sequence[Any]:
    """Of books that are made of the same settlements and decisions, and of no report."""
    with reading(books.engine) as connection:
        decided = all_decisions(connection)
    engine = open_ledger(f"sqlite:///{at / 'again.db'}")
    try:
        again = Books(engine)
        with engine.begin() as connection:
            adopt(connection, decided)
        again.settle(*settled)
        again.book()
        assert again.by_currency() == books.by_currency()
        return sealed_heads(engine)
    finally:
        engine.dispose()


class ReconciliationSuite(OnEachDatabase):
    """Subclassed once for each database, with a fixture ``url`` of an empty one."""

    @pytest.fixture
    def books(self, engine: Engine) -> Books:
        return Books(engine)

    def test_a_row_trues_up_the_cost_and_makes_the_net_available(self, books: Books) -> None:
        """By hand: 12.50 at 2 % and 10 is 0.35, so 12.15 become available; the cost of 0.13 that
        was accrued was 0.15; the bank pays 12.35, and nothing is owed by the gateway then."""
        announce(books.engine, TERMS)
        books.book()
        sale = settlement(1)
        books.settle(sale)
        assert books.report(row_of(1, sale, fee_minor=15)) == 1
        done = books.run()
        assert (done.cleared, done.waiting) == (1, 0)
        assert books.balances() == {
            "gateway_receivable:simulator": 1235, "gateway_cost:simulator": 15,
            "merchant_available:m1": -1215, "fee_revenue:m1": -35,
        }  # fmt: skip
        # The terms said 13: told, and booked as it was taken.
        assert books.kinds() == [("fee_differs", f"simulator:simulator-{DAY}:1", 2)]
        line = BankLine(line_id="1", amount_minor=1235, currency="GBP", value_date="2023-11-15",
                        gateway="simulator", batch_id="po_1")  # fmt: skip
        statement = BankStatement("acct", "s-1", (line,))
        assert len(decide_statement(books.engine, statement, "anna", NOW_MS)) == 1
        assert decide_statement(books.engine, statement, "anna", NOW_MS) == []
        books.run("2023-12-01")
        assert books.balances() == {
            "bank:acct": 1235, "gateway_cost:simulator": 15,
            "merchant_available:m1": -1215, "fee_revenue:m1": -35,
        }  # fmt: skip
        assert [b.kind for b in books.breaks()] == ["fee_differs"]

    def test_a_refund_is_cleared_by_exactly_what_was_posted_for_it(self, books: Books) -> None:
        """A refund takes back its own part of the fee, and so does what is available."""
        announce(books.engine, TERMS)
        books.book()
        sale = settlement(1)
        back = settlement(1, kind="refund", amount_minor=-500, operation_id="r1",
                          gateway_reference="re_1")  # fmt: skip
        books.settle(sale, back)
        books.report(row_of(1, sale, fee_minor=13), row_of(2, back, fee_minor=0))
        books.run()
        # 12.15 less 5.00 plus 0.14 of the fee that came back.
        assert books.balances()["merchant_available:m1"] == -(1215 - 500 + 14)
        assert "merchant_payable:m1" not in books.balances()
        assert books.kinds() == []

    def test_a_dispute_that_nobody_bears_yet_is_cleared_and_moves_nothing(
        self, books: Books
    ) -> None:
        """Held in disputes_and_losses: the rows confirm what stands, and are told of once."""
        sale = settlement(1)
        taken = settlement(1, kind="dispute", amount_minor=-1000, operation_id="dispute-dp_1",
                           gateway_reference="dp_1")  # fmt: skip
        fee = settlement(1, kind="dispute_fee", amount_minor=-15, operation_id="dispute-dp_1",
                         gateway_reference="dp_1")  # fmt: skip
        back = settlement(1, kind="reversal", amount_minor=1000, operation_id="dispute-dp_1-9",
                          gateway_reference="dp_1")  # fmt: skip
        books.settle(sale, taken, fee, back)
        rows = [row_of(n, each, fee_minor=0, operation_id="", attempt=0, operation_kind="")
                for n, each in enumerate((taken, fee, back), 2)]  # fmt: skip
        books.report(row_of(1, sale, fee_minor=0), *rows)
        done = books.run("2023-11-20")
        assert (done.cleared, done.untold) == (4, [])
        assert books.balances() == {
            "gateway_receivable:simulator": 1250 - 15, "merchant_available:m1": -1250,
            "disputes_and_losses:m1": 15,
        }  # fmt: skip
        assert [b.kind for b in books.breaks()] == ["batch_unpaid"]

    def test_what_no_gateway_reports_counts_in_the_available_balance(self, books: Books) -> None:
        """A credit of 4.25 takes of what is available, and what a month's tiers gave back adds to
        it: with the next run, once, and nothing is pending for ever."""
        tiers = {"plans": [{**TERMS["plans"][0], "tiers": [
            {"above_minor": 500, "percentage": "1"}]}]}  # fmt: skip
        announce(books.engine, tiers)
        books.book()
        sale = settlement(1)
        held = settlement(1, kind="credit", amount_minor=-425, operation_id="c1", gateway="none",
                          gateway_reference="")  # fmt: skip
        books.settle(sale, held)
        close(books.engine, "2010-12-31")
        books.book()
        books.report(row_of(1, sale, fee_minor=0))
        assert decide_releases(books.engine, NOW_MS) == 2
        assert decide_releases(books.engine, NOW_MS) == 0
        # As of another day, as what is due by then is looked at.
        books.run("2099-01-01")
        with reading(books.engine) as connection:
            asked = text(
                "SELECT DISTINCT business_date FROM journal_entries WHERE kind = 'release'"
            )
            assert connection.execute(asked).scalars().all() == ["2023-11-15"]
        found = books.balances()
        # 12.50 less 0.35, 4.25 held, 0.08 of the fee too much: 1 % of the 7.50 above 5.00.
        assert "merchant_payable:m1" not in found
        assert found["merchant_available:m1"] == -(1215 - 425 + 8)
        assert found["unapplied_credits:m1"] == -425
        # Tables that are made anew do not release again.
        metadata.drop_all(books.engine)
        prepare(books.engine)
        assert decide_releases(books.engine, NOW_MS) == 0
        with reading(books.engine) as connection:
            assert verify_books(connection).damages == ()

    def test_within_the_tolerance_the_difference_is_rounding(self, books: Books) -> None:
        """A minor unit more than was booked: cleared, and the unit is nobody's."""
        rules = read_rules({"gateways": {"simulator": {"amount_tolerance_minor": 1}}})
        sale, other = settlement(1), settlement(2)
        books.settle(sale, other)
        books.report(
            row_of(1, sale, amount_minor=1251, fee_minor=0),
            row_of(2, other, amount_minor=1252, fee_minor=0),
        )
        assert books.run(rules=rules).cleared == 1
        assert books.balances() == {
            "gateway_receivable:simulator": 1251 + 1250, "rounding:GBP": -1,
            "merchant_available:m1": -1250, "merchant_payable:m2": -1250,
        }  # fmt: skip
        assert [b.kind for b in books.breaks()] == ["amount_differs"]

    def test_currencies_have_their_own_decimals(self, books: Books) -> None:
        """Yen have none and dinars three: minor units are what both sides count in."""
        yen = settlement(1, amount_minor=1000, currency="JPY")
        dinar = settlement(2, amount_minor=1234, currency="KWD")
        books.settle(yen, dinar)
        books.report(row_of(1, yen), row_of(2, dinar, amount_minor=1233))
        books.run()
        (found,) = books.breaks()
        assert found.detail == "KWD 1.233 in the report, KWD 1.234 booked"
        with reading(books.engine) as connection:
            kept = {(b.account, b.currency): b.balance_minor for b in balances(connection)}
        assert kept["merchant_available:m1", "JPY"] == -1000
        assert kept["gateway_cost:simulator", "JPY"] == 10

    def test_the_same_file_and_the_same_run_again_change_nothing(self, books: Books) -> None:
        """Rows are taken in by file and number; what is cleared is cleared once."""
        sales = [settlement(n) for n in range(1, 6)]
        books.settle(*sales)
        rows = [row_of(n, sale) for n, sale in enumerate(sales, 1)]
        assert books.report(*rows) == 5
        books.run()
        before = books.balances()
        assert books.report(*rows, *rows) == 0
        assert books.run().cleared == 0
        assert books.balances() == before
        with reading(books.engine) as connection:
            assert counts(connection) == (5, 5)
            assert stored_offsets(connection, CLEARINGS) == {0: 15}
            assert verify_books(connection).damages == ()

    def test_a_row_that_contradicts_an_earlier_one_is_a_break(self, books: Books) -> None:
        """Refused before it is published; in the topic all the same, it holds nobody up."""
        sale = settlement(1)
        first, changed = row_of(1, sale), row_of(1, sale, amount_minor=1)
        books.report(first)
        with reading(books.engine) as connection:
            assert new_rows(connection, [first, row_of(2, sale)]) == [row_of(2, sale)]
            with pytest.raises(UserError, match="another amount_minor"):
                new_rows(connection, [changed])
        assert books.report(row_of(2, settlement(2)), changed, first) == 1
        (found,) = books.breaks()
        assert (found.kind, found.subject, found.at_risk_minor) == (
            "clearing_refused", "clearings[0]@2", 1,
        )  # fmt: skip
        with reading(books.engine) as connection:
            assert counts(connection) == (2, 0)
            assert stored_offsets(connection, CLEARINGS) == {0: 4}
        # Nothing that comes later explains it: a person does.
        books.run()
        assert [b.kind for b in books.breaks()] == ["clearing_refused"]

    def test_each_gateway_has_decisions_of_its_own(self, books: Books) -> None:
        """References of several gateways lie among each other; their rows are decided apart."""
        sales = [settlement(n, gateway="north" if n % 2 else "simulator") for n in range(1, 7)]
        books.settle(*sales)
        books.report(*(row_of(n, sale) for n, sale in enumerate(sales, 1)))
        assert books.run().cleared == 6
        with reading(books.engine) as connection:
            made = [clearing_of(event) for event in decisions_of(connection, [CLEARING])]
        assert {each.gateway: [row.row_number for row in each.rows] for each in made} == {
            "north": [1, 3, 5], "simulator": [2, 4, 6],
        }  # fmt: skip
        assert len(made) == 2

    def test_of_two_rows_of_one_number_the_first_counts(self, books: Books) -> None:
        """Also where both are taken in at once, whatever the order of their references."""
        sale = settlement(1)
        first = row_of(1, sale, gateway_reference="zz")
        assert books.report(first, row_of(1, sale, gateway_reference="aa")) == 1
        (found,) = books.breaks()
        assert (found.kind, found.subject) == ("clearing_refused", "clearings[0]@1")
        with reading(books.engine) as connection:
            assert new_rows(connection, [first]) == []

    def test_another_process_that_takes_in_the_same_is_noticed(self, books: Books) -> None:
        """Compare and set of the stored offset: of two one stores, the other is told."""
        placed = [Placed(row_of(1, settlement(1)), 0, 0)]
        take_in(books.engine, CLEARINGS, placed, {0: Progress(0, 1)})
        with pytest.raises(UserError, match="another process"):
            take_in(books.engine, CLEARINGS, placed, {0: Progress(5, 6)})
        # Both began where nothing was stored yet.
        with pytest.raises(UserError, match="another process"):
            take_in(books.engine, CLEARINGS, placed, {0: Progress(0, 1)})

    def test_two_that_keep_the_same_breaks_at_once_open_each_once(self, books: Books) -> None:
        """Two runs that have looked at the same moment."""
        opened: list[int] = []
        failures: list[BaseException] = []
        barrier = threading.Barrier(2)

        def keep_all() -> None:
            engine = open_ledger(books.engine.url.render_as_string(hide_password=False))
            try:
                for start in range(0, 6_000, 2_000):
                    found = [too_many("s", n, 0, 1, DAY) for n in range(start, start + 2_000)]
                    barrier.wait(20)
                    with engine.begin() as connection:
                        opened.append(keep(connection, found, NOW_MS, judged=()).opened)
            except BaseException as error:
                failures.append(error)
                barrier.abort()
            finally:
                engine.dispose()

        threads = [threading.Thread(target=keep_all) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert sorted(opened) == [0, 0, 0, 2_000, 2_000, 2_000]
        assert {b.version for b in books.breaks()} == {1}

    def test_each_kind_of_break_has_its_name_and_its_amount(self, books: Books) -> None:
        """One sale of each; what is cleared is only what is certain."""
        sales = [settlement(n, amount_minor=1000 + n) for n in range(1, 7)]
        books.settle(*sales)
        one, two, three, four, five, _missing = sales
        books.report(
            row_of(1, one),
            row_of(2, two, amount_minor=1001),
            row_of(3, three, currency="EUR"),
            row_of(4, four),
            row_of(5, four),
            row_of(6, five, operation_id="another"),
            row_of(7, five, payment_id="", operation_id="", gateway_reference="ch_x", attempt=0),
        )
        # T+2 of a Tuesday is Thursday: on Friday it is over.
        assert [b.kind for b in books.run("2023-11-16").breaks] == [
            "amount_differs", "currency_differs", "duplicate",
        ]  # fmt: skip
        books.run("2023-11-17")
        key = f"simulator:simulator-{DAY}:"
        assert books.kinds() == [
            ("amount_differs", f"{key}2", 1),
            ("currency_differs", f"{key}3", 1003),
            ("duplicate", f"{key}5", 1004),
            ("missing_at_gateway", sales[4].settlement_id, 1005),
            ("missing_at_gateway", sales[5].settlement_id, 1006),
            ("missing_here", f"{key}6", 1005),
            ("missing_here", f"{key}7", 1005),
        ]  # fmt: skip
        with reading(books.engine) as connection:
            assert counts(connection)[1] == 2
            assert [(s.kind, s.count) for s in open_sums(connection)][:2] == [
                ("amount_differs", 1), ("currency_differs", 1),
            ]  # fmt: skip
        found = next(b for b in books.breaks() if b.kind == "amount_differs")
        assert (found.file_id, found.row_number) == (f"simulator-{DAY}", 2)
        assert (found.settlement_place, found.clearing_place) == (
            "settlements[0]@1", "clearings[0]@1",
        )  # fmt: skip
        assert found.since == DAY
        assert found.merchant_id == "m2"
        # The duplicate is found again although its twin was cleared by an earlier run.
        assert books.run("2023-11-17").cleared == 0
        assert len(books.kinds()) == 7

    @pytest.mark.parametrize("first", [1, 2])
    def test_a_row_without_our_reference_takes_what_no_row_names(
        self, books: Books, first: int
    ) -> None:
        """Two refunds under their charge's id, one of which its row does not name: both clear,
        whichever row comes first."""
        named, other = (refund_under_its_charge(n) for n in (1, 2))
        books.settle(named, other)
        rows = [row_of(3 - first, named), row_of(first, other, **NAMES_NOTHING)]
        books.report(*rows)
        assert books.run("2023-11-17").cleared == 2
        assert books.kinds() == []
        with reading(books.engine) as connection:
            cleared = connection.execute(
                text("SELECT row_number, settlement_id FROM cleared_rows")
            ).all()
        assert {tuple(each) for each in cleared} == {
            (3 - first, named.settlement_id), (first, other.settlement_id),
        }  # fmt: skip

    def test_what_a_row_without_our_reference_has_cleared_stays_so(self, books: Books) -> None:
        """By an earlier run, when nothing named it: the row that does comes too late."""
        named, other = (refund_under_its_charge(n) for n in (1, 2))
        books.settle(named, other)
        books.report(row_of(1, other, **NAMES_NOTHING))
        assert books.run().cleared == 1
        books.report(row_of(2, named))
        assert books.run("2023-11-17").cleared == 0
        assert books.kinds() == [
            ("missing_at_gateway", other.settlement_id, 500),
            ("missing_here", f"simulator:simulator-{DAY}:2", 500),
        ]

    def test_what_was_refunded_outside_the_gateway_is_missed_in_no_report(
        self, books: Books
    ) -> None:
        """Only its sale is looked for; the merchant has the money no more."""
        sale = settlement(1, amount_minor=1000)
        books.settle(
            sale,
            settlement(
                1, kind="external_refund", amount_minor=-1000, operation_id="late-1",
                gateway_reference="TRF-88",
            ),
        )  # fmt: skip
        books.report(row_of(1, sale, fee_minor=0))
        assert "missing_at_gateway" not in {b.kind for b in books.run("2023-11-20").breaks}
        assert books.balances() == {
            "gateway_receivable:simulator": 1000, "suspense:simulator": -1000,
        }  # fmt: skip

    def test_a_later_row_ends_a_break_and_a_person_can(self, books: Books) -> None:
        """A late row clears what was missing; what is resolved with a reason stays resolved."""
        late, gone = settlement(1), settlement(2)
        books.settle(late, gone)
        books.run("2023-11-20")
        assert len(books.breaks()) == 2
        books.report(row_of(1, late, report_date="2023-11-20", file_id="next"))
        books.run("2023-11-20")
        (left,) = books.breaks()
        assert left.subject == gone.settlement_id
        (ended,) = books.breaks(state="resolved")
        assert (ended.resolution, ended.version) == ("later_evidence", 2)
        with pytest.raises(UserError, match="with a reason"):
            decide_resolution(books.engine, left.break_id, ACCEPTED, actor="bert", reason=" ",
                              now_ms=NOW_MS)  # fmt: skip
        decide_resolution(books.engine, left.break_id, ACCEPTED, actor="bert", reason="they lost",
                          now_ms=NOW_MS)  # fmt: skip
        with pytest.raises(UserError, match="no open break"):
            decide_resolution(books.engine, left.break_id, ACCEPTED, actor="b", reason="x",
                              now_ms=NOW_MS)  # fmt: skip
        books.run("2023-11-21")
        assert books.breaks() == []
        resolved = next(b for b in books.breaks(state="resolved") if b.subject == left.subject)
        assert (resolved.resolution, resolved.actor, resolved.reason) == (
            ACCEPTED, "bert", "they lost",
        )  # fmt: skip

    def test_a_look_at_an_earlier_day_ends_only_what_was_due_by_then(self, books: Books) -> None:
        """Two days after it the sale is missing; by the day itself nothing can be said of it, nor
        of the row and its batch. Explained since, it ends with the next look at today."""
        sale, other = settlement(1), settlement(2)
        books.settle(sale)
        books.report(row_of(1, other), row_of(2, other, fee_minor=0))
        books.run("2023-12-01")
        kinds = ["batch_unpaid", "missing_at_gateway", "missing_here", "missing_here"]
        assert sorted(b.kind for b in books.breaks()) == kinds
        books.run(DAY)
        assert sorted(b.kind for b in books.breaks()) == kinds
        books.report(row_of(1, sale, file_id="next", batch_id="po_2"))
        books.run(DAY)
        assert sorted(b.kind for b in books.breaks()) == kinds
        books.run("2023-12-01")
        assert {b.kind for b in books.breaks()} == {"batch_unpaid", "missing_here"}

    @pytest.mark.parametrize(
        "odd",
        [
            {"settlement_id": "a\0b"}, {"gateway_reference": "a\0b"}, {"order_id": "a\0b"},
            {"amount_minor": -(2**63)}, {"currency": "G\0P"}, {"business_date": "yesterday"},
        ],
    )  # fmt: skip
    def test_a_settlement_that_no_book_can_hold_stops_no_control(
        self, books: Books, odd: dict[str, Any]
    ) -> None:
        """The ledger has refused it: it is a break of the day it was written, and the others are
        compared."""
        sale = settlement(1)
        books.settle(sale)
        strange = replace(settlement(2), **odd)
        if strange.settlement_id == settlement(2).settlement_id:
            assert not isinstance(journal_entry(strange), JournalEntry)
        published = [control.Published(sale, "settlements", 0, 0, NOW_MS),
                     control.Published(strange, "settlements", 0, 1, NOW_MS)]  # fmt: skip
        for _ in range(2):
            with books.engine.begin() as connection:
                found, booked = control.compare(connection, published)
                keep(connection, found, NOW_MS, judged={"ledger_differs"})
            assert booked == 1
        (kept,) = books.breaks(kind="ledger_differs")
        assert kept.settlement_place == "settlements[0]@1"
        assert date.fromisoformat(kept.since)

    def test_the_sum_of_open_breaks_may_be_more_than_a_database_holds(self, books: Books) -> None:
        odd = [settlement(number, amount_minor=2**63 - 1) for number in (1, 4)]
        published = [
            control.Published(each, "settlements", 0, offset, NOW_MS)
            for offset, each in enumerate(odd)
        ]
        with books.engine.begin() as connection:
            found, _ = control.compare(connection, published)
            keep(connection, found, NOW_MS, judged={"ledger_differs"})
            (told,) = open_sums(connection)
        assert (told.count, told.at_risk_minor) == (2, 2 * (2**63 - 1))

    def test_a_settlement_that_was_published_again_is_booked_once_and_counts_once(
        self, books: Books
    ) -> None:
        """It is found by its id where it does not lie at its place. So an entry that nobody made
        is not taken for it: entries are counted by where they say they come from."""
        sale, other = settlement(1), settlement(2)
        books.settle(sale, other)
        twice = [control.Published(each, "settlements", 0, at, NOW_MS)
                 for at, each in ((0, sale), (1, other), (2, sale))]  # fmt: skip
        with books.engine.begin() as connection:
            assert control.compare(connection, twice) == ([], 2)
            assert control.compare(connection, twice[2:]) == ([], 0)
            assert control.compare(connection, []) == ([], 0)
            changed = replace(twice[2], settlement=replace(sale, amount_minor=1))
            found, _ = control.compare(connection, [changed])
        assert [each.kind for each in found] == ["ledger_differs"]

    def test_a_late_row_ends_no_batch_that_is_unpaid(self, books: Books) -> None:
        """Its rows are of the 16th and, late, of the 17th: what the bank owes is more by then, not
        paid. Its line ends it; a batch of the 17th alone is not due yet."""
        sale, late, other = settlement(1), settlement(2), settlement(3)
        books.settle(sale, late, other)
        books.report(row_of(1, sale, report_date="2023-11-16", fee_minor=0))
        books.run("2023-11-22")
        (before,) = [b for b in books.breaks() if b.kind == "batch_unpaid"]
        next_day = {"file_id": "next", "report_date": "2023-11-17", "fee_minor": 0}
        books.report(row_of(1, late, **next_day), row_of(2, other, batch_id="po_2", **next_day))
        for _ in range(2):
            books.run("2023-11-22")
            (open_still,) = books.breaks()
            assert (open_still.break_id, open_still.at_risk_minor) == (before.break_id, 2500)
        line = BankLine(line_id="1", amount_minor=2500, currency="GBP", value_date="2023-11-22",
                        gateway="simulator", batch_id=before.gateway_reference)  # fmt: skip
        decide_statement(books.engine, BankStatement("acct", "s", (line,)), "anna", NOW_MS)
        books.run("2023-11-22")
        assert books.breaks() == []

    @pytest.mark.parametrize("wrong", [{"amount_minor": 12_00}, {"currency": "EUR"}])
    def test_a_corrected_row_clears_the_sale(self, books: Books, wrong: dict[str, Any]) -> None:
        """Of a sale of 12.50 a report told otherwise; a later one tells it right. The sale is
        available, and the first row is left: its batch has it twice."""
        sale = settlement(1)
        books.settle(sale)
        books.report(row_of(1, sale, fee_minor=0, **wrong))
        books.run()
        assert books.balances()["merchant_payable:m1"] == -12_50
        later = {"file_id": "later", "report_date": "2023-11-15"}
        # Wrong once more, it is another row of the same kind of break, and nobody's duplicate.
        books.report(row_of(1, sale, fee_minor=0, **wrong, **later))
        assert books.run("2023-12-01").untold == []
        kind = "amount_differs" if "amount_minor" in wrong else "currency_differs"
        assert {b.kind for b in books.breaks(gateway="simulator")} == {kind, "batch_unpaid"}
        assert len(books.breaks(kind=kind)) == 2
        books.report(row_of(2, sale, fee_minor=0, **later))
        assert books.run().cleared == 1
        assert books.balances() == {
            "gateway_receivable:simulator": 12_50, "merchant_available:m1": -12_50,
        }  # fmt: skip
        assert books.breaks(kind=kind) == []
        assert {b.detail[-7:] for b in books.breaks(kind="duplicate")} == {"already"}
        assert len(books.breaks(kind="duplicate")) == 2

    def test_a_resolution_is_of_the_figures_that_were_looked_at(self, books: Books) -> None:
        """A penny was accepted; that the bank takes 50,000.00 of the same batch opens the break
        again, also where the tables were made anew. Accepted as well, it stays so."""
        sale = settlement(1)
        books.settle(sale)
        row = row_of(1, sale, fee_minor=0)
        books.report(row)

        def bank(file_id: str, minor: int) -> None:
            line = BankLine(line_id="1", amount_minor=minor, currency="GBP", value_date=DAY,
                            gateway="simulator", batch_id="po_1")  # fmt: skip
            decide_statement(books.engine, BankStatement("acct", file_id, (line,)), "a", NOW_MS)
            books.run("2023-12-01")

        def accept() -> None:
            (found,) = books.breaks()
            decide_resolution(books.engine, found.break_id, ACCEPTED, actor="anna",
                              reason="looked at", now_ms=NOW_MS)  # fmt: skip
            books.run("2023-12-01")
            assert books.breaks() == []

        bank("s-1", 1249)
        assert books.kinds() == [("batch_differs", "po_1:GBP", 1)]
        accept()
        bank("s-2", -50_000_00)
        assert books.kinds() == [("batch_differs", "po_1:GBP", 50_000_01)]
        (again,) = books.breaks()
        assert (again.state, again.actor, again.resolution) == ("open", "", "")
        metadata.drop_all(books.engine)
        prepare(books.engine)
        books.taken = 0
        books.report(row)
        books.run("2023-12-01")
        assert books.kinds() == [("batch_differs", "po_1:GBP", 50_000_01)]
        accept()

    @pytest.mark.parametrize(
        ("kind", "resolution"),
        [
            (kind, resolution)
            for kind in sorted(LATE_EVIDENCE)
            for resolution in (CORRECTED, ACCEPTED)
            # Another currency is not borne as it is.
            if (kind, resolution) != ("currency_differs", ACCEPTED)
        ],
    )
    def test_what_was_corrected_opens_again_once_evidence_explains_it(
        self, books: Books, kind: str, resolution: str
    ) -> None:
        """A person set it right by an entry by hand; then what was missing came, and is booked
        beside that entry. It is told once, until a person says that it is in order. What was
        accepted was borne as it was, and nothing was booked for it."""
        sale = settlement(1)
        for given in LATE_EVIDENCE[kind][0]:
            given(books, sale)
        books.run("2023-12-01")
        (found,) = books.breaks(kind=kind)
        resolve(books, found, resolution)
        for _ in range(2):
            books.run("2023-12-01")
            assert books.breaks(kind=kind) == []
        for came in LATE_EVIDENCE[kind][1]:
            came(books, sale)
        if kind.startswith("missing"):
            # Of a day on which it was not due, a look says nothing.
            books.run("2023-11-14")
            assert books.breaks(kind=kind) == []
        for _ in range(2):
            books.run("2023-12-01")
            again = books.breaks(kind=kind)
            if resolution == ACCEPTED:
                assert again == []
                continue
            assert [(b.break_id, b.detail, b.version) for b in again] == [
                (found.break_id, found.detail + EXPLAINED_AFTERWARDS, found.version + 2)
            ]
            assert (again[0].actor, again[0].reason, again[0].resolution) == ("", "", "")
        for each in books.breaks(kind=kind):
            resolve(books, each, CORRECTED)
        for _ in range(2):
            books.run("2023-12-01")
            assert books.breaks(kind=kind) == []
        # Of what is explained, tables that are made anew hold no break.
        books.make_tables_anew()
        books.run("2023-12-01")
        assert books.breaks(kind=kind, state=None) == []

    def test_a_corrected_batch_is_explained_by_its_line_alone(self, books: Books) -> None:
        """A late row makes it more that the bank owes: other figures, and no evidence. Its line
        then is, also of what was corrected before."""
        sale, late = settlement(1), settlement(2)
        books.settle(sale, late)
        books.report(row_of(1, sale, report_date="2023-11-16", fee_minor=0))
        books.run("2023-11-22")
        (found,) = books.breaks(kind="batch_unpaid")
        resolve(books, found, CORRECTED)
        books.report(row_of(1, late, file_id="next", report_date="2023-11-17", fee_minor=0))
        books.run("2023-11-22")
        (more,) = books.breaks()
        assert (more.at_risk_minor, more.detail) == (
            25_00, "2 rows come to GBP 25.00, the bank has no line of it",
        )  # fmt: skip
        bank_pays(25_00)(books, sale)
        books.run("2023-11-22")
        (told,) = books.breaks()
        assert (told.break_id, told.detail) == (
            found.break_id, more.detail + EXPLAINED_AFTERWARDS,
        )  # fmt: skip

    def test_what_is_open_as_explained_stays_so_by_an_older_look(self, books: Books) -> None:
        """Of two runs, one that looked before the evidence came keeps its breaks last. What differs
        again once a person has ended it opens again."""
        sale = settlement(1)
        books.settle(sale)
        books.run("2023-12-01")
        (found,) = books.breaks()
        resolve(books, found, CORRECTED)
        books.report(row_of(1, sale, fee_minor=0))
        clocks = Clocks(RULES, NOW_MS, date(2023, 12, 1))
        older = Look(clocks, breaks=[found])
        books.run("2023-12-01")
        # Its batch is not paid, besides.
        assert books.changes == Changes(opened=2)
        (told,) = books.breaks(kind=found.kind)
        keep_breaks(books.engine, older, NOW_MS)
        assert books.breaks(kind=found.kind) == [told]
        resolve(books, told, CORRECTED)
        keep_breaks(books.engine, older, NOW_MS)
        assert [b.detail for b in books.breaks(kind=found.kind)] == [found.detail]
        books.run("2023-12-01")
        assert (books.changes.ended, books.breaks(kind=found.kind)) == (1, [])

    def test_more_entries_than_the_topic_has_open_the_break_again(self, books: Books) -> None:
        """One too many was explained; 490 are not. While the topic grows, one stays one."""

        def control(booked: int, entries: int) -> list[str]:
            found = too_many("settlements", 0, booked, entries, DAY)
            with books.engine.begin() as connection:
                keep(connection, [found], NOW_MS, judged=["ledger_differs"])
            return [b.kind for b in books.breaks()]

        assert control(10, 11) == ["ledger_differs"]
        decide_resolution(books.engine, books.breaks()[0].break_id, ACCEPTED, actor="anna",
                          reason="known", now_ms=NOW_MS)  # fmt: skip
        assert control(10, 11) == []
        assert control(20, 21) == []
        assert control(10, 500) == ["ledger_differs"]

    def test_a_resolution_that_names_no_figures_holds(self, books: Books) -> None:
        """As decisions of before figures were kept: in tables made anew, of what is found."""
        books.settle(settlement(1))
        books.run("2023-11-20")
        (found,) = books.breaks()
        body = json.dumps({"break_id": found.break_id, "resolution": ACCEPTED})
        with books.engine.begin() as connection:
            decide(connection, kind=BREAK_RESOLUTION, body=body, actor="anna", reason="lost",
                   now_ms=NOW_MS)  # fmt: skip
        books.run("2023-11-20")
        assert books.breaks() == []
        metadata.drop_all(books.engine)
        prepare(books.engine)
        books.run("2023-11-20")
        assert books.breaks() == []

    def test_a_large_statement_is_decided_in_parts(self, books: Books, tmp_path: Path) -> None:
        """Every line is booked once, whatever its text; the same again is nothing, another line a
        contradiction. A ledger that has only the first of the parts takes the rest of it."""
        plain = [line_of(n) for n in range(2_500)]
        # 1,300 bytes each in a record: 1,000 of them would be more than one may have.
        wide = [line_of(n, text="\U0001f4b6" * 100) for n in range(2_500, 3_500)]
        whole = BankStatement("acct", "001/2023: a", (*plain, *wide))
        events = decide_statement(books.engine, whole, "anna", NOW_MS)
        assert len(events) == 3
        assert max(len(event.body) for event in events) < 900_000
        assert books.book() == 3_500
        assert books.balances() == {"bank:acct": 3_500, "gateway_receivable:simulator": -3_500}
        assert decide_statement(books.engine, whole, "anna", NOW_MS) == []
        for lines in ((*plain, *wide[1:]), plain, (*plain, *wide, line_of(9_999))):
            other = BankStatement("acct", whole.file_id, tuple(lines))
            with pytest.raises(UserError, match="never changes"):
                decide_statement(books.engine, other, "anna", NOW_MS)
        engine = open_ledger(f"sqlite:///{tmp_path / 'other.db'}")
        prepare(engine)
        with engine.begin() as connection:
            adopt(connection, events[:2])
        assert len(decide_statement(engine, whole, "anna", NOW_MS)) == len(events) - 2
        asked = text("SELECT count(*), count(DISTINCT line_id) FROM bank_lines")
        for each in (books.engine, engine):
            with reading(each) as connection:
                assert connection.execute(asked).one() == (3_500, 3_500)
        assert decide_statement(engine, whole, "anna", NOW_MS) == []
        engine.dispose()

    def test_an_empty_statement_is_one_too(self, books: Books) -> None:
        """Decided once; with lines afterwards it is another one."""
        empty = BankStatement("acct", "s-0", ())
        assert len(decide_statement(books.engine, empty, "anna", NOW_MS)) == 1
        assert decide_statement(books.engine, empty, "anna", NOW_MS) == []
        with pytest.raises(UserError, match="never changes"):
            decide_statement(books.engine, BankStatement("acct", "s-0", (line_of(1),)), "a", NOW_MS)
        of_another = BankStatement("other", "s-0", (line_of(1),))
        assert len(decide_statement(books.engine, of_another, "anna", NOW_MS)) == 1

    def test_a_statement_is_known_whatever_its_account_is_called(self, books: Books) -> None:
        """By the bank's number of it. Where that was not kept, the same id and lines are refused:
        but for an account that was called by its number."""
        first = BankStatement("GB33", "s-1", (line_of(1),), number="GB33")
        assert len(decide_statement(books.engine, first, "anna", NOW_MS)) == 1
        for called in ("main-gbp", "main", "GB33"):
            again = replace(first, account=called)
            assert decide_statement(books.engine, again, "anna", NOW_MS) == []
            with pytest.raises(UserError, match="never changes"):
                decide_statement(books.engine, replace(again, lines=()), "anna", NOW_MS)
        of_another = replace(first, account="other", number="GB44")
        assert len(decide_statement(books.engine, of_another, "anna", NOW_MS)) == 1

        older = BankStatement("GB33", "s-0", (line_of(1),))
        assert len(decide_statement(books.engine, older, "anna", NOW_MS)) == 1
        known = replace(older, account="main-gbp", number="GB33")
        assert decide_statement(books.engine, known, "anna", NOW_MS) == []
        with pytest.raises(UserError, match="booked for account GB33"):
            decide_statement(books.engine, replace(known, number="GB44"), "anna", NOW_MS)
        assert books.book() == 3
        assert books.balances() == {
            "bank:GB33": 2, "bank:other": 1, "gateway_receivable:simulator": -3,
        }  # fmt: skip

    def test_a_line_without_a_reference_is_known_by_its_number(self, books: Books) -> None:
        """Decisions of earlier versions wrote the number as it is: no line is another for that."""
        older = BankStatement("GB33", "s", (line_of(1), line_of(2)))
        decide_statement(books.engine, older, "anna", NOW_MS)
        lines = tuple(replace(line, line_id=f"#{line.line_id}") for line in older.lines)
        assert decide_statement(books.engine, replace(older, lines=lines), "anna", NOW_MS) == []

    def test_another_account_that_has_got_a_name_is_not_the_one_of_before(
        self, books: Books
    ) -> None:
        """Banks number the statements of each account from one on."""
        first = BankStatement("main", "001", (line_of(1),), number="GB33")
        assert len(decide_statement(books.engine, first, "anna", NOW_MS)) == 1
        successor = replace(first, number="GB44")
        for other in (successor, replace(successor, lines=(line_of(2),))):
            with pytest.raises(UserError, match="give GB44 another name"):
                decide_statement(books.engine, other, "anna", NOW_MS)
        named = replace(successor, account="second")
        assert len(decide_statement(books.engine, named, "anna", NOW_MS)) == 1
        renamed = replace(first, account="old")
        assert decide_statement(books.engine, renamed, "anna", NOW_MS) == []

    def test_the_rest_of_a_statement_goes_to_the_account_of_its_first_part(
        self, books: Books, tmp_path: Path
    ) -> None:
        """Also where the rules call the account otherwise by then."""
        whole = BankStatement("GB33", "s", tuple(line_of(n) for n in range(2_500)), number="GB33")
        events = decide_statement(books.engine, whole, "anna", NOW_MS)
        engine = open_ledger(f"sqlite:///{tmp_path / 'other.db'}")
        prepare(engine)
        with engine.begin() as connection:
            adopt(connection, events[:1])
        renamed = replace(whole, account="main-gbp")
        (rest,) = decide_statement(engine, renamed, "anna", NOW_MS)
        assert rest.body == events[1].body
        assert decide_statement(engine, renamed, "anna", NOW_MS) == []
        engine.dispose()

    def test_a_payer_that_is_named_too_late_is_told_of(self, books: Books) -> None:
        """The line stays nobody's; only what a gateway would have by now is counted."""
        nobodys = tuple(replace(line_of(n), gateway="") for n in (1, 2))
        before = BankStatement("GB33", "s", (*nobodys, line_of(3)), number="GB33")
        decide_statement(books.engine, before, "anna", NOW_MS)
        again = replace(before, account="main-gbp", lines=(line_of(1), nobodys[1], line_of(3)))
        assert decide_statement(books.engine, again, "anna", NOW_MS) == []
        with reading(books.engine) as connection:
            assert named_too_late(connection, again) == 1
            assert named_too_late(connection, before) == 0

    def test_a_line_by_its_number_is_not_the_one_that_has_it_as_its_reference(
        self, books: Books
    ) -> None:
        """The third line of a statement, without a reference, and the one that the bank calls 3:
        a payer of the one is no payer of the other. Of before, both stood as 3."""
        referred = replace(line_of(3), gateway="")
        numbered = replace(line_of(4), line_id="#3")
        statement = BankStatement("GB33", "s", (referred, numbered), number="GB33")
        decide_statement(books.engine, statement, "anna", NOW_MS)
        older = BankStatement("GB44", "t", (replace(referred, line_id="3"),))
        decide_statement(books.engine, older, "anna", NOW_MS)
        known_now = replace(older, lines=(replace(line_of(3), line_id="#3"),))
        with reading(books.engine) as connection:
            assert named_too_late(connection, statement) == 0
            assert named_too_late(connection, known_now) == 1

    def test_batches_are_compared_with_the_bank(self, books: Books) -> None:
        """Paid less, not paid, paid without rows, and a line that is nobody's."""
        sales = [settlement(n, amount_minor=10_000) for n in range(1, 4)]
        books.settle(*sales)
        books.report(
            row_of(1, sales[0], batch_id="b1"),
            row_of(2, sales[1], batch_id="b2"),
            row_of(3, sales[2], batch_id="b3"),
        )
        lines = [("1", 9_900, "simulator", "b1"), ("2", 9_800, "simulator", "b2"),
                 ("3", 50, "simulator", "b9"), ("4", 7, "", "")]  # fmt: skip
        statement = BankStatement(
            "acct", "s",
            tuple(BankLine(line_id=i, amount_minor=a, currency="GBP", value_date=DAY, gateway=g,
                           batch_id=b, text="hello") for i, a, g, b in lines),
        )  # fmt: skip
        decide_statement(books.engine, statement, "anna", NOW_MS)
        other = BankStatement("acct", "s", statement.lines[:1])
        with pytest.raises(UserError, match="never changes"):
            decide_statement(books.engine, other, "anna", NOW_MS)
        books.run("2023-11-17")
        assert books.kinds() == [
            ("bank_line_unknown", "acct:s:4", 7),
            ("batch_differs", "b2:GBP", 100),
            ("batch_differs", "b9:GBP", 50),
        ]  # fmt: skip
        # T+3 is over on Monday.
        books.run("2023-11-20")
        assert ("batch_unpaid", "b3:GBP", 9_900) in books.kinds()
        # What the bank says is booked, whoever is right; what is nobody's is not.
        assert books.balances()["bank:acct"] == 9_900 + 9_800 + 50

    def test_a_bank_that_is_faster_than_the_gateway_is_no_break(self, books: Books) -> None:
        """The line is in on the day itself; the rows of its batch come in the reports of the two
        days after it, the last of them on the last day on which they may. There never is a break,
        and nothing is left."""
        sales = [settlement(n, amount_minor=10_000) for n in range(1, 4)]
        books.settle(*sales)
        bank_pays(3 * 9_900)(books, sales[0])
        books.run("2023-11-14")
        books.report(row_of(1, sales[0], report_date="2023-11-15", file_id="second"))
        books.run("2023-11-15")
        books.report(*(row_of(n, sale, report_date="2023-11-16", file_id="third")
                       for n, sale in enumerate(sales[1:], 1)))  # fmt: skip
        for day in ("2023-11-16", "2023-11-17", "2023-12-01"):
            books.run(day)
        assert books.breaks(state=None) == []
        assert books.balances() == {
            "bank:acct": 3 * 9_900, "gateway_cost:simulator": 300,
            "merchant_available:m1": -10_000, "merchant_available:m2": -10_000,
            "merchant_available:m0": -10_000,
        }  # fmt: skip

    @pytest.mark.parametrize("came", [0, 1])
    def test_rows_of_a_batch_that_do_not_come_are_told_once_they_are_due(
        self, books: Books, came: int
    ) -> None:
        """Of a batch that the bank paid on Tuesday no row, or not every one, has come by Thursday,
        T+2. On Friday it is told; that the bank pays more of it then ends nothing, nor does a look
        at the day before, and the rows end it."""
        sales = [settlement(n, amount_minor=10_000) for n in range(1, 4)]
        books.settle(*sales)
        bank_pays(2 * 9_900)(books, sales[0])
        rows = [row_of(n, sale) for n, sale in enumerate(sales, 1)]
        books.report(*rows[:came])
        books.run("2023-11-16")
        assert books.breaks(kind="batch_differs", state=None) == []
        books.run("2023-11-17")
        (found,) = books.breaks(kind="batch_differs")
        assert (found.since, found.at_risk_minor) == (DAY, (2 - came) * 9_900)
        line = BankLine(line_id="1", amount_minor=9_900, currency="GBP", value_date="2023-11-17",
                        gateway="simulator", batch_id="po_1")  # fmt: skip
        decide_statement(books.engine, BankStatement("acct", "s-2", (line,)), "anna",
                         NOW_MS + 2 * 86_400_000)  # fmt: skip
        for day in ("2023-11-17", "2023-11-16"):
            books.run(day)
            (still,) = books.breaks(kind="batch_differs")
            assert (still.since, still.at_risk_minor) == (DAY, (3 - came) * 9_900)
        books.report(*rows[came:])
        books.run("2023-11-17")
        assert books.breaks() == []

    def test_a_second_line_of_a_batch_has_time_for_its_rows(self, books: Books) -> None:
        """What has matched is paid more of on Friday: its rows may come until Tuesday."""
        sale = settlement(1, amount_minor=10_000)
        books.settle(sale)
        books.report(row_of(1, sale))
        bank_pays(9_900)(books, sale)
        line = BankLine(line_id="1", amount_minor=50, currency="GBP", value_date="2023-11-17",
                        gateway="simulator", batch_id="po_1")  # fmt: skip
        decide_statement(books.engine, BankStatement("acct", "s-2", (line,)), "anna",
                         NOW_MS + 2 * 86_400_000)  # fmt: skip
        books.run("2023-11-21")
        assert books.breaks(state=None) == []
        books.run("2023-11-22")
        assert books.kinds() == [("batch_differs", "po_1:GBP", 50)]

    def test_a_line_that_is_dated_ahead_counts_from_the_day_it_was_read(self, books: Books) -> None:
        """Of 2099, read on the 15th: its rows are due by the 17th, not in 2099."""
        line = BankLine(line_id="1", amount_minor=50, currency="GBP", value_date="2099-01-01",
                        gateway="simulator", batch_id="po_1")  # fmt: skip
        decide_statement(books.engine, BankStatement("acct", "s", (line,)), "anna", NOW_MS)
        books.run("2023-11-17")
        assert books.breaks() == []
        books.run("2023-11-20")
        (found,) = books.breaks()
        assert (found.kind, found.since) == ("batch_differs", "2023-11-15")

    @pytest.mark.parametrize(
        ("resolution", "left"),
        [
            # The gateway pays 12.00, and the 0.50 are nobody's.
            (ACCEPTED, {"gateway_receivable:simulator": 12_00, "rounding:GBP": 50}),
            # An entry by hand, or another payment, is to set the 0.50 right.
            (CORRECTED, {"gateway_receivable:simulator": 12_50}),
        ],
    )
    def test_a_person_clears_a_sale_of_another_amount(
        self, books: Books, resolution: str, left: dict[str, int]
    ) -> None:
        """12.00 in the report for a sale of 12.50: once somebody says so the merchant has the sale
        available, by a decision with the same reason; once, in tables made anew as well."""
        sale = settlement(1)
        books.settle(sale)
        row = row_of(1, sale, amount_minor=12_00, fee_minor=0)
        books.report(row)
        books.run()
        (found,) = books.breaks()
        decide_resolution(books.engine, found.break_id, resolution, actor="anna",
                          reason="we bear it", now_ms=NOW_MS)  # fmt: skip
        assert books.book() == 1
        assert books.balances() == {**left, "merchant_available:m1": -12_50}
        with reading(books.engine) as connection:
            (cleared,) = decisions_of(connection, ["clearing"])
            assert verify_books(connection).damages == ()
        assert (cleared.actor, cleared.reason) == ("anna", "we bear it")
        metadata.drop_all(books.engine)
        prepare(books.engine)
        books.taken = 0
        books.report(row)
        assert (books.run().cleared, books.breaks()) == (0, [])
        assert books.balances() == {**left, "merchant_available:m1": -12_50}

    def test_a_sale_that_is_settled_in_another_currency_is_converted(
        self, books: Books, tmp_path: Path
    ) -> None:
        """The worked example of the docs. 12.50 of which 0.35 are our fee, and 0.13 were accrued
        for the gateway. It settles them as EUR 14.40 less 0.14: that it owes, and the bank pays;
        the merchant has 12.15 available. A rebuild ends in the same hashes."""
        sale = priced_sale(books)
        books.report(row_of(1, sale, currency="EUR", amount_minor=14_40, fee_minor=14))
        books.run()
        (found,) = books.breaks()
        resolve(books, found, CONVERTED)
        assert books.book() == 1
        converted = {
            ("gateway_cost:simulator", "EUR"): 14,
            ("currency_position:GBP", "GBP"): 12_50, ("currency_position:EUR", "EUR"): -14_40,
            ("merchant_available:m1", "GBP"): -12_15, ("fee_revenue:m1", "GBP"): -35,
        }  # fmt: skip
        assert books.by_currency() == {**converted, ("gateway_receivable:simulator", "EUR"): 14_26}
        bank_pays(14_26, currency="EUR")(books, sale)
        books.run("2023-12-24")
        assert books.by_currency() == {**converted, ("bank:acct", "EUR"): 14_26}
        assert books.breaks() == []
        books.make_tables_anew()
        assert (books.run("2023-12-24").cleared, books.breaks()) == (0, [])
        audited(books)
        assert heads_of_a_rebuild(books, [sale], tmp_path) == sealed_heads(books.engine)
        # A row in its own currency that comes afterwards tells of what is cleared.
        books.report(row_of(1, sale, file_id="later"))
        books.run("2023-12-24")
        assert "duplicate" in {b.kind for b in books.breaks()}

    def test_refunds_and_disputes_are_converted_as_their_sale_is(self, books: Books) -> None:
        """Of 12.50 (EUR 14.40) 5.00 are refunded (5.71), with 0.14 of the fee, and 7.50 disputed
        (8.61), which nobody bears yet: the gateway takes EUR 0.06 more than it gives."""
        sale = priced_sale(books)
        back = settlement(1, kind="refund", amount_minor=-5_00, operation_id="r1",
                          gateway_reference="re_1")  # fmt: skip
        taken = settlement(1, kind="dispute", amount_minor=-7_50, operation_id="d1",
                           gateway_reference="ch_1")  # fmt: skip
        books.settle(back, taken)
        books.report(
            row_of(1, sale, currency="EUR", amount_minor=14_40, fee_minor=14),
            row_of(2, back, currency="EUR", amount_minor=-5_71, fee_minor=0),
            row_of(3, taken, currency="EUR", amount_minor=-8_61, fee_minor=0, **NAMES_NOTHING),
        )
        books.run()
        for found in books.breaks(kind="currency_differs"):
            resolve(books, found, CONVERTED)
        assert books.book() == 3
        bank_pays(-6, currency="EUR")(books, sale)
        books.run("2023-12-24")
        assert books.by_currency() == {
            ("merchant_available:m1", "GBP"): -(12_15 - 5_00 + 14),
            ("fee_revenue:m1", "GBP"): -21, ("disputes_and_losses:m1", "GBP"): 7_50,
            ("gateway_cost:simulator", "EUR"): 14, ("bank:acct", "EUR"): -6,
            ("currency_position:EUR", "EUR"): -(14_40 - 5_71 - 8_61),
        }  # fmt: skip
        assert books.breaks() == []
        audited(books)

    def test_yen_that_are_settled_in_dinars_are_converted(self, books: Books) -> None:
        """15,000 yen, of which 1 % was accrued for the gateway, and no plan charges a fee; it
        settles KWD 30.125 less 0.301. Minor units are each currency's own."""
        sale = priced_sale(books, amount_minor=15_000, currency="JPY")
        books.report(row_of(1, sale, currency="KWD", amount_minor=30_125, fee_minor=301))
        books.run()
        (found,) = books.breaks()
        assert found.detail == "KWD 30.125 in the report, JPY 15,000 booked"
        assert books.by_currency()["gateway_receivable:simulator", "JPY"] == 14_850
        resolve(books, found, CONVERTED)
        books.book()
        assert books.by_currency() == {
            ("gateway_receivable:simulator", "KWD"): 29_824, ("gateway_cost:simulator", "KWD"): 301,
            ("currency_position:JPY", "JPY"): 15_000, ("currency_position:KWD", "KWD"): -30_125,
            ("merchant_available:m1", "JPY"): -15_000,
        }  # fmt: skip
        audited(books)

    @pytest.mark.parametrize(
        ("row", "resolution", "said"),
        [
            ({"currency": "EUR"}, ACCEPTED, "cannot be borne as it is"),
            ({"amount_minor": 12_00}, CONVERTED, "amount_differs cannot be converted"),
            ({"currency": "EUR", "amount_minor": -14_40}, CONVERTED, "cannot have become"),
            ({"currency": "EUR", "amount_minor": 0}, CONVERTED, "cannot have become"),
            ({"currency": "EUX"}, CONVERTED, "cannot have become"),
        ],
    )
    def test_what_cannot_be_converted_is_refused(
        self, books: Books, row: dict[str, Any], resolution: str, said: str
    ) -> None:
        """By what is wrong with it; the break stays, and nothing is decided."""
        sale = settlement(1)
        books.settle(sale)
        books.report(row_of(1, sale, **row))
        books.run()
        (found,) = books.breaks()
        with pytest.raises(UserError, match=said):
            resolve(books, found, resolution)
        assert (books.breaks(), books.decided()) == ([found], 0)

    def test_what_was_accepted_in_another_currency_may_be_converted_still(
        self, books: Books
    ) -> None:
        """An earlier version took that for its end, and the merchant waits. Once it is converted it
        is not again; nor is what another row has cleared meanwhile."""
        sale, other = settlement(1), settlement(2)
        books.settle(sale, other)
        books.report(*(row_of(n, each, currency="EUR") for n, each in enumerate((sale, other), 1)))
        books.run()
        one, two = sorted(books.breaks(), key=lambda each: each.row_number)
        with books.engine.begin() as connection:
            said = resolution_body(one.break_id, ACCEPTED, "")
            decide(connection, kind=BREAK_RESOLUTION, body=said, actor="anna", reason="of before",
                   now_ms=NOW_MS)  # fmt: skip
        books.run()
        assert books.breaks() == [two]
        resolve(books, one, CONVERTED)
        assert books.book() == 1
        assert books.balances()["merchant_available:m1"] == -12_50
        with pytest.raises(UserError, match="no open break"):
            resolve(books, one, CONVERTED)
        cleared = ClearedRow("later", 1, other.settlement_id, 12_50, 0, DAY)
        decide_clearing(books.engine, "simulator", [cleared], NOW_MS)
        with pytest.raises(UserError, match="is cleared by now"):
            resolve(books, two, CONVERTED)

    def test_a_person_clears_nothing_again_whose_row_was_taken_out(self, books: Books) -> None:
        """A run was killed between the decision and its breaks, so the break is open still."""
        sale = settlement(1)
        books.settle(sale)
        books.report(row_of(1, sale, amount_minor=1200))
        books.run()
        (found,) = books.breaks()
        cleared = ClearedRow(f"simulator-{DAY}", 2, sale.settlement_id, 1250, 12, DAY)
        decide_clearing(books.engine, "simulator", [cleared], NOW_MS)
        books.book()
        before = books.balances()
        with books.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM cleared_rows")
        decide_resolution(books.engine, found.break_id, ACCEPTED, actor="anna", reason="looked",
                          now_ms=NOW_MS)  # fmt: skip
        assert books.book() == 0
        assert books.balances() == before

    def test_the_fee_of_what_a_person_clears_is_told(self, books: Books) -> None:
        """Accepted was another amount; that the gateway took 20 and not 13 is told by itself."""
        announce(books.engine, TERMS)
        books.book()
        sale = settlement(1)
        books.settle(sale)
        books.report(row_of(1, sale, amount_minor=12_00, fee_minor=20))
        books.run()
        (found,) = books.breaks()
        decide_resolution(books.engine, found.break_id, ACCEPTED, actor="anna", reason="so be it",
                          now_ms=NOW_MS)  # fmt: skip
        books.book()
        assert books.balances() == {
            "gateway_receivable:simulator": 11_80, "gateway_cost:simulator": 20, "rounding:GBP": 50,
            "merchant_available:m1": -12_15, "fee_revenue:m1": -35,
        }  # fmt: skip
        assert [(b.kind, b.at_risk_minor) for b in books.breaks()] == [("fee_differs", 7)]

    def test_a_refund_told_in_two_rows_is_cleared_once(self, books: Books) -> None:
        """2.00 and 3.00 of 5.00: the first that is resolved clears the refund; the other clears
        nothing, and is a duplicate where nobody has said anything of it."""
        sale = settlement(1)
        back = settlement(1, kind="refund", amount_minor=-5_00, operation_id="r1",
                          gateway_reference="re_1")  # fmt: skip
        books.settle(sale, back)
        books.report(
            row_of(1, sale, fee_minor=0),
            row_of(2, back, amount_minor=-2_00, fee_minor=0),
            row_of(3, back, amount_minor=-3_00, fee_minor=0),
        )
        books.run()
        assert [kind for kind, _, _ in books.kinds()] == ["amount_differs", "amount_differs"]
        for found in books.breaks():
            decide_resolution(books.engine, found.break_id, CORRECTED, actor="anna",
                              reason="in two parts", now_ms=NOW_MS)  # fmt: skip
        assert books.book() == 1
        assert books.balances() == {
            "gateway_receivable:simulator": 7_50, "merchant_available:m1": -7_50,
        }  # fmt: skip
        books.run()
        assert [b.kind for b in books.breaks()] == ["duplicate"]

    def test_a_batch_of_two_reports_is_at_the_bank_once(self, books: Books) -> None:
        """12.50 on either day and one line of 25.00: each report has its own at the bank."""
        first, second = settlement(1), settlement(2)
        books.settle(first, second)
        books.report(
            row_of(1, first, fee_minor=0),
            row_of(1, second, fee_minor=0, file_id="next", report_date="2023-11-15"),
        )
        line = BankLine(line_id="1", amount_minor=25_00, currency="GBP", value_date="2023-11-16",
                        gateway="simulator", batch_id="po_1")  # fmt: skip
        decide_statement(books.engine, BankStatement("acct", "s-1", (line,)), "a", NOW_MS)
        books.run("2023-12-01")
        with reading(books.engine) as connection:
            assert [(t.report_date, t.net_minor, t.paid_minor) for t in day_totals(connection)] == [
                (DAY, 12_50, 12_50), ("2023-11-15", 12_50, 12_50),
            ]  # fmt: skip
        assert books.breaks() == []

    def test_a_line_of_nothing_holds_nothing_up(self, books: Books) -> None:
        """An older statement decided one of 0.00: it books nothing, and what follows is booked."""
        for file_id, minor in (("s-1", 0), ("s-2", 5_00)):
            line = BankLine(line_id="1", amount_minor=minor, currency="GBP", value_date=DAY,
                            gateway="simulator", batch_id="po_1")  # fmt: skip
            decide_statement(books.engine, BankStatement("acct", file_id, (line,)), "a", NOW_MS)
        assert books.book() == 1
        assert books.balances()["bank:acct"] == 5_00
        # What no balance can hold is not decided at all, whoever has read it.
        line = BankLine(line_id="1", amount_minor=10**15, currency="GBP", value_date=DAY)
        with pytest.raises(UserError, match="moves more than"):
            decide_statement(books.engine, BankStatement("acct", "s-3", (line,)), "a", NOW_MS)

    def test_a_line_of_a_payout_confirms_it_and_is_not_booked_twice(self, books: Books) -> None:
        """Debited, then credited again: paid, then returned, each by the payout's own entry. With
        another amount it is a line that nobody knows."""
        engine = books.engine
        made = submitted_payout(books)
        before = books.balances()

        def told(file_id: str, minor: int) -> dict[str, int]:
            line = BankLine(line_id="1", amount_minor=minor, currency="GBP",
                            value_date="2010-12-02", batch_id=made.payout_id)  # fmt: skip
            statement = BankStatement("main-gbp", file_id, (line,))
            decide_statement(engine, statement, "anna", NOW_MS)
            books.run("2010-12-02")
            return books.balances()

        assert told("s-0", -9_99) == before
        assert [b.kind for b in books.breaks()] == ["bank_line_unknown"]
        assert told("s-1", -10_00)["bank:main-gbp"] == -10_00
        assert told("s-1", -10_00)["bank:main-gbp"] == -10_00
        assert "bank:main-gbp" not in told("s-2", 10_00)
        assert payouts.payouts(engine)["2010-12-01"].state == "returned"
        assert len(books.breaks()) == 1

    def test_money_that_leaves_twice_for_one_payout_is_a_break(self, books: Books) -> None:
        """A payout's decision stands for one debit and one credit: what else the bank moves in its
        name, in another statement or beside it, is looked at by a person and posts nothing."""
        made = submitted_payout(books)
        assert bank_moves(books, made, "s-1", -10_00) == [("main-gbp:s-1:1", True)]
        assert bank_moves(books, made, "s-2", -10_00, -10_00) == [
            ("main-gbp:s-2:1", False), ("main-gbp:s-2:2", False),
        ]  # fmt: skip
        assert bank_moves(books, made, "s-3", 10_00, 10_00) == [
            ("main-gbp:s-3:1", True), ("main-gbp:s-3:2", False),
        ]  # fmt: skip
        # The bank sent again what had come back.
        assert bank_moves(books, made, "s-4", -10_00) == [("main-gbp:s-4:1", False)]
        assert "bank:main-gbp" not in books.balances()
        assert books.kinds() == [
            ("bank_line_unknown", f"main-gbp:{line}", 10_00)
            for line in ("s-2:1", "s-2:2", "s-3:2", "s-4:1")
        ]

    def test_a_line_on_another_account_of_ours_is_not_the_payouts(self, books: Books) -> None:
        """It is paid from `main-gbp`, and posts there: what another account was debited, or was
        sent back, would stand at that one. A person looks at it."""
        made = submitted_payout(books)
        assert bank_moves(books, made, "s-1", -10_00, on="other-gbp", number="GB00") == [
            ("other-gbp:s-1:1", False)
        ]
        assert payouts.payouts(books.engine)["2010-12-01"].state == "submitted"
        assert bank_moves(books, made, "s-2", -10_00) == [("main-gbp:s-2:1", True)]
        assert bank_moves(books, made, "s-3", 10_00, on="savings") == [("savings:s-3:1", False)]
        assert payouts.payouts(books.engine)["2010-12-01"].state == "paid"
        assert books.balances()["bank:main-gbp"] == -10_00

    @pytest.mark.parametrize(
        ("minor", "act", "post"),
        [
            (-10_00, "paid", "bank:other-gbp=-10.00:GBP bank:main-gbp=10.00:GBP"),
            (10_00, "returned", "bank:other-gbp=10.00:GBP bank:main-gbp=-10.00:GBP"),
        ],
    )
    def test_a_line_on_another_account_says_what_can_be_done(
        self, books: Books, minor: int, act: str, post: str
    ) -> None:
        """Both accounts, and the two steps after which the break is resolved: done, each account
        holds what its bank says, and the break has the words it had."""
        made = submitted_payout(books)
        bank_moves(books, made, "s-1", minor, on="other-gbp", number="GB00")
        (found,) = books.breaks()
        named = f"payout {made.payout_id} is paid from main-gbp and this is on other-gbp"
        assert named in found.detail
        for step in (
            f"`paystream payouts {act} {made.payout_id}`",
            f"`paystream ledger post {post}`",
        ):
            assert step in found.detail
        how = {"paid": "confirm", "returned": "return"}[act]
        payouts.move(books.engine, made, how, "2010-12-02T08:00")
        payouts.post(books.engine, "2010-12-02T08:00", Posting("bank:other-gbp", "GBP", minor),
                     Posting("bank:main-gbp", "GBP", -minor))  # fmt: skip
        resolve(books, found, CORRECTED)
        books.run("2010-12-03")
        assert books.kinds() == []
        if act == "paid":
            assert books.balances().get("bank:main-gbp", 0) == 0
            assert books.balances()["bank:other-gbp"] == minor

    def test_only_the_account_is_said_to_be_why(self, books: Books) -> None:
        """Of another amount, on whatever account, nothing is to be confirmed; and the payout's own
        account, by its name or its number, is not the reason."""
        made = submitted_payout(books)
        iban = "GB33BUKB20201555555555"
        bank_moves(books, made, "s-1", -9_99, on="other-gbp")
        bank_moves(books, made, "s-2", -9_99)
        bank_moves(books, made, "s-3", -9_99, on=iban, number=iban)
        said = {b.gateway: b.detail for b in books.breaks()}
        assert "on other-gbp, so it is not taken for the payout's, which is of GBP 10.00: ask" in (
            said.pop("other-gbp")
        )
        assert set(said) == {"main-gbp", iban}
        assert not any("is paid from" in each for each in said.values())

    def test_a_payouts_account_is_known_by_the_banks_number_too(self, books: Books) -> None:
        """Where no rule names the account of the statement as the terms do."""
        made = submitted_payout(books)
        iban = "GB33BUKB20201555555555"
        assert bank_moves(books, made, "s-1", -10_00, on=iban, number=iban) == [
            (f"{iban}:s-1:1", True)
        ]
        spaced = "gb33 BUKB 2020 1555 5555 55"
        assert bank_moves(books, made, "s-2", 10_00, on="main", number=spaced) == [
            ("main:s-2:1", True)
        ]

    def test_a_payout_that_was_settled_from_another_account_stays_so(self, books: Books) -> None:
        """As earlier versions decided: what follows the decision does not judge it again."""
        made = submitted_payout(books)
        line = BankLine(line_id="1", amount_minor=-10_00, currency="GBP", value_date="2010-12-02",
                        batch_id=made.payout_id, payout=True)  # fmt: skip
        payouts.move(books.engine, made, "confirm", "2010-12-02T08:00")
        with books.engine.begin() as connection:
            body = statement_body(BankStatement("other-gbp", "s-1", (line,)))
            decide(connection, kind=BANK_STATEMENT, body=body, actor="anna",
                   reason="statement s-1", now_ms=NOW_MS)  # fmt: skip
        for _ in range(2):
            books.run("2010-12-02")
            assert books.kinds() == []
            metadata.drop_all(books.engine)
            prepare(books.engine)
        assert bank_moves(books, made, "s-2", -10_00) == [("main-gbp:s-2:1", False)]

    @pytest.mark.parametrize("how", ["DELETE FROM", "DROP TABLE"])
    def test_a_second_debit_is_a_break_though_the_first_ones_row_was_taken_out(
        self, books: Books, how: str
    ) -> None:
        """A statement may come before the next run puts the row back, and its decision stays."""
        made = submitted_payout(books)
        assert bank_moves(books, made, "s-1", -10_00) == [("main-gbp:s-1:1", True)]
        with books.engine.begin() as connection:
            connection.exec_driver_sql(f"{how} bank_lines")
        prepare(books.engine)
        assert bank_moves(books, made, "s-2", -10_00) == [("main-gbp:s-2:1", False)]

    def test_the_line_of_what_a_person_has_confirmed_is_the_payouts(self, books: Books) -> None:
        """`payouts paid` was faster than the statement: its line comes, and no second one."""
        made = submitted_payout(books)
        payouts.move(books.engine, made, "confirm", "2010-12-02T08:00")
        assert bank_moves(books, made, "s-1", -10_00, -10_00) == [
            ("main-gbp:s-1:1", True), ("main-gbp:s-1:2", False),
        ]  # fmt: skip
        assert books.balances()["bank:main-gbp"] == -10_00

    def test_a_debit_of_what_a_person_called_returned_is_a_break(self, books: Books) -> None:
        """It was never paid, says `payouts returned`; the bank has paid it all the same. A payment
        whose return came first is told late, and no break."""
        made = submitted_payout(books)
        payouts.move(books.engine, made, "return", "2010-12-02T08:00")
        assert bank_moves(books, made, "s-1", -10_00) == [("main-gbp:s-1:1", False)]

    @pytest.mark.parametrize("minors", [(-10_00, 10_00), (10_00, -10_00)])
    def test_what_a_person_called_returned_is_explained_by_both_of_its_lines(
        self, books: Books, minors: tuple[int, int]
    ) -> None:
        """Of what was called returned before its debit was told, neither line moves the books, and
        together they are nothing: the second one ends the first one's break. A third is one."""
        made = submitted_payout(books)
        payouts.move(books.engine, made, "return", "2010-12-02T08:00")
        before = books.balances()
        first, second = minors
        assert bank_moves(books, made, "s-1", first) == [("main-gbp:s-1:1", False)]
        assert bank_moves(books, made, "s-2", second) == [("main-gbp:s-2:1", True)]
        assert books.kinds() == []
        (ended,) = books.breaks(state="resolved")
        assert (ended.subject, ended.resolution) == ("main-gbp:s-1:1", "later_evidence")
        assert bank_moves(books, made, "s-3", first) == [("main-gbp:s-3:1", False)]
        assert [b.subject for b in books.breaks()] == ["main-gbp:s-3:1"]
        assert books.balances() == before

    def test_lines_of_another_amount_or_account_are_not_explained_by_one_another(
        self, books: Books
    ) -> None:
        """What the bank means by them is for a person to ask."""
        made = submitted_payout(books)
        payouts.move(books.engine, made, "return", "2010-12-02T08:00")
        lines = [bank_moves(books, made, "s-1", -9_00, 9_00),
                 bank_moves(books, made, "s-2", -10_00, 10_00, on="savings"),
                 bank_moves(books, made, "s-3", 10_00)]  # fmt: skip
        assert [known for some in lines for _, known in some] == [False] * 5

    def test_a_payout_that_was_withdrawn_and_debited_is_a_question_for_the_bank(
        self, books: Books
    ) -> None:
        """Nobody asked the bank for it, so what came back of it is told as well."""
        payouts.announce(books.engine)
        payouts.receive(books.engine, 10_00, "2010-12-01T10:00")
        payouts.create(books.engine, "2010-12-01", "2010-12-01T18:00")
        (made,) = payouts.payouts(books.engine).values()
        payouts.move(books.engine, made, "withdraw", "2010-12-01T18:05")
        moved = bank_moves(books, made, "s-1", -10_00, 10_00)
        assert [known for _, known in moved] == [False, False]

    def test_what_was_corrected_of_a_debit_is_asked_about_when_it_comes_back(
        self, books: Books
    ) -> None:
        """An entry by hand was posted for the debit; its credit makes it one too many."""
        made = submitted_payout(books)
        payouts.move(books.engine, made, "return", "2010-12-02T08:00")
        bank_moves(books, made, "s-1", -10_00)
        (found,) = books.breaks()
        payouts.post(books.engine, "2010-12-02T08:00", Posting("suspense:bank", "GBP", 10_00),
                     Posting("bank:main-gbp", "GBP", -10_00))  # fmt: skip
        resolve(books, found, CORRECTED)
        bank_moves(books, made, "s-2", 10_00)
        (again,) = books.breaks()
        assert (again.break_id, again.detail) == (
            found.break_id, found.detail + EXPLAINED_AFTERWARDS,
        )  # fmt: skip

    def test_a_payment_that_is_told_after_its_return_is_the_payouts(self, books: Books) -> None:
        """Both lines came to nothing, and so do the books. What moves besides is looked at."""
        made = submitted_payout(books)
        assert bank_moves(books, made, "s-1", 10_00) == [("main-gbp:s-1:1", True)]
        assert bank_moves(books, made, "s-2", -10_00) == [("main-gbp:s-2:1", True)]
        assert bank_moves(books, made, "s-3", -10_00, 10_00) == [
            ("main-gbp:s-3:1", False), ("main-gbp:s-3:2", False),
        ]  # fmt: skip
        assert "bank:main-gbp" not in books.balances()

    def test_what_was_closed_counts_under_the_next_day(self, books: Books) -> None:
        """A report of a day that is closed is booked under the first one after it."""
        sale = settlement(1)
        books.settle(sale)
        books.report(row_of(1, sale))
        close(books.engine, "2023-11-30", SETTLED_MS + 30 * 86_400_000)
        books.run()
        with reading(books.engine) as connection:
            day = connection.execute(
                text("SELECT booked_date FROM journal_entries WHERE kind = 'clearing'")
            ).scalar_one()
        assert day == "2023-12-01"

    def test_tables_that_were_dropped_are_made_again_of_what_is_known(self, books: Books) -> None:
        """Rows from their topic, clearings and resolutions from the decisions; nothing twice."""
        sales = [settlement(n) for n in range(1, 4)]
        books.settle(*sales)
        rows = [row_of(n, sale) for n, sale in enumerate(sales[:2], 1)]
        books.report(*rows)
        books.run("2023-11-17")
        decide_resolution(books.engine, books.breaks()[0].break_id, ACCEPTED, actor="b",
                          reason="lost", now_ms=NOW_MS)  # fmt: skip
        books.book()
        before = books.balances()
        metadata.drop_all(books.engine)
        prepare(books.engine)
        books.taken = 0
        books.report(*rows)
        assert books.run("2023-11-17").cleared == 0
        assert books.balances() == before
        assert books.breaks() == []
        assert [b.reason for b in books.breaks(state="resolved")] == ["lost"]

    @pytest.mark.parametrize("how", ["DELETE FROM", "DROP TABLE"])
    @pytest.mark.parametrize("table", ["cleared_rows", "bank_lines"])
    def test_rows_that_somebody_took_out_of_a_table_are_put_back(
        self, books: Books, how: str, table: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What they say was decided: it is not decided, and not booked, a second time."""
        sales = [settlement(n) for n in range(1, 4)]
        held = settlement(1, kind="credit", amount_minor=-425, operation_id="c1", gateway="none",
                          gateway_reference="")  # fmt: skip
        books.settle(*sales, held)
        books.report(*(row_of(n, sale) for n, sale in enumerate(sales, 1)))
        books.run()
        assert decide_releases(books.engine, NOW_MS) == 1
        lines = (line_of(1), line_of(2))
        decide_statement(books.engine, BankStatement("main", "s1", lines), "bank", NOW_MS)
        books.book()
        before, kept, decided = books.balances(), books.rows_of(table), books.decided()
        with books.engine.begin() as connection:
            connection.exec_driver_sql(f"{how} {table}")
        prepare(books.engine)
        assert books.run().cleared == 0
        assert decide_releases(books.engine, NOW_MS) == 0
        assert (books.balances(), books.decided()) == (before, decided)
        assert books.rows_of(table) == kept
        assert f"{len(kept)} rows of decisions" in caplog.text
        caplog.clear()
        books.run()
        assert not caplog.messages

    @pytest.mark.parametrize("how", ["DELETE FROM", "DROP TABLE"])
    def test_all_decisions_are_followed_again_where_nobody_knows_the_last_one(
        self, books: Books, how: str
    ) -> None:
        """Followed into the tables that hold them: nothing is there twice, and nothing differs."""
        sales = [settlement(n) for n in range(1, 4)]
        held = settlement(1, kind="credit", amount_minor=-425, operation_id="c1", gateway="none",
                          gateway_reference="")  # fmt: skip
        books.settle(*sales, held)
        books.report(*(row_of(n, sale) for n, sale in enumerate(sales[:2], 1)))
        books.run("2023-11-20")
        assert decide_releases(books.engine, NOW_MS) == 1
        decide_statement(
            books.engine, BankStatement("main", "s1", (line_of(1), line_of(2))), "bank", NOW_MS
        )
        decide_resolution(books.engine, books.breaks()[0].break_id, ACCEPTED, actor="bert",
                          reason="lost", now_ms=NOW_MS)  # fmt: skip
        books.book()
        books.run("2023-11-20")
        tables = ("cleared_rows", "bank_lines", "followed_decisions", "breaks")
        before, decided = books.balances(), books.decided()
        kept = {table: books.rows_of(table) for table in tables}
        with books.engine.begin() as connection:
            connection.exec_driver_sql(f"{how} followed_decisions")
        prepare(books.engine)
        books.run("2023-11-20")
        assert (books.balances(), books.decided()) == (before, decided)
        assert {table: books.rows_of(table) for table in tables} == kept

    def test_some_of_a_decisions_rows_are_put_back_as_well(self, books: Books) -> None:
        sales = [settlement(n) for n in range(1, 4)]
        books.settle(*sales)
        books.report(*(row_of(n, sale) for n, sale in enumerate(sales, 1)))
        books.run()
        kept = books.rows_of("cleared_rows")
        with books.engine.begin() as connection:
            connection.execute(text("DELETE FROM cleared_rows WHERE row_number = 2"))
        assert books.run().cleared == 0
        assert books.rows_of("cleared_rows") == kept

    def test_a_decision_that_says_what_an_earlier_one_has_said_is_passed_over(
        self, books: Books, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As a ledger has them whose table was emptied under an earlier version. What is new in it
        is booked, the tables can be made anew, and the books stay whole."""
        sales = [settlement(n) for n in range(1, 4)]
        books.settle(*sales)
        rows = [ClearedRow("f", n, s.settlement_id, 1250, 12, DAY) for n, s in enumerate(sales, 1)]
        decide_clearing(books.engine, "simulator", rows[:2], NOW_MS)
        assert books.book() == 2
        with books.engine.begin() as connection:
            decide(connection, kind=CLEARING, body=clearing_body("simulator", rows), actor="r",
                   reason="again", now_ms=NOW_MS + 1)  # fmt: skip
        assert books.book() == 1
        assert "2 of its 3 entries were booked by an earlier one" in caplog.text
        assert books.run().cleared == 0
        metadata.drop_all(books.engine)
        prepare(books.engine)
        assert books.run().cleared == 0
        assert [row[0] for row in books.rows_of("cleared_rows")] == sorted(
            sale.settlement_id for sale in sales
        )
        with reading(books.engine) as connection:
            assert verify_books(connection).damages == ()

    def test_a_release_that_was_decided_again_on_another_day_is_passed_over(
        self, books: Books
    ) -> None:
        """The day is that of deciding; the money is the same."""
        books.settle(
            settlement(1, kind="credit", amount_minor=-425, operation_id="c1", gateway="none",
                       gateway_reference="")
        )  # fmt: skip
        assert decide_releases(books.engine, NOW_MS) == 1
        assert books.book() == 1
        before = books.balances()
        with books.engine.begin() as connection:
            connection.execute(text("DELETE FROM cleared_rows"))
        # As an earlier version did, which put nothing back.
        assert decide_releases(books.engine, NOW_MS + 86_400_000) == 1
        assert books.book() == 0
        assert books.balances() == before

    @pytest.mark.parametrize("what", ["statement", "clearing"])
    def test_what_is_adopted_while_a_run_begins_is_followed_and_not_put_back(
        self, books: Books, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
        what: str,
    ) -> None:  # fmt: skip
        """A ledger's worker starts beside a run: nobody took anything out of a table."""
        sale = settlement(1)
        books.settle(sale)
        if what == "statement":
            lines = (line_of(1), line_of(2))
            decide_statement(books.engine, BankStatement("main", "s1", lines), "bank", NOW_MS)
        else:
            row = ClearedRow("f", 1, sale.settlement_id, 1250, 12, DAY)
            decide_clearing(books.engine, "simulator", [row], NOW_MS)
        with books.engine.begin() as connection:
            # Not followed yet, as just after they were adopted.
            for table in ("cleared_rows", "bank_lines", "followed_decisions"):
                connection.exec_driver_sql(f"DELETE FROM {table}")
        monkeypatch.setattr(following, "follow", lambda _connection: 0)
        following.catch_up(books.engine)
        monkeypatch.undo()
        assert not caplog.messages
        books.run()
        books.run()
        assert not caplog.messages

    def test_books_that_cleared_a_sale_twice_once_are_reconciled_on(
        self, books: Books, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Under an earlier version, by another row, while the table was empty. It is told."""
        sales = [settlement(n) for n in range(1, 3)]
        books.settle(*sales)
        row = ClearedRow("f", 1, sales[0].settlement_id, 1250, 12, DAY)
        for each in (row, replace(row, file_id="g")):
            decide_clearing(books.engine, "simulator", [each], NOW_MS)
            books.book()
            with books.engine.begin() as connection:
                connection.execute(text("DELETE FROM cleared_rows"))
        books.report(row_of(2, sales[1]))
        assert books.run().cleared == 1
        assert "decision 2 clears by another row what an earlier one has cleared" in caplog.text

    def test_a_decision_that_contradicts_an_earlier_one_is_not_booked(self, books: Books) -> None:
        sale = settlement(1)
        books.settle(sale)
        row = ClearedRow("f", 1, sale.settlement_id, 1250, 12, DAY)
        decide_clearing(books.engine, "simulator", [row], NOW_MS)
        books.book()
        before = books.balances()
        with books.engine.begin() as connection:
            other = clearing_body("simulator", [replace(row, fee_minor=13)])
            decide(connection, kind=CLEARING, body=other, actor="r", reason="", now_ms=NOW_MS)
        with pytest.raises(UserError, match="says otherwise what an earlier one has booked"):
            books.book()
        assert books.balances() == before

    @pytest.mark.parametrize("sealed", [True, False])
    def test_an_entry_that_a_decision_of_several_does_not_post_is_found(
        self, books: Books, sealed: bool
    ) -> None:
        """The database takes it, since such a decision posts several: by an id of nobody's, and by
        that of a row that moves nothing. A row that only confirms, as the second here, posts
        nothing."""
        sale, held = settlement(1), settlement(2, kind="dispute", amount_minor=-1000)
        credit = settlement(3, kind="credit", amount_minor=-425, operation_id="c1",
                            gateway="none", gateway_reference="")  # fmt: skip
        books.settle(sale, held, credit)
        rows = [ClearedRow("f", n, x.settlement_id, x.amount_minor, 0, DAY)
                for n, x in enumerate((sale, held), 1)]  # fmt: skip
        decide_clearing(books.engine, "simulator", rows, NOW_MS)
        decide_releases(books.engine, NOW_MS)
        lines = (line_of(1), line_of(2, payout=True))
        decide_statement(books.engine, BankStatement("main", "s1", lines), "bank", NOW_MS)
        assert books.book() == 4
        if sealed:
            while seal(books.engine):
                pass
        wanted = []
        for sequence, entry_id, kind in (
            (1, "clearing:simulator:f:2", "clearing"),
            (1, "clearing:simulator:f:3", "clearing"),
            (2, "release:settlement:mine", "release"),
            (3, "bank:main:s1:9", "bank_receipt"),
        ):
            with reading(books.engine) as connection:
                assert verify_books(connection).damages == () or wanted
                offset, part = connection.execute(
                    text("SELECT d.published_offset, max(e.source_part) + 1 "
                         "FROM ledger_decisions d JOIN journal_entries e "
                         "ON e.source_offset = d.published_offset AND e.source_topic = :topic "
                         "WHERE d.sequence = :n GROUP BY 1"),
                    {"n": sequence, "topic": EVENTS.topic},
                ).one()  # fmt: skip
            book_by_hand(books.engine, 500 + len(wanted), PAIR, of_no_settlement(entry_id, kind),
                         offset=offset, part=part, topic=EVENTS.topic)  # fmt: skip
            wanted.append((f"ledger_decisions {sequence}", entry_id))
        if sealed:
            while seal(books.engine):
                pass
        with reading(books.engine) as connection:
            damages = verify_books(connection).damages
        named = [(d.place, d.detail.rpartition(" ")[2]) for d in damages
                 if d.name == "decision_posted_otherwise"]  # fmt: skip
        unsealed = [d.detail for d in damages if d.name == "entry_unsealed"]
        assert sorted(named + [w for w in wanted if w[1] in unsealed]) == sorted(wanted)
        assert {d.name for d in damages} <= {
            "decision_posted_otherwise", "balance_differs", "entry_unsealed",
        }  # fmt: skip

    def test_two_runs_cannot_clear_the_same(self, books: Books) -> None:
        """Of two decisions about one settlement, or one row, the second is not made."""
        sales = [settlement(n) for n in range(1, 3)]
        books.settle(*sales)
        first = ClearedRow("f", 1, sales[0].settlement_id, 1250, 0, DAY)
        decide_clearing(books.engine, "simulator", [first], NOW_MS)
        for again in (
            ClearedRow("f", 2, sales[0].settlement_id, 1250, 0, DAY),
            ClearedRow("f", 1, sales[1].settlement_id, 1250, 0, DAY),
        ):
            with pytest.raises(IntegrityError):
                decide_clearing(books.engine, "simulator", [again], NOW_MS)
        assert books.book() == 1

    def test_a_ledger_that_lags_does_not_book_what_it_has_not(self, books: Books) -> None:
        """A clearing of a settlement that is still to be booked waits, and is booked afterwards."""
        sale = settlement(1)
        row = ClearedRow("f", 1, sale.settlement_id, 1250, 12, DAY)
        decide_clearing(books.engine, "simulator", [row], NOW_MS)
        with pytest.raises(UserError, match="let the ledger catch up"):
            books.book()
        books.settle(sale)
        assert books.book() == 1

    @pytest.mark.parametrize("together", [1, 2, 1_000])
    def test_each_duplicate_names_the_row_that_cleared_its_own_settlement(
        self, books: Books, monkeypatch: pytest.MonkeyPatch, together: int
    ) -> None:
        """However many rows are looked up together, and whatever lies between them."""
        monkeypatch.setattr(matching, "_LEFT_MAX", together)
        sales = [settlement(n) for n in range(1, 4)]
        books.settle(*sales)
        books.report(*(row_of(n, sale) for n, sale in enumerate(sales, 1)))
        books.run("2023-11-17")
        again = [row_of(n, sale, file_id="again") for n, sale in enumerate(sales, 1)]
        books.report(*again, row_of(4, settlement(9), file_id="again"))
        done = books.run("2023-11-17")
        assert {
            b.row_number: b.detail.rpartition("by row ")[2] for b in books.breaks(kind="duplicate")
        } == {n: f"simulator-{DAY}:{n} already" for n in (1, 2, 3)}
        assert [b.row_number for b in books.breaks(kind="missing_here")] == [4]
        assert [row.row_number for row in done.untold] == [4]
        assert len({b.break_id for b in done.breaks}) == len(done.breaks)

    def test_more_breaks_than_are_published_at_once_are_each_published(self, books: Books) -> None:
        """Page after page by their ids, and one that changes meanwhile from the beginning again."""
        books.settle(*(settlement(n) for n in range(1, 6)))
        books.run("2023-11-20")
        seen: list[str] = []
        with books.engine.begin() as connection:
            while page := unpublished_breaks(connection, 2, seen[-1] if seen else ""):
                mark_published(connection, page)
                seen += [each.break_id for each in page]
            assert unpublished_breaks(connection, 2) == []
        assert seen == sorted({b.break_id for b in books.breaks()})
        assert len(seen) == 5

    def test_payments_are_told_once_by_a_row(self, books: Books) -> None:
        """A row of ours without a settlement is evidence; once told it is not told again."""
        books.report(row_of(1, settlement(1)), row_of(2, settlement(2), payment_id=""))
        done = books.run()
        assert [row.row_number for row in done.untold] == [1]
        mark_told(books.engine, done.untold)
        assert books.run().untold == []
        assert books.breaks() == []

    def test_breaks_are_published_as_they_change(self, books: Books) -> None:
        """Each version once; what changes while it is published is published again."""
        books.settle(settlement(1))
        books.run("2023-11-20")
        with books.engine.begin() as connection:
            (first,) = unpublished_breaks(connection, 10)
            mark_published(connection, [first])
            assert unpublished_breaks(connection, 10) == []
        decide_resolution(books.engine, first.break_id, ACCEPTED, actor="b", reason="r",
                          now_ms=NOW_MS)  # fmt: skip
        with books.engine.begin() as connection:
            (second,) = unpublished_breaks(connection, 10)
        assert (second.version, second.state) == (2, "resolved")
        assert first.break_id == break_id("missing_at_gateway", "simulator", first.subject)


def submitted_payout(books: Books) -> Payout:
    """One of 10.00 that the bank was asked to make."""
    payouts.announce(books.engine)
    payouts.receive(books.engine, 10_00, "2010-12-01T10:00")
    payouts.create(books.engine, "2010-12-01", "2010-12-01T18:00")
    (made,) = payouts.payouts(books.engine).values()
    payouts.move(books.engine, made, "approve", "2010-12-01T18:05")
    payouts.submit(books.engine, "2010-12-01T18:10")
    return made


def bank_moves(
    books: Books, made: Payout, file_id: str, *minors: int, on: str = "main-gbp", number: str = ""
) -> list[tuple[str, bool]]:
    """A statement whose lines name a payout, and a run; each line, and whether it is taken for the
    payout's."""
    lines = tuple(
        BankLine(line_id=str(n), amount_minor=minor, currency="GBP", value_date="2010-12-02",
                 batch_id=made.payout_id)
        for n, minor in enumerate(minors, 1)
    )  # fmt: skip
    statement = BankStatement(on, file_id, lines, number=number)
    decide_statement(books.engine, statement, "anna", NOW_MS)
    books.run("2010-12-02")
    unknown = {b.subject for b in books.breaks(kind="bank_line_unknown")}
    subjects = [f"{on}:{file_id}:{line.line_id}" for line in lines]
    return [(subject, subject not in unknown) for subject in subjects]


def booked_side(**changed: Any) -> BookedSide:
    fields: dict[str, Any] = {
        "settlement_id": "s", "gateway": "g", "gateway_reference": "r", "kind": "capture",
        "payment_id": "p", "operation_id": "o", "merchant_id": "m", "order_id": "o",
        "currency": "GBP", "amount_minor": 100, "cost_minor": 1, "priced": True,
        "settled_at_ms": 1, "place": "", **changed,
    }  # fmt: skip
    return BookedSide(**fields)


def reported_side(number: int = 1, **changed: Any) -> ReportedSide:
    fields: dict[str, Any] = {
        "gateway": "g", "gateway_reference": "r", "kind": "capture", "payment_id": "p",
        "operation_id": "o", "attempt": 1, "file_id": "f", "row_number": number,
        "report_date": DAY, "merchant_id": "m", "order_id": "o", "currency": "GBP",
        "amount_minor": 100, "fee_minor": 1, "batch_id": "b", "operation_kind": "charge",
        "told": 0, "place": "", **changed,
    }  # fmt: skip
    return ReportedSide(**fields)


def paired(
    booked: Sequence[BookedSide], rows: Sequence[ReportedSide]
) -> tuple[list[tuple[str, int]], list[str], list[int]]:
    found = pair(booked, rows)
    return (
        [(b.settlement_id, r.row_number) for b, r in found.pairs],
        [b.settlement_id for b in found.booked],
        [r.row_number for r in found.reported],
    )

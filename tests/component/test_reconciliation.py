"""Reports against the books: matching, what is due, rules, and the books on SQLite."""

from __future__ import annotations

import resource
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError

from pipeline.domain.due_days import business_days_after, last_day_due
from pipeline.domain.ids import reversal_operation_id
from pipeline.domain.matching import Tolerance, differences, pair
from pipeline.domain.model import LedgerEvent
from pipeline.domain.reconciliation_rules import read_rules
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.no_room import told_where_no_room
from pipeline.ledger.reconciliation import clearing
from pipeline.ledger.reconciliation.clearing import counts
from pipeline.ledger.reconciliation.matching import Matched, for_sorting
from pipeline.ledger.reconciliation.tables import clearing_rows
from pipeline.ledger.reconciliation.totals import shared
from tests.support.reconciliation import (
    NAMES_NOTHING,
    Books,
    ReconciliationSuite,
    booked_side,
    paired,
    reported_side,
    row_of,
    settlement,
)
from tests.support.unasked_charges import UnaskedChargesSuite


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


class TestOnSqlite(ReconciliationSuite):
    pass


class TestUnaskedChargesOnSqlite(UnaskedChargesSuite):
    pass


def test_a_look_leaves_its_connection_as_it_was(url: str) -> None:
    """It takes little of SQLite's memory, which each of its sorts takes once more; who is given the
    connection next has all of it again, whatever the look ended with."""
    engine = open_ledger(url)
    with reading(engine) as connection:
        before = connection.exec_driver_sql("PRAGMA cache_size").scalar_one()
        with suppress(UserError), for_sorting(connection):
            assert connection.exec_driver_sql("PRAGMA cache_size").scalar_one() > before
            raise UserError("ended")
        assert connection.exec_driver_sql("PRAGMA cache_size").scalar_one() == before < 0
    engine.dispose()


def test_nothing_reads_the_books_while_matches_are_decided(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as somebody reads them as they were, SQLite folds nothing of what is written since
    into its file: its log would grow with every decision of a run."""
    decide = clearing.decide_clearing
    left: list[int] = []

    def decide_and_fold(engine: Engine, *given: Any) -> LedgerEvent:
        event = decide(engine, *given)
        with closing(sqlite3.connect(str(engine.url.database))) as other:
            _, written, folded = other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        left.append(written - folded)
        return event

    monkeypatch.setattr(clearing, "decide_clearing", decide_and_fold)
    monkeypatch.setattr(clearing, "ROWS_MAX", 1)
    engine = open_ledger(url)
    books = Books(engine)
    sales = [settlement(n) for n in range(1, 4)]
    books.settle(*sales)
    books.report(*(row_of(n, sale) for n, sale in enumerate(sales, 1)))
    assert books.run().cleared == 3
    assert left == [0, 0, 0]
    engine.dispose()


def test_a_run_without_a_temporary_directory_says_what_to_do(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one sentence, and nothing is decided."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    engine = open_ledger(url)
    books = Books(engine)
    sale = settlement(1)
    books.settle(sale)
    books.report(row_of(1, sale))
    with pytest.raises(UserError, match="no such file or directory; set TMPDIR to a directory"):
        books.run()
    with reading(engine) as connection:
        assert counts(connection) == (1, 0)
    engine.dispose()


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """Meanwhile no file of this process grows beyond that, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_while_rows_are_sorted_is_told_and_changes_nothing(url: str) -> None:
    """SQLite sorts more than its memory holds in files of its own."""
    engine = open_ledger(url)
    books = Books(engine)
    sale = settlement(1)
    books.settle(sale)
    books.report(row_of(1, sale))
    columns = [column.name for column in clearing_rows.columns]
    other = {"row_number": "i", "gateway_reference": "'other ' || i", "order_id": "w"}
    told = ", ".join(other.get(each, each) for each in columns)
    with engine.begin() as connection:
        # 40 MB of rows, of which 32 MiB are sorted in memory.
        connection.exec_driver_sql(
            "WITH RECURSIVE n(i, w) AS (SELECT 2, hex(zeroblob(5000)) UNION ALL SELECT i + 1, w "
            f"FROM n LIMIT 4000) INSERT INTO clearing_rows SELECT {told} FROM clearing_rows, n"
        )
    with (
        files_up_to(16 << 20),
        pytest.raises(UserError, match=r"no room .* \(disk I/O error\): .* run it again"),
        told_where_no_room(),
    ):
        books.run()
    with reading(engine) as connection:
        assert counts(connection) == (4_001, 0)
    assert books.breaks() == []
    done = books.run()
    assert (done.cleared, done.waiting) == (1, 4_000)
    engine.dispose()


def test_a_disk_that_fills_up_with_what_matches_is_told_before_any_of_it_is_decided(
    url: str,
) -> None:
    """It is kept beside the books until all of it is matched, and written in pieces."""
    engine = open_ledger(url)
    books = Books(engine)
    match = Matched(booked_side(), reported_side(), ())

    def decide_all() -> None:
        with clearing.Clearer(engine, 0) as clearer:
            for _ in range(1_000):
                clearer.add(match)
            clearer.decide()

    with (
        files_up_to(4_096),
        pytest.raises(UserError, match="kept in a temporary file: file too large; set TMPDIR"),
    ):
        decide_all()
    assert books.book() == 0
    engine.dispose()


def test_another_error_of_a_database_is_no_full_disk(url: str) -> None:
    """A sentence about room would hide what is wrong in the program."""
    engine = open_ledger(url)
    with (
        pytest.raises(DBAPIError, match="no such table"),
        told_where_no_room(),
        reading(engine) as connection,
    ):
        connection.exec_driver_sql("SELECT * FROM nowhere")
    with pytest.raises(sqlite3.ProgrammingError), told_where_no_room():
        raise sqlite3.ProgrammingError("closed")
    engine.dispose()


def test_both_sides_are_read_as_they_were_written(url: str) -> None:
    """Not in the order of an index, which would come to a million rows one by one."""
    engine = open_ledger(url)
    books = Books(engine)
    said: list[str] = []

    @event.listens_for(engine, "checkout")
    def trace(connection: Any, *_: object) -> None:
        connection.set_trace_callback(said.append)

    books.run()
    with closing(sqlite3.connect(str(engine.url.database))) as other:
        first = [
            other.execute(f"EXPLAIN QUERY PLAN {asked}").fetchone()[3]
            for asked in said
            if "ORDER BY +" in asked
        ]
    assert first == ["SCAN e", "SCAN r"]
    engine.dispose()


def test_a_row_belongs_to_its_operation_whatever_the_amounts() -> None:
    """Two settlements of one reference: each row finds its own although the amounts are crossed."""
    booked = [booked_side(settlement_id="a", operation_id="o1", amount_minor=100),
              booked_side(settlement_id="b", operation_id="o2", amount_minor=200)]  # fmt: skip
    rows = [reported_side(1, operation_id="o2", amount_minor=100),
            reported_side(2, operation_id="o1", amount_minor=200)]  # fmt: skip
    assert paired(booked, rows) == ([("b", 1), ("a", 2)], [], [])


def test_a_row_of_another_operation_or_payment_is_not_paired() -> None:
    """The same gateway's reference under another operation is not the same movement."""
    assert paired([booked_side()], [reported_side(operation_id="x")]) == ([], ["s"], [1])
    assert paired([booked_side()], [reported_side(payment_id="x")]) == ([], ["s"], [1])


def test_what_succeeded_too_late_is_the_same_movement() -> None:
    """It is settled under the operation that gives it back; the report names the charge's own."""
    late = booked_side(operation_id="late-o-1")
    assert paired([late], [reported_side()]) == ([("s", 1)], [], [])
    assert paired([late], [reported_side(attempt=2)]) == ([], ["s"], [1])
    # Where that would be the order's own id, it is another one.
    order = {"order_id": "late-o-1"}
    own = reversal_operation_id("late-o-1", "o", 1)
    assert own != "late-o-1"
    named = booked_side(operation_id=own, **order)
    assert paired([named], [reported_side(**order)]) == ([("s", 1)], [], [])


@pytest.mark.parametrize("first", [1, 2])
def test_what_an_attempt_did_too_late_is_no_other_attempts(first: int) -> None:
    """Two captures of one authorization, by whose id the gateway knows both: the first attempt's
    was heard of too late. In whichever order the report has their rows, both are found."""
    booked = [booked_side(settlement_id="second", settled_at_ms=1),
              booked_side(settlement_id="late", settled_at_ms=2,
                          operation_id="late-o-1")]  # fmt: skip
    rows = [reported_side(first, attempt=1), reported_side(3 - first, attempt=2)]
    assert dict(paired(booked, rows)[0]) == {"late": first, "second": 3 - first}


@pytest.mark.parametrize("first", [1, 2])
def test_a_row_that_names_nothing_leaves_what_a_row_of_its_payment_can_be_about(first: int) -> None:
    """In whichever order the report has them: the other one can be about nothing else."""
    booked = [booked_side(settlement_id="a", settled_at_ms=1),
              booked_side(settlement_id="b", settled_at_ms=2, payment_id="q")]  # fmt: skip
    rows = [reported_side(first, **NAMES_NOTHING), reported_side(3 - first, operation_id="")]
    assert dict(paired(booked, rows)[0]) == {"a": 3 - first, "b": first}


@pytest.mark.parametrize("first", [1, 2])
def test_a_row_that_names_nothing_leaves_a_charge_nobody_asked_for(first: int) -> None:
    """To a row of it that names what is not settled here, which can be about nothing else."""
    booked = [booked_side(settlement_id="unasked", unasked=True, operation_id="u"),
              booked_side(settlement_id="b", settled_at_ms=2)]  # fmt: skip
    rows = [reported_side(first, **NAMES_NOTHING), reported_side(3 - first, operation_id="x")]
    assert dict(paired(booked, rows)[0]) == {"unasked": 3 - first, "b": first}


def test_disputes_are_paired_as_they_happened() -> None:
    """Rows of a dispute name the payment and no operation; the second round is the second row."""
    booked = [booked_side(settlement_id="second", settled_at_ms=2, operation_id="d-2"),
              booked_side(settlement_id="first", settled_at_ms=1, operation_id="d")]  # fmt: skip
    rows = [reported_side(9, operation_id="", report_date="2023-11-15"),
            reported_side(3, operation_id="")]  # fmt: skip
    assert paired(booked, rows) == ([("first", 3), ("second", 9)], [], [])


def test_a_row_without_a_reference_leaves_what_another_row_names() -> None:
    """Wherever either stands, and although the row that names it has another amount."""
    booked = [booked_side(settlement_id="a", operation_id="o1"),
              booked_side(settlement_id="b", operation_id="o2", settled_at_ms=2)]  # fmt: skip
    for amount_minor in (100, 101):
        for first, second in ((1, 2), (2, 1)):
            rows = [
                reported_side(first, **NAMES_NOTHING),
                reported_side(second, operation_id="o1", amount_minor=amount_minor),
            ]
            pairs, here, there = paired(booked, rows)
            assert sorted(pairs) == [("a", second), ("b", first)]
            assert (here, there) == ([], [])
    both_differ = [reported_side(1, **NAMES_NOTHING, amount_minor=90),
                   reported_side(2, operation_id="o1", amount_minor=90)]  # fmt: skip
    assert sorted(paired(booked, both_differ)[0]) == [("a", 2), ("b", 1)]


def test_a_row_without_a_reference_can_be_the_one_that_agrees() -> None:
    """If there is nothing else that it could be about; of two alike the one with a name is."""
    rows = [reported_side(1, amount_minor=90), reported_side(2, **NAMES_NOTHING)]
    assert paired([booked_side()], rows) == ([("s", 2)], [], [1])
    for first, second in ((1, 2), (2, 1)):
        rows = [reported_side(first, **NAMES_NOTHING), reported_side(second)]
        assert paired([booked_side()], rows) == ([("s", second)], [], [first])
        differ = pair([booked_side(amount_minor=90)], rows)
        assert [row.row_number for _, row in differ.pairs] == [second]
        assert [row.row_number for _, row in differ.repeated] == [first]


def test_a_row_belongs_to_its_operation_before_a_charge_nobody_asked_for() -> None:
    """That one takes what is left, the earliest first, whatever it names."""
    nobodys = booked_side(settlement_id="u", operation_id="u", payment_id="u", unasked=True)
    own = booked_side(settlement_id="own", settled_at_ms=2)
    for first, second in ((1, 2), (2, 1)):
        rows = [reported_side(first, **NAMES_NOTHING), reported_side(second)]
        assert sorted(paired([nobodys, own], rows)[0]) == [("own", second), ("u", first)]
    rows = [reported_side(1, **NAMES_NOTHING), reported_side(2, operation_id="x")]
    assert paired([nobodys], rows) == ([("u", 1)], [], [2])


def test_the_row_that_agrees_is_the_settlements() -> None:
    """An earlier, wrong row does not keep it from the corrected one, nor one of another currency;
    of two that agree the earlier is taken."""
    right = reported_side(2, report_date="2023-11-15")
    for wrong in (reported_side(1, amount_minor=96), reported_side(1, currency="EUR")):
        assert paired([booked_side()], [wrong, right]) == ([("s", 2)], [], [1])
    assert paired([booked_side()], [reported_side(1), right]) == ([("s", 1)], [], [2])
    near = pair([booked_side()], [reported_side(1, amount_minor=101), right], Tolerance(1))
    assert near.pairs[0][1].row_number == 1


def test_rows_of_which_none_agrees_are_all_about_the_settlement() -> None:
    """A refund of 1.00 that is told in two rows: both differ, and neither is somebody else's."""
    rows = [reported_side(1, amount_minor=40), reported_side(2, amount_minor=60)]
    found = pair([booked_side()], rows)
    assert [r.row_number for _, r in found.pairs] == [1]
    assert [(b.settlement_id, r.row_number) for b, r in found.repeated] == [("s", 2)]
    assert found.reported == ()


@pytest.mark.parametrize(
    ("changed", "tolerance", "found"),
    [
        ({}, Tolerance(), ()),
        ({"amount_minor": 101}, Tolerance(), ("amount_differs",)),
        ({"amount_minor": 101}, Tolerance(amount_minor=1), ()),
        ({"currency": "EUR", "amount_minor": 5}, Tolerance(), ("currency_differs",)),
        ({"fee_minor": 3}, Tolerance(fee_minor=1), ("fee_differs",)),
        ({"fee_minor": 2}, Tolerance(fee_minor=1), ()),
    ],
)
def test_differences_are_named_beyond_the_tolerance(
    changed: dict[str, Any], tolerance: Tolerance, found: tuple[str, ...]
) -> None:
    """Up to the tolerance it is none, one minor unit more is."""
    assert differences(booked_side(), reported_side(**changed), tolerance) == found


def test_without_terms_no_fee_is_expected() -> None:
    """Whoever never said what a gateway costs is not told that it costs something else."""
    assert differences(booked_side(priced=False), reported_side(fee_minor=9)) == ()


@pytest.mark.parametrize(
    ("nets", "paid", "parts"),
    [
        ((12_50, 12_50), 25_00, [12_50, 12_50]),
        ((12_50, 12_50), 15_00, [12_50, 2_50]),
        ((12_50, 12_50), 26_00, [12_50, 13_50]),
        ((12_50, 12_50), 10_00, [10_00, 0]),
        ((10_00, -15_00), -5_00, [10_00, -15_00]),
        ((-5_00, 10_00), 6_00, [-5_00, 11_00]),
    ],
)
def test_what_a_batch_paid_is_shared_among_its_days(
    nets: tuple[int, ...], paid: int, parts: list[int]
) -> None:
    """The sum is what was paid, whatever is missing or too much."""
    days = [(str(n), net) for n, net in enumerate(nets)]
    assert [part for _, part in shared(days, paid)] == parts


def test_business_days_leave_out_weekends_and_holidays() -> None:
    """T+2 of a Thursday before a long weekend is the Tuesday after it."""
    assert business_days_after(date(2010, 12, 23), 2).isoformat() == "2010-12-27"
    holidays = ("2010-12-27", "2010-12-28")
    assert business_days_after(date(2010, 12, 23), 2, holidays).isoformat() == "2010-12-29"
    # A Saturday's first business day is Monday.
    assert business_days_after(date(2010, 12, 4), 1).isoformat() == "2010-12-06"
    assert business_days_after(date(2010, 12, 4), 0).isoformat() == "2010-12-06"


def test_what_is_due_is_over_the_day_after() -> None:
    """Of a Tuesday T+2 is Thursday: on Thursday it may still come, on Friday it is missing."""
    assert last_day_due(date(2023, 11, 16), 2) < date(2023, 11, 14)
    assert last_day_due(date(2023, 11, 17), 2) == date(2023, 11, 14)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"gates": {}}, "'gates' is not meant"),
        ({"gateways": {"n": {"reprot_days": 1}}}, "no 'reprot_days'"),
        ({"gateways": {"n": {"report_days": -1}}}, "report_days is a whole number"),
        ({"gateways": {"n": {"report_days": 1.5}}}, "report_days is a whole number"),
        ({"gateways": {"n": {"holidays": ["25 December"]}}}, "is no date"),
        ({"gateways": {"n": {"time_zone": "Mars/Olympus"}}}, "no time zone"),
        ({"gateways": {"n": {"time_zone": "Europe"}}}, "no time zone"),
        ({"gateways": {"n": {"time_zone": "localtime"}}}, "no time zone"),
        ({"gateways": {"n": {"time_zone": 1}}}, "time_zone is text"),
        ({"gateways": {"n": {"bank_names": "North"}}}, "a list of texts"),
        ({"bank_accounts": {"GB33": "main gbp"}}, "no name of account GB33"),
        ({"bank_accounts": "main"}, "is not meant"),
        ({"payouts": ["main"]}, "is not meant"),
        ({"payouts": {"report_days": 1}}, "no 'report_days'"),
        ({"payouts": {"bank_days": 61}}, "rules of payouts: bank_days is a whole number"),
        ({"payouts": {"holidays": ["25 December"]}}, "is no date"),
    ],
)
def test_rules_that_cannot_be_meant_are_named(document: dict[str, Any], said: str) -> None:
    """A misspelt tolerance must not pass for none."""
    with pytest.raises(UserError, match=said):
        read_rules(document)


def test_who_pays_is_known_by_the_names_of_the_rules() -> None:
    """A bank writes names in its own way; one that nobody knows is nobody's."""
    rules = read_rules({"gateways": {"north": {"bank_names": ["NORTHBANK PLC"]}, "sim": {}}})
    assert rules.payer(" Northbank plc ") == "north"
    assert rules.payer("SIM") == "sim"
    assert rules.payer("Other") == ""

"""The ledger on a real PostgreSQL: all that is demanded of every ledger, and what is special."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from pipeline.domain.decisions import schedule_body
from pipeline.errors import UserError
from pipeline.ledger.clearing_booking import BOOKED_BY_ID
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.decisions import (
    adopt,
    all_decisions,
    decide_close,
    decide_terms,
    lock_decisions,
)
from pipeline.ledger.entries import Item
from pipeline.ledger.errors import LedgerUnavailable
from pipeline.ledger.journal import Journal, Progress
from pipeline.ledger.payout_positions import ARRIVALS
from pipeline.ledger.queries import drifted_balances, entry_count
from pipeline.ledger.seals import chain_heads
from pipeline.ledger.seals import seal as seal_entries
from pipeline.ledger.storage import DOUBLED
from pipeline.ledger.verification import verify_books
from tests.support import payouts
from tests.support.ledger import (
    PAIR,
    SOURCE,
    LedgerSuite,
    book_by_hand,
    booked_number,
    entry_of,
    insert_entry,
    insert_line,
    journal_at,
    of_no_settlement,
)
from tests.support.ledger_migrations import MigrationSuite
from tests.support.ledger_rules import (
    NOW_MS,
    STANDARD,
    TOPIC,
    RulesSuite,
    book_all,
    close,
    seal,
)
from tests.support.ledger_seals import SealsSuite
from tests.support.ledger_trials import (
    TrialsSuite,
    post,
    require_others_go_on,
    unchecked,
)
from tests.support.payouts import PayoutSuite
from tests.support.payouts_unconfirmed import PayoutsUnconfirmedSuite
from tests.support.reconciliation import ReconciliationSuite
from tests.support.unasked_charges import UnaskedChargesSuite
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def url(postgres_url: str) -> Iterator[str]:
    """The database, emptied: it is shared by the tests of one worker."""
    admin = create_engine(postgres_url)
    with admin.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    yield postgres_url
    admin.dispose()


class TestOnPostgres(LedgerSuite):
    pass


class TestRulesOnPostgres(RulesSuite):
    pass


class TestTrialsOnPostgres(TrialsSuite):
    def test_a_name_that_is_too_long_for_an_index_is_not_decided(self, engine: Engine) -> None:
        """Digests cannot be compressed, as a word that is repeated can."""
        journal_at(engine)
        name = "".join(sha256(bytes([n])).hexdigest() for n in range(100))
        with pytest.raises(UserError, match=r"cannot be booked .*index row"):
            post(engine, unchecked(f"bank:{name}"))
        require_others_go_on(engine)


class TestSealsOnPostgres(SealsSuite):
    pass


class TestReconciliationOnPostgres(ReconciliationSuite):
    pass


class TestUnaskedChargesOnPostgres(UnaskedChargesSuite):
    pass


class TestPayoutsUnconfirmedOnPostgres(PayoutsUnconfirmedSuite):
    pass


class TestPayoutsOnPostgres(PayoutSuite):
    pass


@pytest.fixture
def other_url(own_postgres_url: str) -> str:
    return own_postgres_url


class TestMigrationsOnPostgres(MigrationSuite):
    pass


def make_decision(connection: Connection, what: str) -> None:
    if what == "close":
        decide_close(
            connection, TOPIC, through="2010-12-31", actor="anna", reason="", now_ms=NOW_MS
        )
    else:
        from_ms = 1_700_000_000_501
        decide_terms(connection, TOPIC, body=schedule_body(STANDARD, from_ms), actor="anna",
                     effective_from_ms=from_ms, reason="", now_ms=NOW_MS)  # fmt: skip


def begin_and_book(engine: Engine, partition: int) -> None:
    """The first settlement of a partition that was never booked, settled after the first one's."""
    journal = Journal(engine, SOURCE)
    journal.begin_partition(partition, 0)
    entry = entry_of(partition, business_date="2010-12-02", settled_at_ms=1_700_000_000_900,
                     payment_method="card")  # fmt: skip
    journal.post([Item(partition, 0, entry)], {partition: Progress(0, 1)})


def waiting_for_decisions(engine: Engine) -> int:
    with reading(engine) as connection:
        found: int = connection.execute(
            text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
                 "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())")
        ).scalar_one()  # fmt: skip
    return found


def heads_of(engine: Engine) -> set[tuple[int, int, bytes]]:
    while seal_entries(engine):
        pass
    with reading(engine) as connection:
        assert verify_books(connection).damages == ()
        return {(h.partition, h.position, h.hash) for h in chain_heads(connection)}


def rebuilt(engine: Engine, url: str, settled: Sequence[Item]) -> set[tuple[int, int, bytes]]:
    """The heads of books made anew: decisions first, then settlements, then what those post."""
    again = open_ledger(url)
    with reading(engine) as connection:
        decided = all_decisions(connection)
    with again.begin() as connection:
        adopt(connection, decided)
    for item in settled:
        journal_at(again, item.partition).post([item], {item.partition: Progress(0, 2)})
    book_all(again)
    found = heads_of(again)
    again.dispose()
    return found


@pytest.mark.parametrize("what", ["close", "terms"])
@pytest.mark.parametrize("waits_itself", [False, True])
def test_a_partition_that_begins_while_something_is_decided_comes_after_it(
    url: str, other_url: str, what: str, waits_itself: bool
) -> None:
    """A period's close counts it as booked up to nothing, and a fee schedule knows of nothing that
    it settled: so what it books counts after both, as in a rebuild. Also where the decision waits
    for another one."""
    engine = open_ledger(f"{url}?options=-c%20lock_timeout%3D20000")
    first = Item(0, 0, entry_of(0, business_date="2010-12-01"))
    journal_at(engine).post([first], {0: Progress(0, 1)})
    with ThreadPoolExecutor() as pool, engine.connect() as other, engine.connect() as deciding:
        if waits_itself:
            lock_decisions(other)
            decided = pool.submit(make_decision, deciding, what)
            wait_until(lambda: waiting_for_decisions(engine) == 1, 30, "the decision waits")
            # It holds no writer up meanwhile.
            Journal(engine, SOURCE).post([], {0: Progress(1, 2)})
        else:
            make_decision(deciding, what)
        begun = pool.submit(begin_and_book, engine, 1)
        waiting = 2 if waits_itself else 1
        wait_until(
            lambda: begun.done() or waiting_for_decisions(engine) == waiting, 30, "it waits, or not"
        )
        other.rollback()
        if waits_itself:
            decided.result(30)
        deciding.commit()
        begun.result(30)
    book_all(engine)
    with reading(engine) as connection:
        booked = connection.execute(
            text("SELECT booked_date, terms FROM journal_entries WHERE source_topic = :topic "
                 "AND source_partition = 1"), {"topic": TOPIC},
        ).one()  # fmt: skip
    assert tuple(booked) == (("2011-01-01", "") if what == "close" else ("", "1/p/card"))
    second = Item(1, 0, entry_of(1, business_date="2010-12-02", settled_at_ms=1_700_000_000_900,
                                 payment_method="card"))  # fmt: skip
    assert rebuilt(engine, other_url, [first, second]) == heads_of(engine)
    engine.dispose()


@pytest.mark.parametrize("table", ["journal_entries", "postings", "accounts"])
def test_the_books_cannot_be_emptied(url: str, table: str) -> None:
    """TRUNCATE goes past row triggers; it is refused by one of its own."""
    engine = open_ledger(url)
    journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
    with pytest.raises(DBAPIError, match="never changed"), engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {table} CASCADE"))
    engine.dispose()


def test_two_halves_from_two_transactions_are_refused(url: str) -> None:
    """A line cannot be slipped into an entry that is being committed elsewhere, nor its entry made
    of another's lines; lines of nobody's are held back by the key."""
    engine = open_ledger(url)
    journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
    with engine.connect() as first, engine.connect() as second:
        first.begin()
        insert_line(first, 500, 1, "GBP", 100)
        insert_line(first, 500, 2, "GBP", -100)
        insert_entry(first, 500, entry_of(2), offset=1)
        with pytest.raises(DBAPIError, match="has not the postings"):
            insert_line(second, 500, 3, "GBP", 7)
        second.rollback()
        first.commit()
    with engine.connect() as first, engine.connect() as second:
        insert_line(first, 501, 1, "GBP", 100)
        insert_line(first, 501, 2, "GBP", -100)
        with pytest.raises(DBAPIError, match="has not the postings"):
            insert_entry(second, 501, entry_of(3), offset=2)
    with pytest.raises(DBAPIError), engine.begin() as connection:
        insert_line(connection, booked_number(engine), 2, "GBP", 7)
    engine.dispose()


def test_a_line_added_after_its_entry_was_checked_is_refused(url: str) -> None:
    """The entry was checked when it was inserted, its lines when that was asked for; whatever comes
    then is looked at by itself."""
    engine = open_ledger(url)
    journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
    for checked in ("postings_of_an_entry", "ALL"):
        with engine.connect() as connection:
            insert_line(connection, 500, 1, "GBP", 100)
            insert_line(connection, 500, 2, "GBP", -100)
            insert_entry(connection, 500, entry_of(2), offset=1)
            connection.execute(text(f"SET CONSTRAINTS {checked} IMMEDIATE"))
            with pytest.raises(DBAPIError, match="has not the postings"):
                _add_and_commit(connection)
    engine.dispose()


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("line", [2, 3, 4])
def test_nothing_is_added_to_an_entry_of_another_transaction(
    url: str, level: str, line: int
) -> None:
    """Its first line stands on nothing that is seen, as long as it is not committed."""
    engine = open_ledger(f"{url}?options=-c%20lock_timeout%3D2000")
    journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
    with engine.connect() as first, engine.connect() as other:
        first.begin()
        insert_line(first, 500, 1, "GBP", 100)
        insert_line(first, 500, 2, "GBP", -100)
        insert_entry(first, 500, entry_of(2), offset=1)
        second = other.execution_options(isolation_level=level)
        with pytest.raises(DBAPIError, match=r"has not the postings|lock timeout"):
            insert_line(second, 500, line, "GBP", 7)
        second.rollback()
        second.execute(text("SELECT 1"))
        first.commit()
        with pytest.raises(DBAPIError, match=r"has not the postings|duplicate key"):
            insert_line(second, 500, line, "GBP", 7)
    with reading(engine) as connection:
        assert verify_books(connection).entries == 2
    engine.dispose()


def test_a_line_stands_on_the_one_before_and_on_an_account(url: str) -> None:
    """Whatever is missing is found when the line is inserted, whatever else comes later; that the
    first has no entry, when its transaction is kept."""
    engine = open_ledger(url)
    journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
    for lines, said in (
        ([(2, "1", 5)], "line before is missing"),
        ([(1, "1", 5), (3, "2", -5)], "line before is missing"),
        ([(1, "1", 5), (2, "77", -5)], "there is no such account"),
    ):
        rows = ", ".join(f"(500, {line}, {of}, 'GBP', {minor})" for line, of, minor in lines)
        with pytest.raises(DBAPIError, match=said), engine.connect() as connection:
            connection.execute(text(f"INSERT INTO postings VALUES {rows}"))
    with engine.connect() as connection:
        insert_line(connection, 500, 1, "GBP", 100)
        insert_line(connection, 500, 2, "GBP", -100)
        # What was asked for is asked again once it is undone.
        undone = connection.begin_nested()
        insert_entry(connection, 500, entry_of(2), offset=1)
        connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        undone.rollback()
        with pytest.raises(DBAPIError, match="no entry of these postings"):
            connection.commit()
    engine.dispose()


def test_an_entry_without_its_postings_is_refused_at_once(url: str) -> None:
    """They stand before it, as on SQLite; what else is in the transaction counts no less."""
    engine = open_ledger(url)
    journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
    with engine.connect() as connection:
        insert_line(connection, 500, 1, "GBP", 100)
        with pytest.raises(DBAPIError, match="has not the postings"):
            insert_entry(connection, 500, entry_of(2), offset=1)
    engine.dispose()


def test_temporary_tables_do_not_stand_in_for_the_books(url: str) -> None:
    """Whoever may connect may make some, and they come before all others by their bare names."""
    engine = open_ledger(url)
    journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
    close(engine, "2010-12-31")
    seal(engine)
    for said, day, credit in (("differ", "2011-01-01", -1), ("is closed", "2010-12-01", -7)):
        with engine.connect() as connection:
            for table in ("journal_entries", "postings", "closed_periods"):
                connection.execute(text(f"CREATE TEMP TABLE {table} (LIKE public.{table})"))
            insert_entry(connection, 500, entry_of(2), offset=1)
            for line, amount in ((1, 5), (2, -5)):
                insert_line(connection, 500, line, "GBP", amount)
            with pytest.raises(DBAPIError, match=said):
                _book_in_public(connection, day, (7, credit))
    engine.dispose()


def _add_and_commit(connection: Connection) -> None:
    insert_line(connection, 500, 3, "GBP", 1_000_000)
    connection.commit()


def _book_in_public(connection: Connection, day: str, amounts: tuple[int, ...]) -> None:
    for line, amount in enumerate(amounts, 1):
        connection.execute(
            text(f"INSERT INTO public.postings VALUES (500, {line}, 1, 'GBP', {amount})")
        )
    connection.execute(
        text("INSERT INTO public.journal_entries SELECT 500, 'hand:1', '', 'entry', 'm', 'o', 'p', "
             "'op', 'g', 'r', :day, 'x', 0, 1, 1, 1, 2"), {"day": day},
    )  # fmt: skip
    connection.commit()


def test_a_snapshot_older_than_a_seal_does_not_open_the_period(url: str) -> None:
    """Under REPEATABLE READ a transaction does not see what was sealed since it began."""
    engine = open_ledger(url)
    journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.execute(text("SELECT * FROM closed_periods")).all()
        close(engine, "2010-12-31")
        seal(engine)
        insert_line(connection, 500, 1, "GBP", 100)
        insert_line(connection, 500, 2, "GBP", -100)
        with pytest.raises(DBAPIError, match="READ COMMITTED only"):
            insert_entry(connection, 500, entry_of(2), offset=1)
    engine.dispose()


def test_a_hot_merchant_does_not_keep_writers_from_each_other(url: str) -> None:
    """While one writer's batch of a merchant is in and checked, another's of the same merchant is
    booked from beginning to end: nothing both need is locked before the balances."""
    # A lock that is held ends the test instead of hanging it.
    engine = open_ledger(f"{url}?options=-c%20lock_timeout%3D5000")
    journal_at(engine, 1).post([Item(1, 0, entry_of(1))], {1: Progress(0, 1)})
    booked_meanwhile: list[int] = []

    def book_another(name: str) -> None:
        if name == "ledger.entries_checked":
            done = Journal(engine, SOURCE).post([Item(1, 1, entry_of(4))], {1: Progress(1, 2)})
            booked_meanwhile.append(done.posted)

    journal = journal_at(engine, 0, on_step=book_another)
    # Merchant m1, like entries 1 and 4.
    assert journal.post([Item(0, 0, entry_of(7))], {0: Progress(0, 1)}).posted == 1
    assert booked_meanwhile == [1]
    with reading(engine) as connection:
        assert entry_count(connection) == 3
        assert drifted_balances(connection) == []
    engine.dispose()


def test_sealing_a_period_waits_for_entries_that_are_being_made(url: str) -> None:
    """An entry of any writer is in the period before it is sealed, or refused after: never in it
    behind the seal's back."""
    engine = open_ledger(url)
    journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
    close(engine, "2010-12-31")
    sealer = threading.Thread(target=book_all, args=(engine,))
    with engine.begin() as connection:
        insert_line(connection, 500, 1, "GBP", 100)
        insert_line(connection, 500, 2, "GBP", -100)
        insert_entry(connection, 500, entry_of(2), offset=9)
        sealer.start()
        sealer.join(0.5)
        with reading(engine) as other:
            sealed = other.execute(text("SELECT sealed FROM closed_periods")).scalar_one()
        assert sealed == 0
    sealer.join(30)
    with pytest.raises(DBAPIError, match="the period is closed"):
        book_by_hand(engine, 501, PAIR, entry_of(3), offset=10)
    engine.dispose()


def test_a_connection_killed_in_the_transaction_is_unavailable(url: str) -> None:
    """A database that restarts loses nothing and doubles nothing: the batch is booked again."""
    engine = open_ledger(url)

    def kill_backends(name: str) -> None:
        if name == "ledger.entries_inserted" and not killed:
            killed.append(name)
            admin = create_engine(url)
            with admin.begin() as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
            admin.dispose()

    killed: list[str] = []
    journal = journal_at(engine, on_step=kill_backends)
    with pytest.raises(LedgerUnavailable):
        journal.post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
    assert journal.post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)}).posted == 1
    with reading(engine) as connection:
        assert entry_count(connection) == 1
        assert drifted_balances(connection) == []
    engine.dispose()


def test_what_came_since_a_cut_off_is_found_without_a_look_at_every_posting(url: str) -> None:
    """By the index of entries that move what is available; without it every entry is looked at."""
    engine = open_ledger(url)
    journal = journal_at(engine)
    journal.post([Item(0, n, entry_of(n)) for n in range(2_000)], {0: Progress(0, 2_000)})
    for day in range(1, 29):
        payouts.receive(engine, 100, f"2010-11-{day:02d}T10:00")
    asked = text(f"EXPLAIN {ARRIVALS}").bindparams(since=payouts.ms("2010-11-27T00:00"))
    # Statistics as they are in use: without any, a planner guesses by the size of a new table.
    with engine.begin() as connection:
        connection.execute(text("ANALYZE"))
        plan = "\n".join(connection.execute(asked).scalars())
        assert "entry_arrival" in plan, plan
        assert "Seq Scan on journal_entries" not in plan
        connection.execute(text("DROP INDEX entry_arrival"))
        assert "Seq Scan on journal_entries" in "\n".join(connection.execute(asked).scalars())
        connection.rollback()
    engine.dispose()


def test_what_a_row_clears_is_found_without_a_look_at_every_account(url: str) -> None:
    """An entry's own lines are asked for their accounts; by the kind of account all of them would
    be read, once for each entry."""
    engine = open_ledger(url)
    journal_at(engine).post(
        [Item(0, n, entry_of(n)) for n in range(2_000)], {0: Progress(0, 2_000)}
    )
    with engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")
        plan = connection.exec_driver_sql(
            f"EXPLAIN {BOOKED_BY_ID['postgresql']}", (json.dumps([entry_of(1).entry_id]),)
        )
        lines = list(plan.scalars())
    assert not [line for line in lines if "Filter" in line and "substr" in line], lines
    engine.dispose()


@pytest.mark.parametrize(
    ("key", "number", "entry_id", "offset", "what"),
    [
        ("journal_entries_entry_id_key", 900, "hand:1", 7, "hand:1"),
        ("entry_source", 901, "hand:2", 0, "settlements[0]@0"),
    ],
)
def test_an_entry_that_is_there_twice_is_named(
    url: str, key: str, number: int, entry_id: str, offset: int, what: str
) -> None:
    """As a spoilt index lets it in: the rows are asked, since the index would know of one."""
    engine = open_ledger(url)
    journal_at(engine).post([Item(0, 3, entry_of(1))], {0: Progress(0, 9)})
    book_by_hand(engine, 500, PAIR, of_no_settlement("hand:1"), offset=0)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(f"ALTER TABLE journal_entries DROP CONSTRAINT {key}"))
        for line, (_, currency, minor) in enumerate(PAIR, 1):
            insert_line(connection, number, line, currency, minor)
        insert_entry(connection, number, of_no_settlement(entry_id), offset=offset)
    with reading(engine) as connection:
        doubled = [d for d in verify_books(connection).damages if d.name == "entry_doubled"]
    assert [(d.place, d.detail) for d in doubled] == [
        (f"journal_entries 500, {number}", f"{what} is booked 2 times")
    ]
    engine.dispose()


def test_no_index_answers_whether_an_entry_is_there_twice(url: str) -> None:
    """Else the one that is spoilt would be asked. Not even where the rows are as good as barred."""
    engine = open_ledger(url)
    with reading(engine) as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        for asked in DOUBLED:
            plan = connection.execute(text(f"EXPLAIN {asked.format(unindexed='')}")).scalars().all()
            assert [line for line in plan if "Seq Scan" in line], plan
    engine.dispose()

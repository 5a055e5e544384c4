"""Fee terms, closed periods and decisions: what every ledger does with them, whatever database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from pipeline.domain.decisions import schedule_body
from pipeline.domain.fee_schedule import read_schedule
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.decisions import all_decisions, decide_close, decide_terms, unpublished
from pipeline.ledger.entries import Item, entries_of_payments
from pipeline.ledger.journal import Journal, Progress
from pipeline.ledger.queries import balances, drifted_balances, entry_count
from tests.support.ledger import PAIR, SOURCE, book_by_hand, entry_of, journal_at

TOPIC = SOURCE.topic
NOW_MS = 1_700_000_100_000
STANDARD: dict[str, Any] = {
    "plans": [{"name": "p", "currency": "GBP", "percentage": "2", "fixed_minor": 10,
               "returned": "all"}],
    "gateway_costs": [{"percentage": "1"}],
}  # fmt: skip


def announce(engine: Engine, document: dict[str, Any] = STANDARD, from_ms: int = 1) -> None:
    """A fee schedule in force from a time on."""
    read_schedule(document)
    with engine.begin() as connection:
        decide_terms(
            connection, TOPIC, body=schedule_body(document, from_ms), effective_from_ms=from_ms,
            actor="anna", reason="prices", now_ms=NOW_MS,
        )  # fmt: skip


def close(engine: Engine, through: str) -> None:
    with engine.begin() as connection:
        decide_close(
            connection, TOPIC, through=through, actor="anna", reason="month end", now_ms=NOW_MS
        )


def seal(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE closed_periods SET sealed = 1"))


class RulesSuite:
    """Subclassed once for each database, with a fixture ``url`` of an empty one."""

    @pytest.fixture
    def engine(self, url: str) -> Iterator[Engine]:
        engine = open_ledger(url)
        yield engine
        engine.dispose()

    def test_fees_are_counted_over_the_payment_across_batches(self, engine: Engine) -> None:
        """12.50 at 2 % + 0.10 is 0.35; refunds of 5.00 and 7.50 return 0.14 and 0.21 of it.

        The second refund comes in another batch, by a writer that has seen nothing of the first.
        """
        journal = journal_at(engine)
        announce(engine)
        capture = Item(0, 0, entry_of(1))
        part = Item(0, 1, entry_of(1, kind="refund", amount_minor=-500, operation_id="r1"))
        rest = Item(0, 2, entry_of(1, kind="refund", amount_minor=-750, operation_id="r2"))
        journal.post([capture, part], {0: Progress(0, 2)})
        with reading(engine) as connection:
            kept = {b.account: b.balance_minor for b in balances(connection)}
        assert kept["fee_revenue:m1"] == -(35 - 14)
        Journal(engine, SOURCE).post([rest], {0: Progress(2, 3)})
        with reading(engine) as connection:
            kept = {b.account: b.balance_minor for b in balances(connection)}
            assert drifted_balances(connection) == []
            booked = entries_of_payments(connection, [capture.entry.payment_id])
        assert kept == {
            "gateway_receivable:simulator": -13, "merchant_payable:m1": 0,
            "fee_revenue:m1": 0, "gateway_cost:simulator": 13,
        }  # fmt: skip
        assert [e.terms for e in booked[capture.entry.payment_id]] == ["1/p/"] * 3

    def test_a_duplicate_is_known_whatever_it_would_cost_now(self, engine: Engine) -> None:
        """Terms that came in between make neither a second entry nor a contradiction."""
        journal = journal_at(engine)
        journal.post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        announce(engine, from_ms=1_700_000_000_501)
        done = journal.post([Item(0, 1, entry_of(1)), Item(0, 2, entry_of(1))],
                            {0: Progress(1, 3)})  # fmt: skip
        assert (done.posted, len(done.duplicates)) == (0, 2)
        # Without terms at its capture, none for its refund either.
        refund = entry_of(1, kind="refund", amount_minor=-1, operation_id="r",
                          settled_at_ms=1_700_000_000_999)  # fmt: skip
        journal.post([Item(0, 3, refund)], {0: Progress(3, 4)})
        with reading(engine) as connection:
            assert {b.account for b in balances(connection)} == {
                "gateway_receivable:simulator", "merchant_payable:m1",
            }  # fmt: skip

    def test_terms_cannot_come_too_late(self, engine: Engine) -> None:
        """What is booked stays as it is, so terms count from later than all of it only."""
        journal = journal_at(engine)
        journal.post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        with pytest.raises(UserError, match="is booked already"):
            announce(engine, from_ms=1_700_000_000_500)
        announce(engine, from_ms=1_700_000_000_501)
        late = entry_of(2, settled_at_ms=1_700_000_000_501)
        journal.post([Item(0, 1, entry_of(4)), Item(0, 2, late)], {0: Progress(1, 3)})
        with reading(engine) as connection:
            found = entries_of_payments(connection, [entry_of(4).payment_id, late.payment_id])
        assert {e.order_id: e.terms for entries in found.values() for e in entries} == {
            "o4": "", "o2": "1/p/",
        }  # fmt: skip

    def test_what_comes_after_the_close_counts_under_the_next_day(self, engine: Engine) -> None:
        """The same day, before and after the cut: the late one is booked under the first open day,
        a later date keeps its own."""
        journal = journal_at(engine)
        journal_at(engine, 1)
        journal.post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        close(engine, "2010-12-31")
        items = [
            Item(0, 1, entry_of(2)),
            Item(0, 2, entry_of(3, business_date="2011-01-05")),
            Item(1, 0, entry_of(4)),
        ]
        journal.post(items, {0: Progress(1, 3), 1: Progress(0, 1)})
        with reading(engine) as connection:
            days = dict(
                connection.execute(text("SELECT order_id, booked_date FROM journal_entries")).all()
            )
        assert days == {"o1": "", "o2": "2011-01-01", "o3": "", "o4": "2011-01-01"}

    def test_the_database_refuses_entries_of_a_sealed_period(self, engine: Engine) -> None:
        """Whoever inserts: nothing more counts under a day that is closed."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        close(engine, "2010-12-01")
        book_by_hand(engine, 500, PAIR, entry_of(2))
        seal(engine)
        with pytest.raises(DBAPIError, match="the period is closed"):
            book_by_hand(engine, 501, PAIR, entry_of(3), offset=9)
        # Ours go on, under the next day.
        Journal(engine, SOURCE).post([Item(0, 2, entry_of(4))], {0: Progress(1, 3)})
        with reading(engine) as connection:
            assert entry_count(connection) == 3

    def test_a_period_is_closed_once_and_forwards(self, engine: Engine) -> None:
        close(engine, "2010-12-31")
        for through in ("2010-12-31", "2010-11-30"):
            with pytest.raises(UserError, match="closed already"):
                close(engine, through)
        with reading(engine) as connection:
            assert len(all_decisions(connection)) == len(unpublished(connection)) == 1

    @pytest.mark.parametrize(
        "attack",
        [
            "UPDATE ledger_decisions SET body = '{}'",
            "DELETE FROM ledger_decisions WHERE sequence = 1",
            "UPDATE closed_periods SET through_date = '2000-01-01'",
            "UPDATE closed_periods SET sealed = 0",
            "DELETE FROM closed_periods",
            "UPDATE ledger_decisions SET published_offset = 9",
        ],
    )
    def test_a_decision_stays_as_it_was_made(self, engine: Engine, attack: str) -> None:
        """Its place in the topic is written once, its period sealed once; nothing else changes."""
        announce(engine)
        close(engine, "2010-12-31")
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE ledger_decisions SET published_partition = 0, published_offset = 4")
            )
            connection.execute(text("UPDATE closed_periods SET sealed = 1"))
        with pytest.raises(DBAPIError, match="never changed"), engine.begin() as connection:
            connection.execute(text(attack))

    def test_a_close_beside_writers_is_seen_by_each_batch_whole(self, engine: Engine) -> None:
        """Two partitions are written while the period is closed: an entry's day tells which side
        of the cut it lies on, for every one of them."""
        for partition in (0, 1):
            journal_at(engine, partition)
        failures: list[BaseException] = []

        def write(partition: int) -> None:
            journal = Journal(engine, SOURCE)
            try:
                for offset in range(12):
                    entry = entry_of(1000 * partition + offset)
                    journal.post([Item(partition, offset, entry)],
                                 {partition: Progress(offset, offset + 1)})  # fmt: skip
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(p,)) for p in (0, 1)]
        for thread in threads:
            thread.start()
        close(engine, "2010-12-31")
        for thread in threads:
            thread.join(60)
        assert not failures, failures[0]
        with reading(engine) as connection:
            (body,) = connection.execute(text("SELECT cuts FROM closed_periods")).scalars()
            rows = connection.execute(
                text("SELECT source_partition, source_offset, booked_date FROM journal_entries")
            ).all()
        from json import loads

        cuts = {int(p): cut for p, cut in loads(body)["cuts"].items()}
        assert len(rows) == 24
        for partition, offset, day in rows:
            assert day == ("2011-01-01" if offset >= cuts[partition] else "")

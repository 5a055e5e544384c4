"""Settlements to book, and the demands every ledger has to meet, whatever database holds it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from pipeline.domain.ids import payment_id, settlement_id
from pipeline.domain.model import Settlement
from pipeline.domain.posting import JournalEntry, Posting, journal_entry
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.entries import Item
from pipeline.ledger.errors import OffsetMoved, SettlementConflicts, SourceChanged
from pipeline.ledger.journal import Journal, Progress, Source
from pipeline.ledger.queries import (
    balances,
    booked_offsets,
    drifted_balances,
    entry_count,
    sums_by_kind,
    trial_balance,
)
from tests.support.ledger_suite import OnEachDatabase

# Two lines that balance.
PAIR = [(1, "GBP", 100), (2, "GBP", -100)]
SOURCE = Source("cluster", "settlements", "topic")


def settlement(number: int = 1, **changed: Any) -> Settlement:
    """A capture of 12.50 GBP (or what is changed), its ids derived as in production."""
    fields: dict[str, Any] = {
        "merchant_id": f"m{number % 3}",
        "order_id": f"o{number}",
        "operation_id": f"o{number}",
        "kind": "capture",
        "amount_minor": 1250,
        "currency": "GBP",
        "gateway": "simulator",
        "gateway_reference": f"ch_{number}",
        "business_date": "2010-12-01",
        "ordered_at_ms": 1_700_000_000_000,
        "settled_at_ms": 1_700_000_000_500,
        **changed,
    }
    payment = payment_id(fields["merchant_id"], fields["order_id"])
    derived = settlement_id(payment, fields["operation_id"], fields["kind"])
    return Settlement(**{"payment_id": payment, "settlement_id": derived, **fields})


def entry_of(number: int = 1, **changed: Any) -> JournalEntry:
    entry = journal_entry(settlement(number, **changed))
    assert isinstance(entry, JournalEntry), entry
    return entry


def journal_at(engine: Engine, partition: int = 0, **options: Any) -> Journal:
    """A journal whose partition is begun."""
    journal = Journal(engine, SOURCE, **options)
    journal.begin_partition(partition, 0)
    return journal


class LedgerSuite(OnEachDatabase):
    """Subclassed once for each database, with a fixture ``url`` of an empty one."""

    def test_a_batch_books_entries_balances_and_offset_together(self, engine: Engine) -> None:
        """What a batch of captures and a refund leaves: entries, balances, the next offset."""
        journal = journal_at(engine)
        refund = entry_of(1, kind="refund", amount_minor=-250, operation_id="refund-1")
        entries = [entry_of(1), entry_of(2, currency="JPY", amount_minor=7), refund]
        posted = journal.post(
            [Item(0, 3 * n, entry) for n, entry in enumerate(entries)], {0: Progress(0, 9)}
        )
        assert posted.posted == 3
        assert journal.stored_offset(0) == 9
        with reading(engine) as connection:
            assert entry_count(connection) == 3
            kept = {(b.account, b.currency): b.balance_minor for b in balances(connection)}
            assert kept == {
                ("gateway_receivable:simulator", "GBP"): 1000,
                ("gateway_receivable:simulator", "JPY"): 7,
                ("merchant_payable:m1", "GBP"): -1000,
                ("merchant_payable:m2", "JPY"): -7,
            }
            assert [
                (t.currency, t.debits_minor, t.difference_minor) for t in trial_balance(connection)
            ] == [("GBP", 1500, 0), ("JPY", 7, 0)]
            assert [(k.kind, k.currency, k.entries, k.amount_minor)
                    for k in sums_by_kind(connection)] == [
                ("capture", "GBP", 1, 1250), ("capture", "JPY", 1, 7), ("refund", "GBP", 1, 250),
            ]  # fmt: skip
            assert drifted_balances(connection) == []

    def test_every_kind_of_settlement_is_booked(self, engine: Engine) -> None:
        """The life of one sale, and a credit without one: each account holds what is left."""
        kinds = {
            "capture": 1000, "refund": -300, "refund_failed": 300, "dispute": -1000,
            "dispute_fee": -15, "reversal": 1000, "credit": -40,
        }  # fmt: skip
        entries = [
            entry_of(
                1,
                kind=kind,
                amount_minor=amount_minor,
                operation_id=f"op-{kind}",
                gateway="none" if kind == "credit" else "simulator",
            )
            for kind, amount_minor in kinds.items()
        ]
        journal_at(engine).post(
            [Item(0, n, entry) for n, entry in enumerate(entries)], {0: Progress(0, 7)}
        )
        with reading(engine) as connection:
            assert {b.account: b.balance_minor for b in balances(connection)} == {
                "gateway_receivable:simulator": 985,
                "merchant_payable:m1": -960,
                "disputes_and_losses:m1": 15,
                "unapplied_credits:m1": -40,
            }
            assert {k.kind: k.amount_minor for k in sums_by_kind(connection)} == {
                kind: abs(amount_minor) for kind, amount_minor in kinds.items()
            }
            assert [t.difference_minor for t in trial_balance(connection)] == [0]
            assert drifted_balances(connection) == []

    def test_the_books_are_found_again(self, engine: Engine, url: str) -> None:
        """Opening an existing ledger changes nothing and goes on from the stored offset."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        again = open_ledger(url)
        journal = Journal(again, SOURCE)
        assert journal.stored_offset(0) == 1
        assert journal.stored_offset(1) is None
        journal.begin_partition(0, 0)
        assert journal.stored_offset(0) == 1
        journal.post([Item(0, 5, entry_of(2))], {0: Progress(1, 6)})
        with reading(again) as connection:
            assert entry_count(connection) == 2
            assert [(b.partition, b.next_offset) for b in booked_offsets(connection)] == [(0, 6)]
        again.dispose()

    def test_opened_by_two_at_once(self, url: str) -> None:
        """Two processes that start on an empty database do not disturb each other."""
        failures: list[Exception] = []

        def open_it() -> None:
            try:
                open_ledger(url).dispose()
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=open_it) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert failures == []

    def test_a_newer_schema_is_not_touched(self, engine: Engine, url: str) -> None:
        """A ledger written by a newer program is refused with what to do."""
        with engine.begin() as connection:
            connection.execute(text("UPDATE ledger_schema SET version = 99"))
        with pytest.raises(UserError, match="version 99"):
            open_ledger(url)

    def test_a_duplicate_is_skipped_within_and_across_batches(self, engine: Engine) -> None:
        """The same settlement twice is booked once, and the offset moves past both."""
        journal = journal_at(engine)
        first = journal.post(
            [Item(0, 0, entry_of(1)), Item(0, 1, entry_of(1))], {0: Progress(0, 2)}
        )
        assert (first.posted, [d.offset for d in first.duplicates]) == (1, [1])
        # Proven a second time, later: still the same movement of money.
        later = entry_of(1, settled_at_ms=1_800_000_000_000)
        second = journal.post([Item(0, 2, later), Item(0, 3, entry_of(2))], {0: Progress(2, 4)})
        assert (second.posted, [d.offset for d in second.duplicates]) == (1, [2])
        assert journal.stored_offset(0) == 4
        with reading(engine) as connection:
            assert entry_count(connection) == 2
            assert drifted_balances(connection) == []

    @pytest.mark.parametrize(
        "changed",
        [
            {"amount_minor": 1251},
            {"currency": "EUR"},
            {"gateway": "other"},
            {"gateway_reference": "another"},
            {"business_date": "2010-12-02"},
        ],
    )
    def test_the_same_id_with_other_content_is_a_conflict(
        self, engine: Engine, changed: dict[str, Any]
    ) -> None:
        """A contradiction is named, booked neither way, and stops nothing else."""
        journal = journal_at(engine)
        journal.post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        other = Item(0, 1, entry_of(1, **changed))
        with pytest.raises(SettlementConflicts) as found:
            journal.post([other, Item(0, 2, entry_of(2))], {0: Progress(1, 3)})
        assert [(c.partition, c.offset) for c in found.value.conflicts] == [(0, 1)]
        assert journal.stored_offset(0) == 1
        journal.post([Item(0, 2, entry_of(2))], {0: Progress(1, 3)})
        with reading(engine) as connection:
            assert entry_count(connection) == 2

    def test_a_conflict_within_one_batch(self, engine: Engine) -> None:
        """Of two that contradict each other in a batch, the second is the conflict."""
        journal = journal_at(engine)
        batch = [Item(0, 0, entry_of(1)), Item(0, 1, entry_of(1, amount_minor=9))]
        with pytest.raises(SettlementConflicts) as found:
            journal.post(batch, {0: Progress(0, 2)})
        assert [c.offset for c in found.value.conflicts] == [1]

    def test_of_two_writers_at_one_offset_one_wins(self, engine: Engine) -> None:
        """A zombie that still holds the partition books nothing, neither entry nor balance."""
        owner = journal_at(engine)
        zombie = Journal(engine, SOURCE)
        owner.post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        with pytest.raises(OffsetMoved) as moved:
            zombie.post([Item(0, 0, entry_of(1)), Item(0, 1, entry_of(2))], {0: Progress(0, 2)})
        assert (moved.value.partition, moved.value.expected) == (0, 0)
        with reading(engine) as connection:
            assert entry_count(connection) == 1
            assert drifted_balances(connection) == []

    def test_writers_that_race_book_each_settlement_once(self, engine: Engine) -> None:
        """Four writers read the same records of two partitions; whoever loses books nothing."""
        for partition in (0, 1):
            journal_at(engine, partition)
        barrier = threading.Barrier(4)
        won: list[int] = []
        failures: list[BaseException] = []

        def write() -> None:
            journal = Journal(engine, SOURCE)
            try:
                barrier.wait(10)
                for start in range(0, 20, 5):
                    items = [
                        Item(p, offset, entry_of(100 * p + offset))
                        for offset in range(start, start + 5)
                        for p in (0, 1)
                    ]
                    try:
                        done = journal.post(
                            items, dict.fromkeys((0, 1), Progress(start, start + 5))
                        )
                        won.append(done.posted)
                    except OffsetMoved:
                        pass
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        with reading(engine) as connection:
            assert entry_count(connection) == sum(won)
            assert drifted_balances(connection) == []
            for offset in booked_offsets(connection):
                booked = connection.execute(
                    text("SELECT count(*) FROM journal_entries WHERE source_partition = :p"),
                    {"p": offset.partition},
                ).scalar_one()
                assert booked == offset.next_offset

    @pytest.mark.parametrize(
        "step", ["ledger.offsets_set", "ledger.entries_checked", "ledger.entries_inserted"]
    )
    def test_a_crash_before_the_commit_books_nothing(self, engine: Engine, step: str) -> None:
        """Whatever ends the transaction half way, neither entries nor offsets have moved."""

        class Crash(Exception):
            pass

        def die(name: str) -> None:
            if name == step:
                raise Crash

        journal = journal_at(engine, on_step=die)
        with pytest.raises(Crash):
            journal.post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        survivor = Journal(engine, SOURCE)
        assert survivor.stored_offset(0) == 0
        with reading(engine) as connection:
            assert entry_count(connection) == 0
            assert balances(connection) == []
        survivor.post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        # The account that was opened and rolled back is not remembered either.
        Journal.post(journal_at(engine, 1), [Item(1, 0, entry_of(4))], {1: Progress(0, 1)})

    @pytest.mark.parametrize(
        "other", [Source("other-cluster", "settlements", "topic"),
                  Source("cluster", "settlements", "other-topic")],
    )  # fmt: skip
    def test_another_cluster_or_topic_is_refused(self, engine: Engine, other: Source) -> None:
        """Offsets of a recreated topic are not taken for the old one's."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        with pytest.raises(SourceChanged, match="means other records"):
            Journal(engine, other).stored_offset(0)
        with pytest.raises(OffsetMoved):
            Journal(engine, other).post([Item(0, 1, entry_of(2))], {0: Progress(1, 2)})

    @pytest.mark.parametrize(
        "lines",
        [
            pytest.param([(1, "GBP", 100), (2, "GBP", -99)], id="debits and credits differ"),
            pytest.param([(1, "GBP", 100), (2, "EUR", -100)], id="currencies differ"),
            pytest.param([(1, "GBP", 100)], id="one side only"),
            pytest.param([], id="no postings"),
            pytest.param([(1, "GBP", 100), (3, "GBP", -100)], id="a line is missing"),
            pytest.param([(1, "GBP", 5), (2, "GBP", -5), (3, "GBP", 1)], id="one line too many"),
        ],
    )
    def test_the_database_refuses_an_unbalanced_entry(
        self, engine: Engine, lines: list[tuple[int, str, int]]
    ) -> None:
        """No program, ours or another, can commit an entry that does not balance."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        with pytest.raises(DBAPIError, match=r"of the entry differ|not the postings it names"):
            book_by_hand(engine, 500, lines, entry_of(2))
        with reading(engine) as connection:
            assert entry_count(connection) == 1

    @pytest.mark.parametrize(
        "wrong",
        [
            pytest.param([(1, "GBP", 100), (2, "GBP", -99)], id="debits and credits differ"),
            pytest.param([(1, "GBP", 100)], id="one side only"),
            pytest.param([], id="no postings"),
        ],
    )
    def test_one_wrong_entry_of_a_statement_refuses_all(
        self, engine: Engine, wrong: list[tuple[int, str, int]]
    ) -> None:
        """Entries are checked together where they come together; one cannot hide among others, nor
        make up for what another lacks."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        refused = r"of the entry differ|not the postings it names"
        with engine.connect() as connection:
            for number in range(500, 510):
                for line, currency, minor in wrong if number == 507 else PAIR:
                    insert_line(connection, number, line, currency, minor)
            rows = ", ".join(
                f"({n}, 'hand:{n}', '', 'entry', 'm', 'o', 'p', 'op', 'g', 'r', '2010-12-01', 'x', "
                f"0, {n}, 1, 1, 2, 0, '', '')"
                for n in range(500, 510)
            )
            with pytest.raises(DBAPIError, match=refused):
                connection.execute(text(f"INSERT INTO journal_entries VALUES {rows}"))
        with reading(engine) as connection:
            assert entry_count(connection) == 1

    def test_the_database_takes_a_balanced_entry(self, engine: Engine) -> None:
        """The refusals above are for what is wrong with them, not for being made by hand."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        book_by_hand(engine, 500, PAIR, entry_of(2))
        with reading(engine) as connection:
            assert entry_count(connection) == 2
            # Balances are kept by the writer, so what was booked past it shows.
            assert len(drifted_balances(connection)) == 2

    def test_postings_without_an_entry_are_refused(self, engine: Engine) -> None:
        """A balanced pair of lines that belongs to no entry cannot be committed."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        with pytest.raises(DBAPIError, match=r"(?i)foreign key"):
            book_by_hand(engine, 500, PAIR)

    def test_nothing_is_added_to_a_booked_entry(self, engine: Engine) -> None:
        """Not even two lines that balance."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        lines = [(3, "GBP", 100), (4, "GBP", -100)]
        with pytest.raises(DBAPIError, match=r"can be added|not the postings it names"):
            book_by_hand(engine, booked_number(engine), lines)

    def test_a_settlement_has_one_entry_only(self, engine: Engine) -> None:
        """A second entry of the same settlement is refused, at whatever offset."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        with pytest.raises(DBAPIError, match=r"booked already|duplicate key"):
            book_by_hand(engine, 500, PAIR, entry_of(1), offset=77)

    @pytest.mark.parametrize("part", [0, 1, 7, -1])
    @pytest.mark.parametrize("whose", ["another settlement", "nobody"])
    def test_a_settlements_record_has_one_entry_only(
        self, engine: Engine, whose: str, part: int
    ) -> None:
        """Nobody adds a second entry to what a record has booked: not as the settlement of another
        id, and not as an entry of none, in whatever part."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        entry = entry_of(2) if whose == "another settlement" else of_no_settlement("mine")
        refused = r"booked already|duplicate key" if part == 0 else "the record has one entry"
        with pytest.raises(DBAPIError, match=refused):
            book_by_hand(engine, 500, PAIR, entry, offset=0, part=part)
        with reading(engine) as connection:
            assert entry_count(connection) == 1

    def test_nothing_stands_beside_a_settlement_that_comes_later(self, engine: Engine) -> None:
        """A further part is refused before the record is booked as well, and one of a decision's
        record is taken: that may post several entries."""
        journal = journal_at(engine)
        journal.post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        with pytest.raises(DBAPIError, match="the record has one entry"):
            book_by_hand(engine, 500, PAIR, of_no_settlement("mine"), offset=1, part=1)
        assert journal.post([Item(0, 1, entry_of(2))], {0: Progress(1, 2)}).posted == 1
        first, second = (of_no_settlement(name, "clearing") for name in ("first", "second"))
        book_by_hand(engine, 501, PAIR, first, offset=9)
        book_by_hand(engine, 502, PAIR, second, offset=9, part=1)
        with reading(engine) as connection:
            assert entry_count(connection) == 4

    @pytest.mark.parametrize(
        "attack",
        [
            "UPDATE postings SET amount_minor = 1",
            "UPDATE postings SET currency = 'EUR'",
            "DELETE FROM postings",
            "UPDATE journal_entries SET business_date = '2011-01-01'",
            "DELETE FROM journal_entries",
            "UPDATE accounts SET name = 'merchant_payable:thief'",
            "DELETE FROM accounts",
        ],
    )
    def test_what_is_booked_stays_as_it_is(self, engine: Engine, attack: str) -> None:
        """Entries, postings and account names cannot be changed or deleted."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        with pytest.raises(DBAPIError, match="never changed"), engine.begin() as connection:
            connection.execute(text(attack))

    def test_an_amount_that_is_no_integer_is_refused(self, engine: Engine) -> None:
        """Books hold whole minor units: a fraction is refused, or there is none to be kept."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        with pytest.raises(DBAPIError), engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO postings (entry_number, line, account_id, currency, amount_minor)"
                    " VALUES (500, 1, 1, 'GBP', 'a lot')"
                )
            )

    def test_an_entry_of_several_currencies_balances_in_each(self, engine: Engine) -> None:
        """More than two lines are fine if every currency balances by itself."""
        entry = entry_of(1)
        lines = (*entry.postings, Posting("fx:a", "EUR", 3), Posting("fx:b", "EUR", -3))
        fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
        journal_at(engine).post(
            [Item(0, 0, JournalEntry(**{**fields, "postings": lines}))], {0: Progress(0, 1)}
        )
        with reading(engine) as connection:
            assert [t.difference_minor for t in trial_balance(connection)] == [0, 0]


def book_by_hand(
    engine: Engine,
    number: int,
    lines: list[tuple[int, str, int]],
    entry: JournalEntry | None = None,
    *,
    offset: int = 1,
    part: int = 0,
    topic: str = "settlements",
) -> None:
    """One transaction of bare SQL: lines (number, currency, amount), then perhaps their entry."""
    with engine.begin() as connection:
        for line, currency, amount_minor in lines:
            insert_line(connection, number, line, currency, amount_minor)
        if entry is not None:
            insert_entry(connection, number, entry, offset=offset, part=part, topic=topic)


def booked_number(engine: Engine) -> int:
    with reading(engine) as connection:
        number: int = connection.execute(
            text("SELECT min(entry_number) FROM journal_entries")
        ).scalar_one()
    return number


def insert_line(connection: Any, number: int, line: int, currency: str, amount_minor: int) -> None:
    """A posting by bare SQL, to the gateway's account for debits and the merchant's otherwise."""
    connection.execute(
        text(
            "INSERT INTO postings (entry_number, line, account_id, currency, amount_minor) VALUES "
            "(:number, :line, (SELECT min(account_id) FROM accounts WHERE name LIKE :account), "
            ":currency, :amount_minor)"
        ),
        {
            "number": number,
            "line": line,
            "account": "gateway%" if amount_minor > 0 else "merchant%",
            "currency": currency,
            "amount_minor": amount_minor,
        },
    )


def of_no_settlement(entry_id: str, kind: str = "capture") -> JournalEntry:
    return replace(entry_of(2), settlement_id="", entry_id=entry_id, kind=kind)


def insert_entry(
    connection: Any,
    number: int,
    entry: JournalEntry,
    *,
    offset: int,
    part: int = 0,
    topic: str = "settlements",
) -> None:
    """An entry of two postings by bare SQL."""
    connection.execute(
        text(
            "INSERT INTO journal_entries VALUES (:number, :entry_id, :settlement_id, :kind, "
            "'m', 'o', 'p', 'op', 'g', 'r', '2010-12-01', :topic, 0, :offset, 1, 1, 2, "
            ":part, '', '')"
        ),
        {
            "number": number,
            "entry_id": entry.entry_id,
            "settlement_id": entry.settlement_id,
            "kind": entry.kind,
            "topic": topic,
            "offset": offset,
            "part": part,
        },
    )

"""Seals: what every ledger demands of its chains of hashes, whatever database."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection, Engine, delete, event, insert, select, text
from sqlalchemy.exc import DBAPIError

from pipeline.domain.decisions import ENTRY, entry_body
from pipeline.domain.transfers import conversion
from pipeline.errors import UserError
from pipeline.ledger.checksums import OffsetChanged
from pipeline.ledger.damages import DAMAGES
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.decisions import decide
from pipeline.ledger.entries import Item
from pipeline.ledger.journal import Journal, Progress
from pipeline.ledger.queries import booked_offsets, entry_count
from pipeline.ledger.seals import booked_entries, chain_heads, seal
from pipeline.ledger.tables import journal_entries
from pipeline.ledger.verification import Verification, verify_books
from tests.support.ledger import (
    PAIR,
    SOURCE,
    book_by_hand,
    entry_of,
    insert_entry,
    insert_line,
    journal_at,
    of_no_settlement,
)
from tests.support.ledger_rules import EVENTS, NOW_MS, announce, book_all, close
from tests.support.ledger_suite import OnEachDatabase

ENTRIES = 12


def verified(engine: Engine) -> Verification:
    with reading(engine) as connection:
        return verify_books(connection)


def found(engine: Engine) -> set[tuple[str, str]]:
    return {(damage.name, damage.place) for damage in verified(engine).damages}


def booked(engine: Engine, *, batch: int = ENTRIES, first: int = 0) -> None:
    """Captures on two partitions, in batches of so many."""
    for partition in (0, 1):
        journal = journal_at(engine, partition)
        for start in range(first, first + ENTRIES, batch):
            items = [
                Item(partition, 2 * n, entry_of(100 * partition + n))
                for n in range(start, start + batch)
            ]
            journal.post(items, {partition: Progress(2 * start, 2 * (start + batch))})


# (what is done to the books with their guards off, what is found, and where).
DAMAGE = [
    ("UPDATE postings SET amount_minor = 1249 WHERE entry_number = {n} AND amount_minor > 0",
     {("entry_changed", "settlements[0]@6"), ("entry_unbalanced", "settlements[0]@6"),
      ("balance_differs", "balances gateway_receivable:simulator GBP")}),
    ("UPDATE journal_entries SET gateway_reference = 'ch_4' WHERE entry_number = {n}",
     {("entry_changed", "settlements[0]@6")}),
    ("UPDATE journal_entries SET posted_at_ms = posted_at_ms + 1 WHERE entry_number = {n}",
     {("entry_changed", "settlements[0]@6")}),
    ("DELETE FROM journal_entries WHERE entry_number = {n}",
     {("entry_missing", "settlements[0]@6"), ("postings_without_entry", "postings {n}"),
      ("balance_differs", "balances gateway_receivable:simulator GBP"),
      ("balance_differs", "balances merchant_payable:m0 GBP")}),
    ("UPDATE entry_seals SET hash = (SELECT hash FROM entry_seals WHERE entry_number = {n} + 1) "
     "WHERE entry_number = {n}", {("seal_changed", "settlements[0]@6")}),
    ("DELETE FROM entry_seals WHERE entry_number = {n}",
     {("entry_unsealed", "settlements[0]@6"), ("seal_missing", "settlements[0]@8")}),
    ("UPDATE accounts SET name = 'merchant_payable:thief' WHERE name = 'merchant_payable:m2'",
     {("entry_changed", f"settlements[0]@{o}") for o in (4, 10, 16, 22)}
     | {("entry_changed", f"settlements[1]@{o}") for o in (2, 8, 14, 20)}),
    ("UPDATE balances SET debits_minor = debits_minor + 1 WHERE debits_minor > 0",
     {("balance_differs", "balances gateway_receivable:simulator GBP")}),
    ("UPDATE consumer_offsets SET next_offset = 22 WHERE partition = 0 "
     "AND topic = 'settlements'",
     {("entry_beyond_offset", "settlements[0]@22"),
      ("offset_changed", "consumer_offsets settlements[0]")}),
    ("UPDATE consumer_offsets SET next_offset = next_offset + 1 WHERE partition = 1",
     {("offset_changed", "consumer_offsets settlements[1]")}),
    ("UPDATE consumer_offsets SET settled_through_ms = 0 WHERE partition = 1",
     {("offset_changed", "consumer_offsets settlements[1]")}),
    ("UPDATE consumer_offsets SET updated_at_ms = updated_at_ms + 1 WHERE partition = 1",
     {("offset_changed", "consumer_offsets settlements[1]")}),
    ("UPDATE consumer_offsets SET checksum = '' WHERE partition = 1",
     {("offset_changed", "consumer_offsets settlements[1]")}),
    ("UPDATE ledger_decisions SET published_offset = 2 WHERE sequence = 1",
     {("decision_changed", "ledger_decisions 1")}),
    ("UPDATE ledger_decisions SET published_partition = 1 WHERE sequence = 1",
     {("decision_changed", "ledger_decisions 1")}),
    ("UPDATE ledger_decisions SET published_partition = NULL WHERE sequence = 1",
     {("decision_changed", "ledger_decisions 1")}),
    ("UPDATE ledger_decisions SET published_offset = 7 WHERE sequence = 2",
     {("decision_changed", "ledger_decisions 2")}),
    ("INSERT INTO closed_periods VALUES (1, '2030-12-31', '{{}}', 1)",
     {("decision_changed", "ledger_decisions 1")}),
    ("DELETE FROM ledger_decisions WHERE sequence = 1",
     {("decision_missing", "ledger_decisions 1"), ("decision_missing", "ledger-events[0]@1")}),
    ("UPDATE ledger_decisions SET sequence = sequence + 2 WHERE sequence = 2",
     {("decision_missing", "ledger_decisions 2 to 3"),
      ("decision_changed", "ledger_decisions 4"), ("decision_changed", "closed_periods 2")}),
    ("UPDATE ledger_decisions SET sequence = 1048578 WHERE sequence = 2",
     {("decision_missing", "ledger_decisions 2 to 1048577"),
      ("decision_changed", "ledger_decisions 1048578"),
      ("decision_changed", "closed_periods 2")}),
    ("UPDATE alembic_version SET version_num = '0004'",
     {("schema_differs", "alembic_version")}),
    ("UPDATE ledger_decisions SET reason = 'another' WHERE sequence = 1",
     {("decision_changed", "ledger_decisions 1")}),
    ("UPDATE closed_periods SET through_date = '2009-01-02'",
     {("decision_changed", "ledger_decisions 2")}),
    ("UPDATE postings SET line = 3 WHERE entry_number = {n} AND line = 2",
     {("entry_unbalanced", "settlements[0]@6")}),
    ("UPDATE closed_periods SET cuts = substr(cuts, 1, length(cuts) - 1) || 'x'",
     {("decision_changed", "ledger_decisions 2")}),
    ("UPDATE closed_periods SET cuts = replace(cuts, 'through', 'throuxh')",
     {("decision_changed", "ledger_decisions 2")}),
    ("UPDATE closed_periods SET cuts = cuts || ' '", {("decision_changed", "ledger_decisions 2")}),
    ("UPDATE closed_periods SET sealed = 1", {("decision_changed", "ledger_decisions 2")}),
    ("UPDATE consumer_offsets SET topic_id = 'topix' WHERE partition = 1",
     {("offset_source_differs", "consumer_offsets settlements"),
      ("offset_changed", "consumer_offsets settlements[1]")}),
    ("UPDATE consumer_offsets SET cluster_id = 'clustex' WHERE partition = 1",
     {("offset_source_differs", "consumer_offsets settlements"),
      ("offset_changed", "consumer_offsets settlements[1]")}),
    ("UPDATE chains SET chain_id = 9 WHERE partition = 1",
     {("seals_without_chain", "entry_seals 2")}),
    ("UPDATE entry_seals SET chain_id = 9 WHERE chain_id = 2 AND position = 12",
     {("seals_without_chain", "entry_seals 9")}),
]  # fmt: skip


_REFUSE = "ledger_refuse_change"
# As the guard is, but for the quotes around its condition.
_NEVER = """
    WHEN NEW.source_part <> 0 BEGIN
        SELECT RAISE(ABORT, 'the record has one entry: a further part is for decisions
            that post several')
        WHERE "NEW.source_part < 0 OR NEW.settlement_id <> '' OR NOT EXISTS (
            SELECT 1 FROM journal_entries
            WHERE source_topic = NEW.source_topic AND source_partition = NEW.source_partition
            AND source_offset = NEW.source_offset AND source_part = 0 AND settlement_id = ''
            AND kind IN ('fee_true_up', 'fee_true_up_returned', 'clearing', 'bank_receipt',
            'release')
        )";
    END"""
# By database: (what is done to the guards, which are named, and why).
GUARDS = {
    "sqlite": [
        ("DROP TRIGGER postings_no_update", {"postings postings_no_update"}, "not there"),
        ("DROP TRIGGER journal_entries_checked; CREATE TRIGGER journal_entries_checked "
         "AFTER INSERT ON journal_entries WHEN 0 BEGIN SELECT 1; END",
         {"journal_entries journal_entries_checked"}, "another one"),
        # SQLite takes what stands in double quotes and names no column for a text.
        ("DROP TRIGGER journal_entries_parts; CREATE TRIGGER journal_entries_parts AFTER INSERT "
         f"ON journal_entries {_NEVER}", {"journal_entries journal_entries_parts"}, "another one"),
        ("CREATE TRIGGER \"in the way\" AFTER INSERT ON Journal_Entries BEGIN "
         "SELECT RAISE(IGNORE); END", {"journal_entries in the way"}, "none of the ledger's"),
    ],
    "postgresql": [
        ("DROP TRIGGER postings_no_change ON postings", {"postings postings_no_change"},
         "not there"),
        ("DROP FUNCTION ledger_check_first_line() CASCADE", {"postings postings_of_an_entry"},
         "not there"),
        ("ALTER TABLE chains DISABLE TRIGGER ALL",
         {"chains chains_no_change", "chains chains_no_truncate"}, "off"),
        ("ALTER TABLE chains ENABLE REPLICA TRIGGER chains_no_change",
         {"chains chains_no_change"}, "off"),
        ("CREATE OR REPLACE FUNCTION ledger_check_close() RETURNS trigger LANGUAGE plpgsql AS "
         "$$ BEGIN RETURN NEW; END $$", {"closed_periods closed_periods_decided"}, "another one"),
        ("DROP TRIGGER chains_no_change ON chains; CREATE TRIGGER chains_no_change BEFORE UPDATE "
         "ON chains FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
         {"chains chains_no_change"}, "another one"),
        *((f"DROP TRIGGER chains_no_change ON chains; CREATE TRIGGER chains_no_change {made} "
           "EXECUTE FUNCTION {0}('chains are never changed: add another instead')".format(function),
           {"chains chains_no_change"}, "another one")
          for made, function in (
              ("BEFORE UPDATE OR DELETE ON chains FOR EACH ROW WHEN (false)", _REFUSE),
              ("BEFORE UPDATE OR DELETE ON chains FOR EACH STATEMENT", _REFUSE),
              ("BEFORE UPDATE ON chains FOR EACH ROW", _REFUSE),
              ("BEFORE UPDATE OF chain_id OR DELETE ON chains FOR EACH ROW", _REFUSE),
              ("AFTER UPDATE OR DELETE ON chains FOR EACH ROW", _REFUSE),
          )),
        ("CREATE SCHEMA other; CREATE FUNCTION other.ledger_refuse_change() RETURNS trigger "
         "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'restrict_violation', "
         "MESSAGE = TG_ARGV[0]; END $$; DROP TRIGGER chains_no_change ON chains; "
         "CREATE TRIGGER chains_no_change BEFORE UPDATE OR DELETE ON chains FOR EACH ROW EXECUTE "
         "FUNCTION other.ledger_refuse_change('chains are never changed: add another instead')",
         {"chains chains_no_change"}, "another one"),
        ("DROP TRIGGER postings_of_an_entry ON postings; CREATE CONSTRAINT TRIGGER "
         "postings_of_an_entry AFTER INSERT ON postings DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
         "WHEN (NEW.line = 0) EXECUTE FUNCTION ledger_check_first_line()",
         {"postings postings_of_an_entry"}, "another one"),
        ("DROP TRIGGER closed_periods_no_update ON closed_periods; CREATE TRIGGER "
         "closed_periods_no_update BEFORE UPDATE ON closed_periods FOR EACH ROW WHEN ("
         "(OLD.sequence IS DISTINCT FROM NEW.sequence OR OLD.through_date IS DISTINCT FROM "
         "NEW.through_date OR OLD.cuts IS DISTINCT FROM NEW.cuts) AND OLD.sealed IS DISTINCT FROM 0"
         ") EXECUTE FUNCTION ledger_refuse_change("
         "'closed_periods are never changed: add another instead')",
         {"closed_periods closed_periods_no_update"}, "another one"),
        # Its look at what the statement has inserted is one of before.
        *((f"ALTER FUNCTION ledger_check_postings() {altered}", {"postings postings_checked"},
           "another one")
          for altered in ("STABLE", "SECURITY DEFINER", "RESET ALL", "SET search_path = other",
                          "RESET jit", "SET session_replication_role = replica")),
    ],
}  # fmt: skip


class SealsSuite(OnEachDatabase):
    """Subclassed once for each database; ``url`` and ``other_url`` are of two empty ones."""

    def test_undamaged_books_are_whole_sealed_or_not(self, engine: Engine) -> None:
        """Nothing is found before the sealing, half way, and after it; then all is sealed."""
        booked(engine)
        assert verified(engine) == Verification((), (), 2 * ENTRIES, 2 * ENTRIES)
        assert seal(engine, batch=5) == 5
        half = verified(engine)
        assert (half.damages, half.unsealed) == ((), 2 * ENTRIES - 5)
        while seal(engine, batch=5):
            pass
        whole = verified(engine)
        assert (whole.damages, whole.unsealed, len(whole.heads)) == ((), 0, 2)
        assert [head.position for head in whole.heads] == [ENTRIES, ENTRIES]

    def test_the_hash_depends_on_the_log_alone(self, engine: Engine, other_url: str) -> None:
        """Other batches, other numbers, other times of posting and of sealing: the same heads."""
        booked(engine, batch=1)
        seal(engine)
        other = open_ledger(other_url)
        journal_at(other, 2).post([Item(2, 0, entry_of(999))], {2: Progress(0, 1)})
        booked(other, batch=6)
        while seal(other, batch=4):
            pass
        with reading(engine) as one, reading(other) as another:
            heads = {h.partition: h.hash for h in chain_heads(another)}
            assert {h.partition: h.hash for h in chain_heads(one)} == {p: heads[p] for p in (0, 1)}
        other.dispose()

    @pytest.mark.parametrize(("damage", "wanted"), DAMAGE)
    def test_a_single_damage_is_named_with_its_place(
        self, engine: Engine, damage: str, wanted: set[tuple[str, str]]
    ) -> None:
        """One change with the guards off, one damage told, and nothing else."""
        announce(engine, {"plans": []}, from_ms=1)
        book_all(engine)
        close(engine, "2009-01-01")
        booked(engine)
        seal(engine)
        assert found(engine) == set()
        with without_guards(engine) as connection:
            number = connection.execute(
                text("SELECT entry_number FROM journal_entries "
                     "WHERE source_partition = 0 AND source_offset = 6")
            ).scalar_one()  # fmt: skip
            connection.execute(text(damage.format(n=number)))
        assert found(engine) == {(name, place.format(n=number)) for name, place in wanted}
        assert {name for name, _ in wanted} <= set(DAMAGES)

    def test_a_guard_that_does_not_hold_is_named_with_what_makes_it_anew(
        self, engine: Engine
    ) -> None:
        """As a restore without triggers leaves books, or somebody who took them off for a while."""
        booked(engine)
        seal(engine)
        for attack, wanted, why in GUARDS[engine.dialect.name]:
            run(engine, attack)
            damages = verified(engine).damages
            assert {(d.name, d.place) for d in damages} == {("guard_missing", w) for w in wanted}
            for damage in damages:
                said, anew = damage.detail.split("; put it right by: ")
                assert said == f"it is {why}"
                run(engine, anew)
            assert found(engine) == set(), attack
        with pytest.raises(DBAPIError, match="never changed"), engine.begin() as connection:
            connection.execute(text("UPDATE chains SET topic = 'another'"))

    def test_every_guard_is_missed(self, engine: Engine) -> None:
        """By the names that the database has for them."""
        with engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                asked = "SELECT tbl_name, name FROM sqlite_master WHERE type = 'trigger'"
                drop = "DROP TRIGGER {1}"
            else:
                asked = "SELECT tgrelid::regclass, tgname FROM pg_trigger WHERE NOT tgisinternal"
                drop = "DROP TRIGGER {1} ON {0}"
            there = connection.execute(text(asked)).all()
            for table, name in there:
                connection.execute(text(drop.format(table, name)))
        assert found(engine) == {("guard_missing", f"{table} {name}") for table, name in there}
        assert len(there) > 20

    @pytest.mark.parametrize("column", ["business_date", "booked_date"])
    @pytest.mark.parametrize("day", ["2010-11-30T", "20101205", "2010-12-5", "2010-12-32", "soon"])
    def test_a_day_that_is_no_date_is_named(self, engine: Engine, column: str, day: str) -> None:
        """As text some come after the closed day that they are of."""
        booked(engine)
        with without_guards(engine) as connection:
            connection.execute(
                text(f"UPDATE journal_entries SET {column} = :day "
                     "WHERE source_partition = 0 AND source_offset = 6"), {"day": day},
            )  # fmt: skip
        (damage,) = verified(engine).damages
        assert (damage.name, damage.place) == ("day_unreadable", "settlements[0]@6")
        assert damage.detail == f"{entry_of(3).entry_id}: its {column} is {day!r}"

    def test_the_newest_decision_leaves_a_trace_though_it_posts_nothing(
        self, engine: Engine
    ) -> None:
        """Else sales would go on at the prices of before, and its number would be given again."""
        announce(engine)
        book_all(engine)
        with without_guards(engine) as connection:
            connection.execute(text("DELETE FROM ledger_decisions"))
        assert found(engine) == {("decision_missing", "ledger-events[0]@1")}
        with pytest.raises(UserError, match="booked and not in the ledger any more"):
            announce(engine)

    def test_nothing_is_decided_once_a_decision_that_is_booked_is_gone(
        self, engine: Engine
    ) -> None:
        """Its number would be given out again, and no ledger could follow the topic any more."""
        announce(engine)
        lines = conversion("merchant_available:shop", ("GBP", -100_00), ("EUR", -115_20))
        body = entry_body("conversion", "shop", "2010-12-30", lines)
        with engine.begin() as connection:
            decide(connection, kind=ENTRY, body=body, actor="anna", reason="once", now_ms=NOW_MS)
        assert book_all(engine) == 1
        with without_guards(engine) as connection:
            connection.execute(text("DELETE FROM ledger_decisions WHERE sequence = 2"))
        ((name, place),) = found(engine)
        assert (name, place[:13]) == ("decision_missing", "ledger-events")
        with (
            pytest.raises(UserError, match="booked and not in the ledger any more"),
            engine.begin() as connection,
        ):
            decide(connection, kind=ENTRY, body=body, actor="anna", reason="again", now_ms=NOW_MS)

    @pytest.mark.parametrize("kind", ["adjustment", "clearing"])
    def test_a_decision_of_one_entry_is_given_no_second_one(
        self, engine: Engine, kind: str
    ) -> None:
        """What would be a further part of its record says itself of what kind it is."""
        self._adjusted(engine)
        with pytest.raises(DBAPIError, match="the record has one entry"):
            book_by_hand(engine, 500, PAIR, of_no_settlement("mine", kind), offset=2, part=1,
                         topic=EVENTS.topic)  # fmt: skip
        with reading(engine) as connection:
            assert entry_count(connection) == 2
        assert found(engine) == set()

    @pytest.mark.parametrize(
        ("offset", "part", "settlement", "said"),
        [
            (2, 1, "", "entry, published at [0]@2, posts 1: 2 are booked"),
            (1, 0, "", "fee_schedule, published at [0]@1, posts 0: 1 are booked"),
            (1, 0, "mine", "fee_schedule, published at [0]@1, posts 0: 1 are booked"),
        ],
    )
    def test_an_entry_beside_what_a_decision_posts_is_found(
        self, engine: Engine, offset: int, part: int, settlement: str, said: str
    ) -> None:
        """Sealed with the others, with no guard in the way."""
        self._adjusted(engine)
        entry = of_no_settlement(f"settlement:{settlement}", "adjustment")
        with without_guards(engine) as connection:
            for line, (_, currency, minor) in enumerate(PAIR, 1):
                insert_line(connection, 500, line, currency, minor)
            insert_entry(connection, 500, replace(entry, settlement_id=settlement), offset=offset,
                         part=part, topic=EVENTS.topic)  # fmt: skip
        seal(engine)
        damages = [d for d in verified(engine).damages if d.name != "balance_differs"]
        assert [(d.name, d.place, d.detail) for d in damages] == [
            ("decision_posted_otherwise", f"ledger_decisions {offset}", said)
        ]

    @pytest.mark.parametrize(
        ("sequence", "kind"),
        [(2, "fee_true_up"), (3, "fee_true_up_returned"), (4, "fee_true_up"), (4, "clearing")],
    )
    def test_an_entry_beside_what_a_close_posts_is_found(
        self, engine: Engine, sequence: int, kind: str
    ) -> None:
        """Of the kinds that closes post, whichever close it is put to; the closes after it, whose
        corrections build on it, are not accused."""
        tiers = [{"above_minor": 100_00, "percentage": "1"}]
        plan = {"name": "p", "currency": "GBP", "percentage": "2", "returned": "all"}
        announce(engine, {"plans": [{**plan, "tiers": tiers}]})
        journal = journal_at(engine)
        sales = [entry_of(1, amount_minor=120_00), entry_of(4, amount_minor=80_00)]
        journal.post([Item(0, n, sale) for n, sale in enumerate(sales)], {0: Progress(0, 2)})
        # One correction, then what a refund takes back of it, twice.
        for at, day in enumerate(("2010-12-31", "2011-01-31", "2011-02-28"), 1):
            close(engine, day)
            assert book_all(engine) == 1
            assert verified(engine).damages == ()
            back = entry_of(1, kind="refund", amount_minor=-30_00, operation_id=f"r{at}",
                            business_date=f"2011-0{at}-05")  # fmt: skip
            journal.post([Item(0, at + 1, back)], {0: Progress(at + 1, at + 2)})
        with reading(engine) as connection:
            event_id = connection.execute(
                text("SELECT event_id FROM ledger_decisions WHERE sequence = :n"), {"n": sequence}
            ).scalar_one()
        entry_id = f"{kind}:{event_id}:m1:2010-12-31:1/p/:EUR"
        with without_guards(engine) as connection:
            for line, (_, currency, minor) in enumerate(PAIR, 1):
                insert_line(connection, 500, line, currency, minor)
            insert_entry(connection, 500, of_no_settlement(entry_id, kind), offset=sequence,
                         part=1, topic=EVENTS.topic)  # fmt: skip
        seal(engine)
        damages = [d for d in verified(engine).damages if d.name != "balance_differs"]
        assert [(d.name, d.place, d.detail) for d in damages] == [
            ("decision_posted_otherwise", f"ledger_decisions {sequence}",
             f"period_close, published at [0]@{sequence}, does not post {entry_id}")
        ]  # fmt: skip

    def test_an_entry_that_a_decision_lacks_is_found(self, engine: Engine) -> None:
        """Told once: by the chain where it was sealed, else by the decision."""
        self._adjusted(engine)
        for name, seals in (("decision_posted_otherwise", False), ("entry_missing", True)):
            if seals:
                assert seal(engine) == 2
            with without_guards(engine) as connection:
                of_decision = journal_entries.c.settlement_id == ""
                kept = connection.execute(select(journal_entries).where(of_decision)).one()
                connection.execute(delete(journal_entries).where(of_decision))
            names = {damage.name for damage in verified(engine).damages}
            assert names == {name, "postings_without_entry", "balance_differs"}
            with without_guards(engine) as connection:
                connection.execute(insert(journal_entries).values(tuple(kept)))

    def _adjusted(self, engine: Engine) -> None:
        """A sale, a fee schedule, which posts nothing, and an entry by hand."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        announce(engine, from_ms=NOW_MS)
        lines = conversion("merchant_available:shop", ("GBP", -100_00), ("EUR", -115_20))
        body = entry_body("adjustment", "shop", "2010-12-30", lines)
        with engine.begin() as connection:
            decide(connection, kind=ENTRY, body=body, actor="anna", reason="once", now_ms=NOW_MS)
        assert book_all(engine) == 1

    def test_a_late_truth_moved_into_a_closed_period_is_found(self, engine: Engine) -> None:
        """Also where the seals were made anew over it."""
        booked(engine)
        close(engine, "2010-12-31")
        booked(engine, first=ENTRIES)
        with without_guards(engine) as connection:
            connection.execute(
                text("UPDATE journal_entries SET booked_date = '' "
                     "WHERE source_partition = 1 AND source_offset = 30")
            )  # fmt: skip
        seal(engine)
        assert found(engine) == {("entry_in_closed_period", "settlements[1]@30")}

    def test_an_entry_slipped_in_behind_the_seals_is_found(self, engine: Engine) -> None:
        """A whole and balanced entry, at an offset that is sealed past."""
        booked(engine)
        seal(engine)
        with engine.begin() as connection:
            connection.execute(text("UPDATE consumer_offsets SET next_offset = 5 "
                                    "WHERE partition = 0"))  # fmt: skip
        Journal(engine, SOURCE).post([Item(0, 5, entry_of(777))], {0: Progress(5, 24)})
        assert found(engine) == {("entry_unsealed", "settlements[0]@5")}

    @pytest.mark.parametrize("column", ["next_offset", "settled_through_ms", "updated_at_ms"])
    def test_nothing_is_booked_from_a_changed_offset(self, engine: Engine, column: str) -> None:
        """The next settlement would be skipped, or a late fee schedule taken: the writer stops."""
        booked(engine)
        journal = Journal(engine, SOURCE)
        with without_guards(engine) as connection:
            connection.execute(text(f"UPDATE consumer_offsets SET {column} = {column} + 1 "
                                    "WHERE partition = 0"))  # fmt: skip
        with pytest.raises(OffsetChanged, match=r"settlements\[0\] is not what the ledger wrote"):
            journal.stored_offset(0)
        with pytest.raises(OffsetChanged):
            journal.post([Item(0, 24, entry_of(777))], {0: Progress(24, 25)})
        with pytest.raises(OffsetChanged):
            close(engine, "2009-01-01")
        assert journal.stored_offset(1) == 24

    def test_an_offset_set_by_hand_is_told_of_until_it_is_booked_from(self, engine: Engine) -> None:
        """As an earlier version of the writer sets it too: it goes on, and nothing is lost."""
        booked(engine)
        with engine.begin() as connection:
            connection.execute(text("UPDATE consumer_offsets SET next_offset = 26 "
                                    "WHERE partition = 0"))  # fmt: skip
        seal(engine)
        assert found(engine) == {("offset_changed", "consumer_offsets settlements[0]")}
        Journal(engine, SOURCE).post([Item(0, 26, entry_of(777))], {0: Progress(26, 27)})
        assert found(engine) == set()

    def test_any_byte_of_an_entry_counts(self, engine: Engine) -> None:
        """Each column of an entry, changed by one character, is found at its entry."""
        booked(engine)
        seal(engine)
        with reading(engine) as connection:
            columns = connection.execute(text("SELECT * FROM journal_entries LIMIT 1")).keys()
        # Places and keys, whose change the database itself refuses or which are other damages.
        others = {"entry_number", "entry_id", "settlement_id", "posting_count"}
        for column in sorted(c for c in columns if c not in others and "source" not in c):
            with without_guards(engine) as connection:
                row = connection.execute(
                    text(f"SELECT entry_number, {column} FROM journal_entries "
                         "WHERE source_partition = 1 AND source_offset = 4")
                ).one()  # fmt: skip
                set_column = text(f"UPDATE journal_entries SET {column} = :v "
                                  "WHERE entry_number = :n")  # fmt: skip
                was, number = row[1], row[0]
                changed = was + 1 if isinstance(was, int) else was + "x"
                connection.execute(set_column, {"v": changed, "n": number})
            assert ("entry_changed", "settlements[1]@4") in found(engine), column
            with without_guards(engine) as connection:
                connection.execute(set_column, {"v": was, "n": number})
            assert found(engine) == set()

    def test_a_sealer_that_was_overtaken_leaves_no_error_in_the_database(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each worker seals: with two under load a database's log was full of them."""
        booked(engine)
        errors: list[Any] = []

        @event.listens_for(engine, "handle_error")
        def keep(context: Any) -> None:
            errors.append(context.original_exception)

        def overtaken(*args: Any, **more: Any) -> list[Any]:
            entries = list(booked_entries(*args, **more))
            monkeypatch.undo()
            assert seal(engine) == 2 * ENTRIES
            return entries

        monkeypatch.setattr("pipeline.ledger.seals.booked_entries", overtaken)
        seal(engine)
        assert errors == []
        whole = verified(engine)
        assert (whole.damages, whole.unsealed) == ((), 0)

    def test_sealers_beside_writers_and_each_other(self, engine: Engine) -> None:
        """Two seal while two write: every entry once in its chain, and the books are whole."""
        for partition in (0, 1):
            journal_at(engine, partition)
        done = threading.Event()
        failures: list[BaseException] = []

        def guarded(work: object) -> None:
            try:
                work()  # type: ignore[operator]
            except BaseException as error:
                failures.append(error)

        def write(partition: int) -> None:
            journal = Journal(engine, SOURCE)
            for offset in range(15):
                journal.post([Item(partition, offset, entry_of(1000 * partition + offset))],
                             {partition: Progress(offset, offset + 1)})  # fmt: skip

        def keep_sealing() -> None:
            while not done.is_set():
                seal(engine, batch=random.Random(1).randrange(1, 5))

        writers = [threading.Thread(target=guarded, args=(lambda p=p: write(p),)) for p in (0, 1)]
        sealers = [threading.Thread(target=guarded, args=(keep_sealing,)) for _ in range(2)]
        for thread in writers + sealers:
            thread.start()
        for thread in writers:
            thread.join(60)
        done.set()
        for thread in sealers:
            thread.join(60)
        while seal(engine):
            pass
        assert not failures, failures[0]
        whole = verified(engine)
        assert (whole.damages, whole.unsealed, whole.entries) == ((), 0, 30)
        with reading(engine) as connection:
            assert [b.next_offset for b in booked_offsets(connection)] == [15, 15]


def run(engine: Engine, statements: str) -> None:
    """Several at once, as a tool runs them."""
    connection = engine.raw_connection()
    raw = connection.driver_connection
    assert raw is not None
    (raw.executescript if engine.dialect.name == "sqlite" else raw.execute)(statements)
    connection.commit()
    connection.close()


class without_guards:
    """A transaction on books whose triggers and foreign keys do not hold."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> Connection:
        self._connection = self._engine.connect()
        if self._engine.dialect.name == "postgresql":
            self._connection.execute(text("SET LOCAL session_replication_role = replica"))
            return self._connection
        raw = self._connection.connection.driver_connection
        assert raw is not None
        raw.execute("PRAGMA foreign_keys = OFF")
        self._triggers = self._connection.execute(
            text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        ).all()
        for name, _ in self._triggers:
            self._connection.execute(text(f"DROP TRIGGER {name}"))
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._engine.dialect.name == "sqlite":
            for _name, sql in self._triggers:
                self._connection.exec_driver_sql(sql)
        (self._connection.rollback if kind else self._connection.commit)()
        if self._engine.dialect.name == "sqlite":
            raw = self._connection.connection.driver_connection
            assert raw is not None
            raw.execute("PRAGMA foreign_keys = ON")
        self._connection.close()

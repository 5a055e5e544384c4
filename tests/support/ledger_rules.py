"""Fee terms, closed periods and decisions: what every ledger does with them, whatever database."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError

from pipeline.domain.decisions import (
    ENTRY,
    PERIOD_CLOSE,
    Rules,
    close_body,
    entry_body,
    schedule_body,
)
from pipeline.domain.fee_schedule import read_schedule
from pipeline.domain.posting import AMOUNT_MINOR_MAX, Posting
from pipeline.domain.transfers import conversion
from pipeline.errors import UserError
from pipeline.ledger.conversions import decide_conversion
from pipeline.ledger.database import reading
from pipeline.ledger.decision_booking import DecisionBooker
from pipeline.ledger.decisions import (
    all_decisions,
    current_rules,
    decide,
    decide_close,
    decide_terms,
    unpublished,
)
from pipeline.ledger.entries import Item, entries_of_payments
from pipeline.ledger.journal import Journal, Progress, Source
from pipeline.ledger.queries import balances, drifted_balances, entry_count
from pipeline.ledger.reports import merchant_balances, statements
from pipeline.ledger.verification import verify_books
from tests.support.ledger import PAIR, SOURCE, book_by_hand, entry_of, journal_at
from tests.support.ledger_suite import OnEachDatabase

TOPIC = SOURCE.topic
EVENTS = Source("cluster", "ledger-events", "events")
NOW_MS = 1_700_000_100_000
STANDARD: dict[str, Any] = {
    "plans": [{"name": "p", "currency": "GBP", "percentage": "2", "fixed_minor": 10,
               "returned": "all"}],
    "gateway_costs": [{"percentage": "1"}],
}  # fmt: skip


def convert(
    engine: Engine,
    account: str,
    sold: tuple[str, int],
    bought: tuple[str, int],
    day: str = "2010-12-07",
    *,
    overdraw: bool = False,
) -> None:
    """A conversion by hand, decided and booked."""
    with engine.begin() as connection:
        decide_conversion(
            connection, account, sold, bought, business_date=day, actor="anna", reason="a rate",
            now_ms=NOW_MS, overdraw=overdraw,
        )  # fmt: skip
    assert book_all(engine) == 1


def kept_balances(engine: Engine) -> dict[tuple[str, str], int]:
    """What is not nothing, by account and currency."""
    with reading(engine) as connection:
        assert drifted_balances(connection) == []
        return {
            (b.account, b.currency): b.balance_minor
            for b in balances(connection)
            if b.balance_minor
        }


def announce(engine: Engine, document: dict[str, Any] = STANDARD, from_ms: int = 1) -> None:
    """A fee schedule in force from a time on."""
    read_schedule(document)
    with engine.begin() as connection:
        decide_terms(
            connection, TOPIC, body=schedule_body(document, from_ms), effective_from_ms=from_ms,
            actor="anna", reason="prices", now_ms=NOW_MS,
        )  # fmt: skip


def close(engine: Engine, through: str, now_ms: int = NOW_MS) -> None:
    with engine.begin() as connection:
        decide_close(
            connection, TOPIC, through=through, actor="anna", reason="month end", now_ms=now_ms
        )


def book_all(engine: Engine) -> int:
    """As if every decision had been published, at its number; how many entries were made."""
    with reading(engine) as connection:
        waiting = unpublished(connection)
    booker = DecisionBooker(engine, EVENTS)
    return sum(booker.book(event, 0, event.sequence) for event in waiting)


def seal(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE ledger_decisions SET published_partition = 0, published_offset = 1")
        )
        connection.execute(text("UPDATE closed_periods SET sealed = 1"))


# Lines that fill a balance's 64 bits to nearly a half, and no account at all.
FULL = [
    (f"{account}:y", "GBP", sign * AMOUNT_MINOR_MAX)
    for _ in range(4_600) for account, sign in (("bank", 1), ("suspense", -1))
]  # fmt: skip


class RulesSuite(OnEachDatabase):
    """Subclassed once for each database, with a fixture ``url`` of an empty one."""

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

    def test_a_payments_settlements_are_found_by_their_index(self, engine: Engine) -> None:
        """What is cleared of payments is in no index of them, and a batch with fees asks for each
        of its payments: by a look at every entry it would take longer and longer."""
        items = [Item(0, n, entry_of(n)) for n in range(2_000)]
        journal_at(engine).post(items, {0: Progress(0, 2_000)})
        asked: list[tuple[str, Any]] = []
        with engine.begin() as connection:
            # Statistics as they are in use.
            connection.execute(text("ANALYZE"))
            event.listen(
                connection,
                "before_cursor_execute",
                lambda _c, _cursor, said, given, *_: asked.append((said, given)),
            )
            found = entries_of_payments(connection, [items[3].entry.payment_id])
            plans = list(asked)
            explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
            for said, given in plans:
                plan = str(connection.exec_driver_sql(f"{explain} {said}", given).all())
                assert "entry_settled_payment" in plan, plan
        assert len(plans) == 2
        assert [e.entry_id for each in found.values() for e in each] == [items[3].entry.entry_id]

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

    @pytest.mark.parametrize("through", ["2023-11-14", "2023-11-30", "9999-12-31"])
    def test_a_period_that_has_not_ended_is_not_closed(self, engine: Engine, through: str) -> None:
        """It is 2023-11-14: a close of that day or a later one decides nothing, and the days
        before can be closed as ever."""
        with pytest.raises(UserError, match=f"through {through} has not ended: it is 2023-11-14"):
            close(engine, through)
        close(engine, "2023-11-13")
        with reading(engine) as connection:
            assert [event.sequence for event in all_decisions(connection)] == [1]

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

    def test_a_closed_month_sets_its_tiers_right(self, engine: Engine) -> None:
        """1.5 % plain, 1.0 % above 100.00: of 130.00 in December, 30.00 * -0.5 % = -0.15.

        What came after the cut is January's, what was captured without terms counts nowhere, and a
        month that is closed by days is set right with its last one.
        """
        tiers = [{"above_minor": 100_00, "percentage": "1.0"}]
        plan = {"name": "p", "currency": "GBP", "percentage": "1.5", "tiers": tiers}
        journal = journal_at(engine)
        journal.post([Item(0, 0, entry_of(1, amount_minor=500_00, merchant_id="shop"))],
                     {0: Progress(0, 1)})  # fmt: skip
        announce(engine, {"plans": [plan]}, from_ms=1_700_000_000_501)
        later = {"settled_at_ms": 1_700_000_000_600, "merchant_id": "shop"}
        sales = [
            entry_of(2, amount_minor=80_00, payment_method="card", **later),
            entry_of(3, amount_minor=50_00, **later),
            entry_of(5, amount_minor=70_00, business_date="2011-01-02", **later),
        ]
        journal.post([Item(0, n, e) for n, e in enumerate(sales, 1)], {0: Progress(1, 4)})
        for day, made in (("2010-12-15", 0), ("2010-12-31", 1)):
            close(engine, day)
            journal.post([Item(0, 9 if made else 4, entry_of(90 + made, **later))],
                         {0: Progress(*((5, 10) if made else (4, 5)))})  # fmt: skip
            assert book_all(engine) == made
        with reading(engine) as connection:
            row = connection.execute(
                text("SELECT * FROM journal_entries WHERE kind = 'fee_true_up'")
            ).one()
            lines = connection.execute(
                text("SELECT a.name, p.amount_minor FROM postings p "
                     "JOIN accounts a USING (account_id) WHERE entry_number = :n ORDER BY line"),
                {"n": row.entry_number},
            ).all()  # fmt: skip
            assert drifted_balances(connection) == []
        assert (row.merchant_id, row.business_date, row.booked_date, row.terms) == (
            "shop", "2010-12-31", "", "1/p/",
        )  # fmt: skip
        assert (row.source_topic, row.source_offset) == (EVENTS.topic, 3)
        # 12.50 came after the first close and counts under the 16th: 142.50 in all, so -0.2125.
        assert [tuple(line) for line in lines] == [
            ("merchant_payable:shop", -21), ("fee_revenue:shop", 21),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("returned", "left"),
        [("all", [-3_00, -2_00, -1_00, 0]), ("none", [-3_00, -3_00, -3_00, -3_00])],
    )
    def test_refunds_take_back_what_a_months_tiers_gave_and_the_parts_sum_to_the_whole(
        self, engine: Engine, returned: str, left: list[int]
    ) -> None:
        """2 %, above 100.00 it is 1 %; 120.00 and 80.00 are captured in December: 2.40 + 1.60 less
        1.00 are 3.00. In January 66.67 are refunded, which return 1.33; of the 1.00 that the tiers
        gave, a third is taken again, 0.33: 2.00 are left.

        By the end of February 133.33 are refunded: 2.67 have come back, 0.67 were taken again, 1.00
        is left. The day after, all of it is refunded: nothing is left. Where the plan returns
        nothing, it does not of this either.
        """
        plan = {"name": "p", "currency": "GBP", "percentage": "2", "returned": returned,
                "tiers": [{"above_minor": 100_00, "percentage": "1"}]}  # fmt: skip
        announce(engine, {"plans": [plan]})
        journal = journal_at(engine)
        sales = [entry_of(1, amount_minor=120_00), entry_of(4, amount_minor=80_00)]
        journal.post([Item(0, n, e) for n, e in enumerate(sales)], {0: Progress(0, 2)})
        at = 2
        found = []
        refunds: list[tuple[str, list[tuple[int, int]]]] = [
            ("2010-12-31", []),
            ("2011-01-31", [(1, -70_00), (1, 3_33)]),
            ("2011-02-28", [(1, -53_33), (4, -13_33)]),
            ("2011-03-01", [(4, -66_67)]),
        ]
        for day, moved in refunds:
            for number, minor in moved:
                back = entry_of(
                    number, kind="refund" if minor < 0 else "refund_failed", amount_minor=minor,
                    operation_id=f"r{at}", business_date=day,
                )  # fmt: skip
                journal.post([Item(0, at, back)], {0: Progress(at, at + 1)})
                at += 1
            close(engine, day)
            book_all(engine)
            with reading(engine) as connection:
                assert verify_books(connection).damages == ()
                kept = {b.account: b.balance_minor for b in balances(connection)}
                named = [
                    (row.entry_id.split(":", 2)[2], row.gateway_reference)
                    for row in connection.execute(
                        text("SELECT * FROM journal_entries WHERE kind = 'fee_true_up_returned' "
                             "ORDER BY business_date")
                    )
                ]  # fmt: skip
            found.append(kept["fee_revenue:m1"])
        assert found == left
        assert named == [
            (f"m1:{day}:2010-12:1/p/:GBP", f"2010-12 {minor} GBP")
            for day, minor in (
                ("2011-01-31", 66_67),
                ("2011-02-28", 133_33),
                ("2011-03-01", 200_00),
            )
            if returned == "all"
        ]

    @pytest.mark.parametrize("over_versions", [True, False])
    def test_a_schedule_for_another_merchant_does_not_split_a_months_volume(
        self, engine: Engine, over_versions: bool
    ) -> None:
        """2 %, above 100.00 it is 1 %: two sales of 100.00 cost 3.00, though between them another
        merchant's price was changed, and so the version of the schedule. A close that was decided
        before it counted so stays as it was: 4.00, and a rebuild finds the same."""
        tiers = [{"above_minor": 100_00, "percentage": "1"}]
        mine = {"name": "m1-gbp", "merchant": "m1", "currency": "GBP", "percentage": "2",
                "tiers": tiers}  # fmt: skip
        other = {"name": "m2-gbp", "merchant": "m2", "currency": "GBP", "percentage": "3"}
        settled_ms = 1_700_000_000_500
        announce(engine, {"plans": [mine, other]})
        journal = journal_at(engine)
        sale = entry_of(1, amount_minor=100_00)
        journal.post([Item(0, 0, sale)], {0: Progress(0, 1)})
        announce(engine, {"plans": [mine, {**other, "percentage": "4"}]}, settled_ms + 1)
        later = entry_of(2, merchant_id="m1", amount_minor=100_00, settled_at_ms=settled_ms + 2)
        journal.post([Item(0, 1, later)], {0: Progress(1, 2)})
        if over_versions:
            close(engine, "2010-12-31")
        else:
            with engine.begin() as connection:
                decide(connection, kind=PERIOD_CLOSE, actor="anna", reason="of before",
                       body='{"cuts":{"0":2},"through":"2010-12-31"}', now_ms=NOW_MS)  # fmt: skip
        assert book_all(engine) == over_versions
        with reading(engine) as connection:
            kept = {b.account: b.balance_minor for b in balances(connection)}
            made = connection.execute(
                text("SELECT terms FROM journal_entries WHERE kind = 'fee_true_up'")
            ).scalars()
            assert list(made) == ["2/m1-gbp/"] * over_versions
            assert verify_books(connection).damages == ()
        assert kept["fee_revenue:m1"] == (-3_00 if over_versions else -4_00)

    def test_a_statement_has_what_moves_the_account_whoever_it_names(self, engine: Engine) -> None:
        """An entry by hand takes 25.00 of 100.00 and names no merchant: 75.00 in both."""
        journal_at(engine).post([Item(0, 0, entry_of(1, amount_minor=100_00))],
                                {0: Progress(0, 1)})  # fmt: skip
        lines = [Posting("merchant_payable:m1", "GBP", 25_00), Posting("bank:main", "GBP", -25_00)]
        with engine.begin() as connection:
            decide(connection, kind=ENTRY, body=entry_body("adjustment", "", "2010-12-30", lines),
                   actor="anna", reason="slip", now_ms=NOW_MS)  # fmt: skip
        book_all(engine)
        with reading(engine) as connection:
            (balance,) = merchant_balances(connection, "m1")
            (statement,) = statements(connection, "m1")
            assert statements(connection, "m2") == []
        assert balance.pending_minor == statement.closing_minor == 75_00
        assert [line.kind for line in statement.lines] == ["capture", "adjustment"]

    @pytest.mark.parametrize(
        "period",
        [
            "1, '2030-12-31', '{}', 0",
            "2, '2010-12-31', (SELECT body FROM ledger_decisions), 0",
        ],
    )
    def test_no_period_is_closed_that_nobody_closed(self, engine: Engine, period: str) -> None:
        announce(engine)
        with (
            pytest.raises(DBAPIError, match="nobody decided that the period is closed"),
            engine.begin() as connection,
        ):
            connection.execute(text(f"INSERT INTO closed_periods VALUES ({period})"))

    def test_a_period_says_the_day_of_its_decision_and_is_sealed_when_that_is_booked(
        self, engine: Engine
    ) -> None:
        said = {"body": close_body("2010-12-31", {})}
        decision = text(
            "INSERT INTO ledger_decisions (sequence, event_id, kind, actor, reason, decided_at_ms, "
            "body) VALUES (1, 'e', 'period_close', 'a', 'r', 1, :body)"
        )
        period = text("INSERT INTO closed_periods VALUES (1, '2031-12-31', :body, 0)")
        with engine.connect() as connection:
            connection.execute(decision, said)
            with pytest.raises(DBAPIError, match="nobody decided that the period is closed"):
                connection.execute(period, said)
        close(engine, "2010-12-31")
        with (
            pytest.raises(DBAPIError, match="not booked yet"),
            engine.begin() as connection,
        ):
            connection.execute(text("UPDATE closed_periods SET sealed = 1"))

    def test_an_entry_by_hand_is_booked_once_under_an_open_day(self, engine: Engine) -> None:
        """A conversion of a closed day counts under the next one; both currencies balance."""
        close(engine, "2010-12-31")
        lines = conversion("merchant_available:shop", ("GBP", -100_00), ("EUR", -115_20))
        with engine.begin() as connection:
            decide(
                connection, kind=ENTRY, body=entry_body("conversion", "shop", "2010-12-30", lines),
                actor="anna", reason="payout in euro", now_ms=NOW_MS,
            )  # fmt: skip
        with reading(engine) as connection:
            _, event = unpublished(connection)
        assert book_all(engine) == 1
        # The same command once more, at another place it was published at.
        assert DecisionBooker(engine, EVENTS).book(event, 0, 77) == 0
        with reading(engine) as connection:
            row = connection.execute(text("SELECT * FROM journal_entries")).one()
            kept = {(b.account, b.currency): b.balance_minor for b in balances(connection)}
        assert (row.kind, row.business_date, row.booked_date) == (
            "conversion", "2010-12-30", "2011-01-01",
        )  # fmt: skip
        assert kept == {
            ("merchant_available:shop", "GBP"): 100_00, ("currency_position:GBP", "GBP"): -100_00,
            ("merchant_available:shop", "EUR"): -115_20, ("currency_position:EUR", "EUR"): 115_20,
        }  # fmt: skip

    def test_what_stands_on_either_side_is_converted(self, engine: Engine) -> None:
        """A gateway owes 150,000 yen for a sale and settles 301.125 dinars. Its receivable is then
        in dinars alone, and we have given yen for dinars: until the merchant is owed dinars as
        well, after which both positions are nothing."""
        journal_at(engine).post(
            [Item(0, 0, entry_of(1, amount_minor=150_000, currency="JPY", merchant_id="tokyo"))],
            {0: Progress(0, 1)},
        )
        yen, dinars = ("JPY", 150_000), ("KWD", 301_125)
        owed = {("merchant_payable:tokyo", "JPY"): -150_000}
        settled = {("gateway_receivable:simulator", "KWD"): 301_125}
        convert(engine, "gateway_receivable:simulator", yen, dinars)
        assert kept_balances(engine) == {
            **owed, **settled,
            ("currency_position:JPY", "JPY"): 150_000, ("currency_position:KWD", "KWD"): -301_125,
        }  # fmt: skip
        convert(engine, "merchant_payable:tokyo", yen, dinars)
        assert kept_balances(engine) == {**settled, ("merchant_payable:tokyo", "KWD"): -301_125}
        with reading(engine) as connection:
            rows = connection.execute(
                text("SELECT kind, merchant_id, gateway, business_date FROM journal_entries "
                     "WHERE kind = 'conversion' ORDER BY entry_number")
            )  # fmt: skip
            assert [tuple(row) for row in rows] == [
                ("conversion", "", "none", "2010-12-07"),
                ("conversion", "tokyo", "none", "2010-12-07"),
            ]
            assert verify_books(connection).damages == ()

    def test_a_position_is_closed_by_what_the_bank_exchanges(self, engine: Engine) -> None:
        """The worked example of the docs: 12.50 of a gateway became EUR 14.40, and the bank later
        gives 12.60 for them. The position in euro is nothing, and 0.10 are gained."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        convert(engine, "gateway_receivable:simulator", ("GBP", 12_50), ("EUR", 14_40))
        lines = [Posting("bank:main", "EUR", 14_40),
                 Posting("gateway_receivable:simulator", "EUR", -14_40)]  # fmt: skip
        with engine.begin() as connection:
            decide(connection, kind=ENTRY, body=entry_body("receipt", "", "2010-12-08", lines),
                   actor="anna", reason="paid", now_ms=NOW_MS)  # fmt: skip
        book_all(engine)
        convert(engine, "bank:main", ("EUR", 14_40), ("GBP", 12_60))
        assert kept_balances(engine) == {
            ("bank:main", "GBP"): 12_60, ("merchant_payable:m1", "GBP"): -12_50,
            ("currency_position:GBP", "GBP"): -10,
        }  # fmt: skip

    def test_no_more_is_sold_than_an_account_has_unless_a_person_says_so(
        self, engine: Engine
    ) -> None:
        """A gateway owes 12.50 and we owe them to its merchant; each is all that can be sold, on
        the account's own side. Overdrawn by a person's word, it has less than nothing."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        euro = ("EUR", 14_40)
        for account in ("gateway_receivable:simulator", "merchant_payable:m1"):
            said = f"{account} has GBP 12.50, and GBP 12.51 of it are to be sold.*--overdraw"
            with pytest.raises(UserError, match=said):
                convert(engine, account, ("GBP", 12_51), euro)
        convert(engine, "merchant_payable:m1", ("GBP", 12_50), euro)
        with pytest.raises(UserError, match=r"has GBP 0\.00, and GBP 0\.01"):
            convert(engine, "merchant_payable:m1", ("GBP", 1), euro)
        convert(engine, "merchant_payable:m1", ("GBP", 7_50), ("EUR", 8_64), overdraw=True)
        assert kept_balances(engine) == {
            ("gateway_receivable:simulator", "GBP"): 12_50, ("merchant_payable:m1", "GBP"): 7_50,
            ("currency_position:GBP", "GBP"): -20_00, ("merchant_payable:m1", "EUR"): -23_04,
            ("currency_position:EUR", "EUR"): 23_04,
        }  # fmt: skip
        with pytest.raises(UserError, match=r"has GBP -7\.50, and GBP 0\.01"):
            convert(engine, "merchant_payable:m1", ("GBP", 1), euro)
        # It is another account that is meant, whatever may be overdrawn.
        with pytest.raises(UserError, match="nothing was ever booked"):
            convert(engine, "merchant_payable:m2", ("GBP", 1), euro, overdraw=True)

    def test_what_is_sold_and_not_booked_yet_is_not_sold_again(self, engine: Engine) -> None:
        """Of two commands at once the second one finds the first one's decision."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        how: dict[str, Any] = {
            "business_date": "2010-12-07", "actor": "anna", "reason": "a rate", "now_ms": NOW_MS,
        }  # fmt: skip
        of, sold, bought = "gateway_receivable:simulator", ("GBP", 10_00), ("EUR", 11_52)
        with engine.begin() as connection:
            decide_conversion(connection, of, sold, bought, **how)
        with engine.begin() as connection, pytest.raises(UserError, match=r"has GBP 2\.50, and"):
            decide_conversion(connection, of, sold, bought, **how)
        assert book_all(engine) == 1

    @pytest.mark.parametrize(
        ("account", "sold", "bought", "day", "said"),
        [
            ("merchant_payable:m1", ("GBP", 1), ("GBP", 1), "2011-01-01", "two currencies"),
            ("merchant_payble:m1", ("GBP", 1), ("EUR", 1), "2011-01-01", "there is no account"),
            ("merchant_payable:", ("GBP", 1), ("EUR", 1), "2011-01-01", "there is no account"),
            ("merchant_payable:m2", ("GBP", 1), ("EUR", 1), "2011-01-01", "nothing was ever"),
            ("merchant_payable:m1", ("JPY", 1), ("EUR", 1), "2011-01-01", "nothing was ever"),
            ("currency_position:GBP", ("GBP", 1), ("EUR", 1), "2011-01-01", "one currency alone"),
            ("merchant_payable:m1", ("GBP", 0), ("EUR", 1), "2011-01-01", "more than nothing"),
            ("merchant_payable:m1", ("GBP", 1), ("EUR", -1), "2011-01-01", "more than nothing"),
            ("merchant_payable:m1", ("GBP", 1), ("EUX", 1), "2011-01-01", "ISO 4217"),
            ("merchant_payable:m1", ("GBP", 1), ("EUR", 10**15), "2011-01-01", "a line moves"),
            ("merchant_payable:m1", ("GBP", 1), ("EUR", 1), "yesterday", "no date"),
            ("merchant_payable:m1", ("GBP", 1), ("EUR", 1), "2010-12-31",
             "everything through 2010-12-31 is closed"),
        ],
    )  # fmt: skip
    def test_a_conversion_that_cannot_be_meant_is_not_decided(
        self,
        engine: Engine,
        account: str,
        sold: tuple[str, int],
        bought: tuple[str, int],
        day: str,
        said: str,
    ) -> None:
        """Each by what is wrong with it, before anything is published."""
        journal_at(engine).post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        close(engine, "2010-12-31")
        with pytest.raises(UserError, match=said):
            convert(engine, account, sold, bought, day)
        with reading(engine) as connection:
            assert [event.kind for event in all_decisions(connection)] == [PERIOD_CLOSE]

    @pytest.mark.parametrize(
        ("kind", "day", "lines", "said"),
        [
            ("capture", "2010-12-01", [("bank:x", "GBP", 1), ("bank:y", "GBP", -1)], "no kind"),
            ("adjustment", "yesterday", [("bank:x", "GBP", 1), ("bank:y", "GBP", -1)], "no date"),
            ("adjustment", "2010-12-01", [("bank", "GBP", 1), ("bank:y", "GBP", -1)], "no account"),
            ("adjustment", "2010-12-01", [("bank:x", "GBP", 1)], "balances"),
            ("adjustment", "2010-12-01", [("bank:x", "GBP", 1), ("bank:y", "EUR", -1)], "balances"),
            ("adjustment", "2010-12-01", [("bank:x", "gbp", 1), ("bank:y", "gbp", -1)], "ISO 4217"),
            *(
                (
                    "adjustment",
                    "2010-12-01",
                    [(f"bank:{of}", "GBP", 1), ("bank:y", "GBP", -1)],
                    "no account",
                )
                for of in ("caf\udce9", "caf\u00e9", " ", "a\n", "a:b", "a" * 65)
            ),
            *(
                (
                    "adjustment",
                    "2010-12-01",
                    [(account, "GBP", 1), ("bank:y", "GBP", -1)],
                    f"{account} is kept in its own currency.*post it to {account[:-4]}:GBP",
                )
                for account in ("currency_position:EUR", "rounding:JPY")
            ),
            ("adjustment", "2010-12-01", FULL + FULL, "make several entries of it"),
        ],
    )
    def test_an_entry_by_hand_that_cannot_be_booked_is_not_decided(
        self, kind: str, day: str, lines: list[tuple[str, str, int]], said: str
    ) -> None:
        """It would be published and stay; so it is refused before, in one sentence."""
        with pytest.raises(UserError, match=said):
            entry_body(kind, "", day, [Posting(*line) for line in lines])

    def test_a_close_waits_for_the_batch_in_hand(self, engine: Engine) -> None:
        """A batch whose transaction is open when the period is closed belongs to it: the cut lies
        behind it, not in front."""
        closer = threading.Thread(target=close, args=(engine, "2010-12-31"))

        def close_now(name: str) -> None:
            if name == "ledger.entries_checked":
                closer.start()
                # If nothing held it up it would be through by then.
                closer.join(0.5)

        journal = journal_at(engine, on_step=close_now)
        journal.post([Item(0, 0, entry_of(1))], {0: Progress(0, 1)})
        closer.join(30)
        with reading(engine) as connection:
            (closing,) = current_rules(connection, Rules()).closings
            days = connection.execute(text("SELECT booked_date FROM journal_entries")).scalars()
            assert (dict(closing.cuts), list(days)) == ({0: 1}, [""])

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

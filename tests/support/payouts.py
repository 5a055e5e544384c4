"""Payout terms for tests, and the demands that every ledger's payouts have to meet."""

from __future__ import annotations

import json
import threading
from datetime import UTC, date, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, text
from stdnum.exceptions import InvalidFormat

from pipeline.commands.payouts_text import left_as_decided_lines
from pipeline.domain import bank_accounts
from pipeline.domain.decisions import ENTRY, entry_body
from pipeline.domain.model import LedgerEvent
from pipeline.domain.payout_files import payout_message
from pipeline.domain.payout_terms import terms_body
from pipeline.domain.payouts import Payout
from pipeline.domain.posting import Posting
from pipeline.domain.transfers import made_available
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.decisions import adopt, all_decisions, decide
from pipeline.ledger.entries import Item
from pipeline.ledger.journal import Progress
from pipeline.ledger.payouts import (
    Made,
    create_payouts,
    days_left_as_decided,
    decide_payout_terms,
    move_payouts,
    payout_book,
    payout_terms,
    receivables,
    settle_by_bank,
    submit_payouts,
)
from pipeline.ledger.queries import balances, drifted_balances
from tests.support.ledger import entry_of, journal_at
from tests.support.ledger_rules import book_all
from tests.support.ledger_suite import OnEachDatabase

IBAN = {"GBP": "GB82WEST12345698765432", "KWD": "KW81CBKU0000000000001234560101"}
OURS = {"GBP": "GB33BUKB20201555555555", "KWD": "KW81CBKU0000000000001234560101"}


def account(currency: str, holder: str, ibans: dict[str, str]) -> dict[str, str]:
    """Japan has no IBAN."""
    if currency == "JPY":
        return {"holder": holder, "number": "0001-1234567", "bic": "BOTKJPJT"}
    return {"holder": holder, "iban": ibans.get(currency, ibans["GBP"])}


def row(merchant: str = "shop", currency: str = "GBP", **changed: Any) -> dict[str, Any]:
    """One merchant's terms: London, 17:00, English holidays, no reserve, no minimum."""
    return {
        "merchant": merchant, "currency": currency, "time_zone": "Europe/London",
        "cut_off": "17:00", "calendar": "GB-ENG",
        "account": account(currency, f"{merchant} Ltd", IBAN), **changed,
    }  # fmt: skip


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    payouts = list(rows) or [row()]
    currencies = sorted({each["currency"] for each in payouts})
    return {
        "payouts": payouts,
        "paid_from": [
            {"currency": c, "bank": f"main-{c.lower()}", "account": account(c, "Paystream", OURS)}
            for c in currencies
        ],
    }


ROLLING = {"kind": "rolling", "percentage": "10", "days": 90}


def ms(said: str) -> int:
    """Epoch ms of a moment in UTC."""
    return int(datetime.fromisoformat(said).replace(tzinfo=UTC).timestamp() * 1000)


def announce(engine: Engine, *rows: dict[str, Any], since: str = "2010-01-01") -> None:
    announce_document(engine, document(*rows), since)


def announce_document(engine: Engine, terms: dict[str, Any], since: str) -> LedgerEvent:
    with engine.begin() as connection:
        return decide_payout_terms(
            connection, body=terms_body(terms, ms(since)), effective_from_ms=ms(since),
            actor="anna", reason="terms", now_ms=ms(since),
        )  # fmt: skip


def decided_long_ago(engine: Engine, *rows: dict[str, Any], since: str) -> None:
    """Terms whose zones and calendars were known when they were decided."""
    body = json.dumps({"effective_from_ms": ms(since), "terms": document(*rows)})
    with engine.begin() as connection:
        decide_payout_terms(
            connection, body=body, effective_from_ms=ms(since), actor="anna", reason="terms",
            now_ms=ms(since),
        )  # fmt: skip


def receive(
    engine: Engine, amount_minor: int, at: str, currency: str = "GBP", merchant: str = "shop"
) -> None:
    """Funds become available at a moment; negative ones are taken back."""
    post(engine, at, *made_available(merchant, currency, amount_minor))


def post(engine: Engine, at: str, *lines: Posting) -> None:
    body = entry_body("receipt", "shop", at[:10], lines)
    with engine.begin() as connection:
        decide(connection, kind=ENTRY, body=body, actor="bank", reason="", now_ms=ms(at))
    book_all(engine)


def sell(engine: Engine, amount_minor: int, at: str) -> None:
    """Money a gateway owes us and we owe the merchant: pending."""
    post(engine, at, Posting("gateway_receivable:sim", "GBP", amount_minor),
         Posting("merchant_payable:shop", "GBP", -amount_minor))  # fmt: skip


def create(engine: Engine, through: str, now: str, actor: str = "anna") -> Made:
    with engine.begin() as connection:
        made = create_payouts(
            connection, through=date.fromisoformat(through), actor=actor, now_ms=ms(now)
        )
    book_all(engine)
    return made


def move(engine: Engine, payout: Payout, act: str, now: str, actor: str = "bert") -> Payout:
    with engine.begin() as connection:
        move_payouts(connection, [payout.payout_id], act, actor=actor, now_ms=ms(now))
    book_all(engine)
    return payouts(engine)[payout.business_date]


def submit(engine: Engine, now: str, currency: str = "GBP") -> str:
    with engine.begin() as connection:
        message_id, _ = submit_payouts(connection, currency, actor="carla", now_ms=ms(now))
    book_all(engine)
    return message_id


def payouts(engine: Engine) -> dict[str, Payout]:
    """By business day; one merchant's in one currency."""
    with reading(engine) as connection:
        return {p.business_date: p for p in payout_book(connection).payouts.values()}


def standing(engine: Engine, currency: str = "GBP") -> dict[str, int]:
    """Every balance that is not zero, as the books have it: credits negative."""
    with reading(engine) as connection:
        assert drifted_balances(connection) == []
        return {
            b.account: b.balance_minor
            for b in balances(connection)
            if b.currency == currency and b.balance_minor
        }


class PayoutSuite(OnEachDatabase):
    """Subclassed once for each database, with a fixture ``url`` of an empty one."""

    def test_a_payout_goes_its_way_through_the_books(self, engine: Engine) -> None:
        """GBP 1,000.00 with 10 % held: 900.00 in transit, then out of the bank account."""
        announce(engine, row(reserve=ROLLING))
        receive(engine, 1000_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        (payout,) = payouts(engine).values()
        assert (payout.state, payout.amount_minor, payout.held_minor) == ("created", 900_00, 100_00)
        created = {
            "merchant_payable:shop": 1000_00, "reserve:shop": -100_00,
            "payouts_in_transit:shop": -900_00,
        }  # fmt: skip
        assert standing(engine) == created
        move(engine, payout, "approve", "2010-12-01T18:05")
        message_id = submit(engine, "2010-12-01T18:10")
        submitted = payouts(engine)["2010-12-01"]
        assert (submitted.state, submitted.message_id) == ("submitted", message_id)
        assert (submitted.approved_by, submitted.execution_date) == ("bert", "2010-12-01")
        assert standing(engine) == created
        assert move(engine, payout, "confirm", "2010-12-02T08:00").state == "paid"
        assert standing(engine) == {
            "merchant_payable:shop": 1000_00, "reserve:shop": -100_00, "bank:main-gbp": -900_00,
        }  # fmt: skip

    def test_nothing_is_created_twice(self, engine: Engine) -> None:
        """The same command again, and again later the same day with more funds: next day's."""
        announce(engine)
        receive(engine, 70_00, "2010-12-01T09:00")
        assert len(create(engine, "2010-12-01", "2010-12-01T18:00").events) == 1
        assert create(engine, "2010-12-01", "2010-12-01T18:01").events == ()
        receive(engine, 5_00, "2010-12-01T18:30")
        assert create(engine, "2010-12-01", "2010-12-01T19:00").events == ()
        # Its cut-off has not passed, so nothing of the 2nd is paid yet.
        assert create(engine, "2010-12-02", "2010-12-02T16:59").events == ()
        create(engine, "2010-12-02", "2010-12-02T17:00")
        assert [(p.business_date, p.amount_minor) for p in payouts(engine).values()] == [
            ("2010-12-01", 70_00), ("2010-12-02", 5_00),
        ]  # fmt: skip

    def test_two_commands_at_once_create_one_payout(self, engine: Engine) -> None:
        """Whoever comes second sees what the first has decided, booked or not."""
        announce(engine)
        receive(engine, 70_00, "2010-12-01T09:00")
        failures: list[BaseException] = []
        barrier = threading.Barrier(4)

        def run() -> None:
            try:
                barrier.wait(10)
                with engine.begin() as connection:
                    create_payouts(
                        connection, through=date(2010, 12, 3), actor="anna",
                        now_ms=ms("2010-12-03T18:00"),
                    )  # fmt: skip
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        book_all(engine)
        assert [p.amount_minor for p in payouts(engine).values()] == [70_00]
        assert standing(engine)["payouts_in_transit:shop"] == -70_00

    def test_each_missed_day_is_paid_by_its_own_cut_off(self, engine: Engine) -> None:
        """Run on Friday for the first time: Wednesday's, Thursday's and Friday's funds apart.

        What came at 17:00 on Wednesday is Thursday's.
        """
        announce(engine)
        receive(engine, 10_00, "2010-12-01T16:59:59.999")
        receive(engine, 20_00, "2010-12-01T17:00")
        receive(engine, 40_00, "2010-12-03T08:00")
        create(engine, "2010-12-05", "2010-12-05T20:00")
        assert {day: p.amount_minor for day, p in payouts(engine).items()} == {
            "2010-12-01": 10_00, "2010-12-02": 20_00, "2010-12-03": 40_00,
        }  # fmt: skip

    @pytest.mark.parametrize("through", ["2012-01-31", "2099-01-01", "9999-12-31"])
    def test_a_day_far_ahead_is_as_good_as_today(self, engine: Engine, through: str) -> None:
        """Each day whose cut-off has passed is paid by it, whatever day is asked for."""
        announce(engine)
        receive(engine, 10_00, "2010-12-01T10:00")
        receive(engine, 20_00, "2010-12-02T10:00")
        create(engine, through, "2010-12-03T16:00")
        assert {day: p.amount_minor for day, p in payouts(engine).items()} == {
            "2010-12-01": 10_00, "2010-12-02": 20_00,
        }  # fmt: skip
        assert create(engine, "0001-01-01", "2010-12-03T18:00").events == ()

    def test_old_funds_are_paid_with_the_first_day_that_is_looked_at(self, engine: Engine) -> None:
        """Nobody was paid for two years: what is older than 400 days comes with the first of them,
        26 November 2011, or the first business day after it, the rest by its own days."""
        announce(engine)
        receive(engine, 10_00, "2010-12-01T10:00")
        receive(engine, 20_00, "2011-11-01T10:00")
        receive(engine, 40_00, "2012-06-06T10:00")
        create(engine, "2012-12-31", "2012-12-31T18:00")
        assert {day: p.amount_minor for day, p in payouts(engine).items()} == {
            "2011-11-28": 30_00, "2012-06-06": 40_00,
        }  # fmt: skip
        # The same of who was paid before.
        receive(engine, 80_00, "2013-01-02T10:00")
        receive(engine, 160_00, "2015-01-05T10:00")
        create(engine, "2015-01-05", "2015-01-05T18:00")
        assert list(payouts(engine))[2:] == ["2013-12-02", "2015-01-05"]

    def test_a_weekend_is_as_good_as_its_friday(self, engine: Engine) -> None:
        """Who has only pending money or a debt, and was never paid, has it looked at on Friday."""
        announce(engine, row(advance={"percentage": "50", "maximum_minor": 40_00}), row("other"))
        sell(engine, 100_00, "2010-12-03T09:00")
        receive(engine, -7_00, "2010-12-03T09:00", merchant="other")
        create(engine, "2010-12-05", "2010-12-05T20:00")
        assert payouts(engine)["2010-12-03"].amount_minor == 40_00
        assert standing(engine)["merchant_receivable:other"] == 7_00

    def test_what_was_taken_back_after_the_cut_off_is_not_paid(self, engine: Engine) -> None:
        """100.00 by the cut-off, 30.00 of it refunded after it: 70.00 are paid."""
        announce(engine)
        receive(engine, 100_00, "2010-12-01T09:00")
        receive(engine, -30_00, "2010-12-01T17:30")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        assert payouts(engine)["2010-12-01"].amount_minor == 70_00

    def test_a_refund_outside_its_gateway_counts_when_it_was_made(self, engine: Engine) -> None:
        """100.00 by the cut-off; after it 50.00 more, and 30.00 sent back by bank transfer, which a
        settlement says: still 100.00 of the day are there."""
        announce(engine)
        receive(engine, 100_00, "2010-12-01T09:00")
        receive(engine, 50_00, "2010-12-01T17:30")
        back = entry_of(
            1, kind="external_refund", amount_minor=-30_00, merchant_id="shop", operation_id="r1",
            gateway_reference="TRF-1", settled_at_ms=ms("2010-12-01T17:40"),
        )  # fmt: skip
        journal_at(engine).post([Item(0, 0, back)], {0: Progress(0, 1)})
        create(engine, "2010-12-01", "2010-12-01T18:00")
        assert payouts(engine)["2010-12-01"].amount_minor == 100_00

    @pytest.mark.parametrize(
        ("currency", "zone", "calendar", "percentage", "funds", "held", "paid"),
        [
            # 7.5 % of JPY 1,999 is 149.925.
            ("JPY", "Asia/Tokyo", "JP", "7.5", 1999, 150, 1849),
            # 2.5 % of KWD 12.345 is 0.308625.
            ("KWD", "Asia/Kuwait", "KW", "2.5", 12_345, 309, 12_036),
            # 7.5 % of GBP 0.20 is 0.015: half away from zero.
            ("GBP", "Europe/London", "GB-ENG", "7.5", 20, 2, 18),
        ],
    )
    def test_the_reserve_is_rounded_to_the_currencys_own_units(
        self, engine: Engine, currency: str, zone: str, calendar: str, percentage: str,
        funds: int, held: int, paid: int,
    ) -> None:  # fmt: skip
        reserve = {"kind": "rolling", "percentage": percentage, "days": 30}
        announce(engine, row(currency=currency, time_zone=zone, calendar=calendar, reserve=reserve))
        receive(engine, funds, "2010-12-01T02:00", currency)
        create(engine, "2010-12-01", "2010-12-01T20:00")
        assert standing(engine, currency) == {
            "merchant_payable:shop": funds, "reserve:shop": -held,
            "payouts_in_transit:shop": -paid,
        }  # fmt: skip

    def test_a_rolling_reserve_is_released_when_its_days_are_over(self, engine: Engine) -> None:
        """100.00 held on 1 December for 90 days come with the payout of 1 March, not of 28
        February; of what is released no reserve is held again."""
        announce(engine, row(reserve=ROLLING))
        receive(engine, 1000_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        receive(engine, 50_00, "2011-02-28T09:00")
        create(engine, "2011-02-28", "2011-02-28T18:00")
        receive(engine, 50_00, "2011-03-01T09:00")
        create(engine, "2011-03-01", "2011-03-01T18:00")
        found = payouts(engine)
        february, march = found["2011-02-28"], found["2011-03-01"]
        assert (february.held_minor, february.released_minor, february.amount_minor) == (
            5_00, 0, 45_00,
        )  # fmt: skip
        assert (march.held_minor, march.released_minor, march.amount_minor) == (
            5_00, 100_00, 145_00,
        )  # fmt: skip
        assert standing(engine)["reserve:shop"] == -10_00
        # Their days are a Sunday and a holiday: both come on Tuesday, without any new funds.
        create(engine, "2011-05-31", "2011-05-31T18:00")
        last = payouts(engine)["2011-05-31"]
        assert (last.released_minor, last.amount_minor) == (10_00, 10_00)

    def test_below_the_minimum_all_is_carried_over(self, engine: Engine) -> None:
        """Minimum 20.00: 13.50 after the reserve is not paid and nothing is held; with 10.00 more
        22.50 are."""
        announce(engine, row(reserve=ROLLING, minimum_minor=20_00))
        receive(engine, 15_00, "2010-12-01T09:00")
        assert create(engine, "2010-12-01", "2010-12-01T18:00").events == ()
        assert standing(engine) == {
            "merchant_payable:shop": 15_00,
            "merchant_available:shop": -15_00,
        }
        receive(engine, 10_00, "2010-12-02T09:00")
        create(engine, "2010-12-02", "2010-12-02T18:00")
        assert {day: (p.amount_minor, p.held_minor) for day, p in payouts(engine).items()} == {
            "2010-12-02": (22_50, 2_50)
        }

    def test_a_negative_balance_is_met_from_the_reserve_then_called_in(
        self, engine: Engine
    ) -> None:
        """-130.00: 100.00 from the reserve, 30.00 owed from 3 December on; of the next 100.00
        these are collected first, and 10 % of the 70.00 left are held."""
        announce(engine, row(reserve=ROLLING))
        receive(engine, 1000_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        receive(engine, -130_00, "2010-12-02T09:00")
        create(engine, "2010-12-03", "2010-12-03T18:00")
        in_transit = {"merchant_payable:shop": 870_00, "payouts_in_transit:shop": -900_00}
        assert standing(engine) == {**in_transit, "merchant_receivable:shop": 30_00}
        with reading(engine) as connection:
            (owed,) = receivables(
                connection, payout_book(connection), today_ms=ms("2010-12-13T10:00")
            )
        assert (owed.amount_minor, owed.since, owed.age_days) == (30_00, "2010-12-03", 10)
        # Run again, nothing more is called in.
        assert create(engine, "2010-12-03", "2010-12-03T18:01").events == ()
        receive(engine, 100_00, "2010-12-06T09:00")
        create(engine, "2010-12-06", "2010-12-06T18:00")
        payout = payouts(engine)["2010-12-06"]
        assert (payout.collected_minor, payout.held_minor, payout.amount_minor) == (
            30_00, 7_00, 63_00,
        )  # fmt: skip
        assert standing(engine) == {
            "merchant_payable:shop": 970_00, "reserve:shop": -7_00,
            "payouts_in_transit:shop": -963_00,
        }  # fmt: skip

    def test_only_cleared_funds_are_paid_unless_the_terms_say_otherwise(
        self, engine: Engine
    ) -> None:
        """Off by default: GBP 100.00 are pending, and nothing is paid of them."""
        announce(engine, row(), row("other", advance="off"))
        sell(engine, 100_00, "2010-12-01T09:00")
        assert create(engine, "2010-12-01", "2010-12-01T18:00").events == ()

    def test_an_advance_is_paid_of_what_is_pending_and_collected_first(
        self, engine: Engine
    ) -> None:
        """Half of what is pending and 40.00 at most: of 100.00, then 60.00 pending, 40.00 and no
        more; when 100.00 have come, 40.00 are collected, 60.00 paid, and 30.00 of the next 60.00
        advanced. Nothing is paid twice: 130.00 in all, of 160.00."""
        terms = {"percentage": "50", "maximum_minor": 40_00}
        announce(engine, row(advance=terms))
        sell(engine, 100_00, "2010-12-01T09:00")
        create(engine, "2010-12-02", "2010-12-02T18:00")
        assert standing(engine) == {
            "gateway_receivable:sim": 100_00, "merchant_payable:shop": -100_00,
            "merchant_receivable:shop": 40_00, "payouts_in_transit:shop": -40_00,
        }  # fmt: skip
        sell(engine, 60_00, "2010-12-03T09:00")
        assert create(engine, "2010-12-03", "2010-12-03T18:00").events == ()
        with reading(engine) as connection:
            (owed,) = receivables(
                connection, payout_book(connection), today_ms=ms("2010-12-12T10:00")
            )
        assert (owed.amount_minor, owed.since) == (40_00, "2010-12-02")
        receive(engine, 100_00, "2010-12-06T09:00")
        create(engine, "2010-12-06", "2010-12-06T18:00")
        payout = payouts(engine)["2010-12-06"]
        assert (payout.collected_minor, payout.amount_minor) == (40_00, 60_00 + 30_00)
        assert standing(engine) == {
            "gateway_receivable:sim": 160_00, "merchant_payable:shop": -60_00,
            "merchant_receivable:shop": 30_00, "payouts_in_transit:shop": -130_00,
        }  # fmt: skip
        # What a merchant owes us otherwise counts as advanced already.
        receive(engine, -35_00, "2010-12-07T09:00")
        create(engine, "2010-12-07", "2010-12-07T18:00")
        assert standing(engine)["merchant_receivable:shop"] == 65_00

    @pytest.mark.parametrize("reserve_minor", [0, 5_00, 20_00])
    def test_a_day_on_which_a_debt_was_netted_pays_no_advance(
        self, engine: Engine, reserve_minor: int
    ) -> None:
        """-10.00 are met from the reserve or called in, with 60.00 pending. For the same day
        nothing follows, whatever becomes known meanwhile; the next day pays what is left of the
        100.00 that came, and 40.00 in advance."""
        announce(engine, row(reserve={"kind": "fixed", "amount_minor": reserve_minor},
                             advance={"percentage": "50", "maximum_minor": 40_00}))  # fmt: skip
        if reserve_minor:
            receive(engine, reserve_minor, "2010-12-01T09:00")
            post(engine, "2010-12-01T09:30",
                 Posting("merchant_available:shop", "GBP", reserve_minor),
                 Posting("reserve:shop", "GBP", -reserve_minor))  # fmt: skip
        receive(engine, -10_00, "2010-12-02T10:00")
        sell(engine, 60_00, "2010-12-02T11:00")
        (netted,) = create(engine, "2010-12-02", "2010-12-02T18:00").events
        assert netted.kind == "payout_netted"
        assert create(engine, "2010-12-02", "2010-12-02T18:05").events == ()
        # Known only afterwards, of a time before the cut-off.
        receive(engine, 100_00, "2010-12-02T16:00")
        assert create(engine, "2010-12-02", "2010-12-02T18:10").events == ()
        assert payouts(engine) == {}
        sell(engine, 150_00, "2010-12-03T09:00")
        create(engine, "2010-12-03", "2010-12-03T18:00")
        payout = payouts(engine)["2010-12-03"]
        filled_minor = min(reserve_minor, 10_00)
        assert (payout.collected_minor, payout.held_minor) == (10_00 - filled_minor, filled_minor)
        assert payout.amount_minor == 100_00 - 10_00 + 40_00

    def test_an_advance_is_of_the_newest_day(self, engine: Engine) -> None:
        """What is pending now was not so on a day that was missed."""
        announce(engine, row(advance={"percentage": "50", "maximum_minor": 40_00}))
        receive(engine, 10_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        sell(engine, 100_00, "2010-12-03T09:00")
        create(engine, "2010-12-03", "2010-12-03T18:00")
        assert {day: p.amount_minor for day, p in payouts(engine).items()} == {
            "2010-12-01": 10_00, "2010-12-03": 40_00,
        }  # fmt: skip

    def test_a_reserve_is_used_up_before_it_is_released(self, engine: Engine) -> None:
        """40.00 of the 100.00 met a negative balance: on the day 60.00 are released."""
        announce(engine, row(reserve=ROLLING))
        receive(engine, 1000_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        receive(engine, -40_00, "2010-12-02T09:00")
        create(engine, "2010-12-02", "2010-12-02T18:00")
        create(engine, "2011-03-01", "2011-03-01T18:00")
        assert payouts(engine)["2011-03-01"].amount_minor == 60_00
        assert "reserve:shop" not in standing(engine)

    def test_a_fixed_reserve_is_filled_once(self, engine: Engine) -> None:
        """50.00 fixed: of 80.00 then 30.00 are paid, of the next 20.00 all; lowered to 10.00 by
        newer terms, 40.00 are released."""
        announce(engine, row(reserve={"kind": "fixed", "amount_minor": 50_00}))
        receive(engine, 80_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        receive(engine, 20_00, "2010-12-02T09:00")
        create(engine, "2010-12-02", "2010-12-02T18:00")
        announce(engine, row(reserve={"kind": "fixed", "amount_minor": 10_00}), since="2010-12-03")
        create(engine, "2010-12-03", "2010-12-03T18:00")
        assert {day: p.amount_minor for day, p in payouts(engine).items()} == {
            "2010-12-01": 30_00, "2010-12-02": 20_00, "2010-12-03": 40_00,
        }  # fmt: skip
        assert standing(engine)["reserve:shop"] == -10_00

    def test_terms_count_from_their_time_and_not_for_what_was_paid(self, engine: Engine) -> None:
        """A reserve that counts from the afternoon of the 2nd holds nothing of the 1st."""
        announce(engine)
        announce(engine, row(reserve=ROLLING), since="2010-12-02T12:00")
        receive(engine, 10_00, "2010-12-01T09:00")
        receive(engine, 10_00, "2010-12-02T09:00")
        create(engine, "2010-12-02", "2010-12-02T18:00")
        assert {day: p.held_minor for day, p in payouts(engine).items()} == {
            "2010-12-01": 0, "2010-12-02": 1_00,
        }  # fmt: skip
        with pytest.raises(UserError, match="UTC is created already"):
            announce(engine, row(), since="2010-12-02T17:00")

    def test_a_later_cut_off_of_a_day_that_was_decided_pays_the_next_day(
        self, engine: Engine
    ) -> None:
        """Moved to 20:00 in the evening, after the day was paid: that day is named, and what came
        at 18:00 is paid under the next day's id. A day that nobody was paid for goes by it."""
        announce(engine)
        receive(engine, 10_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T17:30")
        receive(engine, 20_00, "2010-12-01T18:00")
        receive(engine, 40_00, "2010-12-01T18:00", merchant="other")
        later = document(row(cut_off="20:00"), row("other", cut_off="20:00"))
        event = announce_document(engine, later, "2010-12-01T17:45")
        with reading(engine) as connection:
            left = days_left_as_decided(connection, event)
        assert left == (("shop", "GBP", "2010-12-01"),)
        assert [*left_as_decided_lines(left)] == [
            "2010-12-01 of shop in GBP is decided already, and is not decided again: what comes "
            "until its new cut-off is paid with the next business day's payout"
        ]
        made = create(engine, "2010-12-01", "2010-12-01T20:30")
        assert [json.loads(e.body)["merchant_id"] for e in made.events] == ["other"]
        create(engine, "2010-12-02", "2010-12-02T20:30")
        with reading(engine) as connection:
            paid = payout_book(connection).payouts.values()
        assert [(p.merchant_id, p.business_date, p.amount_minor) for p in paid] == [
            ("shop", "2010-12-01", 10_00), ("other", "2010-12-01", 40_00),
            ("shop", "2010-12-02", 20_00),
        ]  # fmt: skip
        event = announce_document(engine, later, "2010-12-02T20:45")
        with reading(engine) as connection:
            assert days_left_as_decided(connection, event) == ()

    def test_a_holiday_and_the_weekend_are_nobodys_business_days(self, engine: Engine) -> None:
        """Christmas 2010 fell on a weekend, so Monday and Tuesday were free in England: what came
        after Friday's cut-off is paid on Wednesday."""
        announce(engine)
        receive(engine, 10_00, "2010-12-24T16:00")
        receive(engine, 20_00, "2010-12-24T17:00")
        create(engine, "2010-12-28", "2010-12-28T18:00")
        assert list(payouts(engine)) == ["2010-12-24"]
        create(engine, "2010-12-29", "2010-12-29T18:00")
        assert {day: p.amount_minor for day, p in payouts(engine).items()} == {
            "2010-12-24": 10_00, "2010-12-29": 20_00,
        }  # fmt: skip

    def test_the_day_ends_at_the_merchants_own_midnight(self, engine: Engine) -> None:
        """Midnight in Tokyo is 15:00 in UTC."""
        announce(
            engine, row(currency="JPY", time_zone="Asia/Tokyo", cut_off="24:00", calendar="JP")
        )
        receive(engine, 500, "2010-12-01T14:59:59.999", "JPY")
        receive(engine, 300, "2010-12-01T15:00", "JPY")
        create(engine, "2010-12-02", "2010-12-02T15:00")
        assert {day: p.amount_minor for day, p in payouts(engine).items()} == {
            "2010-12-01": 500, "2010-12-02": 300,
        }  # fmt: skip

    def test_the_cut_off_follows_summer_time(self, engine: Engine) -> None:
        """17:00 in London is 17:00 in UTC on 25 March 2011, and 16:00 on the 28th."""
        announce(engine)
        receive(engine, 1_00, "2011-03-25T16:59")
        receive(engine, 2_00, "2011-03-25T17:00")
        receive(engine, 4_00, "2011-03-28T15:59")
        receive(engine, 8_00, "2011-03-28T16:00")
        create(engine, "2011-03-29", "2011-03-29T18:00")
        assert {day: p.amount_minor for day, p in payouts(engine).items()} == {
            "2011-03-25": 1_00, "2011-03-28": 6_00, "2011-03-29": 8_00,
        }  # fmt: skip

    def test_its_creator_does_not_approve_a_payout(self, engine: Engine) -> None:
        """Four eyes: refused, and nothing is decided."""
        announce(engine)
        receive(engine, 10_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00", actor="anna")
        (payout,) = payouts(engine).values()
        for same in (
            "anna",
            "Anna",
            "ANNA ",
            " an na",
            "\uff41nna",
            "an\u200bna",
            "anna\u3164",
            " ",
        ):
            with pytest.raises(UserError, match="a second person approves it"):
                move(engine, payout, "approve", "2010-12-01T18:05", actor=same)
        assert payouts(engine)["2010-12-01"] == payout
        assert move(engine, payout, "approve", "2010-12-01T18:05", actor="bert").state == "approved"

    @pytest.mark.parametrize("gone", [{"calendar": "US-ZZ"}, {"time_zone": "Europe/Gone"}])
    def test_terms_that_were_replaced_hold_nobody_up(
        self, engine: Engine, gone: dict[str, str]
    ) -> None:
        """Nobody knows their calendar or zone any more, as after an upgrade. What came while they
        were in force is paid with the first day of those after them: 10.00 and 2.00 of the day."""
        decided_long_ago(engine, row(**gone), since="2010-01-01")
        announce(engine, since="2010-06-01")
        receive(engine, 10_00, "2010-05-03T09:00")
        receive(engine, 2_00, "2010-06-01T09:00")
        create(engine, "2010-06-02", "2010-06-03T09:00")
        (payout,) = payouts(engine).values()
        assert (payout.business_date, payout.amount_minor) == ("2010-06-01", 12_00)

    @pytest.mark.parametrize("gone", [{"calendar": "US-ZZ"}, {"time_zone": "Europe/Gone"}])
    def test_terms_in_force_that_nobody_can_follow_are_named_until_there_are_new_ones(
        self, engine: Engine, gone: dict[str, str]
    ) -> None:
        """Nobody is passed over in silence; new terms pay what is due."""
        decided_long_ago(engine, row(**gone), since="2010-01-01")
        receive(engine, 10_00, "2010-05-03T09:00")
        said = (
            r"payout terms 1 of shop in GBP cannot be followed any more .*(there is no|is no time)"
        )
        with pytest.raises(UserError, match=said):
            create(engine, "2010-06-02", "2010-06-03T09:00")
        announce(engine, since="2010-06-04")
        create(engine, "2010-06-04", "2010-06-05T09:00")
        (payout,) = payouts(engine).values()
        assert (payout.business_date, payout.amount_minor) == ("2010-06-04", 10_00)

    def test_accounts_of_decided_terms_are_not_judged_by_rules_of_today(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An upgrade knows an IBAN or a BIC no more that was good when the terms were decided: who
        has it is paid to it, everybody else as well, and what was decided is told. New terms with
        it are refused."""
        announce(engine, row(account={"holder": "Shop", "iban": "gb82 WEST 1234 5698 7654 32"}),
                 row("tokyo", "JPY"))  # fmt: skip
        announce(engine, row(), row("tokyo", "JPY"), since="2010-11-01")
        receive(engine, 10_00, "2010-12-01T09:00")

        def stricter(number: str) -> str:
            raise InvalidFormat

        monkeypatch.setattr(bank_accounts.ibans, "validate", stricter)
        monkeypatch.setattr(bank_accounts.bics, "validate", stricter)
        create(engine, "2010-12-01", "2010-12-01T18:00")
        assert payouts(engine)["2010-12-01"].account == "...5432"
        with reading(engine) as connection:
            first, _second = payout_terms(connection)
        assert first.payouts[0].account.iban == IBAN["GBP"]
        assert first.payouts[1].account.bic == "BOTKJPJT"
        for changed, told in ((row(), "is no IBAN"), (row("tokyo", "JPY"), "is no BIC")):
            with pytest.raises(UserError, match=told):
                announce(engine, changed, since="2010-12-02")

    def test_what_the_table_does_not_have_is_refused(self, engine: Engine) -> None:
        """A payout that was not approved is not submitted; one that is paid is not withdrawn."""
        announce(engine)
        receive(engine, 10_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        (payout,) = payouts(engine).values()
        with pytest.raises(UserError, match="no payout in GBP is approved"):
            submit(engine, "2010-12-01T18:05")
        for act in ("confirm", "return", "lose", "submit"):
            with pytest.raises(UserError, match="is created, so it is not to"):
                move(engine, payout, act, "2010-12-01T18:05")
        with pytest.raises(UserError, match="there is no payout"), engine.begin() as connection:
            move_payouts(connection, ["nothing"], "approve", actor="bert", now_ms=1)

    @pytest.mark.parametrize("state", ["created", "approved", "submitted", "unknown", "paid"])
    def test_what_comes_back_is_paid_again_the_next_day(self, engine: Engine, state: str) -> None:
        """900.00 come back, from wherever they were; the next day pays them, with 9.00 of 10.00
        new ones, and holds no second reserve of them."""
        announce(engine, row(reserve=ROLLING))
        receive(engine, 1000_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        (payout,) = payouts(engine).values()
        if state != "created":
            move(engine, payout, "approve", "2010-12-01T18:05")
        if state in ("submitted", "unknown", "paid"):
            submit(engine, "2010-12-01T18:10")
        if state in ("unknown", "paid"):
            act = "lose" if state == "unknown" else "confirm"
            move(engine, payout, act, "2010-12-01T19:00")
        back = "withdraw" if state in ("created", "approved") else "return"
        returned = move(engine, payout, back, "2010-12-02T10:00")
        assert returned.state == "returned"
        assert standing(engine) == {
            "merchant_payable:shop": 1000_00, "reserve:shop": -100_00,
            "merchant_available:shop": -900_00,
        }  # fmt: skip
        # The day it was for has had its payout.
        assert create(engine, "2010-12-01", "2010-12-02T11:00").events == ()
        receive(engine, 10_00, "2010-12-02T12:00")
        create(engine, "2010-12-02", "2010-12-02T18:00")
        again = payouts(engine)["2010-12-02"]
        assert (again.amount_minor, again.held_minor) == (909_00, 1_00)
        assert again.payout_id != payout.payout_id
        # That was it: of later funds the reserve is held as ever.
        receive(engine, 100_00, "2010-12-03T12:00")
        create(engine, "2010-12-03", "2010-12-03T18:00")
        assert payouts(engine)["2010-12-03"].held_minor == 10_00

    # No second reserve is held of what came back, and of nothing else none. In each case 1,000.00
    # came on 1 December: 100.00 held, 900.00 paid and sent back by the bank on 2 December.

    def returned_on_2_december(self, engine: Engine) -> None:
        announce(engine, row(reserve=ROLLING))
        receive(engine, 1000_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        self.send_back(engine, "2010-12-02T08:00")

    def send_back(self, engine: Engine, at: str) -> None:
        payout = payouts(engine)["2010-12-01"]
        move(engine, payout, "approve", "2010-12-01T18:05")
        submit(engine, "2010-12-01T18:10")
        move(engine, payout, "return", at)

    def pay_of_new_funds(self, engine: Engine, day: str, minor: int) -> tuple[int, int]:
        """What is held of these funds, and what is paid."""
        receive(engine, minor, f"{day}T09:00")
        create(engine, day, f"{day}T18:00")
        payout = payouts(engine)[day]
        return payout.held_minor, payout.amount_minor

    def test_what_refunds_took_of_a_returned_payout_is_not_exempt_for_ever(
        self, engine: Engine
    ) -> None:
        """2 December: 900.00 came back, refunds take 500.00, and 400.00 are paid of it.
        3 December: of 1,000.00 new ones 10 % are held, 100.00, and 900.00 paid."""
        self.returned_on_2_december(engine)
        assert self.pay_of_new_funds(engine, "2010-12-02", -500_00) == (0, 400_00)
        assert self.pay_of_new_funds(engine, "2010-12-03", 1000_00) == (100_00, 900_00)

    def test_what_was_collected_of_a_returned_payout_is_not_exempt_for_ever(
        self, engine: Engine, other_url: str
    ) -> None:
        """2 December: -600.00 are met by 100.00 of the reserve, and 500.00 are called in.
        3 December: 900.00 come back; 500.00 are collected of them, and 400.00 paid.
        6 December: of 1,000.00 new ones 100.00 are held, and 900.00 paid.
        Whoever follows the decisions stands the same and holds the same of what comes next."""
        announce(engine, row(reserve=ROLLING))
        receive(engine, 1000_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        receive(engine, -600_00, "2010-12-02T09:00")
        create(engine, "2010-12-02", "2010-12-02T18:00")
        self.send_back(engine, "2010-12-03T08:00")
        create(engine, "2010-12-03", "2010-12-03T18:00")
        again = payouts(engine)["2010-12-03"]
        assert (again.collected_minor, again.held_minor, again.amount_minor) == (500_00, 0, 400_00)
        other = open_ledger(other_url)
        with engine.begin() as connection, other.begin() as to:
            adopt(to, all_decisions(connection))
        book_all(other)
        assert standing(other) == standing(engine)
        for each in (engine, other):
            assert self.pay_of_new_funds(each, "2010-12-06", 1000_00) == (100_00, 900_00)
        assert standing(other) == standing(engine)
        other.dispose()

    def test_what_is_carried_over_of_a_returned_payout_stays_exempt(self, engine: Engine) -> None:
        """A minimum of 500.00. 2 December: -600.00 are met by 100.00 of the reserve, and 500.00
        are called in. 3 December: 900.00 come back, 500.00 are collected, and 400.00 carried over.
        6 December: with 1,000.00 new ones 1,400.00; 100.00 of them are held, and 1,300.00 paid."""
        announce(engine, row(reserve=ROLLING, minimum_minor=500_00))
        receive(engine, 1000_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        receive(engine, -600_00, "2010-12-02T09:00")
        create(engine, "2010-12-02", "2010-12-02T18:00")
        self.send_back(engine, "2010-12-03T08:00")
        create(engine, "2010-12-03", "2010-12-03T18:00")
        assert standing(engine)["merchant_available:shop"] == -400_00
        assert self.pay_of_new_funds(engine, "2010-12-06", 1000_00) == (100_00, 1300_00)

    @pytest.mark.parametrize("left_minor", [0, 40_00])
    def test_what_refunds_took_is_not_exempt_where_nothing_was_paid(
        self, engine: Engine, left_minor: int
    ) -> None:
        """A minimum of 50.00. 2 December: 900.00 came back, and refunds leave nothing of it, or
        40.00: nothing is paid, and no entry made. 3 December: of 1,000.00 new ones 100.00 are
        held; 900.00 are paid, or 940.00."""
        announce(engine, row(reserve=ROLLING, minimum_minor=50_00))
        receive(engine, 1000_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        self.send_back(engine, "2010-12-02T08:00")
        receive(engine, left_minor - 900_00, "2010-12-02T09:00")
        before = standing(engine)
        (decided,) = create(engine, "2010-12-02", "2010-12-02T18:00").events
        assert (decided.kind, standing(engine)) == ("payout_netted", before)
        assert create(engine, "2010-12-02", "2010-12-02T18:05").events == ()
        paid = 900_00 + left_minor
        assert self.pay_of_new_funds(engine, "2010-12-03", 1000_00) == (100_00, paid)

    def test_what_came_back_after_the_cut_off_is_exempt_the_next_day(self, engine: Engine) -> None:
        """2 December: 200.00 new ones by 17:00, 900.00 come back at 17:30. 20.00 of the new
        ones are held, and 180.00 paid. 3 December: the 900.00 are exempt."""
        announce(engine, row(reserve=ROLLING))
        receive(engine, 1000_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        self.send_back(engine, "2010-12-02T17:30")
        assert self.pay_of_new_funds(engine, "2010-12-02", 200_00) == (20_00, 180_00)
        create(engine, "2010-12-03", "2010-12-03T18:00")
        payout = payouts(engine)["2010-12-03"]
        assert (payout.held_minor, payout.amount_minor) == (0, 900_00)

    def test_what_refunds_took_of_it_after_the_cut_off_is_not_exempt_either(
        self, engine: Engine
    ) -> None:
        """2 December: 900.00 come back at 17:30, and refunds at 17:40 take all of it.
        3 December: of 1,000.00 new ones 100.00 are held."""
        announce(engine, row(reserve=ROLLING))
        receive(engine, 1000_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        self.send_back(engine, "2010-12-02T17:30")
        receive(engine, -900_00, "2010-12-02T17:40")
        create(engine, "2010-12-02", "2010-12-02T18:00")
        assert self.pay_of_new_funds(engine, "2010-12-03", 1000_00) == (100_00, 900_00)

    def test_days_that_are_made_up_for_hold_what_they_would_have_held(self, engine: Engine) -> None:
        """2 December: 900.00 came back, refunds take 500.00. 3 December: 1,000.00 new ones. Both
        days are paid on the 3rd: 400.00, and 900.00 with 100.00 held."""
        self.returned_on_2_december(engine)
        receive(engine, -500_00, "2010-12-02T09:00")
        assert self.pay_of_new_funds(engine, "2010-12-03", 1000_00) == (100_00, 900_00)
        missed = payouts(engine)["2010-12-02"]
        assert (missed.held_minor, missed.amount_minor) == (0, 400_00)

    def test_a_fixed_reserve_is_filled_up_from_what_came_back(self, engine: Engine) -> None:
        """500.00 fixed: of 1,500.00 then 1,000.00 are paid. -400.00 are met from it while they are
        out; of the 1,000.00 that come back 400.00 are held, and 600.00 paid."""
        announce(engine, row(reserve={"kind": "fixed", "amount_minor": 500_00}))
        receive(engine, 1500_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        receive(engine, -400_00, "2010-12-02T09:00")
        create(engine, "2010-12-02", "2010-12-02T18:00")
        self.send_back(engine, "2010-12-03T08:00")
        create(engine, "2010-12-03", "2010-12-03T18:00")
        payout = payouts(engine)["2010-12-03"]
        assert (payout.held_minor, payout.amount_minor) == (400_00, 600_00)

    def test_of_an_advance_that_came_back_no_reserve_was_held(self, engine: Engine) -> None:
        """1 December: of 100.00 10.00 are held and 90.00 paid, with 300.00 of 400.00 pending.
        2 December: 390.00 come back. 300.00 are what the merchant owes: they are collected, and
        90.00 are paid, of which a reserve was held, with 300.00 advanced anew.
        3 December: of 1,000.00 300.00 are collected, 70.00 of 700.00 held, and 630.00 paid; nothing
        is pending any more."""
        announce(engine, row(reserve=ROLLING,
                             advance={"percentage": "100", "maximum_minor": 300_00}))  # fmt: skip
        sell(engine, 400_00, "2010-12-01T08:00")
        assert self.pay_of_new_funds(engine, "2010-12-01", 100_00) == (10_00, 390_00)
        self.send_back(engine, "2010-12-02T08:00")
        create(engine, "2010-12-02", "2010-12-02T18:00")
        again = payouts(engine)["2010-12-02"]
        assert (again.collected_minor, again.held_minor, again.amount_minor) == (300_00, 0, 390_00)
        assert self.pay_of_new_funds(engine, "2010-12-03", 1000_00) == (70_00, 630_00)

    def test_an_advance_that_came_back_and_was_not_collected_is_not_exempt(
        self, engine: Engine
    ) -> None:
        """1 December: of 100.00 10.00 are held; 90.00 are paid, and 300.00 advanced.
        2 December: 390.00 come back. By hand the 300.00 that were owed are forgiven, and nothing is
        pending. Of 390.00 the 90.00 are exempt: 10 % of 300.00 are held, 360.00 are paid."""
        announce(engine, row(reserve=ROLLING,
                             advance={"percentage": "100", "maximum_minor": 300_00}))  # fmt: skip
        sell(engine, 400_00, "2010-12-01T08:00")
        assert self.pay_of_new_funds(engine, "2010-12-01", 100_00) == (10_00, 390_00)
        self.send_back(engine, "2010-12-02T08:00")
        post(engine, "2010-12-02T09:00", Posting("disputes_and_losses:shop", "GBP", 300_00),
             Posting("merchant_receivable:shop", "GBP", -300_00))  # fmt: skip
        post(engine, "2010-12-02T09:00", Posting("merchant_payable:shop", "GBP", 300_00),
             Posting("gateway_receivable:sim", "GBP", -300_00))  # fmt: skip
        create(engine, "2010-12-02", "2010-12-02T18:00")
        again = payouts(engine)["2010-12-02"]
        assert (again.held_minor, again.amount_minor) == (30_00, 360_00)

    def test_the_bank_confirms_or_returns_once(self, engine: Engine) -> None:
        """The same statement again changes nothing; another amount or an unknown id is refused."""
        announce(engine)
        receive(engine, 10_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        (payout,) = payouts(engine).values()

        def told(returned: bool = False, minor: int = 10_00, to: str = payout.payout_id) -> bool:
            with engine.begin() as connection:
                event = settle_by_bank(
                    connection, to, returned=returned, amount_minor=minor, currency="GBP",
                    booking_date="2010-12-02", reference="B-1", actor="statement 7",
                    now_ms=ms("2010-12-03T06:00"),
                )  # fmt: skip
            book_all(engine)
            return event is not None

        with pytest.raises(UserError, match="was never submitted"):
            told()
        move(engine, payout, "approve", "2010-12-01T18:05")
        submit(engine, "2010-12-01T18:10")
        with pytest.raises(UserError, match=r"the bank tells of GBP 9\.99"):
            told(minor=9_99)
        with pytest.raises(UserError, match="there is no payout"):
            told(to="nothing")
        assert told()
        assert not told()
        paid = payouts(engine)["2010-12-01"]
        assert (paid.state, paid.reference, paid.actor) == ("paid", "B-1", "statement 7")
        assert standing(engine)["bank:main-gbp"] == -10_00
        with engine.begin() as connection:
            days = connection.execute(
                text("SELECT business_date FROM journal_entries WHERE kind = 'payout_paid'")
            )
            assert days.scalars().all() == ["2010-12-02"]
        assert told(returned=True)
        assert not told(returned=True)
        # A payment that is told late, after its return is known.
        assert not told()
        assert payouts(engine)["2010-12-01"].state == "returned"
        assert "bank:main-gbp" not in standing(engine)

    def test_a_message_is_submitted_once(self, engine: Engine) -> None:
        """Again without a new approval it is the same message; a later approval makes another."""
        announce(engine, row(), row("other"))
        receive(engine, 10_00, "2010-12-01T09:00")
        receive(engine, 20_00, "2010-12-01T09:00", merchant="other")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        with reading(engine) as connection:
            found = {p.merchant_id: p for p in payout_book(connection).payouts.values()}
        move(engine, found["shop"], "approve", "2010-12-01T18:05")
        first = submit(engine, "2010-12-01T18:10")
        assert submit(engine, "2010-12-01T18:11") == first
        move(engine, found["other"], "approve", "2010-12-01T18:12")
        second = submit(engine, "2010-12-01T18:13")
        assert second != first
        with reading(engine) as connection:
            submissions = payout_book(connection).submissions
        assert {m: s.payout_ids for m, s in submissions.items()} == {
            first: (found["shop"].payout_id,), second: (found["other"].payout_id,),
        }  # fmt: skip

    def test_a_message_is_from_one_account(self, engine: Engine) -> None:
        """New terms name another account of ours under the same name: two messages, each with its
        own debtor, the older first."""
        announce(engine)
        receive(engine, 10_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        moved = document()
        moved["paid_from"][0]["account"]["iban"] = "GB94BARC10201530093459"
        announce_document(engine, moved, since="2010-12-01T18:01")
        receive(engine, 20_00, "2010-12-02T09:00")
        create(engine, "2010-12-02", "2010-12-02T18:00")
        for payout in payouts(engine).values():
            move(engine, payout, "approve", "2010-12-02T18:05")
        messages = [submit(engine, f"2010-12-02T18:1{n}") for n in range(3)]
        with reading(engine) as connection:
            book = payout_book(connection)
        debtors = [payout_message(book, m) for m in messages]
        assert [(d.debtor["iban"], [p.business_date for p, _ in d.transfers]) for d in debtors] == [
            (OURS["GBP"], ["2010-12-01"]),
            ("GB94BARC10201530093459", ["2010-12-02"]),
            ("GB94BARC10201530093459", ["2010-12-02"]),
        ]

    def test_a_ledger_that_takes_the_decisions_over_stands_the_same(
        self, engine: Engine, other_url: str
    ) -> None:
        """Whoever follows the same decisions has the same payouts and balances, and pays nothing
        twice."""
        announce(engine, row(reserve=ROLLING))
        receive(engine, 1000_00, "2010-12-01T09:00")
        create(engine, "2010-12-01", "2010-12-01T18:00")
        move(engine, payouts(engine)["2010-12-01"], "withdraw", "2010-12-01T18:05")
        other = open_ledger(other_url)
        with engine.begin() as connection, other.begin() as to:
            adopt(to, all_decisions(connection))
        book_all(other)
        assert payouts(other) == payouts(engine)
        assert standing(other) == standing(engine)
        assert create(other, "2010-12-01", "2010-12-01T19:00").events == ()
        other.dispose()

    def test_who_has_no_terms_is_told(self, engine: Engine) -> None:
        """Funds without terms are not paid, and not silent."""
        announce(engine)
        receive(engine, 3_00, "2010-12-01T09:00", merchant="nobody")
        made = create(engine, "2010-12-01", "2010-12-01T18:00")
        assert (made.events, made.unpaid) == ((), (("nobody", "GBP", 3_00),))

    def test_a_merchant_that_left_the_terms_is_paid_no_more(self, engine: Engine) -> None:
        announce(engine)
        announce(engine, row("other"), since="2010-12-02")
        receive(engine, 3_00, "2010-12-01T09:00")
        receive(engine, 4_00, "2010-12-02T09:00")
        create(engine, "2010-12-03", "2010-12-03T18:00")
        assert {day: p.amount_minor for day, p in payouts(engine).items()} == {"2010-12-01": 3_00}

"""Payout terms as data: what is refused, and which days are business days."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from pipeline.domain.business_days import BusinessDays
from pipeline.domain.decisions import LedgerEvent
from pipeline.domain.payout_plan import Part, Position, plan_payout
from pipeline.domain.payout_terms import read_terms, terms_on
from pipeline.domain.payouts import PAYOUT_NETTED, PayoutBook
from pipeline.errors import UserError
from tests.support.payouts import document, ms, row


def days(**changed: Any) -> BusinessDays:
    fields = {"time_zone": "Europe/London", "cut_off": "17:00", **changed}
    return BusinessDays(**fields)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"time_zone": "Europe/Nowhere"}, "no time zone"),
        ({"time_zone": "../etc/passwd"}, "no time zone"),
        ({"time_zone": "Europe"}, "no time zone"),
        ({"time_zone": "localtime"}, "no time zone"),
        ({"time_zone": "posixrules"}, "no time zone"),
        ({"time_zone": "a" * 5_000}, "no time zone"),
        ({"cut_off": "25:00"}, "no cut-off"),
        ({"cut_off": "24:01"}, "no cut-off"),
        ({"cut_off": "1\u0667:00"}, "no cut-off"),
        ({"calendar": "XX"}, "no calendar"),
        ({"calendar": "GB-XXX"}, "no calendar"),
        ({"calendar": "england"}, "no calendar"),
        ({"closed": ["2010-13-01"]}, "is no date"),
        ({"closed": "2010-12-01"}, "list of days"),
        ({"currency": "GBX"}, "ISO 4217"),
        ({"merchant": "a b"}, "merchant is"),
        ({"minimum_minor": -1}, "minimum_minor"),
        ({"minimum_minor": 1.5}, "minimum_minor"),
        ({"reserve": {"kind": "rolling", "percentage": "10"}}, "rolling has"),
        ({"reserve": {"kind": "rolling", "percentage": 10, "days": 1}}, "percentage is text"),
        ({"reserve": {"kind": "rolling", "percentage": "100.1", "days": 1}}, "percentage is text"),
        ({"reserve": {"kind": "rolling", "percentage": "\u0665", "days": 1}}, "percentage is text"),
        ({"reserve": {"kind": "rolling", "percentage": "5", "days": 0}}, "days is an integer"),
        ({"reserve": {"kind": "fixed"}}, "fixed has"),
        ({"reserve": {"kind": "other"}}, "its kind is"),
        ({"advance": "on"}, "is \"off\", or a table"),
        ({"advance": {"percentage": "50"}}, "maximum_minor is needed"),
        ({"advance": {"percentage": 50, "maximum_minor": 1}}, "percentage is text"),
        ({"advance": {"percentage": "50", "maximum_minor": 1, "fee": 1}}, "does not know fee"),
        ({"advanse": "off"}, "does not know advanse"),
        # Its check digits are those of GB82 WEST 1234 5698 7654 32.
        ({"account": {"holder": "x", "iban": "GB82WEST12345698765433"}}, "is no IBAN"),
        ({"account": {"holder": "x", "iban": "GB82WEST1234569876543"}}, "is no IBAN"),
        ({"account": {"holder": "x", "number": "1"}}, "needs its bank's bic"),
        ({"account": {"holder": "x", "number": "1", "bic": "NOBIC"}}, "is no BIC"),
        ({"account": {"holder": "x"}}, "has an iban or"),
        ({"account": {"holder": "", "iban": "GB82WEST12345698765432"}}, "the holder"),
        ({"account": {"holder": "x" * 71, "iban": "GB82WEST12345698765432"}}, "the holder"),
        ({"account": "GB82WEST12345698765432"}, "an account is a table"),
    ],
)  # fmt: skip
def test_wrong_terms_are_refused_with_their_place(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as refused:
        read_terms(document(row("first"), {**row("second"), **changed}))
    assert "payouts[1]" in str(refused.value)


def test_terms_are_for_each_merchant_and_currency_once_and_somebody_pays_them() -> None:
    with pytest.raises(UserError, match="two payouts are for shop in GBP"):
        read_terms(document(row(), row()))
    with pytest.raises(UserError, match="no paid_from pays GBP"):
        read_terms({"payouts": [row()]})


def test_an_iban_may_be_written_in_groups() -> None:
    terms = read_terms(
        document(row(account={"holder": "Shop", "iban": "GB82 WEST 1234 5698 7654 32"}))
    )
    assert terms.payouts[0].account.iban == "GB82WEST12345698765432"
    assert terms.payouts[0].account.shown == "...5432"


@pytest.mark.parametrize(
    ("calendar", "day", "free"),
    [
        ("", "2010-12-04", True),
        ("", "2010-12-27", False),
        # Christmas 2010 fell on a weekend: Monday and Tuesday were free in England.
        ("GB-ENG", "2010-12-27", True),
        ("GB-ENG", "2010-12-28", True),
        ("GB-ENG", "2010-12-29", False),
        # St Andrew's Day is free in Scotland alone.
        ("GB-SCT", "2010-11-30", True),
        ("GB-ENG", "2010-11-30", False),
        # TARGET is closed on Good Friday and Easter Monday.
        ("ECB", "2011-04-22", True),
        ("ECB", "2011-04-25", True),
        ("ECB", "2011-04-26", False),
        # Kuwait's weekend is Friday and Saturday.
        ("KW", "2010-12-03", True),
        ("KW", "2010-12-05", False),
        # The emperor's birthday until 2018.
        ("JP", "2010-12-23", True),
    ],
)
def test_free_days_are_those_of_the_calendar(calendar: str, day: str, free: bool) -> None:
    assert days(calendar=calendar).is_one(date.fromisoformat(day)) is not free


def test_further_days_may_be_closed() -> None:
    assert not days(closed=("2010-12-01",)).is_one(date(2010, 12, 1))


@pytest.mark.parametrize(
    ("zone", "cut_off", "day", "moment"),
    [
        ("Europe/London", "17:00", "2010-12-01", "2010-12-01T17:00"),
        ("Europe/London", "17:00", "2010-07-01", "2010-07-01T16:00"),
        ("Asia/Tokyo", "24:00", "2010-12-01", "2010-12-01T15:00"),
        ("Asia/Tokyo", "00:00", "2010-12-01", "2010-11-30T15:00"),
        ("America/New_York", "00:30", "2010-12-01", "2010-12-01T05:30"),
        # The clock was put back at 02:00 EDT: 01:30 was twice, and the first one counts.
        ("America/New_York", "01:30", "2010-11-07", "2010-11-07T05:30"),
        # It was put forward at 02:00 EST: 02:30 was not; 03:30 EDT is as long after 02:00.
        ("America/New_York", "02:30", "2011-03-13", "2011-03-13T07:30"),
        # The day of the change has 23 hours, and ends where the next begins.
        ("Europe/London", "24:00", "2011-03-27", "2011-03-27T23:00"),
    ],
)
def test_a_cut_off_is_a_time_of_the_merchants_own_day(
    zone: str, cut_off: str, day: str, moment: str
) -> None:
    found = days(time_zone=zone, cut_off=cut_off).cut_off_ms(date.fromisoformat(day))
    assert found == ms(moment)


def test_the_newest_terms_at_the_cut_off_count() -> None:
    """17:00 on that day: terms from then on count, terms from a millisecond later do not."""
    cut_off_ms = ms("2010-12-01T17:00")
    old = read_terms(document(row(minimum_minor=1)), version=1)
    for from_ms, minimum in ((cut_off_ms, 2), (cut_off_ms + 1, 1)):
        new = read_terms(document(row(minimum_minor=2)), version=2, effective_from_ms=from_ms)
        force = terms_on((new, old), "shop", "GBP", date(2010, 12, 1))
        assert force is not None
        assert force.terms.minimum_minor == minimum
        assert force.cut_off_ms == cut_off_ms
    assert terms_on((old,), "shop", "GBP", date(2010, 12, 4)) is None
    assert terms_on((old,), "nobody", "GBP", date(2010, 12, 1)) is None


def test_who_is_taken_out_before_the_cut_off_is_not_paid_at_it() -> None:
    """At 17:00 sharp is early enough, a millisecond later is not; and who is put in again by then
    is paid."""
    cut_off_ms, day = ms("2010-12-01T17:00"), date(2010, 12, 1)
    old = read_terms(document(row()), version=1)
    for from_ms, paid in ((ms("2010-12-01T10:00"), False), (cut_off_ms, False),
                          (cut_off_ms + 1, True)):  # fmt: skip
        without = read_terms(document(row("other")), version=2, effective_from_ms=from_ms)
        assert (terms_on((old, without), "shop", "GBP", day) is not None) is paid
    without = read_terms(document(row("other")), version=2, effective_from_ms=cut_off_ms - 2)
    for from_ms, paid in ((cut_off_ms - 1, True), (cut_off_ms + 1, False)):
        again = read_terms(document(row()), version=3, effective_from_ms=from_ms)
        assert (terms_on((old, without, again), "shop", "GBP", day) is not None) is paid


@pytest.mark.parametrize(
    ("position", "advanced"),
    [
        # 33.3 % of 100 is 33.3: a limit is rounded down.
        (Position(funds_minor=0, pending_minor=100), 33),
        (Position(funds_minor=0, pending_minor=1_000), 50),
        (Position(funds_minor=0, receivable_minor=20, pending_minor=1_000), 30),
        (Position(funds_minor=0, receivable_minor=60, pending_minor=1_000), 0),
        (Position(funds_minor=0, pending_minor=-1_000), 0),
        # The reserve met it, so nothing is owed, and still.
        (Position(funds_minor=-5, reserve=(Part("2026-12-01", 5),), pending_minor=1_000), 0),
    ],
)
def test_an_advance_keeps_to_its_limits(position: Position, advanced: int) -> None:
    """The percentage, the maximum, what is owed already; none while the balance is negative."""
    advance = {"percentage": "33.3", "maximum_minor": 50}
    (terms,) = read_terms(document(row(advance=advance))).payouts
    plan = plan_payout(position, terms, date(2027, 1, 13))
    assert plan.advanced_minor == plan.amount_minor == advanced


def test_no_more_of_what_came_back_is_gone_than_was_known_of() -> None:
    """Decisions of before did not tell an advance that came back apart, and took more of it."""
    netted = {"merchant_id": "shop", "currency": "GBP", "business_date": "2026-12-02",
              "payout_id": "", "cut_off_ms": 0, "held_minor": 0, "held_until": "",
              "released_minor": 0, "from_reserve_minor": 0, "called_in_minor": 0,
              "collected_minor": 0, "reserved_minor": 40_00}  # fmt: skip
    book = PayoutBook()
    book.take(
        LedgerEvent(
            event_id="1", kind=PAYOUT_NETTED, sequence=1, actor="anna", decided_at_ms=0,
            body=json.dumps(netted),
        )
    )  # fmt: skip
    assert book.standing("shop", "GBP").reserved_minor == 0

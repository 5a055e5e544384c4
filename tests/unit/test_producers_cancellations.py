"""Which sale a cancelled line belongs to, and what is held because none is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.domain.keys import valid_id
from producers.cancellations import GivenBack, given_back
from producers.invoice_csv import read_invoices

SAMPLE = Path(__file__).parents[2] / "data" / "online-retail-2010-12-01-to-03.csv"
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
NOW_MS = 1_790_000_000_000


def invoice(
    number: str, sku: str, quantity: int, at: str = "08:00", *, price: str = "2.00", of: str = "c1"
) -> str:
    return f"{number},{sku},THING,{quantity},01/12/2010 {at},{price},{of},United Kingdom"


def matched(tmp_path: Path, *lines: str, prefix: str = "") -> GivenBack:
    path = tmp_path / "invoices.csv"
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    found = read_invoices(path, now_ms=NOW_MS, prefix=prefix)
    assert found.problems == ()
    return given_back(found, now_ms=NOW_MS)


def shown(given: GivenBack) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(order, amount) of the refunds, and of the credits."""
    return (
        [(c.order_id, c.amount_minor or 0) for c in given.refunds],
        [(c.order_id, c.amount_minor or 0) for c in given.credits],
    )


@pytest.mark.slow
def test_the_sample_gives_seven_refunds_and_seventy_seven_credits() -> None:
    """Of 84 cancelled lines, 7 are refunds of exactly those lines (£136.10), 77 are held."""
    given = given_back(read_invoices(SAMPLE, now_ms=NOW_MS), now_ms=NOW_MS)
    assert [(c.order_id, c.command_id, c.amount_minor) for c in given.refunds] == [
        ("536488", "refund-C536506-line-1", 2_550),
        ("536537", "refund-C536737-line-1", 590),
        ("536395", "refund-C536758-line-1", 210),
        ("536397", "refund-C536826-line-1", 930),
        ("536397", "refund-C536826-line-2", 1_395),
        ("536557", "refund-C536979-line-1", 375),
        ("536617", "refund-C537024-line-1", 7_560),
    ]
    assert sum(c.amount_minor or 0 for c in given.refunds) == 13_610
    assert len(given.credits) == 77
    assert sum(c.amount_minor or 0 for c in given.credits) == 305_348


@pytest.mark.slow
def test_the_commands_of_the_sample_are_distinct_and_their_ids_may_stand_in_a_key() -> None:
    """No two lines share a payment and a command id: none would be taken for a repetition."""
    given = given_back(read_invoices(SAMPLE, now_ms=NOW_MS), now_ms=NOW_MS)
    ids = {(c.merchant_id, c.order_id, c.command_id) for c in given.commands}
    assert len(ids) == 84
    assert all(valid_id(text) for names in ids for text in names)
    assert {(c.merchant_id, c.currency, c.actor) for c in given.commands} == {
        ("online-retail", "GBP", "orders-import")
    }


@pytest.mark.slow
def test_importing_again_makes_the_same_commands(tmp_path: Path) -> None:
    """Ids and amounts come from the file alone, so a second import has no second effect."""
    found = read_invoices(SAMPLE, now_ms=NOW_MS)
    later = read_invoices(SAMPLE, now_ms=NOW_MS + 1)
    assert [
        (c.order_id, c.command_id, c.amount_minor)
        for c in given_back(found, now_ms=NOW_MS).commands
    ] == [
        (c.order_id, c.command_id, c.amount_minor)
        for c in given_back(later, now_ms=NOW_MS + 1).commands
    ]


def test_a_cancelled_line_is_a_refund_of_its_sale(tmp_path: Path) -> None:
    """The same customer, the same stock code, sold before, and enough of it."""
    (refund,) = matched(tmp_path, invoice("1", "A", 5), invoice("C2", "A", -2, "09:00")).refunds
    assert (refund.type, refund.order_id, refund.amount_minor) == ("refund", "1", 400)
    assert (refund.business_date, refund.reason) == ("2010-12-01", "cancellation C2: 2 of A")


@pytest.mark.parametrize(
    "cancelled",
    [
        invoice("C2", "A", -2, "09:00", of="c2"),
        invoice("C2", "A", -2, "09:00", of=""),
        invoice("C2", "B", -2, "09:00"),
        invoice("C2", "A", -6, "09:00"),
        invoice("C2", "A", -2, "07:59"),
    ],
    ids=["another customer", "no customer", "another stock code", "more than sold", "before it"],
)
def test_a_line_without_such_a_sale_is_a_credit(tmp_path: Path, cancelled: str) -> None:
    """Each of the four things must fit; what does not is held, never refunded to somebody."""
    refunds, credits = shown(matched(tmp_path, invoice("1", "A", 5), cancelled))
    assert refunds == []
    assert [order_id for order_id, _ in credits] == ["C2-line-1"]


def test_what_has_come_back_does_not_come_back_again(tmp_path: Path) -> None:
    """Of five sold, three and two come back; a sixth is held."""
    sale = invoice("1", "A", 5)
    backs = [invoice(f"C{n}", "A", -q, f"09:0{n}") for n, q in ((2, 3), (3, 2), (4, 1))]
    assert shown(matched(tmp_path, sale, *backs)) == (
        [("1", 600), ("1", 400)],
        [("C4-line-1", 200)],
    )


def test_the_latest_earlier_sale_is_taken(tmp_path: Path) -> None:
    """Of two sales that suffice it is the later one; of one minute, the file's order decides."""
    sales = [invoice("1", "A", 5), invoice("2", "A", 5, "09:00"), invoice("3", "A", 1, "09:30")]
    assert shown(matched(tmp_path, *sales, invoice("C4", "A", -2, "10:00")))[0] == [("2", 400)]
    assert shown(matched(tmp_path, *sales, invoice("C4", "A", -2, "09:00")))[0] == [("2", 400)]
    assert shown(matched(tmp_path, invoice("C4", "A", -2), sales[0]))[0] == []


def test_an_order_prefix_goes_with_both(tmp_path: Path) -> None:
    """A file imported under a prefix refunds the payments of that import, not of another."""
    lines = [invoice("1", "A", 5), invoice("C2", "A", -2, "09:00"), invoice("C3", "B", -1, "09:00")]
    assert shown(matched(tmp_path, *lines, prefix="x-")) == (
        [("x-1", 400)],
        [("x-C3-line-1", 200)],
    )


def test_a_sale_that_took_no_money_gives_none_back(tmp_path: Path) -> None:
    """Nothing was paid for an invoice of 0.00, so there is nothing to refund it from."""
    refunds, credits = shown(
        matched(tmp_path, invoice("1", "A", 5, price="0.00"), invoice("C2", "A", -1, "09:00"))
    )
    assert (refunds, credits) == ([], [("C2-line-1", 200)])


def test_a_cancellation_that_also_takes_money_is_held_whole(tmp_path: Path) -> None:
    """A trade-in is one credit of its total; lines of nothing ask for nothing."""
    lines = [
        invoice("1", "A", 5),
        invoice("C2", "A", -2, "09:00"),
        invoice("C2", "B", 1, "09:00", price="1.50"),
        invoice("C3", "A", -1, "09:30", price="0"),
    ]
    assert shown(matched(tmp_path, *lines)) == ([], [("C2-total", 250)])

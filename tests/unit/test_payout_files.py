"""The bank's file and the CSV of a message: valid, exact, and the same bytes every time."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib import resources
from io import StringIO
from xml.etree import ElementTree

import pytest
import xmlschema
from sqlalchemy import Engine

from pipeline.domain.money import decimal
from pipeline.domain.payout_files import NAMESPACE, pain_001, payout_message, payouts_csv
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.payouts import move_payouts, payout_book
from tests.support.payouts import (
    IBAN,
    ROLLING,
    announce,
    create,
    move,
    ms,
    payouts,
    receive,
    row,
    submit,
)

IN = {"p": NAMESPACE}


@pytest.fixture(scope="module")
def schema() -> xmlschema.XMLSchema:
    """ISO 20022's own, as a package of test tools ships it."""
    with resources.as_file(resources.files("sepaxml") / "schemas/pain.001.001.09.xsd") as path:
        return xmlschema.XMLSchema(path)


@pytest.fixture
def engine(books_url: str) -> Iterator[Engine]:
    engine = open_ledger(books_url)
    yield engine
    engine.dispose()


ROWS = {
    "GBP": [row(reserve=ROLLING), row("other")],
    "JPY": [row(currency="JPY", time_zone="Asia/Tokyo", calendar="JP")],
    "KWD": [row(currency="KWD", time_zone="Asia/Kuwait", calendar="KW")],
}


def submitted(engine: Engine, currency: str) -> str:
    rows = ROWS[currency]
    announce(engine, *rows)
    for number, each in enumerate(rows):
        receive(engine, 12_345 + number, "2010-12-01T02:00", currency, each["merchant"])
    create(engine, "2010-12-01", "2010-12-01T18:00")
    with engine.begin() as connection:
        for payout in list(payout_book(connection).payouts.values()):
            move_payouts(connection, [payout.payout_id], "approve", actor="bert",
                        now_ms=ms("2010-12-01T18:05"))  # fmt: skip
    return submit(engine, "2010-12-01T18:10:59.999", currency)


def files(engine: Engine, message_id: str) -> tuple[bytes, bytes]:
    with reading(engine) as connection:
        message = payout_message(payout_book(connection), message_id)
    return pain_001(message), payouts_csv(message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("currency", "amounts", "total"),
    [
        # 123.45 less 10 %: 12.345 is rounded to 12.35. 123.46 whole.
        ("GBP", ["111.10", "123.46"], "234.56"),
        ("JPY", ["12345"], "12345"),
        ("KWD", ["12.345"], "12.345"),
    ],
)
def test_the_banks_file_is_valid_and_exact(
    engine: Engine, schema: xmlschema.XMLSchema, currency: str, amounts: list[str], total: str
) -> None:
    """By the schema of ISO 20022: amounts in the currency's decimals, their sum, their number."""
    message_id = submitted(engine, currency)
    xml, _ = files(engine, message_id)
    schema.validate(xml.decode())
    root = ElementTree.fromstring(xml)
    instructed = root.findall(".//p:InstdAmt", IN)
    assert sorted(each.text or "" for each in instructed) == amounts
    assert {each.get("Ccy") for each in instructed} == {currency}
    assert [each.text for each in root.findall(".//p:CtrlSum", IN)] == [total, total]
    # Each has a line of its own in the statement, which confirms it.
    assert root.findtext(".//p:BtchBookg", namespaces=IN) == "false"
    assert {each.text for each in root.findall(".//p:NbOfTxs", IN)} == {str(len(amounts))}
    with reading(engine) as connection:
        found = payout_book(connection).payouts
    assert {each.text for each in root.findall(".//p:EndToEndId", IN)} == set(found)
    assert root.findtext(".//p:MsgId", namespaces=IN) == message_id
    assert root.findtext(".//p:CreDtTm", namespaces=IN) == "2010-12-01T18:10:59Z"
    assert root.findtext(".//p:ReqdExctnDt/p:Dt", namespaces=IN) == "2010-12-01"


@pytest.mark.slow
def test_no_cell_of_the_csv_is_a_formula(engine: Engine) -> None:
    """A holder is free text, and so are the names of those who decided."""
    announce(engine, row(account={"holder": '=HYPERLINK("http://x")', "iban": IBAN["GBP"]}))
    receive(engine, 12_345, "2010-12-01T02:00", "GBP", "shop")
    create(engine, "2010-12-01", "2010-12-01T18:00", actor="=cmd|'/c calc'!A1")
    with engine.begin() as connection:
        (payout,) = payout_book(connection).payouts.values()
        move_payouts(connection, [payout.payout_id], "approve", actor="@bert",
                     now_ms=ms("2010-12-01T18:05"))  # fmt: skip
    _, written = files(engine, submit(engine, "2010-12-01T18:10", "GBP"))
    (found,) = csv.DictReader(StringIO(written.decode()))
    assert found["holder"] == '\'=HYPERLINK("http://x")'
    assert (found["created_by"], found["approved_by"]) == ("'=cmd|'/c calc'!A1", "'@bert")


@pytest.mark.slow
def test_an_account_without_an_iban_has_its_number_and_bank(
    engine: Engine, schema: xmlschema.XMLSchema
) -> None:
    xml, _ = files(engine, submitted(engine, "JPY"))
    root = ElementTree.fromstring(xml)
    assert root.findtext(".//p:CdtrAcct/p:Id/p:Othr/p:Id", namespaces=IN) == "0001-1234567"
    assert root.findtext(".//p:CdtrAgt//p:BICFI", namespaces=IN) == "BOTKJPJT"


@pytest.mark.slow
def test_text_is_escaped(engine: Engine, schema: xmlschema.XMLSchema) -> None:
    """A holder's name cannot end an element, and keeps its letters."""
    holder = 'Müller & <Söhne> "Ltd"'
    announce(engine, row(account={"holder": holder, "iban": "GB82WEST12345698765432"}))
    receive(engine, 100, "2010-12-01T09:00")
    create(engine, "2010-12-01", "2010-12-01T18:00")
    move(engine, payouts(engine)["2010-12-01"], "approve", "2010-12-01T18:05")
    xml, _ = files(engine, submit(engine, "2010-12-01T18:10"))
    schema.validate(xml.decode())
    assert ElementTree.fromstring(xml).findtext(".//p:Cdtr/p:Nm", namespaces=IN) == holder


@pytest.mark.slow
def test_a_message_is_the_same_bytes_whatever_becomes_of_it(engine: Engine) -> None:
    """Submitted again, or written after one payout was paid and another came back."""
    message_id = submitted(engine, "GBP")
    first = files(engine, message_id)
    assert submit(engine, "2010-12-02T09:00") == message_id
    with reading(engine) as connection:
        one, other = payout_book(connection).payouts
    with engine.begin() as connection:
        for payout_id, act in ((one, "confirm"), (other, "return")):
            move_payouts(connection, [payout_id], act, actor="bank", now_ms=ms("2010-12-03T09:00"))
    assert files(engine, message_id) == first
    with pytest.raises(UserError, match="was ever submitted"):
        files(engine, "PSnothing")


@pytest.mark.slow
def test_the_csv_has_a_row_for_each_payout(engine: Engine) -> None:
    message_id = submitted(engine, "GBP")
    _, written = files(engine, message_id)
    rows = {r["merchant"]: r for r in csv.DictReader(StringIO(written.decode()))}
    shop = rows["shop"]
    assert (shop["amount"], shop["held"], shop["currency"]) == ("111.10", "12.35", "GBP")
    assert (shop["iban"], shop["holder"]) == ("GB82WEST12345698765432", "shop Ltd")
    assert (shop["created_by"], shop["approved_by"]) == ("anna", "bert")
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("minor", "currency", "text"),
    [(0, "GBP", "0.00"), (-5, "GBP", "-0.05"), (1999, "JPY", "1999"), (12_345, "KWD", "12.345")],
)
def test_a_decimal_has_the_currencys_own_digits(minor: int, currency: str, text: str) -> None:
    assert decimal(minor, currency) == text

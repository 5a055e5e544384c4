"""``paystream ledger`` over a real SQLite file: what a finance engineer reads and exports."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from typer.testing import Result

from pipeline.cli import app
from pipeline.domain.decisions import ENTRY, entry_body
from pipeline.domain.transfers import made_available
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger
from pipeline.ledger.decisions import decide
from pipeline.ledger.entries import Item
from pipeline.ledger.journal import Progress
from pipeline.ledger.seals import seal
from pipeline.ledger.tables import SCHEMA_VERSION
from tests.support.cli_runner import CliRunner
from tests.support.ledger import entry_of, journal_at
from tests.support.ledger_migrations import made_by
from tests.support.ledger_rules import STANDARD, announce, book_all, close
from tests.support.ledger_seals import without_guards


@pytest.fixture
def books(tmp_path: Path) -> Iterator[tuple[str, Engine]]:
    """Two sales of `shop`, a partial refund, 40.00 made available, and a sale in yen elsewhere."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    engine = open_ledger(url)
    journal = journal_at(engine)
    announce(engine, STANDARD)
    shop = {"merchant_id": "shop"}
    entries = [
        entry_of(1, amount_minor=100_00, **shop),
        entry_of(1, amount_minor=-30_00, kind="refund", operation_id="r1", **shop),
        entry_of(2, amount_minor=10_00, business_date="2011-01-03", **shop),
        entry_of(3, amount_minor=1999, currency="JPY", merchant_id="tokyo"),
    ]
    journal.post([Item(0, n, e) for n, e in enumerate(entries)], {0: Progress(0, 4)})
    with engine.begin() as connection:
        lines = made_available("shop", "GBP", 40_00)
        decide(
            connection, kind=ENTRY, body=entry_body("available", "shop", "2011-01-04", lines),
            actor="anna", reason="received", now_ms=1_700_000_000_900,
        )  # fmt: skip
    assert book_all(engine) == 1
    seal(engine)
    yield url, engine
    engine.dispose()


def run(books: tuple[str, Engine], *arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["ledger", *arguments, "--ledger-url", books[0]], catch_exceptions=False
    )


def test_balances_tell_pending_and_available_apart(books: tuple[str, Engine]) -> None:
    """100.00 - 2.10 fee - 30.00 + 0.63 returned + 10.00 - 0.30 fee; 40.00 of it are available."""
    result = run(books, "balances", "--json")
    shop, tokyo = json.loads(result.stdout)
    assert (shop["merchant"], shop["currency"]) == ("shop", "GBP")
    assert (shop["pending_minor"], shop["available_minor"]) == (78_23 - 40_00, 40_00)
    assert (tokyo["merchant"], tokyo["currency"], tokyo["pending_minor"]) == ("tokyo", "JPY", 1999)
    shown = run(books, "balances", "tokyo").stdout.splitlines()
    assert shown[1].split() == ["tokyo", "JPY", "1999", "0", "0", "0", "0"]
    accounts = {line.split()[0]: line.split()[-1] for line in
                run(books, "balances", "--all").stdout.splitlines()[1:]}  # fmt: skip
    assert accounts["fee_revenue:shop"] == "-1.77"


@pytest.mark.parametrize(
    ("sold", "bought", "said"),
    [
        ("100.00", "115.20:EUR", "write AMOUNT:CURRENCY"),
        ("100.001:GBP", "115.20:EUR", "finer than GBP allows"),
        ("100.00:GBP", "17500.5:JPY", "finer than JPY allows"),
        ("100.00:GBP", "115.20:GBP", "between two currencies"),
        ("0:GBP", "115.20:EUR", "what is sold is more than nothing, not GBP 0.00"),
        ("100.00:GBP", "-44.1234:KWD", "finer than KWD allows"),
        ("100.00:GBP", "-44.123:KWD", "what is bought is more than nothing, not KWD -44.123"),
    ],
)
def test_a_conversion_is_refused_before_a_server_is_asked(
    books: tuple[str, Engine], sold: str, bought: str, said: str
) -> None:
    """There is none in this test."""
    with pytest.raises(UserError, match=said):
        run(books, "convert", "merchant_available:shop", "--sold", sold, "--bought", bought,
            "--date", "2010-12-07", "--reason", "is paid in euro")  # fmt: skip


def test_a_statement_leads_from_opening_to_closing(books: tuple[str, Engine]) -> None:
    """Each entry with its effect and its source; the next period opens where the last closed."""
    (december,) = json.loads(run(books, "statement", "shop", "--period", "2010-12",
                                 "--json").stdout)  # fmt: skip
    (january,) = json.loads(run(books, "statement", "shop", "--period", "2011-01",
                                "--json").stdout)  # fmt: skip
    assert [line["pending_minor"] for line in december["lines"]] == [97_90, -29_37]
    assert december["opening_minor"] == 0
    assert december["closing_minor"] == january["opening_minor"] == 68_53
    assert [(line["kind"], line["balance_minor"]) for line in january["lines"]] == [
        ("capture", 78_23), ("available", 78_23),
    ]  # fmt: skip
    assert january["closing_minor"] == 78_23
    assert january["lines"][0]["source"] == "settlements[0]@2"
    text_shown = run(books, "statement", "shop").stdout
    assert "closing balance" in text_shown
    assert "78.23" in text_shown
    nobody = run(books, "statement", "nobody")
    assert (nobody.exit_code, nobody.stderr) == (1, "nothing is booked of nobody\n")


def test_an_entry_shows_all_that_leads_to_it(books: tuple[str, Engine]) -> None:
    """By its own id or its settlement's: lines, terms, source and seal."""
    refund = entry_of(1, amount_minor=-30_00, kind="refund", operation_id="r1",
                      merchant_id="shop")  # fmt: skip
    by_settlement = run(books, "entry", refund.settlement_id, "--json")
    shown = json.loads(by_settlement.stdout)
    assert shown == json.loads(run(books, "entry", refund.entry_id, "--json").stdout)
    assert shown["terms"] == "1/p/"
    assert (shown["source_topic"], shown["source_offset"]) == ("settlements", 1)
    assert shown["seal"][0] == 2
    assert {line["account"]: line["amount_minor"] for line in shown["lines"][2:]} == {
        "merchant_payable:shop": -63, "fee_revenue:shop": 63,
    }  # fmt: skip
    assert "credit gateway_receivable:simulator" in run(books, "entry", refund.entry_id).stdout
    assert run(books, "entry", "nothing").exit_code == 1


def test_the_export_balances_and_names_its_source(
    books: tuple[str, Engine], tmp_path: Path
) -> None:
    """Every line once, in decimals of its currency; debits equal credits in each."""
    file = tmp_path / "export.csv"
    done = run(books, "export", str(file))
    rows = list(csv.DictReader(StringIO(file.read_text(encoding="utf-8"))))
    assert done.stdout == f"{len(rows)} lines are in {file}\n"
    for currency in ("GBP", "JPY"):
        of_it = [row for row in rows if row["currency"] == currency]
        assert of_it
        debits, credits = (
            sum(round(float(row[side] or 0) * 100) for row in of_it) for side in ("debit", "credit")
        )
        assert debits == credits
    yen = next(row for row in rows if row["account"] == "merchant_payable:tokyo")
    assert (yen["credit"], yen["source"]) == ("1999", "settlements[0]@3")
    only = run(books, "export", "--period", "2011-01-03").stdout.splitlines()
    assert {line.split(",")[2] for line in only[1:]} == {"2011-01-03"}
    with pytest.raises(UserError, match="cannot be written"):
        run(books, "export", str(tmp_path / "no" / "folder.csv"))


def test_no_cell_of_the_export_is_a_formula(books: tuple[str, Engine]) -> None:
    """What a gateway or a merchant wrote is text to a spreadsheet; amounts stay as they are."""
    hostile = entry_of(
        90, merchant_id="-2", order_id="-3", gateway_reference='=HYPERLINK("http://x","pay")'
    )
    journal_at(books[1]).post([Item(0, 4, hostile)], {0: Progress(4, 5)})
    rows = list(csv.DictReader(StringIO(run(books, "export").stdout)))
    found = next(row for row in rows if row["source"] == "settlements[0]@4" and row["debit"])
    assert (found["merchant_id"], found["order_id"], found["debit"]) == ("'-2", "'-3", "12.50")
    assert found["gateway_reference"] == '\'=HYPERLINK("http://x","pay")'
    assert not [cell for row in rows for cell in row.values() if cell[:1] in ("=", "+", "-", "@")]


def test_verify_names_a_changed_byte_and_ends_with_1(books: tuple[str, Engine]) -> None:
    """Whole books end with 0 and the newest hashes; one changed character with 1 and its place."""
    whole = run(books, "verify")
    assert whole.exit_code == 0
    assert "WHOLE" in whole.stdout
    assert "settlements[0]: 4 entries, " in whole.stdout
    with without_guards(books[1]) as connection:
        connection.execute(
            text(
                "UPDATE journal_entries SET gateway_reference = 'ch_9' "
                "WHERE source_offset = 2 AND source_topic = 'settlements'"
            )
        )
    damaged = run(books, "verify")
    assert damaged.exit_code == 1
    assert "settlements[0]@2" in damaged.stdout
    said: dict[str, Any] = json.loads(run(books, "verify", "--json").stdout)
    assert [(d["name"], d["place"]) for d in said["damages"]] == [
        ("entry_changed", "settlements[0]@2")
    ]
    assert not said["whole"]


def test_fees_show_what_was_put_into_force(books: tuple[str, Engine]) -> None:
    """Who, when, why, from when on, and the document itself."""
    shown = run(books, "fees", "show").stdout
    first, _, document = shown.partition("\n")
    assert first.startswith("schedule 1 from 1970-01-01 00:00:00 UTC, by anna at ")
    assert json.loads(document) == STANDARD


def test_decisions_that_are_not_published_are_told(books: tuple[str, Engine]) -> None:
    """A close that was interrupted is no damage, and is not silent either."""
    close(books[1], "2011-01-31")
    shown = run(books, "verify")
    assert shown.exit_code == 0
    assert "1 decisions are not published: run `paystream ledger publish`" in shown.stdout


def test_reading_makes_and_changes_nothing(tmp_path: Path) -> None:
    """A wrong path is said so and leaves no empty ledger; an old one is told how to go on."""
    nowhere = tmp_path / "nowhere.db"
    with pytest.raises(UserError, match="there is no ledger"):
        run((f"sqlite:///{nowhere}", None), "balances")  # type: ignore[arg-type]
    assert not nowhere.exists()
    with pytest.raises(UserError, match="there is no ledger"):
        run((f"sqlite:///{nowhere}", None), "migrate")  # type: ignore[arg-type]
    assert not nowhere.exists()
    assert run((f"sqlite:///{nowhere}", None), "migrate", "--create").exit_code == 0  # type: ignore[arg-type]
    assert nowhere.exists()
    old = f"sqlite:///{tmp_path / 'old.db'}"
    made_by(old, "0001")
    with pytest.raises(UserError, match="paystream ledger migrate"):
        run((old, None), "balances")  # type: ignore[arg-type]
    done = run((old, None), "migrate")  # type: ignore[arg-type]
    assert done.stdout == f"the ledger has version {SCHEMA_VERSION}\n"
    assert run((old, None), "balances").exit_code == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("period", ["2010", "2010-13", "2010-12-32", "\u0662010-12", "december"])
def test_a_wrong_period_is_said_so(books: tuple[str, Engine], period: str) -> None:
    with pytest.raises(UserError, match="is no period"):
        run(books, "export", "--period", period)

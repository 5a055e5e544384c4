"""``paystream payouts`` over a real SQLite file: what is read and written without a broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from typer.testing import Result

from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger
from tests.support.cli_runner import CliRunner
from tests.support.payouts import (
    ROLLING,
    announce,
    create,
    document,
    move,
    payouts,
    receive,
    row,
    submit,
)


@pytest.fixture
def books(books_url: str) -> Iterator[tuple[str, Engine]]:
    """`shop` was paid 900.00 on 1 December, 100.00 are held; on the 3rd it owes 30.00."""
    engine = open_ledger(books_url)
    announce(engine, row(reserve=ROLLING))
    receive(engine, 1000_00, "2010-12-01T09:00")
    create(engine, "2010-12-01", "2010-12-01T18:00")
    receive(engine, -130_00, "2010-12-02T09:00")
    create(engine, "2010-12-03", "2010-12-03T18:00")
    yield books_url, engine
    engine.dispose()


def run(books: tuple[str, Engine], *arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["payouts", *arguments, "--ledger-url", books[0]], catch_exceptions=False
    )


@pytest.mark.slow
def test_a_list_has_payouts_and_what_merchants_owe(books: tuple[str, Engine]) -> None:
    """Each with its state; a receivable with the day it was called in, and its age."""
    payout = payouts(books[1])["2010-12-01"]
    _, line, owed = run(books, "list").stdout.splitlines()
    assert line.split() == [payout.payout_id, "2010-12-01", "shop", "GBP", "900.00", "created"]
    assert owed.startswith("shop owes GBP 30.00 (since 2010-12-03, ")
    said = json.loads(run(books, "list", "shop", "--state", "created", "--json").stdout)
    assert [p["payout_id"] for p in said["payouts"]] == [payout.payout_id]
    assert said["receivables"][0]["amount_minor"] == 30_00
    assert said["receivables"][0]["age_days"] > 365
    nothing = json.loads(run(books, "list", "other", "--json").stdout)
    assert nothing == {"payouts": [], "receivables": []}


def test_a_payout_is_shown_with_every_decision(books: tuple[str, Engine]) -> None:
    """Amounts, the end of the account's number alone, and who decided when."""
    payout = payouts(books[1])["2010-12-01"]
    move(books[1], payout, "approve", "2010-12-01T18:05")
    shown = run(books, "show", payout.payout_id).stdout
    assert "GBP 900.00 to shop, account ...5432, from bank:main-gbp" in shown
    assert "held for the reserve: GBP 100.00" in shown
    assert "2010-12-01 18:00:00 UTC  created    by anna" in shown
    assert "2010-12-01 18:05:00 UTC  approved   by bert" in shown
    assert "GB82" not in shown
    with pytest.raises(UserError, match="there is no payout 'nothing'"):
        run(books, "show", "nothing")


@pytest.mark.slow
def test_the_files_of_a_message_are_written_again(
    books: tuple[str, Engine], tmp_path: Path
) -> None:
    payout = payouts(books[1])["2010-12-01"]
    move(books[1], payout, "approve", "2010-12-01T18:05")
    message_id = submit(books[1], "2010-12-01T18:10")
    for folder in ("one", "two"):
        assert run(books, "file", message_id, "--output", str(tmp_path / folder)).exit_code == 0
    for suffix in ("xml", "csv"):
        one, two = (
            (tmp_path / folder / f"{message_id}.{suffix}").read_bytes() for folder in ("one", "two")
        )
        assert one == two
        assert payout.payout_id.encode() in one
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(books, "file", message_id, "--output", str(tmp_path / "taken"))


def test_terms_are_checked_and_shown(books: tuple[str, Engine], tmp_path: Path) -> None:
    """A dry run decides nothing, whatever it finds; what is in force says who put it there."""
    file = tmp_path / "terms.json"
    file.write_text(json.dumps(document(row())))
    done = run(books, "terms", "apply", str(file), "--reason", "x", "--dry-run")
    assert done.stdout == f"{file} can be used\n"
    file.write_text(json.dumps(document(row(cut_off="5pm"))))
    with pytest.raises(UserError, match="'5pm' is no cut-off"):
        run(books, "terms", "apply", str(file), "--reason", "x", "--dry-run")
    first, _, rest = run(books, "terms", "show").stdout.partition("\n")
    assert first == (
        "terms 1 from 2010-01-01 00:00:00 UTC, by anna at 2010-01-01 00:00:00 UTC: terms"
    )
    assert json.loads(rest) == document(row(reserve=ROLLING))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["create", "--through", "tomorrow"], "is no date"),
        (["paid", "x", "--date", "2010-13-01"], "is no date"),
        (["resolve", "x", "--as", "lost", "--reason", "x"], "paid or returned"),
    ],
)
def test_what_cannot_be_meant_is_said_so(
    books: tuple[str, Engine], words: list[str], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        run(books, *words)

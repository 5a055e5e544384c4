"""``paystream orders import`` and ``paystream order submit``, as far as they need no broker."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.commands.orders import order_app, orders_app
from pipeline.errors import UserError
from tests.unit.test_import_invoice_csv import GOOD, HEADER, OTHER, SAMPLE

runner = CliRunner()


def test_a_dry_run_counts_without_a_broker() -> None:
    """The sample's counts and sums are told, and nothing is published."""
    result = runner.invoke(orders_app, ["import", str(SAMPLE), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "would publish 382 orders of 7419 lines: GBP 153,652.88 (45 of them" in result.stdout
    assert "36 cancellations, GBP -3,189.58" in result.stdout
    assert "would publish 7 refunds of the lines of known sales: GBP 136.10" in result.stdout
    assert "would publish 77 credits of unknown sales, to hold: GBP 3,053.48" in result.stdout


def test_bad_lines_are_told_by_file_and_line_and_by_exit_code_1(tmp_path: Path) -> None:
    """A script can tell a partial import from a whole one and from none."""
    path = tmp_path / "a.csv"
    path.write_text("\n".join([HEADER, GOOD.replace("2.55", "x"), OTHER]))
    result = runner.invoke(orders_app, ["import", str(path), "--dry-run"])
    assert result.exit_code == 1
    assert f"{path}:2: 'x' is not an amount" in result.stderr
    assert "would publish 1 orders" in result.stdout
    assert "left out: 1 orders" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--amount", "12.505"], "finer than GBP allows"),
        (["--currency", "XXX"], "not an active ISO 4217 currency"),
        (["--token", "4242 4242 4242 4242"], "a card number"),
        (["--business-date", "1 May"], "is not a date"),
    ],
)
def test_an_order_that_cannot_be_meant_is_refused_before_it_is_sent(
    options: list[str], message: str
) -> None:
    """The mistake is named and no broker is contacted."""
    given = {
        "--merchant": "m",
        "--order-id": "o",
        "--amount": "12.50",
        "--currency": "GBP",
        "--token": "tok_ok",
        "--bootstrap-servers": "127.0.0.1:1",
        options[0]: options[1],
    }
    result = runner.invoke(
        order_app, ["submit", *(word for pair in given.items() for word in pair)]
    )
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


@pytest.mark.parametrize(("app", "command"), [(orders_app, "import"), (order_app, "submit")])
def test_help_has_an_example(app: object, command: str) -> None:
    """Whoever asks for help sees a line to copy."""
    result = runner.invoke(app, [command, "--help"])  # type: ignore[arg-type]
    assert "Example" in result.stdout
    assert "paystream order" in result.stdout

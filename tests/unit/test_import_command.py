"""``paystream orders import`` and ``paystream order submit``, as far as they need no broker."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.orders import _publish, order_app, orders_app, show_problems
from pipeline.domain.model import Order
from pipeline.errors import UserError
from producers.invoice_csv import read_invoices
from producers.order_file import Problem
from producers.order_publisher import InvalidOrder
from tests.support.cli_runner import CliRunner
from tests.unit.test_import_invoice_csv import GOOD, HEADER, OTHER, SAMPLE

runner = CliRunner()


@pytest.mark.slow
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
    path.write_text("\n".join([HEADER, GOOD.replace("2.55", "x"), GOOD, GOOD, OTHER, ""]))
    result = runner.invoke(orders_app, ["import", str(path), "--dry-run"])
    assert result.exit_code == 1
    assert f"{path}:2: 'x' is not an amount" in result.stderr
    assert "would publish 1 orders" in result.stdout
    assert "left out: 1 orders" in result.stdout


@pytest.mark.slow
def test_a_pipe_is_read_once_and_whole() -> None:
    """`import <(program)` and /dev/stdin have no second reading; the first bytes count too."""
    read_end, write_end = os.pipe()

    def write() -> None:
        with os.fdopen(write_end, "wb") as file:
            file.write(SAMPLE.read_bytes())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        result = runner.invoke(orders_app, ["import", f"/dev/fd/{read_end}", "--dry-run"])
    finally:
        os.close(read_end)
        writer.join(10)
    assert result.exit_code == 0, result.output
    assert "would publish 382 orders of 7419 lines: GBP 153,652.88" in result.stdout


def test_a_dry_run_names_the_card_numbers_that_would_not_be_published(tmp_path: Path) -> None:
    """What it calls good is published: orders by line, cancellations by their commands."""
    card = "4111-1111-1111-1111"
    returned = "C" + OTHER.replace(",2,", ",-2,")
    path = tmp_path / "a.csv"
    path.write_text(
        "\n".join(
            [
                HEADER,
                GOOD.replace("17850", "4111111111111111"),
                GOOD.replace("536365", "1").replace("United Kingdom", card),
                GOOD.replace("536365", "2").replace("HEART", card),
                OTHER,
                returned.replace("22633", card),
                returned.replace("536366", "536367"),
            ]
        )
    )
    result = runner.invoke(orders_app, ["import", str(path), "--dry-run"])
    assert result.exit_code == 1
    told = result.stderr.splitlines()
    assert [line.partition(";")[0] for line in told] == [
        f"{path}:2: invoice 536365 left out: a card number stands in instrument_token",
        f"{path}:3: invoice 1 left out: a card number stands in country",
        f"{path}:4: invoice 2 left out: a card number stands in lines[1].description",
        f"{path}: command credit-C536366-line-1 holds a card number in reason",
    ]
    assert "4111" not in result.output
    assert result.stdout.splitlines() == [
        "would publish 1 orders of 6 lines: GBP 3.70",
        "not orders: 2 cancellations, GBP -7.40",
        "would publish 1 refunds of the lines of known sales: GBP 3.70",
        "would publish 0 credits of unknown sales, to hold: GBP 0.00",
        "left out: 3 orders and 1 commands; the reasons are above",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER], "holds no orders"),
        ([HEADER, GOOD.replace("2.55", "x")], "1 of its lines are bad"),
        (["{}", "{"], "2 of its lines are bad"),
    ],
    ids=["a header alone", "one bad invoice", "only bad orders"],
)
def test_a_file_of_which_nothing_can_be_imported_is_refused(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    """Exit code 2, as the document says, with one sentence that says so."""
    path = tmp_path / "orders"
    path.write_text("\n".join(lines))
    result = runner.invoke(orders_app, ["import", str(path), "--dry-run"])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert result.stdout == ""


class Refuses:
    """A publisher that refuses the orders it is told to."""

    def __init__(self, *refused: str) -> None:
        self._refused = refused

    def publish(self, order: Order) -> None:
        if order.order_id in self._refused:
            raise InvalidOrder(f"order {order.order_id} is too large: 1 bytes")

    def flush(self) -> None:
        pass


def test_an_order_that_cannot_be_a_record_is_named_by_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its line number leads to it, as with any other line that is not taken."""
    path = tmp_path / "a.csv"
    path.write_text("\n".join([HEADER, GOOD, OTHER, ""]))
    found = read_invoices(path, now_ms=0)
    publisher: Any = Refuses("536366")
    assert _publish(publisher, path, found.orders, "orders", found.line_numbers) == 1
    assert f"{path}:3: order 536366 is too large" in capsys.readouterr().err


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


def test_a_file_full_of_problems_says_how_many_more(capsys: pytest.CaptureFixture[str]) -> None:
    """A screen of them is shown, the rest counted."""
    show_problems(Path("f"), [Problem(n, "bad") for n in range(1, 6)], 2)
    assert capsys.readouterr().err == "f:1: bad\nf:2: bad\n... and 3 more problems\n"


@pytest.mark.slow
@pytest.mark.parametrize(("app", "command"), [(orders_app, "import"), (order_app, "submit")])
def test_help_has_an_example(app: object, command: str) -> None:
    """Whoever asks for help sees a line to copy."""
    result = runner.invoke(app, [command, "--help"])  # type: ignore[arg-type]
    assert "Example" in result.stdout
    assert "paystream order" in result.stdout

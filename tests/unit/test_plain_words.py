"""What is said of a wrong name, a missing file, a field that does not fit, a wait that was broken
off, and a decision that is too large."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.cli import app
from pipeline.domain.model import Order
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger
from pipeline.ledger.decisions import DECISION_BYTES_MAX, all_decisions, decide
from producers.order_publisher import OrderPublisher
from schemas.codec import default_codec
from schemas.errors import EncodeError
from schemas.files import read_schema
from tests.support.avro_values import with_defaults
from tests.support.cli_runner import CliRunner


@pytest.mark.parametrize("name", ["foo", ":1", "shop:", ""])
def test_a_name_that_is_no_orders_is_a_wrong_argument(name: str) -> None:
    """Code 3 says that a server is away, and a script would try again."""
    result = CliRunner().invoke(app, ["trace", name])
    assert (result.exit_code, "as in shop:1001" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        ["risk", "check", "nofile"],
        ["risk", "replay", "nofile", "--since", "2026-11-01"],
        ["ledger", "fees", "apply", "nofile", "--reason", "r"],
        ["payouts", "terms", "apply", "nofile", "--reason", "r"],
    ],
)
def test_a_file_that_is_not_there_is_said_plainly(words: list[str]) -> None:
    """Its name once, and no number."""
    result = CliRunner().invoke(app, words)
    said = result.stderr + str(result.exception or "")
    assert "nofile cannot be read: no such file or directory." in said
    assert "Errno" not in said
    assert said.count("nofile") == 1


def test_a_decision_that_no_topic_takes_is_not_made(books_url: str) -> None:
    """Made and never published it would keep every later decision back."""
    engine = open_ledger(books_url)
    given = {"kind": "note", "actor": "ann", "reason": "r", "now_ms": 1}
    with engine.begin() as connection:
        with pytest.raises(UserError, match="make several of it"):
            decide(connection, body="é" * (DECISION_BYTES_MAX // 2), **given)
        decide(connection, body="x" * (DECISION_BYTES_MAX - 100), **given)
        assert [event.sequence for event in all_decisions(connection)] == [1]
    engine.dispose()


def test_the_engines_writer_names_the_field_that_does_not_fit() -> None:
    """Whoever reads it in a worker's log has only the sentence."""
    record: dict[str, Any] = dict.fromkeys(("attempt", "try_number", "tier"), 1)
    texts = ("merchant_id", "order_id", "payment_id", "operation_id", "purpose", "reason")
    record |= dict.fromkeys(texts, "x")
    due = with_defaults(read_schema("payment-due")["fields"], {**record, "due_at_ms": None})
    encode = default_codec().encoder("payment-due", checked=False)
    encode(due)
    with pytest.raises(EncodeError, match=r"^payment-due\.operation_id: "):
        encode({**due, "operation_id": 5})
    with pytest.raises(EncodeError, match=r"^payment-due\.tier: "):
        encode({name: value for name, value in due.items() if name != "tier"})


class Impatient(OrderPublisher):
    """Ctrl-C comes while it waits for the broker."""

    def flush(self, timeout_s: float | None = None) -> None:
        raise KeyboardInterrupt


def test_whoever_waits_no_longer_is_told_how_much_may_be_missing() -> None:
    """The interruption goes on, with a note."""
    order = Order(
        merchant_id="shop", order_id="o1", amount_minor=5, currency="GBP",
        instrument_token="tok_1", business_date="2026-11-26", submitted_at_ms=1,
    )  # fmt: skip
    with (
        pytest.raises(KeyboardInterrupt) as stopped,
        Impatient("127.0.0.1:1", config={"log_level": 0}) as publisher,
    ):
        publisher.publish(order)
    assert stopped.value.__notes__ == [
        "1 orders were not certainly delivered; publish them again, which is safe."
    ]

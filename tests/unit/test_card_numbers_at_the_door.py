"""A command that holds a card number, published by anybody: refused whole, and kept nowhere."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.card_numbers import ID_FIELDS
from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.model import Payment
from pipeline.domain.records import to_record
from pipeline.processors.door import card_number_refused
from pipeline.processors.order import process_order
from pipeline.runtime.batch import Batch
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.payments_stage import PaymentsStage
from pipeline.runtime.table import Table
from pipeline.runtime.table_store import MemoryTableStore
from pipeline.runtime.work import Outgoing
from producers.command_publisher import CardNumberInCommand, CommandPublisher
from producers.order_publisher import CardNumberInField, OrderPublisher
from schemas.codec import default_codec
from schemas.files import read_schema
from tests.support.payment_story import DECLINED, NOW, ORDER, POLICY, Story, command
from topics.catalogue import TopicSettings, build_catalogue

CATALOGUE = build_catalogue(TopicSettings(partitions=2))
CODEC = default_codec()
KEY = record_key("shop", "1")
LANE = partition_of(KEY, 2)

# By the schema, so that a field to come is covered by itself.
FIELDS = [
    field["name"]
    for field in read_schema("payment-command")["fields"]
    if "string" in (field["type"], *list(field["type"])) and field["name"] not in ID_FIELDS
] + ["operation_id"]
CARD = "4111 1111 1111 1111"
# What such a command is otherwise: one that would be taken, and would keep its texts.
CLEAN = command(
    "resolve",
    decision="charged",
    gateway_reference="ch_9",
    evidence="the gateway's report",
    reason="asked",
    actor="ann",
)


class Lane:
    """The payments stage over a table of its own; ``written`` is all that it ever put out."""

    def __init__(self) -> None:
        self.stage = PaymentsStage(CATALOGUE, CODEC, POLICY)
        self.table: Table[Any] = Table(MemoryTableStore(), decode=self.stage.decode_row)
        self.written: list[Outgoing] = []

    def take(self, role: str, schema: str, noun: Any) -> list[Outgoing]:
        value = CODEC.encoder(schema)(to_record(noun))
        batch = Batch(None, 0.0)
        self.stage.handle(InputRecord(role, LANE, 7, NOW, KEY, value), self.table, batch)
        self.written += batch.outputs
        return batch.outputs

    @property
    def payment(self) -> Payment | None:
        return self.table.get(LANE, KEY)


def texts(outputs: list[Outgoing]) -> bytes:
    """All that was written: keys, values, headers."""
    return b"\n".join(
        part
        for _, _, key, value, headers in outputs
        for part in (key or b"", value or b"", *(text for _, text in headers or []))
    )


@pytest.mark.parametrize("before", ["nothing", "order", "waiting command"])
@pytest.mark.parametrize("field", FIELDS)
def test_a_command_with_a_card_number_is_refused_and_kept_nowhere(
    field: str, before: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever text holds it, with and without its payment, and where it would have waited: a
    masked dead letter that names the field, and not a digit more in table, events or log."""
    caplog.set_level(logging.DEBUG)
    lane = Lane()
    if before == "order":
        lane.take("orders", "order", ORDER)
    elif before == "waiting command":
        lane.take("payment-commands", "payment-command", replace(CLEAN, command_id="c0"))
    known = lane.payment
    outputs = lane.take("payment-commands", "payment-command", replace(CLEAN, **{field: CARD}))
    (letter,) = [output for output in outputs if output[0] == "dead-letters"]
    headers = dict(letter[4] or [])
    assert headers["dlq.cause"] == b"card_number_in_field"
    assert headers["dlq.detail"] == f"a card number stands in {field}".encode()
    assert headers["dlq.masked"] == b"value"
    assert b"4111 11** **** 1111" in (letter[3] or b"")
    payment = lane.payment
    if known is None:
        assert payment is None
    else:
        assert payment is not None
        assert (payment.commands, payment.command_ids) == (known.commands, known.command_ids)
        assert payment.dead_letters == 1
    lane.take("orders", "order", ORDER)
    for text in (texts(lane.written), repr(lane.payment).encode(), caplog.text.encode()):
        assert CARD.encode() not in text
        assert b"411111" not in text


def test_an_operations_own_id_is_no_card_number() -> None:
    """An order id of sixteen digits passes the check digit once in ten; its charge is named by it,
    and so is a retry by its command's."""
    for names in (("4111111111111111", "4111111111111111"), ("1", "5500005555555559")):
        order_id, operation_id = names
        payment = process_order(None, replace(ORDER, order_id=order_id), NOW, POLICY).payment
        assert payment is not None
        (charge,) = payment.attempts
        payment = replace(payment, attempts=(replace(charge, operation_id=operation_id),))
        named = replace(CLEAN, order_id=order_id, operation_id=operation_id)
        assert card_number_refused(payment, named, NOW) is None
        refused = card_number_refused(payment, replace(named, operation_id="4242424242424242"), NOW)
        assert refused is not None
        assert refused.dead_letter == "card_number_in_field"


@pytest.mark.parametrize("before", ["nothing", "order"])
def test_what_a_retry_writes_where_it_names_no_operation_is_a_text(before: str) -> None:
    """No hash or id is expected there: a number within a word is refused as in prose, and what
    only masking takes for one is kept masked where the command waits."""
    lane = Lane()
    if before == "order":
        lane.take("orders", "order", ORDER)
    retry = command("retry", instrument_token="tok_2")
    outputs = lane.take(
        "payment-commands", "payment-command", replace(retry, operation_id="op4111111111111111")
    )
    assert [dict(o[4] or [])["dlq.cause"] for o in outputs if o[0] == "dead-letters"] == [
        b"card_number_in_field"
    ]
    wide = "op9999999999999995"
    lane.take("payment-commands", "payment-command", replace(retry, operation_id=wide))
    assert lane.payment is not None
    (waiting,) = lane.payment.commands
    assert waiting.operation_id == "op999999******9995"
    assert b"999999999999" not in texts(lane.written) + repr(lane.payment).encode()
    assert lane.take("payment-commands", "payment-command", replace(retry, operation_id=wide)) == []


def test_the_same_command_without_it_is_taken() -> None:
    """What is refused above is refused for the card number alone."""
    lane = Lane()
    lane.take("orders", "order", ORDER)
    outputs = lane.take("payment-commands", "payment-command", CLEAN)
    assert not [output for output in outputs if output[0] == "dead-letters"]
    assert lane.payment is not None
    assert lane.payment.command_ids == ("c1",)


# Card numbers as no printer groups them; a token is one whatever its gaps are.
ODD_GROUPING = [
    "4111 1111-1111 1111",
    "4111    1111  1111  1111",
    "41111111 11111111",
    " 4111-1-1--1111111111 ",
]


@pytest.mark.parametrize("token", ODD_GROUPING)
def test_a_retry_with_a_card_number_for_a_token_is_rejected_whatever_its_gaps(token: str) -> None:
    """Nobody is charged with it, and nothing keeps it."""
    lane = Lane()
    lane.take("orders", "order", ORDER)
    failed = Story()
    failed.flow.answer(DECLINED)
    assert failed.rejected("retry", instrument_token=token) == (
        "instrument_token_must_not_be_a_card_number"
    )
    assert (failed.status, failed.asked) == ("failed", ["charge"])
    lane.take("payment-commands", "payment-command", command("retry", instrument_token=token))
    assert digits_of(token) not in digits_of(texts(lane.written).decode("utf-8", "replace"))
    assert digits_of(token) not in digits_of(repr(lane.payment))
    with pytest.raises(CardNumberInCommand, match="instrument_token"):
        CommandPublisher("127.0.0.1:1", config={"log_level": 0}).publish(
            command("retry", instrument_token=token)
        )
    with pytest.raises(CardNumberInField, match="instrument_token"):
        OrderPublisher("127.0.0.1:1", config={"log_level": 0}).publish(
            replace(ORDER, instrument_token=token)
        )


@pytest.mark.parametrize("token", ODD_GROUPING)
def test_a_rejected_order_keeps_no_token_that_is_a_card_number(token: str) -> None:
    """By the same rule by which it is rejected; redelivered it is the same order."""
    lane = Lane()
    order = replace(ORDER, instrument_token=token)
    lane.take("orders", "order", order)
    assert lane.payment is not None
    assert (lane.payment.status, lane.payment.reason) == (
        "rejected", "instrument_token_must_not_be_a_card_number",
    )  # fmt: skip
    assert digits_of(lane.payment.instrument_token) == "4111111111"
    assert len(lane.payment.instrument_token) == len(token)
    sequence = lane.payment.sequence
    assert lane.take("orders", "order", order) == []
    assert lane.payment.sequence == sequence
    assert digits_of(token) not in digits_of(texts(lane.written).decode("utf-8", "replace"))


def digits_of(text: str) -> str:
    return "".join(letter for letter in text if letter.isdigit())

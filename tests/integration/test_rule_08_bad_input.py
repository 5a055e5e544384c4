"""Rule 8 and bad input: whatever an input is, it goes to the dead letters whole and the lane on."""

from __future__ import annotations

import os
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message
from msgspec.structs import replace

from pipeline.domain.ids import payment_id
from pipeline.domain.keys import record_key
from pipeline.domain.model import Order, OrderLine, Payment, PaymentCommand
from pipeline.runtime import dead_letters, failpoints
from schemas.codec import RECORD_BYTES_MAX, wire_header
from tests.support.engine_flow import EngineFlow, RunningWorker, ends_of, headers_of
from tests.support.waiting import WAIT_S, wait_until
from topics.catalogue import MAX_MESSAGE_BYTES

pytestmark = pytest.mark.integration

CARD = b"4111111111111111"
MASKED = b"411111******1111"
MIB = 1024 * 1024


def too_large(order: Order) -> Order:
    """Whole, and good, but for its size; it fits the topic once it is compressed."""
    line = OrderLine(
        line_number=1,
        sku="a",
        quantity=1,
        unit_amount_minor=order.amount_minor,
        description="x" * RECORD_BYTES_MAX,
    )
    return replace(order, lines=(line,))


def joined(letters: list[Message]) -> bytes:
    return b"".join(m.value() or b"" for m in letters)


def test_huge_inputs_are_buried_whole_and_the_lane_goes_on(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A record of 5 MB that fitted compressed, one of 20 MB that has to be split, and one that
    cannot be compressed and just fits: each is there byte by byte, its card numbers masked."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    inputs = {
        "five": b"x" * (5 * MIB) + b" " + CARD + b" " + b"tail",
        "twenty": b"y" * (20 * MIB) + b" " + CARD,
        # Room for the batch's own bytes, the key and the headers.
        "dense": b"d" + os.urandom(MAX_MESSAGE_BYTES - 1_000).replace(b"4", b"_"),
    }
    sent = {
        name: flow.send("orders", record_key("shop", name), value) for name, value in inputs.items()
    }
    healthy = [flow.send_order(flow.order(f"after-{n}")) for n in range(10)]
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(*sent.values(), *healthy), running=running)
    letters = flow.messages("dead-letters")
    for name, value in inputs.items():
        own = [m for m in letters if m.key() == record_key("shop", name)]
        if name == "dense":
            assert len(joined(own)) == len(value)
        else:
            assert joined(own) == value.replace(CARD, MASKED), name
        partition, offset = sent[name]
        count = -(-len(value) // dead_letters.CHUNK_BYTES)
        for number, letter in enumerate(own, 1):
            headers = headers_of(letter)
            assert letter.partition() == partition
            assert headers["dlq.cause"] == "not_wire_format"
            assert headers["dlq.offset"] == str(offset)
            assert headers.get("dlq.chunk") == (f"{number}/{count}" if count > 1 else None)
        assert len(own) == count
    assert len(flow.messages("payment-requests")) == 10


def test_an_input_whose_effect_no_topic_takes_is_a_letter_and_the_lane_goes_on(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Rows as a version without limits may have left them: one that the client refuses to write
    again, and one that only the broker refuses once a command waits in it. Each command is a
    letter, the payment that still can says so, and what lies around them is handled."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path, partitions=1).provisioned()

    def row(order_id: str, token: str) -> Payment:
        return Payment(
            merchant_id="shop", order_id=order_id, payment_id=payment_id("shop", order_id),
            sequence=3, status="risk_review", amount_minor=500, currency="GBP",
            instrument_token=token, business_date="2027-01-15", ordered_at_ms=1, updated_at_ms=1,
        )  # fmt: skip

    # Room for the batch's own bytes and the key, and for the row's numbers to grow.
    room = MAX_MESSAGE_BYTES - 150 - len(flow.encode("payment", row("dense", "")))
    tokens = {"wide": "x" * (17 * MIB), "dense": b64encode(os.urandom(room)).decode()[:room]}
    for order_id, token in tokens.items():
        flow.send(
            "payments", record_key("shop", order_id), flow.encode("payment", row(order_id, token))
        )
    before = flow.send_order(flow.order("before"))
    sent = {}
    for order_id in tokens:
        command = PaymentCommand(
            merchant_id="shop", order_id=order_id, command_id="c1", type="refund",
            submitted_at_ms=2, reason="r" * 200,
        )  # fmt: skip
        key = record_key("shop", order_id)
        sent[order_id] = flow.send("payment-commands", key, flow.encode("payment-command", command))
    after = flow.send_order(flow.order("after"))
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(before, after), running=running)
        flow.wait_consumed(ends_of(*sent.values()), running=running, role="payment-commands")
        more = flow.send_order(flow.order("more"))
        flow.wait_consumed(ends_of(more), running=running)
    letters = {
        int(headers_of(m)["dlq.offset"]): headers_of(m) for m in flow.messages("dead-letters")
    }
    assert {at: h["dlq.cause"] for at, h in letters.items()} == {
        offset: "effect_too_large" for _, offset in sent.values()
    }
    assert {r.order_id for r in flow.nouns("payment-requests")} == {"before", "after", "more"}
    payments = flow.payments()
    assert {name: payments[name].dead_letters for name in tokens} == {"wide": 0, "dense": 1}
    assert all(not payments[name].commands for name in tokens)


def test_texts_and_keys_that_make_an_effect_no_topic_takes_are_refused_by_name(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """An order of nothing whose texts compress to little or fill a record to its brim, commands
    that wait with the longest texts there are, a key of megabytes: each is refused before it is
    kept, and the orders behind them are asked for."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path, partitions=1).provisioned()
    texts = {"wide": "x" * (3 * MIB), "dense": b64encode(os.urandom(786_150)).decode()}
    sent = [
        flow.send_order(flow.order(name, amount_minor=0, capture_method=text))
        for name, text in texts.items()
    ]
    long: dict[str, Any] = dict.fromkeys(("evidence", "reason"), "\U0001f4b3" * 1_000)
    for number in range(24):
        command = PaymentCommand(
            merchant_id="shop", order_id="waited", command_id=f"c{number}",
            type="refund" if number < 18 else "give_back", submitted_at_ms=2,
            **long,
        )  # fmt: skip
        key = record_key("shop", "waited")
        at = flow.send("payment-commands", key, flow.encode("payment-command", command))
    sent.append(flow.send("orders", b"k" * (17 * MIB), flow.encode("order", flow.order("key"))))
    sent.append(flow.send_order(flow.order("after")))
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(*sent), running=running)
        flow.wait_consumed(ends_of(at), running=running, role="payment-commands")
    payments = flow.payments()
    assert {payments[name].reason for name in texts} == {"texts_must_be_at_most_255_characters"}
    assert len(payments["waited"].commands) == 20, "as many as may wait"
    assert {r.order_id for r in flow.nouns("payment-requests")} == {"after"}
    (letter,) = flow.messages("dead-letters")
    assert letter.key() is None
    headers = headers_of(letter)
    assert headers["dlq.cause"] == "key_mismatch"
    assert headers["dlq.key"].startswith("kkkk")


def test_every_kind_of_bad_record_is_one_letter_with_its_lineage(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Unknown id, truncated, trailing bytes, wrong schema, more bytes than a record may have, no
    value, a key that is not text, no key, another's key: each is one letter with its cause, and
    every good order is asked for."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    good = flow.encode("order", flow.order("bad"))
    key = record_key("shop", "bad")
    cases: dict[str, tuple[bytes | None, bytes | None]] = {
        "not_wire_format": (key, b"{}"),
        "unknown_schema_id": (key, wire_header(987_654) + good[5:]),
        "truncated": (key, good[:-3]),
        "trailing_bytes": (key, good + b"\0"),
        "wrong_schema": (key, flow.encode("payment-request", flow.request(flow.order("bad")))),
        "record_too_large": (key, flow.encode("order", too_large(flow.order("bad")))),
        "empty_value": (key, None),
        "key_mismatch": (b"\xff\xfe\x00not text", good),
    }
    sent = []
    for number, (cause, (record_key_, value)) in enumerate(cases.items()):
        header = [("trace", CARD), ("case", cause.encode())]
        sent.append((cause, flow.send("orders", record_key_, value, headers=header)))
        sent.append(("", flow.send_order(flow.order(f"good-{number}"))))
    sent.append(("key_mismatch", flow.send("orders", None, good)))
    sent.append(("key_mismatch", flow.send("orders", record_key("shop", "other"), good)))
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(*[at for _, at in sent]), running=running)
    found = {}
    for letter in flow.messages("dead-letters"):
        headers = headers_of(letter)
        at = (int(headers["dlq.partition"]), int(headers["dlq.offset"]))
        assert at not in found, "one letter for each input"
        found[at] = headers["dlq.cause"]
        assert headers["dlq.topic"] == flow.topic("orders")
        assert headers["dlq.stage"] == "payments"
        assert int(headers["dlq.timestamp_ms"]) > 0
        if "dlq.header.case" in headers:
            assert headers["dlq.header.case"] == headers["dlq.cause"]
            assert headers["dlq.header.trace"] == MASKED.decode()
    assert found == {at: cause for cause, at in sent if cause}
    requested = {r.order_id for r in flow.nouns("payment-requests")}
    assert requested == {f"good-{n}" for n in range(len(cases))}


def test_a_bad_request_is_a_letter_and_the_requests_behind_it_are_called(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Junk, an unknown schema, no key and no value among good requests of one partition: each is
    one letter of the gateway stage, and every good one has its result."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path, partitions=1).provisioned()
    good = flow.encode("payment-request", flow.request(flow.order("bad")))
    key = record_key("shop", "bad")
    cases: list[tuple[str, bytes | None, bytes | None]] = [
        ("not_wire_format", key, b"junk"),
        ("unknown_schema_id", key, wire_header(987_654) + good[5:]),
        ("key_mismatch", None, good),
        ("empty_value", key, None),
    ]
    wanted = {}
    for number, (cause, with_key, value) in enumerate(cases):
        wanted[flow.send("payment-requests", with_key, value)[1]] = cause
        last = flow.send_request(flow.order(f"good-{number}"))
    running = RunningWorker(*flow.gateway_worker())
    try:
        flow.wait_consumed(ends_of(last), running=running, stage="gateway", role="payment-requests")
    finally:
        running.end()
    assert running.error is None
    letters = [headers_of(letter) for letter in flow.messages("dead-letters")]
    assert {int(h["dlq.offset"]): h["dlq.cause"] for h in letters} == wanted
    assert len(letters) == len(wanted)
    assert {(h["dlq.stage"], h["dlq.topic"]) for h in letters} == {
        ("gateway", flow.topic("payment-requests"))
    }
    results = flow.nouns("gateway-results")
    answered = [r.order_id for r in results if r.outcome != "dead_lettered"]
    assert answered == [f"good-{n}" for n in range(len(cases))]
    # Each letter is told to the payment it belongs to, by its key or by what could be read of it.
    told = {r.letter: r.code for r in results if r.outcome == "dead_lettered"}
    topic = flow.topic("payment-requests")
    assert told == {f"{topic}[0]@{offset}": cause for offset, cause in wanted.items()}


def test_a_payment_tells_of_the_letter_that_the_gateway_stage_made(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Junk under its key among its requests: the payment says so, and is charged all the same."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    key = record_key("shop", "o1")
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(flow.send_order(flow.order("o1"))), running=running)
        partition, offset = flow.send("payment-requests", key, b"junk")
        gateway = RunningWorker(*flow.gateway_worker())
        try:
            wait_until(
                lambda: flow.payments()["o1"].dead_letters == 1, 60, "the payment tells of it"
            )
        finally:
            gateway.end()
    assert gateway.error is None
    payment = flow.payments()["o1"]
    place = f"{flow.topic('payment-requests')}[{partition}]@{offset}"
    assert payment.status == "captured"
    assert payment.letters == (f"gateway {place} not_wire_format",)
    told = [e for e in flow.nouns("payment-events") if e.type == "input_dead_lettered"]
    assert [(e.reason, e.detail) for e in told] == [
        ("not_wire_format", f"by the gateway stage: {place}")
    ]


def test_a_letter_and_the_offset_of_its_input_are_one_transaction(
    kafka: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies between burying and committing leaves neither, and its successor buries
    the input once."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    at = flow.send("orders", record_key("shop", "bad"), b"junk")

    class Died(Exception):
        pass

    def die(name: str) -> None:
        if name == "payments.offsets_sent":
            # The offsets are sent by another request than the records: wait until both are there.
            wait_until(
                lambda: flow.messages("dead-letters", "read_uncommitted"),
                WAIT_S,
                "the letter is sent",
            )
            raise Died

    with monkeypatch.context() as patched:
        patched.setattr(failpoints, "hit", die)
        running = RunningWorker(*flow.payments_worker())
        running.thread.join(60)
    assert isinstance(running.error, Died)
    assert len(flow.messages("dead-letters", "read_uncommitted")) == 1, "it had got that far"
    with flow.running_payments() as second:
        flow.wait_consumed(ends_of(at), running=second)
    (letter,) = flow.messages("dead-letters")
    assert len(flow.messages("dead-letters", "read_uncommitted")) == 2
    assert headers_of(letter)["dlq.offset"] == str(at[1])

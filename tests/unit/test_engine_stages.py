"""Bytes in, bytes out of the two stages: what is refused, by which name, and what it says."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.keys import partition_of, record_key, reference_key
from pipeline.domain.model import PaymentCommand
from pipeline.domain.policy import Policy
from pipeline.domain.records import reference_from_record
from pipeline.runtime.batch import Batch
from pipeline.runtime.calls import Call
from pipeline.runtime.dead_letters import CHUNK_BYTES, HEADER_BYTES_MAX, dead_letter
from pipeline.runtime.gateway_stage import GatewayStage
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.live_policy import LivePolicy
from pipeline.runtime.payments_stage import PaymentsStage
from pipeline.runtime.table import Table
from pipeline.runtime.table_store import MemoryTableStore
from pipeline.runtime.work import Outgoing
from schemas.codec import wire_header
from tests.support.engine_fakes import FakeMessage, key_of
from tests.support.engine_flow import EngineFlow
from tests.support.payment_story import unasked
from topics.catalogue import DEAD_LETTER_MAX_MESSAGE_BYTES, TopicSettings, build_catalogue


@pytest.fixture
def flow(tmp_path: Path) -> EngineFlow:
    return EngineFlow("127.0.0.1:1", "t.", tmp_path, partitions=2)


def now_ms() -> int:
    return int(time.time() * 1000)


def cause_of(letter: Outgoing) -> str:
    return dict(letter[4] or [])["dlq.cause"].decode()


def size_of(letter: Outgoing) -> int:
    _, _, key, value, headers = letter
    return len(key or b"") + len(value or b"") + sum(len(n) + len(v) for n, v in headers or [])


# Payments ----------------------------------------------------------------------------------------


def test_results_go_before_timers_and_timers_before_orders(flow: EngineFlow) -> None:
    """The stage names its inputs in the order in which they are admitted: payments under way end
    before others begin."""
    lanes = flow.stage().lanes
    roles = [lane.role for lane in lanes]
    waits = [at for at, lane in enumerate(lanes) if lane.delay_ms]
    assert roles[0] == "gateway-results"
    assert roles.index("gateway-notifications") < waits[0]
    assert [lane.role for lane in lanes if lane.gated] == [roles[-1]] == ["orders"]


def test_a_persons_decision_is_audited_in_its_own_transaction(flow: EngineFlow) -> None:
    """The entry lies under the payment's key in its lane, in the batch that holds the decision."""
    word = PaymentCommand(
        merchant_id="shop", order_id="o1", command_id="p1", type="resolve", submitted_at_ms=1,
        decision="not_charged", evidence="their report", actor="ann",
    )  # fmt: skip
    order = flow.order("o1")
    key = key_of("o1")
    lane = partition_of(key, 2)
    stage, batch = flow.stage(), Batch(None, 0.0)
    table = Table(MemoryTableStore(), decode=stage.decode_row)
    for role, name, noun in (
        ("orders", "order", order),
        ("payment-commands", "payment-command", word),
    ):
        raw = flow.encode(name, noun)
        stage.handle(InputRecord(flow.topic(role), lane, 7, now_ms(), key, raw), table, batch)
    (entry,) = [output for output in batch.outputs if output[0] == flow.topic("audit")]
    assert entry[1:3] == (lane, key)
    fields = flow.codec.decoder("audit-entry")(entry[3] or b"")
    assert (fields["action"], fields["actor"]) == ("payment_resolve", "ann")
    assert batch.outputs[-1][0] == flow.topic("payments"), "the table is written beside it"


def test_whose_a_charge_nobody_asked_for_is_stands_among_the_references(flow: EngineFlow) -> None:
    """At every gateway: what it tells of the charge or its refund names whoever made the charge."""
    word = replace(unasked(), submitted_at_ms=now_ms())
    key = record_key(word.merchant_id, word.order_id)
    lane = partition_of(key, 2)
    stage, batch = flow.stage(), Batch(None, 0.0)
    table = Table(MemoryTableStore(), decode=stage.decode_row)
    raw = flow.encode("payment-command", word)
    record = InputRecord(flow.topic("payment-commands"), lane, 7, now_ms(), key, raw)
    stage.handle(record, table, batch)
    (told,) = [output for output in batch.outputs if output[0] == flow.topic("gateway-references")]
    named = reference_from_record(flow.codec.decoder("gateway-reference")(told[3] or b""))
    assert told[2] == reference_key("simulator", "ch_77")
    assert (named.merchant_id, named.order_id) == (word.merchant_id, word.order_id)


@pytest.mark.parametrize(
    "role", ["orders", "gateway-results", "payment-retry-1", "payment-inquiry-1"]
)
def test_whatever_lies_in_anothers_lane_is_named(flow: EngineFlow, role: str) -> None:
    """A result or a timer that was misrouted finds no payment here, though there is one: it is
    told apart from one that belongs to no payment at all."""
    order = flow.order("o1")
    nouns: dict[str, tuple[str, Any]] = {
        "orders": ("order", order),
        "gateway-results": ("gateway-result", flow.result(order)),
        "payment-retry-1": ("payment-due", flow.due(order, "retry")),
        "payment-inquiry-1": ("payment-due", flow.due(order, "inquiry")),
    }
    key = key_of("o1")
    stray = 1 - partition_of(key, 2)
    stage, batch = flow.stage(), Batch(None, 0.0)
    table = Table(MemoryTableStore(), decode=stage.decode_row)
    record = InputRecord(flow.topic(role), stray, 7, now_ms(), key, flow.encode(*nouns[role]))
    stage.handle(record, table, batch)
    (letter,) = batch.outputs
    assert (letter[0], cause_of(letter)) == (flow.topic("dead-letters"), "misrouted")
    assert batch.offsets == {(flow.topic(role), stray): 8}
    assert table.get(stray, key) is None


def test_commands_are_remembered_for_as_long_as_their_topic_repeats_them(flow: EngineFlow) -> None:
    """The retention is the installation's, and a payment's memory of commands goes by it."""
    live = LivePolicy(Policy())
    settings = TopicSettings(retention_ms=123_000)
    PaymentsStage(build_catalogue(settings), flow.codec, live)
    assert live.at(now_ms()).command_memory_ms == 123_000


# Gateway -----------------------------------------------------------------------------------------


def test_a_request_that_cannot_be_read_is_refused_by_name_and_never_called(
    flow: EngineFlow,
) -> None:
    """No value, junk, an unknown schema, another's record, a wrong key and none: each is one
    letter with its cause, whole; the good one beside them is a call."""
    stage = GatewayStage(flow.catalogue, flow.codec)
    order = flow.order("o1")
    key, good = key_of("o1"), flow.encode("payment-request", flow.request(order))
    cases: list[tuple[str, bytes | None, bytes | None]] = [
        ("empty_value", key, None),
        ("not_wire_format", key, b"junk"),
        ("unknown_schema_id", key, wire_header(987_654) + good[5:]),
        ("truncated", key, good[:-3]),
        ("wrong_schema", key, flow.encode("order", order)),
        ("key_mismatch", None, good),
        ("key_mismatch", key_of("another"), good),
    ]
    for offset, (cause, with_key, value) in enumerate(cases):
        record = InputRecord(stage.topic, 1, offset, now_ms(), with_key, value)
        planned = stage.plan(record, now_ms())
        assert isinstance(planned, list), cause
        letter, *words = planned
        assert [topic for topic, *_ in words] == [flow.topic("gateway-results")]
        assert letter[:4] == (flow.topic("dead-letters"), 1, with_key, value)
        headers = dict(letter[4] or [])
        assert headers["dlq.cause"].decode() == cause
        assert headers["dlq.stage"] == b"gateway"
        assert (headers["dlq.topic"].decode(), headers["dlq.offset"]) == (
            stage.topic,
            b"%d" % offset,
        )
    call = stage.plan(InputRecord(stage.topic, 1, 9, now_ms(), key, good), now_ms())
    assert isinstance(call, Call)
    assert call.request == flow.request(order)


def test_a_request_that_is_refused_tells_its_payment(flow: EngineFlow) -> None:
    """In the transaction of the letter, into the payment's own lane: what could be read names its
    operation, what could not belongs to the payment of its key, or to none."""
    stage = GatewayStage(flow.catalogue, flow.codec)
    decode = flow.codec.decoder("gateway-result")
    request = flow.request(flow.order("o1"))
    key, good = key_of("o1"), flow.encode("payment-request", request)
    home = partition_of(key, 2)
    named = (request.operation_id, request.attempt, request.try_number, request.gateway)
    cases = [
        (stage.plan(InputRecord(stage.topic, home, 4, 1, key, b"junk"), 5), "not_wire_format",
         ("", 0, 0, "")),
        (stage.plan(InputRecord(stage.topic, home, 4, 1, key_of("x"), good), 5), "key_mismatch",
         named),
        (stage.quarantine(InputRecord(stage.topic, home, 4, 1, key, good), 5),
         "killed_the_process", named),
    ]  # fmt: skip
    for planned, cause, operation in cases:
        assert isinstance(planned, list)
        _, (topic, lane, told_key, value, _) = planned
        assert (topic, lane, told_key) == (flow.topic("gateway-results"), home, key)
        told = decode(value or b"")
        assert (told["outcome"], told["code"]) == ("dead_lettered", cause)
        assert told["letter"] == f"{stage.topic}[{home}]@4"
        assert told["payment_id"] == request.payment_id
        fields = ("operation_id", "attempt", "try_number", "gateway")
        assert tuple(told[name] for name in fields) == operation
    nobody = stage.plan(InputRecord(stage.topic, 0, 4, 1, b"no key of ours", b"junk"), 5)
    assert isinstance(nobody, list)
    assert [topic for topic, *_ in nobody] == [flow.topic("dead-letters")]


# Dead letters ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_letter_fits_its_topic_whatever_headers_its_input_had(flow: EngineFlow) -> None:
    """Headers over 64 KiB in all are named and not copied: with them a full piece would be over
    the topic's limit and end the lane."""
    huge = [("note", b"n" * 30_000)] * 3 + [("trace", b"t" * (1024 * 1024))]
    message = FakeMessage("orders", 0, 0, b"k", b"v" * CHUNK_BYTES, 1, huge)
    record = InputRecord("orders", 0, 0, 1, b"k", message.value(), message)
    (letter,) = dead_letter(record, topic="dead", stage="payments", cause="not_wire_format")
    names = [name for name, _ in letter[4] or []]
    assert names.count("dlq.header.note") == 2
    assert names[-1] == "dlq.headers_dropped"
    assert size_of(letter) - CHUNK_BYTES < HEADER_BYTES_MAX + 1_024
    assert size_of(letter) + 1_024 < DEAD_LETTER_MAX_MESSAGE_BYTES

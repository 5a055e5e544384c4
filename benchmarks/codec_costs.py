"""Where a payment's CPU goes: codec by schema, processors by decision; no broker."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import fastavro

from benchmarks.order_pool import BUSINESS_DATE
from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.decision import Decision
from pipeline.domain.invariant import invariant
from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.model import (
    GatewayResult,
    Order,
    Payment,
    PaymentDue,
    PaymentRequest,
)
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.records import FROM_RECORD, SCHEMA_OF, Noun, to_record
from pipeline.processors.gateway import result_of
from pipeline.processors.order import process_order
from pipeline.processors.settlement import process_due, process_result
from producers.load_generator import LoadPlan, order_at
from schemas.codec import HEADER_BYTES, default_codec, load_schemas

# Best of this many rounds: what disturbs a round only ever makes it slower.
ROUNDS = 5
NOW_MS = 1_790_000_000_000


@dataclass(frozen=True)
class CallCost:
    """``us``: microseconds a call. ``fastavro_us``: the library alone, for a codec."""

    name: str
    us: float
    bytes: int | None = None
    fastavro_us: float | None = None


def codec_costs(calls: int) -> list[CallCost]:
    """For each schema: the codec both ways, and between its dicts and the domain's Structs."""
    codec = default_codec()
    parsed = load_schemas()
    costs = []
    for noun in nouns():
        name = SCHEMA_OF[type(noun)]
        encode, decode = codec.encoder(name, checked=False), codec.decoder(name)
        from_record = FROM_RECORD[name]
        record = to_record(noun)
        value = encode(record)
        decoded = decode(value)
        invariant(from_record(decoded) == noun, "what was encoded is decoded")
        body, schema = value[HEADER_BYTES:], parsed[name]
        timed: list[tuple[str, Callable[[], object], Callable[[], object] | None]] = [
            ("to_record", partial(to_record, noun), None),
            ("encode", partial(encode, record), partial(_fastavro_encode, schema, record)),
            ("decode", partial(decode, value), partial(_fastavro_decode, schema, body)),
            ("from_record", partial(from_record, decoded), None),
        ]
        costs += [
            CallCost(
                f"{what} {name}",
                time_us(call, calls),
                len(value),
                time_us(bare, calls) if bare is not None else None,
            )
            for what, call, bare in timed
        ]
    return costs


def decision_costs(calls: int) -> list[CallCost]:
    """The processors and the helpers that every record passes."""
    story = _story()
    policy = story.policy
    key = record_key(story.order.merchant_id, story.order.order_id)
    timed: list[tuple[str, Callable[[], object]]] = [
        ("process_order", partial(process_order, None, story.order, NOW_MS, policy)),
        (
            "process_order (repeated)",
            partial(process_order, story.payment, story.order, NOW_MS, policy),
        ),
        (
            "process_result (succeeded)",
            partial(process_result, story.payment, story.result, NOW_MS, policy),
        ),
        ("process_due (retry)", partial(process_due, story.waiting, story.due, NOW_MS, policy)),
        ("result_of", partial(result_of, story.request, story.answer, NOW_MS)),
        ("record_key", partial(record_key, story.order.merchant_id, story.order.order_id)),
        ("partition_of (table miss)", partial(partition_of, key, 12)),
    ]
    return [CallCost(name, time_us(call, calls)) for name, call in timed]


def nouns() -> list[Noun]:
    """One typical record of every schema, as the flow makes them."""
    story = _story()
    captured = process_result(story.payment, story.result, NOW_MS, story.policy)
    invariant(captured.payment is not None, "a success captures the payment")
    settlement, event = captured.sends[0], captured.sends[1]
    made: list[Any] = [
        story.order, story.request, story.result, captured.payment, settlement, event, story.due,
    ]  # fmt: skip
    return made


@dataclass(frozen=True)
class _Story:
    policy: Policy
    order: Order
    payment: Payment
    request: PaymentRequest
    answer: GatewayAnswer
    result: GatewayResult
    waiting: Payment
    due: PaymentDue


def _story() -> _Story:
    """One order's way: accepted, asked, answered; and the same one not sent and due again."""
    policy = Policy(gateways=(GatewayProfile(name="simulator", grace_ms=30_000),))
    order = order_at(LoadPlan(count=1, submitted_at_ms=NOW_MS, business_date=BUSINESS_DATE), 0)
    accepted: Decision = process_order(None, order, NOW_MS, policy)
    payment = accepted.payment
    request = accepted.sends[0]
    if payment is None or not isinstance(request, PaymentRequest):
        raise TypeError("a valid order starts a payment and a request")
    answer = GatewayAnswer(
        outcome="succeeded",
        gateway_reference="ip_" + request.idempotency_key,
        amount_minor=request.amount_minor,
    )
    not_sent = result_of(request, GatewayAnswer(outcome="not_sent", code="refused"), NOW_MS)
    later = process_result(payment, not_sent, NOW_MS, policy)
    due = next(send for send in later.sends if isinstance(send, PaymentDue))
    if later.payment is None:
        raise TypeError("a request that was not sent is due again")
    return _Story(
        policy, order, payment, request, answer, result_of(request, answer, NOW_MS),
        later.payment, due,
    )  # fmt: skip


def time_us(call: Callable[[], object], calls: int) -> float:
    """Microseconds of one call: the best of a few rounds of ``calls``."""
    best_s = float("inf")
    for _ in range(ROUNDS):
        started_s = time.perf_counter()
        for _ in range(calls):
            call()
        best_s = min(best_s, time.perf_counter() - started_s)
    return best_s / calls * 1e6


def _fastavro_encode(schema: Any, record: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, record)
    return out.getvalue()


def _fastavro_decode(schema: Any, body: bytes) -> Any:
    read: Any = fastavro.schemaless_reader
    return read(io.BytesIO(body), schema)

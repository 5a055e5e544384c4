"""The risk stage and its checks as bytes in and bytes out, without a broker."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import generate_latest

from pipeline.domain.ids import payment_id
from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.model import Order, RiskCheck, RiskCounter, RiskResult
from pipeline.domain.policy import Policy
from pipeline.domain.records import FROM_RECORD, to_record
from pipeline.domain.risk_rules import read_rules
from pipeline.domain.risk_velocity import velocity_key
from pipeline.observability.metrics import Metrics
from pipeline.runtime.batch import Batch
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.payments_stage import PaymentsStage
from pipeline.runtime.risk_stage import RiskStage
from pipeline.runtime.table import Table
from pipeline.runtime.table_store import MemoryTableStore
from schemas.codec import default_codec
from topics.catalogue import TopicSettings, build_catalogue

NOW = 1_790_000_000_000
PARTITIONS = 12
CATALOGUE = build_catalogue(TopicSettings(partitions=PARTITIONS))
CODEC = default_codec()


def check(number: int = 1, **more: Any) -> RiskCheck:
    fields: dict[str, Any] = {
        "merchant_id": "shop",
        "by": "card",
        "identity": "fp_1",
        "amount_minor": 500,
        "currency": "GBP",
        "counters": (RiskCounter(window_ms=3_600_000),),
    }
    return RiskCheck(
        order_id=f"o-{number}",
        payment_id=payment_id("shop", f"o-{number}"),
        **{**fields, **more},
    )


def record(
    role: str, key: bytes | None, value: bytes | None, *, partition: int | None = None
) -> InputRecord:
    at = partition_of(key or b"", PARTITIONS) if partition is None else partition
    return InputRecord(
        topic=CATALOGUE.name(role),
        partition=at,
        offset=7,
        timestamp_ms=NOW,
        key=key,
        value=value,
        origin=None,
    )


def encoded(schema: str, noun: Any) -> bytes:
    return CODEC.encoder(schema)(to_record(noun))


def of_check(given: RiskCheck, **more: Any) -> InputRecord:
    key = velocity_key(given.merchant_id, given.by, given.identity)
    return record("risk-checks", key, encoded("risk-check", given), **more)


def handled(stage: Any, table: Table[Any], given: InputRecord) -> Batch:
    batch = Batch(None, 0.0)
    stage.handle(given, table, batch)
    return batch


@pytest.fixture
def stage() -> RiskStage:
    return RiskStage(CATALOGUE, CODEC)


@pytest.fixture
def table(stage: RiskStage) -> Table[Any]:
    return Table(MemoryTableStore(), decode=stage.decode_row)


def test_a_check_is_answered_in_the_orders_own_lane(stage: RiskStage, table: Table[Any]) -> None:
    """The row stays where the identity is, the answer goes where the payment is."""
    for number in range(1, 6):
        batch = handled(stage, table, of_check(check(number)))
        answer, row = batch.outputs
        key = record_key("shop", f"o-{number}")
        assert answer[:3] == ("risk-results", partition_of(key, PARTITIONS), key)
        result = FROM_RECORD["risk-result"](CODEC.decoder("risk-result")(answer[3] or b""))
        assert isinstance(result, RiskResult)
        assert [c.count for c in result.counted] == [number]
        identity = velocity_key("shop", "card", "fp_1")
        assert row[:3] == ("risk-velocity", partition_of(identity, PARTITIONS), identity)
        assert stage.decode_row(row[3] or b"") == table.get(row[1], identity)
    again = handled(stage, table, of_check(check(3)))
    assert [output[0] for output in again.outputs] == ["risk-results"]
    assert again.notes == {("notes", "already_counted"): 1}


def test_bad_checks_are_dead_letters_with_their_cause(stage: RiskStage, table: Table[Any]) -> None:
    """Whatever it is, it is one letter, it counts nobody, and the lane goes on."""
    good = of_check(check())
    wrong = (good.partition + 1) % PARTITIONS
    cases = {
        "empty_value": record("risk-checks", good.key, None),
        "not_wire_format": record("risk-checks", good.key, b"{}"),
        "key_mismatch": record("risk-checks", b"card:shop:fp_2", good.value),
        "misrouted": of_check(check(), partition=wrong),
    }
    for cause, given in cases.items():
        batch = handled(stage, table, given)
        (topic, _, _, _, headers), *told = batch.outputs
        assert topic == "dead-letters"
        # Whose it is can be said of what can be read.
        assert len(told) == (cause in ("key_mismatch", "misrouted"))
        assert dict(headers or [])["dlq.cause"] == cause.encode()
        assert batch.offsets == {("risk-checks", given.partition): 8}
    assert table.get(good.partition, good.key or b"") is None


def test_a_check_that_is_refused_tells_its_payment(stage: RiskStage) -> None:
    """In the transaction of the letter, and in the order's own lane."""
    given = of_check(check())
    batch = Batch(None, 0.0)
    stage.quarantine(given, Table(MemoryTableStore(), decode=stage.decode_row), batch)
    letter, (topic, lane, key, value, _) = batch.outputs
    assert letter[0] == "dead-letters"
    order_key = record_key("shop", check().order_id)
    assert (topic, lane, key) == ("risk-results", partition_of(order_key, PARTITIONS), order_key)
    result = FROM_RECORD["risk-result"](CODEC.decoder("risk-result")(value or b""))
    assert isinstance(result, RiskResult)
    assert (result.cause, result.by, result.counted) == ("killed_the_process", "card", ())
    assert result.letter == f"risk-checks[{given.partition}]@{given.offset}"


def test_an_order_that_rules_count_asks_in_the_lane_of_its_card() -> None:
    """Two orders of one card in two lanes ask in the same one."""
    rules = "[[rule]]\nname='v'\ntype='velocity'\naction='reject'\nby='card'\nwindow_s=60\n"
    policy = Policy(risk=read_rules(rules + "count_max=1\n", "rules"))
    payments = PaymentsStage(CATALOGUE, CODEC, policy)
    rows: Table[Any] = Table(MemoryTableStore(), decode=payments.decode_row)
    lanes = set()
    for number in range(8):
        order = Order(
            merchant_id="shop",
            order_id=f"o-{number}",
            amount_minor=500,
            currency="GBP",
            instrument_token="tok_1",
            business_date="2026-11-25",
            submitted_at_ms=NOW,
            card_fingerprint="fp_1",
        )
        given = record("orders", record_key("shop", order.order_id), encoded("order", order))
        batch = handled(payments, rows, given)
        ((_, lane, key, _, _),) = [o for o in batch.outputs if o[0] == "risk-checks"]
        assert key == b"card:shop:fp_1"
        assert not [o for o in batch.outputs if o[0] == "payment-requests"]
        lanes.add((given.partition, lane))
    assert len({order_lane for order_lane, _ in lanes}) > 1
    assert {lane for _, lane in lanes} == {partition_of(b"card:shop:fp_1", PARTITIONS)}


def test_decisions_of_rules_are_counted_by_their_reason() -> None:
    """An operator sees which rule rejects and which holds."""
    rules = "[[rule]]\nname='big'\ntype='amount'\naction='reject'\ncurrency='GBP'\n"
    policy = Policy(risk=read_rules(rules + "amount_minor_max=100\n", "rules"))
    payments = PaymentsStage(CATALOGUE, CODEC, policy)
    rows: Table[Any] = Table(MemoryTableStore(), decode=payments.decode_row)
    order = Order(
        merchant_id="shop",
        order_id="o-1",
        amount_minor=500,
        currency="GBP",
        instrument_token="tok_1",
        business_date="2026-11-25",
        submitted_at_ms=NOW,
    )
    given = record("orders", record_key("shop", "o-1"), encoded("order", order))
    metrics = Metrics()
    metrics.counted("payments", handled(payments, rows, given).notes)
    told = generate_latest(metrics.registry).decode()
    line = 'paystream_risk_decisions_total{event="rejected",reason="risk_big"} 1.0'
    assert line in told.splitlines()

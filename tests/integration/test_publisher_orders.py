"""Publishing orders to a real broker."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition
from typer.testing import CliRunner

from pipeline.commands.orders import order_app, orders_app
from pipeline.domain.ids import payment_id
from pipeline.domain.keys import partition_of
from pipeline.domain.model import PaymentCommand
from pipeline.domain.records import command_from_record, order_from_record
from pipeline.errors import UserError
from pipeline.runtime.cluster import consumer_config
from producers.command_publisher import CommandPublisher, InvalidCommand
from producers.load_generator import LoadPlan, orders, prepare, run_load
from producers.order_publisher import InvalidOrder, OrderPublisher, PublishError
from schemas.codec import RECORD_BYTES_MAX, default_codec
from tests.support.topics import create_topic, read_all

pytestmark = pytest.mark.integration

SAMPLE = Path(__file__).parents[2] / "data" / "online-retail-2010-12-01-to-03.csv"
PLAN = LoadPlan(count=1_000, submitted_at_ms=1_790_000_000_000, business_date="2026-09-21")


@pytest.fixture
def topic(kafka: str, topic_prefix: str) -> str:
    name = f"{topic_prefix}orders"
    create_topic(kafka, name, 4)
    return name


def test_published_orders_arrive_whole_each_in_its_lane(kafka: str, topic: str) -> None:
    """Every order is there once, as it was given, on the partition that Java would choose."""
    wanted = list(orders(PLAN))
    with OrderPublisher(kafka, topic=topic) as publisher:
        for order in wanted:
            publisher.publish(order)
    decode = default_codec().decoder("order")
    records = read_all(kafka, topic)
    got = [order_from_record(decode(record.value() or b"")) for record in records]
    assert sorted(got, key=lambda o: o.order_id) == sorted(wanted, key=lambda o: o.order_id)
    for record, order in zip(records, got, strict=True):
        key = record.key() or b""
        assert key == f"{order.merchant_id}:{order.order_id}".encode()
        assert record.partition() == partition_of(key, 4)


def test_a_full_queue_slows_the_caller_and_loses_nothing(kafka: str, topic: str) -> None:
    """With room for ten orders in the client, a thousand still arrive."""
    settings = {"queue.buffering.max.messages": 10}
    with OrderPublisher(kafka, topic=topic, config=settings) as publisher:
        for order in orders(PLAN):
            publisher.publish(order)
    assert len(read_all(kafka, topic)) == 1_000


def test_a_topic_that_is_not_there_is_told_before_and_after(kafka: str, topic_prefix: str) -> None:
    """The check names the topic and the command; without it flush names the orders."""
    publisher = OrderPublisher(
        kafka,
        topic=f"{topic_prefix}none",
        delivery_timeout_s=1.0,
        config={"topic.metadata.propagation.max.ms": 500},
    )
    with pytest.raises(UserError, match="paystream topics apply"):
        publisher.check()
    publisher.publish(next(orders(PLAN)))
    with pytest.raises(PublishError, match="load-7-0"):
        publisher.flush()


def test_an_order_too_large_is_refused_and_the_next_one_taken(kafka: str, topic: str) -> None:
    """One order that no topic takes does not stop the publisher."""
    order = next(orders(PLAN))
    line = msgspec.structs.replace(order.lines[0], description="x" * 2_000_000)
    with OrderPublisher(kafka, topic=topic) as publisher:
        with pytest.raises(InvalidOrder, match="too large"):
            publisher.publish(msgspec.structs.replace(order, lines=(line,)))
        publisher.publish(order)
    assert len(read_all(kafka, topic)) == 1


def test_an_order_larger_than_a_record_may_be_is_refused_whatever_the_client_lets_out(
    kafka: str, topic: str
) -> None:
    """It would fit the topic once it is compressed, and be a dead letter there."""
    order = next(orders(PLAN))
    config = {"message.max.bytes": 2 * RECORD_BYTES_MAX}
    with OrderPublisher(kafka, topic=topic, config=config) as publisher:
        for description, fits in (("x" * RECORD_BYTES_MAX, False), ("x" * 4_000_000, True)):
            line = msgspec.structs.replace(order.lines[0], description=description)
            large = msgspec.structs.replace(order, lines=(line,))
            if fits:
                publisher.publish(large)
                continue
            with pytest.raises(InvalidOrder, match="too large"):
                publisher.publish(large)
    assert len(read_all(kafka, topic)) == 1


def test_a_publisher_goes_on_after_giving_up_orders(kafka: str, topic: str) -> None:
    """After a flush that gave up, the same publisher delivers what is published again."""
    wanted = list(orders(PLAN))[:200]
    publisher = OrderPublisher(kafka, topic=topic, config={"linger.ms": 60_000})
    for order in wanted:
        publisher.publish(order)
    with pytest.raises(PublishError) as raised:
        publisher.flush(timeout_s=0)
    missing = set(raised.value.undelivered)
    assert raised.value.count == len(missing)
    for order in wanted:
        if (order.merchant_id, order.order_id) in missing:
            publisher.publish(order)
    publisher.flush(timeout_s=30)
    keys = {record.key() for record in read_all(kafka, topic)}
    assert keys == {f"{o.merchant_id}:{o.order_id}".encode() for o in wanted}


def test_a_backlog_of_published_orders_is_read_from_all_partitions_in_turn(
    kafka: str, topic: str, topic_prefix: str
) -> None:
    """Of batches larger than a worker fetches a broker gives one partition's at a time, and the
    orders of the last partition would wait for all others."""
    with OrderPublisher(kafka, topic=topic, config={"linger.ms": 60_000}) as publisher:
        for order in orders(replace(PLAN, count=12_000)):
            publisher.publish(order)
        publisher.flush(timeout_s=60)
    config = consumer_config(kafka, group_id=f"{topic_prefix}turns", instance_id="one")
    read: Counter[int] = Counter()
    consumer = Consumer(config)
    try:
        consumer.assign([TopicPartition(topic, number, 0) for number in range(4)])
        while len(read) < 4:
            for message in consumer.consume(500, 1.0):
                assert message.error() is None
                read[message.partition()] += 1
    finally:
        consumer.close()
    assert max(read.values()) < 2_900, read


def test_the_load_generator_keeps_its_pace_and_loses_nothing(kafka: str, topic: str) -> None:
    """A paced run takes as long as its rate says and every record arrives."""
    pool = prepare(PLAN)
    report = run_load(kafka, pool, topic=topic, rate_per_s=2_000)
    assert (report.count, report.failed) == (1_000, 0)
    assert 0.45 < report.handed_over_s - report.started_s < 5
    assert {record.key() for record in read_all(kafka, topic)} == {key for key, _ in pool}


def test_the_load_generator_stops_when_asked(kafka: str, topic: str) -> None:
    """A stopped run reports what it sent, and that much arrives."""
    pool = prepare(PLAN)
    asked: list[float] = []

    def should_stop() -> bool:
        # Counted from the first order: making the producer may take longer on a busy machine.
        asked.append(time.monotonic())
        return asked[-1] > asked[0] + 0.2

    report = run_load(kafka, pool, topic=topic, rate_per_s=500, should_stop=should_stop)
    assert 0 < report.count < 1_000
    assert len(read_all(kafka, topic)) == report.count


def test_the_sample_is_imported_whole_and_again_without_harm(
    kafka: str, topic: str, topic_prefix: str
) -> None:
    """382 orders arrive, and 84 commands for the cancelled lines; a second import repeats the same
    keys, amounts and instruments, and the same command ids."""
    commands_topic = f"{topic_prefix}payment-commands"
    create_topic(kafka, commands_topic, 4)
    arguments = ["import", str(SAMPLE), "--bootstrap-servers", kafka, "--prefix", topic_prefix]
    for _ in range(2):
        result = CliRunner().invoke(orders_app, arguments)
        assert result.exit_code == 0, result.output
        assert "published 382 orders of 7419 lines: GBP 153,652.88" in result.stdout
        assert "published 7 refunds of the lines of known sales: GBP 136.10" in result.stdout
    decode = default_codec().decoder("order")
    seen = Counter(
        (record.key(), decoded["amount_minor"], decoded["currency"], decoded["instrument_token"])
        for record in read_all(kafka, topic)
        for decoded in [decode(record.value() or b"")]
    )
    assert len(seen) == 382
    assert set(seen.values()) == {2}
    assert sum(amount for _, amount, _, _ in seen) == 15_365_288
    decode = default_codec().decoder("payment-command")
    asked = Counter(
        (record.key(), decoded["command_id"], decoded["type"], decoded["amount_minor"])
        for record in read_all(kafka, commands_topic)
        for decoded in [decode(record.value() or b"")]
    )
    assert len(asked) == 84
    assert set(asked.values()) == {2}
    assert sum(amount for _, _, type_, amount in asked if type_ == "refund") == 13_610


def test_a_command_arrives_whole_in_its_payments_lane(kafka: str, topic_prefix: str) -> None:
    """Keyed by the payment, so that commands on one payment keep their order."""
    topic = f"{topic_prefix}payment-commands"
    create_topic(kafka, topic, 4)
    wanted = [
        PaymentCommand(
            merchant_id="shop",
            order_id=f"o-{n % 3}",
            command_id=f"c-{n}",
            type="refund",
            submitted_at_ms=n,
            amount_minor=n + 1,
        )
        for n in range(30)
    ]
    with CommandPublisher(kafka, topic=topic, config={"log_level": 0}) as publisher:
        for command in wanted:
            publisher.publish(command)
        with pytest.raises(InvalidCommand, match="command_id 'a b' does not match"):
            publisher.publish(msgspec.structs.replace(wanted[0], command_id="a b"))
    decode = default_codec().decoder("payment-command")
    records = read_all(kafka, topic)
    got = [command_from_record(decode(record.value() or b"")) for record in records]
    for order_id in ("o-0", "o-1", "o-2"):
        mine = [command for command in got if command.order_id == order_id]
        assert mine == [command for command in wanted if command.order_id == order_id]
    for record, command in zip(records, got, strict=True):
        assert record.key() == f"shop:{command.order_id}".encode()
        assert record.partition() == partition_of(record.key() or b"", 4)


def test_one_order_is_submitted_and_its_payment_named(
    kafka: str, topic: str, topic_prefix: str
) -> None:
    """The command prints the payment id that the flow will use, and how to follow it."""
    result = CliRunner().invoke(
        order_app,
        [
            *("submit", "--merchant", "m-1", "--order-id", "o-1", "--amount", "12.5"),
            *("--currency", "GBP", "--token", "tok_ok"),
            *("--bootstrap-servers", kafka, "--prefix", topic_prefix),
        ],
    )
    assert result.exit_code == 0, result.output
    assert payment_id("m-1", "o-1") in result.stdout
    assert "paystream trace m-1:o-1" in result.stdout
    (record,) = read_all(kafka, topic)
    order = order_from_record(default_codec().decoder("order")(record.value() or b""))
    assert (order.amount_minor, order.currency, order.instrument_token) == (1250, "GBP", "tok_ok")


@pytest.mark.parametrize("command", ["import", "submit"])
def test_a_missing_topic_is_a_sentence_for_a_person(
    kafka: str, topic_prefix: str, command: str
) -> None:
    """Before anything is published, the command says what to run first."""
    cluster = ["--bootstrap-servers", kafka, "--prefix", f"{topic_prefix}none."]
    if command == "import":
        result = CliRunner().invoke(orders_app, ["import", str(SAMPLE), *cluster])
    else:
        words = ["submit", "--merchant", "m", "--order-id", "o", "--amount", "1"]
        words += ["--currency", "GBP", "--token", "t"]
        result = CliRunner().invoke(order_app, [*words, *cluster])
    assert isinstance(result.exception, UserError)
    assert "paystream topics apply" in str(result.exception)

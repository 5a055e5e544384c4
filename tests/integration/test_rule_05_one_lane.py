"""Rules 5 and 7: one key in one lane, and every position is known before anything is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from pipeline.domain.keys import partition_of, record_key
from pipeline.errors import UserError
from pipeline.runtime.end_txn_watch import EndTxnWatch
from pipeline.runtime.lane import producer_config
from tests.support.engine_flow import EngineFlow, RunningWorker, ends_of, headers_of
from tests.support.topics import create_topic
from tests.support.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.integration


def assert_refused(flow: EngineFlow, sentence: str) -> None:
    """A payments worker of the flow ends by itself, with a sentence for people."""
    error = RunningWorker(*flow.payments_worker()).ended()
    assert isinstance(error, UserError), error
    assert re.search(sentence, str(error)), error


def test_a_misrouted_order_is_named_and_its_payment_made_once(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """An order in a lane that its key does not belong to goes to the dead letters; the same order
    in its own lane is charged, so two lanes never hold one payment."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    order = flow.order("o1")
    own = partition_of(record_key("shop", "o1"), flow.partitions)
    stray = flow.send_order(order, partition=1 - own)
    right = flow.send_order(order)
    assert right[0] == own
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(stray, right), running=running)
    (letter,) = flow.messages("dead-letters")
    headers = headers_of(letter)
    assert headers["dlq.cause"] == "misrouted"
    assert (headers["dlq.partition"], headers["dlq.offset"]) == (str(stray[0]), str(stray[1]))
    (request,) = flow.messages("payment-requests")
    assert request.partition() == own


def test_the_lanes_producer_partitions_as_java_does(kafka: str, topic_prefix: str) -> None:
    """A record that a lane's producer places by key lands where murmur2 says."""
    topic = f"{topic_prefix}keys"
    create_topic(kafka, topic, 7)
    # Given a logger, or the client would print what the lane reads from it.
    producer = Producer(producer_config(kafka, f"{topic_prefix}lane"), logger=EndTxnWatch())
    producer.init_transactions(30)
    landed: dict[bytes, int] = {}

    def report(error: object, message: object) -> None:
        assert error is None
        landed[message.key()] = message.partition()  # type: ignore[attr-defined]

    producer.begin_transaction()
    keys = [record_key("shop", f"o{n}") for n in range(200)]
    for key in keys:
        producer.produce(topic, b"v", key, on_delivery=report)
    producer.commit_transaction(10)
    assert landed == {key: partition_of(key, 7) for key in keys}


def test_unequal_partition_counts_are_refused_before_anything_is_read(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """With one topic of more partitions the records of one order would meet in different lanes:
    the worker names it and leaves the group's offsets as they are."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    flow.send_order(flow.order("o1"))
    admin = AdminClient({"bootstrap.servers": kafka})
    grown = flow.topic("gateway-results")
    admin.create_partitions([NewPartitions(grown, 3)])[grown].result(20)
    wait_until(
        lambda: len(admin.list_topics(grown, timeout=10).topics[grown].partitions) == 3,
        WAIT_S,
        "grown",
    )
    assert_refused(flow, r"must have 2 partitions, but .* has 3")
    assert flow.committed("payments", "orders") == {0: 0, 1: 0}
    assert flow.messages("payment-requests") == []


def test_a_missing_committed_offset_is_refused_by_name(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Neither the beginning nor the end is assumed: the sentence says what to run."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path)
    for spec in flow.catalogue.topics.values():
        create_topic(kafka, spec.name, spec.partitions)
    flow.send_order(flow.order("o1"))
    assert_refused(flow, r"no committed offset for .*topics apply")
    assert flow.messages("payment-requests") == []


def test_records_deleted_unread_are_named_and_none_is_skipped(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Retention that outran the worker is a loss to be decided by people: the worker stops, and
    the offsets stay where they were."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    sent = [flow.send_order(flow.order(f"o{n}")) for n in range(10)]
    lost = {tp: 0 for tp, _ in sent}
    for partition, offset in sent[:6]:
        lost[partition] = max(lost[partition], offset + 1)
    admin = AdminClient({"bootstrap.servers": kafka})
    deleted = admin.delete_records(
        [TopicPartition(flow.topic("orders"), p, end) for p, end in lost.items() if end]
    )
    for future in deleted.values():
        future.result(20)
    assert_refused(flow, "deleted before they were read")
    committed = flow.committed("payments", "orders")
    assert all(committed[p] == 0 for p, end in lost.items() if end)

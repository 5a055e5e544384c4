"""Rule 5: partitions that were added to a used flow are named, and nothing is consumed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from pipeline.errors import UserError
from pipeline.runtime import table_worker
from tests.support.engine_flow import EngineFlow, RunningWorker, ends_of
from tests.support.waiting import WAIT_S, wait_until
from topics.admin import connect
from topics.provisioning import Plan, plan, provision

pytestmark = pytest.mark.integration

GROWN = r"more than 2 partitions.*no group has an offset beyond the first 2.*under another prefix"


def grow(flow: EngineFlow, count: int, roles: Iterable[str] = ()) -> None:
    """What ``kafka-topics --alter`` does, for all topics of the flow or some."""
    admin = AdminClient({"bootstrap.servers": flow.bootstrap})
    names = [flow.topic(role) for role in roles or flow.catalogue.topics]
    for grown in admin.create_partitions([NewPartitions(name, count) for name in names]).values():
        grown.result(20)

    def seen() -> bool:
        topics = admin.list_topics(timeout=10).topics
        return all(len(topics[name].partitions) == count for name in names)

    wait_until(seen, WAIT_S, "grown")


def planned(flow: EngineFlow, *, grow_partitions: bool = False) -> Plan:
    return plan(connect(flow.bootstrap), flow.catalogue, grow_partitions=grow_partitions)


def forget(flow: EngineFlow, stage: str, lost: Iterable[tuple[str, int]]) -> None:
    """The group has no offset there any more, as after an expiry or a hand's deletion: it is
    deleted once it is empty, and gets all but these back."""
    group, gone = flow.catalogue.group(stage), {(flow.topic(role), p) for role, p in lost}
    kept = [
        TopicPartition(spec.name, partition, offset)
        for spec in flow.catalogue.inputs(stage)
        for partition, offset in flow.committed(stage, spec.role).items()
        if (spec.name, partition) not in gone
    ]
    admin = AdminClient({"bootstrap.servers": flow.bootstrap})

    def deleted() -> bool:
        try:
            admin.delete_consumer_groups([group])[group].result(20)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.NON_EMPTY_GROUP:
                raise
            return False
        return True

    wait_until(deleted, WAIT_S, "the session of its worker is over", interval_s=0.2)
    if kept:
        consumer = Consumer({"bootstrap.servers": flow.bootstrap, "group.id": group})
        consumer.commit(offsets=kept, asynchronous=False)
        consumer.close()


def why_it_ended(started: tuple[Any, Any]) -> str:
    error = RunningWorker(*started).ended()
    assert isinstance(error, UserError), error
    return str(error)


def test_orders_whose_lane_moved_are_never_charged_again(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Of a flow that was grown from outside `topics apply` and every worker refuse, with the
    partitions of before and of now; followed, no advice begins in the new ones."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    sent = [flow.send_order(flow.order(f"o{n}")) for n in range(6)]
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(*sent), running=running)
    requests = len(flow.messages("payment-requests"))
    assert requests == 6
    grow(flow, 3)
    wider = EngineFlow(kafka, topic_prefix, tmp_path, partitions=3)
    for each in (flow, wider):
        for grow_partitions in (False, True):
            (refusal,) = planned(each, grow_partitions=grow_partitions).refusals
            assert re.search(GROWN, refusal)
        with pytest.raises(UserError, match=GROWN) as refused:
            each.provisioned()
        said = [str(refused.value)]
        said += [why_it_ended(each.payments_worker()), why_it_ended(each.gateway_worker())]
        for text in said:
            assert re.search(GROWN, text)
            assert "PAYSTREAM_PARTITIONS" not in text
            assert "Run `paystream topics apply`" not in text
    assert wider.committed("payments", "orders")[2] < 0
    # A merchant's order that comes once more, as publishers place it now.
    for n in range(6):
        wider.send_order(flow.order(f"o{n}"))
    assert "nothing is consumed" in why_it_ended(wider.payments_worker())
    assert len(wider.messages("payment-requests")) == requests


def test_a_running_worker_names_the_growth(
    kafka: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at the first partition that is new to its group, and advises nothing that would
    begin there."""
    real: Callable[..., dict[str, Any]] = table_worker.consumer_config
    monkeypatch.setattr(
        table_worker,
        "consumer_config",
        # The client looks for new partitions every five minutes.
        lambda *a, **k: {**real(*a, **k), "topic.metadata.refresh.interval.ms": 1_000},
    )
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    sent = flow.send_order(flow.order("o1"))
    running = RunningWorker(*flow.payments_worker())
    flow.wait_consumed(ends_of(sent), running=running)
    grow(flow, 3)
    error = running.ended(60)
    assert isinstance(error, UserError), error
    assert "more than 2 partitions" in str(error)
    assert "Run `paystream topics apply`" not in str(error)


def test_a_wrong_count_is_told_from_growth(kafka: str, topic_prefix: str, tmp_path: Path) -> None:
    """Where a worker alone is configured otherwise, its setting is what to change."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    flow.send_order(flow.order("o1"))
    wrong = EngineFlow(kafka, topic_prefix, tmp_path, partitions=3)
    text = why_it_ended(wrong.payments_worker())
    assert "must have 3 partitions, but they have 2" in text
    assert "Set PAYSTREAM_PARTITIONS to that" in text


def test_topics_that_grew_apart_have_no_count_to_set(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """With one topic grown neither count is right: used, the flow moves; unused, all may grow."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    grow(flow, 3, ["orders"])
    wider = EngineFlow(kafka, topic_prefix, tmp_path, partitions=3)
    assert "apply --grow-partitions" in why_it_ended(flow.payments_worker())
    assert not planned(wider, grow_partitions=True).refusals
    (refusal,) = (r for r in planned(wider).refusals if "2 partitions" in r)
    assert "PAYSTREAM_PARTITIONS" not in refusal
    flow.send_order(flow.order("o1"))
    assert "another prefix" in why_it_ended(flow.payments_worker())
    assert f"{flow.topic('orders')} has more than 2 partitions" in planned(wider).refusals[0]


def test_what_is_no_growth_gets_its_first_offsets(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A used flow: a stage that is new to it, all offsets of a group that have expired, and some
    that were lost begin where the topics do, as long as another group knows all lanes."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    sent = flow.send_order(flow.order("o1"))
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(sent), running=running)
    lost = [("orders", 1), ("payment-commands", 0)]
    checks = [("risk-checks", 0), ("risk-checks", 1)]
    requests = [("payment-requests", 1)]
    for stage, places in (("payments", lost), ("risk", checks), ("gateway", requests)):
        forget(flow, stage, places)
    found = planned(flow)
    assert not found.refusals
    assert {(o.topic, o.partition) for o in found.offsets} == {
        (flow.topic(role), p) for role, p in [*lost, *checks, *requests]
    }
    provision(kafka, flow.catalogue)
    assert planned(flow).lines() == ["nothing to do"]


def test_an_unused_flow_that_was_grown_begins(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Nothing was written in the lanes of before, as after a `--grow-partitions` that was killed:
    the worker says to apply, and apply gives the first offsets."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    grow(flow, 3)
    wider = EngineFlow(kafka, topic_prefix, tmp_path, partitions=3)
    assert "Run `paystream topics apply`" in why_it_ended(wider.payments_worker())
    wait_until(lambda: not planned(wider).refusals, WAIT_S, "its session is over", interval_s=0.5)
    wider.provisioned()
    sent = wider.send_order(wider.order("o1"))
    with wider.running_payments() as running:
        wider.wait_consumed(ends_of(sent), running=running)

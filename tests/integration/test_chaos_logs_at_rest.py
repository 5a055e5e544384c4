"""What the chaos judge reads in the logs of three real brokers, where their bytes could mislead."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from pipeline.chaos.flow.broker_faults import java_hash
from pipeline.chaos.flow.coordinator_log import broken_ends
from pipeline.chaos.flow.log_bytes import COMMITTED, OPEN
from pipeline.chaos.flow.logs_at_rest import STATE_TOPIC, Logs, read_at_rest
from pipeline.embedded.kafka import KafkaHandle, start_kafka, stop_kafka
from pipeline.embedded.kafka_config import INTERNAL_PARTITIONS, SHORT_LIVED
from tests.support.topics import create_topic

pytestmark = [pytest.mark.integration, pytest.mark.acceptance, pytest.mark.timeout(180)]

TRANSACTION_TIMEOUT_S = 4.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaHandle]:
    folder = tmp_path_factory.mktemp("kafka")
    yield start_kafka(folder, brokers=3, heap_mb=256, die_with_parent=True, jvm_flags=SHORT_LIVED)
    stop_kafka(folder)


def judged(cluster: KafkaHandle, topic: str) -> Logs:
    log_dirs = {broker.node_id: broker.folder / "log" for broker in cluster.brokers}
    return read_at_rest(cluster.bootstrap_servers, log_dirs, [(topic, 0)])


def transactional(cluster: KafkaHandle, name: str) -> Producer:
    producer = Producer(
        {
            "bootstrap.servers": cluster.bootstrap_servers,
            "transactional.id": name,
            "transaction.timeout.ms": int(TRANSACTION_TIMEOUT_S * 1000),
            "socket.timeout.ms": int(TRANSACTION_TIMEOUT_S * 1000),
            "log_level": 0,
        }
    )
    producer.init_transactions(60)
    return producer


def create(cluster: KafkaHandle, topic: str, leader: int) -> None:
    """A topic of one partition on this broker alone."""
    config = {"min.insync.replicas": "1"}
    create_topic(cluster.bootstrap_servers, topic, replicas=[leader], config=config)


def coordinator_of(cluster: KafkaHandle, name: str) -> int:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    state = admin.list_topics(STATE_TOPIC, timeout=30).topics[STATE_TOPIC]
    return int(state.partitions[java_hash(name) % INTERNAL_PARTITIONS].leader)


@contextmanager
def frozen(cluster: KafkaHandle, node_id: int) -> Iterator[None]:
    broker = next(each for each in cluster.brokers if each.node_id == node_id)
    broker.pause()
    try:
        yield
    finally:
        broker.resume()


def test_a_decision_that_was_written_twice_is_one(cluster: KafkaHandle) -> None:
    """While a copy of the coordinator's log stands still, it gives its own decision up after the
    transaction's time-out and takes it again; one marker follows."""
    name, topic = "twice", "written-twice"
    producer = transactional(cluster, name)
    leader = coordinator_of(cluster, name)
    create(cluster, topic, leader)
    producer.begin_transaction()
    producer.produce(topic, b"v")
    producer.flush(30)
    other = next(each.node_id for each in cluster.brokers if each.node_id != leader)
    with frozen(cluster, other):
        ending = threading.Thread(target=commit, args=(producer,))
        ending.start()
        time.sleep(TRANSACTION_TIMEOUT_S + 2.0)
    ending.join(60)
    logs = judged(cluster, topic)
    mine = [decision for decision in logs.decided if decision.transactional_id == name]
    assert len(mine) == 1
    assert mine[0].taken_back >= 1
    assert broken_ends(logs.decided, logs.truths) == []
    assert OPEN not in logs.truths[topic, 0].fate


def commit(producer: Producer) -> None:
    """Told of it or not: the brokers are asked afterwards."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        try:
            producer.commit_transaction(30)
            return
        except KafkaException as error:
            if not error.args[0].retriable():
                return


def test_what_a_killed_worker_left_open_is_judged_once_it_has_ended(cluster: KafkaHandle) -> None:
    """Its transaction lives on until the broker's time-out: neither stuck nor without its word."""
    name, topic = "left-open", "left-open"
    producer = transactional(cluster, name)
    create(cluster, topic, coordinator_of(cluster, name))
    producer.begin_transaction()
    producer.produce(topic, b"v")
    producer.flush(30)
    # As a killed one, it says nothing any more: a producer that goes away aborts nothing.
    del producer
    logs = judged(cluster, topic)
    mine = [decision for decision in logs.decided if decision.transactional_id == name]
    assert [decision.commits for decision in mine] == [False]
    assert logs.under_way == []
    assert {OPEN, COMMITTED}.isdisjoint(logs.truths[topic, 0].fate)
    assert broken_ends(logs.decided, logs.truths) == []

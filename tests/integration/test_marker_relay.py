"""The relay between real brokers: one producer's marker waits, and everything else goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from pipeline.chaos.flow.broker_faults import java_hash
from pipeline.chaos.flow.coordinator_log import producer_id_of
from pipeline.chaos.marker_relay import Hold, MarkerRelay
from pipeline.embedded.kafka import KafkaHandle, start_kafka, stop_kafka
from pipeline.embedded.kafka_config import SHORT_LIVED
from tests.support.topics import create_topic, log_ends, read_all
from tests.support.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.integration

NEAR, FAR = "near", "far"
STATE = "__transaction_state"


@dataclass(frozen=True)
class Related:
    """Three brokers with the relay between them; ``target`` leads the topic ``far``."""

    kafka: KafkaHandle
    relay: MarkerRelay
    target: int

    @property
    def servers(self) -> str:
        return self.kafka.bootstrap_servers


@pytest.fixture(scope="module")
def related(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Related]:
    with MarkerRelay() as relay:
        handle = start_kafka(
            tmp_path_factory.mktemp("related"),
            brokers=3,
            heap_mb=320,
            die_with_parent=True,
            jvm_flags=SHORT_LIVED,
            config_of=relay.config_of,
        )
        try:
            first, second, third = (broker.node_id for broker in handle.brokers)
            create_topic(handle.bootstrap_servers, NEAR, replicas=(first, second, third))
            create_topic(handle.bootstrap_servers, FAR, replicas=(second, first, third))
            yield Related(handle, relay, second)
        finally:
            stop_kafka(handle)


def writer(related: Related, transactional_id: str) -> tuple[Producer, int]:
    """A producer, and its id as its coordinator has it."""
    producer = Producer(
        {"bootstrap.servers": related.servers, "transactional.id": transactional_id}
    )
    producer.init_transactions(WAIT_S)
    state = AdminClient({"bootstrap.servers": related.servers}).list_topics(STATE, timeout=WAIT_S)
    partitions = state.topics[STATE].partitions
    place = java_hash(transactional_id) % len(partitions)
    leader = next(b for b in related.kafka.brokers if b.node_id == partitions[place].leader)
    folder = leader.folder / "log" / f"{STATE}-{place}"
    # The first id of a cluster is 0.
    wait_until(lambda: producer_id_of(folder, transactional_id) is not None, WAIT_S, "an id")
    producer_id = producer_id_of(folder, transactional_id)
    assert producer_id is not None
    return producer, producer_id


def commit_one(producer: Producer, *topics: str) -> None:
    producer.begin_transaction()
    for topic in topics:
        producer.produce(topic, b"value")
    producer.commit_transaction(WAIT_S)


def test_a_marker_that_is_held_lands_apart_from_the_others(related: Related) -> None:
    """The producer is told of its commit, a reader sees one half, and the other half once the
    marker is let go."""
    producer, producer_id = writer(related, "held")
    related.relay.hold(Hold([related.target], producer_id, FAR))
    commit_one(producer, NEAR, FAR)
    assert len(read_all(related.servers, NEAR)) == 1
    wait_until(lambda: related.relay.caught, WAIT_S, "a marker that is held")
    assert log_ends(related.servers, FAR, "read_committed") == {0: 0}
    assert log_ends(related.servers, FAR, "read_uncommitted") == {0: 1}
    (caught,) = related.relay.caught
    assert (caught.producer_id, caught.commits) == (producer_id, True)
    assert caught.partitions == {(FAR, 0)}
    related.relay.release()
    assert len(read_all(related.servers, FAR)) == 1
    # Nothing is held any more.
    commit_one(producer, NEAR, FAR)
    assert len(read_all(related.servers, FAR)) == 2


def test_markers_of_others_and_of_aborts_pass(related: Related) -> None:
    """Only what was asked for waits: a commit, of that producer, in that topic, at that broker."""
    caught = len(related.relay.caught)
    wanted, wanted_id = writer(related, "wanted")
    other, _ = writer(related, "other")
    before = len(read_all(related.servers, FAR))
    related.relay.hold(Hold([related.target], wanted_id, FAR))
    try:
        commit_one(other, NEAR, FAR)
        commit_one(wanted, NEAR)
        wanted.begin_transaction()
        wanted.produce(FAR, b"never")
        wanted.abort_transaction(WAIT_S)
        # The next transaction of that producer begins when the one before has all its markers.
        commit_one(wanted, NEAR)
        assert len(read_all(related.servers, FAR)) == before + 1
        assert len(related.relay.caught) == caught
    finally:
        related.relay.release()

"""A marker that Kafka loses: the transaction is found, and ended the way it was decided."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from pipeline.cli import app
from pipeline.embedded.kafka import KafkaHandle, running_kafka, start_kafka, stop_kafka
from pipeline.embedded.kafka_config import SHORT_LIVED
from pipeline.hanging.search import Cluster
from tests.support.cli import Cli
from tests.support.cli_runner import CliRunner
from tests.support.late_produce import produce_late
from tests.support.topics import create_topic, read_all
from tests.support.waiting import WAIT_S, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[KafkaHandle]:
    """Three brokers that miss one of them after two seconds."""
    yield start_kafka(
        tmp_path / "kafka",
        brokers=3,
        heap_mb=256,
        die_with_parent=True,
        jvm_flags=SHORT_LIVED,
        extra_config={"broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "500"},
    )
    stop_kafka(tmp_path / "kafka")


def begun(servers: str, name: str) -> Producer:
    """A producer with a record in both topics, in a transaction that nobody ends for a minute."""
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "transactional.id": name,
            "transaction.timeout.ms": 60_000,
            "log_level": 0,
        }
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    for topic in ("gone", "there"):
        producer.produce(topic, name.encode(), partition=0)
    assert producer.flush(30) == 0
    return producer


def values(servers: str, topic: str) -> set[bytes | None]:
    return {message.value() for message in read_all(servers, topic)}


def test_what_a_broker_forgot_to_end_is_ended_as_it_was_decided(three: KafkaHandle) -> None:
    """While a partition has no leader, Kafka takes it for deleted: a commit succeeds and its
    records there stay hidden, an abort's hold all up. `transactions end` writes what is missing,
    and leaves alone what is only open."""
    servers = three.bootstrap_servers
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    lost, kept = three.brokers[0], three.brokers[1]
    for topic, broker in (("gone", lost), ("there", kept)):
        create_topic(servers, topic, replicas=[broker.node_id])
    committed, aborted = begun(servers, "committed"), begun(servers, "aborted")

    lost.kill()
    wait_until(lambda: leader(admin, "gone") == -1, 60, "the killed broker is missed")
    committed.commit_transaction(30)
    aborted.abort_transaction(30)
    lost.start()
    wait_until(lambda: leader(admin, "gone") == lost.node_id, 60, "it leads again")
    merely_open = begun(servers, "open")

    run = CliRunner().invoke
    at = ["--bootstrap-servers", servers]
    listed = run(app, ["transactions", "list", "--json", *at])
    assert listed.exit_code == 3, listed.output
    found = {(t["transactional_id"], t["topic"], t["decided"]) for t in json.loads(listed.output)}
    assert found == {("committed", "gone", "commit"), ("aborted", "gone", "abort")}

    ended = run(app, ["transactions", "end", *at])
    assert ended.exit_code == 0, ended.output
    assert "2 ended, 0 left" in ended.output
    merely_open.commit_transaction(30)
    assert values(servers, "gone") == values(servers, "there") == {b"committed", b"open"}
    again = run(app, ["transactions", "list", *at])
    assert again.exit_code == 0, again.output
    assert "no transaction hangs" in again.output


def test_up_ends_what_hangs_before_it_starts_its_workers(tmp_path: Path) -> None:
    """What a broker of before has left is ended, and said; nobody has to look for it."""
    cli = Cli(tmp_path)
    # A broker that takes a record without asking the coordinator can be made to forget one.
    broker = start_kafka(
        cli.state_dir / "kafka",
        heap_mb=256,
        die_with_parent=True,
        jvm_flags=SHORT_LIVED,
        extra_config={"transaction.partition.verification.enable": "false"},
    )
    servers = broker.bootstrap_servers
    for topic in ("gone", "there"):
        create_topic(servers, topic)
    begun(servers, "committed").commit_transaction(30)
    # A commit returns when it is decided; the markers come a moment later.
    wait_until(lambda: not still_open(servers), WAIT_S, "its markers are written")
    produce_late(servers, "committed", "gone", b"more")
    stop_kafka(broker)

    with cli.start("up", "--metrics-port", "0", "--partitions", "3") as up:
        up.wait_for("Starting workers")
        told = "ended as it was decided: gone[0] from offset 2: committed, decided: commit"
        assert told in up.said
        assert values(up_servers(cli), "gone") == {b"committed", b"more"}
        up.interrupt()
        assert up.ended() in (130, 0), up.said


def still_open(servers: str) -> bool:
    with Cluster(servers) as cluster:
        return bool(cluster.open_transactions())


def up_servers(cli: Cli) -> str:
    found = running_kafka(cli.state_dir / "kafka")
    assert found is not None
    return found


def leader(admin: AdminClient, topic: str) -> int:
    return int(admin.list_topics(topic, timeout=10).topics[topic].partitions[0].leader)

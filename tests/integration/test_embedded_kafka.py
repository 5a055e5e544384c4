"""The embedded Kafka: data kept over restarts, one cluster for all who ask, a dead broker."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from pipeline.embedded.artifacts import LockedArtifact
from pipeline.embedded.kafka import KafkaHandle, running_kafka, start_kafka, stop_kafka
from pipeline.embedded.kafka_config import SHORT_LIVED
from pipeline.errors import UserError
from tests.support import create_topic, read_all, wait_until

pytestmark = pytest.mark.integration

START_AND_TELL = """
import json, sys
from pathlib import Path
from pipeline.embedded.kafka import start_kafka
from pipeline.embedded.kafka_config import SHORT_LIVED
handle = start_kafka(Path(sys.argv[1]), heap_mb=256, jvm_flags=SHORT_LIVED)
print(json.dumps([handle.started_here, handle.bootstrap_servers, handle.brokers[0].pid]))
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A folder for a cluster of the test's own, stopped after it."""
    yield tmp_path / "kafka"
    stop_kafka(tmp_path / "kafka")


def start(data_dir: Path, **options: object) -> KafkaHandle:
    return start_kafka(
        data_dir,
        heap_mb=256,
        die_with_parent=True,
        jvm_flags=SHORT_LIVED,
        **options,  # type: ignore[arg-type]
    )


def produce(bootstrap: str, topic: str, *values: bytes) -> None:
    """Produce with acks from all replicas, or fail."""
    failed: list[object] = []
    producer = Producer({"bootstrap.servers": bootstrap, "message.timeout.ms": 30_000})
    for value in values:
        producer.produce(topic, value, on_delivery=lambda e, _m: failed.append(e) if e else None)
    assert producer.flush(30) == 0
    assert failed == []


def values_of(bootstrap: str, topic: str) -> list[bytes | None]:
    return [record.value() for record in read_all(bootstrap, topic)]


def no_network(artifact: LockedArtifact, _folder: Path, _on_bytes: Callable[[int], None]) -> Path:
    raise AssertionError(f"{artifact.file} was fetched although it is cached")


def test_records_survive_a_restart_without_a_network(
    kafka: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped and started again beside another cluster, offline, it has its records and port, and
    its classes from the archive that a start before it has left. That one has left what its folder
    was formatted with as well: no program is run for it."""
    first = start(data_dir)
    assert first.started_here
    assert not (first.brokers[0].folder / "format.log").exists()
    assert first.bootstrap_servers != kafka
    create_topic(first.bootstrap_servers, "kept")
    produce(first.bootstrap_servers, "kept", b"a", b"b")

    stop_kafka(first)
    assert not first.brokers[0].is_running()
    assert running_kafka(data_dir) is None

    second = start(data_dir, fetch=no_network)
    assert second.bootstrap_servers == first.bootstrap_servers
    assert values_of(second.bootstrap_servers, "kept") == [b"a", b"b"]
    assert "/classes-" in Path(f"/proc/{second.brokers[0].pid}/maps").read_text()


@pytest.mark.long
def test_a_crashed_broker_comes_back_on_another_port_when_its_own_is_taken(data_dir: Path) -> None:
    """SIGKILL loses no acknowledged record; a stranger on the old port is left alone."""
    first = start(data_dir)
    create_topic(first.bootstrap_servers, "kept")
    produce(first.bootstrap_servers, "kept", b"a")
    first.brokers[0].kill()

    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", first.brokers[0].ports.port))
        stranger.listen()
        second = start(data_dir)
    assert second.started_here
    assert second.bootstrap_servers != first.bootstrap_servers
    assert values_of(second.bootstrap_servers, "kept") == [b"a"]


def test_two_processes_at_once_get_one_cluster(data_dir: Path) -> None:
    """Of two starts in one folder one starts the broker, and both are given the same."""
    line = [sys.executable, "-c", START_AND_TELL, str(data_dir)]
    both = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert sorted(started_here for started_here, _, _ in told) == [False, True]
    assert told[0][1:] == told[1][1:]


def test_a_setting_that_kafka_refuses_is_shown_and_nothing_stays_running(data_dir: Path) -> None:
    """A failed start says what the broker logged, and leaves no process."""
    with pytest.raises(UserError, match=r"num\.io\.threads"):
        start(data_dir, extra_config={"num.io.threads": "none"})
    assert running_kafka(data_dir) is None


def test_a_paused_broker_is_silent_until_resumed(data_dir: Path) -> None:
    """Paused it is there but answers nothing; resumed it goes on as the same process."""
    handle = start(data_dir)
    (broker,) = handle.brokers
    pid = broker.pid
    broker.pause()
    admin = AdminClient({"bootstrap.servers": handle.bootstrap_servers, "log_level": 0})
    with pytest.raises(KafkaException, match=r"_TRANSPORT|_TIMED_OUT"):
        admin.list_topics(timeout=1)
    assert broker.pid == pid
    broker.resume()
    assert admin.list_topics(timeout=30).brokers
    assert broker.pid == pid


@pytest.mark.long
def test_three_brokers_outlive_the_loss_of_one(data_dir: Path) -> None:
    """With one of three killed, acknowledged records stay readable and new ones are accepted."""
    handle = start(data_dir, brokers=3)
    admin = AdminClient({"bootstrap.servers": handle.bootstrap_servers, "log_level": 0})
    create_topic(handle.bootstrap_servers, "replicated")
    produce(handle.bootstrap_servers, "replicated", b"before")
    leader = admin.list_topics("replicated", timeout=10).topics["replicated"].partitions[0].leader
    victim = next(broker for broker in handle.brokers if broker.node_id == leader)
    victim.kill()

    produce(handle.bootstrap_servers, "replicated", b"while one is dead")
    victim.start()

    def in_sync() -> bool:
        found = admin.list_topics("replicated", timeout=10).topics["replicated"].partitions[0]
        return len(found.isrs) == 3

    wait_until(in_sync, 60, "the restarted broker has caught up")
    assert values_of(handle.bootstrap_servers, "replicated") == [b"before", b"while one is dead"]


def test_reading_a_whole_topic_ends_behind_aborted_records(kafka: str, topic_prefix: str) -> None:
    """read_all sees committed records only, and is not held up by markers at the log's end."""
    topic = f"{topic_prefix}transactional"
    create_topic(kafka, topic, 2)
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": f"{topic_prefix}id"})
    producer.init_transactions(30)
    for value, end in (
        (b"kept", producer.commit_transaction),
        (b"dropped", producer.abort_transaction),
    ):
        producer.begin_transaction()
        producer.produce(topic, value, partition=0)
        producer.flush(30)
        end(30)
    assert values_of(kafka, topic) == [b"kept"]
    uncommitted = [record.value() for record in read_all(kafka, topic, "read_uncommitted")]
    assert uncommitted == [b"kept", b"dropped"]

"""Brokers that ask for TLS and a user: the whole flow runs on them, and a refusal is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from consumers.settlement_subscriber import Poison, SettlementSubscriber
from pipeline.commands.audit import EXIT_UNAVAILABLE
from pipeline.errors import UserError
from pipeline.gateways.simulator import start_simulator, stop_simulator
from pipeline.hanging.requests import transactional_ids
from pipeline.hanging.search import Cluster, patiently
from pipeline.kafka_access import use_access
from pipeline.runtime import standstill
from pipeline.runtime.standstill import Standstill
from producers.order_publisher import OrderPublisher
from tests.support.cli import Cli, Done
from tests.support.raw_record import GZIP, LZ4, gzip_members, lz4_frame, produce_raw, record_bytes
from tests.support.secured_kafka import PASSWORD, PREFIX, SecuredKafka, secured_kafka
from tests.support.topics import create_topic
from tests.support.waiting import WAIT_S, wait_until
from tests.support.whole_flow import orders
from topics.catalogue import TopicSettings, build_catalogue
from topics.provisioning import provision

pytestmark = pytest.mark.integration

SUBMIT = ("order", "submit", "--merchant", "m", "--amount", "1.00", "--currency", "GBP")
SUBMIT += ("--token", "tok_ok", "--order-id")


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    with secured_kafka(tmp_path_factory.mktemp("secured")) as kafka:
        yield kafka


@pytest.fixture(autouse=True)
def _access_ends() -> Iterator[None]:
    yield
    use_access({})


@pytest.mark.long
def test_a_flow_whose_brokers_want_tls_and_a_user(tmp_path: Path, brokers: SecuredKafka) -> None:
    """By a file, its password in a file of its own: every command and worker, with the rights that
    are written down and no others."""
    (tmp_path / "password").write_text(PASSWORD + "\n")
    scram = {name: v for name, v in brokers.scram().items() if name != "sasl.password"}
    scram["sasl.password.file"] = str(tmp_path / "password")
    simulator = start_simulator(tmp_path / "books.sqlite")
    try:
        file = tmp_path / "paystream.toml"
        lines = [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in scram.items()]
        file.write_text(
            f'bootstrap_servers = "{brokers.address}"\npartitions = 2\n'
            f'topic_prefix = "{PREFIX}"\ngateway_url = "{simulator.url}"\nmetrics_port = 0\n'
            'node_id = "n"\n'
            f'ledger_url = "sqlite:///{tmp_path / "ledger.sqlite"}"\n'
            "[kafka]\n" + "\n".join(lines) + "\n"
        )
        cli = Cli(tmp_path, {"PAYSTREAM_CONFIG": str(file)})
        stranger = AdminClient({"bootstrap.servers": brokers.address, **brokers.scram()})
        other = stranger.create_topics([NewTopic("other.orders", 1, 1)])["other.orders"]
        with pytest.raises(KafkaException, match="uthoriz"):
            other.result(timeout=60)
        assert cli.run("topics", "apply").code == 0
        with (
            cli.start("run", "payments") as _payments,
            cli.start("run", "gateway") as _gateway,
            cli.start("run", "ledger") as _ledger,
        ):
            for number in range(3):
                assert cli.run(*SUBMIT, str(number)).code == 0
            # The ledger's worker may be the last to start; until then there is nothing to look at.
            audit = wait_until(
                lambda: (
                    (done := cli.run("verify", "--wait", "60")).code != EXIT_UNAVAILABLE and done
                ),
                WAIT_S,
                "there is a ledger",
            )
            assert audit.code == 0, audit.out + audit.err
            shown = cli.run("payment", "show", "m:0")
            assert "captured" in shown.out
            publisher = Producer({"bootstrap.servers": brokers.address, **brokers.scram()})
            publisher.produce(f"{PREFIX}orders", b"junk", b"m:junk")
            assert publisher.flush(WAIT_S) == 0
            wait_until(
                lambda: "not_wire_format" in cli.run("dead-letters", "list").out,
                WAIT_S,
                "the letter is there",
            )
            done = cli.run("dead-letters", "discard", "--all", "--yes", "--reason", "a test's")
            assert done.code == 0, done.out + done.err
            assert cli.run("positions", "show").code == 0
    finally:
        stop_simulator(simulator)


@pytest.mark.parametrize("way", ["scram", "plain_sasl", "by_certificate"])
def test_each_way_in_reaches_the_brokers_own_requests_too(brokers: SecuredKafka, way: str) -> None:
    """What the client library has no call for speaks TLS and SASL by itself."""
    use_access(getattr(brokers, way)())
    address = brokers.certified if way == "by_certificate" else brokers.address

    def asked() -> list[str]:
        with Cluster(address) as cluster:
            return transactional_ids(cluster.broker(1), [2**62])

    # A broker that has only just started still loads its transactions.
    assert patiently(asked, 60.0) == []


@pytest.mark.long
def test_a_refusal_says_what_was_refused(tmp_path: Path, brokers: SecuredKafka) -> None:
    """And never the password."""
    cli = Cli(tmp_path)
    words = [("topics", "plan"), ("transactions", "list"), ("verify", "--no-ledger")]
    expected = [
        (brokers.scram("wrong word"), "uthentication"),
        ({"security.protocol": "SSL"}, "certificate"),
        ({}, '"security.protocol" first'),
    ]

    def refused(given: dict[str, str], command: tuple[str, ...]) -> Done:
        address = {"PAYSTREAM_BOOTSTRAP_SERVERS": brokers.address}
        return cli.run(*command, environment={**address, "PAYSTREAM_KAFKA": json.dumps(given)})

    # Each waits for up to ten seconds: all at once.
    with ThreadPoolExecutor(9) as terminals:
        asked = [
            (said, terminals.submit(refused, given, command))
            for given, said in expected
            for command in words
        ]
    for said, future in asked:
        done = future.result()
        assert done.code in (2, 3)
        assert said in done.err, done.err
        assert "Traceback" not in done.err
        assert "wrong word" not in done.err + done.out


def test_a_program_of_its_own_gives_them_to_its_publisher(brokers: SecuredKafka) -> None:
    provision(brokers.plain, build_catalogue(TopicSettings(prefix=PREFIX, partitions=2)))
    topic = f"{PREFIX}orders"
    with OrderPublisher(brokers.address, topic=topic, config=brokers.scram()) as publisher:
        publisher.check(30)
        publisher.publish(orders(1)[0])
    with (
        OrderPublisher(brokers.address, topic=topic, config=brokers.scram("no")) as stranger,
        pytest.raises(UserError, match="uthentication"),
    ):
        stranger.check(3)


def followed(brokers: SecuredKafka, name: str, *batches: tuple[bytes, int]) -> str:
    """A topic of these batches, then a record in a transaction and its marker."""
    topic = f"{PREFIX}{name}"
    create_topic(brokers.plain, topic, replication=1)
    for records, codec in batches:
        produce_raw(brokers.plain, topic, records, codec)
    producer = Producer({"bootstrap.servers": brokers.plain, "transactional.id": topic})
    producer.init_transactions(60)
    producer.begin_transaction()
    producer.produce(topic, b"no settlement", b"k", 0)
    producer.commit_transaction(60)
    return topic


def position(brokers: SecuredKafka, topic: str) -> int:
    """Of a group that is named like its topic."""
    asker = Consumer({"bootstrap.servers": brokers.plain, "group.id": topic})
    try:
        return asker.committed([TopicPartition(topic, 0)], timeout=30)[0].offset
    finally:
        asker.close()


def test_a_follower_that_has_them_as_its_own_passes_over_what_nobody_reads(
    brokers: SecuredKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its client says that it cannot unfold, what it is silent about, and the marker."""
    monkeypatch.setattr(standstill, "LOOK_S", 0.1)
    monkeypatch.setattr(standstill, "STANDS_S", 0.5)
    monkeypatch.setattr(Standstill, "empty_now", lambda *_: {})
    record = record_bytes(b"k", b"v")
    silent = gzip_members(record[:4], record[4:])
    topic = followed(brokers, "idle", (lz4_frame(record) + b"more", LZ4), (silent, GZIP))
    poisons: list[Poison] = []
    with SettlementSubscriber(
        brokers.address,
        topic,
        topic=topic,
        start="earliest",
        on_poison=poisons.append,
        config=brokers.scram(),
    ) as follower:
        wait_until(lambda: follower.poll(0.2) or len(poisons) == 3, 60, "all are passed over")
        assert [each.position.offset for each in poisons] == [0, 1, 2]
        assert follower.commit()
        wait_until(lambda: follower.poll(0.2) or position(brokers, topic) == 4, 60, "its marker")


def test_a_follower_that_has_them_as_its_own_leaves_behind_the_marker(
    brokers: SecuredKafka,
) -> None:
    topic = followed(brokers, "leaving")
    with SettlementSubscriber(
        brokers.address, topic, topic=topic, start="earliest", config=brokers.scram()
    ) as follower:
        wait_until(lambda: follower.poll(0.2) or follower.poison_count, 60, "it has read all")
        assert follower.commit()
    assert position(brokers, topic) == 2

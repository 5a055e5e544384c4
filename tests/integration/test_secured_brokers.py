"""Brokers that ask for TLS and a user: the whole flow runs on them, and a refusal is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.errors import UserError
from pipeline.gateways.simulator import start_simulator, stop_simulator
from pipeline.hanging.requests import transactional_ids
from pipeline.hanging.search import Cluster, patiently
from pipeline.kafka_access import use_access
from producers.order_publisher import OrderPublisher
from tests.support.cli import Cli, Done
from tests.support.secured_kafka import PASSWORD, PREFIX, SecuredKafka, secured_kafka
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
            audit = cli.run("verify", "--wait", "60")
            assert audit.code == 0, audit.out + audit.err
            shown = cli.run("payment", "show", "m:0")
            assert "captured" in shown.out
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

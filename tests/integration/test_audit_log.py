"""The audit on a real broker: what read_committed shows, open transactions, and the commands."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from typer import Typer
from typer.testing import Result

from pipeline.audit.cut import judged_roles
from pipeline.audit.report import Report, Severity
from pipeline.audit.trace import trace
from pipeline.audit.unavailable import AuditUnavailable
from pipeline.audit.verify import Sources, verify
from pipeline.commands.audit import trace_command, verify_command
from tests.support.audit_flow import CATALOGUE, PARTITIONS, Flow, Row, healthy_flow
from tests.support.cli_runner import CliRunner
from tests.support.topics import log_ends
from topics.catalogue import TopicSettings, build_catalogue
from topics.provisioning import provision

pytestmark = pytest.mark.integration

# How long a look waits for open transactions in these tests.
SHORT_WAIT_S = 1.0


class Cluster:
    """Topics under a prefix of their own, filled from a made-up flow in transactions."""

    def __init__(self, servers: str, prefix: str) -> None:
        self.servers = servers
        self.prefix = prefix
        self.sources = Sources(servers, prefix, open_transaction_wait_s=SHORT_WAIT_S)
        self.catalogue = build_catalogue(TopicSettings(prefix=prefix, partitions=PARTITIONS))
        self._producers: list[Producer] = []
        provision(servers, self.catalogue)

    def producer(self, name: str) -> Producer:
        producer = Producer(
            {
                "bootstrap.servers": self.servers,
                "transactional.id": f"{self.prefix}{name}",
                # Ours stay open on purpose for longer than an ordinary one may.
                "transaction.timeout.ms": 60_000,
            }
        )
        producer.init_transactions(30)
        self._producers.append(producer)
        return producer

    def write(self, producer: Producer, rows: list[Row]) -> None:
        """Produce rows inside the open transaction, each topic in its order."""
        for row in rows:
            producer.produce(
                self.catalogue.name(row.role),
                row.value,
                row.key,
                row.partition,
                headers=list(row.headers),
            )
        producer.flush(30)

    def write_flow(self, flow: Flow) -> None:
        """The whole flow in two transactions with an aborted one between, all processed."""
        producer = self.producer("writer")
        rows = [row for row in flow.rows if row.role != "dead-letters"]
        half = len(rows) // 2
        producer.begin_transaction()
        self.write(producer, rows[:half])
        producer.commit_transaction(30)
        producer.begin_transaction()
        # Visible, each of these would break a guarantee.
        self.write(producer, [r for r in rows if r.role in ("settlements", "payment-events")])
        producer.abort_transaction(30)
        producer.begin_transaction()
        self.write(producer, rows[half:])
        producer.commit_transaction(30)
        self.commit_ends()

    def commit_ends(self) -> None:
        for stage in ("payments", "gateway"):
            consumer = Consumer(
                {
                    "bootstrap.servers": self.servers,
                    "group.id": self.catalogue.group(stage),
                    "enable.auto.commit": False,
                }
            )
            try:
                offsets = []
                for spec in self.catalogue.inputs(stage):
                    for partition, end in log_ends(self.servers, spec.name).items():
                        offsets.append(TopicPartition(spec.name, partition, end))
                consumer.commit(offsets=offsets, asynchronous=False)
            finally:
                consumer.close()

    def close(self) -> None:
        for producer in self._producers:
            producer.close()


@pytest.fixture
def cluster(kafka: str, topic_prefix: str) -> Iterator[Cluster]:
    made = Cluster(kafka, topic_prefix)
    yield made
    made.close()


def _without_dead_letters(flow: Flow) -> Flow:
    """Drop the orders that were refused: their letters name offsets of a flow of our making."""
    letters = [row for row in flow.rows if row.role == "dead-letters"]
    keys = {letter.key for letter in letters} - {b"shop:conflict"}
    flow.rows = [
        row
        for row in flow.rows
        if row not in letters
        and row.key not in keys
        and not (row.role == "orders" and row.fields and row.fields["amount_minor"] == 701)
    ]
    return flow


def test_aborted_records_are_not_there_for_the_audit(cluster: Cluster) -> None:
    """A flow with an aborted transaction in every topic is whole, read to the very ends."""
    flow = _without_dead_letters(healthy_flow())
    cluster.write_flow(flow)
    report = verify(cluster.sources)
    assert report.findings == []
    assert report.exit_code == 0
    records = report.summary["records"]
    for role in judged_roles(CATALOGUE):
        assert records[role] == sum(row.role == role for row in flow.rows), role


def test_an_open_transaction_is_waited_for_and_then_named(cluster: Cluster) -> None:
    """A transaction left open ends the reading in bounded time and makes the verdict pending;
    once it commits, a waiting audit reads on and comes to whole."""
    flow = _without_dead_letters(healthy_flow())
    cluster.write_flow(flow)
    before = len(flow.rows)
    flow.captured("shop:later", 4321)
    late = flow.rows[before:]
    producer = cluster.producer("late")
    producer.begin_transaction()
    cluster.write(producer, late)

    started = time.monotonic()
    report = verify(cluster.sources)
    assert time.monotonic() - started < 20
    assert {(f.name, f.severity) for f in report.findings} == {
        ("open_transaction", Severity.PENDING)
    }
    assert report.exit_code == 2

    committed = []

    def commit(_: Report) -> None:
        if not committed:
            committed.append(True)
            producer.commit_transaction(30)
            cluster.commit_ends()

    report = verify(cluster.sources, wait_s=60, on_round=commit)
    assert committed
    assert report.findings == []
    assert report.summary["payments"]["captured"] == 16


@pytest.mark.parametrize("end", ["commit_transaction", "abort_transaction"])
def test_a_transaction_that_ends_meanwhile_lets_the_reading_go_on(
    cluster: Cluster, end: str
) -> None:
    """The audit waits no longer than the transaction is open, and reads what it committed."""
    flow = Flow()
    flow.order("shop:c1")
    producer = cluster.producer("late")
    producer.begin_transaction()
    cluster.write(producer, flow.rows)
    timer = threading.Timer(1.0, getattr(producer, end), [30])
    timer.start()
    started = time.monotonic()
    try:
        report = verify(replace(cluster.sources, open_transaction_wait_s=60))
    finally:
        timer.join()
    assert time.monotonic() - started < 30
    committed = end == "commit_transaction"
    assert [f.name for f in report.findings] == (["order_without_outcome"] if committed else [])
    assert report.summary["records"]["orders"] == int(committed)


def test_damage_in_the_log_is_found_at_its_offset(cluster: Cluster) -> None:
    """A settlement without an order is named with the topic, partition and offset it lies at."""
    flow = _without_dead_letters(healthy_flow())
    flow.remove("orders", "shop:c6")
    cluster.write_flow(flow)
    report = verify(cluster.sources)
    assert report.exit_code == 1
    finding = next(f for f in report.broken if f.name == "settlement_without_order")
    example = finding.example
    assert (example.topic, example.key) == (cluster.catalogue.name("settlements"), "shop:c6")
    assert record_at(cluster, example.topic, example.partition, example.offset).key() == b"shop:c6"


def record_at(cluster: Cluster, topic: str, partition: int | None, offset: int | None) -> Any:
    assert partition is not None
    assert offset is not None
    consumer = Consumer({"bootstrap.servers": cluster.servers, "group.id": f"{cluster.prefix}at"})
    try:
        consumer.assign([TopicPartition(topic, partition, offset)])
        message = consumer.poll(30)
        assert message is not None
        assert message.offset() == offset
        return message
    finally:
        consumer.close()


def test_trace_follows_one_order_and_no_other(cluster: Cluster) -> None:
    """Every record of the order and nothing else, in time order, with the state at the end."""
    flow = _without_dead_letters(healthy_flow())
    # Each in a batch of its own, so that append times follow the order of writing.
    flow.rows = [row for row in flow.rows if row.key in (b"shop:asked", b"shop:retry")]
    producer = cluster.producer("writer")
    producer.begin_transaction()
    for row in flow.rows:
        cluster.write(producer, [row])
    producer.commit_transaction(30)
    found = trace(cluster.sources, "shop:asked")
    rows = [row for row in flow.rows if row.key == b"shop:asked"]
    assert sorted(hop.role for hop in found.hops) == sorted(row.role for row in rows)
    assert [hop.at_ms for hop in found.hops] == sorted(hop.at_ms for hop in found.hops)
    assert found.hops[0].role == "orders"
    assert found.hops[0].since_order_ms == 0
    assert found.state == "captured, captured GBP 4.00"
    inquiry = next(h for h in found.hops if h.role == "gateway-results" and "inquire" in h.what)
    assert "succeeded" in inquiry.what


def test_commands_print_verdict_and_hops(cluster: Cluster) -> None:
    """`verify` and `trace` exit by their verdict and print JSON that says the same."""
    cluster.write_flow(_without_dead_letters(healthy_flow()))
    place = ["--bootstrap-servers", cluster.servers, "--prefix", cluster.prefix]
    place += ["--no-ledger", "--no-gateway"]

    result = run(verify_command, [*place, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verdict"] == "whole"
    result = run(verify_command, place)
    assert result.stdout.startswith("WHOLE")
    assert "not judged" in result.stdout

    result = run(trace_command, ["shop:declined", *place])
    assert result.exit_code == 0, result.output
    assert result.stdout.rstrip().splitlines()[-1] == "state: failed (insufficient_funds)"
    result = run(trace_command, ["shop:nobody", *place])
    assert result.exit_code == 1
    assert "shop:nobody" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_topics_that_are_not_there_are_named(kafka: str) -> None:
    """A wrong prefix is one sentence, not an empty flow that looks whole."""
    with pytest.raises(AuditUnavailable, match=r"no topic 'nobody\."):
        verify(Sources(kafka, "nobody."))


@pytest.mark.parametrize(
    ("command", "arguments"), [(verify_command, []), (trace_command, ["shop:1"])]
)
def test_a_missing_broker_is_one_sentence_within_ten_seconds(
    command: Callable[..., None], arguments: list[str]
) -> None:
    """Neither whole, broken nor pending: exit code 3, one sentence, no traceback, soon."""
    started = time.monotonic()
    # Bound and not listening: every connection is refused.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        place = ["--bootstrap-servers", address, "--no-ledger", "--no-gateway"]
        result = run(command, [*arguments, *place])
    assert time.monotonic() - started < 10
    assert result.exit_code == 3
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert address in result.stderr
    assert "--bootstrap-servers" in result.stderr


def run(command: Callable[..., None], arguments: list[str]) -> Result:
    app = Typer()
    app.command()(command)
    return CliRunner().invoke(app, arguments)

"""Provisioning on a real broker: what it makes, what it refuses, that it repeats safely."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from pipeline.commands.topics import EXIT_CHANGES_NEEDED, app
from pipeline.errors import UserError
from tests.support.cli_runner import CliRunner
from tests.support.topics import create_topic
from tests.support.waiting import WAIT_S, wait_until
from topics import provisioning
from topics.admin import Admin, connect
from topics.catalogue import Catalogue, TopicSettings, build_catalogue
from topics.provisioning import Plan, apply, check_co_partitioning, plan

pytestmark = pytest.mark.integration


@pytest.fixture
def admin(kafka: str) -> Admin:
    return connect(kafka)


@pytest.fixture
def catalogue(topic_prefix: str) -> Catalogue:
    return build_catalogue(TopicSettings(prefix=topic_prefix, partitions=3))


def provisioned(admin: Admin, catalogue: Catalogue) -> Plan:
    planned = plan(admin, catalogue)
    apply(admin, planned)
    return planned


@contextmanager
def bystander(kafka: str, group: str) -> Iterator[Consumer]:
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": group})
    try:
        yield consumer
    finally:
        consumer.close()


def committed(kafka: str, group: str, topic: str) -> dict[int, int]:
    with bystander(kafka, group) as consumer:
        answer = consumer.committed([TopicPartition(topic, p) for p in range(3)], timeout=30)
    return {tp.partition: tp.offset for tp in answer}


def commit(kafka: str, group: str, topic: str, partition: int, offset: int) -> None:
    with bystander(kafka, group) as consumer:
        consumer.commit(offsets=[TopicPartition(topic, partition, offset)], asynchronous=False)


def write(kafka: str, topic: str, partition: int, records: int) -> None:
    producer = Producer({"bootstrap.servers": kafka})
    for _ in range(records):
        producer.produce(topic, b"x", partition=partition)
    assert producer.flush(WAIT_S) == 0


@contextmanager
def member(kafka: str, group: str, topic: str) -> Iterator[None]:
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": group, "enable.auto.commit": False}
    )
    try:
        consumer.subscribe([topic])

        def assigned() -> bool:
            consumer.poll(0.1)
            return bool(consumer.assignment())

        wait_until(assigned, WAIT_S, "it has joined the group")
        yield
    finally:
        consumer.close()


def test_an_empty_cluster_gets_everything_and_a_second_run_nothing(
    kafka: str, admin: Admin, catalogue: Catalogue
) -> None:
    """Apply makes every topic with its settings and first offsets; repeating it does nothing."""
    planned = provisioned(admin, catalogue)
    assert {spec.role for spec in planned.create} == set(catalogue.topics)
    assert check_co_partitioning(admin, catalogue) == 3
    payments = ConfigResource(ConfigResource.Type.TOPIC, catalogue.name("payments"))
    settings = admin.describe_configs([payments])[payments].result()
    assert settings["cleanup.policy"].value == "compact"
    assert settings["message.timestamp.type"].value == "LogAppendTime"
    for stage in ("payments", "gateway"):
        for spec in catalogue.inputs(stage):
            assert committed(kafka, catalogue.group(stage), spec.name) == {0: 0, 1: 0, 2: 0}
    again = plan(admin, catalogue)
    assert again.lines() == ["nothing to do"]
    apply(admin, again)


def test_a_new_group_reads_from_the_first_record_without_a_reset(
    kafka: str, admin: Admin, catalogue: Catalogue
) -> None:
    """With auto.offset.reset=error a provisioned group starts, at the beginning."""
    provisioned(admin, catalogue)
    topic = catalogue.name("payment-requests")
    write(kafka, topic, 0, records=1)
    consumer = Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": catalogue.group("gateway"),
            "auto.offset.reset": "error",
        }
    )
    try:
        consumer.subscribe([topic])
        messages = consumer.consume(1, timeout=WAIT_S)
    finally:
        consumer.close()
    assert [(m.error(), m.offset()) for m in messages] == [(None, 0)]


def test_progress_of_a_group_is_never_touched(
    kafka: str, admin: Admin, catalogue: Catalogue
) -> None:
    """Only partitions without an offset get one, at what retention has left of the topic."""
    orders, group = catalogue.name("orders"), catalogue.group("payments")
    create_topic(kafka, orders, 3)
    for partition in range(3):
        write(kafka, orders, partition, records=5)
    for deleted in admin.delete_records([TopicPartition(orders, 1, 4)]).values():
        assert deleted.result(30).low_watermark == 4
    commit(kafka, group, orders, 2, 3)
    planned = provisioned(admin, catalogue)
    assert committed(kafka, group, orders) == {0: 0, 1: 4, 2: 3}
    assert any("retention has already deleted" in notice for notice in planned.notices)


def test_settings_that_drifted_are_set_back_and_unknown_ones_left(
    admin: Admin, catalogue: Catalogue
) -> None:
    """A changed retention is planned and repaired; a setting outside the catalogue is told."""
    provisioned(admin, catalogue)
    orders = catalogue.name("orders")
    entries = [
        ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
        for key, value in (("retention.ms", "1000000"), ("segment.bytes", "1048576"))
    ]
    change = ConfigResource(ConfigResource.Type.TOPIC, orders, incremental_configs=entries)
    admin.incremental_alter_configs([change])[change].result()
    wait_until(lambda: plan(admin, catalogue).configure, WAIT_S, "the change is seen")
    planned = provisioned(admin, catalogue)
    assert [(c.key, c.current) for c in planned.configure] == [("retention.ms", "1000000")]
    left = plan(admin, catalogue)
    assert not left.has_changes
    assert [n for n in left.notices if "segment.bytes=1048576" in n]


def test_another_partition_count_is_refused_and_nothing_changes(
    kafka: str, admin: Admin, catalogue: Catalogue
) -> None:
    """More or fewer partitions on a flow with records is a refusal that names the way out."""
    provisioned(admin, catalogue)
    write(kafka, catalogue.name("orders"), 0, records=1)
    prefix = catalogue.settings.prefix
    for wanted, grow in ((6, False), (6, True), (2, False), (2, True)):
        other = build_catalogue(TopicSettings(prefix=prefix, partitions=wanted))
        planned = plan(admin, other, grow_partitions=grow)
        assert not planned.grow
        with pytest.raises(UserError, match=r"(?s)^Nothing was changed .*orders.*: 3 partitions"):
            apply(admin, planned)
    assert check_co_partitioning(admin, catalogue) == 3


def test_topics_that_were_never_written_to_may_grow(admin: Admin, catalogue: Catalogue) -> None:
    """With the option, an unused set of topics gets more partitions and their first offsets."""
    provisioned(admin, catalogue)
    wider = build_catalogue(TopicSettings(prefix=catalogue.settings.prefix, partitions=5))
    assert plan(admin, wider).refusals
    planned = plan(admin, wider, grow_partitions=True)
    assert not planned.refusals
    apply(admin, planned)
    assert check_co_partitioning(admin, wider) == 5
    assert plan(admin, wider).lines() == ["nothing to do"]


def test_offsets_of_a_running_group_are_refused(
    kafka: str, admin: Admin, catalogue: Catalogue
) -> None:
    """First offsets are not forced on a group with live members; the refusal says to stop them."""
    requests, group = catalogue.name("payment-requests"), catalogue.group("gateway")
    create_topic(kafka, requests, 3)
    with member(kafka, group, requests):
        planned = plan(admin, catalogue)
        with pytest.raises(UserError, match=r"group .*gateway has 1 live members .*stop .*session"):
            apply(admin, planned)
        assert catalogue.name("orders") not in admin.list_topics(timeout=5).topics
    provisioned(admin, catalogue)


def test_a_running_flow_is_left_alone(kafka: str, admin: Admin, catalogue: Catalogue) -> None:
    """Planning and applying beside live workers of a provisioned flow finds nothing to do."""
    provisioned(admin, catalogue)
    with member(kafka, catalogue.group("gateway"), catalogue.name("payment-requests")):
        assert plan(admin, catalogue).lines() == ["nothing to do"]


def test_unequal_or_missing_topics_stop_a_worker(
    kafka: str, admin: Admin, catalogue: Catalogue
) -> None:
    """A worker is told what is missing, and that unequal topics must not be consumed."""
    orders = catalogue.name("orders")
    create_topic(kafka, orders, 2)
    with pytest.raises(UserError, match=r"has no topic .*settlements.* run `paystream topics"):
        check_co_partitioning(admin, catalogue)
    for spec in catalogue.topics.values():
        if spec.name != orders:
            create_topic(kafka, spec.name, 3)
    with pytest.raises(UserError, match=r"orders has 2.* differ|differ.*orders has 2"):
        check_co_partitioning(admin, catalogue)


def test_topics_of_others_under_the_prefix_are_told_and_left(
    kafka: str, admin: Admin, catalogue: Catalogue
) -> None:
    """What the catalogue does not know is never deleted."""
    extra = f"{catalogue.settings.prefix}somebody-elses"
    create_topic(kafka, extra)
    provisioned(admin, catalogue)
    planned = plan(admin, catalogue)
    assert not planned.has_changes
    assert [n for n in planned.notices if extra in n]
    assert extra in admin.list_topics(timeout=5).topics


def test_the_commands_tell_by_their_exit_code(kafka: str, topic_prefix: str) -> None:
    """plan exits 3 while something is to do and 0 when nothing is; apply is in between."""
    options = ["--bootstrap-servers", kafka, "--prefix", topic_prefix, "--partitions", "2"]
    run = CliRunner()
    before = run.invoke(app, ["plan", *options])
    assert before.exit_code == EXIT_CHANGES_NEEDED
    assert f"create topic {topic_prefix}orders: 2 partitions" in before.output
    assert run.invoke(app, ["apply", *options]).exit_code == 0
    after = run.invoke(app, ["plan", *options])
    assert (after.exit_code, after.output) == (0, "nothing to do\n")
    refused = run.invoke(app, ["plan", *options[:-1], "4"])
    assert refused.exit_code == 2
    assert "refused: " in refused.output


def test_a_differing_replication_is_told_and_left(
    admin: Admin, catalogue: Catalogue, topic_prefix: str
) -> None:
    """Nothing moves copies between brokers unasked; the plan says that they differ."""
    provisioned(admin, catalogue)
    tripled = build_catalogue(
        TopicSettings(prefix=topic_prefix, partitions=3, replication_factor=3)
    )
    planned = plan(admin, tripled)
    assert not planned.has_changes
    assert any("replication 1, where the catalogue wants 3" in line for line in planned.lines())


def test_brokers_that_fall_silent_are_said_to_be_silent(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster at its limit has refused nothing: who reads so looks for rights that lack."""
    monkeypatch.setattr(provisioning, "REQUEST_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        silent = Admin({"bootstrap.servers": address, "log_level": 0})
        with pytest.raises(UserError, match="did not answer"):
            plan(silent, catalogue)

"""Following settlements on a real broker."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from consumers.settlement_subscriber import (
    Poison,
    PositionLost,
    SettlementSubscriber,
    SubscriptionError,
)
from pipeline.domain.model import Settlement
from pipeline.domain.records import to_record
from pipeline.embedded.kafka import start_kafka, stop_kafka
from pipeline.embedded.kafka_config import SHORT_LIVED
from pipeline.errors import UserError
from pipeline.runtime.standstill import Standstill
from schemas.codec import default_codec
from tests.support.topics import create_topic
from tests.support.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def topic(kafka: str, topic_prefix: str) -> str:
    name = f"{topic_prefix}settlements"
    create_topic(kafka, name, 2)
    return name


def settlement(number: int) -> Settlement:
    return Settlement(
        settlement_id=f"s-{number}",
        merchant_id="m-1",
        order_id=f"o-{number}",
        payment_id=f"p-{number}",
        operation_id=f"o-{number}",
        kind="capture",
        amount_minor=100 + number,
        currency="GBP",
        gateway="sim",
        gateway_reference=f"ch-{number}",
        business_date="2026-11-23",
        ordered_at_ms=1,
        settled_at_ms=2,
    )


def write(kafka: str, topic: str, *numbers: int, raw: bytes | None = None) -> None:
    """Settlements in a committed transaction, or a record of raw bytes."""
    encode = default_codec().encoder("settlement")
    producer = transactional(kafka, f"{topic}-writer")
    producer.begin_transaction()
    for number in numbers:
        producer.produce(topic, value=encode(to_record(settlement(number))), partition=number % 2)
    if raw is not None:
        producer.produce(topic, value=raw, partition=0)
    producer.commit_transaction(30)


def transactional(kafka: str, transactional_id: str) -> Producer:
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": transactional_id})
    producer.init_transactions(30)
    return producer


def take(subscriber: SettlementSubscriber, count: int, timeout_s: float = WAIT_S) -> list[str]:
    """The ids of the next settlements."""
    taken: list[str] = []
    deadline = time.monotonic() + timeout_s
    while len(taken) < count and time.monotonic() < deadline:
        found = subscriber.poll(0.2)
        if found is not None:
            taken.append(found[0].settlement_id)
    return taken


def test_settlements_come_whole_with_their_position(kafka: str, topic: str) -> None:
    """A new group that begins at the earliest sees every settlement as it was written."""
    write(kafka, topic, 0, 1, 2)
    with SettlementSubscriber(kafka, f"{topic}-g", topic=topic, start="earliest") as subscriber:
        found = [next(iter(subscriber)) for _ in range(3)]
    assert sorted(s.settlement_id for s, _ in found) == ["s-0", "s-1", "s-2"]
    for taken, position in found:
        assert taken == settlement(int(taken.settlement_id[2:]))
        assert position.partition == int(taken.settlement_id[2:]) % 2
        assert position.appended_at_ms > 0


def test_what_was_not_committed_comes_again(kafka: str, topic: str) -> None:
    """A crash between handling and commit repeats settlements and never loses one."""
    write(kafka, topic, 0, 2, 4)
    group = f"{topic}-g"
    with SettlementSubscriber(kafka, group, topic=topic, start="earliest") as subscriber:
        assert take(subscriber, 1) == ["s-0"]
        assert subscriber.commit()
        assert take(subscriber, 1) == ["s-2"]
    with SettlementSubscriber(kafka, group, topic=topic) as again:
        assert take(again, 2) == ["s-2", "s-4"]
        assert again.commit()
        assert again.commit()  # nothing new: nothing to do


def test_a_new_group_must_say_where_to_begin(kafka: str, topic: str) -> None:
    """Neither beginning is guessed."""
    with (
        SettlementSubscriber(kafka, f"{topic}-g", topic=topic) as subscriber,
        pytest.raises(UserError, match="say where to begin"),
    ):
        take(subscriber, 1)


def test_latest_begins_with_what_comes_and_keeps_that_place(kafka: str, topic: str) -> None:
    """A group that began at the latest and died before a commit does not begin anew, later."""
    write(kafka, topic, 0, 1)
    group = f"{topic}-g"
    with SettlementSubscriber(kafka, group, topic=topic, start="latest") as subscriber:
        admin = AdminClient({"bootstrap.servers": kafka})
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and not began(admin, group):
            assert subscriber.poll(0.1) is None
    write(kafka, topic, 2, 3)
    with SettlementSubscriber(kafka, group, topic=topic, start="latest") as again:
        assert sorted(take(again, 2)) == ["s-2", "s-3"]


def began(admin: AdminClient, group: str) -> bool:
    from confluent_kafka import ConsumerGroupTopicPartitions

    (future,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
    return len(future.result(10).topic_partitions) == 2


def test_a_poison_record_is_passed_over_and_counted(kafka: str, topic: str) -> None:
    """Bytes that are no settlement are handed over whole and stop nobody."""
    write(kafka, topic, 0)
    write(kafka, topic, raw=b"not avro")
    write(kafka, topic, 2)
    poison: list[Poison] = []
    group = f"{topic}-g"
    with SettlementSubscriber(
        kafka, group, topic=topic, start="earliest", on_poison=poison.append
    ) as subscriber:
        assert take(subscriber, 2) == ["s-0", "s-2"]
        assert subscriber.poison_count == 1
        assert subscriber.commit()
    assert [(p.kind, p.value) for p in poison] == [("not_wire_format", b"not avro")]
    with SettlementSubscriber(kafka, group, topic=topic) as again:
        assert again.poll(2) is None  # neither the poison nor the settlements come again
        assert again.poison_count == 0


def test_aborted_transactions_are_never_seen(kafka: str, topic: str) -> None:
    """What the flow took back never reaches a subscriber."""
    encode = default_codec().encoder("settlement")
    producer = transactional(kafka, f"{topic}-aborter")
    producer.begin_transaction()
    producer.produce(topic, value=encode(to_record(settlement(8))), partition=0)
    producer.flush(10)
    producer.abort_transaction(30)
    write(kafka, topic, 0)
    with SettlementSubscriber(kafka, f"{topic}-g", topic=topic, start="earliest") as subscriber:
        assert take(subscriber, 1) == ["s-0"]


def test_a_position_lost_to_retention_is_a_named_error(kafka: str, topic: str) -> None:
    """Settlements that were deleted unread are never skipped in silence."""
    write(kafka, topic, 0, 2)
    group = f"{topic}-g"
    with SettlementSubscriber(kafka, group, topic=topic, start="earliest") as subscriber:
        assert take(subscriber, 1) == ["s-0"]
        assert subscriber.commit()
    write(kafka, topic, 4)
    admin = AdminClient({"bootstrap.servers": kafka})
    # What retention does: the log's beginning moves past the group's position.
    (deleted,) = admin.delete_records([TopicPartition(topic, 0, 3)]).values()
    deleted.result(30)
    with (
        SettlementSubscriber(kafka, group, topic=topic, start="earliest") as again,
        pytest.raises(PositionLost, match="under a new group id"),
    ):
        take(again, 1)


def test_two_members_share_the_partitions_and_miss_nothing(kafka: str, topic: str) -> None:
    """A second process takes over a part; together they see every settlement."""
    group = f"{topic}-g"
    seen: set[str] = set()
    with (
        SettlementSubscriber(kafka, group, topic=topic, start="earliest") as one,
        SettlementSubscriber(kafka, group, topic=topic, start="earliest") as two,
    ):
        numbers = list(range(40))
        write(kafka, topic, *numbers)
        deadline = time.monotonic() + 60
        while len(seen) < len(numbers) and time.monotonic() < deadline:
            for member in (one, two):
                found = member.poll(0.1)
                if found is not None:
                    seen.add(found[0].settlement_id)
                    member.commit()
    assert seen == {f"s-{number}" for number in numbers}


def test_a_missing_topic_or_broker_is_a_sentence(kafka: str, topic_prefix: str) -> None:
    """Opening says what is missing, and polling before opening what to do."""
    with pytest.raises(UserError, match="paystream topics apply"):
        SettlementSubscriber(kafka, "g", topic=f"{topic_prefix}none", start="latest").open()
    closed = SettlementSubscriber(kafka, "g")
    with pytest.raises(SubscriptionError, match="with block"):
        closed.poll(0)


@pytest.mark.long
def test_a_follower_leaves_though_its_coordinator_has_gone_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for a minute and longer for what it commits behind the last marker, of which
    the partition's leader has told; here one broker is both, so that is told by hand."""
    own = start_kafka(tmp_path / "kafka", jvm_flags=SHORT_LIVED, die_with_parent=True)
    (broker,) = own.brokers
    try:
        create_topic(own.bootstrap_servers, "settlements", 1)
        write(own.bootstrap_servers, "settlements", 0)
        follower = SettlementSubscriber(own.bootstrap_servers, "follower", start="earliest")
        follower.open()
        wait_until(lambda: follower.poll(0.2), 60, "a settlement")
        assert follower.commit()
        monkeypatch.setattr(Standstill, "empty_now", lambda *_: {("settlements", 0): 2})
        os.kill(broker.pid, signal.SIGSTOP)
        leaving = threading.Thread(target=follower.close)
        leaving.start()
        try:
            wait_until(lambda: not leaving.is_alive(), WAIT_S, "it has left")
        finally:
            os.kill(broker.pid, signal.SIGCONT)
            leaving.join(60)
    finally:
        stop_kafka(own)

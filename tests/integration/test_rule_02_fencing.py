"""Rule 2: a worker commits for a partition only while the partition is its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from pipeline.runtime.cluster import ask_committed_positions
from pipeline.runtime.kafka_errors import LaneFatal, ends_the_client, passes_by_itself
from pipeline.runtime.lane import Lane, producer_config
from pipeline.runtime.work import Outcome, Work
from tests.support.topics import create_topic, read_all
from tests.support.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.integration


class Group:
    """Members of one group over a topic of two partitions, and lanes that commit for it."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.bootstrap, self.prefix = bootstrap, prefix
        self.source, self.sink, self.name = f"{prefix}in", f"{prefix}out", f"{prefix}group"
        create_topic(bootstrap, self.source, 2)
        create_topic(bootstrap, self.sink)
        self.members: list[Consumer] = []
        self.lanes: list[Lane] = []

    def consumer(self, **more: Any) -> Consumer:
        made = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": self.name,
                # Member ids begin with it and range goes by them: the first has partition 0.
                "client.id": f"member-{len(self.members)}",
                "partition.assignment.strategy": "range",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                **more,
            }
        )
        self.members.append(made)
        return made

    def join(self, **more: Any) -> Consumer:
        member = self.consumer(**more)
        member.subscribe([self.source])
        return member

    def settle(self, *partitions_of: tuple[Consumer, set[int]]) -> None:
        """Poll all members until each has its partitions."""

        def settled() -> bool:
            for member, _ in partitions_of:
                member.poll(0.05)
            return all(
                {tp.partition for tp in member.assignment()} == wanted
                for member, wanted in partitions_of
            )

        wait_until(settled, WAIT_S, "the group has settled")

    def lane(self, name: str) -> Lane:
        made = Lane(
            producer_config(self.bootstrap, f"{self.prefix}{name}"),
            stage="payments",
            committed_offsets=lambda tps: ask_committed_positions(self.bootstrap, self.name, tps),
        )
        made.open()
        self.lanes.append(made)
        return made

    def work(self, partition: int, offset: int, metadata: Any, text: bytes = b"v") -> Work:
        return Work(
            [(self.sink, 0, b"k", text, None)], {(self.source, partition): offset}, metadata
        )

    def committed(self, partition: int) -> int:
        asking = self.consumer()
        (answer,) = asking.committed([TopicPartition(self.source, partition)], timeout=20)
        return answer.offset

    def visible(self) -> list[bytes | None]:
        return [m.value() for m in read_all(self.bootstrap, self.sink)]

    def close(self) -> None:
        for lane in self.lanes:
            lane.close()
        for member in self.members:
            member.close()


@pytest.fixture
def group(kafka: str, topic_prefix: str) -> Iterator[Group]:
    made = Group(kafka, topic_prefix)
    yield made
    made.close()


def test_a_batch_of_before_a_rebalance_aborts_after_it(group: Group) -> None:
    """With the metadata captured when the batch was taken, a worker whose partition has moved
    commits nothing: neither its records nor its offset. The same lane goes on afterwards."""
    first = group.join()
    group.settle((first, {0, 1}))
    captured = first.consumer_group_metadata()
    second = group.join()
    group.settle((first, {0}), (second, {1}))

    lane = group.lane("a")
    assert lane.run(group.work(1, 7, captured)) is Outcome.ABORTED
    assert group.committed(1) < 0
    assert group.visible() == []
    assert lane.run(group.work(0, 3, first.consumer_group_metadata(), b"own")) is Outcome.COMMITTED
    assert group.visible() == [b"own"]


def test_offsets_that_stay_fence_as_well(group: Group) -> None:
    """What answers no request commits the offset that is committed: the broker takes it from whom
    the group knows, and refuses it to whose partition has moved."""
    first = group.join()
    group.settle((first, {0, 1}))
    captured = first.consumer_group_metadata()
    lane = group.lane("a")
    assert lane.run(group.work(1, 7, captured)) is Outcome.COMMITTED
    still = replace(group.work(1, 7, captured, b"still"), moves=False)
    assert lane.run(still) is Outcome.COMMITTED
    second = group.join()
    group.settle((first, {0}), (second, {1}))
    assert lane.run(still) is Outcome.ABORTED
    assert group.committed(1) == 7
    assert group.visible() == [b"v", b"still"]


def test_metadata_fetched_late_would_commit_for_another_worker(group: Group) -> None:
    """Why it is captured: the metadata of now vouches for a partition that is another's by now."""
    first = group.join()
    group.settle((first, {0, 1}))
    second = group.join()
    group.settle((first, {0}), (second, {1}))
    late = first.consumer_group_metadata()
    assert group.lane("a").run(group.work(1, 7, late)) is Outcome.COMMITTED
    assert group.committed(1) == 7, "the broker has learnt to refuse this; the rule may go"


def test_an_expelled_member_is_fenced_by_its_instance_id(group: Group) -> None:
    """The metadata of a member that was expelled names no generation. Only the instance id that
    every worker carries makes the broker look: without one the same metadata commits."""
    member = group.join()
    group.settle((member, {0, 1}))
    nameless = group.consumer().consumer_group_metadata()
    named = group.consumer(**{"group.instance.id": "n1.0"}).consumer_group_metadata()
    lane = group.lane("a")
    assert lane.run(group.work(0, 5, named)) is Outcome.ABORTED
    assert group.committed(0) < 0
    assert lane.run(group.work(0, 5, nameless)) is Outcome.COMMITTED, "now it is fenced as well"


def test_a_member_that_another_has_replaced_is_told_that_it_can_do_no_more(group: Group) -> None:
    """The twin's join ends the first one's consumer: its worker leaves with a sentence for it."""
    first = group.join(**{"group.instance.id": "n1.0"})
    group.settle((first, {0, 1}))
    twin = group.join(**{"group.instance.id": "n1.0"})

    def told() -> KafkaError | None:
        twin.poll(0.05)
        message = first.poll(0.05)
        return None if message is None else message.error()

    error = wait_until(told, WAIT_S, "the first member hears of its twin")
    assert ends_the_client(error), error
    assert not passes_by_itself(error)


def test_an_empty_list_of_offsets_fences_nobody(group: Group) -> None:
    """Why the lane refuses one: the broker takes it from a member whose partitions have moved."""
    first = group.join()
    group.settle((first, {0, 1}))
    captured = first.consumer_group_metadata()
    second = group.join()
    group.settle((first, {0}), (second, {1}))
    raw = Producer({"bootstrap.servers": group.bootstrap, "transactional.id": f"{group.prefix}raw"})
    raw.init_transactions(30)
    raw.begin_transaction()
    raw.produce(group.sink, b"zombie", b"k", 0)
    raw.send_offsets_to_transaction([], captured, 10)
    raw.commit_transaction(10)
    assert group.visible() == [b"zombie"]


def test_a_second_lane_of_one_id_fences_the_first(group: Group) -> None:
    """Rule 6: a restarted worker fences its zombie at once, and the zombie's open transaction is
    not seen; a lane of another slot is not disturbed."""
    member = group.join()
    group.settle((member, {0, 1}))
    metadata = member.consumer_group_metadata()
    zombie, neighbour = group.lane("slot-0"), group.lane("slot-1")
    assert zombie.run(group.work(0, 1, metadata, b"before")) is Outcome.COMMITTED
    zombie._producer.begin_transaction()
    zombie._producer.produce(group.sink, b"of the zombie", b"k", 0)
    zombie._producer.flush(10)
    began = time.monotonic()
    successor = group.lane("slot-0")
    assert successor.run(group.work(0, 2, metadata, b"after")) is Outcome.COMMITTED
    assert time.monotonic() - began < 8, "it waited for the zombie's transaction to time out"
    with pytest.raises(LaneFatal):
        zombie._call(zombie._producer.commit_transaction, 10)
    assert neighbour.run(group.work(1, 1, metadata, b"neighbour")) is Outcome.COMMITTED
    assert group.visible() == [b"before", b"after", b"neighbour"]

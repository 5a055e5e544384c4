"""The logs' own bytes once nobody writes any more: read where they are whole, and not too early.

A worker that leaves is told of its commit before the partitions are, and one that had to be killed
leaves a transaction behind that the broker aborts after its time-out. A replica that does not lead
may lack the newest records, or have some that never counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.chaos.flow import coordinator_log, log_bytes
from pipeline.chaos.flow.coordinator_log import Decision
from pipeline.chaos.flow.log_bytes import PartitionTruth
from pipeline.chaos.flow.seen import ANSWER_TIMEOUT_S, Place
from pipeline.errors import UserError

STATE_TOPIC = "__transaction_state"
OFFSETS_TOPIC = "__consumer_offsets"
# A transaction's time-out, the broker's look for those, and a busy machine.
REST_S_MAX = 90.0
LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class Logs:
    """``under_way``: transactional ids of which more was to come when nobody waited any longer.
    ``offsets``: of the groups' own topic, which no reader of records sees."""

    decided: list[Decision]
    truths: dict[Place, PartitionTruth]
    offsets: dict[Place, PartitionTruth]
    under_way: list[str]


def read_at_rest(
    bootstrap_servers: str, log_dirs: Mapping[int, Path], places: Iterable[Place]
) -> Logs:
    """By the bytes of the replicas that lead, all others being in sync and every end complete.

    What is not complete after a while is judged as it is. ``log_dirs`` by broker. UserError when
    the replicas do not agree by then, or when a log has been compacted.
    """
    deadline_s = time.monotonic() + REST_S_MAX
    folders = {node: log_bytes.partition_folders(place) for node, place in log_dirs.items()}
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    try:
        while True:
            leaders = _leaders_in_sync(admin, deadline_s)
            said = [
                list(coordinator_log.entries(log_bytes.batches(folders[leader][place])))
                for place, leader in sorted(leaders.items())
                if place[0] == STATE_TOPIC
            ]
            # A transactional id is always in the same partition.
            under_way = [name for one in said for name in coordinator_log.under_way(one)]
            if not under_way or time.monotonic() > deadline_s:
                break
            time.sleep(LOOK_EVERY_S)

        def read(wanted: Iterable[Place]) -> dict[Place, PartitionTruth]:
            return {
                place: log_bytes.truth_of(log_bytes.batches(folders[leaders[place]][place]))
                for place in wanted
            }

        truths = read(places)
        offsets = read(sorted(place for place in leaders if place[0] == OFFSETS_TOPIC))
    except log_bytes.Compacted as error:
        raise UserError(f"the logs cannot be judged by their bytes: {error}.") from error
    decided = [decision for one in said for decision in coordinator_log.decisions(one)]
    return Logs(decided, truths, offsets, under_way)


def _leaders_in_sync(admin: AdminClient, deadline_s: float) -> dict[Place, int]:
    while True:
        leaders, behind = _leaders(admin)
        if leaders and not behind:
            return leaders
        if time.monotonic() > deadline_s:
            where = ", ".join(f"{topic}[{partition}]" for topic, partition in sorted(behind)[:3])
            raise UserError(f"not every replica is in sync: {where or 'no broker answers'}.")
        time.sleep(LOOK_EVERY_S)


def _leaders(admin: AdminClient) -> tuple[dict[Place, int], set[Place]]:
    """Who leads, and the partitions that not every replica has."""
    try:
        topics = admin.list_topics(timeout=ANSWER_TIMEOUT_S).topics
    except KafkaException:
        return {}, set()
    leaders, behind = {}, set()
    for name, topic in topics.items():
        for number, partition in topic.partitions.items():
            leaders[name, number] = partition.leader
            if partition.leader < 0 or set(partition.isrs) != set(partition.replicas):
                behind.add((name, number))
    return leaders, behind

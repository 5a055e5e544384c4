"""What a worker asks of the cluster before it consumes anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from pipeline.batches.unreadable import UNFOLDED_BYTES_MAX
from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.kafka_refusal import why_refused
from pipeline.runtime.fetching import FETCH_BYTES
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.surroundings import REAL, Surroundings
from topics import group_offsets

METADATA_TIMEOUT_S = 10.0
# A controller that died is missed after a few seconds; the next one is chosen in as many.
CONTROLLER_TIMEOUT_S = 30.0
# The offsets of a transaction that is still open are not stable; the broker ends it within the
# transaction's time-out (10 s) and its own clean-up interval (10 s).
STABLE_OFFSETS_TIMEOUT_S = 30.0
# Of that, at a time: whoever waits may be asked to stop meanwhile, and a busy broker takes seconds.
STABLE_OFFSETS_SLICE_S = 10.0
SESSION_MS = 10_000
# A session counts from the last that was heard of its member, and its coordinator has work to do.
AWAY_S = SESSION_MS / 1000 + 2.0
# What whoever is refused says, and by what it is known again.
UNEQUAL = "unequal partitions of co-owned topics"


def consumer_config(bootstrap_servers: str, *, group_id: str, instance_id: str) -> dict[str, Any]:
    """The settings of an input consumer; each that is not a default has its reason."""
    return {
        **reaching(bootstrap_servers),
        # Without its line for each failed connection: many a second while the broker is away.
        "log_level": 2,
        "group.id": group_id,
        # Static membership: a restarted worker takes its partitions back without a rebalance.
        "group.instance.id": instance_id,
        "client.id": f"{group_id}.{instance_id}",
        # In one round, and the same partitions of all topics to one member. Cooperative sharing has
        # two rounds, and a static member that restarts between them is given the half-done sharing
        # back: partitions would stay without an owner.
        "partition.assignment.strategy": "range",
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # latest would skip records, earliest would hide that some were deleted unread.
        "auto.offset.reset": "error",
        # A dead worker's partitions move after this; a restart takes about a second.
        "session.timeout.ms": SESSION_MS,
        "heartbeat.interval.ms": 2_000,
        "max.poll.interval.ms": 300_000,
        # The inputs of a hop are asked for as soon as a byte is there.
        "fetch.wait.max.ms": 100,
        "fetch.min.bytes": 1,
        # What is fetched of all partitions stands in one queue in order of arrival, which a worker
        # empties into its buffers at each turn: a little ahead is enough, asked for again at once
        # (the default waits a second where there is enough).
        "queued.min.messages": 300,
        "queued.max.messages.kbytes": 16 * 1024,
        "fetch.queue.backoff.ms": 10,
        # This bounds what one answer brings of a partition: some hundred orders as they are, or
        # two thousand compressed.
        "fetch.message.max.bytes": FETCH_BYTES,
        # It bounds what zstd may unfold to as well, and whoever writes orders may compress zeros.
        "receive.message.max.bytes": UNFOLDED_BYTES_MAX,
        # What is damaged on the way or on a disk is no bad input, and must not be taken for one.
        "check.crcs": True,
        "reconnect.backoff.ms": 20,
        "reconnect.backoff.max.ms": 1_000,
    }


def require_reachable(admin: AdminClient, bootstrap_servers: str) -> Any:
    """The cluster's metadata; one clear sentence when no broker answers."""
    try:
        return admin.list_topics(timeout=METADATA_TIMEOUT_S)
    except KafkaException as error:
        raise UserError(
            f"no Kafka broker answers at {bootstrap_servers} within {METADATA_TIMEOUT_S:.0f} s"
            f"{why_refused(bootstrap_servers)}. "
            "Start one with `paystream up`, or set --bootstrap-servers."
        ) from error


def groups_joined(bootstrap_servers: str, wanted: Mapping[str, int]) -> Iterator[Mapping[str, int]]:
    """Look, each time it is asked, which groups lack members; yields what is still waited for.

    ``wanted``: members by group. A group counts once it is stable with that many; it is not asked
    about again.
    """
    admin = AdminClient({**reaching(bootstrap_servers), "log_level": 0})
    waiting = dict(wanted)
    while True:
        if waiting:
            for group, future in admin.describe_consumer_groups(list(waiting)).items():
                try:
                    described = future.result(timeout=METADATA_TIMEOUT_S)
                except KafkaException:  # the group is not there yet
                    continue
                stable = described.state == ConsumerGroupState.STABLE
                if stable and len(described.members) >= waiting[group]:
                    del waiting[group]
        yield waiting


def cluster_and_topic_id(
    admin: AdminClient, topic: str, surroundings: Surroundings = REAL
) -> tuple[str, str]:
    """Identities that tell a recreated topic or another cluster from the one a cache is of.

    Both are asked of the controller, which another broker becomes when it dies: UserError only when
    none has answered for the time of two elections.
    """
    deadline_s = surroundings.monotonic_s() + CONTROLLER_TIMEOUT_S
    while True:
        try:
            cluster = admin.describe_cluster(request_timeout=METADATA_TIMEOUT_S).result()
            described = admin.describe_topics(
                TopicCollection([topic]), request_timeout=METADATA_TIMEOUT_S
            )[topic].result()
        except KafkaException as error:
            if surroundings.monotonic_s() >= deadline_s:
                raise UserError(
                    f"the cluster does not tell of itself and of {topic} within "
                    f"{CONTROLLER_TIMEOUT_S:.0f} s ({error.args[0].str()}). Look whether its "
                    "brokers run and the topic is there (`paystream topics plan`)."
                ) from error
            surroundings.sleep(0.2)
            continue
        return str(cluster.cluster_id), str(described.topic_id)


def ask_committed_positions(
    bootstrap_servers: str,
    group_id: str,
    partitions: Iterable[tuple[str, int]],
    surroundings: Surroundings = REAL,
    *,
    patience_s: float = STABLE_OFFSETS_TIMEOUT_S,
) -> Mapping[tuple[str, int], int]:
    """``committed_positions`` by a consumer that names the group and never joins it.

    For a thread other than the one that polls the member: there the answer to a question waits
    for as long as the member is polled in short slices (80 s were seen, librdkafka 2.16).
    """
    with bystander(bootstrap_servers, group_id, "read_committed", surroundings) as consumer:
        return committed_positions(consumer, partitions, patience_s=patience_s)


def bystander(
    bootstrap_servers: str, group_id: str, isolation: str, surroundings: Surroundings = REAL
) -> AbstractContextManager[Consumer]:
    """A consumer that names the group and is no member of it."""
    reached = {**reaching(bootstrap_servers), "log_level": 2}
    return group_offsets.bystander(reached, group_id, isolation, surroundings.consumer)


class StoppedWaiting(Exception):
    """Whoever asked was told to stop before there was an answer."""


class UnequalPartitions(UserError):
    """A member was given partitions of its inputs that are not the same of each.

    By a group of two versions that read different topics; or because a static member that comes
    back within its session is given what its version before had, whatever it asks for. Whoever is
    refused stays away for ``AWAY_S``, so that its next join is a new member's.
    """


class NoCommittedOffset(UserError):
    """The group has never been given a place in a partition, or has lost it."""


def committed_positions(
    consumer: Consumer,
    partitions: Iterable[tuple[str, int]],
    *,
    stopped: Callable[[], bool] = lambda: False,
    patience_s: float = STABLE_OFFSETS_TIMEOUT_S,
) -> Mapping[tuple[str, int], int]:
    """The group's stable committed offset of every partition.

    Stable: offsets that belong to an open transaction are waited for (the client asks for that
    with isolation.level=read_committed), for ``patience_s``; then LaneFatal is raised. A partition
    without one is refused by name. Raises StoppedWaiting soon after ``stopped`` says so.
    """
    positions = committed_or_none(consumer, partitions, stopped=stopped, patience_s=patience_s)
    without = sorted(tp for tp, offset in positions.items() if offset < 0)
    if without:
        raise NoCommittedOffset(
            "no committed offset for "
            + ", ".join(f"{topic}[{partition}]" for topic, partition in without[:4])
            + (f" and {len(without) - 4} more" if len(without) > 4 else "")
            + ". Run `paystream topics apply`: it commits where the flow begins."
        )
    return positions


def committed_or_none(
    consumer: Consumer,
    partitions: Iterable[tuple[str, int]],
    *,
    stopped: Callable[[], bool] = lambda: False,
    patience_s: float = STABLE_OFFSETS_TIMEOUT_S,
) -> Mapping[tuple[str, int], int]:
    """``committed_positions`` with a negative offset for a partition that has none."""
    asked = [TopicPartition(topic, partition) for topic, partition in partitions]
    if not asked:
        return {}
    deadline = time.monotonic() + patience_s
    slice_s = min(STABLE_OFFSETS_SLICE_S, patience_s)
    while True:
        try:
            answered = consumer.committed(asked, timeout=slice_s)
            broken = [tp for tp in answered if tp.error is not None]
            if not broken:
                break
            if time.monotonic() > deadline:
                raise KafkaException(broken[0].error)
        except KafkaException as error:
            cause = error.args[0]
            passing = isinstance(cause, KafkaError) and (
                cause.retriable()
                or cause.code()
                in (
                    KafkaError._TIMED_OUT,
                    KafkaError._TRANSPORT,
                    KafkaError._WAIT_COORD,
                    KafkaError.UNSTABLE_OFFSET_COMMIT,
                    KafkaError.NOT_COORDINATOR,
                    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
                )
            )
            if passing and time.monotonic() > deadline:
                raise LaneFatal(
                    f"the group's committed offsets cannot be had after "
                    f"{patience_s:.0f} s ({error}); an open transaction may hold "
                    "them, see docs/operations.md"
                ) from error
            if not passing:
                raise
        if stopped():
            raise StoppedWaiting
        time.sleep(0.1)
    return {(tp.topic, tp.partition): tp.offset for tp in answered}

"""The offsets that consumer groups have and begin at, and whether they have members."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from topics.admin import (
    REQUEST_TIMEOUT_S,
    Admin,
    asked,
    earliest,
    future_results,
    list_offsets,
    once_coordinated,
    user_error,
)

T = TypeVar("T")


def for_each_group(
    do: Callable[[str, list[TopicPartition]], T], partitions: Mapping[str, list[TopicPartition]]
) -> dict[str, T]:
    """All at once: whatever is asked about a group is mostly waited for, for its coordinator."""
    with ThreadPoolExecutor(max(1, len(partitions))) as threads:
        done = threads.map(do, partitions, partitions.values())
        return dict(zip(partitions, done, strict=True))


def without_offset(
    admin: Admin, group: str, partitions: list[TopicPartition]
) -> list[TopicPartition]:
    """Those of the partitions that the group has no committed offset on."""
    committed = _committed(admin, group, partitions)
    return [tp for tp in partitions if (tp.topic, tp.partition) not in committed]


def _committed(
    admin: Admin, group: str, partitions: Sequence[TopicPartition]
) -> dict[tuple[str, int], int]:
    """Offsets the group has, by topic and partition.

    What a crashed worker left open hides nothing: the offset of before it answers at once. Only
    where there is none is an open transaction's commit waited for.

    Asked by a consumer that never joins. The admin client's own question for it ends the process
    (a null pointer in librdkafka 2.16) when the broker answers NOT_COORDINATOR, as it does for its
    first seconds.
    """
    found: dict[tuple[str, int], int] = {}
    for isolation in ("read_uncommitted", "read_committed"):
        unknown = [tp for tp in partitions if (tp.topic, tp.partition) not in found]
        if unknown:
            found |= _committed_under(isolation, admin, group, unknown)
    return found


def _committed_under(
    isolation: str, admin: Admin, group: str, partitions: list[TopicPartition]
) -> dict[tuple[str, int], int]:
    with bystander(admin.client_config, group, isolation) as consumer:
        answer = asked(
            lambda: once_coordinated(
                lambda: consumer.committed(partitions, timeout=REQUEST_TIMEOUT_S)
            )
        )
    for tp in answer:
        if tp.error is not None:
            # Not the same as no offset: taken for that, it would be overwritten.
            raise user_error(KafkaException(tp.error), f"The offsets of group {group}")
    return {(tp.topic, tp.partition): tp.offset for tp in answer if tp.offset >= 0}


@contextmanager
def bystander(
    client_config: Mapping[str, Any],
    group: str,
    isolation: str = "read_committed",
    made_by: Callable[[dict[str, Any]], Consumer] = Consumer,
) -> Iterator[Consumer]:
    """A consumer that names the group and is no member of it. ``client_config``: how it reaches the
    brokers."""
    consumer = made_by(
        {
            **client_config,
            "group.id": group,
            "enable.auto.commit": False,
            "isolation.level": isolation,
        }
    )
    try:
        yield consumer
    finally:
        consumer.close()


def members(admin: Admin, group: str) -> int:
    """How many consumers the group has now."""
    return len(member_names(admin, group))


def member_names(admin: Admin, group: str) -> list[str]:
    """The consumers that the group has now, and where they are."""
    try:
        described = once_coordinated(
            lambda: future_results(
                admin.describe_consumer_groups([group], request_timeout=REQUEST_TIMEOUT_S)
            )[group]
        )
    except KafkaException as error:
        if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
            return []
        raise user_error(error) from error
    if described.state in (ConsumerGroupState.DEAD, ConsumerGroupState.EMPTY):
        return []
    return sorted(f"{each.client_id} at {each.host.lstrip('/')}" for each in described.members)


def start_at_the_beginning(admin: Admin, group: str, planned: list[TopicPartition]) -> None:
    """Commit the first offset that is kept, where the group still has none."""
    # Asked again, since a worker may have committed after the plan was made.
    missing = without_offset(admin, group, planned)
    if not missing:
        return
    lows = list_offsets(admin, missing, earliest())
    starts = [
        TopicPartition(tp.topic, tp.partition, lows[tp.topic, tp.partition]) for tp in missing
    ]
    try:
        with bystander(admin.client_config, group) as consumer:
            once_coordinated(partial(_commit, consumer, starts))
    except KafkaException as error:
        raise user_error(
            error,
            f"The first offsets of group {group} could not be committed; if its workers are "
            "running, stop them",
        ) from error


def _commit(consumer: Consumer, offsets: list[TopicPartition]) -> None:
    answer = consumer.commit(offsets=offsets, asynchronous=False)
    for tp in answer or ():
        if tp.error is not None:
            raise KafkaException(tp.error)

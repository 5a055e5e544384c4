"""A transactional lane between two small topics, without a worker around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.runtime.cluster import committed_positions
from pipeline.runtime.lane import Lane, producer_config
from pipeline.runtime.work import Outgoing, Work
from tests.support.topics import create_topic, read_all
from tests.support.waiting import WAIT_S, wait_until

_COORDINATOR_ON_ITS_WAY = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
}


class LaneOverTopics:
    """A lane from topic ``in`` to topic ``out``, one partition each, offsets of a group."""

    def __init__(
        self,
        direct: str,
        through: str,
        prefix: str,
        *,
        overrides: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        self.direct, self.group = direct, f"{prefix}group"
        self.source, self.sink = f"{prefix}in", f"{prefix}out"
        for topic in (self.source, self.sink):
            create_topic(direct, topic)
        self._offsets = Consumer(
            {
                "bootstrap.servers": direct,
                "group.id": self.group,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
            }
        )
        self._commit_zero()
        self._config = {**producer_config(through, f"{prefix}lane"), **(overrides or {})}
        self._more = more
        self.open_lane()

    def open_lane(self) -> None:
        """A lane of the same transactional id, as a worker that has been restarted opens it."""
        self.lane = Lane(
            self._config,
            stage="payments",
            committed_offsets=lambda tps: committed_positions(self._offsets, tps),
            **self._more,
        )
        self.lane.open()

    def _commit_zero(self) -> None:
        zero = [TopicPartition(self.source, 0, 0)]

        def is_taken() -> bool:
            try:
                return bool(self._offsets.commit(offsets=zero, asynchronous=False))
            except KafkaException as error:
                # As a broker that has only just started says, which loads its groups first.
                if error.args[0].code() not in _COORDINATOR_ON_ITS_WAY:
                    raise
                return False

        wait_until(is_taken, WAIT_S, "the group has a coordinator", interval_s=0.1)

    def metadata(self) -> Any:
        return self._offsets.consumer_group_metadata()

    def work(self, number: int) -> Work:
        key = b"k%d" % number
        outputs: list[Outgoing] = [
            (self.sink, 0, key, b"%d.%d" % (number, part), None) for part in range(3)
        ]
        return Work(outputs, {(self.source, 0): number + 1}, self.metadata())

    def committed(self) -> int:
        """The offset that the group would begin at."""
        return committed_positions(self._offsets, [(self.source, 0)])[self.source, 0]

    def values(self) -> list[bytes | None]:
        return [m.value() for m in read_all(self.direct, self.sink)]

    def close(self) -> None:
        self.lane.close()
        self._offsets.close()

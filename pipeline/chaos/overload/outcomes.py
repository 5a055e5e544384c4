"""What a subscriber sees of ``settlements``: how long each order took, by the broker's clock."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.codec import default_codec

FETCH_MAX = 5_000


class Outcomes:
    """Every capture so far: when it was ordered and when settled (epoch ms), and its partition."""

    def __init__(self, bootstrap_servers: str, topic: str, partitions: int) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "paystream-overload-watch",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 100,
                "log_level": 0,
            }
        )
        self._consumer.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
        self._decode = default_codec().decoder("settlement")
        self.ordered_ms, self.settled_ms = array("q"), array("q")
        self.partition = array("i")

    def __len__(self) -> int:
        return len(self.settled_ms)

    def look(self, patience_s: float) -> int:
        """Take what has arrived, waiting so long at most; how many that were."""
        first = self._consumer.poll(patience_s)
        if first is None:
            return 0
        messages: list[Any] = [first, *self._consumer.consume(FETCH_MAX, 0)]
        for message in messages:
            if message.error() is not None:
                raise KafkaException(message.error())
            fields = self._decode(message.value())
            if fields["kind"] == "capture":
                self.ordered_ms.append(fields["ordered_at_ms"])
                self.settled_ms.append(message.timestamp()[1])
                self.partition.append(message.partition())
        return len(messages)

    def took_ms(self, begin_ms: int, end_ms: int, *, but: Sequence[int] = ()) -> list[int]:
        """How long those took that were ordered then, outside of these partitions."""
        return [
            settled - ordered
            for ordered, settled, partition in zip(
                self.ordered_ms, self.settled_ms, self.partition, strict=True
            )
            if begin_ms <= ordered < end_ms and partition not in but
        ]

    def settled_between(self, begin_ms: int, end_ms: int) -> int:
        return sum(begin_ms <= at < end_ms for at in self.settled_ms)

    def close(self) -> None:
        self._consumer.close()


def percentile(values: Sequence[int], share: float) -> int:
    """By nearest rank; 0 of nothing."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else 0

"""What a subscriber of ``settlements`` sees, and when: the end of every measurement.

Nothing is decoded while the clock runs, since the watcher shares the machine with what it watches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from benchmarks.failure import WrongRun
from schemas.codec import default_codec

FETCH_MAX = 10_000
# Where nobody writes any more, this long without anything is the end: a fetch takes a tenth of it.
QUIET_S = 1.0


class SettlementWatch:
    """A read_committed consumer of every partition of one topic, from its beginning."""

    def __init__(self, bootstrap_servers: str, topic: str, partitions: int) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "benchmark-watch",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 100,
            }
        )
        self._consumer.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
        self.seen: list[Any] = []
        self.first_s: float | None = None
        self.first_count = 0
        self.last_s = 0.0

    def look(self, patience_s: float) -> list[Any]:
        """Take what has arrived, waiting at most ``patience_s`` for the first message."""
        first = self._consumer.poll(patience_s)
        messages = [first] if first is not None else []
        if messages:
            messages += self._consumer.consume(FETCH_MAX, 0)
        for message in messages:
            if message.error() is not None:
                raise KafkaException(message.error())
        if messages:
            self.last_s = time.monotonic()
            if self.first_s is None:
                self.first_s, self.first_count = self.last_s, len(messages)
            self.seen += messages
        return messages

    def wait_for(
        self,
        count: int,
        *,
        timeout_s: float,
        each_look: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        """Look until ``count`` messages are there; WrongRun when they do not come in time.

        The time-out starts again whenever something arrives.
        """
        told_s = quiet_since_s = time.monotonic()
        while len(self.seen) < count:
            each_look()
            now_s = time.monotonic()
            if self.look(0.1):
                quiet_since_s = now_s
            elif now_s - quiet_since_s > timeout_s:
                raise WrongRun(
                    f"only {len(self.seen):,} of {count:,} settlements arrived, and nothing "
                    f"more for {timeout_s:.0f} s."
                )
            if now_s - told_s >= 2.0:
                told_s = now_s
                say(f"  {len(self.seen):,} of {count:,} settled")

    def read_to_end(self) -> None:
        """Take what should not be there, too; for when nobody writes any more."""
        while self.look(QUIET_S):
            pass

    def close(self) -> None:
        self._consumer.close()


def verify_settlements(messages: list[Any], expected: Mapping[str, int]) -> None:
    """WrongRun unless every order was settled once, with its own id and amount."""
    decode = default_codec().decoder("settlement")
    found: dict[str, int] = {}
    for message in messages:
        settlement = decode(message.value())
        found[settlement["settlement_id"]] = settlement["amount_minor"]
    if found != expected:
        missing = len(expected.keys() - found.keys())
        foreign = len(found.keys() - expected.keys())
        raise WrongRun(
            f"{len(found):,} distinct settlements of {sum(found.values()):,} for "
            f"{len(expected):,} orders of {sum(expected.values()):,} minor units: {missing:,} "
            f"missing, {foreign:,} of no order."
        )
    if len(messages) != len(expected):
        raise WrongRun(
            f"{len(messages):,} settlement records for {len(expected):,} orders: some were "
            "written twice."
        )

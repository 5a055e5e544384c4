"""The simulated log against a real broker: the same histories give the same visible records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer

from tests.simulation.histories import HISTORIES, Clients, Seen
from tests.simulation.history_clients import play
from tests.support.topics import create_topic

pytestmark = pytest.mark.integration


class RealClients:
    def __init__(self, bootstrap: str, prefix: str) -> None:
        self._bootstrap, self._prefix = bootstrap, prefix
        self.topic, self.source, self.group = f"{prefix}out", f"{prefix}in", f"{prefix}readers"
        create_topic(bootstrap, self.topic, 2)
        create_topic(bootstrap, self.source, 2)

    def producer(self, name: str) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self._bootstrap,
                "transactional.id": f"{self._prefix}{name}",
                "transaction.timeout.ms": 60_000,
                "linger.ms": 0,
            }
        )

    def plain_producer(self) -> Producer:
        return Producer({"bootstrap.servers": self._bootstrap, "linger.ms": 0})

    def bystander(self) -> Consumer:
        group = f"{self._prefix}bystanders"
        return Consumer({"bootstrap.servers": self._bootstrap, "group.id": group})

    def consumer(self, isolation: str = "read_committed", instance: str | None = None) -> Consumer:
        config: dict[str, Any] = {
            "bootstrap.servers": self._bootstrap,
            "group.id": self.group,
            "isolation.level": isolation,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "partition.assignment.strategy": "range",
            "enable.partition.eof": instance is None,
        }
        if instance is not None:
            config |= {"group.instance.id": instance, "client.id": instance}
        return Consumer(config)

    def patience(self) -> int:
        return 50


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.__name__)
def test_the_simulated_log_shows_what_a_broker_shows(
    kafka: str, topic_prefix: str, history: Callable[[Clients], Seen]
) -> None:
    """Values, their offsets, the ends that readers see, committed offsets and errors alike."""
    assert play(history) == history(RealClients(kafka, topic_prefix))

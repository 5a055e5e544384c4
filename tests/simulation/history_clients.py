"""Where a history is played: the simulated cluster, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.clients import ClientFaults, SimConsumer, SimProducer
from tests.simulation.histories import Clients, Seen
from tests.simulation.log import Cluster
from tests.simulation.world import BEGIN_S, Process, World


class SimulatedClients:
    def __init__(self, cluster: Cluster, process: Process) -> None:
        self.topic, self.source, self.group = "out", "in", "readers"
        self._cluster = cluster
        self._process = process
        for topic in (self.topic, self.source):
            cluster.create(topic, 2)

    def producer(self, name: str) -> Any:
        config = {"transactional.id": name}
        return SimProducer(self._cluster, self._process, ClientFaults(), config)

    def plain_producer(self) -> Any:
        return SimProducer(self._cluster, self._process, ClientFaults(), {})

    def bystander(self) -> Any:
        config = {"group.id": "bystanders"}
        return SimConsumer(self._cluster, self._process, ClientFaults(), config)

    def consumer(self, isolation: str = "read_committed", instance: str | None = None) -> Any:
        config = {
            "group.id": self.group,
            "group.instance.id": instance,
            "isolation.level": isolation,
            "enable.partition.eof": instance is None,
            "partition.assignment.strategy": "range",
        }
        made = SimConsumer(self._cluster, self._process, ClientFaults(), config)
        return _Subscribing(made)

    def patience(self) -> int:
        return 3


class _Subscribing:
    """A consumer that takes what it is given from the beginning, as the client does by itself."""

    def __init__(self, consumer: SimConsumer) -> None:
        self._consumer = consumer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def subscribe(self, topics: list[str]) -> None:
        def assign(consumer: SimConsumer, partitions: list[Any]) -> None:
            for tp in partitions:
                tp.offset = 0
            consumer.assign(partitions)

        def unassign(consumer: SimConsumer, _partitions: list[Any]) -> None:
            consumer.unassign()

        self._consumer.subscribe(topics, on_assign=assign, on_revoke=unassign, on_lost=unassign)


def play(history: Callable[[Clients], Seen], seed: int = 0) -> Seen:
    """What the readers of the simulated log see."""
    world = World(str(seed))
    process = Process(world, "history")
    seen: list[Seen] = []
    clients = SimulatedClients(Cluster(world), process)
    process.spawn(lambda: seen.append(history(clients)))
    world.run(BEGIN_S + 3_600.0)
    if process.died_of is not None:
        raise process.died_of
    return seen[0]

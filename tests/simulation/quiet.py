"""Where positions go on over what nobody is handed, in the simulated log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any

from tests.simulation.log import VISIBLE, Cluster
from tests.simulation.world import Process

Place = tuple[str, int]

LOOK_S = 0.2
STANDS_S = 1.0


class SimStandstill:
    """``Standstill`` of a log in which there is nothing that a client is silent about."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self._cluster = cluster
        self._process = process
        self._looked_s = 0.0
        self._since: dict[Place, tuple[int, float]] = {}
        # What a look has seen, and what the one before it had.
        self._seen: dict[tuple[Place, int], int] = {}
        self._told: dict[tuple[Place, int], int] = {}

    def open(self, _servers: str) -> None: ...

    def close(self) -> None: ...

    @property
    def is_due(self) -> bool:
        return self._process.world.now_s - self._looked_s >= LOOK_S

    def take(self, positions: Mapping[Place, int], waits: Callable[[Place], bool]) -> list[Any]:
        """What it sees now is told by the look after it, as it is asked about in the background."""
        if not self.is_due:
            return []
        now_s = self._looked_s = self._process.world.now_s
        self._since = {
            tp: self._since[tp] if self._since.get(tp, (-1,))[0] == at else (at, now_s)
            for tp, at in positions.items()
            if waits(tp)
        }
        standing = {
            tp: at for tp, (at, since_s) in self._since.items() if now_s - since_s > STANDS_S
        }
        self._told = self._seen
        self._seen = {(tp, standing[tp]): end for tp, end in self._ends(standing).items()}
        return []

    def take_empty(self, positions: Mapping[Place, int]) -> dict[Place, int]:
        told, self._told = self._told, {}
        return {tp: end for (tp, at), end in told.items() if positions.get(tp) == at}

    def empty_now(self, positions: Mapping[Place, int]) -> dict[Place, int]:
        """Up to what is still to be read, where there is any."""
        self._process.step("empty now")
        return self._ends(positions, up_to_a_record=True)

    def _ends(
        self, positions: Mapping[Place, int], *, up_to_a_record: bool = False
    ) -> dict[Place, int]:
        ends = {}
        for (topic, number), at in positions.items():
            partition = self._cluster.partition(topic, number)
            unread = partition.records[at : partition.stable]
            empty = list(takewhile(lambda record: record.state != VISIBLE, unread))
            if empty and (up_to_a_record or len(empty) == len(unread)):
                ends[topic, number] = at + len(empty)
        return ends

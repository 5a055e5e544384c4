"""Where positions go on over what nobody is handed, in the simulated log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.simulation.log import VISIBLE, Cluster, Partition
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
        self._told, seen = self._seen, {}
        before, since = self._since, {}
        topics = self._cluster.topics
        for tp, at in positions.items():
            partition = topics[tp[0]][tp[1]]
            # Whoever has read all that there is waits for more.
            has_more = at < partition.stable
            if has_more and not waits(tp):
                continue
            known = before.get(tp)
            if known is None or known[0] != at:
                since[tp] = at, now_s
                continue
            since[tp] = known
            if has_more and now_s - known[1] > STANDS_S:
                end = _end_of_empty(partition, at)
                if end == partition.stable:
                    seen[tp, at] = end
        self._since, self._seen = since, seen
        return []

    def take_empty(self, positions: Mapping[Place, int]) -> dict[Place, int]:
        told, self._told = self._told, {}
        return {tp: end for (tp, at), end in told.items() if positions.get(tp) == at}

    def empty_now(self, positions: Mapping[Place, int]) -> dict[Place, int]:
        """Up to what is still to be read, where there is any."""
        self._process.step("empty now")
        ends = {}
        for tp, at in positions.items():
            end = _end_of_empty(self._cluster.partition(*tp), at)
            if end > at:
                ends[tp] = end
        return ends


def _end_of_empty(partition: Partition, at: int) -> int:
    """Where the next record that is handed out lies, or the last stable offset."""
    records, stable = partition.records, partition.stable
    while at < stable and records[at].state != VISIBLE:
        at += 1
    return at

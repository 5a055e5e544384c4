"""Markers of one transaction that land apart, met by whoever takes the partitions over."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property

from pipeline.chaos.flow.broker_faults import BrokerFault
from pipeline.chaos.flow.coordinator_log import producer_id_of
from pipeline.chaos.flow.logs_at_rest import OFFSETS_TOPIC, STATE_TOPIC
from pipeline.chaos.flow.node import Node
from pipeline.chaos.marker_relay import Hold, MarkerRelay
from pipeline.runtime.restore import WAITS_FOR_OPEN

# A worker under load commits several times a second, one on a busy machine at last.
CATCH_S_MAX = 10.0
# A busy machine is given more time for it. A coordinator asks once more after 30 s.
TAKEOVER_LATE_S_MAX = 20.0


@dataclass(frozen=True)
class _Chosen:
    """A payments worker, and the brokers of which one is to hear late of a commit."""

    node: Node
    pid: int
    transactional_id: str
    coordinator: int
    targets: tuple[int, ...]


class MarkersApart(BrokerFault):
    """A commit of a payments worker is told to every broker but one, which leads a part of the
    table, and the worker stands still beyond its session. Another one takes its partitions over:
    offsets that count, of a transaction whose rows it cannot see yet.

    The worker and the one that takes over have different coordinators: one waits for the answer to
    a marker before it sends the next one to the same broker.
    """

    def may_begin(self) -> bool:
        return super().may_begin() and next(self._choices(), None) is not None

    def _choices(self) -> Iterator[_Chosen]:
        workers = self.cluster.workers("payments")
        ids = {node.name: self.transactional_id(node.name, "payments") for node, _ in workers}
        coordinators = {name: self.leader_of(STATE_TOPIC, each) for name, each in ids.items()}
        catalogue = self.cluster.settings.catalogue()
        offsets_at = self.leader_of(OFFSETS_TOPIC, catalogue.group("payments"))
        leading = {
            leader for (topic, _), leader in self.cluster.watch.cluster.leaders.items()
            if topic == self._table
        }  # fmt: skip
        first = self.drawn.pick % max(1, len(workers))
        for node, pid in [*workers[first:], *workers[:first]]:
            coordinator = coordinators[node.name]
            others = [each for name, each in coordinators.items() if name != node.name]
            if not others or coordinator in (-1, *others):
                continue
            if targets := tuple(sorted(leading - {offsets_at, -1})):
                yield _Chosen(node, pid, ids[node.name], coordinator, targets)

    @cached_property
    def _table(self) -> str:
        return self.cluster.settings.catalogue().name("payments")

    @property
    def _relay(self) -> MarkerRelay:
        relay = self.cluster.marker_relay
        assert relay is not None, "a run that draws this has the relay"
        return relay

    def begin(self) -> str:
        self.chosen = chosen = next(self._choices())
        self._frozen = False
        self._caught_before = len(self._relay.caught)
        self._told_before: dict[str, int] = {}
        self._met = False
        # The whole log of a coordinator is read for the id, which takes seconds in a long run.
        self._held_since_s = math.inf
        folder = self.partition_folder(chosen.coordinator, STATE_TOPIC, chosen.transactional_id)
        self._producer: Future[int | None] | None = self.cluster.later(
            lambda: producer_id_of(folder, chosen.transactional_id)
        )
        return f"{chosen.node.name} payments (process {chosen.pid})"

    def is_over(self) -> bool:
        chosen = self.chosen
        if self._producer is not None and self._producer.done():
            producer_id = self._producer.result()
            self._producer = None
            if producer_id is None:
                return True
            self._relay.hold(Hold(chosen.targets, producer_id, self._table))
            self._held_since_s = self.elapsed_s
        if not self._frozen and self.injured:
            chosen.node.freeze(chosen.pid)
            self._frozen = True
            # Of the others: what the chosen one had to wait for itself was before.
            self._told_before = {
                name: node.log_size()
                for name, node in self.cluster.nodes.items()
                if node is not chosen.node
            }
        if not self._frozen:
            return self.elapsed_s - self._held_since_s >= CATCH_S_MAX
        late_s = self.elapsed_s - self.drawn.duration_s
        return late_s >= 0 and (self._is_met() or late_s >= TAKEOVER_LATE_S_MAX)

    def end(self) -> None:
        self._met = self._is_met()
        self._relay.release()
        self.chosen.node.wake(self.chosen.pid)

    def _is_met(self) -> bool:
        """Whether another worker says that it waited at a partition of which a marker is held."""
        waits = [
            f"{WAITS_FOR_OPEN} {topic}[{partition}]@"
            for marker in self._relay.caught[self._caught_before :]
            for topic, partition in marker.partitions
            if topic == self._table
        ]
        logs = [
            node.log_since(self._told_before[name])
            for name, node in self.cluster.nodes.items()
            if name in self._told_before
        ]
        return any(wait in said for wait in waits for said in logs)

    @property
    def injured(self) -> int:
        return len(self._relay.caught) - self._caught_before

    @property
    def came_to_nothing(self) -> str:
        if not self.injured:
            return "no marker of its commits came by"
        return "" if self._met else "nobody restored the table meanwhile"

"""What stands around a worker in a fast test: a broker's records, a commit thread, a restorer.

Written by hand and with the manners of the real ones where a worker relies on them: a position
moves with what is read and goes back with ``assign`` or ``seek``, a paused partition gives nothing,
and one transaction is under way at a time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from confluent_kafka import TopicPartition

from pipeline.domain.answer import SUCCEEDED, GatewayAnswer
from pipeline.domain.keys import record_key
from pipeline.domain.model import PaymentRequest
from pipeline.runtime.calls import Call
from pipeline.runtime.cluster import StoppedWaiting
from pipeline.runtime.gateway_worker import GatewayWorker
from pipeline.runtime.protection import Protection
from pipeline.runtime.table import Table
from pipeline.runtime.table_store import MemoryTableStore
from pipeline.runtime.table_worker import TableWorker
from pipeline.runtime.work import Outcome, Work
from tests.support.engine_flow import EngineFlow


@dataclass(frozen=True)
class FakeMessage:
    """A record as the client hands it out."""

    in_topic: str
    in_partition: int
    at: int
    with_key: bytes | None
    with_value: bytes | None
    appended_ms: int
    with_headers: list[tuple[str, bytes]] | None = None

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return self.in_topic

    def partition(self) -> int:
        return self.in_partition

    def offset(self) -> int:
        return self.at

    def timestamp(self) -> tuple[int, int]:
        return (2, self.appended_ms)

    def key(self) -> bytes | None:
        return self.with_key

    def value(self) -> bytes | None:
        return self.with_value

    def headers(self) -> list[tuple[str, bytes]] | None:
        return self.with_headers


class Member:
    """A consumer over records in memory. ``said`` is what it was told, in order; ``generation``
    is the group's, and ``committed`` what ``positions_of_lanes`` answers (0 unless set)."""

    def __init__(self, said: list[str] | None = None) -> None:
        self.generation = 1
        self.said: list[str] = [] if said is None else said
        self.committed: dict[tuple[str, int], int] = {}
        self.paused: set[tuple[str, int]] = set()
        # How often the client was told to pause or resume: each pause throws away its prefetch.
        self.toggles = 0
        # Callbacks of a rebalance that the next ``consume`` runs, as the client does; what it had
        # at hand before is returned all the same.
        self.rebalance: list[Callable[[], None]] = []
        # As one queue of all partitions would have them, by the age of each.
        self.in_order_of_arrival = False
        self._log: dict[tuple[str, int], list[FakeMessage]] = defaultdict(list)
        self._positions: dict[tuple[str, int], int] = {}

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        age_ms: int = 0,
        partition: int = 0,
    ) -> None:
        """One record more of a partition; ``age_ms`` puts its append into the past."""
        log = self._log[topic, partition]
        now_ms = int(time.time() * 1000)
        log.append(FakeMessage(topic, partition, len(log), key, value, now_ms - age_ms))

    def positions_of_lanes(
        self,
        _consumer: object,
        partitions: Iterable[tuple[str, int]],
        *,
        stopped: Callable[[], bool],
        **_flow: object,
    ) -> dict[tuple[str, int], int]:
        self.said.append("committed offsets")
        if stopped():
            raise StoppedWaiting
        return {tp: self.committed.get(tp, 0) for tp in partitions}

    def consumer_group_metadata(self) -> str:
        return f"generation {self.generation}"

    def consume(self, limit: int, _timeout_s: float) -> list[FakeMessage]:
        found: list[FakeMessage] = []
        for tp, position in self._positions.items():
            if tp not in self.paused:
                found += self._log[tp][position:]
        if self.in_order_of_arrival:
            found.sort(key=lambda message: message.timestamp()[1])
        found = found[:limit]
        for message in found:
            self._positions[message.topic(), message.partition()] = message.offset() + 1
        while self.rebalance:
            self.rebalance.pop(0)()
        return found

    def poll(self, _timeout_s: float) -> FakeMessage | None:
        return next(iter(self.consume(1, 0)), None)

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        return 0, len(self._log[place.topic, place.partition])

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.said.append("assigned")
        self._positions = {(tp.topic, tp.partition): tp.offset for tp in partitions}

    def unassign(self) -> None:
        self.said.append("gave back")
        self._positions = {}

    def seek(self, tp: TopicPartition) -> None:
        self._positions[tp.topic, tp.partition] = tp.offset

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.toggles += 1
        self.paused |= {(tp.topic, tp.partition) for tp in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self.toggles += 1
        self.paused -= {(tp.topic, tp.partition) for tp in partitions}


@dataclass
class Commits:
    """A commit thread whose transactions end when told. ``works`` is what it was handed."""

    works: list[Work] = field(default_factory=list)
    busy: bool = False
    outcome: Outcome | None = None

    def submit(self, work: Work) -> None:
        assert not self.busy, "one transaction at a time"
        self.busy = True
        self.works.append(work)
        # The broker's word for each table record, as the lane reports it.
        for index, report in work.tracked.items():
            report(index)

    def end(self, outcome: Outcome) -> None:
        """The transaction under way has a known end; the next ``poll`` or ``wait`` hears it."""
        assert self.busy, "nothing is under way"
        self.outcome = outcome

    def poll(self) -> Outcome | None:
        outcome, self.outcome = self.outcome, None
        if outcome is not None:
            self.busy = False
        return outcome

    def wait(self, _timeout_s: float) -> Outcome | None:
        return self.poll()


class SlowRestorer:
    """Needs a number of slices; ``said`` hears when it takes the table's end."""

    def __init__(self, said: list[str], slices: int = 0) -> None:
        self._said, self._left = said, slices
        self.records_read = 0

    def begin(self, partitions: Iterable[int]) -> None:
        list(partitions)
        self._said.append("the table's end")

    def step(self, _timeout_s: float = 0.0) -> bool:
        self._left -= 1
        return self._left <= 0

    def stop(self) -> None: ...


class InstantCalls:
    """Every call has succeeded as soon as it was started."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.in_flight = 0
        self.gate = Protection((), in_flight_max=1)
        self._finished: list[Call] = []
        self.kept_only: list[set[int]] = []
        self.forgotten: list[str] = []

    def forget(self, requests: list[PaymentRequest]) -> None:
        self.forgotten += [request.idempotency_key for request in requests]

    def keep_only(self, partitions: set[int]) -> None:
        self.kept_only.append(set(partitions))

    def start(self, calls: list[Call]) -> None:
        for call in calls:
            request = call.request
            self.keys.append(request.idempotency_key)
            call.answer = GatewayAnswer(
                outcome=SUCCEEDED,
                gateway_reference=f"ch_{request.order_id}",
                amount_minor=request.amount_minor,
            )
        self._finished += calls

    def take_finished(self) -> list[Call]:
        finished, self._finished = self._finished, []
        return finished

    def wait_finished(self, _timeout_s: float) -> None: ...


def lane_without_news() -> Any:
    return SimpleNamespace(rebuilds=0, too_large=None)


def payments_with(
    flow: EngineFlow,
    member: Member,
    commits: Any,
    monkeypatch: Any,
    *,
    restore_slices: int = 0,
    suspects: bool = False,
    **more: Any,
) -> Any:
    """A payments worker over the fakes that has been given partition 0 of every input; not
    restored yet. Typed as Any: these tests turn the worker by hand."""
    module = TableWorker.__module__
    monkeypatch.setattr(f"{module}.positions_of_lanes", member.positions_of_lanes)
    worker: Any
    worker, _ = flow.payments_worker(**more)
    worker._consumer, worker._commits, worker._admin = member, commits, None
    worker._lane = lane_without_news()
    worker._table = Table(MemoryTableStore(), decode=flow.stage().decode_row)
    worker._restorer = SlowRestorer(member.said, restore_slices)
    if suspects:
        # As after a death: the file of the process before is read.
        worker._suspects.start()
    worker._on_assign(member, [TopicPartition(spec, 0) for spec in inputs_of(flow)])
    return worker


def gateway_with(
    flow: EngineFlow, member: Member, commits: Any, calls: Any, monkeypatch: Any, **more: Any
) -> Any:
    """A gateway worker over the fakes that has been given partition 0."""
    module = GatewayWorker.__module__
    monkeypatch.setattr(f"{module}.positions_of_lanes", member.positions_of_lanes)
    worker: Any
    worker, _ = flow.gateway_worker(calls=calls, **more)
    worker._consumer, worker._commits, worker._admin = member, commits, None
    worker._lane = lane_without_news()
    given = [TopicPartition(flow.topic("payment-requests"), 0)]
    member.rebalance.append(lambda: worker._on_assign(member, given))
    worker._turn(fetch=True)
    return worker


def inputs_of(flow: EngineFlow) -> list[str]:
    return [spec.name for spec in flow.catalogue.inputs("payments")]


def order_keys(works: Iterable[Work], topic: str) -> list[bytes | None]:
    """The keys of what the works wrote to a topic, in order."""
    return [key for work in works for name, _, key, _, _ in work.outputs if name == topic]


def key_of(order_id: str) -> bytes:
    return record_key("shop", order_id)

"""Markers that land apart: whose, held from which broker, and when that was no fault after all."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.chaos.flow import markers_apart
from pipeline.chaos.flow.broker_faults import java_hash
from pipeline.chaos.flow.cluster import Cluster
from pipeline.chaos.flow.draw import MARKERS_APART, Drawn
from pipeline.chaos.flow.markers_apart import MarkersApart
from pipeline.chaos.marker_relay import Hold, SentMarker
from pipeline.runtime.restore import WAITS_FOR_OPEN

TABLE, STATE, OFFSETS = "payments", "__transaction_state", "__consumer_offsets"
PRODUCER = 4_711
CAUGHT = SentMarker(PRODUCER, True, frozenset({(TABLE, 2), ("settlements", 2)}))


class FakeNode:
    def __init__(self, name: str) -> None:
        self.name, self.log = name, "before"
        self.frozen: list[int] = []

    def freeze(self, pid: int) -> None:
        self.frozen.append(pid)

    def wake(self, pid: int) -> None:
        self.frozen = [each for each in self.frozen if each != pid]

    def log_size(self) -> int:
        return len(self.log)

    def log_since(self, size: int) -> str:
        return self.log[size:]


class FakeRelay:
    def __init__(self) -> None:
        # Of an earlier fault.
        self.caught: list[SentMarker] = [CAUGHT]
        self.holding: Hold | None = None

    def hold(self, hold: Hold) -> None:
        self.holding = hold

    def release(self) -> None:
        self.holding = None


class Stand:
    """Two nodes of a worker each, three brokers; ``leaders`` are those of Kafka's own topics."""

    def __init__(self, *, coordinators: tuple[int, int], offsets_at: int) -> None:
        self.nodes = [FakeNode("n1"), FakeNode("n2")]
        self.relay = FakeRelay()
        ids = [java_hash(f"paystream//{node.name}/payments/0") % 8 for node in self.nodes]
        leaders = {(STATE, p): 1 for p in range(8)} | {(OFFSETS, p): offsets_at for p in range(8)}
        leaders |= {(STATE, p): at for p, at in zip(ids, coordinators, strict=True)}
        leaders |= {(TABLE, p): p % 3 + 1 for p in range(6)}
        broker = SimpleNamespace(is_running=lambda: True, folder=Path("nowhere"))
        catalogue = SimpleNamespace(group=lambda stage: stage, name=lambda role: role)
        self.cluster: Any = SimpleNamespace(
            watch=SimpleNamespace(cluster=SimpleNamespace(leaders=leaders, in_sync=True)),
            kafka=SimpleNamespace(brokers=[broker]),
            broker=lambda _node_id: broker,
            settings=SimpleNamespace(topic_prefix="", catalogue=lambda: catalogue),
            workers=lambda _stage: [(node, 100 + n) for n, node in enumerate(self.nodes)],
            nodes={node.name: node for node in self.nodes},
            marker_relay=self.relay,
            later=done_at_once,
        )

    def fault(self, duration_s: float = 0.0) -> MarkersApart:
        drawn = Drawn(1, 0.0, MARKERS_APART, duration_s, 0)
        return MarkersApart(drawn, cast("Cluster", self.cluster))


def done_at_once(work: Any) -> Future[Any]:
    done: Future[Any] = Future()
    done.set_result(work())
    return done


@pytest.fixture(autouse=True)
def known_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markers_apart, "producer_id_of", lambda _folder, _name: PRODUCER)


def test_a_commit_is_held_from_a_broker_and_its_worker_stands_still() -> None:
    """Held from one that leads a part of the table and not the group's offsets; the worker stands
    when its marker has come by, and is woken when that is let go."""
    stand = Stand(coordinators=(2, 3), offsets_at=1)
    fault = stand.fault(duration_s=3_600.0)
    assert fault.may_begin()
    assert fault.start() == "n1 payments (process 100)"
    assert not fault.is_over()
    assert stand.relay.holding == Hold((2, 3), PRODUCER, TABLE)
    assert stand.nodes[0].frozen == []
    stand.relay.caught.append(CAUGHT)
    assert not fault.is_over()
    assert stand.nodes[0].frozen == [100]
    stand.nodes[1].log += f"\npayments {WAITS_FOR_OPEN} {TABLE}[2]@815\n"
    fault.end()
    assert stand.nodes[0].frozen == []
    assert stand.relay.holding is None
    assert (fault.injured, fault.came_to_nothing) == (1, "")


def test_workers_that_share_a_coordinator_wait_for_another_moment() -> None:
    """The one that is to take over could not end its own transaction either."""
    assert not Stand(coordinators=(2, 2), offsets_at=1).fault().may_begin()


def test_a_commit_that_nobody_met_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """None came by in time; or it did, and nobody restored that part of the table meanwhile."""
    monkeypatch.setattr(markers_apart, "CATCH_S_MAX", 0.0)
    monkeypatch.setattr(markers_apart, "TAKEOVER_LATE_S_MAX", 0.0)
    stand = Stand(coordinators=(2, 3), offsets_at=1)
    none = stand.fault()
    none.start()
    assert none.is_over()
    none.end()
    assert none.came_to_nothing == "no marker of its commits came by"
    missed = stand.fault()
    missed.start()
    stand.relay.caught.append(CAUGHT)
    assert missed.is_over()
    # Another part of the table, which an ordinary restart may find open for a moment.
    stand.nodes[1].log += f"\npayments {WAITS_FOR_OPEN} {TABLE}[5]@815\n"
    # The worker itself, which did not take over from anybody.
    stand.nodes[0].log += f"\npayments {WAITS_FOR_OPEN} {TABLE}[2]@815\n"
    missed.end()
    assert missed.came_to_nothing == "nobody restored the table meanwhile"

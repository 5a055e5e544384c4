"""Admission: what is handled next, and which partitions stop being fetched."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import worker
from pipeline.config import load_settings
from pipeline.observability.metrics import Metrics
from pipeline.runtime import lag, table_worker
from pipeline.runtime.admission import BUFFER_BYTES_MAX, Admission, InputLane
from pipeline.runtime.input_record import InputRecord
from tests.support.engine_flow import EngineFlow

LANES = (
    InputLane("gateway-results", "results"),
    InputLane("payment-retry-1", "retry", delay_ms=5_000),
    InputLane("orders", "orders", gated=True),
)
PARTITIONS = [(topic, p) for topic in ("results", "retry", "orders") for p in (0, 1)]
NOW_MS = 100_000


def admission(buffer_max: int = 8) -> Admission:
    made = Admission(LANES, buffer_max=buffer_max)
    made.assign(PARTITIONS)
    return made


def record(
    topic: str, offset: int, partition: int = 0, at_ms: int = NOW_MS, value: bytes = b"v"
) -> InputRecord:
    return InputRecord(topic, partition, offset, at_ms, b"k", value)


def taken(made: Admission, limit: int = 100, now_ms: int = NOW_MS) -> list[tuple[str, int, int]]:
    return [(r.topic, r.partition, r.offset) for r in made.take(limit, now_ms)]


def test_results_go_before_timers_and_timers_before_new_orders() -> None:
    """Payments under way end before others begin, whatever arrived first."""
    made = admission()
    made.add(record("orders", 0))
    made.add(record("retry", 0, at_ms=NOW_MS - 5_000))
    made.add(record("results", 0))
    assert taken(made, 2) == [("results", 0, 0), ("retry", 0, 0)]
    assert taken(made) == [("orders", 0, 0)]


def test_a_closed_gate_holds_orders_and_nothing_else() -> None:
    """Back-pressure slows new orders; results and timers go on, and no order is dropped."""
    made = admission()
    made.open_gate(False)
    made.add(record("orders", 0))
    assert not made.ready
    made.add(record("results", 0))
    assert made.ready
    assert taken(made) == [("results", 0, 0)]
    assert made.buffered("orders") == 1
    made.open_gate(True)
    assert taken(made) == [("orders", 0, 0)]


def test_a_full_buffer_is_paused_until_a_quarter_is_left() -> None:
    """Toggling throws away the prefetch each time, so resuming waits until it is nearly empty."""
    made = admission(buffer_max=8)
    for offset in range(4):
        for partition in (0, 1):
            made.add(record("orders", offset, partition))
    assert made.fetching().pause == (("orders", 0), ("orders", 1))
    assert made.fetching() == made.fetching(), "said once"
    taken(made, 4)
    assert made.fetching().resume == (), "two of each are left: more than a quarter of its share"
    taken(made, 2)
    assert made.fetching().resume == (("orders", 0), ("orders", 1))
    assert made.fetching().resume == ()


def test_no_partition_waits_for_the_backlog_of_another() -> None:
    """The client hands out what arrived first: a whole batch of one partition, or all that the
    quickest broker has. A partition that has less than its share is fetched on, each has its turn,
    and memory stays bounded."""
    made = admission(buffer_max=8)
    for offset in range(8):
        made.add(record("orders", offset, 0))
    assert made.fetching().pause == (("orders", 0),), "the other may still come"
    for offset in range(4):
        made.add(record("orders", offset, 1))
        if offset < 3:
            assert made.fetching().pause == ()
    assert made.fetching().pause == (("orders", 1),), "its share, and never more than twice all"
    assert [(p, o) for _, p, o in taken(made, 4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(p, o) for _, p, o in taken(made, 1)] == [(0, 2)]
    assert [(p, o) for _, p, o in taken(made, 1)] == [(1, 2)], "the next in turn"
    assert made.fetching().resume == (("orders", 1),), "the one that has most goes on last"
    assert [(p, o) for _, p, o in taken(made, 5)] == [(0, 3), (0, 4), (1, 3), (0, 5), (0, 6)]


def test_a_partition_alone_has_the_whole_buffer() -> None:
    """Shares are of what is full: where nothing else waits, a backlog is read in long strides."""
    made = admission(buffer_max=8)
    for offset in range(7):
        made.add(record("orders", offset))
        assert made.fetching().pause == ()
    assert made.buffered("orders") == 7


def test_a_large_record_at_a_time_is_still_each_ones_turn() -> None:
    made = admission(buffer_max=100)
    for offset in range(3):
        for partition in (0, 1):
            made.add(record("orders", offset, partition, value=bytes(100)))
    seen = [made.take(10, NOW_MS, limit_bytes=1)[0].partition for _ in range(6)]
    assert seen == [0, 1, 0, 1, 0, 1]


def test_the_head_of_a_tier_holds_only_its_own_partition() -> None:
    """A record that is not due yet keeps back those behind it, and no other partition."""
    made = admission()
    made.add(record("retry", 0, partition=0, at_ms=NOW_MS))
    made.add(record("retry", 1, partition=0, at_ms=NOW_MS - 9_000))
    made.add(record("retry", 0, partition=1, at_ms=NOW_MS - 6_000))
    assert made.next_due_ms() == NOW_MS - 1_000
    assert taken(made) == [("retry", 1, 0)]
    assert made.next_due_ms() == NOW_MS + 5_000
    assert taken(made, now_ms=NOW_MS + 4_999) == []
    assert taken(made, now_ms=NOW_MS + 5_000) == [("retry", 0, 0), ("retry", 0, 1)]


def test_a_tier_that_was_looked_at_in_vain_gives_what_is_due_all_the_same() -> None:
    """When nothing is due is remembered: not beyond a head that is due sooner, nor over a new
    assignment."""
    made = admission()
    made.add(record("retry", 0, at_ms=NOW_MS))
    assert taken(made) == []
    assert taken(made, now_ms=NOW_MS + 4_999) == []
    made.add(record("retry", 0, partition=1, at_ms=NOW_MS - 1_000))
    assert taken(made, now_ms=NOW_MS + 4_000) == [("retry", 1, 0)]
    assert taken(made, now_ms=NOW_MS + 4_999) == []
    assert taken(made, now_ms=NOW_MS + 5_000) == [("retry", 0, 0)]
    made.add(record("retry", 1, at_ms=NOW_MS))
    assert taken(made) == []
    made.assign(PARTITIONS)
    made.add(record("retry", 0, at_ms=NOW_MS - 9_000))
    assert taken(made) == [("retry", 0, 0)]


def test_large_records_are_bounded_by_bytes_too() -> None:
    """Records that are small on the wire and huge decompressed end neither the memory nor the time
    of a transaction: they pause the fetching and are taken a few at a time."""
    huge = bytes(BUFFER_BYTES_MAX // 4)
    made = admission(buffer_max=1_000)
    for offset in range(5):
        made.add(record("orders", offset, value=huge))
    assert made.fetching().pause == (("orders", 0), ("orders", 1))
    assert len(made.take(100, NOW_MS, limit_bytes=2 * len(huge))) == 2
    assert len(made.take(100, NOW_MS, limit_bytes=1)) == 1, "a larger one goes alone"
    assert made.fetching().resume == ()
    made.take(100, NOW_MS)
    assert made.fetching().resume == (("orders", 0), ("orders", 1))
    assert made.buffered("orders") == 0


def test_order_within_a_partition_survives_every_way_of_taking() -> None:
    """However the limits cut it, each partition's records leave in the order of their offsets."""
    made = admission(buffer_max=1_000)
    for offset in range(50):
        for partition in (0, 1):
            made.add(record("orders", offset, partition=partition, value=bytes(offset)))
    out: list[tuple[str, int, int]] = []
    while got := made.take(7, NOW_MS, limit_bytes=60):
        out += [(r.topic, r.partition, r.offset) for r in got]
    for partition in (0, 1):
        assert [o for _, p, o in out if p == partition] == list(range(50))
    assert made.buffered("orders") == 0


def test_a_new_assignment_drops_what_is_buffered_and_forgets_pauses() -> None:
    """What was read under the old assignment is another worker's, or is read again."""
    made = admission(buffer_max=2)
    made.add(record("orders", 0))
    made.add(record("orders", 1))
    assert made.fetching().pause
    made.assign([("orders", 1)])
    assert taken(made) == []
    assert made.fetching().resume == ()
    made.add(record("orders", 5, partition=1))
    made.add(record("orders", 6, partition=1))
    assert made.fetching().pause == (("orders", 1),)
    assert made.is_paused("orders", 1)


def test_the_worker_process_asks_the_gate_that_was_built_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders are held while the gate is closed and admitted when it opens, and the gauge says so:
    a worker that never asked would flood the gateway stage."""
    gate_is_open, given, limits = [True], {}, []

    class Gate:
        def __init__(self, _lag: object, *, records_max: int, **_more: str) -> None:
            limits.append(records_max)

        def __call__(self) -> bool:
            return gate_is_open[0]

    def made(*_: object, **more: Any) -> None:
        given.update(more)

    monkeypatch.setattr(lag, "GroupLag", lambda *_: None)
    monkeypatch.setattr(lag, "LagGate", Gate)
    monkeypatch.setattr(table_worker, "TableWorker", made)
    flow = EngineFlow("127.0.0.1:1", "t.", tmp_path)
    options = load_settings(state_dir=tmp_path, open_requests_max=123).worker_options()
    spec = replace(flow.spec("payments"), options=options)
    metrics = Metrics()
    worker._payments(spec, flow.catalogue, flow.codec, metrics, threading.Event())
    # One for requests, one for the checks of cards.
    assert limits == [123, 123]
    for is_open in (True, False, True):
        gate_is_open[0] = is_open
        assert given["orders_allowed"]() is is_open
        assert metrics.orders_held._value.get() == int(not is_open)

"""The lag as the metrics show it, while a cluster can be asked and while it cannot."""

from __future__ import annotations

import logging

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.observability import exposition
from pipeline.observability.exposition import LagCollector
from pipeline.observability.stalls import Stalls
from tests.support.waiting import wait_until


def test_a_cluster_that_is_away_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A line each few seconds would bury what a terminal shows; after an answer it counts anew."""
    monkeypatch.setattr(exposition, "LAG_INTERVAL_S", 0.001)
    asked = 0

    def ask() -> dict[tuple[str, int], tuple[int, int]]:
        nonlocal asked
        asked += 1
        if asked == 10:
            return {("orders", 0): (0, 1)}
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no broker answers"))

    with caplog.at_level(logging.WARNING):
        collector = LagCollector({"payments": ask})
        try:
            wait_until(lambda: asked > 20, 10, "it goes on asking")
        finally:
            collector.close()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["the lag of payments cannot be asked: no broker answers"] * 2


@pytest.fixture
def stalls() -> Stalls:
    return Stalls(delayed=["retry-1"])


def test_what_waits_while_nothing_is_committed_stalls(stalls: Stalls) -> None:
    """A frozen worker neither dies nor restarts: only its offsets show that it stands."""
    stalls.look({("orders", 0): (7, 7)}, 0.0)
    assert stalls.seconds(500.0) == {"orders": 0.0}, "nothing waits"
    for second in (500.0, 502.0, 504.0):
        stalls.look({("orders", 0): (7, 10)}, second)
    assert stalls.seconds(620.0) == {"orders": 120.0}
    stalls.look({("orders", 0): (8, 10)}, 621.0)
    assert stalls.seconds(631.0) == {"orders": 10.0}, "since the last commit"
    stalls.look({("orders", 0): (10, 10)}, 632.0)
    assert stalls.seconds(700.0) == {"orders": 0.0}


def test_one_partition_stalls_beside_others_that_go_on(stalls: Stalls) -> None:
    """One worker of several stands, or one partition, while the stage as a whole counts on."""
    stalls.look({("orders", 0): (1, 5), ("orders", 1): (1, 5)}, 0.0)
    stalls.look({("orders", 0): (1, 9), ("orders", 1): (5, 9)}, 100.0)
    assert stalls.seconds(110.0) == {"orders": 110.0}


def test_what_comes_after_more_important_inputs_does_not_stall(stalls: Stalls) -> None:
    """Orders wait for as long as results of the same lane come, and records of tiers by design."""
    stalls.look({("results", 0): (1, 99), ("orders", 0): (1, 5), ("retry-1", 0): (1, 5)}, 0.0)
    stalls.look({("results", 0): (9, 99), ("orders", 0): (1, 5), ("retry-1", 0): (1, 5)}, 100.0)
    assert stalls.seconds(110.0) == {"results": 10.0, "orders": 10.0}


def test_the_metrics_tell_of_lag_and_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both by group and topic; the lag of tiers as well."""
    monkeypatch.setattr(exposition, "LAG_INTERVAL_S", 0.001)
    places = {("orders", 0): (1, 4), ("orders", 1): (2, 2), ("retry-1", 0): (0, 1)}
    collector = LagCollector({"payments": lambda: places}, delayed=["retry-1"])

    def samples() -> dict[tuple[str, str], float]:
        return {
            (sample.name, sample.labels["topic"]): sample.value
            for family in collector.collect()
            for sample in family.samples
            if sample.labels["group"] == "payments"
        }

    lag, stalled = "paystream_consumer_lag", "paystream_consumer_stalled_seconds"
    try:
        wait_until(lambda: samples().get((stalled, "orders"), 0.0) > 0.0, 10, "it stands")
        told = samples()
    finally:
        collector.close()
    assert told.keys() == {(lag, "orders"), (lag, "retry-1"), (stalled, "orders")}
    assert (told[lag, "orders"], told[lag, "retry-1"]) == (3, 1)

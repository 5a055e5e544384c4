"""The lag as the metrics show it, while a cluster can be asked and while it cannot."""

from __future__ import annotations

import logging

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.observability import exposition
from pipeline.observability.exposition import LagCollector
from tests.support.waiting import wait_until


def test_a_cluster_that_is_away_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A line each few seconds would bury what a terminal shows; after an answer it counts anew."""
    monkeypatch.setattr(exposition, "LAG_INTERVAL_S", 0.001)
    asked = 0

    def ask() -> dict[str, int]:
        nonlocal asked
        asked += 1
        if asked == 10:
            return {"orders": 1}
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no broker answers"))

    with caplog.at_level(logging.WARNING):
        collector = LagCollector({"payments": ask})
        try:
            wait_until(lambda: asked > 20, 10, "it goes on asking")
        finally:
            collector.close()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["the lag of payments cannot be asked: no broker answers"] * 2

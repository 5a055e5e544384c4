"""When new orders are held back by how far a stage is behind, and what the log says of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.runtime.lag import FAILURES_A_LINE, LagGate


def answers(*lags: int | None) -> Callable[[], Mapping[str, int]]:
    """One after the other; None: the cluster cannot say."""
    waiting = iter(lags)

    def lag() -> Mapping[str, int]:
        found = next(waiting)
        if found is None:
            raise KafkaException(KafkaError(KafkaError.NOT_COORDINATOR))
        return {"requests": found}

    return lag


def test_orders_are_held_back_until_a_quarter_of_what_may_wait_is_free() -> None:
    """And the gate stays as it is while nobody can say how much that is."""
    gate = LagGate(answers(100, 101, 80, None, 75), records_max=100)
    seen = []
    for _ in range(5):
        gate.look()
        seen.append(gate())
    assert seen == [True, False, False, False, True]


def test_a_cluster_that_cannot_say_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Asked twice a second through a rolling restart, it was a line each time."""
    failures = FAILURES_A_LINE + 1
    gate = LagGate(answers(*[None] * failures, 0, None), records_max=100, stage="risk")
    with caplog.at_level(logging.INFO):
        for _ in range(failures + 2):
            gate.look()
    said = [record.getMessage().split(":")[0] for record in caplog.records]
    cannot, can = "the lag of the risk stage cannot be asked", "the lag of the risk stage can be"
    assert said == [cannot, cannot, f"{can} asked again", cannot]

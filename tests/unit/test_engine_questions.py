"""What a worker asks of the cluster while it is being led by nobody: again, for a bounded time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from pipeline.errors import UserError
from pipeline.runtime.cluster import (
    CONTROLLER_TIMEOUT_S,
    StoppedWaiting,
    cluster_and_topic_id,
    committed_positions,
)
from pipeline.runtime.partition_offsets import watermarks
from pipeline.runtime.surroundings import REAL, Surroundings

PLACE = TopicPartition("orders", 0)


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def pass_by(self, seconds: float) -> None:
        self.now_s += seconds

    @property
    def surroundings(self) -> Surroundings:
        return replace(REAL, monotonic_s=lambda: self.now_s, sleep=self.pass_by)


class Leaderless:
    """A consumer and an admin client of a cluster that answers after so many seconds."""

    def __init__(self, clock: Clock, until_s: float) -> None:
        self._clock = clock
        self._until_s = until_s

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        return self._answer(KafkaError.NOT_LEADER_FOR_PARTITION, lambda: (3, 7))

    def describe_cluster(self, request_timeout: float) -> Future[Any]:
        self._clock.pass_by(request_timeout)
        return self._later(KafkaError._TIMED_OUT, SimpleNamespace(cluster_id="c"))

    def describe_topics(self, topics: Any, request_timeout: float) -> dict[str, Future[Any]]:
        found = self._later(KafkaError._TIMED_OUT, SimpleNamespace(topic_id="t"))
        return dict.fromkeys(topics.topic_names, found)

    def _answer(self, code: int, answer: Callable[[], Any]) -> Any:
        if self._clock.now_s < self._until_s:
            raise KafkaException(KafkaError(code))
        return answer()

    def _later(self, code: int, value: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self._clock.now_s < self._until_s:
            future.set_exception(KafkaException(KafkaError(code)))
        else:
            future.set_result(value)
        return future


def ask_for_the_end(clock: Clock, until_s: float) -> tuple[int, int]:
    consumer: Any = Leaderless(clock, until_s)
    return watermarks(consumer, PLACE, timeout_s=25, surroundings=clock.surroundings)


def test_an_end_is_asked_for_until_somebody_leads() -> None:
    """A gateway worker that was assigned partitions in the middle of an election died of it."""
    clock = Clock()
    assert ask_for_the_end(clock, until_s=12) == (3, 7)
    assert 12 <= clock.now_s < 13


def test_an_end_that_nobody_tells_is_an_error() -> None:
    """After the time that it was given, and not before."""
    clock = Clock()
    with pytest.raises(KafkaException):
        ask_for_the_end(clock, until_s=1_000)
    assert 25 <= clock.now_s < 26


def test_a_client_that_says_nothing_of_an_end_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it does where no answer comes in its time."""
    clock = Clock()
    answers = [None, (3, 7)]

    def answered(_self: object, _place: object, *, timeout: float) -> tuple[int, int] | None:
        clock.pass_by(min(timeout, 5))
        return answers.pop(0)

    monkeypatch.setattr(Leaderless, "get_watermark_offsets", answered)
    assert ask_for_the_end(clock, until_s=0) == (3, 7)
    answers += [None] * 5
    with pytest.raises(KafkaException):
        ask_for_the_end(clock, until_s=0)


def test_a_start_waits_for_the_next_controller() -> None:
    """A worker that started while the controller was away ended with a traceback."""
    clock = Clock()
    admin: Any = Leaderless(clock, until_s=15)
    assert cluster_and_topic_id(admin, "orders", clock.surroundings) == ("c", "t")


def test_a_cluster_without_a_controller_is_named() -> None:
    """With what to look at, once two elections would have been over."""
    clock = Clock()
    admin: Any = Leaderless(clock, until_s=1_000)
    with pytest.raises(UserError, match=r"orders within 30 s .*brokers run"):
        cluster_and_topic_id(admin, "orders", clock.surroundings)
    assert clock.now_s >= CONTROLLER_TIMEOUT_S


class Unstable:
    """A consumer whose group's offsets an open transaction holds up."""

    asked = 0

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self.asked += 1
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


@pytest.mark.slow
def test_who_is_told_to_stop_waits_no_longer_for_offsets() -> None:
    """A worker that waits for its predecessor's transaction drained too late and was killed."""
    consumer: Any = Unstable()
    with pytest.raises(StoppedWaiting):
        committed_positions(consumer, [("orders", 0)], stopped=lambda: consumer.asked == 2)
    assert consumer.asked == 2

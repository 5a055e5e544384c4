"""A close that does not come back is left, and what its callbacks raise is raised."""

from __future__ import annotations

import threading

import pytest

from pipeline.runtime import group_consumer
from pipeline.runtime.group_consumer import GroupConsumer, close_within
from pipeline.runtime.kafka_errors import LaneFatal, LaneHung


def test_a_close_that_comes_back_is_done_and_one_that_does_not_is_left() -> None:
    assert close_within(lambda: None)
    for_ever = threading.Event()
    assert not close_within(lambda: for_ever.wait() and None, timeout_s=0.01)
    for_ever.set()


def test_what_a_callback_of_the_close_raises_is_raised() -> None:
    def revoked() -> None:
        raise LaneFatal("a transaction did not end")

    with pytest.raises(LaneFatal, match="did not end"):
        close_within(revoked)


def test_a_workers_consumer_closes_and_says_when_it_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"group.id": "g", "bootstrap.servers": "127.0.0.1:1", "log_level": 0}
    GroupConsumer(config).close()
    monkeypatch.setattr(group_consumer, "close_within", lambda _close: False)
    hanging = GroupConsumer(config)
    with pytest.raises(LaneHung, match="does not come back"):
        hanging.close()
    monkeypatch.undo()
    hanging.close()

"""The audit asks where partitions end while others come to lead them."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.audit import log_copy
from pipeline.audit.log_copy import _LATEST, _Client
from pipeline.audit.unavailable import AuditUnavailable

PLACE = ("orders", 0)


class Moved:
    """An admin client of a cluster whose leaders have changed: it goes by those it has known until
    it is told to look, so many times."""

    def __init__(self, looks: int) -> None:
        self._looks = looks

    def list_topics(self, timeout: float) -> None:
        self._looks -= 1

    def list_offsets(self, asked: Any, **_: object) -> dict[Any, Future[Any]]:
        future: Future[Any] = Future()
        if self._looks > 0:
            future.set_exception(KafkaException(KafkaError(KafkaError.FENCED_LEADER_EPOCH)))
        else:
            future.set_result(SimpleNamespace(offset=7))
        return dict.fromkeys(asked, future)


def ask(looks: int) -> int:
    client = _Client("127.0.0.1:1")
    client._admin = Moved(looks)  # type: ignore[assignment]
    try:
        return client.offsets([PLACE], _LATEST)[PLACE]
    finally:
        client.close()


@pytest.mark.slow
def test_an_election_during_a_long_look_does_not_end_it() -> None:
    """An audit of a run of twenty minutes was broken off by it, as if the brokers were away."""
    assert ask(1) == 7
    assert ask(3) == 7


@pytest.mark.slow
def test_an_end_that_nobody_tells_makes_the_audit_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After its time, with the broker's word."""
    monkeypatch.setattr(log_copy, "ANSWER_TIMEOUT_S", 0.0)
    with pytest.raises(AuditUnavailable, match="epoch"):
        ask(1_000)

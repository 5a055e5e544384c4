"""What is made of the control topic when its brokers do not answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaException

from pipeline.errors import UserError
from pipeline.runtime import control
from pipeline.runtime.kafka_errors import kafka_error, was_asked_in_vain
from schemas.codec import default_codec
from topics.catalogue import build_catalogue


@pytest.mark.slow
def test_reading_without_a_broker_is_one_sentence_and_no_log(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The client's own lines, two hundred of them, would hide it."""
    monkeypatch.setattr(control, "READ_TIMEOUT_S", 0.3)
    with pytest.raises(UserError, match=r"is the cluster at 127\.0\.0\.1:1 reachable"):
        control.read_records("127.0.0.1:1", build_catalogue(), default_codec())
    assert capfd.readouterr() == ("", "")


class Leaderless:
    """The client of a cluster that has the topic, and nobody who leads it."""

    def __init__(self, partitions: dict[int, Any] | None) -> None:
        self._partitions = partitions

    def assign(self, _partitions: object) -> None: ...

    def poll(self, _timeout_s: float) -> None: ...

    def list_topics(self, topic: str, timeout: float) -> Any:
        if self._partitions is None:
            raise KafkaException("nobody answers")
        return SimpleNamespace(topics={topic: SimpleNamespace(partitions=self._partitions)})


def test_a_worker_that_starts_while_leaders_are_away_starts_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Taken for a mistake of whoever started it, it would be given up after two tries."""
    monkeypatch.setattr(control, "READ_TIMEOUT_S", 0.0)
    with pytest.raises(KafkaException) as caught:
        reader(monkeypatch, {0: None}).start()
    error = kafka_error(caught.value)
    assert error is not None
    assert was_asked_in_vain(error)
    assert "cannot be read within" in error.str()


@pytest.mark.parametrize("partitions", [None, {}])
def test_a_worker_of_no_cluster_or_no_topic_is_told_so(
    partitions: dict[int, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "READ_TIMEOUT_S", 0.0)
    with pytest.raises(UserError, match="paystream topics apply"):
        reader(monkeypatch, partitions).start()


def reader(
    monkeypatch: pytest.MonkeyPatch, partitions: dict[int, Any] | None
) -> control.ControlReader:
    monkeypatch.setattr(control, "Consumer", lambda _config: Leaderless(partitions))
    return control.ControlReader("127.0.0.1:1", build_catalogue(), default_codec(), lambda *_: None)

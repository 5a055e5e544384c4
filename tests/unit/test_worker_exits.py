"""How a worker process ends: a sentence and an exit code for what can happen to anyone."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline import worker
from pipeline.runtime.worker_spec import EXIT_LANE_FATAL, WorkerSpec, encode_spec
from topics.catalogue import TopicSettings


def ends_with(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """What main() answers when a worker's run raises this."""

    def run() -> None:
        raise error

    spec = WorkerSpec("payments", "n1", 0, "127.0.0.1:1", TopicSettings(), tmp_path)
    stdin = io.TextIOWrapper(io.BytesIO(encode_spec(spec)))
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(worker, "build_worker", lambda *_: run)
    # Not this process: it would die with the test runner's own parent.
    monkeypatch.setattr(worker, "_die_with_parent", lambda: None)
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    monkeypatch.setattr(worker, "configure_logging", lambda *_: None)
    return worker.main()


def test_a_member_that_another_has_replaced_leaves_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A twin with the same node id and slot fences its consumer: no traceback, and the code that
    says that a successor may simply begin."""
    fenced = KafkaError(KafkaError._FATAL, "fenced by other consumer")
    assert ends_with(KafkaException(fenced), tmp_path, monkeypatch) == EXIT_LANE_FATAL
    assert "payments-0 leaves" in caplog.text
    assert "fenced by other consumer" in caplog.text


def test_what_nobody_expected_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is not fatal to the client is a bug, and keeps its traceback."""
    with pytest.raises(KafkaException):
        ends_with(KafkaException(KafkaError(KafkaError.INVALID_CONFIG)), tmp_path, monkeypatch)

"""How a worker process ends: a sentence and an exit code for what can happen to anyone."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline import worker
from pipeline.runtime.cluster import UnequalPartitions, consumer_config
from pipeline.runtime.kafka_errors import LaneHung
from pipeline.runtime.worker_spec import (
    EXIT_LANE_FATAL,
    EXIT_NO_MEMORY,
    EXIT_USER_ERROR,
    WorkerSpec,
    encode_spec,
)
from tests.house import TOP
from tests.support.waiting import wait_until
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
    monkeypatch.setattr(worker.faulthandler, "register", lambda *_: None)
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


@pytest.mark.parametrize(
    "code",
    [
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._DESTROY_BROKER,
        KafkaError._NOENT,
    ],
)
def test_a_worker_whose_brokers_do_not_answer_in_time_leaves_with_a_sentence(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While brokers are rolled, a partition's end may not be had for as long as it is waited for:
    nothing is wrong with the worker, and its successor asks again."""
    late = KafkaError(code, "Failed to get watermark offsets: Local: Timed out")
    assert ends_with(KafkaException(late), tmp_path, monkeypatch) == EXIT_LANE_FATAL
    assert "payments-0 leaves, the brokers do not answer it" in caplog.text


def test_a_worker_that_was_given_unequal_partitions_stays_away_for_its_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coming back at once it would be given the same again, as the static member that it is."""
    waited: list[float | None] = []
    monkeypatch.setattr(worker.SignalEvent, "wait", lambda _self, s=None: waited.append(s))
    assert ends_with(UnequalPartitions("unequal"), tmp_path, monkeypatch) == EXIT_USER_ERROR
    (away_s,) = waited
    config = consumer_config("127.0.0.1:1", group_id="payments", instance_id="n1.0")
    assert away_s is not None
    assert away_s * 1000 > config["session.timeout.ms"]


@pytest.mark.parametrize("said_by_client", [False, True])
def test_a_worker_without_memory_leaves_with_a_sentence(
    said_by_client: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The interpreter meets it, or a call of the client fails of it."""
    error: Exception = MemoryError()
    if said_by_client:
        error = SystemError("returned a result with an exception set")
        error.__cause__ = MemoryError()
    assert ends_with(error, tmp_path, monkeypatch) == EXIT_NO_MEMORY
    assert "payments-0 leaves, it has not the memory" in caplog.text


def test_a_worker_whose_client_hangs_leaves_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its end does not wait for that client, which would not let go of the process either."""
    left: list[object] = []

    def at_once(code: int) -> None:
        left.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(worker.os, "_exit", at_once)
    monkeypatch.setattr(worker.faulthandler, "dump_traceback", lambda: left.append("stacks"))
    monkeypatch.setattr(worker.logging, "shutdown", lambda: None)
    with pytest.raises(SystemExit):
        ends_with(LaneHung("a transaction has not ended for 241 s"), tmp_path, monkeypatch)
    assert left == ["stacks", EXIT_LANE_FATAL], "it says where it hung before it goes"
    assert "does not come back: a transaction has not ended" in caplog.text


def test_what_nobody_expected_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is not fatal to the client is a bug, and keeps its traceback."""
    with pytest.raises(KafkaException):
        ends_with(KafkaException(KafkaError(KafkaError.INVALID_CONFIG)), tmp_path, monkeypatch)


@contextmanager
def begun(folder: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker's process that listens to signals, by the interpreter's arguments."""
    spec = WorkerSpec("ledger", "n1", 0, "127.0.0.1:1", TopicSettings(), folder)
    process = subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=TOP
    )
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        process.stdin.write(encode_spec(spec))
        process.stdin.close()
        # Made after the signals are listened to.
        wait_until(spec.slot_dir.is_dir, 60, "the worker has begun")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.slow
def test_a_worker_says_where_it_stands(tmp_path: Path) -> None:
    """SIGUSR1: the stacks of its threads, also while it waits for a broker that is not there."""
    with begun(tmp_path, "-m", "pipeline.worker") as process:
        process.send_signal(signal.SIGUSR1)
        assert process.stderr is not None
        told = iter(process.stderr.readline, b"")
        assert any(b"in main" in line for line in told), process.poll()


@pytest.mark.slow
def test_a_worker_that_does_not_drain_leaves_by_itself(tmp_path: Path) -> None:
    """Its supervisor was killed, so nobody else ends it; the kernel's signals come in a row."""
    hanging = (
        "import threading; from pipeline import worker\n"
        "worker.OVERDUE_S = 0.2\n"
        "worker.build_worker = lambda *_: threading.Event().wait\n"
        "worker.main()"
    )
    with begun(tmp_path, "-c", hanging) as process:
        for _ in range(20):
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert b"in main" in process.stderr.read(), "it says where it hung"

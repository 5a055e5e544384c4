"""When a supervisor gives a worker up, and when it starts it again however often that ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.runtime import supervisor as module
from pipeline.runtime.supervisor import METRICS_PREFIX, Supervisor
from pipeline.runtime.worker_spec import EXIT_USER_ERROR, WorkerSpec
from tests.leaving_worker import STAYS_WHILE
from tests.support.waiting import wait_until
from topics.catalogue import TopicSettings

EXITS = 3


def supervised(tmp_path: Path, file: Path) -> Supervisor:
    spec = WorkerSpec("payments", "n1", 0, "127.0.0.1:1", TopicSettings(), tmp_path)
    return Supervisor(
        [spec],
        environment={STAYS_WHILE: str(file)},
        restart_pause_s_max=0.01,
        module="tests.leaving_worker",
    )


def exits(supervisor: Supervisor) -> list[int]:
    supervisor.tick()
    return supervisor.exits["payments-0"]


@pytest.mark.slow
def test_a_worker_that_never_ran_is_given_up_at_its_second_word(tmp_path: Path) -> None:
    """A wrong address or a missing topic: whoever started it is told, with its sentence."""
    with supervised(tmp_path, tmp_path / "never") as supervisor:
        with pytest.raises(UserError, match="payments-0 cannot run"):
            wait_until(lambda: len(exits(supervisor)) > 2, 60, "two ends")
        assert supervisor.exits["payments-0"] == [EXIT_USER_ERROR] * 2


@pytest.mark.slow
def test_a_worker_that_has_run_is_started_again_for_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brokers that are away for a minute ended a machine's whole supervisor."""
    monkeypatch.setattr(module, "STEADY_S", 0.0)
    stays = tmp_path / "stays"
    stays.touch()
    with supervised(tmp_path, stays) as supervisor:
        wait_until(lambda: supervisor.pids("payments"), 30, "it runs")
        stays.unlink()
        wait_until(lambda: len(exits(supervisor)) == 1, 30, "it has run")
        monkeypatch.setattr(module, "STEADY_S", 3_600.0)
        wait_until(lambda: len(exits(supervisor)) >= EXITS, 60, "it ends again and again")
        assert set(supervisor.exits["payments-0"]) == {EXIT_USER_ERROR}


def test_what_a_killed_supervisor_left_behind_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder of metrics names it; one whose supervisor runs stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f"{METRICS_PREFIX}{ended.pid}-abc"
    running = tmp_path / f"{METRICS_PREFIX}{os.getppid()}-abc"
    for folder in (left, running):
        folder.mkdir()
    with Supervisor([]) as supervisor:
        assert supervisor.metrics_dir.is_dir()
        assert not left.exists()
        assert running.exists()
    assert not supervisor.metrics_dir.exists()

"""A test run ends what it started, and says so when something is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.support import wait_until
from tests.support.leftovers import lives
from tests.support.topics import create_topic, delete_topics
from tests.support.waiting import WAIT_S

pytestmark = pytest.mark.integration

LEAVES_A_PROCESS = """
import subprocess
def test_that_forgets():
    child = subprocess.Popen(["sleep", "61"], start_new_session=True)
    print("LEFT", child.pid)
"""
IS_INTERRUPTED = """
import json, os, signal
from pathlib import Path
def test_interrupted(kafka):
    folder = Path(os.environ["PAYSTREAM_TEST_SERVERS"])
    state = json.loads((folder / "kafka" / "running.json").read_text())
    print("LEFT", state["1"]["pid"], folder, flush=True)
    os.kill(os.getpid(), signal.SIGNAL)
    signal.pause()
"""
SHARES_THE_BROKER = """
import pytest
@pytest.mark.parametrize("n", range(4))
def test_shared(kafka, n, pytestconfig):
    (pytestconfig.rootpath / f"told-{n}").write_text(kafka)
"""


def run_pytest(folder: Path, test: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_one.py").write_text(test)
    (folder / "pytest.ini").write_text("[pytest]\n")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PAYSTREAM_T"))}
    return subprocess.run(
        [
            sys.executable, "-m", "pytest", "-rP", "-s", "-p", "tests.conftest",
            "-p", "no:cacheprovider", *options, "test_one.py",
        ],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    return next(x for x in done.stdout.splitlines() if "LEFT" in x).partition("LEFT")[2].split()


def test_a_process_left_behind_fails_the_run_and_is_ended(tmp_path: Path) -> None:
    """The run's own tests passed, yet it fails, names the process and leaves none."""
    done = run_pytest(tmp_path, LEAVES_A_PROCESS)
    (pid,) = told(done)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert f"{pid}: sleep 61" in done.stdout
    assert not lives(int(pid))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_stops_the_shared_broker(tmp_path: Path, name: str) -> None:
    """Ctrl-C and a runner's time limit leave neither the broker nor the folder of its data."""
    done = run_pytest(tmp_path, IS_INTERRUPTED.replace("SIGNAL", name))
    pid, folder = told(done)
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert not lives(int(pid))
    assert not Path(folder).exists()


def test_the_next_run_sweeps_up_after_one_that_was_killed(tmp_path: Path) -> None:
    """SIGKILL takes the broker with the run; its folder goes with the next run."""
    pid, folder = told(run_pytest(tmp_path, IS_INTERRUPTED.replace("SIGNAL", "SIGKILL")))
    wait_until(lambda: not lives(int(pid)), WAIT_S, "the broker has died with its run")
    assert Path(folder).exists()
    assert run_pytest(tmp_path, "def test(): pass\n").returncode == 0
    assert not Path(folder).exists()


def test_workers_of_xdist_share_one_broker(tmp_path: Path) -> None:
    """Two workers are given the same address, and the broker is gone after the run."""
    done = run_pytest(tmp_path, SHARES_THE_BROKER, "-n", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "outlived" not in done.stdout
    told_by_each = [path.read_text() for path in tmp_path.glob("told-*")]
    assert len(told_by_each) == 4
    assert len(set(told_by_each)) == 1


def test_a_broker_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    """--kafka with a dead address ends before any test, in one sentence."""
    done = run_pytest(tmp_path, SHARES_THE_BROKER, "--kafka=127.0.0.1:1")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no Kafka answers there" in done.stderr
    assert "Traceback" not in done.stderr


def test_docker_without_an_engine_is_a_clear_error(tmp_path: Path) -> None:
    """--kafka=docker where no engine runs ends before any test, in one sentence."""
    os_without = {"DOCKER_HOST": "unix:///nonexistent.sock"}
    (tmp_path / "test_one.py").write_text("def test(): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--kafka=docker", "test_one.py"],
        cwd=tmp_path,
        env={
            # A worker of pytest-xdist leaves the choice of a broker to the process that started it.
            **{k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")},
            **os_without,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no container engine" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_topics_of_a_test_go_and_no_others(kafka: str, topic_prefix: str) -> None:
    """What begins with a test's prefix is deleted, so that the shared broker stays quick."""
    admin = AdminClient({"bootstrap.servers": kafka})

    def left() -> set[str]:
        return {name for name in admin.list_topics(timeout=10).topics if topic_prefix in name}

    for name in ("ended.one", "ended.two", "other.one"):
        create_topic(kafka, f"{topic_prefix}{name}")
    assert len(left()) == 3
    delete_topics(kafka, f"{topic_prefix}ended.")
    wait_until(lambda: left() == {f"{topic_prefix}other.one"}, WAIT_S, "those of the ended test go")

"""The servers of one test run: one of each for all workers, in one folder, ended with the run."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.embedded.kafka import start_kafka, stop_kafka
from pipeline.embedded.kafka_config import MESSAGE_BYTES_MAX, SHORT_LIVED
from pipeline.embedded.postgres import stop_postgres
from pipeline.embedded.processes import ProcessIdentity, is_alive, this_process
from pipeline.embedded.registry import stop_registry

PREFIX = "paystream-test-"
OWNER = "owner.json"
FOLDER = "PAYSTREAM_TEST_SERVERS"
ADDRESS = "PAYSTREAM_TEST_KAFKA"

# A file system in memory, where a commit to disk costs nothing: a disk may take 50 ms for it, and
# the tests make thousands of databases.
MEMORY = Path("/dev/shm")
# Several times what a whole run leaves there at its height.
MEMORY_BYTES_MIN = 2 * 1024**3


def is_worker() -> bool:
    """Whether this is a worker of pytest-xdist; the process that started it owns the servers."""
    return "PYTEST_XDIST_WORKER" in os.environ


class Servers:
    """Kept by the process that owns the run; workers find its folder in their environment."""

    def __init__(self) -> None:
        _sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_temporary()))
        (self.folder / OWNER).write_text(json.dumps(asdict(this_process())))
        self._stop_container: Callable[[], None] | None = None
        passable(self.folder)
        os.environ[FOLDER] = str(self.folder)

    def use_kafka(self, choice: str) -> None:
        """Take ``embedded`` (started when first asked for), ``docker`` or ``HOST:PORT``."""
        if choice == "embedded":
            os.environ.pop(ADDRESS, None)
        elif choice == "docker":
            os.environ[ADDRESS], self._stop_container = _start_container()
        else:
            os.environ[ADDRESS] = _checked_address(choice)

    def stop(self) -> None:
        if self._stop_container is not None:
            self._stop_container()
        _stop_servers(self.folder)


def _temporary() -> Path:
    """Where a run's folder is made: in memory if it fits there, or where ``TMPDIR`` says."""
    chosen = Path(tempfile.gettempdir())
    if "TMPDIR" in os.environ or not (MEMORY.is_dir() and os.access(MEMORY, os.W_OK | os.X_OK)):
        return chosen
    found = os.statvfs(MEMORY)
    # Some tests run what they have made; many containers forbid that there, and have 64 MB.
    runs = not found.f_flag & os.ST_NOEXEC
    return MEMORY if runs and found.f_bavail * found.f_frsize >= MEMORY_BYTES_MIN else chosen


def _sweep() -> None:
    """End what runs left behind that were killed: their folder names an owner that is no more."""
    for folder in (
        folder
        for place in {Path(tempfile.gettempdir()), MEMORY}
        for folder in place.glob(f"{PREFIX}*")
    ):
        try:
            owner = ProcessIdentity(**json.loads((folder / OWNER).read_text()))
        except (OSError, ValueError, TypeError):
            # Somebody else's, or one that is being made at this moment.
            continue
        if not is_alive(owner):
            _stop_servers(folder)


def _stop_servers(folder: Path) -> None:
    stop_kafka(folder / "kafka")
    stop_postgres(folder / "postgres")
    stop_registry(folder / "registry")
    shutil.rmtree(folder, ignore_errors=True)


def passable(folder: Path) -> Path:
    """Let PostgreSQL's user through a test's private folders: the server refuses to be root.

    Up to the system's own temporary folder, since ``TMPDIR`` may itself be a private one in it.
    """
    shared = {Path("/tmp"), Path("/var/tmp"), MEMORY}
    temporary = Path(tempfile.gettempdir())
    if not shared & set(temporary.parents):
        shared.add(temporary)
    for path in (folder, *folder.parents):
        if path in shared or not shared & set(path.parents):
            break
        path.chmod(path.stat().st_mode | 0o011)
    return folder


def kafka_of_this_run() -> str:
    """Bootstrap servers of the broker that all tests of this run share."""
    address = os.environ.get(ADDRESS)
    if address is not None:
        return address
    # A broker that dies with its starter would be taken from the other workers when one crashes.
    handle = start_kafka(
        Path(os.environ[FOLDER]) / "kafka",
        # It holds the topics of every test of a run, thousands of partitions in the end. With the
        # usual heap it spent its time collecting garbage then, and questions timed out.
        heap_mb=2_048,
        # A broker that a busy machine keeps waiting for 9 s is taken for dead by its controller,
        # which is itself: every group then looks for its coordinator, and there is no other.
        extra_config={"broker.session.timeout.ms": "60000"},
        die_with_parent=not is_worker(),
        jvm_flags=SHORT_LIVED,
        on_progress=_say,
    )
    return handle.bootstrap_servers


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _checked_address(address: str) -> str:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    try:
        AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=5)
    except KafkaException as error:
        raise pytest.UsageError(
            f"--kafka={address}: no Kafka answers there within 5 s ({error.args[0].str()}). "
            "Start it, or leave the option out: the tests then start a broker themselves."
        ) from None
    return address


def _start_container() -> tuple[str, Callable[[], None]]:
    try:
        from testcontainers.community.kafka import KafkaContainer

        container = KafkaContainer().with_kraft()
        # As on the embedded broker, where its image's own defaults differ.
        for name, value in {
            "TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
            "TRANSACTION_STATE_LOG_MIN_ISR": "1",
            "TRANSACTION_ABORT_TIMED_OUT_TRANSACTION_CLEANUP_INTERVAL_MS": "1000",
            "AUTO_CREATE_TOPICS_ENABLE": "false",
            "MESSAGE_MAX_BYTES": str(MESSAGE_BYTES_MAX),
            "REPLICA_FETCH_MAX_BYTES": str(MESSAGE_BYTES_MAX),
        }.items():
            container.with_env(f"KAFKA_{name}", value)
        container.start()
        return container.get_bootstrap_server(), container.stop
    except Exception as error:  # docker, its socket, the registry and the image all fail their way
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise pytest.UsageError(
            f"--kafka=docker: no container engine gave a broker ({first[:200]}). Start one, or "
            "leave the option out: the tests then start a broker themselves."
        ) from None

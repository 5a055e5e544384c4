"""Runs the worker processes of this machine, restarts a dead one, and serves their metrics.

Workers are started as processes of their own (never forked from one that holds a Kafka client).
The supervisor makes no decision about work: the consumer groups spread it, and what a dead worker
left is taken over by its successor under the same transactional id.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

from pipeline.errors import UserError
from pipeline.runtime.worker_spec import (
    EXIT_USER_ERROR,
    LAST_ERROR,
    SUPERVISOR_PID,
    WORKER_MODULE,
    WorkerSpec,
    encode_spec,
)

_log = logging.getLogger(__name__)

# A worker that dies again at once is started after twice the pause, up to this.
RESTART_PAUSE_S_MIN = 0.2
RESTART_PAUSE_S_MAX = 10.0
# A worker that has run for this long has recovered: the next death starts at the short pause.
STEADY_S = 30.0
# A worker drains in at most 30 s and may be within a transaction of 10 s when it is asked to.
STOP_TIMEOUT_S = 45.0
# Names the folders of metrics in the system's temporary folder; the supervisor's pid follows.
METRICS_PREFIX = "paystream-metrics-"
# For a worker that hangs to write where it stands.
STACKS_S = 1.0


@dataclass
class _Slot:
    spec: WorkerSpec
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    pause_s: float = RESTART_PAUSE_S_MIN
    restart_at_s: float = 0.0
    restarts: int = 0
    user_errors: int = 0
    has_run: bool = False
    exits: list[int] = field(default_factory=list)


class Supervisor:
    """Start it, call ``tick`` a few times a second from the thread that started it, stop it.

    The thread matters: workers ask the kernel to be told when the thread that started them ends.
    ``environment`` is added to the workers' own; ``module`` is what a worker runs as.
    """

    def __init__(
        self,
        specs: Iterable[WorkerSpec],
        *,
        metrics_dir: Path | None = None,
        environment: Mapping[str, str] | None = None,
        restart_pause_s_max: float = RESTART_PAUSE_S_MAX,
        module: str = WORKER_MODULE,
    ) -> None:
        self._environment = dict(environment or {})
        self._restart_pause_s_max = restart_pause_s_max
        self._module = module
        self._slots = [_Slot(spec) for spec in specs]
        self._own_dir = metrics_dir is None
        self.metrics_dir = metrics_dir or _own_metrics_dir()
        self.stopping = False

    def start(self) -> None:
        for slot in self._slots:
            self._start(slot)

    def tick(self) -> None:
        """Restart what has died. UserError when a worker says twice, and has never run, that
        something is wrong outside: starting it again would not help. One that has run was set up
        well; whatever is wrong since then may pass, as a broker that is away does."""
        now_s = time.monotonic()
        for slot in self._slots:
            process = slot.process
            if process is not None:
                code = process.poll()
                if code is None:
                    continue
                self._ended(slot, code, now_s)
            elif now_s >= slot.restart_at_s and not self.stopping:
                slot.restarts += 1
                self._start(slot)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Ask every worker to drain and wait; True when all drained in time."""
        self.stopping = True
        running = [slot.process for slot in self._slots if slot.process is not None]
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        clean = True
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                clean = False
                _log.error("worker %d did not drain within %.0f s: killed", process.pid, timeout_s)
                # It writes into its log where each of its threads stands.
                process.send_signal(signal.SIGUSR1)
                time.sleep(STACKS_S)
                process.kill()
                process.wait()
        if self._own_dir:
            shutil.rmtree(self.metrics_dir, ignore_errors=True)
        return clean

    def pids(self, stage: str | None = None) -> list[int]:
        """The process ids of running workers, of one stage or of all."""
        return [
            slot.process.pid
            for slot in self._slots
            if slot.process is not None
            and slot.process.poll() is None
            and (stage is None or slot.spec.stage == stage)
        ]

    @property
    def restarts(self) -> dict[str, int]:
        return {slot.spec.name: slot.restarts for slot in self._slots}

    @property
    def exits(self) -> dict[str, list[int]]:
        """The exit codes seen of each worker; negative for a signal."""
        return {slot.spec.name: list(slot.exits) for slot in self._slots}

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self, slot: _Slot) -> None:
        with _output(slot.spec) as output:
            process = subprocess.Popen(
                # Its name is for whoever looks at the processes; it is told by its standard input.
                [sys.executable, "-m", self._module, slot.spec.slot_dir.name],
                stdin=subprocess.PIPE,
                stderr=output,
                env={
                    **os.environ,
                    **self._environment,
                    SUPERVISOR_PID: str(os.getpid()),
                    "PROMETHEUS_MULTIPROC_DIR": str(self.metrics_dir),
                },
                # Out of the terminal's reach: a Ctrl-C that met a worker before it could ignore it
                # would end it with a traceback.
                process_group=0,
            )
        if process.stdin is not None:
            process.stdin.write(encode_spec(slot.spec))
            process.stdin.close()
        slot.process = process
        slot.started_s = time.monotonic()
        _log.info("%s runs as process %d", slot.spec.name, process.pid)

    def _ended(self, slot: _Slot, code: int, now_s: float) -> None:
        from prometheus_client import multiprocess

        process, slot.process = slot.process, None
        if process is not None:
            multiprocess.mark_process_dead(process.pid, path=str(self.metrics_dir))  # type: ignore[no-untyped-call]
        if self.stopping:
            return
        slot.exits.append(code)
        if now_s - slot.started_s > STEADY_S:
            slot.pause_s, slot.has_run = RESTART_PAUSE_S_MIN, True
        if code == EXIT_USER_ERROR and not slot.has_run:
            slot.user_errors += 1
            if slot.user_errors > 1:
                note = slot.spec.slot_dir / LAST_ERROR
                why = note.read_text() if note.is_file() else "see its log"
                raise UserError(f"{slot.spec.name} cannot run: {why}")
        slot.restart_at_s = now_s + slot.pause_s
        _log.warning(
            "%s ended with code %d; started again in %.1f s", slot.spec.name, code, slot.pause_s
        )
        slot.pause_s = min(self._restart_pause_s_max, slot.pause_s * 2)


def _own_metrics_dir() -> Path:
    """A new folder for the workers' metrics. Those of supervisors that were killed are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{METRICS_PREFIX}*"):
        pid = left.name.removeprefix(METRICS_PREFIX).partition("-")[0]
        if pid.isdecimal() and not _runs(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{METRICS_PREFIX}{os.getpid()}-"))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def _output(spec: WorkerSpec) -> Iterator[IO[bytes] | None]:
    """Where a worker's standard error goes: into its log, if it has a file for that.

    The Kafka client writes there by itself, a line for each failed connection, which would bury
    what a terminal shows.
    """
    log_file = spec.options.get("log_file")
    if log_file is None:
        yield None
        return
    with Path(log_file).open("ab") as file:
        yield file

"""One node: a machine's worth of workers under a supervisor, as ``paystream run`` has them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.config import Settings
from pipeline.errors import UserError
from pipeline.local import worker_specs
from pipeline.runtime.supervisor import Supervisor
from pipeline.runtime.worker_spec import WORKER_MODULE

# A node that gave up is started again by whoever runs it, as a service manager would.
GAVE_UP_PAUSE_S = 3.0
OLDER_MODULE = "pipeline.chaos.flow.older_worker"


class Node:
    """Started, ticked and stopped by the thread that made it; ``drain`` may be waited for by
    another one.

    ``state_dir`` is the node's own, like its id: for a twin the id is another node's.
    ``older``: whoever starts from now on is of the version before the upgrade.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        folder: Path,
        workers: Mapping[str, int],
        *,
        node_id: str = "",
        older: bool = False,
    ) -> None:
        self.name = name
        self.older = older
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.log_file = folder / "workers.log"
        self._specs = worker_specs(
            settings.model_copy(update={"state_dir": folder / "state"}),
            workers,
            node_id=node_id or name,
            log_file=self.log_file,
        )
        self._supervisor: Supervisor | None = None
        self._frozen: set[int] = set()
        self._again_s = 0.0
        self._old_exits: Counter[tuple[str, int]] = Counter()
        self.gave_up: list[str] = []

    @property
    def is_up(self) -> bool:
        return self._supervisor is not None

    def start(self) -> None:
        if self._supervisor is None:
            metrics = self.folder / "metrics"
            metrics.mkdir(exist_ok=True)
            for left in metrics.iterdir():
                left.unlink()
            self._supervisor = Supervisor(
                self._specs,
                metrics_dir=metrics,
                restart_pause_s_max=1.0,
                module=OLDER_MODULE if self.older else WORKER_MODULE,
            )
            self._supervisor.start()

    def tick(self) -> None:
        """Keep the workers alive; a supervisor that gives up is remembered and started again."""
        if self._supervisor is None:
            if self._again_s and time.monotonic() >= self._again_s:
                self._again_s = 0.0
                self.start()
            return
        try:
            self._supervisor.tick()
        except UserError as error:
            self.gave_up.append(str(error))
            self.leave(timeout_s=10.0)()
            self._again_s = time.monotonic() + GAVE_UP_PAUSE_S

    def leave(self, timeout_s: float = 45.0) -> Callable[[], bool]:
        """From now on the node is gone; the answer waits until its workers have drained."""
        supervisor, self._supervisor = self._supervisor, None
        self._again_s = 0.0
        self.wake()
        if supervisor is None:
            return lambda: True
        supervisor.stopping = True

        def drained() -> bool:
            clean = supervisor.stop(timeout_s)
            for name, codes in supervisor.exits.items():
                self._old_exits.update((name, code) for code in codes)
            return clean

        return drained

    def pids(self, stage: str) -> list[int]:
        """Workers of a stage that run and are not frozen."""
        if self._supervisor is None:
            return []
        return [pid for pid in self._supervisor.pids(stage) if pid not in self._frozen]

    def freeze(self, pid: int) -> None:
        self._frozen.add(pid)
        send(pid, signal.SIGSTOP)

    def wake(self, pid: int | None = None) -> None:
        """One that was frozen, or all."""
        for each in [p for p in self._frozen if pid in (None, p)]:
            self._frozen.discard(each)
            send(each, signal.SIGCONT)

    def log_size(self) -> int:
        return self.log_file.stat().st_size if self.log_file.exists() else 0

    def log_since(self, size: int) -> str:
        """What its workers have written since their log had that size."""
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as file:
            file.seek(size)
            return file.read().decode("utf-8", "replace")

    @property
    def exits(self) -> Counter[tuple[str, int]]:
        """How often each worker ended with which code; negative for a signal."""
        found = Counter(self._old_exits)
        if self._supervisor is not None:
            for name, codes in self._supervisor.exits.items():
                found.update((name, code) for code in codes)
        return found


def send(pid: int, number: int) -> None:
    """A signal to a child of this process, which keeps its pid until it is waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

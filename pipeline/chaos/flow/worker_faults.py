"""Faults of single workers: killed, frozen, doubled, without disk."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
from concurrent.futures import Future

from pipeline.chaos.flow.fault import Fault
from pipeline.chaos.flow.node import Node, send

# A few lines more of its log than it has, for its last words; less than the cache writes at once.
ROOM_BYTES = 32 * 1024
# Of a worker that ended with a traceback.
UNEXPECTED = 1
# A cache that could not be written may end its worker only when it is next asked to.
AFTERMATH_S = 15.0
# A worker that has little to keep may write its cache's file only so much later.
WRITE_LATE_S_MAX = 25.0
REFUSED = "File too large"


class WorkerFault(Fault):
    """Of one worker of one stage."""

    stage = ""

    def pick(self) -> tuple[Node, int] | None:
        """A worker of the stage that runs, drawn among the nodes."""
        found = self.cluster.workers(self.stage)
        return found[self.drawn.pick % len(found)] if found else None

    def may_begin(self) -> bool:
        return self.pick() is not None

    def picked(self) -> tuple[Node, int]:
        found = self.pick()
        assert found is not None, "may_begin was asked in the same turn"
        return found


class KillWorker(WorkerFault):
    """SIGKILL: its supervisor starts it again under the same transactional id."""

    def begin(self) -> str:
        node, pid = self.picked()
        send(pid, signal.SIGKILL)
        return f"{node.name} {self.stage} (process {pid})"

    def end(self) -> None:
        pass


class FreezeWorker(WorkerFault):
    """SIGSTOP for a while: what a long pause of a virtual machine looks like."""

    def begin(self) -> str:
        self.node, self.pid = self.picked()
        self.node.freeze(self.pid)
        return f"{self.node.name} {self.stage} (process {self.pid})"

    def end(self) -> None:
        self.node.wake(self.pid)


class Twin(WorkerFault):
    """A second worker of the same identity, as after a node that only seemed to be gone.

    It has a disk of its own. Each fences the other's producer and member, and is started again.
    """

    def begin(self) -> str:
        node, _ = self.picked()
        self.name = f"twin-{self.drawn.number}"
        twin = self.cluster.new_node(self.name, {self.stage: 1}, node_id=node.name)
        self.cluster.nodes[self.name] = twin
        twin.start()
        self._left: Future[bool] | None = None
        return f"{node.name} {self.stage}"

    def end(self) -> None:
        node = self.cluster.nodes[self.name]
        self.cluster.later(node.leave(timeout_s=30.0))
        self.cluster.forget(self.name)


class FullDisk(WorkerFault):
    """No file of the worker may grow (EFBIG instead of ENOSPC): its cache, its log, its notes.

    A small file system of its own would need the right to mount one. The limit is a process's, so
    whatever comes after it gets the same until the fault ends. It lasts until something was
    refused, and was no fault if nothing was.
    """

    def begin(self) -> str:
        self.node, pid = self.picked()
        self._log_size = self.node.log_size()
        self._room = ROOM_BYTES + self._log_size
        self._limited: set[int] = set()
        self._refused = False
        self._limit(pid)
        self._ended_before = self.node.exits[self._end]
        return f"{self.node.name} {self.stage} (process {pid})"

    def is_over(self) -> bool:
        for pid in self.node.pids(self.stage):
            self._limit(pid)
        if not super().is_over():
            return False
        self._refused = self._refused or REFUSED in self.node.log_since(self._log_size)
        return self._refused or self.elapsed_s >= self.drawn.duration_s + WRITE_LATE_S_MAX

    @property
    def came_to_nothing(self) -> str:
        return "" if self._refused else "nothing was written meanwhile"

    def end(self) -> None:
        for pid in self._limited:
            _limit_files(pid, resource.RLIM_INFINITY)
        self.cluster.later(self._excuse)

    @property
    def _end(self) -> tuple[str, int]:
        return f"{self.stage}-0", UNEXPECTED

    def _excuse(self) -> None:
        time.sleep(AFTERMATH_S)
        ended = self.node.exits[self._end] - self._ended_before
        worker, code = self._end
        self.cluster.excused[f"{self.node.name} {worker}: {code}"] += ended

    def _limit(self, pid: int) -> None:
        if pid not in self._limited:
            self._limited.add(pid)
            _limit_files(pid, self._room)


def _limit_files(pid: int, size: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

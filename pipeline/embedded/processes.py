"""Server processes that outlive a call: started apart, found again, stopped by a proven pid."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.02


@dataclass(frozen=True)
class ProcessIdentity:
    """A pid with the moment its process began, so that a recycled pid is never taken for it."""

    pid: int
    started: str


def start_detached(
    command: Sequence[str | Path],
    *,
    output: Path,
    die_with_parent: bool = False,
    run_as: tuple[int, int] | None = None,
    cwd: Path | None = None,
) -> ProcessIdentity:
    """Start a server in a session of its own, so that Ctrl-C at the terminal does not reach it.

    Output is appended to a file. ``run_as`` is a user and a group id, for root only.
    ``die_with_parent`` (Linux; elsewhere without effect): the kernel kills the server when this
    process ends in whatever way, SIGKILL included. The kernel watches the *thread* that made the
    child, so it is made by a thread that never ends.
    """
    line = [str(part) for part in command]
    if die_with_parent and sys.platform == "linux":
        uid, gid = run_as or (os.getuid(), os.getgid())
        line = [
            sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT,
            str(os.getpid()), str(uid), str(gid), *line,
        ]  # fmt: skip
        child = _spawner().start(_Launch(line, output, None, cwd))
    else:
        child = _popen(_Launch(line, output, run_as, cwd))
    _children[child.pid] = child
    started = _started(child.pid)
    # Gone within a moment: a value no process has, so that is_alive says no.
    return ProcessIdentity(child.pid, started if started is not None else "ended")


def this_process() -> ProcessIdentity:
    """The identity of the caller, for others to tell later whether it still runs."""
    return ProcessIdentity(os.getpid(), _started(os.getpid()) or "unknown")


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether that very process still runs (a zombie does not)."""
    child = _children.get(identity.pid)
    if child is not None and child.poll() is not None:
        del _children[identity.pid]
    return _started(identity.pid) == identity.started


def send(identity: ProcessIdentity, signal_number: int) -> bool:
    """Signal that very process; False when it is gone already."""
    if not is_alive(identity):
        return False
    try:
        os.kill(identity.pid, signal_number)
    except ProcessLookupError:
        return False
    return True


def wait_ended(identity: ProcessIdentity, timeout_s: float) -> bool:
    """Whether it ended within that time."""
    deadline = time.monotonic() + timeout_s
    while is_alive(identity):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def stop(
    identities: Sequence[ProcessIdentity], timeout_s: float, gently: int = signal.SIGTERM
) -> None:
    """Ask all to end, wait, and kill what is left. A paused process is woken to hear it."""
    deadline = time.monotonic() + timeout_s
    for identity in identities:
        if send(identity, gently):
            send(identity, signal.SIGCONT)
    for identity in identities:
        if not wait_ended(identity, max(0.0, deadline - time.monotonic())):
            send(identity, signal.SIGKILL)
            # Only a process stuck in the kernel (a dead disk) survives this; do not wait for it.
            wait_ended(identity, 5.0)


def last_lines(paths: Sequence[Path], count: int = 10) -> str:
    """The end of each of these logs that has anything, for an error message."""
    shown: list[str] = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue
        # Java's stack frames would push the sentence that says what is wrong out of sight.
        lines = [line for line in text.splitlines() if line and not line.startswith("\tat ")]
        if lines:
            shown += ["", f"Last lines of {path}:", *(f"  {line}" for line in lines[-count:])]
    return "\n".join(shown)


# Run by a fresh interpreter between fork and exec: the same in subprocess's preexec_fn could
# deadlock, because the parent has other threads. 1 is PR_SET_PDEATHSIG, which a change of user
# clears, so it comes after it. The parent may have gone before the call, hence the check.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
parent, uid, gid = map(int, sys.argv[1:4])
if uid != os.getuid():
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
libc.prctl(1, int(signal.SIGKILL), 0, 0, 0)
if os.getppid() == parent:
    os.execvp(sys.argv[4], sys.argv[4:])
"""

# Children of this process, kept so that they are reaped: a zombie still has its pid.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class _Launch:
    line: Sequence[str]
    output: Path
    run_as: tuple[int, int] | None
    cwd: Path | None


def _popen(launch: _Launch) -> subprocess.Popen[bytes]:
    uid, gid = launch.run_as or (None, None)
    with launch.output.open("ab") as file:
        return subprocess.Popen(
            launch.line,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            user=uid,
            group=gid,
            extra_groups=None if uid is None else (),
            cwd=launch.cwd,
            start_new_session=True,
        )


class _Spawner:
    """Makes children from one daemon thread, which ends only when the whole process does."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[_Launch] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[subprocess.Popen[bytes] | BaseException] = queue.SimpleQueue()
        self._turn = threading.Lock()
        threading.Thread(target=self._run, name="embedded-spawner", daemon=True).start()

    def start(self, launch: _Launch) -> subprocess.Popen[bytes]:
        with self._turn:
            self._asked.put(launch)
            made = self._made.get()
        if isinstance(made, BaseException):
            raise made
        return made

    def _run(self) -> None:
        while True:
            launch = self._asked.get()
            try:
                self._made.put(_popen(launch))
            except BaseException as error:  # handed to the caller's thread, nothing is hidden
                self._made.put(error)


_spawner_made: tuple[int, _Spawner] | None = None
_spawner_lock = threading.Lock()


def _spawner() -> _Spawner:
    global _spawner_made
    with _spawner_lock:
        # A forked child has no copy of the thread, so it makes its own.
        if _spawner_made is None or _spawner_made[0] != os.getpid():
            _spawner_made = (os.getpid(), _Spawner())
        return _spawner_made[1]


def _started(pid: int) -> str | None:
    """When the process began, unlike for any other process of that pid; None when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _started_without_proc(pid)
    # A killed process of many threads shows as a zombie while the last of them still hold its
    # ports and files; it has ended when only the zombie is left.
    if fields[0] in "ZX" and int(fields[17]) <= 1:
        return None
    # Field 22 counts clock ticks since the machine came up, so it needs the boot's own id.
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{boot}:{fields[19]}"


def _started_without_proc(pid: int) -> str | None:
    done = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = done.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()

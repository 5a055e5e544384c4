"""Finding a server again by its pid, and ending it however it behaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.embedded import processes
from pipeline.embedded.ports import free_ports, is_free, is_listening
from pipeline.embedded.processes import ProcessIdentity
from tests.support import wait_until
from tests.support.leftovers import lives
from tests.support.waiting import WAIT_S

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
DEAF = [
    sys.executable, "-I", "-S", "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    " print('deaf', flush=True); time.sleep(60)",
]  # fmt: skip
MANY_THREADS_LISTEN = """
import socket, sys, threading, time
threading.stack_size(65536)
ballast = bytearray(100_000_000)
for _ in range(50):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen()
time.sleep(60)
"""
STARTS_ONE_AND_ENDS = """
import sys, threading
from pathlib import Path
from pipeline.embedded.processes import start_detached
made = []
def start():
    made.append(start_detached(
        ["sleep", "600"], output=Path(sys.argv[1]), die_with_parent=sys.argv[2] == "yes"))
# From a thread that ends at once: the child is not to end with it.
thread = threading.Thread(target=start); thread.start(); thread.join()
print(made[0].pid, flush=True)
sys.stdin.read()
"""


def test_a_recycled_pid_is_not_taken_for_the_server(tmp_path: Path) -> None:
    """The same pid with another start time is somebody else: neither alive nor signalled."""
    identity = processes.start_detached(SLEEP, output=tmp_path / "log")
    try:
        stranger = replace(identity, started="another boot:1")
        assert processes.is_alive(identity)
        assert not processes.is_alive(stranger)
        assert not processes.send(stranger, signal.SIGKILL)
        processes.stop([stranger], 1.0)
        assert processes.is_alive(identity)
    finally:
        processes.stop([identity], 5.0)
    assert not processes.is_alive(identity)


def test_no_process_is_no_server() -> None:
    """A pid that no process has is not alive."""
    assert not processes.is_alive(ProcessIdentity(2**22 + 1, "x"))


def test_a_server_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    """Stopping ends within its time although SIGTERM is ignored."""
    identity = processes.start_detached(DEAF, output=tmp_path / "log")
    wait_until(lambda: (tmp_path / "log").read_text(), WAIT_S, "the signal is ignored")
    processes.stop([identity], 0.1)
    assert not processes.is_alive(identity)


def test_a_paused_server_can_be_stopped(tmp_path: Path) -> None:
    """A server under SIGSTOP is woken to hear SIGTERM, so it need not be killed."""
    identity = processes.start_detached(SLEEP, output=tmp_path / "log")
    processes.send(identity, signal.SIGSTOP)
    processes.stop([identity], 10.0)
    assert not processes.is_alive(identity)


def test_a_server_stands_in_a_session_of_its_own(tmp_path: Path) -> None:
    """Ctrl-C at the terminal reaches the parent's group only."""
    identity = processes.start_detached(SLEEP, output=tmp_path / "log")
    try:
        assert os.getpgid(identity.pid) != os.getpgid(0)
    finally:
        processes.stop([identity], 5.0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
@pytest.mark.parametrize("bound", ["yes", "no"])
def test_a_bound_server_dies_with_its_parent_and_no_sooner(tmp_path: Path, bound: str) -> None:
    """It outlives the thread that started it, and not a parent that was killed; unbound it does."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_ONE_AND_ENDS, str(tmp_path / "log"), bound],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        stat = Path(f"/proc/{pid}/cmdline")
        wait_until(lambda: stat.read_text().startswith("sleep"), WAIT_S, "the server runs")
        parent.kill()
    try:
        if bound == "yes":
            wait_until(lambda: not lives(pid), WAIT_S, "the server has died with its parent")
        else:
            assert lives(pid)
    finally:
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_killed_server_has_ended_only_when_its_port_is_free(tmp_path: Path) -> None:
    """Waiting for the end of a process of many threads waits for what the last of them holds."""
    (port,) = free_ports(1)
    line = [sys.executable, "-I", "-c", MANY_THREADS_LISTEN, str(port)]
    for _ in range(3):
        identity = processes.start_detached(line, output=tmp_path / "log")
        wait_until(lambda: is_listening(port), WAIT_S, "the server listens")
        processes.send(identity, signal.SIGKILL)
        assert processes.wait_ended(identity, 10.0)
        assert is_free(port)

"""Start and stop the simulator as a process of its own, without the server's own libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError
from pipeline.gateways.simulator.faults import FaultPlan
from pipeline.loopback import open_url

HOST = "127.0.0.1"
DEFAULT_GATEWAY = "simulator"
# The secrets of the notices, separated by spaces.
SECRETS_VARIABLE = "SIMULATOR_NOTICE_SECRETS"
# Python and its imports take about 0.5 s; a busy two-core machine ten times that.
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class SimulatorHandle:
    """A running simulator. ``admin_url`` serves the same routes and stays up during an outage."""

    url: str
    admin_url: str
    port: int
    pid: int
    books: Path
    process: subprocess.Popen[bytes] = field(repr=False)
    gateway: str = DEFAULT_GATEWAY


def start_simulator(
    books: Path,
    *,
    faults: FaultPlan | str = "default",
    seed: int = 7,
    port: int = 0,
    gateway: str = DEFAULT_GATEWAY,
    key_retention_ms: int | None = None,
    authorization_ms: int | None = None,
    notice_url: str | None = None,
    notice_secrets: Sequence[str] = (),
    die_with_parent: bool = True,
) -> SimulatorHandle:
    """Start a simulated gateway on its books and wait until it answers.

    ``gateway`` is its personality, one of ``PERSONALITIES``.
    ``faults`` is a plan, ``"default"``, ``"none"`` or the path of a JSON file. What the process
    prints goes to ``<books>.log``. Raises UserError if it does not come up.
    """
    books = books.resolve()
    ready_file = books.with_name(f"{books.name}.ready")
    plan_file = books.with_name(f"{books.name}.faults.json")
    log_file = books.with_name(f"{books.name}.log")
    try:
        books.parent.mkdir(parents=True, exist_ok=True)
        ready_file.unlink(missing_ok=True)
        if isinstance(faults, FaultPlan):
            plan_file.write_bytes(faults.to_json())
        command = [
            *(sys.executable, "-m", "pipeline.gateways.simulator", "--books", str(books)),
            *("--port", str(port), "--seed", str(seed), "--ready-file", str(ready_file)),
            *("--faults", str(plan_file) if isinstance(faults, FaultPlan) else faults),
            *("--gateway", gateway),
            *_option("--key-retention-ms", key_retention_ms),
            *_option("--authorization-ms", authorization_ms),
            *_option("--notice-url", notice_url),
            *(("--parent-pid", str(os.getpid())) if die_with_parent else ()),
        ]
        # By the environment: a command line can be read by everybody on the machine.
        environment = {**os.environ, SECRETS_VARIABLE: " ".join(notice_secrets)}
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
    except OSError as error:
        raise UserError(f"The simulator cannot be started on {books} ({error}).") from error
    try:
        return _await_ready(process, books, ready_file, log_file, gateway)
    except BaseException:
        process.kill()
        process.wait()
        raise


def stop_simulator(handle: SimulatorHandle) -> None:
    """Ask the simulator to drain and end; after ``STOP_TIMEOUT_S`` it is killed. Safe to repeat."""
    if handle.process.poll() is None:
        handle.process.terminate()
    try:
        handle.process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        kill_simulator(handle)


def kill_simulator(handle: SimulatorHandle) -> None:
    """End the simulator as a crash would (SIGKILL); its books stay good."""
    handle.process.kill()
    handle.process.wait()


def _await_ready(
    process: subprocess.Popen[bytes], books: Path, ready_file: Path, log_file: Path, gateway: str
) -> SimulatorHandle:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = log_file.read_text(errors="replace").strip().splitlines()
            last = said[-1] if said else "it printed nothing"
            raise UserError(f"The gateway simulator ended at once: {last} (see {log_file}).")
        if ready_file.exists():
            port = int(ready_file.read_text())
            url = f"http://{HOST}:{port}"
            with open_url(f"{url}/healthz", timeout=START_TIMEOUT_S) as answer:
                admin_port = int(json.load(answer)["admin_port"])
            return SimulatorHandle(
                url, f"http://{HOST}:{admin_port}", port, process.pid, books, process, gateway
            )
        time.sleep(0.01)
    raise UserError(
        f"The gateway simulator was not ready after {START_TIMEOUT_S:.0f} s; see {log_file}."
    )


def _option(name: str, value: object) -> tuple[str, ...]:
    return () if value is None else (name, str(value))

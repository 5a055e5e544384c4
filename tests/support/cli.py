"""The ``paystream`` command as a person has it: a process with a home of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.embedded.cache import cache_dir
from pipeline.embedded.kafka_config import SHORT_LIVED
from tests.support.leftovers import MARK
from tests.support.servers import passable
from tests.support.waiting import wait_until

# A start of Kafka is 5 s on an idle machine; the tests of other people may keep this one busy.
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str
    seconds: float


@dataclass
class Cli:
    """Commands that share a home, a temporary folder and nothing else with this machine."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home = self.folder / "home"
        self.temporary = self.folder / "tmp"
        self.cwd = self.folder / "cwd"
        for path in (self.home, self.temporary, self.cwd):
            path.mkdir(parents=True, exist_ok=True)
        passable(self.folder)

    @property
    def state_dir(self) -> Path:
        """Where this home's flow is kept by default."""
        return self.home / ".local" / "state" / "paystream"

    def run(self, *words: str, environment: Mapping[str, str] | None = None) -> Done:
        """One command to its end, as in a terminal beside the others."""
        began_s = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *words],
            env=self._env(environment),
            cwd=self.cwd,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
        )
        return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - began_s)

    def start(self, *words: str, environment: Mapping[str, str] | None = None) -> Terminal:
        """A command that stays, in a process group of its own as a shell makes it."""
        return self._start(["-m", "pipeline", *words], environment)

    def start_program(self, text: str) -> Terminal:
        """A Python program of somebody who uses the flow."""
        return self._start(["-c", text], None)

    def _start(self, words: list[str], environment: Mapping[str, str] | None) -> Terminal:
        return Terminal(
            subprocess.Popen(
                [sys.executable, "-u", *words],
                env=self._env(environment),
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            ),
            self,
        )

    def processes(self) -> dict[int, str]:
        """Everything that runs with this home, whoever its parent is now (Linux)."""
        wanted = f"HOME={self.home}".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if command:
                        found[int(folder.name)] = command[:200]
            except OSError:
                continue
        return found

    def wait_until_nothing_runs(self, timeout_s: float) -> None:
        wait_until(lambda: not self.processes(), timeout_s, f"all ended: {self.processes()}")

    def temporary_files(self) -> list[str]:
        return sorted(str(p.relative_to(self.temporary)) for p in self.temporary.rglob("*"))

    def _env(self, more: Mapping[str, str] | None) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", MARK) if name in os.environ}
        return {
            **kept,
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            # Brokers of tests live for seconds: what compiling costs is not earned back.
            "JAVA_TOOL_OPTIONS": " ".join(SHORT_LIVED),
            # The jars of this machine: the tests are not about the download.
            "PAYSTREAM_CACHE_DIR": str(cache_dir()),
            **self.environment,
            **(more or {}),
        }


class Terminal:
    """A command that runs, with what it has said so far. Leaving the ``with`` kills its rest."""

    def __init__(self, process: subprocess.Popen[str], cli: Cli) -> None:
        self.process = process
        self._cli = cli
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def said(self) -> str:
        return "".join(self._lines)

    def wait_for(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        wait_until(
            lambda: text in self.said or self.process.poll() is not None, timeout_s, f"says {text}"
        )
        assert text in self.said, f"ended with {self.process.returncode}:\n{self.said}"

    def value(self, label: str) -> str:
        """What stands behind a label at the beginning of a line."""
        (line,) = [x for x in self.said.splitlines() if x.startswith(f"{label} ")]
        return line.removeprefix(label).strip()

    def interrupt(self) -> None:
        """Ctrl-C: the whole process group of the terminal hears it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ended(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code, once it has ended by itself."""
        code = self.process.wait(timeout_s)
        self._reader.join(10.0)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self._cli.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._reader.join(10.0)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

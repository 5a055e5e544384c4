"""A real schema registry for a machine that has none: Apicurio, as Confluent's clients see it."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.embedded import processes
from pipeline.embedded.artifacts import Fetch, ensure_artifacts, read_lock
from pipeline.embedded.cache import cache_dir, exclusive, make_folder, write_atomically
from pipeline.embedded.java import find_java
from pipeline.embedded.kafka_config import SHORT_LIVED
from pipeline.embedded.ports import LOOPBACK, free_ports
from pipeline.embedded.processes import ProcessIdentity
from pipeline.errors import UserError

LOCK_FILE = Path(__file__).parent / "registry.lock.json"
STATE_FILE = "running.json"
# What Apicurio 3.3 is compiled for (class files of version 65).
JAVA_MAJOR_MIN = 21
# Six seconds on an idle machine.
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class RegistryHandle:
    """A registry that answers; ``url`` is what a Confluent client is given."""

    url: str
    work_dir: Path
    pid: int
    started_here: bool


def start_registry(
    work_dir: Path,
    *,
    heap_mb: int = 256,
    on_progress: Callable[[str], None] | None = None,
    die_with_parent: bool = False,
    timeout_s: float = START_TIMEOUT_S,
    fetch: Fetch | None = None,
) -> RegistryHandle:
    """Start a registry, or find the one that runs from ``work_dir``; returns once it answers.

    Schemas are kept in memory: they are gone when it stops. The first start on a machine
    downloads 159 MB. UserError when the download or the start fails.
    """
    work_dir = work_dir.absolute()
    make_folder(work_dir, "registry")
    program = _unpacked(fetch, on_progress)
    with exclusive(work_dir / ".lock", timeout_s=2 * timeout_s):
        running = _running(work_dir)
        identity, port = running or _launch(work_dir, program, heap_mb, die_with_parent)
        handle = RegistryHandle(_url(port), work_dir, identity.pid, running is None)
        try:
            _wait_until_serving(handle, identity, timeout_s)
        except BaseException:
            if running is None:
                processes.stop([identity], 1.0)
            raise
        return handle


def stop_registry(
    handle_or_work_dir: RegistryHandle | Path, timeout_s: float = STOP_TIMEOUT_S
) -> None:
    """Stop it; its schemas are gone. None running is not an error."""
    if isinstance(handle_or_work_dir, RegistryHandle):
        work_dir = handle_or_work_dir.work_dir
    else:
        work_dir = handle_or_work_dir.absolute()
    if not work_dir.exists():
        return
    with exclusive(work_dir / ".lock", timeout_s=2 * START_TIMEOUT_S):
        running = _running(work_dir)
        if running is not None:
            processes.stop([running[0]], timeout_s)
        (work_dir / STATE_FILE).unlink(missing_ok=True)


def _launch(
    work_dir: Path, program: Path, heap_mb: int, die_with_parent: bool
) -> tuple[ProcessIdentity, int]:
    port, management_port = free_ports(2)
    output = work_dir / "output.log"
    output.unlink(missing_ok=True)
    settings = {
        "quarkus.http.host": LOOPBACK,
        "quarkus.http.port": port,
        # Health and metrics have a server of their own, by default on every interface.
        "quarkus.management.host": LOOPBACK,
        "quarkus.management.port": management_port,
        "quarkus.log.level": "WARN",
        "quarkus.banner.enabled": "false",
    }
    identity = processes.start_detached(
        [
            find_java(JAVA_MAJOR_MIN),
            f"-Xmx{heap_mb}m",
            "-XX:+UseSerialGC",
            # It is started to be tried and ended soon: compiling well costs more than it gives.
            *SHORT_LIVED,
            "-XX:+ExitOnOutOfMemoryError",
            *(f"-D{key}={value}" for key, value in settings.items()),
            "-jar",
            program,
        ],
        output=output,
        die_with_parent=die_with_parent,
        cwd=work_dir,
    )
    write_atomically(
        work_dir / STATE_FILE, json.dumps({"process": asdict(identity), "port": port}) + "\n"
    )
    return identity, port


def _wait_until_serving(
    handle: RegistryHandle, identity: ProcessIdentity, timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        # An ended process is looked for first: another server may sit on its port.
        if not processes.is_alive(identity):
            why = "ended while starting"
        elif _answers(f"{handle.url}/subjects"):
            return
        elif time.monotonic() > deadline:
            why = f"did not serve within {timeout_s:.0f} s"
        else:
            time.sleep(0.1)
            continue
        logs = processes.last_lines([handle.work_dir / "output.log"])
        raise UserError(f"The schema registry in {handle.work_dir} {why}.{logs}")


def _answers(url: str) -> bool:
    # Past any proxy that the environment names: it cannot reach this machine's loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=3) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _unpacked(fetch: Fetch | None, on_progress: Callable[[str], None] | None) -> Path:
    """The program's jar, unpacked once a machine from the archive whose sum was just checked."""
    lock = read_lock(LOCK_FILE)
    cache = cache_dir()
    (archive,) = ensure_artifacts(lock, cache, fetch=fetch, on_progress=on_progress)
    # Named by the sum, so another archive never runs from an old folder.
    folder = cache / f"{lock.name}-{lock.version}" / f"app-{lock.artifacts[0].sha256[:16]}"
    if not folder.exists():
        with exclusive(cache / f"{lock.name}-{lock.version}.lock", timeout_s=START_TIMEOUT_S):
            if not folder.exists():
                _unpack(archive, folder)
    found = list(folder.glob("**/quarkus-run.jar"))
    if len(found) != 1:
        raise UserError(f"{folder} holds no registry program. Delete it and start again.")
    return found[0]


def _unpack(archive: Path, folder: Path) -> None:
    for left_over in folder.parent.glob("unpacking-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix="unpacking-", dir=folder.parent))
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(staging, filter="data")
        staging.replace(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _running(work_dir: Path) -> tuple[ProcessIdentity, int] | None:
    try:
        raw = json.loads((work_dir / STATE_FILE).read_text(encoding="utf-8"))
        identity, port = ProcessIdentity(**raw["process"]), int(raw["port"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    return (identity, port) if processes.is_alive(identity) else None


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}/apis/ccompat/v7"

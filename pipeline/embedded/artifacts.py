"""Files from a Maven repository, each held to a locked sha256 before anything runs it."""

from __future__ import annotations

import hashlib
import json
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.embedded.cache import exclusive, make_folder
from pipeline.embedded.progress import Progress, progress_shown
from pipeline.errors import UserError

# Downloads wait on the network far more than on this machine; more threads gained nothing.
FETCH_THREADS = 8
# What a download under way gets to notice that it is to stop. One that waits for a silent server
# notices nothing; its thread goes with the process.
STOP_WAIT_S = 2.0
# Another process may be downloading the same files on a slow line: 160 MB at 300 kB/s.
LOCK_TIMEOUT_S = 600.0

# Fetches one artifact into the folder and answers where it lies. The callable it is given is told
# the bytes as they arrive, and raises when the download is to stop.
Fetch = Callable[["LockedArtifact", Path, Callable[[int], None]], Path]


@dataclass(frozen=True)
class LockedArtifact:
    """One file: ``group:artifact:version[:classifier[:type]]``, its name, bytes and sha256."""

    coordinate: str
    file: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ArtifactLock:
    """All files of one program, as committed beside this module."""

    name: str
    version: str
    artifacts: tuple[LockedArtifact, ...]

    @property
    def size_bytes(self) -> int:
        return sum(artifact.size_bytes for artifact in self.artifacts)


class DownloadStopped(Exception):
    """The rest of the download failed or was interrupted, so this part of it gives up."""


def ensure_artifacts(
    lock: ArtifactLock,
    cache: Path,
    *,
    fetch: Fetch | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> tuple[Path, ...]:
    """Paths of all locked files in the cache, in lock order; every sum is checked on every call.

    What is missing or differs is fetched, once; a file that still differs is refused by name.
    Nothing is fetched, and no network touched, when all sums agree. Files appear in the cache
    whole (renamed into place), so a process that only reads never sees a part of one.
    """
    folder = cache / f"{lock.name}-{lock.version}"
    if not _unsound(lock.artifacts, folder):
        return _paths(lock, folder)
    make_folder(folder, "cache")

    def on_wait() -> None:
        if on_progress is not None:
            on_progress(f"Waiting for another process that is fetching {lock.name}")

    with exclusive(cache / f"{folder.name}.lock", timeout_s=LOCK_TIMEOUT_S, on_wait=on_wait):
        # Another process may have done the work while this one waited.
        wanted = _unsound(lock.artifacts, folder)
        if wanted:
            for left_over in cache.glob(f"{folder.name}.fetching-*"):
                shutil.rmtree(left_over, ignore_errors=True)
            _fetch_all(lock, wanted, folder, fetch or _fetch_by_maven(), on_progress)
    return _paths(lock, folder)


def read_lock(path: Path) -> ArtifactLock:
    """The lock from its committed JSON file."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return ArtifactLock(
        name=raw["name"],
        version=raw["version"],
        artifacts=tuple(LockedArtifact(**entry) for entry in raw["artifacts"]),
    )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _paths(lock: ArtifactLock, folder: Path) -> tuple[Path, ...]:
    return tuple(folder / artifact.file for artifact in lock.artifacts)


def _unsound(artifacts: Sequence[LockedArtifact], folder: Path) -> list[LockedArtifact]:
    return [artifact for artifact in artifacts if not _is_sound(artifact, folder / artifact.file)]


def _is_sound(artifact: LockedArtifact, path: Path) -> bool:
    try:
        return path.stat().st_size == artifact.size_bytes and sha256_of(path) == artifact.sha256
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); remove it.") from error


def _fetch_all(
    lock: ArtifactLock,
    wanted: Sequence[LockedArtifact],
    folder: Path,
    fetch: Fetch,
    on_progress: Callable[[str], None] | None,
) -> None:
    size_bytes = sum(artifact.size_bytes for artifact in wanted)
    files = "1 file" if len(wanted) == 1 else f"{len(wanted)} files"
    title = f"Fetching {lock.name} {lock.version} ({files}, {size_bytes / 1e6:.0f} MB)"
    stopped = threading.Event()
    # Beside the cache folder, so that the rename into place stays on one file system.
    staging = Path(tempfile.mkdtemp(prefix=f"{folder.name}.fetching-", dir=folder.parent))
    try:
        with progress_shown(title, size_bytes, on_progress) as progress:
            jobs = [
                partial(_fetch_one, artifact, folder, staging / str(i), fetch, progress, stopped)
                for i, artifact in enumerate(wanted)
            ]
            _run_all(jobs, stopped)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _run_all(jobs: Sequence[Callable[[], None]], stopped: threading.Event) -> None:
    """Run the jobs in ``FETCH_THREADS`` threads; the first failure stops the rest and is raised."""
    todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for job in jobs:
        todo.put(job)

    def work() -> None:
        while not stopped.is_set():
            try:
                job = todo.get_nowait()
            except queue.Empty:
                return
            try:
                job()
            except BaseException as error:  # handed to the caller's thread, nothing is hidden
                ends.put(error)
            else:
                ends.put(None)

    # Not a pool: the interpreter waits for the threads of one before it ends.
    threads = [
        threading.Thread(target=work, name=f"fetch-{i}", daemon=True)
        for i in range(min(FETCH_THREADS, len(jobs)))
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in jobs:
            failed = ends.get()
            if failed is not None:
                raise failed
    except BaseException:
        # Ctrl-C and a failure alike end the other downloads at their next chunk or try.
        stopped.set()
        deadline = time.monotonic() + STOP_WAIT_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        raise


def _fetch_one(
    artifact: LockedArtifact,
    folder: Path,
    staging: Path,
    fetch: Fetch,
    progress: Progress,
    stopped: threading.Event,
) -> None:
    def on_bytes(count: int) -> None:
        if stopped.is_set():
            raise DownloadStopped(artifact.file)
        progress.advance(count)

    fetched = fetch(artifact, staging, on_bytes)
    found = sha256_of(fetched)
    if found != artifact.sha256:
        raise UserError(
            f"{artifact.file} is not the file that was locked: expected sha256 {artifact.sha256}, "
            f"found {found} ({fetched.stat().st_size} bytes of {artifact.size_bytes}). It was "
            "fetched anew and is not used; ask whoever runs your Maven repository or proxy."
        )
    path = folder / artifact.file
    try:
        fetched.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be put in its place ({error.strerror}); remove what is there, or set "
            "PAYSTREAM_CACHE_DIR to another folder."
        ) from error


def _fetch_by_maven() -> Fetch:
    # Imported only when something is missing: jgo is an optional dependency and slow to import.
    from pipeline.embedded.maven import fetch_artifact

    return fetch_artifact

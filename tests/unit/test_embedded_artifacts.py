"""Locked downloads: whole files are used, others fetched once, what stays wrong is named."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.embedded import artifacts, kafka, maven, registry
from pipeline.embedded.artifacts import (
    ArtifactLock,
    DownloadStopped,
    Fetch,
    LockedArtifact,
    ensure_artifacts,
    read_lock,
)
from pipeline.errors import UserError

CONTENTS = {"a-1.jar": b"first jar", "b-2.jar": b"second jar, a little longer"}
LOCK = ArtifactLock(
    "things",
    "1.0",
    tuple(
        LockedArtifact(f"org.example:{name}", name, len(data), hashlib.sha256(data).hexdigest())
        for name, data in CONTENTS.items()
    ),
)


class FakeRepository:
    """Serves what it is told to serve and counts what was asked of it."""

    def __init__(self, served: dict[str, bytes] | None = None) -> None:
        self.served = dict(CONTENTS) if served is None else served
        self.asked: list[str] = []

    def fetch(
        self, artifact: LockedArtifact, folder: Path, on_bytes: Callable[[int], None]
    ) -> Path:
        self.asked.append(artifact.file)
        folder.mkdir(parents=True)
        path = folder / artifact.file
        path.write_bytes(self.served[artifact.file])
        on_bytes(len(self.served[artifact.file]))
        return path


def ensure(cache: Path, fetch: Fetch) -> tuple[Path, ...]:
    return ensure_artifacts(LOCK, cache, fetch=fetch, on_progress=lambda _line: None)


def test_missing_files_are_fetched_and_answered_in_lock_order(tmp_path: Path) -> None:
    """A first start downloads every locked file and leaves nothing else in the cache."""
    paths = ensure(tmp_path, FakeRepository().fetch)
    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["things-1.0", "things-1.0.lock"]


def test_a_full_cache_needs_no_repository(tmp_path: Path) -> None:
    """Once cached, nothing is asked of a network."""
    ensure(tmp_path, FakeRepository().fetch)
    offline = FakeRepository(served={})
    ensure(tmp_path, offline.fetch)
    assert offline.asked == []


@pytest.mark.parametrize("damage", [b"", b"first", b"FIRST jar", b"first jar and more"])
def test_a_truncated_or_altered_file_is_fetched_again(tmp_path: Path, damage: bytes) -> None:
    """A cached file that is not the locked one, even of equal length, is replaced by itself."""
    first, _ = ensure(tmp_path, FakeRepository().fetch)
    first.write_bytes(damage)
    repository = FakeRepository()
    ensure(tmp_path, repository.fetch)
    assert repository.asked == ["a-1.jar"]
    assert first.read_bytes() == CONTENTS["a-1.jar"]


def test_a_file_that_differs_after_fetching_is_refused_by_name(tmp_path: Path) -> None:
    """A repository that serves something else is named with both sums, and is asked once."""
    repository = FakeRepository({**CONTENTS, "b-2.jar": b"evil"})
    with pytest.raises(UserError) as refused:
        ensure(tmp_path, repository.fetch)
    assert repository.asked.count("b-2.jar") == 1
    for part in ("b-2.jar", LOCK.artifacts[1].sha256, hashlib.sha256(b"evil").hexdigest()):
        assert part in str(refused.value)
    assert not (tmp_path / "things-1.0" / "b-2.jar").exists()


def test_a_failed_download_leaves_no_temporary_files(tmp_path: Path) -> None:
    """Parts of a download that failed are gone, and the next start goes on from what is whole."""
    with pytest.raises(UserError):
        ensure(tmp_path, FakeRepository({**CONTENTS, "a-1.jar": b"evil"}).fetch)
    assert not list(tmp_path.glob("*fetching*"))
    assert [path.exists() for path in ensure(tmp_path, FakeRepository().fetch)] == [True, True]


@pytest.mark.slow
def test_two_starts_at_once_fetch_each_file_once(tmp_path: Path) -> None:
    """Whoever comes second waits for the first and uses its files."""
    repository = FakeRepository()
    inside = threading.Barrier(2, timeout=10)

    def slow(artifact: LockedArtifact, folder: Path, on_bytes: Callable[[int], None]) -> Path:
        if artifact.file == "a-1.jar" and not repository.asked.count("a-1.jar"):
            inside.wait()
        return repository.fetch(artifact, folder, on_bytes)

    first = threading.Thread(target=ensure, args=(tmp_path, slow))
    first.start()
    inside.wait()
    ensure(tmp_path, slow)
    first.join(10)
    assert sorted(repository.asked) == sorted(CONTENTS)


@pytest.mark.slow
def test_a_stopped_download_does_not_wait_for_a_silent_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes to whoever waits for the files; a thread that hears nothing is left behind."""
    monkeypatch.setattr(artifacts, "STOP_WAIT_S", 0.05)
    let_go = threading.Event()

    def interrupted(
        artifact: LockedArtifact, folder: Path, on_bytes: Callable[[int], None]
    ) -> Path:
        if artifact.file == "a-1.jar":
            raise KeyboardInterrupt
        let_go.wait(20)
        raise DownloadStopped

    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ensure(tmp_path, interrupted)
    assert time.monotonic() - began_s < 5
    assert all(t.daemon for t in threading.enumerate() if t.name.startswith("fetch-"))
    let_go.set()
    assert not list(tmp_path.glob("*fetching*"))


@pytest.mark.slow
def test_a_stopped_download_asks_the_repository_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop is looked at before each try, not only when bytes arrive."""
    monkeypatch.setenv("PAYSTREAM_MAVEN_REPOSITORY", "http://127.0.0.1:1")
    tries = 0

    def stopped_after_one(_count: int) -> None:
        nonlocal tries
        tries += 1
        if tries > 1:
            raise DownloadStopped

    with pytest.raises(DownloadStopped):
        maven.fetch_artifact(
            LockedArtifact("org.example:thing:1", "thing-1.jar", 1, ""),
            tmp_path / "staging",
            stopped_after_one,
        )
    assert tries == 2


def test_a_cache_that_is_a_file_is_told(tmp_path: Path) -> None:
    """PAYSTREAM_CACHE_DIR may name anything."""
    cache = tmp_path / "cache"
    cache.write_text("")
    with pytest.raises(UserError, match=f"cache folder {cache}"):
        ensure(cache, FakeRepository().fetch)


def test_a_directory_in_the_place_of_a_file_is_told(tmp_path: Path) -> None:
    """It is not taken away unasked."""
    taken = tmp_path / "things-1.0" / "a-1.jar"
    taken.mkdir(parents=True)
    with pytest.raises(UserError, match=f"{taken} cannot be put in its place"):
        ensure(tmp_path, FakeRepository().fetch)


@pytest.mark.parametrize("path", [kafka.LOCK_FILE, registry.LOCK_FILE], ids=lambda p: p.name)
def test_a_committed_lock_is_complete(path: Path) -> None:
    """Every locked file has a name of its own and a whole sha256, and no host is named."""
    lock = read_lock(path)
    assert len({artifact.file for artifact in lock.artifacts}) == len(lock.artifacts)
    assert all(len(bytes.fromhex(artifact.sha256)) == 32 for artifact in lock.artifacts)
    assert "//" not in path.read_text(encoding="utf-8")

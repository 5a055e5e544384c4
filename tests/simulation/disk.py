"""What a worker leaves on the disk: of its table's cache, after a crash, a prefix of what was
written; its small files as it wrote them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random

from pipeline.runtime.table_store import Checkpoint
from tests.simulation.world import Killed, Process

Write = tuple[int, list[tuple[bytes, bytes | None]], Checkpoint | None]


class Disk:
    """Outlives the processes of its slot. Used by one of them at a time: who mounts it last."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[bytes, bytes]] = {}
        self._checkpoints: dict[int, Checkpoint] = {}
        self._unflushed: list[Write] = []
        self._mounted: Mounted | None = None
        self._files: dict[Path, bytes] = {}

    def state_file(self, path: Path) -> SimStateFile:
        return SimStateFile(self._files, path)

    def mount(self, process: Process) -> Mounted:
        self.flush()
        self._mounted = Mounted(self, process, self._rows, self._checkpoints)
        return self._mounted

    def crash(self, random: Random) -> None:
        """The newest writes are lost, older ones never without the newer ones."""
        kept = self._unflushed[: random.randrange(len(self._unflushed) + 1)]
        self._unflushed = kept
        self._mounted = None
        self.flush()

    def write(self, by: Mounted, write: Write) -> None:
        if by is self._mounted:
            self._unflushed.append(write)

    def flush(self) -> None:
        for partition, puts, checkpoint in self._unflushed:
            if checkpoint is None:
                self._rows.pop(partition, None)
                self._checkpoints.pop(partition, None)
                continue
            rows = self._rows.setdefault(partition, {})
            for key, value in puts:
                if value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = value
            self._checkpoints[partition] = checkpoint
        self._unflushed = []


class SimStateFile:
    """A file that whoever opens it next finds as it was left."""

    def __init__(self, files: dict[Path, bytes], path: Path) -> None:
        self._files = files
        self._path = path

    def read(self) -> bytes:
        return self._files.get(self._path, b"")

    def write(self, raw: bytes) -> None:
        self._files[self._path] = raw

    def close(self) -> None: ...


class Mounted:
    """The store as one process sees it."""

    def __init__(
        self,
        disk: Disk,
        process: Process,
        rows: dict[int, dict[bytes, bytes]],
        checkpoints: dict[int, Checkpoint],
    ) -> None:
        self._disk = disk
        self._process = process
        self._rows = {partition: dict(found) for partition, found in rows.items()}
        self._checkpoints = dict(checkpoints)

    def get(self, partition: int, key: bytes) -> bytes | None:
        return self._rows.get(partition, {}).get(key)

    def write(
        self, partition: int, puts: Iterable[tuple[bytes, bytes | None]], checkpoint: Checkpoint
    ) -> None:
        self._alive()
        written = list(puts)
        rows = self._rows.setdefault(partition, {})
        for key, value in written:
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        self._checkpoints[partition] = checkpoint
        self._disk.write(self, (partition, written, checkpoint))

    def checkpoint(self, partition: int) -> Checkpoint | None:
        return self._checkpoints.get(partition)

    def wipe(self, partition: int) -> None:
        self._alive()
        self._rows.pop(partition, None)
        self._checkpoints.pop(partition, None)
        self._disk.write(self, (partition, [], None))

    def flush(self) -> None:
        self._alive()
        if self._disk._mounted is self:
            self._disk.flush()

    def close(self) -> None:
        self.flush()

    def _alive(self) -> None:
        if self._process.dead:
            raise Killed

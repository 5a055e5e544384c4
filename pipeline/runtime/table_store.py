"""Where the table's cache keeps what does not fit in memory.

The store is a cache: the topic is the truth, and everything here may be deleted at any time. It
has to promise one thing: after any crash it holds a *prefix* of what was written, with the
checkpoint that belongs to it, because both go in one batch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct, json


class Checkpoint(Struct, frozen=True):
    """Up to where the store reflects a partition of the table's topic.

    ``offset`` is the next one to read, ``saved_at_ms`` the append time of the newest record read
    or the wall clock at saving. Another cluster or a recreated topic makes it void.
    """

    cluster_id: str
    topic_id: str
    offset: int
    saved_at_ms: int


class TableStore(Protocol):
    """The port: raw records by partition and key, and a checkpoint for each partition."""

    def get(self, partition: int, key: bytes) -> bytes | None: ...

    def write(
        self,
        partition: int,
        puts: Iterable[tuple[bytes, bytes | None]],
        checkpoint: Checkpoint,
    ) -> None: ...

    def checkpoint(self, partition: int) -> Checkpoint | None: ...

    def wipe(self, partition: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _prefix(partition: int) -> bytes:
    return partition.to_bytes(4, "big")


class RocksTableStore:
    """RocksDB through rocksdict, without a write-ahead log.

    Without the log a crash loses the newest writes, never older ones with newer ones kept: the
    memtable is flushed in order, and the checkpoint lies in the same column family. What was lost
    is read again from the topic.

    ``keep_s``: a row or checkpoint that was not written for so long may be gone; for tables whose
    topic deletes by age as well. The same for the whole life of a store.
    """

    def __init__(
        self, path: Path, *, write_buffer_mib: int = 16, keep_s: int | None = None
    ) -> None:
        import rocksdict

        self._rocksdict = rocksdict
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(write_buffer_mib * 1024 * 1024)
        options.set_max_write_buffer_number(3)
        options.set_compression_type(rocksdict.DBCompressionType.lz4())
        options.set_max_background_jobs(2)
        options.set_keep_log_file_num(2)
        table = rocksdict.BlockBasedOptions()
        # Most look-ups are of payments that do not exist yet: the filter answers them from memory.
        table.set_bloom_filter(10, False)
        table.set_block_cache(rocksdict.Cache(16 * 1024 * 1024))
        options.set_block_based_table_factory(table)
        access = (
            rocksdict.AccessType.read_write()
            if keep_s is None
            else rocksdict.AccessType.with_ttl(keep_s)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db: Any = rocksdict.Rdict(str(path), options, access_type=access)
        except Exception as error:
            if "lock" in str(error).lower():
                raise
            # A damaged cache is only a cache: begin again from the topic.
            shutil.rmtree(path, ignore_errors=True)
            self._db = rocksdict.Rdict(str(path), options, access_type=access)
        write_options = rocksdict.WriteOptions()
        write_options.disable_wal = True  # type: ignore[assignment,method-assign]
        self._write_options = write_options

    def get(self, partition: int, key: bytes) -> bytes | None:
        value: bytes | None = self._db.get(_prefix(partition) + b"k" + key)
        return value

    def write(
        self,
        partition: int,
        puts: Iterable[tuple[bytes, bytes | None]],
        checkpoint: Checkpoint,
    ) -> None:
        batch = self._rocksdict.WriteBatch(raw_mode=True)
        prefix = _prefix(partition) + b"k"
        for key, value in puts:
            if value is None:
                batch.delete(prefix + key)
            else:
                batch.put(prefix + key, value)
        batch.put(_prefix(partition) + b"c", json.encode(checkpoint))
        self._db.write(batch, self._write_options)

    def checkpoint(self, partition: int) -> Checkpoint | None:
        raw = self._db.get(_prefix(partition) + b"c")
        return None if raw is None else json.decode(raw, type=Checkpoint)

    def wipe(self, partition: int) -> None:
        # The checkpoint goes first and is flushed before the rows go: a crash in between must not
        # leave a checkpoint that vouches for rows that are no longer there.
        self._db.delete(_prefix(partition) + b"c", self._write_options)
        self._db.flush(True)
        self._db.delete_range(_prefix(partition), _prefix(partition + 1), self._write_options)
        self._db.flush(True)

    def flush(self) -> None:
        self._db.flush(True)

    def close(self) -> None:
        self._db.flush(True)
        self._db.close()


class MemoryTableStore:
    """The fake of the port: the same behaviour, nothing kept."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, bytes], bytes] = {}
        self._checkpoints: dict[int, Checkpoint] = {}

    def get(self, partition: int, key: bytes) -> bytes | None:
        return self._rows.get((partition, key))

    def write(
        self,
        partition: int,
        puts: Iterable[tuple[bytes, bytes | None]],
        checkpoint: Checkpoint,
    ) -> None:
        for key, value in puts:
            if value is None:
                self._rows.pop((partition, key), None)
            else:
                self._rows[(partition, key)] = value
        self._checkpoints[partition] = checkpoint

    def checkpoint(self, partition: int) -> Checkpoint | None:
        return self._checkpoints.get(partition)

    def wipe(self, partition: int) -> None:
        self._checkpoints.pop(partition, None)
        for row in [row for row in self._rows if row[0] == partition]:
            del self._rows[row]

    def flush(self) -> None:
        return None

    def close(self) -> None:
        return None

"""The table of payments as a worker sees it: what is committed, and what is being prepared.

Reads look through four layers, newest first: what the batch in preparation has put, what the
transaction under way has put, the hot cache, the store on disk. Only a commit that is known moves
a layer down; a failed transaction takes both upper layers with it. The hot cache is two
generations of a plain dict: when the young one is full it becomes the old one, and what is read
from the old one moves to the young.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from pipeline.domain.invariant import invariant
from pipeline.runtime.table_store import Checkpoint, TableStore

V = TypeVar("V")
Row = tuple[int, bytes]


class Table(Generic[V]):
    """``decode`` makes a value of a stored record; ``hot_max`` caps the values held in memory."""

    def __init__(
        self,
        store: TableStore,
        *,
        decode: Callable[[bytes], V],
        hot_max: int = 20_000,
        cluster_id: str = "",
        topic_id: str = "",
    ) -> None:
        self._store = store
        self._decode = decode
        self._half = max(1, hot_max // 2)
        self._cluster_id = cluster_id
        self._topic_id = topic_id
        self._young: dict[Row, V] = {}
        self._old: dict[Row, V] = {}
        self._prepared: dict[Row, tuple[V, bytes]] = {}
        self._committing: dict[Row, tuple[V, bytes]] | None = None
        self._offsets: dict[int, int] = {}
        self.store_reads = 0

    # Reading -----------------------------------------------------------------------------------

    def get(self, partition: int, key: bytes) -> V | None:
        """The newest value, of the batch in preparation if it has one; None for a miss."""
        row = (partition, key)
        entry = self._prepared.get(row)
        if entry is not None:
            return entry[0]
        if self._committing is not None:
            entry = self._committing.get(row)
            if entry is not None:
                return entry[0]
        value = self._young.get(row)
        if value is not None:
            return value
        value = self._old.pop(row, None)
        if value is None:
            self.store_reads += 1
            raw = self._store.get(partition, key)
            if raw is None:
                return None
            value = self._decode(raw)
        self._keep_hot(row, value)
        return value

    # The life of a batch ------------------------------------------------------------------------

    def prepare(self, partition: int, key: bytes, value: V, raw: bytes) -> None:
        """Put a value into the batch in preparation; ``raw`` is the record to be produced."""
        self._prepared[(partition, key)] = (value, raw)

    def seal(self) -> None:
        """The batch in preparation becomes the transaction under way."""
        invariant(self._committing is None, "one transaction at a time in a lane")
        self._committing = self._prepared
        self._prepared = {}

    def apply(self, next_offsets: Mapping[int, int], now_ms: int) -> None:
        """The transaction under way is committed: its values become the cache's.

        ``next_offsets``: for each partition written, the offset after its last record.
        """
        committed = self._committing
        invariant(committed is not None, "a commit without a transaction")
        if committed is None:
            return
        self._committing = None
        puts: dict[int, list[tuple[bytes, bytes | None]]] = {}
        for row, (value, raw) in committed.items():
            self._keep_hot(row, value)
            puts.setdefault(row[0], []).append((row[1], raw))
        for partition, rows in puts.items():
            invariant(partition in next_offsets, "a written partition has a known offset")
            offset = next_offsets[partition]
            self._store.write(partition, rows, self._checkpoint(offset, now_ms))
            self._offsets[partition] = offset

    def discard(self) -> None:
        """The transaction under way failed: it and everything prepared on top of it is dropped."""
        self._committing = None
        self._prepared = {}

    def discard_prepared(self) -> None:
        """Drop the batch in preparation only (a rebalance): the transaction under way is known."""
        self._prepared = {}

    # Restoring ----------------------------------------------------------------------------------

    def checkpoint(self, partition: int) -> Checkpoint | None:
        return self._store.checkpoint(partition)

    def restore(
        self,
        partition: int,
        records: list[tuple[bytes, bytes | None]],
        next_offset: int,
        now_ms: int,
    ) -> None:
        """Take committed records read back from the topic; None as a value is a tombstone."""
        for key, _ in records:
            row = (partition, key)
            self._young.pop(row, None)
            self._old.pop(row, None)
        self._store.write(partition, records, self._checkpoint(next_offset, now_ms))
        self._offsets[partition] = next_offset

    def wipe(self, partition: int) -> None:
        """Forget a partition, so that it is read from the beginning of the topic."""
        self._store.wipe(partition)
        self._offsets.pop(partition, None)
        for cache in (self._young, self._old):
            for row in [row for row in cache if row[0] == partition]:
                del cache[row]

    def flush(self) -> None:
        """Make the store durable up to its checkpoints; bounds what a restart has to read."""
        self._store.flush()

    def close(self) -> None:
        self._store.close()

    @property
    def hot_count(self) -> int:
        return len(self._young) + len(self._old)

    def _checkpoint(self, offset: int, now_ms: int) -> Checkpoint:
        return Checkpoint(self._cluster_id, self._topic_id, offset, now_ms)

    def _keep_hot(self, row: Row, value: V) -> None:
        young = self._young
        young[row] = value
        if len(young) >= self._half:
            self._old = young
            self._young = {}

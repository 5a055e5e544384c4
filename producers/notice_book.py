"""Where a gateway's notice belongs: the book of references, and the notices that wait for one.

A notice that names our order goes straight to its payment. One that carries only the gateway's own
id is looked up among the ``gateway-references``, a compacted topic that the payments workers write.
The notice may be faster than the reference: it is parked, in a compacted topic as well, and goes on
when its reference comes. Nothing here is the truth; the file may be deleted and is read anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_TABLES = """
CREATE TABLE IF NOT EXISTS cluster (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS positions (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, next_offset INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gateway_refs (name BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parked (
    name BLOB PRIMARY KEY, reference BLOB NOT NULL, value BLOB NOT NULL,
    parked_at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS parked_by_reference ON parked (reference);
"""


def parked_key(reference: bytes, notification_id: str) -> bytes:
    """The record key of a notice that waits: the same notice again is the same record. Its last
    line end parts the two; a gateway's id may hold one."""
    told = notification_id.replace("\\", "\\\\").replace("\n", "\\n")
    return reference + b"\n" + told.encode()


class NoticeBook:
    """A file of references and parked notices with the positions up to which it was read.

    Values are records as they came. ``cluster_id`` other than the file's own empties it. Not for
    several threads at once.
    """

    def __init__(self, path: Path, cluster_id: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # A cache: what a power cut takes is read from the topics again.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(_TABLES)
        known = self._db.execute("SELECT id FROM cluster").fetchone()
        if known is None or known[0] != cluster_id:
            with self._transaction():
                for table in ("cluster", "positions", "gateway_refs", "parked"):
                    self._db.execute(f"DELETE FROM {table}")
                self._db.execute("INSERT INTO cluster VALUES (?)", (cluster_id,))

    def positions(self, topic: str) -> dict[int, int]:
        """The next offset to read, by partition; a partition never read is not there."""
        rows = self._db.execute(
            "SELECT partition, next_offset FROM positions WHERE topic = ?", (topic,)
        )
        return dict(rows.fetchall())

    def take_references(
        self,
        topic: str,
        read: Iterable[tuple[int, int, bytes, bytes | None]],
        keeps: Callable[[bytes, bytes, bytes], bool] = lambda key, known, value: False,
    ) -> None:
        """Take (partition, offset, key, value) records. ``keeps``: whether what is known by the key
        stays, and the newer value is left out."""
        with self._transaction():
            for partition, offset, key, value in read:
                known = self.reference(key)
                if value is None:
                    self._db.execute("DELETE FROM gateway_refs WHERE name = ?", (key,))
                elif known is None or not keeps(key, known, value):
                    self._db.execute("REPLACE INTO gateway_refs VALUES (?, ?)", (key, value))
                self._passed(topic, partition, offset)

    def take_parked(
        self, topic: str, read: Iterable[tuple[int, int, bytes, bytes | None, int]]
    ) -> None:
        """Take (partition, offset, key, value, appended_at_ms) records; no value ends a wait."""
        with self._transaction():
            for partition, offset, key, value, appended_at_ms in read:
                if value is None:
                    self._db.execute("DELETE FROM parked WHERE name = ?", (key,))
                else:
                    reference = key.rpartition(b"\n")[0]
                    self._db.execute(
                        "REPLACE INTO parked VALUES (?, ?, ?, ?)",
                        (key, reference, value, appended_at_ms),
                    )
                self._passed(topic, partition, offset)

    def reference(self, key: bytes) -> bytes | None:
        """The record of a gateway's own id."""
        row = self._db.execute("SELECT value FROM gateway_refs WHERE name = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def waiting_for(self, reference: bytes) -> list[tuple[bytes, bytes]]:
        """(key, record) of the notices parked for a reference."""
        rows = self._db.execute(
            "SELECT name, value FROM parked WHERE reference = ? ORDER BY parked_at_ms", (reference,)
        )
        return [(bytes(name), bytes(value)) for name, value in rows]

    def parked_references(self) -> list[bytes]:
        """Every reference that a notice waits for and that is known by now."""
        rows = self._db.execute(
            "SELECT DISTINCT reference FROM parked "
            "JOIN gateway_refs ON gateway_refs.name = parked.reference"
        )
        return [bytes(reference) for (reference,) in rows]

    def parked(self) -> tuple[int, int | None]:
        """How many notices wait, and since when the oldest does (epoch ms)."""
        count, oldest_ms = self._db.execute(
            "SELECT count(*), min(parked_at_ms) FROM parked"
        ).fetchone()
        return int(count), oldest_ms

    def passed(self, topic: str, partition: int, offset: int) -> None:
        """What lies up to this offset is taken, or never will be."""
        with self._transaction():
            self._passed(topic, partition, offset)

    def close(self) -> None:
        self._db.close()

    def _passed(self, topic: str, partition: int, offset: int) -> None:
        self._db.execute("REPLACE INTO positions VALUES (?, ?, ?)", (topic, partition, offset + 1))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

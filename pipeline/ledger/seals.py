"""Entries chained by hash, partition by partition, in the order of the log.

Each seal is SHA-256 over the seal before it and everything an entry says, its lines by the names of
their accounts. Nothing that differs between two ledgers of the same topics is in it (numbers,
times of posting), so a rebuild has the same seals. Sealing follows behind the booking, in
transactions of its own: it reads what is committed and never holds up a writer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Connection, Engine, func, insert, select, text

from pipeline.ledger.database import reading
from pipeline.ledger.hashed import hashed_form
from pipeline.ledger.tables import chains, consumer_offsets, entry_seals

# Sealed in one transaction: some tenths of a second of work, of which the lock is held for little.
SEAL_BATCH: Final = 5_000
FIRST_HASH: Final = b"\0" * 32
# Any number: one process seals at a time; another that tries goes on with other things.
_SEALING_LOCK: Final = 0x6C65646A
_FETCH_ROWS: Final = 10_000

_ENTRY: Final = (
    "entry_number, entry_id, settlement_id, kind, merchant_id, order_id, payment_id, operation_id, "
    "gateway, gateway_reference, business_date, booked_date, source_topic, source_partition, "
    "source_offset, source_part, settled_at_ms, terms, posted_at_ms, posting_count"
)
# One row for each line, in the order of the log; lines missing altogether leave one of nulls.
_LINES: Final = f"""
    SELECT e.*, p.currency, p.amount_minor, a.name AS account FROM (
        SELECT {_ENTRY} FROM journal_entries
        WHERE source_topic = :topic AND source_partition = :partition
        AND (source_offset, source_part) > (:offset, :part) AND source_offset < :end
        ORDER BY source_offset, source_part LIMIT :limit
    ) e
    LEFT JOIN postings p ON p.entry_number = e.entry_number
    LEFT JOIN accounts a ON a.account_id = p.account_id
    ORDER BY e.source_offset, e.source_part, p.line"""


class BookedEntry(Struct, frozen=True, gc=False):
    """One entry as it is in the database. ``content`` is what its seal is made of."""

    entry_number: int
    entry_id: str
    source_offset: int
    source_part: int
    posted_at_ms: int
    content: bytes


class ChainHead(Struct, frozen=True):
    """The newest seal of a partition's chain; ``position`` counts its entries."""

    topic: str
    partition: int
    position: int
    source_offset: int
    source_part: int
    hash: bytes


def next_hash(before: bytes, content: bytes) -> bytes:
    return hashlib.sha256(before + content).digest()


def seal(engine: Engine, *, batch: int = SEAL_BATCH) -> int:
    """Seal some of what is booked and not sealed; how many entries were. 0: nothing is left.

    Safe beside writers and other sealers, and to be ended at any moment.
    """
    sealed = 0
    with reading(engine) as connection:
        places = connection.execute(
            select(
                consumer_offsets.c.topic,
                consumer_offsets.c.partition,
                consumer_offsets.c.next_offset,
            ).order_by(consumer_offsets.c.topic, consumer_offsets.c.partition)
        ).all()
        heads = {(head.topic, head.partition): head for head in chain_heads(connection)}
    for topic, partition, end in places:
        head = heads.get((topic, partition), ChainHead(topic, partition, 0, -1, 0, FIRST_HASH))
        sealed += _extend(engine, head, end, batch - sealed)
        if sealed >= batch:
            break
    return sealed


def _extend(engine: Engine, head: ChainHead, end: int, limit: int) -> int:
    with reading(engine) as connection:
        entries = list(
            booked_entries(
                connection, head.topic, head.partition,
                after=(head.source_offset, head.source_part), end=end, limit=limit,
            )
        )  # fmt: skip
    if not entries:
        return 0
    rows = []
    position, before = head.position, head.hash
    for entry in entries:
        position += 1
        before = next_hash(before, entry.content)
        rows.append(
            {
                "position": position,
                "entry_number": entry.entry_number,
                "source_offset": entry.source_offset,
                "source_part": entry.source_part,
                "posted_at_ms": entry.posted_at_ms,
                "hash": before,
            }
        )
    with engine.begin() as connection:
        if (
            connection.dialect.name == "postgresql"
            and not connection.exec_driver_sql(
                f"SELECT pg_try_advisory_xact_lock({_SEALING_LOCK})"
            ).scalar_one()
        ):
            return 0
        chain_id = _chain_id(connection, head.topic, head.partition)
        if _sealed(connection, chain_id) != head.position:
            # Another sealer was first: its seals are the same.
            return 0
        connection.execute(insert(entry_seals), [{"chain_id": chain_id, **row} for row in rows])
    return len(rows)


def _sealed(connection: Connection, chain_id: int) -> int:
    """How many entries of a chain are sealed."""
    asked = select(func.max(entry_seals.c.position)).where(entry_seals.c.chain_id == chain_id)
    return connection.execute(asked).scalar_one() or 0


def _chain_id(connection: Connection, topic: str, partition: int) -> int:
    asked = select(chains.c.chain_id).where(
        chains.c.topic == topic, chains.c.partition == partition
    )
    found = connection.execute(asked).scalar_one_or_none()
    if found is None:
        connection.execute(insert(chains).values(topic=topic, partition=partition))
        found = connection.execute(asked).scalar_one()
    return int(found)


def chain_heads(connection: Connection) -> list[ChainHead]:
    """The newest seal of every partition, by topic and partition."""
    rows = connection.execute(
        text(
            "SELECT c.topic, c.partition, s.position, s.source_offset, s.source_part, s.hash "
            "FROM chains c JOIN entry_seals s ON s.chain_id = c.chain_id AND s.position = "
            "(SELECT max(position) FROM entry_seals WHERE chain_id = c.chain_id) "
            "ORDER BY c.topic, c.partition"
        )
    )
    return [
        ChainHead(row.topic, row.partition, row.position, row.source_offset, row.source_part,
                  bytes(row.hash))
        for row in rows
    ]  # fmt: skip


def hash_at(connection: Connection, topic: str, partition: int, position: int) -> bytes:
    """The seal of the so many-th entry of a partition; it is there."""
    found = connection.execute(
        select(entry_seals.c.hash)
        .join(chains, chains.c.chain_id == entry_seals.c.chain_id)
        .where(
            chains.c.topic == topic,
            chains.c.partition == partition,
            entry_seals.c.position == position,
        )
    ).scalar_one()
    return bytes(found)


def booked_entries(
    connection: Connection,
    topic: str,
    partition: int,
    *,
    after: tuple[int, int] = (-1, 0),
    end: int = 2**62,
    limit: int = 2**62,
) -> Iterator[BookedEntry]:
    """The entries of one partition in the order of the log."""
    cursor = connection.execution_options(yield_per=_FETCH_ROWS).execute(
        text(_LINES),
        {"topic": topic, "partition": partition, "offset": after[0], "part": after[1],
         "end": end, "limit": limit},
    )  # fmt: skip
    head: Any = None
    lines: list[tuple[Any, ...]] = []
    for row in cursor:
        if head is not None and row[0] != head[0]:
            yield _booked(head, lines)
            lines = []
        head = row
        lines.append((row[-1], row[-3], row[-2]))
    if head is not None:
        yield _booked(head, lines)


def _booked(row: Any, lines: list[tuple[Any, ...]]) -> BookedEntry:
    said = [*row[1:18], row[19], lines]
    return BookedEntry(row[0], row[1], row[14], row[15], row[18], hashed_form(said))

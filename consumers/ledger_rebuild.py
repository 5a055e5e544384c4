"""The books made anew from the topics alone: the same entries, and the same hashes.

Decisions first, since the day and the terms of an entry depend on them and not on when it is read;
then every settlement, partition by partition, by the writer that books the live ones; then what the
decisions post; then the seals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct
from sqlalchemy import Engine, func, select

from consumers.settlement_entry import NotBookable, entry_of_record
from pipeline.batches.record_batch import RecordBatch
from pipeline.errors import UserError
from pipeline.ledger.database import reading
from pipeline.ledger.decision_booking import DecisionBooker
from pipeline.ledger.decisions import adopt
from pipeline.ledger.entries import Item
from pipeline.ledger.errors import SettlementConflicts
from pipeline.ledger.journal import Journal, Progress
from pipeline.ledger.seals import FIRST_HASH, ChainHead, chain_heads, hash_at, seal
from pipeline.ledger.tables import consumer_offsets, journal_entries, ledger_decisions
from pipeline.runtime.topic_reader import TopicReader
from producers.ledger_events import LedgerEvents, topic_ranges, topic_source
from schemas.codec import Codec
from topics.catalogue import Catalogue

BATCH_RECORDS = 2_000


class Rebuilt(Struct, frozen=True):
    """What a rebuild made. ``refused``: records that cannot be booked, as the first time."""

    entries: int
    decisions: int
    refused: int
    heads: tuple[ChainHead, ...]


class ChainComparison(Struct, frozen=True):
    """One partition's chain in two ledgers, up to the last entry that both have sealed."""

    topic: str
    partition: int
    position: int
    same: bool


def rebuild(
    bootstrap_servers: str,
    catalogue: Catalogue,
    codec: Codec,
    engine: Engine,
    *,
    on_batch: Callable[[int], None] = lambda _entries: None,
) -> Rebuilt:
    """Book everything that the topics hold now into an empty ledger.

    UserError when the ledger is not empty, or the topics do not begin at their beginning.
    """
    topic = catalogue.name("settlements")
    _require_empty(engine)
    _require_whole(bootstrap_servers, catalogue.name("ledger-events"))
    log_ends = _require_whole(bootstrap_servers, topic)
    log = LedgerEvents(bootstrap_servers, catalogue, codec)
    events = log.read()
    with engine.begin() as connection:
        adopt(connection, [each.event for each in events])
    refused = _book_settlements(bootstrap_servers, topic, codec, engine, log_ends, on_batch)
    booker = DecisionBooker(engine, log.source())
    for published in events:
        booker.book(published.event, published.partition, published.offset)
    while seal(engine):
        pass
    with reading(engine) as connection:
        entries = connection.execute(select(func.count()).select_from(journal_entries)).scalar_one()
        return Rebuilt(entries, len(events), refused, tuple(chain_heads(connection)))


def compare(one: Engine, other: Engine) -> list[ChainComparison]:
    """The chains of two ledgers, each up to the shorter one's end."""
    with reading(one) as a, reading(other) as b:
        here = {(h.topic, h.partition): h for h in chain_heads(a)}
        there = {(h.topic, h.partition): h for h in chain_heads(b)}
        found = []
        for topic, partition in sorted(here.keys() | there.keys()):
            heads = [x.get((topic, partition)) for x in (here, there)]
            position = min(head.position if head is not None else 0 for head in heads)
            hashes = {
                hash_at(connection, topic, partition, position) if position else FIRST_HASH
                for connection in (a, b)
            }
            found.append(ChainComparison(topic, partition, position, len(hashes) == 1))
        return found


def _book_settlements(
    bootstrap_servers: str,
    topic: str,
    codec: Codec,
    engine: Engine,
    log_ends: Mapping[int, int],
    on_batch: Callable[[int], None],
) -> int:
    journal = Journal(engine, topic_source(bootstrap_servers, topic))
    decode = codec.decoder("settlement")
    items: list[Item] = []
    begun = dict.fromkeys(log_ends, 0)
    ends = dict(begun)
    for partition in begun:
        journal.begin_partition(partition, 0)
    refused = 0

    def book() -> None:
        nonlocal items, refused
        progress = {p: Progress(begun[p], end) for p, end in ends.items() if end > begun[p]}
        while True:
            try:
                posted = journal.post(items, progress)
            except SettlementConflicts as found:
                wrong = {(c.partition, c.offset) for c in found.conflicts}
                refused += len(wrong)
                items = [i for i in items if (i.partition, i.offset) not in wrong]
            else:
                break
        begun.update(ends)
        items = []
        on_batch(posted.posted)

    def pass_over(batch: RecordBatch) -> None:
        # As the ledger's own worker does, into the dead letters.
        nonlocal refused
        refused += batch.records

    for record in TopicReader(bootstrap_servers, pass_over).by_time(topic, None, None):
        made = entry_of_record(decode, record.key, record.value or b"")
        ends[record.partition] = record.offset + 1
        if isinstance(made, NotBookable):
            refused += 1
        else:
            items.append(Item(record.partition, record.offset, made))
        if len(items) >= BATCH_RECORDS:
            book()
    # Up to the control records behind the last settlement, as the live ledger gets.
    for partition, end in log_ends.items():
        ends[partition] = max(ends[partition], end)
    book()
    return refused


def _require_empty(engine: Engine) -> None:
    with reading(engine) as connection:
        for table in (journal_entries, ledger_decisions, consumer_offsets):
            if connection.execute(select(table).limit(1)).first() is not None:
                raise UserError(
                    "the ledger to rebuild into is not empty: name a new database or file."
                )


def _require_whole(bootstrap_servers: str, topic: str) -> dict[int, int]:
    """The topic's ends. Books are only the same when nothing that they were made of is gone."""
    ranges = topic_ranges(bootstrap_servers, topic)
    for partition, (low, _) in ranges.items():
        if low:
            raise UserError(
                f"{topic}[{partition}] begins at offset {low}: what was before it is deleted, "
                "so the books cannot be made from the topics. Keep the topic for ever "
                "(retention.ms=-1) where they should be; restore the database from its backup."
            )
    return {partition: end for partition, (_, end) in ranges.items()}

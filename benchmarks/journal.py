"""Journal entries a second on PostgreSQL, and the peer: SQLAlchemy Core inserting the same rows.

The ledger's rate is all of what its writers do to the database: posting rules and fees, the look-up
of duplicates and of what a payment has cost so far, offsets, entries, lines, balances, and every
check that the database makes itself. The peer inserts the very same entries and lines, made before
the clock starts, into the same tables with primary keys only: the least that keeping them costs.
Both write durable batches of the same size from the same number of processes, in turn, each into a
database of its own. With a hot merchant, nine of ten entries are one merchant's.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Column, MetaData, Table, create_engine, insert, select, text
from sqlalchemy.schema import PrimaryKeyConstraint

from benchmarks.failure import WrongRun
from pipeline.domain.decisions import schedule_body
from pipeline.domain.ids import payment_id, settlement_id
from pipeline.domain.model import Settlement
from pipeline.domain.posting import PostingRefused, journal_entry
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.decisions import decide_terms
from pipeline.ledger.entries import Item
from pipeline.ledger.journal import Journal, Progress, Source
from pipeline.ledger.queries import drifted_balances, entry_count
from pipeline.ledger.seals import seal
from pipeline.ledger.tables import journal_entries, postings

PARTITIONS = 12
WRITERS = 2
BATCH = 2_000
MERCHANTS = 500
# Of ten entries, those of the hot merchant.
HOT_IN_TEN = 9
SOURCE = Source("benchmark", "settlements", "topic")
# Every capture has its fee and its gateway cost: six lines; one in ten is refunded in part.
SCHEDULE = {
    "plans": [
        {"name": f"standard-{c}", "currency": c, "percentage": "1.4", "fixed_minor": 20,
         "returned": "percentage"}
        for c in ("GBP", "EUR", "JPY")
    ],
    "gateway_costs": [{"percentage": "0.9"}],
}  # fmt: skip
REFUND_EVERY = 10


@dataclass(frozen=True)
class JournalMeasured:
    """Entries a second, the medians of ``rounds`` runs of each kind."""

    entries: int
    lines: int
    writers: int
    rounds: int
    even_per_s: float
    hot_per_s: float
    core_per_s: float
    sealed_per_s: float

    @property
    def of_core(self) -> float:
        return self.even_per_s / self.core_per_s

    @property
    def hot_of_even(self) -> float:
        return self.hot_per_s / self.even_per_s


def measure_journal(
    entries: int, rounds: int, say: Callable[[str], None], folder: Path | None = None
) -> JournalMeasured:
    """Measure on a PostgreSQL of its own. WrongRun when the books come out wrong."""
    from pipeline.embedded.postgres import new_database, start_postgres, stop_postgres

    even_s, hot_s, core_s, sealed_s, lines = [], [], [], [], 0
    with tempfile.TemporaryDirectory(dir=folder) as data:
        # PostgreSQL may run as another user, which has to reach its data.
        Path(data).chmod(0o755)
        handle = start_postgres(Path(data) / "postgres", die_with_parent=True)
        try:
            for number in range(rounds):
                say(f"Journal: round {number + 1} of {rounds}, {entries:,} entries each")
                url = new_database(handle, f"even{number}")
                even_s.append(_book(url, entries, hot=False))
                started_s = time.perf_counter()
                _seal(url)
                sealed_s.append(time.perf_counter() - started_s)
                lines = _check(url, entries)
                core_s.append(_core(url, new_database(handle, f"core{number}")))
                url = new_database(handle, f"hot{number}")
                hot_s.append(_book(url, entries, hot=True))
                _check(url, entries)
        finally:
            stop_postgres(handle)
    even, hot, core, sealed = (
        entries / statistics.median(seconds) for seconds in (even_s, hot_s, core_s, sealed_s)
    )
    return JournalMeasured(entries, lines, WRITERS, rounds, even, hot, core, sealed)


class _Start:
    """Lets processes begin together, once each has made what it needs."""

    def __init__(self, ready: Any, go: Any) -> None:
        self.ready = ready
        self.go = go

    def wait(self) -> None:
        with self.ready.get_lock():
            self.ready.value += 1
        self.go.wait()


def _book(url: str, entries: int, *, hot: bool) -> float:
    """Seconds from the first writer's first batch to the last one's commit."""
    engine = open_ledger(url)
    journal = Journal(engine, SOURCE)
    for partition in range(PARTITIONS):
        journal.begin_partition(partition, 0)
    with engine.begin() as connection:
        decide_terms(
            connection, SOURCE.topic, body=schedule_body(SCHEDULE, 1), effective_from_ms=1,
            actor="benchmark", reason="", now_ms=1,
        )  # fmt: skip
    engine.dispose()
    return _in_processes(_book_part, [(url, entries, n, hot) for n in range(WRITERS)])


def _book_part(start: _Start, url: str, entries: int, writer: int, hot: bool) -> None:
    work = [n for n in range(entries) if n % PARTITIONS % WRITERS == writer]
    settlements = [(n % PARTITIONS, settlement(n, hot)) for n in work]
    engine = open_ledger(url)
    journal = Journal(engine, SOURCE)
    booked = {p: 0 for p in range(PARTITIONS) if p % WRITERS == writer}
    start.wait()
    for begin in range(0, len(settlements), BATCH):
        items, progress = [], dict(booked)
        for partition, each in settlements[begin : begin + BATCH]:
            entry = journal_entry(each)
            if isinstance(entry, PostingRefused):
                raise WrongRun(f"{entry.rule}: {entry.detail}")
            items.append(Item(partition, progress[partition], entry))
            progress[partition] += 1
        journal.post(items, {p: Progress(booked[p], progress[p]) for p in progress})
        booked = progress
    engine.dispose()


def _core(source_url: str, url: str) -> float:
    """The rows of the other database, into tables with primary keys only."""
    engine = create_engine(_driver(url))
    plain().create_all(engine)
    engine.dispose()
    return _in_processes(_core_part, [(source_url, url, n) for n in range(WRITERS)])


def _core_part(start: _Start, source_url: str, url: str, writer: int) -> None:
    source = create_engine(_driver(source_url))
    with source.connect() as connection:
        mine = text(
            "SELECT {columns} FROM journal_entries e {join} "
            f"WHERE e.source_partition % {WRITERS} = {writer} "
            "ORDER BY e.source_offset, e.source_partition"
        )
        heads = [
            dict(row._mapping)
            for row in connection.execute(text(mine.text.format(columns="e.*", join="")))
        ]
        lines: dict[int, list[dict[str, Any]]] = {}
        for row in connection.execute(
            text(
                mine.text.format(
                    columns="p.*", join="JOIN postings p ON p.entry_number = e.entry_number"
                )
            )
        ):
            lines.setdefault(row.entry_number, []).append(dict(row._mapping))
    source.dispose()
    batches = []
    for begin in range(0, len(heads), BATCH):
        part = heads[begin : begin + BATCH]
        batches.append((part, [line for head in part for line in lines[head["entry_number"]]]))
    tables = plain().tables
    engine = create_engine(_driver(url))
    with engine.connect() as connection:
        # Connected before the clock starts, as the ledger's writers are.
        connection.execute(select(1))
    start.wait()
    for part, their_lines in batches:
        with engine.begin() as connection:
            connection.execute(insert(tables["postings"]), their_lines)
            connection.execute(insert(tables["journal_entries"]), part)
    engine.dispose()


def plain() -> MetaData:
    """The same two tables, columns and types, with primary keys only."""
    made = MetaData()
    for table in (journal_entries, postings):
        columns = [Column(c.name, c.type, nullable=False) for c in table.columns]
        keys = [column.name for column in table.primary_key.columns]
        Table(table.name, made, *columns, PrimaryKeyConstraint(*keys))
    return made


def _in_processes(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> float:
    """Run them side by side; seconds from when all are ready until the last one is done."""
    context = multiprocessing.get_context("spawn")
    start = _Start(context.Value("i", 0), context.Event())
    processes = [context.Process(target=target, args=(start, *each)) for each in arguments]
    for process in processes:
        process.start()
    try:
        while start.ready.value < len(processes):
            if any(process.exitcode is not None for process in processes):
                raise WrongRun("a writer died before it began")
            time.sleep(0.05)
        start.go.set()
        started_s = time.perf_counter()
        for process in processes:
            process.join()
        elapsed_s = time.perf_counter() - started_s
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    if any(process.exitcode for process in processes):
        raise WrongRun("a writer died")
    return elapsed_s


def _seal(url: str) -> None:
    engine = open_ledger(url)
    while seal(engine):
        pass
    engine.dispose()


def _check(url: str, entries: int) -> int:
    engine = open_ledger(url)
    with reading(engine) as connection:
        found = entry_count(connection)
        lines = connection.execute(text("SELECT count(*) FROM postings")).scalar_one()
        drifted = drifted_balances(connection)
    engine.dispose()
    if found != entries or drifted:
        raise WrongRun(f"{found} entries of {entries}, {len(drifted)} balances are not their sums")
    return int(lines)


def settlement(number: int, hot: bool) -> Settlement:
    """The same for the same number. Every tenth gives back part of the sale twelve before it."""
    refund = number % REFUND_EVERY == REFUND_EVERY - 1 and number >= PARTITIONS
    # Twelve before lies in the same partition and is never a refund itself.
    sale = number - PARTITIONS if refund else number
    merchant = f"merchant-{sale % MERCHANTS}"
    if hot and sale // 10 % 10 < HOT_IN_TEN:
        merchant = "merchant-hot"
    order = f"order-{sale}"
    payment = payment_id(merchant, order)
    operation, kind = (f"refund-{number}", "refund") if refund else (order, "capture")
    amount = 1_000 + sale % 9_000
    return Settlement(
        settlement_id=settlement_id(payment, operation, kind),
        merchant_id=merchant,
        order_id=order,
        payment_id=payment,
        operation_id=operation,
        kind=kind,
        amount_minor=-(amount // 3) if refund else amount,
        currency=("GBP", "EUR", "JPY")[sale % 3],
        gateway="simulator",
        gateway_reference=f"ch_{number:012d}",
        business_date="2010-12-01",
        ordered_at_ms=1_700_000_000_000 + number,
        settled_at_ms=1_700_000_000_100 + number,
        payment_method="card",
    )


def _driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)

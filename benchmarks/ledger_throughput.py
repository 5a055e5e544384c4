"""How many settlements a second the ledger books, in durable batches.

    python -m benchmarks.ledger_throughput --settlements 100000 --batch 2000 [--url postgresql://…]

Measures the whole of what the consumer does to the database: posting rules, duplicates looked up,
entries, postings, balances and offsets in one transaction for each batch. Without ``--url`` the
ledger is a SQLite file in a temporary folder. Decoding is left out (``--decode`` adds it). Prints
JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import uuid
from pathlib import Path

from pipeline.domain.model import Settlement
from pipeline.domain.posting import PostingRefused, journal_entry
from pipeline.domain.records import settlement_from_record, to_record
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.entries import Item
from pipeline.ledger.journal import Journal, Progress, Source
from pipeline.ledger.queries import entry_count, trial_balance
from schemas.codec import default_codec

PARTITIONS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--settlements", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=2_000)
    parser.add_argument("--merchants", type=int, default=500)
    parser.add_argument("--decode", action="store_true", help="include decoding from Avro")
    parser.add_argument("--url", help="an existing database (default: SQLite in a temporary file)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = arguments.url or f"sqlite:///{Path(folder) / 'ledger.db'}"
        print(json.dumps(measure(url, arguments), indent=2))


def measure(url: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Book that many new settlements and report the rate and the slowest batch."""
    codec = default_codec()
    encode = codec.encoder("settlement")
    decode = codec.decoder("settlement")
    values = [
        (settlement, encode(to_record(settlement)) if arguments.decode else b"")
        for settlement in (
            _settlement(n, arguments.merchants) for n in range(arguments.settlements)
        )
    ]
    engine = open_ledger(url)
    journal = Journal(engine, Source("benchmark", f"settlements-{uuid.uuid4()}", "topic-id"))
    for partition in range(PARTITIONS):
        journal.begin_partition(partition, 0)
    booked = dict.fromkeys(range(PARTITIONS), 0)
    batch_s: list[float] = []
    started_s, cpu_s = time.perf_counter(), time.process_time()
    for start in range(0, len(values), arguments.batch):
        batch_started_s = time.perf_counter()
        items = []
        progress = dict(booked)
        for n, (settlement, value) in enumerate(values[start : start + arguments.batch], start):
            entry = journal_entry(settlement_from_record(decode(value)) if value else settlement)
            if isinstance(entry, PostingRefused):
                raise SystemExit(f"{entry.rule}: {entry.detail}")
            partition = n % PARTITIONS
            items.append(Item(partition, progress[partition], entry))
            progress[partition] += 1
        journal.post(items, {p: Progress(booked[p], progress[p]) for p in progress})
        booked = progress
        batch_s.append(time.perf_counter() - batch_started_s)
    elapsed_s = time.perf_counter() - started_s
    cpu_s = time.process_time() - cpu_s
    with reading(engine) as connection:
        balanced = all(line.difference_minor == 0 for line in trial_balance(connection))
        entries = entry_count(connection)
    database = engine.dialect.name
    engine.dispose()
    return {
        "database": database,
        "settlements": arguments.settlements,
        "batch": arguments.batch,
        "decoding_included": arguments.decode,
        "settlements_per_s": round(arguments.settlements / elapsed_s),
        "cpu_us_per_settlement": round(cpu_s / arguments.settlements * 1e6, 1),
        "batch_ms_p50": round(sorted(batch_s)[len(batch_s) // 2] * 1000, 1),
        "batch_ms_max": round(max(batch_s) * 1000, 1),
        "entries_in_the_books": entries,
        "balanced": balanced,
    }


def _settlement(number: int, merchants: int) -> Settlement:
    return Settlement(
        settlement_id=str(uuid.uuid4()),
        merchant_id=f"merchant-{number % merchants}",
        order_id=f"order-{number}",
        payment_id=str(uuid.uuid4()),
        operation_id=f"order-{number}",
        kind="capture",
        amount_minor=1_000 + number % 9_000,
        currency=("GBP", "EUR", "JPY")[number % 3],
        gateway="simulator",
        gateway_reference=f"ch_{number:012d}",
        business_date="2010-12-01",
        ordered_at_ms=1_700_000_000_000 + number,
        settled_at_ms=1_700_000_000_100 + number,
    )


if __name__ == "__main__":
    main()

"""Matching reports with the books: how long, in how much memory, and everything found by name.

On both sides as many sales as asked for, in shuffled order, of one gateway; one in a hundred is
missing at the gateway, one is missing here, and so on for each kind of break of rows; one payout
batch in a hundred differs from the bank's line. The ledger is a SQLite file, then a PostgreSQL of
the benchmark's own. What is found is compared with what was damaged: a figure for a wrong result is
none.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path

from sqlalchemy import Engine, insert

from benchmarks.failure import WrongRun
from pipeline.domain.clearing import Clearing
from pipeline.domain.ids import payment_id, settlement_id
from pipeline.domain.posting import JournalEntry, Posting, entry_id
from pipeline.domain.reconciliation_rules import read_rules
from pipeline.ledger.database import open_ledger
from pipeline.ledger.entries import EntryWriter, Item
from pipeline.ledger.journal import Progress, Source
from pipeline.ledger.reconciliation.clearing import keep_breaks, look
from pipeline.ledger.reconciliation.findings import Clocks
from pipeline.ledger.reconciliation.intake import Placed, take_in
from pipeline.ledger.reconciliation.tables import bank_lines, prepare

CLEARINGS = Source("benchmark", "clearings", "topic")
TOPICS = ("settlements", "clearings")
GATEWAY = "north"
SETTLED_MS = 1_700_000_000_000
REPORT_DATE = "2023-11-15"
AS_OF = date(2023, 12, 15)
BATCH = 5_000
BATCHES = 500
# One in so many of each kind; a sale has one trouble at most.
EVERY = 100
TROUBLES = (
    "missing_at_gateway", "missing_here", "amount_differs", "currency_differs", "fee_differs",
    "duplicate",
)  # fmt: skip
SEED = 7


@dataclass(frozen=True)
class Reconciled:
    """``taken_s``: rows into the database; ``matched_s``: both sides matched, and the breaks."""

    database: str
    sales: int
    rows: int
    breaks: int
    taken_s: float
    matched_s: float
    kept_s: float
    peak_mib: float

    @property
    def seconds(self) -> float:
        return self.taken_s + self.matched_s + self.kept_s


def measure_reconcile(
    sales: int, say: Callable[[str], None], folder: Path | None = None
) -> list[Reconciled]:
    """WrongRun when something was not found, or found that nobody damaged."""
    from pipeline.embedded.postgres import new_database, start_postgres, stop_postgres

    found = []
    with tempfile.TemporaryDirectory(dir=folder) as data:
        url = f"sqlite:///{Path(data) / 'ledger.sqlite'}"
        found.append(_measured("SQLite", url, sales, say))
    with tempfile.TemporaryDirectory(dir=folder) as data:
        # PostgreSQL may run as another user, which has to reach its data.
        Path(data).chmod(0o755)
        handle = start_postgres(Path(data) / "postgres", die_with_parent=True)
        try:
            url = new_database(handle, "reconcile")
            found.append(_measured("PostgreSQL", url, sales, say))
        finally:
            stop_postgres(handle)
    return found


def _measured(database: str, url: str, sales: int, say: Callable[[str], None]) -> Reconciled:
    # Each in a process of its own, so that the memory of one is not the other's.
    with _process() as pool:
        say(f"Reconcile on {database}: booking {sales:,} sales")
        pool.submit(_book, url, sales).result()
    with _process() as pool:
        say(f"Reconcile on {database}: taking in, matching {sales:,} a side")
        return pool.submit(_reconcile, database, url, sales).result()


def expected(sales: int) -> Counter[str]:
    """Breaks by kind for so many sales."""
    found = Counter(trouble for n in range(sales) if (trouble := trouble_of(n)))
    found["batch_differs"] = len(range(0, BATCHES, EVERY))
    return found


def trouble_of(number: int) -> str:
    place = number % EVERY
    return TROUBLES[place] if place < len(TROUBLES) else ""


def entry(number: int) -> JournalEntry:
    """A capture of the books with its fee and the cost that is expected."""
    merchant, order = f"m{number % 500}", f"o{number}"
    payment = payment_id(merchant, order)
    settlement = settlement_id(payment, order, "capture")
    amount, cost = _amounts(number)
    receivable, payable = f"gateway_receivable:{GATEWAY}", f"merchant_payable:{merchant}"
    return JournalEntry(
        entry_id=entry_id(settlement), settlement_id=settlement, kind="capture",
        merchant_id=merchant, order_id=order, payment_id=payment, operation_id=order,
        gateway=GATEWAY, gateway_reference=f"ch_{number:012d}", business_date="2023-11-14",
        settled_at_ms=SETTLED_MS + number, terms="1/p/card",
        postings=(
            Posting(receivable, "GBP", amount), Posting(payable, "GBP", -amount),
            Posting(payable, "GBP", 20), Posting(f"fee_revenue:{merchant}", "GBP", -20),
            Posting(f"gateway_cost:{GATEWAY}", "GBP", cost), Posting(receivable, "GBP", -cost),
        ),
    )  # fmt: skip


def rows_of(number: int) -> list[Clearing]:
    """What the report says of a sale: its row, damaged as its trouble has it."""
    made = entry(number)
    trouble = trouble_of(number)
    amount, cost = _amounts(number)
    if trouble == "missing_at_gateway":
        return []
    reference = made.gateway_reference
    rows = []
    for copy in range(2 if trouble in ("duplicate", "missing_here") else 1):
        strange = copy == 1 and trouble == "missing_here"
        rows.append(
            Clearing(
                gateway=GATEWAY,
                file_id="r1",
                row_number=2 * number + copy + 1,
                report_date=REPORT_DATE,
                kind="capture",
                operation_kind="charge",
                gateway_reference=f"xx_{number}" if strange else reference,
                amount_minor=amount + (trouble == "amount_differs"),
                fee_minor=cost + 3 * (trouble == "fee_differs"),
                currency="EUR" if trouble == "currency_differs" else "GBP",
                batch_id=f"b{number % BATCHES}" if copy == 0 else "other",
                occurred_at_ms=SETTLED_MS + number,
                payment_id="" if strange else made.payment_id,
                operation_id="" if strange else made.operation_id,
                attempt=0 if strange else 1,
                merchant_id=made.merchant_id,
                order_id=made.order_id,
            )
        )
    return rows


def _amounts(number: int) -> tuple[int, int]:
    amount = 1_000 + number % 9_000
    return amount, amount // 100


def _shuffled(sales: int) -> list[int]:
    numbers = list(range(sales))
    random.Random(SEED).shuffle(numbers)
    return numbers


def _book(url: str, sales: int) -> None:
    engine = open_ledger(url)
    writer = EntryWriter(engine.dialect.name, lambda: SETTLED_MS)
    numbers = _shuffled(sales)
    for start in range(0, sales, BATCH):
        items = [
            Item(0, offset, entry(number))
            for offset, number in enumerate(numbers[start : start + BATCH], start)
        ]
        with engine.begin() as connection:
            writer.add_balances(connection, writer.insert(connection, TOPICS[0], items))
        writer.committed()
    engine.dispose()


def _placed(sales: int) -> Iterator[Placed]:
    offset = 0
    # Another order than the books', as another day's.
    for number in reversed(_shuffled(sales)):
        for row in rows_of(number):
            yield Placed(row, 0, offset)
            offset += 1


def _reconcile(database: str, url: str, sales: int) -> Reconciled:
    engine = open_ledger(url)
    prepare(engine)
    rows, taken_s = _take_in(engine, sales)
    _pay(engine, sales)
    rules = read_rules({"gateways": {GATEWAY: {}}})
    started_s = time.perf_counter()
    done = look(engine, TOPICS, rules, Clocks(rules, SETTLED_MS, AS_OF), SETTLED_MS, dry_run=True)
    matched_s = time.perf_counter() - started_s
    started_s = time.perf_counter()
    keep_breaks(engine, done, SETTLED_MS)
    kept_s = time.perf_counter() - started_s
    found = Counter(each.kind for each in done.breaks)
    # Differences of fees are kept with the decision that books the row, so they are counted here.
    found["fee_differs"] = done.fees
    wanted = expected(sales)
    cleared = sales - sum(wanted[k] for k in ("missing_at_gateway", "amount_differs",
                                              "currency_differs"))  # fmt: skip
    if found != wanted or done.cleared != cleared:
        raise WrongRun(
            f"found {dict(found)} and {done.cleared} cleared, should be {dict(wanted)} and "
            f"{cleared}"
        )
    engine.dispose()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Reconciled(
        database, sales, rows, sum(wanted.values()), taken_s, matched_s, kept_s, peak_mib
    )


def _take_in(engine: Engine, sales: int) -> tuple[int, float]:
    """How many rows, and in what time; making them up does not count."""
    done = rows = 0
    taken_s = 0.0
    placed = _placed(sales)
    while batch := list(islice(placed, BATCH)):
        end = batch[-1].offset + 1
        started_s = time.perf_counter()
        rows += take_in(engine, CLEARINGS, batch, {0: Progress(done, end)})
        taken_s += time.perf_counter() - started_s
        done = end
    return rows, taken_s


def _pay(engine: Engine, sales: int) -> None:
    """The bank's line of each batch, one in a hundred of them a minor unit short."""
    sums: Counter[tuple[str, str]] = Counter()
    for number in range(sales):
        for row in rows_of(number):
            sums[row.batch_id, row.currency] += row.amount_minor - row.fee_minor
    lines = [
        {
            "account": "acct", "file_id": "s", "line_id": str(n), "gateway": GATEWAY,
            "batch_id": batch, "currency": currency,
            "amount_minor": minor - _short(batch, currency), "value_date": "2023-11-17",
            "text": "", "sequence": 0,
        }
        for n, ((batch, currency), minor) in enumerate(sums.items())
    ]  # fmt: skip
    with engine.begin() as connection:
        connection.execute(insert(bank_lines), lines)


def _short(batch: str, currency: str) -> int:
    # Of batches whose sales have no trouble of their own.
    return int(currency == "GBP" and batch != "other" and int(batch[1:]) % EVERY == EVERY - 1)


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

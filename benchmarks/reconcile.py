"""One run of reconciliation: how long, in how much memory, and everything found by name.

On both sides as many sales as asked for, in shuffled order, of one gateway; one in a hundred is
missing at the gateway, one is missing here, and so on for each kind of break of rows; one payout
batch in a hundred differs from the bank's line. Settlements and rows lie in the topics of a broker,
the books have the settlements: in a SQLite file, then in a PostgreSQL of the benchmark's own. What
is measured is all that ``paystream reconcile run`` does. What it found is compared with what was
damaged, and the books with what is cleared: a figure for a wrong result is none.
"""

from __future__ import annotations

import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from itertools import islice
from pathlib import Path

from confluent_kafka import Producer
from sqlalchemy import Engine, text

from benchmarks.failure import WrongRun
from benchmarks.flow import FlowOptions, ground
from benchmarks.own_process import own_process
from consumers.reconciliation import Ran, Reconciler
from pipeline.config import Settings
from pipeline.domain.clearing import BankLine, Clearing
from pipeline.domain.ids import payment_id, settlement_id
from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.model import Settlement
from pipeline.domain.posting import JournalEntry, Posting, entry_id
from pipeline.domain.reconciliation_decisions import BankStatement
from pipeline.domain.reconciliation_rules import read_rules
from pipeline.domain.records import to_record
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.entries import EntryWriter, Item
from pipeline.ledger.journal import Journal
from pipeline.ledger.queries import drifted_balances
from pipeline.ledger.reconciliation.breaks import list_breaks
from pipeline.ledger.reconciliation.clearing import Look
from producers.clearings import ReconciliationPublisher
from producers.ledger_events import topic_source
from schemas.codec import default_codec

GATEWAY = "north"
SETTLED_MS = 1_700_000_000_000
REPORT_DATE = "2023-11-15"
AS_OF = date(2023, 12, 15)
BATCH = 5_000
BATCHES = 500
FLUSH_TIMEOUT_S = 120
# One in so many of each kind; a sale has one trouble at most.
EVERY = 100
TROUBLES = (
    "missing_at_gateway", "missing_here", "amount_differs", "currency_differs", "fee_differs",
    "duplicate",
)  # fmt: skip
SEED = 7


@dataclass(frozen=True)
class Reconciled:
    """``taken_s``: rows out of the topic into the database; ``matched_s``: one look at both sides
    and all breaks found, of which nothing follows, beside the run; ``decided_s``: both sides
    matched, and what matches decided; ``booked_s``: that published and booked; ``kept_s``: the
    settlements topic compared with the books, breaks kept and published."""

    database: str
    sales: int
    rows: int
    breaks: int
    entries: int
    taken_s: float
    decided_s: float
    booked_s: float
    kept_s: float
    peak_mib: float
    matched_s: float = 0.0

    @property
    def seconds(self) -> float:
        """The whole run; what was looked at beside it is no part of it."""
        return self.taken_s + self.decided_s + self.booked_s + self.kept_s


@dataclass
class _Steps:
    """When each step of a run was first done."""

    done_s: dict[str, float] = field(default_factory=dict)

    def __call__(self, step: str) -> None:
        self.done_s.setdefault(step, time.perf_counter())


def measure_reconcile(
    sales: int,
    say: Callable[[str], None],
    folder: Path | None = None,
    postgres_sales: int | None = None,
) -> list[Reconciled]:
    """WrongRun when something was not found, or found that nobody damaged."""
    from pipeline.embedded.postgres import new_database, start_postgres, stop_postgres

    found = []
    with tempfile.TemporaryDirectory(dir=folder) as data:
        url = f"sqlite:///{Path(data) / 'ledger.sqlite'}"
        found.append(_measured("SQLite", url, sales, say, folder))
    with tempfile.TemporaryDirectory(dir=folder) as data:
        # PostgreSQL may run as another user, which has to reach its data.
        Path(data).chmod(0o755)
        handle = start_postgres(Path(data) / "postgres", die_with_parent=True)
        try:
            url = new_database(handle, "reconcile")
            found.append(_measured("PostgreSQL", url, postgres_sales or sales, say, folder))
        finally:
            stop_postgres(handle)
    return found


def _measured(
    database: str, url: str, sales: int, say: Callable[[str], None], folder: Path | None
) -> Reconciled:
    with ground(FlowOptions(folder=folder)) as on:
        # Each in a process of its own, so that the memory of one is not the other's.
        with own_process() as pool:
            say(f"Reconcile on {database}: publishing and booking {sales:,} sales")
            pool.submit(prepare_sales, on.settings, url, sales).result()
        with own_process() as pool:
            say(f"Reconcile on {database}: one run over {sales:,} a side")
            return pool.submit(reconcile_sales, on.settings, database, url, sales).result()


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


def settlement(made: JournalEntry) -> Settlement:
    """What the entry was booked from."""
    movement = made.postings[0]
    return Settlement(
        settlement_id=made.settlement_id, merchant_id=made.merchant_id, order_id=made.order_id,
        payment_id=made.payment_id, operation_id=made.operation_id, kind=made.kind,
        amount_minor=movement.amount_minor, currency=movement.currency, gateway=made.gateway,
        gateway_reference=made.gateway_reference, business_date=made.business_date,
        ordered_at_ms=made.settled_at_ms, settled_at_ms=made.settled_at_ms, payment_method="card",
    )  # fmt: skip


def prepare_sales(settings: Settings, url: str, sales: int, *, booked: int | None = None) -> None:
    """Everything before the run: settlements in their topic and the books, the report's rows in
    theirs, the bank's lines booked. ``booked``: so many of the sales at most are in topic and
    books."""
    _book(settings, url, _shuffled(sales if booked is None else booked))
    publisher = ReconciliationPublisher(
        settings.bootstrap_servers, settings.catalogue(), default_codec()
    )
    # Another order than the books', as another day's.
    rows = (row for number in reversed(_shuffled(sales)) for row in rows_of(number))
    while batch := list(islice(rows, BATCH)):
        publisher.rows(batch)
    engine = open_ledger(url)
    reconciler_of(settings, engine).import_statement(_statement(sales), "benchmark")
    engine.dispose()


def _book(settings: Settings, url: str, numbers: Iterable[int]) -> None:
    catalogue = settings.catalogue()
    topic = catalogue.name("settlements")
    partitions = catalogue["settlements"].partitions
    encode = default_codec().encoder("settlement")
    # In order, so that the offsets are known before they are told.
    producer = Producer({"bootstrap.servers": settings.bootstrap_servers,
                         "enable.idempotence": True, "linger.ms": 20, "log_level": 0})  # fmt: skip
    engine = open_ledger(url)
    writer = EntryWriter(engine.dialect.name, lambda: SETTLED_MS)
    ends = dict.fromkeys(range(partitions), 0)
    waiting = iter(numbers)
    while batch := list(islice(waiting, BATCH)):
        items = []
        for number in batch:
            made = entry(number)
            key = record_key(made.merchant_id, made.order_id)
            partition = partition_of(key, partitions)
            producer.produce(topic, encode(to_record(settlement(made))), key, partition)
            items.append(Item(partition, ends[partition], made))
            ends[partition] += 1
        with engine.begin() as connection:
            writer.add_balances(connection, writer.insert(connection, topic, items))
        writer.committed()
        if producer.flush(FLUSH_TIMEOUT_S):
            raise WrongRun("the settlements could not be published")
    journal = Journal(engine, topic_source(settings.bootstrap_servers, topic))
    for partition, end in ends.items():
        journal.begin_partition(partition, end)
    engine.dispose()


def _statement(sales: int) -> BankStatement:
    """The bank's line of each batch, one in a hundred of them a minor unit short."""
    sums: Counter[tuple[str, str]] = Counter()
    for number in range(sales):
        for row in rows_of(number):
            sums[row.batch_id, row.currency] += row.amount_minor - row.fee_minor
    lines = tuple(
        BankLine(
            line_id=str(n), amount_minor=minor - _short(batch, currency), currency=currency,
            value_date="2023-11-17", gateway=GATEWAY, batch_id=batch,
        )
        for n, ((batch, currency), minor) in enumerate(sums.items())
    )  # fmt: skip
    return BankStatement("acct", "s", lines)


def reconciler_of(
    settings: Settings, engine: Engine, on_step: Callable[[str], None] = lambda _step: None
) -> Reconciler:
    return Reconciler(
        settings.bootstrap_servers, settings.catalogue(), default_codec(), engine,
        read_rules({"gateways": {GATEWAY: {}}}), now_ms=lambda: SETTLED_MS, on_step=on_step,
    )  # fmt: skip


def reconcile_sales(settings: Settings, database: str, url: str, sales: int) -> Reconciled:
    """One run, step by step. WrongRun when it did not find exactly what was damaged."""
    engine = open_ledger(url)
    steps = _Steps()
    reconciler = reconciler_of(settings, engine, steps)
    started_s = time.perf_counter()
    rows = reconciler.take_in()
    taken_s = time.perf_counter()
    looked = reconciler.preview(as_of=AS_OF)
    matched_s = time.perf_counter()
    _require_seen(looked, sales)
    del looked
    run_s = time.perf_counter()
    ran = reconciler.run(as_of=AS_OF)
    ended_s = time.perf_counter()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    _require_right(engine, ran, sales)
    engine.dispose()
    at = steps.done_s
    return Reconciled(
        database, sales, rows, sum(expected(sales).values()), ran.entries,
        taken_s=taken_s - started_s, matched_s=matched_s - taken_s,
        decided_s=at["decided"] - run_s, booked_s=at["booked"] - at["decided"],
        kept_s=ended_s - at["booked"], peak_mib=peak_mib,
    )  # fmt: skip


def _require_seen(looked: Look, sales: int) -> None:
    """What was found and not kept: fees are counted, since they are told when a row is booked."""
    wanted = expected(sales)
    found = Counter(each.kind for each in looked.breaks) + Counter(fee_differs=looked.fees)
    if found != wanted or looked.waiting:
        raise WrongRun(f"the look found {dict(found)}, should be {dict(wanted)}")


def _require_right(engine: Engine, ran: Ran, sales: int) -> None:
    wanted = expected(sales)
    cleared = sales - sum(wanted[k] for k in ("missing_at_gateway", "amount_differs",
                                              "currency_differs"))  # fmt: skip
    with reading(engine) as connection:
        found = Counter(each.kind for each in list_breaks(connection))
        booked = connection.execute(
            text("SELECT count(*) FROM journal_entries WHERE kind = 'clearing'")
        ).scalar_one()
        drifted = drifted_balances(connection)
    if found != wanted or (ran.cleared, ran.entries, booked) != (cleared, cleared, cleared):
        raise WrongRun(
            f"found {dict(found)}, {ran.cleared} cleared and {booked} booked, should be "
            f"{dict(wanted)} and {cleared}"
        )
    if drifted:
        raise WrongRun(f"{len(drifted)} balances are not the sums of their postings")


def _short(batch: str, currency: str) -> int:
    # Of batches whose sales have no trouble of their own.
    return int(currency == "GBP" and batch != "other" and int(batch[1:]) % EVERY == EVERY - 1)

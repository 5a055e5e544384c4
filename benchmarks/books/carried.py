"""Orders carried through the whole flow, and what its gateway has to say about them afterwards.

The sample and generated orders in three currencies, an eighth of what is generated given back in
part, some of it disputed, under a schedule of fees. The gateway simulator answers over HTTP with
faults and makes a settlement report of what it has done so far each time another part of the orders
has ended: the reports of successive days, of which some rows come a day late.
"""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.books.disputed import Disputes
from benchmarks.failure import WrongRun
from pipeline.config import Settings, load_settings
from pipeline.demo import PACE, sample_file
from pipeline.domain.decisions import schedule_body
from pipeline.domain.model import Order, PaymentCommand
from pipeline.embedded.kafka_config import SHORT_LIVED
from pipeline.gateways.simulator.faults import DEFAULT_FAULTS, FaultPlan
from pipeline.gateways.simulator.reports import LATE_EVERY
from pipeline.ledger.database import open_ledger
from pipeline.ledger.decisions import decide_terms
from pipeline.local import LocalFlow
from pipeline.observability.progress import Progress, progress
from pipeline.record_codec import record_codec
from producers.cancellations import given_back as cancelled
from producers.command_publisher import CommandPublisher
from producers.invoice_csv import read_invoices
from producers.ledger_events import LedgerEvents
from producers.load_generator import LoadPlan, orders
from producers.order_publisher import OrderPublisher

Say = Callable[[str], None]

CURRENCIES = ("GBP", "EUR", "JPY")
GATEWAY = "simulator"
# Of the generated orders, one in so many is given back in part.
REFUND_EVERY = 8
# Reports while the orders come; two more once all is done take in what is left, a last one what
# was won of the disputes.
PARTS = 8
# Charges are disputed once that part of the orders has ended: what is damaged are rows of the first
# half of the reports, and theirs are to be among them.
DISPUTED_AT = 3
# Each fault of the simulator's default plan, an eighth as often, and a breaker that only a gateway
# in which nothing works opens: where every fifth call fails, or the machine is slow, the only
# gateway is left alone nearly all the time, and 200,000 orders take hours.
RATES = {
    kind: rate / 8 if kind in DEFAULT_FAULTS else rate
    for kind, rate in FaultPlan.default().rates.items()
}
PATIENCE = """
[gateways.simulator.breaker]
trouble_percent = 100
hanging_min = 100
silent_ms = 60000
slow_ms = 60000
"""
CALL_TIMEOUT_MS = 5_000
# Fewer are over before a broker's second compiler would pay.
SHORT_ORDERS = 1_000
# What the simulator takes of a charge, so that its fees are the ones that are expected.
SCHEDULE: dict[str, Any] = {
    "plans": [
        {"name": f"standard-{each}", "currency": each, "percentage": "2.1", "fixed_minor": 30,
         "returned": "percentage"}
        for each in CURRENCIES
    ],
    "gateway_costs": [
        {"gateway": GATEWAY, "currency": each, "percentage": "1.4", "fixed_minor": 20}
        for each in CURRENCIES
    ],
}  # fmt: skip
# The slowest wait of the default faults takes about 20 s; on a busy machine more.
STALLED_S_MAX = 180.0
SHOWN_EVERY_S = 5.0
HTTP_TIMEOUT_S = 120.0
# The broker stops before this process ends; its loss is not worth a line.
QUIET = {"log_level": 0}


@dataclass(frozen=True)
class Carried:
    """A flow that has nothing left to do, and goes on running."""

    flow: LocalFlow
    folder: Path
    orders: int
    commands: int
    disputes: Disputes
    reports: Reports

    @property
    def days(self) -> tuple[str, ...]:
        """Those with a report."""
        return tuple(self.reports.days)

    @property
    def settings(self) -> Settings:
        return self.flow.settings

    def get(self, path: str) -> bytes:
        """What the gateway answers."""
        with urllib.request.urlopen(self.settings.gateway_url + path, timeout=HTTP_TIMEOUT_S) as it:
            body: bytes = it.read()
            return body


@contextmanager
def carried(
    count: int,
    folder: Path,
    say: Say,
    *,
    seed: int,
    faults: str = "",
    parts: int = PARTS,
    partitions: int = PACE["partitions"],
) -> Iterator[Carried]:
    """Carry the sample and ``count`` generated orders through a flow of its own in ``folder``.
    ``faults``: a plan's name or file, if not ``RATES``."""
    sold, asked = _orders(count, seed)
    plan, routes = folder / "faults.json", folder / "routes.toml"
    plan.write_text(json.dumps({"rates": RATES}))
    routes.write_text(PATIENCE)
    settings = load_settings(
        **{**PACE, "call_timeout_ms": CALL_TIMEOUT_MS, "partitions": partitions},
        routes_file=str(routes), state_dir=folder,
    )  # fmt: skip
    with LocalFlow(
        settings,
        {"payments": 1, "gateway": 1, "ledger": 1},
        faults=faults or str(plan),
        seed=seed,
        log_file=folder / "workers.log",
        say=say,
        jvm_flags=SHORT_LIVED if count < SHORT_ORDERS else (),
    ) as flow:
        _put_in_force(flow.settings)
        flow.wait_until_joined()
        disputes = Disputes(
            flow.settings.gateway_url, flow.settings.books_url(), len(sold), random.Random(seed)
        )
        reports = Reports(flow, len(sold), parts)
        first = len(sold) // DISPUTED_AT
        _publish(flow, sold[:first])
        say(f"Published {first:,} of {len(sold):,} orders")
        _wait(
            flow, lambda at: at.ended + at.dead >= first and at.posted >= at.moved, say,
            reports.keep_up,
        )  # fmt: skip
        disputes.open(but={command.order_id for command in asked})
        say(f"{disputes.opened:,} charges of them are disputed")
        _publish(flow, sold[first:])
        say(f"Published {len(sold) - first:,} orders more")
        _wait(flow, lambda at: at.ended + at.dead >= len(sold), say, reports.keep_up)
        commands = CommandPublisher(
            flow.settings.bootstrap_servers,
            topic=flow.settings.catalogue().name("payment-commands"),
            config=QUIET,
        )
        with commands as asks:
            for number, command in enumerate(asked):
                asks.publish(command)
                if number % 1_000 == 0:
                    flow.tick()
        say(f"Published {len(asked):,} refunds and credits")
        _wait(flow, lambda at: at.answered >= len(asked) and at.posted >= at.moved, say)
        reports.finish()
        yield Carried(flow, folder, len(sold), len(asked), disputes, reports)


def wait_for_books(on: Carried, captured: int, say: Say) -> None:
    """Until so many payments are captured, and all that has moved is booked, for disputes as
    well."""
    disputed = on.disputes.entries
    _wait(on.flow, lambda at: at.captured >= captured and at.posted >= at.moved + disputed, say)


def captured_so_far(flow: LocalFlow) -> int:
    return _progress(flow).captured


class Reports:
    """Has the gateway make its next report each time a further part of the orders has ended."""

    def __init__(self, flow: LocalFlow, expected: int, parts: int) -> None:
        self._flow = flow
        self._parts = parts
        self._part = max(1, expected // parts)
        self._first = date.today() - timedelta(days=parts + 2)
        self._made = 0
        self.days: list[str] = []

    def keep_up(self, at: Progress) -> None:
        if self._made < self._parts and at.ended >= self._part * (self._made + 1):
            self._make(LATE_EVERY)

    def finish(self) -> None:
        """What is left, and on the day after it what was late of that."""
        self._make(LATE_EVERY)
        self.another()

    def another(self) -> None:
        """What has moved since, nothing of it late."""
        self._make(0)

    def _make(self, late_every: int) -> None:
        day = (self._first + timedelta(days=self._made)).isoformat()
        self._made += 1
        body = json.dumps({"date": day, "late_every": late_every}).encode()
        request = urllib.request.Request(
            f"{self._flow.settings.gateway_url}/v1/admin/reports", body
        )
        with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_S) as answer:
            # Of a day on which nothing moved there is no file.
            if json.load(answer)["rows"]:
                self.days.append(day)


def _orders(count: int, seed: int) -> tuple[list[Order], list[PaymentCommand]]:
    """What is sold, and what is asked for of it afterwards."""
    now_ms = int(time.time() * 1000)
    found = read_invoices(sample_file(), now_ms=now_ms)
    made = [
        LoadPlan(
            count=count // len(CURRENCIES) + (n < count % len(CURRENCIES)),
            submitted_at_ms=now_ms,
            business_date=date.today().isoformat(),
            seed=seed + n,
            currency=currency,
        )
        for n, currency in enumerate(CURRENCIES)
    ]
    generated = list(chain.from_iterable(orders(plan) for plan in made))
    refunds = [
        PaymentCommand(
            merchant_id=order.merchant_id,
            order_id=order.order_id,
            command_id=f"refund-{order.order_id}",
            type="refund",
            submitted_at_ms=now_ms,
            amount_minor=max(1, order.amount_minor // 3),
            currency=order.currency,
            reason="a part came back",
            actor="benchmark",
            business_date=order.business_date,
        )
        for order in generated[::REFUND_EVERY]
    ]
    # The same order twice in the file is one payment.
    sample = {(order.merchant_id, order.order_id): order for order in found.orders}
    return [*sample.values(), *generated], [*cancelled(found, now_ms=now_ms).commands, *refunds]


def _put_in_force(settings: Settings) -> None:
    catalogue = settings.catalogue()
    codec = record_codec(catalogue, settings.schema_registry_url)
    engine = open_ledger(settings.books_url())
    try:
        with engine.begin() as connection:
            decide_terms(
                connection, catalogue.name("settlements"), body=schedule_body(SCHEDULE, 1),
                effective_from_ms=1, actor="benchmark", reason="fees of the proof",
                now_ms=int(time.time() * 1000),
            )  # fmt: skip
        LedgerEvents(settings.bootstrap_servers, catalogue, codec).publish(engine)
    finally:
        engine.dispose()


def _publish(flow: LocalFlow, sold: Sequence[Order]) -> None:
    settings = flow.settings
    with OrderPublisher(
        settings.bootstrap_servers, topic=settings.catalogue().name("orders"), config=QUIET
    ) as to:
        for number, order in enumerate(sold):
            to.publish(order)
            if number % 1_000 == 0:
                flow.tick()


def _progress(flow: LocalFlow) -> Progress:
    running = flow.running
    if running is None:
        raise WrongRun("the workers are gone.")
    return progress(running.supervisor.metrics_dir)


def _wait(
    flow: LocalFlow,
    done: Callable[[Progress], bool],
    say: Say,
    each_look: Callable[[Progress], None] = lambda _at: None,
) -> None:
    """Keep the flow alive until it has come so far. WrongRun when it stands still."""
    before, moved_s = None, time.monotonic()
    shown_s = moved_s
    while True:
        flow.tick()
        at = _progress(flow)
        each_look(at)
        now_s = time.monotonic()
        if at != before:
            before, moved_s = at, now_s
        finished = done(at)
        if finished or now_s - shown_s >= SHOWN_EVERY_S:
            shown_s = now_s
            say(
                f"  ended {at.ended:,}, captured {at.captured:,}, answered {at.answered:,}, "
                f"booked {at.posted:,} of {at.moved:,}"
            )
        if finished:
            return
        if now_s - moved_s > STALLED_S_MAX:
            raise WrongRun(f"nothing has moved for {STALLED_S_MAX:.0f} s: {at}")
        time.sleep(0.25)

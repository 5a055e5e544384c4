"""Payouts: people who decide about them by the production's own code, and a bank that does what it
is told once and says so late, twice, or not at all.

A day of theirs is some seconds of the run. Each command is a process of its own, as a command line
is: it may end at any step, and whoever gave it gives it again until it was done.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any

from confluent_kafka import KafkaException
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from pipeline.domain.decisions import ENTRY, entry_body
from pipeline.domain.payout_files import payout_message
from pipeline.domain.payout_terms import terms_body
from pipeline.domain.transfers import made_available
from pipeline.errors import UserError
from pipeline.ledger.database import reading
from pipeline.ledger.decisions import decide, decisions_of
from pipeline.ledger.journal import Source
from pipeline.ledger.payouts import (
    create_payouts,
    decide_payout_terms,
    move_payouts,
    payout_book,
    payout_terms,
    settle_by_bank,
    submit_payouts,
)
from pipeline.ledger.seals import seal
from pipeline.runtime.topic_reader import PastRecord
from producers.ledger_events import LedgerEvents
from tests.simulation.clients import ClientFaults, SimProducer
from tests.simulation.ledger import SimLedger
from tests.simulation.log import VISIBLE, Cluster
from tests.simulation.payout_books import PayoutBooks
from tests.simulation.world import Process, World
from topics.catalogue import Catalogue

MERCHANTS = ("ash", "elm")
CURRENCY = "GBP"
FIRST_DAY = date(2027, 1, 11)
DAYS = 4
DAY_S = 14.0
# Who is away or was interrupted tries again after this.
AGAIN_S = 3.0
SEALED_TOGETHER = 7
# More than a run's entries need.
SEALINGS_MAX = 200
# The bank's fate of a payout: the words that it comes to. None: a person says first that nobody
# knows.
FATES: tuple[tuple[str | None, ...], ...] = (
    ("paid",), ("paid",), ("paid",), ("returned",), ("paid", "returned"), (None, "paid"),
    (None, "returned"),
)  # fmt: skip
_IBAN = "GB82WEST12345698765432"

Act = Callable[[Connection, int], None]


class SimLedgerEvents(LedgerEvents):
    """The topic of decisions as one process reaches it in the simulated cluster."""

    def __init__(
        self, cluster: Cluster, process: Process, faults: ClientFaults, catalogue: Catalogue,
        codec: Any,
    ) -> None:  # fmt: skip
        super().__init__("simulated", catalogue, codec)
        self._cluster = cluster
        self._process = process
        self._faults = faults

    def source(self) -> Source:
        return Source("simulated", self._topic, f"id-{self._topic}")

    def _onward(self, starts: Mapping[int, int]) -> Iterator[PastRecord]:
        found = [
            PastRecord(partition.number, each.offset, each.timestamp_ms, each.key, each.value)
            for partition in self._cluster.topics[self._topic]
            for each in partition.records[starts.get(partition.number, 0) : partition.stable]
            if each.state == VISIBLE
        ]
        yield from sorted(found, key=lambda each: each.timestamp_ms)

    def _fencing_producer(self) -> Any:
        name = f"{self._catalogue.settings.prefix}/ledger-events"
        config = {"transactional.id": name, "transaction.timeout.ms": 30_000}
        producer = SimProducer(self._cluster, self._process, self._faults, config)
        producer.init_transactions()
        return producer


class Office:
    """All of it, for one run. ``open``: commands and words of the bank that are still to come."""

    def __init__(
        self,
        seed: int,
        world: World,
        cluster: Cluster,
        catalogue: Catalogue,
        codec: Any,
        ledger: SimLedger,
        books: PayoutBooks,
        fired: Callable[[str, str], None],
    ) -> None:
        self._random = Random(f"{seed}/payouts")
        self._world = world
        self._cluster = cluster
        self._catalogue = catalogue
        self._codec = codec
        self._ledger = ledger
        self._books = books
        self._fired = fired
        self._faults = ClientFaults()
        self._commands = 0
        self.open = 0

    def events(self, process: Process) -> SimLedgerEvents:
        return SimLedgerEvents(self._cluster, process, self._faults, self._catalogue, self._codec)

    def start(self) -> None:
        """Put the days of the seed on the calendar."""
        draw = self._random
        self._at(0.5, 0, self._terms)
        for day in range(DAYS):
            began_s = 1.0 + day * DAY_S
            for merchant in MERCHANTS:
                for number in range(draw.choice((0, 1, 1, 2))):
                    amount_minor = draw.randrange(1, 50_000)
                    name = f"{merchant}-{day}-{number}"
                    self._books.received(merchant, amount_minor)
                    self._at(began_s, day, self._receive(name, merchant, amount_minor, day))
            for _ in range(draw.choice((1, 2))):
                self._at(began_s + 3.0 + draw.random(), day, self._create(day))
            # Who created it asks first, often; it must not be enough.
            for who in draw.choice((("bert",), (" Anna", "bert"), ("anna", "bert", "bert"))):
                self._at(began_s + 5.0 + draw.random(), day, self._approve(who))
            if draw.random() < 0.2:
                self._at(began_s + 5.5 + draw.random(), day, self._withdraw)
            for _ in range(draw.choice((1, 1, 2))):
                self._at(began_s + 7.0 + draw.random(), day, self._submit)
            self._at(began_s + 9.0, day, self._hand_over)
            self._world.after(began_s + draw.uniform(2.0, 9.0), self._seal)
        self._at(DAYS * DAY_S + 4.0, DAYS, self._hand_over)

    # Commands -----------------------------------------------------------------------------------

    def _at(self, delay_s: float, day: int, act: Act) -> None:
        self.open += 1
        steps = self._random.randrange(8) if self._random.random() < 0.3 else None
        self._world.after(delay_s, lambda: self._run(day, act, steps))

    def _run(self, day: int, act: Act, steps: int | None) -> None:
        """One command; ``steps``: after so many of them its process ends."""
        self._commands += 1
        world = self._world
        process = Process(world, f"office#{self._commands}")
        process.on_death.append(lambda: self._interrupted(process, day, act))
        if steps is not None:
            left = [steps]

            def strike(process: Process, name: str) -> None:
                left[0] -= 1
                if left[0] < 0:
                    self._fired("crash of a payout's command", name)
                    process.kill()

            process.armed, process.on_step = left, strike
        process.spawn(lambda: self._command(process, day, act))

    def _interrupted(self, process: Process, day: int, act: Act) -> None:
        self._ledger.take_back(process)
        self._again(day, act)

    def _again(self, day: int, act: Act) -> None:
        self._world.after(AGAIN_S, lambda: self._run(day, act, None))

    def _command(self, process: Process, day: int, act: Act) -> None:
        engine = self._ledger.engine
        now = datetime.combine(FIRST_DAY + timedelta(days=day), datetime.min.time(), UTC)
        now_ms = int(now.timestamp() * 1000) + 18 * 3_600_000
        try:
            process.step("begun")
            try:
                with engine.begin() as connection:
                    act(connection, now_ms)
            except UserError:
                # Refused: it was done already, or must not be.
                pass
            if act == self._hand_over:
                self.open -= 1
                return
            process.step("decided")
            self.events(process).publish(engine, on_step=process.step)
        except (UserError, KafkaException, DBAPIError, sqlite3.OperationalError):
            self._again(day, act)
            return
        except Exception as error:
            # A broken promise, or a bug: of the run, and not of this process alone.
            self._world.after(0.0, self._raising(error))
            return
        self.open -= 1

    @staticmethod
    def _raising(error: Exception) -> Callable[[], None]:
        def raise_it() -> None:
            raise error

        return raise_it

    def _terms(self, connection: Connection, now_ms: int) -> None:
        if payout_terms(connection):
            return
        account = {"holder": "somebody", "iban": _IBAN}
        rows = [
            {"merchant": merchant, "currency": CURRENCY, "time_zone": "UTC", "cut_off": "17:00",
             "account": account}
            for merchant in MERCHANTS
        ]  # fmt: skip
        paid_from = [{"currency": CURRENCY, "bank": "main", "account": account}]
        decide_payout_terms(
            connection, body=terms_body({"payouts": rows, "paid_from": paid_from}, 0),
            effective_from_ms=0, actor="anna", reason="terms", now_ms=now_ms,
        )  # fmt: skip

    def _receive(self, name: str, merchant: str, amount_minor: int, day: int) -> Act:
        lines = made_available(merchant, CURRENCY, amount_minor)
        said = (FIRST_DAY + timedelta(days=day)).isoformat()

        def receive(connection: Connection, now_ms: int) -> None:
            # An entry by hand has no key: who was interrupted looks whether it is there.
            if any(each.reason == name for each in decisions_of(connection, (ENTRY,))):
                return
            decide(
                connection, kind=ENTRY, body=entry_body("receipt", merchant, said, lines),
                actor="carla", reason=name, now_ms=now_ms - 6 * 3_600_000,
            )  # fmt: skip

        return receive

    def _create(self, day: int) -> Act:
        through = FIRST_DAY + timedelta(days=day)

        def create(connection: Connection, now_ms: int) -> None:
            create_payouts(connection, through=through, actor="anna", now_ms=now_ms)

        return create

    def _approve(self, who: str) -> Act:
        def approve(connection: Connection, now_ms: int) -> None:
            found = payout_book(connection).payouts.values()
            ids = [each.payout_id for each in found if each.state == "created"]
            move_payouts(connection, ids, "approve", actor=who, now_ms=now_ms)

        return approve

    def _withdraw(self, connection: Connection, now_ms: int) -> None:
        found = payout_book(connection).payouts.values()
        ids = [each.payout_id for each in found if each.state in ("created", "approved")]
        move_payouts(connection, ids[:1], "withdraw", actor="bert", now_ms=now_ms, reason="doubt")

    def _submit(self, connection: Connection, now_ms: int) -> None:
        submit_payouts(connection, CURRENCY, actor="carla", now_ms=now_ms)

    # The bank -----------------------------------------------------------------------------------

    def _hand_over(self, connection: Connection, now_ms: int) -> None:
        """Whatever was submitted is handed to the bank, often once more: it knows a message by its
        id."""
        book = payout_book(connection)
        for message_id in book.submissions:
            message = payout_message(book, message_id)
            paid = [(each.payout_id, each.merchant_id, each.amount_minor)
                    for each, _ in message.transfers]  # fmt: skip
            # Not before the submission is in the topic, as the command's file is not either.
            if not all(self._books.is_told(each[0], "payout_submitted") for each in paid):
                continue
            for payout_id, amount_minor in self._books.taken(message_id, paid):
                self._decide_fate(payout_id, amount_minor)

    def _decide_fate(self, payout_id: str, amount_minor: int) -> None:
        draw = self._random
        fate = draw.choice(FATES)
        delay_s = draw.uniform(0.0, 15.0)
        day = DAYS
        for word in fate:
            self._books.said(payout_id, word)
            for _ in range(draw.choice((1, 1, 2))):
                # A later word may come before an earlier one.
                at_s = delay_s + draw.uniform(0.0, 10.0)
                self._at(at_s, day, self._heard(payout_id, word, amount_minor))
            delay_s += draw.choice((0.0, 15.0))

    def _heard(self, payout_id: str, word: str | None, amount_minor: int) -> Act:
        def hear(connection: Connection, now_ms: int) -> None:
            if word is None:
                move_payouts(connection, [payout_id], "lose", actor="bert", now_ms=now_ms)
                return
            settle_by_bank(
                connection, payout_id, returned=word == "returned", amount_minor=amount_minor,
                currency=CURRENCY, booking_date=FIRST_DAY.isoformat(), reference=word,
                actor="bank", now_ms=now_ms,
            )  # fmt: skip

        return hear

    # Seals --------------------------------------------------------------------------------------

    def _seal(self) -> None:
        """Some of what is booked, if the database is there."""
        process = Process(self._world, "sealer")

        def run() -> None:
            try:
                seal(self._ledger.engine, batch=SEALED_TOGETHER)
            except (DBAPIError, sqlite3.OperationalError):
                self._world.after(AGAIN_S, self._seal)

        process.spawn(run)

    def at_rest(self) -> None:
        """Seal what is left, and look at all of it."""
        engine = self._ledger.engine
        for _ in range(SEALINGS_MAX):
            if not seal(engine, batch=SEALED_TOGETHER):
                break
        with reading(engine) as connection:
            self._books.at_rest(connection)

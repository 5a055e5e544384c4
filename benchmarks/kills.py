"""The ledger's worker killed again and again under load, and its database restarted under it.

Settlements come at a steady pace in transactions, of which one in ten is aborted. The worker is
killed (SIGKILL) at a random moment each time it has booked something since the last one; a
supervisor starts it again. PostgreSQL is stopped or killed in between. At the end the journal is
compared with the topic, every chain and balance looked at: nothing may be lost or doubled.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from confluent_kafka import Producer
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from benchmarks.failure import WrongRun
from benchmarks.flow import FlowOptions, Say, ground
from benchmarks.journal import settlement
from pipeline.chaos.flow.database import Database
from pipeline.config import Settings
from pipeline.domain.keys import record_key
from pipeline.domain.records import settlement_from_record, to_record
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.seals import seal
from pipeline.ledger.verification import verify_books
from pipeline.local import worker_specs
from pipeline.runtime.supervisor import Supervisor
from pipeline.runtime.topic_reader import TopicReader
from schemas.codec import default_codec

PARTITIONS = 6
TRANSACTION_RECORDS = 25
TRANSACTIONS_PER_S = 12
ABORTED = 0.1
# Of the kills, one in so many is followed by a restart of the server.
RESTART_EVERY = 5
# A worker starts in two to five seconds, and PostgreSQL recovers in about one; a busy machine takes
# many times that.
PROGRESS_S_MAX = 120.0
# Whole batches, and the moments between them.
PAUSE_S_MAX = 0.4


@dataclass(frozen=True)
class Killed:
    """``restarts``: of the database's server, ``died`` of them by SIGKILL."""

    database: str
    kills: int
    restarts: int
    died: int
    settlements: int
    aborted: int
    seconds: float


@dataclass
class _Load:
    """Publishes until it is told to stop; what was committed and what was not."""

    settings: Settings
    chance: random.Random
    committed: dict[str, tuple[str, int]] = field(default_factory=dict)
    aborted: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.failure = error
        self.ended.set()

    def _run(self) -> None:
        topic = self.settings.catalogue().name("settlements")
        encode = default_codec().encoder("settlement")
        producer = Producer(
            {
                "bootstrap.servers": self.settings.bootstrap_servers,
                "transactional.id": "benchmark-kills",
                "partitioner": "murmur2_random",
                "log_level": 0,
            }
        )
        producer.init_transactions(30)
        number = 0
        while not self.stop.wait(1 / TRANSACTIONS_PER_S):
            some = [settlement(number + n, hot=False) for n in range(TRANSACTION_RECORDS)]
            number += len(some)
            producer.begin_transaction()
            for each in some:
                producer.produce(
                    topic, encode(to_record(each)), record_key(each.merchant_id, each.order_id)
                )
            if self.chance.random() < ABORTED:
                producer.flush(30)
                producer.abort_transaction(30)
                self.aborted += len(some)
            else:
                producer.commit_transaction(30)
                self.committed.update({s.settlement_id: (s.currency, s.amount_minor) for s in some})


def measure_kills(kills: int, say: Say, *, seed: int, folder: Path | None = None) -> list[Killed]:
    """On SQLite and on PostgreSQL. WrongRun when an entry is lost, doubled or damaged."""
    found = []
    with tempfile.TemporaryDirectory(prefix="paystream-kills-", dir=folder) as name:
        # PostgreSQL may run as another user, which has to reach its data.
        Path(name).chmod(0o755)
        url = f"sqlite:///{Path(name) / 'ledger.sqlite'}"
        found.append(_killed("SQLite", url, kills, say, seed=seed, folder=folder))
        postgres = Database(Path(name) / "postgres")
        postgres.start()
        try:
            found.append(
                _killed("PostgreSQL", postgres.url, kills, say, seed=seed, folder=folder,
                        server=postgres)
            )  # fmt: skip
        finally:
            postgres.stop()
    return found


def _killed(
    database: str,
    url: str,
    kills: int,
    say: Say,
    *,
    seed: int,
    folder: Path | None,
    server: Database | None = None,
) -> Killed:
    began_s = time.monotonic()
    chance = random.Random(seed)
    restarts = died = 0
    with ExitStack() as stack:
        on = stack.enter_context(ground(FlowOptions(partitions=PARTITIONS, folder=folder)))
        settings = on.settings.model_copy(update={"ledger_url": url})
        engine = open_ledger(url)
        stack.callback(engine.dispose)
        load = _Load(settings, random.Random(seed))
        specs = worker_specs(settings, {"ledger": 1}, node_id="bench")
        supervisor = Supervisor(specs, restart_pause_s_max=0.2)
        with _publishing(load), supervisor:
            for number in range(1, kills + 1):
                _until_more(supervisor, load, engine)
                if server is not None and number % RESTART_EVERY == 0:
                    restarts += 1
                    died += restarts % 2
                    _restart(server, chance, killed=bool(restarts % 2))
                    # The worker lives through that, and books on.
                    _until_more(supervisor, load, engine)
                time.sleep(chance.random() * PAUSE_S_MAX)
                # What a server commits of a killed worker's is booked with no other in its place.
                _until(supervisor, load, partial(_runs, supervisor), "the worker runs again")
                for pid in supervisor.pids("ledger"):
                    os.kill(pid, signal.SIGKILL)
                _until(supervisor, load, partial(_ended, supervisor, number), "the kill is seen")
                if number % 10 == 0:
                    say(f"  {database}: killed {number} times, {max(0, _entries(engine)):,} booked")
            load.stop.set()
            _until(supervisor, load, load.ended.is_set, "the load ends")
            everything = len(load.committed)
            _until(supervisor, load, partial(_booked, engine, everything), "all are booked")
            exits = next(iter(supervisor.exits.values()))
        if exits != [-signal.SIGKILL] * kills:
            raise WrongRun(f"the worker ended with {exits}, and was killed {kills} times")
        _require_whole(settings, engine, load)
    return Killed(
        database, kills, restarts, died, len(load.committed), load.aborted,
        time.monotonic() - began_s,
    )  # fmt: skip


def _restart(server: Database, chance: random.Random, *, killed: bool) -> None:
    """Of two restarts one is a crash."""
    if killed:
        server.kill()
    else:
        server.stop()
    time.sleep(chance.random())
    server.start()


def _until_more(supervisor: Supervisor, load: _Load, engine: Engine) -> None:
    """Until something more is booked than by now."""
    wanted = _entries(engine) + 1
    _until(supervisor, load, partial(_booked, engine, wanted), "something is booked")


@contextmanager
def _publishing(load: _Load) -> Iterator[None]:
    thread = threading.Thread(target=load.run)
    thread.start()
    try:
        yield
    finally:
        load.stop.set()
        thread.join(60)


def _until(supervisor: Supervisor, load: _Load, done: Callable[[], bool], what: str) -> None:
    """Keep the worker alive until then. WrongRun when nothing comes of it, or the load ends."""
    deadline = time.monotonic() + PROGRESS_S_MAX
    while not done():
        supervisor.tick()
        if load.failure is not None:
            raise WrongRun(f"settlements could not be published: {load.failure}")
        if time.monotonic() > deadline:
            raise WrongRun(f"{what}: not within {PROGRESS_S_MAX:.0f} s")
        time.sleep(0.05)


def _runs(supervisor: Supervisor) -> bool:
    return bool(supervisor.pids("ledger"))


def _ended(supervisor: Supervisor, times: int) -> bool:
    return len(next(iter(supervisor.exits.values()))) >= times


def _booked(engine: Engine, wanted: int) -> bool:
    return _entries(engine) >= wanted


def _entries(engine: Engine) -> int:
    """How many are booked; -1 while the database is away."""
    try:
        with reading(engine) as connection:
            return int(
                connection.execute(text("SELECT count(*) FROM journal_entries")).scalar_one()
            )
    except DBAPIError:
        return -1


def _require_whole(settings: Settings, engine: Engine, load: _Load) -> None:
    """The journal against the topic as a reader of committed records has it, and in itself."""
    topic = settings.catalogue().name("settlements")
    decode = default_codec().decoder("settlement")
    published: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for record in TopicReader(settings.bootstrap_servers).by_time(topic, None, None):
        each = settlement_from_record(decode(record.value or b""))
        published[each.settlement_id] += 1
        moved[each.currency] += each.amount_minor
    while seal(engine):
        pass
    with reading(engine) as connection:
        booked = Counter(
            connection.execute(text("SELECT settlement_id FROM journal_entries")).scalars()
        )
        owed: Counter[str] = Counter()
        for currency, minor in connection.execute(
            text(
                "SELECT b.currency, b.debits_minor - b.credits_minor FROM balances b "
                "JOIN accounts a ON a.account_id = b.account_id "
                "WHERE a.name LIKE 'gateway_receivable:%'"
            )
        ):
            owed[currency] += int(minor)
        damages = verify_books(connection).damages
    if set(published) != set(load.committed) or booked != published:
        raise WrongRun(
            f"{len(load.committed):,} settlements were committed, {published.total():,} are in the "
            f"topic, {booked.total():,} are booked"
        )
    if owed != moved:
        raise WrongRun(f"the settlements come to {dict(moved)}, the books to {dict(owed)}")
    if damages:
        raise WrongRun(f"the books are damaged: {damages[0].name} at {damages[0].place}")

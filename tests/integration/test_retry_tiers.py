"""Ten thousand payments wait in the retry tiers while the workers that serve them are killed.

The gateway stage is the test itself: it answers "not sent" to the first try, with the
``retry_after_ms`` of one of the five tiers, and the second try succeeds. Early and late are judged
by the broker's own append times: of the wait, and of the record that followed it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from msgspec.structs import replace

from pipeline.domain.model import (
    GatewayResult,
    Payment,
    PaymentCommand,
    PaymentDue,
    PaymentEvent,
    PaymentRequest,
    Settlement,
)
from pipeline.domain.records import FROM_RECORD, to_record
from schemas.codec import default_codec
from tests.support.topics import read_all
from tests.support.waiting import wait_until
from tests.support.whole_flow import WholeFlow, orders
from topics.catalogue import Catalogue

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

PAYMENTS = 10_000
PER_S = 280
CANCELLED = 500
# 1, 2, 4, 8 and 16 s.
FIRST_TIER_MS = 1_000
# Published in slices of 2 s; after some of them a payments worker is killed. None after the first,
# so that there is an undisturbed time before the kills, as there is one at the end.
SLICES = 18
WORKERS = 3
# After which slice, and which worker. One of them dies four times in eight seconds: what it had
# under way each time is handled carefully (rule 13), and nothing else is late for it.
KILLS_AFTER = {1: 1, 2: 2, 3: 0, 4: 0, 5: 0, 6: 0}
LATE_MS_MAX = 1_000
# A killed worker's successor, in the worst case by a rebalance: a session of 10 s and a transaction
# of 10 s that has to end, and what was not done meanwhile.
KILL_MS = 25_000
STILL_S = 60.0

QUITTER = "quitter"


class Seen(NamedTuple):
    """A record as it stands in the log, open and aborted transactions left out."""

    at_ms: int
    noun: Any


@dataclass(frozen=True)
class Evidence:
    """What the topics held when nothing was on its way any more, and when workers were killed."""

    delays_ms: tuple[int, ...]
    killed_ms: tuple[int, ...]
    exits: dict[str, list[int]]
    waits: list[Seen]
    requests: list[Seen]
    settlements: list[Settlement]
    events: list[PaymentEvent]
    payments: dict[str, Payment]

    def followed(self) -> list[tuple[Seen, list[int]]]:
        """Each wait, and when what follows it was appended: the next request, or the next wait."""
        after: defaultdict[tuple[str, str, int], list[int]] = defaultdict(list)
        for request in self.requests:
            noun = request.noun
            after[noun.payment_id, noun.operation_id, noun.try_number - 1].append(request.at_ms)
        chains: defaultdict[tuple[str, str, int], list[Seen]] = defaultdict(list)
        for wait in self.waits:
            chains[wait.noun.payment_id, wait.noun.operation_id, wait.noun.try_number].append(wait)
        found = []
        for key, chain in chains.items():
            chain.sort(key=lambda wait: wait.at_ms)
            for wait, passed_on in pairwise(chain):
                found.append((wait, [passed_on.at_ms]))
            found.append((chain[-1], after[key]))
        return found


class GatewayStage:
    """Answers requests, and cancels each quitter's order when it sees it wait in its tier."""

    def __init__(self, bootstrap: str, catalogue: Catalogue) -> None:
        self.settled = self.booked = self.cancelled = 0
        self.error: BaseException | None = None
        self._catalogue = catalogue
        self._codec = default_codec()
        self._stop = threading.Event()
        # Everything appended by hand: a transaction of its own would hide nothing here.
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, "log_level": 2})
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"gateway-stage-{uuid.uuid4().hex}",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 50,
            }
        )
        self._requests = catalogue.name("payment-requests")
        self._longest = catalogue.name(f"payment-retry-{len(self.delays_ms)}")
        settlements, events = catalogue.name("settlements"), catalogue.name("payment-events")
        self._told = {settlements: "settlement", events: "payment-event"}
        self._consumer.assign(
            [
                TopicPartition(topic, partition, 0)
                for topic in (self._requests, self._longest, settlements, events)
                for partition in range(catalogue.settings.partitions)
            ]
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def delays_ms(self) -> tuple[int, ...]:
        return self._catalogue.settings.retry_delays_ms

    def progress(self) -> int:
        if self.error is not None:
            raise self.error
        return self.settled

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)
        self._consumer.close()
        self._producer.flush(30)

    def _run(self) -> None:
        try:
            read = {
                self._requests: self._reader("payment-request"),
                self._longest: self._reader("payment-due"),
                **{topic: self._reader(schema) for topic, schema in self._told.items()},
            }
            while not self._stop.is_set():
                for message in self._consumer.consume(500, 0.05):
                    assert message.error() is None, message.error()
                    noun = read[message.topic() or ""](message.value())
                    if isinstance(noun, PaymentRequest):
                        self._answer(message, noun)
                    elif isinstance(noun, Settlement):
                        self.booked += 1
                    elif isinstance(noun, PaymentEvent):
                        self.cancelled += noun.type == "cancelled"
                    elif noun.merchant_id == QUITTER:
                        self._cancel(message, noun)
                self._producer.poll(0)
        except BaseException as error:
            self.error = error

    def _reader(self, schema: str) -> Any:
        decode, build = self._codec.decoder(schema), FROM_RECORD[schema]
        return lambda value: build(decode(value))

    def _answer(self, message: Message, request: PaymentRequest) -> None:
        result = GatewayResult(
            merchant_id=request.merchant_id,
            order_id=request.order_id,
            payment_id=request.payment_id,
            operation_id=request.operation_id,
            kind=request.kind,
            gateway=request.gateway,
            attempt=request.attempt,
            try_number=request.try_number,
            outcome="succeeded",
            amount_minor=request.amount_minor,
            currency=request.currency,
            observed_at_ms=int(time.time() * 1000),
            gateway_reference=f"ch_{request.order_id}",
        )
        if request.kind == "inquire":
            # What it was never asked for it does not know.
            result = replace(result, outcome="not_found", amount_minor=0, gateway_reference=None)
        elif request.try_number == 1:
            result = replace(
                result,
                outcome="not_sent",
                code="connection_refused",
                amount_minor=0,
                gateway_reference=None,
                retry_after_ms=self.delays_ms[tier_of(request) - 1],
            )
        self._send("gateway-results", "gateway-result", message, result)
        if request.kind == "inquire" or request.try_number > 1:
            self.settled += 1

    def _cancel(self, message: Message, due: PaymentDue) -> None:
        command = PaymentCommand(
            merchant_id=due.merchant_id,
            order_id=due.order_id,
            command_id=f"cancel-{due.order_id}",
            type="cancel",
            submitted_at_ms=int(time.time() * 1000),
        )
        self._send("payment-commands", "payment-command", message, command)

    def _send(self, role: str, schema: str, about: Message, noun: Any) -> None:
        # Every topic has the same lanes.
        value = self._codec.encoder(schema)(to_record(noun))
        self._producer.produce(
            self._catalogue.name(role), value, about.key(), about.partition() or 0
        )


def tier_of(request: PaymentRequest | PaymentDue) -> int:
    """The tier in which the first wait of an order is meant to be: the longest for quitters."""
    if request.merchant_id == QUITTER:
        return 5
    return int(request.order_id.removeprefix("o-")) % 5 + 1


@pytest.fixture(scope="module")
def evidence(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    flow = WholeFlow(
        kafka,
        f"t{uuid.uuid4().hex[:8]}.",
        tmp_path_factory.mktemp("tiers"),
        partitions=2 * WORKERS,
        workers={"payments": WORKERS},
        settings_given={
            "retry_delay_ms": FIRST_TIER_MS,
            "send_within_ms": 3_000,
            # The test reads the requests by a group of its own, so none ever counts as answered.
            "open_requests_max": 10_000_000,
        },
    )
    killed_ms: list[int] = []
    with flow:
        stage = GatewayStage(kafka, flow.settings.catalogue())
        try:
            wait_until(lambda: flow.log_tail().count("restored") >= WORKERS, 60, "workers read")
            flow.publish(orders(CANCELLED, merchant=QUITTER))
            published = orders(PAYMENTS)
            for number in range(SLICES):
                flow.publish(published[number::SLICES], per_s=PER_S)
                if number in KILLS_AFTER:
                    flow.keep_until(
                        lambda: len(flow.supervisor.pids()) == WORKERS, 30, "all of them run"
                    )
                    killed_ms.append(int(time.time() * 1000))
                    os.kill(flow.supervisor.pids()[KILLS_AFTER[number]], signal.SIGKILL)
            flow.keep_until(
                lambda: stage.progress() >= PAYMENTS + CANCELLED,
                STILL_S,
                "every payment was asked for again",
                progress=stage.progress,
            )
            # What is answered but not read yet would stay for the next owner of its lane.
            flow.keep_until(
                lambda: stage.booked >= PAYMENTS and stage.cancelled >= CANCELLED,
                STILL_S,
                "every payment has its outcome",
                progress=lambda: (stage.booked, stage.cancelled),
            )
        finally:
            stage.close()
        exits = flow.supervisor.exits
    # The workers have drained: what was answered is in the log.
    return read_back(kafka, flow.settings.catalogue(), tuple(killed_ms), exits)


def read_back(
    bootstrap: str, catalogue: Catalogue, killed_ms: tuple[int, ...], exits: dict[str, list[int]]
) -> Evidence:
    codec = default_codec()

    def seen(role: str) -> list[Seen]:
        name = catalogue[role].schema
        assert name is not None
        decode, build = codec.decoder(name), FROM_RECORD[name]
        return [
            Seen(message.timestamp()[1], build(decode(message.value() or b"")))
            for message in read_all(bootstrap, catalogue.name(role))
        ]

    tiers = range(1, len(catalogue.settings.retry_delays_ms) + 1)
    return Evidence(
        delays_ms=catalogue.settings.retry_delays_ms,
        killed_ms=killed_ms,
        exits=exits,
        waits=[wait for tier in tiers for wait in seen(f"payment-retry-{tier}")],
        requests=seen("payment-requests"),
        settlements=[each.noun for each in seen("settlements")],
        events=[each.noun for each in seen("payment-events")],
        payments={each.noun.payment_id: each.noun for each in seen("payments")},
    )


def test_workers_were_killed_while_all_five_tiers_held_payments(evidence: Evidence) -> None:
    """What the other tests assume: the kills met waits of every tier, and one worker often."""
    killed = Counter({name: codes.count(-9) for name, codes in evidence.exits.items()})
    assert [killed[f"payments-{slot}"] for slot in range(WORKERS)] == [4, 1, 1]
    first, last = min(evidence.killed_ms), max(evidence.killed_ms)
    met = Counter(
        wait.noun.tier
        for wait, _ in evidence.followed()
        if wait.at_ms < last and wait.at_ms + evidence.delays_ms[wait.noun.tier - 1] > first
    )
    assert all(met[tier] > 100 for tier in range(1, 6)), met


def test_no_wait_is_lost_and_none_is_doubled(evidence: Evidence) -> None:
    """Each payment waits once, in the tier that was asked for or by its draw in the next longer
    one, is sent once more, and is charged and settled once."""
    kept = [wait.noun for wait in evidence.waits if wait.noun.merchant_id != QUITTER]
    assert len({wait.payment_id for wait in kept}) == len(kept) == PAYMENTS
    assert all(wait.tier in (tier_of(wait), min(tier_of(wait) + 1, 5)) for wait in kept)
    assert {len(followed) for _, followed in evidence.followed()} == {1}
    tries = Counter(
        (request.noun.payment_id, request.noun.try_number)
        for request in evidence.requests
        if request.noun.merchant_id != QUITTER
    )
    assert len(tries) == 2 * PAYMENTS
    assert set(tries.values()) == {1}
    assert len({each.payment_id for each in evidence.settlements}) == PAYMENTS
    assert len(evidence.settlements) == PAYMENTS
    statuses = Counter(payment.status for payment in evidence.payments.values())
    assert statuses == {"captured": PAYMENTS, "cancelled": CANCELLED}


def test_no_wait_ends_early(evidence: Evidence) -> None:
    """By the broker's clock the tier's whole delay lies before what follows, without exception."""
    early = [
        (wait.noun.order_id, wait.noun.tier, at_ms - wait.at_ms)
        for wait, followed in evidence.followed()
        for at_ms in followed
        if at_ms - wait.at_ms < evidence.delays_ms[wait.noun.tier - 1]
    ]
    assert early == []


def test_no_wait_is_a_second_late_unless_a_worker_was_just_killed(evidence: Evidence) -> None:
    """Where no worker has been killed for 25 s, and before the first one was."""
    late, judged = [], 0
    for wait, followed in evidence.followed():
        due_ms = wait.at_ms + evidence.delays_ms[wait.noun.tier - 1]
        for at_ms in followed:
            if any(killed <= at_ms <= killed + KILL_MS for killed in evidence.killed_ms):
                continue
            judged += 1
            if at_ms - due_ms > LATE_MS_MAX:
                late.append((wait.noun.order_id, wait.noun.tier, at_ms - due_ms))
    assert late == []
    assert judged > PAYMENTS // 10


def test_orders_cancelled_in_a_tier_are_never_charged(evidence: Evidence) -> None:
    """Five hundred cancels arrive while their payments wait: nothing was sent after them but the
    question whether something had been, and nothing was settled."""
    quitters = [e for e in evidence.events if e.merchant_id == QUITTER]
    stories: defaultdict[str, list[str]] = defaultdict(list)
    for event in sorted(quitters, key=lambda e: e.sequence):
        stories[event.payment_id].append(event.type)
    told = ["payment_started", "retry_scheduled", "cancel_requested", "inquiry_started"]
    assert Counter(map(tuple, stories.values())) == {(*told, "cancelled"): CANCELLED}
    asked = Counter(r.noun.kind for r in evidence.requests if r.noun.merchant_id == QUITTER)
    assert asked == {"charge": CANCELLED, "inquire": CANCELLED}
    assert not [s for s in evidence.settlements if s.merchant_id == QUITTER]

"""One payment as its topics have it: its latest snapshot, its events, and what became of a command.

``judged`` decides without a broker; ``PaymentReader`` reads the payment's own partition of the two
topics and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pipeline.domain.command_memory import is_another, is_remembered
from pipeline.domain.commands import COMMAND_MUST_NOT_CHANGE, RECORD_REFUND
from pipeline.domain.lifecycle import AUTHORIZATION_LAPSED
from pipeline.domain.model import Attempt, Payment, PaymentCommand, PaymentEvent
from pipeline.domain.money import format_amount
from pipeline.domain.recorded_refunds import RECORDED, transfer_of
from pipeline.domain.records import event_from_record, payment_from_record
from pipeline.kafka_access import reaching
from pipeline.kafka_refusal import why_away
from pipeline.runtime.partition_offsets import watermarks

if TYPE_CHECKING:
    from schemas.codec import Codec
    from topics.catalogue import Catalogue

REJECTED: Final = "rejected"
DONE: Final = "done"
FAILED: Final = "failed"
REPEATED: Final = "repeated"
TAKEN_BEFORE: Final = "it was taken before and has no effect now"

# The words of the lifecycle as the topics have them.
_COMMAND_REJECTED: Final = "command_rejected"
_GIVE_BACK_ORDERED: Final = "give_back_ordered"
_STARTED: Final = frozenset({"reversal_started", "retry_started"})
_UNDER_WAY: Final = frozenset(
    {"permit_waiting", "started", "retry_waiting", "inquiry_waiting", "inquiring", "pending"}
)
_SUCCEEDED: Final = frozenset({"charged", "authorized", "captured", "refunded", "voided"})
_MONEY_MAY_MOVE: Final = frozenset({"processing", "requires_customer_action", "outcome_unknown"})

POLL_S = 0.2
# A broker that is there answers within milliseconds; one that is starting may take seconds.
ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command: ``kind`` is rejected, done, failed or repeated (taken before, so
    that it did nothing this time); ``text`` is for people."""

    kind: str
    text: str


@dataclass(slots=True)
class PaymentSeen:
    """What was read of a payment so far. ``fresh`` events came after the reading began."""

    payment: Payment | None = None
    events: list[PaymentEvent] = field(default_factory=list)
    fresh: list[PaymentEvent] = field(default_factory=list)


def judged(seen: PaymentSeen, command: PaymentCommand, *, repeated: bool = False) -> Outcome | None:
    """What became of a command, or None while it waits or is under way.

    ``repeated``: the payment had taken it before it was given this time, which has no effect, and
    so is not told as done; what has an operation of its own is told with what that came to.

    A rejection from before counts only where the payment still remembers the command: otherwise
    the command was judged anew. Where another command has its id, only its own rejection counts.
    """
    payment, command_id = seen.payment, command.command_id
    remembered = payment is not None and is_remembered(payment, command)
    conflicts = payment is not None and remembered and is_another(payment, command)
    for event in reversed(seen.events if remembered and not conflicts else seen.fresh):
        if (
            event.type == _COMMAND_REJECTED
            and event.operation_id == command_id
            and (event.reason == COMMAND_MUST_NOT_CHANGE) is conflicts
        ):
            detail = f" ({event.detail})" if event.detail else ""
            return Outcome(REJECTED, f"{event.reason}{detail}")
    if payment is None or not remembered or conflicts:
        return None
    if any(waiting.command_id == command_id for waiting in payment.commands):
        return None
    begun = _begun_by(seen, command)
    attempts = [each for each in payment.attempts if each.operation_id in begun]
    if attempts:
        outcomes = [_of_attempt(payment, each) for each in attempts]
        failed = (each for each in outcomes if each is not None and each.kind != DONE)
        outcome = next(failed, None) or (None if None in outcomes else outcomes[-1])
        return again(outcome) if repeated and outcome is not None else outcome
    if payment.cancel_requested_by == command_id and payment.status in _MONEY_MAY_MOVE:
        return None
    outcome = Outcome(DONE, f"the payment is {payment.status}")
    return again(outcome) if repeated else outcome


def again(outcome: Outcome) -> Outcome:
    """The outcome of what was taken before, for whoever gives it again."""
    kind = REPEATED if outcome.kind == DONE else outcome.kind
    return Outcome(kind, f"{TAKEN_BEFORE}; {outcome.text}")


def _begun_by(seen: PaymentSeen, command: PaymentCommand) -> set[str]:
    """The operations that a command began: its own, the refund that it recorded, or those that a
    ``give_back`` ordered again, which are told right after it."""
    begun = {command.command_id}
    if command.type == RECORD_REFUND and seen.payment is not None:
        named = RECORDED, transfer_of(command)
        begun |= {
            a.operation_id for a in seen.payment.attempts if (a.code, a.gateway_reference) == named
        }
    ordered = False
    for event in seen.events:
        if event.type == _GIVE_BACK_ORDERED:
            ordered = event.operation_id == command.command_id
        elif ordered and event.type in _STARTED and event.operation_id is not None:
            begun.add(event.operation_id)
        else:
            ordered = False
    return begun


def _of_attempt(payment: Payment, attempt: Attempt) -> Outcome | None:
    if attempt.state in _UNDER_WAY:
        return None
    amount = format_amount(attempt.amount_minor or payment.amount_minor, payment.currency)
    where = "outside" if attempt.code == RECORDED else "at"
    text = f"{attempt.kind} of {amount} {where} {attempt.gateway}: {attempt.state}"
    if attempt.state in _SUCCEEDED:
        return Outcome(DONE, f"{text}, reference {attempt.gateway_reference}")
    if attempt.code == AUTHORIZATION_LAPSED:
        return Outcome(DONE, f"{text}, and the hold is over at its gateway")
    return Outcome(FAILED, f"{text}{f', {attempt.code}' if attempt.code else ''}")


class PaymentReader:
    """Reads the snapshots and events of one payment, read_committed, from a partition's beginning.

    Joins no group and commits nothing. Raises UserError when the broker is away.
    """

    def __init__(
        self, bootstrap_servers: str, catalogue: Catalogue, codec: Codec, key: bytes
    ) -> None:
        from confluent_kafka import Consumer, KafkaException, TopicPartition

        from pipeline.domain.keys import partition_of
        from pipeline.errors import UserError

        self.seen = PaymentSeen()
        self._key = key
        self._events = catalogue.name("payment-events")
        self._payments = catalogue.name("payments")
        self._decode_event = codec.decoder("payment-event")
        self._decode_payment = codec.decoder("payment")
        self._consumer = Consumer(
            {
                **reaching(bootstrap_servers),
                "group.id": "paystream-payment",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "log_level": 0,
                "error_cb": lambda _error: None,
            }
        )
        try:
            metadata = self._consumer.list_topics(self._events, timeout=ANSWER_TIMEOUT_S)
            partitions = len(metadata.topics[self._events].partitions)
            if not partitions:
                raise UserError(
                    f"The cluster at {bootstrap_servers} has no topic {self._events!r}; "
                    "create the topics with `paystream topics apply`."
                )
            partition = partition_of(key, partitions)
            places = [TopicPartition(topic, partition) for topic in (self._events, self._payments)]
            # The read_committed end: what lies behind an open transaction is fresh.
            self._ends = {
                place.topic: watermarks(self._consumer, place, timeout_s=ANSWER_TIMEOUT_S)[1]
                for place in places
            }
            self._consumer.assign([TopicPartition(p.topic, p.partition, 0) for p in places])
            self._places = places
        except KafkaException as error:
            self._consumer.close()
            raise UserError(
                f"No Kafka broker answers at {bootstrap_servers}"
                f"{why_away(bootstrap_servers, error)}; "
                "start it, or name another with --bootstrap-servers."
            ) from error
        except UserError:
            self._consumer.close()
            raise

    def close(self) -> None:
        self._consumer.close()

    def __enter__(self) -> PaymentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def catch_up(self) -> Payment | None:
        """Read what was there when the reader was made; the payment's latest snapshot in it."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while not self._caught_up():
            if self._take():
                deadline = time.monotonic() + ANSWER_TIMEOUT_S
            elif time.monotonic() > deadline:
                break
        return self.seen.payment

    def follow(
        self,
        judge: Callable[[PaymentSeen], Outcome | None],
        wait_s: float,
        on_event: Callable[[PaymentEvent], None] = lambda _event: None,
    ) -> Outcome | None:
        """Read on until ``judge`` has an outcome, which is given; None after ``wait_s``.

        ``on_event`` is told of each fresh event.
        """
        deadline = time.monotonic() + wait_s
        told = 0
        while True:
            outcome = judge(self.seen)
            for event in self.seen.fresh[told:]:
                on_event(event)
            told = len(self.seen.fresh)
            if outcome is not None or time.monotonic() > deadline:
                return outcome
            self._take()

    def _caught_up(self) -> bool:
        positions = self._consumer.position(self._places)
        # A position is unknown (negative) until the first record: an empty partition has none.
        return all(max(p.offset, 0) >= self._ends[p.topic] for p in positions)

    def _take(self) -> bool:
        messages: Sequence[Any] = self._consumer.consume(2_000, POLL_S)
        for message in messages:
            if message.error() is not None or message.key() != self._key or not message.value():
                continue
            if message.topic() == self._payments:
                self.seen.payment = payment_from_record(self._decode_payment(message.value()))
            else:
                event = event_from_record(self._decode_event(message.value()))
                self.seen.events.append(event)
                if message.offset() >= self._ends[self._events]:
                    self.seen.fresh.append(event)
        return bool(messages)

"""A driver for tests: the whole flow of records in memory, with a clock moved by hand.

Like Kafka's TopologyTestDriver it needs no broker: records go in as bytes, are decoded, handed to
the processors, and come out as bytes on topics named by their role in the catalogue. Each record's
append time is the driver's clock. Nothing runs by itself: orders and answers are given, tiers are
served by ``advance``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.decision import Decision
from pipeline.domain.invariant import InvariantBroken, invariant
from pipeline.domain.keys import record_key
from pipeline.domain.model import (
    AuditEntry,
    GatewayNotification,
    GatewayResult,
    Order,
    Payment,
    PaymentCommand,
    PaymentDue,
    PaymentEvent,
    PaymentRequest,
    RiskCheck,
    RiskResult,
    RiskVelocity,
    Settlement,
)
from pipeline.domain.payment import INQUIRY, RETRY, TIMER
from pipeline.domain.policy import DEFAULT_POLICY, GatewayProfile, Policy
from pipeline.domain.records import (
    FROM_RECORD,
    SCHEMA_OF,
    Noun,
    audit_entry_from_record,
    to_record,
)
from pipeline.domain.risk_velocity import count_check, velocity_key
from pipeline.domain.routing import profile_of
from pipeline.processors.commands import process_command
from pipeline.processors.gateway import plan_call, result_of
from pipeline.processors.notifications import process_notification
from pipeline.processors.order import process_order
from pipeline.processors.risk import process_risk_result
from pipeline.processors.settlement import process_due, process_result
from schemas.codec import Codec, Decoder, Encoder, default_codec
from topics.catalogue import TopicSettings

ORDERS: Final = "orders"
RESULTS: Final = "gateway-results"
REQUESTS: Final = "payment-requests"
SETTLEMENTS: Final = "settlements"
EVENTS: Final = "payment-events"
PAYMENTS: Final = "payments"
RISK_CHECKS: Final = "risk-checks"
RISK_RESULTS: Final = "risk-results"
COMMANDS: Final = "payment-commands"
NOTIFICATIONS: Final = "gateway-notifications"
DEAD_LETTERS: Final = "dead-letters"
AUDIT: Final = "audit"

_Keyed = Order | GatewayResult | PaymentDue | PaymentCommand | GatewayNotification | RiskResult
_NounT = TypeVar("_NounT", bound=Noun)

Adapter = Callable[[PaymentRequest], GatewayAnswer]


class Appended(Struct, frozen=True):
    """One record of a topic."""

    key: bytes
    value: bytes
    timestamp_ms: int


class DeadLetter(Struct, frozen=True):
    """An input that was refused whole."""

    key: bytes
    value: bytes
    cause: str
    detail: str | None


class FlowDriver:
    """Feeds the processors and keeps what they send.

    ``decisions`` holds every decision in order. A request waits in ``open_requests`` until
    ``answer`` takes it, a risk check in ``open_checks`` until ``count`` does, a due record in
    ``tiers`` (due time, number, record) until the clock reaches it.
    """

    def __init__(
        self,
        policy: Policy = DEFAULT_POLICY,
        *,
        now_ms: int,
        retry_delay_ms: int = 5_000,
        inquiry_delay_ms: int = 5_000,
        timer_delay_ms: int = 60_000,
        codec: Codec | None = None,
    ) -> None:
        tiers = TopicSettings(
            retry_delay_ms=retry_delay_ms,
            inquiry_delay_ms=inquiry_delay_ms,
            timer_delay_ms=timer_delay_ms,
        )
        self.policy = replace(
            policy,
            retry_delays_ms=tiers.retry_delays_ms,
            inquiry_delays_ms=tiers.inquiry_delays_ms,
            timer_delays_ms=tiers.timer_delays_ms,
        )
        self.now_ms = now_ms
        self.decisions: list[Decision] = []
        self.dead_letters: list[DeadLetter] = []
        self.open_requests: list[tuple[int, PaymentRequest]] = []
        self.open_checks: list[RiskCheck] = []
        self.velocity: dict[bytes, RiskVelocity] = {}
        self.topics: dict[str, list[Appended]] = {}
        self._table: dict[bytes, bytes] = {}
        self.tiers: list[tuple[int, int, PaymentDue]] = []
        self._tiered = 0
        self._delays_ms = {
            RETRY: tiers.retry_delays_ms,
            INQUIRY: tiers.inquiry_delays_ms,
            TIMER: tiers.timer_delays_ms,
        }
        self._encode, self._decode = _bound(codec)

    # What goes in.

    def order(self, order: Order) -> Decision:
        """Append an order and process it."""
        value = self._append(ORDERS, order)
        payment = self.payment(order.merchant_id, order.order_id)
        read = self._decoded(Order, value)
        return self.apply(read, process_order(payment, read, self.now_ms, self.policy), value)

    def result(self, result: GatewayResult) -> Decision:
        """Append a result, true or forged, and process it."""
        value = self._append(RESULTS, result)
        payment = self.payment(result.merchant_id, result.order_id)
        read = self._decoded(GatewayResult, value)
        return self.apply(read, process_result(payment, read, self.now_ms, self.policy), value)

    def due(self, due: PaymentDue) -> Decision:
        """Append a due record, true or forged, and process it as if its time had come."""
        return self._due(due, self._append(_tier(due), due), self.now_ms)

    def command(self, command: PaymentCommand) -> Decision:
        """Append a command and process it."""
        value = self._append(COMMANDS, command)
        payment = self.payment(command.merchant_id, command.order_id)
        read = self._decoded(PaymentCommand, value)
        return self.apply(read, process_command(payment, read, self.now_ms, self.policy), value)

    def notify(self, notice: GatewayNotification) -> Decision:
        """Append a gateway's notice, true or forged, and process it."""
        value = self._append(NOTIFICATIONS, notice)
        payment = self.payment(notice.merchant_id, notice.order_id)
        read = self._decoded(GatewayNotification, value)
        decided = process_notification(payment, read, self.now_ms, self.policy)
        return self.apply(read, decided, value)

    def answer(self, answer: GatewayAnswer | Adapter) -> Decision:
        """Take the oldest open request, as a gateway worker would, and process its result.

        A request that is past its ``send_before`` is not sent: the adapter is not asked.
        """
        return self.result(self.handle(self.open_requests.pop(0), answer))

    def handle(
        self, opened: tuple[int, PaymentRequest], answer: GatewayAnswer | Adapter
    ) -> GatewayResult:
        """What a gateway worker makes of a request, without appending it: (append time, request).

        For a worker that is frozen, or whose transaction is lost.
        """
        appended_at_ms, request = opened
        profile = profile_of(self.policy, request.gateway) or GatewayProfile(name=request.gateway)
        plan = plan_call(request, appended_at_ms, self.now_ms, profile.key_retention_ms)
        if plan.refusal is not None:
            given = plan.refusal
        elif isinstance(answer, GatewayAnswer):
            given = answer
        else:
            given = answer(request)
        return result_of(request, given, self.now_ms)

    def risk_result(self, result: RiskResult) -> Decision:
        """Append the counts of an identity, true or forged, and process them."""
        value = self._append(RISK_RESULTS, result)
        payment = self.payment(result.merchant_id, result.order_id)
        read = self._decoded(RiskResult, value)
        decided = process_risk_result(payment, read, self.now_ms, self.policy)
        return self.apply(read, decided, value)

    def count(self, at: int = 0) -> Decision:
        """Take an open risk check, the oldest by default, as a risk worker would, and process its
        answer."""
        check = self.open_checks.pop(at)
        key = velocity_key(check.merchant_id, check.by, check.identity)
        row, counted = count_check(self.velocity.get(key), check, self.now_ms)
        if row is not None:
            self.velocity[key] = row
        return self.risk_result(
            RiskResult(
                merchant_id=check.merchant_id,
                order_id=check.order_id,
                payment_id=check.payment_id,
                by=check.by,
                counted_at_ms=self.now_ms,
                counted=counted,
                operation_id=check.operation_id,
            )
        )

    # Time.

    def advance(self, duration_ms: int) -> list[Decision]:
        """Move the clock, processing each wait at the moment it is over.

        ``now_ms`` of a due record is when it was appended, as in production.
        """
        until_ms = self.now_ms + duration_ms
        decisions = []
        while self.tiers and min(self.tiers)[0] <= until_ms:
            earliest = min(self.tiers)
            self.tiers.remove(earliest)
            due_ms, _, due = earliest
            self.now_ms = max(self.now_ms, due_ms)
            appended_at_ms = due_ms - self._delay_of_ms(due)
            decisions.append(self._due(due, self._encoded(due), appended_at_ms))
        self.now_ms = until_ms
        return decisions

    def run(self, adapter: Adapter, *, steps_max: int = 10_000) -> None:
        """Answer requests and pass waits until nothing is open; an endless flow is a failure.

        Timers alone are left: a payment that waits for one is at rest.
        """
        for _ in range(steps_max):
            if self.open_requests:
                self.answer(adapter)
            elif any(due.purpose != TIMER for _, _, due in self.tiers):
                self.advance(max(0, min(self.tiers)[0] - self.now_ms))
            else:
                return
        invariant(False, f"the flow did not come to rest in {steps_max} steps")

    # What comes out.

    def payment(self, merchant_id: str, order_id: str) -> Payment | None:
        """The snapshot in the table, decoded from its bytes."""
        value = self._table.get(record_key(merchant_id, order_id))
        return None if value is None else self._decoded(Payment, value)

    def read(self, role: str, kind: type[_NounT]) -> list[_NounT]:
        """Every record of a topic, decoded."""
        return [self._decoded(kind, each.value) for each in self.topics.get(role, [])]

    def events(self) -> list[PaymentEvent]:
        return self.read(EVENTS, PaymentEvent)

    def settlements(self) -> list[Settlement]:
        return self.read(SETTLEMENTS, Settlement)

    def audit_entries(self) -> list[AuditEntry]:
        """What people decided, in order."""
        decode = self._decode["audit-entry"]
        records = self.topics.get(AUDIT, [])
        return [audit_entry_from_record(decode(each.value)) for each in records]

    def requests(self) -> list[PaymentRequest]:
        """Every request so far, answered or not."""
        return self.read(REQUESTS, PaymentRequest)

    def waits(self) -> list[PaymentDue]:
        """Due records whose time has not come, the next one first."""
        return [due for _, _, due in sorted(self.tiers, key=lambda wait: wait[:2])]

    # How it works.

    def _delay_of_ms(self, due: PaymentDue) -> int:
        return self._delays_ms[due.purpose][due.tier - 1]

    def _due(self, due: PaymentDue, value: bytes, appended_at_ms: int) -> Decision:
        payment = self.payment(due.merchant_id, due.order_id)
        return self.apply(due, process_due(payment, due, appended_at_ms, self.policy), value)

    def apply(self, source: _Keyed, decision: Decision, value: bytes = b"") -> Decision:
        """Take a decision about an input as the payments stage would."""
        self.decisions.append(decision)
        key = record_key(source.merchant_id, source.order_id)
        if decision.payment is not None:
            self._table[key] = self._append(PAYMENTS, decision.payment)
        if decision.dead_letter is not None:
            self.dead_letters.append(DeadLetter(key, value, decision.dead_letter, decision.detail))
        for sent in decision.sends:
            if isinstance(sent, PaymentRequest):
                self._append(REQUESTS, sent)
                self.open_requests.append((self.now_ms, sent))
            elif isinstance(sent, RiskCheck):
                self._append(RISK_CHECKS, sent)
                self.open_checks.append(sent)
            elif isinstance(sent, PaymentDue):
                self._append(_tier(sent), sent)
                self._tiered += 1
                due_ms = self.now_ms + self._delay_of_ms(sent)
                self.tiers.append((due_ms, self._tiered, sent))
            elif isinstance(sent, AuditEntry):
                entry = self._encode["audit-entry"](to_record(sent))
                self.topics.setdefault(AUDIT, []).append(Appended(key, entry, self.now_ms))
            else:
                self._append(SETTLEMENTS if isinstance(sent, Settlement) else EVENTS, sent)
        return decision

    def _append(self, role: str, noun: Noun) -> bytes:
        value = self._encoded(noun)
        key = record_key(noun.merchant_id, noun.order_id)
        self.topics.setdefault(role, []).append(Appended(key, value, self.now_ms))
        return value

    def _encoded(self, noun: Noun) -> bytes:
        return self._encode[SCHEMA_OF[type(noun)]](to_record(noun))

    def _decoded(self, kind: type[_NounT], value: bytes) -> _NounT:
        name = SCHEMA_OF[kind]
        noun = FROM_RECORD[name](self._decode[name](value))
        if not isinstance(noun, kind):
            raise InvariantBroken(f"a {name} record became a {type(noun).__name__}")
        return noun


@cache
def _bound(codec: Codec | None) -> tuple[dict[str, Encoder], dict[str, Decoder]]:
    """Encoders and decoders by schema, made once: a property test makes thousands of drivers."""
    codec = codec or default_codec()
    return (
        {name: codec.encoder(name) for name in FROM_RECORD},
        {name: codec.decoder(name) for name in FROM_RECORD},
    )


def _tier(due: PaymentDue) -> str:
    return f"payment-{due.purpose}-{due.tier}"

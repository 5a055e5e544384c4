"""The payments stage: inputs through the processors, over the table, into one batch.

No client and no clock: ``now`` is the input's own append time. What is here is bytes in, bytes
out; the worker around it owns the consumer and the lane.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.domain.answer import DEAD_LETTERED
from pipeline.domain.decision import Decision
from pipeline.domain.health import GATEWAY_NOT_CONFIGURED
from pipeline.domain.keys import partition_of, record_key, reference_key
from pipeline.domain.model import (
    AuditEntry,
    GatewayReference,
    GatewayResult,
    Payment,
    PaymentDue,
    PaymentEvent,
    PaymentRequest,
    RiskCheck,
    Settlement,
)
from pipeline.domain.payment import INQUIRY, RETRY, TIMER, dead_lettered, is_unfinished
from pipeline.domain.policy import Policy
from pipeline.domain.records import (
    command_from_record,
    due_from_record,
    notification_from_record,
    order_from_record,
    payment_from_record,
    result_from_record,
    risk_result_from_record,
    to_record,
)
from pipeline.domain.references import is_shared_with_earlier
from pipeline.domain.risk import REASON_PREFIX
from pipeline.domain.risk_velocity import velocity_key
from pipeline.domain.unasked_charges import NO_MERCHANT
from pipeline.processors.commands import process_command
from pipeline.processors.notifications import process_notification
from pipeline.processors.order import process_order
from pipeline.processors.permits import reported
from pipeline.processors.refused_evidence import judged_anew
from pipeline.processors.risk import process_risk_result
from pipeline.processors.settlement import process_due, process_result
from pipeline.runtime.admission import InputLane
from pipeline.runtime.batch import Batch
from pipeline.runtime.dead_letters import dead_letter, is_redriven
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.live_policy import LivePolicy
from pipeline.runtime.table import Table
from pipeline.runtime.too_large import CAUSE, DETAIL
from pipeline.runtime.work import Outgoing
from schemas.codec import Codec
from schemas.errors import DecodeError
from topics.catalogue import Catalogue

_log = logging.getLogger(__name__)

STAGE = "payments"

Handler = Callable[[Payment | None, Any, int, Policy], Decision]


class PaymentsStage:
    """Binds each input topic to its decoder and processor, each output type to its topic."""

    name = STAGE
    # Refunds and disputes come for years: what goes, goes by a tombstone.
    keep_s = None

    def __init__(self, catalogue: Catalogue, codec: Codec, policy: Policy | LivePolicy) -> None:
        self._policy = policy if isinstance(policy, LivePolicy) else LivePolicy(policy)
        # The delays are the catalogue's: the tier that a wait takes is chosen by them.
        self._policy.fix(
            retry_delays_ms=catalogue.settings.retry_delays_ms,
            inquiry_delays_ms=catalogue.settings.inquiry_delays_ms,
            timer_delays_ms=catalogue.settings.timer_delays_ms,
            command_memory_ms=catalogue.settings.retention_ms,
        )
        inputs: dict[str, tuple[str, Callable[[Any], Any], Handler]] = {
            "orders": ("order", order_from_record, process_order),
            "gateway-results": ("gateway-result", result_from_record, process_result),
            "gateway-notifications": (
                "gateway-notification",
                notification_from_record,
                process_notification,
            ),
            "risk-results": ("risk-result", risk_result_from_record, process_risk_result),
            "payment-commands": ("payment-command", command_from_record, process_command),
        }
        tiers = {
            purpose: tuple(
                spec
                for spec in catalogue.topics.values()
                if spec.role.startswith(f"payment-{purpose}-")
            )
            for purpose in (RETRY, INQUIRY, TIMER)
        }
        for spec in (spec for specs in tiers.values() for spec in specs):
            inputs[spec.role] = ("payment-due", due_from_record, process_due)
        self.lanes = tuple(
            InputLane(spec.role, spec.name, spec.delay_ms, gated=spec.role == "orders")
            for spec in catalogue.inputs(STAGE)
        )
        self._inputs = {
            spec.name: (codec.decoder(inputs[spec.role][0]), *inputs[spec.role][1:])
            for spec in catalogue.inputs(STAGE)
        }
        self._topics: dict[Any, tuple[str, Callable[[Any], bytes]]] = {
            PaymentRequest: (
                catalogue.name("payment-requests"),
                codec.encoder("payment-request", checked=False),
            ),
            Settlement: (catalogue.name("settlements"), codec.encoder("settlement", checked=False)),
            PaymentEvent: (
                catalogue.name("payment-events"),
                codec.encoder("payment-event", checked=False),
            ),
            AuditEntry: (catalogue.name("audit"), codec.encoder("audit-entry", checked=False)),
        }
        encode_due = codec.encoder("payment-due", checked=False)
        self._tiers = {
            (purpose, number): (spec.name, encode_due)
            for purpose, specs in tiers.items()
            for number, spec in enumerate(specs, 1)
        }
        self._checks = catalogue.name("risk-checks")
        self._encode_check = codec.encoder("risk-check", checked=False)
        self.table_topic = catalogue.name("payments")
        self._encode_payment = codec.encoder("payment", checked=False)
        self._decode_payment = codec.decoder("payment")
        self._references = catalogue.name("gateway-references")
        self._encode_reference = codec.encoder("gateway-reference", checked=False)
        self._by_own_id = frozenset(
            profile.name for profile in self._policy.in_force.gateways if profile.notices_by_own_id
        )
        # The gateways that there are (routes add none), and those that were missed.
        self._known = frozenset(profile.name for profile in self._policy.in_force.gateways)
        self._missed: set[str] = set()
        self._dead_letters = catalogue.name("dead-letters")
        self._partitions = catalogue["orders"].partitions

    def decode_row(self, raw: bytes) -> Payment:
        """A stored record of the table; a DecodeError here is our own damage, not bad input."""
        return payment_from_record(self._decode_payment(raw))

    def handle(self, record: InputRecord, table: Table[Payment], batch: Batch) -> None:
        """Put the whole effect of one input into the batch and the table's prepared layer."""
        batch.took(record.topic, record.partition, record.offset)
        decode, build, process = self._inputs[record.topic]
        key = record.key
        if record.value is None:
            self._refuse(record, table, batch, "empty_value", "a record without a value")
            return
        try:
            value = build(decode(record.value))
        except DecodeError as error:
            self._refuse(record, table, batch, error.kind, error.detail)
            return
        if key != record_key(value.merchant_id, value.order_id):
            self._refuse(
                record, table, batch, "key_mismatch", "the key is not the payload's merchant:order"
            )
            return
        payment = table.get(record.partition, key)
        if payment is None and partition_of(key, self._partitions) != record.partition:
            # Only a miss is worth the hash: a payment that is found proves its lane.
            self._refuse(
                record,
                table,
                batch,
                "misrouted",
                f"murmur2 of the key belongs to partition {partition_of(key, self._partitions)}",
            )
            return
        if type(value) is GatewayResult and value.outcome != DEAD_LETTERED:
            self._policy.saw(value, record.timestamp_ms)
            if value.code == GATEWAY_NOT_CONFIGURED:
                self._misses(value.gateway, "gateway", batch)
        if payment is not None and payment.letters and is_redriven(record):
            payment = judged_anew(payment)
        policy = self._policy.at(record.timestamp_ms)
        decision = process(payment, value, record.timestamp_ms, policy)
        decision = reported(payment, decision, policy)
        self._look_for_gateways(decision.payment or payment, batch)
        if decision.dead_letter is not None:
            self._bury(record, batch, decision.dead_letter, decision.detail or "")
        if decision.note is not None:
            batch.notes[("notes", decision.note)] += 1
        self._emit(record.partition, key, decision, table, batch)

    def quarantine(self, record: InputRecord, table: Table[Payment], batch: Batch) -> None:
        """An input that killed the process three times is not looked at again; its payment, known
        by the key alone, says so."""
        batch.took(record.topic, record.partition, record.offset)
        self._refuse(record, table, batch, "killed_the_process", "three times at this offset")

    def bury_too_large(
        self, record: InputRecord, table: Table[Payment], batch: Batch, *, told: bool
    ) -> None:
        """An input whose effects no topic takes. Where its payment's row is what is too large, the
        payment cannot even say so (``told`` False)."""
        batch.took(record.topic, record.partition, record.offset)
        if told:
            self._refuse(record, table, batch, CAUSE, DETAIL)
        else:
            self._bury(record, batch, CAUSE, DETAIL)

    def _refuse(
        self,
        record: InputRecord,
        table: Table[Payment],
        batch: Batch,
        cause: str,
        detail: str,
    ) -> None:
        """Dead-letter an input; the payment it was keyed for, if there is one, says so."""
        self._bury(record, batch, cause, detail)
        if record.key is None:
            return
        payment = table.get(record.partition, record.key)
        if payment is not None:
            decision = dead_lettered(payment, cause, detail, record.timestamp_ms)
            self._emit(record.partition, record.key, decision, table, batch)

    def _look_for_gateways(self, payment: Payment | None, batch: Batch) -> None:
        """Tell of operations that are open at a gateway which has been taken out: they are asked
        about, and end with a person. Each is met again when its wait is over."""
        for attempt in payment.attempts if payment is not None else ():
            if attempt.gateway not in self._known and is_unfinished(attempt):
                self._misses(attempt.gateway, STAGE, batch)

    def _misses(self, gateway: str, stage: str, batch: Batch) -> None:
        batch.notes[("missing_gateways", gateway)] += 1
        if gateway not in self._missed:
            self._missed.add(gateway)
            _log.error(
                "operations are open at %s, which a %s worker does not have: configure it again, "
                "else they wait for a person within the hour",
                gateway,
                stage,
            )

    def _bury(self, record: InputRecord, batch: Batch, cause: str, detail: str) -> None:
        batch.notes[("dead_letters", cause)] += 1
        batch.outputs.extend(
            dead_letter(record, topic=self._dead_letters, stage=STAGE, cause=cause, detail=detail)
        )

    def _emit(
        self,
        partition: int,
        key: bytes,
        decision: Decision,
        table: Table[Payment],
        batch: Batch,
    ) -> None:
        outputs = batch.outputs
        for outgoing in decision.sends:
            kind = type(outgoing)
            if kind is RiskCheck:
                # In the lane of what is counted, not of the order.
                at = velocity_key(outgoing.merchant_id, outgoing.by, outgoing.identity)  # type: ignore[union-attr]
                lane = partition_of(at, self._partitions)
                raw_check = self._encode_check(to_record(outgoing))
                outputs.append((self._checks, lane, at, raw_check, None))
                continue
            if kind is PaymentDue:
                tier = outgoing.purpose, outgoing.tier  # type: ignore[union-attr]
                topic, encode = self._tiers[tier]
                batch.notes[("tiers", outgoing.purpose)] += 1  # type: ignore[union-attr]
            else:
                topic, encode = self._topics[kind]
                if kind is Settlement:
                    batch.latencies_ms.append(
                        outgoing.settled_at_ms - outgoing.ordered_at_ms  # type: ignore[union-attr]
                    )
                elif kind is PaymentEvent:
                    batch.notes[("events", outgoing.type)] += 1  # type: ignore[union-attr]
                    reason = outgoing.reason  # type: ignore[union-attr]
                    if reason is not None and reason.startswith(REASON_PREFIX):
                        batch.notes[("risk", f"{outgoing.type} {reason}")] += 1  # type: ignore[union-attr]
            outputs.append((topic, partition, key, encode(to_record(outgoing)), None))
        payment = decision.payment
        if payment is not None:
            if self._by_own_id or payment.merchant_id == NO_MERCHANT:
                outputs.extend(self._references_of(payment))
            raw = self._encode_payment(to_record(payment))
            batch.last_table_output[partition] = len(outputs)
            outputs.append((self.table_topic, partition, key, raw, None))
            table.prepare(partition, key, payment, raw)

    def _references_of(self, payment: Payment) -> Iterator[Outgoing]:
        """Whose the gateways' own ids are that this step may have brought, for notices that carry
        nothing else, or the key of somebody else (of a charge nobody asked for). Told again by a
        later step of the same attempt, which changes nothing. Where an id is another operation's
        as well, by a person's word, its notices stay with the one that had it first."""
        unasked = payment.merchant_id == NO_MERCHANT
        for attempt in payment.attempts:
            if (
                (unasked or attempt.gateway in self._by_own_id)
                and attempt.gateway_reference
                and attempt.updated_at_ms == payment.updated_at_ms
                and (unasked or not is_shared_with_earlier(payment, attempt))
            ):
                told = GatewayReference(
                    gateway=attempt.gateway,
                    gateway_reference=attempt.gateway_reference,
                    merchant_id=payment.merchant_id,
                    order_id=payment.order_id,
                    payment_id=payment.payment_id,
                    operation_id=attempt.operation_id,
                    attempt=attempt.attempt,
                    kind=attempt.kind,
                )
                key = reference_key(attempt.gateway, attempt.gateway_reference)
                lane = partition_of(key, self._partitions)
                yield (self._references, lane, key, self._encode_reference(to_record(told)), None)

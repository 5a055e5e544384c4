"""What is remembered of the log: for each payment what its records say, a few dozen bytes each.

``Evidence.take`` is fed every record once, topics in any order but each partition in its own
order. It decodes a record, keeps the fields that the checks compare, and lets the bytes go. What
is wrong with a record taken by itself (it cannot be decoded, lies in the wrong partition, jumps
in its sequence) is found here; what needs several topics is found in ``checks``.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from pipeline.audit.cut import KEYED_OTHERWISE, judged_roles
from pipeline.audit.derivation import (
    event_id,
    home_partition,
    idempotency_key,
    payment_id,
    settlement_id,
)
from pipeline.audit.log_copy import LogRecord
from pipeline.audit.report import Example, Findings
from pipeline.audit.terms import DecisionSeen, decision_of
from pipeline.batches.record_batch import read_batches
from pipeline.batches.unfolded import HEAVY_BYTES_MIN, is_handed_out_in_part, is_heavy
from pipeline.kafka_wire import Malformed
from schemas.codec import Codec
from schemas.errors import DecodeError
from topics.catalogue import Catalogue
from topics.record_headers import UNREADABLE

TERMINAL_STATUSES: Final = frozenset(
    {
        "captured",
        "failed",
        "rejected",
        "no_payment_due",
        "cancelled",
        "expired",
        "credit_held",
    }
)
# Events after which a payment that had failed is open again.
_RETRIED: Final = frozenset({"payment_retried", "permit_asked"})
# States of an attempt in which nothing more is sent before a person has looked.
FOR_A_PERSON: Final = frozenset({"inquiry_exhausted", "contradicted"})
# States of an attempt whose outcome is still to come by itself.
UNDER_WAY: Final = frozenset(
    {"permit_waiting", "started", "retry_waiting", "inquiry_waiting", "inquiring", "pending"}
)
# Operations that take the customer's money or a hold on it.
MAIN_KINDS: Final = frozenset({"charge", "authorize"})
# Written by others: a bad record there is no fault of the flow if it was dead-lettered.
EXTERNAL: Final = frozenset({"orders", "payment-commands"})
NOTICES: Final = "gateway-notifications"
# What commands may ask for. Others may write whatever they like there, of any length.
COMMAND_TYPES: Final = frozenset(
    {
        "capture",
        "cancel",
        "refund",
        "credit",
        "retry",
        "give_back",
        "record_refund",
        "refund_unasked",
        "resolve",
        "resolve_dispute",
        "review",
        "acknowledge",
    }
)
UNKNOWN_TYPE: Final = "unknown_type"
_intern = sys.intern


class OrderSeen(Struct, frozen=True, gc=False):
    """``checksum``: CRC-32 of the value, to compare a dead letter with."""

    partition: int
    offset: int
    at_ms: int
    amount_minor: int
    currency: str
    instrument_token: str
    business_date: str
    checksum: int


class CommandSeen(Struct, frozen=True, gc=False):
    partition: int
    offset: int
    at_ms: int
    command_id: str
    type: str
    amount_minor: int | None
    gateway_reference: str | None
    instrument_token: str | None
    gateway: str | None = None
    despite_id: bool = False
    operation_id: str | None = None
    returned: bool = False


class NotificationSeen(Struct, frozen=True, gc=False):
    """``names``: the payment that it names, where that is another than its order's: gateways repeat
    what was once sent to them, so a genuine notice may say both."""

    partition: int
    offset: int
    at_ms: int
    type: str
    gateway: str
    operation_id: str | None
    outcome: str | None
    gateway_reference: str | None
    dispute_id: str | None
    names: str | None = None


class RequestSeen(Struct, frozen=True, gc=False):
    """``operation_kind`` differs from ``kind`` in an inquiry: it says what is asked about."""

    partition: int
    offset: int
    at_ms: int
    kind: str
    operation_kind: str
    gateway: str
    operation_id: str
    attempt: int
    try_number: int
    amount_minor: int
    currency: str
    instrument_token: str

    @property
    def identity(self) -> tuple[str, str, int, int]:
        return self.gateway, self.operation_id, self.attempt, self.try_number


class ResultSeen(Struct, frozen=True, gc=False):
    partition: int
    offset: int
    at_ms: int
    kind: str
    gateway: str
    operation_id: str
    attempt: int
    try_number: int
    outcome: str
    code: str | None
    gateway_reference: str | None
    amount_minor: int
    currency: str
    # Told beside the result of its try: an answer that came when nobody waited for it any more.
    is_late_answer: bool = False

    @property
    def identity(self) -> tuple[str, str, int, int]:
        return self.gateway, self.operation_id, self.attempt, self.try_number


class SettlementSeen(Struct, frozen=True, gc=False):
    partition: int
    offset: int
    at_ms: int
    settlement_id: str
    operation_id: str
    kind: str
    amount_minor: int
    currency: str
    gateway: str
    gateway_reference: str
    ordered_at_ms: int
    business_date: str
    settled_at_ms: int
    payment_method: str

    @property
    def movement(self) -> str:
        """What moved, whoever it is of: of a charge nobody asked for as of any other."""
        return self.kind.removeprefix("unasked_")


class CheckSeen(Struct, frozen=True, gc=False):
    """A question to the risk stage, which lies in the lane of what it counts. ``about``: the kind
    of identity whose count is asked for, or the key of the attempt that asks for a permit."""

    partition: int
    offset: int
    about: str


class DueSeen(Struct, frozen=True, gc=False):
    """A wait; ``of_attempt``: of an attempt, not of the payment itself."""

    role: str
    partition: int
    offset: int
    at_ms: int
    of_attempt: bool = False


class EventSeen(Struct, frozen=True, gc=False):
    """The last event of a payment."""

    partition: int
    offset: int
    sequence: int
    status: str
    type: str


class AttemptSeen(Struct, frozen=True, gc=False):
    """One operation at a gateway, as the table has it; an amount of 0 is the payment's whole.

    ``parent``: the operation and attempt of the charge or authorization that it is about; None
    where the table does not say. ``meant_minor``: of a reversal that gave back less than it was
    begun for, what that was.
    """

    operation_id: str
    kind: str
    gateway: str
    attempt: int
    state: str
    amount_minor: int
    gateway_reference: str | None
    parent: tuple[str, int] | None
    code: str | None = None
    meant_minor: int = 0


class DisputeSeen(Struct, frozen=True, gc=False):
    """A dispute as the table has it; ``charge_reference``: the charge that its gateway names."""

    gateway: str
    state: str
    withdrawn_minor: int
    charge_reference: str | None


class AcknowledgementSeen(Struct, frozen=True, gc=False):
    """A finding that somebody has looked at, with the figures it had then."""

    finding: str
    figures: str
    actor: str
    reason: str


class SnapshotSeen(Struct, frozen=True, gc=False):
    """The last snapshot of a payment. ``for_a_person``: the flow has done what it may.

    ``withdrawn_minor`` and ``dispute_fee_minor``: sums over the disputes. ``waiting``: ids of the
    commands that wait; ``command_ids``: of all that the payment remembers; ``marked_ids``: of these
    the ones whose content it knows.
    """

    partition: int
    offset: int
    at_ms: int
    sequence: int
    status: str
    reason: str | None
    amount_minor: int
    currency: str
    captured_minor: int
    refunded_minor: int
    ordered_at_ms: int
    for_a_person: bool
    authorized_minor: int
    withdrawn_minor: int
    dispute_fee_minor: int
    attempts: tuple[AttemptSeen, ...]
    waiting: tuple[str, ...]
    command_ids: tuple[str, ...]
    marked_ids: tuple[str, ...]
    acknowledged: tuple[AcknowledgementSeen, ...]
    disputes: tuple[DisputeSeen, ...]


# The rule that another command under a known id breaks; it says nothing of the command that has it.
_CONTENT_CHANGED: Final = "content_of_a_command_id_must_not_change"


class PaymentEvidence(Struct, gc=False):
    """Everything seen under one key. ``home``: the key's partition. ``rejected_commands``: the
    ids that events say were rejected, and why. ``dead_commands``: places of those that were dead
    letters, and so no commands."""

    key: str
    home: int
    payment_id: str
    orders: tuple[OrderSeen, ...] = ()
    commands: tuple[CommandSeen, ...] = ()
    notifications: tuple[NotificationSeen, ...] = ()
    rejected_commands: tuple[tuple[str, str | None], ...] = ()
    dead_commands: tuple[tuple[int, int], ...] = ()
    requests: tuple[RequestSeen, ...] = ()
    results: tuple[ResultSeen, ...] = ()
    settlements: tuple[SettlementSeen, ...] = ()
    dues: tuple[DueSeen, ...] = ()
    checks: tuple[CheckSeen, ...] = ()
    answered: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    first_sequence: int = 0
    event: EventSeen | None = None
    snapshot: SnapshotSeen | None = None

    @property
    def refused_commands(self) -> tuple[str, ...]:
        """The ids of the commands that were refused, one for each refusal. What came with other
        content under an id that was given before was refused by itself: what has the id was not."""
        return tuple(i for i, why in self.rejected_commands if why != _CONTENT_CHANGED)

    @property
    def taken_commands(self) -> tuple[CommandSeen, ...]:
        """The first command under each id, where it was not refused."""
        refused, dead = set(self.refused_commands), set(self.dead_commands)
        read = [c for c in self.commands if (c.partition, c.offset) not in dead]
        first = {command.command_id: command for command in reversed(read)}
        return tuple(c for command_id, c in first.items() if command_id not in refused)

    @property
    def own_notifications(self) -> tuple[NotificationSeen, ...]:
        """The notices that are about this payment, whatever lies under its key."""
        return tuple(n for n in self.notifications if n.names is None)

    @property
    def ordered_at_ms(self) -> int:
        """Append time of the order, or the earliest time known to be at or after it."""
        if self.orders:
            return self.orders[0].at_ms
        if self.snapshot is not None:
            return self.snapshot.ordered_at_ms
        if self.settlements:
            return self.settlements[0].ordered_at_ms
        times_ms = [r.at_ms for r in self.requests] + [r.at_ms for r in self.results]
        times_ms += [c.at_ms for c in self.commands]
        return min(times_ms, default=0)


class OddInput(Struct, frozen=True, gc=False):
    """A record that belongs to no payment: undecodable, or under a wrong key or partition."""

    role: str
    partition: int
    offset: int
    at_ms: int
    key: bytes | None
    finding: str
    detail: str
    checksum: int


class DeadLetter(Struct, frozen=True, gc=False):
    """``source``: role, partition and offset of the input, None when the headers do not say.
    ``checksum`` is None when the value is masked or one piece of several. ``to_offset``: of a
    batch that unfolds to more than every worker has memory for, its last; a reader that has the
    memory is handed its records."""

    partition: int
    offset: int
    at_ms: int
    key: bytes | None
    cause: str
    stage: str
    source: tuple[str, int, int] | None
    checksum: int | None
    problem: str | None
    first_piece: bool
    to_offset: int | None = None


class MarkerSeen(Struct, frozen=True, gc=False):
    """What was done about a dead letter. ``source``: role, partition and offset of the input;
    ``entry_id``: of the audit's entry that says who did it and why."""

    partition: int
    offset: int
    at_ms: int
    state: str
    source: tuple[str, int, int]
    entry_id: str


class RedrivenInput(Struct, frozen=True, gc=False):
    """A record that stands for an earlier input of its topic and partition."""

    role: str
    partition: int
    offset: int
    key: bytes | None
    source_offset: int


def _heavy_to(value: bytes) -> int | None:
    """The last offset of the batch that a letter holds, if it is one that a worker may pass over
    without giving it to its client."""
    try:
        batch = next(read_batches(value, ()), None)
    except Malformed:
        return None
    if batch is None or batch.last_offset - batch.first_offset >= batch.records:
        return None
    kept = is_heavy(batch, HEAVY_BYTES_MIN) or is_handed_out_in_part(batch)
    return batch.last_offset if kept else None


class Evidence:
    """The folded log. ``markers`` by the partition and offset of their letter, ``discards`` who
    set letters aside and why, by the entry's id."""

    def __init__(self, catalogue: Catalogue, codec: Codec) -> None:
        self.catalogue = catalogue
        judged = judged_roles(catalogue)
        self.payments: dict[bytes, PaymentEvidence] = {}
        self.odd: dict[tuple[str, int, int], OddInput] = {}
        self.dead_letters: list[DeadLetter] = []
        self.markers: dict[tuple[int, int], MarkerSeen] = {}
        self.discards: dict[str, str] = {}
        self.decisions: dict[str, DecisionSeen] = {}
        self.redriven: list[RedrivenInput] = []
        self.findings = Findings()
        self.records: dict[str, int] = dict.fromkeys(judged, 0)
        self._partitions = catalogue["orders"].partitions
        self._roles = {spec.name: role for role, spec in catalogue.topics.items()}
        self._decoders = {
            role: codec.decoder(spec.schema)
            for role, spec in catalogue.topics.items()
            if spec.schema is not None and role in judged
        }
        folds: dict[str, Callable[[PaymentEvidence, LogRecord, dict[str, Any]], None]] = {
            "order": self._order,
            "payment-command": self._command,
            "gateway-notification": self._notification,
            "payment-request": self._request,
            "gateway-result": self._result,
            "settlement": self._settlement,
            "risk-result": self._counted,
            "payment-event": self._event,
            "payment": self._snapshot,
        }
        self._folds = {
            role: self._due(role) if spec.schema == "payment-due" else folds[spec.schema]
            for role, spec in catalogue.topics.items()
            if spec.schema is not None
            and role in judged
            and role not in KEYED_OTHERWISE
            and role not in _OF_OPERATORS
        }

    def take(self, role: str, record: LogRecord) -> None:
        """Fold one record."""
        self.records[role] += 1
        if role == "dead-letters":
            self._dead_letter(record)
            return
        if role in _OF_OPERATORS:
            self._by_hand(role, record)
            return
        if record.headers is UNREADABLE:
            self.findings.note(
                "headers_unreadable", self._example(role, record, "a name is not UTF-8")
            )
        elif record.headers:
            self._redriven(role, record)
        key, value = record.key, record.value
        if value is None:
            if role == "payments" and key in self.payments:
                self.payments[key].snapshot = None
                self.findings.broken("payment_erased", self._example(role, record, "a tombstone"))
                return
            self._set_aside(role, record, "undecodable_record", "a record without a value")
            return
        try:
            fields = self._decoders[role](value)
        except DecodeError as error:
            self._set_aside(role, record, "undecodable_record", str(error))
            return
        if role == "risk-checks":
            self._check(record, fields)
            return
        named = f"{fields['merchant_id']}:{fields['order_id']}"
        if key is None or key != named.encode():
            self._set_aside(
                role, record, "key_differs_from_payload", f"the payload is of {named!r}"
            )
            return
        payment = self.payments.get(key)
        home = home_partition(key, self._partitions) if payment is None else payment.home
        if record.partition != home:
            detail = f"murmur2 puts this key into partition {home}"
            if role in EXTERNAL:
                self._set_aside(role, record, "misplaced_key", detail)
                return
            self.findings.broken("misplaced_key", self._example(role, record, detail))
        if payment is None:
            payment = PaymentEvidence(named, home, payment_id(named))
            self.payments[key] = payment
        if role not in EXTERNAL | {NOTICES} and fields["payment_id"] != payment.payment_id:
            self._wrong_id(role, record, "payment_id", fields["payment_id"], payment.payment_id)
        self._folds[role](payment, record, fields)

    def _order(self, payment: PaymentEvidence, record: LogRecord, fields: dict[str, Any]) -> None:
        payment.orders += (
            OrderSeen(
                record.partition,
                record.offset,
                record.timestamp_ms,
                fields["amount_minor"],
                _intern(fields["currency"]),
                _intern(fields["instrument_token"]),
                _intern(fields["business_date"]),
                zlib.crc32(record.value or b""),
            ),
        )

    def _command(self, payment: PaymentEvidence, record: LogRecord, fields: dict[str, Any]) -> None:
        payment.commands += (
            CommandSeen(
                record.partition,
                record.offset,
                record.timestamp_ms,
                fields["command_id"],
                _intern(fields["type"]) if fields["type"] in COMMAND_TYPES else UNKNOWN_TYPE,
                fields["amount_minor"],
                fields["gateway_reference"],
                fields["instrument_token"],
                fields["gateway"],
                fields["override"] == "reference",
                fields["operation_id"],
                fields["decision"] == "returned",
            ),
        )

    def _notification(
        self, payment: PaymentEvidence, record: LogRecord, fields: dict[str, Any]
    ) -> None:
        outcome = fields["outcome"]
        payment.notifications += (
            NotificationSeen(
                record.partition,
                record.offset,
                record.timestamp_ms,
                _intern(fields["type"]),
                _intern(fields["gateway"]),
                fields["operation_id"],
                None if outcome is None else _intern(outcome),
                fields["gateway_reference"],
                fields["dispute_id"],
                None if fields["payment_id"] == payment.payment_id else fields["payment_id"],
            ),
        )

    def _request(self, payment: PaymentEvidence, record: LogRecord, fields: dict[str, Any]) -> None:
        seen = RequestSeen(
            record.partition,
            record.offset,
            record.timestamp_ms,
            _intern(fields["kind"]),
            _intern(fields["operation_kind"]),
            _intern(fields["gateway"]),
            fields["operation_id"],
            fields["attempt"],
            fields["try_number"],
            fields["amount_minor"],
            _intern(fields["currency"]),
            _intern(fields["instrument_token"]),
        )
        payment.requests += (seen,)
        expected = idempotency_key(
            payment.payment_id, seen.operation_id, seen.gateway, seen.attempt
        )
        if fields["idempotency_key"] != expected:
            self.findings.broken(
                "idempotency_key_wrong",
                self._example(
                    "payment-requests", record, f"{fields['idempotency_key']} is not {expected}"
                ),
            )

    def _result(self, payment: PaymentEvidence, record: LogRecord, fields: dict[str, Any]) -> None:
        code = fields["code"]
        payment.results += (
            ResultSeen(
                record.partition,
                record.offset,
                record.timestamp_ms,
                _intern(fields["kind"]),
                _intern(fields["gateway"]),
                fields["operation_id"],
                fields["attempt"],
                fields["try_number"],
                _intern(fields["outcome"]),
                None if code is None else _intern(code),
                fields["gateway_reference"],
                fields["amount_minor"],
                _intern(fields["currency"]),
                fields["heard"] in ("late_answer", "contradicts"),
            ),
        )

    def _settlement(
        self, payment: PaymentEvidence, record: LogRecord, fields: dict[str, Any]
    ) -> None:
        seen = SettlementSeen(
            record.partition,
            record.offset,
            record.timestamp_ms,
            fields["settlement_id"],
            fields["operation_id"],
            _intern(fields["kind"]),
            fields["amount_minor"],
            _intern(fields["currency"]),
            _intern(fields["gateway"]),
            fields["gateway_reference"],
            fields["ordered_at_ms"],
            _intern(fields["business_date"]),
            fields["settled_at_ms"],
            _intern(fields["payment_method"]),
        )
        payment.settlements += (seen,)
        expected = settlement_id(payment.payment_id, seen.operation_id, seen.kind)
        if seen.settlement_id != expected:
            self._wrong_id("settlements", record, "settlement_id", seen.settlement_id, expected)

    def _check(self, record: LogRecord, fields: dict[str, Any]) -> None:
        """Keyed by what it counts, so it is remembered under its order by what it says itself."""
        named = f"{fields['merchant_id']}:{fields['order_id']}"
        key = named.encode()
        payment = self.payments.get(key)
        if payment is None:
            home = home_partition(key, self._partitions)
            payment = self.payments[key] = PaymentEvidence(named, home, payment_id(named))
        if not fields["outcome"]:
            about = fields["attempt_key"] or _intern(fields["by"])
            payment.checks += (CheckSeen(record.partition, record.offset, about),)

    def _counted(self, payment: PaymentEvidence, record: LogRecord, fields: dict[str, Any]) -> None:
        payment.answered += (fields["attempt_key"] or _intern(fields["by"]),)
        payment.dues += (
            DueSeen("risk-results", record.partition, record.offset, record.timestamp_ms),
        )

    def _due(self, role: str) -> Callable[[PaymentEvidence, LogRecord, dict[str, Any]], None]:
        def fold(payment: PaymentEvidence, record: LogRecord, fields: dict[str, Any]) -> None:
            of_attempt = fields["attempt"] > 0
            payment.dues += (
                DueSeen(role, record.partition, record.offset, record.timestamp_ms, of_attempt),
            )

        return fold

    def _event(self, payment: PaymentEvidence, record: LogRecord, fields: dict[str, Any]) -> None:
        sequence, status = fields["sequence"], _intern(fields["status"])
        last = payment.event
        if last is None:
            payment.first_sequence = sequence
        elif sequence <= last.sequence:
            self.findings.broken(
                "event_sequence_not_monotonic",
                self._example("payment-events", record, f"{sequence} after {last.sequence}"),
            )
        elif sequence > last.sequence + 1:
            self.findings.broken(
                "event_sequence_gap",
                self._example("payment-events", record, f"{sequence} after {last.sequence}"),
            )
        expected = event_id(payment.payment_id, sequence)
        if fields["event_id"] != expected:
            self._wrong_id("payment-events", record, "event_id", fields["event_id"], expected)
        payment.event = EventSeen(
            record.partition, record.offset, sequence, status, _intern(fields["type"])
        )
        if fields["type"] == "command_rejected" and fields["operation_id"] is not None:
            payment.rejected_commands += ((fields["operation_id"], fields["reason"]),)
        if fields["type"] in _RETRIED:
            payment.outcomes = ()
        if status in TERMINAL_STATUSES and status not in payment.outcomes:
            payment.outcomes += (status,)
            if len(payment.outcomes) > 1:
                self.findings.broken(
                    "two_outcomes",
                    self._example("payment-events", record, " and ".join(payment.outcomes)),
                )

    def _snapshot(
        self, payment: PaymentEvidence, record: LogRecord, fields: dict[str, Any]
    ) -> None:
        sequence, last = fields["sequence"], payment.snapshot
        if last is not None and sequence <= last.sequence:
            self.findings.broken(
                "payment_regressed",
                self._example(
                    "payments", record, f"sequence {sequence} written over {last.sequence}"
                ),
            )
        attempts, reason = fields["attempts"], fields["reason"]
        payment.snapshot = SnapshotSeen(
            record.partition,
            record.offset,
            record.timestamp_ms,
            sequence,
            _intern(fields["status"]),
            None if reason is None else _intern(reason),
            fields["amount_minor"],
            _intern(fields["currency"]),
            fields["captured_minor"],
            fields["refunded_minor"],
            fields["ordered_at_ms"],
            any(each["state"] in FOR_A_PERSON for each in attempts),
            fields["authorized_minor"],
            sum(dispute["withdrawn_minor"] for dispute in fields["disputes"]),
            sum(dispute["fee_minor"] for dispute in fields["disputes"]),
            tuple(
                AttemptSeen(
                    each["operation_id"],
                    _intern(each["kind"]),
                    _intern(each["gateway"]),
                    each["attempt"],
                    _intern(each["state"]),
                    each["amount_minor"],
                    each["gateway_reference"],
                    None
                    if each["parent_operation_id"] is None
                    else (each["parent_operation_id"], each["parent_attempt"]),
                    None if each["code"] is None else _intern(each["code"]),
                    each["meant_minor"],
                )
                for each in attempts
            ),
            tuple(command["command_id"] for command in fields["commands"]),
            tuple(fields["command_ids"]),
            tuple(
                fields["command_ids"][len(fields["command_ids"]) - len(fields["command_marks"]) :]
            ),
            tuple(
                AcknowledgementSeen(each["finding"], each["figures"], each["actor"], each["reason"])
                for each in fields["acknowledged"]
            ),
            tuple(
                DisputeSeen(
                    _intern(each["gateway"]),
                    _intern(each["state"]),
                    each["withdrawn_minor"],
                    each["charge_reference"],
                )
                for each in fields["disputes"]
            ),
        )

    def _dead_letter(self, record: LogRecord) -> None:
        headers = {name: value for name, value in record.headers if value is not None}
        problem: str | None = None
        source: tuple[str, int, int] | None = None
        try:
            texts = {name: value.decode() for name, value in headers.items() if name in _LINEAGE}
            source = (
                self._roles[texts["dlq.topic"]],
                int(texts["dlq.partition"]),
                int(texts["dlq.offset"]),
            )
            missing = [name for name in _LINEAGE if not texts.get(name)]
            if missing:
                problem = f"has no header {missing[0]}"
        except KeyError as error:
            problem = (
                f"has no header {error.args[0]}"
                if error.args[0] in _LINEAGE
                else f"names the topic {error.args[0]!r}, which is not of this flow"
            )
        except ValueError as error:
            problem = f"has a header that cannot be read: {error}"
        if problem is not None:
            # Not of our making, whatever it names: it stands for no input.
            source = None
        value = record.value or b""
        chunk = headers.get("dlq.chunk", b"1/1")
        whole = chunk == b"1/1" and b"*" not in value
        self.dead_letters.append(
            DeadLetter(
                record.partition,
                record.offset,
                record.timestamp_ms,
                record.key,
                _intern(headers.get("dlq.cause", b"").decode("utf-8", "replace") or NO_LINEAGE),
                _intern(headers.get("dlq.stage", b"").decode("utf-8", "replace")),
                source,
                zlib.crc32(value) if whole else None,
                problem,
                chunk.startswith(b"1/"),
                _heavy_to(value) if headers.get("dlq.last_offset") else None,
            )
        )

    def _by_hand(self, role: str, record: LogRecord) -> None:
        """What an operator did: an entry of the audit, a marker of a dead letter, a decision."""
        try:
            fields = self._decoders[role](record.value or b"")
        except DecodeError as error:
            self.findings.broken("undecodable_record", self._example(role, record, str(error)))
            return
        if role == "ledger-events":
            self._decision(record, fields)
        if role == "audit" and fields["action"] == "dead_letters_discard":
            self.discards[fields["entry_id"]] = f"{fields['actor']}: {fields['reason']}"
        if role != "dead-letter-markers":
            return
        place = fields["letter_partition"], fields["letter_offset"]
        if place in self.markers:
            self.findings.broken(
                "dead_letter_closed_twice",
                self._example(role, record, f"{place[0]}:{place[1]} again, {fields['state']}"),
            )
        self.markers[place] = MarkerSeen(
            record.partition,
            record.offset,
            record.timestamp_ms,
            _intern(fields["state"]),
            (
                self._roles.get(fields["source_topic"], ""),
                fields["source_partition"],
                fields["source_offset"],
            ),
            _intern(fields["audit_entry_id"]),
        )

    def _decision(self, record: LogRecord, fields: dict[str, Any]) -> None:
        """A decision about the books; of two that are the same the first counts."""
        if fields["event_id"] in self.decisions:
            return
        try:
            seen = decision_of(record.partition, record.offset, fields)
        except ValueError as error:
            self.findings.broken(
                "undecodable_record", self._example("ledger-events", record, str(error))
            )
            return
        self.decisions[seen.event_id] = seen

    def _redriven(self, role: str, record: LogRecord) -> None:
        source = next((v for name, v in record.headers if name == "redrive.offset"), None)
        # Whoever writes inputs could write this header: only a later record stands for an earlier.
        if source is None or not (source.isascii() and source.isdigit()):
            return
        if int(source) >= record.offset:
            return
        self.redriven.append(
            RedrivenInput(role, record.partition, record.offset, record.key, int(source))
        )

    def _set_aside(self, role: str, record: LogRecord, finding: str, detail: str) -> None:
        self.odd[role, record.partition, record.offset] = OddInput(
            role,
            record.partition,
            record.offset,
            record.timestamp_ms,
            record.key,
            finding,
            detail,
            zlib.crc32(record.value or b""),
        )

    def _wrong_id(
        self, role: str, record: LogRecord, field: str, found: str, expected: str
    ) -> None:
        self.findings.broken(
            "derived_id_wrong",
            self._example(role, record, f"{field} is {found}, derived is {expected}"),
        )

    def _example(self, role: str, record: LogRecord, detail: str) -> Example:
        return Example(
            self.catalogue.name(role),
            record.partition,
            record.offset,
            key_text(record.key),
            detail,
        )


_OF_OPERATORS: Final = frozenset({"audit", "dead-letter-markers", "ledger-events"})
# The cause of a letter that names none: nobody of this flow has written it.
NO_LINEAGE: Final = "no_lineage"

_LINEAGE: Final = (
    "dlq.topic",
    "dlq.partition",
    "dlq.offset",
    "dlq.timestamp_ms",
    "dlq.stage",
    "dlq.cause",
)


def key_text(key: bytes | None) -> str:
    """A key for people: as text where it is text."""
    return "" if key is None else key.decode("utf-8", "backslashreplace")

"""A small flow made up record by record, with its ledger and gateway books, for the audit's tests.

Nothing here runs the pipeline: each record is written down as the design says it must look, so
that a test can damage one and ask whether the audit names the damage.
"""

from __future__ import annotations

import pickle
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from pipeline.audit.checks import check
from pipeline.audit.cut import Cut, Unreadable
from pipeline.audit.evidence import Evidence
from pipeline.audit.gateway_copy import GatewayCopy
from pipeline.audit.ledger_copy import EntrySeen, LedgerCopy, PostingSeen, WaitingSeen
from pipeline.audit.log_copy import LogRecord
from pipeline.audit.report import Finding
from pipeline.domain.ids import event_id, idempotency_key, payment_id, settlement_id
from pipeline.domain.keys import partition_of
from schemas.codec import Codec, Decoder, default_codec
from schemas.ids import locked_ids
from topics.catalogue import TopicSettings, build_catalogue

PARTITIONS = 4
START_MS = 1_800_000_000_000
CATALOGUE = build_catalogue(TopicSettings(prefix="t.", partitions=PARTITIONS))
CODEC = default_codec()
ENCODERS = {s.role: CODEC.encoder(s.schema) for s in CATALOGUE.topics.values() if s.schema}

Fields = dict[str, Any]


class _Remembering(Codec):
    """Decodes the same bytes once: a hundred flows differ from one another by a record or two."""

    @cache  # noqa: B019  # of one codec, which lives as long as the process
    def decoder(self, name: str) -> Decoder:
        return lru_cache(maxsize=4_096)(super().decoder(name))


REMEMBERING = _Remembering(locked_ids())


@dataclass
class Row:
    """One record. ``fields`` are encoded when the flow is audited; ``raw`` goes as it is."""

    role: str
    partition: int
    offset: int
    at_ms: int
    key: bytes | None
    fields: Fields | None = None
    raw: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    _encoded: tuple[Fields, bytes] | None = field(default=None, repr=False, compare=False)

    @property
    def value(self) -> bytes | None:
        if self.fields is None:
            return self.raw
        if self._encoded is None or self._encoded[0] != self.fields:
            self._encoded = dict(self.fields), ENCODERS[self.role](self.fields)
        return self._encoded[1]

    @property
    def topic(self) -> str:
        return CATALOGUE.name(self.role)


@dataclass
class Flow:
    """Rows in the order they were appended, and the books. Change them, then ``audit``."""

    rows: list[Row] = field(default_factory=list)
    charges: list[dict[str, Any]] = field(default_factory=list)
    entries: list[EntrySeen] = field(default_factory=list)
    touched: Counter[tuple[str, str]] = field(default_factory=Counter)
    committed: dict[str, dict[tuple[str, int], int]] = field(default_factory=dict)
    ledger_offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    waiting: list[WaitingSeen] = field(default_factory=list)
    lows: dict[tuple[str, int], int] = field(default_factory=dict)
    first_at_ms: dict[tuple[str, int], int] = field(default_factory=dict)
    blind: set[tuple[str, int]] = field(default_factory=set)
    untouched: dict[tuple[str, int], int] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    partitions: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(CATALOGUE.topics, PARTITIONS)
    )
    _at_ms: int = START_MS
    _next: Counter[tuple[str, int]] = field(default_factory=Counter)

    def append(
        self,
        role: str,
        key: bytes | None,
        fields: Fields | None = None,
        *,
        raw: bytes | None = None,
        partition: int | None = None,
        headers: tuple[tuple[str, bytes], ...] = (),
    ) -> Row:
        """Write one record; with a marker's gap behind it, as transactions leave them."""
        if partition is None:
            partition = partition_of(key or b"", PARTITIONS)
        offset = self._next[role, partition]
        self._next[role, partition] += 2
        row = Row(role, partition, offset, self._at_ms, key, fields, raw, headers)
        self._at_ms += 7
        self.rows.append(row)
        return row

    def unreadable_batch(self, role: str, raw: bytes) -> Row:
        """Three records in partition 0 that no client can decompress; they hold these bytes."""
        row = self.append(role, None, raw=raw, partition=0)
        self.rows.remove(row)
        self._next[role, 0] += 2
        self.unreadable.append(Unreadable(role, 0, row.offset, row.offset + 2, 3, zlib.crc32(raw)))
        return row

    def of(self, role: str, key: str | None = None, index: int = 0) -> Row:
        """The index-th record of a topic (under a key)."""
        found = [
            row
            for row in self.rows
            if row.role == role and (key is None or row.key == key.encode())
        ]
        return found[index]

    def remove(self, role: str, key: str, index: int = 0) -> Row:
        row = self.of(role, key, index)
        self.rows.remove(row)
        return row

    def ends(self) -> dict[tuple[str, int], int]:
        return {
            (role, p): self._next[role, p]
            for role, count in self.partitions.items()
            for p in range(count)
        }

    def all_processed(self) -> None:
        """Commit every group and the ledger to the present ends."""
        ends = self.ends()
        self.committed = {
            stage: {
                (spec.role, p): ends[spec.role, p]
                for spec in CATALOGUE.inputs(stage)
                for p in range(PARTITIONS)
            }
            for stage in ("payments", "gateway")
        }
        # A timer waits for days.
        for (role, p), _ in list(self.committed["payments"].items()):
            if role.startswith("payment-timer-"):
                self.committed["payments"][role, p] = 0
        self.untouched = dict(self.committed["payments"])
        self.ledger_offsets = {
            (CATALOGUE.name("settlements"), p): ends["settlements", p] for p in range(PARTITIONS)
        }

    def evidence(self) -> Evidence:
        evidence = Evidence(CATALOGUE, REMEMBERING)
        for row in self.rows:
            evidence.take(
                row.role,
                LogRecord(row.partition, row.offset, row.at_ms, row.key, row.value, row.headers),
            )
        return evidence

    def cut(self) -> Cut:
        return Cut(
            partitions=self.partitions,
            ends=self.ends(),
            committed=self.committed,
            lows=self.lows,
            first_at_ms=self.first_at_ms,
            blind=frozenset(self.blind),
            untouched=self.untouched,
            unreadable=self.unreadable,
        )

    def ledger(self) -> LedgerCopy:
        """Balances are summed from the entries; ``touched`` are debits that nobody posted."""
        balances: dict[tuple[str, str], tuple[int, int]] = {}
        for entry in self.entries:
            for posting in entry.postings:
                place, amount_minor = (posting.account, posting.currency), posting.amount_minor
                debits, credits = balances.get(place, (0, 0))
                balances[place] = debits + max(0, amount_minor), credits + max(0, -amount_minor)
        for place, amount_minor in self.touched.items():
            debits, credits = balances.get(place, (0, 0))
            balances[place] = debits + amount_minor, credits
        return LedgerCopy(self.entries, balances, self.ledger_offsets, self.waiting)

    def gateway(self) -> GatewayCopy:
        copy = GatewayCopy()
        for charge in self.charges:
            copy.add(charge, recent=charge.get("recent", False))
        return copy

    def audit(self) -> list[Finding]:
        return check(self.evidence(), self.cut(), self.ledger(), self.gateway())

    # One payment, step by step

    def order(self, key: str, amount_minor: int = 1250, currency: str = "GBP", **more: Any) -> Row:
        merchant_id, order_id = key.split(":")
        fields = {
            "merchant_id": merchant_id,
            "order_id": order_id,
            "amount_minor": amount_minor,
            "currency": currency,
            "instrument_token": "tok_ok",
            "payment_method": "card",
            "capture_method": "automatic",
            "pay_before_ms": None,
            "business_date": "2027-01-15",
            "submitted_at_ms": START_MS,
            "customer_id": None,
            "country": None,
            "lines": [],
            **more,
        }
        return self.append("orders", key.encode(), fields)

    def started(self, key: str, amount_minor: int = 1250, currency: str = "GBP") -> PaymentInFlow:
        """An order whose payment has begun and whose first request waits for its result."""
        order = self.order(key, amount_minor, currency)
        payment = PaymentInFlow(self, key, order)
        payment.request("charge")
        payment.transition("processing", "payment_started", state="started")
        return payment

    def authorized(self, key: str, amount_minor: int = 1250) -> PaymentInFlow:
        """An order whose money is held, and waits for its capture until a timer ends it."""
        order = self.order(key, amount_minor, capture_method="manual")
        payment = PaymentInFlow(self, key, order)
        payment.main_kind = "authorize"
        payment.request("authorize")
        payment.transition("processing", "payment_started", state="started")
        payment.charge_id = payment.entry("authorization", payment.reference, amount_minor)
        payment.result("authorize", "succeeded", payment.charge_id)
        payment.authorized_minor = amount_minor
        payment.timer()
        payment.transition("authorized", "authorized", state="authorized")
        return payment

    def credit(self, key: str, command_id: str, amount_minor: int) -> PaymentInFlow:
        """A credit without an order: booked and held."""
        merchant_id, order_id = key.split(":")
        command = self.append(
            "payment-commands",
            key.encode(),
            {
                "merchant_id": merchant_id,
                "order_id": order_id,
                "command_id": command_id,
                "type": "credit",
                "amount_minor": amount_minor,
                "currency": "GBP",
                "submitted_at_ms": START_MS,
            },
        )
        payment = PaymentInFlow(self, key, command)
        payment.command_ids = [command_id]
        payment.settle(command_id, "credit", -amount_minor, command_id, "none")
        payment.step("credit_held", "credit_held", operation_id=command_id)
        return payment

    def captured(self, key: str, amount_minor: int = 1250, currency: str = "GBP") -> PaymentInFlow:
        payment = self.started(key, amount_minor, currency)
        payment.succeed()
        return payment

    def ended_at_once(
        self, key: str, status: str, amount_minor: int, reason: str | None = None
    ) -> PaymentInFlow:
        payment = PaymentInFlow(self, key, self.order(key, amount_minor))
        payment.transition(status, status, reason=reason)
        return payment

    def dead_letter(self, source: Row, cause: str, **more: Any) -> Row:
        headers = {
            "dlq.topic": source.topic,
            "dlq.partition": str(source.partition),
            "dlq.offset": str(source.offset),
            "dlq.timestamp_ms": str(source.at_ms),
            "dlq.stage": "payments",
            "dlq.cause": cause,
            "dlq.detail": "",
        }
        return self.append(
            "dead-letters",
            source.key,
            raw=source.value,
            partition=source.partition,
            headers=tuple((name, text.encode()) for name, text in headers.items()),
            **more,
        )

    def redrive(self, letter: Row, *, again: bool = True, **more: Any) -> Row:
        """The marker of a letter and, unless it got lost, its input once more."""
        said = {name: text.decode() for name, text in letter.headers}
        self.close_letter(letter, "redriven")
        if not again:
            return letter
        headers = {"redrive.letter": f"{letter.partition}:{letter.offset}", "redrive.offset": ""}
        headers["redrive.offset"] = said["dlq.offset"]
        return self.append(
            next(s.role for s in CATALOGUE.topics.values() if s.name == said["dlq.topic"]),
            letter.key,
            raw=letter.value,
            partition=int(said["dlq.partition"]),
            headers=tuple((name, text.encode()) for name, text in headers.items()),
            **more,
        )

    def close_letter(self, letter: Row, state: str, entry_id: str = "e") -> Row:
        said = {name: text.decode() for name, text in letter.headers}
        name = f"{letter.partition}:{letter.offset}"
        return self.append(
            "dead-letter-markers",
            name.encode(),
            {
                "letter_partition": letter.partition,
                "letter_offset": letter.offset,
                "state": state,
                "source_topic": said.get("dlq.topic", ""),
                "source_partition": int(said.get("dlq.partition", -1)),
                "source_offset": int(said.get("dlq.offset", -1)),
                "first_partition": letter.partition,
                "first_offset": letter.offset,
                "redrives": 1,
                "audit_entry_id": entry_id,
                "occurred_at_ms": START_MS,
            },
            partition=letter.partition,
        )


class PaymentInFlow:
    """Writes what a payment leaves in the topics, in the order in which the flow does."""

    def __init__(self, flow: Flow, key: str, order: Row) -> None:
        assert order.fields is not None
        self.flow = flow
        self.key = key
        self.order = order
        self.merchant_id, self.order_id = key.split(":")
        self.payment_id = payment_id(self.merchant_id, self.order_id)
        self.amount_minor = order.fields["amount_minor"]
        self.currency = order.fields["currency"]
        self.charge_id = ""
        self.gateway = "sim-a"
        self.main_kind = "charge"
        self.status = "new"
        self.state: str | None = None
        self.attempt = 1
        self.tries = 0
        self.sequence = 0
        self.authorized_minor = 0
        self.captured_minor = 0
        self.refunded_minor = 0
        self.has_attempt = False
        self.operations: dict[str, Fields] = {}
        self.command_ids: list[str] = []
        self.waiting: list[Fields] = []
        self.disputes: list[Fields] = []

    @property
    def ids(self) -> Fields:
        return {
            "merchant_id": self.merchant_id,
            "order_id": self.order_id,
            "payment_id": self.payment_id,
        }

    @property
    def operation(self) -> Fields:
        return {"operation_id": self.order_id, "attempt": self.attempt, "try_number": self.tries}

    @property
    def reference(self) -> str:
        return idempotency_key(self.payment_id, self.order_id, self.gateway, self.attempt)

    def request(self, kind: str) -> Row:
        self.tries += 1
        self.has_attempt = True
        return self._append(
            "payment-requests",
            {
                **self.operation,
                "kind": kind,
                "operation_kind": self.main_kind,
                "gateway": self.gateway,
                "amount_minor": self.amount_minor,
                "currency": self.currency,
                "instrument_token": "tok_ok",
                "idempotency_key": self.reference,
                "send_within_ms": 30_000,
                "ordered_at_ms": self.order.at_ms,
            },
        )

    def result(self, kind: str, outcome: str, reference: str | None = None, **more: Any) -> Row:
        return self._append(
            "gateway-results",
            {
                **self.operation,
                "kind": kind,
                "gateway": self.gateway,
                "outcome": outcome,
                "gateway_reference": reference,
                "code": None,
                "gateway_code": None,
                "retry_after_ms": None,
                "amount_minor": self.amount_minor if outcome == "succeeded" else 0,
                "currency": self.currency,
                "observed_at_ms": START_MS,
                **more,
            },
        )

    def timer(self) -> Row:
        return self._append(
            "payment-timer-3",
            {
                "operation_id": self.order_id,
                "attempt": 0,
                "try_number": 0,
                "purpose": "timer",
                "due_at_ms": START_MS + 604_800_000,
                "tier": 3,
            },
        )

    def due(self, purpose: str) -> Row:
        return self._append(f"payment-{purpose}-1", {**self.operation, "purpose": purpose})

    def transition(
        self, status: str, type_: str, *, state: str | None = None, reason: str | None = None
    ) -> None:
        """An event about the charge, and the snapshot after it."""
        if state is not None:
            self.state = state
        self.step(status, type_, reason=reason)

    def step(
        self,
        status: str,
        type_: str,
        *,
        reason: str | None = None,
        operation_id: str | None = None,
    ) -> None:
        """An event and the snapshot after it."""
        self.status = status
        self.sequence += 1
        self._append(
            "payment-events",
            {
                "event_id": event_id(self.payment_id, self.sequence),
                "sequence": self.sequence,
                "type": type_,
                "status": status,
                "reason": reason,
                "amount_minor": self.amount_minor,
                "currency": self.currency,
                "occurred_at_ms": START_MS,
                "operation_id": operation_id,
            },
        )
        attempt = {
            "operation_id": self.order_id,
            "kind": self.main_kind,
            "gateway": self.gateway,
            "attempt": self.attempt,
            "state": self.state,
            "tries": self.tries,
            "retries": 0,
            "inquiries": 0,
            "started_at_ms": START_MS,
            "updated_at_ms": START_MS,
        }
        self._append(
            "payments",
            {
                "sequence": self.sequence,
                "status": status,
                "reason": reason,
                "amount_minor": self.amount_minor,
                "currency": self.currency,
                "instrument_token": "tok_ok",
                "business_date": "2027-01-15",
                "ordered_at_ms": self.order.at_ms,
                "updated_at_ms": START_MS,
                "authorized_minor": self.authorized_minor,
                "captured_minor": self.captured_minor,
                "refunded_minor": self.refunded_minor,
                "attempts": [*([attempt] if self.has_attempt else []), *self.operations.values()],
                "command_ids": self.command_ids,
                "command_marks": [
                    {"digest": n, "taken_at_ms": START_MS} for n in range(len(self.command_ids))
                ],
                "commands": self.waiting,
                "disputes": self.disputes,
            },
        )

    def charge(self) -> str:
        """The gateway books a charge; its id."""
        return self.entry("charge", self.reference, self.amount_minor)

    def entry(
        self, kind: str, reference: str, amount_minor: int, charge_id: str | None = None
    ) -> str:
        """One entry of the gateway's books; its id."""
        entry_id = f"{'ch' if charge_id is None else kind}_{len(self.flow.charges):04d}"
        self.flow.charges.append(
            {
                "kind": kind,
                "id": entry_id,
                "reference": reference,
                "charge_id": charge_id or entry_id,
                "amount_minor": amount_minor,
                "currency": self.currency,
                "merchant_id": self.merchant_id,
                "order_id": self.order_id,
                "created_at_ms": START_MS,
            }
        )
        return entry_id

    def succeed(self, kind: str = "charge", charge_id: str | None = None) -> None:
        """Charged, captured, settled and booked."""
        charge_id = charge_id or self.charge()
        self.charge_id = charge_id
        self.result(kind, "succeeded", charge_id)
        self.authorized_minor = self.captured_minor = self.amount_minor
        self.settle(charge_id)
        self.transition("captured", "captured", state="charged")

    def settle(
        self,
        charge_id: str,
        kind: str = "capture",
        amount_minor: int | None = None,
        operation_id: str | None = None,
        gateway: str | None = None,
    ) -> Row:
        """A settlement and its journal entry."""
        operation_id = operation_id or self.order_id
        amount_minor = self.amount_minor if amount_minor is None else amount_minor
        row = self._append(
            "settlements",
            {
                "settlement_id": settlement_id(self.payment_id, operation_id, kind),
                "operation_id": operation_id,
                "kind": kind,
                "amount_minor": amount_minor,
                "currency": self.currency,
                "gateway": gateway or self.gateway,
                "gateway_reference": charge_id,
                "business_date": "2027-01-15",
                "ordered_at_ms": self.order.at_ms,
                "settled_at_ms": START_MS,
            },
        )
        assert row.fields is not None
        receivable, payable = f"gateway_receivable:{self.gateway}", "merchant_payable"
        losses = "disputes_and_losses"
        debited, credited = {
            "dispute": (receivable, losses),
            "reversal": (receivable, losses),
            "dispute_fee": (receivable, losses),
            "credit": (f"unapplied_credits:{self.merchant_id}", payable),
        }.get(kind, (receivable, payable))
        postings = (
            PostingSeen(debited, self.currency, amount_minor),
            PostingSeen(f"{credited}:{self.merchant_id}", self.currency, -amount_minor),
        )
        self.flow.entries.append(
            EntrySeen(
                f"entry-{len(self.flow.entries)}",
                row.fields["settlement_id"],
                row.topic,
                row.partition,
                row.offset,
                postings,
            )
        )
        return row

    # After the charge

    def command(self, type_: str, command_id: str, **more: Any) -> Row:
        """A command as it is published; the payment does not know it yet."""
        return self.flow.append(
            "payment-commands",
            self.key.encode(),
            {
                "merchant_id": self.merchant_id,
                "order_id": self.order_id,
                "command_id": command_id,
                "type": type_,
                "submitted_at_ms": START_MS,
                **more,
            },
        )

    def rejected(self, command_id: str, rule: str) -> None:
        """The payment refuses a command by name."""
        self.command_ids = [*self.command_ids, command_id]
        self.step(self.status, "command_rejected", reason=rule, operation_id=command_id)

    def begin(self, kind: str, operation_id: str, amount_minor: int) -> None:
        """An operation whose first request waits for its result."""
        self.operations[operation_id] = {
            "operation_id": operation_id,
            "kind": kind,
            "gateway": self.gateway,
            "attempt": 1,
            "state": "started",
            "tries": 1,
            "retries": 0,
            "inquiries": 0,
            "started_at_ms": START_MS,
            "updated_at_ms": START_MS,
            "amount_minor": amount_minor,
        }
        self._append(
            "payment-requests",
            {
                "operation_id": operation_id,
                "attempt": 1,
                "try_number": 1,
                "kind": kind,
                "operation_kind": kind,
                "gateway": self.gateway,
                "amount_minor": amount_minor,
                "currency": self.currency,
                "instrument_token": "tok_ok",
                "idempotency_key": self.reference_of(operation_id),
                "send_within_ms": 30_000,
                "ordered_at_ms": self.order.at_ms,
            },
        )
        self.step(self.status, f"{kind}_started", operation_id=operation_id)

    def reference_of(self, operation_id: str) -> str:
        return idempotency_key(self.payment_id, operation_id, self.gateway, 1)

    def answered(self, operation_id: str, outcome: str, reference: str | None = None) -> Row:
        """The result of an operation that is not the charge."""
        operation = self.operations[operation_id]
        return self._append(
            "gateway-results",
            {
                "operation_id": operation_id,
                "attempt": 1,
                "try_number": 1,
                "kind": operation["kind"],
                "gateway": self.gateway,
                "outcome": outcome,
                "gateway_reference": reference,
                "amount_minor": operation["amount_minor"] if outcome == "succeeded" else 0,
                "currency": self.currency,
                "observed_at_ms": START_MS,
            },
        )

    def state_of(self, operation_id: str, state: str) -> None:
        self.operations[operation_id] = {**self.operations[operation_id], "state": state}

    def finish(self, operation_id: str) -> str:
        """The gateway does what was begun, and says so; the id of its entry."""
        operation = self.operations[operation_id]
        kind, amount_minor = operation["kind"], operation["amount_minor"]
        entry_id = self.entry(kind, self.reference_of(operation_id), amount_minor, self.charge_id)
        self.answered(operation_id, "succeeded", entry_id)
        if kind == "refund":
            self.refunded_minor += amount_minor
            self.settle(entry_id, "refund", -amount_minor, operation_id)
        elif kind == "capture":
            self.captured_minor += amount_minor
            self.settle(entry_id, "capture", amount_minor, operation_id)
        else:
            self.authorized_minor -= amount_minor
        done = {"refund": "refunded", "capture": "captured", "void": "voided"}[kind]
        self.state_of(operation_id, done)
        status = {"capture": "captured", "void": "cancelled"}.get(kind, self.status)
        self.step(status, done, operation_id=operation_id)
        return entry_id

    def commanded(self, kind: str, command_id: str, amount_minor: int) -> str:
        """A command from its publishing to its end; the id of the gateway's entry."""
        type_ = "cancel" if kind == "void" else kind
        self.command(type_, command_id, amount_minor=amount_minor)
        self.command_ids = [*self.command_ids, command_id]
        self.begin(kind, command_id, amount_minor)
        return self.finish(command_id)

    def refund_failed(self, command_id: str, entry_id: str) -> None:
        """A refund that had succeeded comes back; a notice tells it."""
        amount_minor = self.operations[command_id]["amount_minor"]
        self.entry("refund_failed", self.reference_of(command_id), amount_minor, self.charge_id)
        self.notified("operation", operation_id=command_id, attempt=1, outcome="declined")
        self.refunded_minor -= amount_minor
        self.settle(entry_id, "refund_failed", amount_minor, command_id)
        self.state_of(command_id, "failed")
        self.step(self.status, "operation_failed", operation_id=command_id)

    def notified(self, type_: str, **more: Any) -> Row:
        return self._append(
            "gateway-notifications",
            {
                "notification_id": f"msg-{len(self.flow.rows)}",
                "gateway": self.gateway,
                "type": type_,
                "amount_minor": 0,
                "currency": self.currency,
                "received_at_ms": START_MS,
                **more,
            },
        )

    def disputed(self, dispute_id: str, amount_minor: int, fee_minor: int) -> None:
        """A dispute is opened: the gateway takes the money and a fee, and tells."""
        self.entry("dispute", dispute_id, amount_minor, self.charge_id)
        self.entry("dispute_fee", dispute_id, fee_minor, self.charge_id)
        self.notified("dispute", dispute_id=dispute_id, dispute_state="opened")
        operation_id = f"dispute.{self.sequence + 1}.{dispute_id}"
        self.settle(dispute_id, "dispute", -amount_minor, operation_id)
        self.settle(dispute_id, "dispute_fee", -fee_minor, operation_id)
        self.disputes = [self._dispute(dispute_id, "opened", amount_minor, fee_minor, amount_minor)]
        self.step(self.status, "dispute_opened")

    def dispute_won(self, dispute_id: str, amount_minor: int, fee_minor: int) -> None:
        self.entry("dispute_won", dispute_id, amount_minor, self.charge_id)
        self.notified("dispute", dispute_id=dispute_id, dispute_state="won")
        operation_id = f"dispute.{self.sequence + 1}.{dispute_id}"
        self.settle(dispute_id, "reversal", amount_minor, operation_id)
        self.disputes = [self._dispute(dispute_id, "won", amount_minor, fee_minor, 0)]
        self.step(self.status, "dispute_won")

    def _dispute(
        self, dispute_id: str, state: str, amount_minor: int, fee_minor: int, withdrawn_minor: int
    ) -> Fields:
        return {
            "dispute_id": dispute_id,
            "state": state,
            "amount_minor": amount_minor,
            "fee_minor": fee_minor,
            "withdrawn_minor": withdrawn_minor,
            "gateway": self.gateway,
            "updated_at_ms": START_MS,
        }

    def came_too_late(self) -> str:
        """A charge that was given up succeeds: booked, and its refund begun; its operation."""
        self.charge_id = self.charge()
        self.result("charge", "succeeded", self.charge_id)
        late = f"late-{self.order_id}-1"
        self.authorized_minor = self.captured_minor = self.amount_minor
        self.settle(self.charge_id, "capture", self.amount_minor, late)
        self.transition(self.status, "late_success", state="charged", reason=self.status)
        self.begin("refund", late, self.amount_minor)
        return late

    def decline(self, reason: str = "insufficient_funds") -> None:
        self.result("charge", "declined", code=reason)
        self.transition("failed", "failed", state="declined", reason=reason)

    def not_sent(self) -> None:
        self.result("charge", "not_sent", code="rate_limited")
        self.due("retry")
        self.transition("processing", "retry_scheduled", state="retry_waiting")

    def unknown(self) -> None:
        self.result("charge", "unknown", code="timeout")
        self.due("inquiry")
        self.transition(
            "outcome_unknown", "outcome_unknown", state="inquiry_waiting", reason="timeout"
        )

    def _append(self, role: str, fields: Fields) -> Row:
        return self.flow.append(role, self.key.encode(), {**self.ids, **fields})


def healthy_flow() -> Flow:
    """Every way a payment may go that leaves nothing on its way, all of it processed.

    Made once and encoded; each caller gets a copy of its own to damage.

    Of interest by key: ``shop:c1`` to ``c8`` captured, ``shop:retry`` and ``shop:asked`` captured
    on a second try, ``shop:declined``, ``shop:free``, ``shop:rejected``, ``shop:twice`` ordered
    twice, ``shop:conflict`` ordered with two amounts, and three bad orders. After the charge:
    ``shop:refunded`` in parts (one failed later, one was rejected), ``shop:disputed`` and won,
    ``shop:manual`` captured in two parts, ``shop:held``, ``shop:voided``, ``shop:late`` charged
    after it had failed and given back, and the credit ``shop:C1-line-1``.
    """
    copied: Flow = pickle.loads(_healthy_flow())
    return copied


@cache
def _healthy_flow() -> bytes:
    flow = Flow()
    for n in range(1, 9):
        flow.captured(f"shop:c{n}", 1000 + n, "GBP" if n % 2 else "EUR")

    again = flow.started("shop:retry", 300)
    again.not_sent()
    again.request("charge")
    again.transition("processing", "retry_started", state="started")
    again.succeed()

    asked = flow.started("shop:asked", 400)
    charge_id = asked.charge()
    asked.unknown()
    asked.request("inquire")
    asked.transition("outcome_unknown", "inquiry_started", state="inquiring", reason="timeout")
    asked.succeed("inquire", charge_id)

    flow.started("shop:declined", 500).decline()
    flow.ended_at_once("shop:free", "no_payment_due", 0)
    flow.ended_at_once("shop:rejected", "rejected", -5, "amount_must_not_be_negative")

    flow.captured("shop:twice", 600)
    flow.order("shop:twice", 600)

    conflict = flow.captured("shop:conflict", 700)
    other = flow.order("shop:conflict", 701)
    flow.dead_letter(other, "order_conflict")
    conflict.transition("captured", "order_conflict", state="charged")

    flow.dead_letter(flow.append("orders", b"shop:junk", raw=b"not a record"), "not_wire_format")
    lost_key = flow.order("shop:misplaced")
    lost_key.partition = (lost_key.partition + 1) % PARTITIONS
    lost_key.offset = flow._next["orders", lost_key.partition]
    flow._next["orders", lost_key.partition] += 2
    flow.dead_letter(lost_key, "misrouted")
    renamed = flow.order("shop:renamed")
    renamed.key = b"shop:other"
    flow.dead_letter(renamed, "key_mismatch")

    refunded = flow.captured("shop:refunded", 1000)
    refunded.commanded("refund", "refund-1", 300)
    entry_id = refunded.commanded("refund", "refund-2", 200)
    refunded.command("refund", "refund-3", amount_minor=501)
    refunded.rejected("refund-3", "refund_must_not_exceed_captured")
    refunded.refund_failed("refund-2", entry_id)

    disputed = flow.captured("shop:disputed", 800)
    disputed.disputed("dp1", 800, 15)
    disputed.dispute_won("dp1", 800, 15)

    manual = flow.authorized("shop:manual", 900)
    manual.commanded("capture", "capture-1", 400)
    manual.commanded("capture", "capture-2", 500)
    flow.authorized("shop:held", 250)
    flow.authorized("shop:voided", 260).commanded("void", "cancel-1", 260)

    late = flow.started("shop:late", 650)
    late.transition("failed", "failed", state="failed", reason="gateway_unavailable")
    late.finish(late.came_too_late())

    flow.credit("shop:C1-line-1", "credit-1", 425)

    flow.all_processed()
    flow.evidence()
    return pickle.dumps(flow)


Damage = Callable[[Flow], Row | str]

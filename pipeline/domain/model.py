"""The nouns of the flow: immutable values, one for each Avro record of ``schemas``.

Amounts are integers in minor units of an ISO 4217 currency, times are epoch milliseconds taken
from the broker's append time. Field meanings stand in the ``doc`` of the Avro schema of the same
name; ``records`` converts between the two.
"""

from __future__ import annotations

from msgspec import Struct


class OrderLine(Struct, frozen=True, kw_only=True, gc=False):
    line_number: int
    sku: str
    quantity: int
    unit_amount_minor: int
    description: str = ""


class Order(Struct, frozen=True, kw_only=True):
    merchant_id: str
    order_id: str
    amount_minor: int
    currency: str
    instrument_token: str
    business_date: str
    submitted_at_ms: int
    payment_method: str = "card"
    capture_method: str = "automatic"
    pay_before_ms: int | None = None
    customer_id: str | None = None
    country: str | None = None
    lines: tuple[OrderLine, ...] = ()
    card_fingerprint: str | None = None
    card_scheme: str | None = None


class PaymentCommand(Struct, frozen=True, kw_only=True, gc=False):
    """A request to change a payment, as it is published and as it waits in the payment."""

    merchant_id: str
    order_id: str
    command_id: str
    type: str
    submitted_at_ms: int
    amount_minor: int | None = None
    currency: str | None = None
    instrument_token: str | None = None
    card_fingerprint: str | None = None
    decision: str | None = None
    gateway_reference: str | None = None
    operation_id: str | None = None
    dispute_id: str | None = None
    gateway: str | None = None
    evidence: str | None = None
    reason: str | None = None
    actor: str | None = None
    override: str | None = None
    business_date: str | None = None
    card_scheme: str | None = None
    finding: str | None = None
    figures: str | None = None
    attempt: int | None = None


class PaymentRequest(Struct, frozen=True, kw_only=True, gc=False):
    merchant_id: str
    order_id: str
    payment_id: str
    operation_id: str
    kind: str
    gateway: str
    amount_minor: int
    currency: str
    instrument_token: str
    idempotency_key: str
    attempt: int
    try_number: int
    send_within_ms: int
    ordered_at_ms: int
    pay_before_ms: int | None = None
    operation_kind: str = "charge"
    parent_reference: str | None = None
    country: str | None = None
    attempt_started_at_ms: int = 0
    not_after_ms: int = 0


class GatewayResult(Struct, frozen=True, kw_only=True, gc=False):
    merchant_id: str
    order_id: str
    payment_id: str
    operation_id: str
    kind: str
    gateway: str
    attempt: int
    try_number: int
    outcome: str
    amount_minor: int
    currency: str
    observed_at_ms: int
    gateway_reference: str | None = None
    code: str | None = None
    gateway_code: str | None = None
    retry_after_ms: int | None = None
    next_action_url: str | None = None
    letter: str | None = None
    earlier_reads: int = 0
    not_found_asked_at_ms: int = 0
    heard: str | None = None


class GatewayNotification(Struct, frozen=True, kw_only=True, gc=False):
    merchant_id: str
    order_id: str
    payment_id: str
    notification_id: str
    gateway: str
    type: str
    amount_minor: int
    currency: str
    received_at_ms: int
    operation_id: str | None = None
    attempt: int | None = None
    kind: str | None = None
    outcome: str | None = None
    gateway_reference: str | None = None
    dispute_id: str | None = None
    dispute_state: str | None = None
    event_sequence: int | None = None
    fee_minor: int = 0
    code: str | None = None
    gateway_code: str | None = None


class GatewayReference(Struct, frozen=True, kw_only=True, gc=False):
    gateway: str
    gateway_reference: str
    merchant_id: str
    order_id: str
    payment_id: str
    operation_id: str
    attempt: int
    kind: str


class Settlement(Struct, frozen=True, kw_only=True, gc=False):
    settlement_id: str
    merchant_id: str
    order_id: str
    payment_id: str
    operation_id: str
    kind: str
    amount_minor: int
    currency: str
    gateway: str
    gateway_reference: str
    business_date: str
    ordered_at_ms: int
    settled_at_ms: int
    payment_method: str = ""


class PaymentEvent(Struct, frozen=True, kw_only=True, gc=False):
    event_id: str
    merchant_id: str
    order_id: str
    payment_id: str
    sequence: int
    type: str
    status: str
    amount_minor: int
    currency: str
    occurred_at_ms: int
    reason: str | None = None
    gateway: str | None = None
    attempt: int | None = None
    operation_id: str | None = None
    kind: str | None = None
    operation_minor: int | None = None
    detail: str | None = None
    actor: str | None = None


class Attempt(Struct, frozen=True, kw_only=True, gc=False):
    operation_id: str
    kind: str
    gateway: str
    attempt: int
    state: str
    tries: int
    retries: int
    inquiries: int
    started_at_ms: int
    updated_at_ms: int
    gateway_reference: str | None = None
    code: str | None = None
    resends: int = 0
    send_within_ms: int = 0
    sendable_until_ms: int = 0
    amount_minor: int = 0
    routed_because: str | None = None
    uncertain_since_ms: int = 0
    business_date: str | None = None
    parent_operation_id: str | None = None
    parent_attempt: int = 0
    instrument_token: str | None = None
    card_fingerprint: str | None = None
    permit: str = ""
    approved_by: str | None = None
    approval: str | None = None
    override: str | None = None
    meant_minor: int = 0


class Dispute(Struct, frozen=True, kw_only=True, gc=False):
    dispute_id: str
    state: str
    amount_minor: int
    gateway: str
    updated_at_ms: int
    fee_minor: int = 0
    withdrawn_minor: int = 0
    event_sequence: int = 0
    gateway_state: str | None = None
    resolved_by: str | None = None
    charge_reference: str | None = None


class CommandMark(Struct, frozen=True, kw_only=True, gc=False):
    """What is remembered of a command that was taken, besides its id."""

    digest: int
    taken_at_ms: int


class Acknowledgement(Struct, frozen=True, kw_only=True, gc=False):
    """A finding of the audit that a person has looked at, with the figures it had then."""

    finding: str
    figures: str
    actor: str
    reason: str
    acknowledged_at_ms: int


class RiskCounted(Struct, frozen=True, kw_only=True, gc=False):
    """How many orders of one identity a window holds, the one that was asked about included."""

    by: str
    window_ms: int
    count: int
    sum_minor: int
    currency: str = ""
    amount_minor_max: int = 0


class Payment(Struct, frozen=True, kw_only=True):
    merchant_id: str
    order_id: str
    payment_id: str
    sequence: int
    status: str
    amount_minor: int
    currency: str
    instrument_token: str
    business_date: str
    ordered_at_ms: int
    updated_at_ms: int
    reason: str | None = None
    pay_before_ms: int | None = None
    customer_id: str | None = None
    captured_minor: int = 0
    refunded_minor: int = 0
    conflicts: int = 0
    dead_letters: int = 0
    attempts: tuple[Attempt, ...] = ()
    capture_method: str = "automatic"
    payment_method: str = "card"
    country: str | None = None
    card_fingerprint: str | None = None
    authorized_minor: int = 0
    disputed_minor: int = 0
    charged_back_minor: int = 0
    next_action_url: str | None = None
    expires_at_ms: int | None = None
    cancel_requested_by: str | None = None
    retry_token: str | None = None
    commands: tuple[PaymentCommand, ...] = ()
    command_ids: tuple[str, ...] = ()
    command_marks: tuple[CommandMark, ...] = ()
    letters: tuple[str, ...] = ()
    disputes: tuple[Dispute, ...] = ()
    risk_awaited: tuple[str, ...] = ()
    risk_counted: tuple[RiskCounted, ...] = ()
    assessed_retry: str | None = None
    card_scheme: str | None = None
    retry_fingerprint: str | None = None
    retry_scheme: str | None = None
    acknowledged: tuple[Acknowledgement, ...] = ()
    unfounded_disputes: tuple[Dispute, ...] = ()


class PaymentDue(Struct, frozen=True, kw_only=True, gc=False):
    merchant_id: str
    order_id: str
    payment_id: str
    operation_id: str
    attempt: int
    try_number: int
    purpose: str
    reason: str | None = None
    due_at_ms: int | None = None
    tier: int = 1


class ControlEntry(Struct, frozen=True, kw_only=True, gc=False):
    """A document that workers follow while they run; ``value`` is JSON."""

    key: str
    value: str
    version: int
    changed_by: str
    reason: str
    changed_at_ms: int


class RiskCounter(Struct, frozen=True, kw_only=True, gc=False, order=True):
    """What one series counts of an identity: all orders of a window, or only some of them.

    ``currency``: only orders in it ("" counts all). ``amount_minor_max``: only orders up to it
    (0 counts all). Rules that count the same share a counter.
    """

    window_ms: int
    currency: str = ""
    amount_minor_max: int = 0

    def takes(self, amount_minor: int, currency: str) -> bool:
        return (not self.currency or currency == self.currency) and (
            not self.amount_minor_max or amount_minor <= self.amount_minor_max
        )


class AttemptCap(Struct, frozen=True, kw_only=True, gc=False):
    """Once ``declines_max`` attempts with a card were declined within ``window_ms``, no other is
    made. ``scheme``, ``gateway``: only cards of this network, only declines of this gateway; ""
    limits neither.
    """

    name: str
    declines_max: int
    window_ms: int
    scheme: str = ""
    gateway: str = ""


class RiskCheck(Struct, frozen=True, kw_only=True):
    """Count this order for one identity, and answer with the counts.

    With an ``attempt_key`` it is about an attempt with a card instead: may it be made (``caps`` are
    to be kept), or, with an ``outcome``, what became of it.
    """

    merchant_id: str
    order_id: str
    payment_id: str
    by: str
    identity: str
    amount_minor: int
    currency: str
    counters: tuple[RiskCounter, ...] = ()
    operation_id: str = ""
    attempt_key: str = ""
    gateway: str = ""
    caps: tuple[AttemptCap, ...] = ()
    outcome: str = ""
    code: str = ""
    bar_ms: int = 0


class RiskResult(Struct, frozen=True, kw_only=True):
    merchant_id: str
    order_id: str
    payment_id: str
    by: str
    counted_at_ms: int
    counted: tuple[RiskCounted, ...] = ()
    cause: str | None = None
    letter: str | None = None
    operation_id: str = ""
    attempt_key: str = ""
    permit: str = ""
    rule: str = ""
    detail: str = ""


class VelocityBucket(Struct, frozen=True, kw_only=True, gc=False):
    start_ms: int
    count: int
    sum_minor: int


class VelocitySeries(Struct, frozen=True, kw_only=True):
    window_ms: int
    currency: str = ""
    amount_minor_max: int = 0
    buckets: tuple[VelocityBucket, ...] = ()


class AttemptMark(Struct, frozen=True, kw_only=True, gc=False):
    """An attempt that was declined or is in flight, by 64 bits of a hash of its key."""

    mark: int
    gateway: str
    at_ms: int


class AttemptWaiting(Struct, frozen=True, kw_only=True, gc=False):
    order_id: str
    attempt_key: str
    gateway: str


class CardBar(Struct, frozen=True, kw_only=True, gc=False):
    """A declined attempt that bars its card, by 64 bits of a hash of its key."""

    mark: int
    until_ms: int
    code: str


class RiskVelocity(Struct, frozen=True, kw_only=True):
    """What was counted of one identity; ``recent``: the newest orders, 64 bits of each.

    Of a card also the attempts that were declined, are in flight, or wait for those in flight.
    """

    merchant_id: str
    by: str
    identity: str
    updated_at_ms: int
    series: tuple[VelocitySeries, ...] = ()
    recent: tuple[int, ...] = ()
    declined: tuple[AttemptMark, ...] = ()
    in_flight: tuple[AttemptMark, ...] = ()
    waiting: tuple[AttemptWaiting, ...] = ()
    caps: tuple[AttemptCap, ...] = ()
    barred_until_ms: int = 0
    barred_by: str = ""
    bars: tuple[CardBar, ...] = ()
    taken_back: tuple[AttemptMark, ...] = ()


class AuditEntry(Struct, frozen=True, kw_only=True, gc=False):
    """Who did what by hand, when, and why; ``detail`` is JSON, or empty."""

    entry_id: str
    actor: str
    action: str
    subject: str
    occurred_at_ms: int
    reason: str | None = None
    detail: str = ""


class DeadLetterMarker(Struct, frozen=True, kw_only=True, gc=False):
    """What was done about one dead letter, written in the transaction that did it.

    ``state``: redriven or discarded. ``first_*`` names the first letter of a record that was
    buried again after a redrive, ``redrives`` counts its redrives, this one included.
    """

    letter_partition: int
    letter_offset: int
    state: str
    source_topic: str
    source_partition: int
    source_offset: int
    first_partition: int
    first_offset: int
    redrives: int
    audit_entry_id: str
    occurred_at_ms: int


class LedgerEvent(Struct, frozen=True, kw_only=True, gc=False):
    """A decision that the books follow; ``body`` is JSON of the kind's shape."""

    event_id: str
    kind: str
    sequence: int
    actor: str
    decided_at_ms: int
    body: str
    reason: str = ""

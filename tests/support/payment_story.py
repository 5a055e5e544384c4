"""Telling a payment's story through records: one order, its commands, its gateway's words."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.decision import Decision
from pipeline.domain.ids import unasked_order_id
from pipeline.domain.model import (
    GatewayNotification,
    GatewayResult,
    Order,
    Payment,
    PaymentCommand,
    PaymentRequest,
)
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.unasked_charges import NO_MERCHANT, unasked_command_id
from pipeline.processors.driver import FlowDriver

NOW = 1_790_000_000_000
SECOND = 1_000

ORDER = Order(
    merchant_id="shop",
    order_id="1",
    amount_minor=500,
    currency="GBP",
    instrument_token="tok_1",
    business_date="2026-09-21",
    submitted_at_ms=NOW,
)
MANUAL = replace(ORDER, capture_method="manual")

POLICY = Policy(
    gateways=(GatewayProfile(name="simulator", grace_ms=10 * SECOND),),
    retry_max=2,
    inquiry_max=4,
    proof_inquiry_max=2,
    resend_max=1,
    send_within_ms=10 * SECOND,
    clock_skew_ms=SECOND,
)

DECLINED = GatewayAnswer(outcome="declined", code="insufficient_funds")
NOT_SENT = GatewayAnswer(outcome="not_sent", code="connection_refused")
TIMED_OUT = GatewayAnswer(outcome="unknown", code="timeout")
PENDING = GatewayAnswer(outcome="pending")
NOT_FOUND = GatewayAnswer(outcome="not_found")
ACTION = GatewayAnswer(
    outcome="pending",
    code="customer_action_required",
    gateway_reference="ch_1",
    next_action_url="https://bank.example/3ds",
)


def unasked(reference: str = "ch_77", **changed: Any) -> PaymentCommand:
    """A person's word that a charge nobody asked for is to be given back."""
    order_id = unasked_order_id("simulator", reference)
    ordered = PaymentCommand(
        merchant_id=NO_MERCHANT,
        order_id=order_id,
        command_id=unasked_command_id(order_id),
        type="refund_unasked",
        submitted_at_ms=NOW,
        amount_minor=1250,
        currency="GBP",
        gateway="simulator",
        gateway_reference=reference,
        business_date="2026-09-20",
        evidence="row simulator:r:7",
        reason="nobody knows the card",
        actor="ann",
    )
    return replace(ordered, **changed)


def yes(request: PaymentRequest) -> GatewayAnswer:
    """A gateway that does whatever it is asked for; an inquiry finds it done."""
    kind = request.operation_kind
    mark = "" if request.operation_id == request.order_id else f"_{request.operation_id}"
    return GatewayAnswer(
        outcome="succeeded",
        gateway_reference=f"{kind}_{request.attempt}{mark}",
        amount_minor=request.amount_minor,
    )


class Story:
    """One payment in a driver of its own."""

    def __init__(self, order: Order | None = ORDER, policy: Policy = POLICY, **tiers: int) -> None:
        self.flow = FlowDriver(policy, now_ms=NOW, **tiers)
        self.order_id = (order or ORDER).order_id
        if order is not None:
            self.flow.order(order)

    @property
    def payment(self) -> Payment:
        payment = self.flow.payment("shop", self.order_id)
        assert payment is not None
        return payment

    @property
    def status(self) -> str:
        return self.payment.status

    @property
    def events(self) -> list[str]:
        """The types of all events, after checking that they count the payment's transitions."""
        events = self.flow.events()
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert self.payment.sequence == len(events)
        assert events[-1].status == self.status
        return [event.type for event in events]

    @property
    def money(self) -> tuple[int, int, int]:
        """Authorized, captured, refunded."""
        payment = self.payment
        return payment.authorized_minor, payment.captured_minor, payment.refunded_minor

    @property
    def settled(self) -> list[tuple[str, int]]:
        settlements = self.flow.settlements()
        assert len({each.settlement_id for each in settlements}) == len(settlements)
        return [(each.kind, each.amount_minor) for each in settlements]

    @property
    def asked(self) -> list[str]:
        """Kinds of all requests so far."""
        return [request.kind for request in self.flow.requests()]

    def wait(self) -> None:
        """Move the clock to the end of the next wait that is no timer."""
        due_ms = min(due for due, _, wait in self.flow.tiers if wait.purpose != "timer")
        self.flow.advance(max(0, due_ms - self.flow.now_ms))

    def command(self, type: str, command_id: str = "c1", **fields: Any) -> Decision:
        return self.flow.command(command(type, command_id, **{"order_id": self.order_id, **fields}))

    def rejected(self, type: str, command_id: str = "c1", **fields: Any) -> str | None:
        """The rule a command breaks, after checking that it changed nothing else."""
        before = self.payment
        self.command(type, command_id, **fields)
        event = self.flow.events()[-1]
        assert (event.type, event.operation_id) == ("command_rejected", command_id)
        after = replace(
            self.payment,
            sequence=before.sequence,
            command_ids=before.command_ids,
            command_marks=before.command_marks,
            updated_at_ms=before.updated_at_ms,
        )
        assert after == before
        return event.reason

    def notify(self, outcome: str, operation_id: str | None = None, **fields: Any) -> Decision:
        return self.flow.notify(self.notice(outcome, operation_id or self.order_id, **fields))

    def notice(self, outcome: str, operation_id: str = "1", **fields: Any) -> GatewayNotification:
        attempt = next(a for a in self.payment.attempts if a.operation_id == operation_id)
        notice = GatewayNotification(
            merchant_id="shop",
            order_id=self.order_id,
            payment_id=self.payment.payment_id,
            notification_id="n1",
            gateway=attempt.gateway,
            type="operation",
            amount_minor=(attempt.amount_minor or 500) if outcome == "succeeded" else 0,
            currency="GBP",
            received_at_ms=NOW,
            operation_id=operation_id,
            attempt=attempt.attempt,
            kind=attempt.kind,
            outcome=outcome,
            gateway_reference=yes(
                next(r for r in self.flow.requests() if r.operation_id == operation_id)
            ).gateway_reference,
        )
        return replace(notice, **fields)

    def dispute(self, state: str, dispute_id: str = "d1", **fields: Any) -> Decision:
        notice = GatewayNotification(
            merchant_id="shop",
            order_id=self.order_id,
            payment_id=self.payment.payment_id,
            notification_id="n2",
            gateway="simulator",
            type="dispute",
            amount_minor=500,
            currency="GBP",
            received_at_ms=NOW,
            dispute_id=dispute_id,
            dispute_state=state,
        )
        return self.flow.notify(replace(notice, **fields))

    def late_result(self, number: int = 0) -> GatewayResult:
        """The success of an earlier request, as its worker would have recorded it."""
        request = self.flow.requests()[number]
        return self.flow.handle((self.flow.now_ms, request), yes)


def command(type: str, command_id: str = "c1", **fields: Any) -> PaymentCommand:
    if type == "resolve":
        fields = {"evidence": "the gateway's report", "actor": "ann", **fields}
    if type == "review":
        fields = {"actor": "ann", **fields}
    fields = {"order_id": "1", **fields}
    return PaymentCommand(
        merchant_id="shop",
        command_id=command_id,
        type=type,
        submitted_at_ms=NOW,
        **fields,
    )

"""What is written from outside: orders, merchants' commands, and gateways' notices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from msgspec.structs import replace

from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.model import GatewayNotification, Order, PaymentCommand
from pipeline.domain.records import to_record
from tests.simulation.auditor import Auditor
from tests.simulation.disputes import DisputeNotice
from tests.simulation.gateway import OperationNotice
from tests.simulation.lives import CommandPlan, OrderPlan
from tests.simulation.log import Cluster
from tests.simulation.plan import MERCHANT, Plan
from tests.simulation.world import World
from topics.catalogue import Catalogue

CURRENCY = "GBP"
BUSINESS_DATE = "2027-01-15"
INPUTS = ("order", "payment-command", "gateway-notification")
BAD_BYTES = ("garbage", "empty", "misrouted", "wrong_key")


@cache
def _place(order_id: str, partitions: int) -> tuple[bytes, int]:
    """The key of an order, and its partition."""
    key = record_key(MERCHANT, order_id)
    return key, partition_of(key, partitions)


@dataclass(frozen=True)
class Upstream:
    """Everybody who writes into the flow. Tells the auditor of what has to be buried."""

    world: World
    cluster: Cluster
    catalogue: Catalogue
    plan: Plan
    auditor: Auditor
    encoders: Mapping[str, Callable[[dict[str, Any]], bytes]]

    def publish(self, order: OrderPlan) -> None:
        self._order(order, order.amount_minor)

    def conflict(self, order: OrderPlan) -> None:
        """The same order with another amount."""
        number, offset = self._order(order, order.amount_minor + 1)
        place = self.catalogue.name("orders"), number, offset
        self.auditor.bad_inputs[place] = "a conflicting order"

    def command(self, order: OrderPlan, command: CommandPlan, **more: Any) -> None:
        """One command; ``more`` is what whoever sends it found out first."""
        credit = command.type == "credit"
        made = PaymentCommand(
            merchant_id=MERCHANT,
            order_id=order.order_id,
            command_id=command.command_id,
            type=command.type,
            submitted_at_ms=self.world.now_ms,
            amount_minor=command.amount_minor,
            instrument_token=command.token,
            card_fingerprint=command.card,
            decision=command.decision,
            override=command.override,
            actor="ann",
            reason="asked for",
            evidence="the gateway's dashboard",
            currency=CURRENCY if credit else None,
            business_date=BUSINESS_DATE if credit else None,
        )
        made = replace(made, **more)
        self.auditor.commanded(made.order_id, made.command_id, made.type, made.override)
        self._write("payment-commands", order.order_id, "payment-command", made)

    def notice(self, gateway: str, notice: OperationNotice | DisputeNotice) -> None:
        """A gateway's webhook, taken in."""
        if isinstance(notice, DisputeNotice):
            self._dispute(gateway, notice)
            return
        request, answer = notice.request, notice.answer
        made = GatewayNotification(
            merchant_id=request.merchant_id,
            order_id=request.order_id,
            payment_id=request.payment_id,
            notification_id=f"{notice.reference}-{notice.state}",
            gateway=gateway,
            type="operation",
            amount_minor=answer.amount_minor or 0,
            currency=request.currency,
            received_at_ms=self.world.now_ms,
            operation_id=request.operation_id,
            attempt=request.attempt,
            kind=request.operation_kind,
            outcome="failed" if notice.state == "returned" else answer.outcome,
            gateway_reference=answer.gateway_reference,
            code=answer.code,
        )
        self._write("gateway-notifications", request.order_id, "gateway-notification", made)

    def _dispute(self, gateway: str, notice: DisputeNotice) -> None:
        found = notice.dispute
        request: Any = found.request
        made = GatewayNotification(
            merchant_id=request.merchant_id,
            order_id=request.order_id,
            payment_id=request.payment_id,
            notification_id=f"{found.dispute_id}-{notice.state}-{notice.sequence}",
            gateway=gateway,
            type="dispute",
            amount_minor=found.amount_minor,
            currency=request.currency,
            received_at_ms=self.world.now_ms,
            gateway_reference=found.reference if found.plan.named else None,
            dispute_id=found.dispute_id,
            dispute_state=notice.state,
            event_sequence=notice.sequence,
            fee_minor=notice.fee_minor,
        )
        self._write("gateway-notifications", request.order_id, "gateway-notification", made)

    def dispute_of_nothing(self, order: OrderPlan, payment: Mapping[str, Any]) -> None:
        """A gateway tells of a dispute about an order that it never took anything for."""
        made = GatewayNotification(
            merchant_id=MERCHANT,
            order_id=order.order_id,
            payment_id=payment["payment_id"],
            notification_id=f"nothing-{order.order_id}",
            gateway=payment["attempts"][0]["gateway"],
            type="dispute",
            amount_minor=order.amount_minor,
            currency=CURRENCY,
            received_at_ms=self.world.now_ms,
            dispute_id=f"nothing-{order.order_id}",
            dispute_state="opened",
        )
        place = self._write("gateway-notifications", order.order_id, "gateway-notification", made)
        self.auditor.bad_inputs[place] = "a dispute of nothing"

    def _order(self, order: OrderPlan, amount_minor: int) -> tuple[int, int]:
        if order.pay_within_s is not None:
            pay_before_ms = self.world.now_ms + int(order.pay_within_s * 1000)
            self.auditor.stories.of(order.order_id).pay_before_ms = pay_before_ms
        made = Order(
            merchant_id=MERCHANT,
            order_id=order.order_id,
            amount_minor=0 if order.input == "nothing_due" else amount_minor,
            currency="XXX" if order.input == "bad_currency" else CURRENCY,
            instrument_token=order.token or f"tok_{order.number}",
            business_date=BUSINESS_DATE,
            submitted_at_ms=self.world.now_ms,
            capture_method=order.capture_method,
            pay_before_ms=None
            if order.pay_within_s is None
            else self.world.now_ms + int(order.pay_within_s * 1000),
            customer_id=order.customer,
            card_fingerprint=order.card,
        )
        key, number = _place(order.order_id, self.plan.partitions)
        value: bytes | None = self.encoders["order"](to_record(made))
        if order.input == "garbage":
            value = b"\x00garbage"
        elif order.input == "empty":
            value = None
        elif order.input == "misrouted":
            number = (number + 1) % self.plan.partitions
        elif order.input == "wrong_key":
            key, number = _place(f"{order.order_id}x", self.plan.partitions)
        topic = self.catalogue.name("orders")
        record = self.cluster.write(topic, number, key, value)
        if order.input in BAD_BYTES:
            self.auditor.bad_inputs[topic, number, record.offset] = order.input
        return number, record.offset

    def _write(self, role: str, order_id: str, schema: str, made: Any) -> tuple[str, int, int]:
        key, number = _place(order_id, self.plan.partitions)
        topic = self.catalogue.name(role)
        record = self.cluster.write(topic, number, key, self.encoders[schema](to_record(made)))
        return topic, number, record.offset

"""Payments as their events tell them: numbered without gap, and never against what was decided.

A cancel bars a retry that waits, a dispute bars giving back unasked, and nothing is taken for good
once the time to pay is over.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.lives import OrderPlan
from tests.simulation.log import SKEW_S_MAX
from tests.simulation.plan import AUTHORIZATION_S, AWAITING_ORDER_S
from tests.simulation.violation import Violation
from tests.simulation.world import BEGIN_S

WITHDRAWING = frozenset({"dispute_opened", "dispute_pre_arbitration"})
UNDECIDED = frozenset({"processing", "outcome_unknown", "requires_customer_action"})
ENDING = frozenset({"dispute_won", "dispute_lost", "dispute_inquiry"})
STARTED = frozenset({"payment_retried", "payment_started", "permit_asked"})
BACK = "late-"
# Each time at which something is sent to be given back.
SENT_BACK = frozenset({"reversal_started", "retry_started", "resend_scheduled"})


@dataclass
class Story:
    """One payment so far."""

    sequence: int = 0
    types: Counter[str] = field(default_factory=Counter)
    # Commands in the order in which they were written, and those that force a refund.
    commands: list[tuple[str, str]] = field(default_factory=list)
    forced: bool = False
    barred: set[str] = field(default_factory=set)
    # A cancel was taken while it was open whether the money is taken.
    cancelling: bool = False
    # Whether a bank has the money and may keep it, or has it for good.
    in_dispute: bool = False
    lost: bool = False
    # Given back while no bank had the money: it may take it afterwards, so that both gave it.
    back_undisputed: bool = False
    pay_before_ms: int | None = None
    # Commands that waited for the order for as long as they may, and were rejected; and those that
    # were first read when the authorization that they were about had ended.
    given_up: set[str] = field(default_factory=set)
    # What was told of so far, and had been when the authorization began to be given back.
    heard: set[str] = field(default_factory=set)
    heard_in_time: frozenset[str] | None = None
    authorized_at_ms: int = 0


class Stories:
    def __init__(self, orders: dict[str, OrderPlan]) -> None:
        self._orders = orders
        self._of: dict[str, Story] = defaultdict(Story)

    def of(self, order_id: str) -> Story:
        return self._of[order_id]

    def commanded(self, order_id: str, command_id: str, kind: str, override: str | None) -> None:
        story = self._of[order_id]
        story.commands.append((command_id, kind))
        story.forced |= override == "dispute"

    def told(self, event: dict[str, Any], at_ms: int = 0) -> None:
        """The next event of a payment, as a reader sees it; ``at_ms``: when it was written."""
        order_id = event["order_id"]
        story = self._of[order_id]
        order = self._orders.get(order_id)
        if event["sequence"] != story.sequence + 1:
            raise Violation(
                "sequence_broken",
                f"{order_id}: {event['type']} is {event['sequence']} after {story.sequence}",
                order and order.number,
            )
        story.sequence = event["sequence"]
        kind = event["type"]
        story.types[kind] += 1
        if order is None:
            return
        if kind == "cancel_requested" and event["status"] == "failed":
            self._bars(story, event["operation_id"])
        elif kind == "command_rejected" and event["reason"] == "order_must_arrive":
            self._gives_up(story, order, event["operation_id"], at_ms)
        elif kind == "command_rejected" and event["reason"] == "payment_must_be_authorized":
            in_time = story.heard_in_time
            if in_time is not None and event["operation_id"] not in in_time:
                story.given_up.add(event["operation_id"])
        elif kind == "void_started" and event["reason"] == "authorization_ends":
            # By the clock of a worker, which may be ahead.
            ends_ms = story.authorized_at_ms + (AUTHORIZATION_S - SKEW_S_MAX) * 1000
            story.heard_in_time = frozenset(story.heard) if at_ms >= ends_ms else None
        elif kind in STARTED and event["operation_id"] in story.barred:
            raise Violation(
                "barred_retry_sent", f"{order_id}: {event['operation_id']}", order.number
            )
        elif kind in WITHDRAWING:
            story.in_dispute, story.lost = True, False
        elif kind in ENDING:
            story.in_dispute, story.lost = False, kind == "dispute_lost"
        elif kind in SENT_BACK and event["kind"] == "refund":
            self._gives_back(story, order, event["operation_id"] or "")
        elif kind in ("captured", "authorized") and event["status"] == kind:
            self._is_taken(story, order, event)
        if event["operation_id"] is not None:
            story.heard.add(event["operation_id"])
        if kind == "cancel_requested" and event["status"] in UNDECIDED:
            story.cancelling = True
        elif kind == "payment_retried":
            story.cancelling = False

    def _gives_up(self, story: Story, order: OrderPlan, command_id: str, at_ms: int) -> None:
        """A command is rejected since its order was not handled in time."""
        first_s = min(max(0.0, order.at_s + each.at_s) for each in order.commands)
        # By the clock of a worker, which may be ahead.
        until_s = BEGIN_S + first_s + AWAITING_ORDER_S - SKEW_S_MAX
        if at_ms < until_s * 1000:
            raise Violation("given_up_too_early", f"{order.order_id}: {command_id}", order.number)
        story.given_up.add(command_id)

    def _is_taken(self, story: Story, order: OrderPlan, event: dict[str, Any]) -> None:
        """The payment stands as paid, or as authorized."""
        if event["type"] == "authorized":
            story.authorized_at_ms = event["occurred_at_ms"]
        if event["kind"] not in ("charge", "authorize"):
            return  # captures of what was authorized in time come later
        detail = f"{order.order_id} is {event['type']}"
        if story.pay_before_ms is not None and event["occurred_at_ms"] >= story.pay_before_ms:
            raise Violation("taken_after_pay_before", detail, order.number)
        if story.cancelling:
            raise Violation("taken_after_cancel", detail, order.number)

    def _bars(self, story: Story, command_id: str | None) -> None:
        """The retries that were written before a cancel that was taken."""
        for before, kind in story.commands:
            if before == command_id:
                return
            if kind == "retry":
                story.barred.add(before)

    def _gives_back(self, story: Story, order: OrderPlan, operation_id: str) -> None:
        if not operation_id.startswith(BACK):
            return
        if not story.in_dispute and not story.lost:
            story.back_undisputed = True
        # With another charge, the dispute may be about that one.
        if story.in_dispute and not story.forced and not order.has("retry"):
            raise Violation(
                "given_back_in_dispute", f"{order.order_id}: {operation_id}", order.number
            )

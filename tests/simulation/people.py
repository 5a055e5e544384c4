"""Merchants and operators: what they say when they have looked, at any time and in the end.

They see a payment as ``payment show`` does, and a gateway's books as its dashboard does. What they
say of an unknown outcome or of a dispute is true; whether it is allowed is for the flow to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.simulation.gateway import GatewayBooks
from tests.simulation.lives import CommandPlan, OrderPlan
from tests.simulation.money import Money
from tests.simulation.plan import Plan
from tests.simulation.stories import Stories
from tests.simulation.upstream import Upstream
from tests.simulation.violation import Violation
from tests.simulation.world import World

# Statuses in which nothing may be kept of what was taken.
ENDED = frozenset({"failed", "cancelled", "expired", "rejected"})
UNKNOWN = frozenset({"inquiry_exhausted", "contradicted"})
ASKED = frozenset({"inquiry_waiting", "inquiring"})
# How often somebody looks again before what is left is judged.
ROUNDS_MAX = 6
# What is declined for good is not ordered again and again.
GIVE_BACK_ROUNDS_MAX = 2

Payment = Mapping[str, Any]


@dataclass
class People:
    world: World
    plan: Plan
    upstream: Upstream
    books: Mapping[str, GatewayBooks]
    money: Money
    stories: Stories
    payment_of: Callable[[str], Payment | None]
    rounds: int = 0
    too_early: int = 0

    def command(self, order: OrderPlan, command: CommandPlan) -> None:
        """Say what the plan says, once its sender has found out what it is about."""
        if command.type == "none":
            return
        said: dict[str, Any] | None = {}
        if command.type in ("resolve", "resolve_dispute"):
            payment = self.payment_of(order.order_id)
            said = None
            if payment is not None:
                find = self._unknown if command.type == "resolve" else self._dispute
                said = find(order, payment)
            if said is None:
                # Said all the same, by somebody who looked at another payment.
                said = {"decision": "not_charged" if command.type == "resolve" else "won"}
                if command.type == "resolve":
                    said |= {"operation_id": "nothing"}
                else:
                    said |= {"dispute_id": "nothing"}
        self.upstream.command(order, command, **said)

    def changed(self, order: OrderPlan, command: CommandPlan) -> None:
        """Another content under an id that was used: it must change nothing."""
        amount_minor = (command.amount_minor or 0) + 1
        self.upstream.command(order, replace(command, amount_minor=amount_minor))

    def finish(self) -> int:
        """What still waits for a person is decided; how many commands that took, and what of it
        nobody can say yet."""
        self.rounds += 1
        if self.rounds > ROUNDS_MAX:
            return 0
        said = self.too_early = 0
        for order in self.plan.orders:
            payment = self.payment_of(order.order_id)
            if payment is None:
                continue
            for each in self._left(order, payment):
                said += 1
                name = f"z{order.number}-{self.rounds}{'abc'[said % 3]}"
                self.upstream.command(order, CommandPlan(0.0, name, each.pop("type")), **each)
        return said + self.too_early + (self._mistaken() if self.rounds == 1 else 0)

    def _left(self, order: OrderPlan, payment: Payment) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        unknown = self._unknown(order, payment, only_exhausted=True)
        if unknown is not None:
            found.append({"type": "resolve", **unknown})
        dispute = self._dispute(order, payment)
        if dispute is not None:
            found.append({"type": "resolve_dispute", **dispute})
        again = self.rounds <= GIVE_BACK_ROUNDS_MAX
        if payment["status"] in ENDED and not found and again and self._is_owed(order, payment):
            self._was_told(order, payment)
            found.append({"type": "give_back", "override": "dispute"})
        return found

    def _was_told(self, order: OrderPlan, payment: Payment) -> None:
        """Nobody orders what nobody knows of: what is not given back by itself is told."""
        kept_minor = self.money.kept_minor(order.order_id)
        if kept_minor > 0 and not self.stories.of(order.order_id).types["reversal_failed"]:
            raise Violation(
                "kept_silently",
                f"{order.order_id} is {payment['status']}, and {kept_minor} are kept",
                order.number,
            )

    def _is_owed(self, order: OrderPlan, payment: Payment) -> bool:
        busy = any(each["state"] in (*ASKED, "started", "pending") for each in payment["attempts"])
        return not busy and (
            self.money.kept_minor(order.order_id) > 0 or bool(self.money.holds(order.order_id))
        )

    def _unknown(
        self, order: OrderPlan, payment: Payment, *, only_exhausted: bool = False
    ) -> dict[str, Any] | None:
        """The truth about the first outcome that is not known, as the gateway's books have it."""
        for attempt in payment["attempts"]:
            asked = attempt["state"] in ASKED and attempt["uncertain_since_ms"]
            if attempt["state"] not in UNKNOWN and (only_exhausted or not asked):
                continue
            key = ":".join(
                (payment["payment_id"], attempt["operation_id"], attempt["gateway"],
                 str(attempt["attempt"]))
            )  # fmt: skip
            found = self.books[attempt["gateway"]].looked_up(key)
            if found is not None and found.state == "pending":
                continue
            said = {"operation_id": attempt["operation_id"]}
            if found is not None and found.state == "succeeded":
                return {**said, "decision": "charged", "gateway_reference": found.reference}
            # What is not there yet may still come: nobody says so before the gateway's grace time.
            sendable_ms = attempt["sendable_until_ms"]
            grace_ms = int(self.plan.grace_s * 1000)
            if found is None and self.world.now_ms < sendable_ms + grace_ms:
                self.too_early += only_exhausted
                continue
            return {**said, "decision": "not_charged"}
        return None

    def _dispute(self, order: OrderPlan, payment: Payment) -> dict[str, Any] | None:
        """How the bank has decided, where the table does not have it so."""
        for books in self.books.values():
            truth = books.disputes.get(order.order_id)
            if truth is None or truth.state not in ("won", "lost"):
                continue
            for held in payment["disputes"]:
                if held["dispute_id"] == truth.dispute_id and held["state"] != truth.state:
                    return {
                        "dispute_id": truth.dispute_id,
                        "gateway": books.name,
                        "decision": truth.state,
                    }
        return None

    def _mistaken(self) -> int:
        """A gateway tells of disputes about charges that it declined: nothing may come of it."""
        said = 0
        for order in self.plan.orders:
            payment = self.payment_of(order.order_id)
            if (
                payment is not None
                and payment["status"] == "failed"
                and payment["attempts"]
                and all(each["state"] == "declined" for each in payment["attempts"])
                and said < 3
            ):
                self.upstream.dispute_of_nothing(order, payment)
                said += 1
        return said

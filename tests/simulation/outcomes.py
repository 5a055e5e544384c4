"""What must have come of each order, of its money and of the books, once everything is over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.simulation.lives import GATEWAYS, OrderPlan
from tests.simulation.money import Money, differing
from tests.simulation.plan import BUSY_CUSTOMER, BUSY_MAX, MERCHANT, Plan
from tests.simulation.stories import Stories
from tests.simulation.violation import Violation

# Statuses in which a payment may rest; and those in which nothing of the customer's is kept.
ENDED = frozenset({"failed", "rejected", "cancelled", "expired"})
SETTLED = ENDED | {"captured", "authorized", "no_payment_due", "credit_held"}
# What of an attempt means that something is still to happen, or that a person has to be asked.
BUSY = frozenset(
    {"started", "retry_waiting", "inquiry_waiting", "inquiring", "pending", "permit_waiting",
     "inquiry_exhausted", "contradicted"}
)  # fmt: skip
# Movements by which a gateway has made a charge or an authorization.
MAKES = ("charge", "authorize")
# Faults on the way to a gateway after which a charge must still succeed in the end.
_RECOVERABLE_MAX = 2
_BAD_BYTES = ("garbage", "empty", "misrouted", "wrong_key")

Payment = Mapping[str, Any]


class Outcomes:
    def __init__(self, plan: Plan, money: Money, stories: Stories) -> None:
        self._plan = plan
        self._money = money
        self._stories = stories

    def judge(self, order: OrderPlan, payment: Payment | None) -> None:
        """One order at rest."""
        order_id, number = order.order_id, order.number
        if order.input in _BAD_BYTES:
            if payment is not None or self._money.captured_minor(order_id):
                raise Violation("charged_for_bad_input", order_id, number)
            return
        if payment is None:
            raise Violation("lost_order", f"{order_id} has no payment", number)
        self._is_finished(order, payment)
        self._has_its_money(order, payment)
        self._keeps_nothing(order, payment)
        self._outcome(order, payment)

    def _is_finished(self, order: OrderPlan, payment: Payment) -> None:
        order_id, number = order.order_id, order.number
        if payment["status"] not in SETTLED:
            raise Violation("order_unfinished", f"{order_id} is {payment['status']}", number)
        for attempt in payment["attempts"]:
            if attempt["state"] in BUSY:
                raise Violation(
                    "operation_unfinished", f"{order_id}: {attempt['kind']} {attempt['state']}",
                    number,
                )  # fmt: skip
        if payment["commands"]:
            raise Violation("command_unfinished", order_id, number)
        told = self._stories.of(order_id).sequence
        if told != payment["sequence"]:
            raise Violation(
                "table_not_the_events",
                f"{order_id}: table {payment['sequence']}, events {told}",
                number,
            )

    def _has_its_money(self, order: OrderPlan, payment: Payment) -> None:
        order_id, money = order.order_id, self._money
        captured_minor, refunded_minor = (
            money.captured_minor(order_id), money.refunded_minor(order_id),
        )  # fmt: skip
        lost_minor = money.lost_minor(order_id)
        for what, booked, moved in (
            ("captured", payment["captured_minor"], captured_minor),
            ("refunded", payment["refunded_minor"], refunded_minor),
            ("charged back", payment["charged_back_minor"], lost_minor),
        ):
            if booked != moved:
                raise Violation(
                    "money_differs", f"{order_id}: {what} {booked}, the gateways moved {moved}",
                    order.number,
                )  # fmt: skip
        settled, wanted = money.settled(order_id), money.settlements(order_id)
        if settled != wanted:
            detail = f"{order_id} settled {differing(settled, wanted)}"
            raise Violation("settlements_differ", detail, order.number)

    def _keeps_nothing(self, order: OrderPlan, payment: Payment) -> None:
        """No more is kept than was ordered, and nothing of what has ended, unless that was told."""
        order_id, status, money = order.order_id, payment["status"], self._money
        story = self._stories.of(order_id)
        kept_minor = money.kept_minor(order_id)
        room_minor = 0 if status in ENDED else order.amount_minor
        told = story.types["reversal_failed"] > 0
        if kept_minor > room_minor and not told:
            raise Violation(
                "kept_too_much", f"{order_id} is {status}, and {kept_minor} are kept", order.number
            )
        if (status == "captured") != (money.captured_minor(order_id) > 0) and status not in ENDED:
            raise Violation("status_not_the_money", f"{order_id} is {status}", order.number)
        asked = story.forced or order.has("refund", "give_back", "retry")
        if (
            kept_minor < 0
            and not asked
            and not story.back_undisputed
            and money.refunded_minor(order_id)
        ):
            raise Violation(
                "given_back_twice", f"{order_id} is {status}, {-kept_minor} too much", order.number
            )
        holds = money.holds(order_id)
        if status in ("failed", "cancelled") and holds and not told:
            asked_to_void = any(each["kind"] == "void" for each in payment["attempts"])
            if not asked_to_void:
                raise Violation("hold_kept", f"{order_id} is {status}", order.number)

    def _outcome(self, order: OrderPlan, payment: Payment) -> None:
        """What the plan says must have come of it."""
        status, number = payment["status"], order.number
        if order.input == "bad_currency":
            wanted: tuple[str, ...] = ("rejected",)
        elif order.input == "nothing_due":
            wanted = ("no_payment_due",)
        elif order.input == "credit":
            wanted = ("credit_held",)
        elif order.customer is not None:
            # Which of them, is for the order in which they were counted.
            wanted = ("captured", "rejected") if self._plan.idempotent else (*SETTLED,)
        elif self._must_succeed(order):
            wanted = ("captured",) if order.capture_method == "automatic" else ("authorized",)
            if order.commands:
                wanted = self._after_commands(order, wanted)
            if self._was_given_up(order.order_id):
                wanted = (*wanted, "failed")
        elif self._must_fail(order):
            wanted = ("failed",)
            if order.has("cancel"):
                wanted = ("failed", "cancelled")
        else:
            return
        if status not in wanted:
            raise Violation(
                "wrong_outcome",
                f"{order.order_id} is {status} ({payment['reason']}), not {' or '.join(wanted)}",
                number,
            )

    def limits(self, payments: Mapping[str, Payment]) -> None:
        """Of the orders of one customer exactly as many were taken as the rule lets through."""
        counted = [order for order in self._plan.orders if order.customer == BUSY_CUSTOMER]
        refused = sum(
            payments.get(order.order_id, {}).get("status") == "rejected" for order in counted
        )
        wanted = max(0, len(counted) - BUSY_MAX)
        if refused != wanted:
            raise Violation(
                "velocity_not_exact", f"{refused} of {len(counted)} orders refused, not {wanted}"
            )

    def books(
        self,
        ledger: Mapping[str, Any],
        settlements: Mapping[str, Any],
        paid_out: Mapping[str, int],
    ) -> None:
        """The ledger against the settlements, and against what moved."""
        if set(ledger["entries"]) != set(settlements):
            missing = set(settlements) - set(ledger["entries"])
            more = set(ledger["entries"]) - set(settlements)
            raise Violation("ledger_differs", f"missing {sorted(missing)}, more {sorted(more)}")
        if ledger["unbalanced"]:
            raise Violation("ledger_unbalanced", f"{ledger['unbalanced']}")
        found = {name: balance for name, balance in ledger["balances"].items() if balance}
        wanted = self._money.balances(MERCHANT) | paid_out
        if found != wanted:
            raise Violation("books_not_the_gateways", differing(found, wanted))

    # Small parts --------------------------------------------------------------------------------

    def _after_commands(self, order: OrderPlan, wanted: tuple[str, ...]) -> tuple[str, ...]:
        first = order.commands[0]
        if first.type == "cancel":
            # It may come before the gateway's word or after it.
            return (*wanted, "cancelled", "expired")
        if first.type == "capture":
            given_up = first.command_id in self._stories.of(order.order_id).given_up
            if order.script.operations[0] == "decline" or given_up:
                return ("expired", "authorized")
            return ("captured",)
        return wanted

    def _must_succeed(self, order: OrderPlan) -> bool:
        plan, script = self._plan, order.script
        gateways = [outcome for _, outcome in sorted(script.outcome.items())]
        if order.shape or (order.capture_method == "manual" and not order.commands):
            return False  # not said beforehand, or the hold ends by itself
        return (
            order.input == "order"
            and plan.idempotent
            and plan.retention_s > 3_600
            and order.pay_within_s is None
            and sum(fault != "ok" for fault in script.transport) <= _RECOVERABLE_MAX
            and gateways[0] in ("succeed", "pending_succeed")
            and not (order.capture_method == "manual" and order.commands[0].type == "none")
        )

    def _was_given_up(self, order_id: str) -> bool:
        """Lost twice, with questions that failed, a person had to say that it was: of a charge that
        no gateway made, and in a command."""
        story = self._stories.of(order_id)
        made = any(each.kind in MAKES for each in self._money.movements.get(order_id, ()))
        said = any(kind == "resolve" for _, kind in story.commands)
        return story.types["inquiry_exhausted"] > 0 and said and not made

    def _must_fail(self, order: OrderPlan) -> bool:
        outcome = order.script.outcome
        return (
            order.input == "order"
            and not order.shape
            and all(outcome.get(name, "").startswith("decline") for name in GATEWAYS)
        )

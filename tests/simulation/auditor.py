"""What must hold, found out without the code that is judged.

The auditor sees what outsiders see: the gateways' books, and records in the order in which a
read_committed reader gets them. It knows the plan, so it knows what money should have moved. Of the
pipeline it uses the schemas to read records, and nothing that decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tests.simulation.gateway import GatewayBooks, Movement
from tests.simulation.log import Cluster, Intent, Partition, Record
from tests.simulation.plan import GATEWAYS, OrderPlan, Plan

# Statuses in which a payment may rest.
SETTLED = frozenset(
    {"captured", "authorized", "failed", "rejected", "cancelled", "expired", "no_payment_due"}
)
# What of an attempt means that something is still to happen.
BUSY = frozenset({"started", "retry_waiting", "inquiry_waiting", "inquiring", "pending"})
# Faults on the way to a gateway after which a charge must still succeed in the end.
_RECOVERABLE_MAX = 2


class Violation(Exception):
    """A promise was broken; ``check`` names it."""

    def __init__(self, check: str, detail: str, order: int | None = None) -> None:
        super().__init__(check, detail, order)
        self.check = check
        self.detail = detail
        self.order = order

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"


class Auditor:
    """``see`` and ``moved`` are told of each step; ``at_rest`` looks at all of it in the end."""

    def __init__(
        self,
        plan: Plan,
        cluster: Cluster,
        decoders: Mapping[str, Callable[[bytes], dict[str, Any]]],
        topics: Mapping[str, str],
    ) -> None:
        self._plan = plan
        self._orders = {order.order_id: order for order in plan.orders}
        self._cluster = cluster
        # What is decoded, by topic.
        self._seen: dict[str, Callable[[Partition, Record], None]] = {
            topics["payment-events"]: self._event,
            topics["settlements"]: self._settlement,
            topics["payment-requests"]: self._request,
            topics["payments"]: self._payment,
            topics["dead-letters"]: self._letter,
        }
        self._decode_event = decoders["payment-event"]
        self._decode_settlement = decoders["settlement"]
        self._decode_request = decoders["payment-request"]
        self._decode_payment = decoders["payment"]
        self._sequences: dict[str, int] = {}
        self._raw_payments: dict[bytes, bytes] = {}
        self.charged: dict[str, Movement] = {}
        self.moved_minor: dict[tuple[str, str], int] = defaultdict(int)
        self._operations: dict[tuple[str, str, str], Movement] = {}
        self.settlements: dict[str, dict[str, Any]] = {}
        self._settled_minor: dict[tuple[str, str], int] = defaultdict(int)
        self._requests: set[tuple[str, str, str, int, int, str]] = set()
        self.letters: dict[tuple[str, int, int], str] = {}
        self._positions: dict[tuple[str, str, int], int] = {}
        # Inputs that must be buried, by place, filled by whoever writes them.
        self.bad_inputs: dict[tuple[str, int, int], str] = {}
        self.checks = 0

    # Step by step -------------------------------------------------------------------------------

    def see(self, partition: Partition, record: Record) -> None:
        """A record that a reader may see now."""
        intent = record.intent
        if intent is not None and intent.believed == "aborted":
            raise Violation(
                "aborted_visible", f"{partition.topic}@{record.offset} of {intent} can be read"
            )
        seen = self._seen.get(partition.topic)
        if seen is not None:
            self.checks += 1
            seen(partition, record)

    def fate(self, intent: Intent, committed: bool) -> None:
        """A part of a transaction has got its end."""
        intent.fates.add(committed)
        if len(intent.fates) > 1:
            raise Violation("torn_transaction", f"{intent} is committed in part")
        self._believed(intent)

    def believed(self, intent: Intent, outcome: str) -> None:
        """What the worker was told about its transaction."""
        intent.believed = outcome
        self._believed(intent)

    def _believed(self, intent: Intent) -> None:
        if intent.believed is None or not intent.fates:
            return
        if (intent.believed == "committed") != (True in intent.fates):
            fate = "committed" if True in intent.fates else "aborted"
            raise Violation("false_outcome", f"{intent} was called {intent.believed}, is {fate}")

    def offsets(self, group: str, offsets: Mapping[tuple[str, int], int]) -> None:
        """Offsets of a group are committed."""
        for (topic, number), offset in offsets.items():
            place = (group, topic, number)
            before = self._positions.get(place, 0)
            if offset <= before:
                raise Violation(
                    "offsets_went_back", f"{group} {topic}[{number}] from {before} to {offset}"
                )
            self._positions[place] = offset

    def moved(self, movement: Movement) -> None:
        """A gateway moved money."""
        order_id = movement.order_id
        number = self._orders[order_id].number
        if movement.kind in ("charge", "authorize"):
            first = self.charged.get(order_id)
            if first is not None:
                raise Violation(
                    "charged_twice",
                    f"{order_id} by {first.key} at {first.gateway} and by {movement.key} at "
                    f"{movement.gateway}",
                    number,
                )
            self.charged[order_id] = movement
            if movement.amount_minor != self._orders[order_id].amount_minor:
                raise Violation("wrong_amount", f"{movement}", number)
        else:
            operation = (order_id, movement.kind, movement.operation_id)
            if operation in self._operations:
                raise Violation("moved_twice", f"{operation}", number)
            self._operations[operation] = movement
        self.moved_minor[order_id, movement.kind] += movement.amount_minor
        if self._refunded(order_id) > self._captured(order_id):
            raise Violation("refunded_too_much", f"{order_id}", number)

    def _event(self, partition: Partition, record: Record) -> None:
        event = self._decode_event(record.value or b"")
        payment_id, sequence = event["payment_id"], event["sequence"]
        before = self._sequences.get(payment_id, 0)
        if sequence != before + 1:
            raise Violation(
                "sequence_broken",
                f"{event['order_id']}: {event['type']} is {sequence} after {before}",
                self._number(event["order_id"]),
            )
        self._sequences[payment_id] = sequence

    def _settlement(self, partition: Partition, record: Record) -> None:
        settlement = self._decode_settlement(record.value or b"")
        order_id = settlement["order_id"]
        if settlement["settlement_id"] in self.settlements:
            raise Violation("settled_twice", f"{order_id}", self._number(order_id))
        self.settlements[settlement["settlement_id"]] = settlement
        kind, amount_minor = settlement["kind"], settlement["amount_minor"]
        self._settled_minor[order_id, kind] += amount_minor
        total = self._settled_minor[order_id, kind]
        moved = self._captured(order_id) if kind == "capture" else -self._refunded(order_id)
        if abs(total) > abs(moved):
            raise Violation(
                "settled_without_money",
                f"{order_id}: {total} {kind}, the gateway moved {moved}",
                self._number(order_id),
            )

    def _request(self, partition: Partition, record: Record) -> None:
        request = self._decode_request(record.value or b"")
        asked = (
            request["order_id"], request["operation_id"], request["gateway"], request["attempt"],
            request["try_number"], request["kind"],
        )  # fmt: skip
        if asked in self._requests:
            raise Violation("requested_twice", f"{asked}", self._number(request["order_id"]))
        self._requests.add(asked)

    def _payment(self, partition: Partition, record: Record) -> None:
        if record.key is not None and record.value is not None:
            self._raw_payments[record.key] = record.value

    def _letter(self, partition: Partition, record: Record) -> None:
        headers = dict(record.headers or ())
        place = (
            headers["dlq.topic"].decode(),
            int(headers["dlq.partition"]),
            int(headers["dlq.offset"]),
        )
        if place in self.letters:
            raise Violation("buried_twice", f"{place}")
        self.letters[place] = headers["dlq.cause"].decode()

    # At rest ------------------------------------------------------------------------------------

    def at_rest(
        self,
        inputs: Mapping[str, Iterable[str]],
        ledger: Mapping[str, Any],
        books: Iterable[GatewayBooks],
    ) -> None:
        """Everything is over and healed. ``inputs``: topics read by each group; ``ledger``: the
        rows of the books."""
        self._log_at_rest(inputs)
        payments = {
            payment["order_id"]: payment
            for payment in map(self._decode_payment, self._raw_payments.values())
        }
        for order in self._plan.orders:
            self._order_at_rest(order, payments.get(order.order_id))
        for place, cause in self.letters.items():
            if self.bad_inputs.get(place) is None:
                raise Violation("buried_without_reason", f"{place}: {cause}")
        for place, what in self.bad_inputs.items():
            if place not in self.letters:
                raise Violation("lost_bad_input", f"{what} at {place} is not in the dead letters")
        self._ledger_at_rest(ledger)

    def _log_at_rest(self, inputs: Mapping[str, Iterable[str]]) -> None:
        left = self._cluster.open_transactions()
        if left:
            raise Violation("transaction_left_open", ", ".join(left))
        for name, partitions in self._cluster.topics.items():
            for partition in partitions:
                if partition.stable != partition.end:
                    raise Violation("reader_held_up", f"{name}[{partition.number}]")
        for group, topics in inputs.items():
            for topic in topics:
                for partition in self._cluster.topics[topic]:
                    place = (group, topic, partition.number)
                    read = self._cluster.offsets.get(place, 0)
                    unread = [r for r in partition.records[read:] if r.state == 1]
                    if unread:
                        raise Violation(
                            "lost_input",
                            f"{group} stands at {read} of {topic}[{partition.number}], and "
                            f"{len(unread)} records are behind it",
                        )

    def _order_at_rest(self, order: OrderPlan, payment: dict[str, Any] | None) -> None:
        order_id, number = order.order_id, order.number
        captured, refunded = self._captured(order_id), self._refunded(order_id)
        if order.input in ("garbage", "empty", "misrouted", "wrong_key"):
            if payment is not None or order_id in self.charged:
                raise Violation("charged_for_bad_input", order_id, number)
            return
        if payment is None:
            raise Violation("lost_order", f"{order_id} has no payment", number)
        status = payment["status"]
        if status not in SETTLED:
            raise Violation("order_unfinished", f"{order_id} is {status}", number)
        for attempt in payment["attempts"]:
            if attempt["state"] in BUSY:
                raise Violation(
                    "operation_unfinished", f"{order_id}: {attempt['kind']} {attempt['state']}",
                    number,
                )  # fmt: skip
        if payment["commands"]:
            raise Violation("command_unfinished", order_id, number)
        if self._sequences.get(payment["payment_id"]) != payment["sequence"]:
            raise Violation(
                "table_not_the_events",
                f"{order_id}: table {payment['sequence']}, "
                f"events {self._sequences.get(payment['payment_id'])}",
                number,
            )
        for what, booked, moved in (
            ("captured", payment["captured_minor"], captured),
            ("refunded", payment["refunded_minor"], refunded),
            ("settled captures", self._settled_minor[order_id, "capture"], captured),
            ("settled refunds", -self._settled_minor[order_id, "refund"], refunded),
        ):
            if booked != moved:
                raise Violation(
                    "money_differs", f"{order_id}: {what} {booked}, the gateways moved {moved}",
                    number,
                )  # fmt: skip
        # What came too late is given back, unless the gateway will not, or knows no keys and may
        # not be asked again.
        refused = order.script.operations == "decline" or not self._plan.idempotent
        given_back = captured > 0 and (captured == refunded or refused)
        if (status == "captured") != (captured > 0) and not given_back:
            raise Violation("status_not_the_money", f"{order_id} is {status}", number)
        self._outcome_at_rest(order, payment)

    def _outcome_at_rest(self, order: OrderPlan, payment: dict[str, Any]) -> None:
        """What the plan says must have come of it."""
        status, number = payment["status"], order.number
        if order.input == "bad_currency":
            wanted: tuple[str, ...] = ("rejected",)
        elif order.input == "nothing_due":
            wanted = ("no_payment_due",)
        elif self._must_succeed(order):
            wanted = ("captured",) if order.capture_method == "automatic" else ("authorized",)
            if order.commands:
                wanted = self._after_commands(order, wanted)
        elif self._must_fail(order):
            wanted = ("failed",)
            if any(command.type == "cancel" for command in order.commands):
                wanted = ("failed", "cancelled")
        else:
            return
        if status not in wanted:
            raise Violation(
                "wrong_outcome",
                f"{order.order_id} is {status} ({payment['reason']}), not {' or '.join(wanted)}",
                number,
            )

    def _after_commands(self, order: OrderPlan, wanted: tuple[str, ...]) -> tuple[str, ...]:
        first = order.commands[0]
        if first.type == "cancel":
            # It may come before the gateway's word or after it.
            return (*wanted, "cancelled", "expired")
        if first.type == "capture":
            if order.script.operations == "decline":
                return ("expired", "authorized")
            return ("captured",)
        return wanted

    def _must_succeed(self, order: OrderPlan) -> bool:
        plan, script = self._plan, order.script
        gateways = [outcome for _, outcome in sorted(script.outcome.items())]
        if order.capture_method == "manual" and not order.commands:
            return False  # the hold ends by itself
        return (
            order.input == "order"
            and plan.idempotent
            and plan.retention_s > 3_600
            and order.pay_within_s is None
            and sum(fault != "ok" for fault in script.transport) <= _RECOVERABLE_MAX
            and gateways[0] in ("succeed", "pending_succeed")
            and not (order.capture_method == "manual" and order.commands[0].type == "none")
        )

    def _must_fail(self, order: OrderPlan) -> bool:
        outcome = order.script.outcome
        return order.input == "order" and (
            all(outcome.get(name, "").startswith("decline") for name in GATEWAYS)
        )  # fmt: skip

    def _ledger_at_rest(self, ledger: Mapping[str, Any]) -> None:
        if set(ledger["entries"]) != set(self.settlements):
            missing = set(self.settlements) - set(ledger["entries"])
            more = set(ledger["entries"]) - set(self.settlements)
            raise Violation("ledger_differs", f"missing {sorted(missing)}, more {sorted(more)}")
        if ledger["unbalanced"]:
            raise Violation("ledger_unbalanced", f"{ledger['unbalanced']}")
        wanted: dict[str, int] = defaultdict(int)
        for (order_id, kind), amount_minor in self.moved_minor.items():
            sign = {"charge": 1, "capture": 1, "refund": -1}.get(kind, 0)
            if not sign or not amount_minor:
                continue
            gateway = self.charged[order_id].gateway
            wanted[f"gateway_receivable:{gateway}"] += sign * amount_minor
            wanted["merchant_payable:shop"] -= sign * amount_minor
        found = {name: balance for name, balance in ledger["balances"].items() if balance}
        if found != {name: balance for name, balance in wanted.items() if balance}:
            raise Violation("books_not_the_gateways", f"{found} is not {dict(wanted)}")

    # Small parts --------------------------------------------------------------------------------

    def _captured(self, order_id: str) -> int:
        return self.moved_minor[order_id, "charge"] + self.moved_minor[order_id, "capture"]

    def _refunded(self, order_id: str) -> int:
        return self.moved_minor[order_id, "refund"]

    def _number(self, order_id: str) -> int | None:
        found = self._orders.get(order_id)
        return found.number if found is not None else None

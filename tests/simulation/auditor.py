"""What must hold, found out without the code that is judged.

The auditor sees what outsiders see: the gateways' books, and records in the order in which a
read_committed reader gets them. It knows the plan, so it knows what money should have moved. Of the
pipeline it uses the schemas to read records, and nothing that decides.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tests.simulation.gateway import GatewayBooks, Movement
from tests.simulation.log import Cluster, Intent, Partition, Record
from tests.simulation.money import Money
from tests.simulation.outcomes import BUSY, SETTLED, Outcomes
from tests.simulation.payout_books import PayoutBooks
from tests.simulation.plan import DECLINES_MAX, MERCHANT, Plan
from tests.simulation.stories import Stories
from tests.simulation.violation import Violation

# Commands that are a person's word in a machine's place, and leave an entry in the audit.
BAD_BYTES = frozenset({"garbage", "empty", "misrouted", "wrong_key"})
PEOPLES = frozenset({"resolve", "resolve_dispute", "review", "acknowledge"})


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
            topics["audit"]: self._audit_entry,
            topics["ledger-events"]: self._decision,
            topics["payouts"]: self._payout,
        }
        self._decode_event = decoders["payment-event"]
        self._decode_settlement = decoders["settlement"]
        self._decode_request = decoders["payment-request"]
        self._decode_result = decoders["gateway-result"]
        self._results = topics["gateway-results"]
        self._decode_payment = decoders["payment"]
        self._decode_entry = decoders["audit-entry"]
        self._decode_decision = decoders["ledger-event"]
        self._decode_payout = decoders["payout"]
        self.payouts = PayoutBooks()
        self.money = Money()
        self.stories = Stories(self._orders)
        self._outcomes = Outcomes(plan, self.money, self.stories)
        self._raw_payments: dict[bytes, bytes] = {}
        self.charged: dict[str, Movement] = {}
        self._operations: dict[tuple[str, str, str], Movement] = {}
        self._declined: Counter[str] = Counter()
        self._said: Counter[tuple[str, str]] = Counter()
        self.settlements: dict[str, dict[str, Any]] = {}
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
        if intent is not None and intent.believed == "aborted" and not self._tells_late(intent):
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
            if fate == "committed" and self._tells_late(intent):
                return  # no offset says so, and it is told again
            raise Violation("false_outcome", f"{intent} was called {intent.believed}, is {fate}")

    def _tells_late(self, intent: Intent) -> bool:
        """Whether all that a transaction wrote is what was heard too late: that answers nothing."""
        told = [
            record
            for partition in self._cluster.topics.get(self._results, ())
            for record in partition.records
            if record.intent is intent
            and self._decode_result(record.value or b"")["heard"] == "late_answer"
        ]
        return 0 < intent.written == len(told)

    def offsets(
        self, group: str, offsets: Mapping[tuple[str, int], int], intents: list[Intent]
    ) -> None:
        """Offsets of a group are committed: each goes on, but by what answers no request."""
        for (topic, number), offset in offsets.items():
            place = (group, topic, number)
            before = self._positions.get(place, 0)
            if offset == before and intents and all(map(self._tells_late, intents)):
                continue
            if offset <= before:
                raise Violation(
                    "offsets_went_back", f"{group} {topic}[{number}] from {before} to {offset}"
                )
            self._positions[place] = offset

    def moved(self, movement: Movement) -> None:
        """A gateway moved money."""
        order_id, money = movement.order_id, self.money
        order = self._orders[order_id]
        if movement.kind in ("charge", "authorize"):
            first = self.charged.get(order_id)
            if first is not None and not order.has("retry"):
                raise Violation(
                    "charged_twice",
                    f"{order_id} by {first.key} at {first.gateway} and by {movement.key} at "
                    f"{movement.gateway}",
                    order.number,
                )
            self.charged[order_id] = movement
            if movement.amount_minor != order.amount_minor:
                raise Violation("wrong_amount", f"{movement}", order.number)
        operation = (order_id, movement.kind, movement.operation_id)
        if operation in self._operations:
            raise Violation("moved_twice", f"{operation}", order.number)
        self._operations[operation] = movement
        money.moved(movement)
        if money.refunded_minor(order_id) > money.captured_minor(order_id):
            raise Violation("refunded_too_much", f"{order_id}", order.number)

    def declined(self, order_id: str, operation_id: str) -> None:
        """A gateway declined a charge or authorization."""
        order = self._orders[order_id]
        cards = {order_id: order.card} | {c.command_id: c.card for c in order.commands}
        card = cards.get(operation_id)
        if card is None:
            return
        self._declined[card] += 1
        if self._declined[card] > DECLINES_MAX:
            raise Violation("declined_too_often", f"{card}, by {order_id}", order.number)

    def commanded(self, order_id: str, command_id: str, kind: str, override: str | None) -> None:
        """Somebody has written a command."""
        self.stories.commanded(order_id, command_id, kind, override)
        if kind == "credit":
            self.money.credited_minor[order_id] = self._orders[order_id].amount_minor

    def payment_of(self, order_id: str) -> dict[str, Any] | None:
        """A payment as it can be seen now."""
        raw = self._raw_payments.get(f"{MERCHANT}:{order_id}".encode())
        return None if raw is None else self._decode_payment(raw)

    def unfinished(self) -> str:
        """Orders of which something is still to happen, for people."""
        found = []
        for order in self._plan.orders:
            payment = self.payment_of(order.order_id)
            busy = [a["state"] for a in (payment or {"attempts": ()})["attempts"]]
            busy = sorted({state for state in busy if state in BUSY})
            if payment is None or busy or payment["status"] not in SETTLED:
                status = None if payment is None else payment["status"]
                found.append(f"{order.order_id} {status} {' '.join(busy)}".strip())
        return ", ".join(found[:10]) or "no order"

    def _event(self, partition: Partition, record: Record) -> None:
        self.stories.told(self._decode_event(record.value or b""), record.timestamp_ms)

    def _audit_entry(self, partition: Partition, record: Record) -> None:
        entry = self._decode_entry(record.value or b"")
        if entry["subject"].startswith("payout/"):
            self.payouts.audited(entry)
            return
        detail = json.loads(entry["detail"])
        if "command_id" in detail:
            self._said[detail["command_id"], detail["outcome"]] += 1

    def _decision(self, partition: Partition, record: Record) -> None:
        self.payouts.decided(self._decode_decision(record.value or b""))

    def _payout(self, partition: Partition, record: Record) -> None:
        self.payouts.stands(record.key, self._decode_payout(record.value or b""))

    def _settlement(self, partition: Partition, record: Record) -> None:
        settlement = self._decode_settlement(record.value or b"")
        order_id = settlement["order_id"]
        if settlement["settlement_id"] in self.settlements:
            raise Violation("settled_twice", f"{order_id}", self._number(order_id))
        self.settlements[settlement["settlement_id"]] = settlement
        kind = settlement["kind"]
        self.money.settled_minor[order_id, kind] += settlement["amount_minor"]
        total = abs(self.money.settled_minor[order_id, kind])
        moved = self.money.limit_minor(order_id, kind)
        if moved is not None and total > moved:
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
        self.money.read_disputes(books)
        payments = {
            payment["order_id"]: payment
            for payment in map(self._decode_payment, self._raw_payments.values())
        }
        for order in self._plan.orders:
            self._outcomes.judge(order, payments.get(order.order_id))
        self._outcomes.limits(payments)
        self._people_at_rest()
        for place, cause in self.letters.items():
            if self.bad_inputs.get(place) is None:
                raise Violation("buried_without_reason", f"{place}: {cause}")
        for place, what in self.bad_inputs.items():
            if place not in self.letters:
                raise Violation("lost_bad_input", f"{what} at {place} is not in the dead letters")
        self._outcomes.books(ledger, self.settlements, self.payouts.balances())

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

    def _people_at_rest(self) -> None:
        """Whoever decided something in a machine's place is in the audit, and once."""
        for order in self._plan.orders:
            if order.input in BAD_BYTES:
                continue
            for command_id, kind in self.stories.of(order.order_id).commands:
                if kind not in PEOPLES:
                    continue
                done = self._said[command_id, "done"]
                if not done and not self._said[command_id, "refused"]:
                    raise Violation("not_in_the_audit", f"{kind} {command_id}", order.number)
                if done > 1:
                    raise Violation("done_twice", f"{kind} {command_id}", order.number)

    # Small parts --------------------------------------------------------------------------------

    def _number(self, order_id: str) -> int | None:
        found = self._orders.get(order_id)
        return found.number if found is not None else None

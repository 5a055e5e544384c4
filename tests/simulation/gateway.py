"""Gateways in memory behind the same port as the real ones, with books that outlive every process.

What they promise, they keep: one key moves money once for as long as it is remembered (unless the
gateway says that it knows no keys), and what was written to it is visible within its grace time.
Everything else may go wrong, as the plan of each order says, call by call (``transport``):

=================  ===============================================================================
ok                 answered
refused            nobody listens: not one byte was written
rate_limited       turned away, with a Retry-After
slow_connect       a wait for a connection of up to two minutes, before the first byte
lost_request       written, and never handled
lost_answer        handled, and the answer lost
error_before       a 5xx, not handled
error_after        a 5xx, handled
hang               handled, and never answered
late               written, handled only near the end of the grace time, answered as a time-out
slow_answer        handled, and answered seconds later: its webhook may be there first
=================  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from tests.simulation.disputes import DisputeNotice, DisputePlan, GatewayDispute
from tests.simulation.world import World

TRANSPORT = (
    "refused", "rate_limited", "slow_connect", "lost_request", "lost_answer",
    "error_before", "error_after", "hang", "late", "slow_answer",
)  # fmt: skip


@dataclass(frozen=True)
class Movement:
    """Money moved at a gateway: a line of its books. ``amount_minor`` is never negative."""

    at_s: float
    gateway: str
    kind: str
    order_id: str
    operation_id: str
    key: str
    amount_minor: int
    reference: str
    # The charge or authorization that it is about, if it is about one.
    parent: str | None = None


class Operation:
    """What a gateway knows of one key."""

    __slots__ = ("action", "amount_minor", "code", "reference", "request", "seen_s", "state")

    def __init__(self, request: PaymentRequest, reference: str, seen_s: float) -> None:
        self.request = request
        self.reference = reference
        self.seen_s = seen_s
        self.state = "pending"
        self.code: str | None = None
        self.amount_minor = 0
        self.action = False

    def answer(self) -> GatewayAnswer:
        if self.state == "pending":
            return GatewayAnswer(
                outcome="pending",
                code="customer_action_required" if self.action else None,
                gateway_reference=self.reference,
                next_action_url="https://bank.example/3ds" if self.action else None,
            )
        if self.state == "declined":
            return GatewayAnswer(outcome="declined", code=self.code, gateway_code=self.code)
        if self.state == "returned":
            # Asked about a refund that came back, gateways say so, and that nothing is refunded.
            return GatewayAnswer(
                outcome="declined", code="returned", gateway_reference=self.reference
            )
        return GatewayAnswer(
            outcome="succeeded", gateway_reference=self.reference, amount_minor=self.amount_minor
        )


@dataclass(frozen=True)
class OperationNotice:
    """A webhook about an operation: what held when it was made, however late it comes."""

    request: PaymentRequest
    reference: str
    state: str
    answer: GatewayAnswer


@dataclass
class Script:
    """What becomes of an order's calls. ``outcome`` by gateway: succeed, decline:<code>,
    pending_succeed, pending_decline, action_succeed, action_late, action_nothing;
    ``retry_outcome``: of charges by another instrument. ``operations``: of captures, voids and
    refunds, one after another and the last for all that follow: succeed, decline, decline:<code>,
    pending_succeed, pending_decline. ``returns_s``: after that the first refund comes back."""

    outcome: Mapping[str, str]
    transport: tuple[str, ...] = ()
    inquiries: tuple[str, ...] = ()
    operations: tuple[str, ...] = ("succeed",)
    notices: int = 0
    pending_s: float = 20.0
    retry_outcome: str = "succeed"
    returns_s: float | None = None
    dispute: DisputePlan | None = None


class GatewayBooks:
    """One gateway. ``on_movement`` is told of each movement when it happens, ``on_decline`` of each
    charge that it declines, ``on_notice`` of each webhook when it comes in."""

    def __init__(
        self,
        world: World,
        name: str,
        scripts: Mapping[str, Script],
        *,
        grace_s: float,
        retention_s: float,
        idempotent: bool,
        action_late_s: float,
        retry_after_s: float,
        on_movement: Callable[[Movement], None],
        on_decline: Callable[[PaymentRequest], None],
        on_notice: Callable[[str, OperationNotice | DisputeNotice], None],
    ) -> None:
        self.world = world
        self.name = name
        self.idempotent = idempotent
        # Whom it turns away it tells to come back after this.
        self.retry_after_s = retry_after_s
        self.grace_s = grace_s
        self.retention_s = retention_s
        self._scripts = scripts
        self._action_late_s = action_late_s
        self._on_movement = on_movement
        self._on_decline = on_decline
        self._on_notice = on_notice
        self._keys: dict[str, Operation] = {}
        self._count = 0
        self._calls: dict[tuple[str, str], int] = {}
        self._operations: dict[str, int] = {}
        self._returned: set[str] = set()
        self.disputes: dict[str, GatewayDispute] = {}
        # What stands of each authorization or charge, by reference.
        self._held: dict[str, int] = {}
        self._captured: dict[str, int] = {}
        self.movements: list[Movement] = []
        self.down_until_s = 0.0
        # Operations and notices that are still to come.
        self.open = 0
        self.faults_met: dict[str, int] = {}

    def next_fault(self, order_id: str, what: str) -> str:
        script = self._scripts[order_id]
        steps = script.inquiries if what == "inquiries" else script.transport
        at = self._calls.get((order_id, what), 0)
        self._calls[order_id, what] = at + 1
        fault = steps[at] if at < len(steps) else "ok"
        if self.world.now_s < self.down_until_s:
            fault = "error_before" if what == "inquiries" else "refused"
        if fault != "ok":
            self.faults_met[fault] = self.faults_met.get(fault, 0) + 1
        return fault

    def arrive(self, request: PaymentRequest) -> Operation:
        """A request has come in: the same key again is the same operation."""
        key = request.idempotency_key
        known = self.known(key)
        if known is not None and self.idempotent:
            return known
        self._count += 1
        made = Operation(request, f"{self.name}_{self._count}", self.world.now_s)
        self._keys[key] = made
        script = self._scripts[request.order_id]
        if request.kind not in ("charge", "authorize"):
            outcome = self._allowed(request) or self._next_outcome(request.order_id, script)
        elif request.operation_id == request.order_id:
            outcome = script.outcome.get(self.name, "succeed")
        else:
            outcome = script.retry_outcome
        if outcome == "succeed":
            self._succeed(made)
        elif outcome.startswith("decline"):
            self._decline(made, outcome.partition(":")[2] or "card_declined")
        else:
            made.action = outcome.startswith("action")
            if outcome == "action_late":
                self._later(self._action_late_s, made, "succeed")
            elif outcome == "action_nothing":
                self._later(self._action_late_s + 20.0, made, "decline")
            else:
                self._later(script.pending_s, made, outcome.rpartition("_")[2])
        self._tell(made)
        return made

    def _next_outcome(self, order_id: str, script: Script) -> str:
        at = self._operations.get(order_id, 0)
        self._operations[order_id] = at + 1
        return script.operations[min(at, len(script.operations) - 1)]

    def looked_up(self, key: str) -> Operation | None:
        """What its dashboard shows a person, who may look for as long as it likes."""
        return self._keys.get(key)

    def known(self, key: str) -> Operation | None:
        found = self._keys.get(key)
        if found is not None and self.world.now_s - found.seen_s >= self.retention_s:
            return None
        return found

    def _later(self, delay_s: float, made: Operation, outcome: str) -> None:
        self.open += 1

        def end() -> None:
            self.open -= 1
            if outcome == "succeed":
                self._succeed(made)
            else:
                self._decline(made, "insufficient_funds")
            self._tell(made)

        self.world.after(delay_s, end)

    def _decline(self, made: Operation, code: str) -> None:
        made.state, made.code = "declined", code
        if made.request.kind in ("charge", "authorize"):
            self._on_decline(made.request)

    def _allowed(self, request: PaymentRequest) -> str | None:
        parent = request.parent_reference or ""
        if request.kind == "refund":
            if self._captured.get(parent, 0) < request.amount_minor:
                return "decline:refund_exceeds_captured"
        elif self._held.get(parent, 0) < (request.amount_minor if request.kind == "capture" else 1):
            return "decline:capture_exceeds_authorized"
        return None

    def _succeed(self, made: Operation) -> None:
        request = made.request
        made.state = "succeeded"
        made.amount_minor = amount_minor = request.amount_minor
        parent = request.parent_reference or ""
        if request.kind == "authorize":
            self._held[made.reference] = amount_minor
        elif request.kind == "charge":
            self._captured[made.reference] = amount_minor
        elif request.kind == "capture":
            self._held[parent] -= amount_minor
            self._captured[parent] = self._captured.get(parent, 0) + amount_minor
        elif request.kind == "void":
            self._held[parent] = 0
        elif request.kind == "refund":
            self._captured[parent] -= amount_minor
            self._may_return(made)
        self._book(made, request.kind)
        if request.kind in ("charge", "capture"):
            self._may_be_disputed(made)

    def _book(self, made: Operation, kind: str) -> None:
        request, amount_minor = made.request, made.amount_minor
        movement = Movement(
            self.world.now_s,
            self.name,
            kind,
            request.order_id,
            request.operation_id,
            request.idempotency_key,
            amount_minor,
            made.reference,
            request.parent_reference,
        )
        self.movements.append(movement)
        self._on_movement(movement)

    def _may_return(self, made: Operation) -> None:
        """A refund that the customer's bank does not take, which shows after it had succeeded."""
        order_id = made.request.order_id
        returns_s = self._scripts[order_id].returns_s
        if returns_s is None or order_id in self._returned:
            return
        self._returned.add(order_id)
        self.open += 1

        def comes_back() -> None:
            self.open -= 1
            made.state = "returned"
            self._captured[made.request.parent_reference or ""] += made.amount_minor
            self._book(made, "return")
            self._tell(made, at_least=1)

        self.world.after(returns_s, comes_back)

    def _may_be_disputed(self, made: Operation) -> None:
        request = made.request
        plan = self._scripts[request.order_id].dispute
        if plan is None or request.order_id in self.disputes:
            return
        reference = made.reference if request.kind == "charge" else request.parent_reference or ""
        found = GatewayDispute(f"d-{request.order_id}", plan, request, reference, made.amount_minor)
        self.disputes[request.order_id] = found
        self.open += 1

        def goes_on() -> None:
            notice = found.next()
            for _ in range(1 + (self._scripts[request.order_id].notices > 1)):
                self._send(notice, plan.late_s)
            if found.goes_on:
                self.world.after(plan.apart_s, goes_on)
            else:
                self.open -= 1

        self.world.after(plan.after_s, goes_on)

    def _tell(self, made: Operation, at_least: int = 0) -> None:
        count = max(at_least, self._scripts[made.request.order_id].notices)
        if count:
            notice = OperationNotice(made.request, made.reference, made.state, made.answer())
            for _ in range(count):
                self._send(notice, 30.0)

    def _send(self, notice: OperationNotice | DisputeNotice, late_s: float) -> None:
        self.open += 1

        def comes_in() -> None:
            self.open -= 1
            self._on_notice(self.name, notice)

        self.world.after(self.world.jitter(late_s), comes_in)

"""Money safety under every order of crashes, duplicates, lags and lies of the clock.

The model holds what the processors cannot see: the gateways' real books, frozen workers that wake
up and send, results that were lost with a worker's transaction. Its judgement shares no code with
the processors.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import GatewayResult, Order, Payment, PaymentDue, PaymentRequest
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.processors.driver import RESULTS, FlowDriver

NOW = 1_790_000_000_000
SECOND = 1_000
SKEW_MS = 2 * SECOND
GRACE_MS = 6 * SECOND
RETENTION_MS = 120 * SECOND

ORDER = Order(
    merchant_id="shop",
    order_id="1",
    amount_minor=500,
    currency="GBP",
    instrument_token="tok_1",
    business_date="2026-09-21",
    submitted_at_ms=NOW,
)

POLICY = Policy(
    gateways=tuple(
        GatewayProfile(name=name, priority=at, grace_ms=GRACE_MS, key_retention_ms=RETENTION_MS)
        for at, name in enumerate(("first", "second"))
    ),
    retry_max=1,
    inquiry_max=6,
    proof_inquiry_max=2,
    resend_max=1,
    send_within_ms=10 * SECOND,
    clock_skew_ms=SKEW_MS,
    stale_after_ms=300 * SECOND,
)

OUTCOMES = st.sampled_from(["answer", "answer", "lost_before", "lost_after", "not_sent", "decline"])
LAGS = st.sampled_from([0, SECOND, 5 * SECOND, 12 * SECOND, 40 * SECOND])


class Charge:
    """What a gateway really did for a key."""

    def __init__(self, at_ms: int, visible_at_ms: int, succeeded: bool, reference: str) -> None:
        self.at_ms = at_ms
        self.visible_at_ms = visible_at_ms
        self.succeeded = succeeded
        self.reference = reference


class Money(RuleBasedStateMachine):
    @initialize(lag=LAGS)
    def start(self, lag: int) -> None:
        self.flow = FlowDriver(POLICY, now_ms=NOW)
        self.charges: list[Charge] = []
        self.by_key: dict[str, Charge] = {}
        self.frozen: list[tuple[int, PaymentRequest]] = []
        self.dues: list[PaymentDue] = []
        self.flow.order(ORDER)
        self.flow.now_ms += lag

    # The gateway's truth.

    def charge(self, request: PaymentRequest, decline: bool, delay_ms: int) -> Charge:
        """Act on a key once, unless it was forgotten."""
        known = self.by_key.get(request.idempotency_key)
        if known is not None and self.flow.now_ms < known.at_ms + RETENTION_MS:
            return known
        done = Charge(
            self.flow.now_ms,
            self.flow.now_ms + delay_ms,
            not decline,
            f"ch_{len(self.charges)}",
        )
        self.charges.append(done)
        self.by_key[request.idempotency_key] = done
        return done

    def told(self, charge: Charge) -> GatewayAnswer:
        if not charge.succeeded:
            return GatewayAnswer(outcome="declined", code="do_not_honor")
        return GatewayAnswer(
            outcome="succeeded", gateway_reference=charge.reference, amount_minor=500
        )

    def adapter(self, request: PaymentRequest, outcome: str, delay_ms: int) -> GatewayAnswer:
        unknown = GatewayAnswer(outcome="unknown", code="timeout")
        if outcome == "not_sent":
            return GatewayAnswer(outcome="not_sent", code="connection_refused")
        if outcome == "lost_before":
            return unknown
        if request.kind == "inquire":
            known = self.by_key.get(request.idempotency_key)
            if outcome == "lost_after":
                return unknown
            if known is None or self.flow.now_ms < known.visible_at_ms:
                return GatewayAnswer(outcome="not_found")
            if self.flow.now_ms >= known.at_ms + RETENTION_MS:
                return GatewayAnswer(outcome="not_found")
            return self.told(known)
        done = self.charge(request, outcome == "decline", delay_ms)
        return unknown if outcome == "lost_after" else self.told(done)

    # What may happen.

    @precondition(lambda self: self.flow.open_requests)
    @rule(outcome=OUTCOMES, delay_ms=st.sampled_from([0, GRACE_MS]), lag=LAGS)
    def a_worker_answers(self, outcome: str, delay_ms: int, lag: int) -> None:
        self.flow.answer(lambda request: self.adapter(request, outcome, delay_ms))
        self.flow.now_ms += lag // 10

    @precondition(lambda self: self.flow.open_requests)
    @rule()
    def a_worker_freezes(self) -> None:
        """It holds the request; another worker will take the same one from the topic."""
        self.frozen.append(self.flow.open_requests[0])

    @precondition(lambda self: self.frozen)
    @rule(at=st.integers(0, 9), decline=st.booleans(), slow_ms=st.integers(0, SKEW_MS - 1))
    def a_frozen_worker_sends(self, at: int, decline: bool, slow_ms: int) -> None:
        """Its clock may be behind; its result is lost with its transaction."""
        opened = self.frozen[at % len(self.frozen)]
        true_ms = self.flow.now_ms
        self.flow.now_ms = true_ms - slow_ms

        def send(request: PaymentRequest) -> GatewayAnswer:
            self.flow.now_ms = true_ms
            if request.kind == "charge":
                self.charge(request, decline, GRACE_MS)
            return GatewayAnswer(outcome="unknown")

        self.flow.handle(opened, send)
        self.flow.now_ms = true_ms

    @rule(duration_ms=st.sampled_from([0, SECOND, 5 * SECOND, 30 * SECOND, 100 * SECOND]))
    def time_passes(self, duration_ms: int) -> None:
        self.dues += self.flow.waits()
        self.flow.advance(duration_ms)

    @rule(duration_ms=st.sampled_from([SECOND, 20 * SECOND, 100 * SECOND]))
    def the_flow_stands_still(self, duration_ms: int) -> None:
        """Nothing is served while time passes: every lane lags."""
        self.flow.now_ms += duration_ms

    @precondition(lambda self: self.dues)
    @rule(at=st.integers(0, 9))
    def a_wait_comes_again(self, at: int) -> None:
        self.flow.due(self.dues[at % len(self.dues)])

    @rule(at=st.integers(0, 9))
    def a_result_comes_again(self, at: int) -> None:
        results = self.flow.read(RESULTS, GatewayResult)
        if results:
            self.flow.result(results[at % len(results)])

    @rule(amount_minor=st.sampled_from([500, 500, 501]))
    def the_order_comes_again(self, amount_minor: int) -> None:
        self.flow.order(replace(ORDER, amount_minor=amount_minor))

    # What must hold, always.

    def payment(self) -> Payment:
        payment = self.flow.payment("shop", "1")
        assert payment is not None
        return payment

    @invariant()
    def at_most_one_charge(self) -> None:
        """Whatever happened, the customer has paid at most once."""
        assert sum(charge.succeeded for charge in self.charges) <= 1

    @invariant()
    def books_match(self) -> None:
        """One settlement at most, only of a real charge, and exactly what was captured."""
        payment, settlements = self.payment(), self.flow.settlements()
        assert len(settlements) <= 1
        assert payment.captured_minor == sum(s.amount_minor for s in settlements) <= 500
        assert (payment.status == "captured") == bool(settlements)
        real = {charge.reference for charge in self.charges if charge.succeeded}
        assert {s.gateway_reference for s in settlements} <= real

    @invariant()
    def history_has_no_gaps(self) -> None:
        """One event for each change, numbered like the snapshots."""
        events, payment = self.flow.events(), self.payment()
        assert [event.sequence for event in events] == list(range(1, payment.sequence + 1))
        assert len({event.event_id for event in events}) == len(events)
        changes = [d for d in self.flow.decisions if d.payment is not None]
        assert [d.payment.sequence for d in changes if d.payment] == [e.sequence for e in events]
        assert events[-1].status == payment.status

    @invariant()
    def a_failure_is_true(self) -> None:
        """What failed was not charged, unless the gateway could not be asked at the end."""
        payment = self.payment()
        if payment.status == "failed" and payment.attempts[-1].code in (
            "not_found",
            "do_not_honor",
        ):
            assert not any(charge.succeeded for charge in self.charges)

    @invariant()
    def one_key_at_a_time(self) -> None:
        """A second key appears only after the gateway of the first did not know it."""
        attempts = self.payment().attempts
        assert [attempt.attempt for attempt in attempts] == list(range(1, len(attempts) + 1))
        for earlier in attempts[:-1]:
            assert (earlier.state, earlier.code) == ("failed", "not_found")

    @invariant()
    def something_is_under_way_or_done(self) -> None:
        """An unfinished payment always has exactly one open request or at least one wait."""
        attempt = self.payment().attempts[-1]
        current = [
            request for _, request in self.flow.open_requests
            if (request.attempt, request.try_number) == (attempt.attempt, attempt.tries)
        ]  # fmt: skip
        waits = [due.purpose for due in self.flow.waits() if due.try_number == attempt.tries]
        if attempt.state in ("started", "inquiring"):
            assert len(current) == 1
        if attempt.state == "retry_waiting":
            assert "retry" in waits
        if attempt.state == "inquiry_waiting":
            assert "inquiry" in waits
        tries = Counter((r.attempt, r.try_number) for r in self.flow.requests())
        assert set(tries.values()) == {1}, "every try is requested once"

    def teardown(self) -> None:
        """With gateways that answer, every payment comes to an outcome."""
        if hasattr(self, "flow"):
            self.flow.run(lambda request: self.adapter(request, "answer", 0))
            payment = self.payment()
            place = (payment.status, payment.attempts[-1].state)
            assert place in {
                ("captured", "charged"), ("failed", "declined"), ("failed", "failed"),
                ("outcome_unknown", "inquiry_exhausted"),
                ("outcome_unknown", "contradicted"),
            }  # fmt: skip
            self.at_most_one_charge()
            self.books_match()


Money.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestMoney = Money.TestCase

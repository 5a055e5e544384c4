"""Money safety under every order of crashes, duplicates, lags and lies of the clock.

The model holds what the processors cannot see: the gateways' real books, frozen workers that wake
up and send, results that were lost with a worker's transaction. Its judgement shares no code with
the processors.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.lifecycle import BUSY_STATES
from pipeline.domain.model import (
    Attempt,
    GatewayResult,
    Order,
    Payment,
    PaymentDue,
    PaymentEvent,
    PaymentRequest,
)
from pipeline.domain.policy import HOUR_MS, GatewayProfile, Policy
from pipeline.processors.driver import RESULTS
from tests.property.late_words import UNKNOWN
from tests.property.referee import JudgedDriver
from tests.support.examples import share_of

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
    inquiry_max=12,
    proof_inquiry_max=2,
    resend_max=1,
    send_within_ms=10 * SECOND,
    clock_skew_ms=SKEW_MS,
    stale_after_ms=300 * SECOND,
)

OUTCOMES = st.sampled_from(
    ["answer", "answer", "lost_before", "lost_after", "not_sent", "decline", "own_trouble", "shed"]
)
# What a gateway says when it declines, by the outcome: the card's fault, or its own.
CODES = {"decline": "do_not_honor", "own_trouble": "processing_error"}
LAGS = st.sampled_from([0, SECOND, 5 * SECOND, 12 * SECOND, 40 * SECOND])


class Made:
    """What a gateway really did for a key: a charge, or a refund of one."""

    def __init__(self, at_ms: int, visible_at_ms: int, code: str | None, reference: str) -> None:
        self.at_ms = at_ms
        self.visible_at_ms = visible_at_ms
        self.code = code
        self.succeeded = code is None
        self.reference = reference


class Money(RuleBasedStateMachine):
    @initialize(
        lag=LAGS,
        tier_ms=st.sampled_from([500, 5 * SECOND]),
        keyless=st.booleans(),
        permits=st.booleans(),
        paid_within_ms=st.sampled_from([0, 0, 10 * SECOND, 60 * SECOND]),
    )
    def start(
        self,
        lag: int,
        tier_ms: int,
        keyless: bool = False,
        permits: bool = False,
        paid_within_ms: int = 0,
    ) -> None:
        # A short tier leaves no slack beside the windows that keep the money safe. What an order's
        # age ends has to end before its keys are forgotten.
        self.stale_after_ms = 90 * SECOND if tier_ms < SECOND else POLICY.stale_after_ms
        first, second = POLICY.gateways
        self.keyless = keyless
        gateways = (replace(first, idempotent=not keyless), second)
        policy = replace(
            POLICY, gateways=gateways, stale_after_ms=self.stale_after_ms, count_cards=permits
        )
        self.flow = JudgedDriver(
            policy, now_ms=NOW, retry_delay_ms=tier_ms, inquiry_delay_ms=tier_ms
        )
        self.charges: list[Made] = []
        self.refunds: list[Made] = []
        self.by_key: dict[str, Made] = {}
        self.frozen: list[tuple[int, PaymentRequest]] = []
        self.held: list[GatewayResult] = []
        self.dues: list[PaymentDue] = []
        self.order = replace(
            ORDER,
            card_fingerprint="fp_1" if permits else None,
            pay_before_ms=NOW + paid_within_ms if paid_within_ms else None,
        )
        self.flow.order(self.order)
        self.flow.now_ms += lag

    # The gateway's truth.

    def act(self, request: PaymentRequest, code: str | None, delay_ms: int) -> Made:
        """Act on a key once, unless it was forgotten."""
        known = self.by_key.get(request.idempotency_key)
        if (
            known is not None
            and self.flow.now_ms < known.at_ms + RETENTION_MS
            and not self.is_keyless(request)
        ):
            return known
        made = self.refunds if request.kind == "refund" else self.charges
        done = Made(
            self.flow.now_ms,
            self.flow.now_ms + delay_ms,
            code,
            f"{request.kind}_{len(made)}",
        )
        made.append(done)
        self.by_key[request.idempotency_key] = done
        return done

    def is_keyless(self, request: PaymentRequest) -> bool:
        return self.keyless and request.gateway == POLICY.gateways[0].name

    def told(self, made: Made) -> GatewayAnswer:
        if not made.succeeded:
            return GatewayAnswer(outcome="declined", code=made.code)
        return GatewayAnswer(
            outcome="succeeded", gateway_reference=made.reference, amount_minor=500
        )

    def adapter(self, request: PaymentRequest, outcome: str, delay_ms: int) -> GatewayAnswer:
        words = self.flow.late_words
        if outcome == "not_sent":
            return GatewayAnswer(outcome="not_sent", code="connection_refused")
        if outcome == "shed":
            return GatewayAnswer(outcome="not_sent", code="throttled")
        if request.kind == "inquire":
            if outcome not in ("lost_before", "lost_after"):
                return words.answer(request, self.looked_up(request))
            late = words.answer(request, UNKNOWN)
            if outcome == "lost_after":
                said = self.looked_up(request)
                words.hear(request, said, self.flow.asked_at_ms, self.flow.now_ms)
            return late
        words.sent(request)
        if outcome == "lost_before":
            return UNKNOWN
        done = self.act(request, CODES.get(outcome), delay_ms)
        if outcome != "lost_after":
            return self.told(done)
        words.made(request, self.told(done), self.flow.now_ms)
        return UNKNOWN

    def looked_up(self, request: PaymentRequest) -> GatewayAnswer:
        known = self.by_key.get(request.idempotency_key)
        if known is None or self.flow.now_ms < known.visible_at_ms:
            return GatewayAnswer(outcome="not_found")
        if self.flow.now_ms >= known.at_ms + RETENTION_MS:
            return GatewayAnswer(outcome="not_found")
        return self.told(known)

    # What may happen.

    @precondition(lambda self: self.flow.open_requests)
    @rule(outcome=OUTCOMES, delay_ms=st.sampled_from([0, GRACE_MS]), lag=LAGS)
    def a_worker_answers(self, outcome: str, delay_ms: int, lag: int) -> None:
        self.flow.answer(lambda request: self.adapter(request, outcome, delay_ms))
        self.flow.now_ms += lag // 10

    @precondition(lambda self: self.flow.open_requests)
    @rule(outcome=OUTCOMES, delay_ms=st.sampled_from([0, GRACE_MS]))
    def a_worker_asks_and_commits_later(self, outcome: str, delay_ms: int) -> None:
        opened = self.flow.open_requests.pop(0)
        ask = partial(self.adapter, outcome=outcome, delay_ms=delay_ms)
        self.held.append(self.flow.handle(opened, ask))

    @precondition(lambda self: self.held)
    @rule()
    def a_late_result_is_committed(self) -> None:
        self.flow.result(self.held.pop(0))

    @precondition(lambda self: self.flow.late_words.told)
    @rule(at=st.integers(0, 9))
    def a_late_word_is_told(self, at: int) -> None:
        """By itself, before or after the result of its own call."""
        self.flow.a_late_word_is_told(at)

    @rule()
    def a_worker_is_replaced(self) -> None:
        """Its successor has heard nothing."""
        self.flow.late_words.lose()

    @precondition(lambda self: self.flow.open_requests)
    @rule()
    def a_worker_freezes(self) -> None:
        """It holds the request; another worker will take the same one from the topic.

        Not one to a gateway without keys: there a worker that stood still sends nothing, and what
        another may have read is not sent.
        """
        opened = self.flow.open_requests[0]
        if not self.is_keyless(opened[1]):
            self.frozen.append(opened)

    @precondition(lambda self: self.flow.open_checks)
    @rule()
    def a_permit_is_answered(self) -> None:
        self.flow.count()

    @precondition(lambda self: self.flow.open_requests)
    @rule(outcome=OUTCOMES)
    def a_worker_sends_at_the_last_moment(self, outcome: str) -> None:
        appended_at_ms, request = self.flow.open_requests[0]
        last_ms = appended_at_ms + request.send_within_ms - 1
        self.flow.now_ms = max(self.flow.now_ms, last_ms)
        self.a_worker_answers(outcome, GRACE_MS, 0)

    @precondition(lambda self: self.frozen)
    @rule(at=st.integers(0, 9), decline=st.booleans(), slow_ms=st.integers(0, SKEW_MS - 1))
    def a_frozen_worker_sends(self, at: int, decline: bool, slow_ms: int) -> None:
        """Its clock may be behind. Its result is lost with its transaction, but for the word that
        money was taken."""
        opened = self.frozen[at % len(self.frozen)]
        true_ms = self.flow.now_ms
        self.flow.now_ms = true_ms - slow_ms

        def send(request: PaymentRequest) -> GatewayAnswer:
            self.flow.now_ms = true_ms
            if request.kind != "inquire":
                done = self.act(request, CODES["decline"] if decline else None, GRACE_MS)
                self.flow.late_words.made(request, self.told(done), true_ms)
            return GatewayAnswer(outcome="unknown")

        self.flow.handle(opened, send)
        self.flow.now_ms = true_ms

    @precondition(lambda self: self.frozen)
    @rule(at=st.integers(0, 9), slow_ms=st.integers(0, SKEW_MS - 1))
    def a_frozen_worker_sends_at_the_last_moment(self, at: int, slow_ms: int) -> None:
        """As late as its window and its slow clock allow."""
        appended_at_ms, request = self.frozen[at % len(self.frozen)]
        last_ms = appended_at_ms + request.send_within_ms - 1 + slow_ms
        self.time_passes(max(0, last_ms - self.flow.now_ms))
        self.a_frozen_worker_sends(at, False, slow_ms)

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
        self.flow.order(replace(self.order, amount_minor=amount_minor))

    # What must hold, always.

    def payment(self) -> Payment:
        payment = self.flow.payment("shop", "1")
        assert payment is not None
        return payment

    @invariant()
    def at_most_one_charge(self) -> None:
        """Whatever happened, the customer has paid at most once, and got back no more than that."""
        paid = sum(charge.succeeded for charge in self.charges)
        assert paid <= 1
        assert sum(refund.succeeded for refund in self.refunds) <= paid

    @invariant()
    def nobody_is_charged_late(self) -> None:
        """However long a lane stood still, nothing is sent once the order is too old."""
        # By permit it begins later.
        began_ms = self.flow.referee.began.get(ORDER.order_id, NOW)
        last_ms = began_ms + self.stale_after_ms + SKEW_MS
        if self.order.pay_before_ms is not None:
            last_ms = min(last_ms, self.order.pay_before_ms + SKEW_MS)
        assert all(charge.at_ms < last_ms for charge in self.charges)

    @invariant()
    def books_match(self) -> None:
        """One settlement of each kind at most, only of what was made, and exactly what was
        captured and given back. What came too late is given back, and no other."""
        payment, settlements = self.payment(), self.flow.settlements()
        sums = Counter({each.kind: each.amount_minor for each in settlements})
        assert len(sums) == len(settlements)
        assert payment.captured_minor == sums["capture"] <= 500
        assert payment.refunded_minor == -sums["refund"]
        assert (payment.status == "captured") == ("capture" in sums and not self.is_late())
        assert self.is_late() <= ("capture" in sums)
        real = {each.reference for each in (*self.charges, *self.refunds) if each.succeeded}
        assert {s.gateway_reference for s in settlements} <= real

    def is_late(self) -> bool:
        return any(each.kind == "refund" for each in self.payment().attempts)

    @invariant()
    def history_has_no_gaps(self) -> None:
        """An event for each change, the last of a decision's numbered like its snapshot."""
        events, payment = self.flow.events(), self.payment()
        assert [event.sequence for event in events] == list(range(1, payment.sequence + 1))
        assert len({event.event_id for event in events}) == len(events)
        for made in self.flow.decisions:
            told = [each.sequence for each in made.sends if isinstance(each, PaymentEvent)]
            assert told[-1:] == ([] if made.payment is None else [made.payment.sequence])
        assert events[-1].status == payment.status

    @invariant()
    def a_failure_is_true(self) -> None:
        """What failed was not charged, unless the gateway could not be asked at the end."""
        payment = self.payment()
        if payment.status == "failed" and self.charged()[-1].code in (
            "not_found",
            *CODES.values(),
        ):
            assert not any(charge.succeeded for charge in self.charges)

    @invariant()
    def one_key_at_a_time(self) -> None:
        """A second key appears only after the gateway of the first did not know it, or declined it
        for reasons of its own."""
        # Whose permit did not come was not sent.
        attempts = self.charged()
        assert [attempt.attempt for attempt in attempts] == list(range(1, len(attempts) + 1))
        for earlier in attempts[:-1]:
            assert (earlier.state, earlier.code) in {
                ("failed", "not_found"),
                ("declined", "processing_error"),
            }

    def charged(self) -> list[Attempt]:
        return [each for each in self.payment().attempts if each.kind == "charge"]

    @invariant()
    def something_is_under_way_or_done(self) -> None:
        """An unfinished payment always has exactly one open request or at least one wait."""
        attempt = self.payment().attempts[-1]
        named = attempt.operation_id, attempt.attempt, attempt.tries
        asked = [request for _, request in self.flow.open_requests]
        current = [each for each in (*asked, *self.held) if _name(each) == named]
        waits = [due.purpose for due in self.flow.waits() if _name(due) == named]
        if attempt.state in ("started", "inquiring"):
            assert len(current) == 1
        if attempt.state == "retry_waiting":
            # What is to be ordered again later waits by a timer, and so does what is to go back and
            # was not sent in time: its retries are behind it then.
            by_timer = not attempt.tries or attempt.kind != "charge"
            assert "retry" in waits or (by_timer and "timer" in waits)
        if attempt.state == "inquiry_waiting":
            assert "inquiry" in waits
        tries = Counter(_name(request) for request in self.flow.requests())
        assert set(tries.values()) <= {1}, "every try is requested once"

    def teardown(self) -> None:
        """With gateways that answer, every payment comes to an outcome."""
        if hasattr(self, "flow"):
            while self.held:
                self.a_late_result_is_committed()
            while self.flow.late_words.told:
                self.a_late_word_is_told(-1)
            self.flow.count_all()
            self.flow.run(lambda request: self.adapter(request, "answer", 0))
            while self.flow.open_checks:
                self.flow.count_all()
                self.flow.run(lambda request: self.adapter(request, "answer", 0))
            while any(due.attempt for due in self.flow.waits()):
                self.flow.advance(HOUR_MS)
                self.flow.run(lambda request: self.adapter(request, "answer", 0))
            payment = self.payment()
            place = (payment.status, self.charged()[-1].state)
            assert place in {
                ("captured", "charged"), ("failed", "declined"), ("failed", "failed"),
                ("failed", "charged"), ("expired", "failed"),
                ("outcome_unknown", "inquiry_exhausted"),
                ("outcome_unknown", "contradicted"), ("risk_review", "failed"),
            }  # fmt: skip
            assert not {each.state for each in payment.attempts} & BUSY_STATES
            self.at_most_one_charge()
            self.books_match()


def _name(each: PaymentRequest | GatewayResult | PaymentDue) -> tuple[str, int, int]:
    return each.operation_id, each.attempt, each.try_number


Money.TestCase.settings = settings(
    max_examples=share_of(40),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestMoney = Money.TestCase


WALKS = share_of(200)
STEPS = 60


@pytest.mark.parametrize("part", range(4))
def test_long_walks_keep_the_money_safe(part: int) -> None:
    """Seeded random walks, longer than Hypothesis takes; a failure names the seed to replay."""
    for seed in range(part * WALKS // 4, (part + 1) * WALKS // 4):
        try:
            walk(seed)
        except AssertionError as error:
            raise AssertionError(f"walk({seed}) breaks a promise: {error}") from error


def walk(seed: int) -> None:
    chance = random.Random(seed)
    outcomes = [
        "answer", "lost_before", "lost_after", "not_sent", "decline", "own_trouble", "shed",
    ]  # fmt: skip
    # Each walk has its own weather: how charges go, how inquiries go, how often workers wake up.
    charges, questions = chance.choice(
        [
            ([1, 1, 1, 1, 0.3, 0.3, 0], [4, 1, 1, 1, 0, 0, 0]),
            ([0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]),
            ([0, 1, 0, 2, 0, 0, 0], [5, 1, 0, 0, 0, 0, 0]),
            ([1, 2, 2, 2, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0]),
            ([1, 0, 2, 1, 0, 4, 0], [3, 0, 1, 1, 0, 0, 0]),
            ([0, 4, 0, 1, 0, 0, 0], [9, 1, 0, 0, 0, 0, 0]),
            ([1, 1, 0, 1, 0, 1, 4], [4, 0, 0, 1, 0, 0, 1]),
        ]
    )
    wake = chance.choice([0.0, 0.03, 0.1])
    money = Money()
    lag, tier_ms = chance.choice([0, 1_000, 12_000]), chance.choice([500, 5_000])
    keyless, permits = chance.random() < 0.2, chance.random() < 0.2
    # A permit that is late for that is seldom otherwise.
    paid_within_ms = chance.choice([0, 10_000] if permits else [0, 0, 0, 0, 10_000, 60_000])
    money.start(lag, tier_ms, keyless, permits, paid_within_ms)
    lags = [0, 1_000, 5_000, 12_000, 40_000]
    for _ in range(STEPS):
        what = chance.random()
        if money.held and what < 0.2:
            money.a_late_result_is_committed()
        elif money.flow.late_words.told and what < 0.23:
            money.a_late_word_is_told(chance.randrange(10))
        elif money.flow.open_checks and what < 0.3:
            money.a_permit_is_answered()
        elif money.flow.open_requests and what < 0.35:
            asked = money.flow.open_requests[0][1].kind
            outcome = chance.choices(outcomes, questions if asked == "inquire" else charges)[0]
            delay_ms = chance.choice([0, GRACE_MS])
            if chance.random() < 0.1:
                money.a_worker_sends_at_the_last_moment(outcome)
            elif chance.random() < 0.2:
                money.a_worker_asks_and_commits_later(outcome, delay_ms)
            else:
                money.a_worker_answers(outcome, delay_ms, chance.choice(lags))
        elif money.flow.open_requests and what < 0.45:
            money.a_worker_freezes()
        elif money.frozen and what < 0.45 + wake:
            if chance.random() < 0.5:
                money.a_frozen_worker_sends_at_the_last_moment(-1, SKEW_MS - 1)
            else:
                money.a_frozen_worker_sends(-1, chance.random() < 0.1, chance.randrange(SKEW_MS))
        elif what < 0.9:
            money.time_passes(chance.choice([0, 1_000, 5_000, 5_000, 5_000, 30_000]))
        elif what < 0.92:
            money.the_flow_stands_still(chance.choice([1_000, 5_000, 20_000]))
        elif what < 0.96 and money.dues:
            money.a_wait_comes_again(chance.randrange(10))
        elif what < 0.985 and money.flow.topics.get(RESULTS):
            money.a_result_comes_again(chance.randrange(10))
        elif what < 0.99:
            money.a_worker_is_replaced()
        else:
            money.the_order_comes_again(chance.choice([500, 501]))
        money.at_most_one_charge()
        money.nobody_is_charged_late()
        money.books_match()
        money.history_has_no_gaps()
        money.a_failure_is_true()
        money.one_key_at_a_time()
        money.something_is_under_way_or_done()
    money.teardown()

"""Payments in the whole of their world: what a life has, and risk, people and gateways that err.

To a ``Life`` it adds rules that count or ask a person, permits, orders that are refused or come
after a command, people who decide, and a gateway that takes its word back: what it declined shows
as done, or it names an amount that nobody asked for. Every decision is held to the tables of the
lifecycle (``lifecycle_steps``), and the promises of a life hold here as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from msgspec.structs import replace

from pipeline.domain import lifecycle
from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.lifecycle import MAIN_KINDS
from pipeline.domain.model import PaymentCommand, PaymentRequest
from pipeline.domain.policy import HOUR_MS, MINUTE_MS
from pipeline.domain.risk import RiskRules
from pipeline.domain.risk_rules import read_rules
from tests.property import test_processors_lifecycle_properties as lives
from tests.property.referee import JudgedDriver
from tests.support.lifecycle_steps import Steps, WatchedDriver
from tests.support.payment_story import MANUAL, NOW, ORDER, POLICY, SECOND, command

REVIEWED: Final = """
[[rule]]
name = "large"
type = "amount"
action = "review"
currency = "GBP"
amount_minor_max = 1
"""
COUNTED: Final = """
[[rule]]
name = "sum"
type = "velocity"
action = "{action}"
by = "merchant"
window_s = 60
currency = "GBP"
sum_minor_max = {most}
"""
# What every order meets, by the name of its weather; permits are no rules.
RULES: Final = {
    "review": REVIEWED,
    "counted": COUNTED.format(action="review", most=100_000),
    "counted_review": COUNTED.format(action="review", most=1),
    "counted_reject": COUNTED.format(action="reject", most=1),
}
WEATHERS: Final = ("none", "permits", *RULES)
ORDERS: Final[dict[str, dict[str, Any]]] = {
    "good": {},
    "soon": {"pay_before_ms": NOW + 2 * MINUTE_MS},
    "bad": {"currency": "?"},
    "free": {"amount_minor": 0},
    # None at all: money that is a customer's, without an order.
    "none": {},
}
FIRST: Final = (None, "capture", "refund", "cancel")
# What a gateway may say of an operation, by what it said last.
WORDS: Final[dict[str | None, tuple[str, ...]]] = {
    None: ("done", "declined", "troubled", "pending", "asked", "wrong", "failed"),
    "asked": ("asked", "pending", "done", "declined", "wrong"),
    "pending": ("pending", "done", "declined", "troubled", "wrong", "failed"),
    "wrong": ("wrong", "done", "declined"),
    "declined": ("declined", "done", "failed"),
    "done": ("done", "failed"),
    "failed": ("failed",),
}
OUTCOMES: Final = (
    "answer", "lost_before", "lost_after", "not_sent", "decline", "own_trouble", "pending", "asks",
    "wrong", "shed",
)  # fmt: skip
DURATIONS: Final = (SECOND, MINUTE_MS, HOUR_MS + MINUTE_MS, 7 * HOUR_MS)
# Where a payment may be left for good.
ENDS: Final = frozenset(
    {"captured", "authorized", "cancelled", "expired", "failed", "rejected", "no_payment_due",
     "credit_held"}
)  # fmt: skip
PEOPLE: Final = ("approve", "deny", "resolve", "record_refund", "give_back")


@cache
def rules_of(weather: str) -> RiskRules | None:
    text = RULES.get(weather)
    return None if text is None else read_rules(text, "rules")


class JourneyDriver(JudgedDriver, WatchedDriver):
    """Held to the rules, and to the watched tables."""


class Journey(lives.Life):
    # Set by whoever watches the tables.
    steps: Steps

    @initialize(
        weather=st.sampled_from(WEATHERS),
        first=st.sampled_from(FIRST),
        order=st.sampled_from([*ORDERS, "good", "good"]),
        manual=st.booleans(),
        gateways=st.integers(1, 2),
    )
    def start(  # type: ignore[override]
        self, weather: str, first: str | None, order: str, manual: bool, gateways: int
    ) -> None:
        # Holds and reviews last hours: a journey of many days is long to walk.
        profile = replace(POLICY.gateways[0], authorization_ms=6 * HOUR_MS)
        named = tuple(replace(profile, name=f"gateway_{n}") for n in range(gateways))
        policy = replace(
            POLICY,
            gateways=named,
            risk=rules_of(weather),
            count_cards=weather == "permits",
            review_ms=6 * HOUR_MS,
        )
        self.flow = JourneyDriver(policy, now_ms=NOW)
        self.flow.steps = self.steps
        card = "fp_1" if weather == "permits" else None
        fields = {"card_fingerprint": card, **ORDERS[order]}
        self.order = replace(MANUAL if manual else ORDER, **fields)
        self.books: dict[str, lives.Moved] = {}
        self.held, self.notices, self.dues, self.commands = [], [], [], []
        self.disputes: dict[str, list[str]] = {}
        self.disputed_minor: dict[str, int] = {}
        self.mistaken = set()
        # Whether the gateway has said what cannot be true together, and what people have paid back.
        self.erred = False
        self.transfers: set[str] = set()
        if order == "none":
            fields = {"amount_minor": 300, "currency": "GBP", "business_date": "2026-09-21"}
            self.transfers.add("c0")
            self.decide(command("credit", "c0", **fields))
            return
        if first is not None:
            self.a_command_comes(first, None)
        self.flow.order(self.order)

    def decide(self, made: PaymentCommand) -> None:
        self.commands.append(made)
        self.flow.command(made)

    # The gateway's truth.

    def act(self, request: PaymentRequest, outcome: str) -> lives.Moved:
        if outcome == "wrong" and request.idempotency_key not in self.books:
            return self.says(request, "wrong")
        return super().act(request, outcome)

    def told(self, moved: lives.Moved) -> GatewayAnswer:
        if moved.state != "wrong":
            return super().told(moved)
        return GatewayAnswer(
            outcome="succeeded",
            gateway_reference=moved.reference,
            amount_minor=moved.request.amount_minor + 1,
        )

    def says(self, request: PaymentRequest, state: str) -> lives.Moved:
        """The gateway's newest word about an operation; its notice of it may come whenever."""
        key = request.idempotency_key
        known = self.books.get(key)
        before = None if known is None else known.state
        if known is None:
            known = self.books[key] = lives.Moved(request, "", f"ref_{len(self.books)}")
            # It had said that it did not know it, when nobody could send it any more.
            self.erred |= request.kind == "refund" and self.is_proven_unmade(request)
        takes_it_back = before == "declined" and state != "declined"
        if state == "troubled":
            # Declined, for reasons of its own.
            known.code, state = "processing_error", "declined"
        self.erred |= takes_it_back or "wrong" in (before, state)
        self.becomes(known, state)
        return known

    def is_proven_unmade(self, request: PaymentRequest) -> bool:
        named = request.operation_id, request.attempt
        return any(
            (each.operation_id, each.attempt) == named
            and (each.state, each.code) == ("failed", "not_found")
            for each in self.payment().attempts
        )

    def operations(self) -> list[PaymentRequest]:
        """What a gateway was asked to do, each once, the newest first."""
        asked = {r.idempotency_key: r for r in self.flow.requests() if r.kind != "inquire"}
        return list(reversed(asked.values()))

    def words(self, request: PaymentRequest) -> Iterator[str]:
        known = self.books.get(request.idempotency_key)
        state = None if known is None else known.state
        for word in WORDS[state]:
            if word == "asked" and request.kind not in MAIN_KINDS:
                continue
            if word == "failed" and request.kind != "refund":
                continue
            taken = state in ("pending", "asked", "done")
            if word in ("done", "pending", "asked", "failed") and not (
                taken or self.has_room(request)
            ):
                continue
            yield word

    # What may happen besides.

    @precondition(lambda self: self.operations())
    @rule(data=st.data(), late=st.booleans())
    def a_gateway_says_a_word(self, data: st.DataObject, late: bool) -> None:
        request = data.draw(st.sampled_from(self.operations()))
        self.a_word_comes(request, data.draw(st.sampled_from(list(self.words(request)))), late)

    def a_word_comes(self, request: PaymentRequest, word: str, late: bool = False) -> None:
        self.says(request, word)
        if not late:
            self.flow.notify(self.notices[-1])

    @precondition(lambda self: self.flow.open_checks)
    @rule()
    def it_is_counted(self) -> None:
        self.flow.count()

    @rule(weather=st.sampled_from(WEATHERS))
    def the_rules_change(self, weather: str) -> None:
        self.flow.policy = replace(self.flow.policy, risk=rules_of(weather))

    @rule(what=st.sampled_from(PEOPLE))
    def a_person_decides(self, what: str) -> None:
        name = f"c{len(self.commands)}"
        if what in ("approve", "deny"):
            self.decide(command("review", name, decision=what))
        elif what == "resolve":
            self.a_command_comes("resolve", None)
        elif what == "give_back":
            self.decide(command("give_back", name, actor="ann"))
        else:
            self.transfers.add(f"T-{name}")
            word = {"gateway_reference": f"T-{name}", "evidence": "a statement", "actor": "ann"}
            self.decide(command("record_refund", name, **word))

    def what_a_person_knows(self) -> dict[str, Any]:
        payment = self.flow.payment("shop", "1")
        for attempt in () if payment is None else payment.attempts:
            if attempt.state != "contradicted":
                continue
            key = f"{attempt.operation_id}:{attempt.gateway}:{attempt.attempt}"
            moved = self.books.get(f"{self.payment().payment_id}:{key}")
            named = {"operation_id": attempt.operation_id}
            if moved is not None and moved.state == "done":
                return {"decision": "charged", "gateway_reference": moved.reference, **named}
            if moved is None or moved.state in ("declined", "failed"):
                return {"decision": "not_charged", **named}
        return super().what_a_person_knows()

    @invariant()
    def no_command_is_lost(self) -> None:
        """A cancel that was faster than its order is told by the payment's end alone."""
        first = self.commands[0] if self.commands else None
        early = first is not None and first.type == "cancel" and self.payment().attempts == ()
        if not early:
            super().no_command_is_lost()

    def the_order_comes_again(self) -> None:
        """An order of before is a duplicate; here there may be none."""

    # What must hold, always.

    @invariant()
    def nothing_true_is_dead_lettered(self) -> None:
        """Only what a gateway says against its own word; a dispute that comes before its charge is
        kept until then."""
        causes = {letter.cause for letter in self.flow.dead_letters}
        assert self.erred or causes <= {"dispute_of_nothing"}

    @invariant()
    def only_what_a_gateway_moved_is_settled(self) -> None:
        """Or what people have moved themselves."""
        real = {m.reference for m in self.books.values()} | self.transfers
        real |= {f"d_{reference}" for reference in self.disputes}
        settled = self.flow.settlements()
        assert {each.gateway_reference for each in settled} <= real
        named = [(each.kind, each.operation_id) for each in settled]
        assert len(set(named)) == len(named), "each money at most once"

    @invariant()
    def commands_keep_their_order(self) -> None:
        """Captures and refunds that waited begin, or are refused, in the order in which they came;
        a cancel ends what they wait for, and the risk of a retry is decided before all others."""
        moving = {c.command_id for c in self.commands if c.type in ("capture", "refund")}
        events = [e for e in self.flow.events() if e.operation_id in moving]
        waits = ("command_waiting", "awaiting_order")
        ends = ("capture_started", "refund_started", "command_rejected")
        waiting = [e.operation_id for e in events if e.type in waits]
        ended = [e.operation_id for e in events if e.operation_id in waiting and e.type in ends]
        left = [c.command_id for c in self.payment().commands if c.command_id in moving]
        assert ended + left == waiting

    def teardown(self) -> None:
        """Everybody answers, tells and decides: whatever happened before comes to an end."""
        if not hasattr(self, "flow"):
            return
        self.ordered = 0
        while self.held:
            self.a_late_result_is_committed()
        while self.flow.late_words.told:
            self.a_late_word_is_told(-1)
        for request in self.operations():
            known = self.books.get(request.idempotency_key)
            if known is not None and known.state in ("asked", "pending", "wrong"):
                fits = known.state != "wrong" or self.has_room(request)
                self.says(request, "done" if fits else "declined")
        for moved in self.undecided():
            self.a_bank_says(moved, "won")
        # The newest first: what is told last is what was true first.
        for notice in reversed(self.notices):
            self.flow.notify(notice)
        for _ in range(20):
            self.flow.count_all()
            for notice in self.notices[-3:]:
                self.flow.notify(notice)
            self.flow.run(lambda request: self.adapter(request, "answer"))
            if not self.somebody_goes_on():
                break
        self.keeps_its_promises()
        payment = self.payment()
        assert not self.flow.open_requests
        assert not payment.commands
        assert payment.status in ENDS
        assert not {each.state for each in payment.attempts} & lifecycle.BUSY_STATES
        self.flow.referee.judge_rest(payment)
        if not self.erred and not self.transfers:
            self.books_agree(payment)

    def somebody_goes_on(self) -> bool:
        """People decide what waits for them, and time passes for what waits for nobody."""
        payment = self.payment()
        states = {each.state for each in payment.attempts}
        if payment.status == "risk_review":
            self.a_person_decides("approve")
        elif states & {"contradicted", "inquiry_exhausted"}:
            self.flow.now_ms += MINUTE_MS
            self.a_person_decides("resolve")
            return self.payment().sequence < payment.sequence + 40
        elif self.flow.open_checks or states & lifecycle.BUSY_STATES or payment.commands:
            self.flow.advance(2 * HOUR_MS)
        else:
            return self.a_person_says_what_is_left()
        return True

    def keeps_its_promises(self) -> None:
        for name in PROMISES:
            getattr(self, name)()


PROMISES: Final = (
    "amounts_are_in_order",
    "settlements_sum_to_the_payments_amounts",
    "only_what_a_gateway_moved_is_settled",
    "nothing_true_is_dead_lettered",
    "the_customer_pays_once",
    "nothing_is_taken_of_a_hold_that_is_being_voided",
    "nothing_is_given_back_in_a_dispute",
    "nothing_counts_as_paid_after_its_time",
    "a_cancel_that_was_taken_counts",
    "history_has_no_gaps",
    "commands_keep_their_order",
    "no_command_is_lost",
)

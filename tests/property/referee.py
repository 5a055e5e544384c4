"""What may be done about a payment, judged from records alone.

A ``Referee`` sees what a driver's processors are given, when, and what they send. It keeps its own
account of every key: when it was sent, what was answered, what was asked, and holds each step to
what ``docs/lifecycle.md`` promises: until when a charge may be sent, what proves that it did not
happen, when something is given up. It shares no code with processors and domain but their nouns,
and it need not know what gateways really did: only what a payment could know.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.decision import Decision
from pipeline.domain.model import (
    Attempt,
    GatewayNotification,
    GatewayResult,
    Payment,
    PaymentCommand,
    PaymentDue,
    PaymentEvent,
    PaymentRequest,
)
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.processors.driver import Adapter, FlowDriver
from tests.property.late_money import judge_capture, judge_given_back, judge_word
from tests.property.late_words import LateWords
from tests.property.money_back import Owed, is_persons_return, judge_return
from tests.property.tried import MAIN, Name, Tried

# Where a charge or authorization has yet to come to its outcome, as the documents list them.
UNDECIDED: Final = {"processing", "requires_customer_action", "outcome_unknown"}
SUCCESSES: Final = {"charged", "authorized", "captured", "voided", "refunded"}
# Ended without having moved anything, as far as is known.
ENDED: Final = {"declined", "failed"}
# Signs of load, or of a worker that stops: they slow a payment and do not fail it.
LOAD: Final = {"send_before_passed", "pool_timeout", "shutting_down", "breaker_open",
               "rate_limited", "throttled"}  # fmt: skip
# Another gateway may say yes to it.
GATEWAYS_OWN_TROUBLE: Final = {"processing_error"}


class Referee:
    """Of one payment."""

    def __init__(self) -> None:
        self.tried: dict[Name, Tried] = {}
        self.began: dict[str, int] = {}
        self.results: set[GatewayResult] = set()
        self.acted: set[PaymentDue] = set()
        self.in_review_since_ms = 0
        self.is_cancelled = False
        # Of what somebody has been told that its gateway contradicts itself.
        self.contradicted: set[Name] = set()
        # Whether a person has said that money went back without a gateway.
        self.is_recorded = False
        self.owed = Owed()

    def judge(
        self, source: Any, before: Payment | None, made: Decision, now_ms: int, policy: Policy
    ) -> None:
        """One decision; ``now_ms`` is when its input was appended."""
        self.hear(source, now_ms)
        self.judge_repetition(source, before, made)
        judge_word(source, before, made, self.contradicted)
        judge_return(source, before, made)
        self.owed.judge(before, made)
        after = made.payment
        if after is not None:
            self.judge_status(before, after, made, now_ms, policy)
            known = {} if before is None else {_name(each): each for each in before.attempts}
            for each in after.attempts:
                was = known.get(_name(each))
                if was is None or was.state != each.state:
                    self.judge_attempt(source, after, was, each, now_ms, policy)
                    if before is not None and each.state == "captured":
                        judge_capture(before, after, each)
            self.judge_reasons(made, policy)
        for sent in made.sends:
            if isinstance(sent, PaymentRequest):
                self.judge_request(source, after, sent, now_ms, policy)
            elif isinstance(sent, PaymentDue):
                # A wait for the same time as one that is over is another one.
                self.acted.discard(replace(sent, tier=1))

    # What is heard.

    def hear(self, source: Any, now_ms: int) -> None:
        if isinstance(source, PaymentCommand) and source.type == "record_refund":
            self.is_recorded = True
        if not isinstance(source, GatewayResult | GatewayNotification):
            return
        tried = self.tried.get((source.operation_id or "", source.attempt or 0))
        if tried is None or tried.first.gateway != source.gateway:
            return
        if isinstance(source, GatewayResult):
            tried.answers.setdefault(source.try_number, (now_ms, source))
        if source.outcome in ("succeeded", "declined", "pending", "failed"):
            tried.words.append(source.outcome)
        elif source.code == "heard_pending":
            # An earlier question was told so, when nobody waited for it any more.
            tried.words.append("pending")

    def judge_repetition(self, source: Any, before: Payment | None, made: Decision) -> None:
        """What was decided about once has no second effect."""
        after = made.payment
        if isinstance(source, PaymentDue):
            # In whichever tier it waited.
            mark = replace(source, tier=1)
            # What is owed and waits before its first request is only looked at once more.
            looks = source.operation_id.startswith("late-") and not source.try_number
            assert looks or mark not in self.acted or (after is None and not made.sends), (
                f"a wait acts twice: {source}"
            )
            if after is not None:
                self.acted.add(mark)
        if isinstance(source, GatewayResult):
            known = source in self.results
            self.results.add(source)
            if known and before is not None and after is not None:
                assert _figures(after) == _figures(before), f"a result counts twice: {source}"

    # The payment.

    def judge_status(
        self, before: Payment | None, after: Payment, made: Decision, now_ms: int, policy: Policy
    ) -> None:
        was = "new" if before is None else before.status
        if was == "risk_review" and after.status == "processing":
            ends_ms = self.in_review_since_ms + policy.review_ms
            if after.pay_before_ms is not None:
                ends_ms = min(ends_ms, after.pay_before_ms)
            assert now_ms < ends_ms, "approved after the review's end"
        events = [each for each in made.sends if isinstance(each, PaymentEvent)]
        if any(each.type == "risk_review" for each in events):
            # Maybe another one than before.
            self.in_review_since_ms = now_ms
        assert not events or events[-1].status == after.status, "the last event tells the status"
        asks = after.status == "requires_customer_action"
        assert asks or after.next_action_url is None, "sends a customer who has nothing to do"
        barred = any(e.type == "cancel_requested" and e.status in UNDECIDED for e in events)
        self.is_cancelled = self.is_cancelled or barred
        if self.is_cancelled:
            ends = {*UNDECIDED, "cancelled"}
            assert after.status in ends, f"cancelled, and all the same {after.status}"
        busy = after.status in ("awaiting_order", "risk_review") or after.risk_awaited or any(
            each.state not in SUCCESSES | ENDED for each in after.attempts
        )  # fmt: skip
        assert busy or not after.commands, "commands wait for nothing"

    # Its attempts.

    def judge_attempt(
        self,
        source: Any,
        after: Payment,
        was: Attempt | None,
        attempt: Attempt,
        now_ms: int,
        policy: Policy,
    ) -> None:
        tried = self.tried.get(_name(attempt))
        if was is None and attempt.kind in MAIN:
            self.judge_begin(source, after, attempt, now_ms, policy)
        elif attempt.state in SUCCESSES:
            recorded = attempt.kind == "refund" and attempt.code == "recorded"
            assert (recorded and self.is_recorded) or _says(
                source, attempt, "succeeded", "charged"
            ), f"{attempt.state} without a word of it"
        elif is_persons_return(source) and attempt.operation_id == source.operation_id:
            came_back = was is not None and was.state == "refunded" and attempt.state == "failed"
            assert came_back, f"said to have come back, and {attempt.state}"
        elif attempt.state == "declined":
            assert _says(source, attempt, "declined", "failed"), "declined without a word of it"
        elif tried is None:
            assert attempt.state != "inquiry_exhausted"  # Nothing was sent, so nobody is asked.
        elif attempt.state == "failed":
            self.judge_failure(source, after, attempt, tried, now_ms, policy)
        elif attempt.state == "inquiry_exhausted":
            self.judge_exhaustion(attempt, tried, now_ms, policy)

    def judge_begin(
        self, source: Any, after: Payment, attempt: Attempt, now_ms: int, policy: Policy
    ) -> None:
        """One charge or authorization at a time, and the next one where nothing is left open."""
        assert not self.is_cancelled, "a charge after a cancel"
        before_ms = after.pay_before_ms
        assert before_ms is None or now_ms < before_ms, "a charge after pay_before"
        for other in after.attempts:
            if other.kind in MAIN and _name(other) != _name(attempt):
                given_back = any(
                    e.operation_id == f"late-{other.operation_id}-{other.attempt}"
                    for e in after.attempts
                )
                assert other.state in ENDED or given_back, f"a charge beside one {other.state}"
        previous = self.tried.get((attempt.operation_id, attempt.attempt - 1))
        if previous is None:
            return
        limit_ms = self.began[attempt.operation_id] + policy.stale_after_ms
        assert now_ms < limit_ms, "another gateway after the operation's time"
        profile = _profile(policy, previous.first.gateway)
        if isinstance(source, GatewayResult | GatewayNotification) and (
            source.outcome in ("declined", "failed")
        ):
            assert source.code in GATEWAYS_OWN_TROUBLE, f"another gateway after {source.code}"
            assert profile.idempotent, "a copy may still be charged where no keys are known"
            last_ms = now_ms + previous.first.send_within_ms + policy.clock_skew_ms
            assert last_ms < previous.began_ms + profile.key_retention_ms
        else:
            assert self.is_proof(source, previous, profile, policy, now_ms), (
                "another gateway while the first may have charged"
            )

    def is_proof(
        self, source: Any, tried: Tried, profile: GatewayProfile, policy: Policy, now_ms: int
    ) -> bool:
        """Whether an answer proves that the operation did not happen and will not."""
        settled_ms = tried.settled_ms(policy, profile.grace_ms)
        asked_ms = tried.not_found_asked_ms(source)
        return (
            asked_ms is not None
            and settled_ms is not None
            and asked_ms >= settled_ms
            and now_ms < tried.began_ms + profile.key_retention_ms
        )

    def judge_failure(
        self,
        source: Any,
        after: Payment,
        attempt: Attempt,
        tried: Tried,
        now_ms: int,
        policy: Policy,
    ) -> None:
        """It ends by proof, by a person, by a refund's return, or by silence about what was never
        sent."""
        profile = _profile(policy, tried.first.gateway)
        if isinstance(source, PaymentCommand):
            if source.type == "resolve":
                settled_ms = tried.settled_ms(policy, profile.grace_ms)
                if settled_ms is None:
                    last_ms = tried.decided[tried.sendings[-1]]
                    settled_ms = last_ms + policy.stale_after_ms + profile.grace_ms
                assert now_ms >= settled_ms, "called not charged while somebody may send it"
            return
        if _says(source, attempt, "failed", "declined"):
            return
        if self.is_recorded and attempt.code == "recorded":
            # By a person's command that had waited: what went back otherwise was not made here.
            return
        if self.is_proof(source, tried, profile, policy, now_ms):
            assert "pending" not in tried.words, "given up though its gateway has it"
            return
        assert not tried.is_reversal, "silence ends what is owed"
        assert not tried.resends, "silence ends what was lost once and sent again"
        for number in tried.sendings[tried.open_from :]:
            _, answer = tried.answers.get(number, (0, None))
            unsent = answer is not None and answer.outcome == "not_sent"
            assert unsent, f"given up though try {number} may have been sent"
        assert not tried.words, "given up though its gateway knows it"
        asked = tried.questions(since_sent=True)
        assert asked >= policy.proof_inquiry_max, "given up without asking"
        limits_ms = [tried.began_ms + profile.key_retention_ms]
        limits_ms.append(self.began[attempt.operation_id] + policy.stale_after_ms)
        if after.pay_before_ms is not None and tried.is_main:
            limits_ms.append(after.pay_before_ms)
        assert self.is_cancelled or tried.retries >= policy.retry_max or now_ms >= min(limits_ms), (
            "given up before its time"
        )

    def judge_exhaustion(self, attempt: Attempt, tried: Tried, now_ms: int, policy: Policy) -> None:
        """A person is asked once the gateway was, as often and for as long as it says."""
        asked_for_ms = now_ms - tried.began_ms
        if "pending" in tried.words:
            assert asked_for_ms >= policy.pending_max_ms, "given up though its gateway has it"
        else:
            assert tried.questions() >= policy.inquiry_max, "a person is asked too soon"
        if tried.is_reversal:
            profile = _profile(policy, attempt.gateway)
            assert asked_for_ms >= profile.key_retention_ms, "given up while it can be proven"

    def judge_reasons(self, made: Decision, policy: Policy) -> None:
        """A gateway is called away after so many calls that it did not take, load apart."""
        for event in made.sends:
            if isinstance(event, PaymentEvent) and event.reason == "gateway_unavailable":
                # A failover is told as its new attempt's.
                told = (event.operation_id or "", event.attempt or 0)
                before = (told[0], told[1] - 1)
                tried = self.tried.get(told) or self.tried.get(before)
                retries = 0 if tried is None else tried.retries
                assert retries >= policy.retry_max, f"unavailable after {retries} retries"

    # Its requests.

    def judge_request(
        self,
        source: Any,
        after: Payment | None,
        request: PaymentRequest,
        now_ms: int,
        policy: Policy,
    ) -> None:
        name = request.operation_id, request.attempt
        tried = self.tried.get(name)
        assert tried is None or request.try_number not in tried.decided, "one request for each try"
        if request.kind == "inquire":
            assert tried is not None, "asked about what was never sent"
            tried.decided[request.try_number] = now_ms
            return
        is_first = request.operation_id not in self.began
        began_ms = self.began.setdefault(request.operation_id, now_ms)
        if request.kind in MAIN:
            assert not self.is_cancelled, "sent after a cancel"
            before_ms = None if after is None else after.pay_before_ms
            assert before_ms is None or now_ms < before_ms, "sent after pay_before"
        if not is_first:
            # However late it is read, it is not sent after the operation's time.
            limit_ms = began_ms + policy.stale_after_ms
            assert now_ms < limit_ms, "sent again after the operation's time"
            assert 0 < request.not_after_ms <= limit_ms, "a repetition that never ends"
        if request.kind == "refund" and after is not None and request.operation_id[:5] == "late-":
            judge_given_back(after, request)
        if tried is None:
            tried = self.tried[name] = Tried(request, now_ms)
            if request.kind in ("capture", "refund") and after is not None:
                self.judge_room(request, after)
        else:
            self.judge_again(source, tried, request, now_ms, policy)
        tried.sendings.append(request.try_number)
        tried.decided[request.try_number] = now_ms

    def judge_again(
        self, source: Any, tried: Tried, request: PaymentRequest, now_ms: int, policy: Policy
    ) -> None:
        """The same once more, since it was not sent, or since its gateway did not get it."""
        first = tried.first
        same = ("idempotency_key", "kind", "gateway", "amount_minor", "currency",
                "parent_reference")  # fmt: skip
        # Only what asks for money tells its gateway whose.
        for each in (*same, "instrument_token") if tried.is_main else same:
            assert getattr(request, each) == getattr(first, each), f"another {each} under one key"
        profile = _profile(policy, first.gateway)
        assert now_ms < tried.began_ms + profile.key_retention_ms, "sent with a forgotten key"
        assert not tried.words, f"sent again though its gateway said {tried.words}"
        if isinstance(source, PaymentDue):
            _, last = tried.answers[max(tried.answers)]
            assert last.outcome == "not_sent", f"sent again after {last.outcome}"
            tried.retries += last.code not in LOAD
            assert tried.is_reversal or tried.retries <= policy.retry_max, "too many retries"
            return
        assert isinstance(source, GatewayResult), f"sent again by {type(source).__name__}"
        asked_ms = tried.not_found_asked_ms(source)
        assert asked_ms is not None, "sent again unasked"
        lost_ms = tried.lost_ms()
        shown = lost_ms is not None and asked_ms >= lost_ms + profile.grace_ms
        assert shown, "sent again before its gateway would have shown it"
        assert profile.idempotent, "sent twice where no keys are known"
        tried.open_from = len(tried.sendings)
        tried.resends += 1
        assert tried.resends <= policy.resend_max, "sent again too often"

    def judge_room(self, request: PaymentRequest, after: Payment) -> None:
        """Neither more captured of a hold than it holds, nor more refunded than was taken."""
        of_it = {
            _name(each): self.tried[_name(each)].first
            for each in after.attempts
            if _name(each) in self.tried
            and each.state not in ENDED
            and self.tried[_name(each)].first.parent_reference == request.parent_reference
        }
        asked_minor = sum(e.amount_minor for e in of_it.values() if e.kind == request.kind)
        parent = next(
            each for each in after.attempts
            if each.kind in MAIN and each.gateway == request.gateway
            and each.gateway_reference == request.parent_reference
        )  # fmt: skip
        most_minor = self.tried[_name(parent)].first.amount_minor
        if request.kind == "refund" and parent.kind == "authorize":
            most_minor = sum(
                self.tried[_name(each)].first.amount_minor for each in after.attempts
                if each.state == "captured"
                and self.tried[_name(each)].first.parent_reference == request.parent_reference
            )  # fmt: skip
        assert asked_minor <= most_minor, f"{asked_minor} of {most_minor} by {request.kind}s"

    # At rest.

    def judge_rest(self, payment: Payment) -> None:
        """Unless a person has to say what became of the charge."""
        asks = any(each.state in ("inquiry_exhausted", "contradicted") for each in payment.attempts)
        if self.is_cancelled and not asks:
            assert payment.status == "cancelled", f"cancelled, and in the end {payment.status}"


class JudgedDriver(FlowDriver):
    """A driver of one payment, each of whose decisions is held to the rules."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.referee = Referee()
        self.late_words = LateWords()
        self._appended_at_ms: int | None = None
        # When the request was appended that a worker handles.
        self.asked_at_ms = 0
        # What goes right behind a result, in one transaction.
        self._behind: dict[GatewayResult, GatewayResult] = {}

    def handle(
        self, opened: tuple[int, PaymentRequest], answer: GatewayAnswer | Adapter
    ) -> GatewayResult:
        self.asked_at_ms = opened[0]
        result = super().handle(opened, answer)
        behind = self.late_words.behind(opened[1], self.now_ms)
        if behind is not None:
            self._behind[result] = behind
        return result

    def result(self, result: GatewayResult) -> Decision:
        made = super().result(result)
        behind = self._behind.pop(result, None)
        if behind is not None:
            super().result(behind)
        return made

    def a_late_word_is_told(self, at: int) -> Decision:
        """One of those that its worker tells by themselves."""
        told = self.late_words.told
        return self.result(told.pop(at % len(told)))

    def _due(self, due: PaymentDue, value: bytes, appended_at_ms: int) -> Decision:
        # A wait is decided about as of when it began.
        self._appended_at_ms = appended_at_ms
        try:
            return super()._due(due, value, appended_at_ms)
        finally:
            self._appended_at_ms = None

    def apply(self, source: Any, decision: Decision, value: bytes = b"") -> Decision:
        before = self.payment(source.merchant_id, source.order_id)
        made = super().apply(source, decision, value)
        now_ms = self.now_ms if self._appended_at_ms is None else self._appended_at_ms
        self.referee.judge(source, before, made, now_ms, self.policy)
        return made


def _name(attempt: Attempt) -> Name:
    return attempt.operation_id, attempt.attempt


def _says(source: Any, attempt: Attempt, *outcomes: str) -> bool:
    """Whether this input is somebody's word about the attempt, and one of these."""
    if isinstance(source, PaymentCommand):
        return source.type == "resolve" and source.decision in outcomes
    return (
        isinstance(source, GatewayResult | GatewayNotification)
        and source.outcome in outcomes
        and (source.operation_id, source.attempt) == _name(attempt)
        and source.gateway == attempt.gateway
    )


def _figures(payment: Payment) -> tuple[Any, ...]:
    return (
        payment.status,
        payment.authorized_minor,
        payment.captured_minor,
        payment.refunded_minor,
        [(_name(each), each.state) for each in payment.attempts],
    )


def _profile(policy: Policy, gateway: str) -> GatewayProfile:
    return next(each for each in policy.gateways if each.name == gateway)

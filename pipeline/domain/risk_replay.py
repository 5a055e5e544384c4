"""What rules would have made of past orders: counted by rule and by change, with examples.

The same ``assess`` and the same counting as in the flow, over the orders as they were appended. Two
things differ: a check is counted at its order's append time, a moment earlier than in the flow, and
what the flow decided is read from the payment's present state. That tells a review however it
ended; an order that was cancelled while its counts were awaited looks like one cancelled in review.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from pipeline.domain.card_numbers import fields_with_card_numbers
from pipeline.domain.ids import payment_id
from pipeline.domain.keys import record_key
from pipeline.domain.lifecycle import CANCELLED, EXPIRED, REJECTED, RISK_REVIEW
from pipeline.domain.model import Attempt, Order, Payment, RiskCheck, RiskCounted, RiskVelocity
from pipeline.domain.risk import (
    ALLOW,
    COUNTING,
    COUNTS_MISSING,
    REASON_PREFIX,
    REJECT,
    REVIEW,
    RiskRules,
    assess,
    counters_of,
    facts_of,
    identity_of,
)
from pipeline.domain.risk_velocity import count_check, velocity_key

# Enough to see what a rule does; every one of them names its order.
EXAMPLES_MAX: Final = 5
# Rows that count nothing any more are dropped this often, so that memory follows the windows.
_SWEEP_ORDERS: Final = 50_000

_NOT_ASSESSED: Final = "not_assessed"
_UNKNOWN: Final = "unknown"

# In review for want of counts or of its card's permit: no rule has to have asked for that.
_COUNTS_MISSING: Final = "counts_missing"

# How a review ended, or that it has not.
WAITING: Final = "waiting"
APPROVED: Final = "approved"
DENIED: Final = "denied"
ENDED_BY_TIME: Final = "expired"
ENDED_BY_CANCEL: Final = "cancelled"


class Outcome(Struct, frozen=True, gc=False):
    """What became of an order, as the payments table has it."""

    status: str
    reason: str | None
    captured_minor: int
    lost_minor: int
    # By a command that had come before the order.
    cancelled_before: bool = False
    # How the order's own review ended; "" where it was in none.
    review: str = ""
    # It was there for want of counts or of a permit, as far as the payment still says so.
    counts_missing: bool = False

    @property
    def decision(self) -> str:
        """What risk made of it: allow, review or reject; counts_missing where it was in review for
        want of them; not_assessed where it was never asked."""
        if self.review:
            return _COUNTS_MISSING if self.counts_missing else REVIEW
        if self.status == "rejected":
            is_risk = (self.reason or "").startswith(REASON_PREFIX)
            return REJECT if is_risk else _NOT_ASSESSED
        if self.status in ("no_payment_due", "awaiting_order", "credit_held"):
            return _NOT_ASSESSED
        return _NOT_ASSESSED if self.cancelled_before else ALLOW


def outcome_of(payment: Payment) -> Outcome:
    """The outcome of a snapshot; what was disputed or charged back is lost, for now at least."""
    return Outcome(
        payment.status,
        payment.reason,
        payment.captured_minor,
        payment.disputed_minor + payment.charged_back_minor,
        _cancelled_before(payment),
        _review(payment),
        _counts_missing(payment),
    )


def _review(payment: Payment) -> str:
    """How the review of the order ended; "" if it was in none. A retry's own says nothing of it."""
    if payment.status == RISK_REVIEW and payment.assessed_retry is None:
        return WAITING
    if payment.status == REJECTED and payment.reason == "risk_review_denied":
        return DENIED
    if payment.status == EXPIRED and payment.reason == "review_ends":
        return ENDED_BY_TIME
    if payment.status == CANCELLED and not payment.attempts:
        # Whatever else is cancelled before an attempt is begun has no decision of risk.
        return "" if _cancelled_before(payment) else ENDED_BY_CANCEL
    own = _own_attempts(payment)
    untried = not any(each.tries for each in payment.attempts)
    if payment.status == CANCELLED and untried and own and own[-1].code == COUNTS_MISSING:
        # In review because the permit of its card had not come, so nothing was ever sent.
        return ENDED_BY_CANCEL
    return APPROVED if any(each.approval is not None for each in own) else ""


def _counts_missing(payment: Payment) -> bool:
    """Whether the order's first review was for want of counts or of its permit. Of counts it is
    known only while the order is in review."""
    own = _own_attempts(payment)
    if own:
        return own[0].approval is None and own[0].code == COUNTS_MISSING
    return payment.status == RISK_REVIEW and payment.reason == COUNTS_MISSING


def _own_attempts(payment: Payment) -> list[Attempt]:
    """Of the order itself, not of its captures, refunds and retries."""
    return [each for each in payment.attempts if each.operation_id == payment.order_id]


def _cancelled_before(payment: Payment) -> bool:
    """Whether a cancel was there before the order: then nothing was begun, and no rule was asked.

    A snapshot does not say which of its commands cancelled it. One that came before the order, and
    after which the payment ended without an attempt, is taken for the cancel.
    """
    if payment.status != CANCELLED or payment.attempts:
        return False
    return any(mark.taken_at_ms <= payment.ordered_at_ms for mark in payment.command_marks)


class Sums:
    """Orders and their money by currency."""

    def __init__(self) -> None:
        self.orders = 0
        self.amount_minor: Counter[str] = Counter()
        self.captured_minor: Counter[str] = Counter()
        self.lost_minor: Counter[str] = Counter()
        self.reviews: Counter[str] = Counter()

    def add(self, order: Order, outcome: Outcome | None) -> None:
        self.orders += 1
        self.amount_minor[order.currency] += order.amount_minor
        if outcome is not None and outcome.review:
            self.reviews[outcome.review] += 1
        if outcome is not None and outcome.captured_minor:
            self.captured_minor[order.currency] += outcome.captured_minor
        if outcome is not None and outcome.lost_minor:
            self.lost_minor[order.currency] += outcome.lost_minor

    def to_json(self) -> dict[str, Any]:
        return {
            "orders": self.orders,
            "amount_minor": dict(sorted(self.amount_minor.items())),
            "captured_minor": dict(sorted(self.captured_minor.items())),
            "disputed_minor": dict(sorted(self.lost_minor.items())),
            "reviews": dict(sorted(self.reviews.items())),
        }


class Replay:
    """Orders go in by ``take`` in the order of their append; ``report`` says what came of them."""

    def __init__(self, rules: RiskRules) -> None:
        self._rules = rules
        self._rows: dict[bytes, RiskVelocity] = {}
        self._seen: set[bytes] = set()
        self._window_ms = window_ms_max(rules)
        self._taken = 0
        self.read = 0
        self.repeated = 0
        self.not_assessed = 0
        self.changes: dict[tuple[str, str], Sums] = {}
        self.by_rule: dict[str, Sums] = {rule.name: Sums() for rule in rules.rules}
        self.examples: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def take(self, order: Order, at_ms: int, outcome: Outcome | None, *, counts: bool) -> None:
        """One order as it was appended. ``counts``: whether it is reported, or, before the
        beginning, only counted in windows. The same order again is passed over."""
        self._sweep(at_ms)
        key = record_key(order.merchant_id, order.order_id)
        if counts:
            self.read += 1
        if key in self._seen:
            self.repeated += counts
            return
        self._seen.add(key)
        current = _UNKNOWN if outcome is None else outcome.decision
        refused = order.amount_minor <= 0 or fields_with_card_numbers(order)
        if current == _NOT_ASSESSED or refused:
            self.not_assessed += counts
            return
        local = assess(self._rules, facts_of(order))
        assessment = local
        if local.action != REJECT:
            assessment = assess(self._rules, facts_of(order, self._counted(order, at_ms)))
        if not counts:
            return
        change = (current, assessment.action)
        self.changes.setdefault(change, Sums()).add(order, outcome)
        for reason in (*assessment.reasons, *assessment.shadow_reasons):
            self.by_rule[reason.rule].add(order, outcome)
        if current == assessment.action:
            return
        examples = self.examples.setdefault(change, [])
        if len(examples) < EXAMPLES_MAX:
            examples.append(
                {
                    "order": key.decode(),
                    "at_ms": at_ms,
                    "amount_minor": order.amount_minor,
                    "currency": order.currency,
                    "status": None if outcome is None else outcome.status,
                    "why": assessment.detail or "no rule is met",
                }
            )

    def report(self) -> dict[str, Any]:
        """The whole result, ready for JSON; changes are sorted by how many orders they are."""
        ranked = sorted(self.changes.items(), key=lambda item: (-item[1].orders, item[0]))
        return {
            "orders": {
                "read": self.read,
                "repeated": self.repeated,
                "not_assessed": self.not_assessed,
                "assessed": self.read - self.repeated - self.not_assessed,
            },
            "decisions": [
                {
                    "current": current,
                    "new": new,
                    **sums.to_json(),
                    "examples": self.examples.get((current, new), []),
                }
                for (current, new), sums in ranked
            ],
            "rules": [
                {
                    "rule": rule.name,
                    "action": rule.action,
                    "shadow": rule.shadow,
                    **self.by_rule[rule.name].to_json(),
                }
                for rule in self._rules.rules
            ],
        }

    def _counted(self, order: Order, at_ms: int) -> list[RiskCounted]:
        facts = facts_of(order)
        found: list[RiskCounted] = []
        for by, counters in counters_of(self._rules, facts).items():
            identity = identity_of(by, facts)
            if identity is None:
                continue
            key = velocity_key(order.merchant_id, by, identity)
            check = RiskCheck(
                merchant_id=order.merchant_id,
                order_id=order.order_id,
                payment_id=payment_id(order.merchant_id, order.order_id),
                by=by,
                identity=identity,
                amount_minor=order.amount_minor,
                currency=order.currency,
                counters=counters,
            )
            row, answer = count_check(self._rows.get(key), check, at_ms)
            if row is not None:
                self._rows[key] = row
            found.extend(answer)
        return found

    def _sweep(self, at_ms: int) -> None:
        self._taken += 1
        if self._taken % _SWEEP_ORDERS:
            return
        oldest_ms = at_ms - 2 * self._window_ms
        gone = [key for key, row in self._rows.items() if row.updated_at_ms < oldest_ms]
        for key in gone:
            del self._rows[key]


def replayed(
    rules: RiskRules,
    payments: Iterable[Payment],
    orders: Iterable[tuple[Order, int]],
    since_ms: int,
) -> Replay:
    """The replay of orders with their append times, from ``counted_from_ms`` on, and what became of
    them: snapshots of payments, the newest of each last."""
    from_ms = counted_from_ms(rules, since_ms)
    outcomes = {
        record_key(payment.merchant_id, payment.order_id): outcome_of(payment)
        for payment in payments
        # Also of those that are only counted: not all of them were.
        if payment.ordered_at_ms >= from_ms
    }
    replay = Replay(rules)
    for order, at_ms in orders:
        outcome = outcomes.get(record_key(order.merchant_id, order.order_id))
        replay.take(order, at_ms, outcome, counts=at_ms >= since_ms)
    return replay


def counted_from_ms(rules: RiskRules, since_ms: int) -> int:
    """From when on orders are counted, so that windows are full at the beginning."""
    return since_ms - window_ms_max(rules)


def window_ms_max(rules: RiskRules) -> int:
    """The longest window of the rules: from so long before the beginning orders are counted."""
    return max((rule.window_ms for rule in rules.rules if rule.type in COUNTING), default=0)

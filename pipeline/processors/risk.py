"""Risk in the flow: what rules decide before anybody is charged.

What can be decided by the order alone is decided at once. Where rules count, an order that is not
rejected already asks for its counts, one check for each identity, and waits; it is decided when
every answer is there. No order waits for what only rules in shadow count. The stage that counts is
another one, since its table has other keys.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.decision import Decision
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.lifecycle import (
    COUNTS_ASKED,
    DEADLINE_PASSED,
    ORDER_ACCEPTED,
    ORDER_REJECTED,
    PAYMENT_STARTED,
    REVIEW_ASKED,
    RISK_COUNTED,
)
from pipeline.domain.model import Payment, PaymentCommand, RiskResult
from pipeline.domain.payment import decision, followed, moved, timer_of, told
from pipeline.domain.policy import Policy
from pipeline.domain.risk import (
    COUNTS_MISSING,
    REJECT,
    REVIEW,
    Assessment,
    RiskRules,
    assess,
    checks_of,
    counters_of,
    facts_of,
)
from pipeline.domain.validation import CURRENCY_MUST_BE_SUPPORTED, PAY_BEFORE_MUST_BE_AHEAD
from pipeline.processors.commands import decide_retry, start_charge, with_waiting_commands
from pipeline.processors.letters import LETTER_OF_NO_PAYMENT, letter_told
from pipeline.processors.permit_answers import (
    STALE_RISK_RESULT,
    answer_permit,
    permit_missing,
    waits_for_permit,
)
from pipeline.processors.retries import (
    COUNTS_AWAITED,
    REVIEW_ENDS,
    assessed_retry,
    hold_retry,
    retry_facts,
    without_retry,
)

UNKNOWN_PAYMENT: Final = "unknown_payment"
COUNTED_IN_SHADOW: Final = "counted_in_shadow"


_NO_RULES: Final = RiskRules()


def assess_order(placed: Payment, now_ms: int, policy: Policy, rules: RiskRules) -> Decision:
    """What becomes of a valid order: ``placed`` is its payment before the first step."""
    facts = facts_of(placed)
    assessment = assess(rules, facts)
    counters = counters_of(rules, facts)
    if assessment.action == REJECT or not counters:
        return _decided(placed, assessment, now_ms, policy)
    checks = checks_of(placed, facts, counters)
    awaited = tuple(by for by in counters_of(rules.acting, facts))
    if not awaited:
        # What only rules in shadow count is told when it comes.
        decided = _decided(placed, assessment, now_ms, policy)
        return replace(decided, sends=(*checks, *decided.sends))
    until_ms = now_ms + policy.risk_answer_ms
    if placed.pay_before_ms is not None:
        until_ms = min(until_ms, placed.pay_before_ms)
    changed, event = moved(
        placed,
        COUNTS_ASKED,
        now_ms,
        detail=assessment.detail,
        expires_at_ms=until_ms,
        risk_awaited=awaited,
    )
    timer = timer_of(changed, until_ms, COUNTS_AWAITED, policy, now_ms)
    return decision(changed, *checks, timer, event)


def process_risk_result(
    payment: Payment | None, result: RiskResult, now_ms: int, policy: Policy
) -> Decision:
    """Decide about the counts of one identity, or about a permit; ``now_ms`` is the answer's append
    time.

    The last one that was awaited decides the order. Counts that only rules in shadow asked for are
    told. Counts that nobody waits for any more have no effect (``stale_risk_result``).
    """
    if payment is None:
        if result.cause is not None:
            return Decision(note=LETTER_OF_NO_PAYMENT)
        return Decision(dead_letter=UNKNOWN_PAYMENT, detail="the table holds no such payment")
    if result.cause is not None:
        return _not_counted(payment, result, result.cause, now_ms, policy)
    rules = policy.risk or _NO_RULES
    if result.payment_id != payment.payment_id:
        return Decision(note=STALE_RISK_RESULT)
    if result.attempt_key:
        return answer_permit(payment, result, now_ms, policy)
    if not _is_awaited(payment, result):
        return _told_in_shadow(payment, result, now_ms, rules)
    awaited = tuple(by for by in payment.risk_awaited if by != result.by)
    counted = (*payment.risk_counted, *result.counted)
    if awaited:
        changed, event = told(
            payment,
            RISK_COUNTED,
            now_ms,
            detail=f"by {result.by}",
            risk_awaited=awaited,
            risk_counted=counted,
        )
        return decision(changed, event)
    retry = assessed_retry(payment)
    if retry is not None:
        assessment = assess(rules, retry_facts(payment, retry, counted))
        made = decide_retry(without_retry(payment), retry, assessment, now_ms, policy)
        return with_waiting_commands(made, now_ms, policy)
    facts = facts_of(payment, counted)
    # Rules may have been taken out meanwhile: what nobody asks for any more holds nobody up.
    assessment = assess(rules, facts)
    answered = replace(payment, risk_awaited=(), risk_counted=(), expires_at_ms=None)
    if payment.pay_before_ms is not None and now_ms >= payment.pay_before_ms:
        return _expired(answered, now_ms, policy)
    return _decided(answered, assessment, now_ms, policy)


def counts_missing(payment: Payment, now_ms: int, policy: Policy) -> Decision:
    """The wait for counts is over and they did not come: a person decides, if there is time and
    what did come does not reject the order anyway."""
    if (
        payment.pay_before_ms is not None
        and payment.expires_at_ms == payment.pay_before_ms
        and assessed_retry(payment) is None
    ):
        given_up = replace(payment, risk_awaited=(), risk_counted=(), expires_at_ms=None)
        return _expired(given_up, now_ms, policy)
    return _without_counts(payment, now_ms, policy)


def _not_counted(
    payment: Payment, result: RiskResult, cause: str, now_ms: int, policy: Policy
) -> Decision:
    """The check was dead-lettered: its counts do not come, and nobody waits for them any longer."""
    made = letter_told(payment, "risk", cause, result.letter or "", now_ms)
    told_so = made.payment
    if told_so is None:
        return made
    if result.attempt_key:
        attempt = waits_for_permit(told_so, result)
        if attempt is None:
            return made
        return followed(made, permit_missing(told_so, attempt, now_ms, policy))
    if not _is_awaited(payment, result):
        return made
    return followed(made, _without_counts(told_so, now_ms, policy))


def _without_counts(payment: Payment, now_ms: int, policy: Policy) -> Decision:
    rules = policy.risk or _NO_RULES
    retry = assessed_retry(payment)
    facts = (
        facts_of(payment, payment.risk_counted)
        if retry is None
        else retry_facts(payment, retry, payment.risk_counted)
    )
    known = assess(rules, facts)
    detail = f"no count by {', '.join(payment.risk_awaited)}"
    if known.detail is not None:
        detail += f"; {known.detail}"
    if retry is not None:
        made = _retry_without_counts(payment, retry, known, detail, now_ms, policy)
        return with_waiting_commands(made, now_ms, policy)
    given_up = replace(payment, risk_awaited=(), risk_counted=(), expires_at_ms=None)
    if known.action == REJECT:
        return _decided(given_up, known, now_ms, policy)
    return held_for_review(given_up, COUNTS_MISSING, now_ms, policy, detail=detail)


def _retry_without_counts(
    payment: Payment,
    retry: PaymentCommand,
    known: Assessment,
    detail: str,
    now_ms: int,
    policy: Policy,
) -> Decision:
    alone = without_retry(payment)
    pay_before_ms = payment.pay_before_ms
    if pay_before_ms is not None and payment.expires_at_ms == pay_before_ms:
        # A timer's record was appended before its time; by now it is over.
        return decide_retry(alone, retry, known, max(now_ms, pay_before_ms), policy)
    if known.action == REJECT:
        return decide_retry(alone, retry, known, now_ms, policy)
    return hold_retry(alone, retry, COUNTS_MISSING, detail, now_ms, policy)


def _is_awaited(payment: Payment, result: RiskResult) -> bool:
    """Whether the order, or the retry that is being decided, waits for these counts."""
    asked = payment.assessed_retry or ""
    return result.by in payment.risk_awaited and result.operation_id == asked


def held_for_review(
    placed: Payment, reason: str, now_ms: int, policy: Policy, *, detail: str | None = None
) -> Decision:
    """A person shall look at the order before anybody is asked for money.

    It waits for the command ``review``, as long as policy allows and the order's ``pay_before``;
    other commands wait with it.
    """
    ends_ms = now_ms + policy.review_ms
    if placed.pay_before_ms is not None:
        ends_ms = min(ends_ms, placed.pay_before_ms)
    changed, event = moved(
        placed,
        REVIEW_ASKED,
        now_ms,
        reason=reason,
        detail=detail,
        expires_at_ms=ends_ms,
    )
    timer = timer_of(changed, ends_ms, REVIEW_ENDS, policy, now_ms)
    return decision(changed, timer, event)


def _told_in_shadow(
    payment: Payment, result: RiskResult, now_ms: int, rules: RiskRules
) -> Decision:
    """Counts that no order waits for: what rules in shadow make of them, as an event."""
    if result.by in rules.awaited:
        return Decision(note=STALE_RISK_RESULT)
    of_this_kind = RiskRules(tuple(rule for rule in rules.rules if rule.by == result.by))
    detail = assess(of_this_kind, facts_of(payment, result.counted)).detail
    if detail is None:
        return Decision(note=COUNTED_IN_SHADOW)
    changed, event = told(payment, RISK_COUNTED, now_ms, detail=detail)
    return decision(changed, event)


def _decided(placed: Payment, assessment: Assessment, now_ms: int, policy: Policy) -> Decision:
    reason, detail = assessment.reason, assessment.detail
    if assessment.action == REJECT:
        return _rejected(placed, reason, detail, now_ms, policy)
    if assessment.action == REVIEW:
        if reason is None:
            raise InvariantBroken("a review without a rule that asked for it")
        return held_for_review(placed, reason, now_ms, policy, detail=detail)
    started = start_charge(
        # The operation behind the first charge is the order itself.
        placed,
        placed.order_id,
        ORDER_ACCEPTED,
        PAYMENT_STARTED,
        now_ms,
        policy,
        detail=detail,
    )
    # Gateways may have been taken out while it waited.
    return started or _rejected(placed, CURRENCY_MUST_BE_SUPPORTED, detail, now_ms, policy)


def _rejected(
    placed: Payment, reason: str | None, detail: str | None, now_ms: int, policy: Policy
) -> Decision:
    changed, event = moved(placed, ORDER_REJECTED, now_ms, reason=reason, detail=detail)
    return with_waiting_commands(decision(changed, event), now_ms, policy)


def _expired(payment: Payment, now_ms: int, policy: Policy) -> Decision:
    changed, event = moved(payment, DEADLINE_PASSED, now_ms, reason=PAY_BEFORE_MUST_BE_AHEAD)
    return with_waiting_commands(decision(changed, event), now_ms, policy)

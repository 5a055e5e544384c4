"""A retry with another instrument meets the risk rules, as its order did.

What can be decided by the retry alone is decided at once. Where rules count, it asks for its counts
and waits for them, the first of the payment's waiting commands; the payment stays failed meanwhile.
A review keeps it waiting as well, and ends where it began if the retry is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from pipeline.domain.decision import Decision
from pipeline.domain.lifecycle import COMMAND_WAITING, RETRY_REFUSED, REVIEW_ASKED
from pipeline.domain.model import Payment, PaymentCommand, PaymentEvent, RiskCheck, RiskCounted
from pipeline.domain.payment import decision, moved, timer_of, told
from pipeline.domain.policy import Policy
from pipeline.domain.risk import (
    REJECT,
    Assessment,
    RiskFacts,
    RiskRules,
    assess,
    checks_of,
    counters_of,
    facts_of,
)

# Reasons of the timers that end the wait for counts, and for a person.
COUNTS_AWAITED: Final = "counts_awaited"
REVIEW_ENDS: Final = "review_ends"


def assessed_retry(payment: Payment) -> PaymentCommand | None:
    """The retry whose risk is being decided, or None."""
    if payment.assessed_retry is None or not payment.commands:
        return None
    return payment.commands[0]


def without_retry(payment: Payment) -> Payment:
    """The payment when the retry whose risk was being decided waits no longer."""
    return retry_unassessed(replace(payment, commands=payment.commands[1:]))


def retry_unassessed(payment: Payment) -> Payment:
    """The payment when nobody decides about its retry's risk any more; it still waits."""
    return replace(
        payment,
        assessed_retry=None,
        risk_awaited=(),
        risk_counted=(),
        expires_at_ms=None,
    )


def retry_facts(
    payment: Payment, command: PaymentCommand, counted: Sequence[RiskCounted] = ()
) -> RiskFacts:
    """The order's facts with the instrument that the retry names; the order's own card says nothing
    about another one."""
    return replace(
        facts_of(payment, counted),
        instrument_token=command.instrument_token or "",
        card_fingerprint=command.card_fingerprint,
    )


def assess_retry(
    payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy, rules: RiskRules
) -> tuple[Assessment, tuple[RiskCheck, ...], Decision | None]:
    """What the retry alone decides, what has to be counted, and how it waits where it has to."""
    facts = retry_facts(payment, command)
    assessment = assess(rules, facts)
    counters = counters_of(rules, facts)
    if assessment.action == REJECT or not counters:
        return assessment, (), None
    checks = checks_of(payment, facts, counters, command.command_id)
    awaited = tuple(counters_of(rules.acting, facts))
    if not awaited:
        # What only rules in shadow count is told when it comes.
        return assessment, checks, None
    until_ms = now_ms + policy.risk_answer_ms
    if payment.pay_before_ms is not None:
        until_ms = min(until_ms, payment.pay_before_ms)
    changed, event = told(
        payment,
        COMMAND_WAITING,
        now_ms,
        reason=command.type,
        detail=assessment.detail,
        actor=command.actor,
        operation_id=command.command_id,
        commands=(command, *payment.commands),
        assessed_retry=command.command_id,
        expires_at_ms=until_ms,
        risk_awaited=awaited,
    )
    timer = timer_of(changed, until_ms, COUNTS_AWAITED, policy, now_ms)
    return assessment, checks, decision(changed, *checks, timer, event)


def hold_retry(
    payment: Payment,
    command: PaymentCommand,
    reason: str | None,
    detail: str | None,
    now_ms: int,
    policy: Policy,
) -> Decision:
    """A person shall look at the retry before the other instrument is asked for money."""
    ends_ms = now_ms + policy.review_ms
    if payment.pay_before_ms is not None:
        ends_ms = min(ends_ms, payment.pay_before_ms)
    changed, event = moved(
        replace(payment, commands=(command, *payment.commands), assessed_retry=command.command_id),
        REVIEW_ASKED,
        now_ms,
        reason=reason,
        detail=detail,
        actor=command.actor,
        operation_id=command.command_id,
        expires_at_ms=ends_ms,
    )
    timer = timer_of(changed, ends_ms, REVIEW_ENDS, policy, now_ms)
    return decision(changed, timer, event)


def review_ended(
    payment: Payment,
    rule: str,
    now_ms: int,
    *,
    detail: str | None = None,
    actor: str | None = None,
    operation_id: str | None = None,
) -> tuple[Payment, PaymentEvent]:
    """The payment has failed as before the retry, and says why it was not tried."""
    return moved(
        without_retry(payment),
        RETRY_REFUSED,
        now_ms,
        reason=rule,
        detail=detail,
        actor=actor,
        operation_id=operation_id,
    )

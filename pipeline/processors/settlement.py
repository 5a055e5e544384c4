"""The settlement processor: evidence and waits carry every operation to its outcome.

What it never does: guess. What may have happened is inquired about until a gateway says what became
of it; an operation fails, or another gateway is tried, only when nobody can send it any more. How
that is known stands in ``docs/lifecycle.md``.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.answer import (
    DEAD_LETTERED,
    DECLINED,
    NOT_FOUND,
    NOT_SENT,
    PENDING,
    SUCCEEDED,
    UNKNOWN,
)
from pipeline.domain.attempt_caps import ATTEMPTS_MUST_NOT_EXCEED_CAP
from pipeline.domain.decision import Decision
from pipeline.domain.gateway_text import kept_result
from pipeline.domain.health import (
    BREAKER_OPEN,
    GATEWAY_NOT_CONFIGURED,
    NOT_CALLED_CODES,
    RATE_LIMITED,
    THROTTLED,
)
from pipeline.domain.lifecycle import (
    ANSWER_CAME_LATE,
    ATTEMPT_FAILED,
    CONTRADICTED,
    CONTRADICTORY_EVIDENCE,
    GIVE_UP,
    INQUIRING,
    INQUIRY_DUE,
    INQUIRY_INCONCLUSIVE,
    INQUIRY_WAITING,
    MAIN_KINDS,
    NOT_SENT_SEEN,
    OPEN_STATES,
    PERMIT_WAITING,
    PROOF_DUE,
    REQUIRES_CUSTOMER_ACTION,
    RETRY_DUE,
    RETRY_WAITING,
    SEND_AGAIN,
    STARTED,
    has_succeeded,
)
from pipeline.domain.lifecycle import PENDING as ATTEMPT_PENDING
from pipeline.domain.model import Attempt, GatewayResult, Payment, PaymentDue, PaymentRequest
from pipeline.domain.payment import (
    HEARD_PENDING,
    INQUIRE,
    INQUIRY,
    PENDING_CODES,
    RETRY,
    TIMER,
    UNDECIDED,
    amount_of,
    charge_deadline_ms,
    dead_lettered,
    decision,
    find_attempt,
    followed,
    gateway_profile,
    is_reversal,
    is_uncertain,
    patience_ms,
    replaced,
    request_of,
    stepped,
    told,
)
from pipeline.domain.policy import Policy
from pipeline.domain.reversals import DISPUTED, awaits_dispute, owed_minor
from pipeline.domain.routing import Route, profile_of
from pipeline.domain.tiers import tier_not_shorter
from pipeline.processors.commands import with_waiting_commands
from pipeline.processors.disputes import with_founded
from pipeline.processors.failures import (
    ORDER_TOO_OLD,
    declined,
    gave_up,
    moved_on,
    next_gateway,
)
from pipeline.processors.late_evidence import came_back, late_evidence, tells_return
from pipeline.processors.letters import process_request_letter
from pipeline.processors.pendings import pending
from pipeline.processors.permit_answers import permit_missing
from pipeline.processors.permits import is_capped
from pipeline.processors.refused_evidence import STALE_RESULT, contradictory
from pipeline.processors.reversals import (
    NOTHING_OWED,
    first_due,
    with_successor,
    without_successor,
)
from pipeline.processors.successes import PAY_BEFORE_PASSED, succeeded
from pipeline.processors.timers import NOT_YET_DUE, passed_on, process_timer
from pipeline.processors.unknowns import exhausted, inquire, known_by, uncertain, waiting

# Causes of dead letters.
UNKNOWN_PAYMENT: Final = "unknown_payment"
UNKNOWN_ATTEMPT: Final = "unknown_attempt"
UNKNOWN_PURPOSE: Final = "unknown_purpose"

# Notes: inputs without effect.
STALE_DUE: Final = "stale_due"
SEND_WINDOW_OPEN: Final = "send_window_open"

# Reasons of a failure.
GATEWAY_UNAVAILABLE: Final = "gateway_unavailable"
REVERSAL_TOO_OLD: Final = "reversal_too_old"
KEY_RETENTION_PASSED: Final = "key_retention_passed"
RESENDS_EXHAUSTED: Final = "resends_exhausted"
GATEWAY_NOT_IDEMPOTENT: Final = "gateway_not_idempotent"
CANCEL_REQUESTED: Final = "cancel_requested"
GATEWAY_OVERLOADED: Final = "gateway_overloaded"

# Not sent because of the load, here or there, or because a worker stopped: such waits are not
# counted as retries, since overload may slow a payment but must not fail it. The order's own
# deadline still bounds them.
OVERLOAD_CODES: Final = frozenset(
    {"send_before_passed", "pool_timeout", "shutting_down", BREAKER_OPEN, RATE_LIMITED, THROTTLED}
)

_STALE_RESULT: Final = Decision(note=STALE_RESULT)
_STALE_DUE: Final = Decision(note=STALE_DUE)


def process_result(
    payment: Payment | None, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """Decide about one result; ``now_ms`` is its append time.

    Redelivered and outdated results have no effect (``stale_result``), except that a success is
    always either taken, already known, given back, or dead-lettered as contradictory, and that what
    is pending is known so from then on. Commands that waited for the operation run in the same
    decision.
    """
    result = kept_result(result)
    if result.outcome == DEAD_LETTERED:
        made = process_request_letter(payment, result, now_ms, policy)
        return with_waiting_commands(made, now_ms, policy)
    if payment is None:
        detail = f"no payment {result.payment_id} of order {result.order_id} is known"
        return Decision(dead_letter=UNKNOWN_PAYMENT, detail=detail)
    if result.payment_id != payment.payment_id:
        detail = f"the result names payment {result.payment_id}, not {payment.payment_id}"
        return dead_lettered(payment, UNKNOWN_PAYMENT, detail, now_ms)
    attempt = payment.attempts[-1] if payment.attempts else None
    if (
        attempt is None
        or result.operation_id != attempt.operation_id
        or result.attempt != attempt.attempt
        or result.gateway != attempt.gateway
    ):
        attempt = find_attempt(payment, result.operation_id, result.attempt, result.gateway)
    if attempt is None or result.try_number > attempt.tries:
        return _about_unknown_attempt(payment, result, now_ms)
    made = with_founded(_judged(payment, attempt, result, now_ms, policy), now_ms, policy)
    return with_waiting_commands(made, now_ms, policy) if payment.commands else made


def process_due(payment: Payment | None, due: PaymentDue, now_ms: int, policy: Policy) -> Decision:
    """Decide about a wait that is over; ``now_ms`` is the append time of its record.

    Nothing here relies on the tier's delay: a record that comes early, late or twice asks sooner,
    asks later, or is dropped (``stale_due``).
    """
    if payment is None:
        detail = f"no payment {due.payment_id} of order {due.order_id} is known"
        return Decision(dead_letter=UNKNOWN_PAYMENT, detail=detail)
    if due.payment_id != payment.payment_id:
        return _STALE_DUE
    if due.purpose == TIMER and not due.attempt:
        made = process_timer(payment, due, now_ms, policy)
        return with_waiting_commands(made, now_ms, policy) if payment.commands else made
    attempt = find_attempt(payment, due.operation_id, due.attempt)
    if attempt is None or due.try_number != attempt.tries:
        return _STALE_DUE
    if attempt.state == PERMIT_WAITING:
        if due.purpose != TIMER:
            return _STALE_DUE
        again = passed_on(due, now_ms, policy)
        return again or permit_missing(payment, attempt, now_ms, policy, due_at_ms=due.due_at_ms)
    if due.purpose == TIMER and attempt.state == RETRY_WAITING:
        again = passed_on(due, now_ms, policy)
        if again is not None:
            return again
        if not attempt.tries:
            return first_due(payment, attempt, now_ms, policy)
        over = replace(due, purpose=RETRY, tier=1, due_at_ms=None)
        return _retry_due(payment, attempt, over, now_ms, policy)
    if due.purpose == RETRY:
        if attempt.state != RETRY_WAITING:
            return _STALE_DUE
        return _retry_due(payment, attempt, due, now_ms, policy)
    if due.purpose in (INQUIRY, TIMER):
        if attempt.state not in (INQUIRY_WAITING, ATTEMPT_PENDING):
            return _STALE_DUE
        if due.purpose == TIMER:
            again = passed_on(due, now_ms, policy)
            if again is not None:
                return again
        return inquire(payment, attempt, INQUIRY_DUE, now_ms)
    detail = f"{due.purpose!r} is neither retry nor inquiry nor timer"
    return dead_lettered(payment, UNKNOWN_PURPOSE, detail, now_ms)


def _judged(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    made = _taken(payment, attempt, result, now_ms, policy)
    if result.try_number != attempt.tries or (attempt.state, result.kind) not in (
        (STARTED, attempt.kind),
        (INQUIRING, INQUIRE),
    ):
        return made
    known = made.payment or payment
    left = find_attempt(known, attempt.operation_id, attempt.attempt)
    if left is None or left.state != attempt.state:
        return made
    then = _not_taken(known, left, result, now_ms, policy)
    return then if made.payment is None else followed(made, then)


def _not_taken(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """What is known had no room for the answer to an open request, and nothing else is on its way.
    A word that makes room may still come, so the gateway is asked again; at last a person is."""
    said = replace(
        result,
        outcome=UNKNOWN,
        code=CONTRADICTORY_EVIDENCE,
        retry_after_ms=None,
        not_found_asked_at_ms=0,
    )
    if attempt.state == STARTED:
        attempt = replace(attempt, sendable_until_ms=_sendable_until_ms(attempt, now_ms, policy))
        return uncertain(payment, attempt, said, now_ms, policy)
    # The gateway has said something of it, so silence will be no proof.
    attempt = replace(attempt, uncertain_since_ms=attempt.uncertain_since_ms or now_ms)
    return _inquiry_answered(payment, attempt, said, now_ms, policy)


def _sendable_until_ms(attempt: Attempt, now_ms: int, policy: Policy) -> int:
    """Until when a request may be sent whose result is appended now. It was appended before its
    result, and so were all before it, so no copy of any in a frozen worker's hands can be sent
    later than this: however long any lane lags."""
    return now_ms + attempt.send_within_ms + policy.clock_skew_ms


def _taken(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    if tells_return(attempt, result):
        return came_back(payment, attempt, result, now_ms, policy)
    if result.try_number == attempt.tries:
        sendable_until_ms = _sendable_until_ms(attempt, now_ms, policy)
        if attempt.state == STARTED and result.kind == attempt.kind:
            attempt = replace(attempt, sendable_until_ms=sendable_until_ms)
            return _answered(payment, attempt, result, now_ms, policy)
        if not attempt.sendable_until_ms:
            attempt = replace(attempt, sendable_until_ms=sendable_until_ms)
            if attempt.state in (ATTEMPT_PENDING, CONTRADICTED):
                return _answered_late(payment, attempt, result, now_ms, policy)
        if attempt.state == INQUIRING and result.kind == INQUIRE:
            return _inquiry_answered(payment, attempt, result, now_ms, policy)
    return _outdated(payment, attempt, result, now_ms, policy)


def _answered_late(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """The answer to a request whose outcome a notice had told of already: until when it may have
    been sent is known only now."""
    if attempt.state == ATTEMPT_PENDING and result.outcome == DECLINED:
        return declined(payment, attempt, result, now_ms, policy)
    kept = replace(payment, attempts=replaced(payment, attempt))
    made = _outdated(kept, attempt, result, now_ms, policy)
    if made.payment is not None:
        return made
    asked = payment.status == REQUIRES_CUSTOMER_ACTION and attempt.kind in MAIN_KINDS
    changed, event = told(
        kept,
        ANSWER_CAME_LATE,
        now_ms,
        attempt=attempt,
        reason=result.code or result.outcome,
        next_action_url=payment.next_action_url or (result.next_action_url if asked else None),
    )
    return decision(changed, event)


def _answered(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    attempt = replace(attempt, code=result.code)
    outcome = result.outcome
    if outcome == SUCCEEDED and result.gateway_reference:
        return succeeded(payment, attempt, result, result.gateway_reference, now_ms, policy)
    if outcome == DECLINED:
        return declined(payment, attempt, result, now_ms, policy)
    if outcome == NOT_SENT:
        if result.earlier_reads:
            # Another worker may have sent it and died: it is sent again under its key, but silence
            # is no proof for it any more.
            since_ms = attempt.uncertain_since_ms or now_ms
            attempt = replace(attempt, uncertain_since_ms=since_ms)
        changed, event = stepped(payment, attempt, NOT_SENT_SEEN, now_ms, reason=result.code)
        wait = waiting(changed, attempt, result.code, policy, now_ms, result.retry_after_ms)
        return decision(changed, wait, event)
    if outcome == PENDING:
        return pending(payment, attempt, result, now_ms, policy)
    return uncertain(payment, attempt, result, now_ms, policy)


def _inquiry_answered(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    outcome = result.outcome
    if outcome == SUCCEEDED and result.gateway_reference:
        return succeeded(payment, attempt, result, result.gateway_reference, now_ms, policy)
    if outcome == DECLINED:
        return declined(payment, attempt, result, now_ms, policy)
    if result.code in NOT_CALLED_CODES:
        # Nobody was asked, so this was no question; else an outage would use them up.
        attempt = replace(attempt, inquiries=attempt.inquiries - 1)
    first_word = attempt.code not in PENDING_CODES and (
        outcome == PENDING or result.code == HEARD_PENDING
    )
    if first_word and outcome != PENDING:
        attempt = replace(attempt, code=HEARD_PENDING)
    known_pending = attempt.code in PENDING_CODES
    # However late the gateway is first heard to have it, it is asked what becomes of it.
    exhausts = not first_word and (
        now_ms >= _asked_until_ms(attempt, policy)
        and (known_pending or attempt.inquiries >= policy.inquiry_max)
    )
    if outcome == PENDING and not exhausts:
        return pending(payment, attempt, result, now_ms, policy)
    asked_at_ms = _not_found_asked_at_ms(attempt, result)
    if asked_at_ms is not None and not known_pending:
        if _is_proof(attempt, asked_at_ms, now_ms, policy):
            return _proven_unsent(payment, attempt, now_ms, policy)
        if _may_send_again(payment, attempt, asked_at_ms, now_ms, policy):
            return _sent_again(payment, attempt, now_ms, policy)

    reason = result.code or outcome
    if not known_pending:
        attempt = replace(attempt, code=result.code)
        if (
            not is_uncertain(payment, attempt)
            and attempt.inquiries >= policy.proof_inquiry_max
            # Nor is what was lost once and sent again: silence says nothing of that sending.
            and not attempt.resends
            # What is owed back is not given up on silence: it is asked about, then a person is.
            and not is_reversal(attempt)
            # Nor is anything where the gateway is not known: nobody who is has been asked.
            and result.code != GATEWAY_NOT_CONFIGURED
            and profile_of(policy, attempt.gateway) is not None
        ):
            refusal = _refusal(payment, attempt, now_ms, policy)
            # What was only held back may still be sent, so silence ends nothing.
            if refusal is not None and refusal != GATEWAY_OVERLOADED:
                return gave_up(payment, attempt, refusal, now_ms, policy)
    if exhausts:
        return exhausted(
            payment,
            replace(attempt, uncertain_since_ms=attempt.uncertain_since_ms or now_ms),
            reason,
            now_ms,
        )
    changed, event = stepped(payment, attempt, INQUIRY_INCONCLUSIVE, now_ms, reason=reason)
    wait = waiting(changed, attempt, reason, policy, now_ms, result.retry_after_ms)
    return decision(changed, wait, event)


def _asked_until_ms(attempt: Attempt, policy: Policy) -> int:
    """Until when a gateway is asked before a person is, at the least. Of what it has, the time
    alone decides: questions may have been refused all along."""
    asked_for_ms = policy.pending_max_ms if attempt.code in PENDING_CODES else 0
    if is_reversal(attempt):
        # For as long as its gateway can say that it was never made.
        retention_ms = gateway_profile(policy, attempt.gateway).key_retention_ms
        asked_for_ms = max(asked_for_ms, retention_ms)
    return attempt.started_at_ms + asked_for_ms


def _retry_due(
    payment: Payment, attempt: Attempt, due: PaymentDue, now_ms: int, policy: Policy
) -> Decision:
    delays_ms = policy.retry_delays_ms
    ends_ms = now_ms + delays_ms[min(due.tier, len(delays_ms)) - 1]
    refusal = _refusal(payment, attempt, now_ms, policy)
    if refusal == GATEWAY_OVERLOADED and attempt.code == BREAKER_OPEN:
        # It is in trouble, so it could not be asked; when it is back, this is where to be.
        refusal = None
    if refusal == GATEWAY_OVERLOADED and ends_ms < (due.due_at_ms or 0):
        # It said until when nobody is to call, so nobody would ask it sooner either.
        refusal = None
    if refusal is not None:
        settled_ms = attempt.sendable_until_ms + gateway_profile(policy, attempt.gateway).grace_ms
        if now_ms < settled_ms:
            # A frozen worker may still send it: neither give up nor believe an inquiry yet.
            tier = tier_not_shorter(delays_ms, settled_ms - ends_ms)
            again = replace(due, tier=tier, due_at_ms=None)
            return Decision(sends=(again,), note=SEND_WINDOW_OPEN)
        return inquire(payment, attempt, PROOF_DUE, now_ms)
    if due.due_at_ms is not None and ends_ms < due.due_at_ms:
        # The gateway asked for more than the longest tier.
        tier = tier_not_shorter(delays_ms, due.due_at_ms - ends_ms)
        return Decision(sends=(replace(due, tier=tier),), note=NOT_YET_DUE)
    counted = attempt.code not in OVERLOAD_CODES
    attempt = replace(
        attempt,
        tries=attempt.tries + 1,
        retries=attempt.retries + counted,
        send_within_ms=policy.send_within_ms,
        sendable_until_ms=0,
    )
    changed, event = stepped(payment, attempt, RETRY_DUE, now_ms, reason=attempt.code)
    return decision(changed, _repeated(changed, attempt, policy), event)


def _proven_unsent(payment: Payment, attempt: Attempt, now_ms: int, policy: Policy) -> Decision:
    """The gateway does not know the operation and nobody can send it any more."""
    refusal = _refusal(payment, attempt, now_ms, policy)
    # Kept on the attempt when it ends: a failure with this code is proven.
    attempt = replace(attempt, code=NOT_FOUND)
    if refusal is None and attempt.resends >= policy.resend_max:
        refusal = RESENDS_EXHAUSTED
    if refusal is None and not gateway_profile(policy, attempt.gateway).idempotent:
        refusal = GATEWAY_NOT_IDEMPOTENT
    if refusal is None:
        return _sent_again(payment, attempt, now_ms, policy)
    if (
        attempt.kind in MAIN_KINDS
        and payment.status in UNDECIDED
        and payment.cancel_requested_by is None
        and now_ms < charge_deadline_ms(payment, attempt, policy)
    ):
        chosen = next_gateway(payment, attempt, policy)
        if chosen is not None and not _caps_bar(payment, attempt, chosen, now_ms, policy):
            return moved_on(payment, attempt, chosen, GIVE_UP, refusal, now_ms, policy)
        if chosen is not None:
            refusal = ATTEMPTS_MUST_NOT_EXCEED_CAP
    made = gave_up(payment, attempt, refusal, now_ms, policy)
    if is_uncertain(payment, attempt) and not gateway_profile(policy, attempt.gateway).idempotent:
        # It takes no key, so a call that it may have is never made there a second time by itself.
        return without_successor(made, attempt, now_ms, policy)
    return with_successor(made, attempt, now_ms, policy)


def _sent_again(payment: Payment, attempt: Attempt, now_ms: int, policy: Policy) -> Decision:
    """The same attempt with the same key: a copy still on its way cannot make it two charges."""
    attempt = replace(
        attempt,
        tries=attempt.tries + 1,
        resends=attempt.resends + 1,
        send_within_ms=policy.send_within_ms,
        sendable_until_ms=0,
        uncertain_since_ms=0,
    )
    changed, event = stepped(
        payment,
        attempt,
        SEND_AGAIN,
        now_ms,
        moves=known_by(payment, attempt),
        reason=NOT_FOUND,
    )
    return decision(changed, _repeated(changed, attempt, policy), event)


def _repeated(payment: Payment, attempt: Attempt, policy: Policy) -> PaymentRequest:
    """The request for one more try, and until when it may be sent, however late it is read: by when
    a wait is over, the table knows when it began, and that may be days ago."""
    if is_reversal(attempt):
        not_after_ms = attempt.started_at_ms + patience_ms(attempt, policy)
    else:
        not_after_ms = charge_deadline_ms(payment, attempt, policy)
    return replace(request_of(payment, attempt), not_after_ms=not_after_ms)


def _outdated(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """A result of an attempt that answers no open question."""
    if result.outcome == SUCCEEDED:
        return late_evidence(payment, attempt, result, now_ms, policy)
    if result.outcome == DECLINED and (
        has_succeeded(attempt.state) or attempt.state == CONTRADICTED
    ):
        return contradictory(payment, result, now_ms)
    if (
        result.outcome == PENDING
        and attempt.state in OPEN_STATES
        and attempt.code not in PENDING_CODES
    ):
        # Of what is known as pending it is no news: that is asked about until its time is over, and
        # another word of it may be older than what a notice has told of the customer since.
        return pending(payment, attempt, result, now_ms, policy)
    return _STALE_RESULT


def _about_unknown_attempt(payment: Payment, result: GatewayResult, now_ms: int) -> Decision:
    if result.outcome == SUCCEEDED:
        return contradictory(payment, result, now_ms)
    detail = (
        f"payment {payment.payment_id} has no try {result.try_number} of attempt {result.attempt} "
        f"of {result.operation_id} at {result.gateway}"
    )
    return dead_lettered(payment, UNKNOWN_ATTEMPT, detail, now_ms)


def _not_found_asked_at_ms(attempt: Attempt, result: GatewayResult) -> int | None:
    """When the inquiry was asked, at the earliest, that was answered "not found"; None: none was.

    This one (``updated_at_ms`` is when it was decided, so before it was asked), or an earlier one
    that nobody waited for any more when its answer came.
    """
    if result.outcome == NOT_FOUND:
        return attempt.updated_at_ms
    if result.outcome == UNKNOWN and result.not_found_asked_at_ms > 0:
        return min(result.not_found_asked_at_ms, attempt.updated_at_ms)
    return None


def _is_proof(attempt: Attempt, asked_at_ms: int, now_ms: int, policy: Policy) -> bool:
    """Whether "not found" proves that the operation did not happen and will not.

    The inquiry must have been asked after the last moment of sending plus the gateway's grace, and
    answered while the gateway must still remember the key.
    """
    profile = gateway_profile(policy, attempt.gateway)
    return (
        asked_at_ms >= attempt.sendable_until_ms + profile.grace_ms
        and now_ms < attempt.started_at_ms + profile.key_retention_ms
    )


def _may_send_again(
    payment: Payment, attempt: Attempt, asked_at_ms: int, now_ms: int, policy: Policy
) -> bool:
    """Whether "not found" allows the same key again while an older copy may still be sent.

    It need not be proof, since the gateway takes one key once. It has to be more than the gateway's
    lag: asked after its grace time, counted from the evidence that the last request was lost
    (appended ``send_within_ms`` and the clocks' difference before ``sendable_until_ms``).

    Overload is no reason against it: another gateway could have it only with proof, and that takes
    longer. What counts as held back may be questions that a breaker forbade.
    """
    profile = gateway_profile(policy, attempt.gateway)
    lost_at_ms = attempt.sendable_until_ms - attempt.send_within_ms - policy.clock_skew_ms
    return (
        profile.idempotent
        and is_uncertain(payment, attempt)
        and asked_at_ms >= lost_at_ms + profile.grace_ms
        and attempt.resends < policy.resend_max
        and _refusal(payment, attempt, now_ms, policy) in (None, GATEWAY_OVERLOADED)
    )


def _refusal(payment: Payment, attempt: Attempt, now_ms: int, policy: Policy) -> str | None:
    """Why this attempt must not be sent again, or None when it may."""
    if attempt.kind in MAIN_KINDS and (
        payment.cancel_requested_by is not None or payment.status not in UNDECIDED
    ):
        return CANCEL_REQUESTED
    if is_reversal(attempt):
        if awaits_dispute(payment, attempt):
            return DISPUTED
        if owed_minor(payment, attempt) < amount_of(payment, attempt):
            return NOTHING_OWED
        over = now_ms >= attempt.started_at_ms + patience_ms(attempt, policy)
        return REVERSAL_TOO_OLD if over else None
    if attempt.retries >= policy.retry_max:
        return GATEWAY_UNAVAILABLE
    if now_ms >= charge_deadline_ms(payment, attempt, policy):
        pay_before_ms = payment.pay_before_ms
        if pay_before_ms is not None and now_ms >= pay_before_ms and attempt.kind in MAIN_KINDS:
            return PAY_BEFORE_PASSED
        return ORDER_TOO_OLD
    if now_ms >= attempt.started_at_ms + gateway_profile(policy, attempt.gateway).key_retention_ms:
        return KEY_RETENTION_PASSED
    if _waited_enough(attempt, now_ms, policy) and _elsewhere(payment, attempt, now_ms, policy):
        return GATEWAY_OVERLOADED
    return None


def _waited_enough(attempt: Attempt, now_ms: int, policy: Policy) -> bool:
    """Whether a charge was held back by overload so often, or by its gateway's Retry-After for as
    long as that takes at the least, that another gateway should have it."""
    if attempt.kind not in MAIN_KINDS:
        return False
    held_back = attempt.tries - 1 - attempt.retries - attempt.inquiries - attempt.resends
    as_long_ms = sum(policy.retry_delays_ms[: policy.overload_max])
    return held_back >= policy.overload_max or (
        attempt.code == RATE_LIMITED and now_ms >= attempt.started_at_ms + as_long_ms
    )


def _elsewhere(payment: Payment, attempt: Attempt, now_ms: int, policy: Policy) -> bool:
    """Whether a gateway is left for the operation's next attempt that may have it and is well."""
    chosen = next_gateway(payment, attempt, policy)
    return (
        chosen is not None
        and chosen.profile.name not in policy.health.down
        and not _caps_bar(payment, attempt, chosen, now_ms, policy)
    )


def _caps_bar(
    payment: Payment, attempt: Attempt, chosen: Route, now_ms: int, policy: Policy
) -> bool:
    """Whether the payment's own declines bar the next attempt where it would go, once it is proven
    that this one moved nothing: then it was no decline, and can be none."""
    without = replace(payment, attempts=replaced(payment, replace(attempt, state=ATTEMPT_FAILED)))
    return is_capped(without, chosen.profile.name, now_ms, policy)

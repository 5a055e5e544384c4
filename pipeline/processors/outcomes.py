"""What follows once something is known of an attempt: success, decline, pending, failure.

Here money is counted and settlements are made. A charge that succeeds although its payment has
ended (failed, cancelled, expired, or paid another way meanwhile), or whose success shows after the
order's ``pay_before``, is booked as it happened and given
back once: voided if it was only authorized, else refunded.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from pipeline.domain.charges import captured_of_minor, refunded_of_minor
from pipeline.domain.decision import Decision, Outgoing
from pipeline.domain.ids import reversal_operation_id
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.lifecycle import (
    ACTION_ASKED,
    ACTION_TAKEN,
    ATTEMPT_FAILED,
    AUTHORIZATION_SEEN,
    AUTHORIZED,
    BECAME_KNOWN,
    BECAME_UNKNOWN,
    CANCEL_CONFIRMED,
    CAPTURE,
    CAPTURE_SEEN,
    CAPTURED,
    CHARGE,
    CHARGE_SEEN,
    CONTRADICTED,
    CONTRADICTION_SEEN,
    CONTRADICTORY_EVIDENCE,
    DEADLINE_PASSED,
    DECLINE_SEEN,
    DECLINED,
    DECLINED_FINALLY,
    FAILOVER_STARTED,
    FAILURE_SEEN,
    GIVE_UP,
    GIVEN_UP,
    INQUIRIES_EXHAUSTED,
    LATE_SUCCESS,
    LATE_SUCCESS_SEEN,
    LOSS_POSTED,
    MAIN_KINDS,
    OPEN_STATES,
    OUTCOME_UNCERTAIN,
    OUTCOME_UNKNOWN,
    PENDING,
    PENDING_SEEN,
    PROCESSING,
    REFUND,
    REQUIRES_CUSTOMER_ACTION,
    SUCCESS_SEEN,
    VOID,
    attempt_step,
    has_succeeded,
)
from pipeline.domain.model import Attempt, GatewayResult, Payment
from pipeline.domain.normalisation import Action, action_of
from pipeline.domain.own_operations import is_expiry_of, is_reversal_of
from pipeline.domain.payment import (
    CUSTOMER_ACTION_REQUIRED,
    INQUIRE,
    PENDING_CODE,
    UNDECIDED,
    amount_of,
    begun,
    charge_deadline_ms,
    dead_lettered,
    decision,
    find_attempt,
    first_try,
    followed,
    gateway_profile,
    overcaptured_minor,
    parent_of,
    replaced,
    request_of,
    settlement_of,
    stepped,
    timer_of,
    told,
    wait_of,
)
from pipeline.domain.policy import Policy
from pipeline.domain.reversals import is_released
from pipeline.domain.routing import Route, facts_of, route
from pipeline.processors.holds import released_minor
from pipeline.processors.permits import is_capped, needs_permit, permit_asked, with_instrument
from pipeline.processors.reversals import begin_reversal, with_newly_owed, with_successor

# Kinds of settlements that gateways' words about operations make.
SETTLED_CAPTURE: Final = "capture"
SETTLED_REFUND: Final = "refund"
SETTLED_REFUND_FAILED: Final = "refund_failed"

AMOUNT_MISMATCH: Final = "amount_mismatch"

# Codes of a refund that had succeeded and failed later, by a notice or as an inquiry tells it (kept
# so by records of before): a success is no news to it, but older than that.
FAILED_LATER: Final = "failed_later"
RETURNED: Final = "returned"
_CAME_BACK: Final = frozenset({FAILED_LATER, RETURNED})

# Reason of a failure: the order's own limit has come.
PAY_BEFORE_PASSED: Final = "pay_before_passed"

# Reasons of timers.
AUTHORIZATION_ENDS: Final = "authorization_ends"
CUSTOMER_ACTION_ENDS: Final = "customer_action_ends"

STALE_RESULT: Final = "stale_result"
_STALE_RESULT: Final = Decision(note=STALE_RESULT)


def succeeded(
    payment: Payment,
    attempt: Attempt,
    result: GatewayResult,
    reference: str,
    now_ms: int,
    policy: Policy,
    *,
    trigger: str = SUCCESS_SEEN,
    actor: str | None = None,
    detail: str | None = None,
) -> Decision:
    """An attempt moved the money that it was to move; ``reference`` is the gateway's id of it."""
    asked_minor = attempt.amount_minor or payment.amount_minor
    if result.amount_minor != asked_minor or result.currency != payment.currency:
        # Money moved, but not the money that was asked for: a person decides what is booked.
        told_of = (
            f"{result.gateway} says {result.amount_minor} {result.currency} were moved by the "
            f"{attempt.kind}, asked were {asked_minor} {payment.currency} (reference {reference})"
        )
        if trigger == SUCCESS_SEEN and attempt.state in OPEN_STATES:
            attempt = replace(attempt, gateway_reference=reference, code=result.code)
            return contradicted(payment, attempt, AMOUNT_MISMATCH, told_of, now_ms)
        return dead_lettered(
            payment, AMOUNT_MISMATCH, told_of, now_ms, event=CONTRADICTORY_EVIDENCE
        )
    attempt = replace(attempt, gateway_reference=reference, code=result.code, uncertain_since_ms=0)
    if attempt.kind in MAIN_KINDS:
        if (
            trigger == LATE_SUCCESS_SEEN
            or payment.status not in UNDECIDED
            or payment.cancel_requested_by is not None
            or (payment.pay_before_ms is not None and now_ms >= payment.pay_before_ms)
        ):
            return _too_late(payment, attempt, now_ms, policy, trigger, actor, detail)
        if attempt.kind == CHARGE:
            changed, event = stepped(
                payment,
                attempt,
                trigger,
                now_ms,
                moves=CHARGE_SEEN,
                actor=actor,
                detail=detail,
                authorized_minor=payment.authorized_minor + asked_minor,
                captured_minor=payment.captured_minor + asked_minor,
                next_action_url=None,
                expires_at_ms=None,
            )
            settlement = settlement_of(
                payment,
                SETTLED_CAPTURE,
                asked_minor,
                now_ms,
                operation_id=attempt.operation_id,
                gateway=attempt.gateway,
                reference=reference,
            )
            return Decision(payment=changed, sends=(settlement, event))
        return _authorized(payment, attempt, now_ms, policy, trigger, actor, detail)
    if attempt.kind == CAPTURE:
        return _captured(payment, attempt, now_ms, policy, trigger, actor, detail)
    if attempt.kind == REFUND:
        return _refunded(payment, attempt, result, now_ms, trigger, actor, detail)
    return _voided(payment, attempt, now_ms, trigger, actor, detail)


def _authorized(
    payment: Payment,
    attempt: Attempt,
    now_ms: int,
    policy: Policy,
    trigger: str,
    actor: str | None,
    detail: str | None,
) -> Decision:
    expires_at_ms = now_ms + gateway_profile(policy, attempt.gateway).authorization_ms
    changed, event = stepped(
        payment,
        attempt,
        trigger,
        now_ms,
        moves=AUTHORIZATION_SEEN,
        actor=actor,
        detail=detail,
        authorized_minor=payment.authorized_minor + amount_of(payment, attempt),
        next_action_url=None,
        expires_at_ms=expires_at_ms,
    )
    timer = timer_of(changed, expires_at_ms, AUTHORIZATION_ENDS, policy, now_ms)
    return decision(changed, timer, event)


def _captured(
    payment: Payment,
    attempt: Attempt,
    now_ms: int,
    policy: Policy,
    trigger: str,
    actor: str | None,
    detail: str | None,
) -> Decision:
    standing = payment.status in (AUTHORIZED, CAPTURED)
    captured = payment.captured_minor + attempt.amount_minor
    taken = replace(payment, attempts=replaced(payment, replace(attempt, state=CAPTURED)))
    over_minor = overcaptured_minor(taken)
    beyond_minor = over_minor - overcaptured_minor(payment)
    if beyond_minor:
        more = f"{beyond_minor} {payment.currency} were captured beyond the authorization"
        detail = more if detail is None else f"{detail}; {more}"
    changed, event = stepped(
        payment,
        attempt,
        trigger,
        now_ms,
        moves=CAPTURE_SEEN if payment.status == AUTHORIZED else None,
        actor=actor,
        detail=detail,
        captured_minor=captured,
        # Not what was taken beyond it: that stays to be seen.
        authorized_minor=max(payment.authorized_minor, captured - over_minor),
        expires_at_ms=None if captured >= payment.authorized_minor else payment.expires_at_ms,
    )
    settlement = _settled(payment, attempt, SETTLED_CAPTURE, attempt.amount_minor, now_ms)
    made = decision(changed, settlement, event)
    back_minor = beyond_minor if standing else attempt.amount_minor
    if not back_minor:
        return made
    return followed(made, _reversed(changed, attempt, now_ms, policy, back_minor))


def _refunded(
    payment: Payment,
    attempt: Attempt,
    result: GatewayResult,
    now_ms: int,
    trigger: str,
    actor: str | None,
    detail: str | None,
) -> Decision:
    refunded = payment.refunded_minor + attempt.amount_minor
    back_minor, taken_minor = refunded, payment.captured_minor
    charge = parent_of(payment, attempt)
    if refunded <= payment.captured_minor and charge is not None:
        back_minor = refunded_of_minor(payment, charge) + attempt.amount_minor
        taken_minor = captured_of_minor(payment, charge)
    if back_minor > taken_minor:
        more = f"{back_minor} would be refunded of {taken_minor} captured"
        return contradictory(payment, result, now_ms, more)
    changed, event = stepped(
        payment, attempt, trigger, now_ms, actor=actor, detail=detail, refunded_minor=refunded
    )
    settlement = _settled(payment, attempt, SETTLED_REFUND, -attempt.amount_minor, now_ms)
    return with_loss(payment, decision(changed, settlement, event), now_ms)


def _voided(
    payment: Payment,
    attempt: Attempt,
    now_ms: int,
    trigger: str,
    actor: str | None,
    detail: str | None,
) -> Decision:
    hold = parent_of(payment, attempt)
    # A hold that lapsed, or that another void released, is not released a second time.
    over = hold is not None and is_released(payment, hold)
    changed, event = stepped(
        payment,
        attempt,
        trigger,
        now_ms,
        moves=_after_void(payment, attempt),
        actor=actor,
        detail=detail,
        authorized_minor=(payment.authorized_minor if over else released_minor(payment, attempt)),
    )
    return decision(changed, event)


def _after_void(payment: Payment, attempt: Attempt) -> str | None:
    if payment.status != AUTHORIZED or _is_reversal(payment, attempt):
        return None
    return DEADLINE_PASSED if is_expiry(payment, attempt) else CANCEL_CONFIRMED


def _too_late(
    payment: Payment,
    attempt: Attempt,
    now_ms: int,
    policy: Policy,
    trigger: str,
    actor: str | None,
    detail: str | None,
) -> Decision:
    """Book what happened, and begin to give it back: each attempt has one reversal."""
    amount_minor = amount_of(payment, attempt)
    charged = attempt.kind == CHARGE
    moves, reason = None, LATE_SUCCESS
    changes: dict[str, Any] = {}
    if trigger != LATE_SUCCESS_SEEN and payment.status in UNDECIDED:
        if payment.cancel_requested_by is not None:
            moves = CANCEL_CONFIRMED
        else:
            # Whoever ordered counts it as not paid by now; its timer would have ended it as well.
            asked = payment.status == REQUIRES_CUSTOMER_ACTION
            moves = DEADLINE_PASSED if asked else GIVEN_UP
            reason = CUSTOMER_ACTION_ENDS if asked else PAY_BEFORE_PASSED
            changes = {"next_action_url": None, "expires_at_ms": None}
    changed, event = stepped(
        payment,
        attempt,
        trigger,
        now_ms,
        moves=moves,
        reason=reason,
        actor=actor,
        detail=detail,
        authorized_minor=payment.authorized_minor + amount_minor,
        captured_minor=payment.captured_minor + (amount_minor if charged else 0),
        **changes,
    )
    reversal = _reversed(changed, attempt, now_ms, policy)
    if not charged:
        return followed(decision(changed, event), reversal)
    settlement = settlement_of(
        payment,
        SETTLED_CAPTURE,
        amount_minor,
        now_ms,
        # Not the attempt's own operation, of which another attempt may be settled.
        operation_id=_reversal_id(payment, attempt),
        gateway=attempt.gateway,
        reference=attempt.gateway_reference or "",
    )
    return followed(decision(changed, settlement, event), reversal)


def _reversed(
    payment: Payment,
    attempt: Attempt,
    now_ms: int,
    policy: Policy,
    amount_minor: int | None = None,
) -> Decision:
    """Begin to give back what the attempt moved, or a part of it."""
    kind = VOID if attempt.kind not in (CHARGE, CAPTURE) else REFUND
    parent = parent_of(payment, attempt) if attempt.kind == CAPTURE else attempt
    return begin_reversal(
        payment,
        kind,
        _reversal_id(payment, attempt),
        parent or attempt,
        amount_of(payment, attempt) if amount_minor is None else amount_minor,
        now_ms,
        policy,
    )


def declined(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """The gateway's final no: another gateway may say yes to what was its own trouble."""
    attempt = replace(
        attempt, gateway_reference=result.gateway_reference, code=result.code, uncertain_since_ms=0
    )
    reason = result.code or DECLINED
    chosen = _after_decline(payment, attempt, now_ms, policy)
    if chosen is not None:
        return moved_on(payment, attempt, chosen, DECLINE_SEEN, reason, now_ms, policy)
    made = _ended(payment, attempt, DECLINE_SEEN, reason, now_ms)
    return with_successor(made, attempt, now_ms, policy)


def _after_decline(payment: Payment, attempt: Attempt, now_ms: int, policy: Policy) -> Route | None:
    """Who gets a charge that was declined for the gateway's own reasons; None: it has failed.

    A decline proves that nothing moved. A copy in a frozen worker's hands can only be declined
    again, but for that the gateway must take a key once, and remember it for as long as the copy
    may be sent. A customer who was sent to one gateway's page is not sent to the next one's.
    """
    if (
        attempt.kind not in MAIN_KINDS
        or action_of(attempt.code) is not Action.OTHER_GATEWAY
        or payment.status not in (PROCESSING, OUTCOME_UNKNOWN)
        or payment.cancel_requested_by is not None
        or now_ms >= charge_deadline_ms(payment, attempt, policy)
    ):
        return None
    profile = gateway_profile(policy, attempt.gateway)
    sendable_until_ms = max(
        attempt.sendable_until_ms, now_ms + attempt.send_within_ms + policy.clock_skew_ms
    )
    if (
        not profile.idempotent
        or sendable_until_ms >= attempt.started_at_ms + profile.key_retention_ms
    ):
        return None
    chosen = next_gateway(payment, attempt, policy)
    if chosen is None or is_capped(payment, chosen.profile.name, now_ms, policy):
        return None
    return chosen


def next_gateway(payment: Payment, attempt: Attempt, policy: Policy) -> Route | None:
    """The gateway for the operation's next attempt, or None when all that could have it did."""
    tried = {e.gateway for e in payment.attempts if e.operation_id == attempt.operation_id}
    return route(policy, facts_of(payment, payment.payment_id, payment.retry_token), tried)


def moved_on(
    payment: Payment,
    attempt: Attempt,
    chosen: Route,
    trigger: str,
    reason: str,
    now_ms: int,
    policy: Policy,
) -> Decision:
    """End an attempt of which nothing moved or will, and begin the next one elsewhere."""
    step = attempt_step(attempt.kind, attempt.state, trigger)
    ended = replace(attempt, state=step.to, updated_at_ms=now_ms, uncertain_since_ms=0)
    started = first_try(
        attempt.operation_id,
        attempt.kind,
        chosen.profile.name,
        attempt.attempt + 1,
        policy.send_within_ms,
        now_ms,
        because=chosen.because,
    )
    started = with_instrument(payment, started)
    without = replace(payment, attempts=replaced(payment, ended))
    if needs_permit(payment, policy):
        return permit_asked(
            without,
            started,
            now_ms,
            policy,
            moves=known_by(payment, attempt),
            reason=reason,
            detail=chosen.because,
        )
    changed, event = begun(
        without,
        started,
        now_ms,
        event=FAILOVER_STARTED,
        moves=known_by(payment, attempt),
        reason=reason,
        detail=chosen.because,
    )
    # The operation's time goes on, whichever gateway has it.
    not_after_ms = charge_deadline_ms(changed, started, policy)
    request = replace(request_of(changed, started), not_after_ms=not_after_ms)
    return decision(changed, request, event)


def known_by(payment: Payment, attempt: Attempt) -> str | None:
    """The payment's trigger when the outcome of one of its attempts is unknown no more."""
    unknown = payment.status == OUTCOME_UNKNOWN and attempt.kind in MAIN_KINDS
    return BECAME_KNOWN if unknown else None


def gave_up(
    payment: Payment,
    attempt: Attempt,
    reason: str,
    now_ms: int,
    *,
    trigger: str = GIVE_UP,
    actor: str | None = None,
    detail: str | None = None,
) -> Decision:
    """Nothing more is tried, and nothing is known to have moved."""
    attempt = replace(attempt, uncertain_since_ms=0)
    return _ended(payment, attempt, trigger, reason, now_ms, actor=actor, detail=detail)


def _ended(
    payment: Payment,
    attempt: Attempt,
    trigger: str,
    reason: str,
    now_ms: int,
    *,
    actor: str | None = None,
    detail: str | None = None,
) -> Decision:
    moves = None
    if attempt.kind in MAIN_KINDS:
        if payment.status in UNDECIDED:
            if payment.cancel_requested_by is not None:
                moves = CANCEL_CONFIRMED
            else:
                moves = DECLINED_FINALLY if trigger == DECLINE_SEEN else GIVEN_UP
            changed, event = stepped(
                payment, attempt, trigger, now_ms, moves=moves, reason=reason, actor=actor,
                detail=detail, next_action_url=None, expires_at_ms=None,
            )  # fmt: skip
            return decision(changed, event)
    elif attempt.kind == VOID and payment.status == AUTHORIZED and is_expiry(payment, attempt):
        # Void or not, the hold is over by now: the gateway lets it lapse by itself.
        changed, event = stepped(
            payment, attempt, trigger, now_ms, moves=DEADLINE_PASSED, reason=reason, actor=actor,
            detail=detail, authorized_minor=payment.captured_minor,
        )  # fmt: skip
        return decision(changed, event)
    changed, event = stepped(
        payment, attempt, trigger, now_ms, reason=reason, actor=actor, detail=detail
    )
    return decision(changed, event)


def uncertain(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """It may have happened: ask until it is known."""
    reason = result.code or result.outcome
    attempt = replace(
        attempt,
        gateway_reference=result.gateway_reference or attempt.gateway_reference,
        code=reason,
        uncertain_since_ms=attempt.uncertain_since_ms or now_ms,
    )
    changed, event = stepped(
        payment,
        attempt,
        OUTCOME_UNCERTAIN,
        now_ms,
        moves=_unknown(payment, attempt),
        reason=reason,
    )
    return decision(changed, waiting(changed, attempt, reason, policy, now_ms), event)


def inquire(payment: Payment, attempt: Attempt, trigger: str, now_ms: int) -> Decision:
    """Ask the gateway what became of an attempt."""
    attempt = replace(attempt, tries=attempt.tries + 1, inquiries=attempt.inquiries + 1)
    main = attempt.kind in MAIN_KINDS and payment.status in UNDECIDED
    reason = payment.reason if main else attempt.code
    changed, event = stepped(payment, attempt, trigger, now_ms, reason=reason)
    return decision(changed, request_of(changed, attempt, INQUIRE), event)


def exhausted(payment: Payment, attempt: Attempt, reason: str, now_ms: int) -> Decision:
    """The gateway was asked as often as policy allows: a person must look."""
    changed, event = stepped(
        payment,
        attempt,
        INQUIRIES_EXHAUSTED,
        now_ms,
        moves=_unknown(payment, attempt),
        reason=reason,
    )
    return decision(changed, event)


def pending(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """The gateway has it and is not done; maybe the customer has something to do first."""
    asks = (
        result.code == CUSTOMER_ACTION_REQUIRED
        and attempt.kind in MAIN_KINDS
        and payment.status in UNDECIDED
    )
    attempt = replace(
        attempt,
        gateway_reference=result.gateway_reference or attempt.gateway_reference,
        code=CUSTOMER_ACTION_REQUIRED if asks else PENDING_CODE,
        uncertain_since_ms=0,
    )
    if asks and payment.cancel_requested_by is not None:
        changed, event = stepped(
            payment, attempt, PENDING_SEEN, now_ms, moves=CANCEL_CONFIRMED, reason=result.code
        )
        return decision(changed, waiting(changed, attempt, result.code, policy, now_ms), event)
    if asks and payment.status != REQUIRES_CUSTOMER_ACTION:
        expires_at_ms = now_ms + policy.customer_action_ms
        if payment.pay_before_ms is not None:
            expires_at_ms = min(expires_at_ms, payment.pay_before_ms)
        changed, event = stepped(
            payment,
            attempt,
            PENDING_SEEN,
            now_ms,
            moves=ACTION_ASKED,
            reason=result.code,
            next_action_url=result.next_action_url,
            expires_at_ms=expires_at_ms,
        )
        timer = timer_of(changed, expires_at_ms, CUSTOMER_ACTION_ENDS, policy, now_ms)
        wait = waiting(changed, attempt, result.code, policy, now_ms)
        return decision(changed, timer, wait, event)
    changes: dict[str, Any] = {}
    moves = known_by(payment, attempt)
    if asks:
        # Still asked; a notice does not carry the address, the answer or an inquiry does.
        changes["next_action_url"] = result.next_action_url or payment.next_action_url
    elif attempt.kind in MAIN_KINDS and payment.status in UNDECIDED:
        # The customer has acted, or nobody asks any more: no timer may end what goes on.
        changes = {"next_action_url": None, "expires_at_ms": None}
        if payment.status == REQUIRES_CUSTOMER_ACTION:
            moves = ACTION_TAKEN
    changed, event = stepped(
        payment,
        attempt,
        PENDING_SEEN,
        now_ms,
        moves=moves,
        reason=result.code or PENDING,
        **changes,
    )
    return decision(changed, waiting(changed, attempt, result.code, policy, now_ms), event)


def tells_return(attempt: Attempt, result: GatewayResult) -> bool:
    """Whether a gateway says of a refund that it was made and came back."""
    return attempt.kind == REFUND and (result.outcome, result.code) == (DECLINED, RETURNED)


def came_back(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """A refund failed after it had succeeded, or before we heard that it had.

    It is kept also where the refund has ended without success: one that shows afterwards is older.
    """
    if attempt.state in (DECLINED, ATTEMPT_FAILED) and attempt.code in _CAME_BACK:
        return _STALE_RESULT
    never_sent = not attempt.tries
    if never_sent or attempt.state == CONTRADICTED or result.currency != payment.currency:
        return contradictory(payment, result, now_ms)
    reason = result.code or FAILED_LATER
    had_moved = has_succeeded(attempt.state)
    attempt = replace(attempt, code=FAILED_LATER, uncertain_since_ms=0)
    refunded = payment.refunded_minor - (attempt.amount_minor if had_moved else 0)
    changed, event = stepped(
        payment, attempt, FAILURE_SEEN, now_ms, reason=reason, refunded_minor=refunded
    )
    made = decision(changed, event)
    if had_moved:
        settlement = _settled(payment, attempt, SETTLED_REFUND_FAILED, attempt.amount_minor, now_ms)
        made = decision(changed, settlement, event)
    return with_newly_owed(payment, made, now_ms, policy)


def late_evidence(
    payment: Payment, attempt: Attempt, result: GatewayResult, now_ms: int, policy: Policy
) -> Decision:
    """A success that nobody waited for: taken, already known, given back, or contradictory.

    What was never sent, since it got no permit or waits for a dispute's end, cannot have succeeded.
    """
    reference = result.gateway_reference
    if reference and attempt.tries:
        if attempt.state in OPEN_STATES:
            return succeeded(payment, attempt, result, reference, now_ms, policy)
        if has_succeeded(attempt.state):
            if (
                reference == attempt.gateway_reference
                and result.amount_minor == amount_of(payment, attempt)
                and result.currency == payment.currency
            ):
                return _STALE_RESULT
        elif attempt.state in (DECLINED, ATTEMPT_FAILED):
            if attempt.code in _CAME_BACK:
                return _STALE_RESULT
            return succeeded(
                payment, attempt, result, reference, now_ms, policy, trigger=LATE_SUCCESS_SEEN
            )
    return contradictory(payment, result, now_ms)


def contradicted(
    payment: Payment, attempt: Attempt, cause: str, detail: str, now_ms: int
) -> Decision:
    """Stop the attempt until a person has looked, and keep the evidence whole."""
    changed, event = stepped(
        payment,
        attempt,
        CONTRADICTION_SEEN,
        now_ms,
        moves=_unknown(payment, attempt),
        reason=cause,
        detail=detail,
        dead_letters=payment.dead_letters + 1,
    )
    return Decision(payment=changed, sends=(event,), dead_letter=cause, detail=detail)


def contradictory(
    payment: Payment, result: GatewayResult, now_ms: int, more: str | None = None
) -> Decision:
    """Evidence that cannot be true together with what is known; nothing changes by it."""
    detail = (
        f"{result.gateway} says {result.outcome} for attempt {result.attempt}, try "
        f"{result.try_number} (reference {result.gateway_reference}), but payment "
        f"{payment.payment_id} is {payment.status}"
    )
    return dead_lettered(
        payment,
        CONTRADICTORY_EVIDENCE,
        detail if more is None else f"{detail}; {more}",
        now_ms,
        event=CONTRADICTORY_EVIDENCE,
    )


def with_loss(before: Payment, made: Decision, now_ms: int) -> Decision:
    """The decision, and the event of what it loses: more given back than was ever captured."""
    after = made.payment
    if after is None or not after.charged_back_minor:
        return made
    loss_minor = _loss(after)
    if loss_minor <= max(0, _loss(before)):
        return made
    detail = (
        f"{after.refunded_minor} refunded and {after.charged_back_minor} charged back of "
        f"{after.captured_minor} captured"
    )
    changed, event = told(after, LOSS_POSTED, now_ms, operation_minor=loss_minor, detail=detail)
    return followed(made, decision(changed, event))


def _loss(payment: Payment) -> int:
    return payment.refunded_minor + payment.charged_back_minor - payment.captured_minor


def is_expiry(payment: Payment, attempt: Attempt) -> bool:
    """Whether this void ends an authorization at its time."""
    return any(
        each.kind in MAIN_KINDS and is_expiry_of(payment, attempt, each)
        for each in payment.attempts
    )


def _is_reversal(payment: Payment, attempt: Attempt) -> bool:
    return any(is_reversal_of(payment, attempt, each) for each in payment.attempts)


def _reversal_id(payment: Payment, attempt: Attempt) -> str:
    return reversal_operation_id(payment.order_id, attempt.operation_id, attempt.attempt)


def waiting(
    payment: Payment,
    attempt: Attempt,
    reason: str | None,
    policy: Policy,
    now_ms: int,
    retry_after_ms: int | None = None,
) -> Outgoing:
    """The wait of an attempt that has just been changed in ``payment``."""
    found = find_attempt(payment, attempt.operation_id, attempt.attempt)
    if found is None:
        raise InvariantBroken("a wait is of an attempt of the payment")
    return wait_of(payment, found, reason, policy, now_ms, retry_after_ms)


def _unknown(payment: Payment, attempt: Attempt) -> str | None:
    """The payment's trigger when the outcome of one of its attempts became unknown."""
    if attempt.kind in MAIN_KINDS and payment.status in UNDECIDED:
        return None if payment.status == OUTCOME_UNKNOWN else BECAME_UNKNOWN
    return None


def _settled(
    payment: Payment, attempt: Attempt, kind: str, amount_minor: int, now_ms: int
) -> Outgoing:
    return settlement_of(
        payment,
        kind,
        amount_minor,
        now_ms,
        operation_id=attempt.operation_id,
        gateway=attempt.gateway,
        reference=attempt.gateway_reference or "",
        business_date=attempt.business_date,
    )

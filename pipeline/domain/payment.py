"""Building blocks of a decision: the next snapshot with its event, a request, a wait, a settlement.

Every change of a payment is one step: its sequence rises by one and exactly one event tells of
it, so the two never drift apart. One input may lead to several steps.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from pipeline.domain.decision import Decision, Outgoing
from pipeline.domain.health import NOT_CALLED_CODES
from pipeline.domain.ids import event_id, idempotency_key, settlement_id
from pipeline.domain.invariant import InvariantBroken, invariant
from pipeline.domain.lifecycle import (
    ATTEMPT_FAILED,
    AUTHORIZE,
    BEGIN,
    BUSY_STATES,
    CAPTURE,
    CHARGE,
    DECLINED,
    INPUT_DEAD_LETTERED,
    MAIN_KINDS,
    OUTCOME_UNKNOWN,
    PENDING,
    PERMIT_ASKED,
    PROCESSING,
    REFUND,
    REQUIRES_CUSTOMER_ACTION,
    RETRY_WAITING,
    STANDING_EVENTS,
    STARTED,
    VOID,
    attempt_step,
    has_succeeded,
    payment_step,
)
from pipeline.domain.model import (
    Attempt,
    Payment,
    PaymentDue,
    PaymentEvent,
    PaymentRequest,
    Settlement,
)
from pipeline.domain.own_operations import is_expiry_of, is_reversal_of
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.routing import profile_of
from pipeline.domain.tiers import (
    inquiry_tier,
    jittered,
    retry_tier,
    tier_not_longer,
    tier_not_shorter,
)
from pipeline.domain.validation import TEXT_LENGTH_MAX

INQUIRE: Final = "inquire"

# Capture methods.
AUTOMATIC: Final = "automatic"
MANUAL: Final = "manual"

# Purposes of a wait.
RETRY: Final = "retry"
INQUIRY: Final = "inquiry"
TIMER: Final = "timer"

# Statuses in which the charge or authorization is still to come to its outcome.
UNDECIDED: Final = frozenset({PROCESSING, OUTCOME_UNKNOWN, REQUIRES_CUSTOMER_ACTION})

# More operations than a payment sees in years, few enough that its snapshot stays small. Each of 64
# may come too late and be given back once, by one operation more.
ATTEMPTS_MAX: Final = 128
# Commands may begin so many; of the others 24 are left for failovers and voids, the rest for what
# gives back.
COMMANDED_ATTEMPTS_MAX: Final = 40

# Codes of an attempt whose gateway said that it has it and is not done.
PENDING_CODE: Final = "pending"
CUSTOMER_ACTION_REQUIRED: Final = "customer_action_required"
# It said so to a question that nobody waited for any more, and nothing newer is known.
HEARD_PENDING: Final = "heard_pending"
PENDING_CODES: Final = frozenset({PENDING_CODE, CUSTOMER_ACTION_REQUIRED, HEARD_PENDING})


def stepped(
    payment: Payment,
    attempt: Attempt,
    trigger: str,
    now_ms: int,
    *,
    moves: str | None = None,
    reason: str | None = None,
    detail: str | None = None,
    actor: str | None = None,
    event: str | None = None,
    **changes: Any,
) -> tuple[Payment, PaymentEvent]:
    """The payment after a trigger about one of its attempts, and the event of it.

    ``attempt`` is one of the payment's with all but its state and time as they shall be;
    ``moves`` is the payment's own trigger where its status changes as well; ``event`` where it is
    not the step's own.
    """
    step = attempt_step(attempt.kind, attempt.state, trigger)
    attempt = replace(attempt, state=step.to, updated_at_ms=now_ms)
    return _changed(
        payment,
        replaced(payment, attempt),
        attempt,
        event or step.event,
        now_ms,
        moves,
        reason,
        detail,
        actor,
        changes,
    )


def begun(
    payment: Payment,
    attempt: Attempt,
    now_ms: int,
    *,
    event: str | None = None,
    moves: str | None = None,
    reason: str | None = None,
    detail: str | None = None,
    actor: str | None = None,
    trigger: str = BEGIN,
    **changes: Any,
) -> tuple[Payment, PaymentEvent]:
    """The payment with one more attempt, and the event of it; ``event`` where it has its own."""
    invariant(len(payment.attempts) < ATTEMPTS_MAX, "more attempts than a payment may have")
    attempts = (*payment.attempts, attempt)
    step = attempt_step(attempt.kind, "", trigger)
    invariant(attempt.state == step.to, "an attempt begins with its first request or its permit")
    told = event or step.event
    return _changed(payment, attempts, attempt, told, now_ms, moves, reason, detail, actor, changes)


def _changed(
    payment: Payment,
    attempts: tuple[Attempt, ...],
    attempt: Attempt,
    event: str | None,
    now_ms: int,
    moves: str | None,
    reason: str | None,
    detail: str | None,
    actor: str | None,
    changes: dict[str, Any],
) -> tuple[Payment, PaymentEvent]:
    status = payment.status
    kept = status not in UNDECIDED or attempt.kind not in MAIN_KINDS
    if moves is not None:
        step = payment_step(status, moves)
        # Asking for a permit moves the payment as the charge would, and is told for what it is.
        told_by = event if event == PERMIT_ASKED else step.event or event
        status, event = step.to, told_by
        kept = False
    if event is None:
        raise InvariantBroken("a change without an event")
    changed = replace(
        payment,
        sequence=payment.sequence + 1,
        status=status,
        reason=payment.reason if kept else reason,
        updated_at_ms=now_ms,
        attempts=attempts,
        **changes,
    )
    if changes:
        check_amounts(changed)
    return changed, event_of(changed, event, reason, attempt=attempt, detail=detail, actor=actor)


def check_amounts(payment: Payment) -> None:
    """What was refunded was captured, and what was captured was authorized (which is 0 in snapshots
    of before it was counted), but for what a gateway took beyond that."""
    captured_minor = payment.captured_minor
    authorized_minor = payment.authorized_minor or captured_minor
    if captured_minor > authorized_minor:
        captured_minor -= overcaptured_minor(payment)
    invariant(
        0 <= payment.refunded_minor <= payment.captured_minor
        and captured_minor <= authorized_minor,
        "refunded <= captured <= authorized must hold",
    )


def overcaptured_minor(payment: Payment) -> int:
    """What gateways captured beyond their authorizations: one capture was late, its successor too
    much."""
    over_minor = 0
    for main in payment.attempts:
        if main.kind == AUTHORIZE and has_succeeded(main.state):
            taken_minor = sum(
                amount_of(payment, each)
                for each in payment.attempts
                if each.kind == CAPTURE
                and has_succeeded(each.state)
                and parent_of(payment, each) is main
            )
            over_minor += max(0, taken_minor - amount_of(payment, main))
    return over_minor


def moved(
    payment: Payment,
    trigger: str,
    now_ms: int,
    *,
    reason: str | None = None,
    detail: str | None = None,
    actor: str | None = None,
    operation_id: str | None = None,
    **changes: Any,
) -> tuple[Payment, PaymentEvent]:
    """The payment after a trigger of its own, no attempt concerned."""
    step = payment_step(payment.status, trigger)
    changed = replace(
        payment,
        sequence=payment.sequence + 1,
        status=step.to,
        reason=reason,
        updated_at_ms=now_ms,
        **changes,
    )
    if step.event is None:
        raise InvariantBroken(f"{trigger} needs an attempt that tells of it")
    return changed, event_of(
        changed, step.event, reason, detail=detail, actor=actor, operation_id=operation_id
    )


def told(
    payment: Payment,
    event: str,
    now_ms: int,
    *,
    reason: str | None = None,
    detail: str | None = None,
    actor: str | None = None,
    operation_id: str | None = None,
    operation_minor: int | None = None,
    attempt: Attempt | None = None,
    **changes: Any,
) -> tuple[Payment, PaymentEvent]:
    """The payment after something that leaves its status and attempts as they are."""
    invariant(event in STANDING_EVENTS, f"{event} must not leave a payment where it stands")
    changed = replace(payment, sequence=payment.sequence + 1, updated_at_ms=now_ms, **changes)
    return changed, event_of(
        changed,
        event,
        reason,
        attempt=attempt,
        detail=detail,
        actor=actor,
        operation_id=operation_id,
        operation_minor=operation_minor,
    )


def dead_lettered(
    payment: Payment,
    cause: str,
    detail: str,
    now_ms: int,
    *,
    event: str = INPUT_DEAD_LETTERED,
    reason: str | None = None,
    conflicts: int = 0,
) -> Decision:
    """Refuse an input whole, and let the payment it belongs to say so; nothing else changes."""
    changed, sent = told(
        payment,
        event,
        now_ms,
        reason=reason or cause,
        attempt=payment.attempts[-1] if payment.attempts else None,
        conflicts=payment.conflicts + conflicts,
        dead_letters=payment.dead_letters + 1,
    )
    return Decision(payment=changed, sends=(sent,), dead_letter=cause, detail=detail)


def event_of(
    payment: Payment,
    event: str,
    reason: str | None,
    *,
    attempt: Attempt | None = None,
    detail: str | None = None,
    actor: str | None = None,
    operation_id: str | None = None,
    operation_minor: int | None = None,
) -> PaymentEvent:
    """The event of the payment's newest transition, with the attempt that it is about."""
    if attempt is not None:
        operation_id = attempt.operation_id
        operation_minor = attempt.amount_minor or payment.amount_minor
    return PaymentEvent(
        event_id=event_id(payment.payment_id, payment.sequence),
        merchant_id=payment.merchant_id,
        order_id=payment.order_id,
        payment_id=payment.payment_id,
        sequence=payment.sequence,
        type=event,
        status=payment.status,
        reason=reason,
        amount_minor=payment.amount_minor,
        currency=payment.currency,
        gateway=None if attempt is None else attempt.gateway,
        attempt=None if attempt is None else attempt.attempt,
        occurred_at_ms=payment.updated_at_ms,
        operation_id=operation_id,
        kind=None if attempt is None else attempt.kind,
        operation_minor=operation_minor,
        detail=detail,
        actor=actor,
    )


def request_of(payment: Payment, attempt: Attempt, kind: str | None = None) -> PaymentRequest:
    """The request for an attempt's current try; ``kind`` only for an inquiry."""
    main = attempt.kind in MAIN_KINDS
    parent = None if main else parent_of(payment, attempt)
    return PaymentRequest(
        merchant_id=payment.merchant_id,
        order_id=payment.order_id,
        payment_id=payment.payment_id,
        operation_id=attempt.operation_id,
        kind=kind or attempt.kind,
        gateway=attempt.gateway,
        amount_minor=attempt.amount_minor or payment.amount_minor,
        currency=payment.currency,
        instrument_token=payment.retry_token or payment.instrument_token,
        idempotency_key=idempotency_key(
            payment.payment_id, attempt.operation_id, attempt.gateway, attempt.attempt
        ),
        attempt=attempt.attempt,
        try_number=attempt.tries,
        send_within_ms=attempt.send_within_ms,
        ordered_at_ms=payment.ordered_at_ms,
        pay_before_ms=payment.pay_before_ms if main else None,
        operation_kind=attempt.kind,
        parent_reference=None if parent is None else parent.gateway_reference,
        country=payment.country,
        attempt_started_at_ms=attempt.started_at_ms,
    )


def wait_of(
    payment: Payment,
    attempt: Attempt,
    reason: str | None,
    policy: Policy,
    now_ms: int,
    retry_after_ms: int | None = None,
) -> PaymentDue:
    """The wait that an attempt's state asks for, in the tier that its tries ask for; some retries
    wait in the next longer one (``jittered``).

    A gateway's ``retry_after_ms`` is obeyed up to the time from which on no charge is sent. What
    was not even asked counts as no inquiry, and waits longer each time all the same: the many who
    ask a gateway that is away would take the room of those whose gateway is there.
    """
    retry = attempt.state == RETRY_WAITING
    if retry and is_reversal(attempt) and attempt.tries - attempt.inquiries > policy.retry_max:
        long_ms = max(_reversal_wait_ms(attempt, policy), retry_after_ms or 0)
        # Not beyond the time at which its gateway is asked for proof.
        left_ms = attempt.started_at_ms + patience_ms(attempt, policy) - now_ms
        long_ms = min(long_ms, max(0, left_ms))
        return attempt_timer(payment, attempt, reason, now_ms + long_ms, policy, now_ms)
    due_at_ms = None
    purpose = RETRY if retry else INQUIRY
    if retry:
        deadline_ms = charge_deadline_ms(payment, attempt, policy)
        if retry_after_ms is not None and retry_after_ms > 0:
            due_at_ms = min(now_ms + retry_after_ms, deadline_ms)
            retry_after_ms = max(0, due_at_ms - now_ms)
        delays_ms = policy.retry_delays_ms
        tier = retry_tier(delays_ms, attempt.tries - attempt.inquiries, retry_after_ms)
        mark = f"{payment.payment_id}:{attempt.operation_id}:{attempt.attempt}:{attempt.tries}"
        tier = jittered(delays_ms, tier, mark, deadline_ms - now_ms)
    elif attempt.inquiries >= policy.inquiry_max and (
        attempt.code in PENDING_CODES or is_reversal(attempt)
    ):
        return check_of(payment, attempt, reason, policy, now_ms)
    else:
        delays_ms = policy.inquiry_delays_ms
        asked = attempt.tries if reason in NOT_CALLED_CODES else attempt.inquiries
        tier = inquiry_tier(delays_ms, asked)
        if retry_after_ms is not None:
            tier = max(tier, tier_not_shorter(delays_ms, retry_after_ms))
    return PaymentDue(
        merchant_id=payment.merchant_id,
        order_id=payment.order_id,
        payment_id=payment.payment_id,
        operation_id=attempt.operation_id,
        attempt=attempt.attempt,
        try_number=attempt.tries,
        purpose=purpose,
        reason=reason,
        due_at_ms=due_at_ms,
        tier=tier,
    )


def check_of(
    payment: Payment, attempt: Attempt, reason: str | None, policy: Policy, now_ms: int
) -> PaymentDue:
    """The wait of an attempt that may take long: asked about every hour by default."""
    return attempt_timer(payment, attempt, reason, now_ms + policy.pending_check_ms, policy, now_ms)


def attempt_timer(
    payment: Payment,
    attempt: Attempt,
    reason: str | None,
    due_at_ms: int,
    policy: Policy,
    now_ms: int,
) -> PaymentDue:
    """A wait of one attempt until a time, passed on from tier to tier."""
    return PaymentDue(
        merchant_id=payment.merchant_id,
        order_id=payment.order_id,
        payment_id=payment.payment_id,
        operation_id=attempt.operation_id,
        attempt=attempt.attempt,
        try_number=attempt.tries,
        purpose=TIMER,
        reason=reason,
        due_at_ms=due_at_ms,
        tier=tier_not_longer(policy.timer_delays_ms, due_at_ms - now_ms),
    )


def patience_ms(reversal: Attempt, policy: Policy) -> int:
    """For how long one reversal is sent again under its key: so long that its gateway can still be
    asked for proof that it was never made, before it forgets the key."""
    retention_ms = gateway_profile(policy, reversal.gateway).key_retention_ms
    return min(policy.stale_after_ms, retention_ms // 2)


def _reversal_wait_ms(attempt: Attempt, policy: Policy) -> int:
    """How long what is owed back waits once the tiers of retries are used up: twice as long each
    time, up to an hour by default, and never for much of the time that its key is known."""
    more = attempt.tries - attempt.inquiries - policy.retry_max
    doubled_ms = policy.retry_delays_ms[-1] << min(more, 16)
    retention_ms = gateway_profile(policy, attempt.gateway).key_retention_ms
    return min(doubled_ms, policy.pending_check_ms, retention_ms // 4)


def timer_of(
    payment: Payment, due_at_ms: int, reason: str, policy: Policy, now_ms: int
) -> PaymentDue:
    """A wait of the payment itself until a time: in the longest tier that ends before it, passed
    on until then."""
    return PaymentDue(
        merchant_id=payment.merchant_id,
        order_id=payment.order_id,
        payment_id=payment.payment_id,
        operation_id=payment.order_id,
        attempt=0,
        try_number=0,
        purpose=TIMER,
        reason=reason,
        due_at_ms=due_at_ms,
        tier=tier_not_longer(policy.timer_delays_ms, due_at_ms - now_ms),
    )


def settlement_of(
    payment: Payment,
    kind: str,
    amount_minor: int,
    now_ms: int,
    *,
    operation_id: str,
    gateway: str,
    reference: str,
    business_date: str | None = None,
) -> Settlement:
    """A money movement of the payment; ``amount_minor`` is signed, positive to the merchant."""
    return Settlement(
        settlement_id=settlement_id(payment.payment_id, operation_id, kind),
        merchant_id=payment.merchant_id,
        order_id=payment.order_id,
        payment_id=payment.payment_id,
        operation_id=operation_id,
        kind=kind,
        amount_minor=amount_minor,
        currency=payment.currency,
        gateway=gateway,
        gateway_reference=reference,
        business_date=business_date or payment.business_date,
        ordered_at_ms=payment.ordered_at_ms,
        settled_at_ms=now_ms,
        payment_method=payment.payment_method,
    )


def first_try(
    operation_id: str,
    kind: str,
    gateway: str,
    number: int,
    send_within: int,
    now: int,
    *,
    amount_minor: int = 0,
    business_date: str | None = None,
    because: str | None = None,
    parent: Attempt | None = None,
) -> Attempt:
    """A new attempt whose first request is on its way; an amount of 0 is the payment's whole.

    ``parent``: the charge or authorization that it is about.
    """
    return Attempt(
        operation_id=operation_id,
        kind=kind,
        gateway=gateway,
        attempt=number,
        state=STARTED,
        tries=1,
        retries=0,
        inquiries=0,
        started_at_ms=now,
        updated_at_ms=now,
        send_within_ms=send_within,
        amount_minor=amount_minor,
        business_date=business_date,
        routed_because=because and because[:TEXT_LENGTH_MAX],
        parent_operation_id=None if parent is None else parent.operation_id,
        parent_attempt=0 if parent is None else parent.attempt,
    )


def is_reversal(attempt: Attempt) -> bool:
    """Whether the operation gives back what came too late; no command may be named so."""
    return attempt.kind in (VOID, REFUND) and attempt.operation_id.startswith("late-")


def main_kind(payment: Payment) -> str:
    """How this payment's money is asked for."""
    return CHARGE if payment.capture_method == AUTOMATIC else AUTHORIZE


def find_attempt(
    payment: Payment, operation_id: str | None, number: int | None, gateway: str | None = None
) -> Attempt | None:
    """An attempt by what names it; the latest ones are looked at first."""
    for attempt in reversed(payment.attempts):
        if (
            attempt.attempt == number
            and attempt.operation_id == operation_id
            and (gateway is None or attempt.gateway == gateway)
        ):
            return attempt
    return None


def replaced(payment: Payment, attempt: Attempt) -> tuple[Attempt, ...]:
    """The payment's attempts with this one in the place of its former self."""
    attempts = payment.attempts
    latest = attempts[-1]
    if latest.attempt == attempt.attempt and latest.operation_id == attempt.operation_id:
        return (*attempts[:-1], attempt)
    for at in range(len(attempts) - 1, -1, -1):
        each = attempts[at]
        if each.attempt == attempt.attempt and each.operation_id == attempt.operation_id:
            return (*attempts[:at], attempt, *attempts[at + 1 :])
    raise InvariantBroken("only an attempt of the payment can change")


def is_uncertain(payment: Payment, attempt: Attempt) -> bool:
    """Whether the attempt may have moved money without our knowing.

    Snapshots of before attempts said so themselves say it by the payment's status.
    """
    return attempt.uncertain_since_ms > 0 or (
        payment.status == OUTCOME_UNKNOWN
        and attempt.kind in MAIN_KINDS
        and attempt.state not in (DECLINED, ATTEMPT_FAILED)
    )


def in_flight(payment: Payment) -> bool:
    """Whether something is under way that commands must wait for."""
    if payment.risk_awaited:
        return True
    for attempt in payment.attempts:
        if (
            attempt.state in BUSY_STATES
            # A refund or capture that the gateway has, but is not done with, may take days, and so
            # may what waits to go back to a gateway that is away.
            and not (attempt.kind not in MAIN_KINDS and attempt.code in PENDING_CODES)
            and not (attempt.state == RETRY_WAITING and is_reversal(attempt))
        ):
            return True
        if attempt.state == PENDING and attempt.kind in MAIN_KINDS and payment.status in UNDECIDED:
            return True
    return False


def standing_main(payment: Payment) -> Attempt | None:
    """The newest charge or authorization that stands: succeeded, and not given back as late."""
    for attempt in reversed(payment.attempts):
        if (
            attempt.kind in MAIN_KINDS
            and has_succeeded(attempt.state)
            and not _is_given_back(payment, attempt)
        ):
            return attempt
    return None


def parent_of(payment: Payment, attempt: Attempt) -> Attempt | None:
    """The charge or authorization that a capture, void or refund is about."""
    if attempt.parent_operation_id is not None:
        return find_attempt(payment, attempt.parent_operation_id, attempt.parent_attempt)
    # Of before it was kept: as it was decided then.
    charges = [each for each in reversed(payment.attempts) if each.kind in MAIN_KINDS]
    for each in charges:
        if is_reversal_of(payment, attempt, each) or is_expiry_of(payment, attempt, each):
            return each
    made = [
        each
        for each in charges
        if has_succeeded(each.state) and each.started_at_ms <= attempt.started_at_ms
    ]
    standing = (each for each in made if not _is_given_back(payment, each))
    return next(standing, made[0] if made else None)


def _is_given_back(payment: Payment, charge: Attempt) -> bool:
    """Whether giving it back was begun because it came too late."""
    return any(is_reversal_of(payment, each, charge) for each in payment.attempts)


def amount_of(payment: Payment, attempt: Attempt) -> int:
    """What the attempt is to move."""
    return attempt.amount_minor or payment.amount_minor


def reserved_minor(payment: Payment, kind: str) -> int:
    """What operations of this kind may still move: begun, and neither succeeded nor failed."""
    return sum(
        amount_of(payment, each)
        for each in payment.attempts
        if each.kind == kind and not has_succeeded(each.state) and is_unfinished(each)
    )


def is_unfinished(attempt: Attempt) -> bool:
    """Whether the attempt's outcome is still to come, by a gateway or by a person."""
    return attempt.state not in (DECLINED, ATTEMPT_FAILED) and not has_succeeded(attempt.state)


def refundable_minor(payment: Payment) -> int:
    """What a refund may still take: captured, less the refunds that did not fail."""
    return payment.captured_minor - payment.refunded_minor - reserved_minor(payment, REFUND)


def charge_deadline_ms(payment: Payment, attempt: Attempt, policy: Policy) -> int:
    """From this time on no charge of this operation is started: the order's limit, or its age.

    Other operations have no deadline but the gateway's memory of their key.
    """
    begun_ms = attempt.started_at_ms
    if attempt.attempt > 1:
        # Of one that was never made, since it got no permit, nothing is counted.
        same = [e for e in payment.attempts if e.operation_id == attempt.operation_id and e.tries]
        begun_ms = min([begun_ms, *(each.started_at_ms for each in same)])
    oldest = begun_ms + policy.stale_after_ms
    if payment.pay_before_ms is None or attempt.kind not in MAIN_KINDS:
        return oldest
    return min(oldest, payment.pay_before_ms)


def sendable_until_ms(attempt: Attempt, policy: Policy) -> int:
    """Until when somebody may still send the attempt's latest request, as far as is known.

    While that request is not answered nothing is known: its append time may be any time later than
    the decision to send it. What is older than any charge may be is then taken for over, for
    snapshots whose answer had come before it was kept.
    """
    return attempt.sendable_until_ms or attempt.updated_at_ms + policy.stale_after_ms


def gateway_profile(policy: Policy, gateway: str) -> GatewayProfile:
    """A gateway's profile. One that the policy does not have may forget keys at once, or take none:
    what it says it has done is believed, but nothing proves what it will not do, and nothing is
    sent there again."""
    return profile_of(policy, gateway) or GatewayProfile(
        name=gateway, key_retention_ms=0, idempotent=False
    )


def decision(payment: Payment, *sends: Outgoing) -> Decision:
    """A change with its consequences; by custom the event comes last."""
    return Decision(payment=payment, sends=sends)


def followed(first: Decision, then: Decision) -> Decision:
    """Two decisions of one input as one: the second was made from the first one's payment."""
    if then.payment is None and not then.sends:
        return first
    return replace(first, payment=then.payment or first.payment, sends=first.sends + then.sends)

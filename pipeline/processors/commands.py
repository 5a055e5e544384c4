"""The command processor: requests to change a payment, each taken once, in order.

A command that cannot run yet, because an operation is under way or its order has not come, waits in
the payment and runs in the decision that ends what it waited for. Two do not wait: a cancel, which
bars sending at once, also by a retry that waits, and a person's resolution of an unknown outcome.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain import commands as rules
from pipeline.domain.answer import SUCCEEDED
from pipeline.domain.attempt_caps import ATTEMPTS_MUST_NOT_EXCEED_CAP
from pipeline.domain.card_numbers import mask_card_number_start
from pipeline.domain.charges import refund_target, refundable_of_minor
from pipeline.domain.command_memory import is_another, is_remembered, remembering
from pipeline.domain.decision import Decision
from pipeline.domain.ids import payment_id
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.lifecycle import (
    AUTHORIZED,
    AWAITING_ORDER,
    CANCEL_CONFIRMED,
    CANCEL_REQUESTED,
    CAPTURE,
    COMMAND_CAME_FIRST,
    COMMAND_REJECTED,
    COMMAND_WAITING,
    CREDIT_BOOKED,
    DEADLINE_PASSED,
    INQUIRY_EXHAUSTED,
    NEW,
    PAYMENT_RETRIED,
    PAYMENT_STARTED,
    PERMIT_WAITING,
    REFUND,
    REQUIRES_CUSTOMER_ACTION,
    RESOLVED_DONE,
    RESOLVED_NOT_DONE,
    RETRY_ASKED,
    REVIEW_APPROVED,
    REVIEW_DENIED,
    RISK_REVIEW,
    VOID,
)
from pipeline.domain.model import Attempt, GatewayResult, Payment, PaymentCommand, PaymentDue
from pipeline.domain.payment import (
    UNDECIDED,
    amount_of,
    begun,
    decision,
    first_try,
    followed,
    gateway_profile,
    in_flight,
    main_kind,
    moved,
    request_of,
    sendable_until_ms,
    settlement_of,
    standing_main,
    timer_of,
    told,
)
from pipeline.domain.policy import Policy
from pipeline.domain.recorded_refunds import choices as recordable_choices
from pipeline.domain.recorded_refunds import recorded_for
from pipeline.domain.references import RESOLVED_CHARGED
from pipeline.domain.reversals import FAILED_LATER
from pipeline.domain.risk import REJECT, REVIEW, Assessment
from pipeline.domain.routing import facts_of, route
from pipeline.domain.unasked_charges import NO_MERCHANT
from pipeline.domain.validation import CURRENCY_MUST_BE_SUPPORTED
from pipeline.processors.acknowledgements import acknowledge
from pipeline.processors.decided import audited
from pipeline.processors.disputes import resolve_dispute
from pipeline.processors.door import card_number_refused
from pipeline.processors.failures import gave_up
from pipeline.processors.late_evidence import returned
from pipeline.processors.operations import begin_operation
from pipeline.processors.permits import is_capped, needs_permit, permit_asked, with_instrument
from pipeline.processors.recorded_refunds import record_refund
from pipeline.processors.refused_evidence import judged_anew
from pipeline.processors.retries import (
    REVIEW_ENDS,
    assess_retry,
    assessed_retry,
    hold_retry,
    retry_unassessed,
    review_ended,
    without_retry,
)
from pipeline.processors.reversals import give_back, with_successor
from pipeline.processors.successes import succeeded
from pipeline.processors.unasked_charges import refund_unasked

INVALID_IDS: Final = "invalid_ids"
UNASKED_CHARGE_REFUSED: Final = "unasked_charge_refused"
DUPLICATE_COMMAND: Final = "duplicate_command"

# Kind of an unlinked credit's settlement, and the gateway it names: none.
SETTLED_CREDIT: Final = "credit"
NO_GATEWAY: Final = "none"

# Reasons.
ORDER_MUST_ARRIVE: Final = "order_must_arrive"
RISK_REVIEW_DENIED: Final = "risk_review_denied"
RESOLVED_NOT_CHARGED: Final = "resolved_not_charged"

_DUPLICATE: Final = Decision(note=DUPLICATE_COMMAND)


def process_command(
    payment: Payment | None, command: PaymentCommand, now_ms: int, policy: Policy
) -> Decision:
    """Decide about one command; ``now_ms`` is its append time.

    The same command again has no effect (``duplicate_command``), whether the first was taken or
    rejected. A broken rule is the event ``command_rejected`` with the rule as its reason; another
    command under an id that was taken breaks one. One that holds a card number is refused whole,
    whether or not its payment is there.
    """
    refused = card_number_refused(payment, command, now_ms)
    if refused is not None:
        return refused
    if not rules.usable_id(command):
        detail = "merchant_id, order_id and command_id must be 1 to 64 of A-Z a-z 0-9 . _ -"
        return Decision(dead_letter=INVALID_IDS, detail=detail)
    if command.type == rules.REFUND_UNASKED and _is_free(payment):
        return _refund_unasked(payment, command, now_ms, policy)
    if payment is not None and is_remembered(payment, command):
        if is_another(payment, command):
            return _rejected(
                payment, _masked(payment, command), rules.COMMAND_MUST_NOT_CHANGE, now_ms
            )
        return _DUPLICATE
    command = _masked(payment, command)
    rule = rules.broken_by_itself(command, policy)
    if rule is None and rules.names_another_operation(payment, command):
        rule = rules.COMMAND_ID_MUST_BE_ITS_OWN
    if payment is None:
        return _without_a_payment(command, rule, now_ms, policy)
    always = command.type in rules.ALWAYS_TAKEN
    taken = remembering(payment, command, now_ms, policy, always=always)
    if taken is None:
        # Not remembered: its repetition may find room.
        return _rejected(payment, command, rules.COMMANDS_MUST_NOT_EXCEED_LIMIT, now_ms)
    if rule is not None:
        return _rejected(taken, command, rule, now_ms)
    if _runs_at_once(payment, command):
        made = _run(taken, command, now_ms, policy)
        return with_waiting_commands(made, now_ms, policy)
    if payment.commands or _has_to_wait(payment, command):
        return _waits(taken, command, now_ms, policy)
    return _run(taken, command, now_ms, policy)


def with_waiting_commands(made: Decision, now_ms: int, policy: Policy) -> Decision:
    """The decision, followed by the commands that waited for it, in order, as far as they can."""
    payment = made.payment
    while (
        payment is not None and payment.commands and not _has_to_wait(payment, payment.commands[0])
    ):
        first, *others = payment.commands
        then = _run(replace(payment, commands=tuple(others)), first, now_ms, policy)
        made = followed(made, then)
        payment = made.payment
    return made


def _has_to_wait(payment: Payment, command: PaymentCommand) -> bool:
    return is_held(payment) or rules.waits_for_another(payment, command)


def is_held(payment: Payment) -> bool:
    """Whether commands have to wait: for the order, for a reviewer, or for an operation."""
    return payment.status in (AWAITING_ORDER, RISK_REVIEW) or in_flight(payment)


def reject_waiting(payment: Payment, rule: str, now_ms: int) -> Decision:
    """Reject every command that waits, in order."""
    made = Decision()
    while payment.commands:
        first, *others = payment.commands
        then = _rejected(replace(payment, commands=tuple(others)), first, rule, now_ms)
        made = followed(made, then)
        payment = then.payment or payment
    return made


def start_charge(
    payment: Payment,
    operation_id: str,
    trigger: str,
    event: str,
    now_ms: int,
    policy: Policy,
    *,
    actor: str | None = None,
    reason: str | None = None,
    detail: str | None = None,
    approval: PaymentCommand | None = None,
) -> Decision | None:
    """Begin to ask for the payment's money, or None when no gateway serves it.

    ``approval``: the review that it is begun by, kept with the attempt: a permit may still refuse
    it, and it tells afterwards that the payment was reviewed.
    """
    chosen = route(policy, facts_of(payment, payment.payment_id, payment.retry_token))
    if chosen is None:
        return None
    attempt = first_try(
        operation_id,
        main_kind(payment),
        chosen.profile.name,
        # More than one where an earlier one got no answer about its permit.
        1 + sum(each.operation_id == operation_id for each in payment.attempts),
        policy.send_within_ms,
        now_ms,
        because=chosen.because,
    )
    attempt = with_instrument(payment, attempt)
    if approval is not None:
        attempt = replace(attempt, approved_by=approval.actor, approval=approval.command_id)
    because = f"{chosen.because}; {detail}" if detail else chosen.because
    if needs_permit(payment, policy):
        return permit_asked(
            payment,
            attempt,
            now_ms,
            policy,
            moves=trigger,
            reason=reason,
            detail=because,
            actor=actor,
        )
    changed, sent = begun(
        payment,
        attempt,
        now_ms,
        event=event,
        moves=trigger,
        actor=actor,
        reason=reason,
        detail=because,
    )
    return decision(changed, request_of(changed, attempt), sent)


def _without_a_payment(
    command: PaymentCommand, rule: str | None, now_ms: int, policy: Policy
) -> Decision:
    empty = _empty(command, now_ms)
    empty = remembering(empty, command, now_ms, policy, always=True) or empty
    if rule is None and command.type == rules.CREDIT:
        return _credited(empty, command, now_ms)
    expires_at_ms = None if rule is not None else now_ms + policy.awaiting_order_ms
    placed, event = moved(
        replace(empty, commands=() if rule is not None else (command,)),
        COMMAND_CAME_FIRST,
        now_ms,
        actor=command.actor,
        operation_id=command.command_id,
        expires_at_ms=expires_at_ms,
    )
    made = decision(placed, event)
    if rule is not None:
        return followed(made, _rejected(placed, command, rule, now_ms))
    timer = timer_of(placed, now_ms + policy.awaiting_order_ms, ORDER_MUST_ARRIVE, policy, now_ms)
    return replace(made, sends=(timer, *made.sends))


def _empty(command: PaymentCommand, now_ms: int) -> Payment:
    return Payment(
        merchant_id=command.merchant_id,
        order_id=command.order_id,
        payment_id=payment_id(command.merchant_id, command.order_id),
        sequence=0,
        status=NEW,
        amount_minor=0,
        currency="",
        instrument_token="",
        business_date="",
        ordered_at_ms=now_ms,
        updated_at_ms=now_ms,
    )


def _is_free(payment: Payment | None) -> bool:
    """Whether a charge nobody asked for may still become the payment of its key: there is none, or
    one that only holds commands that came before it, or were refused by an earlier version."""
    return payment is None or (
        payment.merchant_id == NO_MERCHANT and payment.status == AWAITING_ORDER
    )


def _refund_unasked(
    payment: Payment | None, command: PaymentCommand, now_ms: int, policy: Policy
) -> Decision:
    """A charge nobody asked for as a payment of its own. Refused, it leaves none, and is not
    remembered: nothing else could give the charge back, so the command may come again, mended."""
    command = _masked(payment, command)
    empty = payment or _empty(command, now_ms)
    rule = rules.broken_by_itself(command, policy)
    if rule is not None:
        refused = Decision(dead_letter=UNASKED_CHARGE_REFUSED, detail=rule)
        return audited(refused, empty, command, now_ms, rule=rule)
    if not is_remembered(empty, command):
        empty = remembering(empty, command, now_ms, policy, always=True) or empty
    found = refund_unasked(replace(empty, expires_at_ms=None), command, now_ms, policy)
    made = audited(found, found.payment or empty, command, now_ms)
    return with_waiting_commands(made, now_ms, policy)


def _credited(empty: Payment, command: PaymentCommand, now_ms: int) -> Decision:
    """A credit without a payment: booked, and held until somebody pays it out."""
    amount_minor = command.amount_minor or 0
    credit = replace(
        empty,
        amount_minor=amount_minor,
        currency=command.currency or "",
        business_date=command.business_date or "",
    )
    held, event = moved(
        credit,
        CREDIT_BOOKED,
        now_ms,
        reason=command.reason,
        actor=command.actor,
        operation_id=command.command_id,
    )
    settlement = settlement_of(
        held,
        SETTLED_CREDIT,
        -amount_minor,
        now_ms,
        operation_id=command.command_id,
        gateway=NO_GATEWAY,
        reference=command.command_id,
    )
    return decision(held, settlement, event)


def _runs_at_once(payment: Payment, command: PaymentCommand) -> bool:
    if command.type == rules.CANCEL:
        return (
            payment.status in UNDECIDED
            or payment.status == RISK_REVIEW
            or rules.retry_waits(payment)
        )
    if command.type == rules.REVIEW:
        return payment.status == RISK_REVIEW
    person = command.type in (rules.RESOLVE, rules.RESOLVE_DISPUTE, rules.ACKNOWLEDGE)
    return person and payment.status != AWAITING_ORDER


def _masked(payment: Payment | None, command: PaymentCommand) -> PaymentCommand:
    """The command as the table and the events may keep it. What is no card number by the rule of
    the door, but by the wider one of masking, is masked where people write, and where they name an
    operation that is none of the payment's."""
    operation_id = command.operation_id
    if not rules.names_own_operation(payment, command):
        operation_id = _kept(operation_id)
    return replace(
        command,
        operation_id=operation_id,
        evidence=_kept(command.evidence),
        reason=_kept(command.reason),
        actor=_kept(command.actor),
    )


def _kept(text: str | None) -> str | None:
    # One more than the rule allows, so that the rule still sees a text that is too long.
    return None if text is None else mask_card_number_start(text, rules.PROSE_LENGTH_MAX + 1)


def _waits(payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy) -> Decision:
    always = command.type in rules.ALWAYS_TAKEN
    if len(payment.commands) >= (rules.WAITING_ALWAYS_MAX if always else rules.WAITING_MAX):
        return _rejected(payment, command, rules.COMMANDS_MUST_NOT_EXCEED_LIMIT, now_ms)
    waiting = replace(payment, commands=(*payment.commands, command))
    timers: tuple[PaymentDue, ...] = ()
    if payment.status == AWAITING_ORDER and payment.expires_at_ms is None:
        # Those that came before have been rejected; this one gets its own time.
        expires_at_ms = now_ms + policy.awaiting_order_ms
        waiting = replace(waiting, expires_at_ms=expires_at_ms)
        timers = (timer_of(waiting, expires_at_ms, ORDER_MUST_ARRIVE, policy, now_ms),)
    changed, event = told(
        waiting,
        COMMAND_WAITING,
        now_ms,
        reason=command.type,
        actor=command.actor,
        operation_id=command.command_id,
        operation_minor=command.amount_minor,
    )
    return decision(changed, *timers, event)


def _rejected(
    payment: Payment,
    command: PaymentCommand,
    rule: str,
    now_ms: int,
    *,
    detail: str | None = None,
) -> Decision:
    if detail is None and command.type in rules.TYPES:
        detail = command.type
    changed, event = told(
        payment,
        COMMAND_REJECTED,
        now_ms,
        reason=rule,
        actor=command.actor,
        operation_id=command.command_id,
        operation_minor=command.amount_minor,
        detail=detail,
    )
    return audited(decision(changed, event), payment, command, now_ms, rule=rule)


def _run(payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy) -> Decision:
    rule = rules.broken_now(payment, command, now_ms)
    if rule is not None:
        detail = None
        if rule == rules.OPERATION_MUST_BE_NAMED:
            recorded = command.type == rules.RECORD_REFUND
            choices = recordable_choices(payment) if recorded else rules.choices(payment)
            detail = f"{command.type}: one of {choices}"
        return _rejected(payment, command, rule, now_ms, detail=detail)
    if command.type in (CAPTURE, REFUND):
        return _moves_money(payment, command, now_ms, policy)
    if command.type == rules.CANCEL:
        return _cancel(payment, command, now_ms, policy)
    if command.type == rules.RETRY:
        return _retry(payment, command, now_ms, policy)
    if command.type == rules.REVIEW:
        return _review(payment, command, now_ms, policy)
    if command.type == rules.GIVE_BACK:
        return give_back(payment, command, now_ms, policy)
    if command.type == rules.RECORD_REFUND:
        return _record_refund(payment, command, now_ms, policy)
    if command.type == rules.ACKNOWLEDGE:
        return audited(acknowledge(payment, command, now_ms), payment, command, now_ms)
    if command.type == rules.RESOLVE_DISPUTE:
        return audited(resolve_dispute(payment, command, now_ms, policy), payment, command, now_ms)
    return _resolve(payment, command, now_ms, policy)


def _moves_money(
    payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy
) -> Decision:
    if command.type == CAPTURE:
        main = standing_main(payment)
    else:
        main = refund_target(payment, command.amount_minor, rules.reference_of(command))
    if main is None:
        return _rejected(payment, command, rules.REFUND_MUST_NOT_EXCEED_ITS_CHARGE, now_ms)
    if command.type == CAPTURE:
        amount_minor = command.amount_minor or rules.capturable_minor(payment)
    else:
        amount_minor = command.amount_minor or refundable_of_minor(payment, main)
    return begin_operation(
        payment,
        command.type,
        command.command_id,
        main,
        amount_minor,
        now_ms,
        policy,
        reason=command.reason,
        actor=command.actor,
        business_date=command.business_date,
    )


def _cancel(payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy) -> Decision:
    if payment.status == RISK_REVIEW and assessed_retry(payment) is not None:
        # The payment has failed already: what ends is the retry that waits for a person.
        made = refuse_assessed_retry(payment, CANCEL_REQUESTED, now_ms, command)
        return followed(made, _bar_retries(made.payment or payment, now_ms))
    if rules.retry_waits(payment):
        # It stays failed, and what waits to try it again, for counts or for its turn, is not made.
        changed, event = told(
            payment if assessed_retry(payment) is None else retry_unassessed(payment),
            CANCEL_REQUESTED,
            now_ms,
            reason=command.reason,
            actor=command.actor,
            operation_id=command.command_id,
        )
        return followed(decision(changed, event), _bar_retries(changed, now_ms))
    if payment.status in (RISK_REVIEW, REQUIRES_CUSTOMER_ACTION) or payment.risk_awaited:
        # Nobody was asked for money, or the customer did not go on: there is nothing to undo yet.
        changed, event = moved(
            payment,
            CANCEL_CONFIRMED,
            now_ms,
            reason=command.reason,
            actor=command.actor,
            operation_id=command.command_id,
            expires_at_ms=None,
            next_action_url=None,
            risk_awaited=(),
            risk_counted=(),
        )
        return decision(changed, event)
    if payment.status == AUTHORIZED:
        authorization = standing_main(payment)
        if authorization is None:
            return _rejected(payment, command, rules.PAYMENT_MUST_BE_AUTHORIZED, now_ms)
        return begin_operation(
            payment,
            VOID,
            command.command_id,
            authorization,
            amount_of(payment, authorization),
            now_ms,
            policy,
            reason=command.reason,
            actor=command.actor,
        )
    changed, event = told(
        payment,
        CANCEL_REQUESTED,
        now_ms,
        reason=command.reason,
        actor=command.actor,
        operation_id=command.command_id,
        cancel_requested_by=command.command_id,
    )
    made = decision(changed, event)
    asking = next((each for each in changed.attempts if each.state == PERMIT_WAITING), None)
    if asking is None:
        return made
    # Nobody was asked for money yet, so there is nothing to wait for.
    return followed(made, gave_up(changed, asking, CANCEL_REQUESTED, now_ms, policy))


def _bar_retries(payment: Payment, now_ms: int) -> Decision:
    """Reject the retries that wait; what else waits is not the cancel's matter."""
    barred = [each for each in payment.commands if each.type == rules.RETRY]
    others = tuple(each for each in payment.commands if each.type != rules.RETRY)
    made = Decision()
    payment = replace(payment, commands=others)
    for retry in barred:
        made = followed(made, _rejected(payment, retry, CANCEL_REQUESTED, now_ms))
        payment = made.payment or payment
    return made


def _retry(payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy) -> Decision:
    if _is_capped(payment, command, now_ms, policy):
        return _rejected(payment, command, ATTEMPTS_MUST_NOT_EXCEED_CAP, now_ms)
    if policy.risk is None:
        return _start_retry(payment, command, now_ms, policy)
    assessment, checks, waits = assess_retry(payment, command, now_ms, policy, policy.risk)
    if waits is not None:
        return waits
    made = decide_retry(payment, command, assessment, now_ms, policy)
    return replace(made, sends=(*checks, *made.sends)) if checks else made


def _as_retried(payment: Payment, command: PaymentCommand) -> Payment:
    """The payment with the instrument that a retry names."""
    return replace(
        payment,
        retry_token=command.instrument_token,
        retry_fingerprint=command.card_fingerprint,
        retry_scheme=command.card_scheme,
    )


def _is_capped(payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy) -> bool:
    """Whether the payment's own attempts forbid one with the instrument that a retry names."""
    asked = _as_retried(payment, command)
    chosen = route(policy, facts_of(asked, asked.payment_id, asked.retry_token))
    return chosen is not None and is_capped(asked, chosen.profile.name, now_ms, policy)


def decide_retry(
    payment: Payment, command: PaymentCommand, assessment: Assessment, now_ms: int, policy: Policy
) -> Decision:
    """What becomes of a retry once all that rules look at is known: it is made, is refused by the
    rule's name, or waits for a person."""
    rule = rules.broken_now(payment, command, now_ms)
    if rule is None and assessment.action == REJECT:
        rule = assessment.reason
    if rule is not None:
        return _rejected(payment, command, rule, now_ms, detail=assessment.detail)
    if assessment.action == REVIEW:
        reason, detail = assessment.reason, assessment.detail
        return hold_retry(payment, command, reason, detail, now_ms, policy)
    return _start_retry(payment, command, now_ms, policy, detail=assessment.detail)


def refuse_assessed_retry(
    payment: Payment, rule: str, now_ms: int, by: PaymentCommand | None = None
) -> Decision:
    """The retry that waits for a person is not made: by the command ``by``, or by time."""
    retry = assessed_retry(payment)
    if retry is None:
        raise InvariantBroken("no retry waits for a person")
    changed, event = review_ended(
        payment,
        rule,
        now_ms,
        detail=None if by is None else by.reason,
        actor=None if by is None else by.actor,
        operation_id=None if by is None else by.command_id,
    )
    return followed(decision(changed, event), _rejected(changed, retry, rule, now_ms))


def _review_retry(
    payment: Payment, retry: PaymentCommand, review: PaymentCommand, now_ms: int, policy: Policy
) -> Decision:
    if review.decision == rules.DENY:
        denied = refuse_assessed_retry(payment, RISK_REVIEW_DENIED, now_ms, review)
        return audited(denied, payment, review, now_ms)
    if payment.expires_at_ms is not None and now_ms >= payment.expires_at_ms:
        ended = refuse_assessed_retry(payment, rules.REVIEW_MUST_BE_IN_TIME, now_ms)
        late = ended.payment or payment
        return followed(ended, _rejected(late, review, rules.REVIEW_MUST_BE_IN_TIME, now_ms))
    if _is_capped(payment, retry, now_ms, policy):
        capped = refuse_assessed_retry(payment, ATTEMPTS_MUST_NOT_EXCEED_CAP, now_ms)
        failed = capped.payment or payment
        return followed(capped, _rejected(failed, review, ATTEMPTS_MUST_NOT_EXCEED_CAP, now_ms))
    started = _retried(
        without_retry(payment), retry, now_ms, policy, actor=review.actor, approval=review
    )
    if started is None:
        return _rejected(payment, review, CURRENCY_MUST_BE_SUPPORTED, now_ms)
    return audited(started, payment, review, now_ms)


def _start_retry(
    payment: Payment,
    command: PaymentCommand,
    now_ms: int,
    policy: Policy,
    *,
    detail: str | None = None,
) -> Decision:
    started = _retried(payment, command, now_ms, policy, actor=command.actor, detail=detail)
    return started or _rejected(payment, command, CURRENCY_MUST_BE_SUPPORTED, now_ms)


def _retried(
    payment: Payment,
    command: PaymentCommand,
    now_ms: int,
    policy: Policy,
    *,
    actor: str | None,
    detail: str | None = None,
    approval: PaymentCommand | None = None,
) -> Decision | None:
    return start_charge(
        _as_retried(payment, command),
        command.command_id,
        RETRY_ASKED,
        PAYMENT_RETRIED,
        now_ms,
        policy,
        actor=actor,
        reason=command.reason,
        detail=detail,
        approval=approval,
    )


def _review(payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy) -> Decision:
    retry = assessed_retry(payment)
    if retry is not None:
        return _review_retry(payment, retry, command, now_ms, policy)
    if command.decision == rules.DENY:
        changed, event = moved(
            payment,
            REVIEW_DENIED,
            now_ms,
            reason=RISK_REVIEW_DENIED,
            detail=command.reason,
            actor=command.actor,
            operation_id=command.command_id,
            expires_at_ms=None,
        )
        return audited(decision(changed, event), payment, command, now_ms)
    # Reviews of before they had an end count from their order.
    ends_ms = payment.expires_at_ms or payment.ordered_at_ms + policy.review_ms
    if now_ms >= ends_ms:
        expired, event = moved(
            payment, DEADLINE_PASSED, now_ms, reason=REVIEW_ENDS, expires_at_ms=None
        )
        refused = _rejected(expired, command, rules.REVIEW_MUST_BE_IN_TIME, now_ms)
        return followed(decision(expired, event), refused)
    started = start_charge(
        replace(payment, expires_at_ms=None),
        payment.order_id,
        REVIEW_APPROVED,
        PAYMENT_STARTED,
        now_ms,
        policy,
        actor=command.actor,
        approval=command,
    )
    if started is None:
        return _rejected(payment, command, CURRENCY_MUST_BE_SUPPORTED, now_ms)
    return audited(started, payment, command, now_ms)


def _record_refund(
    payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy
) -> Decision:
    """A person says that what is owed was given back outside its gateway."""
    reversal = recorded_for(payment, command)
    if reversal is None:
        raise InvariantBroken("a record is about a reversal that is owed")
    if reversal.state == INQUIRY_EXHAUSTED and not _is_settled(reversal, now_ms, policy):
        return _rejected(payment, command, rules.SEND_WINDOW_MUST_BE_OVER, now_ms)
    made = record_refund(payment, reversal, command, now_ms, policy)
    return audited(made, payment, command, now_ms, attempt=reversal)


def _is_settled(attempt: Attempt, now_ms: int, policy: Policy) -> bool:
    """Whether nobody can send the attempt any more, and its gateway would show it by now."""
    grace_ms = gateway_profile(policy, attempt.gateway).grace_ms
    return now_ms >= sendable_until_ms(attempt, policy) + grace_ms


def _resolve(payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy) -> Decision:
    """A person says what became of an operation that is unknown. What contradicted before may
    contradict the person now: said again, it is a letter again."""
    if command.decision == rules.REFUND_RETURNED:
        return _returned(payment, command, now_ms, policy)
    attempt = rules.resolvable(payment, command)
    if attempt is None:
        return _rejected(payment, command, rules.OUTCOME_MUST_BE_UNKNOWN, now_ms)
    if command.decision == rules.NOT_CHARGED:
        if not _is_settled(attempt, now_ms, policy):
            return _rejected(payment, command, rules.SEND_WINDOW_MUST_BE_OVER, now_ms)
        made = gave_up(
            judged_anew(payment),
            replace(attempt, code=RESOLVED_NOT_CHARGED),
            RESOLVED_NOT_CHARGED,
            now_ms,
            policy,
            trigger=RESOLVED_NOT_DONE,
            actor=command.actor,
            detail=command.evidence,
        )
        made = with_successor(made, attempt, now_ms, policy)
        return audited(made, payment, command, now_ms, attempt=attempt)
    reference = rules.reference_of(command) or ""
    if command.amount_minor is not None:
        # What the gateway moved, which may be another amount than was asked for.
        attempt = replace(attempt, amount_minor=command.amount_minor)
    said = GatewayResult(
        merchant_id=payment.merchant_id,
        order_id=payment.order_id,
        payment_id=payment.payment_id,
        operation_id=attempt.operation_id,
        kind=attempt.kind,
        gateway=attempt.gateway,
        attempt=attempt.attempt,
        try_number=attempt.tries,
        outcome=SUCCEEDED,
        gateway_reference=reference,
        code=RESOLVED_CHARGED,
        amount_minor=amount_of(payment, attempt),
        currency=payment.currency,
        observed_at_ms=now_ms,
    )
    made = succeeded(
        judged_anew(payment),
        attempt,
        said,
        reference,
        now_ms,
        policy,
        trigger=RESOLVED_DONE,
        actor=command.actor,
        detail=command.evidence,
    )
    return audited(made, payment, command, now_ms, attempt=attempt)


def _returned(payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy) -> Decision:
    """A person says that a refund which is booked came back. There is room then for what was given
    back in its place."""
    refund = rules.made_refund(payment, command)
    if refund is None:
        return _rejected(payment, command, rules.REFUND_MUST_BE_MADE, now_ms)
    made = returned(
        judged_anew(payment),
        refund,
        FAILED_LATER,
        now_ms,
        policy,
        actor=command.actor,
        detail=command.evidence,
    )
    return audited(made, payment, command, now_ms, attempt=refund)

"""Rules a command must keep. A broken rule is a named rejection, told by an event; nothing else
changes.

What can be judged from the command alone is judged when it comes, even if it has to wait; the rest
when it runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pipeline.domain.attempt_caps import CARD_MUST_NOT_BE_TRIED_AGAIN
from pipeline.domain.card_numbers import is_card_number, is_masked
from pipeline.domain.charges import beyond_taken, refund_target, refundable_of_minor
from pipeline.domain.disputes import LOST, WON, bars_refunds, named
from pipeline.domain.findings import (
    ACKNOWLEDGEABLE,
    AMOUNTS_OUT_OF_ORDER,
    amounts_out_of_order,
    is_acknowledged,
)
from pipeline.domain.gateway_text import cannot_be_booked
from pipeline.domain.instruments import instrument, is_barred, was_tried
from pipeline.domain.keys import valid_id
from pipeline.domain.lifecycle import (
    AUTHORIZE,
    AUTHORIZED,
    CAPTURE,
    CAPTURED,
    CONTRADICTED,
    FAILED,
    INQUIRING,
    INQUIRY_EXHAUSTED,
    INQUIRY_WAITING,
    MAIN_KINDS,
    REFUND,
    RISK_REVIEW,
    VOID,
    has_succeeded,
)
from pipeline.domain.model import Attempt, Payment, PaymentCommand
from pipeline.domain.money import MINOR_UNITS
from pipeline.domain.payment import (
    COMMANDED_ATTEMPTS_MAX,
    PENDING_CODES,
    UNDECIDED,
    amount_of,
    is_uncertain,
    is_unfinished,
    parent_of,
    refundable_minor,
    reserved_minor,
    standing_main,
)
from pipeline.domain.policy import Policy
from pipeline.domain.recorded_refunds import (
    RECORDED,
    REFUND_MUST_BE_OWED,
    REFUND_MUST_NOT_BE_RECORDED_SO,
    REFUND_MUST_NOT_EXCEED_OWED,
    TRANSFER_MUST_BE_NAMED,
    is_recorded,
    names_transfer,
    recordable,
    recorded_for,
    transfer_of,
)
from pipeline.domain.references import is_known_otherwise, is_of_another
from pipeline.domain.reversals import has_room, held, in_dispute, outstanding, owed_minor
from pipeline.domain.reviews import REVIEW_MUST_BE_OF_WHAT_IS_IN_REVIEW, is_about
from pipeline.domain.unasked_charges import (
    MERCHANT_MUST_NOT_BE_RESERVED,
    NO_MERCHANT,
    UNASKED_MUST_HAVE_ITS_OWN_KEY,
    broken_naming,
)
from pipeline.domain.validation import (
    TEXT_LENGTH_MAX,
    TOKEN_MUST_NOT_BE_A_CARD_NUMBER,
    TOKEN_MUST_NOT_BE_MASKED,
    is_date,
)

# Types of commands; CAPTURE and REFUND are those of the lifecycle.
CANCEL: Final = "cancel"
CREDIT: Final = "credit"
GIVE_BACK: Final = "give_back"
RECORD_REFUND: Final = "record_refund"
REFUND_UNASKED: Final = "refund_unasked"
RETRY: Final = "retry"
ACKNOWLEDGE: Final = "acknowledge"
RESOLVE: Final = "resolve"
RESOLVE_DISPUTE: Final = "resolve_dispute"
REVIEW: Final = "review"
TYPES: Final = frozenset(
    {
        CAPTURE,
        CANCEL,
        REFUND,
        CREDIT,
        RETRY,
        GIVE_BACK,
        RECORD_REFUND,
        REFUND_UNASKED,
        RESOLVE,
        RESOLVE_DISPUTE,
        REVIEW,
        ACKNOWLEDGE,
    }
)
# What a person decides where no machine may. It has no operation of its own.
DECIDED_BY_A_PERSON: Final = frozenset(
    {RESOLVE, RESOLVE_DISPUTE, REVIEW, ACKNOWLEDGE, RECORD_REFUND, REFUND_UNASKED}
)

# Whose amount is money that moves.
_OF_AMOUNTS: Final = frozenset({CAPTURE, REFUND, CREDIT, RESOLVE, RECORD_REFUND, REFUND_UNASKED})

# Decisions.
CHARGED: Final = "charged"
NOT_CHARGED: Final = "not_charged"
# Of a refund that is booked as made: it came back, and its gateway does not say so.
REFUND_RETURNED: Final = "returned"
APPROVE: Final = "approve"
DENY: Final = "deny"

# A refund's override of the rule about disputes.
OVERRIDE_DISPUTE: Final = "dispute"
# A resolve's override of the rules about the gateway's id: whoever has seen that it stands for
# money of its own says so, and need not deny that the money moved.
OVERRIDE_REFERENCE: Final = "reference"

# What only a person can end has to be possible whatever came before. What ends a payment by itself,
# or decides about one, is repeated without harm: it is judged anew by how the payment stands.
ALWAYS_TAKEN: Final = DECIDED_BY_A_PERSON | {CANCEL, GIVE_BACK}

# Commands that wait in a payment: more than its merchant needs, few enough that a snapshot stays
# small; and the room beyond that is kept for those that are always taken.
WAITING_MAX: Final = 16
WAITING_ALWAYS_MAX: Final = 20
# Operations that a void by command may be the last of: of the 24 beyond what other commands may
# begin, 16 stay for failovers.
VOIDED_ATTEMPTS_MAX: Final = COMMANDED_ATTEMPTS_MAX + 8

# Evidence and reasons are for people: a sentence or two, not a document.
PROSE_LENGTH_MAX: Final = 1_000
# All texts of one command, in UTF-8: two of full length in any script and the names beside them.
# 20 commands that wait and the traces of 40 that ran are then half of what a row may have.
TEXTS_BYTES_MAX: Final = 8_192

# Prefixes of operations that the pipeline begins by itself.
_OWN_PREFIXES: Final = ("late-", "expiry-", "dispute-", "dispute.")

TYPE_MUST_BE_KNOWN: Final = "command_type_must_be_known"
COMMAND_ID_MUST_BE_ITS_OWN: Final = "command_id_must_not_name_another_operation"
COMMAND_MUST_NOT_CHANGE: Final = "content_of_a_command_id_must_not_change"
COMMANDS_MUST_NOT_EXCEED_LIMIT: Final = "commands_must_not_exceed_limit"
OPERATIONS_MUST_NOT_EXCEED_LIMIT: Final = "operations_must_not_exceed_limit"
AMOUNT_MUST_BE_POSITIVE: Final = "amount_must_be_positive"
AMOUNT_MUST_BE_GIVEN: Final = "amount_must_be_given"
AMOUNT_MUST_NOT_BE_GIVEN: Final = "amount_must_not_be_given"
AMOUNT_MUST_BE_AS_ASKED: Final = "amount_must_be_what_was_asked"
AMOUNT_MUST_NOT_EXCEED_LIMIT: Final = "amount_must_not_exceed_limit"
CURRENCY_MUST_BE_ISO_4217: Final = "currency_must_be_iso_4217"
CURRENCY_MUST_BE_THE_PAYMENTS: Final = "currency_must_be_the_payments"
BUSINESS_DATE_MUST_BE_A_DATE: Final = "business_date_must_be_a_date"
TEXTS_MUST_BE_SHORT: Final = "texts_must_be_at_most_1000_characters"
NAMES_MUST_BE_SHORT: Final = "actor_card_and_override_must_be_at_most_255_characters"
TEXTS_MUST_BE_SHORT_TOGETHER: Final = "texts_must_be_at_most_8192_bytes_together"
TOKEN_MUST_BE_PRESENT: Final = "instrument_token_must_be_present"
TOKEN_MUST_BE_NEW: Final = "token_must_be_new"
DECISION_MUST_BE_KNOWN: Final = "decision_must_be_known"
EVIDENCE_MUST_BE_GIVEN: Final = "evidence_must_be_given"
ACTOR_MUST_BE_GIVEN: Final = "actor_must_be_given"
REFERENCE_MUST_BE_GIVEN: Final = "gateway_reference_must_be_given"
CREDIT_MUST_HAVE_ITS_OWN_KEY: Final = "credit_must_have_its_own_key"
PAYMENT_MUST_BE_AUTHORIZED: Final = "payment_must_be_authorized"
CAPTURE_MUST_NOT_EXCEED_AUTHORIZED: Final = "capture_must_not_exceed_authorized"
PAYMENT_MUST_BE_CAPTURED: Final = "payment_must_be_captured"
REFUND_MUST_NOT_EXCEED_CAPTURED: Final = "refund_must_not_exceed_captured"
CHARGE_MUST_BE_THE_PAYMENTS: Final = "charge_must_be_the_payments"
REFUND_MUST_NOT_EXCEED_ITS_CHARGE: Final = "refund_must_not_exceed_its_charge"
REFUND_MUST_NOT_RUN_DURING_A_DISPUTE: Final = "refund_must_not_run_during_a_dispute"
GIVE_BACK_MUST_BE_OUTSTANDING: Final = "give_back_must_be_outstanding"
PAYMENT_MUST_BE_OPEN: Final = "payment_must_be_open"
PAYMENT_MUST_NOT_BE_CAPTURED: Final = "payment_must_not_be_captured"
CANCEL_MUST_NOT_BE_REPEATED: Final = "cancel_must_not_be_repeated"
PAYMENT_MUST_HAVE_FAILED: Final = "payment_must_have_failed"
PAY_BEFORE_MUST_BE_AHEAD: Final = "pay_before_must_be_in_the_future"
OPERATION_MUST_BE_THE_PAYMENTS: Final = "operation_must_be_the_payments"
OPERATION_MUST_BE_NAMED: Final = "operation_must_be_named"
REFUND_MUST_BE_MADE: Final = "operation_must_be_a_refund_that_was_made"
OUTCOME_MUST_BE_UNKNOWN: Final = "outcome_must_be_unknown"
REFERENCE_MUST_BE_THE_KNOWN_ONE: Final = "gateway_reference_must_be_the_one_that_is_known"
REFERENCE_MUST_NOT_BE_ANOTHERS: Final = "gateway_reference_must_not_be_another_operations"
SEND_WINDOW_MUST_BE_OVER: Final = "send_window_must_be_over"
PAYMENT_MUST_BE_IN_REVIEW: Final = "payment_must_be_in_review"
REVIEW_MUST_BE_IN_TIME: Final = "review_must_be_in_time"
FINDING_MUST_BE_KNOWN: Final = "finding_must_be_known"
FIGURES_MUST_BE_GIVEN: Final = "figures_must_be_given"
FIGURES_MUST_BE_THE_PAYMENTS: Final = "figures_must_be_the_payments"
FINDING_MUST_NOT_BE_ACKNOWLEDGED_SO: Final = "finding_must_not_be_acknowledged_so_already"
REASON_MUST_BE_GIVEN: Final = "reason_must_be_given"
DISPUTE_MUST_BE_KNOWN: Final = "dispute_must_be_known"
DISPUTE_MUST_NAME_ITS_GATEWAY: Final = "dispute_must_name_its_gateway"
DISPUTE_MUST_NOT_BE_DECIDED_SO: Final = "dispute_must_not_be_decided_so_already"


def broken_by_itself(command: PaymentCommand, policy: Policy) -> str | None:
    """The rule that the command breaks whatever it is about, or None."""
    kind = command.type
    if kind not in TYPES:
        return TYPE_MUST_BE_KNOWN
    amount_minor = command.amount_minor
    if amount_minor is not None and kind in _OF_AMOUNTS:
        if amount_minor <= 0:
            return AMOUNT_MUST_BE_POSITIVE
        # What was taken already is given back, however much it is.
        if kind != REFUND_UNASKED and amount_minor > policy.amount_minor_max:
            return AMOUNT_MUST_NOT_EXCEED_LIMIT
    if command.business_date is not None and not is_date(command.business_date):
        return BUSINESS_DATE_MUST_BE_A_DATE
    if command.currency is not None and command.currency not in MINOR_UNITS:
        return CURRENCY_MUST_BE_ISO_4217
    size = 0
    for text in (
        command.evidence,
        command.reason,
        command.actor,
        command.decision,
        command.override,
        command.gateway_reference,
        command.instrument_token,
        command.card_fingerprint,
        command.card_scheme,
        command.operation_id,
        command.dispute_id,
        command.gateway,
        command.finding,
        command.figures,
    ):
        if text is None:
            continue
        if len(text) > PROSE_LENGTH_MAX:
            return TEXTS_MUST_BE_SHORT
        size += len(text.encode("utf-8", "surrogatepass"))
    # These stay with the operations that the command begins.
    for name in (command.actor, command.card_fingerprint, command.card_scheme, command.override):
        if name is not None and len(name) > TEXT_LENGTH_MAX:
            return NAMES_MUST_BE_SHORT
    if size > TEXTS_BYTES_MAX:
        return TEXTS_MUST_BE_SHORT_TOGETHER
    token = command.instrument_token
    if token is not None and is_card_number(token):
        return TOKEN_MUST_NOT_BE_A_CARD_NUMBER
    if token is not None and is_masked(token.encode("utf-8", "surrogatepass")):
        return TOKEN_MUST_NOT_BE_MASKED
    if kind == RETRY and (token is None or not token.strip() or len(token) > TEXT_LENGTH_MAX):
        return TOKEN_MUST_BE_PRESENT
    if kind == CREDIT:
        # It would take the key that a charge is given back under.
        reserved = command.merchant_id == NO_MERCHANT
        return MERCHANT_MUST_NOT_BE_RESERVED if reserved else _broken_credit(command)
    if kind == RESOLVE:
        return _broken_resolve(command)
    if kind == RESOLVE_DISPUTE:
        return _broken_word(command, (WON, LOST))
    if kind == ACKNOWLEDGE:
        return _broken_acknowledge(command)
    if kind == RECORD_REFUND:
        return _broken_record(command)
    if kind == REFUND_UNASKED:
        return _broken_unasked(command)
    if kind == REVIEW:
        if command.decision not in (APPROVE, DENY):
            return DECISION_MUST_BE_KNOWN
        if not command.actor:
            return ACTOR_MUST_BE_GIVEN
    return None


def _broken_acknowledge(command: PaymentCommand) -> str | None:
    if command.finding not in ACKNOWLEDGEABLE:
        return FINDING_MUST_BE_KNOWN
    if not command.figures:
        return FIGURES_MUST_BE_GIVEN
    if not command.evidence:
        return EVIDENCE_MUST_BE_GIVEN
    if not command.reason:
        return REASON_MUST_BE_GIVEN
    return None if command.actor else ACTOR_MUST_BE_GIVEN


def _broken_record(command: PaymentCommand) -> str | None:
    if not names_transfer(command):
        return TRANSFER_MUST_BE_NAMED
    if not command.evidence:
        return EVIDENCE_MUST_BE_GIVEN
    return None if command.actor else ACTOR_MUST_BE_GIVEN


def _broken_unasked(command: PaymentCommand) -> str | None:
    rule = broken_naming(command) or _broken_credit(command)
    if rule is not None:
        return rule
    if not command.evidence:
        return EVIDENCE_MUST_BE_GIVEN
    return None if command.actor else ACTOR_MUST_BE_GIVEN


def _broken_credit(command: PaymentCommand) -> str | None:
    if command.amount_minor is None:
        return AMOUNT_MUST_BE_GIVEN
    if command.currency is None:
        return CURRENCY_MUST_BE_ISO_4217
    if command.business_date is None:
        return BUSINESS_DATE_MUST_BE_A_DATE
    return None


def _broken_resolve(command: PaymentCommand) -> str | None:
    rule = _broken_word(command, (CHARGED, NOT_CHARGED, REFUND_RETURNED))
    if rule is not None:
        return rule
    if command.decision == REFUND_RETURNED and command.operation_id is None:
        return OPERATION_MUST_BE_NAMED
    if command.decision != CHARGED and command.amount_minor is not None:
        return AMOUNT_MUST_NOT_BE_GIVEN
    reference = reference_of(command)
    if command.decision == CHARGED and (not reference or cannot_be_booked(reference)):
        return REFERENCE_MUST_BE_GIVEN
    return None


def _broken_word(command: PaymentCommand, decisions: tuple[str, ...]) -> str | None:
    """A person's word in a gateway's place says what happened, what proves it, and whose it is."""
    if command.decision not in decisions:
        return DECISION_MUST_BE_KNOWN
    if not command.evidence:
        return EVIDENCE_MUST_BE_GIVEN
    return None if command.actor else ACTOR_MUST_BE_GIVEN


def names_another_operation(payment: Payment | None, command: PaymentCommand) -> bool:
    """Whether the command's id is one that an operation of this payment has or will have."""
    wanted = command.command_id
    if wanted.startswith(_OWN_PREFIXES) or wanted == command.order_id:
        return True
    return payment is not None and any(wanted == each.operation_id for each in payment.attempts)


def names_own_operation(payment: Payment | None, command: PaymentCommand) -> bool:
    """Whether the ``operation_id`` that a command names is one of the payment's own, or the
    order's or a retry's, whose charge may not be there yet."""
    named = command.operation_id
    return named == command.order_id or (
        payment is not None
        and (
            named == payment.assessed_retry
            or any(named == each.operation_id for each in payment.attempts)
        )
    )


def reference_of(command: PaymentCommand) -> str | None:
    """The gateway's id that a command names, as gateways give it: people copy blanks as well."""
    reference = command.gateway_reference
    return None if reference is None else reference.strip()


def usable_id(command: PaymentCommand) -> bool:
    """Whether the command's ids may stand in a key and in a gateway's reference."""
    return (
        valid_id(command.merchant_id)
        and valid_id(command.order_id)
        and valid_id(command.command_id)
    )


def broken_now(payment: Payment, command: PaymentCommand, now_ms: int) -> str | None:
    """The rule that the command breaks as the payment stands, or None when it may run."""
    kind = command.type
    if command.currency is not None and command.currency != payment.currency and kind != CREDIT:
        return CURRENCY_MUST_BE_THE_PAYMENTS
    if not _has_room(payment, command):
        return OPERATIONS_MUST_NOT_EXCEED_LIMIT
    if kind == CAPTURE:
        return _broken_capture(payment, command)
    if kind == REFUND:
        return _broken_refund(payment, command)
    if kind == CANCEL:
        return _broken_cancel(payment)
    if kind == GIVE_BACK:
        return _broken_give_back(payment, command)
    if kind == CREDIT:
        return CREDIT_MUST_HAVE_ITS_OWN_KEY
    if kind == REFUND_UNASKED:
        return UNASKED_MUST_HAVE_ITS_OWN_KEY
    if kind == RETRY:
        return _broken_retry(payment, command, now_ms)
    if kind == RESOLVE:
        return _broken_choice(payment, command)
    if kind == RESOLVE_DISPUTE:
        return _broken_resolve_dispute(payment, command)
    if kind == ACKNOWLEDGE:
        return _broken_figures(payment, command)
    if kind == RECORD_REFUND:
        return _broken_recorded(payment, command)
    if kind == REVIEW:
        if payment.status != RISK_REVIEW:
            return PAYMENT_MUST_BE_IN_REVIEW
        return None if is_about(payment, command) else REVIEW_MUST_BE_OF_WHAT_IS_IN_REVIEW
    return None


def waits_for_another(payment: Payment, command: PaymentCommand) -> bool:
    """Whether an operation that is not finished decides about the command, however long that takes.

    A void decides whether there is anything to capture or to void. A refund that what is captured
    does not suffice for, or that shall give back all there is, waits for the captures under way.
    """
    if command.type in (CAPTURE, CANCEL):
        return open_void(payment) is not None
    coming_minor = reserved_minor(payment, CAPTURE)
    charge = standing_main(payment)
    if command.type != REFUND or not coming_minor or charge is None:
        return False
    wanted_minor, reference = command.amount_minor, reference_of(command)
    if reference not in (None, charge.gateway_reference):
        return False  # of another charge, of which nothing is being captured
    if wanted_minor is None:
        return True
    return (
        refund_target(payment, wanted_minor, reference) is None
        and wanted_minor <= refundable_of_minor(payment, charge) + coming_minor
    )


def open_void(payment: Payment) -> Attempt | None:
    """The void of what stands that is neither done nor refused, if there is one."""
    standing = standing_main(payment)
    if standing is None:
        return None
    for each in payment.attempts:
        if each.kind != VOID or not is_unfinished(each):
            continue
        about = parent_of(payment, each)
        if about is not None and (about.operation_id, about.attempt) == (
            standing.operation_id, standing.attempt,
        ):  # fmt: skip
            return each
    return None


def _has_room(payment: Payment, command: PaymentCommand) -> bool:
    """Whether the payment may have one more operation by this command; some begin none."""
    kind = command.type
    if kind == GIVE_BACK:
        return has_room(payment)
    if kind == RECORD_REFUND:
        return has_room(payment, 0)
    approves = kind == REVIEW and command.decision == APPROVE
    decides = kind in DECIDED_BY_A_PERSON and not approves
    if decides or (kind == CANCEL and payment.status != AUTHORIZED):
        return True
    most = VOIDED_ATTEMPTS_MAX if kind == CANCEL else COMMANDED_ATTEMPTS_MAX
    return len(payment.attempts) < most


def _broken_capture(payment: Payment, command: PaymentCommand) -> str | None:
    room_minor = capturable_minor(payment)
    if room_minor <= 0:
        return PAYMENT_MUST_BE_AUTHORIZED
    if command.amount_minor is not None and command.amount_minor > room_minor:
        return CAPTURE_MUST_NOT_EXCEED_AUTHORIZED
    return None


def _broken_refund(payment: Payment, command: PaymentCommand) -> str | None:
    if not payment.captured_minor:
        return PAYMENT_MUST_BE_CAPTURED
    room_minor = refundable_minor(payment)
    if room_minor <= 0 or (command.amount_minor or 0) > room_minor:
        return REFUND_MUST_NOT_EXCEED_CAPTURED
    reference = reference_of(command)
    if reference is not None and not any(
        each.gateway_reference == reference
        and each.kind in MAIN_KINDS
        and has_succeeded(each.state)
        for each in payment.attempts
    ):
        return CHARGE_MUST_BE_THE_PAYMENTS
    charge = refund_target(payment, command.amount_minor, reference)
    if charge is None:
        return REFUND_MUST_NOT_EXCEED_ITS_CHARGE
    if bars_refunds(payment, charge) and command.override != OVERRIDE_DISPUTE:
        return REFUND_MUST_NOT_RUN_DURING_A_DISPUTE
    return None


def _broken_give_back(payment: Payment, command: PaymentCommand) -> str | None:
    wanted = command.operation_id
    if wanted is not None and all(each.operation_id != wanted for each in payment.attempts):
        return OPERATION_MUST_BE_THE_PAYMENTS
    given_up = to_give_back(outstanding(payment), command)
    owed = (*given_up, *to_give_back(held(payment), command))
    if not owed:
        return GIVE_BACK_MUST_BE_OUTSTANDING
    barred = any(in_dispute(payment, each) for each in owed)
    if barred and command.override != OVERRIDE_DISPUTE:
        return REFUND_MUST_NOT_RUN_DURING_A_DISPUTE
    return None if barred or given_up else GIVE_BACK_MUST_BE_OUTSTANDING


def to_give_back(owed: Iterable[Attempt], command: PaymentCommand) -> tuple[Attempt, ...]:
    """What of it a ``give_back`` orders again: the operation that it names, else all."""
    wanted = command.operation_id
    return tuple(each for each in owed if wanted in (None, each.operation_id))


def _broken_recorded(payment: Payment, command: PaymentCommand) -> str | None:
    if is_recorded(payment, transfer_of(command)):
        return REFUND_MUST_NOT_BE_RECORDED_SO
    reversal = recorded_for(payment, command)
    if reversal is not None:
        owed = owed_minor(payment, reversal)
        return REFUND_MUST_NOT_EXCEED_OWED if (command.amount_minor or 0) > owed else None
    wanted = command.operation_id
    if wanted is None:
        return OPERATION_MUST_BE_NAMED if recordable(payment) else REFUND_MUST_BE_OWED
    known = any(each.operation_id == wanted for each in payment.attempts)
    return REFUND_MUST_BE_OWED if known else OPERATION_MUST_BE_THE_PAYMENTS


def unknown_attempts(payment: Payment) -> tuple[Attempt, ...]:
    """What a person may say the outcome of, oldest first. What its gateway has and is not done with
    is no person's before the gateway was asked for long enough."""
    return tuple(
        each
        for each in payment.attempts
        if each.state in (INQUIRY_EXHAUSTED, CONTRADICTED)
        or (
            is_uncertain(payment, each)
            and each.state in (INQUIRY_WAITING, INQUIRING)
            and each.code not in PENDING_CODES
        )
    )


def resolvable(payment: Payment, command: PaymentCommand) -> Attempt | None:
    """The unknown attempt that a ``resolve`` is about; None where that is not certain."""
    unknown = unknown_attempts(payment)
    if command.operation_id is not None:
        return next((a for a in unknown if a.operation_id == command.operation_id), None)
    return unknown[0] if len(unknown) == 1 else None


def made_refund(payment: Payment, command: PaymentCommand) -> Attempt | None:
    """The refund that a ``resolve`` says came back: booked as made, by its gateway."""
    return next(
        (
            each
            for each in payment.attempts
            if (each.operation_id, each.kind) == (command.operation_id, REFUND)
            and has_succeeded(each.state)
            and each.code != RECORDED
        ),
        None,
    )


def _broken_choice(payment: Payment, command: PaymentCommand) -> str | None:
    if command.decision == REFUND_RETURNED and made_refund(payment, command) is None:
        known = any(each.operation_id == command.operation_id for each in payment.attempts)
        return REFUND_MUST_BE_MADE if known else OPERATION_MUST_BE_THE_PAYMENTS
    if command.decision == REFUND_RETURNED:
        return None
    attempt = resolvable(payment, command)
    if attempt is not None:
        other = command.amount_minor not in (None, amount_of(payment, attempt))
        if other and attempt.kind not in MAIN_KINDS:
            return AMOUNT_MUST_BE_AS_ASKED
        if command.decision != CHARGED:
            return None
        if command.override != OVERRIDE_REFERENCE:
            if is_known_otherwise(attempt, reference_of(command)):
                return REFERENCE_MUST_BE_THE_KNOWN_ONE
            if is_of_another(payment, attempt, reference_of(command)):
                return REFERENCE_MUST_NOT_BE_ANOTHERS
        return REFUND_MUST_NOT_EXCEED_CAPTURED if _has_no_room(payment, attempt) else None
    wanted = command.operation_id
    if wanted is None:
        return OPERATION_MUST_BE_NAMED if unknown_attempts(payment) else OUTCOME_MUST_BE_UNKNOWN
    if any(each.operation_id == wanted for each in payment.attempts):
        return OUTCOME_MUST_BE_UNKNOWN
    return OPERATION_MUST_BE_THE_PAYMENTS


def _has_no_room(payment: Payment, attempt: Attempt) -> bool:
    """Whether all that such a refund can be of is known to have gone back already."""
    return attempt.kind == REFUND and beyond_taken(payment, attempt) is not None


def choices(payment: Payment) -> str:
    """The operations that ``resolve`` may name, for people."""
    return ", ".join(
        f"{each.operation_id} ({each.kind} of {amount_of(payment, each)} {payment.currency} at "
        f"{each.gateway})"
        for each in unknown_attempts(payment)
    )


def _broken_resolve_dispute(payment: Payment, command: PaymentCommand) -> str | None:
    disputes = named(payment, command.dispute_id, command.gateway)
    if not disputes:
        return DISPUTE_MUST_BE_KNOWN
    if len(disputes) > 1:
        return DISPUTE_MUST_NAME_ITS_GATEWAY
    return DISPUTE_MUST_NOT_BE_DECIDED_SO if disputes[0].state == command.decision else None


def _broken_figures(payment: Payment, command: PaymentCommand) -> str | None:
    figures = amounts_out_of_order(payment)
    if figures is None or command.figures != figures:
        return FIGURES_MUST_BE_THE_PAYMENTS
    known = is_acknowledged(payment, AMOUNTS_OUT_OF_ORDER, figures)
    return FINDING_MUST_NOT_BE_ACKNOWLEDGED_SO if known else None


def _broken_cancel(payment: Payment) -> str | None:
    status = payment.status
    if payment.cancel_requested_by is not None and status in UNDECIDED:
        return CANCEL_MUST_NOT_BE_REPEATED
    if status in UNDECIDED or status == RISK_REVIEW or retry_waits(payment):
        return None
    if payment.captured_minor or reserved_minor(payment, CAPTURE):
        return PAYMENT_MUST_NOT_BE_CAPTURED
    return None if status == AUTHORIZED else PAYMENT_MUST_BE_OPEN


def retry_waits(payment: Payment) -> bool:
    """Whether a payment that failed is to be tried again, and a cancel has something to bar."""
    return payment.status == FAILED and any(each.type == RETRY for each in payment.commands)


def _broken_retry(payment: Payment, command: PaymentCommand, now_ms: int) -> str | None:
    if payment.status != FAILED:
        return PAYMENT_MUST_HAVE_FAILED
    new = instrument(command.instrument_token or "", command.card_fingerprint)
    if is_barred(payment, new):
        return CARD_MUST_NOT_BE_TRIED_AGAIN
    if was_tried(payment, new):
        return TOKEN_MUST_BE_NEW
    if payment.pay_before_ms is not None and now_ms >= payment.pay_before_ms:
        return PAY_BEFORE_MUST_BE_AHEAD
    return None


def capturable_minor(payment: Payment) -> int:
    """What a capture may still take: of the standing authorization, less what was captured of it
    or is being captured; nothing once the hold is over."""
    main = standing_main(payment)
    if main is None or main.kind != AUTHORIZE or payment.status not in (AUTHORIZED, CAPTURED):
        return 0
    taken_minor = sum(
        amount_of(payment, each)
        for each in payment.attempts
        if each.kind == CAPTURE and (has_succeeded(each.state) or is_unfinished(each))
    )
    held_minor = payment.authorized_minor - payment.captured_minor
    return min(
        amount_of(payment, main) - taken_minor, held_minor - reserved_minor(payment, CAPTURE)
    )

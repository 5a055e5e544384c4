"""The life of a payment as two tables: one for the payment, one for what is tried at a gateway.

An *attempt* is one operation (charge, authorize, capture, void, refund) at one gateway under one
key. Processors decide *what happened* (the trigger) and look up here what follows; a trigger that
is not in the table is a bug, never an input's fault, so it breaks an invariant before anything is
committed. The diagrams in ``docs/lifecycle.md`` are drawn from these tables.

How much was captured, refunded or disputed is no status: amounts say it, see ``shown``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from msgspec import Struct

from pipeline.domain.invariant import InvariantBroken

# Kinds of operations. CHARGE authorizes and captures in one; the other ones do what they say.
CHARGE: Final = "charge"
AUTHORIZE: Final = "authorize"
CAPTURE: Final = "capture"
VOID: Final = "void"
REFUND: Final = "refund"
# The kinds that take the customer's money or a hold on it: the payment's status follows them.
MAIN_KINDS: Final = frozenset({CHARGE, AUTHORIZE})

# Statuses of a payment. NEW stands for a payment that the table does not hold yet.
NEW: Final = "new"
AWAITING_ORDER: Final = "awaiting_order"
RISK_REVIEW: Final = "risk_review"
PROCESSING: Final = "processing"
REQUIRES_CUSTOMER_ACTION: Final = "requires_customer_action"
OUTCOME_UNKNOWN: Final = "outcome_unknown"
AUTHORIZED: Final = "authorized"
CAPTURED: Final = "captured"
CANCELLED: Final = "cancelled"
EXPIRED: Final = "expired"
FAILED: Final = "failed"
REJECTED: Final = "rejected"
NO_PAYMENT_DUE: Final = "no_payment_due"
CREDIT_HELD: Final = "credit_held"

# States of an attempt. NONE stands for one that was not begun; SUCCEEDED for the final state that
# the attempt's kind gives it (``SUCCEEDED_STATES``).
NONE: Final = ""
PERMIT_WAITING: Final = "permit_waiting"
STARTED: Final = "started"
RETRY_WAITING: Final = "retry_waiting"
INQUIRY_WAITING: Final = "inquiry_waiting"
INQUIRING: Final = "inquiring"
INQUIRY_EXHAUSTED: Final = "inquiry_exhausted"
PENDING: Final = "pending"
CONTRADICTED: Final = "contradicted"
SUCCEEDED: Final = "succeeded"
CHARGED: Final = "charged"
REFUNDED: Final = "refunded"
VOIDED: Final = "voided"
DECLINED: Final = "declined"
ATTEMPT_FAILED: Final = "failed"

SUCCEEDED_STATES: Final[Mapping[str, str]] = {
    CHARGE: CHARGED,
    AUTHORIZE: AUTHORIZED,
    CAPTURE: CAPTURED,
    VOID: VOIDED,
    REFUND: REFUNDED,
}
_SUCCESSES: Final = frozenset(SUCCEEDED_STATES.values())

# Where the money of an attempt may still move, or may have moved without our knowing.
OPEN_STATES: Final = (
    STARTED,
    RETRY_WAITING,
    INQUIRY_WAITING,
    INQUIRING,
    INQUIRY_EXHAUSTED,
    PENDING,
)
# Where an answer or a wait is on its way; a pending one may take days and is left out.
BUSY_STATES: Final = frozenset({PERMIT_WAITING, STARTED, RETRY_WAITING, INQUIRY_WAITING, INQUIRING})

# Triggers of an attempt.
BEGIN: Final = "begin"
BEGIN_LATER: Final = "begin_later"
ASK_PERMIT: Final = "ask_permit"
PERMIT_GIVEN: Final = "permit_given"
SUCCESS_SEEN: Final = "success_seen"
LATE_SUCCESS_SEEN: Final = "late_success_seen"
DECLINE_SEEN: Final = "decline_seen"
FAILURE_SEEN: Final = "failure_seen"
NOT_SENT_SEEN: Final = "not_sent_seen"
OUTCOME_UNCERTAIN: Final = "outcome_uncertain"
PENDING_SEEN: Final = "pending_seen"
RETRY_DUE: Final = "retry_due"
PROOF_DUE: Final = "proof_due"
INQUIRY_DUE: Final = "inquiry_due"
INQUIRY_INCONCLUSIVE: Final = "inquiry_inconclusive"
INQUIRIES_EXHAUSTED: Final = "inquiries_exhausted"
SEND_AGAIN: Final = "send_again"
GIVE_UP: Final = "give_up"
CONTRADICTION_SEEN: Final = "contradiction_seen"
RESOLVED_DONE: Final = "resolved_done"
RESOLVED_NOT_DONE: Final = "resolved_not_done"
RECORD: Final = "record"

# Triggers of a payment.
ORDER_ACCEPTED: Final = "order_accepted"
ORDER_REJECTED: Final = "order_rejected"
ORDER_CANCELLED: Final = "order_cancelled"
NOTHING_DUE: Final = "nothing_due"
COUNTS_ASKED: Final = "counts_asked"
REVIEW_ASKED: Final = "review_asked"
REVIEW_APPROVED: Final = "review_approved"
REVIEW_DENIED: Final = "review_denied"
COMMAND_CAME_FIRST: Final = "command_came_first"
CREDIT_BOOKED: Final = "credit_booked"
CHARGE_FOUND: Final = "charge_found"
CHARGE_SEEN: Final = "charge_seen"
AUTHORIZATION_SEEN: Final = "authorization_seen"
CAPTURE_SEEN: Final = "capture_seen"
DECLINED_FINALLY: Final = "declined_finally"
GIVEN_UP: Final = "given_up"
BECAME_UNKNOWN: Final = "became_unknown"
BECAME_KNOWN: Final = "became_known"
ACTION_ASKED: Final = "action_asked"
ACTION_TAKEN: Final = "action_taken"
RETRY_ASKED: Final = "retry_asked"
RETRY_REFUSED: Final = "retry_refused"
CANCEL_CONFIRMED: Final = "cancel_confirmed"
DEADLINE_PASSED: Final = "deadline_passed"

# Events that are not the name of a status or of an attempt's state.
RISK_CHECKING: Final = "risk_checking"
RISK_COUNTED: Final = "risk_counted"
PERMIT_ASKED: Final = "permit_asked"
PAYMENT_STARTED: Final = "payment_started"
PAYMENT_RETRIED: Final = "payment_retried"
RETRY_SCHEDULED: Final = "retry_scheduled"
RETRY_STARTED: Final = "retry_started"
INQUIRY_SCHEDULED: Final = "inquiry_scheduled"
INQUIRY_STARTED: Final = "inquiry_started"
RESEND_SCHEDULED: Final = "resend_scheduled"
FAILOVER_STARTED: Final = "failover_started"
LATE_SUCCESS: Final = "late_success"
REVERSAL_STARTED: Final = "reversal_started"
REVERSAL_HELD: Final = "reversal_held"
REVERSAL_FAILED: Final = "reversal_failed"
GIVE_BACK_ORDERED: Final = "give_back_ordered"
CAPTURE_STARTED: Final = "capture_started"
VOID_STARTED: Final = "void_started"
REFUND_STARTED: Final = "refund_started"
CAPTURE_FAILED: Final = "capture_failed"
VOID_FAILED: Final = "void_failed"
REFUND_FAILED: Final = "refund_failed"
CHARGE_FAILED: Final = "charge_failed"
AUTHORIZATION_FAILED: Final = "authorization_failed"
ANSWER_CAME_LATE: Final = "answer_came_late"
CONTRADICTORY_EVIDENCE: Final = "contradictory_evidence"
ORDER_CONFLICT: Final = "order_conflict"
INPUT_DEAD_LETTERED: Final = "input_dead_lettered"
COMMAND_WAITING: Final = "command_waiting"
COMMAND_REJECTED: Final = "command_rejected"
CANCEL_REQUESTED: Final = "cancel_requested"
AUTHORIZATION_LAPSED: Final = "authorization_lapsed"
AUTHORIZATION_PROLONGED: Final = "authorization_prolonged"
LOSS_POSTED: Final = "loss_posted"
DISPUTE_INQUIRY: Final = "dispute_inquiry"
DISPUTE_OPENED: Final = "dispute_opened"
DISPUTE_WON: Final = "dispute_won"
DISPUTE_LOST: Final = "dispute_lost"
DISPUTE_PRE_ARBITRATION: Final = "dispute_pre_arbitration"
FINDING_ACKNOWLEDGED: Final = "finding_acknowledged"

# Events that leave status and attempts as they are; allowed wherever a payment stands.
STANDING_EVENTS: Final = frozenset(
    {
        ORDER_CONFLICT,
        ANSWER_CAME_LATE,
        CONTRADICTORY_EVIDENCE,
        INPUT_DEAD_LETTERED,
        RISK_COUNTED,
        COMMAND_WAITING,
        COMMAND_REJECTED,
        CANCEL_REQUESTED,
        AUTHORIZATION_LAPSED,
        AUTHORIZATION_PROLONGED,
        LOSS_POSTED,
        REVERSAL_HELD,
        REVERSAL_FAILED,
        GIVE_BACK_ORDERED,
        DISPUTE_INQUIRY,
        DISPUTE_OPENED,
        DISPUTE_WON,
        DISPUTE_LOST,
        DISPUTE_PRE_ARBITRATION,
        FINDING_ACKNOWLEDGED,
    }
)


class Step(Struct, frozen=True):
    """Where a trigger leads, and the type of the event that tells of it.

    One change has one event: where an attempt's step moves the payment as well, the payment's
    event is told, or the attempt's where the payment's is None. ``started``, ``succeeded`` and
    ``failed`` of an attempt are told by its kind.
    """

    to: str
    event: str | None


STARTED_EVENTS: Final[Mapping[str, str]] = {
    CHARGE: PAYMENT_STARTED,
    AUTHORIZE: PAYMENT_STARTED,
    CAPTURE: CAPTURE_STARTED,
    VOID: VOID_STARTED,
    REFUND: REFUND_STARTED,
}
FAILED_EVENTS: Final[Mapping[str, str]] = {
    CHARGE: CHARGE_FAILED,
    AUTHORIZE: AUTHORIZATION_FAILED,
    CAPTURE: CAPTURE_FAILED,
    VOID: VOID_FAILED,
    REFUND: REFUND_FAILED,
}

_T = Step

PAYMENT_TRANSITIONS: Final[Mapping[tuple[str, str], Step]] = {
    # An order arrives; a command may have been faster, and waits for it.
    **{
        (status, trigger): step
        for status in (NEW, AWAITING_ORDER)
        for trigger, step in {
            ORDER_ACCEPTED: _T(PROCESSING, PAYMENT_STARTED),
            ORDER_REJECTED: _T(REJECTED, REJECTED),
            NOTHING_DUE: _T(NO_PAYMENT_DUE, NO_PAYMENT_DUE),
            REVIEW_ASKED: _T(RISK_REVIEW, RISK_REVIEW),
            COUNTS_ASKED: _T(PROCESSING, RISK_CHECKING),
        }.items()
    },
    # It was counted, or was not in time: now its risk is decided.
    (PROCESSING, ORDER_ACCEPTED): _T(PROCESSING, PAYMENT_STARTED),
    (PROCESSING, ORDER_REJECTED): _T(REJECTED, REJECTED),
    (PROCESSING, REVIEW_ASKED): _T(RISK_REVIEW, RISK_REVIEW),
    (PROCESSING, DEADLINE_PASSED): _T(EXPIRED, EXPIRED),
    (NEW, COMMAND_CAME_FIRST): _T(AWAITING_ORDER, AWAITING_ORDER),
    (NEW, CREDIT_BOOKED): _T(CREDIT_HELD, CREDIT_HELD),
    # Money that nobody here asked for was taken; a person has it given back.
    (NEW, CHARGE_FOUND): _T(CAPTURED, CHARGE_FOUND),
    (AWAITING_ORDER, CHARGE_FOUND): _T(CAPTURED, CHARGE_FOUND),
    (AWAITING_ORDER, ORDER_CANCELLED): _T(CANCELLED, CANCELLED),
    # A person looks at it before anybody is asked for money.
    (RISK_REVIEW, REVIEW_APPROVED): _T(PROCESSING, PAYMENT_STARTED),
    (RISK_REVIEW, REVIEW_DENIED): _T(REJECTED, REJECTED),
    (RISK_REVIEW, CANCEL_CONFIRMED): _T(CANCELLED, CANCELLED),
    (RISK_REVIEW, DEADLINE_PASSED): _T(EXPIRED, EXPIRED),
    # The charge or authorization comes to an outcome.
    **{
        (status, trigger): step
        for status in (PROCESSING, OUTCOME_UNKNOWN, REQUIRES_CUSTOMER_ACTION)
        for trigger, step in {
            CHARGE_SEEN: _T(CAPTURED, CAPTURED),
            AUTHORIZATION_SEEN: _T(AUTHORIZED, AUTHORIZED),
            DECLINED_FINALLY: _T(FAILED, FAILED),
            CANCEL_CONFIRMED: _T(CANCELLED, CANCELLED),
        }.items()
    },
    (PROCESSING, BECAME_UNKNOWN): _T(OUTCOME_UNKNOWN, None),
    (REQUIRES_CUSTOMER_ACTION, BECAME_UNKNOWN): _T(OUTCOME_UNKNOWN, None),
    (OUTCOME_UNKNOWN, BECAME_KNOWN): _T(PROCESSING, None),
    (PROCESSING, GIVEN_UP): _T(FAILED, FAILED),
    (OUTCOME_UNKNOWN, GIVEN_UP): _T(FAILED, FAILED),
    (PROCESSING, ACTION_ASKED): _T(REQUIRES_CUSTOMER_ACTION, REQUIRES_CUSTOMER_ACTION),
    (OUTCOME_UNKNOWN, ACTION_ASKED): _T(REQUIRES_CUSTOMER_ACTION, REQUIRES_CUSTOMER_ACTION),
    # The gateway goes on without asking: the customer has done it.
    (REQUIRES_CUSTOMER_ACTION, ACTION_TAKEN): _T(PROCESSING, None),
    (REQUIRES_CUSTOMER_ACTION, DEADLINE_PASSED): _T(EXPIRED, EXPIRED),
    # After the first outcome.
    (AUTHORIZED, CAPTURE_SEEN): _T(CAPTURED, CAPTURED),
    (AUTHORIZED, CANCEL_CONFIRMED): _T(CANCELLED, CANCELLED),
    (AUTHORIZED, DEADLINE_PASSED): _T(EXPIRED, EXPIRED),
    (FAILED, RETRY_ASKED): _T(PROCESSING, PAYMENT_RETRIED),
    # A person looks at a retry before the other instrument is asked for money.
    (FAILED, REVIEW_ASKED): _T(RISK_REVIEW, RISK_REVIEW),
    (RISK_REVIEW, RETRY_ASKED): _T(PROCESSING, PAYMENT_RETRIED),
    (RISK_REVIEW, RETRY_REFUSED): _T(FAILED, FAILED),
}

ATTEMPT_TRANSITIONS: Final[Mapping[tuple[str, str], Step]] = {
    (NONE, BEGIN): _T(STARTED, STARTED),
    # What goes back after a decline that may pass waits before anything is sent.
    (NONE, BEGIN_LATER): _T(RETRY_WAITING, RETRY_SCHEDULED),
    (RETRY_WAITING, GIVE_UP): _T(ATTEMPT_FAILED, FAILED),
    # What a person gave back outside the gateway was made before it was heard of.
    (NONE, RECORD): _T(SUCCEEDED, SUCCEEDED),
    # Whether its card may be tried once more is asked first, where declines are counted.
    (NONE, ASK_PERMIT): _T(PERMIT_WAITING, PERMIT_ASKED),
    (PERMIT_WAITING, PERMIT_GIVEN): _T(STARTED, STARTED),
    (PERMIT_WAITING, GIVE_UP): _T(ATTEMPT_FAILED, FAILED),
    # The request is answered.
    (STARTED, NOT_SENT_SEEN): _T(RETRY_WAITING, RETRY_SCHEDULED),
    (STARTED, OUTCOME_UNCERTAIN): _T(INQUIRY_WAITING, OUTCOME_UNKNOWN),
    # A wait is over.
    (RETRY_WAITING, RETRY_DUE): _T(STARTED, RETRY_STARTED),
    (RETRY_WAITING, PROOF_DUE): _T(INQUIRING, INQUIRY_STARTED),
    (INQUIRY_WAITING, INQUIRY_DUE): _T(INQUIRING, INQUIRY_STARTED),
    (PENDING, INQUIRY_DUE): _T(INQUIRING, INQUIRY_STARTED),
    # An inquiry is answered.
    (INQUIRING, INQUIRY_INCONCLUSIVE): _T(INQUIRY_WAITING, INQUIRY_SCHEDULED),
    (INQUIRING, INQUIRIES_EXHAUSTED): _T(INQUIRY_EXHAUSTED, INQUIRY_EXHAUSTED),
    (INQUIRING, SEND_AGAIN): _T(STARTED, RESEND_SCHEDULED),
    (INQUIRING, GIVE_UP): _T(ATTEMPT_FAILED, FAILED),
    # A gateway's word counts whenever it comes: as the answer, by webhook, or from an earlier try.
    **{(state, SUCCESS_SEEN): _T(SUCCEEDED, SUCCEEDED) for state in OPEN_STATES},
    **{(state, DECLINE_SEEN): _T(DECLINED, FAILED) for state in OPEN_STATES},
    **{(state, PENDING_SEEN): _T(PENDING, PENDING) for state in OPEN_STATES},
    **{
        (state, CONTRADICTION_SEEN): _T(CONTRADICTED, CONTRADICTORY_EVIDENCE)
        for state in OPEN_STATES
    },
    # What seemed to be over was not.
    (DECLINED, LATE_SUCCESS_SEEN): _T(SUCCEEDED, LATE_SUCCESS),
    (ATTEMPT_FAILED, LATE_SUCCESS_SEEN): _T(SUCCEEDED, LATE_SUCCESS),
    (SUCCEEDED, FAILURE_SEEN): _T(ATTEMPT_FAILED, FAILED),
    **{
        (state, FAILURE_SEEN): _T(ATTEMPT_FAILED, FAILED)
        for state in (*OPEN_STATES, DECLINED, ATTEMPT_FAILED)
    },
    # A person says what no gateway would.
    **{
        (state, trigger): step
        for state in (INQUIRY_WAITING, INQUIRING, INQUIRY_EXHAUSTED, CONTRADICTED)
        for trigger, step in {
            RESOLVED_DONE: _T(SUCCEEDED, SUCCEEDED),
            RESOLVED_NOT_DONE: _T(ATTEMPT_FAILED, FAILED),
        }.items()
    },
}

_TOLD_BY_KIND: Final[Mapping[str, Mapping[str, str]]] = {
    STARTED: STARTED_EVENTS,
    SUCCEEDED: SUCCEEDED_STATES,
    FAILED: FAILED_EVENTS,
}


@cache
def payment_step(status: str, trigger: str) -> Step:
    """What follows for a payment; raises InvariantBroken where the table has no such step."""
    found = PAYMENT_TRANSITIONS.get((status, trigger))
    if found is None:
        raise InvariantBroken(f"{trigger} is not possible for a payment that is {status}")
    return found


@cache
def attempt_step(kind: str, state: str, trigger: str) -> Step:
    """What follows for an attempt of this kind; raises InvariantBroken like ``payment_step``."""
    found = ATTEMPT_TRANSITIONS.get((SUCCEEDED if state in _SUCCESSES else state, trigger))
    if found is None:
        raise InvariantBroken(f"{trigger} is not possible for a {kind} that is {state or 'new'}")
    to = SUCCEEDED_STATES[kind] if found.to == SUCCEEDED else found.to
    told = _TOLD_BY_KIND.get(found.event or NONE)
    return Step(to, found.event if told is None else told[kind])


def has_succeeded(state: str) -> bool:
    """Whether an attempt in this state moved what it was to move."""
    return state in _SUCCESSES


def payment_diagram() -> str:
    """The payment's table as a mermaid state diagram, in the table's order."""
    return _mermaid(PAYMENT_TRANSITIONS, NEW)


def attempt_diagram() -> str:
    """The attempt's table as a mermaid state diagram, in the table's order."""
    return _mermaid(ATTEMPT_TRANSITIONS, NONE)


def _mermaid(table: Mapping[tuple[str, str], Step], start: str) -> str:
    lines = ["stateDiagram-v2"]
    for (source, trigger), step in table.items():
        lines.append(f"    {'[*]' if source == start else source} --> {step.to}: {trigger}")
    left = {source for source, _ in table}
    ends = sorted({step.to for step in table.values()} - left)
    lines += [f"    {end} --> [*]" for end in ends]
    return "\n".join(lines) + "\n"

"""The life of a payment as one table: from where, on what, to where, and the event that says so.

A payment's place is its status and the state of its latest attempt. Processors decide *what
happened* (the trigger) and look up here what follows; a pair that is not in the table is a bug,
never an input's fault, so it breaks an invariant before anything is committed. The diagram in
``docs/lifecycle.md`` is drawn from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from pipeline.domain.invariant import InvariantBroken

# Statuses of a payment. NEW stands for a payment that the table does not hold yet.
NEW: Final = "new"
PROCESSING: Final = "processing"
OUTCOME_UNKNOWN: Final = "outcome_unknown"
CAPTURED: Final = "captured"
FAILED: Final = "failed"
REJECTED: Final = "rejected"
NO_PAYMENT_DUE: Final = "no_payment_due"

# States of an attempt.
NONE: Final = ""
STARTED: Final = "started"
RETRY_WAITING: Final = "retry_waiting"
INQUIRY_WAITING: Final = "inquiry_waiting"
INQUIRING: Final = "inquiring"
INQUIRY_EXHAUSTED: Final = "inquiry_exhausted"
CONTRADICTED: Final = "contradicted"
CHARGED: Final = "charged"
DECLINED: Final = "declined"
ATTEMPT_FAILED: Final = "failed"

# Triggers: what happened, as the processors judge it.
ORDER_ACCEPTED: Final = "order_accepted"
ORDER_REJECTED: Final = "order_rejected"
NOTHING_DUE: Final = "nothing_due"
SUCCESS_SEEN: Final = "success_seen"
DECLINE_SEEN: Final = "decline_seen"
NOT_SENT_SEEN: Final = "not_sent_seen"
OUTCOME_UNCERTAIN: Final = "outcome_uncertain"
RETRY_DUE: Final = "retry_due"
PROOF_DUE: Final = "proof_due"
INQUIRY_DUE: Final = "inquiry_due"
INQUIRY_INCONCLUSIVE: Final = "inquiry_inconclusive"
INQUIRIES_EXHAUSTED: Final = "inquiries_exhausted"
CHARGE_AGAIN: Final = "charge_again"
MOVE_ON: Final = "move_on"
GIVE_UP: Final = "give_up"
CONTRADICTION_SEEN: Final = "contradiction_seen"

# Events that are not the name of a status or of an attempt's state.
PAYMENT_STARTED: Final = "payment_started"
RETRY_SCHEDULED: Final = "retry_scheduled"
RETRY_STARTED: Final = "retry_started"
INQUIRY_SCHEDULED: Final = "inquiry_scheduled"
INQUIRY_STARTED: Final = "inquiry_started"
RESEND_SCHEDULED: Final = "resend_scheduled"
FAILOVER_STARTED: Final = "failover_started"
CONTRADICTORY_EVIDENCE: Final = "contradictory_evidence"
ORDER_CONFLICT: Final = "order_conflict"
INPUT_DEAD_LETTERED: Final = "input_dead_lettered"

# Events that leave status and attempt as they are; allowed wherever a payment stands.
STANDING_EVENTS: Final = frozenset({ORDER_CONFLICT, CONTRADICTORY_EVIDENCE, INPUT_DEAD_LETTERED})


class Transition(Struct, frozen=True):
    """Where a trigger leads, and the type of the event that tells of it."""

    status: str
    attempt_state: str
    event: str


Place = tuple[str, str]

# Where money may still move, or may have moved without our knowing.
OPEN_PLACES: Final[tuple[Place, ...]] = (
    (PROCESSING, STARTED),
    (PROCESSING, RETRY_WAITING),
    (PROCESSING, INQUIRY_WAITING),
    (PROCESSING, INQUIRING),
    (OUTCOME_UNKNOWN, INQUIRY_WAITING),
    (OUTCOME_UNKNOWN, INQUIRING),
    (OUTCOME_UNKNOWN, INQUIRY_EXHAUSTED),
)

_P, _U = PROCESSING, OUTCOME_UNKNOWN
_T = Transition

TRANSITIONS: Final[Mapping[tuple[str, str, str], Transition]] = {
    # An order arrives.
    (NEW, NONE, ORDER_ACCEPTED): _T(_P, STARTED, PAYMENT_STARTED),
    (NEW, NONE, ORDER_REJECTED): _T(REJECTED, NONE, REJECTED),
    (NEW, NONE, NOTHING_DUE): _T(NO_PAYMENT_DUE, NONE, NO_PAYMENT_DUE),
    # A charge is answered.
    (_P, STARTED, DECLINE_SEEN): _T(FAILED, DECLINED, FAILED),
    (_P, STARTED, NOT_SENT_SEEN): _T(_P, RETRY_WAITING, RETRY_SCHEDULED),
    (_P, STARTED, OUTCOME_UNCERTAIN): _T(_U, INQUIRY_WAITING, OUTCOME_UNKNOWN),
    # A wait is over.
    (_P, RETRY_WAITING, RETRY_DUE): _T(_P, STARTED, RETRY_STARTED),
    (_P, RETRY_WAITING, PROOF_DUE): _T(_P, INQUIRING, INQUIRY_STARTED),
    (_P, INQUIRY_WAITING, INQUIRY_DUE): _T(_P, INQUIRING, INQUIRY_STARTED),
    (_U, INQUIRY_WAITING, INQUIRY_DUE): _T(_U, INQUIRING, INQUIRY_STARTED),
    # An inquiry about a charge that was, as far as we know, never sent.
    (_P, INQUIRING, DECLINE_SEEN): _T(FAILED, DECLINED, FAILED),
    (_P, INQUIRING, OUTCOME_UNCERTAIN): _T(_U, INQUIRY_WAITING, OUTCOME_UNKNOWN),
    (_P, INQUIRING, INQUIRY_INCONCLUSIVE): _T(_P, INQUIRY_WAITING, INQUIRY_SCHEDULED),
    (_P, INQUIRING, CHARGE_AGAIN): _T(_P, STARTED, RESEND_SCHEDULED),
    (_P, INQUIRING, MOVE_ON): _T(_P, STARTED, FAILOVER_STARTED),
    (_P, INQUIRING, GIVE_UP): _T(FAILED, ATTEMPT_FAILED, FAILED),
    # An inquiry about a charge that may have happened.
    (_U, INQUIRING, DECLINE_SEEN): _T(FAILED, DECLINED, FAILED),
    (_U, INQUIRING, INQUIRY_INCONCLUSIVE): _T(_U, INQUIRY_WAITING, INQUIRY_SCHEDULED),
    (_U, INQUIRING, INQUIRIES_EXHAUSTED): _T(_U, INQUIRY_EXHAUSTED, INQUIRY_EXHAUSTED),
    (_U, INQUIRING, CHARGE_AGAIN): _T(_P, STARTED, RESEND_SCHEDULED),
    (_U, INQUIRING, MOVE_ON): _T(_P, STARTED, FAILOVER_STARTED),
    (_U, INQUIRING, GIVE_UP): _T(FAILED, ATTEMPT_FAILED, FAILED),
    # Evidence of a charge counts whenever it comes, and so does evidence that cannot be believed.
    **{(*place, SUCCESS_SEEN): _T(CAPTURED, CHARGED, CAPTURED) for place in OPEN_PLACES},
    **{
        (*place, CONTRADICTION_SEEN): _T(_U, CONTRADICTED, CONTRADICTORY_EVIDENCE)
        for place in OPEN_PLACES
    },
}


def transition(status: str, attempt_state: str, trigger: str) -> Transition:
    """What follows from a trigger; raises InvariantBroken where the table has no such step."""
    found = TRANSITIONS.get((status, attempt_state, trigger))
    if found is None:
        raise InvariantBroken(f"{trigger} is not possible for a {status}/{attempt_state} payment")
    return found


def mermaid() -> str:
    """The table as a mermaid state diagram, in the table's order."""
    lines = ["stateDiagram-v2"]
    for (status, state, trigger), step in TRANSITIONS.items():
        source = _node(status, state)
        target = _node(step.status, step.attempt_state)
        if trigger in (SUCCESS_SEEN, CONTRADICTION_SEEN):
            continue
        lines.append(f"    {source} --> {target}: {trigger}")
    for trigger in (SUCCESS_SEEN, CONTRADICTION_SEEN):
        for status, state in OPEN_PLACES:
            step = TRANSITIONS[status, state, trigger]
            target = _node(step.status, step.attempt_state)
            lines.append(f"    {_node(status, state)} --> {target}: {trigger}")
    ends = {(CAPTURED, CHARGED), (FAILED, DECLINED), (REJECTED, NONE), (NO_PAYMENT_DUE, NONE)}
    lines += [f"    {_node(*end)} --> [*]" for end in sorted(ends)]
    return "\n".join(lines) + "\n"


def _node(status: str, attempt_state: str) -> str:
    if status == NEW:
        return "[*]"
    if status in (PROCESSING, OUTCOME_UNKNOWN):
        return f"{status}__{attempt_state}"
    return status

"""What is owed back and is tried no more: the reversals that ended without success, or in part.

Told from the payment's last snapshot alone, whatever state it is in: a reversal is of one charge or
authorization, and what another one lost, or took, settles nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pipeline.audit.derivation import reversal_operation_id
from pipeline.audit.evidence import MAIN_KINDS, AttemptSeen, PaymentEvidence, SnapshotSeen

# States of an attempt that ended without having moved anything.
REFUSED: Final = frozenset({"declined", "failed"})
# The same, and those of a refund that was made: it may have been of a part.
_ENDED: Final = REFUSED | {"refunded"}
# Code of such a void whose hold is known to be over all the same.
_LAPSED: Final = "authorization_lapsed"


def given_up(payment: PaymentEvidence) -> Iterator[tuple[AttemptSeen, int]]:
    """Each reversal that was given up, or gave back a part, and what of it is still owed: it has no
    successor, and nothing else gave back, or may still give back, what it was for."""
    snapshot = payment.snapshot
    if snapshot is None:
        return
    order_id = payment.key.partition(":")[2]
    begun = {a.operation_id for a in snapshot.attempts if a.kind not in MAIN_KINDS}
    for each in snapshot.attempts:
        if (
            each.kind in ("refund", "void")
            and each.state in _ENDED
            and each.operation_id.startswith("late-")
            and each.parent is not None
            and reversal_operation_id(order_id, each.operation_id, each.attempt) not in begun
        ):
            if each.kind == "void":
                minor = _void_owed(snapshot, each)
            else:
                minor = _owed(snapshot, _row(order_id, snapshot, each))
            if minor > 0:
                yield each, minor


def withdrawn_of_minor(snapshot: SnapshotSeen, gateway: str, reference: str | None) -> int:
    """What banks hold, or have taken, in disputes that are or may be about this charge."""
    known = {(a.gateway, a.gateway_reference) for a in snapshot.attempts if a.kind in MAIN_KINDS}
    return sum(
        each.withdrawn_minor
        for each in snapshot.disputes
        if each.gateway == gateway
        and (each.charge_reference == reference or (gateway, each.charge_reference) not in known)
    )


def _void_owed(snapshot: SnapshotSeen, void: AttemptSeen) -> int:
    released = any(
        each.code == _LAPSED if each.state in REFUSED else each is not void
        for each in snapshot.attempts
        if each.kind == "void" and each.parent == void.parent
    )
    return 0 if released else void.amount_minor or snapshot.amount_minor


def _row(order_id: str, snapshot: SnapshotSeen, last: AttemptSeen) -> list[AttemptSeen]:
    """A reversal and those that it took the place of, the newest first."""
    by_successor = {
        reversal_operation_id(order_id, each.operation_id, each.attempt): each
        for each in snapshot.attempts
        if each.kind == last.kind and each.operation_id.startswith("late-")
    }
    row = [last]
    while row[-1].operation_id in by_successor and len(row) < len(snapshot.attempts):
        row.append(by_successor[row[-1].operation_id])
    return row


def _owed(snapshot: SnapshotSeen, row: list[AttemptSeen]) -> int:
    """Of what the first of a row of refunds was meant for. At most what its charge still has, and
    at most what the payment has: what a bank took for good is with the customer already."""
    refund, first = row[0], row[-1]
    taken_minor = back_minor = all_back_minor = lost_minor = all_lost_minor = 0
    charge = next(
        (a for a in snapshot.attempts if (a.operation_id, a.attempt) == refund.parent), None
    )
    for each in snapshot.attempts:
        minor = each.amount_minor or snapshot.amount_minor
        if each is charge and each.state == "charged":
            taken_minor += minor
        elif each.state == "captured" and each.parent in (None, refund.parent):
            # Captures of before it was kept do not say of which hold they are.
            taken_minor += minor
        elif each.kind == "refund" and each.state not in REFUSED:
            all_back_minor += minor
            back_minor += minor if each.parent == refund.parent else 0
    for dispute in snapshot.disputes:
        if dispute.state == "lost":
            all_lost_minor += dispute.withdrawn_minor
            if (
                charge is not None
                and dispute.charge_reference is not None
                and (dispute.gateway, dispute.charge_reference)
                == (charge.gateway, charge.gateway_reference)
            ):
                lost_minor += dispute.withdrawn_minor
    wanted_minor = first.meant_minor or first.amount_minor or snapshot.amount_minor
    if charge is not None and charge.kind == "charge":
        # All of it came too late, whatever of it went back before.
        wanted_minor = charge.amount_minor or snapshot.amount_minor
    else:
        wanted_minor -= sum(
            each.amount_minor or snapshot.amount_minor for each in row if each.state == "refunded"
        )
    return min(
        wanted_minor,
        taken_minor - back_minor - lost_minor,
        snapshot.captured_minor - all_back_minor - all_lost_minor,
    )

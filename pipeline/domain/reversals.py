"""What came too late and has to go back: what of it is still owed, and what was given up.

A reversal that ended without success has a successor, an operation of its own that is named for it
as it was named for what it gives back. So what is owed is seen from the last of each row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from pipeline.domain.charges import captured_of_minor, refunded_of_minor
from pipeline.domain.disputes import LOST, bars_refunds, with_ground
from pipeline.domain.ids import reversal_operation_id
from pipeline.domain.lifecycle import (
    ATTEMPT_FAILED,
    AUTHORIZATION_LAPSED,
    CAPTURE,
    CHARGE,
    DECLINED,
    MAIN_KINDS,
    REFUND,
    RETRY_WAITING,
    VOID,
    has_succeeded,
)
from pipeline.domain.model import Attempt, Dispute, Payment
from pipeline.domain.payment import (
    ATTEMPTS_MAX,
    amount_of,
    find_attempt,
    is_reversal,
    is_unfinished,
    parent_of,
    refundable_minor,
)
from pipeline.domain.policy import DAY_MS, Policy
from pipeline.domain.routing import profile_of

# Code of a reversal that waits for the end of a dispute, and why one is not sent again during it.
DISPUTED: Final = "disputed"

# Kinds of operations whose success may come too late and is given back then.
_TAKING_KINDS: Final = MAIN_KINDS | {CAPTURE}

# Operations of a payment that no reversal takes: for charges at further gateways, and for people
# who record what was given back otherwise.
ATTEMPTS_KEPT: Final = 8

# A gateway's word about a void that is as good as one: the hold has ended by itself.
AUTHORIZATION_EXPIRED: Final = "authorization_expired"

# Code of a void without success whose hold is known to be over, by its gateway's word or its time.
LAPSED: Final = AUTHORIZATION_LAPSED

# Codes of a refund that had succeeded and failed later, by a notice or as an inquiry tells it (kept
# so by records of before): a success is no news to it, but older than that.
FAILED_LATER: Final = "failed_later"
RETURNED: Final = "returned"
CAME_BACK: Final = frozenset({FAILED_LATER, RETURNED})

# Reversals in a row of which each ended without success; then a person has to look. One is declined
# for a gateway's own trouble every hour, or proven unsent half a day after it began.
REVERSALS_MAX: Final = 5

# The longest that a card network lets a hold last: JCB's, a year. Most have 7 to 31 days.
HOLD_MS_MAX: Final = 365 * DAY_MS


def owed_minor(payment: Payment, reversal: Attempt) -> int:
    """What a reversal still has to give back, itself aside: nothing once something else has."""
    parent = parent_of(payment, reversal)
    if parent is None:
        return amount_of(payment, reversal)
    if reversal.kind == VOID:
        done = is_released(payment, parent) or any(
            (each.operation_id, each.attempt) != (reversal.operation_id, reversal.attempt)
            and each.state not in (DECLINED, ATTEMPT_FAILED)
            for each in _voids(payment, parent)
        )
        return 0 if done else amount_of(payment, reversal)
    room_minor = min(
        captured_of_minor(payment, parent)
        - refunded_of_minor(payment, parent, reserved=True)
        - _charged_back_minor(payment, parent),
        # What a bank took for good, of whichever charge, is with the customer already.
        refundable_minor(payment)
        + _kept_for_nothing_minor(payment, parent)
        - payment.charged_back_minor
        - _lost_minor(with_ground(payment)),
    )
    if is_unfinished(reversal) and find_attempt(payment, reversal.operation_id, reversal.attempt):
        room_minor += amount_of(payment, reversal)
    return max(0, min(_wanted_minor(payment, reversal, parent), room_minor))


def is_released(payment: Payment, hold: Attempt) -> bool:
    """Whether a hold is over: voided, or known to have lapsed after its void was refused."""
    return any(
        has_succeeded(each.state) or (each.code == LAPSED and not is_unfinished(each))
        for each in _voids(payment, hold)
    )


def hold_ends_ms(payment: Payment, void: Attempt, policy: Policy) -> int | None:
    """When the hold that a void is of is over at its gateway, whatever became of the void: counted
    like that of an authorization that stands, from when it was known. Of a gateway that the policy
    does not have, nobody knows how long it keeps one."""
    hold = parent_of(payment, void)
    if hold is None or void.kind != VOID:
        return None
    profile = profile_of(policy, hold.gateway)
    return hold.updated_at_ms + (HOLD_MS_MAX if profile is None else profile.authorization_ms)


def in_dispute(payment: Payment, reversal: Attempt) -> bool:
    """Whether a bank has the money of a reversal, and may keep it."""
    return reversal.kind == REFUND and bars_refunds(payment, parent_of(payment, reversal))


def awaits_dispute(payment: Payment, reversal: Attempt) -> bool:
    """Whether a dispute decides first whose the money is; a person may have decided it by force."""
    return reversal.override is None and in_dispute(payment, reversal)


def held(payment: Payment) -> tuple[Attempt, ...]:
    """The reversals of which nothing was sent yet, since a dispute is open."""
    return tuple(
        each
        for each in payment.attempts
        if is_reversal(each) and each.state == RETRY_WAITING and each.code == DISPUTED
    )


def in_part(payment: Payment, reversal: Attempt, amount_minor: int) -> Attempt:
    """The reversal as it is sent for what is owed by now; what it was meant for is kept."""
    meant_minor = reversal.meant_minor or amount_of(payment, reversal)
    return replace(
        reversal,
        amount_minor=amount_minor,
        meant_minor=meant_minor if amount_minor < meant_minor else 0,
    )


def successor_id(payment: Payment, reversal: Attempt) -> str:
    """The id of the reversal that takes the place of one that ended without success."""
    return reversal_operation_id(payment.order_id, reversal.operation_id, reversal.attempt)


def outstanding(payment: Payment) -> tuple[Attempt, ...]:
    """The reversals that ended without success, or gave back less than is owed by now, and have no
    successor."""
    return tuple(
        each
        for each in payment.attempts
        if is_reversal(each)
        and not is_unfinished(each)
        and find_attempt(payment, successor_id(payment, each), 1) is None
        and owed_minor(payment, each) > 0
    )


def came_back_since(payment: Payment, reversal: Attempt) -> bool:
    """Whether a refund of the same money has come back since a reversal was sent, or the reversal
    itself, whatever the clock said then: another one would come back as well, and a person is told.
    """
    parent = parent_of(payment, reversal)
    return parent is not None and any(
        each.kind == REFUND
        and each.state == ATTEMPT_FAILED
        and each.code in CAME_BACK
        and (_same(each, reversal) or each.updated_at_ms >= reversal.started_at_ms)
        and _same(parent_of(payment, each), parent)
        for each in payment.attempts
    )


def has_room(payment: Payment, kept: int = ATTEMPTS_KEPT) -> bool:
    """Whether one more reversal may begin: each charge, authorization and capture may still show as
    made and has to be given back then, and ``kept`` more that may come meanwhile."""
    begun = {each.operation_id for each in payment.attempts if each.kind in (VOID, REFUND)}
    may_come = sum(
        each.kind in _TAKING_KINDS
        and reversal_operation_id(payment.order_id, each.operation_id, each.attempt) not in begun
        for each in payment.attempts
    )
    return len(payment.attempts) + may_come + kept < ATTEMPTS_MAX


def reversals_in_row(payment: Payment, reversal: Attempt) -> int:
    """How many reversals there were for what this one gives back, itself included."""
    return len(_row(payment, reversal))


def _row(payment: Payment, reversal: Attempt) -> list[Attempt]:
    """A reversal and those that it took the place of, the newest first."""
    row = [reversal]
    while len(row) < len(payment.attempts):
        before = next(
            (
                e
                for e in payment.attempts
                if is_reversal(e) and successor_id(payment, e) == row[-1].operation_id
            ),
            None,
        )
        if before is None:
            break
        row.append(before)
    return row


def _wanted_minor(payment: Payment, reversal: Attempt, parent: Attempt) -> int:
    """The most that a reversal, or its successor, is to give back: all of a late charge, whatever
    of it went back before; of what was captured beyond a hold what the first was meant for, less
    what is with the customer by it and by those that took its place."""
    if parent.kind == CHARGE:
        return amount_of(payment, parent)
    row = _row(payment, reversal)
    done_minor = sum(amount_of(payment, each) for each in row if has_succeeded(each.state))
    return (row[-1].meant_minor or amount_of(payment, row[-1])) - done_minor


def _kept_for_nothing_minor(payment: Payment, but: Attempt) -> int:
    """What waits to go back of charges except one, and will not: of theirs the banks have it.

    Each is seen when its own wait is over. Until then it takes nothing from what the others owe.
    """
    total_minor = 0
    for charge in payment.attempts:
        if charge.kind not in MAIN_KINDS or _same(charge, but):
            continue
        waiting_minor = sum(
            amount_of(payment, each)
            for each in payment.attempts
            if is_reversal(each)
            and each.kind == REFUND
            and (each.state, each.tries) == (RETRY_WAITING, 0)
            and _same(parent_of(payment, each), charge)
        )
        gone_minor = refunded_of_minor(payment, charge, reserved=True)
        gone_minor += _charged_back_minor(payment, charge)
        beyond_minor = gone_minor - captured_of_minor(payment, charge)
        total_minor += max(0, min(waiting_minor, beyond_minor))
    return total_minor


def _charged_back_minor(payment: Payment, charge: Attempt) -> int:
    """What banks took for good in disputes that name this charge."""
    return _lost_minor(
        each
        for each in (*payment.disputes, *with_ground(payment))
        if each.charge_reference is not None
        and (each.gateway, each.charge_reference) == (charge.gateway, charge.gateway_reference)
    )


def _lost_minor(disputes: Iterable[Dispute]) -> int:
    return sum(each.withdrawn_minor for each in disputes if each.state == LOST)


def _voids(payment: Payment, hold: Attempt) -> tuple[Attempt, ...]:
    return tuple(
        each
        for each in payment.attempts
        if each.kind == VOID and _same(parent_of(payment, each), hold)
    )


def _same(one: Attempt | None, other: Attempt) -> bool:
    return one is not None and (one.operation_id, one.attempt) == (
        other.operation_id, other.attempt,
    )  # fmt: skip

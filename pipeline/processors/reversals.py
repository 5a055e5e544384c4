"""Giving back what came too late, when that does not succeed at once.

Nothing that is owed is given up silently. A reversal that its gateway did not make, and will not
make by that key, has a successor: at once where it is proven that nothing was sent, an hour later
where the gateway declined it for reasons of its own. What it refuses for good, and what was tried
often enough, is told (``reversal_failed``) and waits for a person's ``give_back``; a hold also
for its end (``holds``).
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from pipeline.domain.commands import to_give_back
from pipeline.domain.decision import Decision
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.lifecycle import (
    BEGIN_LATER,
    DECLINED,
    GIVE_BACK_ORDERED,
    GIVE_UP,
    LATE_SUCCESS,
    RETRY_DUE,
    RETRY_WAITING,
    REVERSAL_FAILED,
    REVERSAL_HELD,
    REVERSAL_STARTED,
    has_succeeded,
)
from pipeline.domain.model import Attempt, Payment, PaymentCommand
from pipeline.domain.normalisation import Action, action_of
from pipeline.domain.payment import (
    attempt_timer,
    begun,
    decision,
    find_attempt,
    first_try,
    followed,
    gateway_profile,
    is_reversal,
    parent_of,
    replaced,
    request_of,
    stepped,
    told,
)
from pipeline.domain.policy import Policy
from pipeline.domain.recorded_refunds import RECORDED
from pipeline.domain.reversals import (
    DISPUTED,
    REVERSALS_MAX,
    awaits_dispute,
    came_back_since,
    has_room,
    held,
    in_part,
    outstanding,
    owed_minor,
    reversals_in_row,
    successor_id,
)
from pipeline.processors.holds import end_of_hold, lapsed

# Reason of a reversal that ends because the money has gone back in another way.
NOTHING_OWED: Final = "nothing_left_to_give_back"


def with_successor(made: Decision, attempt: Attempt, now_ms: int, policy: Policy) -> Decision:
    """The decision that ended an attempt without success, and what follows where it was to give
    something back: it is ordered again, or a person is told."""
    payment = made.payment
    if payment is None or not is_reversal(attempt):
        return made
    ended = find_attempt(payment, attempt.operation_id, attempt.attempt) or attempt
    if owed_minor(payment, ended) <= 0:
        return made
    over = lapsed(payment, ended, now_ms, policy)
    if over is not None:
        return followed(made, over)
    return followed(made, _again(payment, ended, now_ms, policy))


def without_successor(made: Decision, attempt: Attempt, now_ms: int, policy: Policy) -> Decision:
    """The decision that ended an attempt of which there is no second one by itself, since it would
    end the same, or be made twice: where it was to give something back, a person is told."""
    found = _still_owed(made, attempt)
    if found is None:
        return made
    payment, ended = found
    over = lapsed(payment, ended, now_ms, policy)
    return followed(made, over or _failed(payment, ended, now_ms, policy))


def with_rest(made: Decision, attempt: Attempt, now_ms: int, policy: Policy) -> Decision:
    """The decision by which a refund is made, and what follows where it gave back less than is owed
    by now: what a bank had when it was sent, and no longer has. It is ordered as it would have been
    if the bank's word had come later; where there is no room for it, or some of it came back
    meanwhile, a person is told."""
    found = _still_owed(made, attempt)
    if found is None:
        return made
    payment, done = found
    by_itself = has_room(payment) and not came_back_since(payment, done)
    rest = _succeeded_by if by_itself else _failed
    return followed(made, rest(payment, done, now_ms, policy))


def _still_owed(made: Decision, attempt: Attempt) -> tuple[Payment, Attempt] | None:
    """The payment and the reversal as a decision leaves them, if something is owed of it that
    nothing else has been ordered for."""
    payment = made.payment
    if payment is None or not is_reversal(attempt):
        return None
    ended = find_attempt(payment, attempt.operation_id, attempt.attempt) or attempt
    if find_attempt(payment, successor_id(payment, ended), 1) is not None:
        return None
    return (payment, ended) if owed_minor(payment, ended) else None


def with_owed_again(
    before: Payment,
    made: Decision,
    now_ms: int,
    policy: Policy,
    *,
    by: Attempt | None = None,
) -> Decision:
    """The decision by which money came back to us, and what has to go back of it again: by a
    dispute's newer word, or since a refund came back.

    What had ended while it was not owed is followed now as it would have been then: ordered anew
    where it is proven that nothing of it moved, or where it gave back a part and the bank had the
    rest; else told. What was owed as much before was told then. A refund that came back would come
    back again, so a person is told; so is one who gave back a part otherwise, and may do so again.

    ``by``: the refund that ended without success, and has successors of its own, or the charge or
    capture that shows as made. As long as that was not known, what banks had taken, of whichever
    charge, left less of the others to give back.
    """
    owed_before = {
        (each.operation_id, each.attempt): owed_minor(before, each) for each in outstanding(before)
    }
    by_dispute = made.payment is not None and made.payment.disputes != before.disputes
    for each in () if made.payment is None else outstanding(made.payment):
        payment = made.payment
        # The one before may have taken what is left.
        if payment is None or owed_minor(payment, each) <= 0:
            continue
        name = each.operation_id, each.attempt
        if by is not None and name == (by.operation_id, by.attempt):
            continue
        more = owed_minor(payment, each) > owed_before.get(name, 0)
        gone_back = has_succeeded(each.state)
        by_itself = (
            (by_dispute or (more and by is not None))
            and each.code != RECORDED
            and not came_back_since(payment, each)
        )
        if by_itself and (gone_back or not each.tries) and has_room(payment):
            # Force lasts until what was ordered with it has gone back.
            override = None if gone_back else each.override
            then = _succeeded_by(payment, each, now_ms, policy, override=override)
            made = followed(made, then)
        elif more and by_itself and not _may_move_twice(each, policy):
            made = followed(made, _again(payment, each, now_ms, policy))
        elif more:
            made = followed(made, _failed(payment, each, now_ms, policy))
    return made


def _again(payment: Payment, ended: Attempt, now_ms: int, policy: Policy) -> Decision:
    """What follows a reversal that ended without success and is owed: another one, or, after a
    plain no or too many of them, or where some of it came back meanwhile, a person."""
    in_trouble = action_of(ended.code) in (Action.OTHER_GATEWAY, Action.RETRY_HERE)
    if (
        (ended.state != DECLINED or in_trouble)
        and reversals_in_row(payment, ended) < REVERSALS_MAX
        and has_room(payment)
        and not came_back_since(payment, ended)
    ):
        wait_ms = policy.pending_check_ms if ended.state == DECLINED else 0
        return _succeeded_by(
            payment, ended, now_ms, policy,
            wait_ms=wait_ms, reason=ended.code, override=ended.override,
        )  # fmt: skip
    return _failed(payment, ended, now_ms, policy)


def _may_move_twice(ended: Attempt, policy: Policy) -> bool:
    """Whether another reversal might be made beside this one: its gateway takes no key and may have
    had a call of it."""
    return ended.state != DECLINED and not gateway_profile(policy, ended.gateway).idempotent


def _succeeded_by(
    payment: Payment, ended: Attempt, now_ms: int, policy: Policy, **how: Any
) -> Decision:
    """Begin the reversal that takes the place of one that has ended, for what is owed by now."""
    return begin_reversal(
        payment, ended.kind, successor_id(payment, ended), _parent(payment, ended),
        owed_minor(payment, ended), now_ms, policy, **how,
    )  # fmt: skip


def _failed(payment: Payment, reversal: Attempt, now_ms: int, policy: Policy) -> Decision:
    """Nothing more is tried by itself, and the money is still owed: a person has to look. A hold
    ends by itself, but that may take days."""
    changed, event = told(payment, REVERSAL_FAILED, now_ms, reason=reversal.code, attempt=reversal)
    return decision(changed, *end_of_hold(changed, reversal, now_ms, policy), event)


def give_back(payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy) -> Decision:
    """A person orders again what is outstanding, and by force what waits for a dispute's end: all
    of it, or the operation that is named. The command keeps the rules of ``domain/commands``."""
    changed, event = told(
        payment,
        GIVE_BACK_ORDERED,
        now_ms,
        reason=command.reason,
        actor=command.actor,
        operation_id=command.command_id,
    )
    made = decision(changed, event)
    for each in to_give_back(held(payment), command) if command.override else ():
        payment = made.payment or changed
        waited, ended = first_sent(payment, replace(each, override=command.override), now_ms)
        made = followed(made, ended or _sent(payment, waited, now_ms, policy))
    for each in to_give_back(outstanding(payment), command):
        payment = made.payment or changed
        # Of two, the first may have taken all that is left: then nothing is ordered of the other.
        if has_room(payment) and owed_minor(payment, each) > 0:
            then = _succeeded_by(
                payment, each, now_ms, policy, actor=command.actor, override=command.override
            )
            made = followed(made, then)
    return made


def begin_reversal(
    payment: Payment,
    kind: str,
    operation_id: str,
    parent: Attempt,
    amount_minor: int,
    now_ms: int,
    policy: Policy,
    *,
    wait_ms: int = 0,
    reason: str | None = None,
    actor: str | None = None,
    override: str | None = None,
) -> Decision:
    """Begin to give back what came too late: at once, after ``wait_ms``, or, where a bank has the
    customer's money and may keep it, once its dispute has ended. By force it does not wait for that
    end, however often it has to be sent or ordered again."""
    attempt = first_try(
        operation_id,
        kind,
        parent.gateway,
        1,
        policy.send_within_ms,
        now_ms,
        amount_minor=amount_minor,
        parent=parent,
    )
    barred = awaits_dispute(payment, attempt)
    # Kept, so that the force outlasts what could not be sent at first.
    attempt = replace(attempt, override=override if barred else None)
    disputed = override is None and (barred or owed_minor(payment, attempt) < amount_minor)
    if not (wait_ms or disputed):
        changed, event = begun(
            payment, attempt, now_ms, event=REVERSAL_STARTED, reason=LATE_SUCCESS, actor=actor
        )
        return decision(changed, request_of(changed, attempt), event)
    if disputed:
        wait_ms, reason = policy.pending_check_ms, DISPUTED
    # Nothing is sent yet: its tries, and its key's age, count from when it is.
    attempt = replace(attempt, state=RETRY_WAITING, tries=0, code=reason)
    changed, event = begun(
        payment,
        attempt,
        now_ms,
        trigger=BEGIN_LATER,
        event=REVERSAL_HELD if disputed else None,
        reason=reason,
        actor=actor,
    )
    timer = attempt_timer(changed, attempt, reason, now_ms + wait_ms, policy, now_ms)
    return decision(changed, timer, event)


def first_due(payment: Payment, attempt: Attempt, now_ms: int, policy: Policy) -> Decision:
    """The wait of a reversal of which nothing was sent is over."""
    if not awaits_dispute(payment, attempt):
        waited, ended = first_sent(payment, attempt, now_ms)
        return ended or _sent(payment, waited, now_ms, policy)
    again_ms = now_ms + policy.pending_check_ms
    timer = attempt_timer(payment, attempt, DISPUTED, again_ms, policy, now_ms)
    if attempt.code == DISPUTED:
        return Decision(sends=(timer,), note=DISPUTED)
    attempt = replace(attempt, code=DISPUTED)
    kept = replace(payment, attempts=replaced(payment, attempt))
    changed, event = told(kept, REVERSAL_HELD, now_ms, reason=DISPUTED, attempt=attempt)
    return decision(changed, timer, event)


def first_sent(payment: Payment, attempt: Attempt, now_ms: int) -> tuple[Attempt, Decision | None]:
    """A reversal that waited before anything was sent, as it is sent now; or its end, where the
    money has gone back in another way meanwhile."""
    amount_minor = owed_minor(payment, attempt)
    if amount_minor <= 0:
        changed, event = stepped(payment, attempt, GIVE_UP, now_ms, reason=NOTHING_OWED)
        return attempt, decision(changed, event)
    part = in_part(payment, attempt, amount_minor)
    return replace(part, started_at_ms=now_ms, code=None), None


def _sent(payment: Payment, attempt: Attempt, now_ms: int, policy: Policy) -> Decision:
    attempt = replace(attempt, tries=1, send_within_ms=policy.send_within_ms, sendable_until_ms=0)
    changed, event = stepped(payment, attempt, RETRY_DUE, now_ms, reason=LATE_SUCCESS)
    return decision(changed, request_of(changed, attempt), event)


def _parent(payment: Payment, reversal: Attempt) -> Attempt:
    parent = parent_of(payment, reversal)
    if parent is None:
        raise InvariantBroken("a reversal is of a charge or authorization of the payment")
    return parent

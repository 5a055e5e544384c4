"""What a refund that came back leaves to be done: a part of the ``Referee``.

A person may say of a refund that is booked as made that its money is back. Then that, and nothing
else, is booked, once; such a word of anything else is refused, and changes nothing. What has to go
back and did not is on its way, or a person was told; what came back is ordered by people alone.
"""

from __future__ import annotations

from typing import Any, Final

from pipeline.audit.derivation import reversal_operation_id
from pipeline.domain.decision import Decision
from pipeline.domain.model import (
    Attempt,
    AuditEntry,
    Payment,
    PaymentCommand,
    PaymentEvent,
    Settlement,
)

# A refund that is neither under way nor may be yet.
ENDED: Final = {"refunded", "declined", "failed"}
CAME_BACK: Final = {"failed_later", "returned"}
REFUSALS: Final = {"operation_must_be_a_refund_that_was_made", "operation_must_be_the_payments"}


def is_persons_return(source: Any) -> bool:
    return isinstance(source, PaymentCommand) and (
        (source.type, source.decision) == ("resolve", "returned")
    )


def judge_return(source: Any, before: Payment | None, made: Decision) -> None:
    """A person's word that a refund came back."""
    after = made.payment
    if not is_persons_return(source) or before is None or after is None:
        return
    booked = [
        each for each in before.attempts
        if (each.operation_id, each.kind, each.state) == (source.operation_id, "refund", "refunded")
        and each.code != "recorded"
    ]  # fmt: skip
    told = [(each.type, each.reason, each.actor) for each in _events(made)]
    settled = [
        (each.kind, each.operation_id, each.amount_minor)
        for each in made.sends if isinstance(each, Settlement)
    ]  # fmt: skip
    outcome = "done" if booked else "refused"
    audited = [
        f'"outcome":"{outcome}"' in each.detail
        for each in made.sends if isinstance(each, AuditEntry) and each.actor == source.actor
    ]  # fmt: skip
    assert audited == [True], f"not audited as {outcome}"
    if not booked:
        type_, reason, _ = told[0]
        assert (len(told), type_) == (1, "command_rejected"), f"taken of what was not made: {told}"
        assert reason in REFUSALS, f"refused since {reason}"
        assert settled == [], "a refusal moves money"
        assert (after.attempts, after.refunded_minor) == (before.attempts, before.refunded_minor)
        return
    (refund,) = booked
    back = ("refund_failed", refund.operation_id, refund.amount_minor)
    assert settled == [back], f"{settled} is settled, {back} came back"
    assert after.refunded_minor == before.refunded_minor - refund.amount_minor
    assert told[0] == ("refund_failed", "failed_later", source.actor), f"told as {told}"


class Owed:
    """What came too late, or was captured beyond a hold, and is not with the customer, as far as a
    payment's records tell it. Each is named by the first reversal of it."""

    def __init__(self) -> None:
        # Of how much of it a person was told, and how much has come back that nobody ordered since.
        self.told_minor: dict[str, int] = {}
        self.came_back_minor: dict[str, int] = {}

    def judge(self, before: Payment | None, made: Decision) -> None:
        payment = made.payment
        if before is None or payment is None:
            return
        for taken in payment.attempts:
            row = _row(payment, taken)
            if row and taken.kind in ("charge", "capture"):
                self.judge_orders(before, payment, taken, row, _events(made))
                self.judge_told(payment, taken, row, _events(made))

    def judge_told(
        self, payment: Payment, taken: Attempt, row: list[Attempt], events: list[PaymentEvent]
    ) -> None:
        """What is owed is on its way, or somebody is told."""
        name = row[0].operation_id
        if row[-1].state not in ENDED:
            self.told_minor[name] = 0
            return
        owed_minor = _owed_minor(payment, taken, row)
        told = {each.operation_id for each in events if each.type == "reversal_failed"}
        told_minor = self.told_minor.get(name, 0)
        if told.intersection(each.operation_id for each in row):
            told_minor = owed_minor
        self.told_minor[name] = min(told_minor, owed_minor)
        # Of all charges, banks and other refunds may leave less of it.
        lost_minor = sum(e.withdrawn_minor for e in payment.disputes if e.state == "lost")
        left_minor = payment.captured_minor - _back_minor(payment.attempts) - lost_minor
        assert min(owed_minor, left_minor) <= told_minor, (
            f"{owed_minor} is owed after {row[-1].operation_id}, and nobody is told"
        )

    def judge_orders(
        self,
        before: Payment,
        payment: Payment,
        taken: Attempt,
        row: list[Attempt],
        events: list[PaymentEvent],
    ) -> None:
        """What came back would come back again, and is not ordered by itself."""
        name = row[0].operation_id
        about = row if taken.kind == "capture" else _refunds_beside(payment, row[0])
        known = {(e.operation_id, e.attempt): e for e in before.attempts}
        by_person = any(each.type == "give_back_ordered" for each in events)
        came_back_minor = self.came_back_minor.get(name, 0)
        for each in about:
            was = known.get((each.operation_id, each.attempt))
            if was is not None:
                is_back = each.code in CAME_BACK and was.code not in CAME_BACK
                came_back_minor += each.amount_minor if is_back else 0
            elif by_person and each in row:
                # Of all of it somebody has decided by now, though a bank may have some.
                came_back_minor = 0
            elif each.code == "recorded" or each.operation_id[:5] != "late-":
                came_back_minor = max(0, came_back_minor - each.amount_minor)
            else:
                left_minor = _wanted_minor(payment, taken, row) - came_back_minor
                assert _back_minor(about) <= left_minor, (
                    f"{each.operation_id} is ordered by itself, {came_back_minor} came back"
                )
        self.came_back_minor[name] = came_back_minor


def _events(made: Decision) -> list[PaymentEvent]:
    return [each for each in made.sends if isinstance(each, PaymentEvent)]


def _row(payment: Payment, taken: Attempt) -> list[Attempt]:
    """The refunds that give back what was taken, each in the place of the one before."""
    known = {each.operation_id: each for each in payment.attempts if each.kind == "refund"}
    row: list[Attempt] = []
    last: Attempt | None = taken
    while last is not None:
        name = reversal_operation_id(payment.order_id, last.operation_id, last.attempt)
        last = known.get(name)
        row += [] if last is None else [last]
    return row


def _refunds_beside(payment: Payment, refund: Attempt) -> list[Attempt]:
    """All refunds of the same charge, or of the captures of the same hold."""
    about = refund.parent_operation_id, refund.parent_attempt
    return [
        each for each in payment.attempts
        if each.kind == "refund" and (each.parent_operation_id, each.parent_attempt) == about
    ]  # fmt: skip


def _wanted_minor(payment: Payment, taken: Attempt, row: list[Attempt]) -> int:
    """All that a late charge took, or what a capture took beyond its hold."""
    if taken.kind == "charge":
        return taken.amount_minor or payment.amount_minor
    return row[0].meant_minor or row[0].amount_minor


def _owed_minor(payment: Payment, taken: Attempt, row: list[Attempt]) -> int:
    """What of it did not go back, and may not yet, and no bank took of that charge for good."""
    about = row[0].parent_operation_id, row[0].parent_attempt
    charge = next(e for e in payment.attempts if (e.operation_id, e.attempt) == about)
    taken_minor = wanted_minor = _wanted_minor(payment, taken, row)
    if taken.kind == "capture":
        wanted_minor -= sum(each.amount_minor for each in row if each.state == "refunded")
        taken_minor = sum(
            each.amount_minor for each in payment.attempts
            if each.state == "captured"
            and (each.parent_operation_id, each.parent_attempt) == about
        )  # fmt: skip
    lost_minor = sum(
        each.withdrawn_minor for each in payment.disputes
        if each.state == "lost"
        and (each.gateway, each.charge_reference) == (charge.gateway, charge.gateway_reference)
    )  # fmt: skip
    left_minor = taken_minor - _back_minor(_refunds_beside(payment, row[0])) - lost_minor
    return max(0, min(wanted_minor, left_minor))


def _back_minor(attempts: list[Attempt] | tuple[Attempt, ...]) -> int:
    """What went back by refunds, or may yet."""
    return sum(
        each.amount_minor for each in attempts
        if each.kind == "refund" and (each.state == "refunded" or each.state not in ENDED)
    )  # fmt: skip

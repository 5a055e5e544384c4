"""What was given back outside its gateway: a person records it, so that nothing is owed any more.

Only of what is owed back and is not on its way: a gateway that may still refund it is asked, or
resolved, first. The record takes the place of the reversal that was given up, as its successor
would, so what of it is still owed is seen as it always is.
"""

from __future__ import annotations

from typing import Final

from pipeline.domain.lifecycle import INQUIRY_EXHAUSTED, REFUND, RETRY_WAITING
from pipeline.domain.model import Attempt, Payment, PaymentCommand
from pipeline.domain.payment import amount_of, is_reversal
from pipeline.domain.reversals import outstanding, owed_minor
from pipeline.domain.validation import TEXT_LENGTH_MAX

# Code of a refund that was made outside its gateway; its reference is the transfer's.
RECORDED: Final = "recorded"

TRANSFER_MUST_BE_NAMED: Final = "reference_of_the_transfer_must_be_given"
REFUND_MUST_BE_OWED: Final = "refund_must_be_owed"
REFUND_MUST_NOT_EXCEED_OWED: Final = "refund_must_not_exceed_what_is_owed"
REFUND_MUST_NOT_BE_RECORDED_SO: Final = "refund_must_not_be_recorded_already"


def transfer_of(command: PaymentCommand) -> str:
    """What the bank, or whoever paid, calls the movement; people copy blanks as well."""
    return (command.gateway_reference or "").strip()


def names_transfer(command: PaymentCommand) -> bool:
    """Whether it can be found again by what the command says, and stand in the books."""
    reference = transfer_of(command)
    return 0 < len(reference) <= TEXT_LENGTH_MAX and reference.isprintable()


def is_unsent(reversal: Attempt) -> bool:
    """Whether a reversal waits before anything was sent: for a bank, or for a better time."""
    return reversal.state == RETRY_WAITING and not reversal.tries


def recordable(payment: Payment) -> tuple[Attempt, ...]:
    """The reversals that another way of giving back may take the place of, oldest first."""
    given_up = outstanding(payment)
    return tuple(
        each
        for each in payment.attempts
        if each.kind == REFUND
        and is_reversal(each)
        and (
            each in given_up
            or (
                (is_unsent(each) or each.state == INQUIRY_EXHAUSTED)
                and owed_minor(payment, each) > 0
            )
        )
    )


def recorded_for(payment: Payment, command: PaymentCommand) -> Attempt | None:
    """The reversal that a record is about; None where that is not certain."""
    found = recordable(payment)
    if command.operation_id is not None:
        return next((each for each in found if each.operation_id == command.operation_id), None)
    return found[0] if len(found) == 1 else None


def is_recorded(payment: Payment, reference: str) -> bool:
    """Whether the payment has this transfer already."""
    return any(
        (each.code, each.gateway_reference) == (RECORDED, reference) for each in payment.attempts
    )


def choices(payment: Payment) -> str:
    """The operations that a record may name, for people."""
    return ", ".join(
        f"{each.operation_id} ({amount_of(payment, each)} {payment.currency} at {each.gateway})"
        for each in recordable(payment)
    )

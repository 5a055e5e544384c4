"""What is refused at the door: an order or a command that holds a card number.

It goes to the dead letters, masked, and nothing of it is kept: a payment that the table holds
already only says that it came, by the names of the fields.
"""

from __future__ import annotations

from typing import Final

from pipeline.domain.card_numbers import fields_with_card_numbers, holds_card_number
from pipeline.domain.commands import RESOLVE, names_own_operation
from pipeline.domain.decision import Decision
from pipeline.domain.model import Order, Payment, PaymentCommand
from pipeline.domain.payment import dead_lettered

CARD_NUMBER_IN_FIELD: Final = "card_number_in_field"


def card_number_refused(
    payment: Payment | None, given: Order | PaymentCommand, now_ms: int
) -> Decision | None:
    """The refusal of an order or command that holds a card number; None for a clean one."""
    fields = fields_with_card_numbers(given)
    if isinstance(given, PaymentCommand) and _names_no_operation(payment, given):
        fields = (*fields, "operation_id")
    if not fields:
        return None
    detail = f"a card number stands in {', '.join(fields)}"
    if payment is None:
        return Decision(dead_letter=CARD_NUMBER_IN_FIELD, detail=detail)
    return dead_lettered(payment, CARD_NUMBER_IN_FIELD, detail, now_ms)


def _names_no_operation(payment: Payment | None, command: PaymentCommand) -> bool:
    """Whether its ``operation_id`` holds a card number and is none of the payment's own ids, which
    may look like one: a 16-digit order id passes Luhn once in ten. Where a command names no
    operation, what stands there is a text like any other."""
    named = command.operation_id
    if named is None or not holds_card_number(named, opaque=command.type == RESOLVE):
        return False
    return not names_own_operation(payment, command)

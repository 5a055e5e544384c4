"""Risk in the flow: what is refused at the door."""

from __future__ import annotations

from typing import Final

from pipeline.domain.card_numbers import fields_with_card_numbers
from pipeline.domain.decision import Decision
from pipeline.domain.model import Order, Payment, RiskResult
from pipeline.domain.payment import dead_lettered
from pipeline.domain.policy import Policy

CARD_NUMBER_IN_FIELD: Final = "card_number_in_field"
STALE_RISK_RESULT: Final = "stale_risk_result"


def card_number_refused(payment: Payment | None, order: Order, now_ms: int) -> Decision | None:
    """An order that holds a card number goes to the dead letters, masked; None for a clean one.

    Nothing of it is kept: a payment that the table holds already only says that it came.
    """
    fields = fields_with_card_numbers(order)
    if not fields:
        return None
    detail = f"a card number stands in {', '.join(fields)}"
    if payment is None:
        return Decision(dead_letter=CARD_NUMBER_IN_FIELD, detail=detail)
    return dead_lettered(payment, CARD_NUMBER_IN_FIELD, detail, now_ms)


def process_risk_result(
    payment: Payment | None, result: RiskResult, now_ms: int, policy: Policy
) -> Decision:
    """Decide about the counts of one identity; counts that nobody waits for have no effect."""
    return Decision(note=STALE_RISK_RESULT)

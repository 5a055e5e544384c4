"""What answers an earlier try of an attempt says nothing about the one under way."""

from __future__ import annotations

from msgspec.structs import replace

from pipeline.domain.model import GatewayResult, Order, Payment, PaymentDue
from pipeline.domain.policy import DEFAULT_POLICY
from pipeline.processors.order import process_order
from pipeline.processors.settlement import STALE_DUE, process_due, process_result

NOW = 1_800_000_000_000


def tried(tries: int, state: str) -> Payment:
    """A payment whose first charge is at this try and in this state."""
    order = Order(
        merchant_id="shop", order_id="o1", amount_minor=1_000, currency="GBP",
        instrument_token="tok_ok", business_date="2027-01-15", submitted_at_ms=NOW,
    )  # fmt: skip
    payment = process_order(None, order, NOW, DEFAULT_POLICY).payment
    assert payment is not None
    (attempt,) = payment.attempts
    return replace(payment, attempts=(replace(attempt, tries=tries, state=state),))


def test_an_answer_to_an_earlier_try_leaves_the_try_under_way() -> None:
    """The first try's lost answer, told again after the charge was sent again, asks nothing."""
    payment = tried(3, "started")
    (attempt,) = payment.attempts
    result = GatewayResult(
        merchant_id="shop", order_id="o1", payment_id=payment.payment_id, operation_id="o1",
        kind="charge", gateway=attempt.gateway, attempt=1, try_number=1, outcome="unknown",
        amount_minor=0, currency="GBP", observed_at_ms=NOW,
    )  # fmt: skip
    made = process_result(payment, result, NOW + 5_000, DEFAULT_POLICY)
    assert (made.payment, made.sends, made.note) == (None, (), "stale_result")


def test_a_wait_of_an_earlier_try_sends_nothing() -> None:
    """Else a wait that comes twice would send the later try before its time."""
    payment = tried(2, "retry_waiting")
    due = PaymentDue(
        merchant_id="shop", order_id="o1", payment_id=payment.payment_id, operation_id="o1",
        attempt=1, try_number=1, purpose="retry",
    )  # fmt: skip
    made = process_due(payment, due, NOW + 5_000, DEFAULT_POLICY)
    assert (made.payment, made.sends, made.note) == (None, (), STALE_DUE)

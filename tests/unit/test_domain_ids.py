from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain import ids

ROOT = uuid.uuid5(uuid.NAMESPACE_DNS, "io.paystream")
PLAIN = st.text("ABCxyz019._-", min_size=1, max_size=64)


@pytest.mark.slow
@given(PLAIN, PLAIN, st.integers(1, 10**6))
def test_ids_are_uuid5(merchant: str, order: str, sequence: int) -> None:
    """Every id equals what the standard library's uuid5 gives in the namespace of its kind."""
    payment = ids.payment_id(merchant, order)
    assert payment == str(uuid.uuid5(uuid.uuid5(ROOT, "payment"), f"{merchant}:{order}"))
    assert ids.event_id(payment, sequence) == str(
        uuid.uuid5(uuid.uuid5(ROOT, "event"), f"{payment}:{sequence}")
    )
    assert ids.audit_entry_id(payment, order) == str(
        uuid.uuid5(uuid.uuid5(ROOT, "audit"), f"{payment}:{order}")
    )
    assert ids.settlement_id(payment, order, "capture") == str(
        uuid.uuid5(uuid.uuid5(ROOT, "settlement"), f"{payment}:{order}:capture")
    )


def test_a_merchant_cannot_name_an_order_after_an_event() -> None:
    """A merchant named like a payment, with an order named like a sequence, collides with none."""
    payment = ids.payment_id("shop", "1")
    assert ids.payment_id(payment, "1") != ids.event_id(payment, 1)


def test_the_key_of_a_charge_names_all_that_it_depends_on() -> None:
    """Gateways tell charges apart by payment, operation, gateway and attempt, and nothing else."""
    assert ids.idempotency_key("p", "o", "g", 2) == "p:o:g:2"
